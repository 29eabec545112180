"""The certificate: a real step's gradient beside the naive one in float64.

    naive: each text alone, all in float64, the loss by its definition   (naive.py)
    real:  packed, chunked, cached, shared out over processes, the recipe's contrastive loss   (gradcache.py)

Invariant: the two share no code but the ALiBi slopes; what they agree on is right, or wrong twice in the same way.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from msgspec import structs
from torch import Tensor, multiprocessing
from torch.multiprocessing.spawn import start_processes

from udever.model.bloom import Bloom, OwnRows, checkpoint_tensors
from udever.model.config import TABLE, BloomConfig
from udever.training import naive
from udever.training.batches import StepBatch
from udever.training.bitfit import unfreeze
from udever.training.distributed import World, world
from udever.training.gradcache import accumulate
from udever.training.memory import MemoryPlan
from udever.training.objective import Watched, contrastive
from udever.training.recipe import ContrastPart

TOLERANCES = {"fp64": 1e-12, "fp32": 1e-6}
"""Relative error of the whole gradient, by norm, that a certificate allows; in float32 also twice that of the naive
step in float32, because a deep model's roundings alone may be more."""
CHUNKS = 3
"""Of each process, at least: what goes wrong between chunks must show."""
KEPT: dict[str, dict[str, bool]] = {
    "activations": {"cached": False, "recompute": False},
    "chunk": {"cached": True, "recompute": False},
    "inputs": {"cached": True, "recompute": True},
}
"""What a step keeps → its memory plan: all activations, those of one chunk (GradCache), or of that only the blocks'
inputs."""
WAYS = tuple((precision, kept) for precision in TOLERANCES for kept in KEPT)
"""In what precision a step is done, and what it keeps."""
UNSOLVED = 0.05
"""The least loss to compare gradients at: of a batch that is nearly solved the gradient is a difference of numbers that
are nearly equal, and so mostly rounding, in any implementation."""
WARMEST = 10.0
"""A temperature at which all similarities are alike; a loss that is nothing even so has nothing to tell apart."""
Gradients = dict[tuple[str, str], dict[str, Tensor]]
"""By way, then by name."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a batch to compare on."""

    config: BloomConfig
    tensors: dict[str, Tensor]
    """A checkpoint's, float32, the token table included."""
    marker_ids: tuple[int, ...]
    batch: StepBatch
    contrast: ContrastPart
    """The loss; the naive step reads it for itself."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far the real step's gradient is from the naive one."""

    precision: str
    processes: int
    kept: str
    """What the step kept: a key of `KEPT`."""
    temperature: float
    """Of the contrastive loss: the recipe's, or a higher one if at that the batch is solved."""
    relative_error: float
    worst_tensor: str
    worst_error: float
    """Of that tensor alone."""
    allowed: float
    """The largest relative error at which the certificate holds."""

    @property
    def holds(self) -> bool:
        """Whether the error is allowed."""
        return self.relative_error <= self.allowed


def certify(case: Case, *, processes: Sequence[int] = (1, 2)) -> list[Certificate]:
    """Certificates in float64 and float32, in each plan for memory, on one process and on several."""
    case = _unsolved(case)
    expected = naive_gradient(case)
    roundings = _errors(naive_gradient(case, dtype=torch.float32), expected)[0]
    allowed = {"fp64": TOLERANCES["fp64"], "fp32": max(TOLERANCES["fp32"], 2 * roundings)}
    certificates = []
    for count in processes:
        for (precision, kept), found in real_gradients(case, processes=count).items():
            whole, worst, worst_error = _errors(found, expected)
            certificates.append(
                Certificate(
                    precision=precision,
                    processes=count,
                    kept=kept,
                    temperature=case.contrast.temperature,
                    relative_error=whole,
                    worst_tensor=worst,
                    worst_error=worst_error,
                    allowed=allowed[precision],
                )
            )
    return certificates


def naive_gradient(case: Case, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """By checkpoint name, every bias; and `markers`, their rows."""
    weights = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in case.tensors.items()}
    _naive_loss(case, [naive.embed(case.config, weights, token_ids) for token_ids in case.batch.sequences]).backward()
    gradients = {name: w.grad for name, w in weights.items() if name.endswith(".bias") and w.grad is not None}
    table = weights[TABLE].grad
    if table is not None:
        gradients["markers"] = table[list(case.marker_ids)]
    return gradients


def _unsolved(case: Case) -> Case:
    """At a temperature at which the loss is not next to nothing."""
    weights = {name: tensor.double() for name, tensor in case.tensors.items()}
    with torch.no_grad():
        vectors = [naive.embed(case.config, weights, token_ids) for token_ids in case.batch.sequences]
        while _naive_loss(case, vectors) < UNSOLVED and case.contrast.temperature < WARMEST:
            warmer = structs.replace(case.contrast, temperature=2 * case.contrast.temperature)
            case = replace(case, contrast=warmer)
    return case


def _naive_loss(case: Case, vectors: Sequence[Tensor]) -> Tensor:
    pairing, first_document = case.batch.pairing, case.batch.queries
    return naive.info_nce(
        vectors[:first_document],
        vectors[first_document:],
        positive=pairing.positive.tolist(),
        excluded=[(int(row), int(column)) for row, column in pairing.excluded],
        temperature=case.contrast.temperature,
        prefixes=case.contrast.prefixes,
        both_ways=case.contrast.both_ways,
    )


def real_gradients(case: Case, *, processes: int) -> Gradients:
    """The same by the system's own step, in each of `WAYS`."""
    if processes == 1:
        return {way: _step(case, *way, World()) for way in WAYS}
    with multiprocessing.get_context("spawn").Manager() as manager:
        answer = manager.dict()
        arguments = (case, processes, _free_port(), answer)
        start_processes(_process, arguments, nprocs=processes, start_method="spawn")
        return dict(answer)


def _process(rank: int, case: Case, processes: int, port: int, answer: Gradients) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with world() as here:
        gradients = {way: _step(case, *way, here) for way in WAYS}
        if here.is_main:
            answer.update(gradients)
    os._exit(0)  # at once: gloo's threads may outlive the interpreter, which then aborts


def _step(case: Case, precision: str, kept: str, here: World) -> dict[str, Tensor]:
    wide = torch.float64 if precision == "fp64" else torch.float32
    marker_ids = sorted(case.marker_ids)
    own_rows = OwnRows(torch.tensor(marker_ids), case.tensors[TABLE][marker_ids].to(wide))
    model = Bloom(
        case.config,
        case.tensors,
        table=case.tensors[TABLE],
        precision="fp64" if precision == "fp64" else "fp32",
        trainable=True,
        own_rows=own_rows,
    )
    parameters = unfreeze(model, tune="bitfit")

    objective = contrastive(case.contrast)

    def loss_of(embeddings: Tensor) -> tuple[Tensor, Watched]:
        return objective(embeddings, case.batch)

    share = sum(map(len, case.batch.sequences)) // here.size
    plan = MemoryPlan(chunk_tokens=max(1, share // (CHUNKS + 1)), **KEPT[kept])
    accumulate(model, case.batch.sequences, loss_of, plan=plan, world=here, device=torch.device("cpu"))
    here.sum_gradients(parameters.values())
    gradient = checkpoint_tensors(model, kind="bias", of=_gradient)
    order = [marker_ids.index(marker) for marker in case.marker_ids]
    return gradient | {"markers": _gradient(own_rows.rows)[order]}


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str, float]:
    """Relative error of the whole gradient; the tensor with the largest of its own, and that."""
    errors = {name: float((found[name].double() - value).norm()) for name, value in expected.items()}
    sizes = {name: float(value.norm()) for name, value in expected.items()}
    relative = {name: error / sizes[name] for name, error in errors.items() if sizes[name]}
    worst = max(relative, key=relative.__getitem__)
    whole = sum(error**2 for error in errors.values()) / sum(size**2 for size in sizes.values())
    return float(whole**0.5), worst, relative[worst]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
