"""Writes what the contrastive stage learns from: texts that belong together, and the teacher's vectors of them.

    python recipes/nano/pairs.py pairs   --data D --work W   # a file W/STORE.jsonl of each store
    python recipes/nano/pairs.py unread  --data D --work W      # W/targets.json: what teacher.py has not read of them
    python recipes/nano/pairs.py targets --data D --work W      # W/stores/targets, once the stores are there

`mined` is empty unless mine.py has been there before.
Invariant: nothing that the dev set holds (data.py); at most `CAP` pairs of a group and language, the same each time.
Does not know: how the stores are made or trained on.
"""

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import paraphrases
import teacher
import vary
from data import MAX_CHARS, Example, examples, pair, passage, query, rows, sts_pairs
from tokenizer import language
from train import targets as unit_targets

from udever.engine.folders import whole_file
from udever.training.data.examples import ExampleStore

CAP = {"wide": 8000, "tatoeba": 30_000, "ui": 3000, "debian": 12_000, "sts": 8000, "lexicon": 5000, "code": 40_000}
CAP |= {"mined": 80_000}
"""Pairs of a group and language at most."""
STORES = ("pairs", "passages", "code", "sts", "mined", "varied")
"""Those whose texts learn the teacher's vectors, in the recipes' order."""
CONTRASTED = ("projects", "languages", "paraphrases")
"""Stores of the contrastive stages, which need no teacher."""
PROJECT_PAIRS = 128
"""Of a project at least, so that a batch can be of one: searching one project's functions is what `code` is for."""
LANGUAGE_PAIRS = 512
"""Of a language at least, for the same reason: whoever looks for a translation finds a language's sentences."""
FUNCTIONS = ("code", "mined")
SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|[。！？।]|$)\s*", re.DOTALL)
SHORTEST_SENTENCES, SHORTEST_CHARS = 3, 25
"""Of a text that a sentence is taken out of, and of the sentence."""
PASSAGES = {"qa_pairs.tsv.gz": ("question", "passage"), "text_en_debian_descriptions.tsv.gz": ("title", "body")}


def pairs(pool: list[Example]) -> Iterator[tuple[str, dict[str, object]]]:
    """(store, row): a sentence and its English side; a description and its code."""
    cells: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for e in pool:
        cells[e.group, language(e.lang)].append(e)
    for (group, lang), members in sorted(cells.items()):
        found = [texts for e in members if (texts := _row(e, group))]
        random.Random(0).shuffle(found)
        store = group if group in FUNCTIONS else "pairs"
        for texts in found[: CAP.get(group, 20_000)]:
            yield store, pair(*texts, f"code-{lang}" if group in FUNCTIONS else "bitext")


def passages(data: Path, pool: list[Example]) -> Iterator[dict[str, object]]:
    """Questions with their passages, titles with their texts, a sentence with the text around it; none that the dev set
    holds.
    """
    kept = {e.text for e in pool}
    dice = random.Random(0)
    for name, columns in PASSAGES.items():
        for row in rows(data / "train" / name):
            cut = [row[column].strip()[:MAX_CHARS] for column in columns]
            if kept.issuperset(cut):
                yield pair(*cut, "passages")
                if around := _around(cut[1], dice):
                    yield pair(*around, "passages")


def _around(passage: str, dice: random.Random) -> tuple[str, str] | None:
    """A sentence and the rest of its text (the inverse cloze task, arXiv 1906.00300)."""
    sentences = SENTENCE.findall(passage)
    place = dice.randrange(len(sentences)) if len(sentences) >= SHORTEST_SENTENCES else None
    if place is None or len(sentences[place]) < SHORTEST_CHARS:
        return None
    return sentences[place].strip(), "".join([*sentences[:place], *sentences[place + 1 :]]).strip()


def sts(data: Path, pool: list[Example]) -> Iterator[dict[str, object]]:
    """Sentences that were put side by side to be graded, as they stand there: near each other, and no translations."""
    kept = {e.text for e in pool if e.group == "sts"}
    for one, other in sts_pairs(data / "train"):
        cut = [e.text.strip()[:MAX_CHARS] for e in (one, other)]
        if cut[0] != cut[1] and kept.issuperset(cut):
            yield pair(*cut, "sts")


def projects(pool: list[Example]) -> Iterator[dict[str, object]]:
    """Descriptions and their functions once more, project by project."""
    named = ((f"{e.lang} {e.project}", e) for e in pool if e.project and e.partner)
    return _name_by_name(named, at_least=PROJECT_PAIRS)


def languages(pool: list[Example]) -> Iterator[dict[str, object]]:
    """Sentences and their English once more, language by language."""
    named = ((f"bitext {language(e.lang)}", e) for e in pool if e.group == "wide")
    return _name_by_name(named, at_least=LANGUAGE_PAIRS)


def _name_by_name(named: Iterable[tuple[str, Example]], *, at_least: int) -> Iterator[dict[str, object]]:
    """Pairs whose task is that name, of the names that have so many examples."""
    members: dict[str, list[Example]] = defaultdict(list)
    for name, e in named:
        members[name].append(e)
    for name, found in sorted(members.items()):
        if len(found) >= at_least:
            yield from (pair(*texts, name) for e in found if (texts := _row(e, e.group)))


def _row(e: Example, group: str) -> tuple[str, str] | None:
    if group in FUNCTIONS:  # the description is the partner of its code
        return (e.partner.split(": ", 1)[1], e.text) if e.partner else None
    other = e.target.split(": ", 1)[1]
    return (e.text, other) if e.text != other and e.group != "qa" else None


def write_pairs(data: Path, work: Path) -> None:
    """One file a store."""
    pool = list(examples(data, mined=work / "mined"))
    files = {store: (work / f"{store}.jsonl").open("w", encoding="utf8") for store in (*STORES, *CONTRASTED)}
    for store, row in pairs(pool):
        files[store].write(json.dumps(row, ensure_ascii=False) + "\n")
    made = {"passages": passages(data, pool), "sts": sts(data, pool)}
    made |= {"varied": vary.rows(pool), "projects": projects(pool), "languages": languages(pool)}
    made["paraphrases"] = paraphrases.rows(data, pool)
    for store, found in made.items():
        for row in found:
            files[store].write(json.dumps(row, ensure_ascii=False) + "\n")
    for file in files.values():
        file.close()


def add_unread(data: Path, work: Path) -> None:
    """Put at the end of the teacher's list what gives the texts of the stores a vector that have none."""
    listing = work / "targets.json"
    listed = json.loads(listing.read_text())
    known, held = set(listed), set()
    for name in STORES:
        store = ExampleStore.open(work / "stores" / name)
        held.update(store.text(text_id) for text_id in range(store.text_count))
    wanted = (aims for text, aims in _aims(data, work) if text in held)
    unread = dict.fromkeys(aims[-1] for aims in wanted if known.isdisjoint(aims))
    with whole_file(listing) as path:
        path.write_text(json.dumps([*listed, *unread], ensure_ascii=False))
    print(f"{len(unread):,} more texts for the teacher")


def write_targets(data: Path, work: Path) -> None:
    """`vectors.npy` and a row for each text of each store, as `[distill] targets` wants them."""
    index, _ = teacher.cached(work)
    row_of: dict[str, int] = {}
    for text, aims in _aims(data, work):
        for aim in aims:
            if aim in index:
                row_of.setdefault(text, index[aim])
    folder = work / "stores" / "targets"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "vectors.npy", unit_targets(work, 1.0).numpy().astype(np.float16))
    for number, name in enumerate(STORES):
        store = ExampleStore.open(work / "stores" / name)
        found = np.array([row_of.get(store.text(text_id), -1) for text_id in range(store.text_count)])
        np.save(folder / f"rows-{number}.npy", found)
        print(f"{name}: {np.mean(found >= 0):.1%} of {len(found):,} texts have a vector")


def _aims(data: Path, work: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A text, and what the teacher may read for it: the first that it has read counts; if none, it reads the last."""
    for e in examples(data, mined=work / "mined"):
        yield e.text, (e.target, e.partner) if e.partner else (e.target,)
    for store, of_positive in (("passages", passage), ("varied", query)):  # what was made of those
        with (work / f"{store}.jsonl").open(encoding="utf8") as file:
            for row in map(json.loads, file):
                yield row["query"], (query(row["query"]),)
                yield row["pos"][0], (of_positive(row["pos"][0]),)


STEPS = {"pairs": write_pairs, "unread": add_unread, "targets": write_targets}


def main() -> None:
    """`pairs`, then import, then `unread`, then the teacher again, then `targets`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=STEPS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    STEPS[args.what](args.data, args.work)


if __name__ == "__main__":
    main()
