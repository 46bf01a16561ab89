"""Many present one string at the same moment, round after round: all must get one and the same successor.

More rounds than by default: TOKENCTL_TEST_RACE_ROUNDS=10000; more racers in the processes:
TOKENCTL_TEST_RACE_WORKERS=64.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import pytest

from tests.service import event_types, is_postgres, run_sql
from tokenctl import Settings, TokenPair, TokenService
from tokenctl.errors import TokenctlError
from tokenctl.service.runtime import system_clock

#: Of each race; on a server a round takes longer.
ROUNDS = int(os.environ.get("TOKENCTL_TEST_RACE_ROUNDS", "0"))
ROUNDS_ON_SQLITE, ROUNDS_ON_POSTGRESQL = ROUNDS or 150, ROUNDS or 50
THREADS = 16
PROCESSES = 8
#: How far (µs) the clocks of every other process are ahead of the others'.
APART = (0, 50_000, 2_000_000)
#: Racers in all processes together.
WORKERS = int(os.environ.get("TOKENCTL_TEST_RACE_WORKERS", PROCESSES))

spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Answer:
    """What one racer got: the successor, or the error in its place."""

    refresh_token: str
    access_expires_at: int
    retried: bool

    @classmethod
    def of(cls, rotate: Callable[[], TokenPair]) -> Answer:
        try:
            pair = rotate()
        except TokenctlError as error:
            return cls(f"{type(error).__name__}: {error}", 0, True)
        return cls(pair.refresh_token, pair.access_expires_at, pair.retried)


def referee(service: TokenService, settings: Settings, race: Callable[[str], list[Answer]]) -> None:
    """Run the rounds, and hold every answer of a round against the others."""
    rounds = ROUNDS_ON_POSTGRESQL if is_postgres(settings) else ROUNDS_ON_SQLITE
    pair = service.issue("ada")
    string = pair.refresh_token
    rotated = 0
    for _ in range(rounds):
        answers = race(string)
        [(successor, expires_at)] = {(answer.refresh_token, answer.access_expires_at) for answer in answers}
        assert expires_at, successor
        rotated += sum(not answer.retried for answer in answers)
        string = successor
    row = service.inspect(pair.token_id).token
    assert row.generation == rotated == rounds
    assert not row.is_revoked
    assert set(event_types(settings)) == {"user.create", "token.issue"}


@pytest.fixture(params=["sqlite", "postgresql", "postgresql, serializable"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param).partition(",")[0]


@pytest.fixture
def authority(settings: Settings, request: pytest.FixtureRequest) -> Iterator[TokenService]:
    """On the machine's own clock, as racers are."""
    if "serializable" in request.node.callspec.id:
        name = settings.database.rpartition("/")[2]
        run_sql(settings, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        assert run_sql(settings, "SHOW transaction_isolation") == [("serializable",)]
    with TokenService(settings) as service:
        service.create_user("ada")
        yield service


def test_threads_race_on_one_string(authority: TokenService, settings: Settings) -> None:
    start = threading.Barrier(THREADS)

    def rotate(string: str) -> TokenPair:
        start.wait()
        return authority.rotate(string)

    with ThreadPoolExecutor(THREADS) as pool:
        referee(
            authority,
            settings,
            lambda string: list(pool.map(lambda _: Answer.of(lambda: rotate(string)), range(THREADS))),
        )


def racer(settings: Settings, threads: int, pipe: Connection) -> None:
    """One process: present whatever string comes through the pipe, until there is none.

    With each comes how far (µs) the clock is ahead.
    """
    ahead = 0
    with (
        TokenService(settings, clock=lambda: system_clock() + ahead) as service,
        ThreadPoolExecutor(threads) as pool,
    ):
        pipe.send(None)
        while message := pipe.recv():
            string, ahead = message
            present = partial(Answer.of, partial(service.rotate, string))
            pipe.send([each.result() for each in [pool.submit(present) for _ in range(threads)]])


def test_processes_race_on_one_string(authority: TokenService, settings: Settings) -> None:
    """With one clock, and with clocks that are apart."""
    pipes, workers = [], []
    for _ in range(PROCESSES):
        ours, theirs = spawn.Pipe()
        worker = spawn.Process(target=racer, args=(settings, WORKERS // PROCESSES, theirs))
        worker.start()
        theirs.close()  # so that the end of the process ends our waiting
        pipes.append(ours)
        workers.append(worker)

    def race(apart: int, string: str) -> list[Answer]:
        for i, pipe in enumerate(pipes):
            pipe.send((string, apart * (i % 2)))
        return [answer for pipe in pipes for answer in pipe.recv()]

    try:
        for pipe in pipes:
            pipe.recv()
        for apart in APART:
            referee(authority, settings, partial(race, apart))
    finally:
        for pipe in pipes:
            with suppress(OSError):  # a racer that died has its say below
                pipe.send(None)
            pipe.close()
        for worker in workers:
            worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
