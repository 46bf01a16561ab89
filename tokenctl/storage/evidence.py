"""What the database has about one reason: the logins that ended with it, and the events to show for that.

Owns the statements for a bundle. They are streamed, for a reason may be that of a million logins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from tokenctl.storage.events import Event, read_event, select_events
from tokenctl.storage.schema import events, refresh_tokens

#: Rows that are fetched at a time.
_FETCHED = 1_000

REVOKE, PLAN = "token.revoke", "plan.create"


class SlicedEvent(NamedTuple):
    """An event, and the segment that it is sealed in, if it is."""

    event: Event
    segment: int | None


def is_known(connection: Connection, reason: str) -> bool:
    """Whether an event or a revoked login has that reason."""
    told = sa.exists().where(events.c.reason == reason)
    marked = sa.exists().where(refresh_tokens.c.revoked_reason == reason)
    return bool(connection.scalar(sa.select(sa.or_(told, marked))))


def revoked_with(connection: Connection, reason: str) -> Iterator[bytes]:
    """The ids of the logins that were revoked with that reason, each once and in order.

    As the events tell, and the rows: one that was purged has only its event.
    """
    told = sa.select(events.c.token_id.label("id")).where(
        events.c.type == REVOKE, events.c.reason == reason, events.c.token_id.is_not(None)
    )
    marked = sa.select(refresh_tokens.c.id).where(refresh_tokens.c.revoked_reason == reason)
    both = sa.union(told, marked).subquery()
    statement = sa.select(both.c.id).order_by(both.c.id)
    yield from (row.id for row in _rows(connection, statement))


def of_logins(connection: Connection, raw_ids: Iterable[bytes]) -> Iterator[SlicedEvent]:
    """All events of these logins, in order of id; at most 1,000 logins."""
    return _stream(connection, events.c.token_id.in_(list(raw_ids)))


def acts(connection: Connection, reason: str) -> Iterator[SlicedEvent]:
    """The events with that reason that are not the revocation of a login: cut-offs, users; in order of id."""
    return _stream(connection, sa.and_(events.c.reason == reason, events.c.type != REVOKE))


def plans_before(connection: Connection, event_id: int) -> Iterator[SlicedEvent]:
    """The makings of plans that were stored before the event with that id, in order of id."""
    return _stream(connection, sa.and_(events.c.type == PLAN, events.c.id < event_id))


def _stream(connection: Connection, condition: sa.ColumnElement[bool]) -> Iterator[SlicedEvent]:
    statement = select_events(connection).where(condition).order_by(events.c.id)
    for row in _rows(connection, statement):
        yield SlicedEvent(read_event(row), row.segment)


def _rows(connection: Connection, statement: sa.Executable) -> Iterator[Row[Any]]:
    """Row by row: the driver of a server would fetch all of them before the first."""
    with connection.execution_options(yield_per=_FETCHED).execute(statement) as result:
        yield from result
