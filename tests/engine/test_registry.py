import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import cached_assets_path
from safetensors.torch import load_file

from udever.engine import registry
from udever.engine.locating import locate
from udever.errors import ConfigError, ModelNotFoundError, NonFiniteWeightsError, TokenizerError
from udever.model.config import BloomConfig
from udever.model.weights import Checkpoint
from udever.tokenizer import UdeverTokenizer

CONFIG = BloomConfig(width=64, layers=2, heads=4, vocab_size=704, max_tokens=2048)
MANIFEST = {
    "name": "tiny",
    "max_tokens": 512,
    "matryoshka": [16, 32, 64],
    "pooling": "closing_marker",
    "markers": {"query": ["[BOQ]", "[EOQ]"], "document": ["[BOD]", "[EOD]"]},
    "license": "Apache-2.0",
    "scores": {"stsb": {"en": 0.8}},
}


@pytest.fixture
def checkpoint_copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture
def builtin(checkpoint_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only built-in model, "tiny"."""
    folder = tmp_path / "builtin" / "tiny"
    shutil.copytree(checkpoint_copy, folder)
    (folder / "udever.json").write_text(json.dumps(MANIFEST))
    (folder.parent / "half-written").mkdir()
    monkeypatch.setattr(registry, "BUILTIN_FOLDER", folder.parent)
    return folder


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_built_in_name(builtin: Path) -> None:
    assert registry.builtin_models() == ("tiny",)
    source = registry.resolve("tiny")
    assert (source.name, source.folder, source.kind, source.revision) == ("tiny", builtin, "built-in", None)


def test_a_built_in_name_wins_over_a_folder_and_a_path_over_the_hub(
    builtin: Path, checkpoint_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint_copy, tmp_path / "tiny")
    shutil.copytree(checkpoint_copy, tmp_path / "owner" / "model")
    assert registry.resolve("tiny").kind == "built-in"
    assert registry.resolve("./tiny").kind == "folder"
    assert registry.resolve("owner/model").kind == "folder"


def test_a_local_folder(checkpoint_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = registry.resolve(str(checkpoint_copy))
    assert (source.folder, source.kind, source.revision) == (checkpoint_copy, "folder", None)
    monkeypatch.setenv("HOME", str(checkpoint_copy.parent))
    assert registry.resolve("~/copy").folder == checkpoint_copy


def test_every_model_in_the_wheel_is_whole() -> None:
    for name in registry.builtin_models():
        located = locate(name)
        checkpoint = located.checkpoint()
        checkpoint.check_finite()
        located.moved(checkpoint)  # a delta fits its base
        registry.check_vocabulary(located.tokenizer(), checkpoint.config)
        assert located.manifest(checkpoint.config).name == name


@pytest.mark.parametrize(
    "name", ["", "tinny", "no such model", "./owner/model", "/owner/model", "a/b/c", "../model", "Ü/m"]
)
def test_a_name_that_is_nothing(builtin: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(ModelNotFoundError) as caught:
        registry.resolve(name)
    assert repr(name) in caught.value.message
    assert "tiny" in caught.value.message
    assert "izhx/udever-bloom-560m" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "meant"), [("tinny", "'tiny'"), ("udever-bloom-1b1", "'izhx/udever-bloom-1b1'"), ("udever-3b", "-3b'")]
)
def test_a_near_miss_is_told(builtin: Path, name: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean") as caught:
        registry.resolve(name)
    assert meant in caught.value.hint


def test_a_file_is_not_a_model(checkpoint_copy: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a file") as caught:
        registry.resolve(str(checkpoint_copy / "model.safetensors"))
    assert str(checkpoint_copy) in caught.value.hint


def test_published_models() -> None:
    published = registry.published_models()
    assert [model.hub_id for model in published] == [
        f"izhx/udever-bloom-{size}" for size in ("560m", "1b1", "3b", "7b1")
    ]
    assert {model.license for model in published} == {"bigscience-bloom-rail-1.0"}
    assert [model.config.width for model in published] == [1024, 1536, 2560, 4096]


# --- manifest --------------------------------------------------------------------------------------------------------


def test_without_a_manifest_the_published_defaults(tmp_path: Path) -> None:
    manifest = registry.load_manifest(tmp_path, config=CONFIG)
    assert manifest == registry.Manifest(name="", max_tokens=2048, matryoshka=(), pooling="closing_marker")


def test_a_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "udever.json").write_text(json.dumps(MANIFEST | {"from_the_future": 1}))
    manifest = registry.load_manifest(tmp_path, config=CONFIG)
    assert (manifest.name, manifest.max_tokens, manifest.matryoshka) == ("tiny", 512, (16, 32, 64))
    assert (manifest.license, manifest.scores) == ("Apache-2.0", {"stsb": {"en": 0.8}})


def test_a_manifest_without_max_tokens_takes_the_config_s(tmp_path: Path) -> None:
    (tmp_path / "udever.json").write_text("{}")
    assert registry.load_manifest(tmp_path, config=CONFIG).max_tokens == 2048


def test_a_manifest_is_written_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "udever.json").write_text(json.dumps(MANIFEST))
    manifest = registry.load_manifest(tmp_path, config=CONFIG)
    written = registry.manifest_json(manifest)
    assert written == MANIFEST | {"microcredits_per_token": 1}
    (tmp_path / "udever.json").write_text(json.dumps(written))
    assert registry.load_manifest(tmp_path, config=CONFIG) == manifest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("max_tokens", 2),
        ("max_tokens", "512"),
        ("max_tokens", True),
        ("matryoshka", 64),
        ("matryoshka", [64, 32]),
        ("matryoshka", [32, 32]),
        ("matryoshka", [0, 32]),
        ("matryoshka", [32, 65]),
        ("matryoshka", ["32"]),
        ("markers", {"query": ["[BOQ]", "[EOQ]"]}),
        ("markers", None),
        ("pooling", "mean"),
        ("license", None),
        ("scores", []),
    ],
)
def test_a_malformed_manifest_names_the_key(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "udever.json").write_text(json.dumps(MANIFEST | {key: value}))
    with pytest.raises(ConfigError) as caught:
        registry.load_manifest(tmp_path, config=CONFIG)
    assert f"udever.json: {key} is {value!r}" in caught.value.message


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_an_unreadable_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "udever.json").write_text(content)
    with pytest.raises(ConfigError, match=r"udever\.json"):
        registry.load_manifest(tmp_path, config=CONFIG)


# --- what is checked and remembered ----------------------------------------------------------------------------------


def test_a_tokenizer_with_ids_beyond_the_table(tiny_tokenizer_path: Path) -> None:
    tokenizer = UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)

    def config(rows: int) -> BloomConfig:
        return BloomConfig(width=64, layers=2, heads=4, vocab_size=rows)

    registry.check_vocabulary(tokenizer, config(tokenizer.vocab_size))
    registry.check_vocabulary(tokenizer, config(tokenizer.vocab_size + 60))
    with pytest.raises(TokenizerError, match="token table"):
        registry.check_vocabulary(tokenizer, config(tokenizer.vocab_size - 1))


class Counted(Checkpoint):
    """A checkpoint that counts how often its weights are read."""

    reads = 0

    def digest(self) -> str:
        self.reads += 1
        return super().digest()

    def check_finite(self) -> None:
        self.reads += 1
        super().check_finite()


def cache_files() -> list[Path]:
    return sorted(Path(cached_assets_path("udever", namespace="weights")).iterdir())


def test_weights_are_read_once_for_each_state_of_the_files(checkpoint_copy: Path) -> None:
    checkpoint = Counted.open(checkpoint_copy)
    assert isinstance(checkpoint, Counted)
    registry.check_finite(checkpoint, checkpoint_copy)
    digest = registry.weights_digest(checkpoint, checkpoint_copy)
    assert (digest, checkpoint.reads) == (Checkpoint.open(checkpoint_copy).digest(), 2)
    for _ in range(3):
        registry.check_finite(checkpoint, checkpoint_copy)
        assert registry.weights_digest(checkpoint, checkpoint_copy) == digest
    assert checkpoint.reads == 2
    os.utime(checkpoint_copy / "model.safetensors", ns=(1, 1))
    assert registry.weights_digest(checkpoint, checkpoint_copy) == digest
    registry.check_finite(checkpoint, checkpoint_copy)
    assert checkpoint.reads == 4


def test_changed_weights_have_another_digest(checkpoint_copy: Path, make_checkpoint: Callable[..., Path]) -> None:
    before = registry.weights_digest(Checkpoint.open(checkpoint_copy), checkpoint_copy)
    shutil.copy(make_checkpoint(seed=1) / "model.safetensors", checkpoint_copy)
    assert registry.weights_digest(Checkpoint.open(checkpoint_copy), checkpoint_copy) != before


def test_a_changed_config_has_another_digest(checkpoint_copy: Path) -> None:
    """The number of heads is told by no tensor, yet every vector depends on it."""
    before = registry.weights_digest(Checkpoint.open(checkpoint_copy), checkpoint_copy)
    raw = json.loads((checkpoint_copy / "config.json").read_text()) | {"n_head": 8}
    (checkpoint_copy / "config.json").write_text(json.dumps(raw))
    assert registry.weights_digest(Checkpoint.open(checkpoint_copy), checkpoint_copy) != before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"weights_digest": "00"}', b'{"weights_digest": "00", "check": "1"}', b"\xff"],
)
def test_a_corrupt_cache_file_is_ignored_and_rewritten(checkpoint_copy: Path, content: bytes) -> None:
    before = set(cache_files())
    checkpoint = Counted.open(checkpoint_copy)
    digest = registry.weights_digest(checkpoint, checkpoint_copy)
    (made,) = set(cache_files()) - before
    good = made.read_bytes()
    made.write_bytes(content)
    assert registry.weights_digest(checkpoint, checkpoint_copy) == digest
    assert made.read_bytes() == good
    assert set(cache_files()) - before == {made}, "no unfinished file stays behind"


def test_non_finite_weights_are_not_remembered_as_sound(checkpoint_copy: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(checkpoint_copy / "model.safetensors")
    tensors["ln_f.bias"][3] = torch.nan
    save_file(tensors, checkpoint_copy / "model.safetensors")
    checkpoint = Checkpoint.open(checkpoint_copy)
    registry.weights_digest(checkpoint, checkpoint_copy)
    for _ in range(2):
        with pytest.raises(NonFiniteWeightsError, match=r"ln_f\.bias"):
            registry.check_finite(checkpoint, checkpoint_copy)


def test_other_weights_of_the_same_size_and_time_are_other_weights(checkpoint_copy: Path) -> None:
    """As `rsync -a` and `cp -p` bring them."""
    path = checkpoint_copy / "model.safetensors"
    before = registry.weights_digest(Checkpoint.open(checkpoint_copy), checkpoint_copy)
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-4] + bytes(4))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert registry.weights_digest(Checkpoint.open(checkpoint_copy), checkpoint_copy) != before


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a" * 5000, "a\0b"])
def test_names_that_are_no_path_are_no_model(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        registry.resolve(name)


@pytest.mark.parametrize("error", [PermissionError("read-only"), ValueError("Corrupted assets folder")], ids=repr)
def test_a_cache_that_cannot_be_written_is_done_without(
    error: Exception, checkpoint_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> Path:
        raise error

    monkeypatch.setattr(registry, "cached_assets_path", refuse)
    checkpoint = Checkpoint.open(checkpoint_copy)
    assert registry.weights_digest(checkpoint, checkpoint_copy) == checkpoint.digest()


def fingerprint_of(folder: Path, *, precision: str = "fp32") -> str:
    checkpoint = Checkpoint.open(folder)
    return registry.fingerprint(
        weights=registry.weights_digest(checkpoint, folder),
        tokenizer=UdeverTokenizer.from_folder(folder).digest,
        manifest=registry.load_manifest(folder, config=checkpoint.config),
        precision=precision,
    )


def test_fingerprint_is_of_content(checkpoint_copy: Path, tiny_checkpoint: Path) -> None:
    expected = fingerprint_of(tiny_checkpoint)
    assert re.fullmatch(r"udv1-[0-9a-f]{16}", expected)
    tensors = load_file(checkpoint_copy / "model.safetensors")
    (checkpoint_copy / "model.safetensors").unlink()
    torch.save(
        {f"transformer.{name}": tensor for name, tensor in tensors.items()}, checkpoint_copy / "pytorch_model.bin"
    )
    raw = json.loads((checkpoint_copy / "tokenizer.json").read_text("utf-8"))
    (checkpoint_copy / "tokenizer.json").write_text(json.dumps(raw, indent=3, sort_keys=True), "utf-8")
    (checkpoint_copy / "udever.json").write_text(json.dumps({"name": "other", "license": "MIT", "scores": {"a": 1}}))
    assert fingerprint_of(checkpoint_copy) == expected


def test_fingerprint_tells_apart_what_changes_vectors(
    checkpoint_copy: Path, make_checkpoint: Callable[..., Path]
) -> None:
    prints = [fingerprint_of(checkpoint_copy, precision=precision) for precision in ("fp32", "bf16", "int8")]
    prints.append(fingerprint_of(make_checkpoint(seed=1)))
    (checkpoint_copy / "udever.json").write_text(json.dumps({"max_tokens": 300}))
    prints.append(fingerprint_of(checkpoint_copy))
    raw = json.loads((checkpoint_copy / "tokenizer.json").read_text("utf-8"))
    raw["model"]["merges"].pop()
    (checkpoint_copy / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    prints.append(fingerprint_of(checkpoint_copy))
    assert len(set(prints)) == len(prints)


def test_fingerprint_is_the_one_of_every_release() -> None:
    """Stored beside vectors in other people's indexes: a change of this constant breaks them."""
    manifest = registry.Manifest(max_tokens=2048)
    assert registry.fingerprint(weights="ab", tokenizer="cd", manifest=manifest, precision="fp32") == FINGERPRINT


FINGERPRINT = "udv1-f1ee99a8b959ed47"


# --- the hub ---------------------------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """The little of the hub's protocol that huggingface_hub needs to download models; records what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.token = "hf_secret"
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), HubHandler)

    def add(self, hub_id: str, folder: Path, *, but: tuple[str, ...] = ()) -> None:
        self.repositories[hub_id] = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.name not in but
        }

    def commit(self, hub_id: str) -> str:
        return sha1(repr(sorted(self.repositories[hub_id].items())).encode()).hexdigest()

    def downloaded(self) -> set[str]:
        found = (re.search(r"GET /[^ ]*/resolve/[^/]*/(.*)", line) for line in self.asked)
        return {match[1] for match in found if match}


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self.answer_about(match[1], kind=match[2], revision=match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.answer_file(match[1], revision=match[2], name=match[3])
        else:
            self.answer(404, b"")

    do_HEAD = do_GET  # noqa: N815

    def refused(self, hub_id: str, revision: str) -> bool:
        if hub_id not in self.server.repositories:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif hub_id in self.server.gated and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif revision not in ("main", "v1", self.server.commit(hub_id)):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            return False
        return True

    def answer_about(self, hub_id: str, *, kind: str | None, revision: str) -> None:
        if self.refused(hub_id, revision):
            return
        files = self.server.repositories[hub_id]
        if kind == "tree":
            content: Any = [
                {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            content = {"id": hub_id, "modelId": hub_id, "sha": self.server.commit(hub_id), "siblings": siblings}
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer_file(self, hub_id: str, *, revision: str, name: str) -> None:
        if self.refused(hub_id, revision):
            return
        data = self.server.repositories[hub_id].get(name)
        if data is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            commit = self.server.commit(hub_id)
            self.answer(200, data, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": commit})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Resolve = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def resolve(hub: Hub, tmp_path: Path) -> Resolve:
    """A function that resolves names in a fresh process, as huggingface_hub reads its settings when imported.

    Each answer is a ModelSource's fields, or the error's class, code and text. All calls share one cache.
    """

    def resolve(*calls: dict[str, Any], **settings: str) -> list[dict[str, Any]]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", RESOLVE, json.dumps(calls)],
            env=environment | settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return [answer | {"stderr": done.stderr} for answer in answers]

    return resolve


RESOLVE = textwrap.dedent(
    """
    import json, sys
    from udever.engine.registry import is_cached, resolve
    from udever.errors import ModelError

    answers = []
    for call in json.loads(sys.argv[1]):
        try:
            source = resolve(**call)
        except ModelError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        else:
            answer = {"folder": str(source.folder), "kind": source.kind, "revision": source.revision}
        answers.append(answer | {"cached": is_cached(call["name"], revision=call.get("revision"))})
    print(json.dumps(answers))
    """
)


def test_a_hub_model_is_downloaded_once_then_found_offline(hub: Hub, resolve: Resolve, checkpoint_copy: Path) -> None:
    (checkpoint_copy / "README.md").write_text("card")
    torch.save(load_file(checkpoint_copy / "model.safetensors"), checkpoint_copy / "pytorch_model.bin")
    hub.add("owner/model", checkpoint_copy)
    call = {"name": "owner/model"}
    (first,) = resolve(call)
    assert (first["kind"], first["revision"], first["cached"]) == ("hub", hub.commit("owner/model"), True)
    assert hub.downloaded() == {"config.json", "tokenizer.json", "model.safetensors"}, "and neither card nor .bin"
    assert Checkpoint.open(Path(first["folder"])).digest() == Checkpoint.open(checkpoint_copy).digest()
    hub.asked.clear()
    (again,) = resolve(call)
    assert again["folder"] == first["folder"]
    assert hub.downloaded() == set()
    assert again["stderr"] == "", "nothing is shown where nothing is downloaded"
    hub.asked.clear()
    offline = resolve(call, call | {"revision": first["revision"]}, HF_HUB_OFFLINE="1")
    assert [answer["folder"] for answer in offline] == [first["folder"]] * 2
    assert hub.asked == []
    (unreachable,) = resolve(call, HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable["folder"] == first["folder"]


def test_a_bin_only_sharded_model_with_a_manifest(hub: Hub, resolve: Resolve, checkpoint_copy: Path) -> None:
    tensors = load_file(checkpoint_copy / "model.safetensors")
    (checkpoint_copy / "model.safetensors").unlink()
    (checkpoint_copy / "udever.json").write_text(json.dumps(MANIFEST))
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, checkpoint_copy / shard)
        weight_map |= dict.fromkeys(part, shard)
    (checkpoint_copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint_copy / "training_args.bin").write_text("not wanted")
    hub.add("owner/sharded", checkpoint_copy)
    (answer,) = resolve({"name": "owner/sharded", "revision": "v1"})
    assert hub.downloaded() == {path.name for path in checkpoint_copy.iterdir()} - {"training_args.bin"}
    checkpoint = Checkpoint.open(Path(answer["folder"]))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in checkpoint.tensors().items())
    assert registry.load_manifest(Path(answer["folder"]), config=checkpoint.config).name == "tiny"


def test_an_interrupted_download_is_completed(hub: Hub, resolve: Resolve, checkpoint_copy: Path) -> None:
    hub.add("owner/model", checkpoint_copy)
    (first,) = resolve({"name": "owner/model"})
    (Path(first["folder"]) / "model.safetensors").unlink()
    (offline,) = resolve({"name": "owner/model"}, HF_HUB_OFFLINE="1")
    assert (offline["error"], offline["cached"]) == ("ModelNotFoundError", False)
    assert "not wholly" in offline["text"]
    (second,) = resolve({"name": "owner/model"})
    assert second["cached"]
    Checkpoint.open(Path(second["folder"])).check_finite()


def test_what_cannot_be_had_is_explained(hub: Hub, resolve: Resolve, checkpoint_copy: Path) -> None:
    hub.add("owner/gated", checkpoint_copy)
    hub.gated.add("owner/gated")
    hub.add("owner/empty", checkpoint_copy, but=("model.safetensors",))
    hub.add("owner/model", checkpoint_copy)
    absent, gated, empty, revision, invalid, opened = resolve(
        {"name": "owner/absent"},
        {"name": "owner/gated", "token": "hf_wrong"},
        {"name": "owner/empty"},
        {"name": "owner/model", "revision": "v9"},
        {"name": "owner/mo--del"},
        {"name": "owner/gated", "token": hub.token},
    )
    failures = [absent, gated, empty, revision, invalid]
    assert {answer["error"] for answer in failures} == {"ModelNotFoundError"}
    assert {answer["cached"] for answer in failures} == {False}
    assert "'owner/absent': the hub has no such model" in absent["text"]
    assert "tried: built-in models, a local folder of that name" in absent["text"]
    assert "'owner/gated'" in gated["text"]
    assert "token" in gated["text"]
    assert "hf_wrong" not in gated["text"]
    assert "'owner/empty' has no weights" in empty["text"]
    assert "'owner/model' at revision 'v9': it has no such revision" in revision["text"]
    assert "no valid hub id" in invalid["text"]
    assert opened["kind"] == "hub"


@pytest.mark.parametrize("settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_offline_and_not_cached(resolve: Resolve, settings: dict[str, str]) -> None:
    (answer,) = resolve({"name": "izhx/udever-bloom-1b1"}, **settings)
    assert answer["error"] == "ModelNotFoundError"
    assert "'izhx/udever-bloom-1b1'" in answer["text"]
    assert "hf download izhx/udever-bloom-1b1" in answer["text"]
    assert ("unset HF_HUB_OFFLINE" in answer["text"]) == ("HF_HUB_OFFLINE" in settings)


def test_what_is_no_udever_is_refused_before_its_weights_are_downloaded(
    hub: Hub, resolve: Resolve, checkpoint_copy: Path
) -> None:
    raw = json.loads((checkpoint_copy / "tokenizer.json").read_text("utf-8"))
    raw["added_tokens"] = raw["added_tokens"][:4]
    (checkpoint_copy / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    hub.add("bigscience/bloom-560m", checkpoint_copy)
    (checkpoint_copy / "config.json").write_text('{"model_type": "llama"}')
    hub.add("owner/llama", checkpoint_copy)
    hub.add("owner/tokenizer-only", checkpoint_copy, but=("config.json",))
    base, llama, no_config = resolve(
        {"name": "bigscience/bloom-560m"}, {"name": "owner/llama"}, {"name": "owner/tokenizer-only"}
    )
    assert base["error"] == "NotAnEmbedderError"
    assert (llama["error"], no_config["error"]) == ("NotBloomError", "NotBloomError")
    assert "model.safetensors" not in hub.downloaded()


def test_a_base_bloom_is_downloaded_as_a_base_only(hub: Hub, resolve: Resolve, checkpoint_copy: Path) -> None:
    raw = json.loads((checkpoint_copy / "tokenizer.json").read_text("utf-8"))
    raw["added_tokens"] = raw["added_tokens"][:4]
    (checkpoint_copy / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    hub.add("bigscience/bloom-560m", checkpoint_copy)
    call = {"name": "bigscience/bloom-560m"}
    refused, base = resolve(call, call | {"as_base": True})
    assert refused["error"] == "NotAnEmbedderError"
    assert (Path(base["folder"]) / "model.safetensors").is_file()


def test_a_delta_from_the_hub_is_whole_without_weights(hub: Hub, resolve: Resolve, tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    folder.mkdir()
    (folder / "delta.safetensors").write_bytes(b"biases")
    (folder / "udever.json").write_text("{}")
    (folder / "README.md").write_text("card")
    hub.add("owner/delta", folder)
    (answer,) = resolve({"name": "owner/delta"})
    assert answer["kind"] == "hub"
    assert hub.downloaded() == {"delta.safetensors", "udever.json"}
    (offline,) = resolve({"name": "owner/delta"}, HF_HUB_OFFLINE="1")
    assert offline["folder"] == answer["folder"]
