"""Tokenizer files for other programs, in which a text cannot forge a marker and truncation cannot drop one.

    of_role:  text → [BOQ] text [EOQ], by the file itself: any program that reads tokenizer.json gets a role right
    private:  the markers under names that stand in no text, for programs that write them around a text themselves

Invariant: the ids are those of `UdeverTokenizer.encode(…, truncate="end")`.
Does not know: the other programs.
"""

import json
from collections.abc import Mapping
from typing import Any

from udever.errors import TokenizerError
from udever.tokenizer import MARKERS, Role, UdeverTokenizer

GUARD, END = "\ufdd0", "\ufdd1"
"""Around a private marker: code points that Unicode keeps out of texts for good (noncharacters)."""


def private_name(marker: str) -> str:
    """`[BOQ]` as a text cannot write it."""
    return f"{GUARD}{marker}{END}"


def private(tokenizer: UdeverTokenizer, *, role: Role) -> str:
    """The contents of a tokenizer.json that knows the markers by their private names only.

    Args:
        role: whose markers it puts around a text where the program leaves that to it.

    Raises:
        TokenizerError: its model keeps its vocabulary in a way that no BLOOM's does.
    """
    raw = _plain(tokenizer)
    names = {marker: private_name(marker) for pair in MARKERS.values() for marker in pair}
    for token in raw["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = raw["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        raise TokenizerError("the tokenizer's vocabulary is no table of tokens", hint="export a BLOOM's tokenizer")
    raw["model"]["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
    raw["post_processor"] = _around(tokenizer.markers[role], MARKERS[role])
    return json.dumps(raw, ensure_ascii=False)


def of_role(tokenizer: UdeverTokenizer, *, role: Role, max_tokens: int, pad: tuple[int, str]) -> str:
    """The contents of a tokenizer.json that reads every text in one role, cuts it at its end and pads on the left.

    Args:
        max_tokens: both markers included.
        pad: id and token to pad with.
    """
    raw = _plain(tokenizer)
    markers = {marker for pair in MARKERS.values() for marker in pair}
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in markers]
    raw["post_processor"] = _around(tokenizer.markers[role], MARKERS[role])
    raw["truncation"] = {"direction": "Right", "max_length": max_tokens, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": pad[0],
        "pad_type_id": 0,
        "pad_token": pad[1],
    }
    return json.dumps(raw, ensure_ascii=False)


def pad_token(tokenizer: UdeverTokenizer, raw_config: Mapping[str, Any]) -> tuple[int, str]:
    """Id and token to pad with: config.json's, else any special token, as padding is masked anyway."""
    added: dict[int, str] = {token["id"]: token["content"] for token in json.loads(tokenizer.content)["added_tokens"]}
    wanted = raw_config.get("pad_token_id")
    index = wanted if isinstance(wanted, int) and wanted in added else min(added)
    return index, added[index]


def _plain(tokenizer: UdeverTokenizer) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(tokenizer.content)
    raw["truncation"] = raw["padding"] = None
    raw["model"]["dropout"] = None  # training may roll dice, embedding must not
    return raw


def _around(ids: tuple[int, int], names: tuple[str, str]) -> dict[str, Any]:
    """Markers around a text, put there after truncation has made room for them."""
    opening, closing = ({"SpecialToken": {"id": name, "type_id": 0}} for name in names)
    first, second = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
    special = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in zip(names, ids, strict=True)}
    return {
        "type": "TemplateProcessing",
        "single": [opening, first, closing],
        "pair": [opening, first, second, closing],
        "special_tokens": special,
    }
