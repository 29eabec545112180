"""Real runs of mteb, offline, on tasks with data of our own: roles, raw vectors, files, resuming, errors."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import datasets
import huggingface_hub
import mteb
import numpy as np
import pytest
from cyclopts import App
from datasets import Dataset, DatasetDict
from datasets.arrow_writer import ArrowWriter
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from mteb.abstasks.text.summarization import AbsTaskSummarization
from mteb.results import TaskResult

from udever import Embedder
from udever.errors import DatasetUnavailableError, DimensionsError, EvaluationError, NonFiniteWeightsError, OptionError
from udever.evaluation.metrics import average_precision, averages, retrieval_metrics, spearman
from udever.evaluation.mteb import adapter as mteb_adapter
from udever.evaluation.mteb import data as mteb_data
from udever.evaluation.mteb import runs as mteb_runs
from udever.evaluation.mteb.adapter import UdeverEncoder, describe

PANGRAM = "the quick brown fox jumps over a lazy dog while seven cooks bake bread beside an old"
WORDS = PANGRAM.split()
RNG = np.random.default_rng(7)
TEXTS = [" ".join(RNG.choice(WORDS, size=int(size))) + "." for size in RNG.integers(2, 12, size=60)]
LABELS = [int(label) for label in RNG.integers(0, 2, size=60)]
GRADES = [float(grade) for grade in RNG.integers(0, 6, size=30)]
SUBSETS = {"eng": ["eng-Latn"], "deu": ["deu-Latn"]}


def metadata(name: str, type_: str, main_score: str, **more: Any) -> mteb.TaskMetadata:
    return mteb.TaskMetadata(
        dataset={"path": "nobody/nothing", "revision": "1"},
        name=name,
        description="Local data.",
        type=type_,
        main_score=main_score,
        **{"eval_langs": ["eng-Latn"]} | more,
    )


class Local:
    """Data from `rows`, never from a hub."""

    def load_data(self, *_: Any, **__: Any) -> None:
        table = Dataset.from_dict(self.rows)
        both = DatasetDict({"train": table, "test": table})
        self.dataset = dict.fromkeys(self.metadata.hf_subsets, both) if self.metadata.is_multilingual else both
        self.data_loaded = True


class LocalSTS(Local, AbsTaskSTS):
    metadata = metadata("LocalSTS", "STS", "cosine_spearman")
    rows: ClassVar = {"sentence1": TEXTS[:30], "sentence2": TEXTS[30:], "score": GRADES}


class LocalSTSPerLanguage(LocalSTS):
    metadata = metadata("LocalSTSPerLanguage", "STS", "cosine_spearman", eval_langs=SUBSETS)


class LocalPairs(Local, AbsTaskPairClassification):
    metadata = metadata("LocalPairs", "PairClassification", "max_ap")
    rows: ClassVar = {"sentence1": TEXTS[:30], "sentence2": TEXTS[30:], "labels": LABELS[:30]}


class LocalClassification(Local, AbsTaskClassification):
    metadata = metadata("LocalClassification", "Classification", "accuracy")
    rows: ClassVar = {"text": TEXTS, "label": LABELS}
    n_experiments = 2


class LocalClustering(Local, AbsTaskClustering):
    metadata = metadata("LocalClustering", "Clustering", "v_measure")
    rows: ClassVar = {"sentences": TEXTS, "labels": LABELS}
    max_fraction_of_documents_to_embed = None
    n_clusters = 2


class LocalOldClustering(Local, AbsTaskClusteringLegacy):
    metadata = metadata("LocalOldClustering", "Clustering", "v_measure")
    rows: ClassVar = {"sentences": [TEXTS[:40]], "labels": [LABELS[:40]]}


class LocalBitext(Local, AbsTaskBitextMining):
    metadata = metadata("LocalBitext", "BitextMining", "f1", eval_langs={"eng-deu": ["eng-Latn", "deu-Latn"]})
    rows: ClassVar = {"sentence1": TEXTS[:20], "sentence2": [text.upper() for text in TEXTS[:20]]}


class LocalSummaries(Local, AbsTaskSummarization):
    metadata = metadata("LocalSummaries", "Summarization", "cosine_spearman")
    rows: ClassVar = {
        "text": TEXTS[:2],
        "human_summaries": [TEXTS[2:4], TEXTS[4:6]],
        "machine_summaries": [TEXTS[6:10], TEXTS[10:14]],
        "relevance": [[1, 2, 3, 4], [4, 2, 1, 3]],
    }
    min_score, max_score = 1, 5


QUERIES = {f"q{i}": f"{text} {WORDS[i]}" for i, text in enumerate(TEXTS[:15])}
CORPUS = {f"d{i}": {"title": WORDS[i % len(WORDS)] if i % 2 else "", "text": text} for i, text in enumerate(TEXTS)}
QRELS = {f"q{i}": {f"d{i}": 2, f"d{(i * 7) % 60}": 1} for i in range(15)}
CANDIDATES = {query: [f"d{(i * 7 + j) % 60}" for j in range(12)] for i, query in enumerate(QUERIES)}


class LocalRetrieval(AbsTaskRetrieval):
    metadata = metadata("LocalRetrieval", "Retrieval", "ndcg_at_10")
    top_ranked: ClassVar[dict[str, list[str]] | None] = None

    def load_data(self, *_: Any, **__: Any) -> None:
        split = {
            "corpus": Dataset.from_list([{"id": key, **row} for key, row in CORPUS.items()]),
            "queries": Dataset.from_list([{"id": key, "text": text} for key, text in QUERIES.items()]),
            "relevant_docs": {query: dict(grades) for query, grades in QRELS.items()},
            "top_ranked": CANDIDATES if self.metadata.type == "Reranking" else None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalReranking(LocalRetrieval):
    metadata = metadata("LocalReranking", "Reranking", "map_at_1000")


SYMMETRIC = [
    LocalSTS,
    LocalPairs,
    LocalClassification,
    LocalClustering,
    LocalOldClustering,
    LocalBitext,
    LocalSummaries,
]
SIDED = [LocalRetrieval, LocalReranking]


class Recorder(Embedder):
    """Remembers what was embedded as what."""

    def embed(self, texts: Any, role: Any = "query", **options: Any) -> Any:
        vars(self).setdefault("calls", []).append((list(texts), role, options))
        return super().embed(texts, role, **options)

    def seen(self, role: str) -> set[str]:
        return {text for texts, as_role, _ in self.calls for text in texts if as_role == role}


@pytest.fixture
def encoder(tiny_checkpoint: Path) -> UdeverEncoder:
    encoder = UdeverEncoder(Recorder.load(str(tiny_checkpoint), precision="fp32"))
    encoder._embedder.calls.clear()
    return encoder


def finish(encoder: UdeverEncoder, *tasks: mteb.AbsTask, output: Path, force: bool = False) -> list[mteb_runs.Finished]:
    return list(mteb_runs.run(encoder, tasks, output=output, force=force))


def stored(task: mteb_runs.Finished) -> dict[str, Any]:
    """The scores in the file that mteb can read."""
    return TaskResult.from_disk(task.path).scores["test"][0]


@pytest.mark.parametrize("task", SYMMETRIC)
def test_symmetric_tasks_embed_both_sides_as_queries(
    task: type[mteb.AbsTask], encoder: UdeverEncoder, tmp_path: Path
) -> None:
    (result,) = finish(encoder, task(), output=tmp_path)
    assert set(TEXTS[6:10]) <= encoder._embedder.seen("query")
    assert not encoder._embedder.seen("document")
    assert (result.task, result.metric, result.kept) == (task.metadata.name, task.metadata.main_score, False)
    assert -1 <= result.main_score <= 1
    assert stored(result)["main_score"] == pytest.approx(result.main_score, abs=1e-6)


@pytest.mark.parametrize("task", SIDED)
def test_retrieval_has_queries_and_documents_and_our_metrics_agree(
    task: type[LocalRetrieval], encoder: UdeverEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,) = finish(encoder, task(), output=tmp_path / "right")
    documents = [f"{row['title']} {row['text']}".strip() for row in CORPUS.values()]
    assert encoder._embedder.seen("query") == set(QUERIES.values())
    assert encoder._embedder.seen("document") == set(documents)
    assert result.main_score == pytest.approx(our_score(encoder._embedder, task, "query", "document"), abs=1e-5)

    swapped = {mteb_adapter.PromptType.query: "document", mteb_adapter.PromptType.document: "query", None: "query"}
    monkeypatch.setattr(mteb_adapter, "ROLE_OF", swapped)
    (wrong,) = finish(encoder, task(), output=tmp_path / "swapped")
    assert wrong.main_score == pytest.approx(our_score(encoder._embedder, task, "document", "query"), abs=1e-5)
    assert abs(wrong.main_score - result.main_score) > 1e-3


def our_score(model: Embedder, task: type[LocalRetrieval], query_role: str, document_role: str) -> float:
    documents = [f"{row['title']} {row['text']}".strip() for row in CORPUS.values()]
    scores = model.embed(list(QUERIES.values()), query_role) @ model.embed(documents, document_role).T
    rows = [dict(zip(CORPUS, map(float, row), strict=True)) for row in scores]
    run = dict(zip(QUERIES, rows, strict=True))
    if task is LocalReranking:
        run = {query: {each: run[query][each] for each in kept} for query, kept in CANDIDATES.items()}
    metric = "map" if task is LocalReranking else "ndcg@10"
    return averages(retrieval_metrics(run, QRELS, ks=(10,)))[metric]


def test_the_main_scores_are_cosines_and_the_other_similarities_are_of_raw_vectors(
    encoder: UdeverEncoder, tmp_path: Path
) -> None:
    sts, pairs = map(stored, finish(encoder, LocalSTS(), LocalPairs(), output=tmp_path))
    left, right = (encoder._embedder.embed(side, normalize=False) for side in (TEXTS[:30], TEXTS[30:]))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = (left * right).sum(axis=1)
    assert sts["main_score"] == pytest.approx(spearman(dots / lengths, GRADES), abs=1e-5)
    assert sts["euclidean_spearman"] == pytest.approx(spearman(-np.linalg.norm(left - right, axis=1), GRADES), abs=1e-5)
    assert pairs["cosine_ap"] == pytest.approx(average_precision(dots / lengths, LABELS[:30]), abs=1e-5)
    assert pairs["dot_ap"] == pytest.approx(average_precision(dots, LABELS[:30]), abs=1e-5)
    assert pairs["dot_ap"] != pytest.approx(pairs["cosine_ap"], abs=1e-3)


def encode(encoder: UdeverEncoder, texts: list[str], prompt_type: Any = None) -> np.ndarray:
    options = {"task_metadata": LocalSTS.metadata, "hf_split": "test", "hf_subset": "default"}
    return encoder.encode([{"text": texts[:2]}, {"text": texts[2:]}], prompt_type=prompt_type, **options)


def test_a_text_without_characters_is_its_two_markers(encoder: UdeverEncoder) -> None:
    model = encoder._embedder
    for prompt_type, role in mteb_adapter.ROLE_OF.items():
        vectors = encode(encoder, ["", "a fox", "", " "], prompt_type)
        sequence = model.tokenize(["a"], role)[0]
        assert len(sequence) == 3
        np.testing.assert_allclose(vectors[[0, 2]], model.forward([sequence[::2]] * 2), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            vectors[[1, 3]], model.embed(["a fox", " "], role, normalize=False), rtol=1e-4, atol=1e-4
        )
    assert encode(encoder, ["", ""]).shape == (2, 64)


def test_long_texts_are_cut_at_the_end(tiny_checkpoint: Path) -> None:
    encoder = UdeverEncoder(Embedder.load(str(tiny_checkpoint)), max_tokens=8)
    body = " fox" * 6
    whole, longer = encode(encoder, [body, f"{body} dog dog dog dog"])
    assert encoder._embedder.count_tokens([body]) == [8]
    np.testing.assert_allclose(whole, longer, rtol=1e-4, atol=1e-4)


def test_plain_mteb_takes_the_encoder(encoder: UdeverEncoder, tmp_path: Path) -> None:
    found = mteb.evaluate(encoder, LocalSTS(), cache=mteb.ResultCache(tmp_path), co2_tracker=False)
    (ours,) = finish(encoder, LocalSTS(), output=tmp_path / "ours")
    assert found.task_results[0].get_score() == pytest.approx(ours.main_score)
    assert isinstance(encoder, mteb.EncoderProtocol)
    assert not isinstance(encoder, mteb.SearchProtocol)


def test_the_card_of_the_builtin_model() -> None:
    model = Embedder.load("udever-nano", precision="fp32")
    card = describe(model)
    assert (card.name, card.revision, card.experiment_kwargs) == ("udever/udever-nano", model.fingerprint, None)
    assert (card.license, card.open_weights, card.similarity_fn_name.value) == ("apache-2.0", True, "cosine")
    assert card.n_parameters - card.n_embedding_parameters == card.n_active_parameters > 0
    assert {"STSBenchmark", "MSMARCO"} <= card.training_datasets
    cut = describe(model, dimensions=64, max_tokens=99)
    assert (cut.embed_dim, cut.max_tokens, cut.experiment_name) == (64, 99, "dimensions_64__max_tokens_99")
    assert describe(Embedder.load("udever-nano", precision="int8")).experiment_kwargs == {"precision": "int8"}
    assert card.to_dict()  # what mteb writes as model_meta.json


def test_the_card_of_a_folder_and_of_a_hub_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = Embedder.load(str(tiny_checkpoint))
    card = describe(model)
    assert (card.name, card.revision) == (f"udever/{tiny_checkpoint.name}", model.fingerprint)
    assert (card.license, card.training_datasets) == (None, None)
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE, "models--izhx--udever-bloom-560m")
    (cached / "snapshots" / "c0ffee").mkdir(parents=True)
    (cached / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee")
    hub = describe(model, name="izhx/udever-bloom-560m")
    assert (hub.name, hub.revision, hub.loader) == ("izhx/udever-bloom-560m", "c0ffee", None)
    assert (hub.training_datasets, hub.adapted_from) == ({"MSMARCO"}, "bigscience/bloom-560m")
    assert hub.loader_kwargs == {"fingerprint": model.fingerprint}


def test_options_that_the_model_has_not_are_refused_before_any_task(tiny_checkpoint: Path) -> None:
    model = Embedder.load(str(tiny_checkpoint))
    with pytest.raises(DimensionsError):
        UdeverEncoder(model, dimensions=33)
    with pytest.raises(OptionError):
        UdeverEncoder(model, max_tokens=1_000_000)


def test_a_second_run_embeds_nothing(encoder: UdeverEncoder, tmp_path: Path) -> None:
    begun: list[str] = []
    first = list(mteb_runs.run(encoder, [LocalSTS()], output=tmp_path, announce=begun.append))
    encoder._embedder.calls.clear()
    second = list(mteb_runs.run(encoder, [LocalSTS()], output=tmp_path, announce=begun.append))
    assert begun == ["LocalSTS"]
    assert encoder._embedder.calls == []
    assert ([task.kept for task in first], [task.kept for task in second]) == ([False], [True])
    assert second[0].main_score == pytest.approx(first[0].main_score, abs=1e-6)
    assert first[0].path.parts[-5:-1] == ("mteb", "results", encoder.mteb_model_meta.model_name_as_path(),
                                          encoder._embedder.fingerprint)  # fmt: skip


def test_other_weights_or_a_lower_limit_are_measured_apart(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [make_checkpoint(seed=seed) for seed in (1, 2)]
    encoders = [UdeverEncoder(Embedder.load(str(folder))) for folder in folders]
    encoders.append(UdeverEncoder(Embedder.load(str(folders[0])), max_tokens=8))
    results = [finish(encoder, LocalSTS(), output=tmp_path)[0] for encoder in encoders]
    assert not any(task.kept for task in results)
    assert len({task.path for task in results}) == 3
    assert len({task.main_score for task in results}) == 3


def test_a_half_written_file_and_another_revision_of_the_data_do_not_count(
    encoder: UdeverEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = finish(encoder, LocalSTS(), output=tmp_path)
    first.path.write_text(first.path.read_text()[:-20])
    (again,) = finish(encoder, LocalSTS(), output=tmp_path)
    assert not again.kept
    assert finish(encoder, LocalSTS(), output=tmp_path)[0].kept
    monkeypatch.setattr(LocalSTS, "metadata", LocalSTS.metadata.model_copy(
        update={"dataset": {"path": "nobody/nothing", "revision": "2"}}))  # fmt: skip
    assert not finish(encoder, LocalSTS(), output=tmp_path)[0].kept
    assert TaskResult.from_disk(first.path).dataset_revision == "2"


def test_an_interrupted_task_goes_on_where_it_was_and_never_looks_whole(
    encoder: UdeverEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    embed = Recorder.embed

    def interrupted(self: Recorder, *arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:  # the second subset
            raise KeyboardInterrupt
        return embed(self, *arguments, **options)

    monkeypatch.setattr(Recorder, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finish(encoder, LocalSTSPerLanguage(), output=tmp_path)
    assert [path.name for path in tmp_path.rglob("*STS*.json")] == [".LocalSTSPerLanguage.json"]
    monkeypatch.setattr(Recorder, "embed", embed)
    encoder._embedder.calls.clear()
    (result,) = finish(encoder, LocalSTSPerLanguage(), output=tmp_path)
    assert len(encoder._embedder.calls) == 2  # two sides of one subset
    assert {score.subset for score in result.scores} == {"eng", "deu"}
    assert [path.name for path in tmp_path.rglob("*STS*.json")] == ["LocalSTSPerLanguage.json"]


class LocalMean(AbsTaskAggregate):
    metadata = AggregateTaskMetadata(
        name="LocalMean",
        description="The mean of two.",
        tasks=[LocalSTS(), LocalPairs()],
        main_score="the_mean",
        type="STS",
        eval_splits=["test"],
    )


def test_an_aggregate_is_the_mean_of_its_parts(encoder: UdeverEncoder, tmp_path: Path) -> None:
    (mean,) = finish(encoder, LocalMean(), output=tmp_path)
    parts = finish(encoder, LocalSTS(), LocalPairs(), output=tmp_path)
    assert all(part.kept for part in parts)
    assert mean.main_score == pytest.approx(np.mean([part.main_score for part in parts]), abs=1e-5)
    assert finish(encoder, LocalMean(), output=tmp_path)[0].kept


def test_force_evaluates_again_what_is_there(encoder: UdeverEncoder, tmp_path: Path) -> None:
    tasks = (LocalSTSPerLanguage(), LocalMean())
    first = finish(encoder, *tasks, output=tmp_path)
    wrong = first[1].path.read_text().replace(f'"main_score": {first[1].main_score:.3}', '"main_score": 0.987')
    first[1].path.write_text(wrong)
    assert first[1].path.read_text().count("0.987")
    encoder._embedder.calls.clear()
    again = finish(encoder, *tasks, output=tmp_path, force=True)
    assert len(encoder._embedder.calls) == 8  # two sides of two subsets, and of two parts
    assert not any(task.kept for task in again)
    assert [task.path for task in again] == [task.path for task in first]
    assert [task.main_score for task in again] == pytest.approx([task.main_score for task in first], abs=1e-6)
    assert all(task.kept for task in finish(encoder, *tasks, output=tmp_path))


def test_an_error_inside_mteb_names_the_task(encoder: UdeverEncoder, tmp_path: Path) -> None:
    class Broken(LocalSTS):
        metadata = metadata("Broken", "STS", "cosine_spearman")
        rows: ClassVar = {"sentence1": TEXTS[:3], "sentence2": TEXTS[:3]}

    with pytest.raises(EvaluationError, match=r"task Broken: .*score"):
        finish(encoder, Broken(), output=tmp_path)


def test_an_error_of_the_model_keeps_its_code(
    encoder: UdeverEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any, **__: Any) -> None:
        raise NonFiniteWeightsError("NaN")

    monkeypatch.setattr(Recorder, "embed", damaged)
    with pytest.raises(NonFiniteWeightsError):
        finish(encoder, LocalSTS(), output=tmp_path)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"names": ["stsbenchmrk"]}, r"no task 'stsbenchmrk' \(did you mean STSBenchmark"),
        ({"names": ["Zzzzzzzzzz"]}, r"no task 'Zzzzzzzzzz' \(it has 2,\d+"),
        ({"benchmark": "MTEB(eng,v1)"}, r"no benchmark .* \(did you mean MTEB\(eng, v1\)"),
        ({"names": ["STS17"], "languages": ["yor"]}, "none of the tasks has a subset in yor"),
        ({"names": ["STS17"], "benchmark": "MTEB(eng, v1)"}, "either tasks or a benchmark"),
        ({}, "either tasks or a benchmark"),
        ({"names": ["CIFAR10"]}, "not tasks of text alone: CIFAR10"),
    ],
)
def test_what_cannot_be_selected(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        mteb_runs.select(**wanted)


def test_selecting() -> None:
    assert len(mteb_runs.select(benchmark="MTEB(eng, v1)")) == 56
    german = mteb_runs.select(names=["STS17", "STS12", "STS17"], languages=["deu-Latn"])
    assert [(task.metadata.name, task.hf_subsets) for task in german] == [("STS17", ["en-de"])]
    english = mteb_runs.select(benchmark="MTEB(eng, v1)", languages=["eng"])  # keeps the benchmark's own choice
    assert next(task.hf_subsets for task in english if task.metadata.name == "STS17") == ["en-en"]
    with pytest.raises(OptionError, match="none"):
        mteb_runs.select(benchmark="MTEB(eng, v1)", languages=["deu"])


@pytest.mark.timeout(20)
def test_data_out_of_reach_is_an_error_at_once_and_what_is_finished_stays(
    encoder: UdeverEncoder, tmp_path: Path
) -> None:
    with pytest.raises(DatasetUnavailableError) as error:
        finish(encoder, LocalSTS(), mteb.get_task("STS12"), LocalPairs(), output=tmp_path)
    assert "STS12 (mteb/sts12-sts)" in error.value.message
    assert "connect" in error.value.hint
    assert [path.name for path in tmp_path.rglob("Local*.json")] == ["LocalSTS.json"]


@pytest.mark.timeout(20)
def test_a_hub_that_does_not_answer_is_asked_once_and_without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    constants, config = huggingface_hub.constants, datasets.config
    for module in (constants, config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    data = mteb_data.HubData()
    for name in ("STS12", "SciFact"):
        with pytest.raises(DatasetUnavailableError, match=rf"{name} .*out of reach"):
            data.load(mteb.get_task(name))

    class Downloader(LocalSTS):
        """Some tasks fetch files by themselves."""

        def load_data(self, *_: Any, **__: Any) -> None:
            assert huggingface_hub.is_offline_mode()
            super().load_data()

    data.load(Downloader())
    assert not constants.HF_HUB_OFFLINE  # as before
    assert not config.HF_HUB_OFFLINE


@pytest.fixture
def cached_biosses(request: pytest.FixtureRequest) -> Iterator[str]:
    """A data set of the hub in the local cache, as `datasets` leaves it there."""
    revision = getattr(request, "param", None) or mteb.get_task("BIOSSES").metadata.dataset["revision"]
    folder = Path(datasets.config.HF_DATASETS_CACHE, "mteb___biosses-sts", "default", "0.0.0", revision)
    folder.mkdir(parents=True)
    with ArrowWriter(path=str(folder / "biosses-sts-test.arrow")) as writer:
        for left, right, grade in zip(TEXTS[:30], TEXTS[30:], GRADES, strict=True):
            writer.write({"sentence1": left, "sentence2": right, "score": grade})
        rows, size = writer.finalize()
        features = writer._features
    split = datasets.splits.SplitInfo("test", num_bytes=size, num_examples=rows, dataset_name="biosses-sts")
    datasets.DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name="biosses-sts",
        config_name="default",
        version="0.0.0",
        splits=datasets.splits.SplitDict({"test": split}, dataset_name="biosses-sts"),
    ).write_to_directory(str(folder))
    yield revision
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("cached_biosses", ["0" * 40], indirect=True)
def test_another_revision_in_the_cache_is_not_taken_for_the_wanted_one(cached_biosses: str) -> None:
    with pytest.raises(DatasetUnavailableError, match=rf"BIOSSES needs .* at revision .* has it at {cached_biosses}"):
        mteb_data.HubData().load(mteb.get_task("BIOSSES"))


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    def run(*arguments: object) -> tuple[str, str]:
        app = App()
        app.command("udever.cli.evaluate_mteb:mteb", name="mteb")
        app(["mteb", *map(str, arguments)], exit_on_error=False, print_error=False, result_action="return_value")
        return capfd.readouterr()

    return run


def test_the_command_measures_cached_data_without_a_network(
    cached_biosses: str, tiny_checkpoint: Path, tmp_path: Path, command: Callable[..., tuple[str, str]]
) -> None:
    arguments = ("--tasks", "BIOSSES", "--model", tiny_checkpoint, "--output", tmp_path, "--precision", "fp32")
    out, err = command(*arguments, "--json")
    report = json.loads(out)
    (task,) = report["tasks"]
    vectors = Embedder.load(str(tiny_checkpoint), precision="fp32").embed(TEXTS)
    expected = spearman((vectors[:30] * vectors[30:]).sum(axis=1), GRADES)
    assert (task["task"], task["metric"], task["kept"]) == ("BIOSSES", "cosine_spearman", False)
    assert task["main_score"] == pytest.approx(expected, abs=1e-5)
    assert [(part["split"], part["subset"]) for part in task["scores"]] == [("test", "default")]
    assert report["fingerprint"].startswith("udv1-")
    assert err.splitlines()[0] == "BIOSSES …"
    written = json.loads(Path(task["path"]).read_text())
    assert (written["task_name"], written["dataset_revision"]) == ("BIOSSES", cached_biosses)
    assert json.loads(Path(task["path"]).with_name("model_meta.json").read_text())["name"] == report["model"]

    out, err = command(*arguments)
    assert "BIOSSES" in out
    assert f"{100 * expected:.2f}" in out
    assert "kept from an earlier run" in err
    assert "kept" not in command(*arguments, "--force")[1]


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from udever.cli.evaluate_mteb import mteb
mteb(tasks=("STS12",), output=".")
"""


@pytest.mark.parametrize("package", ["mteb", "sentence_transformers"])
def test_without_the_extra_the_error_says_what_to_install(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, package], capture_output=True, text=True, check=False)
    assert f"needs the package {package}, which is not installed (pip install 'udever[eval]')" in done.stderr
