"""`manifest.json` of an output: what was asked for, of which model and inputs, and what came of it.

Invariant: it says nothing of when, where or how fast, so that equal work leaves equal manifests; a job that
differs from it in anything that decides the output is refused, and every difference named.
Does not know: how shards are done.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from udever.bulk.job import Job
from udever.bulk.plan import Plan
from udever.bulk.receipts import Receipt
from udever.bulk.storage import Storage
from udever.errors import JobChangedError, OutputError

MANIFEST = "manifest.json"
FORMAT = 1
SHOWN = 5
"""Changed inputs that are named."""

Manifest = dict[str, Any]


def read_manifest(storage: Storage, *, any_format: bool = False) -> Manifest | None:
    """The manifest of an output; None where there is none.

    Args:
        any_format: also another release's, for telling whose output it is.

    Raises:
        OutputError: it is damaged, or of another release's format.
    """
    try:
        raw = json.loads(storage.read(MANIFEST))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(f"{storage.url}/{MANIFEST} is damaged: {error}", hint="choose another --output") from error
    if not isinstance(raw, dict) or "udever_bulk" not in raw:
        raise OutputError(f"{storage.url}/{MANIFEST} was not written by udever bulk", hint="choose another --output")
    if raw["udever_bulk"] != FORMAT and not any_format:
        raise OutputError(
            f"{storage.url} has format {raw['udever_bulk']}, this release writes {FORMAT}",
            hint="go on with the release that began it, or pass --force to start over",
        )
    return raw


def make_manifest(job: Job, plan: Plan, receipts: Sequence[Receipt] | None = None) -> Manifest:
    """What to write: at the start without receipts, at the end with all of them, in order."""
    rows: Counter[int] = Counter()
    for shard in plan.shards:
        rows[id(shard.input)] += shard.rows
    inputs = [
        {
            "name": item.found.name,
            "format": item.found.format,
            "bytes": item.found.bytes,
            "rows": rows[id(item)],
            "digest": scan.digest,
        }
        for item, scan in zip(plan.inputs, plan.scans, strict=True)
    ]
    manifest: Manifest = {
        "udever_bulk": FORMAT,
        "state": "running",
        "model": {"name": job.model, "fingerprint": job.fingerprint, "precision": job.precision},
        "options": job.identity["options"],
        "inputs": inputs,
        "shards": len(plan.shards),
    }
    if receipts is None:
        return manifest
    return manifest | {
        "state": "complete",
        "rows": sum(receipt.rows for receipt in receipts),
        "vectors": sum(receipt.vectors for receipt in receipts),
        "bad_rows": sum(receipt.bad_rows for receipt in receipts),
        "tokens": sum(receipt.tokens for receipt in receipts),
        "files": [
            {
                "name": name,
                "shard": receipt.index,
                "rows": receipt.vectors,
                "bytes": facts.bytes,
                "digest": facts.digest,
            }
            for receipt in receipts
            for name, facts in receipt.files.items()
        ],
    }


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Put it there at once."""
    storage.write(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode())


def refuse_other_job(old: Manifest, new: Manifest, *, where: str) -> None:
    """Refuse to go on with other options or another model.

    Raises:
        JobChangedError: names each difference.
    """
    differences = list(model_differences(old["model"], new["model"])) + list(
        _of_options(old["options"], new["options"])
    )
    _refuse(differences, where)


def refuse_other_inputs(old: Manifest, new: Manifest, *, where: str) -> None:
    """Refuse to go on with inputs of other content; names may differ.

    Raises:
        JobChangedError: names each difference.
    """
    _refuse(list(input_differences(old["inputs"], new["inputs"])), where)


def _refuse(differences: Sequence[str], where: str) -> None:
    if not differences:
        return
    more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    raise JobChangedError(
        f"{where} holds another job: {'; '.join(differences[:SHOWN])}{more}",
        hint="go on with the same, choose another --output, or pass --force to start over",
    )


def model_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Whether two models give other vectors."""
    if old["fingerprint"] == new["fingerprint"]:
        return
    told = [f"{model['name']}, {model['precision']}, {model['fingerprint']}" for model in (old, new)]
    yield f"the model was {told[0]}, is {told[1]}"


def _of_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in {**old, **new}:
        if old.get(name) == new.get(name):
            continue
        was, now = ((", ".join(v) or "none") if isinstance(v := side.get(name), dict) else v for side in (old, new))
        if was == now:  # the same columns, of other types
            was, now = old[name], new[name]
        yield f"--{name.replace('_', '-')} was {was}, is {now}"


def input_differences(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What changed in the inputs, by name; other names for the same contents are no change."""
    if [(item["digest"], item["format"]) for item in old] == [(item["digest"], item["format"]) for item in new]:
        return
    before, now = {item["name"]: item for item in old}, {item["name"]: item for item in new}
    count = 0
    for name in {**before, **now}:
        a, b = before.get(name), now.get(name)
        if a and b and (a["digest"], a["format"]) == (b["digest"], b["format"]):
            continue
        count += 1
        if a and b and a["format"] != b["format"]:
            yield f"{name} was read as {a['format']}, is read as {b['format']}"
        elif a and b:
            sizes = [f"{item['rows']:,} rows, {item['bytes']:,} bytes" for item in (a, b)]
            yield f"{name} changed ({sizes[0]} → {sizes[1]})"
        else:
            yield f"{name} is {'gone' if a else 'new'}"
    if not count:
        yield "the inputs are in another order"
