"""Multi-CPR by its published protocol, from the data set's own layout, over the full corpus of each domain.

    DATA/<domain>/corpus.tsv        pid, passage
    DATA/<domain>/dev.query.txt     qid, query
    DATA/<domain>/qrels.dev.tsv     qid, 0, pid, 1          no file has a header

Invariant: only a full corpus, of about a million passages, is called multi-cpr; a sampled one (mteb's Ecom-, Medical-
and VideoRetrieval have 100,000) is easier and carries another name. The corpus streams by and is in memory for BM25
only; embedded blocks lie on disk until the domain's scores do.
Does not know: how blocks are kept or searched (retrieval.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udever.errors import DatasetError, OptionError
from udever.evaluation.encoder import Encoder
from udever.evaluation.packages import require_package
from udever.evaluation.protocols.datafiles import digest, listed, locate, read_lines
from udever.evaluation.protocols.ranking import Judgements, baselines, judgements
from udever.evaluation.results import Score

DOMAINS = ("ecom", "video", "medical")
"""Their published corpora hold 1,002,822, 1,000,000 and 959,526 passages."""
FULL_PASSAGES = 900_000
"""Fewer are a sample."""
DEPTH = 1000
FILES = ("corpus.tsv", "dev.query.txt", "qrels.dev.tsv")


@dataclass(frozen=True, kw_only=True)
class MultiCpr:
    """One domain."""

    domain: str
    sampled: bool
    corpus: Path
    passage_ids: Sequence[str]
    judgements: Judgements
    data: str
    """Hash of the content of the three files."""

    @property
    def name(self) -> str:
        """The domain."""
        return self.domain

    @property
    def protocol(self) -> str:
        """`multi-cpr`, or `multi-cpr-sampled` for another corpus."""
        return "multi-cpr-sampled" if self.sampled else "multi-cpr"

    @property
    def texts(self) -> int:
        """The corpus and the queries."""
        return len(self.passage_ids) + len(self.judgements.queries)

    def settings(self) -> Mapping[str, Any]:
        """What the score depends on."""
        return {"split": "dev", "passages": len(self.passage_ids), "data": self.data}

    def run(self, encoder: Encoder) -> list[Score]:
        """MRR@10 and recall@1000 of the model, BM25 and chance."""
        from udever.evaluation.baselines import bm25
        from udever.evaluation.retrieval import top_k

        queries, k = self.judgements.queries, min(DEPTH, len(self.passage_ids))
        beside = baselines(len(self.passage_ids), queries, lambda: bm25(list(self._passages()), queries, k=k), k=k)
        found = top_k(encoder.queries(queries), encoder.document_blocks(self._passages()), k=k)
        return self.judgements.scores(
            {"model": found, **beside},
            self.passage_ids,
            subset=self.domain,
            main="mrr@10",
            others=(f"recall@{DEPTH}",),
        )

    def _passages(self) -> Iterator[str]:
        return (passage for _, passage in _records(self.corpus))


def multi_cpr(data: Path, *, domains: Sequence[str] = (), sampled: bool = False) -> list[MultiCpr]:
    """Read queries, judgements and passage ids of each domain.

    Args:
        data: the folder of the domain folders.
        domains: default: all three.
        sampled: a smaller corpus is meant; the scores are then not called Multi-CPR.

    Raises:
        OptionError: a domain that Multi-CPR does not have.
        DatasetError: a file that is missing or has another shape, judgements of unknown passages, a sampled corpus.
        EvaluationError: bm25s is not installed.
    """
    for domain in domains:
        if domain not in DOMAINS:
            raise OptionError(f"Multi-CPR has no domain {domain!r}", hint=f"it has {listed(DOMAINS)}")
    require_package("bm25s")
    return [_read(data / domain, domain, sampled=sampled) for domain in dict.fromkeys(domains or DOMAINS)]


def _read(folder: Path, domain: str, *, sampled: bool) -> MultiCpr:
    try:
        corpus, queries, qrels = (locate(folder, name) for name in FILES)
    except DatasetError as error:
        raise DatasetError(error.message, hint=f"--data is the folder of {', '.join(DOMAINS)}") from None
    passage_ids = [pid for pid, _ in _records(corpus)]
    if len(passage_ids) < FULL_PASSAGES and not sampled:
        raise DatasetError(
            f"{corpus} holds {len(passage_ids):,} passages; the corpus of Multi-CPR's {domain} holds about a million",
            hint="--sampled measures on it under another name: multi-cpr-sampled",
        )
    known = set(passage_ids)
    if len(known) < len(passage_ids):
        raise DatasetError(f"{corpus}: {len(passage_ids) - len(known)} passages have the id of another one")
    judged = judgements(dict(_records(queries)), known, list(_qrels(qrels)), place=str(qrels))
    return MultiCpr(
        domain=domain,
        sampled=sampled,
        corpus=corpus,
        passage_ids=passage_ids,
        judgements=judged,
        data=digest(corpus, queries, qrels),
    )


def _records(path: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of each line; a text may hold further tabs."""
    for number, line in read_lines(path):
        one, tab, text = line.partition("\t")
        if not tab:
            raise DatasetError(f"{path}:{number}: no tab between an id and a text", hint="is this file Multi-CPR's?")
        yield one, text


def _qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    for number, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) != 4 or not cells[3].strip().isdecimal():
            raise DatasetError(f"{path}:{number}: not qid, 0, pid, 1", hint="is this file Multi-CPR's?")
        yield cells[0], cells[2], int(cells[3])
