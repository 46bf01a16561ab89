"""The use cases, each on a real database. Here: how tests look at that database from outside."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import sqlalchemy as sa

from tests.conftest import START
from tokenctl import Settings, TokenService

SECOND = 1_000_000
DAY = 86_400 * SECOND


def run_sql(settings: Settings, statement: str, *values: Any) -> list[Any]:
    """One statement as somebody else's program would run it, committed."""
    with closing(sqlite3.connect(settings.database, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def dump(settings: Settings) -> list[str]:
    """The whole content of the database, as SQL; without the counter that follows from the events."""
    with closing(sqlite3.connect(settings.database)) as connection:
        return [line for line in connection.iterdump() if '"sqlite_sequence"' not in line]


def event_types(settings: Settings) -> list[str]:
    """The types of all events but the creation of the signing key, in order."""
    found = run_sql(settings, "SELECT type FROM events WHERE type <> 'key.create' ORDER BY id")
    return [type_ for (type_,) in found]


@contextmanager
def statements(service: TokenService) -> Iterator[list[str]]:
    """Every statement that the service sends to the database within the block."""
    engine = service._runtime.storage.engine
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def login_row(number: int, user_id: str, **columns: Any) -> dict[str, Any]:
    """A row of refresh_tokens as issue would leave it at START; `number` orders the ids."""
    return {
        "id": number.to_bytes(16, "big"),
        "user_id": bytes.fromhex(user_id.removeprefix("usr_")),
        "client_id": "default",
        "scope": "",
        "generation": 0,
        "secret_hash": number.to_bytes(32, "big"),
        "created_at": START,
        "rotated_at": START,
        "access_until": START + 600 * SECOND,
        "expires_at": START + 30 * DAY,
        "idle_ttl": 14 * DAY,
        "revoked_at": None,
        "revoked_reason": None,
        "context_changed": 0,
        **columns,
    }


def add_logins(settings: Settings, rows: Iterable[dict[str, Any]]) -> list[str]:
    """Write such rows at once, many faster than by issue; their `rt_…`."""
    rows = list(rows)
    if rows:
        names = list(rows[0])
        insert = f"INSERT INTO refresh_tokens ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        with closing(sqlite3.connect(settings.database)) as connection, connection:
            connection.executemany(insert, [tuple(row[name] for name in names) for row in rows])
    return [f"rt_{row['id'].hex()}" for row in rows]
