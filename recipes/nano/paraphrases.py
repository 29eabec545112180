"""Texts that say the same, other than a sentence and its English: what the last stage learns small differences from.

    rows(data, pool) -> {"query": one, "pos": [the other], "neg": [what contradicts it], "task": …}

Two sentences of a language with one translation, two languages' translations of one sentence, and what follows from a
sentence (natural language inference) beside what does not.

Invariant: the same rows for the same pool; none of the dev set's texts, for the pool has none. Knows no model.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data import Example, pair, query
from data import rows as table
from tokenizer import language

SENTENCES = ("tatoeba", "wide", "sts")
ACROSS = 3
"""Pairs of languages of one sentence at most; Tatoeba has three languages of a sentence, `wide` fifty."""
SHORTEST_CHARS = 8
FOLLOWS, DOES_NOT = ("e", "entailment"), ("c", "contradiction", "n", "neutral")
"""Contradictions come first: they are the nearest that say something else."""


def rows(data: Path, pool: list[Example]) -> Iterator[dict[str, object]]:
    """Every kind, one after the other."""
    yield from _of_one_language(pool)
    yield from _of_two_languages(pool)
    yield from _inferred(data / "train", {e.text for e in pool if e.group == "sts"})


def _of_one_language(pool: list[Example]) -> Iterator[dict[str, object]]:
    """Translations of one sentence; a language's sentence has one or more in English, too."""
    said: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for e in pool:
        if e.group == "tatoeba" and (lang := language(e.lang)) != "en":
            english = e.target.removeprefix(query(""))
            said[lang, english].setdefault(_bare(e.text), e.text)
            said["en", f"{lang}: {e.text}"].setdefault(_bare(english), english)
    dice, given = random.Random(0), set[frozenset[str]]()
    for (lang, _), texts in said.items():
        found = [text for bare, text in texts.items() if len(bare) >= SHORTEST_CHARS]
        if len(found) > 1:
            one, other = dice.sample(found, 2)
            if frozenset((one, other)) not in given:
                given.add(frozenset((one, other)))
                yield pair(one, other, f"same {lang}")


def _of_two_languages(pool: list[Example]) -> Iterator[dict[str, object]]:
    """Neither of them English."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for e in pool:
        if e.group in SENTENCES and (lang := language(e.lang)) != "en" and len(e.text) >= SHORTEST_CHARS:
            said[e.target].setdefault(lang, e.text)
    dice = random.Random(1)
    for texts in said.values():
        langs = sorted(texts)
        dice.shuffle(langs)
        for one, other in list(zip(langs[::2], langs[1::2], strict=False))[:ACROSS]:
            yield pair(texts[one], texts[other], "across")


def _inferred(train: Path, kept: set[str]) -> Iterator[dict[str, object]]:
    """A sentence and what follows from it, beside what does not."""
    after: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in table(train / "nli_train.tsv.gz"):
        if kept.issuperset((row["premise"].strip(), row["hypothesis"].strip())):
            after[row["lang"], row["premise"].strip()].append((row["label"], row["hypothesis"].strip()))
    for (lang, premise), found in after.items():
        wrong = [text for label in DOES_NOT for named, text in found if named == label]
        for label, text in found:
            if label in FOLLOWS:
                yield pair(premise, text, f"nli {lang}") | {"neg": wrong}


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()
