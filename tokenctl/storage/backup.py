"""One state of a database in another place: the backup of a file, its return, a copy into a new database.

Owns how a file of SQLite is read while others write to it, how one is put in the place of another, and what
is compared after a copy. What a backup means for the logins in it is the service's affair.

A file is never opened here but through SQLite while this process may have it open: closing any descriptor of
a file gives up all locks that the process has on it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tokenctl.core.selector import Selector, SelectState
from tokenctl.errors import (
    DatabaseError,
    DatabaseExists,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    InvalidInput,
    NotADatabase,
    NotMigrated,
)
from tokenctl.storage import files, locks, migrate, tokens
from tokenctl.storage.engine import Location, Storage
from tokenctl.storage.keys import MASTER_KEY_CHECK
from tokenctl.storage.schema import SCHEMA_VERSION, events, meta, metadata, refresh_tokens, users
from tokenctl.storage.sqlite import (
    BESIDE,
    WRITE_TIMEOUT,
    SQLiteFile,
    SQLiteStorage,
    sqlite_engine,
    translated,
)

#: progress(done, total): pages of a file, or rows.
Progress = Callable[[int, int], None]

#: Pages in one step of a backup: 4 MB, so that an interrupt and the progress need not wait for long.
_STEP = 1_000
#: Rows that a copy holds at once.
_BATCH = 2_000
#: For so long (s) whoever has just used the database may need to close it.
_LAST_WORDS = 3.0
#: What begins every file of SQLite, and where it says that it is in WAL mode.
_MAGIC, _WRITE_VERSION, _WAL = b"SQLite format 3\0", 18, 2
#: SQLite's locks (file format, and unixShmLock): what a reader of a file holds, and whoever has a -shm open.
_SHARED_FIRST, _SHARED_SIZE, _SHM_OPEN = 0x40000002, 510, 128
#: What `migrate.differences` says of a thing that is there beyond ours: no reason to lose a backup for it.
_STRAYS = (" is not one of ours", " should not have: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a database holds. `live` tokens are those at the instant that was asked for."""

    schema: str
    users: int
    tokens: int
    live: int
    events: int
    #: When its newest event happened (µs); None without events.
    newest_event_at: int | None
    meta: dict[str, str] = field(repr=False)

    @property
    def key_check(self) -> str | None:
        """Tells whether a master key is this database's."""
        return self.meta.get(MASTER_KEY_CHECK)


def contents(connection: Connection, label: str, *, now: int) -> Contents:
    """What is in it. Raises NotADatabase when it is not ours, and NotMigrated when it is of a newer release.

    Works on every schema that there was: a backup is made before an upgrade.
    """
    return Contents(
        schema=_known_schema(connection, label),
        users=_count(connection, users),
        tokens=_count(connection, refresh_tokens),
        live=tokens.count(connection, Selector(states=(SelectState.LIVE,)), now=now).tokens,
        events=_count(connection, events),
        newest_event_at=connection.scalar(sa.select(sa.func.max(events.c.at))),
        meta=read_meta(connection),
    )


def _known_schema(connection: Connection, label: str) -> str:
    revision = migrate.current_revision(connection)
    if revision is None or len(revision) != len(SCHEMA_VERSION) or not revision.isdecimal():
        whose = "no database of tokenctl" if revision is None else "a database of another program"
        raise NotADatabase(f"{label} is {whose}", hint="name another one")
    if revision > SCHEMA_VERSION:
        raise NotMigrated(
            f"the schema of {label} is {revision}, made by a newer release; this one knows {SCHEMA_VERSION} "
            "at most",
            hint="install that release",
            found=revision,
            known=SCHEMA_VERSION,
        )
    return revision


def read_meta(connection: Connection) -> dict[str, str]:
    """What the database says of itself, of whatever schema it is."""
    return {row.key: row.value for row in connection.execute(sa.select(meta))}


def _count(connection: Connection, table: sa.Table) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


# --- the backup of a file ----------------------------------------------------------------------


def meta_of(storage: Storage) -> dict[str, str]:
    """What the database says of itself. Raises NotADatabase, or NotMigrated for one of a newer release."""
    with storage.read() as connection:
        _known_schema(connection, storage.label)
        return read_meta(connection)


def save(
    storage: SQLiteStorage, target: Path, *, clock: Callable[[], int], progress: Progress
) -> tuple[int, Contents]:
    """A new file with the state of the database at an instant (µs), while others write to it.

    It has its name only when it is whole and was found undamaged. Raises DatabaseExists.
    """
    there = f"{target} is there already, and stays as it is"
    if files.is_there(target):
        raise DatabaseExists(there, hint="name a file that is not there")
    files.sweep(target)
    found: list[tuple[int, Contents]] = []

    def build(building: Path) -> None:
        at = _snapshot(storage, building, target, clock, progress)
        with _blaming(storage.path, target):
            _set_journal_mode(building, "DELETE")  # it may lie on a medium where nothing can be beside it
            found.append((at, _examined(building, storage.label, now=at)))

    try:
        files.create(target, build, leaves=BESIDE)
    except FileExistsError:
        raise DatabaseExists(there, hint="name a file that is not there") from None
    return found[0]


def _snapshot(
    storage: SQLiteStorage, building: Path, target: Path, clock: Callable[[], int], progress: Progress
) -> int:
    with translated(storage.path), closing(storage.engine.raw_connection()) as raw:
        source = raw.driver_connection
        assert isinstance(source, sqlite3.Connection)
        # Taken first: whoever was answered before it committed before what is read from here on.
        at = clock()
        try:
            # One transaction around all steps. Without it each write of somebody else would begin the copy
            # anew, and beside a busy server it would never end. In WAL mode no writer waits for a reader.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            _copy_pages(source, building, storage.path, target, progress)
        finally:
            source.rollback()
    return at


def _copy_pages(
    source: sqlite3.Connection, building: Path, source_path: Path, target: Path, progress: Progress
) -> None:
    def step(_status: int, remaining: int, total: int) -> None:
        progress(total - remaining, total)

    with closing(sqlite3.connect(building)) as copy, _blaming(source_path, target):
        source.backup(copy, pages=_STEP, progress=step)


@contextmanager
def _blaming(read: Path, written: Path) -> Iterator[None]:
    """Raise our errors, with the name of the file that they are about: SQLite does not say which it was."""
    try:
        yield
    except (sa.exc.StatementError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, sa.exc.StatementError) else error
        name = getattr(cause, "sqlite_errorname", "") or ""
        damage = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR_READ")
        with translated(read if name.startswith(damage) else written):
            raise


def _set_journal_mode(path: Path, wanted: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        [(mode,)] = connection.execute(f"PRAGMA journal_mode = {wanted}")
    if mode.upper() != wanted:
        raise DatabaseError(
            f"the file system of {path.parent} does not do SQLite's journal mode {wanted}",
            hint="name a file on a local disk",
        )


def _examined(path: Path, label: str, *, now: int) -> Contents:
    """What the finished file holds. Raises NotADatabase when it is damaged, or lacks what is ours."""
    engine = sqlite_engine(path, WRITE_TIMEOUT)
    try:
        with engine.connect() as connection, connection.begin():
            schema = _known_schema(connection, label)
            # An older schema cannot be held against this release's; damage can be seen in any.
            look = migrate.differences if schema == SCHEMA_VERSION else migrate.damage
            wrong = [each for each in look(connection) if not any(stray in each for stray in _STRAYS)]
            if wrong:
                more = f", and {len(wrong) - 1} more like that" if len(wrong) > 1 else ""
                raise NotADatabase(
                    f"{label} is not in order, so nothing was made of it: {wrong[0]}{more}",
                    hint="tokenctl db check; restore an older backup",
                    findings=wrong[:20],
                )
            return contents(connection, label, now=now)
    finally:
        engine.dispose()


# --- a backup in place of the database -----------------------------------------------------------


@contextmanager
def opened_backup(path: Path) -> Iterator[sqlite3.Connection]:
    """A backup, for reading; nothing about it changes. Raises DatabaseMissing, NotADatabase."""
    if not files.is_there(path):
        raise DatabaseMissing(f"there is no backup at {path}: it does not exist", hint="ls, and name it")
    if not path.is_file():  # a pipe would be waited for
        raise NotADatabase(f"{path} is no backup: it is not a file", hint="name the file of a backup")
    path = path.resolve()
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise DatabaseReadOnly(f"{path} cannot be read: {error.strerror}") from None
    if not head.startswith(_MAGIC) or len(head) < 100:
        raise NotADatabase(f"{path} is no backup: not a file of SQLite", hint="name the file of a backup")
    # A file in WAL mode without its log was closed properly. To open such a one leaves files beside it, and
    # on a medium that cannot be written it fails: SQLite has to be told that nobody changes it.
    still = head[_WRITE_VERSION] == _WAL and not files.is_there(path.with_name(f"{path.name}-wal"))
    address = f"file:{quote(str(path))}?mode=ro" + ("&immutable=1" if still else "")
    with translated(path):
        connection = sqlite3.connect(address, uri=True, isolation_level=None)
        with closing(connection):
            connection.execute("BEGIN")
            yield connection


def look_into(path: Path, *, now: Callable[[dict[str, str]], int]) -> Contents:
    """What a backup holds, `now` being told by what it says of itself. It is not yet searched for damage."""
    with opened_backup(path) as raw:
        # The connection is handed out once and stays open: `opened_backup` closes it.
        engine = sa.create_engine("sqlite://", creator=lambda: raw, poolclass=sa.StaticPool)
        with engine.connect() as connection:
            _known_schema(connection, str(path))
            return contents(connection, str(path), now=now(read_meta(connection)))


@dataclass(frozen=True, slots=True)
class Present:
    """What stands where a backup is to be restored to: nothing, a database of ours, or a damaged one."""

    there: bool
    damaged: bool = False
    key_check: str | None = None


def demand_another_file(location: SQLiteFile, backup: Path) -> None:
    """A backup that is the database itself would be set aside with it. Raises InvalidInput."""
    with suppress(OSError):  # what is wrong with either is said where it is opened
        if backup.samefile(location.path):
            raise InvalidInput(
                f"{backup} is the database itself, not a backup of it",
                hint="name a file of db backup; after a copy by hand: tokenctl db restored",
            )


def present(location: SQLiteFile) -> Present:
    """Looks at the database that would be replaced. Raises DatabaseLocked when somebody has it open.

    Raises NotADatabase for what may be no damaged database of ours, but something else.
    """
    if not location.exists():
        if _is_open(location.path.resolve()):
            raise _in_use(location.label)
        return Present(there=False)
    path = location.path.resolve()
    if not path.is_file():
        raise DatabaseMissing(f"there is no database at {location.label}: it is not a file")
    _demand_owner(path)
    try:
        # First without the right to write: SQLite clears away the log of a file that it cannot make sense of.
        with (
            suppress(DatabaseLocked, DatabaseReadOnly),
            translated(path),
            closing(_connected(path, mode="ro")) as connection,
        ):
            _key_check(connection, location.label)
        with (
            _busy_means_in_use(location.label),
            translated(path),
            closing(_connected(path)) as connection,
        ):
            # Its first look at a file in WAL mode then fails while anybody else has it open.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            check = _key_check(connection, location.label)
            # The first look left it. Nobody can be using it while this one keeps everybody out.
            path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
            return Present(there=True, key_check=check)
    except NotADatabase:
        if not any(path.with_name(path.name + end).exists() for end in (".write", ".key", "-wal")):
            raise NotADatabase(
                f"{location.label} is no database, and nothing beside it says that it ever was one of "
                "tokenctl, so it stays as it is",
                hint="name another --database, or move the file away",
            ) from None
        if _is_open(path):
            raise _in_use(location.label) from None
        return Present(there=True, damaged=True)


def _key_check(connection: sqlite3.Connection, label: str) -> str | None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return None  # an empty file: SQLite takes it for a database
    if not {"alembic_version", "meta", "refresh_tokens"} <= tables:
        raise InvalidInput(
            f"{label} is a database of another program, and stays as it is", hint="name another --database"
        )
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (MASTER_KEY_CHECK,)).fetchone()
    return row and str(row[0])


def replace(
    location: SQLiteFile,
    backup: Path,
    *,
    suffix: str,
    declare: Callable[[Connection, str], int],
    progress: Progress,
) -> tuple[Contents, Path | None]:
    """Put what is in the backup in the place of the database, which is kept beside it under that suffix.

    `declare` is called in the new file before that has its name, with the backup's schema, and returns the
    time (µs). What is left of another run that was killed is cleared away. Returns what the database holds
    now, and where the old one is. Raises DatabaseLocked.
    """
    path = location.path.resolve()
    aside = path.with_name(path.name + suffix)
    with ExitStack() as held:
        if location.exists():
            held.enter_context(_alone(path, location.label))
        old = present(location)
        files.sweep(path)
        _unlink_leftovers(path)
        building = files.beside(path)
        try:
            with files.file_errors(path):
                os.close(os.open(building, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                with opened_backup(backup) as source:
                    _copy_pages(source, building, backup, path, progress)
                with _blaming(backup, path):
                    now = _declared(building, declare)
                    found = _examined(building, str(backup), now=now)
                    _set_journal_mode(building, "WAL")
                _give(building, like=path if old.there else path.parent, keep_mode=old.there)
                kept = _put(building, path, aside, old, location.label)
                files.sync_directory(path.parent)
        except FileExistsError as error:
            raise DatabaseExists(
                f"{error.filename2 or path} appeared meanwhile, and stays as it is",
                hint="look at what is there now, then repeat the command",
            ) from None
        finally:
            for ending in ("", *BESIDE):
                building.with_name(building.name + ending).unlink(missing_ok=True)
    # Its lock files, with its owner: whoever writes first may be root.
    with locks.WriterQueue(path, WRITE_TIMEOUT).turn():
        pass
    return found, kept


def _declared(building: Path, declare: Callable[[Connection, str], int]) -> int:
    # Foreign keys are off: a migration that rebuilds a table of SQLite would cascade into the others.
    engine = sqlite_engine(building, WRITE_TIMEOUT, foreign_keys=False)
    try:
        with engine.connect() as connection, connection.begin():
            before = _known_schema(connection, str(building))
            if before != SCHEMA_VERSION:
                migrate.upgrade(connection)
            return declare(connection, before)
    finally:
        engine.dispose()


def _put(building: Path, path: Path, aside: Path, old: Present, label: str) -> Path | None:
    """Give the finished file its name; where the old one is now."""
    if old.there and not old.damaged:
        with _taken(path, label):
            # There is a database under the name at every moment: the old one, then the new one.
            os.link(path, aside)
            try:
                building.replace(path)
            except BaseException:
                aside.unlink()
                raise
        with suppress(sqlite3.Error, DatabaseError):
            _set_journal_mode(aside, "WAL")  # as it was, for whoever puts it back
        return aside
    # What SQLite cannot open may need its log to be read by a person. Rather no database for a moment than
    # the new one beside the log of the old one, or the old one without.
    for ending in ("", *BESIDE):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))
    os.link(building, path)
    return aside if old.there else None


@contextmanager
def _taken(path: Path, label: str) -> Iterator[None]:
    """Nobody else reads or writes the file, and its log is in it and gone."""
    with (
        locks.WriterQueue(path, WRITE_TIMEOUT).turn(),
        closing(_connected(path)) as connection,
    ):
        with translated(path):
            [(before,)] = connection.execute("PRAGMA journal_mode")
        try:
            with _busy_means_in_use(label), translated(path):
                # Fails while anybody has it open. Not with locking_mode: then the log, or a journal, would
                # be deleted by its name when this connection is closed, and by then that name is the new
                # file's.
                connection.execute("PRAGMA journal_mode = DELETE").fetchone()
                connection.execute("BEGIN EXCLUSIVE")
            _demand_no_log(path, label)
            yield
        except BaseException:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute(f"PRAGMA journal_mode = {before}").fetchone()
            raise
        connection.execute("ROLLBACK")


def _demand_no_log(path: Path, label: str) -> None:
    """Between the two statements before, another program may have gone back to one."""
    if files.is_there(path.with_name(f"{path.name}-wal")):
        raise _in_use(label)


def _connected(path: Path, mode: str = "rw") -> sqlite3.Connection:
    address = f"file:{quote(str(path))}?mode={mode}"
    with translated(path):
        return sqlite3.connect(address, uri=True, timeout=_LAST_WORDS, isolation_level=None)


@contextmanager
def _alone(path: Path, label: str) -> Iterator[None]:
    """Of two restores at once the second is refused."""
    with ExitStack() as held:
        try:
            held.enter_context(locks.exclusive(path, "restore"))
        except DatabaseLocked as error:
            raise DatabaseLocked(
                f"{error.message}: {label} is being replaced", hint="wait for it to end", **error.facts
            ) from None
        yield


@contextmanager
def _busy_means_in_use(label: str) -> Iterator[None]:
    try:
        yield
    except DatabaseLocked:
        raise _in_use(label) from None


def _in_use(label: str) -> DatabaseLocked:
    return DatabaseLocked(
        f"{label} is in use: a server or another program has it open, and nothing was changed",
        hint="stop it (systemctl stop tokenctl), then repeat the command",
    )


def _is_open(path: Path) -> bool:
    """Whether another process has the database open, where SQLite cannot be asked: by SQLite's own locks."""
    shm = path.with_name(f"{path.name}-shm")
    return _is_locked(path, _SHARED_FIRST, _SHARED_SIZE) or _is_locked(shm, _SHM_OPEN, 1)


def _is_locked(path: Path, start: int, length: int) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(fd)
    return False


def _demand_owner(path: Path) -> None:
    """The new file has to be the old one's owner's: a server could not open it otherwise."""
    owner = path.stat().st_uid
    if os.geteuid() not in (0, owner):
        raise DatabaseReadOnly(
            f"{path} belongs to another user (uid {owner}), who could not open a file of yours",
            hint=f"sudo -u '#{owner}' with the same command",
        )


def _give(building: Path, *, like: Path, keep_mode: bool) -> None:
    model = like.stat()
    with building.open("r+b") as file:
        if os.geteuid() == 0:
            os.fchown(file.fileno(), model.st_uid, model.st_gid)
        if keep_mode:
            with suppress(PermissionError):
                os.fchown(file.fileno(), -1, model.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(model.st_mode) & 0o660 | 0o600)
        os.fsync(file.fileno())


def _unlink_leftovers(path: Path) -> None:
    """A restore that was killed between its last two steps leaves a second name of the database itself.

    Whoever opened that would write to the same file with another log.
    """
    with suppress(FileNotFoundError):
        for name in path.parent.glob(f"{escape(path.name)}.before-restore-*"):
            if name.samefile(path):
                name.unlink()


# --- from one database into another --------------------------------------------------------------


def demand_empty(target: Location) -> None:
    """Raises DatabaseExists when there is anything where a copy is to be made."""
    try:
        there = target.exists()
    except DatabaseMissing as error:
        raise DatabaseMissing(error.message, hint="createdb makes it") from None  # and not init: it is filled
    if there:
        raise DatabaseExists(
            f"{target.label} is there already, and stays as it is",
            hint="name one that is empty, or not there",
        )
    if isinstance(target, SQLiteFile):
        return
    with closing(target.open()) as storage, storage.read() as connection:
        _demand_no_strangers(connection, target.label, ours=frozenset())


def _demand_no_strangers(connection: Connection, label: str, *, ours: frozenset[str]) -> None:
    inspector = sa.inspect(connection)
    strangers = {*inspector.get_table_names(), *inspector.get_view_names()} - ours
    if strangers:
        raise DatabaseExists(
            f"{label} is not empty: there is a table {min(strangers)}; nothing was changed",
            hint="createdb makes an empty one",
        )


def copy(
    source: Storage, target: Location, *, clock: Callable[[], int], progress: Progress
) -> tuple[int, Contents, dict[str, int]]:
    """All rows of one state of the source in a new database; the instant, what it holds, rows by table.

    It is there when everything was found again in it, and else not at all. Raises DatabaseExists.
    """
    found: list[tuple[int, Contents, dict[str, int]]] = []
    tables = metadata.sorted_tables  # a row comes after those that it refers to

    with source.read() as reading:
        at = clock()
        counts = {table.name: _count(reading, table) for table in tables}
        # The copy is written, then read again.
        done, total = 0, 2 * sum(counts.values())

        def fill(writing: Connection) -> None:
            nonlocal done
            ours = frozenset(table.name for table in tables) | {migrate.VERSION_TABLE}
            _demand_no_strangers(writing, target.label, ours=ours)
            for table in reversed(tables):  # the rows that the migrations make
                writing.execute(sa.delete(table))
            sums: dict[str, _Sum] = {}
            for table in tables:
                sums[table.name] = _Sum()
                for rows in _batches(reading, table, source.label):
                    writing.execute(sa.insert(table), [dict(row._mapping) for row in rows])
                    sums[table.name].add(rows)
                    progress(done := done + len(rows), total)
            _set_event_counter(writing, _event_counter(reading))
            for table in tables:
                again = _Sum()
                for rows in _batches(writing, table, target.label):
                    again.add(rows)
                    progress(done := done + len(rows), total)
                _demand_same(table.name, counts[table.name], sums[table.name], again)
            found.append((at, contents(writing, target.label, now=at), counts))

        target.create(fill)
    return found[0]


class _Sum:
    """How many rows, and a sum over them that does not depend on their order: languages sort differently."""

    def __init__(self) -> None:
        self.rows = 0
        self.value = 0

    def add(self, rows: list[Any]) -> None:
        self.rows += len(rows)
        for row in rows:
            digest = hashlib.sha256(repr(tuple(row)).encode("utf-8", "surrogatepass")).digest()
            self.value = (self.value + int.from_bytes(digest, "big")) % 2**256


def _demand_same(table: str, counted: int, read: _Sum, written: _Sum) -> None:
    if not counted == read.rows == written.rows:
        raise DatabaseError(
            f"of {counted:,} rows of {table}, {read.rows:,} were read and {written.rows:,} are in the copy, "
            "which was given up",
            hint="tokenctl db check",
        )
    if read.value != written.value:
        raise DatabaseError(
            f"the rows of {table} are not the same in the copy, which was given up", hint="tokenctl db check"
        )


def _batches(connection: Connection, table: sa.Table, label: str) -> Iterator[list[Any]]:
    """All rows, in order of the primary key."""
    key = list(table.primary_key.columns)
    statement = sa.select(table).order_by(*key).limit(_BATCH)
    after: list[Any] = []
    while True:
        here = statement.where(sa.tuple_(*key) > sa.tuple_(*after)) if after else statement
        try:
            rows = list(connection.execute(here))
        except sa.exc.StatementError as error:  # it would be taken for the other database's
            reason = str(error.orig).partition("\n")[0][:300]
            raise DatabaseError(f"{label} could not be read: {reason}", hint="tokenctl db check") from error
        if not rows:
            return
        yield rows
        after = [rows[-1]._mapping[column] for column in key]


def _event_counter(connection: Connection) -> int:
    """The largest id that an event ever had: none is given twice, even if the newest were deleted."""
    newest = connection.scalar(sa.select(sa.func.max(events.c.id))) or 0
    if connection.dialect.name == "sqlite":
        statement = sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    else:
        statement = sa.text("SELECT pg_sequence_last_value(pg_get_serial_sequence('events', 'id')::regclass)")
    return max(newest, connection.scalar(statement) or 0)


def _set_event_counter(connection: Connection, value: int) -> None:
    if not value:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = 'events'"))
        connection.execute(
            sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', :value)"), {"value": value}
        )
    else:
        connection.execute(
            sa.text("SELECT setval(pg_get_serial_sequence('events', 'id'), :value)"), {"value": value}
        )
