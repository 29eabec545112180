"""The benchmark's own arithmetic, and one run of it end to end at toy size."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from udever.model.batch import PackedBatch
from udever.model.bloom import Bloom, closing_states
from udever.model.linear import native_bf16

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def encode() -> ModuleType:
    pytest.importorskip("transformers")
    return importlib.import_module("encode")


def part(name: str) -> ModuleType:
    return importlib.import_module(f"encoding.{name}")


def peer(**changes: Any) -> dict[str, Any]:
    known = {
        "label": "a peer",
        "group": "as deployed",
        "precision": "fp32",
        "emulated": False,
        "padding": 1.0,
        "texts": 100,
        "tokens": 7000,
        "gflop": 50.0,
        "min_cosine": 1.0,
        "query_ms": [3.0, 1.0, 2.0],
    }
    return known | changes


def result(rounds: list[dict[str, float]], **peers: dict[str, Any]) -> dict[str, Any]:
    gflops = {"fp32": 100.0}
    return {
        "workload": {"texts": 100},
        "reference": "reference",
        "peers": peers,
        "skipped": {},
        "rounds": [{"seconds": seconds, "gflops": gflops, "others": {}} for seconds in rounds],
    }


def test_a_ratio_compares_neighbours_in_time() -> None:
    slowing = [{"reference": 4.0, "ours": 1.0}, {"reference": 40.0, "ours": 10.0}, {"ours": 1000.0}]
    both = result(slowing, reference=peer(), ours=peer())
    assert part("measure").ratio("ours", "reference", result=both) == 4.0
    assert part("measure").ratio("reference", "ours", result=both) == 0.25


def test_a_peer_that_ran_fewer_texts_is_compared_by_rate() -> None:
    fewer = result([{"reference": 4.0, "unsorted": 4.0}], reference=peer(), unsorted=peer(texts=25))
    row = {row["key"]: row for row in part("measure").summarise(fewer)}["unsorted"]
    assert row["ratio"] == 0.25
    assert row["texts_per_second"] == 6.25


def test_a_row_is_a_median_and_a_share_of_the_ceiling() -> None:
    rounds = [{"reference": s} for s in (1.0, 9.0, 2.0)]
    [row] = part("measure").summarise(result(rounds, reference=peer()))
    assert row["texts_per_second"] == 50.0
    assert row["ceiling_share"] == 0.25  # 50 GFLOP in 2 s, of 100 GFLOP/s
    assert row["query_ms"] == 2.0
    assert row["rounds"] == 3


def test_merged_runs_add_rounds_and_refuse_other_workloads() -> None:
    merge = part("measure").merge
    old = result([{"reference": 1.0}], reference=peer()) | {"skipped": {"ours": "not installed", "x": "gone"}}
    new = result([{"reference": 3.0, "ours": 1.0}], reference=peer(), ours=peer())
    merged = merge(old, new)
    assert [each["seconds"]["reference"] for each in merged["rounds"]] == [1.0, 3.0]
    assert merged["skipped"] == {"x": "gone"}
    assert len(merged["peers"]["reference"]["query_ms"]) == 6
    with pytest.raises(ValueError, match="cannot append"):
        merge(old, new | {"workload": {"texts": 7}})


def verdicts(shape: dict[str, Any], *, native: bool = False) -> dict[str, str]:
    results = {"machine": {"native": {"bf16": native, "int8": native}}, "shapes": {"560m": shape}, "startup": None}
    return {verdict.claim: verdict.outcome for verdict in part("targets").verdicts(results)}


def ours(precision: str = "fp32", **changes: Any) -> dict[str, dict[str, Any]]:
    return {f"udever-{precision}": peer(group="udever", precision=precision, **changes)}


def test_targets_are_judged_by_what_was_measured() -> None:
    def outcome(seconds: float) -> str:
        speed = result([{"reference": 2.0, "udever-fp32": seconds}], reference=peer(group="reference"), **ours())
        return verdicts(speed)["560m, fp32, against transformers fp32 sorted"]

    assert outcome(1.0) == "pass"
    assert outcome(1.01) == "miss"


def test_an_emulated_precision_is_not_judged() -> None:
    slow = result([{"reference": 1.0, "udever-bf16": 9.0}], reference=peer(), **ours("bf16", emulated=True))
    outcomes = verdicts(slow)
    assert outcomes["560m, bf16, against transformers fp32 sorted"] == "not measurable here"
    assert outcomes["560m, int8, against transformers fp32 sorted"] == "not measurable here"


def test_only_peers_with_equal_output_are_rivals() -> None:
    def ahead(cosine: float) -> str:
        rounds = [{"reference": 9.0, "udever-fp32": 2.0, "fast": 1.0}]
        rivals = result(rounds, reference=peer(group="reference"), fast=peer(min_cosine=cosine), **ours())
        return verdicts(rivals)["560m, ahead of every peer as deployed"]

    assert ahead(1.0) == "miss"
    assert ahead(0.9) == "pass"


def test_padding_and_the_least_work() -> None:
    workload = part("workload")
    lengths = [1, 4, 2, 4]
    by_length = workload.padded_batches(lengths, batch_size=2, by_length=True)
    assert by_length == [[1, 3], [2, 0]]
    assert workload.padding_ratio(lengths, by_length) == 12 / 11
    assert workload.padding_ratio(lengths, workload.padded_batches(lengths, batch_size=2, by_length=False)) == 16 / 11
    toy = workload.SHAPES["toy"]
    assert toy.layers == 2
    w, n = toy.width, 3
    whole = 2 * 12 * w * w * n + 2 * 2 * w * (1 + 2 + 3)
    last = 2 * 2 * w * w * n + 2 * 10 * w * w + 2 * 2 * w * n
    assert workload.minimal_flops(toy, [n]) == whole + last


def test_strings_tokenise_to_the_very_ids(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    workload = part("workload")
    folder = workload.checkpoint_folder(workload.SHAPES["toy"], cache=tmp_path)
    texts = workload.draw_texts(workload.SHAPES["toy"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [encoding.ids for encoding in tokenizer.encode_batch(texts.strings)] == texts.sequences
    assert texts.take([3, 1]).sequences == [texts.sequences[3], texts.sequences[1]]


def test_the_packed_graph_computes_the_model() -> None:
    workload, packed = part("workload"), part("packed_graph")
    config = workload.SHAPES["toy"].config()
    tensors = workload.lively_tensors(config)
    batch = PackedBatch.from_lists([[5, 9, 200, 31, 8, 8], [7], [4, 4, 90], [300, 2, 61]])
    graph = packed.PackedGraph(config, tensors)
    with torch.inference_mode():
        vectors = graph(**packed.graph_inputs(batch))
    model = Bloom(config, tensors, table=tensors["word_embeddings.weight"])
    torch.testing.assert_close(vectors, closing_states(model, batch), rtol=1e-4, atol=1e-4)


def test_a_run_end_to_end(encode: ModuleType, tmp_path: Path) -> None:
    page, results = tmp_path / "performance.md", tmp_path / "performance.json"
    page.write_text("# Performance\n\nOur prose.\n", "utf-8")
    common = ["--shapes", "toy", "--no-startup", "--json", str(results), "--cache", str(tmp_path / "cache")]
    peers = ["udever-fp32", "udever-embed", "transformers-fp32-unsorted"]
    encode.main([*common, "--peers", *peers, "--rounds", "2", "--latency-seconds", "0.1"])
    encode.main([*common, "--peers", "udever-fp32", "--rounds", "1", "--latency-seconds", "0.1", "--append"])

    toy = json.loads(results.read_text("utf-8"))["shapes"]["toy"]
    assert set(toy["peers"]) == {encode.REFERENCE, *peers}
    for key, measured in toy["peers"].items():
        rounded = key == "udever-embed" and native_bf16()  # it takes what `auto` takes
        assert measured["min_cosine"] >= (0.9998 if rounded else 0.999999), key
        assert len([each for each in toy["rounds"] if key in each["seconds"]]) == (2 if key in peers[1:] else 3)
    assert toy["peers"][encode.REFERENCE]["padding"] > 1
    assert toy["peers"]["udever-fp32"]["padding"] == 1
    assert all(each["gflops"]["fp32"] > 0 for each in toy["rounds"])
    text = page.read_text("utf-8")
    assert "Our prose." in text
    assert text.count("| udever fp32 |") == 1


def test_a_peer_that_cannot_run_says_why(encode: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = part("peers")

    def build(setting: Any) -> Any:
        raise peers.Unavailable("it is Tuesday")

    monkeypatch.setitem(encode.PEERS, "openvino", peers.Entry(label="x", group="as deployed", build=build))
    results = tmp_path / "performance.json"
    brief = ["--rounds", "1", "--texts", "4", "--latency-seconds", "0.1", "--no-startup"]
    encode.main(
        ["--shapes", "toy", "--peers", "openvino", *brief, "--json", str(results), "--cache", str(tmp_path / "cache")]
    )
    assert "Not run: openvino: it is Tuesday." in results.with_suffix(".md").read_text("utf-8")


@pytest.mark.slow
def test_starts_in_fresh_processes_agree(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(vocab_size=1024)
    startup = part("startup")
    ours, theirs = (startup.start_once(child, folder=folder, precision="fp32") for child in startup.CHILDREN)
    torch.testing.assert_close(torch.tensor(ours.vector), torch.tensor(theirs.vector), rtol=1e-4, atol=1e-4)
    assert 0 < ours.seconds < 120
    assert 0 < ours.peak_anonymous_mib < ours.peak_rss_mib
