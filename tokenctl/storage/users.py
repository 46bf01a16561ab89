"""Rows of users and clients. Functions take a connection inside a transaction and never commit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from tokenctl.core import ids
from tokenctl.core.names import MAX_USER_NAME, clean_user_name, user_name_key
from tokenctl.errors import InvalidInput, UserNotFound
from tokenctl.storage.schema import clients, refresh_tokens, users


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user. Instants in µs (UTC); `password_hash` is None for a user that cannot log in by password."""

    id: str
    name: str
    password_hash: str | None = field(repr=False)
    created_at: int
    disabled_at: int | None
    disabled_until: int | None
    #: The user's cut-off; 0 when there is none.
    not_before: int

    def is_disabled(self, now: int) -> bool:
        if self.disabled_at is None:
            return False
        return self.disabled_until is None or now < self.disabled_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An application that users log in to. `not_before` is its cut-off in µs; 0 when there is none.

    may_introspect: it has a secret, so it is a resource server instead, and nobody logs in to it.
    """

    id: str
    created_at: int
    not_before: int
    may_introspect: bool


def insert(connection: Connection, *, raw_id: bytes, name: str, password_hash: str | None, now: int) -> bool:
    """A new user; False when the name is taken. `name` is clean already."""
    if find(connection, name) is not None:
        return False
    connection.execute(
        sa.insert(users).values(
            id=raw_id,
            name=name,
            name_key=user_name_key(name),
            password_hash=password_hash,
            created_at=now,
            not_before=0,
        )
    )
    return True


def insert_new(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[bytes]:
    """Those of the rows whose name is free, the first where several have one; their ids. Values are clean.

    In order of name, so that two who do this at once never wait for each other in a circle.
    """
    if not rows:
        return set()
    # Importing a dialect takes long, and the one in use is there already.
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        statement: Any = sqlite_insert(users)
    else:
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        statement = postgresql_insert(users)
    statement = statement.on_conflict_do_nothing(index_elements=[users.c.name_key]).returning(users.c.id)
    in_order = sorted(rows, key=lambda row: row["name_key"])
    return set(connection.scalars(statement, in_order))


def names_of_keys(connection: Connection, keys: Collection[str]) -> dict[str, str]:
    """The names that are taken, by the keys that they are compared by; at most 1,000."""
    statement = sa.select(users.c.name_key, users.c.name).where(users.c.name_key.in_(list(keys)))
    return {row.name_key: row.name for row in connection.execute(statement)}


def find(connection: Connection, name: str, *, lock: bool = False) -> User | None:
    """The user of that name, compared without case; with `lock` nobody else can change it until the end."""
    try:
        key = user_name_key(clean_user_name(name))
    except InvalidInput:
        return None  # nobody can be called that
    return _one(connection, users.c.name_key == key, lock)


def get(connection: Connection, user_id: str, *, lock: bool = False) -> User | None:
    """The user with that `usr_…`."""
    return _one(connection, users.c.id == ids.to_bytes(user_id), lock)


def require(connection: Connection, user: str, *, lock: bool = False) -> User:
    """The user of that name or `usr_…`. Raises UserNotFound, InvalidInput."""
    if user.lower().startswith(ids.USER_PREFIX):
        found = get(connection, ids.parse_user_id(user), lock=lock)
    else:
        found = find(connection, user, lock=lock)
    if found is None:
        raise UserNotFound(f"there is no user {user[:MAX_USER_NAME]}")
    return found


def names(connection: Connection, raw_ids: Collection[bytes]) -> dict[bytes, str]:
    """The names of the users with those ids, whichever exist; at most 1,000."""
    statement = sa.select(users.c.id, users.c.name).where(users.c.id.in_(list(raw_ids)))
    return {row.id: row.name for row in connection.execute(statement)}


def _one(connection: Connection, condition: sa.ColumnElement[bool], lock: bool) -> User | None:
    statement = sa.select(users).where(condition)
    # SQLite's writers hold the whole database already, and SQLAlchemy leaves this out there.
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    return None if row is None else _user(row)


def is_disabled(now: Any) -> sa.ColumnElement[bool]:
    """`User.is_disabled` in SQL."""
    return sa.and_(
        users.c.disabled_at.is_not(None),
        sa.or_(users.c.disabled_until.is_(None), users.c.disabled_until > now),
    )


def page(connection: Connection, *, after: str | None, limit: int) -> list[User]:
    """The next users in order of name, behind the one named `after`."""
    statement = sa.select(users).order_by(users.c.name_key).limit(limit)
    if after is not None:
        statement = statement.where(users.c.name_key > user_name_key(after))
    return [_user(row) for row in connection.execute(statement)]


def count(connection: Connection) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(users)) or 0


def set_disabled(connection: Connection, user_id: str, *, at: int | None, until: int | None) -> None:
    """Disable (at, until in µs; until None: for good) or, with both None, enable."""
    connection.execute(
        sa.update(users)
        .where(users.c.id == ids.to_bytes(user_id))
        .values(disabled_at=at, disabled_until=until)
    )


def set_password_hash(
    connection: Connection, user_id: str, password_hash: str | None, *, instead_of: str | None = None
) -> bool:
    """Store a hash; with `instead_of` only where that one still stands. False when it did not."""
    statement = sa.update(users).where(users.c.id == ids.to_bytes(user_id))
    if instead_of is not None:
        statement = statement.where(users.c.password_hash == instead_of)
    return connection.execute(statement.values(password_hash=password_hash)).rowcount == 1


def delete(connection: Connection, user_id: str) -> None:
    """Delete a user; its refresh tokens go with it (ON DELETE CASCADE)."""
    connection.execute(sa.delete(users).where(users.c.id == ids.to_bytes(user_id)))


def _user(row: Row[Any]) -> User:
    return User(
        id=ids.user_id(row.id),
        name=row.name,
        password_hash=row.password_hash,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        disabled_until=row.disabled_until,
        not_before=row.not_before,
    )


# --- clients ---------------------------------------------------------------------------------


def insert_client(
    connection: Connection, client_id: str, *, now: int, secret_hash: bytes | None = None
) -> bool:
    """A new client; False when there is one of that id."""
    if get_client(connection, client_id) is not None:
        return False
    connection.execute(
        sa.insert(clients).values(id=client_id, created_at=now, not_before=0, secret_hash=secret_hash)
    )
    return True


def get_client(connection: Connection, client_id: str) -> Client | None:
    row = connection.execute(sa.select(clients).where(clients.c.id == client_id)).one_or_none()
    return None if row is None else _client(row)


def get_secret_client(connection: Connection, client_id: str) -> tuple[Client, bytes] | None:
    """The client and the SHA-256 of its secret; None where it has none, or there is no such client."""
    row = connection.execute(sa.select(clients).where(clients.c.id == client_id)).one_or_none()
    return None if row is None or row.secret_hash is None else (_client(row), row.secret_hash)


def all_clients(connection: Connection) -> Iterator[Client]:
    """Every client in order of id; there are few."""
    return (_client(row) for row in connection.execute(sa.select(clients).order_by(clients.c.id)))


def delete_client(connection: Connection, client_id: str) -> bool:
    """Delete a client that has no refresh tokens; False when it has some."""
    used = sa.exists().where(refresh_tokens.c.client_id == client_id)
    return connection.execute(sa.delete(clients).where(clients.c.id == client_id, ~used)).rowcount == 1


def _client(row: Row[Any]) -> Client:
    return Client(
        id=row.id,
        created_at=row.created_at,
        not_before=row.not_before,
        may_introspect=row.secret_hash is not None,
    )
