"""Revoking rows of refresh_tokens, with the event of each.

Owns the two statements of a chunk: one marks the rows, one writes their events from the marked rows, so that
a million logins are revoked without one of them in the memory of this program. Which chunk comes next, and
what is counted, `service.revocation` knows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tokenctl.core import ids
from tokenctl.core.selector import Selector
from tokenctl.storage.schema import events, refresh_tokens
from tokenctl.storage.tokens import CHUNK, JOINED, alive, matching, matching_row

_t = refresh_tokens.c


class Mark(NamedTuple):
    """What a revocation leaves: in the rows when (µs), why and by whom, in the events the rest as well.

    `ip` and `data` are of the bearer who asked for it, and whatever else an operator may want to find.
    """

    now: int
    reason: str
    actor: str | None
    ip: bytes | None = None
    data: Mapping[str, str] = {}


class Revoked(NamedTuple):
    raw_id: bytes
    user_id: bytes
    access_until: int


class Row(NamedTuple):
    """A login as a revocation sees it. Instants in µs."""

    raw_id: bytes
    secret_hash: bytes
    user_id: bytes
    rotated_at: int
    access_until: int
    is_alive: bool


def look(connection: Connection, raw_ids: Collection[bytes], *, now: int) -> Iterator[Row]:
    """The rows with those ids, whichever exist; at most CHUNK ids."""
    columns = (_t.id, _t.secret_hash, _t.user_id, _t.rotated_at, _t.access_until)
    statement = sa.select(*columns, alive(now)).where(_t.id.in_(list(raw_ids)))
    return (Row._make(row) for row in connection.execute(statement))


def next_alive(connection: Connection, selector: Selector, *, now: int, after: bytes) -> list[Row]:
    """The next CHUNK rows of a resolved selection that are not dead, in order of id, behind `after`."""
    columns = (_t.id, _t.secret_hash, _t.user_id, _t.rotated_at, _t.access_until)
    statement = (
        sa.select(*columns, sa.true())
        .select_from(_source(selector))
        .where(*matching(connection, selector, now), alive(now), _t.id > after)
        .order_by(_t.id)
        .limit(CHUNK)
    )
    return [Row._make(row) for row in connection.execute(statement)]


def revoke_next(
    connection: Connection, selector: Selector, mark: Mark, *, after: bytes, keep: str | None = None
) -> list[Revoked]:
    """Revoke the next CHUNK rows of a resolved selection that are not dead, in order of id, behind `after`.

    The one with the `rt_…` in `keep` is passed over.
    """
    chosen = (
        sa.select(_t.id)
        .select_from(_source(selector))
        .where(*matching(connection, selector, mark.now), _t.id > after, alive(mark.now))
        .order_by(_t.id)
        .limit(CHUNK)
    )
    if keep is not None:
        chosen = chosen.where(_t.id != ids.to_bytes(keep))
    # Asked again of each row: on PostgreSQL it may have been rotated since it was chosen.
    still = () if connection.dialect.name == "sqlite" else matching_row(connection, selector, mark.now)
    return _revoke(connection, sa.and_(_t.id.in_(chosen), *still), mark)


def revoke_ids(connection: Connection, raw_ids: Collection[bytes], mark: Mark) -> list[Revoked]:
    """Revoke the rows with those ids that are not dead; at most CHUNK ids."""
    return _revoke(connection, _t.id.in_(list(raw_ids)), mark) if raw_ids else []


def _revoke(connection: Connection, which: sa.ColumnElement[bool], mark: Mark) -> list[Revoked]:
    statement = (
        sa.update(refresh_tokens)
        .where(which, alive(mark.now))
        .values(revoked_at=mark.now, revoked_reason=mark.reason, revoked_by=mark.actor)
        .returning(_t.id, _t.user_id, _t.access_until)
    )
    done = sorted(Revoked._make(row) for row in connection.execute(statement))
    if done:
        _add_events(connection, [row.raw_id for row in done], mark)
    return done


def _add_events(connection: Connection, raw_ids: list[bytes], mark: Mark) -> None:
    """One `token.revoke` for each, in order of id; its data begin with the row's access_until."""
    rest = json.dumps(dict(mark.data), separators=(",", ":"), ensure_ascii=False).removeprefix("{")
    data = sa.literal('{"access_until":') + sa.cast(_t.access_until, sa.Text)
    values: dict[str, Any] = {
        "at": sa.literal(mark.now, events.c.at.type),
        "type": sa.literal("token.revoke"),
        "actor": sa.literal(mark.actor, sa.Text),
        "user_id": _t.user_id,
        "token_id": _t.id,
        "client_id": _t.client_id,
        "ip": sa.literal(mark.ip, events.c.ip.type),
        "reason": sa.literal(mark.reason),
        "data": data + sa.literal(rest if rest == "}" else f",{rest}"),
    }
    rows = sa.select(*values.values()).where(_t.id.in_(raw_ids)).order_by(_t.id)
    connection.execute(sa.insert(events).from_select(list(values), rows))


def _source(selector: Selector) -> sa.FromClause:
    """What `matching` needs: other tables than refresh_tokens only where a state is asked for."""
    return JOINED if selector.states else refresh_tokens
