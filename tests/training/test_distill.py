"""Distillation: the loss by its definition, texts without a teacher's vector, and a whole run towards given vectors."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from udever import Embedder
from udever.errors import ExamplesError, RecipeError, RunChangedError
from udever.tokenizer import UdeverTokenizer
from udever.training import recipe as recipes
from udever.training import run
from udever.training.data.examples import ExampleStore
from udever.training.data.store_writer import TextExample, new_store
from udever.training.distill import PREFIX_WEIGHT, Lesson, Targets, distill_loss, similarity_loss
from udever.training.distributed import world
from udever.training.plot import draw
from udever.training.session import open_session

TEXTS = ("fox", "dog", "mountain", "height", "metres", "lazy", "quick", "brown", "jumps", "null", "self", "args")
RECIPE = """
name = "student"
base = "{base}"
tune = "all"
objective = "distill"
max_tokens = 24
[batch]
size = 6
epochs = 40
[contrast]
negatives = 0
prefixes = [8]
[distill]
targets = "targets"
bank = 8
contrast_weight = {contrast_weight}
[optimizer]
learning_rate = 3e-3
warmup_epochs = 1
[[data]]
path = "pairs"
"""


@pytest.fixture
def data(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Six pairs; the teacher knows both sides of five of them and puts them at one random place each."""
    folder = tmp_path / "data"
    tokenizer = UdeverTokenizer.from_folder(tiny_checkpoint)
    with new_store(folder / "pairs", tokenizer=tokenizer, max_tokens=24, overwrite=True) as writer:
        writer.add([TextExample(TEXTS[i], (TEXTS[i + 6],), (), None, "t", True) for i in range(6)])
    store = ExampleStore.open(folder / "pairs")
    width = Embedder.load(str(tiny_checkpoint)).dimensions
    vectors = np.random.default_rng(0).normal(size=(5, width)).astype(np.float16)
    rows = [TEXTS.index(store.text(text_id)) % 6 for text_id in range(store.text_count)]
    (folder / "targets").mkdir()
    np.save(folder / "targets" / "vectors.npy", vectors)
    np.save(folder / "targets" / "rows-0.npy", np.array([-1 if row == 5 else row for row in rows]))
    return folder


def written(folder: Path, base: Path, contrast_weight: float) -> recipes.Recipe:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(base=base, contrast_weight=contrast_weight))
    return recipes.load(path)


@pytest.mark.parametrize("contrast_weight", [0.0, 0.5])
def test_a_run_brings_both_sides_to_the_teachers_place(
    contrast_weight: float, data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = written(tmp_path, tiny_checkpoint, contrast_weight)
    with open_session(recipe, data=data, precision="fp32") as session, world() as here:
        run.train(session.trainer, tmp_path, world=here, every=1000, callbacks=run.Callbacks())
        model = Embedder.load(str(session.write(tmp_path / "model")))
    teacher = np.load(data / "targets" / "vectors.npy").astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    known = [*range(5), *range(6, 11)]
    vectors = model.embed([TEXTS[i] for i in known], role="query")
    before = Embedder.load(str(tiny_checkpoint)).embed([TEXTS[i] for i in known], role="query")
    aims = np.concatenate([teacher, teacher])
    assert (vectors * aims).sum(1).min() > 0.9 > (before * aims).sum(1).max()


def test_a_run_learns_what_is_near_what_from_a_wider_teacher(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = data / "targets" / "vectors.npy"
    width = np.load(path).shape[1] + 5
    np.save(path, np.random.default_rng(1).normal(size=(5, width)).astype(np.float16))
    text = RECIPE.format(base=tiny_checkpoint, contrast_weight=0.0)
    (tmp_path / "recipe.toml").write_text(text)
    with (
        pytest.raises(ExamplesError, match=f"{width}.*wide") as raised,
        open_session(recipes.load(tmp_path / "recipe.toml"), data=data, precision="fp32", device="cpu"),
    ):
        pass
    assert 'match = "similarities"' in str(raised.value), "the way out"
    (tmp_path / "recipe.toml").write_text(text.replace("bank = 8", "teacher_temperature = 0.2"))
    with pytest.raises(RecipeError, match="teacher_temperature goes with match"):
        recipes.load(tmp_path / "recipe.toml")
    (tmp_path / "recipe.toml").write_text(text.replace("bank = 8", 'match = "similarities"\nteacher_temperature = 0.2'))
    recipe = recipes.load(tmp_path / "recipe.toml")
    with open_session(recipe, data=data, precision="fp32") as session, world() as here:
        run.train(session.trainer, tmp_path, world=here, every=1000, callbacks=run.Callbacks())
        model = Embedder.load(str(session.write(tmp_path / "model")))
    texts = [TEXTS[i] for i in (*range(5), *range(6, 11))]
    trained, before = (found.embed(texts, role="query") for found in (model, Embedder.load(str(tiny_checkpoint))))
    same_place = (np.arange(10) + 5) % 10  # the teacher has both sides of a pair at one place
    nearest = [(vectors @ vectors.T - 9 * np.eye(10)).argmax(1) for vectors in (trained, before)]
    assert (nearest[0] == same_place).all()
    assert (nearest[1] == same_place).mean() < 0.5


def test_other_teacher_vectors_are_other_data(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, tiny_checkpoint, 0.0)
    identities = []
    for _ in range(2):
        with open_session(recipe, data=data, precision="fp32", device="cpu") as session:
            identities.append(session.identity)
        vectors = np.load(data / "targets" / "vectors.npy")
        np.save(data / "targets" / "vectors.npy", -vectors)
    with pytest.raises(RunChangedError, match="data:"):
        identities[1].require_same(identities[0])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("vectors", lambda found: np.where(np.arange(len(found))[:, None] == 3, np.nan, found), "row 3 is not finite"),
        ("rows-0", lambda found: found.astype(np.float32), "holds float32"),
        ("rows-0", lambda found: np.full_like(found, -1), "no text has a vector"),
    ],
)
def test_teacher_vectors_that_teach_nothing_are_named(
    name: str, change: Callable[[Any], Any], said: str, data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = data / "targets" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    with (
        pytest.raises(ExamplesError, match=said),
        open_session(written(tmp_path, tiny_checkpoint, 0.0), data=data, precision="fp32", device="cpu"),
    ):
        pass


def test_texts_that_are_no_pairs_are_kept_out_of_the_contrast(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    text = RECIPE.format(base=tiny_checkpoint, contrast_weight=0.5)
    path.write_text(text + "paired = false\n")
    with pytest.raises(RecipeError, match="paired = false need objective distill and mixing one_task"):
        recipes.load(path)
    watched = []
    for flag in ("true", "false"):
        path.write_text(text.replace("size = 6", 'size = 6\nmixing = "one_task"') + f"paired = {flag}\n")
        with open_session(recipes.load(path), data=data, precision="fp32", device="cpu") as session:
            watched.append(session.trainer.step(0).watched.keys())
    assert watched == [{"cosine", "accuracy"}, {"cosine"}]


def test_texts_without_a_vector_teach_nothing_and_break_nothing() -> None:
    embeddings = torch.randn(4, 6, requires_grad=True)
    targets = F.normalize(torch.randn(4, 6), dim=1)
    targets[1:3] = 0
    bank = F.normalize(torch.randn(5, 6), dim=1)
    lesson = Lesson(targets=targets, bank=bank)
    distill_loss(embeddings, lesson, temperature=0.1, prefixes=(3,))[0].backward()
    assert embeddings.grad is not None
    assert embeddings.grad[1:3].abs().max() == 0 < embeddings.grad[[0, 3]].abs().min()
    empty = Lesson(targets=torch.zeros(4, 6), bank=bank)
    nothing, watched = distill_loss(embeddings, empty, temperature=0.1, prefixes=())
    nothing.backward()
    assert nothing.item() == 0
    assert watched == {}
    assert embeddings.grad.isfinite().all()


@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.05, 1.0]), sharper=st.sampled_from([0.02, 0.5]))
def test_the_loss_of_similarities_by_its_definition(seed: int, temperature: float, sharper: float) -> None:
    numbers = np.random.default_rng(seed)
    students, targets = _unit(numbers.normal(size=(5, 4))), _unit(numbers.normal(size=(5, 7)))
    targets[2] = 0
    known = [0, 1, 3, 4]
    expected = 0.0
    for width, weight in ((2, PREFIX_WEIGHT), (4, 1.0)):
        cut = _unit(students[:, :width])
        for row in known:
            others = [other for other in known if other != row]
            aim = _softmax(targets[others] @ targets[row] / sharper)
            got = _softmax(cut[others] @ cut[row] / temperature)
            divergence = sum(p * math.log(p / q) for p, q in zip(aim, got, strict=True) if p > 0)
            expected += weight * divergence / len(known)
    embeddings = torch.from_numpy(students * 3).requires_grad_()
    turned = np.linalg.qr(numbers.normal(size=(7, 7)))[0]
    for rows in (targets, targets @ turned):  # where the teacher has its texts does not matter
        lesson = Lesson(targets=torch.from_numpy(rows), bank=torch.zeros(0, 7))
        loss, _ = similarity_loss(
            embeddings, lesson, temperature=temperature, teacher_temperature=sharper, prefixes=(2,)
        )
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad[2].abs().max() == 0


@pytest.mark.parametrize("known", [0, 1, 2])
def test_too_few_texts_to_compare_teach_nothing(known: int) -> None:
    embeddings = torch.randn(4, 6, requires_grad=True)
    targets = torch.zeros(4, 6)
    targets[:known] = F.normalize(torch.randn(known, 6), dim=1)
    lesson = Lesson(targets=targets, bank=torch.zeros(0, 6))
    loss, watched = similarity_loss(embeddings, lesson, temperature=0.1, teacher_temperature=0.1, prefixes=())
    loss.backward()
    assert loss.item() == 0
    assert watched == {}


def test_a_step_without_targets_has_a_place_in_the_picture_too(tmp_path: Path) -> None:
    steps = [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 2.0, "cosine": 0.5}, {"step": 3, "loss": 1.0, "cosine": 0.7}]
    assert draw(tmp_path / "loss.svg", steps)
    drawn = (tmp_path / "loss.svg").read_text()
    assert all(f">{name}</text>" in drawn for name in ("loss", "cosine"))


@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.05, 0.1, 1.0]))
def test_the_loss_by_its_definition(seed: int, temperature: float) -> None:
    numbers = np.random.default_rng(seed)
    students, targets, bank = (_unit(numbers.normal(size=(rows, 4))) for rows in (3, 3, 2))
    keys = np.concatenate([targets, bank])
    expected = 0.0
    for width, weight in ((2, PREFIX_WEIGHT), (4, 1.0)):
        for student, target in zip(_unit(students[:, :width]), targets, strict=True):
            own = _unit(target[None, :width])[0]
            aim = _softmax(keys @ target / temperature)
            got = _softmax(_unit(keys[:, :width]) @ student / temperature)
            divergence = sum(p * math.log(p / q) for p, q in zip(aim, got, strict=True) if p > 0)
            expected += weight * (1 - float(student @ own) + divergence) / len(students)
    lesson = Lesson(targets=torch.from_numpy(targets), bank=torch.from_numpy(bank))
    loss, _ = distill_loss(torch.from_numpy(students * 3), lesson, temperature=temperature, prefixes=(2,))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_targets_that_do_not_fit_are_named(data: Path) -> None:
    texts = [ExampleStore.open(data / "pairs").text_count]
    width = np.load(data / "targets" / "vectors.npy").shape[1]
    with pytest.raises(ExamplesError, match=f"is {width + 1} wide|{width + 1}"):
        Targets.open(data / "targets", texts=texts, width=width + 1)
    with pytest.raises(ExamplesError, match="rows-0"):
        Targets.open(data / "targets", texts=[texts[0] + 1], width=width)
    with pytest.raises(ExamplesError, match="rows-1"):
        Targets.open(data / "targets", texts=[*texts, 3], width=width)


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    shares: np.ndarray = powers / powers.sum()
    return shares
