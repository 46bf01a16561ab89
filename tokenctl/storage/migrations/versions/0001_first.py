"""The first schema.

Written out, so that it stays what it was when `storage/schema.py` has moved on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Int64 = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Id = sa.LargeBinary(16)
Key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "meta",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
        sqlite_strict=True,
    )
    op.create_table(
        "realm",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("not_before", Int64, nullable=False),
        sa.Column("recovered_at", Int64),
        sa.PrimaryKeyConstraint("id", name="pk_realm"),
        sa.CheckConstraint("id = 1", name="ck_realm_single_row"),
        sa.CheckConstraint("not_before >= 0", name="ck_realm_not_before"),
        sqlite_strict=True,
    )
    op.create_table(
        "clients",
        sa.Column("id", Key, nullable=False),
        sa.Column("created_at", Int64, nullable=False),
        sa.Column("not_before", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_clients"),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 128", name="ck_clients_id"),
        sa.CheckConstraint("not_before >= 0", name="ck_clients_not_before"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "users",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_key", Key, nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.Column("created_at", Int64, nullable=False),
        sa.Column("disabled_at", Int64),
        sa.Column("disabled_until", Int64),
        sa.Column("not_before", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.CheckConstraint("length(id) = 16", name="ck_users_id"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 254", name="ck_users_name"),
        sa.CheckConstraint("disabled_until IS NULL OR disabled_at IS NOT NULL", name="ck_users_disabled"),
        sa.CheckConstraint("not_before >= 0", name="ck_users_not_before"),
        sa.UniqueConstraint("name_key", name="uq_users_name_key"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=False),
        sa.Column("client_id", Key, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("generation", Int64, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", Int64, nullable=False),
        sa.Column("rotated_at", Int64, nullable=False),
        sa.Column("access_until", Int64, nullable=False),
        sa.Column("expires_at", Int64, nullable=False),
        sa.Column("idle_ttl", Int64),
        sa.Column("revoked_at", Int64),
        sa.Column("revoked_reason", sa.Text),
        sa.Column("revoked_by", sa.Text),
        sa.Column("issued_ip", sa.LargeBinary(16)),
        sa.Column("issued_user_agent", sa.Text),
        sa.Column("issued_device", sa.LargeBinary(32)),
        sa.Column("last_ip", sa.LargeBinary(16)),
        sa.Column("last_user_agent", sa.Text),
        sa.Column("last_device", sa.LargeBinary(32)),
        sa.Column("context_changed", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_refresh_tokens"),
        sa.CheckConstraint("length(id) = 16", name="ck_refresh_tokens_id"),
        sa.CheckConstraint("generation BETWEEN 0 AND 4294967295", name="ck_refresh_tokens_generation"),
        sa.CheckConstraint("length(secret_hash) = 32", name="ck_refresh_tokens_secret_hash"),
        sa.CheckConstraint("expires_at > created_at", name="ck_refresh_tokens_expires_at"),
        sa.CheckConstraint("idle_ttl IS NULL OR idle_ttl > 0", name="ck_refresh_tokens_idle_ttl"),
        sa.CheckConstraint(
            "(revoked_at IS NULL) = (revoked_reason IS NULL)"
            " AND (revoked_by IS NULL OR revoked_at IS NOT NULL)",
            name="ck_refresh_tokens_revoked",
        ),
        sa.CheckConstraint("context_changed IN (0, 1)", name="ck_refresh_tokens_context_changed"),
        sa.CheckConstraint(
            "coalesce(length(issued_ip), 16) = 16 AND coalesce(length(last_ip), 16) = 16",
            name="ck_refresh_tokens_ip",
        ),
        sa.CheckConstraint(
            "coalesce(length(issued_device), 32) = 32 AND coalesce(length(last_device), 32) = 32",
            name="ck_refresh_tokens_device",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_refresh_tokens_user_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name="fk_refresh_tokens_client_id"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
        postgresql_with={"fillfactor": 80},
    )
    op.create_index("ix_refresh_tokens_user_id", "refresh_tokens", ["user_id"])
    op.create_table(
        "events",
        sa.Column("id", Int64, nullable=False),
        sa.Column("at", Int64, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("actor", sa.Text),
        sa.Column("user_id", Id),
        sa.Column("token_id", Id),
        sa.Column("client_id", sa.Text),
        sa.Column("ip", sa.LargeBinary(16)),
        sa.Column("reason", sa.Text),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.CheckConstraint("coalesce(length(ip), 16) = 16", name="ck_events_ip"),
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_token_id", "events", ["token_id"])
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.Text, nullable=False),
        sa.Column("algorithm", sa.Text, nullable=False),
        sa.Column("public_jwk", sa.Text, nullable=False),
        sa.Column("wrapped_private_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", Int64, nullable=False),
        sa.Column("retired_at", Int64),
        sa.PrimaryKeyConstraint("kid", name="pk_signing_keys"),
        sa.CheckConstraint("algorithm IN ('ES256', 'RS256')", name="ck_signing_keys_algorithm"),
        sqlite_strict=True,
    )
    # Rotation reads both rows in its one statement, so they are there from the start.
    op.execute("INSERT INTO realm (id, not_before) VALUES (1, 0)")
    op.execute("INSERT INTO clients (id, created_at, not_before) VALUES ('default', 0, 0)")
