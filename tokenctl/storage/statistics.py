"""Counts over the selected logins, and over the events of some hours; and the logins that share a context.

Owns the statements that read a whole table to tell little of it. No index serves them, and no row leaves
the database but what is shown. Functions take a connection inside a transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from tokenctl.core import ids
from tokenctl.core.context import unpack_ip
from tokenctl.core.refresh_token import RefreshToken, State
from tokenctl.core.selector import Selector, SelectState
from tokenctl.storage.schema import events, refresh_tokens, users
from tokenctl.storage.tokens import JOINED, fetch, in_state, matching, smaller

#: In µs. What an hour is to the events: one of UTC.
HOUR = 3_600_000_000

_t = refresh_tokens.c
#: The column itself would have SQLite walk its index, and search for each row: several times slower.
_USER_ID = sa.func.coalesce(_t.user_id, _t.user_id)


# --- logins ----------------------------------------------------------------------------------


class Counts(NamedTuple):
    """How many logins are in each state, and how many live ones expire by each of some instants."""

    states: dict[State, int]
    expiring: list[int]


def count(connection: Connection, selector: Selector, *, now: int, expiring_by: Sequence[int]) -> Counts:
    """The states of a resolved selection at `now`, and how many live ones expire by some instants (µs).

    A login expires at the end of its absolute or of its idle lifetime, whichever comes first.
    """
    live = in_state(SelectState.LIVE, now)
    ends = smaller(_t.expires_at, sa.func.coalesce(_t.rotated_at + _t.idle_ttl, _t.expires_at))
    columns = [
        *(_how_many(_is(state, now)) for state in State),
        *(_how_many(sa.and_(live, ends <= instant)) for instant in expiring_by),
    ]
    # Every id is: it has SQLite read the rows as they lie, and not one by one along an index.
    in_order = _t.id >= b""
    conditions = (*matching(connection, selector, now), in_order)
    statement = sa.select(*columns).select_from(JOINED).where(*conditions)
    numbers: list[int] = list(connection.execute(statement).one())
    return Counts(dict(zip(State, numbers, strict=False)), numbers[len(State) :])


def _is(state: State, now: int) -> ColumnElement[bool]:
    """`RefreshToken.state`; where an operator selects the expired ones, the idle ones are among them."""
    if state is State.EXPIRED:
        return sa.and_(_t.revoked_at.is_(None), _t.expires_at <= now)
    return in_state(SelectState(state.value), now)


def _how_many(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return sa.func.count(sa.case((condition, 1)))


class ClientCount(NamedTuple):
    """The live logins of a client, and their users."""

    client_id: str
    live: int
    users: int


class AddressCount(NamedTuple):
    """The live logins that were last used from an address (None where it is not known), and their users."""

    ip: str | None
    live: int
    users: int


class UserCount(NamedTuple):
    """The live logins of a user, and the known addresses that they were last used from."""

    user_id: str
    user_name: str
    live: int
    addresses: int


def by_client(
    connection: Connection, selector: Selector, *, now: int, limit: int
) -> tuple[int, list[ClientCount]]:
    """How many clients have live logins, and those with the most; at most `limit`."""
    live = _live(connection, selector, now)
    total, found = _grouped(connection, live, [_t.client_id], _USER_ID, widest=False, limit=limit)
    return total, [ClientCount(*row) for row in found]


def by_address(
    connection: Connection, selector: Selector, *, now: int, limit: int
) -> tuple[int, list[AddressCount]]:
    """How many addresses live logins were last used from, and those with the most users; at most `limit`."""
    live = _live(connection, selector, now)
    total, found = _grouped(connection, live, [_t.last_ip], _USER_ID, widest=True, limit=limit)
    return total, [
        AddressCount(None if raw_ip is None else unpack_ip(raw_ip), logins, number)
        for raw_ip, logins, number in found
    ]


def by_user(
    connection: Connection, selector: Selector, *, now: int, limit: int
) -> tuple[int, list[UserCount]]:
    """How many users have live logins, and those with the most addresses; at most `limit`."""
    live = _live(connection, selector, now)
    total, found = _grouped(connection, live, [_USER_ID, users.c.name], _t.last_ip, widest=True, limit=limit)
    return total, [UserCount(ids.user_id(raw_id), *row) for raw_id, *row in found]


def _live(connection: Connection, selector: Selector, now: int) -> list[ColumnElement[bool]]:
    return [*matching(connection, selector, now), in_state(SelectState.LIVE, now)]


def _grouped(
    connection: Connection,
    conditions: list[ColumnElement[bool]],
    keys: Sequence[ColumnElement[Any]],
    counted: ColumnElement[bytes],
    *,
    widest: bool,
    limit: int,
) -> tuple[int, list[Sequence[Any]]]:
    """The number of groups, and of the first ones: the keys, the logins, how many `counted` they have.

    The `widest` first, by what is counted; else the largest. The first key makes an order of equals.
    """
    size, width = sa.func.count().label("size"), sa.func.count(sa.distinct(counted)).label("width")
    orders = [width.desc(), size.desc()] if widest else [size.desc(), width.desc()]
    statement = (
        sa.select(*keys, size, width, sa.func.count().over())
        .select_from(JOINED)
        .where(*conditions)
        .group_by(*keys)
        .order_by(*orders, keys[0].asc().nulls_first())
        .limit(limit)
    )
    found = connection.execute(statement).all()
    return (found[0][-1] if found else 0), [row[:-1] for row in found]


# --- events ----------------------------------------------------------------------------------


def by_hour(
    connection: Connection, selector: Selector, types: Sequence[str], *, since: int, now: int
) -> dict[int, list[int]]:
    """How many events of each type there were in [since, now], by the instant (µs) at which their hour began.

    A selector that does not restrict counts all of them; any other those of the logins that it selects now.
    """
    # No parameter, so that one database sees that it groups by what it selects.
    hour = (events.c.at - events.c.at % sa.literal_column(str(HOUR))).label("hour")
    statement = (
        sa.select(hour, *(_how_many(events.c.type == type_) for type_ in types))
        .where(events.c.at.between(since, now), events.c.type.in_(types))
        .group_by(hour)
    )
    if conditions := matching(connection, selector, now):
        # Not a join: the logins of so few events are looked up, and all others left alone.
        selected = sa.select(_t.id).select_from(JOINED)
        statement = statement.where(selected.where(_t.id == events.c.token_id, *conditions).exists())
    return {at: list(counts) for at, *counts in connection.execute(statement)}


# --- logins with the same context ------------------------------------------------------------


def related(
    connection: Connection, row: RefreshToken, *, now: int, limit: int
) -> tuple[int, list[RefreshToken]]:
    """The other logins that were issued to or last used from an address or by a device of this one's.

    How many there are, and the first of them: live ones first, the most recently used first.
    """
    shares = _same_context(row)
    if not shares:
        return 0, []
    live = sa.case((in_state(SelectState.LIVE, now), 0), else_=1)
    statement = (
        sa.select(_t.id, sa.func.count().over())
        .select_from(JOINED)
        .where(_t.id != ids.to_bytes(row.id), sa.or_(*shares))
        .order_by(live, _t.rotated_at.desc(), _t.id.desc())
        .limit(limit)
    )
    found = connection.execute(statement).all()
    rows = fetch(connection, [raw_id for raw_id, _ in found])
    return (found[0][1] if found else 0), [rows[raw_id] for raw_id, _ in found]


def _same_context(row: RefreshToken) -> list[ColumnElement[bool]]:
    """Conditions of which any holds for a login with an address or a device of this one's."""
    ips = {each.ip for each in (row.issued, row.last)} - {None}
    devices = {each.device for each in (row.issued, row.last)} - {None}
    columns = [(_t.issued_ip, ips), (_t.last_ip, ips), (_t.issued_device, devices), (_t.last_device, devices)]
    return [column.in_(sorted(values, key=bytes)) for column, values in columns if values]
