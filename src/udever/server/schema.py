"""The tables of the accounts database.

Invariants the database itself holds: a balance is never negative, an entry is never changed or deleted (triggers, see
the first migration), a request has at most one entry of each kind. Money is integer microcredits, times are integer
microseconds since 1970 in UTC (`_us`): both mean the same on SQLite and PostgreSQL.
Does not know: how the tables come into being (migrations/) or what is done with them.
"""

from typing import Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

EntryKind = Literal["topup", "grant", "debit", "settlement", "refund"]
"""topup: by the operator; grant: free credit at sign-up; debit: before the work; then one settlement or one refund."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("balance_microcredits", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    CheckConstraint("balance_microcredits >= 0", name="not_overdrawn"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account", Text, ForeignKey("accounts.name"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("models", JSON(none_as_null=True)),
    Column("roles", JSON(none_as_null=True)),
    Column("truncate", Text),
    Column("admin", Boolean, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("max_concurrent", BigInteger),
    Column("requests_full_us", BigInteger, nullable=False),
    Column("tokens_full_us", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
    Column("revoked_us", BigInteger),
    Column("made_by", Text),
)
"""A key's scopes and limits, and the state of its two rate windows (windows.py)."""

secrets = Table(
    "secrets",
    metadata,
    Column("prefix", Text, primary_key=True),
    Column("key_id", Text, ForeignKey("keys.id"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
)
"""The secrets of a key: the current one, whose `expires_us` is null, and those rotated away."""

entries = Table(
    "entries",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("account", Text, ForeignKey("accounts.name"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("microcredits", BigInteger, nullable=False),
    Column("request_id", Text),
    Column("key_id", Text),
    Column("model", Text),
    Column("role", Text),
    Column("tokens", BigInteger, nullable=False),
    Column("texts", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    UniqueConstraint("request_id", "kind"),
    Index(None, "account", "id"),
    Index(None, "created_us"),
)
"""The ledger. Debits are negative, a refund takes back its debit's microcredits, tokens and texts: plain sums hold."""

leases = Table(
    "leases",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("account", Text, nullable=False),
    Column("key_id", Text, nullable=False, index=True),
    Column("model", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("microcredits", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("texts", BigInteger, nullable=False),
)
"""The requests that are debited and neither settled nor refunded yet."""

addresses = Table(
    "addresses",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("full_us", BigInteger, nullable=False),
)
"""One rate window for each address that signed up or in; the address itself is not stored."""

votes = Table(
    "votes",
    metadata,
    Column("model", Text, primary_key=True),
    Column("voter", LargeBinary, primary_key=True),
    Column("account", Text, ForeignKey("accounts.name")),
    Column("created_us", BigInteger, nullable=False),
)
"""Who wants a model that is not served: an account, or the digest of an address; each counts once a model."""

facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
"""What is true of the whole database: which pepper its keys were stored with."""
