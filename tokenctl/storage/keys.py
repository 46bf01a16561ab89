"""Rows of signing_keys and meta. Private keys pass through here wrapped, never open."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tokenctl.storage.schema import meta, signing_keys

#: The meta row that tells whether a master key is this database's.
MASTER_KEY_CHECK = "master_key_check"
#: The meta row that marks the sample database; its value is the instant (µs) at which its clock stands.
SAMPLE_CLOCK = "sample_clock"
#: The meta row that marks a database of `serve --dev`.
DEVELOPMENT = "development"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A signing key at rest. Instants in µs (UTC).

    It signs from `active_at` until a newer one does, and verifies until `retired_at`; None: that is open.
    """

    kid: str
    algorithm: str
    public_jwk: dict[str, str]
    wrapped_private_key: bytes = field(repr=False)
    created_at: int
    active_at: int
    retired_at: int | None = None

    def is_retired(self, now: int) -> bool:
        return self.retired_at is not None and self.retired_at <= now


def insert(connection: Connection, key: StoredKey) -> None:
    """Add a signing key."""
    connection.execute(
        sa.insert(signing_keys).values(
            kid=key.kid,
            algorithm=key.algorithm,
            public_jwk=json.dumps(key.public_jwk, separators=(",", ":"), sort_keys=True),
            wrapped_private_key=key.wrapped_private_key,
            created_at=key.created_at,
            active_at=key.active_at,
            retired_at=key.retired_at,
        )
    )


def all_keys(connection: Connection) -> list[StoredKey]:
    """All signing keys, the newest first."""
    return _found(connection, sa.true())


def unretired(connection: Connection, *, now: int) -> list[StoredKey]:
    """The signing keys that are not retired at `now` (µs), the newest first."""
    return _found(connection, _retires_after(now))


def retire_open(connection: Connection, *, at: int) -> None:
    """Let every key that has no end yet be retired at that instant (µs)."""
    connection.execute(
        sa.update(signing_keys).where(signing_keys.c.retired_at.is_(None)).values(retired_at=at)
    )


def retire_all(connection: Connection, *, now: int) -> None:
    """Let every key that would be retired later, or never, be retired now (µs)."""
    connection.execute(sa.update(signing_keys).where(_retires_after(now)).values(retired_at=now))


def _retires_after(now: int) -> sa.ColumnElement[bool]:
    """`StoredKey.is_retired` in SQL, denied."""
    return sa.or_(signing_keys.c.retired_at.is_(None), signing_keys.c.retired_at > now)


def _found(connection: Connection, condition: sa.ColumnElement[bool]) -> list[StoredKey]:
    newest_first = (signing_keys.c.created_at.desc(), signing_keys.c.active_at.desc(), signing_keys.c.kid)
    rows = connection.execute(sa.select(signing_keys).where(condition).order_by(*newest_first))
    return [
        StoredKey(
            kid=row.kid,
            algorithm=row.algorithm,
            public_jwk=json.loads(row.public_jwk),
            wrapped_private_key=row.wrapped_private_key,
            created_at=row.created_at,
            active_at=row.active_at,
            retired_at=row.retired_at,
        )
        for row in rows
    ]


def set_meta(connection: Connection, key: str, value: str) -> None:
    """Add a meta row that is not there yet."""
    connection.execute(sa.insert(meta).values(key=key, value=value))
