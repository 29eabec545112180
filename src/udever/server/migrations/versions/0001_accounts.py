"""Accounts, keys, the ledger and its leases.

Revision ID: 0001
Revises: none
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ENTRY_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

SQLITE_APPEND_ONLY = [
    f"CREATE TRIGGER entries_no_{action} BEFORE {action} ON entries "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    for action in ("UPDATE", "DELETE")
]
POSTGRES_APPEND_ONLY = [
    "CREATE FUNCTION entries_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
    "CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entries "
    "FOR EACH STATEMENT EXECUTE FUNCTION entries_append_only()",
]


def upgrade() -> None:
    """Create everything."""
    _create_keys()
    _create_ledger()
    _create_rest()
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE_APPEND_ONLY if sqlite else POSTGRES_APPEND_ONLY:
        op.execute(statement)


def _create_keys() -> None:
    op.create_table(
        "accounts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("balance_microcredits", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_accounts"),
        sa.CheckConstraint("balance_microcredits >= 0", name=op.f("ck_accounts_not_overdrawn")),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("models", sa.JSON()),
        sa.Column("roles", sa.JSON()),
        sa.Column("truncate", sa.Text()),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger()),
        sa.Column("tokens_per_minute", sa.BigInteger()),
        sa.Column("max_concurrent", sa.BigInteger()),
        sa.Column("requests_full_us", sa.BigInteger(), nullable=False),
        sa.Column("tokens_full_us", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger()),
        sa.Column("revoked_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.ForeignKeyConstraint(["account"], ["accounts.name"], name="fk_keys_account"),
    )
    op.create_index("ix_keys_account", "keys", ["account"])
    op.create_table(
        "secrets",
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("prefix", name="pk_secrets"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_secrets_key_id"),
    )
    op.create_index("ix_secrets_key_id", "secrets", ["key_id"])


def _create_ledger() -> None:
    op.create_table(
        "entries",
        sa.Column("id", ENTRY_ID, autoincrement=True, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("microcredits", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.Column("key_id", sa.Text()),
        sa.Column("model", sa.Text()),
        sa.Column("role", sa.Text()),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("texts", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_entries"),
        sa.ForeignKeyConstraint(["account"], ["accounts.name"], name="fk_entries_account"),
        sa.UniqueConstraint("request_id", "kind", name="uq_entries_request_id_kind"),
    )
    op.create_index("ix_entries_account_id", "entries", ["account", "id"])
    op.create_index("ix_entries_created_us", "entries", ["created_us"])
    op.create_table(
        "leases",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("microcredits", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("texts", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_leases"),
    )
    op.create_index("ix_leases_key_id", "leases", ["key_id"])


def _create_rest() -> None:
    op.create_table(
        "addresses",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("full_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_addresses"),
    )
    op.create_table(
        "facts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_facts"),
    )
