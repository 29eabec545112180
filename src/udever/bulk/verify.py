"""Is an output what its manifest says: its files, its inputs, its model, and the vectors of sampled rows?

    report = verify(Storage("vectors/"), model, rows=1000);  report.differences

Every file is read and its digest compared; rows are sampled by a fixed seed, embedded again one shard after another,
and compared with what is stored. A vector may differ by what the model's precision and the stored numbers round away.
Invariant: nothing is written; every difference is a sentence that names the thing, what it was and what it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from udever.bulk.embed import Tokenized, Worker
from udever.bulk.formats import FOLDER, FORMATS, MOST_INT8, Vectors
from udever.bulk.heads import Input, describe
from udever.bulk.job import Dtype, Job, Options, resolve
from udever.bulk.manifest import Manifest, input_differences, make_manifest, model_differences, read_manifest
from udever.bulk.plan import Plan, Shard, make_plan, scans_from_json
from udever.bulk.receipts import Receipt
from udever.bulk.run import ERRORS, SCANS, receipts_of
from udever.bulk.sources import find
from udever.bulk.storage import Storage, stream_digest
from udever.engine.embedder import Embedder
from udever.errors import OutputError, UdeverError

ROWS = 1000
MOST_SHARDS = 32
"""Shards that the sampled rows come from, at most: a shard is read whole."""
SHOWN = 20
"""Differences that are named; the rest is counted."""
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2, "int8": 1e-2}
"""Precision → how far a number of a unit vector may be off on another machine or beside other texts."""

Watch = Callable[[str, int, int | None], None]


@dataclass(kw_only=True)
class Report:
    """What was found."""

    differences: list[str] = field(default_factory=list)
    """Empty: the output is what it says it is."""
    more: int = 0
    """Differences that are not named."""
    files: int = 0
    """Files that were read."""
    replayed: int = 0
    """Rows that were embedded again."""
    largest_difference: float = 0.0
    """Between a number that is stored and the same number now."""

    def add(self, difference: str) -> None:
        """Note one."""
        if len(self.differences) < SHOWN:
            self.differences.append(difference)
        else:
            self.more += 1


def verify(storage: Storage, model: Embedder, *, rows: int = ROWS, watch: Watch = lambda _a, _b, _c: None) -> Report:
    """Check an output against its manifest, its inputs and a model.

    Raises:
        OutputError: there is no output of a bulk run.
    """
    manifest = read_manifest(storage)
    if manifest is None:
        raise OutputError(f"{storage.url} holds no output of udever bulk", hint="name the folder that --output named")
    report = Report()
    for difference in model_differences(manifest["model"], _facts(model)):
        report.add(difference)
    if manifest["state"] != "complete":
        report.add(f"the run is not finished ({manifest['shards']:,} shards are planned): run the same command again")
        return report
    _check_files(storage, manifest, report, watch)
    _check_errors(storage, manifest, report)
    opened = _reopen(storage, manifest, model, report)
    if opened:
        _replay(storage, *opened, model=model, rows=rows, report=report, watch=watch)
    return report


def _facts(model: Embedder) -> dict[str, str]:
    return {"name": model.name, "fingerprint": model.fingerprint, "precision": model.precision}


def _check_files(storage: Storage, manifest: Manifest, report: Report, watch: Watch) -> None:
    there = storage.sizes()
    listed = {file["name"]: file for file in manifest["files"]}
    for count, (name, file) in enumerate(listed.items()):
        watch("reading files", count, len(listed))
        if name not in there:
            report.add(f"{name} is missing")
        elif there[name] != file["bytes"]:
            report.add(f"{name} had {file['bytes']:,} bytes, has {there[name]:,}")
        else:
            with storage.open(name) as stream:
                content = stream_digest(stream)
            if content != file["digest"]:
                report.add(f"{name}: its bytes changed (digest was {file['digest']}, is {content})")
        report.files += 1
    watch("reading files", len(listed), len(listed))
    for name in there:
        if name.startswith(f"{FOLDER}/") and name not in listed:
            report.add(f"{name} is not part of the output")


def _check_errors(storage: Storage, manifest: Manifest, report: Report) -> None:
    noted = 0
    try:
        with storage.open(ERRORS) as file:
            noted = pq.read_metadata(file).num_rows
    except FileNotFoundError:
        pass
    except pa.ArrowException as error:
        report.add(f"{ERRORS} cannot be read: {error}")
        return
    if noted != manifest["bad_rows"]:
        report.add(f"{ERRORS} names {noted:,} bad rows, the manifest counts {manifest['bad_rows']:,}")


def _reopen(storage: Storage, manifest: Manifest, model: Embedder, report: Report) -> tuple[Job, Plan] | None:
    """The job and the plan, as long as the inputs are what they were."""
    try:
        known = scans_from_json(storage.read(SCANS))
        inputs = tuple(_input(path, raw) for path, raw in zip(known, manifest["inputs"], strict=True))
        raw = {name: value for name, value in manifest["options"].items() if name != "shard_bytes"}
        options = Options(**raw | {"columns": tuple(raw["columns"])})
        job = resolve(options, inputs, model)
        columns = (*options.text_columns, *job.carried.names)
        plan = make_plan(inputs, limits=options.limits, columns=columns, known=known)
    except (UdeverError, OSError, ValueError) as error:
        report.add(f"no row was embedded again, for the inputs cannot be read as they were: {error}")
        return None
    differences = list(input_differences(manifest["inputs"], make_manifest(job, plan)["inputs"]))
    for difference in differences:
        report.add(f"input {difference}")
    return None if differences else (replace(job, fingerprint=manifest["model"]["fingerprint"]), plan)


def _input(path: str, raw: Manifest) -> Input:
    [found] = find([path], format=raw["format"])
    return describe(replace(found, name=raw["name"]))


def _replay(
    storage: Storage, job: Job, plan: Plan, *, model: Embedder, rows: int, report: Report, watch: Watch
) -> None:
    receipts = receipts_of(storage, job, plan)
    samples = sample([receipts[shard.index].vectors if shard.index in receipts else 0 for shard in plan.shards], rows)
    worker = Worker(job, storage, model)
    total = sum(map(len, samples.values()))
    for index, places in samples.items():
        watch("embedding sampled rows", report.replayed, total)
        shard = plan.shards[index]
        try:
            _replay_shard(storage, worker, shard, receipts[index], places, job=job, model=model, report=report)
        except (UdeverError, OSError) as error:
            report.add(f"shard {index} cannot be replayed: {error}")
        report.replayed += len(places)
    watch("embedding sampled rows", report.replayed, total)
    worker.close()


def sample(sizes: Sequence[int], rows: int) -> dict[int, list[int]]:
    """Shard → places in it, about `rows` altogether: of `MOST_SHARDS` shards at most, the same ones each time.

    Args:
        sizes: vectors of each shard.
    """
    dice = np.random.default_rng(0)
    filled = np.flatnonzero(sizes)
    chosen = sorted(dice.permutation(filled)[:MOST_SHARDS].tolist(), key=lambda index: sizes[index])
    left, samples = rows, {}
    for count, index in enumerate(chosen):  # small ones first: the others make up for them
        share = min(-(-left // (len(chosen) - count)), sizes[index])
        samples[index] = sorted(dice.permutation(sizes[index])[:share].tolist())
        left -= share
    return {index: samples[index] for index in sorted(samples) if samples[index]}


def _replay_shard(
    storage: Storage,
    worker: Worker,
    shard: Shard,
    receipt: Receipt,
    places: Sequence[int],
    *,
    job: Job,
    model: Embedder,
    report: Report,
) -> None:
    where = next(iter(receipt.files))
    numbers, stored = FORMATS[job.options.format].read(storage, receipt)
    now = worker.tokenize(worker.read(shard))
    if not np.array_equal(numbers, now.loaded.numbers):
        report.add(f"{where} holds {len(numbers):,} rows, {len(now.loaded.numbers):,} rows of its input have a text")
        return
    vectors = _embed(now, places, model, job)
    if vectors.shape[1] != stored.shape[1]:
        report.add(f"{where} holds vectors of {stored.shape[1]} numbers, the model gives {vectors.shape[1]}")
        return
    for place, vector in zip(places, vectors, strict=True):
        difference = float(np.abs(stored[place] - vector).max())
        report.largest_difference = max(report.largest_difference, difference)
        if not difference <= allowed(vector, dtype=job.options.dtype, precision=job.precision):
            lengths = np.linalg.norm(stored[place]) * np.linalg.norm(vector)
            report.add(
                f"{where}, vector {place} ({shard.input.found.name}, row {numbers[place]}): a number differs by"
                f" {difference:.2g}, cosine {float(stored[place] @ vector / lengths):.6f}"
            )


def _embed(now: Tokenized, places: Sequence[int], model: Embedder, job: Job) -> Vectors:
    raw = model.forward([now.sequences[place] for place in places])
    return model.finish(raw, dimensions=job.options.dimensions)


def allowed(vector: Vectors, *, dtype: Dtype, precision: str) -> float:
    """How far a stored number may be off."""
    largest = float(np.abs(vector).max(initial=0))
    rounding = {"float32": 0.0, "float16": largest / 2**11 + 2**-25, "int8": largest / MOST_INT8 / 2}
    return TOLERANCES[precision] + rounding[dtype]
