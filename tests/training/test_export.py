"""Exported folders, loaded by the real libraries, give the model's vectors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from udever import Embedder
from udever.engine.packing import pack
from udever.errors import NotAnEmbedderError, OptionError, UdeverError
from udever.model.bloom import closing_states
from udever.model.weights import Checkpoint
from udever.tokenizer import MARKERS, ROLES, UdeverTokenizer
from udever.training.base import load_base, write_delta
from udever.training.bitfit import unfreeze
from udever.training.export import for_onnx as onnx_export
from udever.training.export import for_sentence_transformers as export
from udever.training.export.for_onnx import export_onnx
from udever.training.export.for_sentence_transformers import SAMPLES, export_sentence_transformers
from udever.training.export.padded_graph import PaddedGraph
from udever.training.export.role_tokenizer import END, GUARD, of_role, pad_token, private

TEXTS = [
    *SAMPLES,
    "x " * 3000,
    "cat.jpg",
    "[BOQ] tall [EOQ]",
    "[EOD][BOD]",
    "<s>struck</s><pad>",
    " \n\t ",
    "\0",
    "a\r\nb\n",
    "{{ 7 * 7 }} {% raw %}",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽",
]
WORDS = st.lists(
    st.sampled_from([*(marker for pair in MARKERS.values() for marker in pair), "<s>", " a", "山", "\n", "[", "EOQ]"])
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    min_size=1,
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta on a raw BLOOM: whatever an export has to bring together is apart."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(make_checkpoint(dtype=torch.float16, layers=3), folder / "bloom")
    raw = json.loads((folder / "bloom" / "tokenizer.json").read_text("utf-8"))
    raw["added_tokens"] = raw["added_tokens"][:4]
    (folder / "bloom" / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    base = load_base(str(folder / "bloom"))
    for parameter in unfreeze(base.model, tune="bitfit").values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    write_delta(folder / "delta", base.model, base, name="tuned", max_tokens=64, license="MIT", recipe_digest="ab12")
    return folder / "delta"


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return Embedder.load(str(model), precision="fp32", device="cpu")


# --- tokenizer files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "udever-nano"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer_path: Path) -> UdeverTokenizer:
    """The markers behind the vocabulary, and in the midst of it."""
    if request.param == "tiny":
        return UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)
    return Embedder.load("udever-nano", device="cpu")._parts.tokenizer


@pytest.fixture(scope="module")
def exported(tokenizer: UdeverTokenizer) -> dict[str, Tokenizer]:
    pad = pad_token(tokenizer, {"pad_token_id": 3})
    files = {role: of_role(tokenizer, role=role, max_tokens=9, pad=pad) for role in ROLES}
    files["private"] = private(tokenizer, role="query")
    return {name: Tokenizer.from_str(content) for name, content in files.items()}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=WORDS, role=st.sampled_from(ROLES))
@example(text="[EOQ]", role="query")
@example(text="x " * 40, role="document")
def test_a_role_s_file_gives_the_ids(
    tokenizer: UdeverTokenizer, exported: dict[str, Tokenizer], text: str, role: Any
) -> None:
    (expected,) = tokenizer.encode([text], role=role, max_tokens=9, truncate="end")
    assert exported[role].encode(text).ids == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=WORDS, role=st.sampled_from(ROLES))
@example(text="[EOQ]", role="query")
def test_private_markers_around_a_text_give_the_ids(
    tokenizer: UdeverTokenizer, exported: dict[str, Tokenizer], text: str, role: Any
) -> None:
    (expected,) = tokenizer.encode([text], role=role, max_tokens=10**6)
    opening, closing = (f"{GUARD}{marker}{END}" for marker in MARKERS[role])
    assert exported["private"].encode(opening + text + closing, add_special_tokens=False).ids == expected
    (query,) = tokenizer.encode([text], role="query", max_tokens=10**6)
    assert exported["private"].encode(text).ids == query


def test_padding_is_on_the_left_and_named(tokenizer: UdeverTokenizer, exported: dict[str, Tokenizer]) -> None:
    short, _ = exported["query"].encode_batch(["a", "a b c d e f g h"])
    assert short.ids[0] == 3
    assert (short.attention_mask[0], short.attention_mask[-1]) == (0, 1)
    assert pad_token(tokenizer, {})[0] == 0, "without a name for it, any special token will do: it is masked"


# --- sentence-transformers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed here")
    folder = tmp_path_factory.mktemp("exported") / "st"
    checked = export_sentence_transformers(str(model), folder)
    assert checked is not None
    assert checked.min_cosine >= 0.99999
    return folder


@pytest.fixture(scope="module")
def sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize("max_tokens", [64, 5, 3])
@pytest.mark.parametrize(
    ("role", "call"),
    [
        ("query", lambda model: model.encode_query),
        ("document", lambda model: model.encode_document),
        ("query", lambda model: model.encode),
        ("query", lambda model: lambda texts: model.encode(texts, prompt_name="query")),
        ("document", lambda model: lambda texts: model.encode(texts, prompt_name="document")),
        ("document", lambda model: lambda texts: model.encode(texts, task="document")),
    ],
)
def test_sentence_transformers_gives_our_vectors(
    sentence_transformer: Any, embedder: Embedder, role: Any, call: Any, max_tokens: int
) -> None:
    assert sentence_transformer.get_embedding_dimension() == 64
    sentence_transformer.max_seq_length = max_tokens
    theirs = call(sentence_transformer)(TEXTS)
    ours = embedder.embed(TEXTS, role, max_tokens=max_tokens, truncate="end")
    cosines = (ours * theirs).sum(1)
    assert cosines.min() >= 0.99999, TEXTS[cosines.argmin()][:50]


def test_the_folder_s_own_limit_is_the_model_s(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert model.max_seq_length == 64
    assert model.similarity_fn_name == "cosine"


def test_the_roles_differ_and_a_foreign_prompt_stands_before_the_text(
    sentence_transformer: Any, embedder: Embedder
) -> None:
    sentence_transformer.max_seq_length = 64
    query, document = embedder.embed(["fox"], "query")[0], embedder.embed(["fox"], "document")[0]
    assert query @ document < 0.999
    prompted = sentence_transformer.encode(["fox"], prompt="The quick brown ")[0]
    assert prompted @ embedder.embed(["The quick brown fox"])[0] > 0.99999


def test_even_a_private_marker_in_a_text_is_no_marker(sentence_transformer: Any) -> None:
    forged = f"fox{GUARD}[EOQ]{END}{GUARD}{GUARD}[BOD]{END}{END}"
    ids = sentence_transformer.preprocess([forged])["input_ids"][0].tolist()
    markers = set(
        sentence_transformer.tokenizer.convert_tokens_to_ids([f"{GUARD}{m}{END}" for m in ("[EOQ]", "[BOD]")])
    )
    assert [i in markers for i in ids] == [False] * (len(ids) - 1) + [True]


def test_transformers_alone_reads_a_query(folder: Path, embedder: Embedder) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    assert model.dtype == torch.float32
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = torch.nn.functional.normalize(model(**batch).last_hidden_state[:, -1], dim=1).numpy()
    assert (embedder.embed(TEXTS, truncate="end") * theirs).sum(1).min() >= 0.99999


def test_a_folder_saved_again_is_the_same(sentence_transformer: Any, embedder: Embedder, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    sentence_transformer.max_seq_length = 64
    sentence_transformer.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", local_files_only=True)
    for role, encode in (("query", again.encode_query), ("document", again.encode_document)):
        assert (embedder.embed(TEXTS, role, truncate="end") * encode(TEXTS)).sum(1).min() >= 0.99999


def test_no_weight_is_rounded(folder: Path, model: Path) -> None:
    base = Checkpoint.open(model.parent / "bloom").tensors()
    found = Checkpoint.open(folder).tensors()
    weights = [name for name in base if name.startswith("h.") and name.endswith("dense_h_to_4h.weight")]
    assert all(torch.equal(found[name], base[name]) for name in weights)
    assert Checkpoint.open(folder).dtypes.keys() == {"F16", "F32"}


def test_the_card_is_short_and_says_how(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    assert "encode_query" in card
    assert "license: mit" in card
    assert "recipe `ab12`" in card


def test_a_check_that_fails_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed here")
    swapped = export.chat_template().replace("[EOQ]", "[EOD]")
    monkeypatch.setattr(export, "chat_template", lambda: swapped)
    with pytest.raises(UdeverError, match="cosine is 0"):
        export_sentence_transformers(str(model), tmp_path / "st")
    assert list(tmp_path.iterdir()) == []
    assert export_sentence_transformers(str(model), tmp_path / "st", check=False) is None


def test_what_cannot_be_exported(model: Path, tmp_path: Path) -> None:
    for run in (export_sentence_transformers, export_onnx):
        with pytest.raises(NotAnEmbedderError):
            run(str(model.parent / "bloom"), tmp_path / "out")
        with pytest.raises(OptionError, match="already there"):
            run(str(model), model)
    assert list(tmp_path.iterdir()) == []


# --- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("post_layernorm_residual", [False, True])
@pytest.mark.parametrize("heads", [4, 6])
def test_the_padded_graph_is_the_model_wherever_the_padding_is(
    make_checkpoint: Callable[..., Path], heads: int, post_layernorm_residual: bool
) -> None:
    folder = make_checkpoint(width=48, heads=heads, post_layernorm_residual=post_layernorm_residual)
    embedder = Embedder.load(str(folder), precision="fp32", device="cpu")
    sequences = [[5] * 1, [7, 9, 30], list(range(40, 90)), list(range(100, 130))]
    expected = torch.empty(4, 48)
    for rows, batch in pack(sequences, batch_tokens=999, device=torch.device("cpu")):
        expected[rows] = closing_states(embedder._parts.model, batch)
    graph = PaddedGraph(embedder.config, load_file(folder / "model.safetensors")).eval()
    for side in ("left", "right"):
        ids, mask = torch.full((4, 60), 3), torch.zeros(4, 60, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            place = slice(60 - len(sequence), 60) if side == "left" else slice(0, len(sequence))
            ids[row, place], mask[row, place] = torch.tensor(sequence), 1
        with torch.inference_mode():
            found = graph(ids, mask)
        torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-6, rtol=0)


def test_what_the_onnx_export_needs_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx_that_is_not_there", "torch"))
    with pytest.raises(UdeverError, match="onnx_that_is_not_there") as caught:
        export_onnx(str(model), tmp_path / "onnx")
    assert "pip install" in caught.value.hint


@pytest.mark.slow
def test_onnx_runtime_gives_our_vectors(model: Path, embedder: Embedder, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed here")
    checked = export_onnx(str(model), tmp_path / "onnx", int8=True)
    assert checked.fp32.min_cosine >= 0.99999
    assert checked.int8 is not None
    assert 0.9 < checked.int8.min_cosine < 0.999999
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [node.name for node in session.get_outputs()] == ["sentence_embedding"]
    for role in ROLES:
        read = Tokenizer.from_file(str(tmp_path / "onnx" / f"tokenizer_{role}.json")).encode_batch(TEXTS)
        ids, mask = np.array([e.ids for e in read]), np.array([e.attention_mask for e in read])
        for order in (slice(None), slice(3, 4), slice(None, None, -1)):  # other sizes, other neighbours
            (vectors,) = session.run(None, {"input_ids": ids[order], "attention_mask": mask[order]})
            ours = embedder.embed(TEXTS[order], role, truncate="end")
            assert (ours * vectors).sum(1).min() >= 0.99999
    card = (tmp_path / "onnx" / "README.md").read_text("utf-8")
    assert "model_int8.onnx" in card
    assert "recipe `ab12`" in card


def test_an_nan_in_the_model_stops_an_export(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model.parent, tmp_path / "models")) / "delta"
    tensors = load_file(copy / "delta.safetensors")
    tensors["ln_f.bias"][0] = torch.nan
    save_file(tensors, copy / "delta.safetensors")
    with pytest.raises(UdeverError, match=r"ln_f\.bias"):
        export_sentence_transformers(str(copy), tmp_path / "out")
    assert not (tmp_path / "out").exists()
