"""A model whose every tensor moves, cut over the processes: each keeps a part of weights, gradients and Adam's state.

    parameters = shard(model, device);  …train…;  with whole(model): write it

Invariant: a block's weights are whole only while it computes; the gradient is the sum over all processes, as without.
Every process must run the model, and enter `whole`, equally often: each gathers what the others hold.
Source: PyTorch's FSDP2 (`fully_shard`), arXiv 2304.11277.
Does not know: what is trained, or how.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from udever.model.bloom import Bloom


def shard(model: Bloom, *, device: torch.device) -> dict[str, nn.Parameter]:
    """Cut the parameters over all processes, in place; returns name → this process's part, in the model's order."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    register_fsdp_forward_method(model.blocks[-1], "closing")
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum, as of our losses, and no mean
            module.set_force_sum_reduction_for_comms(True)
    return dict(model.named_parameters())


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut: on every process, on its device."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as `like` is, on its device."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def whole(model: Bloom, *, here: bool) -> Iterator[None]:
    """While inside, the parameters are whole, on the CPU: to be written, not to compute with.

    Args:
        here: whether this process needs them; others only give theirs.
    """
    owners = {
        (module, name): parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    }
    gathered = {key: values.cpu() if here else None for key, p in owners.items() for values in [full(p.detach())]}
    try:
        if here:
            for (module, name), values in gathered.items():
                module._parameters[name] = nn.Parameter(cast(Tensor, values))
        yield
    finally:
        for (module, name), parameter in owners.items():
            module._parameters[name] = parameter
