"""A database in another place: its backup, the return of one, and a copy into another database.

Owns what a return means for the logins: it is declared before the restored database can be opened, so that
clients that rotated since the backup go on, and a second holder of a string is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tokenctl.core.names import clean_note
from tokenctl.errors import ConfigInvalid, KeyMissing, KeyWrong
from tokenctl.service.runtime import (
    SAMPLE_MASTER_KEY,
    Clock,
    key_path,
    read_master_key,
    standing_clock,
    system_clock,
)
from tokenctl.settings import Settings
from tokenctl.storage import backup as stored
from tokenctl.storage import events, tokens
from tokenctl.storage.engine import Connection, locate
from tokenctl.storage.events import Event
from tokenctl.storage.keys import SAMPLE_CLOCK

if TYPE_CHECKING:
    from tokenctl.storage.sqlite import SQLiteFile

#: progress(done, total), in whatever unit there is.
Progress = Callable[[int, int], None]


def unseen(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a database holds; `live` at the instant of the report that it stands in."""

    users: int
    tokens: int
    live: int
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A finished backup: what was acknowledged before `at` (µs) is in it. The master key never is."""

    database: str
    file: Path
    at: int
    schema: str
    counts: Counts
    size: int
    #: Where the master key is looked for; None when the settings hold the key itself, or it is public.
    key_file: Path | None
    is_sample: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a backup holds, before it is restored, and what it would replace."""

    database: str
    file: Path
    schema: str
    counts: Counts
    #: When its newest event happened (µs).
    newest_event_at: int | None
    #: Whether the master key was at hand and is the one of the backup.
    key_fits: bool
    #: Whether there is a database that would be set aside, and whether that one is damaged.
    replaces: bool
    damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A database that came from a backup; `recovered_at` (µs) is when that was declared."""

    database: str
    file: Path
    #: Where the database from before is; None when there was none.
    set_aside: Path | None
    recovered_at: int
    schema_before: str
    schema: str
    counts: Counts
    newest_event_at: int | None
    key_fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A database made of another one's state at `at` (µs); `rows` by table, the same in both."""

    source: str
    target: str
    at: int
    counts: Counts
    rows: Mapping[str, int]
    #: Where the master key of each is looked for; None: the settings hold it, or it is public.
    key_file: Path | None
    target_key_file: Path | None
    is_sample: bool


def backup(
    settings: Settings, path: Path, *, clock: Clock | None = None, progress: Progress = unseen
) -> Backup:
    """Write the database as it is now to a new file of mode 0600, while others use it.

    Works on an older schema, too: a backup is made before an upgrade. Raises DatabaseExists when the file is
    there, NotADatabase when the database is damaged, ConfigInvalid when it is on PostgreSQL.
    """
    location = _file(settings, "db backup makes")
    with closing(location.open()) as storage:
        meta = stored.meta_of(storage)
        at, found = stored.save(storage, path, clock=_clock(meta, clock), progress=progress)
    key_file = key_path(settings, location)
    return Backup(
        database=location.label,
        file=path,
        at=at,
        schema=found.schema,
        counts=_counts(found),
        size=path.stat().st_size,
        key_file=None if settings.master_key is not None or SAMPLE_CLOCK in meta else key_file,
        is_sample=SAMPLE_CLOCK in meta,
    )


def look(settings: Settings, path: Path, *, clock: Clock | None = None) -> Found:
    """What `restore` would do; changes nothing.

    Raises what `restore` raises, but for damage in the backup, which takes as long to find as to read it.
    """
    return _look(settings, path, clock)[0]


def _look(settings: Settings, path: Path, clock: Clock | None) -> tuple[Found, Clock]:
    """Also the clock that the backup goes by: the sample's goes on from when it was first looked at."""
    location = _file(settings, "db restore puts back")
    stored.demand_another_file(location, path)
    old = stored.present(location)
    chosen = system_clock

    def now(meta: dict[str, str]) -> int:
        nonlocal chosen
        chosen = _clock(meta, clock)
        return chosen()

    found = stored.look_into(path, now=now)
    looked = Found(
        database=location.label,
        file=path,
        schema=found.schema,
        counts=_counts(found),
        newest_event_at=found.newest_event_at,
        key_fits=_key_fits(settings, location, found, old),
        replaces=old.there,
        damaged=old.damaged,
    )
    return looked, chosen


def restore(
    settings: Settings,
    path: Path,
    *,
    actor: str = "service",
    clock: Clock | None = None,
    progress: Progress = unseen,
) -> Restored:
    """Put a backup in the place of the database, which is kept beside it, and declare that.

    From then on a string that is newer than its row is followed, once for each login. What was revoked,
    disabled, changed or deleted since the backup is as before. Raises DatabaseLocked while anybody has the
    database open, NotADatabase for a backup that is damaged or none, NotMigrated for one of a newer release,
    KeyWrong for one of another master key, ConfigInvalid when the database is on PostgreSQL.
    """
    who = clean_note(actor)
    before, its_clock = _look(settings, path, clock)
    location = _file(settings, "db restore puts back")
    suffix = f".before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    recovered_at = 0
    schema_before = before.schema

    def declare(connection: Connection, schema: str) -> int:
        nonlocal recovered_at, schema_before
        recovered_at = its_clock()
        schema_before = schema
        tokens.declare_recovery(connection, now=recovered_at)
        facts = {
            "backup": str(path),
            "newest_event_at": before.newest_event_at,
            "set_aside": f"{location.path.resolve().name}{suffix}" if before.replaces else None,
        }
        event = Event(at=recovered_at, type="database.restored", actor=who, reason="db restore", data=facts)
        events.add(connection, [event])
        return recovered_at

    found, set_aside = stored.replace(location, path, suffix=suffix, declare=declare, progress=progress)
    return Restored(
        database=location.label,
        file=path,
        set_aside=set_aside,
        recovered_at=recovered_at,
        schema_before=schema_before,
        schema=found.schema,
        counts=_counts(found),
        newest_event_at=before.newest_event_at,
        key_fits=before.key_fits,
    )


def copy(settings: Settings, to: str, *, clock: Clock | None = None, progress: Progress = unseen) -> Copied:
    """Copy the whole database into a new one, a path or the address of an empty database on PostgreSQL.

    What is written to the source afterwards is not in the copy. Raises DatabaseExists when there is anything
    at `to`, and NotMigrated for a source whose schema is not this release's.
    """
    source, target = locate(settings.database), locate(to)
    with closing(source.open()) as storage:
        meta = storage.check_migrated()
        stored.demand_empty(target)
        target.sweep()
        at, found, rows = stored.copy(storage, target, clock=_clock(meta, clock), progress=progress)
    no_file = settings.master_key is not None or SAMPLE_CLOCK in meta
    return Copied(
        source=source.label,
        target=target.label,
        at=at,
        counts=_counts(found),
        rows=rows,
        key_file=None if no_file else key_path(settings, source),
        target_key_file=None if no_file else key_path(settings, target),
        is_sample=SAMPLE_CLOCK in meta,
    )


def _file(settings: Settings, what: str) -> SQLiteFile:
    from tokenctl.storage.sqlite import SQLiteFile

    location = locate(settings.database)
    if not isinstance(location, SQLiteFile):
        raise ConfigInvalid(
            f"{location.label} is on PostgreSQL, whose own tools do this: {what} files of SQLite only",
            hint="pg_dump and pg_restore, or point-in-time recovery (PITR); after a restore: tokenctl db "
            "restored. To have it in a file: tokenctl db copy --to FILE",
        )
    return location


def _clock(meta: Mapping[str, str], given: Clock | None) -> Clock:
    """The sample's clock stands, as it does for every other command."""
    if given is not None:
        return given
    return standing_clock(int(meta[SAMPLE_CLOCK])) if SAMPLE_CLOCK in meta else system_clock


def _counts(found: stored.Contents) -> Counts:
    return Counts(users=found.users, tokens=found.tokens, live=found.live, events=found.events)


def _key_fits(settings: Settings, location: SQLiteFile, found: stored.Contents, old: stored.Present) -> bool:
    """Whether the key at hand is the backup's; False when there is none at hand. Raises KeyWrong."""
    from tokenctl.core.keys import derive_keys

    is_public = derive_keys(SAMPLE_MASTER_KEY).check == found.key_check
    if is_public and old.key_check == found.key_check:
        return True
    where = key_path(settings, location)
    try:
        check = derive_keys(read_master_key(settings, where)).check
    except KeyMissing:
        if old.key_check is not None and old.key_check != found.key_check:
            raise KeyWrong(
                f"the backup was made of another database than {location.label}: their master keys are not "
                "the same, and nothing was changed",
                hint="name the backup's own database with --database",
            ) from None
        return is_public
    if check != found.key_check:
        source = "TOKENCTL_MASTER_KEY" if settings.master_key is not None else str(where)
        raise KeyWrong(
            f"the master key from {source} is not the one of the backup, and nothing was changed",
            hint="name the key of the backup's database with --key-file, or another backup",
        )
    return True
