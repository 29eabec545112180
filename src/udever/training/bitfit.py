"""Which tensors of a model move: the biases (BitFit), everything, or the last blocks.

Invariant: what is not chosen stays a buffer without gradient, so no activation is kept for its sake.
Source: BitFit, arXiv 2106.10199; Udever trains every bias, those of the norms included, arXiv 2310.08232.
Does not know: the loss or the optimizer.
"""

import re
from collections.abc import Callable

import torch
from torch import nn

from udever.errors import OptionError
from udever.model.bloom import Bloom

TUNES = {"bitfit": "only biases, norms' included", "all": "everything", "last:N": "the last N blocks, the final norm"}
"""What `tune` may be."""


def unfreeze(model: Bloom, *, tune: str, markers: bool = True) -> dict[str, nn.Parameter]:
    """Make parameters of the tensors that shall move.

    Args:
        model: built with `trainable=True`.
        tune: "bitfit", "all" or "last:N".
        markers: also move `model.own_rows`, the markers' rows of the token table (with "all" the table moves as well).

    Returns:
        name within the model → parameter, in the model's order.

    Raises:
        OptionError: an unknown `tune`, or more blocks than there are.
    """
    chosen = _choice(tune, layers=model.config.layers)
    moved: dict[str, nn.Parameter] = {}
    for name, buffer in list(model.named_buffers()):
        is_rows = name == "own_rows.rows"
        if not buffer.is_floating_point() or not (markers if is_rows else chosen(name)):
            continue
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        parameter = nn.Parameter(buffer.to(torch.promote_types(buffer.dtype, torch.float32), copy=True))
        delattr(module, own_name)
        module.register_parameter(own_name, parameter)
        moved[name] = parameter
    return moved


def moving_blocks(tune: str, *, layers: int) -> int:
    """In how many of the blocks, counted from the last, matrices move and so keep their inputs.

    Raises:
        OptionError: as `unfreeze`.
    """
    if tune in ("bitfit", "all"):
        return layers if tune == "all" else 0
    last = re.fullmatch(r"last:(\d+)", tune)
    if last is None or not 1 <= int(last[1]) <= layers:
        ways = ", ".join(f"{name} ({meaning})" for name, meaning in TUNES.items())
        raise OptionError(f"tune {tune!r} does not exist for {layers} blocks", hint=f"choose {ways}")
    return int(last[1])


def _choice(tune: str, *, layers: int) -> Callable[[str], bool]:
    count = moving_blocks(tune, layers=layers)
    if tune == "bitfit":
        return lambda name: name.endswith(".bias")
    if tune == "all":
        return lambda _: True
    moving = tuple(f"blocks.{index}." for index in range(layers - count, layers))
    return lambda name: name.startswith((*moving, "final_norm."))
