"""Makes the last model of two passes: their weights' mean, whose last block writes less along the widest axes.

    python recipes/nano/press.py --data D --before W/pressed --model W/runs/seventh/model --out W/last

What whiten.py does to the space before a pass is done to the model after it, without training: the last block's
attention, which writes most of the closing marker's state, gets the map that presses the model's widest axes. Short
sentences of one kind in many languages show best which these are (docs/notebook.md, 2026-11-27).

Invariant: only weights change. Knows no teacher and no dev set.
"""

import argparse
import random
import shutil
from pathlib import Path

import torch
from data import rows
from export import LAYERS
from safetensors.torch import load_file, save_file
from whiten import by_student

from udever.engine.folders import whole_folder

SHARE = 0.6
"""Of the later pass in the mean: what it learned more of it is better at, the earlier one at the rest."""
SENTENCES, AXES = 1000, 32
"""Of each language of STS-B's translations; pressed."""
DENSE = f"h.{LAYERS - 1}.self_attention.dense.weight"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "before", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--share", type=float, default=SHARE)
    args = parser.parse_args()
    before, after = (load_file(folder / "model.safetensors") for folder in (args.before, args.model))
    weights = {name: torch.lerp(before[name], after[name], args.share) for name in after}
    with whole_folder(args.out, replace=True) as folder:
        shutil.copytree(args.model, folder, dirs_exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        _, pressed = by_student(folder, _sentences(args.data / "train"), axes=AXES)
        loudness = weights["ln_f.weight"]  # the map is of what the last norm gives, the block writes what it takes
        weights[DENSE] = (torch.from_numpy(pressed) * loudness / loudness[:, None]) @ weights[DENSE]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _sentences(train: Path) -> list[str]:
    """The first sentence of each pair: many of the second say the same."""
    found: dict[str, list[str]] = {}
    for row in rows(train / "sts_train.tsv.gz"):
        found.setdefault(row["lang"], []).append(row["s1"])
    return [text for texts in found.values() for text in random.Random(1).sample(texts, min(SENTENCES, len(texts)))]


if __name__ == "__main__":
    main()
