"""The life of a database: init, upgrade, check."""

from __future__ import annotations

import secrets
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tokenctl.core.keys import (
    SigningKey,
    derive_keys,
    format_master_key,
    generate_master_key,
    generate_signing_key,
)
from tokenctl.errors import DatabaseExists
from tokenctl.service.keys import wrapped
from tokenctl.service.runtime import (
    Clock,
    Entropy,
    Runtime,
    key_path,
    read_master_key,
    system_clock,
)
from tokenctl.settings import Settings
from tokenctl.storage import events, keys, migrate
from tokenctl.storage.engine import Connection, Location, locate
from tokenctl.storage.events import Event
from tokenctl.storage.files import is_there, write_new_file
from tokenctl.storage.schema import SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """A database that is ready. `key_file` is None when the master key came from elsewhere.

    created: False when it was there already and nothing was changed.
    """

    #: A path, or an address without its password.
    database: str
    kid: str
    schema: str
    key_file: Path | None
    created: bool
    is_sample: bool = False


def initialise(settings: Settings, *, actor: str = "service", development: bool = False) -> Initialised:
    """Make the database and, unless there is one, its master key; or find both in order.

    With `development` a new one is marked: `serve` refuses it unless it is told `--dev`.

    Losing the master key ends every login: keep a copy of it apart from the database.
    Raises KeyWrong or KeyMissing when a database is there whose key is not, and DatabaseError's kinds.
    """
    location = locate(settings.database)
    there = location.exists()
    location.sweep()
    key_file = None if settings.master_key is not None else key_path(settings, location)
    if there:
        return _found(settings, location, key_file)
    if key_file is not None and not is_there(key_file):
        master = generate_master_key()
        try:
            write_new_file(key_file, format_master_key(master).encode("ascii") + b"\n")
        except FileExistsError:  # another init was faster; both go on with its key
            master = read_master_key(settings, key_file)
    else:
        master = read_master_key(settings, key_path(settings, location))
    signing_key = generate_signing_key(settings.algorithm)
    try:
        build_database(settings.database, master, signing_key, actor=actor, development=development)
    except DatabaseExists:
        return _found(settings, location, key_file)
    return Initialised(
        database=location.label, kid=signing_key.kid, schema=SCHEMA_VERSION, key_file=key_file, created=True
    )


def build_database(
    database: str,
    master: bytes,
    signing_key: SigningKey,
    *,
    actor: str,
    clock: Clock = system_clock,
    entropy: Entropy = secrets.token_bytes,
    sample_clock: int | None = None,
    development: bool = False,
) -> None:
    """A new database with its first signing key. With `sample_clock` (µs) it is marked as the sample."""
    derived = derive_keys(master)
    now = clock()

    def fill(connection: Connection) -> None:
        keys.set_meta(connection, keys.MASTER_KEY_CHECK, derived.check)
        if sample_clock is not None:
            keys.set_meta(connection, keys.SAMPLE_CLOCK, str(sample_clock))
        if development:
            keys.set_meta(connection, keys.DEVELOPMENT, "yes")
        keys.insert(connection, wrapped(signing_key, derived.wrap, entropy, now=now, active_at=now))
        facts = {"kid": signing_key.kid, "algorithm": signing_key.algorithm}
        events.add(connection, [Event(at=now, type="key.create", actor=actor, data=facts)])

    # A sample is copied about, so nothing may lie beside it.
    locate(database).create(fill, portable=sample_clock is not None)


def _found(settings: Settings, location: Location, key_file: Path | None) -> Initialised:
    runtime = Runtime.open(settings, clock=None, entropy=None, actor="")
    with closing(runtime.storage):
        return Initialised(
            database=location.label,
            kid=runtime.signing_key.kid,
            schema=SCHEMA_VERSION,
            key_file=None if runtime.is_sample else key_file,
            created=False,
            is_sample=runtime.is_sample,
        )


def upgrade(settings: Settings) -> tuple[str | None, str]:
    """Bring the schema to this release's; the versions before and after. Raises NotMigrated: it is newer."""
    return locate(settings.database).upgrade()


def check(settings: Settings) -> list[str]:
    """Where the database is damaged or not as this release makes it: a sentence each."""
    with closing(locate(settings.database).open()) as storage:
        storage.check_migrated()
        with storage.read() as connection:
            return migrate.differences(connection)
