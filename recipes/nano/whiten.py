"""Makes the space that the student learns more even: pressed together where plain sentences are widest.

    python recipes/nano/whiten.py --work W                                    # W/stores/targets -> W/stores/whitened
    python recipes/nano/whiten.py --work W --model W/runs/whitened/model      # W/stores/whitened -> W/stores/capped

First by the teacher's own spread (partial whitening, ZCA): its cosines follow human judgement better so. Then by the
student's: what is easy to learn comes out too wide in it, as its other axes shrink by what it cannot tell
(docs/notebook.md, 2026-11-27). Both maps are symmetric: who learned the space before is nearly where the one after is.

Invariant: the same rows stand for the same texts. Knows vectors and stores, no dev set.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pairs import STORES

from udever import Embedder
from udever.engine.folders import whole_folder
from udever.training.data.examples import ExampleStore

SAMPLE = {"sts": 0.7, "pairs": 0.15, "code": 0.15}
"""What the teacher's spread is measured on: the share of each store."""
SAMPLE_ROWS = 30_000
POWER = 0.5
"""0 leaves the space as it is; 1 makes every axis as wide as any other."""
STUDENT_TEXTS, STUDENT_AXES = 18_000, 16
"""How many sentences show the student's spread, and how many of its axes are made as narrow as the next."""

Matrix = NDArray[np.float32]


def by_teacher(source: Path) -> tuple[Matrix, Matrix]:
    """(mean [H], map [H, H]) of the teacher's vectors of sentences."""
    sample = _sampled(source)
    mean = sample.mean(0)
    _, widths, axes = np.linalg.svd(sample - mean, full_matrices=False)
    return mean, (axes.T * (widths / widths.max()) ** -POWER) @ axes


def by_student(model: Path, texts: list[str], *, axes: int = STUDENT_AXES) -> tuple[Matrix, Matrix]:
    """(zero [H], map [H, H]) that makes as many of a student's axes, widest first, as narrow as the next."""
    vectors = Embedder.load(str(model), precision="fp32").embed(texts, role="query", truncate="end", progress=True)
    _, widths, directions = np.linalg.svd(vectors, full_matrices=False)
    return np.zeros(len(directions), np.float32), (directions.T * np.minimum(1, widths[axes] / widths)) @ directions


def _sentences(folder: Path) -> list[str]:
    store = ExampleStore.open(folder)
    return [store.text(row) for row in np.random.default_rng(0).permutation(store.text_count)[:STUDENT_TEXTS].tolist()]


def _sampled(source: Path) -> Matrix:
    vectors, dice = np.load(source / "vectors.npy", mmap_mode="r"), np.random.default_rng(0)
    picked = []
    for store, share in SAMPLE.items():
        rows = np.unique(np.load(source / f"rows-{STORES.index(store)}.npy"))
        picked.append(dice.permutation(rows[rows >= 0])[: int(SAMPLE_ROWS * share)])
    return vectors[np.sort(np.concatenate(picked))].astype(np.float32)


def main() -> None:
    """Write the folder that `[distill] targets` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a student of the whitened space")
    args = parser.parse_args()
    stores = args.work / "stores"
    source, out = ("whitened", "capped") if args.model else ("targets", "whitened")
    mean, even = by_student(args.model, _sentences(stores / "sts")) if args.model else by_teacher(stores / source)
    vectors = (np.load(stores / source / "vectors.npy").astype(np.float32) - mean) @ even
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with whole_folder(stores / out, replace=True) as folder:
        np.save(folder / "vectors.npy", vectors.astype(np.float16))
        for rows in sorted((stores / source).glob("rows-*.npy")):
            shutil.copyfile(rows, folder / rows.name)
    print(f"{len(vectors):,} vectors in {stores / out}")


if __name__ == "__main__":
    main()
