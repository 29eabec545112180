"""The state of a run after a step, on disk: what moves, the optimizer's memory of it, and the step.

Invariant: a file under its name is whole (written aside, flushed to disk, renamed); loading it and going on gives bit
for bit what going on without it would have given. The newest `KEPT` are kept.
Does not know: data; its whole state is the step.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from udever.engine.folders import whole_file
from udever.engine.tensor_files import save_tensors
from udever.errors import TrainingError
from udever.training.sharding import cut_like, full

KEPT = 2
_NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a checkpoint says of itself."""

    step: int
    """Steps done."""
    processes: int


def state_of(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, *, kept: bool = True
) -> dict[str, Tensor]:
    """What a checkpoint holds, whole and on the CPU, by its name there. Every process has to ask for it.

    Args:
        kept: whether this process wants it; else the answer is empty.
    """
    parts = {f"parameter/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parts |= {f"optimizer/{key}/{name}": value for key, value in optimizer.state[parameter].items()}
    state = {}
    for name, part in parts.items():
        tensor = full(part)
        if kept:
            state[name] = tensor.contiguous().cpu()
    return state


def save(folder: Path, state: Mapping[str, Tensor], *, facts: Facts) -> Path:
    """Write the state after `facts.step` steps; returns the file."""
    path = folder / f"step-{facts.step:08d}.safetensors"
    metadata = {"facts": json.dumps({"step": facts.step, "processes": facts.processes})}
    with whole_file(path, durable=True) as unfinished:
        save_tensors(state, unfinished, metadata=metadata)
    for old in _files(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def sweep(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for left in folder.glob(".step-*.safetensors.*"):
        left.unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step; None if there is none."""
    files = _files(folder)
    return files[-1] if files else None


def load(path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Facts:
    """Put a checkpoint's state into the parameters and the optimizer.

    Raises:
        TrainingError: the file is damaged, or holds other parameters.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = Facts(**json.loads(file.metadata()["facts"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        hint = "delete it to go on from an earlier one"
        raise TrainingError(f"{path} is no checkpoint: {error}", hint=hint) from None
    stored = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    if stored != parameters.keys():
        raise TrainingError(f"{path} holds other parameters than this run moves", hint="train into another folder")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(cut_like(tensors[f"parameter/{name}"], parameter))
            optimizer.state[parameter] = _state_of(name, parameter, tensors)
    return facts


def _state_of(name: str, parameter: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        field, _, owner = rest.partition("/")
        if kind == "optimizer" and owner == name:
            # The step count lives on the CPU, the moments where the parameter is.
            state[field] = cut_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
    return state


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))
