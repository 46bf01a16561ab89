"""What goes wrong with a file, a disk or a process, and what is left of the data when it did."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import CHEAP, MASTER_KEY, START, Clock, leave_free
from tests.service import dump, run_sql
from tokenctl import Context, Selector, Settings, TokenPair, TokenService, initialise
from tokenctl.core.keys import derive_keys, format_master_key, parse_master_key
from tokenctl.core.token_string import mint, parse_unverified
from tokenctl.errors import (
    ConfigInvalid,
    DatabaseError,
    DatabaseFull,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    KeyMissing,
    KeyWrong,
    NotADatabase,
    NotMigrated,
    TokenctlError,
    TokenRefused,
)
from tokenctl.storage.sqlite import SQLiteStorage

ROOT = Path(__file__).parents[2]
PASSWORD = "plum orbit kettle sandal"


@pytest.fixture
def pair(service: TokenService) -> TokenPair:
    service.create_user("ada", PASSWORD)
    return service.issue("ada")


def run_python(code: str, *argv: str, root: Path = ROOT) -> Any:
    """What the code, run in a process of its own on the packages in `root`, printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=root,  # which `-c` looks in first
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- what is not a database of ours ----------------------------------------------------------


def nothing(path: Path) -> None:
    pass


def a_directory(path: Path) -> None:
    path.mkdir()


def an_empty_file(path: Path) -> None:
    path.touch()


def a_text(path: Path) -> None:
    path.write_text("database = tokens.db\n" * 500)


def a_short_text(path: Path) -> None:
    path.write_text("hello\n")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(7, 256)) * 100)


def a_torn_database(path: Path) -> None:
    path.write_bytes(path.with_name("ours.db").read_bytes()[:5000])


def a_foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")


def an_unmigrated_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")


def a_newer_database(path: Path) -> None:
    shutil.copy(path.with_name("ours.db"), path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def a_database_without_a_table(path: Path) -> None:
    shutil.copy(path.with_name("ours.db"), path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE meta")


def a_broken_link(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


class TestWhatIsNoDatabase:
    @pytest.mark.parametrize(
        ("make", "error"),
        [
            (nothing, DatabaseMissing),
            (a_directory, DatabaseMissing),
            (a_broken_link, DatabaseMissing),
            (an_empty_file, NotMigrated),
            (a_text, NotADatabase),
            (a_short_text, NotADatabase),
            (noise, NotADatabase),
            (a_torn_database, NotADatabase),
            (a_foreign_database, NotMigrated),
            (an_unmigrated_database, NotMigrated),
            (a_newer_database, NotMigrated),
            (a_database_without_a_table, NotMigrated),
        ],
    )
    def test_is_refused_and_left_as_it_is(
        self,
        tmp_path: Path,
        new_database: Path,
        make: Callable[[Path], None],
        error: type[DatabaseError],
    ) -> None:
        shutil.copy(new_database / "tokens.db", tmp_path / "ours.db")
        path = tmp_path / "tokens.db"
        make(path)
        before = path.read_bytes() if path.is_file() else None
        for _ in range(2):
            with pytest.raises(error) as caught:
                TokenService(Settings(database=str(path)))
            assert type(caught.value) is error
            assert str(path) in caught.value.message
            assert caught.value.hint
        assert (path.read_bytes() if path.is_file() else None) == before
        # SQLite itself leaves its two beside a damaged one.
        left = {"tokens.db-wal", "tokens.db-shm"} if make is a_torn_database else set()
        assert {file.name for file in tmp_path.iterdir()} <= {"ours.db", "tokens.db"} | left

    @pytest.mark.parametrize(
        "make",
        [a_directory, an_empty_file, a_text, noise, a_foreign_database, a_newer_database],
    )
    def test_is_not_initialised_over(
        self, tmp_path: Path, new_database: Path, make: Callable[[Path], None]
    ) -> None:
        shutil.copy(new_database / "tokens.db", tmp_path / "ours.db")
        path = tmp_path / "tokens.db"
        make(path)
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(DatabaseError):
            initialise(Settings(database=str(path)))
        assert (path.read_bytes() if path.is_file() else None) == before

    @pytest.mark.parametrize(
        "database", ["mysql://host/name", "sqlite://", "sqlite:///:memory:", "mysql+x://a:b:c@/"]
    )
    def test_an_address_that_is_no_file(self, database: str) -> None:
        with pytest.raises(ConfigInvalid):
            TokenService(Settings(database=database))

    @pytest.mark.parametrize("name", ["tokens?mode=memory.db", "a b#c%20.db", "ü.db", "file:x.db"])
    def test_a_name_means_just_that_file(self, tmp_path: Path, new_database: Path, name: str) -> None:
        path = tmp_path / name
        shutil.copy(new_database / "tokens.db", path)
        with closing(SQLiteStorage(path)) as storage:
            assert storage.check_migrated()
            with storage.write() as connection:
                connection.execute(sa.text("UPDATE realm SET not_before = 1"))
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT not_before FROM realm").fetchone() == (1,)


# --- how it is opened ------------------------------------------------------------------------


class TestConnections:
    def test_each_is_durable_and_keeps_its_references(
        self, service: TokenService, settings: Settings
    ) -> None:
        with closing(SQLiteStorage(Path(settings.database))) as storage, ExitStack() as stack:
            # More at once than the pool keeps, so that each is another one.
            connections = [stack.enter_context(storage.read()) for _ in range(8)]
            for connection in connections:
                found = [
                    connection.scalar(sa.text(f"PRAGMA {name}"))
                    for name in ("synchronous", "foreign_keys", "journal_mode")
                ]
                assert found == [2, 1, "wal"]  # 2 is FULL

    def test_one_that_writes_too(self, settings: Settings) -> None:
        with closing(SQLiteStorage(Path(settings.database))) as storage, storage.write() as connection:
            assert connection.scalar(sa.text("PRAGMA synchronous")) == 2
            assert connection.scalar(sa.text("PRAGMA foreign_keys")) == 1

    def test_a_read_sees_one_state(self, service: TokenService, pair: TokenPair, settings: Settings) -> None:
        with closing(SQLiteStorage(Path(settings.database))) as storage, storage.read() as connection:
            count = sa.text("SELECT count(*) FROM refresh_tokens")
            assert connection.scalar(count) == 1
            service.issue("ada")
            assert connection.scalar(count) == 1

    def test_what_is_raised_inside_is_rolled_back(self, settings: Settings) -> None:
        before = dump(settings)
        with closing(SQLiteStorage(Path(settings.database))) as storage:

            def fail() -> None:
                with storage.write() as connection:
                    connection.execute(sa.text("UPDATE realm SET not_before = 1"))
                    raise LookupError

            with pytest.raises(LookupError):
                fail()
            with storage.write():
                pass
        assert dump(settings) == before


# --- somebody else is writing ----------------------------------------------------------------


class TestLocked:
    def test_by_another_program(self, settings: Settings) -> None:
        with (
            closing(sqlite3.connect(settings.database, isolation_level=None)) as other,
            closing(SQLiteStorage(Path(settings.database), write_timeout=0.3)) as storage,
        ):
            other.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            with pytest.raises(DatabaseLocked) as caught, storage.write():
                pytest.fail("two writers at once")
            assert 0.25 <= time.monotonic() - started < 5
            assert caught.value.hint
            with storage.read() as connection:
                assert connection.scalar(sa.text("SELECT count(*) FROM realm")) == 1
            other.execute("ROLLBACK")
            with storage.write() as connection:
                connection.execute(sa.text("UPDATE realm SET not_before = 1"))
        assert run_sql(settings, "SELECT not_before FROM realm") == [(1,)]

    def test_by_a_process_that_is_killed_in_the_middle_of_a_write(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        code = """
import sys, sqlalchemy as sa
from pathlib import Path
from tokenctl.storage.sqlite import SQLiteStorage
with SQLiteStorage(Path(sys.argv[1])).write() as connection:
    connection.execute(sa.text("PRAGMA cache_spill = 1"))
    connection.execute(sa.text("PRAGMA cache_size = 1"))
    connection.execute(sa.text("UPDATE refresh_tokens SET generation = 77"))
    connection.execute(sa.text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)"
        " INSERT INTO events (at, type, data) SELECT i, 'noise', '{}' FROM n"))
    print("writing", flush=True)
    sys.stdin.read()
"""
        before = dump(settings)
        with subprocess.Popen(
            [sys.executable, "-c", code, settings.database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            # It has spilled what it did into the log already.
            assert Path(f"{settings.database}-wal").stat().st_size > 100_000
            process.send_signal(signal.SIGKILL)
            process.wait()
        started = time.monotonic()
        assert dump(settings) == before
        assert service.rotate(pair.refresh_token)
        assert time.monotonic() - started < 5
        assert run_sql(settings, "PRAGMA integrity_check") == [("ok",)]


# --- a fault between a change and its event --------------------------------------------------

CHANGES: dict[str, Callable[[TokenService, TokenPair], object]] = {
    "issue": lambda service, pair: service.issue("ada"),
    "rotate from another place": lambda service, pair: service.rotate(
        pair.refresh_token, context=Context.of(ip="192.0.2.9")
    ),
    "reuse": lambda service, pair: service.rotate(spent(pair)),
    "reissue": lambda service, pair: service.reissue(pair.token_id),
    "revoke": lambda service, pair: service.revoke([pair.token_id], reason="x"),
    "revoke by string": lambda service, pair: service.revoke([pair.refresh_token], reason="x"),
    "revoke matching": lambda service, pair: service.revoke_matching(Selector(everything=True), reason="x"),
    "purge": lambda service, pair: service.purge(),
    "create a user": lambda service, pair: service.create_user("bob"),
    "disable": lambda service, pair: service.users.disable("ada"),
    "enable": lambda service, pair: service.users.enable("carol"),
    "delete": lambda service, pair: service.users.delete("ada"),
    "set a password": lambda service, pair: service.users.set_password("ada", "another kettle of sandals"),
    "create a client": lambda service, pair: service.clients.create("new"),
    "delete a client": lambda service, pair: service.clients.delete("app"),
}


def spent(pair: TokenPair) -> str:
    """The string before the pair's."""
    token = parse_unverified(pair.refresh_token)
    return mint(token.raw_id, token.generation - 1, token.secret, derive_keys(MASTER_KEY).mac)


@pytest.fixture
def busy(service: TokenService, settings: Settings, clock: Clock) -> TokenPair:
    """A live login at generation 2, beside a dead one and a disabled user."""
    service.create_user("ada", PASSWORD)
    service.create_user("carol")
    service.users.disable("carol")
    service.clients.create("app")
    service.issue("ada")
    run_sql(settings, "UPDATE refresh_tokens SET created_at = 1, rotated_at = 1, expires_at = 2")
    first = service.rotate(service.issue("ada", context=Context.of(ip="192.0.2.1")).refresh_token)
    pair = service.rotate(first.refresh_token)
    clock.now += 60_000_000
    return pair


#: What there is after an init.
FILES = {"tokens.db", "tokens.db.key", "tokens.db.gate", "tokens.db.write"}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
class TestFaultBetweenChangeAndEvent:
    def test_commits_neither(
        self,
        service: TokenService,
        busy: TokenPair,
        settings: Settings,
        change: Callable[[TokenService, TokenPair], object],
    ) -> None:
        run_sql(
            settings,
            "CREATE TRIGGER fault BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'fault'); END",
        )
        before = dump(settings)
        with pytest.raises(DatabaseError):
            change(service, busy)
        assert dump(settings) == before

    def test_without_the_fault_it_changes_something(
        self,
        service: TokenService,
        busy: TokenPair,
        settings: Settings,
        change: Callable[[TokenService, TokenPair], object],
    ) -> None:
        before = dump(settings)
        with suppress(TokenRefused):  # a reuse is committed and raised
            change(service, busy)
        assert dump(settings) != before


@pytest.mark.parametrize("failing", ["token.revoke", "user.%"], ids=["of the login", "of the user"])
@pytest.mark.parametrize("name", ["disable", "delete", "set a password"])
def test_a_fault_at_one_of_two_events_commits_neither(
    service: TokenService, busy: TokenPair, settings: Settings, name: str, failing: str
) -> None:
    run_sql(
        settings,
        f"CREATE TRIGGER fault BEFORE INSERT ON events WHEN new.type LIKE '{failing}'"
        " BEGIN SELECT RAISE(ABORT, 'fault'); END",
    )
    before = dump(settings)
    with pytest.raises(DatabaseError):
        CHANGES[name](service, busy)
    assert dump(settings) == before


# --- files that may not be written -----------------------------------------------------------

READ_ONLY = """
import json, os, sys
from pathlib import Path
from tokenctl import Selector, Settings, TokenService, initialise
from tokenctl.errors import TokenctlError

path, login, user_id, now = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[5])
results = {}

def note(name, use):
    try:
        use()
    except TokenctlError as error:
        results[name] = [type(error).__name__, bool(error.hint)]
    except BaseException as error:
        results[name] = ["unexpected", repr(error)]
    else:
        results[name] = ["done", True]

def open_(use):
    def opened():
        with TokenService(Settings(database=str(path)), clock=lambda: now) as service:
            use(service)
    return opened

# Whatever is imported late is imported now: afterwards the libraries may be out of reach.
warm = Path(sys.argv[4])
initialise(Settings(database=str(warm)))
with TokenService(Settings(database=str(warm))) as service:
    service.create_user("ada")
    service.rotate(service.issue("ada").refresh_token)
    list(service.list(Selector(everything=True)))

if user_id:
    os.setgroups([])
    os.setgid(user_id)
    os.setuid(user_id)
note("read", open_(lambda service: list(service.list(Selector(everything=True)))))
note("write", open_(lambda service: service.revoke([login], reason="x")))
note("init", lambda: initialise(Settings(database=str(path.with_name("new.db")))))
print(json.dumps(results))
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user of the machine can reach: a copy of the package, a place for data."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        shutil.copytree(ROOT / "tokenctl", directory / "tokenctl")
        data = directory / "data"
        data.mkdir()
        try:
            yield directory
        finally:
            data.chmod(0o700)


class TestReadOnly:
    """As another user than root, whom modes do not stop; root drops its rights for it."""

    @pytest.mark.parametrize(
        ("file_mode", "directory_mode", "expected"),
        [
            pytest.param(
                0o666, 0o777, {"read": "done", "write": "done", "init": "done"}, id="all may be written"
            ),
            pytest.param(
                0o444,
                0o777,
                {"read": "done", "write": "DatabaseReadOnly", "init": "done"},
                id="the file may not",
            ),
            pytest.param(
                0o444,
                0o555,
                {"read": "DatabaseReadOnly", "write": "DatabaseReadOnly", "init": "DatabaseReadOnly"},
                id="neither may",
            ),
            pytest.param(
                0o666,
                0o555,
                {"read": "DatabaseReadOnly", "write": "DatabaseReadOnly", "init": "DatabaseReadOnly"},
                id="the directory may not",
            ),
            pytest.param(
                0o000,
                0o777,
                {"read": "DatabaseReadOnly", "write": "DatabaseReadOnly", "init": "done"},
                id="the file may not be read",
            ),
            pytest.param(
                0o666,
                0o000,
                {"read": "DatabaseReadOnly", "write": "DatabaseReadOnly", "init": "DatabaseReadOnly"},
                id="the directory may not be entered",
            ),
        ],
    )
    def test_says_so(
        self,
        service: TokenService,
        pair: TokenPair,
        settings: Settings,
        public: Path,
        tmp_path: Path,
        file_mode: int,
        directory_mode: int,
        expected: dict[str, str],
    ) -> None:
        service.close()
        directory = public / "data"
        path = directory / "tokens.db"
        shutil.copy(settings.database, path)
        path.chmod(file_mode)
        directory.chmod(directory_mode)
        warm = tmp_path / "warm.db"
        user_id = "65534" if os.geteuid() == 0 else "0"
        found = run_python(READ_ONLY, str(path), pair.token_id, user_id, str(warm), str(START), root=public)
        assert {name: kind for name, (kind, _) in found.items()} == expected, found
        assert all(hint for _, hint in found.values())
        directory.chmod(0o700)
        written = expected["write"] == "done"
        revoked = run_sql(Settings(database=str(path)), "SELECT revoked_at IS NOT NULL FROM refresh_tokens")
        assert revoked == [(written,)]


# --- a disk that is full ---------------------------------------------------------------------


def fill_up(service: TokenService, string: str, limit: int) -> tuple[str, int, DatabaseError | None]:
    """Rotate until it fails: the last string that was acknowledged, its generation, the error."""
    generation = parse_unverified(string).generation
    for number in range(limit):
        try:
            # Another address each time, so that each leaves an event and the file grows.
            context = Context(ip=number.to_bytes(16, "big"), user_agent="x" * 250)
            string = service.rotate(string, context=context).refresh_token
        except DatabaseError as error:
            return string, generation, error
        generation += 1
    return string, generation, None


class TestDiskFull:
    def test_nothing_acknowledged_is_lost_and_it_goes_on_afterwards(
        self, small_disk: Path, new_database: Path, clock: Clock
    ) -> None:
        for file in new_database.iterdir():
            shutil.copy(file, small_disk)
        settings = Settings(database=str(small_disk / "tokens.db"))
        ballast = leave_free(small_disk, 500_000)
        with TokenService(settings, clock=clock, passwords=CHEAP) as service:
            service.create_user("ada")
            pair = service.issue("ada")
            string = pair.refresh_token
            for _ in range(2):  # the second time with whatever the first left behind
                string, generation, error = fill_up(service, string, 5000)
                assert type(error) is DatabaseFull, error
                assert error.hint
                assert service.inspect(pair.token_id).token.generation == generation
                with pytest.raises(DatabaseFull):
                    service.revoke([pair.token_id], reason="x")
                assert not service.inspect(pair.token_id).token.is_revoked
            ballast.unlink()
            assert not service.rotate(string).retried
            assert service.inspect(pair.token_id).token.generation == generation + 1
        assert run_sql(settings, "PRAGMA integrity_check") == [("ok",)]

    def test_a_disk_that_is_read_only_is_told_as_one(self, small_disk: Path, new_database: Path) -> None:
        for file in new_database.iterdir():
            shutil.copy(file, small_disk)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        settings = Settings(database=str(small_disk / "tokens.db"))
        with (
            pytest.raises(DatabaseReadOnly, match="is mounted read-only") as refusal,
            TokenService(settings, passwords=CHEAP) as service,
        ):
            service.create_user("ada")
        assert "copy the database" in refusal.value.hint

    def test_init_leaves_nothing_half_made(self, small_disk: Path) -> None:
        ballast = leave_free(small_disk, 40_000)
        settings = Settings(database=str(small_disk / "tokens.db"))
        with pytest.raises(DatabaseFull):
            initialise(settings)
        assert not (small_disk / "tokens.db").exists()
        ballast.unlink()
        assert initialise(settings).created
        assert {file.name for file in small_disk.iterdir()} == FILES

    def test_a_limit_on_the_size_of_files(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        """The nearest to a full disk that every user of every machine can have."""
        service.close()
        code = """
import json, resource, sys
from pathlib import Path
from tests.conftest import START
from tests.storage.test_engine import fill_up
from tokenctl import Selector, Settings, TokenService
from tokenctl.errors import DatabaseError

database, string = sys.argv[1:]
with TokenService(Settings(database=database), clock=lambda: START) as service:
    string, _, error = fill_up(service, string, 3)
    assert error is None
    size = max(Path(database).stat().st_size, Path(database + "-wal").stat().st_size)
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, no_limit))
    string, generation, error = fill_up(service, string, 5000)
    kept = next(service.list(Selector(everything=True))).generation
    resource.setrlimit(resource.RLIMIT_FSIZE, (no_limit, no_limit))
    after = service.rotate(string)
    print(json.dumps({
        "ours": isinstance(error, DatabaseError),
        "hint": error.hint if error else "",
        "acknowledged": generation,
        "kept": kept,
        "retried": after.retried,
    }))
"""
        found = run_python(code, settings.database, pair.refresh_token)
        assert found["ours"]
        assert found["hint"]
        assert found["acknowledged"] == found["kept"] > 3
        assert not found["retried"]
        assert run_sql(settings, "SELECT generation FROM refresh_tokens") == [(found["kept"] + 1,)]
        assert run_sql(settings, "PRAGMA integrity_check") == [("ok",)]


# --- init ------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path) -> Settings:
    """Settings for a database that is not there yet."""
    return Settings(database=str(tmp_path / "fresh" / "tokens.db"))


def works(settings: Settings) -> bool:
    with TokenService(settings, passwords=CHEAP) as service:
        service.create_user("ada")
        service.rotate(service.issue("ada").refresh_token)
    return run_sql(settings, "PRAGMA integrity_check") == [("ok",)]


FORKED = """
import json, os, signal, sys, time
from pathlib import Path
from tokenctl import Settings, initialise
from tokenctl.errors import TokenctlError

directory = Path(sys.argv[1])
initialise(Settings(database=str(directory / "warm.db")))  # imports all that is imported late

def child(work):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    return pid, reading
"""


@pytest.fixture
def directory(fresh: Settings) -> Path:
    """Where it will be."""
    directory = Path(fresh.database).parent
    directory.mkdir()
    return directory


@pytest.mark.usefixtures("directory")
class TestInit:
    def test_makes_a_database_and_its_key(self, fresh: Settings, directory: Path) -> None:
        done = initialise(fresh)
        assert (done.created, done.database) == (True, fresh.database)
        assert done.key_file == Path(f"{fresh.database}.key")
        for path in (Path(done.database), done.key_file):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(parse_master_key(done.key_file.read_text())) == 32
        assert {file.name for file in directory.iterdir()} == FILES
        assert works(fresh)

    def test_is_private_whatever_the_umask(self, fresh: Settings) -> None:
        before = os.umask(0)
        try:
            done = initialise(fresh)
        finally:
            os.umask(before)
        assert done.key_file is not None
        for path in (Path(done.database), done.key_file):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_twice_changes_nothing(self, fresh: Settings) -> None:
        first = initialise(fresh)
        before = dump(fresh), Path(f"{fresh.database}.key").read_bytes()
        second = initialise(fresh)
        assert (second.created, second.kid) == (False, first.kid)
        assert (dump(fresh), Path(f"{fresh.database}.key").read_bytes()) == before

    def test_takes_the_key_that_is_there(self, fresh: Settings) -> None:
        Path(f"{fresh.database}.key").write_text(format_master_key(MASTER_KEY))
        assert initialise(fresh).created
        assert Path(f"{fresh.database}.key").read_text() == format_master_key(MASTER_KEY)
        assert works(fresh)

    @pytest.mark.parametrize(
        ("key", "error"),
        [
            pytest.param(None, KeyMissing, id="gone"),
            pytest.param(format_master_key(MASTER_KEY), KeyWrong, id="another one"),
        ],
    )
    def test_makes_no_new_key_for_a_database_that_has_lost_its_own(
        self, fresh: Settings, key: str | None, error: type[Exception]
    ) -> None:
        initialise(fresh)
        path = Path(f"{fresh.database}.key")
        path.unlink()
        if key is not None:
            path.write_text(key)
        before = dump(fresh)
        with pytest.raises(error):
            initialise(fresh)
        assert dump(fresh) == before
        assert path.exists() is (key is not None)

    def test_where_there_is_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DatabaseError) as caught:
            initialise(Settings(database=str(tmp_path / "no" / "tokens.db")))
        assert "mkdir" in caught.value.hint

    @pytest.mark.parametrize("left", [".init-{pid}", ".key.new-{pid}"])
    def test_what_a_killed_one_of_the_same_pid_left_is_no_hindrance(self, fresh: Settings, left: str) -> None:
        """In a container every process may be number 1."""
        Path(fresh.database + left.format(pid=os.getpid())).write_bytes(b"half-made")
        assert initialise(fresh).created
        assert works(fresh)

    def test_eight_at_once_make_one(self, fresh: Settings, directory: Path, tmp_path: Path) -> None:
        code = f"""{FORKED}
settings = Settings(database=sys.argv[2])
start = time.monotonic() + 0.3

def work():
    time.sleep(start - time.monotonic())
    try:
        done = initialise(settings)
    except TokenctlError as error:
        return [repr(error), ""]
    return [done.created, done.kid]

children = [child(work) for _ in range(8)]
results = [json.loads(os.read(reading, 9999) or b"null") for _, reading in children]
for pid, _ in children:
    os.waitpid(pid, 0)
print(json.dumps(results))
"""
        for _ in range(3):
            results = run_python(code, str(tmp_path), fresh.database)
            assert sorted(created for created, _ in results) == [False] * 7 + [True]
            assert len({kid for _, kid in results}) == 1
            assert works(fresh)
            for file in directory.iterdir():
                assert file.name.startswith("tokens.db"), "no file under another name is left"
                assert ".init-" not in file.name
                assert ".new-" not in file.name
                file.unlink()
            (tmp_path / "warm.db").unlink()
            (tmp_path / "warm.db.key").unlink()

    def test_killed_in_the_middle_leaves_nothing_half_made(self, fresh: Settings, tmp_path: Path) -> None:
        code = f"""{FORKED}
started = time.monotonic()
initialise(Settings(database=str(directory / "measured.db")))
seconds = time.monotonic() - started
results = []
for i in range(20):
    place = directory / f"killed {{i}}"
    place.mkdir()
    path = place / "tokens.db"
    pid, reading = child(lambda: initialise(Settings(database=str(path))).kid)
    time.sleep(seconds * 1.2 * i / 20)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    results.append(bool(os.read(reading, 9999)))
    os.close(reading)
print(json.dumps(results))
"""
        finished = run_python(code, str(tmp_path))
        assert not all(finished), "none was killed in time"
        for i in range(20):
            settings = Settings(database=str(tmp_path / f"killed {i}" / "tokens.db"))
            complete = Path(settings.database).exists()
            if complete:
                with TokenService(settings) as service:
                    assert service.keys.list()
            assert complete or not finished[i], "what was answered is there"
            assert initialise(settings).created is not complete
            assert works(settings)


class TestLeftBehind:
    def test_what_a_killed_init_left_is_removed_when_it_is_old(
        self, fresh: Settings, directory: Path
    ) -> None:
        old, new = (Path(f"{fresh.database}{name}") for name in (f".new-{0:016x}", f".key.new-{1:016x}"))
        mine = Path(f"{fresh.database}.new-backup")
        for left in (old, new, mine):
            left.write_text("half")
        for left in (old, mine):
            os.utime(left, (0, 0))
        initialise(fresh)
        assert (old.exists(), new.exists(), mine.exists()) == (False, True, True)


def test_a_change_of_directory_changes_nothing(
    fresh: Settings, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise(fresh)
    monkeypatch.chdir(Path(fresh.database).parent)
    with TokenService(Settings(database=Path(fresh.database).name)) as service:
        monkeypatch.chdir(tmp_path)
        service.create_user("ada")
        assert service.issue("ada")


def test_a_link_to_a_database_leads_to_its_key(fresh: Settings, directory: Path, tmp_path: Path) -> None:
    initialise(fresh)
    link = tmp_path / "link.db"
    link.symlink_to(fresh.database)
    with TokenService(Settings(database=str(link))) as service:
        service.create_user("ada")
        assert service.issue("ada")


class TestSecrets:
    def test_are_not_in_the_files_of_the_database(self, fresh: Settings, tmp_path: Path) -> None:
        Path(fresh.database).parent.mkdir()
        initialise(fresh)
        master = parse_master_key(Path(f"{fresh.database}.key").read_text())
        service = TokenService(fresh, passwords=CHEAP)
        service.create_user("ada", PASSWORD)
        with pytest.raises(TokenctlError):
            service.users.authenticate("ada", "typed into the wrong field")
        pairs = [service.issue("ada", context=Context.of(device="laptop fingerprint"))]
        for _ in range(3):
            pairs.append(service.rotate(pairs[-1].refresh_token))
        service.revoke([pairs[0].refresh_token], reason="logout")
        content = b"".join(
            file.read_bytes() for file in Path(fresh.database).parent.iterdir() if file.suffix != ".key"
        )
        assert Path(f"{fresh.database}-wal").exists()
        service.close()
        content += Path(fresh.database).read_bytes()
        secret = parse_unverified(pairs[0].refresh_token).secret
        hidden = {
            "master key": master,
            "master key as hex": master.hex().encode(),
            "master key as text": format_master_key(master)[5:].encode(),
            "secret": secret,
            "secret as hex": secret.hex().encode(),
            "password": PASSWORD.encode(),
            "wrong password": b"typed into the wrong field",
            "device": b"laptop fingerprint",
            **{f"refresh token {i}": pair.refresh_token[5:].encode() for i, pair in enumerate(pairs)},
            **{
                f"tail of refresh token {i}": pair.refresh_token[-40:].encode()
                for i, pair in enumerate(pairs)
            },
            **{f"access token {i}": pair.access_token[-40:].encode() for i, pair in enumerate(pairs)},
        }
        assert [name for name, value in hidden.items() if value in content] == []
        # The search finds what is there.
        assert parse_unverified(pairs[0].refresh_token).secret_hash in content
        assert b"logout" in content
