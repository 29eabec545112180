"""The SDKs that people use, unchanged but for `base_url`: each gets the vectors that the library gives."""

import asyncio
import gc
import json
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest

TEXTS = ["How tall is K2?", "Die Höhe des K2 beträgt 8611 m.", "def height(self): return 8611", "K2有多高？"]
MODEL = "udever-nano"
Same = Callable[..., None]


@pytest.fixture
def sdk(server: Any, api_key: str) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0) as sdk:
        yield sdk


def repeat(call: Callable[[], object]) -> None:
    """Until it raises."""
    for _ in range(1000):
        call()


@pytest.fixture
def never_closes() -> Iterator[None]:
    """For SDKs that leave their connections to the garbage collector: it runs while warnings are ignored."""
    yield
    gc.collect()


def test_openai_reads_base64_by_default(sdk: openai.OpenAI, same: Same) -> None:
    answer = sdk.embeddings.create(model=MODEL, input=TEXTS)
    same([row.embedding for row in answer.data], TEXTS, "document")
    assert [row.index for row in answer.data] == [0, 1, 2, 3]
    assert answer.model == MODEL
    assert answer.usage.prompt_tokens == answer.usage.total_tokens


def test_openai_counts_as_the_library_counts(sdk: openai.OpenAI, embedder: Any) -> None:
    answer = sdk.embeddings.create(model=MODEL, input=TEXTS)
    assert answer.usage.total_tokens == sum(embedder.count_tokens(TEXTS, "document"))


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_openai_in_both_encodings(sdk: openai.OpenAI, same: Same, encoding_format: Any) -> None:
    row = sdk.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format=encoding_format).data[0].embedding
    if encoding_format == "base64":
        assert isinstance(row, str)
        row = np.frombuffer(b64decode(row), "<f4")
    same([row], TEXTS[:1], "document")


@pytest.mark.parametrize("role", ["query", "document"])
def test_openai_with_roles_and_dimensions(sdk: openai.OpenAI, same: Same, role: str) -> None:
    by_id = sdk.embeddings.create(model=f"{MODEL}:{role}", input=TEXTS, dimensions=64)
    by_field = sdk.embeddings.create(model=MODEL, input=TEXTS, dimensions=64, extra_body={"input_type": role})
    for answer in (by_id, by_field):
        same([row.embedding for row in answer.data], TEXTS, role, dimensions=64)


def test_openai_async_with_many_at_once(server: Any, api_key: str, same: Same) -> None:
    async def embed_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0) as sdk:
            calls = [
                sdk.embeddings.create(model=f"{MODEL}:query", input=f"{text} {i}") for i in range(8) for text in TEXTS
            ]
            return list(await asyncio.gather(*calls))

    answers = asyncio.run(embed_all())
    same([answer.data[0].embedding for answer in answers], [f"{t} {i}" for i in range(8) for t in TEXTS], "query")


def test_openai_models(sdk: openai.OpenAI) -> None:
    ids = [model.id for model in sdk.models.list()]
    assert ids == [MODEL, f"{MODEL}:query", f"{MODEL}:document"]
    assert sdk.models.retrieve(MODEL).owned_by == "udever"
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("someone/else")
    assert caught.value.code == "model_not_found"


def test_openai_errors_are_its_own_classes(sdk: openai.OpenAI, server: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model=MODEL, input=["fine", ""])
    assert (caught.value.param, caught.value.code) == ("input[1]", "empty_string")
    assert caught.value.request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError):
        sdk.embeddings.create(model="text-embedding-3-small", input="a")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.embeddings.create(model=MODEL, input="a")


def test_openai_retries_after_a_rate_limit(server: Any, make_key: Callable[..., str], same: Same) -> None:
    secret = make_key(requests_per_minute=120)  # one more every half second, once the burst is used up
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as hasty:
        with pytest.raises(openai.RateLimitError) as e:
            repeat(lambda: hasty.embeddings.create(model=MODEL, input="a"))
        assert e.value.code == "rate_limit_exceeded"
        assert 0 < float(e.value.response.headers["retry-after-ms"]) <= 1000
        patient = hasty.with_options(max_retries=3)
        same([patient.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding], TEXTS[:1], "document")


def test_openai_retries_after_overload(start_server: Callable[..., Any], same: Same) -> None:
    server = start_server("--no-auth", "--max-wait-seconds", "0.1")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=10, timeout=60) as patient:
        hasty = patient.with_options(max_retries=0)
        large = [f"{i} a long text that keeps the model busy for a while" * 8 for i in range(192)]
        busy = threading.Thread(target=lambda: patient.embeddings.create(model=MODEL, input=large))
        busy.start()
        with pytest.raises(openai.InternalServerError) as caught:
            repeat(lambda: hasty.embeddings.create(model=MODEL, input=TEXTS[0]))
        assert caught.value.status_code == 503
        assert caught.value.code == "overloaded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        answer = patient.embeddings.create(model=MODEL, input=TEXTS[0])
        busy.join()
    same([answer.data[0].embedding], TEXTS[:1], "document")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("tiktoken_offline", "never_closes")
@pytest.mark.parametrize("as_text", [False, True], ids=["cl100k ids (its default)", "text"])
def test_langchain(server: Any, api_key: str, same: Same, as_text: bool) -> None:
    from langchain_openai import OpenAIEmbeddings

    def make(role: str) -> OpenAIEmbeddings:
        options = {"check_embedding_ctx_length": False} if as_text else {}
        return OpenAIEmbeddings(model=f"{MODEL}:{role}", base_url=f"{server.url}/v1", api_key=api_key, **options)

    same(make("document").embed_documents(TEXTS), TEXTS, "document")
    same([make("query").embed_query(TEXTS[0])], TEXTS[:1], "query")
    same(asyncio.run(make("document").aembed_documents(TEXTS)), TEXTS, "document")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("tiktoken_offline", "never_closes")
def test_llama_index_with_both_engines(server: Any, api_key: str, same: Same) -> None:
    from llama_index.embeddings.openai import OpenAIEmbedding

    def make(role: str) -> OpenAIEmbedding:
        return OpenAIEmbedding(model_name=f"{MODEL}:{role}", api_base=f"{server.url}/v1", api_key=api_key)

    same(make("document").get_text_embedding_batch(TEXTS), TEXTS, "document")
    same([make("query").get_query_embedding(TEXTS[0])], TEXTS[:1], "query")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("never_closes")
def test_litellm(server: Any, api_key: str, same: Same, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # or it asks the network for prices
    import litellm

    options: dict[str, Any] = {"api_base": f"{server.url}/v1", "api_key": api_key}
    answer = litellm.embedding(model=f"openai/{MODEL}:query", input=TEXTS, **options)
    same([row["embedding"] for row in answer.data], TEXTS, "query")
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.embedding(model=f"openai/{MODEL}", input=["long " * 5000], num_retries=0, **options)


def test_curl(server: Any, api_key: str, same: Same) -> None:
    body = json.dumps({"model": MODEL, "input": TEXTS}, ensure_ascii=False)
    command = ["curl", "-sS", f"{server.url}/v1/embeddings", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run([*command, "-H", f"Authorization: Bearer {api_key}"], capture_output=True, check=True)
    same([row["embedding"] for row in json.loads(done.stdout)["data"]], TEXTS, "document")
