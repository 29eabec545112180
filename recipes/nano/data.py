"""Reads the training texts: every example names the text the student reads and the text whose teacher vector it learns.

Invariant: no example has a text (or a target) that occurs in the dev set. Knows the file layout of the data folder
(`train/` and `dev/`, described in its README.md) and nothing about tokens, vectors or training.
"""

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

csv.field_size_limit(sys.maxsize)
MAX_CHARS = 2000
FLORES, NTREX = "bitext_flores200_dev_rows0-796", "bitext_ntrex128_rows0-1496"
CODE_LANGUAGES = ("go", "java", "javascript", "php", "python", "ruby")
STS_LANGUAGES = ("de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "zh")

PARALLEL = {"nllb_seed": "wide", "joshua_indic": "wide", "tatoeba_manythings": "tatoeba", "libreoffice_ui": "ui"}
PARALLEL["debian_descriptions"] = "debian"
MIXTURE = {"tatoeba": 0.20, "wide": 0.16, "code": 0.22, "ui": 0.10, "debian": 0.08}
MIXTURE |= {"gloss": 0.05, "qa": 0.05, "sts": 0.12, "lexicon": 0.02}
"""Share of each group among the texts seen in training."""


class Example(NamedTuple):
    """`text` learns the teacher's vector of `target`, shared equally with that of `partner` where there is one."""

    text: str
    target: str
    """Carries e5's prefix, "query: " or "passage: "."""
    group: str
    lang: str
    document: bool = False
    """True for code and passages, which are read mostly as documents."""
    partner: str = ""
    project: str = ""
    """Whose function it is, where that is known."""


def rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a gzipped TSV file with a header line; short rows are skipped."""
    with gzip.open(path, "rt", encoding="utf8") as file:
        head = file.readline().rstrip("\n").split("\t")
        for line in file:
            cells = line.rstrip("\n").split("\t")
            if len(cells) == len(head):
                yield dict(zip(head, cells, strict=True))


def jsonl(path: Path) -> Iterator[dict[str, str]]:
    """The objects of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf8") as file:
        yield from map(json.loads, file)


def query(text: str) -> str:
    """The teacher's name for a symmetric text."""
    return "query: " + text


def passage(text: str) -> str:
    """The teacher's name for a document."""
    return "passage: " + text


def pair(one: str, other: str, task: str) -> dict[str, object]:
    """Two texts that belong together, as `udever data import` reads them."""
    return {"query": one, "pos": [other], "neg": [], "task": task}


def examples(data: Path, *, mined: Path | None = None) -> Iterator[Example]:
    """Every training example of `data`/train, in a fixed order, without what the dev set holds; then those of a folder
    that mine.py wrote, if there is one.
    """
    known = dev_texts(data / "dev")
    seen: set[tuple[str, str]] = set()
    for e in chain(_all(data / "train"), _mined(mined) if mined else ()):
        text, target = e.text.strip()[:MAX_CHARS], e.target[:MAX_CHARS]
        others = [_key(other.split(": ", 1)[1]) for other in (target, e.partner) if other]
        if (text, target) in seen or len(text) < 2 or not known.isdisjoint([_key(text), *others]):
            continue
        seen.add((text, target))
        yield e._replace(text=text, target=target, partner=e.partner[:MAX_CHARS])


def dev_texts(dev: Path) -> set[str]:
    """Every text of the dev set, in the form in which leakage is looked for."""
    found: set[str] = set()
    for path in sorted(dev.rglob("*.gz")):
        read = jsonl if ".jsonl" in path.name else rows
        for row in read(path):
            found.update(_key(value) for value in row.values() if isinstance(value, str) and len(value) > 12)
    return found


def _key(text: str) -> str:
    return " ".join(text[:MAX_CHARS].lower().split()).rstrip(".!?")


def _all(train: Path) -> Iterator[Example]:
    yield from _wide(train)
    for name, group in PARALLEL.items():
        yield from _pairs(train / f"parallel_{name}.tsv.gz", group)
    yield from chain.from_iterable(sts_pairs(train))
    yield from _code(train / "code")
    yield from _text(train)
    yield from _pairs(train / "lexicon_joshua_indic.tsv.gz", "lexicon")


def _pairs(path: Path, group: str) -> Iterator[Example]:
    for row in rows(path):
        english = row["text1"]
        yield Example(english, query(english), group, "en")
        yield Example(row["text2"], query(english), group, row["l2"])


def _wide(train: Path) -> Iterator[Example]:
    for name, english in ((FLORES, "eng_Latn"), (NTREX, "eng"), ("bitext_pud", "en")):
        for row in rows(train / f"{name}.wide.tsv.gz"):
            for lang, text in row.items():
                yield Example(text, query(row[english]), "wide", lang)


def sts_pairs(train: Path) -> Iterator[tuple[Example, Example]]:
    """STS and NLI sentences, two by two. Translated STS-B rows learn the English row; scores only line the files up."""
    table: dict[str, list[dict[str, str]]] = {}
    for row in rows(train / "sts_train.tsv.gz"):
        table.setdefault("own" if row["source"] == "JSTS" else row["lang"], []).append(row)
    for lang in ("en", *STS_LANGUAGES):
        source = iter(table["en"])
        english = next(source)
        for row in table[lang]:
            if row["score0-5"] == english["score0-5"]:
                yield _both(row["s1"], row["s2"], lang, targets=(english["s1"], english["s2"]))
                english = next(source, english)
    for row in table["own"]:
        yield _both(row["s1"], row["s2"], row["lang"])
    for row in rows(train / "nli_train.tsv.gz"):
        yield _both(row["premise"], row["hypothesis"], row["lang"])


def _both(one: str, other: str, lang: str, *, targets: tuple[str, str] | None = None) -> tuple[Example, Example]:
    first, second = targets or (one, other)
    return Example(one, query(first), "sts", lang), Example(other, query(second), "sts", lang)


def _code(code: Path) -> Iterator[Example]:
    for lang in CODE_LANGUAGES:
        for row in jsonl(code / f"{lang}.jsonl.gz"):
            yield from _described(row["doc"], row["code"], lang, project=row["pkg"])
            if len(row["doc"]) % 2:  # half of them also as an index entry of their library: signature and description
                entry = row["code"].strip().split("\n", 1)[0][:200] + "\n" + row["doc"]
                yield Example(entry, query(row["doc"]), "code", lang, document=True)
    for row in rows(code / "nl2bash_train.tsv.gz"):
        yield from _described(row["nl"], row["bash"], "bash")
    for row in rows(code / "conala_train.tsv.gz"):
        yield from _described(row["rewritten_intent"], row["python"], "python")
    for row in rows(code / "stackoverflow_codenn.tsv.gz"):
        values = list(row.values())
        yield from _described(values[1], values[2].replace("⏎", "\n"), values[0])
    for row in rows(code / "codetrans_java_cs_train.tsv.gz"):
        yield Example(row["java"], passage(row["java"]), "code", "java", document=True)
        yield Example(row["csharp"], passage(row["java"]), "code", "csharp", document=True)


def _mined(folder: Path) -> Iterator[Example]:
    for lang in CODE_LANGUAGES:
        if (path := folder / f"{lang}.jsonl.gz").exists():
            for row in jsonl(path):
                yield from _described(row["doc"], row["code"], lang, group="mined", project=row["pkg"])


def _described(description: str, code: str, lang: str, *, group: str = "code", project: str = "") -> Iterator[Example]:
    if len(description) < 8 or len(code) < 8:
        return
    yield Example(description, query(description), group, lang)
    yield Example(code, passage(code), group, lang, document=True, partner=query(description), project=project)


def _text(train: Path) -> Iterator[Example]:
    for row in rows(train / "qa_pairs.tsv.gz"):
        yield Example(row["question"], query(row["question"]), "qa", row["lang"])
        yield Example(row["passage"], passage(row["passage"]), "qa", row["lang"], document=True)
    for row in rows(train / "text_en_debian_descriptions.tsv.gz"):
        yield Example(row["title"], query(row["title"]), "gloss", "en")
        yield Example(row["body"], passage(row["body"]), "gloss", "en", document=True)
    for row in rows(train / "text_en_wordnet_glosses.tsv.gz"):
        for text in (
            row["lemmas"].replace("_", " ") + ": " + row["definition"],
            *islice(row["examples"].split("; "), 2),
        ):
            yield Example(text, query(text), "gloss", "en")
