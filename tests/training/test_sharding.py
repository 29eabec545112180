"""Everything trained on several processes: each holds a part, and together they do what one does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from udever import Embedder
from udever.tokenizer import UdeverTokenizer
from udever.training import run
from udever.training.data.store_writer import TextExample, new_store

pytestmark = pytest.mark.slow

GRADIENTS = Path(__file__).with_name("all_gradients.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def finish(command: Sequence[object]) -> None:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_gradient_is_that_of_one_process(tmp_path: Path) -> None:
    finish([sys.executable, GRADIENTS, tmp_path / "one"])
    finish([*TORCHRUN, GRADIENTS, tmp_path / "two"])
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    (count,), held = one.pop("held").tolist(), two.pop("held")
    assert held.sum() == count
    assert held.max() < 0.6 * count
    assert one.keys() == two.keys()
    for name in one:
        exact = name.startswith("value/")
        torch.testing.assert_close(two[name], one[name], rtol=0 if exact else 1e-11, atol=0 if exact else 1e-13)


RECIPE = """
name = "moved"
base = {base}
tune = "all"
max_tokens = 24
[batch]
size = 8
epochs = 2.0
[optimizer]
learning_rate = 1e-3
clip_norm = 1.0
[evaluate]
suite = "suite.toml"
every_steps = 4
[[data]]
path = "pairs"
"""
SUITE = 'name = "few"\n[[task]]\nkind = "pairs"\nname = "pairs"\nfile = "pairs.tsv"\n'


@pytest.fixture
def job(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """job("run", "--resume") is the command line that trains everything on two processes."""
    tokenizer = UdeverTokenizer.from_folder(tiny_checkpoint)
    with new_store(tmp_path / "pairs", tokenizer=tokenizer, max_tokens=24) as writer:
        words = ["fox", "dog", "mountain", "height", "metres", "lazy", "quick", "brown"]
        writer.add(
            [TextExample(f"the {words[i % 8]} {i}", (f"{words[i % 8]} {i}",), (), None, "t", False) for i in range(32)]
        )
    (tmp_path / "recipe.toml").write_text(RECIPE.format(base=json.dumps(str(tiny_checkpoint))))
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "pairs.tsv").write_text("text1\ttext2\tlabel\nthe fox\tfox\t1\nthe dog\tdog\t1\nthe fox\tdog\t0\n")
    arguments = ["train", str(tmp_path / "recipe.toml"), "--data", str(tmp_path), "--checkpoint-every", "1"]
    arguments += ["--precision", "fp32", "--device", "cpu"]
    return lambda name, *flags: [*TORCHRUN, "-m", "udever", *arguments, "--output", str(tmp_path / name), *flags]


def test_killed_and_resumed_it_ends_with_the_same_bytes(job: Callable[..., list[str]], tmp_path: Path) -> None:
    finish(job("whole"))
    with subprocess.Popen(job("killed"), env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(run.read_log(tmp_path / "killed")) < 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    finish(job("killed", "--resume"))
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    log = run.read_log(tmp_path / "whole")
    assert [entry["step"] for entry in log if "score" in entry] == [4, 8]
    assert Embedder.load(str(tmp_path / "whole" / "model")).name == "moved"
    assert Embedder.load(str(tmp_path / "whole" / "best")).name == "moved"
