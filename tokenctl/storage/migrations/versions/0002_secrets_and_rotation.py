"""The secret of a client that may introspect, and from when on a signing key signs.

Columns are added in place on either database: no table is rebuilt, and nothing that refers to one is touched.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Int64 = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column(
        "clients",
        sa.Column(
            "secret_hash",
            sa.LargeBinary(32),
            sa.CheckConstraint("length(secret_hash) = 32", name="ck_clients_secret_hash"),
        ),
    )
    # A column that may not be null needs a default where there are rows already, and SQLite keeps it.
    op.add_column("signing_keys", sa.Column("active_at", Int64, nullable=False, server_default=sa.text("0")))
    # Until now a key signed from the moment in which it was made.
    op.execute("UPDATE signing_keys SET active_at = created_at")
