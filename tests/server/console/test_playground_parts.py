"""The playground's arithmetic: map, ranks and their agreement, guests' limits, places of labels, copied requests."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from udever.server.account_errors import RateLimitedError
from udever.server.console.playground.grid import agreement, prefix, rank, sizes
from udever.server.console.playground.guests import TOGETHER, Guests
from udever.server.console.playground.presets import PRESETS
from udever.server.console.playground.projection import project
from udever.server.console.playground.scatter import HEIGHT, WIDTH, place
from udever.server.console.playground.snippets import snippets

NUMBERS = st.floats(-100, 100, width=32).map(lambda x: round(x, 2))
VECTORS = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=NUMBERS)
COSINES = arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.integers(-5, 5).map(lambda x: x / 5)
)


def distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


@given(VECTORS)
def test_the_map_only_brings_vectors_nearer(vectors: np.ndarray) -> None:
    projection = project(vectors)
    assert projection.points.shape == (len(vectors), 2)
    assert (distances(projection.points) <= distances(vectors) + 1e-3).all()
    np.testing.assert_allclose(projection.points.mean(axis=0), 0, atol=1e-6)
    first, second = projection.kept
    assert 0 <= second <= first + 1e-9
    assert first + second <= 1 + 1e-9


@given(VECTORS, st.randoms())
def test_the_map_does_not_depend_on_the_order(vectors: np.ndarray, random: object) -> None:
    order = list(range(len(vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    plain, mixed = project(vectors), project(vectors[order])
    np.testing.assert_allclose(plain.kept, mixed.kept, atol=1e-6)
    gap = plain.kept[0] - plain.kept[1], plain.kept[1] - (1 - sum(plain.kept))
    if min(gap) > 0.05:  # else the axes themselves are open: any turn of them is as good
        np.testing.assert_allclose(plain.points[order], mixed.points, atol=1e-4)


@given(arrays(np.float64, (7, 2), elements=NUMBERS), st.integers(2, 9), st.integers(0, 99))
def test_what_lies_on_a_plane_is_drawn_as_it_is(points: np.ndarray, width: int, seed: int) -> None:
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0][:2]
    projection = project(points @ axes + 3.0)
    np.testing.assert_allclose(distances(projection.points), distances(points), atol=1e-3)
    assert sum(projection.kept) == pytest.approx(1 if np.ptp(points, axis=0).any() else 0, abs=1e-6)


def test_one_text_and_equal_texts_have_a_map() -> None:
    for vectors in ([[1.0, 2.0, 3.0]], [[0.1, 0.2]] * 5):
        assert not project(np.float32(vectors)).points.any()
        assert project(vectors).kept == (0, 0)


@given(COSINES, COSINES)
def test_agreement_is_scipys(a: np.ndarray, b: np.ndarray) -> None:
    shape = min(len(a), len(b)), min(a.shape[1], b.shape[1])
    a, b = a[: shape[0], : shape[1]], b[: shape[0], : shape[1]]
    found = agreement(a, b)
    rows = [(x, y) for x, y in zip(a, b, strict=True) if len({*x}) > 1 and len({*y}) > 1]
    if not rows:
        assert found.kendall is None
        assert found.spearman is None
        return
    assert found.kendall == pytest.approx(np.mean([stats.kendalltau(x, y).statistic for x, y in rows]), abs=1e-6)
    assert found.spearman == pytest.approx(np.mean([stats.spearmanr(x, y).statistic for x, y in rows]), abs=1e-6)
    assert found.best_kept == sum(int(x.argmax()) == int(y.argmax()) for x, y in zip(a, b, strict=True))


@given(COSINES)
def test_ranks(cosines: np.ndarray) -> None:
    for row, ranks in zip(cosines, rank(cosines), strict=True):
        assert sorted(ranks) == list(range(1, len(row) + 1))
        for i, j in combinations(range(len(row)), 2):
            assert (ranks[i] < ranks[j]) == (row[i] >= row[j])
    assert agreement(cosines, cosines).best_kept == len(cosines)


def test_a_prefix_has_unit_length_and_a_size_is_made_of_prefixes() -> None:
    random = np.random.default_rng(7)
    queries, documents = (prefix(random.normal(size=(n, 8)).astype(np.float32), 8) for n in (3, 5))
    half, full = sizes(queries, documents, dimensions=[4, 8])
    cut = queries[:, :4] / np.linalg.norm(queries[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(prefix(queries, 4), cut, atol=1e-7)
    np.testing.assert_allclose(half.cosines, cut @ prefix(documents, 4).T, atol=1e-6)
    np.testing.assert_allclose(full.cosines, queries @ documents.T, atol=1e-6)
    assert full.agreement.best_kept == 3
    assert full.agreement.kendall == full.agreement.spearman == pytest.approx(1)
    assert not prefix(np.zeros((1, 4), np.float32), 2).any()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def allowed(guests: Guests, address: str | None, *, tokens: int = 0) -> bool:
    try:
        guests.admit(address, tokens=tokens)
    except RateLimitedError:
        return False
    return True


def test_a_guest_has_so_many_requests_a_minute() -> None:
    clock = Clock()
    guests = Guests(requests_per_minute=3, clock=clock)
    assert [allowed(guests, "10.0.0.1") for _ in range(4)] == [True, True, True, False]
    assert allowed(guests, "10.0.0.2")
    clock.now += 21
    assert [allowed(guests, "10.0.0.1") for _ in range(2)] == [True, False]


def test_a_household_is_one_guest_and_so_is_a_client_without_an_address() -> None:
    guests = Guests(requests_per_minute=1, clock=Clock())
    assert allowed(guests, "2001:db8::1")
    assert not allowed(guests, "2001:db8::2")
    assert allowed(guests, "2001:db8:0:1::1")
    assert allowed(guests, None)
    assert not allowed(guests, "testclient")


def test_a_guest_has_so_many_tokens_a_minute_and_a_refusal_takes_nothing() -> None:
    guests = Guests(requests_per_minute=2, tokens_per_minute=100, clock=Clock())
    assert not allowed(guests, "10.0.0.1", tokens=101)
    assert allowed(guests, "10.0.0.1", tokens=60)
    assert not allowed(guests, "10.0.0.1", tokens=60)
    assert allowed(guests, "10.0.0.1", tokens=40)
    assert not allowed(guests, "10.0.0.1")
    with pytest.raises(RateLimitedError) as refused:
        guests.admit("10.0.0.2", tokens=101)
    assert not refused.value.retryable
    with pytest.raises(RateLimitedError) as refused:
        guests.admit("10.0.0.1", tokens=90)
    assert refused.value.retryable
    assert refused.value.retry_after_seconds > 0


def test_all_guests_together_have_a_limit() -> None:
    guests = Guests(requests_per_minute=1, clock=Clock())
    assert sum(allowed(guests, f"10.0.0.{i}") for i in range(100)) == TOGETHER


def test_a_crowd_takes_no_more_memory() -> None:
    guests = Guests(requests_per_minute=9, clock=Clock(), max_windows=10)
    assert all(allowed(guests, f"10.0.0.{i}") for i in range(100))
    assert len(guests) == 10


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0, 30)), max_size=60))
def test_memory_is_bounded_and_limits_hold_all_the_same(visits: list[tuple[int, float]]) -> None:
    clock = Clock()
    guests = Guests(requests_per_minute=2, clock=clock, max_windows=10)
    for number, later in visits:
        clock.now += later
        allowed(guests, f"10.0.{number // 256}.{number % 256}")
        assert len(guests) <= 10
    clock.now += 61
    guests.admit("10.9.9.9")
    assert len(guests) == 2  # its own and everyone's: whose windows are full again is forgotten


@given(arrays(np.float64, st.tuples(st.integers(1, 40), st.just(2)), elements=NUMBERS))
def test_points_and_labels_lie_in_the_picture_and_keep_their_shape(points: np.ndarray) -> None:
    spots = place(points, [f"D{i}" for i in range(len(points))])
    drawn = np.array([(spot.x, -spot.y) for spot in spots])
    assert all(0 < spot.x < WIDTH and 0 < spot.y < HEIGHT for spot in spots)
    assert all(0 < spot.label_x < WIDTH and 0 < spot.label_y < HEIGHT for spot in spots)
    real, shown = distances(points), distances(drawn)
    if real.any():
        scale = shown.max() / real.max()
        np.testing.assert_allclose(shown, real * scale, atol=0.5)


def test_labels_keep_apart_where_there_is_room() -> None:
    spots = place(np.array([[0.0, 0.0], [0.001, 0.0], [1.0, 1.0]]), ["Q1", "D1", "D2"])
    first, second = spots[:2]
    assert abs(first.label_x - second.label_x) >= 16 or abs(first.label_y - second.label_y) >= 15


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=1, max_size=4), st.booleans())
def test_texts_stand_in_requests_as_strings_only(texts: list[str], key: bool) -> None:
    made = {s.title: s for s in snippets(texts, texts, base_url="http://x", model="m", key=key)}
    assert made.keys() == {"curl", "Python", "JavaScript"}
    parts = [snippet.text(64) for snippet in made.values()]
    assert all(("UDEVER_KEY" in part) == key for part in parts if "UDEVER_KEY" not in "".join(texts))
    compile(made["Python"].text(64), "copied", "exec")
    bodies = made["curl"].text(64).split("<<'JSON'\n")[1:]
    for body in bodies:
        read = json.loads(body.split("\nJSON\n")[0])
        assert read["input"] == texts
        assert read["dimensions"] == 64


def test_presets_are_within_the_limits() -> None:
    from udever.server.console.playground.play import MAX_CHARACTERS, MAX_DOCUMENTS, MAX_QUERIES

    for name, preset in PRESETS.items():
        assert preset.name == name
        assert 1 <= len(preset.queries) <= MAX_QUERIES
        assert 1 <= len(preset.documents) <= MAX_DOCUMENTS
        assert all(len(text) <= MAX_CHARACTERS for text in (*preset.queries, *preset.documents))
