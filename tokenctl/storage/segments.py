"""Rows of segments, and the events as the seal sees them: all columns, as they are stored.

Functions take a connection inside a transaction and never commit. What the MACs are over is
`core.audit_chain`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.sql import ColumnElement, Select

from tokenctl.core.audit_chain import Head, StoredEvent
from tokenctl.storage.events import read_value, readable
from tokenctl.storage.schema import events, segments

#: Events in one read.
CHUNK = 1_000
#: Events in one segment: while they are sealed, nobody else writes to SQLite.
MOST_EVENTS = 500
#: Among so many ids in a row there are enough unsealed events, when there is more than a handful.
WINDOW = 4 * MOST_EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A sealed segment as it is stored; `sealed_at` in µs."""

    number: int
    sealed_at: int
    events: int
    members: bytes
    mac: bytes


# --- sealing ---------------------------------------------------------------------------------


def head(connection: Connection) -> Head | None:
    """The newest segment; None when nothing is sealed yet."""
    s = segments.c
    row = connection.execute(
        sa.select(s.number, s.mac, s.sealed_at).order_by(s.number.desc()).limit(1)
    ).first()
    return None if row is None else Head(row.number, row.mac, row.sealed_at)


def first_unsealed(connection: Connection, first: int | None = None) -> int | None:
    """The smallest id, from that one on, of an event that is in no segment."""
    # An expression, because PostgreSQL would look for the smallest of a column from the beginning of the
    # whole table, where everything is sealed.
    smallest = sa.func.min(events.c.id + sa.literal_column("0"))
    conditions: list[ColumnElement[bool]] = [events.c.segment.is_(None)]
    if first is not None:
        conditions.append(events.c.id >= first)
    found: int | None = connection.scalar(sa.select(smallest).where(*conditions))
    return found


def take_unsealed(connection: Connection, first: int) -> list[StoredEvent]:
    """The unsealed events of WINDOW ids from that one on, in order, at most MOST_EVENTS; nobody else takes
    them meanwhile.

    Fewer, or none, do not mean that there are no more: ask for the `first_unsealed` behind these ids.
    """
    last = min(first + WINDOW - 1, 2**63 - 1)
    statement = (
        _stored(connection)
        .where(events.c.segment.is_(None), events.c.id.between(first, last))
        .order_by(events.c.id)
        .limit(MOST_EVENTS)
        .with_for_update(skip_locked=True, of=events)
    )
    return [_event(row) for row in connection.execute(statement)]


def insert(connection: Connection, segment: Segment, event_ids: Collection[int]) -> None:
    """Close a segment over these events, which `take_unsealed` gave in this transaction."""
    connection.execute(
        sa.insert(segments).values(
            number=segment.number,
            sealed_at=segment.sealed_at,
            events=segment.events,
            members=segment.members,
            mac=segment.mac,
        )
    )
    connection.execute(
        sa.update(events).where(events.c.id.in_(list(event_ids))).values(segment=segment.number)
    )


# --- reading ---------------------------------------------------------------------------------


def next_after(connection: Connection, number: int) -> Segment | None:
    """The next segment behind that number."""
    row = connection.execute(
        sa.select(segments).where(segments.c.number > number).order_by(segments.c.number).limit(1)
    ).first()
    return None if row is None else Segment(**row._mapping)


def mac_of(connection: Connection, number: int) -> bytes | None:
    """The MAC of the segment with that number."""
    found: bytes | None = connection.scalar(sa.select(segments.c.mac).where(segments.c.number == number))
    return found


def events_of(connection: Connection, number: int, *, after: int | None) -> list[StoredEvent]:
    """The next events that name the segment, in order of id; at most CHUNK."""
    return _page(connection, events.c.segment == number, after)


def events_behind(
    connection: Connection, number: int, *, after: int | None, since: int | None, until: int | None
) -> list[StoredEvent]:
    """The next events that are in no segment up to that number, in order of id; at most CHUNK.

    since, until (µs): those of [since, until) only.
    """
    conditions = [sa.or_(events.c.segment.is_(None), events.c.segment > number)]
    conditions += _period(since, until)
    return _page(connection, sa.and_(*conditions), after)


def strays(connection: Connection, number: int, *, after: int | None) -> list[tuple[int, int]]:
    """The next events that name a segment which cannot be there: id and segment; at most CHUNK.

    That is, one before the first or behind that number, and which does not exist.
    """
    exists = sa.exists().where(segments.c.number == events.c.segment)
    statement = sa.select(events.c.id, events.c.segment).where(
        sa.or_(events.c.segment > number, events.c.segment < 1), sa.not_(exists), *_behind(after)
    )
    return [(row.id, row.segment) for row in connection.execute(statement.order_by(events.c.id).limit(CHUNK))]


def named_segments(connection: Connection, event_ids: Collection[int]) -> dict[int, int | None]:
    """The segment that each of these events names, whichever exist; at most CHUNK ids."""
    statement = sa.select(events.c.id, events.c.segment).where(events.c.id.in_(list(event_ids)))
    return {row.id: row.segment for row in connection.execute(statement)}


def count_naming(connection: Connection, first: int, last: int) -> int:
    """How many events name one of these segments."""
    counted = sa.select(sa.func.count()).where(events.c.segment.between(first, last))
    return connection.scalar(counted) or 0


def count_unsealed(connection: Connection) -> int:
    """How many events are in no segment."""
    return connection.scalar(sa.select(sa.func.count()).where(events.c.segment.is_(None))) or 0


def bounds(connection: Connection, since: int | None, until: int | None) -> tuple[int, int] | None:
    """The first and the last segment with an event of [since, until) (µs); None when there is none."""
    of = events.c.segment
    statement = sa.select(sa.func.min(of), sa.func.max(of)).where(of.is_not(None), *_period(since, until))
    first, last = connection.execute(statement).one()
    return None if first is None else (first, last)


def _period(since: int | None, until: int | None) -> list[ColumnElement[bool]]:
    conditions = []
    if since is not None:
        conditions.append(events.c.at >= since)
    if until is not None:
        conditions.append(events.c.at < until)
    return conditions


def _page(connection: Connection, condition: ColumnElement[bool], after: int | None) -> list[StoredEvent]:
    statement = _stored(connection).where(condition, *_behind(after))
    return [_event(row) for row in connection.execute(statement.order_by(events.c.id).limit(CHUNK))]


def _behind(after: int | None) -> list[ColumnElement[bool]]:
    return [] if after is None else [events.c.id > after]


def _stored(connection: Connection) -> Select[Any]:
    """The columns of a StoredEvent."""
    return sa.select(*(readable(connection, events.c[name]) for name in StoredEvent._fields))


def _event(row: Row[Any]) -> StoredEvent:
    return StoredEvent._make(map(read_value, StoredEvent._fields, row))
