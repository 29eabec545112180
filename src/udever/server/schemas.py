"""What the endpoints take and give, field by field; also what the OpenAPI page shows.

Invariant: requests are strict. A field we do not know is refused by name, because a misspelt `dimensions` that is
ignored gives vectors that nobody asked for.
Does not know: what a field means to a model.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

MAX_ITEMS = 2048
"""Texts in one request."""
MAX_REQUEST_TOKENS = 300_000
"""Tokens in one request, all texts together."""

_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": MAX_ITEMS}


# Read by inputs.py, whose complaints name the item; pydantic would list one complaint for each arm of the union.
TextsOrIds = Annotated[Any, WithJsonSchema({"anyOf": [_TEXT, _list_of(_TEXT), _IDS, _list_of(_IDS)]})]
TextOrTexts = Annotated[Any, WithJsonSchema({"anyOf": [_TEXT, _list_of(_TEXT)]})]
OneText = Annotated[Any, WithJsonSchema(_TEXT)]
Documents = Annotated[
    Any,
    WithJsonSchema(
        _list_of({"anyOf": [_TEXT, {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}]})
    ),
]
InputType = Literal["query", "document", "search_query", "search_document"]
Role = Literal["query", "document"]
Truncate = Literal["error", "end", "start"]
TRUNCATIONS: tuple[Truncate, ...] = get_args(Truncate)
TokenIds = Literal["cl100k_base", "native"]


class Request(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EmbeddingRequest(Request):
    """OpenAI's fields, then ours."""

    input: TextsOrIds = Field(description="A text, texts, token ids, or lists of token ids.")
    model: str = Field(min_length=1, description="A model's id; `ID:query` and `ID:document` carry the role.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32. Default: float."
    )
    dimensions: int | None = Field(None, ge=1, description="A prefix size that the model was trained for.")
    user: str | None = Field(None, description="Accepted and not stored.")
    input_type: InputType | None = Field(None, description="What the texts are to a search. Default: document.")
    truncate: Truncate | None = Field(
        None, description="What to do with a text over the model's limit. Default: the key's, else the server's."
    )
    token_ids: TokenIds = Field("cl100k_base", description="Whose token ids `input` holds, if it holds ids.")


class TokenizeRequest(Request):
    """Count before you pay."""

    input: TextsOrIds
    model: str = Field(min_length=1)
    input_type: InputType | None = None
    token_ids: TokenIds = "cl100k_base"


class RerankRequest(Request):
    """The shape that Cohere's and Jina's clients send."""

    model: str = Field(min_length=1)
    query: OneText
    documents: Documents
    top_n: int | None = Field(None, ge=1, description="How many of the best to return. Default: all.")
    return_documents: bool = False
    truncate: Truncate | None = None


class SimilarityRequest(Request):
    """Cosines of all pairs of a text of `a` and a text of `b`."""

    model: str = Field(min_length=1)
    a: TextOrTexts
    b: TextOrTexts
    role_a: Role = "query"
    role_b: Role = Field("query", description="document: how well does b answer a?")
    truncate: Truncate | None = None


class ChangeKeyRequest(Request):
    """What changes; a field that is left out stays, `null` takes a limit or scope away."""

    model_config = ConfigDict(extra="forbid", frozen=True)  # not strict: a moment comes as a string

    name: str = Field("", max_length=200)
    models: tuple[str, ...] | None = Field(None, fail_fast=True)  # else a million wrong items are a million errors
    roles: tuple[Role, ...] | None = Field(None, fail_fast=True)
    truncate: Truncate | None = None
    expires_in_seconds: float | None = Field(None, gt=0, le=3.2e9)
    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**9)
    max_concurrent: int | None = Field(None, ge=1, le=10**6)


class CreateKeyRequest(ChangeKeyRequest):
    """A new key; `null` means no limit."""

    account: str = Field(min_length=1, max_length=200)
    admin: bool = False


class RotateKeyRequest(Request):
    """How long the old secret still works."""

    grace_seconds: float = Field(86_400.0, ge=0, le=3.2e7)


class TopupRequest(Request):
    """Credit for an account; a negative amount corrects."""

    microcredits: int = Field(ge=-(10**15), le=10**15)
    note: str = Field("", max_length=1000)
    once: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="A name, such as an invoice's: under it the account gets this credit once, however often asked.",
    )


class Usage(BaseModel):
    """What a request cost in tokens, markers included."""

    prompt_tokens: int
    total_tokens: int
    truncated: list["Truncated"] | None = Field(None, description="Only if something was cut.")


class Truncated(BaseModel):
    """A text that was cut, and by how many tokens."""

    index: int
    tokens: int
    param: str = Field(description="Where the text stands in the request, e.g. `input[3]`.")


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """Vectors in the order of the input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """OpenAI's fields, then ours; what neither the catalogue nor the loaded model knows is null."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    role: Role = Field(description="The role that this id means.")
    title: str
    license: str | None
    dimensions: int | None
    matryoshka: list[int] | None
    max_tokens: int | None
    fingerprint: str | None
    microcredits_per_token: int


class ModelList(BaseModel):
    """The models that the key may use."""

    object: Literal["list"]
    data: list[Model]


class TokenCount(BaseModel):
    """One text as the model reads it."""

    index: int
    tokens: int = Field(description="Markers included: what is charged.")
    token_ids: list[int] = Field(description='Without the markers: what `"token_ids": "native"` takes.')


class TokenizeAnswer(BaseModel):
    """Counts, ids and the price of embedding these texts."""

    object: Literal["list"]
    data: list[TokenCount]
    model: str
    max_tokens: int
    total_tokens: int
    microcredits: int


class RerankResult(BaseModel):
    """One document's score: the cosine with the query."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankAnswer(BaseModel):
    """Documents, best first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RerankResult]
    usage: Usage


class SimilarityAnswer(BaseModel):
    """`similarity[i][j]` is the cosine of `a[i]` and `b[j]`."""

    object: Literal["list"]
    model: str
    similarity: list[list[float]]
    usage: Usage


class ErrorDetail(BaseModel):
    """OpenAI's four fields."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail
