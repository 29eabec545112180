"""A run from its recipe to its delta: killed and resumed, changed, diverged, in two processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec import structs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from udever import Embedder
from udever.catalog.manifests import read_scores
from udever.errors import DivergedError, OptionError, RecipeError, RunChangedError, TrainingError
from udever.tokenizer import UdeverTokenizer
from udever.training import checkpoint, gradcache, run, verify
from udever.training import recipe as recipes
from udever.training import session as sessions
from udever.training.contrastive import Pairing
from udever.training.data.store_writer import TextExample, new_store
from udever.training.memory import kept_bytes
from udever.training.objective import contrastive
from udever.training.recipe import DistillPart, Recipe
from udever.training.session import Session, case, not_certified, open_session, products
from udever.training.step import schedule
from udever.training.verify import certify

WORDS = [
    "fox",
    "dog",
    "mountain",
    "height",
    "metres",
    "lazy",
    "quick",
    "brown",
    "jumps",
    "return",
    "null",
    "self",
    "args",
    "over",
    "while",
    "library",
    "public",
]
STEPS = 12
RECIPE = """
name = "tiny"
base = {base}
max_tokens = 24
[batch]
size = 8
epochs = 2.0
[contrast]
negatives = 1
[optimizer]
learning_rate = {rate}
schedule = "cosine"
[[data]]
path = "pairs"
"""


@pytest.fixture(scope="module")
def data(tiny_tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 examples: a description, the words it is about, and two hard negatives."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)

    def words(seed: int) -> str:
        return " ".join(WORDS[(seed * step + step) % len(WORDS)] for step in range(2, 3 + seed % 9))

    with new_store(folder / "pairs", tokenizer=tokenizer, max_tokens=24, overwrite=True) as writer:
        writer.add(
            [
                TextExample(
                    f"the {words(i)}?", (f"{words(i)} {i}",), (f"no {words(i + 1)}", f"or {i}"), None, "t", False
                )
                for i in range(48)
            ]
        )
    return folder


@pytest.fixture
def recipe_file(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tiny_checkpoint)


def write_recipe(folder: Path, base: Path, *, rate: float = 1e-2) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(base=json.dumps(str(base)), rate=rate))
    return path


@pytest.fixture
def session(recipe_file: Path, data: Path) -> Iterator[Session]:
    with open_session(recipes.load(recipe_file), data=data, precision="fp32", device="cpu") as opened:
        yield opened


def command(recipe_file: Path, data: Path, folder: Path, *flags: str) -> list[str]:
    arguments = ["train", str(recipe_file), "--data", str(data), "--output", str(folder), "--checkpoint-every", "1"]
    return [sys.executable, "-m", "udever", *arguments, "--precision", "fp32", "--device", "cpu", *flags]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def finish(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=300, env=ENVIRONMENT | environment, check=False
    )


def test_a_run_learns_and_its_delta_is_an_embedder(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    done = finish(command(recipe_file, data, tmp_path / "run", "--json", "--tensorboard"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    log = run.read_log(tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (entry["step"], pytest.approx(entry["loss"], rel=1e-6)) for entry in log
    ]
    assert [entry["step"] for entry in log] == list(range(1, STEPS + 1))
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    tuned = Embedder.load(summary["model"], precision="fp32")
    base = Embedder.load(str(recipes.load(recipe_file).base), precision="fp32")
    assert tuned.name == "tiny"
    assert (tuned.max_tokens, tuned.matryoshka) == (base.max_tokens, (tuned.dimensions,))
    assert not (tuned.embed(["the fox"]) == base.embed(["the fox"])).all()
    assert (tmp_path / "run" / "loss.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (1, "task 'rare 0' has 2 examples, fewer than a batch of 8: none is drawn"),
        (
            6,
            "6 tasks have fewer examples than a batch of 8, 27 together: none is drawn "
            "(the largest: 'rare 5' with 7, 'rare 4' with 6, 'rare 3' with 5)",
        ),
    ],
)
def test_tasks_too_small_for_a_batch_are_named(
    recipe_file: Path, data: Path, tmp_path: Path, tasks: int, said: str
) -> None:
    few = tmp_path / "data" / "few"
    tokenizer = UdeverTokenizer.from_folder(Path(recipes.load(recipe_file).base))
    with new_store(few, tokenizer=tokenizer, max_tokens=24) as writer:
        for task in range(tasks):
            for i in range(2 + task):
                writer.add([TextExample(f"fox {i}", (f"dog {i}",), (), None, f"rare {task}", False)])
    text = recipe_file.read_text().replace("epochs = 2.0", 'epochs = 0.2\nmixing = "one_task"')
    pairs = json.dumps(str(data / "pairs"))
    recipe_file.write_text(text.replace('path = "pairs"', f'path = {pairs}\n[[data]]\npath = "few"'))
    done = finish(command(recipe_file, few.parent, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "none is drawn" in line] == [said]


def start_and_kill(arguments: list[str], folder: Path) -> None:
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(run.read_log(folder)) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_kill_and_resume_give_the_same_bytes(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(command(recipe_file, data, whole)).returncode == 0
    start_and_kill(command(recipe_file, data, killed), killed)
    resumed = finish(command(recipe_file, data, killed, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    for name in ("delta.safetensors", "udever.json"):
        assert (whole / "delta" / name).read_bytes() == (killed / "delta" / name).read_bytes()
    without_time = [
        [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.read_log(folder)]
        for folder in (whole, killed)
    ]
    assert without_time[0] == without_time[1]


def test_resumed_with_other_memory_it_ends_with_the_same_bytes(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """Chunks of 35 tokens, to begin with."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(command(recipe_file, data, whole, "--memory", "0.1MB")).returncode == 0
    start_and_kill(command(recipe_file, data, killed, "--memory", "0.1MB"), killed)
    resumed = finish(command(recipe_file, data, killed, "--resume", "--memory", "1GB"))
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((killed / "run.json").read_text())["chunk_tokens"] == 35
    name = Path("delta") / "delta.safetensors"
    assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_gradients_and_moments_leave_less_room_for_activations(
    recipe_file: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("max_tokens", 'tune = "all"\nmax_tokens', 1))
    monkeypatch.setattr(sessions, "free_bytes", lambda _: 5_000_000)
    with open_session(recipes.load(recipe_file), data=data, device="cpu") as session:
        moved = sum(parameter.numel() for parameter in session.trainer.parameters.values())
        room = (5_000_000 - 12 * moved) // 2
        token = kept_bytes(session.base.config, tune="all", recompute=True)
        assert session.moved == session.base.config.parameters  # the markers' rows are not counted twice
    assert 1_000_000 < 12 * moved < 4_000_000
    assert session.identity.chunk_tokens == room // token


def test_a_kill_while_the_log_is_cut_loses_no_score(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "score": 0.75}\n{"step": 1, "loss": 2.5}\n')

    def killed(path: Path, *_: object) -> None:
        path.open("w").close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        run.train(session.trainer, tmp_path, world=session.world, every=1, callbacks=run.Callbacks())
    assert run.read_log(tmp_path) == [{"step": 0, "score": 0.75}, {"step": 1, "loss": 2.5}]


def test_two_processes_train_what_one_does(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert finish(command(recipe_file, data, one)).returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "udever"]
    done = finish([*torchrun, *command(recipe_file, data, two)[3:]])
    assert done.returncode == 0, done.stderr
    # Not the biases: a key's has no gradient but rounding, and AdamW makes a step of the learning rate of that.
    alone, together = ([entry["loss"] for entry in run.read_log(folder)] for folder in (one, two))
    assert together == pytest.approx(alone, rel=1e-4)
    assert Embedder.load(str(two / "delta")).name == "tiny"


def test_a_changed_run_is_refused_with_the_difference(session: Session, tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "run"
    run.begin(folder, session.identity, resume=False)
    with pytest.raises(TrainingError, match="--resume"):
        run.begin(folder, session.identity, resume=False)
    run.begin(folder, session.identity, resume=True)
    changed = recipes.load(write_recipe(tmp_path, Path(session.recipe.base), rate=0.5))
    other = replace(session.identity, recipe=changed, data=("elsewhere",), chunk_tokens=7)
    expected = r"optimizer\.learning_rate: 0\.01 → 0\.5; data: .* → \('elsewhere',\); chunk_tokens: 4096 → 7"
    with pytest.raises(RunChangedError, match=expected):
        run.begin(folder, other, resume=True)
    with pytest.raises(TrainingError, match="no run to resume"):
        run.begin(tmp_path / "nothing", session.identity, resume=True)


def test_a_run_begins_in_no_folder_of_somebody_elses(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """Nor in one whose checkpoints another run made, as it once did."""
    for name in ("delta/thesis.txt", "checkpoints/step-00000004.safetensors"):
        kept = tmp_path / name[0] / name
        kept.parent.mkdir(parents=True)
        kept.write_text("mine")
        done = finish(command(recipe_file, data, tmp_path / name[0]))
        assert (done.returncode, "is not empty and holds no run" in done.stderr) == (1, True)
        assert kept.read_text() == "mine"


def test_a_suite_that_is_not_there_is_said_before_a_run_begins(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + '[evaluate]\nsuite = "none.toml"\nevery_steps = 1\n')
    done = finish(command(recipe_file, data, tmp_path / "run"))
    assert (done.returncode, "none.toml" in done.stderr) == (1, True)
    assert not (tmp_path / "run").exists()


def test_it_goes_on_with_as_many_threads_as_it_began_with(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finish(command(recipe_file, data, folder), OMP_NUM_THREADS="2").returncode == 0
    assert run.Identity.read(folder).threads == 2
    before = (folder / "delta" / "delta.safetensors").read_bytes()
    for left in (folder / "checkpoints").iterdir():
        left.unlink()
    assert finish(command(recipe_file, data, folder, "--resume"), OMP_NUM_THREADS="1").returncode == 0
    assert (folder / "delta" / "delta.safetensors").read_bytes() == before


def test_a_full_disk_is_said_as_such(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    state = checkpoint.state_of(session.trainer.parameters, session.trainer.optimizer)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path / "checkpoints", state, facts=checkpoint.Facts(step=1, processes=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_kill_during_an_evaluation_cannot_leave_it_out(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + '[evaluate]\nsuite = "s.toml"\nevery_steps = 2\n')
    scores = iter([run.Measured(score=0.5), KeyboardInterrupt()])

    def evaluate() -> run.Measured:
        score = next(scores)
        if isinstance(score, BaseException):
            raise score
        return score

    with open_session(recipes.load(recipe_file), data=data, precision="fp32", device="cpu") as session:
        folder = tmp_path / "run"
        folder.mkdir()
        callbacks = run.Callbacks(evaluate=evaluate)
        with pytest.raises(KeyboardInterrupt):
            run.train(session.trainer, folder, world=session.world, every=1, callbacks=callbacks)
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    assert newest.stem == "step-00000003", "step 4 will be done again, and measured"


SUITE = """
name = "few"
[[task]]
kind = "pairs"
name = "same"
file = "same.tsv"
[[task]]
kind = "pairs"
name = "other"
file = "same.tsv"
"""


def test_what_was_measured_stands_in_the_models_own_file(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """Also if the run was killed between its last checkpoint and the model."""
    recipe_file.write_text(recipe_file.read_text() + '[evaluate]\nsuite = "suite.toml"\nevery_steps = 6\n')
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs").symlink_to(data / "pairs")
    rows = "text1\ttext2\tlabel\nthe fox\tfox\t1\nthe dog\tdog\t1\nthe fox\tdog\t0\n"
    (tmp_path / "data" / "same.tsv").write_text(rows)
    folder = tmp_path / "run"
    for flags in ([], ["--resume"]):
        shutil.rmtree(folder / "delta", ignore_errors=True)
        done = finish(command(recipe_file, tmp_path / "data", folder, "--tensorboard", *flags))
        assert done.returncode == 0, done.stderr
        log = [entry for entry in run.read_log(folder) if "score" in entry]
        best = max(log, key=lambda entry: entry["score"])
        for name, entry in (("delta", log[-1]), ("best", best)):
            scores = json.loads((folder / name / "udever.json").read_text())["scores"]
            assert scores == entry["scores"]
            card = (folder / name / "README.md").read_text("utf-8")
            assert f"| steps | {entry['step']} (" in card
            assert all(f"| {task} | {value:g} |" in card for task, value in scores["suite:few, x 100"].items())
            (only,) = read_scores(scores)
            assert only.protocol == "suite:few, x 100"
            assert [task for task, _ in only.scores] == ["same", "other"]
            assert sum(value for _, value in only.scores) / 200 == pytest.approx(entry["score"], abs=1e-4)


def test_a_delta_to_train_on_is_part_of_the_runs_identity(recipe_file: Path, data: Path, tmp_path: Path) -> None:
    """Two deltas under one name, on one full checkpoint."""
    recipe = recipes.load(recipe_file)
    start = tmp_path / "start"
    with open_session(recipe, data=data, precision="fp32", device="cpu") as session:
        weights = session.identity.base
        session.trainer.step(0)
        session.write(start)
        session.trainer.step(1)
        session.write(tmp_path / "other")
    on_delta = recipes.load(write_recipe(tmp_path, start))
    with open_session(on_delta, data=data, precision="fp32", device="cpu") as session:
        run.begin(tmp_path / "run", session.identity, resume=False)
        assert f"`{session.identity.base}`" in session.describe([])
        assert f"`{weights}`" in session.describe([])
    shutil.rmtree(start)
    (tmp_path / "other").rename(start)
    with (
        open_session(on_delta, data=data, precision="fp32", device="cpu") as session,
        pytest.raises(RunChangedError, match="base: "),
    ):
        run.begin(tmp_path / "run", session.identity, resume=True)


def test_matrices_that_move_in_bf16_keep_what_bf16_would_round_away(recipe_file: Path, data: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("max_tokens", 'tune = "last:1"\nmax_tokens', 1))
    recipe = recipes.load(recipe_file)
    recipe = structs.replace(recipe, optimizer=structs.replace(recipe.optimizer, learning_rate=1e-6))
    with (
        pytest.raises(OptionError, match="int8 cannot be trained in"),
        open_session(recipe, data=data, precision="int8", device="cpu"),
    ):
        pass
    with open_session(recipe, data=data, precision="auto", device="cpu") as session:
        assert session.identity.precision == "fp32"
    with open_session(recipe, data=data, precision="bf16", device="cpu") as session:
        assert session.identity.precision == "bf16"
        trainer = session.trainer
        before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
        trainer.step(0)
        weights = [name for name, parameter in trainer.parameters.items() if name.endswith(".weight")]
        assert weights
        for name in weights:
            now = trainer.parameters[name].detach()
            assert now.dtype == torch.float32
            assert (before[name] != before[name].bfloat16()).any(), "the base's own weights, not rounded when loaded"
            assert (now != before[name]).any()
            assert (now.bfloat16() == before[name].bfloat16()).float().mean() > 0.9


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cuda", "fp32", "tf32"), ("cuda", "bf16", "bf16"), ("cpu", "fp32", "fp32"), ("cpu", "bf16", "bf16")],
)
def test_fp32_on_cuda_is_tf32_while_training_runs(device: str, precision: str, expected: str) -> None:
    with products(precision, torch.device(device)) as computed:
        assert computed == expected
        assert (torch.get_float32_matmul_precision() == "high") is (expected == "tf32")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.gpu
@pytest.mark.parametrize("tune", ["bitfit", "all"])
def test_a_step_on_cuda_is_that_of_the_cpu(tune: str, recipe_file: Path, data: Path) -> None:
    """In bf16 on the GPU, its batches made by other processes, against float32 on the CPU."""
    recipe_file.write_text(recipe_file.read_text().replace("max_tokens", f'tune = "{tune}"\nmax_tokens', 1))
    gradients, losses = [], []
    for device, precision in (("cpu", "fp32"), ("cuda", "bf16")):
        with open_session(recipes.load(recipe_file), data=data, precision=precision, device=device) as session:
            trainer = session.trainer
            loss, _ = trainer.gradient(trainer.batches.of(0))
            losses.append(loss.item())
            found = {name: p.grad.double().cpu() for name, p in trainer.parameters.items() if p.grad is not None}
            gradients.append(torch.cat([grad.flatten() for _, grad in sorted(found.items())]))
            trainer.optimizer.zero_grad()
            assert [trainer.step(number).step for number in range(3)] == [1, 2, 3]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.gpu
def test_a_session_on_cuda_is_in_tf32_and_says_so(recipe_file: Path, data: Path) -> None:
    with open_session(recipes.load(recipe_file), data=data, precision="fp32", device="cuda") as session:
        assert session.identity.precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("[contrast]\nprefixes = [0]", "contrast.prefixes"),
        ("[contrast]\nprefixes = [9999]", "wide"),
        ('[evaluate]\nsuite = "s.toml"\nevery_steps = 0', "every_steps"),
    ],
)
def test_numbers_that_cannot_be_are_named_before_the_first_step(
    broken: str, named: str, recipe_file: Path, data: Path
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("[contrast]\nnegatives = 1", "") + broken)
    with (
        pytest.raises(RecipeError, match=named),
        open_session(recipes.load(recipe_file), data=data, precision="fp32", device="cpu"),
    ):
        pass


def test_divergence_stops_before_anything_moves_and_keeps_the_batch(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = session.trainer
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    honest = trainer._objective

    def diverging(embeddings: torch.Tensor, batch: object) -> tuple[torch.Tensor, dict[str, float]]:
        loss, watched = honest(embeddings, batch)
        return (loss * float("nan"), watched)

    monkeypatch.setattr(trainer, "_objective", diverging)
    with pytest.raises(DivergedError, match="step 1: the loss is nan"):
        run.train(trainer, tmp_path, world=session.world, every=1, callbacks=run.Callbacks())
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.parameters.items())
    kept = json.loads((tmp_path / "diverged.json").read_text())
    assert kept["step"] == 1
    assert len(kept["texts"]) == 8 * 3


def test_only_biases_and_markers_move(session: Session, tmp_path: Path) -> None:
    names = set(session.trainer.parameters)
    assert all(name.endswith(".bias") or name == "own_rows.rows" for name in names)
    config = session.base.config
    biases = sum(p.numel() for n, p in session.trainer.parameters.items() if n.endswith(".bias"))
    assert biases == (11 * config.layers + 2) * config.width
    frozen = {n: b.clone() for n, b in session.base.model.named_buffers()}
    session.trainer.step(0)
    assert all(torch.equal(buffer, frozen[n]) for n, buffer in session.base.model.named_buffers())


def test_the_certificate_holds_and_labels_misaligned_on_one_rank_lose_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    certified = case(session, examples=6, max_tokens=24)
    certificates = certify(certified, processes=(1, 2))
    assert len(certificates) == 12
    assert {certificate.temperature for certificate in certificates} == {certified.contrast.temperature}
    assert all(certificate.holds for certificate in certificates), certificates
    assert max(certificate.relative_error for certificate in certificates) <= 1e-6
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # as the processes shall import it, too
    pairing = import_module("misaligned").Misaligned(**vars(certified.batch.pairing))
    wrong = replace(certified, batch=replace(certified.batch, pairing=pairing))
    assert not any(certificate.holds for certificate in certify(wrong, processes=(2,)))
    assert all(certificate.holds for certificate in certify(wrong, processes=(1,))), "there is no rank 1"


def test_the_certificate_of_a_batch_that_is_solved_is_of_a_higher_temperature(session: Session) -> None:
    certified = case(session, examples=4, max_tokens=24)
    solved = replace(certified, contrast=structs.replace(certified.contrast, temperature=1e-3))
    batch = certified.batch
    same = [*batch.sequences[:4], *batch.sequences[:4]]
    solved = replace(solved, batch=replace(batch, sequences=same, pairing=Pairing.from_rows([0, 1, 2, 3], [])))
    certificates = certify(solved, processes=(1,))
    assert all(certificate.holds for certificate in certificates), certificates
    assert all(certificate.temperature > 1e-3 for certificate in certificates)


def test_the_certificate_is_of_several_chunks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(*args: Any) -> list[Any]:
        found = list(chunks(*args))
        counts.append(len(found))
        return found

    chunks = gradcache._chunks
    monkeypatch.setattr(gradcache, "_chunks", counted)
    certify(case(session, examples=6, max_tokens=24), processes=(1,))
    assert min(counts[::2]) >= 3, "of the batch; every other call is of who idles"


@pytest.mark.parametrize("dropped", [{"temperature": 0.1}, {"both_ways": False}, {"prefixes": (32,)}])
def test_the_certificate_is_of_the_recipes_own_loss(
    dropped: dict[str, object], recipe_file: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipe_file.read_text().replace("[contrast]", "[contrast]\nboth_ways = true\nprefixes = [16, 32]")
    recipe_file.write_text(text)
    with open_session(recipes.load(recipe_file), data=data, precision="fp32", device="cpu") as session:
        certified = case(session, examples=6, max_tokens=24)
    assert all(certificate.holds for certificate in certify(certified, processes=(1,)))
    monkeypatch.setattr(verify, "contrastive", lambda part: contrastive(structs.replace(part, **dropped)))
    assert not any(certificate.holds for certificate in certify(certified, processes=(1,)))


def test_the_certificate_says_what_it_does_not_cover(
    recipe_file: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from udever.cli.train import train as train_command

    monkeypatch.setattr(verify, "certify", partial(certify, processes=(1,)))

    def said(*, as_json: bool = False) -> str:
        assert train_command(recipe_file, data=data, verify=True, device="cpu", precision="fp32", as_json=as_json) == 0
        return capsys.readouterr().out

    assert "not covered" not in said()
    recipe_file.write_text(recipe_file.read_text().replace("max_tokens", 'tune = "last:1"\nmax_tokens', 1))
    assert "not covered: the gradients of matrices and norms' weights, which tune 'last:1' moves" in said()
    assert all("tune 'last:1'" in row["not_covered"][0] for row in json.loads(said(as_json=True)))
    with open_session(recipes.load(recipe_file), data=data, precision="fp32", device="cpu") as session:
        distilled = structs.replace(session.recipe, objective="distill", distill=DistillPart(targets="t"))
        uncovered = not_certified(replace(session, recipe=distilled))
    assert uncovered[0].startswith("the distillation loss: ")
    assert len(uncovered) == 2


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("name = 3", "name"),
        ('tune = "some"', "tune"),
        ("surprise = 1", "surprise"),
        ("max_tokens = 2", "max_tokens"),
        ('objective = "distill"', "distill"),
        ('name = ""', "name"),
    ],
)
def test_a_recipe_that_cannot_run_is_named(broken: str, named: str, tmp_path: Path) -> None:
    key = broken.partition(" =")[0]
    lines = [line for line in RECIPE.format(base='"x"', rate=1).splitlines() if not line.startswith(f"{key} =")]
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join([broken, *lines]))
    with pytest.raises(RecipeError, match=named):
        recipes.load(path)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("optimizer", "weight_decay", -1.0),
        ("optimizer", "table_learning_rate", -1.0),
        ("optimizer", "warmup_epochs", float("nan")),
        ("optimizer", "betas", [0.9, 1.5]),
        ("batch", "epochs", float("inf")),
        ("contrast", "temperature", float("inf")),
        ("distill", "targets", "t"),  # without the objective
    ],
)
def test_an_impossible_number_is_named(table: str, key: str, value: object) -> None:
    raw = tomllib.loads(RECIPE.format(base='"x"', rate=1.0))
    raw.setdefault(table, {})[key] = value
    with pytest.raises(msgspec.ValidationError, match=key if table != "distill" else table):
        msgspec.convert(raw, Recipe)


def test_the_published_recipes_are_sound() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    found: dict[str, Recipe] = {path.stem: recipes.load(path) for path in folder.glob("udever-bloom-*.toml")}
    assert set(found) == {f"udever-bloom-{size}" for size in ("560m", "1b1", "3b", "7b1")}
    for name, recipe in found.items():
        assert recipe.name == name
        assert recipe.base == name.replace("udever-", "bigscience/")
        assert (recipe.tune, recipe.batch.size, recipe.contrast.temperature) == ("bitfit", 1024, 0.05)
    assert len({recipe.digest for recipe in found.values()}) == 4


def test_the_built_in_models_recipes_are_sound_and_run_in_their_order() -> None:
    root = Path(__file__).parents[2]
    found = {path.stem: recipes.load(path) for path in (root / "recipes" / "nano").glob("*.toml") if path.stem != "dev"}
    assert {name: recipe.base for name, recipe in found.items()} == {
        "pairs": "distilled", "again": "runs/pairs/model", "third": "runs/again/model", "grown": "grown",
        "whitened": "runs/grown/model", "capped": "runs/whitened/model", "seventh": "pressed", "eighth": "last",
        "ninth": "best", "tenth": "runs/ninth/model", "eleventh": "final", "twelfth": "eleven",
        "thirteenth": "twelve", "code": "udever-nano",
    }  # fmt: skip
    said = subprocess.run(
        ["make", "--dry-run", "--directory", str(root / "recipes" / "nano"), "DATA=/data", "WORK=/work"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    trained = [line.split("train ")[1].split()[0] for line in said.splitlines() if "udever train" in line]
    later = ("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth", "thirteenth", "code")
    order = ("pairs", "again", "third", "grown", "whitened", "capped", *later)
    assert trained == [str(root / "recipes" / "nano" / f"{name}.toml") for name in order]
    made = {Path(word).name for word in re.findall(r"--output (\S*/stores/\S+)", said)}
    assert {data.path for recipe in found.values() for data in recipe.data} <= made


@pytest.mark.parametrize(
    ("kind", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)]
)
def test_schedules(kind: str, middle: float, end: float) -> None:
    factors = [schedule(kind, step=step, steps=110, warmup=10) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert (factors[60], factors[110]) == pytest.approx((middle, end))
