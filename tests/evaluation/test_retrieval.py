"""The k best are exact, memory is flat, and a run that was killed goes on where it stood, with the same result."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udever import Embedder
from udever.errors import DimensionsError, EmptyTextError, EvaluationError, OptionError, TextTypeError
from udever.evaluation import retrieval
from udever.evaluation.retrieval import embed_blocks, search, top_k, top_k_of_scores

# ---- the k best ----

whole_numbers = st.integers(-2, 2).map(float)  # their dot products are exact, and often equal


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], int]:
    """Queries, documents, where to cut the documents into blocks, k."""
    dimensions = draw(st.integers(1, 3))

    def matrix(most: int, least: int) -> np.ndarray:
        rows = draw(st.integers(least, most))
        values = draw(st.lists(whole_numbers, min_size=rows * dimensions, max_size=rows * dimensions))
        return np.array(values, np.float32).reshape(rows, dimensions)

    documents = matrix(40, 1)
    cuts = sorted(draw(st.lists(st.integers(0, len(documents)), max_size=5)))
    return matrix(6, 0), documents, cuts, draw(st.integers(1, 45))


@given(problem=problems())
def test_equals_sorting_everything_by_score_then_index(problem: tuple[np.ndarray, np.ndarray, list[int], int]) -> None:
    queries_QD, documents_ND, cuts, k = problem
    scores_QN = queries_QD @ documents_ND.T
    expected = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    for indices, scores in (
        top_k(queries_QD, np.split(documents_ND, cuts), k=k),
        top_k_of_scores(scores_QN, k=k),
    ):
        assert indices.dtype == np.int64
        assert scores.dtype == np.float32
        assert indices.tolist() == expected.tolist()
        assert scores.tolist() == np.take_along_axis(scores_QN, expected, axis=1).tolist()


@pytest.mark.parametrize("tile", [1, 50, 3000])
def test_many_tiles_and_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    generator = np.random.default_rng(0)
    queries_QD = generator.integers(-3, 4, (23, 4)).astype(np.float32)
    documents_ND = generator.integers(-3, 4, (2000, 4)).astype(np.float32)
    monkeypatch.setattr(retrieval, "TILE_SCORES", tile)
    monkeypatch.setattr(retrieval, "BLOCK_TEXTS", 77)
    expected = np.argsort(-(queries_QD @ documents_ND.T), axis=1, kind="stable")
    for k in (1, 10, 1999, 5000):
        indices, _ = top_k(queries_QD, np.array_split(documents_ND, 7), k=k)
        assert (indices == expected[:, :k]).all()


def test_real_numbers_of_all_sizes_and_signs_are_ordered() -> None:
    generator = np.random.default_rng(1)
    magnitude = 10.0 ** generator.uniform(-44, 38, (3, 5000))  # subnormal numbers too
    scores_QN = (magnitude * generator.choice([-1, 1], magnitude.shape)).astype(np.float32)
    scores_QN[:, ::100], scores_QN[:, 1::100] = 0.0, -0.0
    indices, scores = top_k_of_scores(scores_QN, k=5000)
    assert (indices == np.argsort(-scores_QN, axis=1, kind="stable")).all()
    assert (scores == np.take_along_axis(scores_QN, indices, axis=1)).all()


def test_infinite_scores_have_their_place() -> None:
    indices, scores = top_k_of_scores(np.array([[-np.inf, 1.0, np.inf, -np.inf]]), k=4)
    assert indices.tolist() == [[2, 1, 0, 3]]
    assert scores.tolist() == [[np.inf, 1.0, -np.inf, -np.inf]]


def test_no_queries_find_nothing() -> None:
    indices, scores = top_k(np.zeros((0, 3), np.float32), [np.ones((5, 3), np.float32)], k=2)
    assert indices.shape == scores.shape == (0, 2)


def with_hole(rows: int, row: int, value: float) -> np.ndarray:
    vectors = np.ones((rows, 3), np.float32)
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize(
    ("queries_QD", "blocks", "k", "message"),
    [
        (np.ones((2, 3)), [np.ones((4, 3)), with_hole(4, 2, np.nan)], 1, "document 6 holds NaN"),
        (np.ones((2, 3)), [with_hole(4, 0, np.inf)], 1, "document 0 holds NaN or infinity"),
        (with_hole(2, 1, np.nan), [np.ones((4, 3))], 1, "query 1 holds NaN"),
        (np.ones((2, 3)), [np.ones((4, 3)), np.ones((4, 2))], 1, r"document vectors have the shape \(4, 2\); \[n, 3\]"),
        (np.ones(3), [np.ones((4, 3))], 1, r"query vectors have the shape \(3,\)"),
        (np.ones((2, 3)), [np.ones(3)], 1, r"document vectors have the shape \(3,\)"),
        (np.ones((2, 3)), [np.ones((4, 3))], 0, "best 0 documents"),
        (np.ones((2, 3)), [], 1, "no documents"),
        (np.ones((2, 3)), [np.ones((0, 3))], 1, "no documents"),
        (np.full((2, 3), 1e30), [np.full((4, 3), 1e30)], 1, "beyond single precision"),
        (np.full((1, 2), 1e30), [np.array([[1e30, -1e30]])], 1, "beyond single precision"),
    ],
)
def test_what_cannot_be_searched_is_named(queries_QD: Any, blocks: Any, k: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        top_k(queries_QD.astype(np.float32), [block.astype(np.float32) for block in blocks], k=k)


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [([[0.0, np.nan]], 1, "NaN"), ([[1.0]], 0, "best 0"), ([[]], 1, "shape"), ([1.0], 1, "shape")],
)
def test_scores_that_have_no_best_are_named(scores: Any, k: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        top_k_of_scores(np.array(scores), k=k)


def test_progress_passes_over_all_documents(capfd: pytest.CaptureFixture[str]) -> None:
    top_k(np.ones((1, 2), np.float32), [np.ones((3, 2), np.float32)] * 4, k=1, progress=True, total=12)
    assert "12/12" in capfd.readouterr().err


# ---- memory ----

SEARCH_GENERATED = """
import numpy as np
from udever.evaluation.retrieval import top_k

def peak_bytes():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

def blocks(documents):
    generator = np.random.default_rng(0)
    for _ in range(0, documents, 8192):
        yield generator.standard_normal((8192, 384), np.float32)

queries = np.random.default_rng(1).standard_normal((QUERIES, 384), np.float32)
for documents in SIZES:
    top_k(queries, blocks(documents), k=K)
    print(peak_bytes())
"""


def peaks_bytes(*sizes: int, queries: int, k: int) -> list[int]:
    """Peak memory of a fresh process after searching generated corpora of these sizes, one after the other."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    script = SEARCH_GENERATED.replace("QUERIES", str(queries)).replace("SIZES", repr(sizes)).replace("K)", f"{k})")
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in printed.split()]


def test_memory_does_not_grow_with_the_corpus() -> None:
    small, large = peaks_bytes(40_000, 160_000, queries=50, k=100)
    assert large - small < 8 << 20


@pytest.mark.slow
def test_a_million_documents_stay_under_one_and_a_half_gigabytes() -> None:
    hundred_thousand, four_hundred_thousand, million = peaks_bytes(100_000, 400_000, 1_000_000, queries=100, k=1000)
    assert four_hundred_thousand - hundred_thousand < 16 << 20
    assert million < 1_500_000_000


# ---- blocks on disk ----

TEXTS = [f"text number {i} about {'foxes' if i % 3 else 'mountains'}" for i in range(23)]
BLOCK = 4


class Counting:
    """An embedder that notes how many texts it had to embed."""

    def __init__(self, model: Embedder, **instead: Any) -> None:
        self._model = model
        self._instead = instead
        self.embedded = 0

    def __getattr__(self, name: str) -> Any:
        return self._instead[name] if name in self._instead else getattr(self._model, name)

    def embed_iter(self, texts: Iterable[str], *arguments: Any, **keywords: Any) -> Iterator[np.ndarray]:
        def counted() -> Iterator[str]:
            for text in texts:
                self.embedded += 1
                yield text

        return self._model.embed_iter(counted(), *arguments, **keywords)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Embedder:
    return Embedder.load(str(tiny_checkpoint), precision="fp32", device="cpu")


def embedded(model: Any, texts: Iterable[str], folder: Path | None, **options: Any) -> tuple[np.ndarray, int]:
    """All vectors, and how many texts had to be embedded for them."""
    counting = Counting(model)
    blocks = list(embed_blocks(counting, texts, folder=folder, **{"block_texts": BLOCK} | options))  # type: ignore[arg-type]
    return np.concatenate(blocks), counting.embedded


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def test_blocks_are_what_the_embedder_gives(model: Embedder, tmp_path: Path) -> None:
    expected = model.embed(TEXTS, "document")
    for folder in (None, tmp_path, tmp_path):  # the last from disk
        blocks = list(embed_blocks(model, iter(TEXTS), folder=folder, block_texts=BLOCK))
        assert [len(block) for block in blocks] == [4, 4, 4, 4, 4, 3]
        np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-5)
        assert all(block.dtype == np.float32 for block in blocks)


def test_the_role_is_passed_on(model: Embedder, tmp_path: Path) -> None:
    for role in ("query", "document"):
        for folder in (None, tmp_path):
            found, _ = embedded(model, TEXTS, folder, role=role)
            np.testing.assert_allclose(found, model.embed(TEXTS, role), atol=1e-5)
    assert np.abs(model.embed(TEXTS, "query") - model.embed(TEXTS, "document")).max() > 1e-2


def test_a_second_run_embeds_nothing_and_gives_the_same(model: Embedder, tmp_path: Path) -> None:
    first, texts_first = embedded(model, TEXTS, tmp_path)
    second, texts_second = embedded(model, TEXTS, tmp_path)
    assert (texts_first, texts_second) == (len(TEXTS), 0)
    assert (first == second).all()


@settings(max_examples=25)
@given(lost=st.sets(st.integers(0, 5)), broken=st.sets(st.integers(0, 5)))
def test_any_lost_or_broken_blocks_are_made_again_and_only_these(
    model: Embedder, tmp_path_factory: pytest.TempPathFactory, lost: set[int], broken: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    expected, _ = embedded(model, TEXTS, folder)
    file_of = {tuple(np.load(path)[0]): path for path in files(folder)}
    in_order = [file_of[tuple(expected[first])] for first in range(0, len(TEXTS), BLOCK)]
    for number in broken:
        in_order[number].write_bytes(in_order[number].read_bytes()[:-1])
    for number in lost:
        in_order[number].unlink()
    again, texts = embedded(model, TEXTS, folder)
    assert texts == sum(len(TEXTS[n * BLOCK : (n + 1) * BLOCK]) for n in lost | broken)
    assert (again == expected).all()
    assert embedded(model, TEXTS, folder)[1] == 0


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array", "another shape", "another type"])
def test_a_file_that_is_no_whole_block_is_replaced(model: Embedder, tmp_path: Path, content: bytes | str) -> None:
    expected, _ = embedded(model, TEXTS[:BLOCK], tmp_path)
    (path,) = files(tmp_path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, expected[:-1] if content == "another shape" else expected.astype(np.float64))
    again, texts = embedded(model, TEXTS[:BLOCK], tmp_path)
    assert texts == BLOCK
    assert (again == expected).all()


def changed(place: int, text: str) -> list[str]:
    return [*TEXTS[:place], text, *TEXTS[place + 1 :]]


@pytest.mark.parametrize(
    ("texts", "options", "embedded_again"),
    [
        (changed(9, "another text"), {}, BLOCK),
        ([*TEXTS, "one more"], {}, BLOCK),  # the last block grows
        ([TEXTS[0] + TEXTS[1][0], TEXTS[1][1:], *TEXTS[2:]], {}, BLOCK),  # the same characters, cut elsewhere
        (TEXTS[:BLOCK][::-1] + TEXTS[BLOCK:], {}, BLOCK),
        (TEXTS, {"role": "query"}, len(TEXTS)),
        (TEXTS, {"max_tokens": 5}, len(TEXTS)),
        (TEXTS, {"max_tokens": 2048}, 0),  # the model's own limit, said aloud
        (TEXTS, {"dimensions": 64}, 0),  # all of them
        (TEXTS, {"block_texts": BLOCK * 2}, len(TEXTS)),
    ],
)
def test_only_what_changed_is_embedded_again(
    model: Embedder, tmp_path: Path, texts: list[str], options: dict[str, Any], embedded_again: int
) -> None:
    assert (model.max_tokens, model.dimensions) == (2048, 64)
    embedded(model, TEXTS, tmp_path)
    found, count = embedded(model, texts, tmp_path, **options)
    assert count == embedded_again
    keywords = {key: value for key, value in options.items() if key in ("max_tokens", "dimensions")}
    expected = model.embed(texts, options.get("role", "document"), truncate="end", **keywords)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_model_never_gets_these_blocks(model: Embedder, make_checkpoint: Any, tmp_path: Path) -> None:
    other = Embedder.load(str(make_checkpoint(seed=5)), precision="fp32", device="cpu")
    first, _ = embedded(model, TEXTS, tmp_path)
    second, texts = embedded(other, TEXTS, tmp_path)
    assert texts == len(TEXTS)
    assert np.abs(first - second).max() > 0.1
    assert {path.parent.name for path in files(tmp_path)} == {model.fingerprint, other.fingerprint}


def test_dimensions_are_told_apart(tmp_path: Path) -> None:
    nano = Embedder.load("udever-nano", precision="fp32", device="cpu")
    small = nano.matryoshka[0]
    for _ in range(2):
        for dimensions in (small, None):
            found, _ = embedded(nano, TEXTS[:6], tmp_path, dimensions=dimensions)
            np.testing.assert_allclose(found, nano.embed(TEXTS[:6], "document", dimensions=dimensions), atol=1e-5)


def test_long_texts_are_cut_at_the_end(model: Embedder, tmp_path: Path) -> None:
    long = ["word " * 1000, "a b c d e f g h i j"]
    for folder in (None, tmp_path):
        found, _ = embedded(model, long, folder, max_tokens=8)
        np.testing.assert_allclose(found, model.embed(long, "document", max_tokens=8, truncate="end"), atol=1e-5)


def test_an_error_names_the_place_in_the_corpus_not_among_the_missing(model: Embedder, tmp_path: Path) -> None:
    embedded(model, TEXTS, tmp_path)
    for text, error in (("", EmptyTextError), (7, TextTypeError)):
        with pytest.raises(error, match="text 13 is") as caught:
            embedded(model, changed(13, text), tmp_path)  # type: ignore[arg-type]
        assert caught.value.index == 13


def test_wrong_options_are_refused_before_anything_is_read(model: Embedder, tmp_path: Path) -> None:
    def unread() -> Iterator[str]:
        raise AssertionError
        yield

    for folder in (None, tmp_path):
        with pytest.raises(DimensionsError):
            embed_blocks(model, unread(), folder=folder, dimensions=3)
        with pytest.raises(OptionError):
            embed_blocks(model, unread(), folder=folder, block_texts=0)
    assert list(embed_blocks(model, [], folder=tmp_path)) == []


def test_progress_counts_the_blocks_from_disk_too(
    model: Embedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        embedded(model, TEXTS, tmp_path, progress=True)
        assert f"{len(TEXTS)}/{len(TEXTS)}" in capfd.readouterr().err


# ---- interrupted ----

EMBED_AND_DIE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from udever import Embedder
from udever.evaluation.retrieval import embed_blocks

model = Embedder.load(sys.argv[1], precision="fp32", device="cpu")
texts = eval(sys.stdin.read())
moment, renamed, save = sys.argv[3], 0, np.save

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(file, vectors):
    save(file, vectors[:2]); file.flush(); die()

replace = Path.replace
def dying_replace(self, target):
    global renamed
    renamed += 1
    if moment == "before the third rename" and renamed == 3:
        die()
    done = replace(self, target)
    if renamed == 2 and moment == "in the middle of the third file":
        np.save = half
    return done
Path.replace = dying_replace

for number, block in enumerate(embed_blocks(model, texts, folder=Path(sys.argv[2]), block_texts=4), start=1):
    if moment == "after the second block" and number == 2:
        die()
"""


@pytest.mark.parametrize(
    "moment", ["after the second block", "before the third rename", "in the middle of the third file"]
)
def test_a_killed_run_goes_on_where_it_stood(
    model: Embedder, tiny_checkpoint: Path, tmp_path: Path, moment: str
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", EMBED_AND_DIE, str(tiny_checkpoint), str(tmp_path), moment],
        input=repr(TEXTS),
        text=True,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert len([path for path in files(tmp_path) if not path.name.startswith(".")]) == 2
    whole, _ = embedded(model, TEXTS, None)
    resumed, texts = embedded(model, TEXTS, tmp_path)
    assert texts == len(TEXTS) - 2 * BLOCK
    np.testing.assert_allclose(resumed, whole, atol=1e-5)
    queries = model.embed(TEXTS[:5])
    blocks = embed_blocks(model, TEXTS, folder=tmp_path, block_texts=BLOCK)
    assert (top_k(queries, blocks, k=7)[0] == top_k(queries, [whole], k=7)[0]).all()


def test_a_failed_write_leaves_nothing(model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        embedded(model, TEXTS, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_reader_stopping_early_leaves_whole_blocks_only(model: Embedder, tmp_path: Path) -> None:
    blocks = embed_blocks(model, TEXTS, folder=tmp_path, block_texts=BLOCK)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert len(files(tmp_path)) == 1
    assert embedded(model, TEXTS, tmp_path)[1] == len(TEXTS) - BLOCK


def test_a_block_that_vanishes_while_it_waits_is_named(model: Embedder, tmp_path: Path) -> None:
    embedded(model, TEXTS, tmp_path)
    blocks = embed_blocks(model, TEXTS, folder=tmp_path, block_texts=BLOCK)
    next(blocks)
    for path in files(tmp_path):
        path.unlink()
    with pytest.raises(EvaluationError, match="was there and is gone"):
        next(blocks)


# ---- all together ----


def test_search_finds_as_a_full_comparison_does(model: Embedder, tmp_path: Path) -> None:
    queries = ["foxes", "mountains", "text number 7"]
    cosines = model.embed(queries, "query") @ model.embed(TEXTS, "document").T
    for folder in (None, tmp_path, tmp_path):
        indices, scores = search(model, queries, iter(TEXTS), k=5, folder=folder)
        np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :5], atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(cosines, indices, axis=1), scores, atol=1e-5)


def test_search_cuts_long_queries_and_takes_options() -> None:
    nano = Embedder.load("udever-nano", precision="fp32", device="cpu")
    queries, small = ["fox " * 2000], nano.matryoshka[0]
    _, scores = search(nano, queries, TEXTS, k=1, dimensions=small, max_tokens=10)
    options: dict[str, Any] = {"dimensions": small, "max_tokens": 10, "truncate": "end"}
    cosines = nano.embed(queries, "query", **options) @ nano.embed(TEXTS, "document", **options).T
    assert scores[0, 0] == pytest.approx(cosines.max(), abs=1e-5)
