"""Gives a trained model a longer vocabulary: its tokenizer's merges go on, and each new token begins as what it was.

    python recipes/nano/grow.py --model W/runs/third/model --tokenizer W/longer/tokenizer.json --out W/grown

Invariant: the old entries keep their ids, merges and vectors. A new token's vector is the sum that its old pieces make
in a weighted mean: their directions, each with the weight that the length channel gives it (see `Bloom.from_bag`).
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import LENGTH_SCALE
from udever.engine.folders import whole_folder
from udever.model.config import TABLE


def pieces(old: dict, new: dict) -> list[list[int]]:
    """For each new entry, in order, the ids of the old ones that spelled it.

    Args:
        old, new: the `model` objects of two tokenizer.json.
    """
    count, merges = len(old["vocab"]), new["merges"]
    if any(new["vocab"].get(token) != index for token, index in old["vocab"].items()):
        raise SystemExit("the new tokenizer does not begin with the old one: train both on the same texts")
    if merges[: len(old["merges"])] != old["merges"]:
        raise SystemExit("the new tokenizer merges in another order: train both on the same texts")
    spelled = [[index] for index in range(count)]
    for left, right in merges[len(old["merges"]) :]:
        if new["vocab"][left + right] == len(spelled):  # a second way to an entry does not count
            spelled.append(spelled[new["vocab"][left]] + spelled[new["vocab"][right]])
    return spelled[count:]


def composed(table: Tensor, parts: list[int]) -> Tensor:
    """The vector [H] that weighs in a mean as `parts` did together."""
    rows = table[parts]
    weights = (rows[:, -1] / LENGTH_SCALE).exp()
    direction = (weights[:, None] * rows[:, :-1]).sum(0)
    length, usual = direction.norm(), rows[:, :-1].norm(dim=1).mean()
    return torch.cat([direction * (usual / length), LENGTH_SCALE * (length / usual).log()[None]])


def main() -> None:
    """Write the grown model's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="the longer one, as tokenizer.py trains it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    spelled = pieces(_read(args.model / "tokenizer.json")["model"], _read(args.tokenizer)["model"])
    weights = {name: value.float() for name, value in load_file(args.model / "model.safetensors").items()}
    table = weights[TABLE]
    weights[TABLE] = torch.cat([table, torch.stack([composed(table, parts) for parts in spelled])])
    config = _read(args.model / "config.json") | {"vocab_size": len(weights[TABLE]), "dtype": "float32"}
    with whole_folder(args.out, replace=True) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(args.tokenizer, folder / "tokenizer.json")
        for name in ("tokenizer_config.json", "udever.json"):
            shutil.copyfile(args.model / name, folder / name)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    print(f"{len(table):,} entries and {len(spelled):,} new ones")


def _read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


if __name__ == "__main__":
    main()
