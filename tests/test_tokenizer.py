import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from udever.errors import (
    EmptyTextError,
    NotAnEmbedderError,
    OptionError,
    TextTypeError,
    TokenizerError,
    TooManyTokensError,
)
from udever.tokenizer import MARKERS, ROLES, TRUNCATIONS, UdeverTokenizer

ALL_MARKERS = [marker for pair in MARKERS.values() for marker in pair]
TEXTS = st.text(min_size=1, max_size=60)
"""Any Unicode but surrogates, which are no text."""
WORDS = st.lists(
    st.sampled_from(
        ["how", " tall", "¿Qué", "山", "の", "هو", "ऊँचा", "def f(x):", "\n\t", "  ", "<s>", "<pad>", "</s>", "\0", "。"]
    )
    | TEXTS,
    min_size=1,
).map("".join)
FORGERIES = st.lists(
    st.sampled_from([*ALL_MARKERS, "[BOQ", "]", "[", "EOD", " ", "a", "[[EOQ]]"]), min_size=1, max_size=8
).map("".join)


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer_path: Path) -> UdeverTokenizer:
    return UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)


@pytest.fixture(scope="session")
def reference(tiny_tokenizer_path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer_path))


@pytest.fixture
def rewritten(tiny_tokenizer_path: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """A function: the folder of a copy of the tokenizer whose JSON was changed."""

    def rewrite(change: Callable[[dict[str, Any]], object]) -> Path:
        raw = json.loads(tiny_tokenizer_path.read_text("utf-8"))
        change(raw)
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
        return tmp_path

    return rewrite


def reference_ids(reference: Any, text: str, role: str, max_tokens: int) -> list[int]:
    """The authors' card: truncate to max_tokens - 1, then append the closing marker."""
    opening, closing = MARKERS[role]  # type: ignore[index]
    ids = reference(opening + text, truncation=True, max_length=max_tokens - 1)["input_ids"]
    return [*ids, reference.convert_tokens_to_ids(closing)]


@given(text=WORDS, role=st.sampled_from(ROLES), max_tokens=st.integers(3, 40))
@example(text=" leading", role="query", max_tokens=300)
@example(text="\0", role="document", max_tokens=300)
@example(text=" \n\t ", role="document", max_tokens=300)
@example(text="<s>x</s> <pad>", role="document", max_tokens=300)
def test_ids_equal_the_reference(
    tokenizer: UdeverTokenizer, reference: Any, text: str, role: Any, max_tokens: int
) -> None:
    if any(marker in text for marker in ALL_MARKERS):
        return
    (ids,) = tokenizer.encode([text], role=role, max_tokens=max_tokens, truncate="end")
    assert ids == reference_ids(reference, text, role, max_tokens)


@given(text=FORGERIES | WORDS, role=st.sampled_from(ROLES))
@example(text="… [EOD] …", role="document")
def test_a_text_cannot_forge_a_marker(tokenizer: UdeverTokenizer, text: str, role: Any) -> None:
    (ids,) = tokenizer.encode([text], role=role, max_tokens=10_000)
    marker_ids = [tokenizer.encode(["x"], role=r, max_tokens=9)[0][end] for r in ROLES for end in (0, -1)]
    assert len(set(marker_ids)) == 4
    assert ids[0] == marker_ids[2 * ROLES.index(role)]
    assert ids[-1] == marker_ids[2 * ROLES.index(role) + 1]
    assert not set(ids[1:-1]) & set(marker_ids)


def test_a_marker_in_a_text_keeps_its_characters(tokenizer: UdeverTokenizer, tiny_tokenizer_path: Path) -> None:
    (ids,) = tokenizer.encode(["a[EOD] b"], role="document", max_tokens=100)
    decoded = Tokenizer.from_file(str(tiny_tokenizer_path)).decode(ids, skip_special_tokens=False)
    assert decoded == "[BOD]a[EOD] b[EOD]"


@given(texts=st.lists(WORDS, max_size=5), role=st.sampled_from(ROLES), max_tokens=st.integers(3, 20))
def test_truncation_cuts_the_body_and_never_a_marker(
    tokenizer: UdeverTokenizer, texts: list[str], role: Any, max_tokens: int
) -> None:
    whole = tokenizer.encode(texts, role=role, max_tokens=100_000)
    assert tokenizer.count(texts, role=role) == [len(ids) for ids in whole]
    ends = tokenizer.encode(texts, role=role, max_tokens=max_tokens, truncate="end")
    starts = tokenizer.encode(texts, role=role, max_tokens=max_tokens, truncate="start")
    for full, end, start in zip(whole, ends, starts, strict=True):
        assert len(end) == len(start) == min(len(full), max_tokens)
        assert end == [*full[: max_tokens - 1], full[-1]][: len(full)]
        assert start == [full[0], *full[1:][-(max_tokens - 1) :]]


def test_too_long_names_index_and_both_counts(tokenizer: UdeverTokenizer) -> None:
    texts = ["a", "b c d e f g"]
    tokens = tokenizer.count(texts, role="query")[1]
    assert tokenizer.encode(texts, role="query", max_tokens=tokens)
    with pytest.raises(TooManyTokensError) as caught:
        tokenizer.encode(texts, role="query", max_tokens=tokens - 1)
    assert (caught.value.index, caught.value.tokens, caught.value.max_tokens) == (1, tokens, tokens - 1)
    with pytest.raises(TooManyTokensError, match=r"text 77 has"):
        tokenizer.encode(texts, role="query", max_tokens=tokens - 1, first_index=76)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("", EmptyTextError, "text 7 is empty"),
        (None, TextTypeError, "text 7 is NoneType"),
        (3, TextTypeError, "text 7 is an int"),
        (b"bytes", TextTypeError, "text 7 is a bytes"),
        ("ab\ud800c", TextTypeError, "text 7 has a lone surrogate U[+]D800 at character 2"),
    ],
)
def test_what_is_no_text_is_named_by_index(tokenizer: UdeverTokenizer, value: Any, error: Any, says: str) -> None:
    for call in (tokenizer.count, lambda *a, **k: tokenizer.encode(*a, **k, max_tokens=9)):
        with pytest.raises(error, match=says) as caught:
            call(["fine", value], role="query", first_index=6)
        assert caught.value.index == 7
        assert caught.value.hint
        with pytest.raises(error) as caught:
            call(["fine", "fine", value], role="query")
        assert caught.value.index == 2


def test_one_string_is_no_list(tokenizer: UdeverTokenizer) -> None:
    with pytest.raises(TextTypeError, match="one string"):
        tokenizer.encode("text", role="query", max_tokens=9)


def test_no_texts_no_ids(tokenizer: UdeverTokenizer) -> None:
    assert tokenizer.encode([], role="query", max_tokens=9) == []
    assert tokenizer.count([], role="query") == []


def test_nul_and_white_space_are_ordinary(tokenizer: UdeverTokenizer) -> None:
    counts = tokenizer.count(["\0", " ", "\n", "a\0b"], role="query")
    assert all(count >= 3 for count in counts)
    nul, twice = tokenizer.encode(["a\0b", "ab"], role="query", max_tokens=99)
    assert nul != twice


@pytest.mark.parametrize(
    ("options", "lists"),
    [
        ({"role": "passage"}, ROLES),
        ({"truncate": "middle"}, TRUNCATIONS),
        ({"max_tokens": 2}, ("at least 3",)),
    ],
)
def test_options_that_do_not_exist(tokenizer: UdeverTokenizer, options: dict[str, Any], lists: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        tokenizer.encode(["x"], **{"role": "query", "max_tokens": 9, **options})
    assert all(choice in str(caught.value) for choice in lists)


def test_stored_padding_truncation_and_dropout_are_off(
    tokenizer: UdeverTokenizer, rewritten: Callable[..., Path], tiny_tokenizer_path: Path
) -> None:
    other = Tokenizer.from_file(str(tiny_tokenizer_path))
    other.enable_padding(length=50)
    other.enable_truncation(max_length=4)
    stored = json.loads(other.to_str())
    folder = rewritten(lambda raw: raw.update(padding=stored["padding"], truncation=stored["truncation"]))
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    texts = ["How tall is the mountain?", "a"]
    changed = UdeverTokenizer.from_folder(folder)
    assert changed.encode(texts, role="query", max_tokens=99) == tokenizer.encode(texts, role="query", max_tokens=99)
    assert changed.digest == tokenizer.digest


def test_markers_may_also_stand_in_the_vocabulary(tokenizer: UdeverTokenizer, rewritten: Callable[..., Path]) -> None:
    """As a trainer with the markers among its special tokens writes them (udever-nano)."""

    def change(raw: dict[str, Any]) -> None:
        raw["model"]["vocab"] |= {t["content"]: t["id"] for t in raw["added_tokens"] if t["content"] in ALL_MARKERS}

    changed = UdeverTokenizer.from_folder(rewritten(change))
    texts = ["x [EOD][BOQ] y", "plain"]
    assert changed.vocab_size == tokenizer.vocab_size
    assert changed.encode(texts, role="query", max_tokens=99) == tokenizer.encode(texts, role="query", max_tokens=99)


def test_a_vocabulary_that_spells_a_marker_is_refused(rewritten: Callable[..., Path]) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["model"]["vocab"] |= {t["content"]: t["id"] for t in raw["added_tokens"] if t["content"] in ALL_MARKERS}
        raw["model"]["ignore_merges"] = True

    with pytest.raises(TokenizerError, match="forge"):
        UdeverTokenizer.from_folder(rewritten(change))


@pytest.mark.parametrize("absent", [ALL_MARKERS, ["[EOD]"]])
def test_a_base_model_is_refused(rewritten: Callable[..., Path], absent: list[str]) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in absent]

    with pytest.raises(NotAnEmbedderError, match="base model, not an embedder") as caught:
        UdeverTokenizer.from_folder(rewritten(change))
    assert all(marker in caught.value.message for marker in absent)
    assert caught.value.hint


def test_markers_are_added_to_a_base_model_when_asked(
    tokenizer: UdeverTokenizer, rewritten: Callable[..., Path], tmp_path: Path
) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in ALL_MARKERS]

    base = UdeverTokenizer.from_folder(rewritten(change), add_markers=True)
    # as the published models have them: [BOQ], [EOQ], [BOD], [EOD] behind the last id
    first = tokenizer.vocab_size - 4
    assert base.markers == {"query": (first, first + 1), "document": (first + 2, first + 3)} == tokenizer.markers
    assert (base.digest, base.vocab_size) == (tokenizer.digest, tokenizer.vocab_size)
    texts = ["How tall?", "[EOQ] <s> 山"]
    assert base.encode(texts, role="query", max_tokens=99) == tokenizer.encode(texts, role="query", max_tokens=99)
    (tmp_path / "tokenizer.json").write_text(base.content, "utf-8")
    assert UdeverTokenizer.from_folder(tmp_path).digest == tokenizer.digest


def test_markers_that_are_there_stay_where_they_are(tokenizer: UdeverTokenizer, rewritten: Callable[..., Path]) -> None:
    same = UdeverTokenizer.from_folder(rewritten(lambda raw: None), add_markers=True)
    assert (same.markers, same.digest) == (tokenizer.markers, tokenizer.digest)
    with pytest.raises(NotAnEmbedderError, match="EOD"):  # some of them: not a base model, but a broken one
        UdeverTokenizer.from_folder(rewritten(lambda raw: raw["added_tokens"].pop()), add_markers=True)


def test_a_marker_that_eats_white_space_is_refused(rewritten: Callable[..., Path]) -> None:
    with pytest.raises(TokenizerError, match="strips white space"):
        UdeverTokenizer.from_folder(
            rewritten(lambda raw: [t.update(rstrip=True) for t in raw["added_tokens"] if t["content"] == "[BOQ]"])
        )


def test_added_tokens_behind_the_markers_are_refused(rewritten: Callable[..., Path]) -> None:
    def change(raw: dict[str, Any]) -> None:
        last = raw["added_tokens"][-1]
        raw["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<late>"})

    with pytest.raises(TokenizerError, match="<late>"):
        UdeverTokenizer.from_folder(rewritten(change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"\0" * 64])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        UdeverTokenizer.from_folder(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json in"):
        UdeverTokenizer.from_folder(tmp_path)


def test_vocab_size_is_the_largest_id_plus_one(
    tokenizer: UdeverTokenizer, reference: Any, rewritten: Callable[..., Path]
) -> None:
    assert tokenizer.vocab_size == max(reference.get_vocab().values()) + 1
    with_gap = rewritten(lambda raw: raw["model"]["vocab"].update({"gap": 900}))
    assert UdeverTokenizer.from_folder(with_gap).vocab_size == 901


def test_digest_is_of_the_content_not_of_the_file(tokenizer: UdeverTokenizer, rewritten: Callable[..., Path]) -> None:
    def relayout(raw: dict[str, Any]) -> None:
        """As another release of tokenizers would write the same."""
        raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]
        raw["model"] = {key: value for key, value in reversed(raw["model"].items()) if value is not False}
        raw.update(decoder=None, post_processor=None)

    assert UdeverTokenizer.from_folder(rewritten(relayout)).digest == tokenizer.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["model"]["merges"].pop(),
        lambda raw: raw["model"]["vocab"].update({"new": 900}),
        lambda raw: raw.update(normalizer={"type": "Lowercase"}),
        lambda raw: raw["pre_tokenizer"]["pretokenizers"].pop(0),
        lambda raw: raw["added_tokens"].pop(0),
    ],
)
def test_digest_tells_tokenizers_apart(
    tokenizer: UdeverTokenizer, rewritten: Callable[..., Path], change: Callable[[dict[str, Any]], object]
) -> None:
    assert UdeverTokenizer.from_folder(rewritten(change)).digest != tokenizer.digest


def test_threads_may_share_one(tokenizer: UdeverTokenizer) -> None:
    texts = [f"text {i} of thread" for i in range(200)]
    expected = tokenizer.encode(texts, role="query", max_tokens=99)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: tokenizer.encode(texts, role="query", max_tokens=99), range(32)))
    assert all(result == expected for result in results)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_program_started_after_encoding_warns_of_nothing(tiny_tokenizer_path: Path) -> None:
    """tokenizers warns when a process forks after it used threads; starting a program must not set that off."""
    done = run_python(
        """
        import subprocess, sys
        from pathlib import Path
        from udever.tokenizer import UdeverTokenizer
        tokenizer = UdeverTokenizer.from_folder(Path(sys.argv[1]))
        tokenizer.encode(["a", "b"] * 100, role="query", max_tokens=9)
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        tokenizer.encode(["a", "b"] * 100, role="query", max_tokens=9)
        """,
        tiny_tokenizer_path.parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_encodes_the_same(tokenizer: UdeverTokenizer) -> None:
    texts = ["a", "b"] * 100
    expected = tokenizer.encode(texts, role="query", max_tokens=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12 on fork beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if tokenizer.encode(texts, role="query", max_tokens=9) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
