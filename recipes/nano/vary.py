"""Sentences and what becomes of them when words go, come or change places: small differences for the teacher to name.

    rows(pool) -> {"query": sentence, "pos": [its variation], "task": "varied"}

Any text will do for learning a teacher, which names each one's place; near neighbours teach most of what similarity is
made of. `pairs.py` writes them; they are learned without the contrastive term (`paired = false`).

Invariant: the same rows for the same pool. Knows no teacher and no dev set.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from data import STS_LANGUAGES, Example, pair
from tokenizer import language

Words = list[str]
Change = Callable[[Words, Words, random.Random], Words]

SHORTEST_WORDS, LONGEST_CHARS = 4, 240
GROUPS = ("sts", "tatoeba", "wide", "gloss")
MUCH, LITTLE = ("en", *STS_LANGUAGES), ("ar", "bn", "ca", "hi", "id", "ta", "ur", "vi")
"""Languages by how much is made of them."""
CAP = dict.fromkeys(MUCH, 50_000) | dict.fromkeys(LITTLE, 10_000)
"""Variations of a language at most; sentences that stand side by side in `sts` come first, three times each."""
TIMES = {"sts": 3}
_PAIRED_LETTERS = "\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"\s*(?:[{_PAIRED_LETTERS}]{{1,2}}|[^\s{_PAIRED_LETTERS}]+)")
"""With the space before it; where no spaces are written, two letters."""


def rows(pool: list[Example]) -> Iterator[dict[str, object]]:
    """Variations of each language's sentences, most of those of STS."""
    sentences: dict[str, list[Example]] = defaultdict(list)
    for e in pool:
        if (lang := language(e.lang)) in CAP and e.group in GROUPS and len(e.text) <= LONGEST_CHARS:
            sentences[lang].append(e)
    for lang, found in sorted(sentences.items()):
        dice = random.Random(lang)
        dice.shuffle(found)
        found.sort(key=lambda e: e.group != "sts")
        repeated = [e.text for e in found for _ in range(TIMES.get(e.group, 1))]
        for text in repeated[: CAP[lang]]:
            varied = variation(text, dice.choice(found).text, dice)
            if varied != text:
                yield pair(text, varied, "varied")


def variation(text: str, other: str, dice: random.Random) -> str:
    """The text with one change made to it; unchanged if it has too few words."""
    words, others = (WORD.findall(" " + whole) for whole in (text, other))
    if min(len(words), len(others)) < SHORTEST_WORDS:
        return text
    return "".join(dice.choice(CHANGES)(words, others, dice))[: 2 * LONGEST_CHARS].strip()


def fewer(words: Words, _: Words, dice: random.Random) -> Words:
    """Without up to a quarter of them."""
    gone = set(dice.sample(range(len(words)), dice.randint(1, len(words) // 4)))
    return [word for place, word in enumerate(words) if place not in gone]


def exchanged(words: Words, others: Words, dice: random.Random) -> Words:
    """One or two are the other sentence's."""
    changed = words.copy()
    for place in dice.sample(range(len(words)), dice.randint(1, 2)):
        changed[place] = dice.choice(others)
    return changed


def cut(words: Words, _: Words, dice: random.Random) -> Words:
    """Half of them or more, in a row."""
    kept = dice.randint(len(words) // 2, len(words) - 1)
    first = dice.randint(0, len(words) - kept)
    return words[first : first + kept]


def crossed(words: Words, others: Words, dice: random.Random) -> Words:
    """The one's beginning, the other's end."""
    return words[: dice.randint(1, len(words) - 1)] + others[dice.randint(1, len(others) - 1) :]


def followed(words: Words, others: Words, dice: random.Random) -> Words:
    """Both, one after the other."""
    first, second = (words, others) if dice.random() < 0.5 else (others, words)
    return [*first, *second]


CHANGES: tuple[Change, ...] = (fewer, exchanged, cut, crossed, followed)
