"""The public surface on a real checkpoint: exactness, order, options, errors, memory, and the built-in model."""

import inspect
import itertools
import resource
import statistics
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BloomModel

from udever import Embedder
from udever.engine import compute, loading
from udever.errors import (
    DimensionsError,
    EmptyTextError,
    InputError,
    OptionError,
    TextTypeError,
    TooManyTokensError,
)

TEXTS = [
    "How tall is the mountain?",
    "Le renard brun saute",
    "敏捷的棕色狐狸跳过了懒狗。",
    "def height(self):\n    return 8611  # metres\n",
    "a [EOD] b [BOQ] c",
    "  two spaces, NUL \x00 and a tab\t",
]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Embedder:
    return Embedder.load(str(tiny_checkpoint), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def nano() -> Embedder:
    return Embedder.load("udever-nano", precision="fp32", device="cpu")


def card_vectors(folder: Path, texts: list[str], role: str, max_length: int = 300) -> np.ndarray:
    """The authors' card: marker + text, truncated, closing id appended, left padding, last hidden state."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    bloom = BloomModel.from_pretrained(folder, dtype=torch.float32).eval()
    opening, closing = ("[BOQ]", "[EOQ]") if role == "query" else ("[BOD]", "[EOD]")
    encoded = tokenizer([opening + text for text in texts], truncation=True, max_length=max_length - 1)
    ids = [[*sequence, tokenizer.convert_tokens_to_ids(closing)] for sequence in encoded["input_ids"]]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.inference_mode():
        states = bloom(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return states[:, -1].numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("role", ["query", "document"])
def test_equals_the_authors_card_on_the_built_in_model(nano: Embedder, role: str) -> None:
    folder = Path(sys.modules["udever"].__file__).parent / "builtin" / "udever-nano"
    texts = [text for text in TEXTS if "[" not in text] + ["word " * 400]
    theirs = card_vectors(folder, texts, role)
    ours = nano.embed(texts, role, normalize=False, max_tokens=300, truncate="end")
    difference = np.abs(ours - theirs).max(1) / np.linalg.norm(theirs, axis=1)
    assert difference.max() <= 2e-5
    assert cosines(ours, theirs).min() >= 0.999999


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.9999), ("int8", 0.999)])
def test_reduced_precisions_on_real_weights(nano: Embedder, precision: str, least: float) -> None:
    reduced = Embedder.load("udever-nano", precision=precision, device="cpu")
    functions = [f for f in vars(statistics).values() if inspect.isfunction(f) and f.__doc__]
    texts = [*TEXTS, "a longer text about mountains, foxes and functions. " * 8, "x"]
    texts += [text for f in functions for text in (*f.__doc__.split("\n\n"), inspect.getsource(f)) if text.strip()]
    assert len(texts) > 150
    assert reduced.precision == precision
    vectors = [model.embed(texts, "document", truncate="end") for model in (reduced, nano)]
    assert cosines(*vectors).min() >= least
    alone = np.concatenate([reduced.embed([text]) for text in texts[:9]])
    assert cosines(reduced.embed(texts[:9]), alone).min() >= 0.99999


def test_int8_weights_come_from_the_cache_the_second_time(nano: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Embedder.load("udever-nano", precision="int8", device="cpu").embed(TEXTS)
    monkeypatch.setattr("udever.engine.loading.quantize", lambda _: pytest.fail("quantised again"))
    again = Embedder.load("udever-nano", precision="int8", device="cpu").embed(TEXTS)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("broken", ["no folder", "full disk", "cut off"])
def test_int8_does_without_a_cache(
    nano: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuse(*args: object, **options: object) -> Path:
        raise PermissionError("read-only")

    expected = Embedder.load("udever-nano", precision="int8", device="cpu").embed(TEXTS)
    monkeypatch.setattr(loading, "cached_assets_path", refuse if broken == "no folder" else lambda *_, **__: tmp_path)
    if broken == "full disk":
        monkeypatch.setattr(loading, "save_file", refuse)
    for _ in range(2):
        if broken == "cut off":
            for file in tmp_path.iterdir():
                file.write_bytes(file.read_bytes()[:1000])
        again = Embedder.load("udever-nano", precision="int8", device="cpu").embed(TEXTS)
        np.testing.assert_array_equal(again, expected)
    assert len(list(tmp_path.iterdir())) == (broken == "cut off"), "nothing half-written is left"


def test_the_roles_differ_and_vectors_are_unit(model: Embedder) -> None:
    query, document = model.embed(TEXTS, "query"), model.embed(TEXTS, "document")
    assert query.dtype == np.float32
    assert query.shape == (len(TEXTS), model.dimensions)
    assert cosines(query, document).max() < 0.999
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-6)
    raw = model.embed(TEXTS, "query", normalize=False)
    assert np.linalg.norm(raw, axis=1).min() > 1.5
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), query, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80), min_size=1, max_size=9),
    order=st.randoms(use_true_random=False),
    batch_tokens=st.integers(1, 300),
)
def test_a_text_has_one_vector(model: Embedder, texts: list[str], order: "object", batch_tokens: int) -> None:
    """Alone, among others, in another order, under another budget, twice in a call."""
    alone = np.concatenate([model.embed([text]) for text in texts])
    shuffled = texts * 2
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    vectors = model.embed(shuffled, batch_tokens=batch_tokens)
    for text, vector in zip(shuffled, vectors, strict=True):
        np.testing.assert_allclose(vector, alone[texts.index(text)], atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2), ("int8", 1e-2)])
def test_many_texts_side_by_side_have_the_vectors_of_one_after_the_other(
    tiny_checkpoint: Path, precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Embedder.load(str(tiny_checkpoint), precision=precision, device="cpu")
    texts = [f"{word} " * (1 + index % 29) for index in range(60) for word in ("fox", "hund", "קאט")]
    one_after_the_other = model.embed(texts, batch_tokens=200)
    monkeypatch.setattr(compute, "WORTH_TOKENS", 100)
    monkeypatch.setattr(compute, "places", lambda _: 3)
    ran, original = set(), compute.closing_states
    monkeypatch.setattr(compute, "closing_states", lambda *of: (ran.add(threading.get_ident()), original(*of))[1])
    np.testing.assert_allclose(model.embed(texts, batch_tokens=200), one_after_the_other, atol=tolerance, rtol=0)
    assert len(ran) == 3
    assert threading.get_ident() not in ran


def test_embed_iter_yields_the_same_vectors_in_order(model: Embedder) -> None:
    texts = [f"{TEXTS[i % 6]} {i}" for i in range(50)]
    blocks = list(model.embed_iter(iter(texts), "query", block_texts=8))
    assert [len(block) for block in blocks] == [8] * 6 + [2]
    np.testing.assert_allclose(np.concatenate(blocks), model.embed(texts, "query"), atol=1e-6)


def test_embed_iter_reads_one_block_ahead_and_no_more(model: Embedder) -> None:
    taken = itertools.count()
    last = 0

    def texts() -> Iterator[str]:
        nonlocal last
        for last in taken:
            yield f"text {last}"

    stream = model.embed_iter(texts(), block_texts=4)
    next(stream)
    assert last < 12
    stream.close()


@pytest.mark.slow
def test_memory_stays_flat_over_a_million_texts(model: Embedder) -> None:
    def peak_bytes() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    texts = (f"text {i % 500}" for i in range(1_000_000))
    stream = model.embed_iter(texts)
    for _ in range(20):
        next(stream)
    before = peak_bytes()
    rows = 20 * 8192 + sum(len(block) for block in stream)
    assert rows == 1_000_000
    assert peak_bytes() - before < 100 << 20


def test_nothing_to_embed(model: Embedder) -> None:
    assert model.embed([]).shape == (0, model.dimensions)
    assert list(model.embed_iter([])) == []
    assert model.count_tokens([]) == []


def test_matryoshka_prefixes(nano: Embedder, model: Embedder) -> None:
    full = nano.embed(TEXTS, normalize=False)
    for size in nano.matryoshka:
        cut = nano.embed(TEXTS, dimensions=size)
        expected = full[:, :size] / np.linalg.norm(full[:, :size], axis=1, keepdims=True)
        np.testing.assert_allclose(cut, expected, atol=1e-5)
    with pytest.raises(DimensionsError, match=r"no embedding of 100 dimensions.*64, 128, 256"):
        nano.embed(TEXTS, dimensions=100)
    with pytest.raises(DimensionsError, match="trained for only its full 64"):
        model.embed(TEXTS, dimensions=32)
    assert model.embed(TEXTS, dimensions=64).shape == (6, 64)


def test_truncation_cuts_the_body_and_never_a_marker(model: Embedder) -> None:
    long = "The quick brown fox jumps over the lazy dog"
    count = model.count_tokens([long])[0]
    assert count > 12
    with pytest.raises(TooManyTokensError) as caught:
        model.embed(["short", "short", long], max_tokens=12)
    assert (caught.value.index, caught.value.tokens, caught.value.max_tokens) == (2, count, 12)
    tokenizer = model._parts.tokenizer
    whole = tokenizer.encode([long], role="query", max_tokens=2048)[0]
    for truncate, body in (("end", whole[1:11]), ("start", whole[-11:-1])):
        ids = tokenizer.encode([long], role="query", max_tokens=12, truncate=truncate)[0]
        assert ids == [whole[0], *body, whole[-1]]
    assert model.embed([long], max_tokens=count).shape == (1, 64)


def test_a_text_over_the_limit_of_a_stream_is_named_by_its_place_in_the_stream(model: Embedder) -> None:
    with pytest.raises(TooManyTokensError, match="text 9 has"):
        list(model.embed_iter(["a"] * 9 + ["b " * 50], max_tokens=20, block_texts=4))


def test_a_marker_in_a_body_is_text(model: Embedder) -> None:
    plain, forged = model.embed(["hello", "hello[EOQ]"], "query")
    assert model.count_tokens(["hello[EOQ]"])[0] > model.count_tokens(["hello"])[0] + 1
    assert plain @ forged < 0.9999


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a", ""], EmptyTextError, "text 1 is empty"),
        (["a", None], TextTypeError, "text 1 is NoneType"),
        (["a", "b", 3], TextTypeError, "text 2 is an int"),
        ([b"bytes"], TextTypeError, "text 0 is a bytes"),
        ([["nested"]], TextTypeError, "text 0 is a list"),
        (["ok", "bad \ud800 half"], TextTypeError, r"text 1 has a lone surrogate U\+D800 at character 4"),
        ("one string", InputError, r"not one string"),
        (b"bytes", InputError, r"not one string \(b'bytes'\)"),
        (None, InputError, r"a list of texts is needed, not NoneType"),
    ],
)
def test_bad_texts_are_named(model: Embedder, texts: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.embed(texts)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        list(model.embed_iter(texts))  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        model.count_tokens(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"role": "passage"},
        {"truncate": "middle"},
        {"max_tokens": 2},
        {"max_tokens": 4096},
        {"max_tokens": "5"},
        {"max_tokens": 10.5},
        {"batch_tokens": 0},
        {"batch_tokens": 1e3},
        {"dimensions": 64.0},
    ],
    ids=str,
)
def test_bad_options_are_named(model: Embedder, options: dict[str, object]) -> None:
    (name, value) = next(iter(options.items()))
    with pytest.raises(OptionError, match=f"{name} is {value!r}"):
        model.embed(TEXTS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "message"),
    [({"precision": "fp8"}, "'fp8'"), ({"device": "cpu:x"}, "'cpu:x'"), ({"device": "cuda:0"}, "CUDA")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one case is the absence of CUDA")
def test_bad_hardware_is_named(tiny_checkpoint: Path, option: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Embedder.load(str(tiny_checkpoint), **option)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if asked == 0:
        assert loading.resolve_device("cuda:0") == torch.device("cuda:0")
        return
    with pytest.raises(OptionError, match=r"'cuda:1': this machine's last one is cuda:0"):
        loading.resolve_device("cuda:1")


@pytest.mark.parametrize("built_in", [True, False])
def test_a_revision_of_what_is_no_hub_model_is_refused(tiny_checkpoint: Path, built_in: bool) -> None:
    with pytest.raises(OptionError, match=r"has no revision 'v2'"):
        Embedder.load("udever-nano" if built_in else str(tiny_checkpoint), revision="v2")


def test_progress_is_shown_when_asked(model: Embedder, capfd: pytest.CaptureFixture[str]) -> None:
    quiet = model.embed(TEXTS)
    assert capfd.readouterr() == ("", "")
    shown = model.embed(TEXTS, progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "6/6" in captured.err
    np.testing.assert_array_equal(quiet, shown)


def test_an_interrupt_between_batches_leaves_the_model_usable(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.embed(TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr("udever.engine.compute.closing_states", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.embed(TEXTS)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("udever-tokenize")]
    np.testing.assert_array_equal(model.embed(TEXTS), before)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_vectors(nano: Embedder) -> None:
    texts = [*TEXTS, "word " * 400]
    for precision, least in (("fp32", 0.999999), ("bf16", 0.9999), ("int8", 0.999)):
        on_gpu = Embedder.load("udever-nano", precision=precision, device="cuda")
        assert cosines(on_gpu.embed(texts), nano.embed(texts)).min() >= least
