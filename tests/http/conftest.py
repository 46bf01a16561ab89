"""The server as others meet it: `tokenctl serve` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests import cli
from tests.conftest import Clock
from tests.http.live import Live, running
from tokenctl import Settings

if TYPE_CHECKING:
    from tests.http.browser import Chromium

PASSWORD = "seven otters knit at dawn"

_READY_WITHIN = 30.0
_STOPPED_WITHIN = 30.0
_ATTEMPTS = 3

#: The only opener that tests use by themselves: a proxy of the machine must not see loopback.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Server:
    """A running server, and what it runs on."""

    url: str
    port: int
    database: Path
    log: Path
    process: subprocess.Popen[bytes]
    ended: bool = False  # by the test itself

    @property
    def pid(self) -> int:
        return self.process.pid

    def tokenctl(self, *argv: str, input: str | None = None) -> str:  # noqa: A002 - the word of subprocess
        """What an operator's command on the same database prints; it has to succeed."""
        done = cli.run(*argv, input=input, env={"TOKENCTL_DATABASE": str(self.database)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> int:
        """SIGTERM, and the exit code; more than once is fine."""
        self.ended = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(
                f"SIGTERM did not stop the server in {_STOPPED_WITHIN:.0f} s:\n{self.log.read_text()}"
            )

    def kill(self) -> None:
        """SIGKILL, for tests of what a crash leaves behind."""
        self.ended = True
        self.process.kill()
        self.process.wait()


class StartServer(Protocol):
    def __call__(
        self, *args: str, env: Mapping[str, str] | None = None, database: Path | None = None
    ) -> Server: ...


@pytest.fixture
def start_server(tmp_path: Path, settings: Settings) -> Iterator[StartServer]:
    """Starts servers: on the test's own database unless told otherwise; `args` go behind `tokenctl serve`.

    The issuer is the server's URL, unless `args` have another one or `--dev`. Each server is stopped with
    SIGTERM after the test, and has to exit with 0 unless the test itself ended it.
    """
    started: list[Server] = []

    def start(*args: str, env: Mapping[str, str] | None = None, database: Path | None = None) -> Server:
        log = tmp_path / f"server-{len(started)}.log"
        server = _start(args, env or {}, database or Path(settings.database), log)
        started.append(server)
        return server

    yield start
    # All are stopped before the first is judged. One that ended by itself is judged, too.
    left = [server for server in started if not server.ended]
    codes = [server.stop() for server in left]
    for server, code in zip(left, codes, strict=True):
        assert code == 0, f"the server ended with {code}:\n{server.log.read_text()}"


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """A server with nothing but the defaults, on an empty database."""
    return start_server()


@dataclass(frozen=True)
class Api:
    """A client that may introspect."""

    id: str
    secret: str


@pytest.fixture
def ada(server: Server) -> str:
    """A user, made as an operator makes one; her name. Her password is PASSWORD."""
    server.tokenctl("create-user", "ada", "--password-stdin", input=PASSWORD + "\n")
    return "ada"


@pytest.fixture
def api(server: Server) -> Api:
    """A resource server's credential, made as an operator makes one."""
    made = json.loads(server.tokenctl("client", "create", "api", "--introspect", "--json"))
    return Api(made["id"], made["secret"])


@pytest.fixture
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser that reaches loopback and nothing else; for tests marked `browser`."""
    from tests.http import browser

    with browser.chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


def post_json(url: str, body: Mapping[str, Any]) -> Any:
    """POST, and the JSON of the answer; an error status is raised."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
    )
    with OPENER.open(request, timeout=30) as answer:
        return json.load(answer)


def log_in(server: Server, name: str = "ada", **fields: str) -> dict[str, Any]:
    """The token pair of a new login."""
    body = {"username": name, "password": PASSWORD, **fields}
    pair: dict[str, Any] = post_json(f"{server.url}/auth/login", body)
    return pair


def _start(args: tuple[str, ...], env: Mapping[str, str], database: Path, log: Path) -> Server:
    for _ in range(_ATTEMPTS):
        server = _spawn(args, env, database, log)
        try:
            if _became_ready(server):
                return server
        except BaseException:  # an interrupt or the test's own timeout must not leave a process behind
            server.kill()
            raise
        if "address already in use" not in log.read_text().lower():
            break
        # Somebody took the port between our look and the server's: another one.
    pytest.fail(f"`tokenctl serve` ended with {server.process.returncode}:\n{log.read_text()}")


def _spawn(args: tuple[str, ...], env: Mapping[str, str], database: Path, log: Path) -> Server:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # A developer's server says by itself who it is.
    issuer = () if {"--issuer", "--dev"} & {*args} else ("--issuer", url)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tokenctl", "serve"),
                *("--database", str(database), "--port", str(port), *issuer, *args),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=cli.environment(env),
        )
    return Server(url, port, database, log, process)


def _became_ready(server: Server) -> bool:
    """Wait for /readyz; False if the process ended before."""
    deadline = time.monotonic() + _READY_WITHIN
    while server.process.poll() is None:
        try:
            with OPENER.open(f"{server.url}/readyz", timeout=5) as answer:
                # Still running, so the answer is ours and not that of whoever has the port.
                return answer.status == 200 and server.process.poll() is None
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                server.kill()
                pytest.fail(f"the server was not ready in {_READY_WITHIN:.0f} s:\n{server.log.read_text()}")
            time.sleep(0.02)
    return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def live(settings: Settings, clock: Clock) -> Iterator[Live]:
    """A server in this process, on an empty database, with that clock."""
    with running(settings, clock) as live:
        yield live
