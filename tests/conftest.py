"""Shared fixtures: a tiny real tokenizer, tiny BLOOM checkpoints with deterministic, lively weights, a running service.

The tokenizer has the published models' anatomy (byte-level BPE, BLOOM's pre-tokenisation, the markers added behind the
vocabulary); only its training text is small. Nothing here needs a network or files from outside the repository.
"""

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from udever.model.config import BloomConfig

# huggingface_hub reads these when it is first imported, which no line above does: no test sees this machine's caches,
# and none can reach a network by accident.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="udever-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
for variable in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN", "HF_ENDPOINT", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(variable, None)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

settings.register_profile("udever", deadline=None)  # a busy machine is no failure
settings.load_profile("udever")

START_SECONDS = 60.0
BLOOM_SPLIT = " ?[^(\\s|[.,!?…。，、।۔،])]+"
BLOOM_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
MARKERS = ["[BOQ]", "[EOQ]", "[BOD]", "[EOD]"]
TRAINING_TEXTS = [
    "The quick brown fox jumps over the lazy dog, again and again. How tall is the mountain? It's 8,611 metres.",
    "El zorro marrón salta sobre el perro perezoso. ¿Qué altura tiene la montaña? ¡Muchísima!",
    "Le renard brun saute par-dessus le chien paresseux. Où est la bibliothèque, s'il vous plaît ?",
    "Быстрая лиса прыгает через ленивую собаку. Какой высоты гора?",
    "敏捷的棕色狐狸跳过了懒狗。这座山有多高？我不知道，你知道吗？",
    "素早い茶色の狐がのろまな犬を飛び越える。山の高さはどれくらいですか。",
    "الثعلب البني السريع يقفز فوق الكلب الكسول، ما هو ارتفاع الجبل؟",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। पहाड़ कितना ऊँचा है?",
    "দ্রুত বাদামী শিয়াল অলস কুকুরের উপর লাফ দেয়। পাহাড়টি কত উঁচু?",
    "Con cáo nâu nhanh nhẹn nhảy qua con chó lười. Ngọn núi cao bao nhiêu?",
    "Mbweha mwepesi wa kahawia anaruka juu ya mbwa mvivu. Mlima una urefu gani?",
    "def height(self, metres: float = 8611.0) -> float:\n    return max(metres, 0.0)  # the mountain\n",
    "function jump(fox, dog) {\n\tif (dog.lazy) { return fox.over(dog); }\n\treturn null;\n}\n",
    "public static int main(String[] args) { System.out.println(args.length); return 0; }",
    "SELECT name, height FROM mountains WHERE height > 8000 ORDER BY height DESC;",
]


def train_tiny_tokenizer(entries: int = 640) -> Tokenizer:
    """Byte-level BPE of `entries` ids, then the four markers as special added tokens behind them."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(BLOOM_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=BLOOM_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXTS, trainer)
    tokenizer.add_special_tokens(MARKERS)
    return tokenizer


def draw_tensors(config: BloomConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every tensor of the model; attention is peaked, no bias is 0 and no norm weight 1, so that each one matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            norm_weight = name.endswith(("layernorm.weight", "ln_f.weight"))
            return (noise * 0.1 + (1.0 if norm_weight else 0.0)).to(dtype)
        gain = {"query_key_value": 1.5, "word_embeddings": 0.05 * shape[1] ** 0.5}
        scale = next((g for part, g in gain.items() if part in name), 0.7)
        return (noise * (scale / shape[1] ** 0.5)).to(dtype)

    return {name: draw(name, shape) for name, shape in config.tensor_shapes().items()}


@dataclass
class Server:
    """One running service."""

    process: subprocess.Popen[bytes]
    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait(self, path: str, *, status: int = 200) -> None:
        """Until GET `path` answers with `status`."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log
            try:
                if httpx.get(self.url + path, timeout=5).status_code == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise TimeoutError(self.log)

    def stop(self, *, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


def pytest_configure() -> None:
    """One thread: the models here are tiny, and OpenMP threads that spin beside a busy core cost milliseconds each."""
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every test must run (CI says so), a program that is missing is a failure, not a skip."""
    report = yield
    if report.skipped and "is not installed here" in str(report.longrepr) and os.environ.get("UDEVER_TESTS_SKIP_NONE"):
        report.outcome = "failed"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files, so that they do not end last; skip `gpu` tests where there is no GPU."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """start_server("--load", "lazy", env={...}) starts `udever serve` on a free port; it is stopped at the end."""
    with ExitStack() as running:

        def start(
            *flags: str,
            env: dict[str, str] | None = None,
            ready: bool = True,
            program: tuple[str, ...] = ("-m", "udever"),
        ) -> Server:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            log_file = tmp_path_factory.mktemp("serve") / "log.jsonl"
            with log_file.open("wb") as log:
                command = [sys.executable, *program, "serve", "--port", str(port), *flags]
                variables = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
                process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
            running.callback(_end, process)
            server = Server(process, f"http://127.0.0.1:{port}", log_file)
            if ready:
                server.wait("/health/ready")
            return server

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.fixture(scope="session")
def random_tensors() -> Callable[..., dict[str, torch.Tensor]]:
    """The function that draws every tensor of a `BloomConfig`."""
    return draw_tensors


@pytest.fixture(scope="session")
def tiny_tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `tokenizer.json` of the tiny tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tiny_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="session")
def make_checkpoint(tiny_tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a checkpoint folder (config.json, model.safetensors, tokenizer.json) of a given shape.

    `vocab_size=None` means the tokenizer's ids rounded up to a multiple of 64, as the published tables are larger than
    their tokenizers. Further keywords go into config.json.
    """
    ids = Tokenizer.from_file(str(tiny_tokenizer_path)).get_vocab_size()

    def make(
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        vocab_size: int | None = None,
        post_layernorm_residual: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **config: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        raw = {
            "architectures": ["BloomModel"],
            "model_type": "bloom",
            "hidden_size": width,
            "n_layer": layers,
            "n_head": heads,
            "vocab_size": vocab_size or -(-ids // 64) * 64,
            "layer_norm_epsilon": 1e-5,
            "apply_residual_connection_post_layernorm": post_layernorm_residual,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            "torch_dtype": str(dtype).removeprefix("torch."),
        } | config
        (folder / "config.json").write_text(json.dumps(raw, indent=1))
        tensors = draw_tensors(BloomConfig.from_hugging_face(raw), seed=seed, dtype=dtype)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(tiny_tokenizer_path, folder / "tokenizer.json")
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """One shared checkpoint folder, width 64, 2 layers, 4 heads; copy it before changing it."""
    return make_checkpoint()


@pytest.fixture
def raw_bloom(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A base BLOOM of its own: fp16 weights, a tokenizer without markers, spare rows in the token table."""
    folder = Path(shutil.copytree(make_checkpoint(dtype=torch.float16), tmp_path / "bloom"))
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in MARKERS]
    path.write_text(json.dumps(raw, ensure_ascii=False), "utf-8")
    return folder
