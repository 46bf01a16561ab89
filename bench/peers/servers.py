"""Servers as processes: started on a free port of loopback, waited for, stopped by their process id.

Owns their command lines. A server logs to a file, whose end is shown when anything goes wrong.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
OIDC = Path(__file__).with_name("oidc_provider")
DJANGO = Path(__file__).with_name("django")

_CONFIGURE = ("TOKENCTL_", "NODE_", "BENCH_", "DJANGO_", "GUNICORN_", "WEB_CONCURRENCY", "PG")

_READY_WITHIN = 30.0  # s
_STOPPED_WITHIN = 10.0


class NotSetUp(Exception):
    """A contender that is not installed; the message is what its row says."""


@dataclass(frozen=True)
class Server:
    """A running server; `log` is where its output goes, `workers` are processes that it started."""

    name: str
    port: int
    pid: int
    log: Path
    workers: tuple[int, ...] = ()

    @property
    def pids(self) -> list[int]:
        """All of its processes, whose CPU is the server's. The database's are not among them."""
        return [self.pid, *self.workers]

    def last_words(self) -> str:
        return f"--- {self.name}, the end of its log:\n{self.log.read_text(errors='replace')[-3000:]}"


@contextmanager
def tokenctl(database: Path, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """`tokenctl serve` on that database. Raises NotSetUp."""
    if importlib.util.find_spec("tokenctl.cli.serve") is None:
        raise NotSetUp("not in this tree: tokenctl/cli/serve.py")
    port = free_port()
    command = [
        *(sys.executable, "-m", "tokenctl", "serve", "--database", str(database), "--port", str(port)),
        *("--issuer", f"http://127.0.0.1:{port}", *args),
    ]
    with _running("tokenctl serve", command, port, _log(database, port), env or {}) as server:
        yield server


@contextmanager
def tokenctl_postgresql(url: str, directory: Path, key: Path) -> Iterator[Server]:
    """`tokenctl serve` on a migrated database of PostgreSQL; its log goes to that directory."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "tokenctl", "serve", "--port", str(port), "--key-file", str(key)),
        *("--issuer", f"http://127.0.0.1:{port}"),
    ]
    log = directory / f"tokenctl-{port}.log"
    # By the environment: a password is in it.
    with _running("tokenctl serve", command, port, log, {"TOKENCTL_DATABASE": url}) as server:
        yield server


@contextmanager
def bare(directory: Path, *, size: int) -> Iterator[Server]:
    """An ASGI application that answers `size` bytes without any work."""
    port = free_port()
    command = [sys.executable, "-m", "bench.peers.bare", "--port", str(port), "--size", str(size)]
    with _running("bare ASGI", command, port, directory / f"bare-{port}.log", {}) as server:
        yield server


@contextmanager
def oidc_provider(database: Path, *, chains: int, commit: str) -> Iterator[tuple[Server, list[str]]]:
    """node oidc-provider on a new database, and the strings of its chains. Raises NotSetUp.

    `commit` is "each" (every write is a transaction, as its adapters usually do) or "group".
    """
    port = free_port()
    given = ("--database", str(database), "--chains", str(chains), "--commit", commit)
    with _oidc(given, "better-sqlite3", port, _log(database, port), {}) as started:
        yield started


@contextmanager
def oidc_provider_postgresql(
    url: str, directory: Path, *, chains: int, commit: str
) -> Iterator[tuple[Server, list[str]]]:
    """The same on an empty database of PostgreSQL; its log goes to that directory. Raises NotSetUp.

    Every write is one statement; with "group" those of one kind that came during the last one share the next.
    """
    port = free_port()
    given = ("--chains", str(chains), "--commit", commit)
    log = directory / f"oidc-provider-{port}.log"
    with _oidc(given, "pg", port, log, {"BENCH_DATABASE_URL": url}) as started:
        yield started


@contextmanager
def _oidc(
    given: Sequence[str], driver: str, port: int, log: Path, env: Mapping[str, str]
) -> Iterator[tuple[Server, list[str]]]:
    node = shutil.which("node")
    if node is None or not all((OIDC / "node_modules" / name).is_dir() for name in ("oidc-provider", driver)):
        raise NotSetUp(f"not set up: {(OIDC / 'setup').relative_to(ROOT)}")
    strings = log.with_suffix(".strings")
    command = [node, str(OIDC / "server.mjs"), "--port", str(port), "--strings", str(strings), *given]
    with _running("oidc-provider", command, port, log, {"NODE_ENV": "production", **env}) as server:
        yield server, strings.read_text().split()


def oidc_versions(driver: str = "better-sqlite3") -> str:
    """What was installed, for the line below the table; the driver of PostgreSQL is "pg"."""
    names = ("oidc-provider", driver)
    found = [json.loads((OIDC / "node_modules" / name / "package.json").read_text()) for name in names]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return ", ".join([f"Node {node}", *(f"{each['name']} {each['version']}" for each in found)]) + "."


@contextmanager
def simplejwt(
    url: str, directory: Path, *, chains: int, workers: int = 2, threads: int = 4, atomic: bool = False
) -> Iterator[tuple[Server, list[str]]]:
    """djangorestframework-simplejwt on an empty database of PostgreSQL, and its strings. Raises NotSetUp.

    `atomic` makes a rotation one transaction; as it comes, it commits twice.
    """
    env = {"BENCH_PEER": "simplejwt", "BENCH_DATABASE_URL": url, "BENCH_ATOMIC": str(int(atomic))}
    with _django(env, directory, chains, workers, threads) as started:
        yield started


@contextmanager
def django_oauth_toolkit(
    url: str, directory: Path, *, chains: int, workers: int = 2, threads: int = 4, grace: int = 0
) -> Iterator[tuple[Server, list[str]]]:
    """django-oauth-toolkit on an empty database of PostgreSQL, and its strings. Raises NotSetUp.

    `grace` is the number of seconds for which it answers a token that was rotated already.
    """
    env = {"BENCH_PEER": "dot", "BENCH_DATABASE_URL": url, "BENCH_GRACE_SECONDS": str(grace)}
    with _django(env, directory, chains, workers, threads) as started:
        yield started


@contextmanager
def _django(
    env: Mapping[str, str], directory: Path, chains: int, workers: int, threads: int
) -> Iterator[tuple[Server, list[str]]]:
    """A peer on Django, under gunicorn: threads, since its plain workers close each connection."""
    python = DJANGO / ".venv" / "bin" / "python"
    if not (python.exists() and (DJANGO / "signing-key.pem").exists()):
        raise NotSetUp(f"not set up: {(DJANGO / 'setup').relative_to(ROOT)}")
    port, peer = free_port(), env["BENCH_PEER"]
    log = directory / f"{peer}-{port}.log"
    strings = log.with_suffix(".strings")
    env = {**env, "DJANGO_SETTINGS_MODULE": "bench.peers.django.settings"}
    seed = [
        *(str(python), "-m", "bench.peers.django.seed"),
        *("--chains", str(chains), "--strings", str(strings)),
    ]
    _done(peer, seed, log.with_suffix(".seed.log"), env)
    command = [
        *(str(python), "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--worker-class", "gthread"),
        *("--workers", str(workers), "--threads", str(threads), "--preload", "--no-control-socket"),
        *("--keep-alive", "3600", "--graceful-timeout", "2", "--log-level", "warning"),
        "django.core.wsgi:get_wsgi_application()",
    ]
    with _running(peer, command, port, log, env) as server:
        # Its socket takes connections before there is anybody to answer.
        _wait_until_answered(server)
        yield replace(server, workers=_children(server, workers)), strings.read_text().split()


def django_versions(peer: str) -> str:
    """What was installed for "simplejwt" or "dot", for the line below the table."""
    own = {
        "simplejwt": ("djangorestframework", "djangorestframework-simplejwt"),
        "dot": ("django-oauth-toolkit",),
    }
    names = (*own[peer], "Django", "psycopg", "gunicorn")
    (place,) = (DJANGO / ".venv" / "lib").glob("python*/site-packages")
    found = {_plain(each.name): each.version for each in importlib.metadata.distributions(path=[str(place)])}
    python = place.parent.name.removeprefix("python")
    return ", ".join([f"Python {python}", *(f"{name} {found[_plain(name)]}" for name in names)]) + "."


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(
    name: str, command: Sequence[str], port: int, log: Path, env: Mapping[str, str]
) -> Iterator[Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=_environment(env),
        )
    server = Server(name, port, process.pid, log)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        _stop(process)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours, without anything that would configure a contender behind our back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CONFIGURE)}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def _done(name: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
    """Run a command that a server needs to have been run before it starts."""
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=_environment(env),
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{name} cannot be seeded\n{log.read_text(errors='replace')[-3000:]}")


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"{server.name} ended with {process.returncode}\n{server.last_words()}")
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{server.name} is not ready\n{server.last_words()}") from None
            time.sleep(0.05)


def _wait_until_answered(server: Server) -> None:
    """Until it answers a request, whatever it says."""
    asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_READY_WITHIN)
    try:
        asked.request("GET", "/")
        asked.getresponse().read()
    except OSError:
        raise RuntimeError(f"{server.name} does not answer\n{server.last_words()}") from None
    finally:
        asked.close()


def _children(server: Server, many: int) -> tuple[int, ...]:
    """The processes that it started, once they are that many."""
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        started = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        if len(started) == many:
            return tuple(map(int, started))
        if time.monotonic() > deadline:
            raise RuntimeError(f"{server.name} has {len(started)} workers, not {many}\n{server.last_words()}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _log(database: Path, port: int) -> Path:
    return database.with_suffix(f".{port}.log")
