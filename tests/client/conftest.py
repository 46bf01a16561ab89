"""One `tokenctl serve --dev` for all tests of a module, a gate in front of it for each, both libraries."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.client.gate import Gate, gate_before
from tests.http.live import PASSWORD, somebody
from tests.http.spawned import Spawned, serving
from tokenctl.client import Moment
from tokenctl.client.clock import now


@dataclass(frozen=True)
class Library:
    """httpx or httpx2, and our adapter for it."""

    http: Any
    TokenAuth: Any


class TestClock:
    """The machine's clocks, which stand still but for what a test adds to each (s)."""

    __test__ = False

    def __init__(self) -> None:
        self._start = now()
        self.running = 0.0
        self.wall = 0.0

    def __call__(self) -> Moment:
        start = self._start
        return replace(start, running=start.running + self.running, wall=start.wall + self.wall)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawned]:
    limits = {"TOKENCTL_ACCOUNT_LIMIT": "none", "TOKENCTL_ADDRESS_LIMIT": "none"}
    with serving(tmp_path_factory.mktemp("client"), "--dev", env=limits) as server:
        yield server


@pytest.fixture
def gate(server: Spawned) -> Iterator[Gate]:
    with gate_before(server) as gate:
        yield gate
        server.post("/dev/faults", {"kind": "none"})


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    # A proxy of the machine must not see loopback.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    http = importlib.import_module(request.param)
    ours = importlib.import_module("tokenctl.client" + (".httpx2" if request.param == "httpx2" else ""))
    return Library(http, ours.TokenAuth)


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def auth(library: Library, gate: Gate, clock: TestClock) -> Any:
    """Somebody of whom nobody else knows, logged in, with the tokens in memory."""
    auth = library.TokenAuth(gate.url, clock=clock)
    auth.register(somebody(), PASSWORD)
    return auth


@pytest.fixture
def client(library: Library, gate: Gate, auth: Any) -> Iterator[Any]:
    with library.http.Client(base_url=gate.url, auth=auth, timeout=30) as client:
        yield client


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own" / "tokens.json"
