"""Votes for models, and which key made a key.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the column."""
    op.create_table(
        "votes",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("voter", sa.LargeBinary(), nullable=False),
        sa.Column("account", sa.Text()),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "voter", name="pk_votes"),
        sa.ForeignKeyConstraint(["account"], ["accounts.name"], name="fk_votes_account"),
    )
    op.add_column("keys", sa.Column("made_by", sa.Text()))
