"""SQLite: opening a file, the pragmas, the queue of writers, and what the driver's failures mean.

Owns everything above one file: where it is, how it is made and upgraded, its connections. The lock files
beside it are `locks`, the making of files that are whole or not there is `files`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tokenctl.errors import (
    ConfigInvalid,
    DatabaseError,
    DatabaseExists,
    DatabaseFull,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    NotADatabase,
    NotMigrated,
    StatementRefused,
)
from tokenctl.storage import files, locks, migrate
from tokenctl.storage.engine import SCHEMA_DAMAGED, Durability, Job, Location, Space, Storage
from tokenctl.storage.files import is_there

#: How long a writer waits for its turn (s) before it says that the database is locked.
WRITE_TIMEOUT = 10.0


class SQLiteFile(Location):
    """The place of a database in one file."""

    def __init__(self, database: str) -> None:
        """`database` is a path, or a URL as SQLAlchemy reads it. Raises ConfigInvalid."""
        self._given = sqlite_path(database)
        self.label = str(self._given)
        # Absolute: an application that changes its directory later still means this file.
        self.path = self._given.absolute()

    @property
    def key_file(self) -> Path:
        path = self.path.resolve() if self.path.is_symlink() else self._given  # a link leads to the key, too
        return path.with_name(path.name + ".key")

    def exists(self) -> bool:
        if not is_there(self.path):
            return False
        if self.path.is_dir():
            raise DatabaseExists(
                f"{self.path} is a directory", hint=f"--database {self.path / 'tokenctl.db'}"
            )
        return True

    def create(self, fill: Callable[[Connection], None], *, portable: bool = False) -> None:
        """A file of mode 0600.

        It is made under another name and linked into place, so that an init which is killed leaves nothing
        half-made, and of two at once the second finds a finished one.
        """
        mode = "DELETE" if portable else "WAL"
        try:
            files.create(self.path, lambda building: _build(building, fill, mode), leaves=BESIDE)
        except FileExistsError:
            raise DatabaseExists(f"{self.path} is there already, and stays as it is") from None
        # Its lock files, with its owner: whoever writes first may be root.
        with locks.WriterQueue(self.path, WRITE_TIMEOUT).turn():
            pass

    def sweep(self) -> None:
        files.sweep(self.path)

    def upgrade(self) -> tuple[str | None, str]:
        _demand_file(self.path)
        # Foreign keys are off: a migration that rebuilds a table of SQLite would cascade into the others.
        engine = sqlite_engine(self.path, WRITE_TIMEOUT, foreign_keys=False)
        try:
            with translated(self.path), engine.connect() as plain:
                # Before a lock file is made: none belongs beside a file that is not ours.
                with plain.begin():
                    if migrate.current_revision(plain) is None:
                        raise NotADatabase(
                            f"{self.path} is no database of tokenctl", hint="name another --database"
                        )
                connection = plain.execution_options(tokenctl_begin="BEGIN IMMEDIATE")
                with locks.WriterQueue(self.path, WRITE_TIMEOUT).turn(), connection.begin():
                    versions = migrate.upgrade(connection)
                    if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                        raise DatabaseError(
                            f"the upgrade of {self.path} would leave rows that refer to nothing",
                            hint=f"sqlite3 {self.path} 'PRAGMA foreign_key_check' lists those there are; "
                            "delete them, then repeat the command",
                        )
                    return versions
        finally:
            engine.dispose()

    def open(self) -> SQLiteStorage:
        return SQLiteStorage(self.path)


class SQLiteStorage(Storage):
    """The connections to one file."""

    one_writer = True

    def __init__(self, path: Path, *, write_timeout: float = WRITE_TIMEOUT) -> None:
        """Raises DatabaseMissing: SQLite itself would make an empty file of a misspelt name."""
        self.path, self.label = path, str(path)
        _demand_file(path)
        self._inode = _inode(path)
        self._queue = locks.WriterQueue(path, write_timeout)
        self.engine = sqlite_engine(path, write_timeout)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with translated(self.path), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self, *, lock_wait: float | None = None) -> Iterator[Connection]:  # noqa: ARG002 - there are no row locks here
        with translated(self.path), self.turn(), self.engine.connect() as plain:
            connection = plain.execution_options(tokenctl_begin="BEGIN IMMEDIATE")
            with connection.begin():
                yield connection

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only writer, on the file that was opened."""
        with self._queue.turn():
            self._demand_same_file()
            yield

    def checkpoint(self) -> None:
        with translated(self.path), closing(self.engine.raw_connection()) as raw:
            raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").close()

    @contextmanager
    def exclusive(self, job: str, *, wait: float = 0) -> Iterator[Job]:
        with (
            locks.exclusive(self.path, job, wait=wait),
            translated(self.path),
            self.engine.connect() as connection,
        ):
            yield _FileJob(self, connection)

    def space(self, connection: Connection) -> Space:
        size, pages, free = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_size", "page_count", "freelist_count")
        )
        return Space(pages * size, free * size)

    def check_migrated(self) -> dict[str, str]:
        self._demand_same_file()
        return super().check_migrated()

    def _demand_same_file(self) -> None:
        """A connection does not notice when its file is moved away: it would write where nobody looks."""
        if _inode(self.path) != self._inode:
            _demand_file(self.path)
            raise DatabaseMissing(
                f"{self.path} is another file than the one that was opened", hint="start this program again"
            )

    def durability(self) -> Durability:
        with self.read() as connection:
            mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
        return Durability(
            mode == "wal", f"journal mode {mode}", f"sqlite3 {self.path} 'PRAGMA journal_mode = WAL'"
        )

    def clock(self) -> None:
        """The file has none of its own."""


#: For so long (ms) a vacuum waits for those who read, while it has the writer.
_READERS_WAIT = 1_000


class _FileJob(Job):
    """A job on one file; its lock file is held by whoever makes this."""

    def __init__(self, storage: SQLiteStorage, connection: Connection) -> None:
        self._storage = storage
        self._connection = connection
        self._version: int | None = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with translated(self._storage.path), self._begun("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with (
            translated(self._storage.path),
            self._storage.turn(),
            self._begun("BEGIN IMMEDIATE") as connection,
        ):
            yield connection

    def others_wrote(self, connection: Connection) -> bool:
        # Comparable on one and the same connection only, for which its own commits do not count.
        version = int(connection.exec_driver_sql("PRAGMA data_version").scalar_one())
        before, self._version = self._version, version
        return version != before

    def vacuum(self) -> None:
        path = self._storage.path
        # On a connection of its own, which has other settings: ours would make the copy in memory.
        engine = sqlite_engine(path, WRITE_TIMEOUT)
        try:
            with (
                translated(path),
                self._storage.turn(),
                closing(engine.raw_connection()) as raw,
                closing(raw.cursor()) as cursor,
            ):
                cursor.execute("PRAGMA temp_store = FILE")
                cursor.execute("VACUUM")
                # The new file is in the log so far. Where somebody reads for longer, the next one empties it.
                cursor.execute(f"PRAGMA busy_timeout = {_READERS_WAIT}")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            engine.dispose()

    @contextmanager
    def _begun(self, begin: str) -> Iterator[Connection]:
        connection = self._connection.execution_options(tokenctl_begin=begin)
        with connection.begin():
            yield connection


#: What SQLite may leave beside a file.
BESIDE = ("-wal", "-shm", "-journal")


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


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _demand_file(path: Path) -> None:
    if not is_there(path):
        raise DatabaseMissing(f"there is no database at {path}: it does not exist")
    if not path.is_file():
        raise DatabaseMissing(
            f"there is no database at {path}: it is not a file",
            hint="name another --database, which is a file or is made by tokenctl init",
        )


def sqlite_path(database: str) -> Path:
    """The file that `database` names. Raises ConfigInvalid for what is no SQLite database."""
    if "://" not in database and database != ":memory:":
        return Path(database)
    try:
        url = sa.make_url(database)
    except sa.exc.ArgumentError:
        raise ConfigInvalid(
            "the database address is no URL that can be read",
            hint="--database PATH, or --database postgresql://HOST/NAME",
        ) from None
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise ConfigInvalid(
            f"the database address begins with {url.drivername}://, which is neither SQLite nor PostgreSQL",
            hint="--database PATH, or --database postgresql://HOST/NAME",
        )
    return Path(url.database)


def sqlite_engine(path: Path, timeout: float, *, foreign_keys: bool = True) -> Engine:
    """An engine on a file that exists already: SQLite would make an empty one out of a misspelt name."""
    if sqlite3.sqlite_version_info < (3, 37):
        raise DatabaseError(
            f"this Python has SQLite {sqlite3.sqlite_version}, and STRICT tables need 3.37 or newer",
            hint="run it with a newer Python, or name a --database on PostgreSQL",
        )
    address = f"file:{quote(str(path.absolute()))}?mode=rw"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            address,
            uri=True,
            timeout=timeout,
            isolation_level=None,  # we say BEGIN ourselves
            check_same_thread=False,
            cached_statements=512,
        )
        try:
            connection.execute(f"PRAGMA foreign_keys = {foreign_keys:d}")
            # NORMAL would lose acknowledged commits when the power fails.
            connection.execute("PRAGMA synchronous = FULL")
            # A checkpoint writes a page once, however often it was committed, and the writer waits for it:
            # rare is cheap. In pages, so the log stays within 64 MB.
            connection.execute("PRAGMA wal_autocheckpoint = 16000")
            # UPDATE … FROM keeps what it will change in a temporary table: not in a file for each batch.
            connection.execute("PRAGMA temp_store = MEMORY")
        except sqlite3.Error:  # the file is no database
            connection.close()
            raise
        return connection

    engine = sa.create_engine(
        "sqlite://",
        creator=connect,
        poolclass=sa.QueuePool,
        max_overflow=-1,
        hide_parameters=True,  # a value may be a password's hash, and an error may reach a log
    )

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A write that begins deferred fails with BUSY at once when somebody else wrote since its first read.
        connection.exec_driver_sql(connection.get_execution_options().get("tokenctl_begin", "BEGIN"))

    return engine


#: A constraint, or a value that the driver cannot bind (SQLAlchemy wraps TypeError and its like, too).
_REFUSALS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    TypeError,
    ValueError,
    OverflowError,
)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise our errors in place of SQLAlchemy's and the driver's."""
    try:
        yield
    except sa.exc.StatementError as error:
        raise _meaning(error.orig, path) from error
    except sqlite3.Error as error:  # from the connect function, which SQLAlchemy does not wrap
        raise _meaning(error, path) from error
    except (UnicodeError, OverflowError) as error:  # what the driver says to a value it cannot bind
        raise StatementRefused("the database cannot hold a value: no Unicode text, or too large") from error


# What SQLite says where it cannot write, or make the files that it needs beside the database.
_NO_WRITING = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")


def _is_on_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _meaning(error: BaseException | None, path: Path) -> DatabaseError:
    """Our error for the driver's. The driver's text holds no values, so it may be shown."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return DatabaseLocked(
            f"another program holds {path} locked",
            hint="end that program's transaction, then repeat the command",
        )
    if name.startswith(_NO_WRITING) and _is_on_read_only(path):
        return DatabaseReadOnly(
            f"the file system of {path} is mounted read-only",
            hint="copy the database with the files beside it to another place, and name that with --database",
        )
    if name.startswith("SQLITE_READONLY"):
        return DatabaseReadOnly(f"{path} cannot be written to")
    # Without space it cannot make the shared memory beside the file, which it calls an I/O error.
    if name in {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"}:
        return DatabaseFull(f"no space left for {path}; nothing of this transaction was kept")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return NotADatabase(
            f"{path} is not a SQLite database, or is damaged",
            hint="name another --database, or restore a backup",
        )
    if name.startswith(_NO_WRITING):
        return DatabaseReadOnly(f"{path}, or a file beside it, cannot be opened by this user")
    if isinstance(error, _REFUSALS) or name in ("SQLITE_TOOBIG", "SQLITE_RANGE"):
        return StatementRefused(f"the database refused a value ({error})")
    if "no such table" in str(error) or "no such column" in str(error):
        return NotMigrated(f"{path} has not the schema of this release ({error})", hint=SCHEMA_DAMAGED)
    return DatabaseError(f"the database failed: {error}", hint="tokenctl db check")
