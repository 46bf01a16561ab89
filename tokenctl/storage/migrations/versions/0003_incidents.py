"""What an incident needs: the seal of the audit log, and plans of what is to be revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Int64 = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("events", sa.Column("segment", Int64))
    op.create_index("ix_events_segment", "events", ["segment"])
    op.create_table(
        "segments",
        sa.Column("number", Int64, autoincrement=False, nullable=False),
        sa.Column("sealed_at", Int64, nullable=False),
        sa.Column("events", Int64, nullable=False),
        sa.Column("members", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_segments"),
        sa.CheckConstraint("number > 0", name="ck_segments_number"),
        sa.CheckConstraint("events > 0", name="ck_segments_events"),
        sa.CheckConstraint("length(mac) = 32", name="ck_segments_mac"),
        sqlite_strict=True,
    )
    op.create_table(
        "plans",
        sa.Column("id", Key, nullable=False),
        sa.Column("created_at", Int64, nullable=False),
        sa.Column("expires_at", Int64, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("selector", sa.Text),
        sa.Column("tokens", Int64, nullable=False),
        sa.Column("users", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_plans"),
        sqlite_strict=True,
    )
    op.create_table(
        "plan_members",
        sa.Column("plan_id", Key, nullable=False),
        sa.Column("number", Int64, autoincrement=False, nullable=False),
        sa.Column("ids", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("plan_id", "number", name="pk_plan_members"),
        sa.CheckConstraint("length(ids) BETWEEN 16 AND 16000", name="ck_plan_members_ids"),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plans.id"], name="fk_plan_members_plan_id", ondelete="CASCADE"
        ),
        sqlite_strict=True,
    )
