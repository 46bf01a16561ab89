"""Revoking rows of refresh_tokens, with the event of each.

Owns the statements of a chunk: which rows, their events, their marks. Nothing of a row comes by this program
but what is counted, so that a million logins are revoked about as fast as by SQL alone. Which chunk comes
next, `service.revocation` knows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tokenctl.core import ids
from tokenctl.core.selector import Selector
from tokenctl.storage.schema import events, refresh_tokens
from tokenctl.storage.tokens import CHUNK, JOINED, alive, matching, matching_row, one_of

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
    """Of a row that was revoked. `access_until` in µs."""

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


# --- looking ---------------------------------------------------------------------------------

_TOLD = (_t.id, _t.user_id, _t.access_until)
_SEEN = (_t.id, _t.secret_hash, _t.user_id, _t.rotated_at, _t.access_until)


def look(connection: Connection, raw_ids: Collection[bytes], *, now: int) -> list[Row]:
    """The rows with those ids, whichever exist."""
    return _rows(connection, sa.select(*_SEEN, alive(now)).where(one_of(connection, raw_ids)), Row)


def next_alive(connection: Connection, selector: Selector, *, now: int, after: bytes) -> list[Row]:
    """The next CHUNK rows of a resolved selection that are not dead, in order of id, behind `after`."""
    which = sa.and_(*matching(connection, selector, now), alive(now), _t.id > after)
    chosen = sa.select(*_SEEN, sa.literal(1)).select_from(_source(selector)).where(which)
    return _rows(connection, chosen.order_by(_t.id).limit(CHUNK), Row)


def _rows(connection: Connection, statement: sa.Executable, kind: Any) -> list[Any]:
    """As the driver has them: SQLAlchemy's own rows and types would cost more than all else here."""
    with connection.execute(statement) as result:
        return list(map(kind._make, result.cursor.fetchall()))


# --- revoking --------------------------------------------------------------------------------


def revoke_next(
    connection: Connection,
    selector: Selector,
    mark: Mark,
    *,
    after: bytes,
    keep: str | None = None,
    limit: int = CHUNK,
) -> list[Revoked]:
    """Revoke the next rows of a resolved selection that are not dead, in order of id, behind `after`.

    The one with the `rt_…` in `keep` is passed over.
    """
    conditions = [*matching(connection, selector, mark.now), alive(mark.now), _t.id > after]
    if keep is not None:
        conditions.append(_t.id != ids.to_bytes(keep))
    source = _source(selector)
    if connection.dialect.name == "sqlite":
        return _revoke_next(connection, source, sa.and_(*conditions), mark, limit=limit)
    chosen = sa.select(_t.id).select_from(source).where(*conditions).order_by(_t.id).limit(limit)
    # Asked again of the row that is changed: it may have been rotated since it was chosen.
    still = [*matching_row(connection, selector, mark.now), alive(mark.now)]
    while True:
        done = _revoke_at_once(connection, sa.and_(_t.id.in_(chosen), *still), mark)
        # Where all of them were, there may be more behind them.
        if done or connection.scalar(chosen.limit(1)) is None:
            return done


def revoke_ids(
    connection: Connection,
    raw_ids: Collection[bytes],
    mark: Mark,
    *,
    secret_hashes: Collection[bytes] | None = None,
) -> list[Revoked]:
    """Revoke the rows with those ids that are not dead, in order of id; at most CHUNK ids.

    Only those whose secret's hash is one of `secret_hashes`, where these are given: a secret is one login's.
    """
    if not raw_ids:
        return []
    conditions = [one_of(connection, raw_ids), alive(mark.now)]
    if secret_hashes is not None:
        conditions.append(one_of(connection, secret_hashes, _t.secret_hash))
    which = sa.and_(*conditions)
    if connection.dialect.name != "sqlite":
        return _revoke_at_once(connection, which, mark)
    done = sorted(_rows(connection, _marked(mark).where(which).returning(*_TOLD), Revoked))
    if done:
        _tell(connection, refresh_tokens, one_of(connection, [row.raw_id for row in done]), mark)
    return done


def _revoke_next(
    connection: Connection, source: sa.FromClause, which: sa.ColumnElement[bool], mark: Mark, *, limit: int
) -> list[Revoked]:
    """For SQLite, whose one writer is this transaction: nothing changes between the statements."""
    chosen = sa.select(*_TOLD).select_from(source).where(which).order_by(_t.id).limit(limit)
    done: list[Revoked] = _rows(connection, chosen, Revoked)
    if done:
        these = sa.and_(which, _t.id <= done[-1].raw_id)
        _tell(connection, source, these, mark)
        if source is not refresh_tokens:
            these = _t.id.in_(sa.select(_t.id).select_from(source).where(these))
        connection.execute(_marked(mark).where(these))
    return done


def _tell(connection: Connection, source: sa.FromClause, these: sa.ColumnElement[bool], mark: Mark) -> None:
    values = _event(mark)
    told = sa.select(*values.values()).select_from(source).where(these).order_by(_t.id)
    connection.execute(sa.insert(events).from_select(list(values), told))


def _revoke_at_once(connection: Connection, which: sa.ColumnElement[bool], mark: Mark) -> list[Revoked]:
    """One statement, since others write meanwhile: the events are of the rows that it changes."""
    columns = (_t.id, _t.user_id, _t.client_id, _t.access_until)
    done = _marked(mark).where(which).returning(*columns).cte("done")
    values = _event(mark, done)
    rows = sa.select(*values.values()).order_by(done.c.id)
    told = sa.insert(events).from_select(list(values), rows).cte("told")
    statement = sa.select(done.c.id, done.c.user_id, done.c.access_until).add_cte(told).order_by(done.c.id)
    return _rows(connection, statement, Revoked)


def _marked(mark: Mark) -> sa.Update:
    return sa.update(refresh_tokens).values(
        revoked_at=mark.now, revoked_reason=mark.reason, revoked_by=mark.actor
    )


def _event(mark: Mark, row: sa.FromClause = refresh_tokens) -> dict[str, sa.ColumnElement[Any]]:
    """The columns of a `token.revoke` of the row; its data begin with the row's access_until."""
    rest = json.dumps(dict(mark.data), separators=(",", ":"), ensure_ascii=False).removeprefix("{")
    data = sa.literal('{"access_until":') + sa.cast(row.c.access_until, sa.Text)
    return {
        "at": sa.literal(mark.now, events.c.at.type),
        "type": sa.literal("token.revoke"),
        "actor": sa.literal(mark.actor, sa.Text),
        "user_id": row.c.user_id,
        "token_id": row.c.id,
        "client_id": row.c.client_id,
        "ip": sa.literal(mark.ip, events.c.ip.type),
        "reason": sa.literal(mark.reason),
        "data": data + sa.literal(rest if rest == "}" else f",{rest}"),
    }


def _source(selector: Selector) -> sa.FromClause:
    """What `matching` needs: other tables than refresh_tokens only where a state is asked for."""
    return JOINED if selector.states else refresh_tokens
