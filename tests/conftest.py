"""What most tests start from: a clock that stands, a database, a service on it.

And what each run says at its end: how many tests it left out, and how to run them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Composable, Identifier, Literal

from tests.postgres import Server, started
from tokenctl import PasswordPolicy, Settings, TokenService
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.service.database import build_database

#: 2026-03-01 12:00 UTC, in µs.
START = 1_772_366_400_000_000
MASTER_KEY = b"a master key for tests, 32 bytes"
CHEAP = PasswordPolicy(memory_kib=64, iterations=1)
#: The databases that a test can run on; `database_kind` says on which it does.
KINDS = ("sqlite", "postgresql")
#: What needs more than pip can bring. A run without `-m` leaves these out, and says so.
MARKERS = ("node", "browser")


class Clock:
    """Stands until it is moved; calling it gives µs since the epoch."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, duration: timedelta) -> None:
        """Forwards, or with a negative duration backwards."""
        self.now += duration // timedelta(microseconds=1)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds, which on a busy machine may take a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come for a minute"
        time.sleep(0.01)


_LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = Counter()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        item.config.stash[_LEFT_OUT].update(_marker(item))


def pytest_sessionfinish(session: pytest.Session) -> None:
    # With `-n` only the workers collect; each of them leaves out the same.
    left_out = session.config.stash[_LEFT_OUT]
    getattr(session.config, "workeroutput", {})["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # A worker that crashed has no output.
    left_out = getattr(node, "workeroutput", {}).get("left_out", {})
    seen = node.config.stash[_LEFT_OUT]
    node.config.stash[_LEFT_OUT] = seen | Counter(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash[_LEFT_OUT]:
        names = [name for name in MARKERS if left_out[name]]
        terminalreporter.write_line(
            f"left out: {', '.join(f'{left_out[name]} {name}' for name in names)}; run them with: "
            f'pytest -m "{" or ".join(names)}" (README.md says what they need)',
            yellow=True,
        )


def _marker(item: pytest.Item) -> list[str]:
    """The first of MARKERS that the test has: a test that needs two things is one test."""
    return [name for name in MARKERS if item.get_closest_marker(name)][:1]


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a new database and its key, made once, to be copied by each test."""
    directory = tmp_path_factory.mktemp("new")
    key = generate_signing_key()
    build_database(str(directory / "tokens.db"), MASTER_KEY, key, actor="test", clock=lambda: START)
    (directory / "tokens.db.key").write_text(format_master_key(MASTER_KEY) + "\n")
    return directory


class Postgres:
    """A server, and databases on it for one test each."""

    def __init__(self, server: Server) -> None:
        self.server = server
        template = server.create_database("new")
        key = generate_signing_key()
        build_database(template, MASTER_KEY, key, actor="test", clock=lambda: START)
        with psycopg.connect(template) as connection:
            self._rewrite = _rewrite(connection)
        self._admin = psycopg.connect(server.url(), autocommit=True)
        self._idle: list[_Reusable] = []
        self._number = 0

    def close(self) -> None:
        for each in self._idle:
            each.connection.close()
        self._admin.close()

    @contextmanager
    def empty(self) -> Iterator[str]:
        """The URL of an empty database, which is gone after the block whoever is still connected."""
        name = self._create("template0")
        try:
            yield self.server.url(name)
        finally:
            self._drop(name)

    @contextmanager
    def new(self) -> Iterator[str]:
        """The URL of a database as `tokenctl init` leaves it.

        A copy of the template costs several times what most tests do with it, so one in which only rows have
        changed is written anew for the next test.
        """
        if self._idle:
            database = self._idle.pop()
        else:
            name = self._create("new")
            database = _Reusable(name, psycopg.connect(self.server.url(name), autocommit=True))
        try:
            yield self.server.url(database.name)
        finally:
            if database.is_new_again(self._rewrite):
                self._idle.append(database)
            else:
                database.connection.close()
                self._drop(database.name)

    def _create(self, template: str) -> str:
        self._number += 1
        name = f"test_{self._number}"
        # Of a server that syncs nothing, files are copied several times faster than their pages are logged.
        create = SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        self._admin.execute(create.format(Identifier(name), Identifier(template)))
        return name

    def _drop(self, name: str) -> None:
        self._admin.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


class _Reusable:
    """A copy of the template."""

    def __init__(self, name: str, connection: psycopg.Connection) -> None:
        self.name = name
        self.connection = connection
        self._objects = self._fingerprint()

    def is_new_again(self, rewrite: list[bytes]) -> bool:
        """Whether the rows of the template are all that there is now; nobody else is connected any more."""
        try:
            self.connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if self._fingerprint() != self._objects:
                return False
            with self.connection.transaction():
                touched = sum(self.connection.execute(each).rowcount for each in rewrite)
        except psycopg.Error:  # the test has dropped it, or stopped the server
            return False
        # Deleted rows stay in the files: without a cleaner only few may.
        return touched < 1000

    def _fingerprint(self) -> list[tuple[object, ...]]:
        """Changes with every table, column, index, constraint, trigger, function, right and setting."""
        catalogs = (
            "pg_class WHERE oid >= 16384",
            "pg_attribute WHERE attrelid >= 16384",
            "pg_constraint WHERE oid >= 16384",
            "pg_trigger",
            "pg_proc WHERE oid >= 16384",
            "pg_namespace",
            "pg_db_role_setting",
        )
        # The transaction that has written a row of the catalog last stands in it.
        sums = (f"SELECT count(*), sum(xmin::text::bigint) FROM {each}" for each in catalogs)
        return self.connection.execute(" UNION ALL ".join(sums).encode()).fetchall()


def _rewrite(template: psycopg.Connection) -> list[bytes]:
    """The statements that make the rows of the template out of any others."""
    tables = ["refresh_tokens", "users", "clients", "realm", "signing_keys", "events", "meta"]
    tables += ["segments", "plan_members", "plans", "alembic_version"]
    statements: list[Composable] = [SQL("DELETE FROM {}").format(Identifier(table)) for table in tables]
    for table in reversed(tables):
        for row in template.execute(SQL("SELECT * FROM {}").format(Identifier(table))).fetchall():
            values = SQL(", ").join(map(Literal, row))
            statements.append(SQL("INSERT INTO {} VALUES ({})").format(Identifier(table), values))
    statements.append(SQL("SELECT setval('events_id_seq', (SELECT max(id) FROM events))"))
    return [statement.as_bytes(template) for statement in statements]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Started for the first test that asks for it: one for each worker of a run with `-n`."""
    # A cleaner at work in the template would hold up every copy of it.
    with started(options={"autovacuum": "off", "max_connections": "300"}) as server:
        databases = Postgres(server)
        try:
            yield databases
        finally:
            databases.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, to be filled."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def unpack(archive: Path, place: Path) -> list[tarfile.TarInfo]:
    """Unpack an archive of ours; what is in it."""
    with tarfile.open(archive) as opened:
        # Debian 12's Python has no filters yet, and newer ones ask for one.
        if hasattr(tarfile, "data_filter"):
            opened.extraction_filter = tarfile.data_filter
        opened.extractall(place)
        return opened.getmembers()


def leave_free(disk: Path, size: int) -> Path:
    """Fill the file system up to so many bytes; the file that does it, to be deleted."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - size))
    return ballast


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database_kind() -> str:
    """One of KINDS. Here SQLite; tests that run on each of them have a fixture of this name of their own."""
    return "sqlite"


@pytest.fixture
def new_settings(
    database_kind: str, new_database: Path, request: pytest.FixtureRequest
) -> Callable[[Path], AbstractContextManager[Settings]]:
    """Makes new databases, for the time of a block each; what they need of files in the directory given."""
    if database_kind == "sqlite":

        def copy(directory: Path) -> Settings:
            for file in new_database.iterdir():
                shutil.copy(file, directory)
            return Settings(database=str(directory / "tokens.db"))

        return lambda directory: nullcontext(copy(directory))

    postgres: Postgres = request.getfixturevalue("postgres")

    @contextmanager
    def create(directory: Path) -> Iterator[Settings]:
        shutil.copy(new_database / "tokens.db.key", key := directory / "tokens.key")
        with postgres.new() as url:
            yield Settings(database=url, key_file=str(key))

    return create


@pytest.fixture
def settings(
    new_settings: Callable[[Path], AbstractContextManager[Settings]], tmp_path: Path
) -> Iterator[Settings]:
    """Settings for a database of the test's own."""
    with new_settings(tmp_path) as settings:
        yield settings


@pytest.fixture
def service(settings: Settings, clock: Clock) -> Iterator[TokenService]:
    """A service on an empty database, with that clock and cheap password hashes."""
    with TokenService(settings, clock=clock, passwords=CHEAP) as service:
        yield service
