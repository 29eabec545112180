"""One run over an output folder: what is asked, what is done already, what is left, and how it ends.

    prepared = prepare(paths, options, output=…)         # refuses early: no model is loaded yet
    run = open_run(prepared, model)                      # refuses what differs from an earlier run
    for stage in run.stages():
        for receipt in run_here(run, stage, model): run.add(receipt)
    summary = run.finish()

Invariant: only folders that are empty or that a bulk run made are written to; a shard that is done is not done again.
An output that is complete equals one of a run that was never interrupted, byte for byte.
Does not know: how shards are done (local.py, cluster/), or torch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from udever.bulk.dedupe import OWNERS, survey
from udever.bulk.formats import FORMATS
from udever.bulk.heads import Input, describe
from udever.bulk.job import Job, Model, Options, carried_columns, resolve
from udever.bulk.manifest import (
    MANIFEST,
    Manifest,
    make_manifest,
    read_manifest,
    refuse_other_inputs,
    refuse_other_job,
    write_manifest,
)
from udever.bulk.plan import THREADS, Plan, Scan, Shard, make_plan, scans_from_json, scans_json
from udever.bulk.receipts import (
    DISTINCT,
    DONE,
    Receipt,
    StageName,
    bad_rows_of,
    distinct_name,
    receipt_name,
    shard_name,
)
from udever.bulk.sources import InputFormat, find
from udever.bulk.storage import UNFINISHED, WORK, Storage
from udever.errors import OutputError

ERRORS = "errors.parquet"
SCANS = f"{WORK}/scans.json"
ERROR_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
OURS = frozenset({MANIFEST, ERRORS, WORK, "vectors", "vectors.lance"})
"""All that a bulk run makes in its output folder."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that can be met, as far as one can tell without the model."""

    inputs: tuple[Input, ...]
    options: Options
    storage: Storage
    force: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a run."""

    rows: int
    """Rows of the inputs, blank lines included."""
    vectors: int
    bad_rows: int
    reasons: dict[str, int]
    """Code of bad rows → how many, most frequent first."""
    texts: int
    """Texts that were embedded: vectors, or under dedupe the distinct ones."""
    tokens: int
    """Theirs, markers included."""
    shards: int
    shards_done_before: int
    """Of them, those an earlier run did."""
    new_rows: int
    """Rows this run did."""
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Shards that may be done in any order, by anyone."""

    name: StageName
    shards: tuple[Shard, ...]
    """Those that are left, in order."""


@dataclass(kw_only=True)
class Run:
    """An output folder and the work that fills it. `job`, `plan` shards and `storage` pickle; a runner sends them."""

    job: Job
    plan: Plan
    storage: Storage
    complete: bool
    """An earlier run has finished."""
    done: dict[int, Receipt] = field(default_factory=dict)
    """Place of a shard → its receipt."""
    before: int = field(init=False)
    """Shards that were done when the run was opened."""

    def __post_init__(self) -> None:
        self.before = len(self.done)
        self._rows_before = sum(receipt.rows for receipt in self.done.values())
        self._tokens_before = sum(receipt.tokens for receipt in self.done.values())

    @property
    def rows_done(self) -> int:
        """Rows of all shards that are done."""
        return sum(receipt.rows for receipt in self.done.values())

    def stages(self) -> Iterator[Stage]:
        """What is to be done, one stage after another; a stage begins when all receipts of the last one were added."""
        left = tuple(self.pending())
        if not self.job.options.dedupe:
            yield Stage(name="embed", shards=left)
        elif left:
            there = self.storage.sizes(DISTINCT)
            names = {shard.index: distinct_name(shard_name(shard, self.job.digest)) for shard in self.plan.shards}
            missing = tuple(shard for shard in self.plan.shards if names[shard.index] not in there)
            survey(self.plan, self.job, self.storage)
            yield Stage(name="distinct", shards=missing)
            yield Stage(name="join", shards=left)

    def pending(self) -> list[Shard]:
        """Shards that are left, in order."""
        return [shard for shard in self.plan.shards if shard.index not in self.done]

    def add(self, receipt: Receipt) -> None:
        """A shard is done, or a stage of it."""
        if receipt.stage != "distinct":
            self.done[receipt.index] = receipt

    def finish(self) -> Summary:
        """All shards are done: merge the bad rows, complete the manifest.

        Raises:
            OutputError: shards are left.
        """
        left = self.pending()
        if left:
            raise OutputError(f"{len(left):,} of {len(self.plan.shards):,} shards are not done", hint="run it again")
        receipts = [self.done[index] for index in range(len(self.plan.shards))]
        if not self.complete or self.before < len(receipts):
            FORMATS[self.job.options.format].finish(self.storage, receipts, self.job)
            self._write_errors(receipts)
            write_manifest(self.storage, make_manifest(self.job, self.plan, receipts))
            self.complete = True
        for name in (UNFINISHED, DISTINCT, OWNERS):
            self.storage.remove(name)
        return self._summary(receipts)

    def _write_errors(self, receipts: Sequence[Receipt]) -> None:
        """The bad rows, from a few receipts' files at a time: all of them may be more than memory holds."""
        shards = [self.plan.shards[receipt.index] for receipt in receipts if receipt.reasons]
        if not shards:
            return
        with (
            self.storage.writing(ERRORS) as path,
            pq.ParquetWriter(path, ERROR_SCHEMA, compression="zstd") as writer,
            ThreadPoolExecutor(THREADS, thread_name_prefix="udever-errors") as pool,
        ):
            for start in range(0, len(shards), THREADS):
                for table in pool.map(self._errors_of, shards[start : start + THREADS]):
                    writer.write_table(table)

    def _errors_of(self, shard: Shard) -> pa.Table:
        bad = bad_rows_of(self.storage.read(receipt_name(shard_name(shard, self.job.digest))))
        rows = [{"file": shard.input.found.name, **row._asdict()} for row in bad]
        return pa.Table.from_pylist(rows, ERROR_SCHEMA)

    def _summary(self, receipts: Sequence[Receipt]) -> Summary:
        reasons: Counter[str] = Counter()
        for receipt in receipts:
            reasons.update(receipt.reasons)
        rows, tokens = sum(r.rows for r in receipts), sum(r.tokens for r in receipts)
        return Summary(
            rows=rows,
            vectors=sum(receipt.vectors for receipt in receipts),
            bad_rows=reasons.total(),
            reasons=dict(reasons.most_common()),
            texts=sum(receipt.texts for receipt in receipts),
            tokens=tokens,
            shards=len(receipts),
            shards_done_before=self.before,
            new_rows=rows - self._rows_before,
            new_tokens=tokens - self._tokens_before,
        )


def prepare(
    paths: Sequence[str],
    options: Options,
    *,
    output: str,
    input_format: InputFormat | None = None,
    force: bool = False,
) -> Prepared:
    """Find and check the inputs, the columns and the output folder. Reads heads and footers, writes nothing.

    Raises:
        OptionError, FileInputError: options or inputs that cannot be.
        OutputError: something else stands where the output shall be.
    """
    options = options.checked()
    storage = Storage(output)
    _require_ours(storage, any_format=force)
    found = find(paths, format=input_format, besides=storage.path(""))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="udever-describe") as pool:
        inputs = tuple(pool.map(describe, found))
    carried_columns(inputs, options)
    return Prepared(inputs=inputs, options=options, storage=storage, force=force)


def open_run(prepared: Prepared, model: Model) -> Run:
    """Plan the work, or go on with it.

    Raises:
        JobChangedError: the output holds another job; names the differences.
    """
    storage, job = prepared.storage, resolve(prepared.options, prepared.inputs, model)
    old = None if prepared.force else read_manifest(storage)
    known = _known_scans(storage) if old else {}
    plan = Plan(inputs=(), scans=(), shards=())
    if old:
        refuse_other_job(old, make_manifest(job, plan), where=storage.url)
    columns = (*job.options.text_columns, *job.carried.names)
    plan = make_plan(prepared.inputs, limits=job.options.limits, columns=columns, known=known)
    if old:
        refuse_other_inputs(old, make_manifest(job, plan), where=storage.url)
        plan = _with_names(plan, old)
    else:
        _clear(storage)
        write_manifest(storage, make_manifest(job, plan))
    if known != {item.found.path: scan for item, scan in zip(plan.inputs, plan.scans, strict=True)}:
        storage.write(SCANS, scans_json(plan))
    complete = bool(old and old["state"] == "complete")
    return Run(
        job=job, plan=plan, storage=storage, complete=complete, done=receipts_of(storage, job, plan) if old else {}
    )


def _clear(storage: Storage) -> None:
    """Remove what an earlier run wrote; the manifest last, for it says that the rest is ours."""
    for name in sorted(storage.names() & OURS, key=lambda name: name == MANIFEST):
        storage.remove(name)


def _require_ours(storage: Storage, *, any_format: bool) -> None:
    storage.require_folder()
    names = storage.names()
    if not names or names <= {WORK} or read_manifest(storage, any_format=any_format) is not None:
        return
    raise OutputError(
        f"{storage.url} holds {sorted(names)[0]!r} and is no output of udever bulk", hint="choose another --output"
    )


def _known_scans(storage: Storage) -> dict[str, Scan]:
    try:
        return scans_from_json(storage.read(SCANS))
    except FileNotFoundError:
        return {}


def _with_names(plan: Plan, old: Manifest) -> Plan:
    """The inputs under the names they had at first: they stand in the output."""
    names = [item["name"] for item in old["inputs"]]
    inputs = tuple(
        replace(item, found=replace(item.found, name=name)) for item, name in zip(plan.inputs, names, strict=True)
    )
    renamed = {id(before): after for before, after in zip(plan.inputs, inputs, strict=True)}
    shards = tuple(replace(shard, input=renamed[id(shard.input)]) for shard in plan.shards)
    return replace(plan, inputs=inputs, shards=shards)


def receipts_of(storage: Storage, job: Job, plan: Plan) -> dict[int, Receipt]:
    """The receipts whose files are all there, with as many bytes as they had."""
    there = storage.sizes(DONE)
    names = [name for shard in plan.shards if (name := receipt_name(shard_name(shard, job.digest))) in there]
    sizes = storage.sizes()
    with ThreadPoolExecutor(4 * THREADS, thread_name_prefix="udever-receipts") as pool:
        # Parsed where they are read: the files of all receipts, with their bad rows, are never in memory together.
        receipts = list(pool.map(lambda name: Receipt.from_json(storage.read(name)), names))
    return {
        receipt.index: receipt
        for receipt in receipts
        if all(sizes.get(name) == facts.bytes for name, facts in receipt.files.items())
    }
