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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A signing key at rest. Instants in µs (UTC); `retired_at` is None for the one that signs."""

    kid: str
    algorithm: str
    public_jwk: dict[str, str]
    wrapped_private_key: bytes = field(repr=False)
    created_at: int
    retired_at: int | None = None


def insert(connection: Connection, key: StoredKey) -> None:
    """Add a signing key."""
    connection.execute(
        sa.insert(signing_keys).values(
            kid=key.kid,
            algorithm=key.algorithm,
            public_jwk=json.dumps(key.public_jwk, separators=(",", ":"), sort_keys=True),
            wrapped_private_key=key.wrapped_private_key,
            created_at=key.created_at,
            retired_at=key.retired_at,
        )
    )


def all_keys(connection: Connection) -> list[StoredKey]:
    """All signing keys, the newest first."""
    rows = connection.execute(sa.select(signing_keys).order_by(signing_keys.c.created_at.desc()))
    return [
        StoredKey(
            kid=row.kid,
            algorithm=row.algorithm,
            public_jwk=json.loads(row.public_jwk),
            wrapped_private_key=row.wrapped_private_key,
            created_at=row.created_at,
            retired_at=row.retired_at,
        )
        for row in rows
    ]


def set_meta(connection: Connection, key: str, value: str) -> None:
    """Add a meta row that is not there yet."""
    connection.execute(sa.insert(meta).values(key=key, value=value))
