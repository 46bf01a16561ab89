"""A PostgreSQL server for one run of a benchmark: made, started, stopped by its process id, and removed.

Owns its settings. They are PostgreSQL's own, durability above all: a commit is on the disk before it is
acknowledged (fsync, synchronous_commit and full_page_writes on). It listens on loopback only, and asks for
a password that only this run knows. The server refuses to run as root; then another user gets it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.servers import NotSetUp, free_port

_USER = "bench"
_READY_WITHIN, _STOPPED_WITHIN = 30.0, 30.0  # s
_TICKS = os.sysconf("SC_CLK_TCK")
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
}


@dataclass(frozen=True)
class Cluster:
    """A running server; `log` is where its output goes."""

    port: int
    pid: int
    log: Path
    programs: Path
    password: str

    def url(self, database: str = "postgres") -> str:
        """How a client that knows libpq's addresses finds it."""
        return f"postgresql://{_USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; its address."""
        self.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def execute(self, statement: str) -> str:
        """What psql prints for it, without headings."""
        return _output(
            [
                *(str(self.programs / "psql"), "--no-psqlrc", "--tuples-only", "--no-align"),
                *("--set", "ON_ERROR_STOP=1", "--command", statement),
            ],
            env={**_environment(), **self._connection()},
        ).strip()

    def cpu(self) -> float:
        """Seconds of CPU that all of its processes took so far, those that have ended included."""
        of_children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        # The 14th to 17th field (proc(5)): its own time, and that of the children that it has buried.
        ticks = sum(_times(self.pid))
        for child in map(int, of_children):
            try:
                ticks += sum(_times(child)[:2])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
        return ticks / _TICKS

    def last_words(self) -> str:
        return f"--- PostgreSQL, the end of its log:\n{self.log.read_text(errors='replace')[-3000:]}"

    def _connection(self) -> dict[str, str]:
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": _USER,
            "PGPASSWORD": self.password,
            "PGDATABASE": "postgres",
        }


@contextmanager
def cluster(parent: Path | None = None) -> Iterator[Cluster]:
    """A new server in a directory of its own below `parent`, or where temporary files are. Raises NotSetUp.

    Where a user other than ours gets the server, it must be able to reach `parent`.
    """
    programs = _programs()
    directory = Path(tempfile.mkdtemp(prefix="bench-postgres-", dir=parent))
    try:
        who = _other_user(directory)
        password, port = secrets.token_hex(16), free_port()
        _initialize(programs, directory, password, who)
        with _running(programs, directory, port, password, who) as server:
            yield server
    finally:
        shutil.rmtree(directory)


def version() -> str:
    """For the line below the table. Raises NotSetUp."""
    return _output([str(_programs() / "postgres"), "--version"], env=_environment()).strip()


def _programs() -> Path:
    """Where the server's programs are; Debian keeps them out of PATH."""
    places = [Path(found).parent for name in ("postgres",) if (found := shutil.which(name))]
    if asked := shutil.which("pg_config"):
        places.append(Path(_output([asked, "--bindir"], env=_environment()).strip()))
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if all((place / name).exists() for name in ("postgres", "initdb", "psql")):
            return place
    raise NotSetUp("not set up: apt-get install postgresql")


def _other_user(directory: Path) -> dict[str, Any]:
    """What makes a process run as the user who gets the server and its directory: nothing, but for root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(directory, found.pw_uid, found.pw_gid)
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise NotSetUp("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _initialize(programs: Path, directory: Path, password: str, who: dict[str, Any]) -> None:
    secret = directory / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if who:
        os.chown(secret, who["user"], who["group"])
    _output(
        [
            *(str(programs / "initdb"), "--pgdata", str(directory / "data"), "--username", _USER),
            *("--pwfile", str(secret), "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale"),
        ],
        env=_environment(),
        cwd=directory,
        **who,
    )
    secret.unlink()


@contextmanager
def _running(
    programs: Path, directory: Path, port: int, password: str, who: dict[str, Any]
) -> Iterator[Cluster]:
    settings = {**_SETTINGS, "port": str(port)}
    command = [str(programs / "postgres"), "-D", str(directory / "data")]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=_environment(),
            **who,
        )
    server = Cluster(port, process.pid, log, programs, password)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        _stop(process)


def _wait_until_ready(server: Cluster, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended with {process.returncode}\n{server.last_words()}")
        try:
            server.execute("SELECT 1")
        except RuntimeError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL is not ready\n{server.last_words()}") from None
            time.sleep(0.05)
        else:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    """It waits for nobody who is connected. Asked twice, since killed it would leave its children behind."""
    for signum in (signal.SIGINT, signal.SIGQUIT):
        process.send_signal(signum)
        try:
            process.wait(_STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()


def _environment() -> dict[str, str]:
    """Ours, without anything that says which server libpq is to connect to."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _output(command: Sequence[str], **options: Any) -> str:
    """What a command prints; whatever else happens is an error."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options
    )
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr[-2000:]}")
    printed: str = done.stdout
    return printed


def _times(pid: int) -> list[int]:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(each) for each in after_name[11:15]]
