"""Natural language inference as training data: entailed sentences belong together, contradicted ones are far apart.

Entailment is taken both ways and grouped by sentence, as sentence-transformers' training on AllNLI does: a sentence
asks, all that it entails and all that entail it answer. With `contradictions`, hard negatives are what the sentence
contradicts and what those that answer it contradict.

Invariant: examples come in the order in which their sentences appear.
Grouping holds all sentences in memory: about 500 MB for the 942,069 pairs of AllNLI.
Does not know: how files are read.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from udever.errors import ExamplesError
from udever.training.data.fields import text_at
from udever.training.data.layouts import Choices
from udever.training.data.rows import Row
from udever.training.data.store_writer import TextExample

PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"))
ENTAILMENT, NEUTRAL, CONTRADICTION, NONE = "entailment", "neutral", "contradiction", "none"
LABELS = {
    **dict.fromkeys(("entailment", "entail", "e", "0"), ENTAILMENT),
    **dict.fromkeys(("neutral", "n", "1"), NEUTRAL),
    **dict.fromkeys(("contradiction", "contradict", "c", "2"), CONTRADICTION),
    **dict.fromkeys(("-", "", "-1", "hidden"), NONE),
}
"""A label as files spell it → what it says; SNLI marks pairs its annotators did not agree on with `-`."""
TRAIN = "train"
"""Of a `split` column, the only value that is read."""

_Related = dict[int, None]
"""An ordered set of sentences."""


def is_nli(columns: list[str], first: Mapping[str, Any]) -> bool:
    """A premise, a hypothesis and a known label."""
    found = _pair_in(columns)
    return found is not None and "label" in columns and (not first or _label(first["label"]) in LABELS)


def read_nli(rows: Iterable[Row], choices: Choices) -> Iterator[TextExample]:
    """An example for each sentence that entails or is entailed."""
    sentences: dict[str, int] = {}
    entailed: dict[int, _Related] = {}
    contradicted: dict[int, _Related] = {}
    relations = {ENTAILMENT: entailed, CONTRADICTION: contradicted}
    for row in rows:
        try:
            found = _read(row, choices)
        except ExamplesError as error:
            choices.reading.complain(error.message, hint=error.hint)
            continue
        if found is None or found[2] not in relations:
            continue
        first, second = (sentences.setdefault(text, len(sentences)) for text in found[:2])
        relations[found[2]].setdefault(first, {})[second] = None
        relations[found[2]].setdefault(second, {})[first] = None
    texts = list(sentences)
    for sentence in sorted(entailed):
        answers = entailed[sentence]
        against = [other for each in (sentence, *answers) for other in contradicted.get(each, ())]
        negatives = dict.fromkeys(against) if choices.contradictions else {}
        yield TextExample(
            texts[sentence],
            tuple(texts[other] for other in answers),
            tuple(texts[other] for other in negatives if other != sentence and other not in answers),
            task=choices.task,
            symmetric=bool(choices.symmetric),
        )


def _read(row: Row, choices: Choices) -> tuple[str, str, str] | None:
    """(premise, hypothesis, what holds between them); None for a row of another split."""
    if row.values.get("split", TRAIN) != TRAIN:
        choices.dropped["row of another split than train"] += 1
        return None
    names = choices.columns[:2] or _pair_in(row.values)
    if names is None:
        raise ExamplesError(f"{row.place}: there is no premise", hint=f"it has {', '.join(row.values)}")
    label = LABELS.get(_label(row.values.get("label")))
    if label is None:
        raise ExamplesError(
            f"{row.place}: label is {row.values.get('label')!r}", hint="entailment, neutral or contradiction"
        )
    if label == NONE:
        choices.dropped["pair without a label"] += 1
    return text_at(row, names[0]).strip(), text_at(row, names[1]).strip(), label


def _label(value: Any) -> str:
    return str(value).strip().lower()


def _pair_in(columns: Iterable[str]) -> tuple[str, str] | None:
    names = set(columns)
    return next((pair for pair in PAIRS if names.issuperset(pair)), None)
