"""The training step's gradient against the naive one in float64, however it is chunked."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from udever.model.bloom import Bloom, OwnRows, checkpoint_tensors
from udever.model.config import TABLE, BloomConfig
from udever.training import naive
from udever.training.bitfit import unfreeze
from udever.training.contrastive import Contrast, Pairing, contrastive_loss
from udever.training.distributed import World
from udever.training.gradcache import accumulate
from udever.training.memory import MemoryPlan

MARKERS = (40, 41, 42, 43)
LENGTHS = (3, 17, 9, 9, 140, 5, 9, 31, 2, 300, 17, 6)
POSITIVE, EXCLUDED, TEMPERATURE = (0, 3, 1, 5), ((1, 6), (3, 0)), 0.05


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 44, (length,), generator=generator).tolist() for length in LENGTHS]


def build(config: BloomConfig, tensors: dict[str, Tensor], *, precision: str = "fp64") -> Bloom:
    wide = torch.float64 if precision == "fp64" else torch.float32
    rows = OwnRows(torch.tensor(MARKERS), tensors[TABLE][list(MARKERS)].to(wide))
    return Bloom(config, tensors, table=tensors[TABLE], precision=precision, trainable=True, own_rows=rows)


def loss_of(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    pairing = Pairing.of(
        POSITIVE, document_keys=[0, 1, 2, 3, 4, 5, 3, 7], known=[[], [], [], [0]]
    )  # document 6 equals query 1's positive, document 0 is known to answer query 3
    return contrastive_loss(embeddings[:4], embeddings[4:], pairing=pairing, contrast=Contrast(temperature=TEMPERATURE))


def naive_gradients(config: BloomConfig, tensors: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    weights = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    vectors = [naive.embed(config, weights, ids) for ids in sequences()]
    loss = naive.info_nce(vectors[:4], vectors[4:], positive=POSITIVE, excluded=EXCLUDED, temperature=TEMPERATURE)
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in weights.items()}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The relative difference of the whole gradient, by norm."""
    difference = sum(float((found[name].double() - expected[name]).square().sum()) for name in found)
    return (difference / sum(float(expected[name].square().sum()) for name in found)) ** 0.5


@pytest.fixture(scope="module", params=[4, 6])
def config(request: pytest.FixtureRequest) -> BloomConfig:
    return BloomConfig(width=48, layers=3, heads=request.param, vocab_size=44)


def test_kept_or_computed_again_the_sums_are_the_same_bits(
    config: BloomConfig, random_tensors: Callable[..., dict[str, Tensor]]
) -> None:
    """So a run that is resumed with more or less memory free ends with the same bytes."""
    found = []
    for cached, recompute in ((False, False), (True, False), (True, True)):
        model = build(config, random_tensors(config), precision="fp32")
        parameters = unfreeze(model, tune="all")
        plan = MemoryPlan(chunk_tokens=64, cached=cached, recompute=recompute)
        accumulate(model, sequences(), loss_of, plan=plan, world=World(), device=torch.device("cpu"))
        found.append({name: parameter.grad for name, parameter in parameters.items()})
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name
        assert torch.equal(found[2][name], gradient), name


@pytest.mark.parametrize(
    "plan",
    [
        MemoryPlan(chunk_tokens=10_000, cached=False, recompute=False),
        MemoryPlan(chunk_tokens=64, cached=False, recompute=False),
        MemoryPlan(chunk_tokens=64, cached=True, recompute=False),
        MemoryPlan(chunk_tokens=300, cached=True, recompute=True),
    ],
)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-6)])
def test_the_gradient_is_the_naive_one(
    config: BloomConfig,
    random_tensors: Callable[..., dict[str, Tensor]],
    plan: MemoryPlan,
    precision: str,
    tolerance: float,
) -> None:
    tensors = random_tensors(config)
    expected_loss, expected = naive_gradients(config, tensors)
    model = build(config, tensors, precision=precision)
    unfreeze(model, tune="bitfit")
    loss, _ = accumulate(model, sequences(), loss_of, plan=plan, world=World(), device=torch.device("cpu"))
    assert loss.item() == pytest.approx(expected_loss, rel=tolerance)
    found = checkpoint_tensors(model, kind="bias", of=lambda bias: bias.grad)
    found["rows"], expected["rows"] = model.own_rows.rows.grad, expected[TABLE][list(MARKERS)]
    assert len(found) == len([name for name in expected if name.endswith(".bias")]) + 1
    assert apart(found, expected) < tolerance
