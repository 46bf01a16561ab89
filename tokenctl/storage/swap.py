"""The compare-and-swap: the one UPDATE behind every rotation, and the other changes of one judged row.

Owns every statement that advances a generation or acts on a verdict. What a verdict means is
`core.rotation`; the SQL here only repeats its conditions. Functions take a connection inside a
transaction and never commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql import ColumnElement

from tokenctl.core import ids
from tokenctl.core.context import Context
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.token_string import LAST_GENERATION, PresentedToken
from tokenctl.errors import StatementRefused
from tokenctl.storage.schema import clients, realm, refresh_tokens, users
from tokenctl.storage.tokens import larger, smaller
from tokenctl.storage.users import is_disabled

#: Entries of one UPDATE. More would gain nothing, and SQLite allows 32,766 parameters.
MAX_BATCH = 256

_t = refresh_tokens.c


@dataclass(frozen=True, slots=True)
class Swap:
    """One entry of a rotation: the string that was presented, by whom."""

    token: PresentedToken
    client_id: str
    context: Context


class Swapped(NamedTuple):
    """What the compare-and-swap answers for an entry that it accepted."""

    raw_id: bytes
    user_id: bytes
    scope: str
    expires_at: int
    context_changed: int


def rotate(
    connection: Connection, swaps: Sequence[Swap], *, now: int, access_until: int
) -> dict[bytes, Swapped]:
    """Advance every entry whose string is the current one, in one statement; the rest has no answer here.

    No id may appear twice; at most MAX_BATCH entries. Instants in µs.
    """
    columns: dict[str, list[Any]] = {
        "id": [swap.token.raw_id for swap in swaps],
        "generation": [swap.token.generation for swap in swaps],
        "secret_hash": [swap.token.secret_hash for swap in swaps],
        "client_id": [swap.client_id for swap in swaps],
        "ip": [swap.context.ip for swap in swaps],
        "user_agent": [swap.context.user_agent for swap in swaps],
        "device": [swap.context.device for swap in swaps],
    }
    values: dict[str, Any] = {"now": now, "access_until": access_until, "last_generation": LAST_GENERATION}
    if connection.dialect.name == "postgresql":
        _demand_types(columns)
        statement, _ = _rotation_text(connection.dialect, 0)
        rows = connection.exec_driver_sql(statement, values | columns)
    else:
        # A few sizes for all batches, so that few texts are compiled; the entries left over match nothing.
        statement, names = _rotation_text(connection.dialect, 1 << (len(swaps) - 1).bit_length())
        values |= {f"{name}_{i}": value for name, column in columns.items() for i, value in enumerate(column)}
        rows = connection.exec_driver_sql(statement, tuple(values.get(name) for name in names))
    return {row[0]: Swapped(*row) for row in rows}


def _demand_types(columns: dict[str, list[Any]]) -> None:
    """What a STRICT table of SQLite refuses, and an array of PostgreSQL would cast, or flatten."""
    for name, values in columns.items():
        kind = _ENTRY[name].python_type
        if not all(value is None or isinstance(value, kind) for value in values):
            raise StatementRefused(f"the database cannot hold a value: no {name} is of that type")


@lru_cache(maxsize=32)
def _rotation_text(dialect: Dialect, size: int) -> tuple[str, list[str]]:
    """The rotation's SQL for a batch of that size, and the names of its parameters where they have an order.

    It is run on the driver: SQLAlchemy's own execution would cost more than the statement does.
    """
    compiled = rotation_statement(size).compile(dialect=dialect)
    return str(compiled), list(compiled.positiontup or ())


_ENTRY: dict[str, sa.types.TypeEngine[Any]] = {
    "id": _t.id.type,
    "generation": _t.generation.type,
    "secret_hash": _t.secret_hash.type,
    "client_id": _t.client_id.type,
    "ip": _t.last_ip.type,
    "user_agent": _t.last_user_agent.type,
    "device": _t.last_device.type,
}


def _entries(size: int) -> sa.FromClause:
    """The entries of a batch as a table: VALUES of that many rows, or with 0 an array for each column."""
    if size:
        rows = [
            tuple(sa.bindparam(f"{name}_{i}", type_=kind) for name, kind in _ENTRY.items())
            for i in range(size)
        ]
        columns = (sa.column(name, kind) for name, kind in _ENTRY.items())
        return sa.values(*columns, name="entries").data(rows).cte("v")
    arrays = (sa.bindparam(name, type_=sa.ARRAY(kind)) for name, kind in _ENTRY.items())
    columns = (sa.column(name, kind) for name, kind in _ENTRY.items())
    return sa.func.unnest(*arrays).table_valued(*columns, name="v").render_derived()


def rotation_statement(size: int) -> sa.Update:
    """The one UPDATE behind every rotation. Its WHERE is `core.rotation.judge` saying ROTATE.

    `size`: the number of entries; 0 for any number of them, in arrays (PostgreSQL).
    """
    v = _entries(size)
    now, access_until = (
        sa.bindparam("now", type_=_t.rotated_at.type),
        sa.bindparam("access_until", type_=_t.access_until.type),
    )
    changed = sa.or_(
        *(
            sa.and_(v.c[name].is_not(None), v.c[name].is_distinct_from(_t[f"last_{name}"]))
            for name in ("ip", "user_agent", "device")
        )
    )
    return (
        sa.update(refresh_tokens)
        .values(
            generation=_t.generation + sa.literal_column("1"),
            rotated_at=now,
            # The latest of all that were signed, for the exposure; never later than the login itself.
            access_until=larger(_t.access_until, smaller(access_until, _t.expires_at)),
            # A caller who does not say where it is changes nothing of what is known.
            last_ip=sa.func.coalesce(v.c.ip, _t.last_ip),
            last_user_agent=sa.func.coalesce(v.c.user_agent, _t.last_user_agent),
            last_device=sa.func.coalesce(v.c.device, _t.last_device),
            context_changed=sa.case((changed, sa.literal_column("1")), else_=sa.literal_column("0")),
        )
        .where(
            _t.id == v.c.id,
            _t.client_id == v.c.client_id,
            _t.revoked_at.is_(None),
            _t.expires_at > now,
            _t.generation < sa.bindparam("last_generation"),
            sa.or_(_t.idle_ttl.is_(None), _t.rotated_at + _t.idle_ttl > now),
            users.c.id == _t.user_id,
            clients.c.id == _t.client_id,
            realm.c.id == sa.literal_column("1"),
            _t.created_at > users.c.not_before,
            _t.created_at > clients.c.not_before,
            _t.created_at > realm.c.not_before,
            sa.not_(is_disabled(now)),
            _t.secret_hash == v.c.secret_hash,
            _t.generation == v.c.generation,
        )
        .returning(_t.id, _t.user_id, _t.scope, _t.expires_at, _t.context_changed)
    )


def lock_free(connection: Connection, raw_ids: Sequence[bytes]) -> set[bytes]:
    """Lock the rows that nobody else has, and wait for none: their ids (PostgreSQL)."""
    statement = sa.select(_t.id).where(_t.id.in_(raw_ids))
    return set(connection.scalars(statement.with_for_update(key_share=True, skip_locked=True)))


def postpone(connection: Connection, spent: PresentedToken, *, rotated_at: int, now: int) -> None:
    """Let a rotation count as done now (µs), if nothing happened to its row since."""
    connection.execute(
        sa.update(refresh_tokens)
        .where(
            _t.id == spent.raw_id,
            _t.generation == spent.generation + 1,
            _t.secret_hash == spent.secret_hash,
            _t.rotated_at == rotated_at,
            _t.revoked_at.is_(None),
        )
        .values(rotated_at=now)
    )


def follow(
    connection: Connection,
    row: RefreshToken,
    *,
    generation: int,
    now: int,
    access_until: int,
    context: Context,
) -> bool:
    """After a declared recovery: set the generation to that of the successor. False when the row changed."""
    statement = (
        sa.update(refresh_tokens)
        .where(*_as_judged(row))
        .values(
            generation=generation,
            rotated_at=now,
            access_until=max(row.access_until, min(access_until, row.expires_at)),
            last_ip=sa.func.coalesce(sa.literal(context.ip, _t.last_ip.type), _t.last_ip),
            last_user_agent=sa.func.coalesce(context.user_agent, _t.last_user_agent),
            last_device=sa.func.coalesce(sa.literal(context.device, _t.last_device.type), _t.last_device),
        )
    )
    return connection.execute(statement).rowcount == 1


def revoke_as_judged(connection: Connection, row: RefreshToken, *, reason: str, now: int) -> bool:
    """Revoke a row that is still what was judged. False when it changed meanwhile: judge again."""
    statement = (
        sa.update(refresh_tokens).where(*_as_judged(row)).values(revoked_at=now, revoked_reason=reason)
    )
    return connection.execute(statement).rowcount == 1


def replace_secret(connection: Connection, row: RefreshToken, *, secret_hash: bytes, now: int) -> bool:
    """Re-issue by id: a new secret, the next generation. False when the row changed meanwhile.

    Who will use it is not known, so the context of the last use is forgotten: the event has it.
    """
    statement = (
        sa.update(refresh_tokens)
        .where(*_as_judged(row))
        .values(
            secret_hash=secret_hash,
            generation=row.generation + 1,
            rotated_at=now,
            last_ip=None,
            last_user_agent=None,
            last_device=None,
        )
    )
    return connection.execute(statement).rowcount == 1


def _as_judged(row: RefreshToken) -> list[ColumnElement[bool]]:
    return [
        _t.id == ids.to_bytes(row.id),
        _t.generation == row.generation,
        _t.client_id == row.client_id,
        _t.secret_hash == row.secret_hash,
        _t.revoked_at.is_(None),
    ]
