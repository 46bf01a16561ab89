"""The database connection: opening, transactions, and what its failures mean.

Owns the pragmas, the pool, the writer queue and the translation of the driver's errors into ours.
`read()` and `write()` are the only ways to a connection; a transaction begins and ends with them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tokenctl.errors import (
    ConfigInvalid,
    DatabaseError,
    DatabaseFull,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    NotADatabase,
    NotMigrated,
    StatementRefused,
)
from tokenctl.storage import locks
from tokenctl.storage.migrate import current_revision
from tokenctl.storage.schema import SCHEMA_VERSION, meta

# Connection is here for the service, which passes it through and never looks inside.
__all__ = [
    "WRITE_TIMEOUT",
    "Connection",
    "Storage",
    "is_there",
    "sqlite_engine",
    "sqlite_path",
    "translated",
]

#: How long a writer waits for its turn (s) before it says that the database is locked.
WRITE_TIMEOUT = 10.0


class Storage:
    """One database. Safe to share between threads; open a new one after a fork."""

    def __init__(self, database: str, *, write_timeout: float = WRITE_TIMEOUT) -> None:
        """`database` is a path, or a URL as SQLAlchemy reads it. Raises DatabaseMissing, ConfigInvalid."""
        # Absolute: an application that changes its directory later still means this file.
        self.path = sqlite_path(database).absolute()
        self._demand_file()
        self._queue = locks.WriterQueue(self.path, write_timeout)
        self.engine = sqlite_engine(self.path, write_timeout)

    def close(self) -> None:
        """Give the connections back; the object is of no use afterwards."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection in a transaction that sees one state of the database and changes nothing."""
        with translated(self.path), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in a write transaction: committed at the end, rolled back when anything is raised.

        Raise what a caller must see only after this block, or the change that it reports is rolled back.
        """
        with translated(self.path), self._turn(), self.engine.connect() as plain:
            connection = plain.execution_options(tokenctl_begin="BEGIN IMMEDIATE")
            with connection.begin():
                yield connection

    def data_version(self, connection: Connection) -> int:
        """Differs from this connection's last answer when another one has written since."""
        return int(connection.exec_driver_sql("PRAGMA data_version").scalar_one())

    def checkpoint(self) -> None:
        """Bring what is committed from the log into the file. Takes no turn, so no writer waits for it."""
        with translated(self.path), closing(self.engine.raw_connection()) as raw:
            raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").close()

    def exclusive(self, job: str, *, wait: float = 0) -> AbstractContextManager[None]:
        """Hold this for a job of which one may run at a time. Raises DatabaseLocked after `wait` seconds."""
        return locks.exclusive(self.path, job, wait=wait)

    def check_migrated(self) -> dict[str, str]:
        """The meta rows, once it is clear that the schema is this release's. Raises NotMigrated.

        Raises DatabaseMissing as well: a connection that is open already would not notice.
        """
        self._demand_file()
        with self.read() as connection:
            revision = current_revision(connection)
            if revision is None:
                raise NotMigrated(
                    f"{self.path} is no database of tokenctl",
                    hint="name another --database; tokenctl init makes a new one",
                )
            if revision != SCHEMA_VERSION:
                if len(revision) != len(SCHEMA_VERSION) or not revision.isdecimal():
                    raise NotADatabase(
                        f"{self.path} is a database of another program", hint="name another --database"
                    )
                newer = revision > SCHEMA_VERSION
                raise NotMigrated(
                    f"the schema of {self.path} is {revision}, and this release works on {SCHEMA_VERSION}",
                    hint="install the release that upgraded it" if newer else "tokenctl db upgrade",
                )
            return {row.key: row.value for row in connection.execute(sa.select(meta))}

    def journal_mode(self) -> str:
        """How SQLite keeps a transaction whole: `wal`, and `delete` for a sample."""
        with self.read() as connection:
            return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())

    def _demand_file(self) -> None:
        if not is_there(self.path):
            raise DatabaseMissing(f"there is no database at {self.path}: it does not exist")
        if not self.path.is_file():
            raise DatabaseMissing(f"there is no database at {self.path}: it is not a file")

    def _turn(self) -> AbstractContextManager[None]:
        return self._queue.turn() if self.engine.dialect.name == "sqlite" else nullcontext()


def sqlite_path(database: str) -> Path:
    """The file that `database` names. Raises ConfigInvalid for what is no SQLite database."""
    if "://" not in database and database != ":memory:":
        return Path(database)
    try:
        url = sa.make_url(database)
    except sa.exc.ArgumentError:
        raise ConfigInvalid("the database address is no URL that can be read") from None
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise ConfigInvalid(
            f"the database address begins with {url.drivername}://, and this release works on SQLite files",
            hint="--database PATH",
        )
    return Path(url.database)


def is_there(path: Path) -> bool:
    """Whether there is anything at `path`. Raises DatabaseReadOnly where this user may not even look."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DatabaseReadOnly(f"{path} cannot be looked at: {error.strerror}") from None
    return True


def sqlite_engine(path: Path, timeout: float, *, foreign_keys: bool = True) -> Engine:
    """An engine on a file that exists already: SQLite would make an empty one out of a misspelt name."""
    if sqlite3.sqlite_version_info < (3, 37):
        raise DatabaseError(
            f"this Python has SQLite {sqlite3.sqlite_version}, and STRICT tables need 3.37 or newer"
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


def _meaning(error: BaseException | None, path: Path) -> DatabaseError:
    """Our error for the driver's. The driver's text holds no values, so it may be shown."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return DatabaseLocked(
            f"another program holds {path} locked",
            hint="end that program's transaction, then repeat the command",
        )
    if name.startswith("SQLITE_READONLY"):
        return DatabaseReadOnly(f"{path} cannot be written to")
    if name == "SQLITE_FULL":
        return DatabaseFull(f"no space left for {path}; nothing of this transaction was kept")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return NotADatabase(
            f"{path} is not a SQLite database, or is damaged",
            hint="name another --database, or restore a backup",
        )
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return DatabaseReadOnly(f"{path}, or a file beside it, cannot be opened by this user")
    if isinstance(error, _REFUSALS) or name in ("SQLITE_TOOBIG", "SQLITE_RANGE"):
        return StatementRefused(f"the database refused a value ({error})")
    if "no such table" in str(error) or "no such column" in str(error):
        return NotMigrated(f"{path} has not the schema of this release ({error})")
    return DatabaseError(f"the database failed: {error}", hint="tokenctl db check")
