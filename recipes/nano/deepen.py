"""Gives a trained model more blocks: a new one repeats the block before it and at first adds nothing.

    python recipes/nano/deepen.py --model W/best --layers 6 --out W/deep

Invariant: the vectors are those of the model before, to the last bit of float32's roundings; the first and the last
block stay the first and the last.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from udever.engine.folders import whole_folder

WRITES = ("self_attention.dense", "mlp.dense_4h_to_h")
"""What a block adds to the residual stream goes through these."""


def origins(layers: int, wanted: int) -> list[tuple[int, bool]]:
    """For each block of the deeper model the one it comes from, and whether it is new; none comes after the last."""
    if not layers <= wanted <= 2 * layers - 1:
        raise SystemExit(f"{layers} blocks can become {layers} to {2 * layers - 1}, not {wanted}")
    doubled = {round((layers - 1) * (i + 0.5) / max(1, wanted - layers) - 0.5) for i in range(wanted - layers)}
    return [
        origin for index in range(layers) for origin in [(index, False), (index, True)][: 2 if index in doubled else 1]
    ]


def deepened(weights: dict[str, Tensor], *, layers: int, wanted: int) -> dict[str, Tensor]:
    """The tensors of the deeper model."""
    deeper = {name: value for name, value in weights.items() if not name.startswith("h.")}
    for index, (origin, new) in enumerate(origins(layers, wanted)):
        prefix = f"h.{origin}."
        for name, value in weights.items():
            if name.startswith(prefix):
                inner = name.removeprefix(prefix)
                deeper[f"h.{index}.{inner}"] = torch.zeros_like(value) if new and inner.startswith(WRITES) else value
    return {name: value.clone() for name, value in deeper.items()}


def main() -> None:
    """Write the deeper model's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text("utf-8"))
    weights = deepened(load_file(args.model / "model.safetensors"), layers=config["n_layer"], wanted=args.layers)
    with whole_folder(args.out, replace=True) as folder:
        shutil.copytree(args.model, folder, dirs_exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | {"n_layer": args.layers}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
