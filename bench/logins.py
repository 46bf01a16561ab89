"""A database full of logins, made much faster than by issuing them one by one.

The schema, its indexes and its keys are made by the package itself; only the rows are written here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from tokenctl import Settings
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.service.database import build_database
from tokenctl.storage.sqlite import WRITE_TIMEOUT, sqlite_engine

MASTER_KEY = b"a master key for benchmarks, 32b"
DAY = 86_400_000_000  # µs

_COLUMNS = (
    "id", "user_id", "client_id", "scope", "generation", "secret_hash", "created_at", "rotated_at",
    "access_until", "expires_at", "idle_ttl", "revoked_at", "revoked_reason", "issued_ip",
    "issued_user_agent", "last_ip", "last_user_agent", "context_changed",
)  # fmt: skip


def build(path: Path, *, users: int, rows: Iterable[tuple[Any, ...]], now: int) -> None:
    """A migrated database at `path` in WAL mode, its key beside it, with those users and rows."""
    build_database(str(path), MASTER_KEY, generate_signing_key(), actor="bench", clock=lambda: now)
    path.with_name(path.name + ".key").write_text(format_master_key(MASTER_KEY) + "\n")
    insert = f"INSERT INTO refresh_tokens ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -500000")  # kB
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO users (id, name, name_key, created_at, not_before) VALUES (?, ?, ?, 0, 0)",
            ((user_id(number), f"user{number}", f"user{number}") for number in range(users)),
        )
        connection.executemany(insert, rows)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def login(
    raw_id: bytes,
    user: int,
    *,
    secret_hash: bytes,
    created_at: int,
    rotated_at: int,
    expires_at: int,
    revoked_at: int | None = None,
) -> tuple[Any, ...]:
    """One row as a service would have left it, with a browser's context."""
    where = (b"\0" * 10 + b"\xff\xff" + raw_id[-4:], "Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0")
    return (
        raw_id, user_id(user), "default", "profile", 0, secret_hash, created_at, rotated_at,
        rotated_at + 600_000_000, expires_at, 14 * DAY, revoked_at, None if revoked_at is None else "logout",
        *where, *where, 0,
    )  # fmt: skip


def user_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def settings(path: Path) -> Settings:
    """The settings of a service on such a database, whatever stands in the environment."""
    return Settings(database=str(path))


def connect(path: Path) -> sqlite3.Connection:
    """The bare driver with the service's own pragmas: no contender may be set up better than another."""
    pooled = sqlite_engine(path, WRITE_TIMEOUT).raw_connection()
    connection = pooled.driver_connection
    assert isinstance(connection, sqlite3.Connection)
    pooled.detach()  # the caller closes it
    return connection
