"""Making a new SQLite database, or a new schema in an old one: whole, or not at all."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tokenctl.errors import DatabaseError, DatabaseExists, DatabaseFull, DatabaseReadOnly, NotADatabase
from tokenctl.storage import migrate
from tokenctl.storage.engine import WRITE_TIMEOUT, Connection, sqlite_engine, translated
from tokenctl.storage.locks import WriterQueue

#: So long no init takes (s): what is older was left by one that was killed.
_LEFT_BEHIND = 3600


def create(path: Path, fill: Callable[[Connection], None], *, journal_mode: str = "WAL") -> None:
    """A migrated database at `path`, with what `fill` adds, of mode 0600.

    It is made under another name and linked into place, so that an init which is killed leaves nothing
    half-made, and of two at once the second finds a finished one. Raises DatabaseExists then.
    `journal_mode` DELETE is for a file that is to be handed on: it leaves nothing beside it.
    """
    building = _beside(path)
    with file_errors(path):
        try:
            os.close(os.open(building, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            _build(building, fill, journal_mode)
            os.link(building, path)
            _sync_directory(path.parent)
            # Its lock files, with its owner: whoever writes first may be root.
            with WriterQueue(path, WRITE_TIMEOUT).turn():
                pass
        except FileExistsError:
            raise DatabaseExists(f"{path} is there already, and stays as it is") from None
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                building.with_name(building.name + suffix).unlink(missing_ok=True)


def _build(path: Path, fill: Callable[[Connection], None], journal_mode: str) -> None:
    engine = sqlite_engine(path, WRITE_TIMEOUT)
    try:
        with translated(path):
            with engine.connect() as connection, connection.begin():
                migrate.upgrade(connection)
                fill(connection)
            raw = engine.raw_connection()
            [(mode,)] = raw.cursor().execute(f"PRAGMA journal_mode = {journal_mode}")
            raw.close()
        if mode.upper() != journal_mode:
            raise DatabaseError(
                f"the file system of {path.parent} does not do SQLite's journal mode {journal_mode}",
                hint="name a database on a local disk",
            )
    finally:
        engine.dispose()


def upgrade(path: Path) -> tuple[str | None, str]:
    """Bring a database of ours to the newest schema; the versions before and after, which may be the same.

    Raises NotADatabase for a database that is not ours, and NotMigrated for one of a newer release.
    """
    # Foreign keys are off, since a migration that rebuilds a table of SQLite would cascade into the others.
    engine = sqlite_engine(path, WRITE_TIMEOUT, foreign_keys=False)
    try:
        with translated(path), engine.connect() as plain:
            # Before a lock file is made: none belongs beside a file that is not ours.
            with plain.begin():
                if migrate.current_revision(plain) is None:
                    raise NotADatabase(f"{path} is no database of tokenctl", hint="name another --database")
            connection = plain.execution_options(tokenctl_begin="BEGIN IMMEDIATE")
            with WriterQueue(path, WRITE_TIMEOUT).turn(), connection.begin():
                versions = migrate.upgrade(connection)
                if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                    raise DatabaseError(f"the upgrade of {path} would leave rows that refer to nothing")
                return versions
    finally:
        engine.dispose()


def write_new_file(path: Path, content: bytes) -> None:
    """A new file of mode 0600 that is on disk, whole, before it has its name. Raises FileExistsError."""
    building = _beside(path)
    with file_errors(path):
        try:
            fd = os.open(building, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.link(building, path)
            _sync_directory(path.parent)
        finally:
            building.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name that nobody has: what a killed init left must hinder no later one, whatever its pid."""
    return path.with_name(f"{path.name}.new-{secrets.token_hex(8)}")


def sweep(path: Path) -> None:
    """Remove what an init left that was killed an hour ago or longer."""
    ours = re.compile(re.escape(path.name) + r"(\.key)?\.new-[0-9a-f]{16}(-wal|-shm|-journal)?")
    with suppress(OSError):
        for left in path.parent.iterdir():
            if ours.fullmatch(left.name) and time.time() - left.lstat().st_mtime > _LEFT_BEHIND:
                left.unlink()


def _sync_directory(directory: Path) -> None:
    """A new name is on disk only when its directory is."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """What a file system says to a new file at `path`, as our error; FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if not path.parent.is_dir():
            raise DatabaseError(
                f"{path} cannot be made: there is no directory {path.parent}", hint=f"mkdir -p {path.parent}"
            ) from None
        kind = DatabaseFull if error.errno in (28, 122) else DatabaseReadOnly
        raise kind(f"{path} cannot be made: {error.strerror}") from None
