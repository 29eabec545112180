"""Writes a checkpoint of train.py as a folder that the product and transformers load; a bag as the BLOOM it begins as.

Does not know: what comes of it (`udever train`, `udever evaluate`).
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizer import BOQ, EOD, EOQ, SPECIAL
from tokenizers import Tokenizer

from model import EPSILON, HEADS, LAYERS, WIDTH, Bag, Bloom
from udever.engine.folders import whole_folder

MAX_TOKENS, PAD = 512, 3


def load(path: Path, entries: int) -> Bloom | Bag:
    """The model of a checkpoint."""
    state = torch.load(path)["model"]
    model = Bloom(entries) if len(state) > 1 else Bag(entries)
    model.load_state_dict(state)
    return model.eval()


def louder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same function, the length channel (see `Bloom.from_bag`) being four times as loud before each projection.

    Whole heads read this faint channel alone; int8 rounds a token by its loudest one: three times the error.
    """
    state = {name: value.clone() for name, value in state.items()}
    for i in range(LAYERS):
        for name in ("weight", "bias"):
            state[f"h.{i}.input_layernorm.{name}"][-1] *= 4
        state[f"h.{i}.self_attention.query_key_value.weight"][:, -1] /= 4
    return state


def configs(entries: int) -> dict[str, dict]:
    """The JSON files of the folder, by name."""
    bloom = {
        "architectures": ["BloomModel"], "model_type": "bloom", "dtype": "float32", "vocab_size": entries,
        "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "seq_length": MAX_TOKENS,
        "layer_norm_epsilon": EPSILON, "initializer_range": 0.02, "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "pretraining_tp": 1,
        "apply_residual_connection_post_layernorm": False, "unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": PAD, "use_cache": True,
    }  # fmt: skip
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL[:4], strict=True))
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", "model_max_length": MAX_TOKENS,
        "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(SPECIAL[BOQ:]),
    }  # fmt: skip
    udever = {
        "name": "udever-nano", "max_tokens": MAX_TOKENS, "matryoshka": [64, 128, WIDTH], "pooling": "closing_marker",
        "markers": {"query": ["[BOQ]", "[EOQ]"], "document": ["[BOD]", "[EOD]"]}, "license": "Apache-2.0",
    }  # fmt: skip
    return {"config.json": bloom, "tokenizer_config.json": tokenizer | names, "udever.json": udever}


def main() -> None:
    """Exports `--work`/NAME.pt to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="distil")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = load(args.work / f"{args.name}.pt", tokenizer.get_vocab_size())
    model = Bloom.from_bag(model, [EOQ, EOD]) if isinstance(model, Bag) else model
    with whole_folder(args.out, replace=True) as folder:
        weights = {name: value.contiguous() for name, value in louder(model.state_dict()).items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        for name, content in configs(tokenizer.get_vocab_size()).items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
