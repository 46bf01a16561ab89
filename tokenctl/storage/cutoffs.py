"""The cut-offs: `not_before` of the realm, of a client and of a user, and what a change of one reaches.

Owns the statements that read, set and list them. What a cut-off does to a login is judged in `swap.py` and
`tokens.py`. Functions take a connection inside a transaction and never commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from tokenctl.core import ids
from tokenctl.storage.schema import clients, realm, refresh_tokens, users
from tokenctl.storage.users import is_disabled

_t = refresh_tokens.c
_TABLES = {"all": realm, "client": clients, "user": users}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose logins a cut-off is about. `user_name` goes with `user_id`, for a person."""

    kind: Literal["all", "client", "user"]
    client_id: str | None = None
    user_id: str | None = None
    user_name: str | None = None


EVERYTHING = Scope(kind="all")


def _row(scope: Scope) -> ColumnElement[bool]:
    """The one row that holds the cut-off."""
    if scope.user_id is not None:
        return users.c.id == ids.to_bytes(scope.user_id)
    if scope.client_id is not None:
        return clients.c.id == scope.client_id
    return realm.c.id == sa.literal_column("1")


def get(connection: Connection, scope: Scope, *, lock: bool = False) -> int | None:
    """The instant that stands (µs), 0 when there is none; None when there is no such row.

    With `lock` nobody else can change it until the end. Logins go on: what they lock, this shares.
    """
    statement = sa.select(_TABLES[scope.kind].c.not_before).where(_row(scope))
    at: int | None = connection.scalar(statement.with_for_update(key_share=True) if lock else statement)
    return at


def put(connection: Connection, scope: Scope, not_before: int) -> None:
    """Set the instant (µs); 0 for none. One row changes, however many logins there are."""
    connection.execute(sa.update(_TABLES[scope.kind]).where(_row(scope)).values(not_before=not_before))


def of_all_and_clients(connection: Connection) -> list[tuple[Scope, int]]:
    """The cut-offs that stand but those of users: the realm's, then the clients' in order of id."""
    at = get(connection, EVERYTHING) or 0
    found = [(EVERYTHING, at)] if at else []
    statement = sa.select(clients.c.id, clients.c.not_before).where(clients.c.not_before > 0)
    for client_id, not_before in connection.execute(statement.order_by(clients.c.id)):
        found.append((Scope(kind="client", client_id=client_id), not_before))
    return found


def of_users(connection: Connection, *, after: bytes, limit: int) -> Iterator[tuple[Scope, int]]:
    """The next users' cut-offs in order of id, behind that one."""
    statement = sa.select(users.c.id, users.c.name, users.c.not_before).where(
        users.c.not_before > 0, users.c.id > after
    )
    for raw_id, name, not_before in connection.execute(statement.order_by(users.c.id).limit(limit)):
        yield Scope(kind="user", user_id=ids.user_id(raw_id), user_name=name), not_before


class Count(NamedTuple):
    """The logins that a change reaches, their users, and the latest access token of the scope (µs)."""

    logins: int
    users: int
    access_until: int | None


def count(connection: Connection, scope: Scope, *, after: int, until: int, now: int) -> Count:
    """What lies between two instants of this cut-off, and is held back by nothing else; it reads them all.

    That is what a later one blocks and what an earlier one lets in again. The access token is the latest of
    every login up to `until`: the dead have left some too.
    """
    others = [table.c.not_before for kind, table in _TABLES.items() if kind != scope.kind]
    reached = sa.and_(
        _t.created_at > after,
        *(_t.created_at > not_before for not_before in others),
        sa.not_(is_disabled(now)),
        # Not `RefreshToken.is_dead`.
        _t.revoked_at.is_(None),
        _t.expires_at > now,
        sa.or_(_t.idle_ttl.is_(None), _t.rotated_at + _t.idle_ttl > now),
    )
    statement = (
        sa.select(
            sa.func.count(sa.case((reached, 1))),
            sa.func.count(sa.distinct(sa.case((reached, _t.user_id)))),
            sa.func.max(_t.access_until),
        )
        .select_from(
            refresh_tokens.join(users, users.c.id == _t.user_id)
            .join(clients, clients.c.id == _t.client_id)
            .join(realm, realm.c.id == sa.literal_column("1"))
        )
        .where(_row(scope), _t.created_at <= until)
    )
    return Count(*connection.execute(statement).one())
