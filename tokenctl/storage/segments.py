"""Rows of segments, the anchor of those that were archived, and the events as the seal sees them.

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

from tokenctl.core.audit_chain import Anchor, Head, StoredEvent
from tokenctl.storage.events import read_value, readable
from tokenctl.storage.schema import events, meta, segments

#: Events in one read.
CHUNK = 1_000
#: Events in one segment: while they are sealed, nobody else writes to SQLite.
MOST_EVENTS = 200
#: The meta row that is the anchor: what it says of the archived segments is `audit_chain.Anchor`.
AUDIT_ANCHOR = "audit_anchor"
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


def strays(connection: Connection, number: int, *, archived: int, after: int | None) -> list[tuple[int, int]]:
    """The next events that name a segment which cannot be there: id and segment; at most CHUNK.

    That is, one of those up to `archived` or behind that number, and which does not exist.
    """
    exists = sa.exists().where(segments.c.number == events.c.segment)
    statement = sa.select(events.c.id, events.c.segment).where(
        sa.or_(events.c.segment > number, events.c.segment <= archived), sa.not_(exists), *_behind(after)
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


# --- archiving -------------------------------------------------------------------------------


def anchor(connection: Connection) -> str | None:
    """The text that stands for the archived segments; None when there is none."""
    found: str | None = connection.scalar(sa.select(meta.c.value).where(meta.c.key == AUDIT_ANCHOR))
    return found


def archived_before(connection: Connection) -> int | None:
    """The instant (µs) before which events may have been archived; whether that is proven is not asked."""
    text = anchor(connection)
    found = None if text is None else Anchor.parse(text)
    return None if found is None else found.before


def last_before(connection: Connection, at: int, *, behind: int, now: int) -> int:
    """The number of the last segment up to which all behind `behind` may be archived; `behind` when none may.

    All of their events and seals are older than `at` (µs); those that are ahead of `now` (µs) are of a clock
    that was put right since. Never the newest segment, nor one from that of the newest purge on: what was
    written since tells the next purge whether the clock is right. Without any purge one old segment stays
    for it.
    """
    s, e = segments.c, events.c
    bounds = [
        connection.scalar(
            sa.select(sa.func.min(s.number)).where(s.number > behind, s.sealed_at.between(at, now))
        ),
        connection.scalar(sa.select(sa.func.min(e.segment)).where(e.segment > behind, e.at.between(at, now))),
        connection.scalar(sa.select(sa.func.max(s.number))),
    ]
    purges = sa.select(e.segment).where(e.type == "purge").limit(1)
    last_ones = (
        connection.execute(purges.order_by(e.id.desc())).first(),
        connection.execute(purges.where(e.at <= now).order_by(e.at.desc(), e.id.desc())).first(),
    )
    bounds += [row.segment for row in last_ones if row is not None]
    bound = min((each for each in bounds if each is not None), default=0)
    old = sa.select(sa.func.max(s.number)).where(s.number > behind, s.number < bound, s.sealed_at < at)
    last: int = connection.scalar(old) or behind
    return max(last - (None in last_ones), behind)


def count_between(connection: Connection, first: int, last: int) -> int:
    """How many events these segments say that they hold."""
    counted = sa.select(sa.func.sum(segments.c.events)).where(segments.c.number.between(first, last))
    return int(connection.scalar(counted) or 0)


def delete(connection: Connection, number: int) -> int:
    """Delete that segment with its events; how many events these were."""
    connection.execute(sa.delete(segments).where(segments.c.number == number))
    return connection.execute(sa.delete(events).where(events.c.segment == number)).rowcount


def set_anchor(connection: Connection, text: str) -> None:
    """Put it in the place of the one before."""
    changed = connection.execute(sa.update(meta).where(meta.c.key == AUDIT_ANCHOR).values(value=text))
    if not changed.rowcount:
        connection.execute(sa.insert(meta).values(key=AUDIT_ANCHOR, value=text))


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
