"""Group commit: one transaction for what waits, answers after the commit, a bound, no neighbour hurt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from tests.http.live import Live
from tokenctl import RotateRequest, TokenctlError, TokenPair, TokenService
from tokenctl.errors import Busy, DatabaseLocked, InvalidToken, TokenRefused
from tokenctl.http.rotations import MAX_BATCH, Rotations

Many = Callable[[Sequence[RotateRequest]], list[TokenPair | TokenctlError]]


def play(
    rotate_many: Many, body: Callable[[Rotations], Coroutine[Any, Any, Any]], *, limit: int = 2048
) -> tuple[Any, list[int]]:
    """What `body` returns, and the sizes of the batches."""
    sizes: list[int] = []

    async def main() -> Any:
        rotations = Rotations(rotate_many, _no_locks, observe_batch=sizes.append, limit=limit)
        try:
            return await body(rotations)
        finally:
            await rotations.close()

    return asyncio.run(main()), sizes


def _no_locks(_request: RotateRequest) -> TokenPair:
    raise AssertionError("no row of these tests is locked by anybody else")


class Gate:
    """`rotate_many` that waits until it is let go, so that a test can fill the queue meanwhile."""

    def __init__(self, service: TokenService) -> None:
        self._service = service
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, requests: Sequence[RotateRequest]) -> list[TokenPair | TokenctlError]:
        self.entered.set()
        assert self.open.wait(30)
        return self._service.rotate_many(requests)


def test_while_one_batch_commits_the_next_one_fills(service: TokenService) -> None:
    service.create_user("ada")
    strings = [service.issue("ada").refresh_token for _ in range(9)]
    gate = Gate(service)

    async def body(rotations: Rotations) -> list[TokenPair]:
        first = asyncio.ensure_future(rotations.rotate(RotateRequest(strings[0])))
        await asyncio.to_thread(gate.entered.wait)
        rest = [asyncio.ensure_future(rotations.rotate(RotateRequest(each))) for each in strings[1:]]
        await asyncio.sleep(0.05)
        gate.open.set()
        return await asyncio.gather(first, *rest)

    pairs, sizes = play(gate, body)
    assert sizes == [1, 8]
    assert len({pair.token_id for pair in pairs}) == 9


def test_one_bad_entry_never_fails_its_neighbours(service: TokenService) -> None:
    service.create_user("ada")
    good, spent = service.issue("ada").refresh_token, service.issue("ada").refresh_token
    twice = service.rotate(service.rotate(spent).refresh_token).refresh_token
    gate = Gate(service)

    async def body(rotations: Rotations) -> list[Any]:
        bad = ["junk", spent, "tkr1_" + "A" * 84, good, twice, "\x00", good]
        calls = [asyncio.ensure_future(rotations.rotate(RotateRequest(each))) for each in bad]
        await asyncio.sleep(0.05)
        gate.open.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    results, _ = play(gate, body)
    kinds = [type(result) for result in results]
    assert kinds == [
        InvalidToken,
        TokenRefused,
        InvalidToken,
        TokenPair,
        TokenRefused,
        InvalidToken,
        TokenPair,
    ]
    # The two that presented one string at once have one successor.
    assert results[3].refresh_token == results[6].refresh_token
    assert results[6].retried


def test_a_full_queue_is_told_at_once(service: TokenService) -> None:
    service.create_user("ada")
    string = service.issue("ada").refresh_token
    gate = Gate(service)

    async def body(rotations: Rotations) -> None:
        first = asyncio.ensure_future(rotations.rotate(RotateRequest(string)))
        await asyncio.to_thread(gate.entered.wait)
        waiting = [asyncio.ensure_future(rotations.rotate(RotateRequest(string))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await rotations.rotate(RotateRequest(string))
        gate.open.set()
        await asyncio.gather(first, *waiting)

    play(gate, body, limit=3)


def test_a_batch_has_an_end(service: TokenService) -> None:
    service.create_user("ada")
    string = service.issue("ada").refresh_token
    gate = Gate(service)

    async def body(rotations: Rotations) -> None:
        calls = [
            asyncio.ensure_future(rotations.rotate(RotateRequest(string))) for _ in range(MAX_BATCH + 60)
        ]
        await asyncio.to_thread(gate.entered.wait)
        gate.open.set()
        await asyncio.gather(*calls)

    _, sizes = play(gate, body)
    assert max(sizes) <= MAX_BATCH
    assert sum(sizes) == MAX_BATCH + 60


@pytest.mark.parametrize(
    ("raised", "seen"), [(DatabaseLocked("busy"), DatabaseLocked), (ZeroDivisionError(), TokenctlError)]
)
def test_a_batch_that_fails_answers_all_and_the_next_goes_on(
    service: TokenService, raised: Exception, seen: type[TokenctlError]
) -> None:
    service.create_user("ada")
    string = service.issue("ada").refresh_token
    fail = [True]

    def many(requests: Sequence[RotateRequest]) -> list[TokenPair | TokenctlError]:
        if fail.pop() if fail else False:
            raise raised
        return service.rotate_many(requests)

    async def body(rotations: Rotations) -> TokenPair:
        with pytest.raises(seen):
            await rotations.rotate(RotateRequest(string))
        return await rotations.rotate(RotateRequest(string))

    pair, _ = play(many, body)
    assert pair.refresh_token != string


def test_a_caller_who_leaves_costs_nobody_an_answer(service: TokenService) -> None:
    service.create_user("ada")
    one, two = service.issue("ada").refresh_token, service.issue("ada").refresh_token
    gate = Gate(service)

    async def body(rotations: Rotations) -> TokenPair:
        leaves = asyncio.ensure_future(rotations.rotate(RotateRequest(one)))
        stays = asyncio.ensure_future(rotations.rotate(RotateRequest(two)))
        await asyncio.sleep(0)
        leaves.cancel()
        gate.open.set()
        return await stays

    pair, _ = play(gate, body)
    assert pair.refresh_token != two


def test_closing_finishes_what_waits(service: TokenService) -> None:
    service.create_user("ada")
    strings = [service.issue("ada").refresh_token for _ in range(5)]

    async def body(rotations: Rotations) -> list[asyncio.Task[TokenPair]]:
        calls = [asyncio.ensure_future(rotations.rotate(RotateRequest(each))) for each in strings]
        await asyncio.sleep(0)
        return calls

    calls, _ = play(service.rotate_many, body)
    assert all(call.done() and call.exception() is None for call in calls)


def test_over_http_the_full_queue_is_a_503_that_says_when_to_come_back(live: Live) -> None:
    pair = live.log_in()
    live.site.rotations._limit = 0
    reply = live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]})
    assert (reply.status, reply.json["code"]) == (503, "unavailable")
    assert 1 <= int(reply.headers["retry-after"]) <= 7  # a quarter of the grace at most
    live.site.rotations._limit = 10
    assert live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}).status == 200
