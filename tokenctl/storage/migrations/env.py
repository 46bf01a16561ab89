"""What Alembic runs around the migrations: they all happen in the transaction of the caller's connection."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
