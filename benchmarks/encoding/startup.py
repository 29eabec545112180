"""Start to first vector: a fresh process loads a 1b1-shaped bf16 checkpoint and embeds one short query.

The checkpoint has the full 250,880-entry token table and a tokenizer of as many entries. Wall time runs from the start
of the Python process to the vector; the page cache is warm (the file was just written or read), so what is compared is
work, not the disk. Memory is the peak of the process: resident (VmHWM), which counts mapped file pages too, and
anonymous, which the machine must find (sampled every few milliseconds).

Run as a script it is the child: `startup.py CHILD FOLDER`.
"""

import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPE = "1b1"
QUERY = "how tall is the mountain?"
POLL_SECONDS = 0.005
BLOCK = 1 << 22


def ours(folder: str, precision: str) -> Any:
    """The vector of `QUERY` by udever."""
    from udever import Embedder

    return Embedder.load(folder, precision=precision, device="cpu").embed([QUERY], role="query", normalize=False)[0]


def transformers(folder: str, precision: str) -> Any:
    """The vector of `QUERY` as the model card computes it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    ids = tokenizer("[BOQ]" + QUERY)["input_ids"] + [tokenizer.convert_tokens_to_ids("[EOQ]")]
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].float().numpy()


CHILDREN: dict[str, Callable[[str, str], Any]] = {"udever": ours, "transformers": transformers}


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of one child."""

    seconds: float
    peak_rss_mib: float
    peak_anonymous_mib: float
    vector: list[float]


def start_once(child: str, *, folder: Path, precision: str) -> Start:
    """Run the child in a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, child, str(folder), precision]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = _PeakAnonymous(process.pid)
    line = process.stdout.readline() if process.stdout else ""
    seconds = time.perf_counter() - begin
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{child} failed: {errors.strip().splitlines()[-1]}")
    report = json.loads(line)
    return Start(
        seconds=seconds,
        peak_rss_mib=report["peak_rss_mib"],
        peak_anonymous_mib=peak.mib(),
        vector=report["vector"],
    )


def measure(folder: Path, *, rounds: int, precision: str) -> dict[str, Any]:
    """Both in turns, each in a fresh process; also transformers in bf16, as the file stores it, where that is another.

    Ratios and cosines are against transformers in `precision`.
    """
    write_checkpoint(folder)
    children = [("transformers", precision), ("udever", precision)]
    children += [("transformers", "bf16")] if precision != "bf16" else []
    for child, _ in children[:2]:  # the page cache, and Python's compiled files
        start_once(child, folder=folder, precision=precision)
    starts: list[list[Start]] = [
        [start_once(child, folder=folder, precision=p) for child, p in children] for _ in range(rounds)
    ]
    rows = [
        {
            "label": f"{child} {child_precision}",
            "seconds": statistics.median(start[i].seconds for start in starts),
            "ratio": statistics.median(start[i].seconds / start[0].seconds for start in starts),
            "peak_rss_mib": statistics.median(start[i].peak_rss_mib for start in starts),
            "peak_anonymous_mib": statistics.median(start[i].peak_anonymous_mib for start in starts),
            "cosine": _cosine(starts[0][i].vector, starts[0][0].vector),
        }
        for i, (child, child_precision) in enumerate(children)
    ]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return {
        "shape": SHAPE,
        "precision": precision,
        "vocab_size": config["vocab_size"],
        "file_mib": (folder / "model.safetensors").stat().st_size / 2**20,
        "rounds": rounds,
        "ratio": rows[1]["ratio"],
        "children": rows,
    }


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


class _PeakAnonymous:
    """The most anonymous memory a process was seen with, by a thread that looks every few milliseconds."""

    def __init__(self, pid: int) -> None:
        self._status, self._kib = Path(f"/proc/{pid}/status"), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            try:
                lines = self._status.read_text("utf-8").splitlines()
            except OSError:
                return
            found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
            if not found:  # the process has ended
                return
            self._kib = max(self._kib, *found)
            time.sleep(POLL_SECONDS)

    def mib(self) -> float:
        """After the process has ended."""
        self._thread.join()
        return self._kib / 1024


def write_checkpoint(folder: Path, *, name: str = f"udever-bloom-{SHAPE}") -> Path:
    """A bf16 checkpoint of a published shape with random weights, and a tokenizer of the published size; made once.

    The weights are rounded to float16 first, as BLOOM's were.
    """
    import torch
    from safetensors.torch import save_file

    from encoding.workload import hugging_face_config
    from udever.model.config import PUBLISHED

    if (folder / "tokenizer_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = PUBLISHED[name]
    (folder / "config.json").write_text(json.dumps(hugging_face_config(config, dtype="bfloat16")), "utf-8")
    noise = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).half().bfloat16()

    def draw(shape: tuple[int, ...]) -> torch.Tensor:  # one block repeated: drawing a billion numbers takes a minute
        size = torch.Size(shape).numel()
        return noise.repeat(-(-size // BLOCK))[:size].view(shape).clone()

    norms = ("layernorm.weight", "ln_f.weight")
    tensors = {key: draw(shape) + key.endswith(norms) for key, shape in config.tensor_shapes().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _large_tokenizer(config.vocab_size - 256).save(str(folder / "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), "utf-8")
    return folder


def _large_tokenizer(entries: int) -> Any:
    """Byte-level BPE with made-up merges, as large to read as the published one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from udever.tokenizer import MARKERS

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = ["<unk>", "<s>", "</s>", "<pad>", *letters], []
    pairs = [a + b for a in letters for b in letters]
    for left, right in [(a, b) for a in letters for b in letters] + [(p, c) for p in pairs for c in letters[:3]]:
        if len(tokens) == entries:
            break
        tokens.append(left + right)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([*tokens[:4], *MARKERS["query"], *MARKERS["document"]])
    return tokenizer


def _child(name: str, folder: str, precision: str) -> None:
    vector = CHILDREN[name](folder, precision)
    status = Path("/proc/self/status").read_text("utf-8")  # not ru_maxrss: that starts at the parent's peak
    peak_kib = int(status.split("VmHWM:")[1].split()[0])
    print(json.dumps({"peak_rss_mib": peak_kib / 1024, "vector": [float(x) for x in vector]}), flush=True)


if __name__ == "__main__":
    _child(*sys.argv[1:])
