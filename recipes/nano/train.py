"""Trains the student: `bag` (token vectors pooled, minutes), then `distil` (the BLOOM stack that starts as that bag).

Invariant: a run writes `--work`/NAME.pt every `--save-every` steps with all it needs, and goes on from it when begun
again. Batches hold texts of one length, so nothing is padded. Knows targets, not where they are from.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import teacher
import torch
import torch.nn.functional as F
from data import MIXTURE, examples
from tokenizer import BOD, BOQ, EOD, EOQ, language
from tokenizers import Tokenizer
from torch import Tensor, nn

from model import WIDTH, Bag, Bloom

PREFIXES = (64, 128, WIDTH)
MAX_TOKENS, COMMON_TOKENS, LONG_SHARE = 512, 96, 0.02
CHUNK = 49_152


class Pool(NamedTuple):
    """The tokenised examples that have a teacher vector; one row each."""

    ids: np.ndarray
    """uint32, the bodies one after another (no markers)."""
    offsets: np.ndarray
    """int64 [n + 1]: body i is ids[offsets[i] : offsets[i + 1]]."""
    target: np.ndarray
    """int32: row among the teacher's vectors."""
    partner: np.ndarray
    """int32: a second row to share the target with, or the same row."""
    document: np.ndarray
    """bool: reads mostly as a document."""
    weight: np.ndarray
    """float64, sums to one: how often the row is drawn."""


def prepare(data: Path, work: Path) -> Pool:
    """Tokenises every example whose targets are cached; kept in `work`/pool.npz (delete it to see new targets)."""
    path = work / "pool.npz"
    if not path.exists():
        index, _ = teacher.cached(work)
        kept = []
        for e in examples(data):
            known = [t for t in (e.target, e.partner) if t in index]
            if known and (not e.partner or e.partner in index):
                kept.append(e._replace(target=known[0], partner=known[-1]))
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
        bodies = [
            e.ids[: MAX_TOKENS - 2] for e in tokenizer.encode_batch([e.text for e in kept], add_special_tokens=False)
        ]
        cells = [(e.group, language(e.lang)) for e in kept]
        size = Counter(cells)
        root = {cell: n**0.5 for cell, n in size.items()}
        total: Counter[str] = Counter()
        for (group, _), value in root.items():
            total[group] += value
        weight = np.array([MIXTURE[c[0]] * root[c] / total[c[0]] / size[c] for c in cells])
        pool = Pool(
            ids=np.fromiter((i for body in bodies for i in body), np.uint32),
            offsets=np.cumsum([0] + [len(body) for body in bodies]),
            target=np.array([index[e.target] for e in kept], np.int32),
            partner=np.array([index[e.partner] for e in kept], np.int32),
            document=np.array([e.document for e in kept]),
            weight=weight / weight.sum(),
        )
        np.savez(path, **pool._asdict())
    return Pool(**np.load(path))


def targets(work: Path, centre: float) -> Tensor:
    """Unit targets [n, WIDTH]: the teacher's vectors less `centre` times their mean, on their widest principal axes.

    Mean and axes are kept in `work`/axes.npz, so that more vectors later leave the space as it is.
    """
    vectors, path = torch.from_numpy(teacher.cached(work)[1].astype(np.float32)), work / "axes.npz"
    if not path.exists():
        mean = vectors.mean(0)
        _, axes = torch.linalg.eigh((vectors - mean).T @ (vectors - mean))
        np.savez(path, mean=mean.numpy(), axes=axes.flip(1)[:, :WIDTH].contiguous().numpy())
    kept = np.load(path)
    return F.normalize((vectors - centre * torch.from_numpy(kept["mean"])) @ torch.from_numpy(kept["axes"]), dim=1)


def batches(pool: Pool, seed: int, tokens: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (ids [B, T], target rows [B], partner rows [B]) of about `tokens` ids, of one length each."""
    rng = np.random.default_rng(seed)
    lengths, cumulative = np.diff(pool.offsets), np.cumsum(pool.weight)
    while True:
        rows = np.searchsorted(cumulative, rng.random(CHUNK) * cumulative[-1])
        limit = np.where(rng.random(CHUNK) < LONG_SHARE, MAX_TOKENS, COMMON_TOKENS)
        size = np.minimum(lengths[rows] + 2, limit)
        size = np.where(size > 48, size - size % 4, size)
        as_document = rng.random(CHUNK) < np.where(pool.document[rows], 0.85, 0.25)
        ready = []
        for length in np.unique(size):
            same = np.flatnonzero(size == length)
            step = max(1, tokens // int(length))
            ready += [same[i : i + step] for i in range(0, len(same), step)]
        for b in rng.permutation(len(ready)):
            pick, body = rows[ready[b]], size[ready[b][0]] - 2
            ids = pool.ids[pool.offsets[pick][:, None] + np.arange(body)].astype(np.int64)
            document = as_document[ready[b]][:, None]
            ids = np.concatenate([np.where(document, BOD, BOQ), ids, np.where(document, EOD, EOQ)], 1)
            yield torch.from_numpy(ids), torch.from_numpy(pool.target[pick]), torch.from_numpy(pool.partner[pick])


def loss_of(z: Tensor, target: Tensor, bank: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(loss, mean cosine): cosine to the target and, for each prefix, the KL between both sides' similarities.

    The similarities are those to the batch's own targets and to `bank`, so that the KL is also a soft contrastive loss.
    """
    bank = torch.cat([target, bank])
    aim = (target @ bank.T / temperature).log_softmax(1)
    total, cosine = z.new_zeros(()), z.new_zeros(())
    for width in PREFIXES:
        part, keys = F.normalize(z[:, :width], dim=1), F.normalize(bank[:, :width], dim=1)
        cosine = (part * keys[: len(part)]).sum(1).mean()
        kl = F.kl_div((part @ keys.T / temperature).log_softmax(1), aim, log_target=True, reduction="batchmean")
        total = total + (kl + 1 - cosine) * (1.0 if width == WIDTH else 0.25)
    return total, cosine


def optimiser(model: nn.Module, table_rate: float, rate: float) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for the table; weight decay on the matrices of the stack only."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if n.startswith("word_embeddings.")], "lr": table_rate, "weight_decay": 0.0},
        {
            "params": [p for n, p in named if not n.startswith("word_embeddings.") and p.dim() < 2],
            "lr": rate,
            "weight_decay": 0.0,
        },
        {
            "params": [p for n, p in named if not n.startswith("word_embeddings.") and p.dim() == 2],
            "lr": rate,
            "weight_decay": 0.01,
        },
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)


def fit(model: nn.Module, pool: Pool, aims: Tensor, args: argparse.Namespace) -> None:
    """The training loop; resumes from `--work`/`--name`.pt."""
    path = args.work / f"{args.name}.pt"
    optim = optimiser(model, args.table_rate, args.rate)
    rates, first = [g["lr"] for g in optim.param_groups], 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optim.load_state_dict(state["optim"])
        first = state["step"]
    source, texts, began, cosines = batches(pool, args.seed + first, args.tokens), 0, time.monotonic(), []
    chooser = torch.Generator().manual_seed(args.seed + first)
    for step in range(first, args.steps):
        scale = min(1.0, (step + 1) / args.warmup) * max(0.02, 1 - step / args.steps)
        for group, rate in zip(optim.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        for _ in range(args.accumulate):
            ids, target, partner = next(source)
            bank = aims[torch.randint(len(aims), (args.bank,), generator=chooser)]
            aim = F.normalize(aims[target] + aims[partner], dim=1)
            loss, cosine = loss_of(model(ids), aim, bank, args.temperature)
            (loss * min(1.0, len(ids) / 64) / args.accumulate).backward()
            texts += len(ids)
            cosines.append(cosine.item())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        optim.zero_grad()
        if (step + 1) % args.log_every == 0:
            speed = texts / (time.monotonic() - began)
            print(f"step {step + 1} loss {loss:.3f} cosine {np.mean(cosines):.4f} {speed:.0f} texts/s", flush=True)
            cosines.clear()
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            torch.save(
                {"model": model.state_dict(), "optim": optim.state_dict(), "step": step + 1}, path.with_suffix(".part")
            )
            path.with_suffix(".part").rename(path)


def main() -> None:
    """`bag` first, then `distil --start bag`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("bag", "distil"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", help="of the checkpoint; the stage's name by default")
    parser.add_argument("--start", default="bag", help="distil: the bag's checkpoint")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tokens", type=int, help="a batch (default: 4096)", default=4096)
    parser.add_argument("--accumulate", type=int, help="batches a step (default: bag 6, distil 2)")
    parser.add_argument("--table-rate", type=float, help="default: bag 1e-2, distil 1e-3")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--centre", type=float, default=1.0)
    parser.add_argument("--bank", type=int, default=1024)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=100)
    args = parser.parse_args()
    bag = args.stage == "bag"
    args.name, args.accumulate = args.name or args.stage, args.accumulate or (6 if bag else 2)
    args.table_rate = args.table_rate or (1e-2 if bag else 1e-3)
    torch.manual_seed(args.seed)
    pool, aims = prepare(args.data, args.work), targets(args.work, args.centre)
    model: nn.Module = Bag(Tokenizer.from_file(str(args.work / "tokenizer.json")).get_vocab_size())
    if not bag:
        model.load_state_dict(torch.load(args.work / f"{args.start}.pt")["model"])
        model = Bloom.from_bag(model, [EOQ, EOD])
    print(f"{len(pool.target)} texts, {len(aims)} targets, {sum(p.numel() for p in model.parameters())} parameters")
    fit(model, pool, aims, args)


if __name__ == "__main__":
    main()
