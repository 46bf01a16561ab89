"""The use cases, each on a real database. Here: how tests look at that database from outside.

By each database's own driver, and not through our code. Statements are written with `?` for values.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from tests.conftest import START
from tokenctl import Settings, TokenService

SECOND = 1_000_000
DAY = 86_400 * SECOND


def drop_database(settings: Settings) -> None:
    """Whoever has it open."""
    if is_postgres(settings):
        server, _, name = settings.database.rpartition("/")
        with closing(psycopg.connect(f"{server}/postgres", autocommit=True)) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
    else:
        Path(settings.database).unlink()


def is_postgres(settings: Settings) -> bool:
    return settings.database.startswith("postgresql://")


def key_file(settings: Settings) -> Path:
    """Where the master key of the test's database lies."""
    return Path(settings.key_file or f"{settings.database}.key")


def run_sql(settings: Settings, statement: str, *values: Any) -> list[Any]:
    """One statement as somebody else's program would run it, committed."""
    if is_postgres(settings):
        with closing(psycopg.connect(settings.database, autocommit=True)) as server:
            if not values:  # then the driver leaves a % alone, and several statements are one message
                cursor = server.execute(statement.encode())
            else:
                cursor = server.execute(_for_psycopg(statement), values)
            return cursor.fetchall() if cursor.description else []
    with closing(sqlite3.connect(settings.database, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def _for_psycopg(statement: str) -> bytes:
    return statement.replace("%", "%%").replace("?", "%s").encode()


def dump(settings: Settings) -> list[str]:
    """The whole content of the database, as SQL; without the counter that follows from the events."""
    if is_postgres(settings):
        with closing(psycopg.connect(settings.database)) as server:
            return list(_dump(server))
    with closing(sqlite3.connect(settings.database)) as connection:
        return [line for line in connection.iterdump() if '"sqlite_sequence"' not in line]


def _dump(server: psycopg.Connection) -> Iterator[str]:
    """In the form of SQLite's own."""
    # One state of it all, and a wait for nobody.
    server.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    for (table,) in server.execute(tables).fetchall():
        rows = server.execute(f'SELECT * FROM "{table}"'.encode())
        yield from sorted(f'INSERT INTO "{table}" VALUES({",".join(map(_literal, row))});' for row in rows)


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"X'{value.hex().upper()}'"
    return str(value) if isinstance(value, int) else "'{}'".format(str(value).replace("'", "''"))


def event_types(settings: Settings) -> list[str]:
    """The types of all events but the creation of the signing key, in order."""
    found = run_sql(settings, "SELECT type FROM events WHERE type <> 'key.create' ORDER BY id")
    return [type_ for (type_,) in found]


def refuse_events(settings: Settings, like: str) -> None:
    """From here on the database refuses each event of such a type, as it does for a constraint."""
    if not is_postgres(settings):
        run_sql(
            settings,
            f"CREATE TRIGGER fault BEFORE INSERT ON events WHEN new.type LIKE '{like}'"
            " BEGIN SELECT RAISE(ABORT, 'fault'); END",
        )
        return
    run_sql(
        settings,
        "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'fault' USING ERRCODE = 'check_violation'; END $$;"
        f"CREATE TRIGGER fault BEFORE INSERT ON events FOR EACH ROW WHEN (new.type LIKE '{like}')"
        " EXECUTE FUNCTION fault()",
    )


def accept_events(settings: Settings) -> None:
    """As before `refuse_events`."""
    run_sql(settings, "DROP TRIGGER fault" + " ON events" * is_postgres(settings))


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


def write_transactions(sent: list[str]) -> int:
    """How many of them began one."""
    return sum(each.startswith(("BEGIN IMMEDIATE", "BEGIN; SET LOCAL lock_timeout")) for each in sent)


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


def add_rows(settings: Settings, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert rows of the same columns, all in one transaction."""
    if not rows:
        return
    names = list(rows[0])
    insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    values = [tuple(row[name] for name in names) for row in rows]
    if is_postgres(settings):
        with psycopg.connect(settings.database) as server:
            server.cursor().executemany(_for_psycopg(insert), values)
    else:
        with closing(sqlite3.connect(settings.database)) as connection, connection:
            connection.executemany(insert, values)


def add_logins(settings: Settings, rows: Iterable[dict[str, Any]]) -> list[str]:
    """Write such rows at once, many faster than by issue; their `rt_…`."""
    rows = list(rows)
    add_rows(settings, "refresh_tokens", rows)
    return [f"rt_{row['id'].hex()}" for row in rows]
