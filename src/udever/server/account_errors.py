"""Every way in which the accounts refuse, drawn as a tree; each error has a stable code and what a client must know.

AccountError
├── InvalidKeyError          the secret is unknown, revoked or expired
│   └── EndedKeyError          a key that is to be changed is revoked or has expired
├── ScopeError               the key may not use this model, this role or the admin endpoints
├── RateLimitedError         too many requests, tokens, concurrent requests of a key; sign-ups, sign-ins of an address
├── HandOnError              a key may not give or manage more than it has itself
├── InsufficientCreditError  the account cannot pay for this request
├── DuplicateRequestError    a request id was admitted before
├── UnknownKeyError          no key of this id or prefix
├── UnknownAccountError      no account of this name
├── PepperError              the pepper is missing, unreadable or not the one this database was set up with
├── StoreUrlError            not a database URL we know
├── StoreVersionError        the database was written by a newer udever
└── StoreUnavailableError    the database is locked, full, read-only or gone; trying again later may help
    └── StorePermissionError   its user may not do there what udever must; an operator can grant it

Invariant: no message holds a secret, a text or a database password.
This module does not know HTTP: which status an error becomes is decided where the answers are written.
"""

from typing import Literal

from udever.errors import UdeverError
from udever.server.windows import Window, Windows

InvalidReason = Literal["unknown", "revoked", "expired"]
ScopeKind = Literal["model", "role", "admin"]
LimitKind = Literal["requests", "tokens", "concurrent", "signups", "signins"]
_UNITS = {"concurrent": "concurrent requests", "signups": "sign-ups per day", "signins": "failed sign-ins"}


class AccountError(UdeverError):
    """Keys, credits, limits or their database refused."""

    code = "account_error"


class InvalidKeyError(AccountError):
    """`reason` is told only to a caller who holds the right secret; to everyone else it is "unknown"."""

    code = "invalid_api_key"

    def __init__(self, reason: InvalidReason) -> None:
        spoken = {"unknown": "is not known here", "revoked": "was revoked", "expired": "has expired"}
        super().__init__(f"this API key {spoken[reason]}", hint="check the key, or create one with udever keys create")
        self.reason = reason


class EndedKeyError(InvalidKeyError):
    """A key that is to be changed or rotated is revoked or has expired; whoever asks has shown a valid key."""

    code = "key_ended"


class HandOnError(AccountError):
    """What a key does for other keys must lie within what it may do itself; `what` says where it does not."""

    code = "beyond_own_key"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"your own key does not allow this: {what}", hint="sign in with a key that may, or ask the operator"
        )
        self.what = what


class ScopeError(AccountError):
    """The key is valid but may not do this. `value` is the model or role asked for."""

    code = "scope_denied"

    def __init__(self, what: ScopeKind, *, value: str = "") -> None:
        asked = "the admin endpoints" if what == "admin" else f"the {what} {value!r}"
        super().__init__(f"this API key may not use {asked}", hint="ask the operator for a key with this scope")
        self.what = what
        self.value = value


class RateLimitedError(AccountError):
    """A limit of the key is reached; nothing was taken or charged."""

    code = "rate_limit_exceeded"

    def __init__(
        self,
        what: LimitKind,
        *,
        window: Window,
        retry_after_seconds: float,
        retryable: bool = True,
        standing: Windows | None = None,
    ) -> None:
        unit = _UNITS.get(what, f"{what} per minute")
        hint = f"try again in {retry_after_seconds:.1f} s" if retryable else "send fewer tokens in one request"
        super().__init__(f"the limit of {window.limit:,} {unit} is reached", hint=hint)
        self.what = what
        self.limit = window.limit
        self.remaining = window.remaining
        self.reset_seconds = window.reset_seconds
        self.retry_after_seconds = retry_after_seconds
        self.retryable = retryable
        """False: this one request is larger than the whole limit, so it can never pass."""
        self.requests = standing.requests if standing else None
        self.tokens = standing.tokens if standing else None


class InsufficientCreditError(AccountError):
    """The account's balance does not cover this request; nothing was charged."""

    code = "insufficient_quota"

    def __init__(self, *, balance_microcredits: int, needed_microcredits: int) -> None:
        super().__init__(
            f"{needed_microcredits:,} microcredits are needed, the balance is {balance_microcredits:,}",
            hint="top up the account",
        )
        self.balance_microcredits = balance_microcredits
        self.needed_microcredits = needed_microcredits


class DuplicateRequestError(AccountError):
    """A request is charged once; its id must be the server's own, never a client's."""

    code = "duplicate_request"

    def __init__(self, request_id: str, *, microcredits: int | None = None) -> None:
        super().__init__(f"request {request_id} was admitted before")
        self.request_id = request_id
        self.microcredits = microcredits
        """What was booked then, where that is known."""


class UnknownKeyError(AccountError):
    """No key has this id or visible prefix."""

    code = "unknown_key"

    def __init__(self, name: str) -> None:
        super().__init__(f"no key {name!r}", hint="udever keys list shows them all")


class UnknownAccountError(AccountError):
    """No account has this name."""

    code = "unknown_account"

    def __init__(self, name: str) -> None:
        super().__init__(f"no account {name!r}", hint="udever keys create --account NAME makes it")


class PepperError(AccountError):
    """Keys cannot be checked without the pepper they were stored with."""

    code = "invalid_pepper"


class StoreUrlError(AccountError):
    """The database URL names no database that udever can use."""

    code = "invalid_database_url"


class StoreVersionError(AccountError):
    """The database's schema is newer than this program."""

    code = "database_too_new"


class StoreUnavailableError(AccountError):
    """The database did not do what was asked of it in time."""

    code = "store_unavailable"

    def __init__(self, cause: str, *, retry_after_seconds: float = 1.0, hint: str = "try again in a moment") -> None:
        super().__init__(f"the accounts database is not available: {cause}", hint=hint)
        self.retry_after_seconds = retry_after_seconds


class StorePermissionError(StoreUnavailableError):
    """The database works, but udever's user lacks a right in it."""

    code = "store_forbidden"

    def __init__(self, cause: str) -> None:
        what = "CREATE and USAGE on the schema, and ALL on its tables and sequences"
        super().__init__(cause, hint=f"as the database's owner, GRANT the user in its URL {what}")
