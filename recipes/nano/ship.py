"""Makes the folder that ships of a trained model: weights in int8 and fp16, card.md and udever.json with the scores.

    python recipes/nano/ship.py --model W/best --results W/results --out src/udever/builtin/udever-nano
    python recipes/nano/ship.py --results W/results --out src/udever/builtin/udever-nano-code    # the scores alone

Invariant: the scores are those of the weights that ship: `udever evaluate suite` ran on this folder's fingerprint.
Does not know: how the model was trained.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from udever import Embedder
from udever.engine.folders import whole_file
from udever.evaluation.results import Result, read, walk
from udever.model.config import TABLE

PROTOCOLS = {
    "stsb-dev": "STS-B dev, Spearman x 100, 1500 pairs a language, query on both sides",
    "flores200": "FLORES-200 dev rows 797-996, accuracy % of xx -> en among 200, query on both sides",
    "ntrex128": "NTREX-128 rows 1497-1996, accuracy % of xx -> en among 500, query on both sides",
    "code": "docstring -> function, MRR x 100 among at most 1000 functions of one package, query -> document",
}
"""A task of dev.toml with parts → what its numbers are."""
OTHERS = {
    "nl2bash": "NL2Bash MRR x 100",
    "cosqa": "CoSQA MRR x 100 among 500",
    "cranfield": "Cranfield nDCG@10 x 100",
    "clinc150": "CLINC150, logistic regression, accuracy %",
}


DELTA_NOTE = (
    "Of the texts only these weights come: whose functions they are, and under which licences, "
    "stands in the card of udever-nano."
)
"""What a run cannot know of its data; for the delta's card, which the run wrote."""


def scores(results: list[Result]) -> dict[str, dict[str, float]]:
    """Protocol → part → the model's number, as `udever.json` holds them."""
    by_task = {result.task: [one for one in result.scores if one.system == "model"] for result in results}
    tables = {
        protocol: {one.subset: round(100 * one.value, 1) for one in by_task[task]}
        for task, protocol in PROTOCOLS.items()
        if task in by_task
    }
    others = {name: round(100 * by_task[task][0].value, 1) for task, name in OTHERS.items() if task in by_task}
    return tables | {"other": others}


def table(found: dict[str, dict[str, float]]) -> str:
    """The scores as Markdown: a heading a protocol, its numbers in a line."""
    lines = []
    for protocol, values in found.items():
        lines += [f"**{protocol}**", "", ", ".join(f"{name} {value:.1f}" for name, value in values.items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Write the folder; without `--results` its weights and files only, to be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.model:
        copy_model(args.model, args.out)
    manifest = json.loads(((args.model or args.out) / "udever.json").read_text("utf-8"))
    if args.results:
        fingerprint = Embedder.load(str(args.out), precision="fp32").fingerprint
        results = [one for one in map(read, walk(args.results)) if one.fingerprint == fingerprint]
        if not results:
            raise SystemExit(f"no result in {args.results} is of {fingerprint}: measure {args.out}")
        manifest["scores"] = scores(results)
    _write(args.out / "udever.json", manifest)
    if args.model:
        card = Path(__file__).with_name("card.md").read_text("utf-8")
        with whole_file(args.out / "README.md") as path:
            path.write_text(card.replace("{scores}", table(manifest["scores"])), "utf-8")
    elif DELTA_NOTE not in (card := (args.out / "README.md").read_text("utf-8")):
        with whole_file(args.out / "README.md") as path:
            path.write_text(card.replace("## Training\n", f"{DELTA_NOTE}\n\n## Training\n", 1), "utf-8")


def copy_model(model: Path, out: Path) -> None:
    """Weights, tokenizer and config.

    A layer norm follows the table, so a row may have any scale: in whole numbers, its loudest 127, it is 0.8 % off.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(model / "model.safetensors")
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    table = weights[TABLE].float()
    loudest = table.abs().amax(1, keepdim=True).clamp_min(1e-30)
    halves[TABLE] = (table / loudest * 127).round().to(torch.int8)
    with whole_file(out / "model.safetensors") as path:
        save_file(halves, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes for the owner only
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, out / name)
    config = json.loads((model / "config.json").read_text("utf-8")) | {"dtype": "float16"}
    config.pop("torch_dtype", None)  # transformers 4's name of it
    _write(out / "config.json", config)


def _write(path: Path, content: dict[str, object]) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
