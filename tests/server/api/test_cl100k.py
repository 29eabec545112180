"""cl100k_base decoded without tiktoken equals tiktoken."""

import random

import pytest

from udever.server import cl100k


@pytest.fixture(scope="module")
def tiktoken_encoding(tiktoken_offline: None) -> object:
    """tiktoken itself has checked OpenAI's hash of the table when this is there."""
    import tiktoken

    return tiktoken.get_encoding("cl100k_base")


def test_every_token_is_the_same(tiktoken_encoding: object) -> None:
    table = cl100k.table()
    assert len(table) == 100_261
    assert all(tiktoken_encoding.decode_single_token_bytes(token_id) == text for token_id, text in table.items())


def test_texts_come_back(tiktoken_encoding: object) -> None:
    for text in ("How tall is K2?", "素早い茶色の狐 🦊", "\x00\n\t  ", "<|endoftext|>", "é" * 1000):
        assert cl100k.decode(tiktoken_encoding.encode(text, allowed_special="all")) == text


def test_ids_cut_inside_a_character_decode_as_tiktoken_decodes_them(tiktoken_encoding: object) -> None:
    for seed in range(200):
        ids = random.Random(seed).choices(range(cl100k.ENTRIES), k=20)
        assert cl100k.decode(ids) == tiktoken_encoding.decode(ids)


@pytest.mark.parametrize("token_id", [-1, 100_256, 100_261, 100_277, 10**30])
def test_an_id_that_does_not_exist(token_id: int) -> None:
    with pytest.raises(KeyError):
        cl100k.decode([5, token_id])
