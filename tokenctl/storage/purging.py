"""Deleting the dead rows of refresh_tokens, one stretch of the table after the other.

Owns what "dead for long enough" is in SQL, and how each database gets at the next such rows: SQLite along the
primary key, PostgreSQL along their places in the table. Either way a run passes the table once. Functions
take a connection inside a transaction and never commit.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from tokenctl.errors import DatabaseError
from tokenctl.storage.schema import refresh_tokens
from tokenctl.storage.tokens import expired

#: Behind it are all rows that a run has not seen yet: an id, or where places are cheaper, `ctid` as text.
Place: TypeAlias = bytes | str
_BEGINNING = "(0,0)"
#: PostgreSQL's first release that scans a table from a place on.
_OLDEST_SERVER = 14

_t = refresh_tokens.c


def dead(at: int) -> ColumnElement[bool]:
    """Dead already at that instant, for good: `RefreshToken.is_dead`, and for how long."""
    return sa.or_(sa.and_(_t.revoked_at.is_not(None), _t.revoked_at <= at), expired(at))


def count_dead(connection: Connection, *, dead_since: int) -> int:
    """How many rows a purge would delete now. Reads the whole table."""
    statement = sa.select(sa.func.count()).select_from(refresh_tokens).where(dead(dead_since))
    return connection.scalar(statement) or 0


class Stretch(NamedTuple):
    """How many rows were deleted, and the place behind which the next ones are looked for.

    is_last: nothing was left behind it.
    """

    deleted: int
    last: Place | None
    is_last: bool


def any_left(connection: Connection, *, after: Place | None, dead_since: int) -> bool:
    """Whether there is another one behind a place."""
    if not isinstance(after, str):
        return next_dead(connection, after=after, dead_since=dead_since, limit=1) is not None
    connection.execute(_BY_PLACE)
    return connection.execute(_SEARCH, {"after": after, "at": dead_since, "limit": 1}).first() is not None


# --- where a write keeps out all others: searched before it, deleted in it ---------------------


def next_dead(
    connection: Connection, *, after: Place | None, dead_since: int, limit: int
) -> tuple[bytes, bytes] | None:
    """The first and the last of the next `limit` ids that were dead at `dead_since`; None: no more."""
    statement = sa.select(_t.id).where(_t.id > (after or b""), dead(dead_since)).order_by(_t.id)
    found = connection.scalars(statement.limit(limit)).all()
    return (found[0], found[-1]) if found else None


def delete_between(connection: Connection, first: bytes, last: bytes, *, dead_since: int) -> Stretch:
    """Delete the rows between two ids that are dead since then: judged again, here, under the lock."""
    statement = sa.delete(refresh_tokens).where(_t.id.between(first, last), dead(dead_since))
    return Stretch(connection.execute(statement).rowcount, last, is_last=False)


# --- PostgreSQL: found, locked, judged and deleted in one statement ----------------------------


def delete_after(connection: Connection, *, after: Place | None, dead_since: int, limit: int) -> Stretch:
    """Delete the next `limit` rows behind a place that are dead since then.

    A row that somebody else has locked is passed over, and is the next run's. Raises DatabaseError on a
    server that is too old.
    """
    _demand_places(connection)
    after = _BEGINNING if after is None else after
    connection.execute(_BY_PLACE)
    given = {"after": after, "at": dead_since, "limit": limit}
    found, deleted, last = connection.execute(_DELETE, given).one()
    return Stretch(deleted, last or after, is_last=found < limit)


def _demand_places(connection: Connection) -> None:
    """On an older server each batch would read the table from its beginning."""
    major = int((connection.dialect.server_version_info or (0,))[0])
    if major < _OLDEST_SERVER:
        raise DatabaseError(
            f"the server is PostgreSQL {major}, and a purge needs {_OLDEST_SERVER} or newer",
            hint="upgrade the server; nothing was purged",
        )


# Only in a scan by place do the places grow, so that all before the last one is done with; to the planner
# another scan may look cheaper, and compiling the statement for each batch, too. And a batch that a power
# failure takes back, with its event, is deleted again: it does not wait for the disk. The record of the run
# does, and lies behind it in the same log. For one transaction.
_BY_PLACE = sa.text(
    "SELECT set_config(name, 'off', true)"
    " FROM unnest(ARRAY['enable_seqscan', 'enable_indexscan', 'enable_bitmapscan', 'jit',"
    " 'synchronous_commit']) name"
)


def _statements() -> tuple[sa.Select[Any], sa.Select[Any]]:
    """The search by itself, and within the deletion."""
    at: Any = sa.bindparam("at", type_=sa.BigInteger)
    ctid: ColumnElement[Any] = sa.literal_column("ctid")
    behind = ctid > sa.cast(sa.bindparam("after", type_=sa.Text), _Tid())
    search = sa.select(ctid.label("place")).select_from(refresh_tokens).where(behind, dead(at))
    search = search.limit(sa.bindparam("limit", type_=sa.Integer))
    found = search.with_for_update(skip_locked=True).cte("found")
    # A row that was changed after the search saw it is locked at its new place, where this statement cannot
    # see it: it stays.
    places = sa.func.array(sa.select(found.c.place).scalar_subquery())
    gone = (
        sa.delete(refresh_tokens)
        .where(ctid == sa.func.any(places), dead(at))
        .returning(sa.literal_column("refresh_tokens.ctid").label("place"))
        .cte("gone")
    )
    # Of those that are gone: the new place of a changed row may be the end of the table.
    farthest = sa.select(sa.func.max(found.c.place)).scalar_subquery()
    last = sa.func.coalesce(sa.func.max(gone.c.place), farthest)
    many = sa.select(sa.func.count()).select_from(found).scalar_subquery()
    return search, sa.select(many, sa.func.count(), last).select_from(gone)


class _Tid(sa.types.UserDefinedType[str]):
    """A place in a table: its page, and its number there."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tid"


_SEARCH, _DELETE = _statements()
