"""Servers as processes: started on a free port of loopback, waited for, stopped by their process id.

Owns their command lines. A server logs to a file, whose end is shown when anything goes wrong.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
OIDC = Path(__file__).with_name("oidc_provider")

_READY_WITHIN = 30.0  # s
_STOPPED_WITHIN = 10.0


class NotSetUp(Exception):
    """A contender that is not installed; the message is what its row says."""


@dataclass(frozen=True)
class Server:
    """A running server; `log` is where its output goes."""

    name: str
    port: int
    pid: int
    log: Path

    def last_words(self) -> str:
        return f"--- {self.name}, the end of its log:\n{self.log.read_text(errors='replace')[-3000:]}"


@contextmanager
def tokenctl(database: Path, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """`tokenctl serve` on that database. Raises NotSetUp."""
    if importlib.util.find_spec("tokenctl.cli.serve") is None:
        raise NotSetUp("not in this tree: tokenctl/cli/serve.py")
    port = _free_port()
    command = [
        *(sys.executable, "-m", "tokenctl", "serve", "--database", str(database), "--port", str(port)),
        *("--issuer", f"http://127.0.0.1:{port}", *args),
    ]
    with _running("tokenctl serve", command, port, _log(database, port), env or {}) as server:
        yield server


@contextmanager
def bare(directory: Path, *, size: int) -> Iterator[Server]:
    """An ASGI application that answers `size` bytes without any work."""
    port = _free_port()
    command = [sys.executable, "-m", "bench.peers.bare", "--port", str(port), "--size", str(size)]
    with _running("bare ASGI", command, port, directory / f"bare-{port}.log", {}) as server:
        yield server


@contextmanager
def oidc_provider(database: Path, *, chains: int, commit: str) -> Iterator[tuple[Server, list[str]]]:
    """node oidc-provider on a new database, and the strings of its chains. Raises NotSetUp.

    `commit` is "each" (every write is a transaction, as its adapters usually do) or "group".
    """
    node = shutil.which("node")
    if node is None or not (OIDC / "node_modules" / "oidc-provider").is_dir():
        raise NotSetUp(f"not set up: {(OIDC / 'setup').relative_to(ROOT)}")
    port, strings = _free_port(), database.with_suffix(".strings")
    command = [
        *(node, str(OIDC / "server.mjs"), "--port", str(port), "--database", str(database)),
        *("--chains", str(chains), "--strings", str(strings), "--commit", commit),
    ]
    env = {"NODE_ENV": "production"}
    with _running("oidc-provider", command, port, _log(database, port), env) as server:
        yield server, strings.read_text().split()


def oidc_versions() -> str:
    """What was installed, for the line below the table."""
    names = ("oidc-provider", "better-sqlite3")
    found = [json.loads((OIDC / "node_modules" / name / "package.json").read_text()) for name in names]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return ", ".join([f"Node {node}", *(f"{each['name']} {each['version']}" for each in found)]) + "."


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
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENCTL_", "NODE_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


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


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _log(database: Path, port: int) -> Path:
    return database.with_suffix(f".{port}.log")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
