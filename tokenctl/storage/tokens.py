"""Rows of refresh_tokens: inserting, selecting.

Owns every statement on that table but those on one judged row, which are in `swap.py`, the revoking, which
is in `revoking.py`, and the purging, which is in `purging.py`. Functions take a connection inside a
transaction and never commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from tokenctl.core import ids
from tokenctl.core.context import Context
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.selector import Selector, SelectState, address_ranges, clean_glob, device_hashes
from tokenctl.storage.globs import like_glob
from tokenctl.storage.schema import clients, realm, refresh_tokens, users
from tokenctl.storage.users import is_disabled

#: Rows that one transaction reads or revokes: a larger one would stall every rotation.
CHUNK = 1_000

#: Bytes as the driver has them: the type's own conversion costs more than the row.
_Bytes = sa.LargeBinary()

_t = refresh_tokens.c


# --- conditions ------------------------------------------------------------------------------


def alive(now: int) -> ColumnElement[bool]:
    """Not `RefreshToken.is_dead`: live, or blocked and may come back."""
    return sa.and_(_t.revoked_at.is_(None), sa.not_(expired(now)))


def expired(now: int) -> ColumnElement[bool]:
    """Absolutely, or for want of use."""
    return sa.or_(_t.expires_at <= now, sa.and_(_t.idle_ttl.is_not(None), _t.rotated_at + _t.idle_ttl <= now))


def _blocked(now: int) -> ColumnElement[bool]:
    """Held back by what can be taken back; needs the tables of JOINED."""
    return sa.or_(_t.created_at <= _not_before(), is_disabled(now))


def _not_before() -> ColumnElement[int]:
    """The latest of the three cut-offs."""
    pair = larger(users.c.not_before, clients.c.not_before)
    return larger(pair, realm.c.not_before)


def larger(a: ColumnElement[int], b: ColumnElement[int]) -> ColumnElement[int]:
    """The larger of two (SQLite's max of several arguments is GREATEST elsewhere)."""
    return sa.case((a > b, a), else_=b)


def smaller(a: ColumnElement[int], b: ColumnElement[int]) -> ColumnElement[int]:
    """The smaller of two."""
    return sa.case((a < b, a), else_=b)


def in_state(state: SelectState, now: int) -> ColumnElement[bool]:
    """Whether a row is in that state at `now` (µs); needs `JOINED`."""
    revoked = _t.revoked_at.is_not(None)
    match state:
        case SelectState.REVOKED:
            return revoked
        case SelectState.IDLE:
            return sa.and_(sa.not_(revoked), _t.expires_at > now, expired(now))
        case SelectState.EXPIRED:
            return sa.and_(sa.not_(revoked), expired(now))
        case SelectState.DEAD:
            return sa.or_(revoked, expired(now))
        case SelectState.BLOCKED:
            return sa.and_(alive(now), _blocked(now))
        case SelectState.LIVE:
            return sa.and_(alive(now), sa.not_(_blocked(now)))


def matching(connection: Connection, selector: Selector, now: int) -> list[ColumnElement[bool]]:
    """The selector as conditions, ANDed; in the words of that database.

    It must be resolved: its users are `usr_…`, its texts valid. Needs the tables of JOINED.
    """
    conditions = matching_row(connection, selector, now)
    if selector.states:
        conditions.append(sa.or_(*(in_state(state, now) for state in selector.states)))
    return conditions


def matching_row(connection: Connection, selector: Selector, now: int) -> list[ColumnElement[bool]]:
    """The same without the states, which also other tables than refresh_tokens decide on."""
    conditions: list[ColumnElement[bool]] = []
    if selector.users:
        conditions.append(_t.user_id.in_([ids.to_bytes(user) for user in selector.users]))
    if selector.clients:
        conditions.append(_t.client_id.in_(selector.clients))
    if selector.token_ids:
        conditions.append(one_of(connection, [ids.to_bytes(token) for token in selector.token_ids]))
    if selector.ips:
        ranges = [each for ip in selector.ips for each in address_ranges(ip)]
        columns = (_t.issued_ip, _t.last_ip)
        conditions.append(sa.or_(*(column.between(*each) for column in columns for each in ranges)))
    if selector.user_agents:
        agents = (_t.issued_user_agent, _t.last_user_agent)
        globs = [clean_glob(each) for each in selector.user_agents]
        conditions.append(sa.or_(*(like_glob(connection, agent, glob) for agent in agents for glob in globs)))
    if selector.devices:
        devices = [each for device in selector.devices for each in device_hashes(device)]
        conditions.append(sa.or_(_t.issued_device.in_(devices), _t.last_device.in_(devices)))
    if selector.issued_after is not None:
        conditions.append(_t.created_at >= selector.issued_after)
    if selector.issued_before is not None:
        conditions.append(_t.created_at < selector.issued_before)
    if selector.idle is not None:
        conditions.append(_t.rotated_at <= now - selector.idle)
    return conditions


def one_of(
    connection: Connection, values: Iterable[bytes], column: ColumnElement[bytes] = _t.id
) -> ColumnElement[bool]:
    """Whether a column, the id, is one of these, however many; all of one length.

    One value for the database, a blob out of which they are cut: a list would be one value for each, and an
    array of them takes its driver longer than the rest takes the database.
    """
    values = list(values)
    if not values:
        return sa.false()
    joined, size = sa.literal(b"".join(values), _Bytes), len(values[0])
    if connection.dialect.name != "sqlite":
        place = sa.func.generate_series(0, len(values) - 1).column_valued()
        cut = sa.func.substring(joined, place * size + 1, size, type_=_Bytes)
        return column == sa.any_(sa.func.array(sa.select(cut).scalar_subquery()))
    places = sa.select(sa.literal_column("0").label("i")).cte(recursive=True)
    places = places.union_all(sa.select(places.c.i + 1).where(places.c.i + 1 < len(values)))
    return column.in_(sa.select(sa.func.substr(joined, places.c.i * size + 1, size, type_=_Bytes)))


# --- reading ---------------------------------------------------------------------------------

JOINED = (
    refresh_tokens.join(users, users.c.id == _t.user_id)
    .join(clients, clients.c.id == _t.client_id)
    .join(realm, realm.c.id == sa.literal_column("1"))
)
_ROWS = sa.select(
    *(column for column in _t if column.name != "context_changed"),
    users.c.name.label("user_name"),
    users.c.disabled_at,
    users.c.disabled_until,
    _not_before().label("not_before"),
    realm.c.recovered_at,
).select_from(JOINED)


def fetch(connection: Connection, raw_ids: Iterable[bytes]) -> dict[bytes, RefreshToken]:
    """The rows with those ids, whichever exist; at most CHUNK ids."""
    rows = connection.execute(_ROWS.where(_t.id.in_(list(raw_ids))))
    return {row.id: _refresh_token(row) for row in rows}


def get(connection: Connection, token_id: str) -> RefreshToken | None:
    """The row with that `rt_…`."""
    raw_id = ids.to_bytes(token_id)
    return fetch(connection, [raw_id]).get(raw_id)


def page(
    connection: Connection, selector: Selector, *, now: int, after: str | None, limit: int = CHUNK
) -> list[RefreshToken]:
    """The next rows of the selection in order of id, that is, of issue; at most `limit`."""
    statement = _ROWS.where(*matching(connection, selector, now)).order_by(_t.id).limit(limit)
    if after is not None:
        statement = statement.where(_t.id > ids.to_bytes(after))
    return [_refresh_token(row) for row in connection.execute(statement)]


def live_of_user(connection: Connection, user_id: str, *, now: int, limit: int) -> list[RefreshToken]:
    """The live logins of one user, the most recently used first; at most `limit`."""
    live = in_state(SelectState.LIVE, now)
    statement = _ROWS.where(_t.user_id == ids.to_bytes(user_id), live).limit(limit)
    return [
        _refresh_token(row)
        for row in connection.execute(statement.order_by(_t.rotated_at.desc(), _t.id.desc()))
    ]


class Count(NamedTuple):
    """Of a selection: all its tokens; those not dead, and their users; newest use and access token (µs)."""

    tokens: int
    alive: int
    users: int
    last_used_at: int | None
    access_until: int | None


def count(connection: Connection, selector: Selector, *, now: int) -> Count:
    """How large a selection is, and until when its access tokens live."""
    is_alive = alive(now)
    statement = (
        sa.select(
            sa.func.count(),
            sa.func.count(sa.case((is_alive, 1))),
            sa.func.count(sa.distinct(sa.case((is_alive, _t.user_id)))),
            sa.func.max(_t.rotated_at),
            sa.func.max(_t.access_until),
        )
        .select_from(JOINED)
        .where(*matching(connection, selector, now))
    )
    return Count(*connection.execute(statement).one())


def written_between(connection: Connection, since: int, until: int) -> bool:
    """Whether any row was rotated or revoked in [since, until] (µs). May read the whole table."""
    written = sa.or_(_t.rotated_at.between(since, until), _t.revoked_at.between(since, until))
    return bool(connection.scalar(sa.select(sa.exists().where(written))))


def _refresh_token(row: Any) -> RefreshToken:
    return RefreshToken(
        id=ids.token_id(row.id),
        user_id=ids.user_id(row.user_id),
        user_name=row.user_name,
        client_id=row.client_id,
        scope=row.scope,
        generation=row.generation,
        secret_hash=row.secret_hash,
        created_at=row.created_at,
        rotated_at=row.rotated_at,
        access_until=row.access_until,
        expires_at=row.expires_at,
        idle_ttl=row.idle_ttl,
        revoked_at=row.revoked_at,
        revoked_reason=row.revoked_reason,
        revoked_by=row.revoked_by,
        issued=Context(row.issued_ip, row.issued_user_agent, row.issued_device),
        last=Context(row.last_ip, row.last_user_agent, row.last_device),
        user_disabled_at=row.disabled_at,
        user_disabled_until=row.disabled_until,
        not_before=row.not_before,
        recovered_at=row.recovered_at,
    )


# --- writing ---------------------------------------------------------------------------------


def insert(
    connection: Connection,
    *,
    raw_id: bytes,
    user_id: bytes,
    client_id: str,
    scope: str,
    secret_hash: bytes,
    now: int,
    access_until: int,
    expires_at: int,
    idle_ttl: int | None,
    context: Context,
) -> None:
    """A new login at generation 0. Instants and `idle_ttl` in µs."""
    connection.execute(
        sa.insert(refresh_tokens).values(
            id=raw_id,
            user_id=user_id,
            client_id=client_id,
            scope=scope,
            generation=0,
            secret_hash=secret_hash,
            created_at=now,
            rotated_at=now,
            access_until=access_until,
            expires_at=expires_at,
            idle_ttl=idle_ttl,
            issued_ip=context.ip,
            issued_user_agent=context.user_agent,
            issued_device=context.device,
            last_ip=context.ip,
            last_user_agent=context.user_agent,
            last_device=context.device,
            context_changed=0,
        )
    )


def recovered_at(connection: Connection) -> int | None:
    """When the database was last declared restored (µs)."""
    at: int | None = connection.scalar(sa.select(realm.c.recovered_at))
    return at


def declare_recovery(connection: Connection, *, now: int) -> None:
    """Strings newer than rows that were last rotated until now are followed from here on (µs)."""
    connection.execute(sa.update(realm).values(recovered_at=now))
