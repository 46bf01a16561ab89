"""Rows of events, the audit log. They are only ever added, in the transaction of what they report."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.sql import ColumnElement, Select

from tokenctl.core import ids
from tokenctl.core.context import unpack_ip
from tokenctl.storage.globs import like_glob
from tokenctl.storage.schema import events, users

#: So many objects and arrays in each other, and more than we ever write. What is nested a thousand deep can
#: be read, and not be written again.
_DEPTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. `at` in µs (UTC); `data` are plain values, never a secret.

    `id` is None until it is stored; it grows, though not in the order of commits on every database.
    """

    at: int
    type: str
    actor: str | None = None
    user_id: str | None = None
    token_id: str | None = None
    client_id: str | None = None
    ip: bytes | None = None
    reason: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    id: int | None = None
    #: The user's name now; None when the user is gone, and until the event is read.
    user_name: str | None = None

    @property
    def ip_text(self) -> str | None:
        return None if self.ip is None else unpack_ip(self.ip)


def add(connection: Connection, new: Iterable[Event]) -> None:
    """Store events."""
    rows = [
        {
            "at": event.at,
            "type": event.type,
            "actor": event.actor,
            "user_id": event.user_id and ids.to_bytes(event.user_id),
            "token_id": event.token_id and ids.to_bytes(event.token_id),
            "client_id": event.client_id,
            "ip": event.ip,
            "reason": event.reason,
            "data": data_text(event.data),
        }
        for event in new
    ]
    if rows:
        connection.execute(sa.insert(events), rows)


def data_text(data: dict[str, Any]) -> str:
    """An event's data as it is stored: the MAC of the event is over this text."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


#: The columns that are texts, and the one that is read beside them.
_TEXTS = frozenset({"type", "actor", "client_id", "reason", "data", "user_name"})


def readable(connection: Connection, column: ColumnElement[Any], name: str | None = None) -> Any:
    """The column, or for a text what `read_value` makes one of.

    SQLite lets a text be written that is none, and the driver would fail on it: one such row would hide all
    others.
    """
    label = name or column.key
    if label in _TEXTS and connection.dialect.name == "sqlite":
        return sa.cast(column, sa.LargeBinary).label(label)
    return column.label(label)


def read_value(name: str, value: Any) -> Any:
    """What stands in that column; a text that is no UTF-8 with its bytes as lone surrogates (PEP 383)."""
    if name in _TEXTS and isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value


def select_events(connection: Connection) -> Select[Any]:
    """All columns, and the name of the user."""
    columns = (readable(connection, column) for column in events.c)
    name = readable(connection, users.c.name, "user_name")
    return sa.select(*columns, name).select_from(events.outerjoin(users, users.c.id == events.c.user_id))


def tail(
    connection: Connection, *, limit: int, token_id: str | None = None, types: Collection[str] = ()
) -> list[Event]:
    """The newest events, oldest of them first; of one refresh token when its `rt_…` is given, of some types.

    types: globs for the whole text. A large purge leaves an event for each batch, which would hide all
    others: they must be asked for.
    """
    wanted = _of_types(connection, types)
    statement = select_events(connection).where(wanted).order_by(events.c.id.desc()).limit(limit)
    if token_id is not None:
        statement = statement.where(events.c.token_id == ids.to_bytes(token_id))
    return [read_event(row) for row in reversed(connection.execute(statement).all())]


def after(connection: Connection, event_id: int, *, limit: int) -> list[Event]:
    """The next events of all types behind the one with that id, in order of id; at most `limit`."""
    statement = select_events(connection).where(events.c.id > event_id).order_by(events.c.id).limit(limit)
    return [read_event(row) for row in connection.execute(statement)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What events to look for: OR within a field, AND across fields; an empty one does not restrict.

    types, actors, reasons are globs for the whole text. ips: ranges of addresses as stored, both ends
    included. [since, until) in µs.
    """

    types: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    user_ids: tuple[str, ...] = ()
    token_ids: tuple[str, ...] = ()
    client_ids: tuple[str, ...] = ()
    ips: tuple[tuple[bytes, bytes], ...] = ()
    since: int | None = None
    until: int | None = None


def search(connection: Connection, wanted: Search, *, after: int, limit: int) -> list[Event]:
    """The next events that match behind the one with that id, in order of id; at most `limit`."""
    conditions = [events.c.id > after, *_conditions(connection, wanted)]
    statement = select_events(connection).where(*conditions).order_by(events.c.id).limit(limit)
    return [read_event(row) for row in connection.execute(statement)]


def _conditions(connection: Connection, wanted: Search) -> list[ColumnElement[bool]]:
    c = events.c
    conditions = [_of_types(connection, wanted.types)]
    for column, globs in ((c.actor, wanted.actors), (c.reason, wanted.reasons)):
        if globs:
            conditions.append(_like_one_of(connection, column, globs))
    for column, public_ids in ((c.user_id, wanted.user_ids), (c.token_id, wanted.token_ids)):
        if public_ids:
            conditions.append(column.in_([ids.to_bytes(each) for each in public_ids]))
    if wanted.client_ids:
        conditions.append(c.client_id.in_(wanted.client_ids))
    if wanted.ips:
        conditions.append(sa.or_(*(c.ip.between(first, last) for first, last in wanted.ips)))
    if wanted.since is not None:
        conditions.append(c.at >= wanted.since)
    if wanted.until is not None:
        conditions.append(c.at < wanted.until)
    return conditions


def _of_types(connection: Connection, globs: Collection[str]) -> ColumnElement[bool]:
    """Of one of these types; without any, of all but a purge's single batches."""
    return _like_one_of(connection, events.c.type, globs) if globs else events.c.type != "purge.batch"


def _like_one_of(
    connection: Connection, column: ColumnElement[str], globs: Collection[str]
) -> ColumnElement[bool]:
    return sa.or_(*(like_glob(connection, column, glob) for glob in globs))


def newest_id(connection: Connection) -> int:
    """The id of the newest event; 0 when there is none."""
    return connection.scalar(sa.select(sa.func.max(events.c.id))) or 0


def exists_between(
    connection: Connection, *, token_id: str, type_: str, reason: str, since: int, until: int
) -> bool:
    """Whether the same event of one refresh token was stored in [since, until] (µs)."""
    found = sa.exists().where(
        events.c.token_id == ids.to_bytes(token_id),
        events.c.type == type_,
        events.c.reason == reason,
        events.c.at.between(since, until),
    )
    return bool(connection.scalar(sa.select(found)))


def critical_since(connection: Connection, since: int) -> list[Event]:
    """Events that need a person, at or after `since` (µs): those with `critical` in their data."""
    critical = events.c.data.contains('"critical":true')
    statement = select_events(connection).where(events.c.at >= since, critical).order_by(events.c.id)
    return [read_event(row) for row in connection.execute(statement)]


def fall_since_last_purge(connection: Connection, *, longer_than: int, now: int) -> tuple[int, int] | None:
    """Where the instants of the events since the last purge first fall back by more than that: from, to (µs).

    Those that are still ahead of `now` are of a clock that was put right since, which is no fall. A purge
    under a clock that is behind is not the last one, or it would hide what was written before it.
    """
    purges = sa.select(events.c.id).where(events.c.type == "purge", events.c.at <= now)
    last = purges.order_by(events.c.at.desc(), events.c.id.desc()).limit(1).scalar_subquery()
    before = sa.func.max(events.c.at).over(order_by=events.c.id, rows=(None, -1)).label("before")
    pairs = sa.select(events.c.id, events.c.at, events.c.type, before).where(
        events.c.id >= sa.func.coalesce(last, 0), events.c.at <= now
    )
    of = pairs.subquery().c
    falls = sa.select(of.before, of.at).where(of.before - of.at > longer_than, of.type.not_like("purge%"))
    row = connection.execute(falls.order_by(of.id).limit(1)).first()
    return None if row is None else (row.before, row.at)


def gaps_since_last_purge(connection: Connection, *, longer_than: int, now: int) -> list[tuple[int, int]]:
    """Where the instants of the events since the last purge, and then `now`, leap ahead: from, to (µs).

    A leap to an instant that is still ahead of `now` is of a clock that was put right since; one that ended
    longer than `longer_than` ago was a quiet time.
    """
    last = sa.select(sa.func.max(events.c.id)).where(events.c.type == "purge").scalar_subquery()
    since = events.c.id >= sa.func.coalesce(last, 0)
    before = sa.func.lag(events.c.at).over(order_by=events.c.id).label("before")
    pairs = sa.select(before, events.c.at).where(since).subquery()
    leaps = sa.select(pairs.c.before, pairs.c.at).where(
        pairs.c.at - pairs.c.before > longer_than, pairs.c.at.between(now - longer_than, now)
    )
    newest = connection.scalar(sa.select(sa.func.max(events.c.at)).where(since, events.c.at <= now))
    end = [(newest, now)] if newest is not None and now - newest > longer_than else []
    return [(row.before, row.at) for row in connection.execute(leaps)] + end


def read_event(row: Row[Any]) -> Event:
    """What a row of `select_events` says."""
    values = {name: read_value(name, value) for name, value in row._mapping.items()}
    del values["segment"]
    for name, show in (("user_id", ids.user_id), ("token_id", ids.token_id)):
        values[name] = None if values[name] is None else show(values[name])
    return Event(**values | {"data": parse_data(values["data"])})


def parse_data(text: str) -> dict[str, Any]:
    """An event's data; what somebody has put in its place that is no JSON object is told as it is."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, dict) and _is_shallow(data, _DEPTH) else {"unreadable": text}


def _is_shallow(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    within = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in within)
