"""Manifests: what ships is sound and true to the models, an operator's folder is checked to the field."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udever.catalog.fields import FIELDS
from udever.catalog.languages import NAMES, language_name
from udever.catalog.manifests import load_catalog, read_manifest, read_scores
from udever.engine.registry import BUILTIN_FOLDER, builtin_models, published_models
from udever.errors import CatalogError
from udever.model.config import BloomConfig

DOCS = Path(__file__).parents[2] / "docs" / "catalog.md"
MINIMAL = 'id = "acme/law"\ntitle = "Acme Law"\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str, name: str = "law.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return make


def test_the_published_models_and_the_built_in_ones_have_manifests() -> None:
    assert set(load_catalog()) == {*builtin_models(), *(model.hub_id for model in published_models())}


def test_what_the_manifests_say_of_the_models_is_so() -> None:
    catalog = load_catalog()
    raw = json.loads((BUILTIN_FOLDER / "udever-nano" / "config.json").read_text("utf-8"))
    configs = {model.hub_id: model.config for model in published_models()}
    configs["udever-nano"] = BloomConfig.from_hugging_face(raw)
    for name, config in configs.items():
        manifest = catalog[name]
        assert manifest.parameters == config.parameters, name
        assert manifest.dimensions[0] == config.width
        assert manifest.max_tokens == config.max_tokens
    assert {catalog[model.hub_id].licence for model in published_models()} == {
        model.license for model in published_models()
    }


def test_the_built_in_models_scores_are_those_of_its_own_file() -> None:
    raw = json.loads((BUILTIN_FOLDER / "udever-nano" / "udever.json").read_text("utf-8"))
    nano = load_catalog()["udever-nano"]
    assert {results.protocol: dict(results.scores) for results in nano.results} == raw["scores"]
    assert nano.licence == raw["license"]
    assert list(nano.dimensions) == sorted(raw["matryoshka"], reverse=True)


def test_every_language_of_ours_has_a_name() -> None:
    for manifest in load_catalog().values():
        assert {code for code in manifest.languages if code not in NAMES} == set()
        for results in manifest.results:
            if "FLORES" in results.protocol:
                assert [key for key, _ in results.scores if language_name(key) == key] == []


def test_the_facts_of_the_1b1_page() -> None:
    manifest = load_catalog()["izhx/udever-bloom-1b1"]
    assert (str(manifest.published), str(manifest.updated)) == ("Oct 2023", "Nov 2023")
    assert manifest.downloads is not None
    assert manifest.downloads.per_month == 321
    assert manifest.training_data == ("MS MARCO Passage Ranking", "SNLI", "MultiNLI")
    assert len(manifest.languages) == 46
    assert manifest.base == "bigscience/bloom-1b1"


def test_an_operators_manifest_stands_beside_ours_or_replaces_one(write: Callable[..., Path], tmp_path: Path) -> None:
    write(MINIMAL + 'base = "udever-nano"\nlanguages = ["el", "pt"]\ndimensions = [64, 256]\n')
    write('id = "udever-nano"\ntitle = "Ours"\nmicrocredits_per_token = 0\n', "nano.toml")
    catalog = load_catalog(tmp_path)
    assert catalog["acme/law"].dimensions == (256, 64)
    assert catalog["acme/law"].languages == ("el", "pt")
    assert catalog["udever-nano"].title == "Ours"
    assert catalog["udever-nano"].microcredits_per_token == 0
    assert "izhx/udever-bloom-1b1" in catalog


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("titel = 'x'", "unknown field titel"),
        ("parameters = -1", "parameters is -1"),
        ("parameters = true", "parameters is True"),
        ("dimensions = []", "dimensions is []"),
        ("dimensions = [64, 64]", "dimensions is [64, 64]"),
        ("languages = ['english']", "languages is ['english']"),
        ("languages = [['en']]", "languages is [['en']]"),
        ("published = '2023-13'", "published is '2023-13'"),
        ("published = 2023", "published is 2023"),
        ("licence_url = 'javascript:alert(1)'", "licence_url is 'javascript:alert(1)'"),
        ("links = [{title = 'x', url = 'data:text/html,x'}]", "links[0]: url is 'data:text/html,x'"),
        ("faq = [{question = 'q', answer = 'a'}, {question = 'q'}]", "faq[1]: answer is missing"),
        ("downloads = {per_month = 3}", "downloads: seen is missing"),
        ("downloads = 3", "downloads is 3"),
        ("published_numbers = {row = 'nobody'}", "published_numbers: row is 'nobody'"),
        (
            "published_numbers = {row = 'GTE-base', benchmarks = ['mteb']}",
            "published_numbers: benchmarks is ['mteb']",
        ),
        ("results = [{protocol = 'p', scores = {a = nan}}]", "results[0]: scores is {'a': nan}"),
        ("results = [{protocol = 'p', scores = {}}]", "results[0]: scores is {}"),
        ("scores_file = 'nowhere.json'", "scores_file 'nowhere.json'"),
        ("microcredits_per_token = 0.5", "microcredits_per_token is 0.5"),
        ("about = 'one text'", "about is 'one text'"),
    ],
)
def test_an_error_names_the_file_and_the_field(line: str, named: str, write: Callable[..., Path]) -> None:
    path = write(f"{MINIMAL}{line}\n")
    with pytest.raises(CatalogError) as caught:
        read_manifest(path)
    assert str(path) in caught.value.message
    assert named in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("id_", ["", "a b", "../x", "a/b/c", "/a", "a/", "-x"])
def test_an_id_that_no_address_could_hold_is_refused(id_: str, write: Callable[..., Path]) -> None:
    with pytest.raises(CatalogError, match="id is"):
        read_manifest(write(f"id = {json.dumps(id_)}\ntitle = 'x'\n"))


def test_a_misspelt_field_is_guessed(write: Callable[..., Path]) -> None:
    with pytest.raises(CatalogError) as caught:
        read_manifest(write(MINIMAL + 'license = "MIT"\n'))
    assert "did you mean licence?" in caught.value.hint


def test_what_is_no_toml_or_no_text_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"law\.toml"):
        read_manifest(write("id = "))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogError, match=r"bytes\.toml"):
        read_manifest(tmp_path / "bytes.toml")


def test_two_files_must_not_claim_one_id_and_the_folder_must_be_there(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write(MINIMAL, "a.toml")
    write(MINIMAL, "b.toml")
    with pytest.raises(CatalogError, match=r"b\.toml.*'acme/law'.*a\.toml"):
        load_catalog(tmp_path)
    with pytest.raises(CatalogError, match="no folder"):
        load_catalog(tmp_path / "none")


def test_a_related_model_must_have_a_manifest(write: Callable[..., Path], tmp_path: Path) -> None:
    write(MINIMAL + 'related = ["udever-nano", "acme/tax"]\n')
    with pytest.raises(CatalogError, match="'acme/tax'"):
        load_catalog(tmp_path)


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.text(max_size=3), st.floats(), st.integers())))
def test_scores_that_are_no_numbers_are_left_out(values: dict[str, object]) -> None:
    found = read_scores({"protocol": values, "alone": 3.0})
    kept = {key: value for results in found for key, value in results.scores}
    assert all(isinstance(value, (int, float)) and abs(value) < float("inf") for value in kept.values())
    assert kept.keys() == {
        key for key, value in values.items() if isinstance(value, (int, float)) and abs(value) < float("inf")
    }


def test_the_docs_name_every_field_and_their_example_is_a_manifest(write: Callable[..., Path]) -> None:
    text = DOCS.read_text("utf-8")
    assert [name for name in FIELDS if f"`{name}`" not in text] == []
    example = text.partition("```toml\n")[2].partition("```")[0]
    manifest = read_manifest(write(example))
    assert manifest.base
    assert manifest.results
