"""What one run is asked to do, checked against its inputs; all that a worker on another machine must be told.

Invariant: two jobs with equal `identity` write equal vectors for equal shards. How fast, where and with how much memory
it is done is no part of a job's identity.
Does not know: files, or how anything is done.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from string import Formatter
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from udever.bulk.cutting import Limits
from udever.bulk.heads import Input
from udever.bulk.plan import SHARD_BYTES, SHARD_ROWS
from udever.bulk.storage import digest
from udever.errors import FileInputError, OptionError
from udever.tokenizer import Role, Truncate

OutputFormat = Literal["parquet", "lance", "npy"]
Dtype = Literal["float32", "float16", "int8"]

FILE, ROW, EMBEDDING, SCALE = "_file", "_row", "embedding", "embedding_scale"
"""Columns that an output adds: the input and the row (from 1) a vector belongs to, the vector, int8's scale."""


class Model(Protocol):
    """What a job must know of a loaded model; an `Embedder` is one.

    `tokenize` and `finish` are asked whether token limit and dimensions can be, for nobody else knows.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def dimensions(self) -> int: ...  # noqa: D102
    @property
    def max_tokens(self) -> int: ...  # noqa: D102
    def tokenize(self, texts: Sequence[str], role: Role, *, max_tokens: int | None) -> Any: ...  # noqa: D102
    def finish(self, raw: NDArray[np.float32], *, dimensions: int | None) -> Any: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the output, besides inputs and model."""

    text_column: str = "text"
    """The column that is embedded; unused with a template."""
    template: str | None = None
    """A text with {column} in it, made anew for each row."""
    role: Role = "document"
    dimensions: int | None = None
    """None: all of the model's."""
    max_tokens: int | None = None
    """None: the model's limit."""
    truncate: Truncate = "error"
    """A text over the limit: a bad row, or cut at its end or start."""
    columns: tuple[str, ...] | None = None
    """Columns of the input that are written beside the vectors; None: all."""
    format: OutputFormat = "parquet"
    dtype: Dtype = "float32"
    dedupe: bool = False
    """Embed each distinct text of the whole job once."""
    shard_rows: int = SHARD_ROWS
    """Rows of a shard, at most."""

    def checked(self) -> "Options":
        """Itself.

        Raises:
            OptionError: a value that cannot be.
        """
        if self.shard_rows < 1:
            raise OptionError(f"shard_rows is {self.shard_rows}; it must be at least 1")
        if self.format == "npy" and self.columns:
            raise OptionError("npy holds vectors only, no columns", hint="choose parquet or lance, or no columns")
        if self.template is not None and not template_columns(self.template):
            raise OptionError(f"the template {self.template!r} names no column", hint='like "{title} {body}"')
        return self

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns that texts are made of."""
        return (self.text_column,) if self.template is None else template_columns(self.template)

    @property
    def limits(self) -> Limits:
        """How large a shard may be."""
        return Limits(self.shard_rows, SHARD_BYTES)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run's work, resolved: no default is left to be looked up. Pickles small."""

    options: Options
    """`dimensions` and `max_tokens` are numbers, `columns` are names."""
    model: str
    """Its name."""
    fingerprint: str
    precision: str
    carried: pa.Schema
    """Columns of the input that are written beside the vectors."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of an output but the inputs, as JSON has it."""
        options = asdict(self.options) | {"columns": {field.name: str(field.type) for field in self.carried}}
        options |= {"shard_bytes": self.options.limits.bytes}
        return {"fingerprint": self.fingerprint, "options": json.loads(json.dumps(options))}

    @cached_property
    def digest(self) -> str:
        """Stands for the identity."""
        return digest(json.dumps(self.identity, sort_keys=True).encode())

    @property
    def dimensions(self) -> int:
        """Numbers a vector has."""
        return int(self.options.dimensions or 0)

    @property
    def max_tokens(self) -> int:
        """Longest text, both markers included."""
        return int(self.options.max_tokens or 0)


def template_columns(template: str) -> tuple[str, ...]:
    """The columns a template names, each once.

    Raises:
        OptionError: something in braces that is no plain name.
    """
    names: dict[str, None] = {}
    try:
        for _, name, spec, conversion in Formatter().parse(template):
            if name is None:
                continue
            if not name or spec or conversion:
                raise OptionError(f"the template {template!r} holds more than names in braces", hint="{{ is a brace")
            names[name] = None
    except ValueError as error:
        raise OptionError(f"the template {template!r}: {error}", hint="{{ and }} are braces") from error
    return tuple(names)


def carried_columns(inputs: Sequence[Input], options: Options) -> pa.Schema:
    """The columns that are written beside the vectors, with their types.

    Raises:
        FileInputError: an input lacks a column that is needed, holds no text in it, or has another type than the rest.
        OptionError: a column that the output adds itself.
    """
    # A text file without a sound row shows no columns: an empty one among many is no reason to stop.
    inputs = [item for item in inputs if item.schema.names or item.found.format == "parquet"] or inputs[:1]
    for item in inputs:
        _require(item, options.text_columns, is_text=options.template is None)
    if options.format == "npy":
        return pa.schema([])
    first, names = inputs[0], options.columns if options.columns is not None else tuple(inputs[0].schema.names)
    for item in inputs:
        _require(item, names)
        if options.columns is None and (more := [name for name in item.schema.names if name not in names]):
            raise FileInputError(
                f"{item.found.name} has a column {more[0]!r}, {first.found.name} has not",
                hint="name the columns to keep with --columns",
            )
    text = options.text_column if options.template is None else None
    schema = pa.schema([_unified(inputs, name, is_text=name == text) for name in names])
    taken = [name for name in schema.names if name in (FILE, ROW, EMBEDDING, SCALE)]
    if taken:
        raise OptionError(
            f"the inputs have a column {taken[0]!r}, which the output adds", hint="name the others with --columns"
        )
    return schema


def resolve(options: Options, inputs: Sequence[Input], model: Model) -> Job:
    """The job for a loaded model.

    Raises:
        OptionError: what this model cannot do.
        As `carried_columns`.
    """
    model.tokenize([], options.role, max_tokens=options.max_tokens)
    model.finish(np.zeros((0, model.dimensions), np.float32), dimensions=options.dimensions)
    carried = carried_columns(inputs, options)
    facts = asdict(options) | {
        "dimensions": options.dimensions or model.dimensions,
        "max_tokens": options.max_tokens or model.max_tokens,
        "columns": tuple(carried.names),
    }
    return Job(
        options=Options(**facts),
        model=model.name,
        fingerprint=model.fingerprint,
        precision=model.precision,
        carried=carried,
    )


def _require(item: Input, names: Sequence[str], *, is_text: bool = False) -> None:
    for name in names:
        if name not in item.schema.names:
            raise FileInputError(
                f"{item.found.name} has no column {name!r}; it has {', '.join(map(repr, item.schema.names)) or 'none'}",
                hint="--text-column, --template and --columns name columns",
            )
        kind = item.schema.field(name).type
        if is_text and item.found.format == "parquet" and not _holds_text(kind):
            raise FileInputError(
                f"{item.found.name}: column {name!r} holds {kind}, not text",
                hint=f'--template "{{{name}}}" makes texts',
            )


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _unified(inputs: Sequence[Input], name: str, *, is_text: bool) -> pa.Field:
    """The type that a column has in all inputs; what a jsonl file's text column holds besides texts are bad rows."""
    fields = [
        (item, pa.string() if is_text and item.found.format == "jsonl" else item.schema.field(name).type)
        for item in inputs
    ]
    first, kind = fields[0]
    for item, other in fields[1:]:
        if other != kind:
            raise FileInputError(
                f"column {name!r} is {kind} in {first.found.name}, {other} in {item.found.name}",
                hint="convert one, or leave it out with --columns",
            )
    return pa.field(name, kind)
