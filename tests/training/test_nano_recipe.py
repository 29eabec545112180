"""The scripts of udever-nano's recipe, run as it runs them: an even space for teacher and student, and what ships."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from udever import Embedder
from udever.tokenizer import UdeverTokenizer
from udever.training.data.store_writer import TextExample, new_store

RECIPES = Path(__file__).parents[2] / "recipes" / "nano"
WIDTH, TEXTS = 64, 120
ROWS = [f"rows-{store}.npy" for store in range(4)]


def script(name: str, *args: str | Path) -> None:
    done = subprocess.run([sys.executable, RECIPES / name, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def work(tmp_path: Path, tiny_tokenizer_path: Path) -> Path:
    """A store of sentences, and a teacher whose vectors are ten times as wide on their first axis."""
    stores = tmp_path / "stores"
    tokenizer = UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)
    with new_store(stores / "sts", tokenizer=tokenizer, max_tokens=24, overwrite=True) as writer:
        pairs = [(f"fox {i} jumps", f"dog {i} runs") for i in range(0, TEXTS, 2)]
        writer.add([TextExample(one, (other,), (), None, "sts", True) for one, other in pairs])
    vectors = np.random.default_rng(0).normal(size=(4000, WIDTH))
    vectors[:, 0] *= 10
    (stores / "targets").mkdir()
    np.save(stores / "targets" / "vectors.npy", vectors.astype(np.float16))
    for rows in ROWS:
        np.save(stores / "targets" / rows, np.arange(-1, 4000))
    return tmp_path


def test_the_teachers_space_is_made_even_by_half_and_its_rows_stay(work: Path) -> None:
    script("whiten.py", "--work", work)
    before, after = (np.load(work / "stores" / name / "vectors.npy") for name in ("targets", "whitened"))
    np.testing.assert_allclose(np.linalg.norm(after.astype(np.float32), axis=1), 1, atol=1e-2)
    spread = before.astype(np.float32).std(0)
    map_ = np.linalg.lstsq(before.astype(np.float32), after.astype(np.float32), rcond=None)[0]
    assert np.abs(map_ - np.diag(np.diag(map_))).max() < 0.1 * np.diag(map_).min(), "no axis turns into another"
    narrow, wide = np.median(np.diag(map_)[1:]), map_[0, 0]
    assert 2 < spread[0] / spread[1:].mean() * (wide / narrow) < 5, "from ten times as wide to about its root"
    for rows in ROWS:
        np.testing.assert_array_equal(np.load(work / "stores" / "whitened" / rows), np.arange(-1, 4000))


def test_the_last_model_is_the_mean_of_two_with_less_along_its_widest_axes(
    work: Path, make_checkpoint: Callable[..., Path]
) -> None:
    before, after = (make_checkpoint(width=WIDTH, layers=4, seed=seed, n_positions=64) for seed in (1, 2))
    (work / "train").mkdir()
    with gzip.open(work / "train" / "sts_train.tsv.gz", "wt") as file:
        print("lang\ts1\ts2", *(f"en\tfox {i} jumps\tdog {i} runs" for i in range(TEXTS)), sep="\n", file=file)
    script("press.py", "--data", work, "--before", before, "--model", after, "--out", work / "pressed")
    one, other, pressed = (load_file(folder / "model.safetensors") for folder in (before, after, work / "pressed"))
    changed = {}
    for name in one:
        mean = 0.4 * one[name] + 0.6 * other[name]
        if not torch.allclose(pressed[name], mean, atol=1e-6):
            changed[name] = (mean, pressed[name])
    ((name, (mean, dense)),) = changed.items()
    assert name == "h.3.self_attention.dense.weight"
    said, written = (pressed["ln_f.weight"][:, None] * weight for weight in (mean, dense))
    map_ = written @ torch.linalg.inv(said)
    torch.testing.assert_close(map_, map_.T, atol=1e-2, rtol=1e-2)
    factors = torch.linalg.eigvalsh((map_ + map_.T) / 2)
    assert (factors < 0.99).sum() == 32, "the widest axes are pressed"
    assert factors.max() < 1.01
    assert factors.min() > 0


def test_what_ships_is_small_and_gives_the_same_vectors(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    trained, shipped = make_checkpoint(width=WIDTH, layers=4), tmp_path / "shipped"
    (trained / "tokenizer_config.json").write_text("{}")
    (trained / "udever.json").write_text(json.dumps({"name": "nano", "max_tokens": 64, "scores": {"stsb": {"en": 1}}}))
    script("ship.py", "--model", trained, "--out", shipped)
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (trained, shipped))
    assert after < 0.5 * before, "fp16, and a byte for each number of the table"
    texts = ["the quick brown fox", "def add(a, b): return a + b", "Übung macht den Meister"]
    models = (Embedder.load(str(folder), precision="fp32", device="cpu") for folder in (shipped, trained))
    ours, theirs = (model.embed(texts, "query") for model in models)
    assert (ours * theirs).sum(1).min() > 0.9999
    assert "en 1.0" in (shipped / "README.md").read_text("utf-8")
