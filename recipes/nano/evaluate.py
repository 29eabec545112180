"""Scores a checkpoint on the dev set, which no training step sees; similarity is the cosine throughout.

Protocols: STS-B dev (Spearman, queries on both sides), FLORES-200 dev rows 797-996 (accuracy of finding a sentence's
English translation among 200, queries on both sides), docstring -> function (MRR among all functions of the file),
Cranfield (nDCG@10), CLINC150 (test accuracy of the nearest class mean of the training vectors, no out-of-scope class).
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import CODE_LANGUAGES, STS_LANGUAGES, jsonl, rows
from export import MAX_TOKENS, load
from scipy.stats import spearmanr
from tokenizer import BOD, BOQ, EOD, EOQ
from tokenizers import Tokenizer

from model import WIDTH

Encode = Callable[[list[str], bool], np.ndarray]
"""(texts, whether they are documents) -> unit vectors [n, d]."""
CORE_FLORES = (
    "arb_Arab ben_Beng cat_Latn spa_Latn eus_Latn fra_Latn guj_Gujr hin_Deva ind_Latn kan_Knda mal_Mlym mar_Deva "
    "npi_Deva ory_Orya pan_Guru por_Latn tam_Taml tel_Telu urd_Arab vie_Latn zho_Hans"
)
"""BLOOM's 21 larger languages, whose mean is comparable between runs."""


def encoder(path: Path, tokenizer: Tokenizer, width: int = WIDTH) -> Encode:
    """The checkpoint as a function of texts; `width` keeps a Matryoshka prefix."""
    model = load(path, tokenizer.get_vocab_size())

    @torch.inference_mode()
    def encode(texts: list[str], document: bool) -> np.ndarray:
        groups: dict[int, list[int]] = defaultdict(list)
        ids = [[BOD if document else BOQ, *e.ids[: MAX_TOKENS - 2], EOD if document else EOQ]
               for e in tokenizer.encode_batch(texts, add_special_tokens=False)]  # fmt: skip
        for row, tokens in enumerate(ids):
            groups[len(tokens)].append(row)
        out = torch.zeros(len(ids), width)
        for length, group in groups.items():
            size = max(1, 4096 // length)
            for batch in (group[i : i + size] for i in range(0, len(group), size)):
                out[batch] = F.normalize(model(torch.tensor([ids[row] for row in batch]))[:, :width], dim=1)
        return out.numpy()

    return encode


def sts(dev: Path, encode: Encode, limit: int) -> dict[str, float]:
    """Spearman x 100 per language; other languages than English take their first `limit` pairs."""
    pairs: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
    for row in rows(dev / "sts_dev.tsv.gz"):
        if row["source"] in ("stsb-multi-mt", "KorSTS"):
            pairs[row["lang"]].append((row["s1"], row["s2"], float(row["score0-5"])))
    out = {}
    for lang in ("en", *STS_LANGUAGES):
        one, two, gold = zip(*pairs[lang][: None if lang == "en" else limit], strict=True)
        out[lang] = 100 * spearmanr((encode(list(one), False) * encode(list(two), False)).sum(1), gold).statistic
    return out


def flores(dev: Path, encode: Encode, languages: list[str] | None = None) -> dict[str, float]:
    """Accuracy in percent per language, of finding the English sentence."""
    table = list(rows(dev / "bitext_flores200_dev_rows797-996.wide.tsv.gz"))
    english = encode([row["eng_Latn"] for row in table], False)
    languages = languages or [
        lang for lang in table[0] if lang != "eng_Latn" and sum(bool(row[lang]) for row in table) > 150
    ]
    out = {}
    for lang in languages:
        kept = [i for i, row in enumerate(table) if row[lang]]
        found = (encode([table[i][lang] for i in kept], False) @ english.T).argmax(1)
        out[lang] = 100 * float((found == kept).mean())
    return out


def code(dev: Path, encode: Encode, candidates: int) -> dict[str, float]:
    """Mean reciprocal rank per programming language, among at most `candidates` functions."""
    out = {}
    for lang in CODE_LANGUAGES:
        found = list(jsonl(dev / "code" / f"{lang}.jsonl.gz"))[:candidates]
        similar = encode([row["doc"] for row in found], False) @ encode([row["code"] for row in found], True).T
        out[lang] = float((1 / (1 + (similar > similar.diagonal()[:, None]).sum(1))).mean())
    return out


def cranfield(dev: Path, encode: Encode) -> float:
    """nDCG@10 x 100 over the 225 queries; gains are the positive judgements."""
    corpus = list(jsonl(dev / "retrieval" / "cranfield.corpus.jsonl.gz"))
    queries = list(rows(dev / "retrieval" / "cranfield.queries.tsv.gz"))
    gains: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows(dev / "retrieval" / "cranfield.qrels.tsv.gz"):
        gains[row["qid"]][row["docid"]] = max(0.0, float(row["rel"]))
    similar = encode([row["text"] for row in queries], False) @ encode([row["text"] for row in corpus], True).T
    discount, scores = 1 / np.log2(np.arange(2, 12)), []
    for row, ranked in zip(queries, (-similar).argsort(1), strict=True):
        ideal = np.sort([*gains[row["qid"]].values(), *[0.0] * 10])[::-1][:10] @ discount
        if ideal > 0:
            scores.append(
                np.array([gains[row["qid"]].get(corpus[i]["id"], 0.0) for i in ranked[:10]]) @ discount / ideal
            )
    return 100 * float(np.mean(scores))


def clinc(dev: Path, encode: Encode) -> float:
    """Accuracy in percent over the 150 intents."""
    train, test = (list(rows(dev / f"cls_clinc150_{part}.tsv.gz")) for part in ("train", "test"))
    labels = sorted({row["label"] for row in train})
    vectors, gold = (
        encode([row["text"] for row in train], False),
        np.array([labels.index(row["label"]) for row in train]),
    )
    means = np.stack([vectors[gold == i].mean(0) for i in range(len(labels))])
    found = (
        encode([row["text"] for row in test], False) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    ).argmax(1)
    return 100 * float((found == [labels.index(row["label"]) for row in test]).mean())


def scores(dev: Path, encode: Encode) -> dict[str, dict[str, float]]:
    """Every protocol in full, by its name in the card."""
    return {
        "STS-B dev, Spearman x 100, 1500 pairs a language, query on both sides": sts(dev, encode, 1500),
        "FLORES-200 dev rows 797-996, accuracy % of xx -> en among 200, query on both sides": flores(dev, encode),
        "docstring -> function, MRR among at most 1000 functions of one package, query -> document": code(
            dev, encode, 1000
        ),
        "other": {
            "Cranfield nDCG@10 x 100": cranfield(dev, encode),
            "CLINC150 nearest class mean, accuracy %": clinc(dev, encode),
        },
    }


def summary(dev: Path, encode: Encode) -> dict[str, float]:
    """For comparing runs: STS en, STS of the others (500 pairs), FLORES (21 languages), code (400 functions)."""
    similar = sts(dev, encode, 500)
    return {"sts_en": float(similar.pop("en"))} | {
        name: float(np.mean(list(values.values())))
        for name, values in {
            "sts_other": similar,
            "flores": flores(dev, encode, CORE_FLORES.split()),
            "code": code(dev, encode, 400),
        }.items()
    }


def main() -> None:
    """Prints the scores of `--work`/NAME.pt; in full they are also written to `--work`/NAME.scores.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="distil")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    encode = encoder(args.work / f"{args.name}.pt", Tokenizer.from_file(str(args.work / "tokenizer.json")), args.width)
    if not args.full:
        print(args.name, args.width, {k: round(v, 3) for k, v in summary(args.data / "dev", encode).items()})
        return
    found = {p: {k: round(v, 3) for k, v in values.items()} for p, values in scores(args.data / "dev", encode).items()}
    (args.work / f"{args.name}.scores.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
