"""Text to token ids: `[BOQ] query [EOQ]`, `[BOD] document [EOD]`, truncated in the body and never at a marker.

Invariant: `encode` gives what the authors' code gives (tokenise `opening marker + text`, cut to L - 1 ids, append the
closing marker), except that a marker written inside a text is ordinary text: a text cannot forge a role.
This module knows nothing of models, tensors or batches.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from tokenizers import AddedToken, Tokenizer

from udever.errors import (
    EmptyTextError,
    NotAnEmbedderError,
    OptionError,
    TextTypeError,
    TokenizerError,
    TooManyTokensError,
)

Role = Literal["query", "document"]
"""What a text is for. The two roles read the same text into different vectors."""
Truncate = Literal["error", "end", "start"]
"""What to do with a text over the limit: refuse it, cut its end, or cut its start."""
ROLES: tuple[Role, ...] = get_args(Role)
TRUNCATIONS: tuple[Truncate, ...] = get_args(Truncate)
MARKERS: Mapping[Role, tuple[str, str]] = {"query": ("[BOQ]", "[EOQ]"), "document": ("[BOD]", "[EOD]")}
"""Each role's opening and closing marker; the embedding is the hidden state of the closing one."""
MARKER_TOKENS = 2
"""Tokens of a text that are markers."""
MIN_TOKENS = MARKER_TOKENS + 1
"""The smallest `max_tokens`: both markers around one token of body."""


class UdeverTokenizer:
    """A model's tokenizer, with its markers apart from the tokenizer of bodies. Threads may share one."""

    def __init__(self, content: str, *, source: str = "tokenizer.json", add_markers: bool = False) -> None:
        """Read the contents of a `tokenizer.json`; `source` names it in errors.

        Args:
            add_markers: if it has none of the markers (a base BLOOM), add them behind its largest id.

        Raises:
            TokenizerError: not a tokenizer.
            NotAnEmbedderError: a tokenizer without the four markers.
        """
        try:
            full = Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises no narrower class
            raise TokenizerError(f"{source} is no tokenizer: {error}", hint=_FETCH_AGAIN) from error
        self._content = content
        self._added = add_markers and _add_markers(full)
        self._markers = _marker_ids(full, source=source)
        self._body = _body_tokenizer(full, source=source)
        self.vocab_size: int = _largest_id(full) + 1
        """The largest id this tokenizer can give, plus one: rows the token table must have."""

    @classmethod
    def from_folder(cls, folder: Path, *, add_markers: bool = False) -> "UdeverTokenizer":
        """Read `folder/tokenizer.json`; `add_markers` as above.

        Raises:
            TokenizerError: the file is missing or no tokenizer.
            NotAnEmbedderError: it lacks the four markers (a base BLOOM).
        """
        path = folder / "tokenizer.json"
        try:
            content = path.read_text("utf-8")
        except FileNotFoundError as error:
            raise TokenizerError(
                f"no tokenizer.json in {folder}", hint="copy the model's tokenizer.json beside its weights"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read {path}: {error}", hint=_FETCH_AGAIN) from error
        return cls(content, source=str(path), add_markers=add_markers)

    @cached_property
    def content(self) -> str:
        """The contents of a `tokenizer.json` with the markers."""
        if not self._added:
            return self._content
        raw = json.loads(self._content)  # not tokenizers' own writer: another release of it would write another file
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        raw["added_tokens"] = [*raw.get("added_tokens", ())] + [
            {"id": index, "content": marker, **flags, "special": True}
            for role, ids in self._markers.items()
            for marker, index in zip(MARKERS[role], ids, strict=True)
        ]
        return json.dumps(raw, ensure_ascii=False)

    @property
    def markers(self) -> dict[Role, tuple[int, int]]:
        """Role → ids of its opening and its closing marker."""
        return dict(self._markers)

    @property
    def marker_ids(self) -> tuple[int, ...]:
        """All four."""
        return tuple(index for pair in self._markers.values() for index in pair)

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) of all that decides the ids: equal for files that differ in layout only. Computed when asked."""
        raw = json.loads(self.content)
        # Defaults are written by some releases of tokenizers and left out by others; merges are "a b" or ["a", "b"].
        model = {key: value for key, value in raw["model"].items() if value and key != "dropout"}
        if "merges" in model:
            model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        parts = {
            "added_tokens": sorted(raw.get("added_tokens", []), key=lambda token: int(token["id"])),
            "normalizer": raw.get("normalizer"),
            "pre_tokenizer": raw.get("pre_tokenizer"),
            "model": model,
            "markers": MARKERS,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        max_tokens: int,
        truncate: Truncate = "error",
        first_index: int = 0,
    ) -> list[list[int]]:
        """Token ids of each text, both markers included, at most `max_tokens` long; texts are read in parallel.

        NUL and white space are ordinary characters. Errors name a text by `first_index` plus its position.

        Raises:
            EmptyTextError, TextTypeError, TooManyTokensError: a text that cannot be embedded.
            OptionError: a role, truncate or max_tokens that does not exist.
        """
        opening, closing = self._role_markers(role)
        if truncate not in TRUNCATIONS:
            raise OptionError(f"truncate is {truncate!r}", hint=f"one of {', '.join(TRUNCATIONS)}")
        if max_tokens < MIN_TOKENS:
            raise OptionError(
                f"max_tokens is {max_tokens}", hint=f"at least {MIN_TOKENS}: two markers and one token of text"
            )
        room = max_tokens - MARKER_TOKENS
        sequences = []
        for index, body in enumerate(self._bodies(texts, first_index=first_index), first_index):
            if len(body) > room:
                if truncate == "error":
                    raise TooManyTokensError(index=index, tokens=len(body) + MARKER_TOKENS, max_tokens=max_tokens)
                body = body[:room] if truncate == "end" else body[-room:]
            sequences.append([opening, *body, closing])
        return sequences

    def count(self, texts: Sequence[str], *, role: Role, first_index: int = 0) -> list[int]:
        """Tokens of each text before any truncation, both markers included; the errors of `encode`."""
        self._role_markers(role)
        return [len(body) + MARKER_TOKENS for body in self._bodies(texts, first_index=first_index)]

    def _role_markers(self, role: Role) -> tuple[int, int]:
        if role not in ROLES:
            raise OptionError(f"role is {role!r}", hint=f"one of {', '.join(ROLES)}")
        return self._markers[role]

    def _bodies(self, texts: Sequence[str], *, first_index: int) -> Iterable[list[int]]:
        if isinstance(texts, str):
            raise TextTypeError("texts is one string, not a list of strings", index=0, hint="pass [text]")
        for index, text in enumerate(texts, first_index):
            require_text(text, index=index)
        encodings = self._body.encode_batch_fast(list(texts), add_special_tokens=False)
        return (encoding.ids for encoding in encodings)


_FETCH_AGAIN = "copy or download the model's tokenizer.json again"


def require_text(text: object, *, index: int) -> None:
    """Refuse what has no embedding.

    Raises:
        TextTypeError: not a string, or a string with a lone surrogate.
        EmptyTextError: no characters.
    """
    if not isinstance(text, str):
        raise TextTypeError(
            f"text {index} is {_article(type(text).__name__)}, not a string",
            index=index,
            hint="decode bytes and convert other values before embedding",
        )
    if not text:
        raise EmptyTextError(f"text {index} is empty", index=index, hint="an empty text has no embedding: leave it out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextTypeError(
            f"text {index} has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: it is no "
            "valid Unicode",
            index=index,
            hint='join surrogate pairs with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")',
        ) from error


def _article(noun: str) -> str:
    return noun if noun == "NoneType" else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _add_markers(full: Tokenizer) -> bool:
    """Add all markers if there is none; whether it did."""
    present = {token.content for token in full.get_added_tokens_decoder().values()}
    markers = [marker for pair in MARKERS.values() for marker in pair]
    if not present.isdisjoint(markers):
        return False
    full.add_special_tokens([AddedToken(marker, normalized=False, special=True) for marker in markers])
    return True


def _marker_ids(full: Tokenizer, *, source: str) -> dict[Role, tuple[int, int]]:
    added = {token.content: (index, token) for index, token in full.get_added_tokens_decoder().items()}
    absent = [marker for pair in MARKERS.values() for marker in pair if marker not in added]
    if absent:
        raise NotAnEmbedderError(
            f"{source} lacks {', '.join(absent)}: this is a base model, not an embedder",
            hint="use a Udever checkpoint (izhx/udever-bloom-560m, …), or fine-tune this base first",
        )
    for opening, _ in MARKERS.values():
        # Such a marker would swallow characters of the text behind it; no published tokenizer has one.
        if added[opening][1].rstrip or added[opening][1].single_word:
            raise TokenizerError(
                f"{source}: marker {opening} strips white space or matches whole words only",
                hint="set rstrip and single_word to false in added_tokens",
            )
    return {role: (added[opening][0], added[closing][0]) for role, (opening, closing) in MARKERS.items()}


def _body_tokenizer(full: Tokenizer, *, source: str) -> Tokenizer:
    """The same model and added tokens but the markers, neither padding nor truncating nor rolling dice."""
    markers = {marker for pair in MARKERS.values() for marker in pair}
    model = full.model  # shared, not copied
    if getattr(model, "dropout", None):
        model.dropout = None
    body = Tokenizer(model)
    if full.normalizer is not None:
        body.normalizer = full.normalizer
    if full.pre_tokenizer is not None:
        body.pre_tokenizer = full.pre_tokenizer
    for index, token in sorted(full.get_added_tokens_decoder().items()):
        if token.content in markers:
            continue
        (body.add_special_tokens if token.special else body.add_tokens)([token])
        if body.token_to_id(token.content) != index:
            raise TokenizerError(
                f"{source}: added token {token.content!r} stands behind the markers", hint="add the four markers last"
            )
    for marker in markers:
        if full.token_to_id(marker) in body.encode(marker, add_special_tokens=False).ids:
            raise TokenizerError(
                f"{source}: {marker} is a word of the vocabulary, so any text could forge it",
                hint="let the markers be added tokens only",
            )
    return body


def _largest_id(full: Tokenizer) -> int:
    entries = full.get_vocab_size(with_added_tokens=True)
    if all(full.id_to_token(index) is not None for index in range(entries)):
        return entries - 1  # no id is left out: six times faster than the vocabulary as a dict
    return max(full.get_vocab(with_added_tokens=True).values())
