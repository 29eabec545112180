"""Token ids of OpenAI's cl100k_base encoding back to text: what LangChain and others send instead of text.

Invariant: decoding equals tiktoken's `decode`, without tiktoken and without a download.
The table beside this file is OpenAI's (MIT, see cl100k_base.LICENSE), repacked: 100,256 length bytes, then the tokens'
bytes, deflated.
Does not know: any model's own ids.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from types import MappingProxyType

ENTRIES = 100_256
SPECIAL = MappingProxyType(
    {
        100_257: b"<|endoftext|>",
        100_258: b"<|fim_prefix|>",
        100_259: b"<|fim_middle|>",
        100_260: b"<|fim_suffix|>",
        100_276: b"<|endofprompt|>",
    }
)


@cache
def table() -> Mapping[int, bytes]:
    """Id → bytes, read once (20 ms)."""
    packed = zlib.decompress(files("udever.server").joinpath("cl100k_base.bin").read_bytes())
    entries: dict[int, bytes] = {}
    start = ENTRIES
    for token_id, length in enumerate(packed[:ENTRIES]):
        entries[token_id] = packed[start : start + length]
        start += length
    return MappingProxyType(entries | SPECIAL)


def decode(token_ids: Sequence[int]) -> str:
    """The text; bytes that are no UTF-8 (a list cut inside a character) become U+FFFD.

    Raises:
        KeyError: an id that cl100k_base does not have.
    """
    entries = table()
    return b"".join([entries[token_id] for token_id in token_ids]).decode("utf-8", errors="replace")
