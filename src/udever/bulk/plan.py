"""Inputs → shards: pieces of one file each, in order, with ids from content.

    plan = make_plan(inputs, limits=..., columns=..., known=scans of an earlier run)

What stands for a file's content: text files are read once to be cut, and that pass hashes every byte; a parquet file
on this machine is hashed as it lies on disk (about a gigabyte a second); a parquet file on an object store has a name
of its content there already (its ETag or MD5), so only its footer is read. A scan is remembered together with what the
file system says of the file's state (size, time of change, ETag): while that stays, the file is not read again.

Invariant: shards cover every row of every input exactly once, in the order of the inputs; equal content, columns and
limits give equal shards on every machine.
Does not know: models or outputs.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from udever.bulk.cutting import Cut, Limits, cut_lines, cut_records, cut_row_groups
from udever.bulk.heads import Input
from udever.bulk.sources import DELIMITERS, open_input, open_parquet
from udever.bulk.storage import digest, file_system, stream_digest

SHARD_ROWS = 8192
"""Rows of a shard: what the engine sorts by length together."""
SHARD_BYTES = 1 << 24
"""A shard of longer rows is closed here, so that memory does not grow with the length of documents."""
THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What reading a whole file told."""

    state: str
    """`Found.state` when it was read."""
    format: str
    """As what it was read."""
    limits: Limits
    digest: str
    """Stands for the content."""
    cuts: tuple[Cut, ...]
    """Empty for parquet, whose footer is read anyway."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A piece of one input: the unit of work, of output files and of what a kill can cost."""

    index: int
    """Its place in the plan, from 0."""
    input: Input
    cut: Cut
    digest: str
    """Of its content."""

    @property
    def rows(self) -> int:
        """Rows of the input in it, blank lines included."""
        return self.cut.rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All work there is."""

    inputs: tuple[Input, ...]
    scans: tuple[Scan, ...]
    """One for each input."""
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows of all inputs."""
        return sum(shard.rows for shard in self.shards)


def make_plan(
    inputs: Sequence[Input], *, limits: Limits, columns: Sequence[str], known: Mapping[str, Scan] | None = None
) -> Plan:
    """Cut every input.

    Args:
        columns: those that will be read; the others' bytes do not count.
        known: `Found.path` → scan of an earlier run.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="udever-scan") as pool:
        scans = tuple(pool.map(lambda item: _scan(item, limits, (known or {}).get(item.found.path)), inputs))
        cuts = tuple(
            pool.map(lambda pair: _cuts(*pair, limits=limits, columns=columns), zip(inputs, scans, strict=True))
        )
    shards: list[tuple[Input, Cut, str]] = [
        (item, cut, cut.digest or digest(json.dumps([scan.digest, cut.start, cut.stop]).encode()))
        for item, scan, of_file in zip(inputs, scans, cuts, strict=True)
        for cut in of_file
    ]
    return Plan(
        inputs=tuple(inputs),
        scans=scans,
        shards=tuple(
            Shard(index=index, input=item, cut=cut, digest=content) for index, (item, cut, content) in enumerate(shards)
        ),
    )


def scans_json(plan: Plan) -> bytes:
    """What `scans_from_json` reads."""
    scans = {item.found.path: asdict(scan) for item, scan in zip(plan.inputs, plan.scans, strict=True)}
    return json.dumps(scans).encode()


def scans_from_json(data: bytes) -> dict[str, Scan]:
    """Path → scan; whatever cannot be read is as good as not there."""
    try:
        return {
            path: Scan(
                state=raw["state"],
                format=raw["format"],
                limits=Limits(*raw["limits"]),
                digest=raw["digest"],
                cuts=tuple(Cut(*cut) for cut in raw["cuts"]),
            )
            for path, raw in json.loads(data).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _scan(item: Input, limits: Limits, known: Scan | None) -> Scan:
    found = item.found
    if known and known.state and (known.state, known.format, known.limits) == (found.state, found.format, limits):
        return known
    if found.format == "parquet":
        cuts: tuple[Cut, ...] = ()
        content = found.content or _hash(found.path)
    else:
        cuts = tuple(_text_cuts(item, limits))
        content = digest(json.dumps([item.schema.names, [cut.digest for cut in cuts]]).encode())  # with the header
    return Scan(state=found.state, format=found.format, limits=limits, digest=content, cuts=cuts)


def _text_cuts(item: Input, limits: Limits) -> list[Cut]:
    found = item.found
    with open_input(found.path) as file:
        file.seek(item.start)
        if found.format not in DELIMITERS:
            return list(cut_lines(file, start=item.start, limits=limits))
        delimiter = DELIMITERS[found.format]
        return list(cut_records(file, start=item.start, limits=limits, delimiter=delimiter, name=found.name))


def _hash(path: str) -> str:
    fs, inner = file_system(path)
    with fs.open(inner, "rb") as file:
        return stream_digest(file)


def _cuts(item: Input, scan: Scan, *, limits: Limits, columns: Sequence[str]) -> Sequence[Cut]:
    if item.found.format != "parquet":
        return scan.cuts
    with open_parquet(item.found.path) as file:
        metadata = file.metadata
        wanted = set(columns)
        sizes = []
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            chunks = [group.column(place) for place in range(group.num_columns)]
            used = [
                chunk
                for chunk in chunks
                if chunk.path_in_schema in wanted or chunk.path_in_schema.split(".")[0] in wanted
            ]
            sizes.append((group.num_rows, sum(chunk.total_uncompressed_size for chunk in used)))
    return list(cut_row_groups(sizes, limits=limits))
