"""Makes the last model of two passes: their weights' mean, whose last block writes less along the widest axes.

    python recipes/nano/press.py --work W --before W/runs/whitened/model --model W/runs/capped/model --out W/pressed

What whiten.py does to the space before a pass is done to the model after it, without training: the last block's
attention, which writes most of the closing marker's state, gets the map that presses the model's widest axes.

Invariant: only weights change. Knows no teacher and no dev set.
"""

import argparse
import shutil
from pathlib import Path

import torch
from export import LAYERS
from safetensors.torch import load_file, save_file
from whiten import by_student

from udever.engine.folders import whole_folder

SHARE = 0.6
"""Of the later pass in the mean: the later one is better at STS, the earlier one at translations."""
DENSE = f"h.{LAYERS - 1}.self_attention.dense.weight"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("work", "before", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    before, after = (load_file(folder / "model.safetensors") for folder in (args.before, args.model))
    weights = {name: torch.lerp(before[name], after[name], SHARE) for name in after}
    with whole_folder(args.out, replace=True) as folder:
        shutil.copytree(args.model, folder, dirs_exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        _, pressed = by_student(folder, args.work / "stores" / "sts")
        loudness = weights["ln_f.weight"]  # the map is of what the last norm gives, the block writes what it takes
        weights[DENSE] = (torch.from_numpy(pressed) * loudness / loudness[:, None]) @ weights[DENSE]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
