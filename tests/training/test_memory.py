"""What a step may take and takes: the plans, the room there is, and that neither decides a run's result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from udever.model.batch import PackedBatch
from udever.model.bloom import Bloom, OwnRows
from udever.model.config import BloomConfig
from udever.training.bitfit import unfreeze
from udever.training.free_memory import free_bytes
from udever.training.memory import MemoryPlan, fitting_chunk, kept_bytes, plan_memory

CONFIG = BloomConfig(width=48, layers=6, heads=4, vocab_size=44)
WIDTH_BYTES = 48 * 4
CPU = torch.device("cpu")


@pytest.mark.parametrize(("tune", "most_widths"), [("bitfit", 10), ("all", 16), ("last:2", 16)])
def test_what_a_token_keeps_is_what_the_plan_counts(
    tune: str, most_widths: int, random_tensors: Callable[..., dict[str, Tensor]]
) -> None:
    tensors = random_tensors(CONFIG)
    table = tensors["word_embeddings.weight"]
    rows = OwnRows(torch.arange(40, 44), table[40:])
    model = Bloom(CONFIG, tensors, table=table, trainable=True, own_rows=rows)
    unfreeze(model, tune=tune)
    weights = {tensor.data_ptr() for tensor in (*model.buffers(), *model.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = PackedBatch.from_lists([[index % 44 for index in range(100)] for _ in range(4)])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(batch)
    assert out.requires_grad
    counted, found = kept_bytes(CONFIG, tune=tune), sum(kept.values()) / 400
    assert 0.8 * counted < found <= counted, "the last block keeps less, as it asks for the last tokens only"
    assert found / CONFIG.layers / WIDTH_BYTES <= most_widths


def test_the_fastest_plan_that_fits_is_chosen_and_the_sums_stay() -> None:
    token = kept_bytes(CONFIG, tune="bitfit")
    assert token == 9 * 6 * WIDTH_BYTES

    def plan(budget_bytes: int) -> MemoryPlan:
        return plan_memory(CONFIG, tune="bitfit", tokens=1000, budget_bytes=budget_bytes, chunk_tokens=100)

    assert plan(1000 * token) == MemoryPlan(chunk_tokens=100, cached=False, recompute=False)
    assert plan(1000 * token - 1) == MemoryPlan(chunk_tokens=100, cached=True, recompute=False)
    assert plan(100 * token - 1) == MemoryPlan(chunk_tokens=100, cached=True, recompute=True)
    assert plan(0).chunk_tokens == 100, "a run goes on with the chunks that it began with"


@pytest.mark.parametrize(("tune", "block_widths"), [("bitfit", 9), ("all", 16), ("last:1", 16)])
def test_a_chunk_is_as_large_as_fits_recomputed(tune: str, block_widths: int) -> None:
    token = (6 + block_widths) * WIDTH_BYTES
    sizes = [fitting_chunk(CONFIG, tune=tune, budget_bytes=n, at_most=4096) for n in (1 << 40, 99 * token, token - 1)]
    assert sizes == [4096, 99, 1]


def machine(root: Path, *, available: int, groups: str, **files: dict[str, str]) -> Path:
    """A `/proc` and a `/sys`; "a/b" of a file's folder is written a__b."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:  {available} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for folder, contents in files.items():
        place = root / "sys/fs/cgroup" / folder.replace("__", "/")
        place.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (place / name.replace("__", ".")).write_text(content)
    return root


def test_what_is_available_counts_and_not_what_is_unused(tmp_path: Path) -> None:
    assert free_bytes(CPU, root=machine(tmp_path, available=1000, groups="0::/\n")) == 1000 * 1024
    assert free_bytes(CPU) > 0


def test_a_control_group_caps_it_and_file_pages_do_not_count_as_taken(tmp_path: Path) -> None:
    limited = {"memory__max": "9000\n", "memory__current": "8000\n", "memory__stat": "anon 1\ninactive_file 500\n"}
    root = machine(tmp_path, available=1000, groups="0::/jobs/one\n", jobs=limited, jobs__one={"memory__max": "max\n"})
    assert free_bytes(CPU, root=root) == 1500


def test_so_does_one_of_the_first_version_whose_path_is_the_hosts(tmp_path: Path) -> None:
    memory = {
        "memory__limit_in_bytes": "5000", "memory__usage_in_bytes": "4900", "memory__stat": "total_inactive_file 400",
    }  # fmt: skip
    root = machine(tmp_path, available=1000, groups="4:memory:/docker/abc\n0::/\n", memory=memory)
    assert free_bytes(CPU, root=root) == 500
