"""How fast and in how much memory a BitFit step runs: udever beside sentence-transformers, same weights, data and loss.

    python benchmarks/train.py                       # writes docs/training-performance.{json,md}
    python benchmarks/train.py --device cuda --shapes 560m   # 1024 triplets, bf16: training-performance-cuda.{json,md}

The peer is what people use: CachedMultipleNegativesRankingLoss over last-token pooling with markers, everything but the
biases frozen. "Cached" is udever where memory is short: it embeds each chunk twice, as the peer always does. Each round
runs all, in turns; memory is the peak of a process of its own above its weights. All must give the same loss, or
nothing is written. On a GPU the step's arithmetic, the least that it needs, is also set beside what a plain bf16
product reaches.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from encoding.machine import as_json, ceiling_probes, describe
from encoding.report import machine_lines, replace_sections, table
from safetensors.torch import save_file
from torch import Tensor

from udever.engine import registry
from udever.evaluation.protocols.code_local import code_local
from udever.model.config import BloomConfig
from udever.tokenizer import UdeverTokenizer
from udever.training.base import load_base
from udever.training.bitfit import unfreeze
from udever.training.contrastive import Contrast, Pairing, contrastive_loss
from udever.training.distributed import World
from udever.training.free_memory import free_bytes
from udever.training.gradcache import accumulate
from udever.training.memory import kept_bytes, plan_memory
from udever.training.step import CHUNK_TOKENS

DOCS = Path(__file__).parent.parent / "docs"
SHAPES = {"nano": (256, 4, 4), "small": (512, 8, 8), "560m": (1024, 24, 16)}
"""Width, layers, heads; the vocabulary is udever-nano's."""
TEMPERATURE, MAX_TOKENS, MINI_BATCH = 0.05, 256, 16
CACHED_SHARE = 4
"""Where memory is short, so much less than the usual number of tokens is embedded at once."""
DEFAULTS = {"cpu": (64, 0, "training-performance.json"), "cuda": (1024, 1, "training-performance-cuda.json")}
"""By device: examples a step, hard negatives of each, the file of results."""
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2}
"""Relative: bf16 on a GPU, where transformers rounds ALiBi too."""
Step = Callable[[], float]
Columns = Sequence[Sequence[str]]
"""Queries, their documents, and their hard negatives, if there are any."""


def main() -> None:
    options = _options()
    if options.alone:
        _alone(options)
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "machine": as_json(describe(threads=options.threads)),
        "date": datetime.now(UTC).date().isoformat(),
        "shapes": {shape: _measure(shape, options) for shape in options.shapes},
    }
    body = "\n".join(_report(results["shapes"]))
    print(body)
    options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    page = options.json.with_suffix(".md")
    replace_sections(page, [("machine", machine_lines(results)), ("training", body)], title="The speed of training")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["nano", "small"])
    parser.add_argument("--batch", type=int, help="examples a step; default: 64, on CUDA 1024")
    parser.add_argument("--negatives", type=int, choices=(0, 1), help="hard negatives of each; default: 0, on CUDA 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--memory", type=float, default=0.0, help="GB for activations; 0: all, on CUDA half of what is free"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    batch, negatives, file = DEFAULTS[torch.device(options.device).type]
    options.batch = options.batch or batch
    options.negatives = negatives if options.negatives is None else options.negatives
    options.json = options.json or DOCS / file
    return options


def _measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_checkpoint(folder, shape)
        columns, device = _columns(options), torch.device(options.device)
        steps = {label: make(folder, columns, options) for label, make in WAYS.items()}
        losses = {label: step() for label, step in steps.items()}
        if max(losses.values()) - min(losses.values()) > LOSS_TOLERANCE[device.type] * losses[PEER]:
            raise SystemExit(f"the losses differ: {losses}")
        seconds: dict[str, list[float]] = {label: [] for label in steps}
        for _ in range(options.rounds):
            for label, step in steps.items():
                began = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[label].append(time.perf_counter() - began)
        peaks = {label: _peak(label, folder, options) for label in steps}
    lengths = [len(sequence) for sequence in _sequences(columns)]
    found = {"tokens": sum(lengths), "losses": losses, "seconds": seconds, "peak_bytes": peaks}
    if device.type == "cuda":
        found |= {"gflop": _gflop(shape, lengths), "ceiling_gflops": ceiling_probes(device)["bf16"]()}
    return found | {"examples": options.batch, "negatives": options.negatives}


def _gflop(shape: str, lengths: Sequence[int]) -> float:
    """The least arithmetic of a BitFit step: forward, and the gradients of activations; frozen matrices need none.

    In the last block only keys and values of all tokens. Of attention six products, two forward and four backward.
    """
    width, layers, _ = SHAPES[shape]
    tokens, texts, squares = sum(lengths), len(lengths), sum(length**2 for length in lengths)
    matrices = 4 * width**2 * (tokens * (12 * (layers - 1) + 2) + texts * 10)
    attention = 6 * width * (squares * (layers - 1) + 2 * tokens)
    return (matrices + attention) / 1e9


def _write_checkpoint(folder: Path, shape: str) -> None:
    width, layers, heads = SHAPES[shape]
    source = registry.resolve("udever-nano").folder
    raw = json.loads((source / "config.json").read_text()) | {"hidden_size": width, "n_layer": layers, "n_head": heads}
    raw["torch_dtype"] = raw["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(raw))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, size: tuple[int, ...]) -> Tensor:
        noise = torch.randn(size, generator=generator) * 0.02
        return noise + 1 if name.endswith(("norm.weight", "ln_f.weight")) else noise

    shapes = BloomConfig.from_hugging_face(raw).tensor_shapes()
    save_file({name: draw(name, size) for name, size in shapes.items()}, folder / "model.safetensors", {"format": "pt"})


def _columns(options: argparse.Namespace) -> Columns:
    """Docstrings, their functions, and as hard negatives other functions."""
    pairs, count = code_local((), candidates=1000, seed=0).pairs, options.batch
    if len(pairs.documents) < count * (1 + options.negatives):
        raise SystemExit(f"the standard library has {len(pairs.documents):,} functions, too few for --batch {count:,}")
    columns = [pairs.queries[:count], pairs.documents[:count], pairs.documents[count : 2 * count]]
    return columns[: 2 + options.negatives]


def _sequences(columns: Columns) -> list[list[int]]:
    tokenizer = UdeverTokenizer.from_folder(registry.resolve("udever-nano").folder)
    queries, *documents = columns
    kept = {"max_tokens": MAX_TOKENS, "truncate": "end"}
    texts = [text for column in documents for text in column]
    return [*tokenizer.encode(queries, role="query", **kept), *tokenizer.encode(texts, role="document", **kept)]


def _udever(folder: Path, columns: Columns, options: argparse.Namespace, *, cached: bool = False) -> Step:
    device = torch.device(options.device)
    base = load_base(str(folder), precision="fp32" if options.device == "cpu" else "bf16", device=device, markers=False)
    parameters = unfreeze(base.model, tune="bitfit", markers=False)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0)
    sequences, count = _sequences(columns), options.batch
    pairing = Pairing.from_rows(list(range(count)), [])
    chunk_tokens = CHUNK_TOKENS[device.type]
    budget_bytes = round(options.memory * 1e9) or (1 << 62 if options.device == "cpu" else free_bytes(device) // 2)
    if cached:
        chunk_tokens //= CACHED_SHARE
        budget_bytes = chunk_tokens * kept_bytes(base.config, tune="bitfit")
    tokens = sum(map(len, sequences))
    plan = plan_memory(base.config, tune="bitfit", tokens=tokens, chunk_tokens=chunk_tokens, budget_bytes=budget_bytes)

    def loss_of(embeddings: Tensor) -> tuple[Tensor, None]:
        contrast = Contrast(temperature=TEMPERATURE)
        return contrastive_loss(embeddings[:count], embeddings[count:], pairing=pairing, contrast=contrast)[0], None

    def step() -> float:
        loss, _ = accumulate(base.model, sequences, loss_of, plan=plan, world=World(), device=device)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _sentence_transformers(folder: Path, columns: Columns, options: argparse.Namespace) -> Step:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    dtype = "float32" if options.device == "cpu" else "bfloat16"
    words = Transformer(str(folder), model_kwargs={"dtype": dtype}, processor_kwargs={"padding_side": "left"})
    model = SentenceTransformer(
        modules=[words, Pooling(words.get_embedding_dimension(), pooling_mode="lasttoken")], device=options.device
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    loss_of = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=MINI_BATCH)
    sequences, count = _sequences(columns), options.batch
    parts = [sequences[first : first + count] for first in range(0, len(sequences), count)]

    def features(part: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        longest = max(map(len, part))
        ids = torch.tensor([[3] * (longest - len(s)) + list(s) for s in part], device=options.device)
        mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in part], device=options.device)
        return {"input_ids": ids, "attention_mask": mask}

    def step() -> float:
        loss = loss_of([features(part) for part in parts], torch.zeros(count))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


PEER = "sentence-transformers"
WAYS = {"udever": _udever, "udever, cached": partial(_udever, cached=True), PEER: _sentence_transformers}


def _alone(options: argparse.Namespace) -> None:
    """In a process of its own: the peak above what is there before the first step."""
    torch.set_num_threads(options.threads)
    step = WAYS[options.alone](options.folder, _columns(options), options)
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()  # loading and moving the weights took more than they do
        before = torch.cuda.memory_allocated()
        step()
        print(torch.cuda.max_memory_allocated() - before)
        return
    before, highest, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    print(highest[0] - before)


def _resident() -> int:
    """Bytes in memory now; the process's own high-water mark is from loading the weights."""
    return psutil.Process().memory_info().rss


def _peak(label: str, folder: Path, options: argparse.Namespace) -> int:
    flags = ["--batch", str(options.batch), "--device", options.device, "--threads", str(options.threads)]
    flags += ["--memory", str(options.memory), "--negatives", str(options.negatives)]
    command = [sys.executable, __file__, "--alone", label, "--folder", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def _report(shapes: dict[str, Any]) -> list[str]:
    rows = []
    for shape, found in shapes.items():
        seconds = {label: statistics.median(values) for label, values in found["seconds"].items()}
        peaks = found["peak_bytes"]
        for label in WAYS:
            pairs = zip(found["seconds"][PEER], found["seconds"][label], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            rows.append(
                [
                    f"{shape} {'x'.join(map(str, SHAPES[shape]))}",
                    label,
                    f"{found['tokens'] / seconds[label]:,.0f}",
                    f"{seconds[label]:.2f}",
                    f"{ratio:.2f}×" if label != PEER else "",
                    f"{peaks[label] / 1e6:,.0f} MB",
                    f"{peaks[label] / peaks[PEER]:.2f}" if label != PEER else "",
                    *([f"{found['gflop'] / seconds[label] / found['ceiling_gflops']:.0%}"] if "gflop" in found else []),
                ]
            )
    told = next(iter(shapes.values()))
    step = f"s/step of {told['examples']:,} {'triplets' if told['negatives'] else 'pairs'}"
    head = ["shape", "", "tokens/s", step, "speed", "peak above the weights", "of the peer's"]
    return table((*head, *(["of a plain bf16 product"] if "gflop" in told else [])), rows)


if __name__ == "__main__":
    main()
