"""From a request's fields to token ids: which texts, in which role, cut by how much.

    read_texts -> which role -> (cl100k ids -> text) -> tokenise -> Prepared

Invariant: token ids are taken for a model's own only if the request says so; what is cut is counted.
Does not know: HTTP, accounts or queues; the embedder is handed in.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from udever.errors import TooManyTokensError
from udever.server import cl100k
from udever.server.errors import RequestError, placed
from udever.server.schemas import MAX_ITEMS, MAX_REQUEST_TOKENS, Role, TokenIds, Truncate

if TYPE_CHECKING:
    from udever.engine.embedder import Embedder

ROLE_OF_INPUT_TYPE: dict[str, Role] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
}
ROLES: tuple[Role, ...] = ("query", "document")
DEFAULT_ROLE: Role = "document"
MARKER_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One field's texts (or lists of token ids); `param` is the field's name."""

    items: list[Any]
    param: str
    single: bool = False
    """The field held one text, not a list."""
    are_ids: bool = False

    def place(self, index: int) -> str:
        """How the request names its item: `input[3]`."""
        return self.param if self.single else f"{self.param}[{index}]"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Token ids ready for the model."""

    sequences: list[list[int]]
    """Markers included."""
    cut: dict[int, int]
    """Index → tokens that were cut away."""

    @property
    def tokens(self) -> int:
        """What the model will read, markers included."""
        return sum(map(len, self.sequences))


def split_model(name: str, input_type: str | None = None) -> tuple[str, Role]:
    """The model's id without its role, and the role: from `input_type`, else from the id, else document.

    Raises:
        RequestError: both say something, and not the same.
    """
    bare, _, suffix = name.rpartition(":")
    by_name = next((role for role in ROLES if bare and role == suffix), None)
    by_type = ROLE_OF_INPUT_TYPE.get(input_type or "")
    if by_name and by_type and by_name != by_type:
        message = f"input_type {input_type!r} and the model {name!r} name two different roles."
        raise RequestError(message, code="invalid_value", param="input_type")
    return (bare if by_name else name), by_type or by_name or DEFAULT_ROLE


def read_texts(raw: Any, *, param: str, ids: bool = False, objects: bool = False) -> Texts:
    """Check the shape of a field.

    Args:
        ids: token ids are welcome too.
        objects: `{"text": …}` may stand for a text.

    Raises:
        RequestError: names the item that is wrong.
    """
    if isinstance(raw, str):
        return _checked(Texts(items=[raw], param=param, single=True))
    if not isinstance(raw, list):
        raise _wrong_type(param, ids=ids)
    if not raw:
        raise RequestError(f"{param} is an empty list.", code="empty_array", param=param)
    if objects:
        raw = [item.get("text") if isinstance(item, dict) else item for item in raw]
    if ids and type(raw[0]) is int:
        return _checked(Texts(items=[raw], param=param, single=True, are_ids=True))
    return _checked(Texts(items=raw, param=param, are_ids=ids and type(raw[0]) is list))


def _checked(texts: Texts) -> Texts:
    if len(texts.items) > MAX_ITEMS:
        message = f"{texts.param} has {len(texts.items)} items; at most {MAX_ITEMS} are allowed."
        raise RequestError(message, code="array_above_max_length", param=texts.param)
    expected = list if texts.are_ids else str
    for index, item in enumerate(texts.items):
        if type(item) is not expected:
            raise _wrong_type(texts.place(index), ids=texts.are_ids)
        if not item:
            code = "empty_array" if texts.are_ids else "empty_string"
            place = texts.place(index)
            raise RequestError(f"{place} is empty: an empty text has no embedding.", code=code, param=place)
        if texts.are_ids and not all(type(token_id) is int for token_id in item):
            raise _wrong_type(texts.place(index), ids=True)
    return texts


def _wrong_type(place: str, *, ids: bool) -> RequestError:
    wanted = "a text or a list of token ids" if ids else "a text"
    return RequestError(f"Invalid type for {place}: {wanted} is needed.", code="invalid_type", param=place)


def prepare(
    embedder: "Embedder", texts: Texts, *, role: Role, truncate: Truncate, token_ids: TokenIds = "cl100k_base"
) -> Prepared:
    """Tokenise; a text over the model's limit is refused or cut, as `truncate` says.

    Raises:
        RequestError: an item that is too long, or ids that do not exist.
    """
    from_items = _from_native if texts.are_ids and token_ids == "native" else _from_text
    return from_items(embedder, texts, role=role, truncate=truncate)


def check_total(tokens: int) -> None:
    """Raises RequestError: more tokens than one request may have."""
    if tokens > MAX_REQUEST_TOKENS:
        message = f"Requested {tokens} tokens, max {MAX_REQUEST_TOKENS} tokens per request."
        raise RequestError(message, code="max_tokens_per_request", kind="max_tokens_per_request")


def _from_text(embedder: "Embedder", texts: Texts, *, role: Role, truncate: Truncate) -> Prepared:
    decoded = _decoded(texts)
    with placed(texts.place):
        sequences = embedder.tokenize(decoded, role, truncate=truncate)
    full = [i for i, sequence in enumerate(sequences) if len(sequence) == embedder.max_tokens]
    if truncate == "error" or not full:
        return Prepared(sequences=sequences, cut={})
    counts = embedder.count_tokens([decoded[i] for i in full], role)  # only of those that may have been cut
    cut = {i: count - embedder.max_tokens for i, count in zip(full, counts, strict=True)}
    return Prepared(sequences=sequences, cut={i: tokens for i, tokens in cut.items() if tokens})


def _decoded(texts: Texts) -> list[str]:
    if not texts.are_ids:
        return texts.items
    decoded = []
    for index, ids in enumerate(texts.items):
        try:
            decoded.append(cl100k.decode(ids))
        except KeyError as error:
            raise _unknown_id(texts.place(index), error.args[0], "cl100k_base") from error
    return decoded


def _from_native(embedder: "Embedder", texts: Texts, *, role: Role, truncate: Truncate) -> Prepared:
    opening, *_, closing = embedder.tokenize(["a"], role)[0]
    room = embedder.max_tokens - MARKER_TOKENS
    sequences, cut = [], {}
    for index, ids in enumerate(_native_ids(embedder, texts)):
        excess = len(ids) - room
        if excess > 0:
            if truncate == "error":
                with placed(texts.place):
                    raise TooManyTokensError(
                        index=index, tokens=len(ids) + MARKER_TOKENS, max_tokens=embedder.max_tokens
                    )
            cut[index] = excess
        kept = ids[-room:] if truncate == "start" else ids[:room]
        sequences.append([opening, *kept, closing])
    return Prepared(sequences=sequences, cut=cut)


def _native_ids(embedder: "Embedder", texts: Texts) -> list[list[int]]:
    # A marker within a text would forge a role: as text it could not be written either.
    markers = {sequence[end] for role in ROLES for sequence in embedder.tokenize(["a"], role) for end in (0, -1)}
    rows = embedder.config.vocab_size
    for index, ids in enumerate(texts.items):
        wrong = next((token_id for token_id in ids if token_id in markers or not 0 <= token_id < rows), None)
        if wrong is not None:
            raise _unknown_id(texts.place(index), wrong, embedder.name)
    return texts.items


def _unknown_id(place: str, token_id: int, vocabulary: str) -> RequestError:
    message = f"{place} holds the token id {token_id}, which is no text in {vocabulary}."
    return RequestError(message, code="invalid_value", param=place)
