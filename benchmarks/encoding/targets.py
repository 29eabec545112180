"""What we said we would reach, and whether this run did: pass, miss, or not measurable on this machine.

A target is compared with the number as measured; nothing here rounds in our favour.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from encoding.measure import Row, ShapeResult, ratio, summarise

Outcome = Literal["pass", "miss", "not measurable here"]
OURS = {"fp32": "udever-fp32", "bf16": "udever-bf16", "int8": "udever-int8"}
SAME_PRECISION = 0.95
"""Of ONNX Runtime and OpenVINO handed our packing, at the same precision."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target beside its measurement."""

    claim: str
    target: str
    measured: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class SpeedTarget:
    """Ours at least so many times as fast as transformers fp32 on length-sorted batches."""

    shape: str
    precision: str
    at_least: float


SPEED_TARGETS = (
    SpeedTarget(shape="nano", precision="auto", at_least=6.5),
    SpeedTarget(shape="560m", precision="fp32", at_least=2.0),
    SpeedTarget(shape="560m", precision="bf16", at_least=3.7),
    SpeedTarget(shape="560m", precision="int8", at_least=5.5),
)
START_TARGET = 0.6


def verdicts(results: Mapping[str, Any]) -> Iterator[Verdict]:
    """Every target that the results say something about."""
    shapes: Mapping[str, ShapeResult] = results["shapes"]
    for target in SPEED_TARGETS:  # which were set for two cores
        if target.shape in shapes and results.get("device", "cpu") == "cpu":
            yield _speed(target, shapes[target.shape], native=results["machine"]["native"])
    for name, result in shapes.items():
        yield from _against_peers(name, result)
    if results.get("startup"):
        yield _start(results["startup"])


def _speed(target: SpeedTarget, result: ShapeResult, *, native: Mapping[str, bool]) -> Verdict:
    precision = target.precision
    if precision == "auto":
        precision = "bf16" if native["bf16"] else "fp32"
    said = f" ({precision} here)" if target.precision == "auto" else ""
    key = OURS[precision]
    measured = ratio(key, result["reference"], result=result) if key in result["peers"] else None
    emulated = key in result["peers"] and result["peers"][key]["emulated"]
    text = "–" if measured is None else f"{measured:.2f}×" + (" emulated" if emulated else "")
    return Verdict(
        claim=f"{target.shape}, {target.precision}{said}, against transformers fp32 sorted",
        target=f"≥ {target.at_least}×",
        measured=text,
        outcome="not measurable here" if emulated or measured is None else _at_least(measured, target.at_least),
    )


def _against_peers(shape: str, result: ShapeResult) -> Iterator[Verdict]:
    """Ahead of every peer as deployed with our best native precision; near those that are handed our packing."""
    rows = [row for row in summarise(result) if not row["emulated"]]
    ours = [row for row in rows if row["key"] in OURS.values()]
    deployed = [row for row in rows if row["group"] in ("as deployed", "reference") and row["equal"]]
    if ours and deployed:
        best, rival = (max(group, key=lambda row: row["texts_per_second"]) for group in (ours, deployed))
        yield _duel(f"{shape}, ahead of every peer as deployed", best, rival, at_least=1.0, result=result)
    for row in ours:
        packed = [r for r in rows if r["group"] == "handed our packing" and r["precision"] == row["precision"]]
        for rival in packed:
            claim = f"{shape}, {row['precision']}, beside a peer handed our packing"
            yield _duel(claim, row, rival, at_least=SAME_PRECISION, result=result)


def _duel(claim: str, ours: Row, rival: Row, *, at_least: float, result: ShapeResult) -> Verdict:
    measured = ratio(ours["key"], rival["key"], result=result)
    return Verdict(
        claim=claim,
        target=f"≥ {at_least}×",
        measured="–" if measured is None else f"{measured:.2f}× {rival['label']}",
        outcome="not measurable here" if measured is None else _at_least(measured, at_least),
    )


def _start(startup: Mapping[str, Any]) -> Verdict:
    measured = startup["ratio"]
    return Verdict(
        claim=f"start to first vector, {startup['shape']}, {startup['precision']}, against transformers",
        target=f"≤ {START_TARGET}×",
        measured=f"{measured:.2f}×",
        outcome="pass" if measured <= START_TARGET else "miss",
    )


def _at_least(measured: float, target: float) -> Outcome:
    return "pass" if measured >= target else "miss"
