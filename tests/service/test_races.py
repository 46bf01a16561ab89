"""Many present one string at the same moment, round after round: all must get one and the same successor.

More rounds than by default: TOKENCTL_TEST_RACE_ROUNDS=10000.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import pytest

from tests.service import event_types
from tokenctl import Settings, TokenPair, TokenService
from tokenctl.errors import TokenctlError
from tokenctl.service.runtime import system_clock

ROUNDS = int(os.environ.get("TOKENCTL_TEST_RACE_ROUNDS", "500"))
THREADS = 16
PROCESSES = 8

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
    pair = service.issue("ada")
    string = pair.refresh_token
    rotated = 0
    for _ in range(ROUNDS):
        answers = race(string)
        [(successor, expires_at)] = {(answer.refresh_token, answer.access_expires_at) for answer in answers}
        assert expires_at, successor
        rotated += sum(not answer.retried for answer in answers)
        string = successor
    row = service.inspect(pair.token_id).token
    assert row.generation == rotated == ROUNDS
    assert not row.is_revoked
    assert Counter(event_types(settings)) == {"user.create": 1, "token.issue": 1}


@pytest.fixture
def authority(settings: Settings) -> TokenService:
    """On the machine's own clock, as racers are."""
    service = TokenService(settings)
    service.create_user("ada")
    return service


def test_threads_race_on_one_string(authority: TokenService, settings: Settings) -> None:
    start = threading.Barrier(THREADS)

    def rotate(string: str) -> TokenPair:
        start.wait()
        return authority.rotate(string)

    with authority, ThreadPoolExecutor(THREADS) as pool:
        referee(
            authority,
            settings,
            lambda string: list(pool.map(lambda _: Answer.of(lambda: rotate(string)), range(THREADS))),
        )


def racer(settings: Settings, ahead: int, pipe: Connection) -> None:
    """One process: present whatever string comes through the pipe, until there is none. `ahead` in µs."""
    with TokenService(settings, clock=lambda: system_clock() + ahead) as service:
        pipe.send(None)
        while string := pipe.recv():
            pipe.send(Answer.of(lambda string=string: service.rotate(string)))  # type: ignore[misc] # mypy cannot infer such a lambda


@pytest.mark.parametrize("apart", [pytest.param(0, id="one clock"), pytest.param(50_000, id="50 ms apart")])
def test_processes_race_on_one_string(authority: TokenService, settings: Settings, apart: int) -> None:
    pipes, workers = [], []
    for i in range(PROCESSES):
        ours, theirs = spawn.Pipe()
        worker = spawn.Process(target=racer, args=(settings, apart * (i % 2), theirs))
        worker.start()
        theirs.close()  # so that the end of the process ends our waiting
        pipes.append(ours)
        workers.append(worker)

    def race(string: str) -> list[Answer]:
        for pipe in pipes:
            pipe.send(string)
        return [pipe.recv() for pipe in pipes]

    try:
        for pipe in pipes:
            pipe.recv()
        with authority:
            referee(authority, settings, race)
    finally:
        for pipe in pipes:
            with suppress(OSError):  # a racer that died has its say below
                pipe.send("")
            pipe.close()
        for worker in workers:
            worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
