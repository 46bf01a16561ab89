"""What most tests start from: a clock that stands, a database, a service on it.

And what each run says at its end: how many tests it left out, and how to run them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tokenctl import PasswordPolicy, Settings, TokenService
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.service.database import build_database

#: 2026-03-01 12:00 UTC, in µs.
START = 1_772_366_400_000_000
MASTER_KEY = b"a master key for tests, 32 bytes"
CHEAP = PasswordPolicy(memory_kib=64, iterations=1)
#: What needs more than pip can bring. A run without `-m` leaves these out, and says so.
MARKERS = ("node", "browser")


class Clock:
    """Stands until it is moved; calling it gives µs since the epoch."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, duration: timedelta) -> None:
        """Forwards, or with a negative duration backwards."""
        self.now += duration // timedelta(microseconds=1)


_LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = Counter()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        item.config.stash[_LEFT_OUT].update(_marker(item))


def pytest_sessionfinish(session: pytest.Session) -> None:
    # With `-n` only the workers collect; each of them leaves out the same.
    left_out = session.config.stash[_LEFT_OUT]
    getattr(session.config, "workeroutput", {})["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # A worker that crashed has no output.
    left_out = getattr(node, "workeroutput", {}).get("left_out", {})
    seen = node.config.stash[_LEFT_OUT]
    node.config.stash[_LEFT_OUT] = seen | Counter(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash[_LEFT_OUT]:
        names = [name for name in MARKERS if left_out[name]]
        terminalreporter.write_line(
            f"left out: {', '.join(f'{left_out[name]} {name}' for name in names)}; run them with: "
            f'pytest -m "{" or ".join(names)}" (README.md says what they need)',
            yellow=True,
        )


def _marker(item: pytest.Item) -> list[str]:
    """The first of MARKERS that the test has: a test that needs two things is one test."""
    return [name for name in MARKERS if item.get_closest_marker(name)][:1]


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a new database and its key, made once, to be copied by each test."""
    directory = tmp_path_factory.mktemp("new")
    key = generate_signing_key()
    build_database(str(directory / "tokens.db"), MASTER_KEY, key, actor="test", clock=lambda: START)
    (directory / "tokens.db.key").write_text(format_master_key(MASTER_KEY) + "\n")
    return directory


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(tmp_path: Path, new_database: Path) -> Settings:
    """Settings for a database of the test's own."""
    for file in new_database.iterdir():
        shutil.copy(file, tmp_path)
    return Settings(database=str(tmp_path / "tokens.db"))


@pytest.fixture
def service(settings: Settings, clock: Clock) -> Iterator[TokenService]:
    """A service on an empty database, with that clock and cheap password hashes."""
    with TokenService(settings, clock=clock, passwords=CHEAP) as service:
        yield service
