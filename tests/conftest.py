"""What most tests start from: a clock that stands, a database, a service on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tokenctl import PasswordPolicy, Settings, TokenService
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.service.database import build_database

#: 2026-03-01 12:00 UTC, in µs.
START = 1_772_366_400_000_000
MASTER_KEY = b"a master key for tests, 32 bytes"
CHEAP = PasswordPolicy(memory_kib=64, iterations=1)


class Clock:
    """Stands until it is moved; calling it gives µs since the epoch."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, duration: timedelta) -> None:
        """Forwards, or with a negative duration backwards."""
        self.now += duration // timedelta(microseconds=1)


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a new database and its key, made once, to be copied by each test."""
    directory = tmp_path_factory.mktemp("new")
    key = generate_signing_key()
    build_database(directory / "tokens.db", MASTER_KEY, key, actor="test", clock=lambda: START)
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
