"""The writer queue and the exclusive jobs, with real processes and threads."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tokenctl.errors import DatabaseError, DatabaseFull, DatabaseLocked, DatabaseMissing, DatabaseReadOnly
from tokenctl.storage.locks import WriterQueue, exclusive

# Python 3.12 warns when there are threads, and a parallel test run has some.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
spawn = multiprocessing.get_context("spawn")

HOLD = """
import sys
from pathlib import Path
from tokenctl.storage.locks import WriterQueue, exclusive
database = Path(sys.argv[1])
with WriterQueue(database, 5).turn() if sys.argv[2] == "turn" else exclusive(database, sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.db"
    path.touch(0o600)
    return path


@contextmanager
def held_elsewhere(database: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the turn, or the job `what`, until the block ends or it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(database), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def add_up(database: Path, counter: Path, turns: int, start: Barrier | threading.Barrier) -> None:
    """Read, add 1 and write `turns` times: without mutual exclusion, additions are lost."""
    queue = WriterQueue(database, 60)
    start.wait()
    for _ in range(turns):
        with queue.turn():
            count = int(counter.read_text())
            time.sleep(0.0001)
            counter.write_text(str(count + 1))


def take_turns(database: Path, log: Path, seconds: float, start: Barrier) -> None:
    """Note one's pid in every turn, and come back at once."""
    queue = WriterQueue(database, 60)
    start.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with queue.turn(), log.open("a") as file:
            time.sleep(0.0005)
            file.write(f"{os.getpid()}\n")


class TestTurn:
    def test_excludes_processes(self, database: Path, tmp_path: Path) -> None:
        counter = tmp_path / "counter"
        counter.write_text("0")
        start = spawn.Barrier(4)
        workers = [spawn.Process(target=add_up, args=(database, counter, 100, start)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert counter.read_text() == "400"

    def test_excludes_threads_of_one_process(self, database: Path, tmp_path: Path) -> None:
        counter = tmp_path / "counter"
        counter.write_text("0")
        start = threading.Barrier(8)
        workers = [threading.Thread(target=add_up, args=(database, counter, 50, start)) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert counter.read_text() == "400"

    def test_lets_everybody_make_progress(self, database: Path, tmp_path: Path) -> None:
        log = tmp_path / "log"
        start = spawn.Barrier(4)
        workers = [spawn.Process(target=take_turns, args=(database, log, 1.5, start)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        pids = log.read_text().split()
        turns = [pids.count(pid) for pid in set(pids)]
        assert len(turns) == 4
        # A bare flock that is retaken at once gives some of them next to nothing.
        assert min(turns) > max(turns) / 4

    def test_gives_up_after_the_timeout_and_names_the_holder(self, database: Path) -> None:
        with held_elsewhere(database, "turn") as holder:
            started = time.monotonic()
            with pytest.raises(DatabaseLocked) as caught, WriterQueue(database, 0.3).turn():
                pytest.fail("two writers at once")
            assert 0.3 <= time.monotonic() - started < 5
        assert caught.value.facts["seconds"] == 0.3
        assert "0.3 s" in caught.value.message
        assert caught.value.hint
        if Path("/proc/locks").exists():
            assert caught.value.facts["pid"] == holder.pid
            assert f"process {holder.pid}" in caught.value.message

    def test_a_timeout_leaves_nothing_locked(self, database: Path) -> None:
        with (
            held_elsewhere(database, "turn"),
            pytest.raises(DatabaseLocked),
            WriterQueue(database, 0.1).turn(),
        ):
            pass
        with WriterQueue(database, 0).turn():
            pass

    def test_is_freed_by_an_exception(self, database: Path) -> None:
        queue = WriterQueue(database, 0)
        with pytest.raises(KeyError), queue.turn():
            raise KeyError
        with queue.turn():
            pass

    def test_is_freed_by_kill(self, database: Path) -> None:
        with held_elsewhere(database, "turn") as holder:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with WriterQueue(database, 0).turn():
                pass

    @FORKS
    def test_a_child_forked_meanwhile_does_not_hold_it(self, database: Path) -> None:
        queue = WriterQueue(database, 0)
        reading, writing = os.pipe()
        with queue.turn():
            child = os.fork()
            if child == 0:
                os.read(reading, 1)
                os._exit(0)
        try:
            with queue.turn():
                pass
        finally:
            os.write(writing, b".")
            os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)

    def test_two_names_of_one_database_share_the_lock(self, database: Path, tmp_path: Path) -> None:
        link = tmp_path / "other.db"
        link.symlink_to(database)
        with WriterQueue(database, 0).turn(), pytest.raises(DatabaseLocked), WriterQueue(link, 0).turn():
            pass


class TestExclusive:
    def test_refuses_the_second_and_names_the_first(self, database: Path) -> None:
        with held_elsewhere(database, "purge") as holder:
            started = int(time.time()) - 40
            os.utime(f"{database}.purge", (started, started))
            with pytest.raises(DatabaseLocked) as caught, exclusive(database, "purge"):
                pytest.fail("two purges at once")
        assert caught.value.facts["pid"] == holder.pid
        assert 40 <= caught.value.facts["seconds"] < 60
        assert f"a purge is already running (pid {holder.pid}, " in caught.value.message
        assert caught.value.hint == "tokenctl purge --lock-wait 2m"

    def test_waits_as_long_as_it_is_told(self, database: Path) -> None:
        entered = threading.Event()

        def hold() -> None:
            with exclusive(database, "purge"):
                entered.set()
                time.sleep(0.3)

        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait()
        with exclusive(database, "purge", wait=30):
            pass
        thread.join()

    def test_is_freed_by_kill_and_keeps_the_file(self, database: Path) -> None:
        with held_elsewhere(database, "purge") as holder:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with exclusive(database, "purge"):
                pid, started = Path(f"{database}.purge").read_text().split()
        assert int(pid) == os.getpid()
        assert abs(int(started) / 1e6 - time.time()) < 60
        assert Path(f"{database}.purge").exists()

    def test_names_nobody_when_the_note_cannot_be_read(self, database: Path) -> None:
        with exclusive(database, "purge"):
            Path(f"{database}.purge").write_bytes(b"\xff\n")
            with pytest.raises(DatabaseLocked) as caught, exclusive(database, "purge"):
                pass
        assert caught.value.facts["pid"] is None

    def test_hinders_neither_other_jobs_nor_writers(self, database: Path) -> None:
        with exclusive(database, "purge"), exclusive(database, "seal"), WriterQueue(database, 0).turn():
            pass


class TestLockFiles:
    @pytest.mark.parametrize(
        ("mode", "expected"), [(0o600, 0o600), (0o660, 0o660), (0o644, 0o644), (0o400, 0o600)]
    )
    def test_have_the_mode_of_the_database(self, database: Path, mode: int, expected: int) -> None:
        database.chmod(mode)
        previous = os.umask(0o077)
        try:
            with WriterQueue(database, 0).turn(), exclusive(database, "purge"):
                pass
        finally:
            os.umask(previous)
        for name in ("gate", "write", "purge"):
            assert stat.S_IMODE(Path(f"{database}.{name}").stat().st_mode) == expected

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_have_the_owner_of_the_database(self, database: Path) -> None:
        os.chown(database, 12345, 23456)
        with WriterQueue(database, 0).turn():
            pass
        made = Path(f"{database}.gate").stat()
        assert (made.st_uid, made.st_gid) == (12345, 23456)

    def test_are_not_made_where_there_is_no_database(self, tmp_path: Path) -> None:
        with pytest.raises(DatabaseMissing), WriterQueue(tmp_path / "none.db", 0).turn():
            pass
        assert list(tmp_path.iterdir()) == []

    def test_are_never_reached_through_a_link(self, database: Path, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        Path(f"{database}.purge").symlink_to(victim)
        with pytest.raises(DatabaseReadOnly), exclusive(database, "purge"):
            pass
        assert victim.read_text() == "precious"

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (errno.EACCES, DatabaseReadOnly),
            (errno.EROFS, DatabaseReadOnly),
            (errno.ENOSPC, DatabaseFull),
            (errno.EDQUOT, DatabaseFull),
            (errno.EIO, DatabaseError),
        ],
    )
    @pytest.mark.parametrize("enter", [lambda d: WriterQueue(d, 0).turn(), lambda d: exclusive(d, "purge")])
    def test_that_cannot_be_made(
        self,
        database: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        expected: type[DatabaseError],
        enter: Callable[[Path], object],
    ) -> None:
        def refuse(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(expected, match=os.strerror(number)) as caught:
            enter(database).__enter__()  # type: ignore[attr-defined] # both are context managers
        assert type(caught.value) is expected

    @FORKS
    @pytest.mark.skipif(os.geteuid() != 0, reason="drops the rights of root")
    def test_in_a_directory_of_somebody_else(self) -> None:
        """The real thing: a user who may read the database and not write beside it."""
        with tempfile.TemporaryDirectory() as name:  # a place that others can reach, unlike tmp_path
            directory = Path(name)
            directory.chmod(0o755)
            database = directory / "tokens.db"
            database.touch(0o644)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.setgroups([])
                    os.setuid(65534)
                    with WriterQueue(database, 0).turn():
                        pass
                except DatabaseReadOnly:
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert list(directory.iterdir()) == [database]
