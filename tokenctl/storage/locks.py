"""File locks beside an SQLite database: who may write next, and which job runs only once.

Owns the lock files `<database>.gate`, `<database>.write` and `<database>.<job>`; they are kept for
ever, since unlinking one races with whoever opens it. Does not own transactions (BEGIN IMMEDIATE is
the engine's), knows no SQL and never locks the database file, whose locks are SQLite's own.

All locks are flock(2) on a descriptor of their own, so they exclude threads as well as processes, and
the end of a process frees them, whatever ended it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tokenctl.errors import DatabaseError, DatabaseFull, DatabaseLocked, DatabaseMissing, DatabaseReadOnly

# A blocking flock cannot be timed out, so we poll. Only the holder of the gate polls the write lock, so
# that may be fast. The others poll the gate: more often than this costs throughput, less often fairness.
_WRITE_POLL = 50e-6
_GATE_POLL = 1e-3
_LONGEST_POLL = 5e-3

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class WriterQueue:
    """The queue of those who want to write to the SQLite file `database`.

    SQLite's own waiting starves: whoever has just committed usually wins again. Here the next one
    already waits at the write lock and keeps the gate shut, so a writer that comes back is behind it.
    """

    def __init__(self, database: Path, timeout: float) -> None:
        """`timeout`: seconds that a turn waits at most."""
        # SQLite follows links, too; two names of one database must share one lock.
        self._database = database.resolve()
        self._gate = _lock_file(self._database, "gate")
        self._write = _lock_file(self._database, "write")
        self._timeout = timeout

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only writer for the length of the block; not reentrant.

        Raises DatabaseLocked after the timeout (facts: seconds, pid or None), DatabaseReadOnly,
        DatabaseFull or DatabaseMissing when a lock file cannot be opened or made.
        """
        deadline = time.monotonic() + self._timeout
        with _opened(self._write, self._database) as write:
            with _opened(self._gate, self._database) as gate:
                if not (_take(gate, deadline, _GATE_POLL) and _take(write, deadline, _WRITE_POLL)):
                    pid = _holder(write) or _holder(gate)
                    who = f"process {pid}" if pid else "another process"
                    raise DatabaseLocked(
                        f"waited {self._timeout:g} s to write to {self._database}; {who} is writing",
                        hint=f"wait for {who} or stop it, then repeat the command",
                        seconds=self._timeout,
                        pid=pid,
                    )
            yield


@contextmanager
def exclusive(database: Path, name: str, *, wait: float = 0) -> Iterator[None]:
    """Run the block as the only job `name` ("purge") on this database; other jobs are not hindered.

    Waits `wait` seconds for the one that runs. Raises DatabaseLocked (facts: pid or None, and seconds
    that it has been running), DatabaseReadOnly, DatabaseFull or DatabaseMissing.
    """
    database = database.resolve()
    with _opened(_lock_file(database, name), database) as fd:
        if not _take(fd, time.monotonic() + wait, _GATE_POLL):
            note, _, _ = os.pread(fd, 64, 0).partition(b" ")
            pid = int(note) if note.isdigit() else None
            seconds = max(0, int(time.time() - os.fstat(fd).st_mtime))
            raise DatabaseLocked(
                f"a {name} is already running (pid {pid or 'unknown'}, {seconds} s)",
                hint=f"tokenctl {name} --lock-wait 2m",
                pid=pid,
                seconds=seconds,
            )
        # The note is for people; a purge must be able to run on a full disk.
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {time.time_ns() // 1000}\n".encode("ascii"), 0)
        yield


def _lock_file(database: Path, name: str) -> Path:
    return database.with_name(f"{database.name}.{name}")


def _take(fd: int, deadline: float, poll: float) -> bool:
    """Lock, or give up at `deadline` (monotonic seconds) after at least one try."""
    started = time.monotonic()
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        now = time.monotonic()
        if now >= deadline:
            return False
        # The longer it took so far, the less a late look costs in proportion.
        time.sleep(min(max(poll, (now - started) / 50), _LONGEST_POLL, deadline - now))


@contextmanager
def _opened(path: Path, database: Path) -> Iterator[int]:
    try:
        fd = _open(path, database)
    except OSError as error:
        message = f"cannot use the lock file {path}: {error.strerror}"
        if error.errno in _DENIED:
            raise DatabaseReadOnly(message, path=str(path)) from error
        if error.errno in _FULL:
            raise DatabaseFull(message, path=str(path)) from error
        if error.errno == errno.ENOENT:
            raise DatabaseMissing(f"there is no database {database}", path=str(database)) from error
        hint = f"check the directory: ls -l {path.parent}; then repeat the command"
        raise DatabaseError(message, hint=hint, path=str(path)) from error
    try:
        yield fd
    finally:
        # Not only closed: a child that was forked meanwhile has the descriptor, too, and would hold on.
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _open(path: Path, database: Path) -> int:
    # Root may be asked to work in a directory of a lesser user: never through a link.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        like = database.stat()
        with suppress(FileExistsError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                # The owner first: a change of owner may clear bits of the mode.
                if os.geteuid() == 0:
                    os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, stat.S_IMODE(like.st_mode) & 0o666 | 0o600)
            except OSError:
                os.close(fd)
                raise
            return fd


def _holder(fd: int) -> int | None:
    """The process that has the lock, where the kernel tells (Linux; not across pid namespaces)."""
    file = os.fstat(fd)
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            match line.split():  # "7: FLOCK  ADVISORY  WRITE 812 fe:00:1234 0 EOF"
                case [_, "FLOCK", _, _, pid, where, *_] if where == place and int(pid) > 0:
                    return int(pid)
    return None
