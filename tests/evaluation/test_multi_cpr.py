"""The official layout over the full corpus; a sample is never called Multi-CPR; an interrupted domain goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udever import Embedder
from udever.errors import DatasetError, OptionError
from udever.evaluation.encoder import Encoder
from udever.evaluation.protocols import multi_cpr as module
from udever.evaluation.protocols.multi_cpr import multi_cpr
from udever.evaluation.runner import measure, run

PASSAGES = [
    f"{colour}{thing}{use}"
    for colour in "红黑白蓝"
    for thing in ("手机", "电脑", "衣服", "鞋子", "书包")
    for use in ("儿童", "学生", "老人")
]
QUERIES = {"q1": "给孩子的红色手机", "q2": "老人穿的黑鞋", "q3": "学生电脑", "unjudged": "天气"}
QRELS = {"q1": 0, "q2": 26, "q3": 4}


def write(folder: Path, passages: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.tsv").write_text("".join(f"{i + 1}\t{text}\n" for i, text in enumerate(passages)), "utf-8")
    (folder / "dev.query.txt").write_text("".join(f"{qid}\t{text}\n" for qid, text in QUERIES.items()), "utf-8")
    (folder / "qrels.dev.tsv").write_text("".join(f"{qid}\t0\t{row + 1}\t1\n" for qid, row in QRELS.items()), "utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The three domains, 61 passages each, the last one empty."""
    for domain in ("ecom", "video", "medical"):
        write(tmp_path / domain, [*PASSAGES, ""])
    return tmp_path


def test_every_domain_is_ranked_over_its_whole_corpus(data: Path, nano: Embedder) -> None:
    tasks = multi_cpr(data, sampled=True)
    assert [task.name for task in tasks] == ["ecom", "video", "medical"]
    assert tasks[0].settings()["passages"] == 61
    opening, *_, closing = nano.tokenize(["a"], "document")[0]
    passages = [*nano.embed(PASSAGES, "document"), *nano.finish(nano.forward([[opening, closing]]))]
    scores = nano.embed([QUERIES[qid] for qid in QRELS], "query") @ np.stack(passages).T
    ranks = [1 + np.sum(row > row[target]) for row, target in zip(scores, QRELS.values(), strict=True)]
    result = measure(tasks[0], Encoder(embedder=nano), output=None).result
    (model,) = result.of()
    assert (model.metric, model.count, model.subset) == ("mrr@10", 3, "ecom")
    assert model.value == pytest.approx(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]))
    assert model.metrics == {"recall@1000": 1.0}
    assert [score.system for score in result.scores] == ["model", "bm25", "random"]


def test_a_sampled_corpus_is_refused_and_told_its_other_name(data: Path) -> None:
    with pytest.raises(DatasetError, match=r"corpus.tsv holds 61 passages.*--sampled.*multi-cpr-sampled"):
        multi_cpr(data, domains=["ecom"])
    (task,) = multi_cpr(data, domains=["ecom"], sampled=True)
    assert task.protocol == "multi-cpr-sampled"


def test_a_full_corpus_is_called_multi_cpr(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL_PASSAGES", 61)
    (task,) = multi_cpr(data, domains=["video"])
    assert (task.protocol, task.texts) == ("multi-cpr", 64)
    monkeypatch.undo()
    assert 100_000 < module.FULL_PASSAGES < 959_526, "above mteb's samples, below the smallest corpus"


def test_queries_are_queries_and_passages_documents(data: Path, recording: Callable[..., Any]) -> None:
    model = recording()
    (task,) = multi_cpr(data, domains=["ecom"], sampled=True)
    measure(task, Encoder(embedder=model), output=None)
    assert model.heard["document"] == {*PASSAGES, " "}
    assert model.heard["query"] == {QUERIES[qid] for qid in QRELS}


def test_an_interrupted_domain_goes_on_where_it_was(
    data: Path, tmp_path: Path, nano: Embedder, recording: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udever.evaluation.encoder.CORPUS_BLOCK_TEXTS", 10)
    (task,) = multi_cpr(data, domains=["ecom"], sampled=True)
    expected = measure(task, Encoder(embedder=nano), output=None).result.scores

    class Interrupted(type(recording())):  # type: ignore[misc]
        def embed_iter(self, texts: Any, role: str, **options: Any) -> Any:
            for number, block in enumerate(self._embedder.embed_iter(texts, role=role, **options)):
                yield block
                if role == "document" and number == 2:
                    raise KeyboardInterrupt

    output = tmp_path / "results"
    with pytest.raises(KeyboardInterrupt):
        run([task], Encoder(embedder=Interrupted(nano)), output=output)
    assert not list(output.rglob("ecom.json"))
    model = recording()
    (outcome,) = run([task], Encoder(embedder=model), output=output)
    assert len(model.heard["document"]) < 61 - 20
    assert outcome.result.scores == expected
    assert [path.name for path in output.rglob("*") if path.is_file()] == ["ecom.json"], "no block is left behind"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("corpus.tsv", "1\ta\n1\tb\n", "1 passages have the id of another one"),
        ("corpus.tsv", "1\ta\n2 b\n", r"corpus.tsv:2: no tab"),
        ("qrels.dev.tsv", "q1\t1\n", r"qrels.dev.tsv:1: not qid, 0, pid, 1"),
        (
            "qrels.dev.tsv",
            "q1\t0\t99\t1\nq1\t0\t98\t1\n",
            "names 2 documents that the corpus does not have: '99', '98'",
        ),
        ("qrels.dev.tsv", "q7\t0\t1\t1\n", "names 1 queries that the queries do not have: 'q7'"),
    ],
)
def test_data_of_another_shape_is_named(file: str, content: str, said: str, data: Path) -> None:
    (data / "ecom" / file).write_text(content, "utf-8")
    with pytest.raises(DatasetError, match=said):
        multi_cpr(data, domains=["ecom"], sampled=True)


def test_a_missing_file_and_an_unknown_domain_are_named(data: Path) -> None:
    (data / "medical" / "dev.query.txt").unlink()
    with pytest.raises(DatasetError, match=r"dev.query.txt does not exist.*--data"):
        multi_cpr(data, domains=["medical"], sampled=True)
    with pytest.raises(OptionError, match=r"'news'.*'ecom', 'video', 'medical'"):
        multi_cpr(data, domains=["news"])


def test_an_empty_passage_is_the_same_whether_it_streams_or_not(
    nano: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udever.evaluation.encoder.CORPUS_BLOCK_TEXTS", 3)
    texts = ["红", "", "黑", "白", "", "蓝", ""]
    encoder = Encoder(embedder=nano)
    streamed, whole = np.concatenate(list(encoder.document_blocks(texts))), encoder.documents(texts)
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    assert np.ptp(whole[[1, 4, 6]], axis=0).max() == 0
    assert np.abs(whole[1] - nano.embed([" "], "document")[0]).max() > 0.01
