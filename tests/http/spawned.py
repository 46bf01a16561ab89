"""`tokenctl serve` in a process of its own, with stdout and stderr apart, on a port of its own choice.

For tests of the command itself: what it prints, what it logs, how it ends. For tests of what it answers
there is `conftest.start_server`.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import cli
from tests.http.live import Reply

#: Any: the address is known only when the server runs.
ISSUER = "https://auth.example"
_PATIENCE = 60.0


@dataclass
class Spawned:
    """A process of `tokenctl serve`; `url` is where it says that it answers."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path
    url: str = ""

    @property
    def port(self) -> int:
        found = urlsplit(self.url).port
        assert found is not None
        return found

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log so far: every line is a JSON object."""
        return [json.loads(line) for line in self.stderr.read_text().splitlines()]

    def wait(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not end:\n{self.stderr.read_text()}")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(signum)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own, with JSON or nothing as its body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)) as connection:
            return exchange(connection, method, path, body, headers)

    def post(self, path: str, body: Any, token: str | None = None) -> Reply:
        return self.send("POST", path, body, {"Authorization": f"Bearer {token}"} if token else None)

    def get(self, path: str, token: str | None = None) -> Reply:
        return self.send("GET", path, None, {"Authorization": f"Bearer {token}"} if token else None)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request and its answer on a connection that stays open."""
    said = {"Content-Type": "application/json"} if body is not None else {}
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {**said, **(headers or {})})
    answer = connection.getresponse()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def spawn(
    directory: Path, *args: str, env: Mapping[str, str] | None = None, port: int = 0, prelude: str = ""
) -> Spawned:
    """Start it in that directory; returns when it answers, or has ended (then `url` is empty).

    `prelude` is Python that runs before it, in its process: a way to break something in there.
    """
    program = ["-c", f"{prelude}\nfrom tokenctl.cli.main import main\nraise SystemExit(main())"]
    number = len(list(directory.glob("serve-*.out")))
    stdout, stderr = directory / f"serve-{number}.out", directory / f"serve-{number}.err"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [
                *(sys.executable, *(program if prelude else ["-m", "tokenctl"])),
                *("serve", "--json", "--port", str(port), *args),
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=cli.environment(env),
            cwd=directory,
        )
    spawned = Spawned(process, stdout, stderr)
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and not stdout.read_bytes().endswith(b"\n"):
        if time.monotonic() > deadline:
            spawned.kill()
            pytest.fail(f"the server did not start:\n{stderr.read_text()}")
        time.sleep(0.01)
    if said := stdout.read_text():
        spawned.url = json.loads(said)["url"]
    return spawned


@contextmanager
def serving(
    directory: Path, *args: str, env: Mapping[str, str] | None = None, port: int = 0, prelude: str = ""
) -> Iterator[Spawned]:
    """A server that has to start, and to end with 0 unless the test ended it."""
    spawned = spawn(directory, *args, env=env, port=port, prelude=prelude)
    assert spawned.url, spawned.stderr.read_text()
    try:
        yield spawned
    except BaseException:
        spawned.kill()
        raise
    if spawned.process.poll() is None:
        assert spawned.stop() == 0, spawned.stderr.read_text()
