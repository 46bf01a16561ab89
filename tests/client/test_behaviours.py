"""What the Python client must show, each test with the number of its behaviour, with httpx and with httpx2.

The server is `tokenctl serve --dev`; the gate in front of it counts what arrives, and can hold a refresh.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import cli
from tests.client.conftest import Library, TestClock
from tests.client.gate import Gate, Said
from tests.conftest import eventually
from tests.http.live import PASSWORD, somebody
from tests.http.spawned import Spawned
from tokenctl.client import (
    BodyNotRepeatable,
    CallRefused,
    FileStore,
    Login,
    LoginEnded,
    MemoryStore,
    NotLoggedIn,
    RefreshFailed,
    StoreUnusable,
)

BURST = 20


def burst(client: Any, path: str = "/auth/me") -> list[int]:
    """The statuses of many calls at once."""
    with ThreadPoolExecutor(BURST) as pool:
        return list(pool.map(lambda _: client.get(path).status_code, range(BURST)))


def token(auth: Any) -> Login:
    """What the client holds."""
    login = auth._session._state.login
    assert isinstance(login, Login)
    return login


# --- 1, 2: one refresh ----------------------------------------------------------------------


def test_01_threads_with_a_token_that_the_server_finds_expired_refresh_once(client: Any, gate: Gate) -> None:
    gate.advance(61)
    assert burst(client) == [200] * BURST
    assert gate.refreshes == 1


def test_01_threads_with_a_token_known_to_be_expired_refresh_once(
    client: Any, gate: Gate, clock: TestClock
) -> None:
    gate.advance(61)
    clock.running += 61
    assert burst(client) == [200] * BURST
    assert gate.refreshes == 1
    assert {each.status for each in gate.to("/auth/me")} == {200}


def test_01_tasks_refresh_once(library: Library, auth: Any, gate: Gate) -> None:
    gate.advance(61)

    async def run() -> list[int]:
        async with library.http.AsyncClient(base_url=gate.url, auth=auth, timeout=30) as client:
            answers = await asyncio.gather(*(client.get("/auth/me") for _ in range(BURST)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(run()) == [200] * BURST
    assert gate.refreshes == 1


def test_01_threads_and_tasks_share_one_refresh(
    library: Library, client: Any, auth: Any, gate: Gate, clock: TestClock
) -> None:
    clock.running += 61
    gate.open.clear()

    async def run() -> list[int]:
        async with library.http.AsyncClient(base_url=gate.url, auth=auth, timeout=30) as own:
            threads = asyncio.to_thread(burst, client)
            tasks = asyncio.gather(*(own.get("/auth/me") for _ in range(BURST)))
            asyncio.get_running_loop().call_later(0.2, gate.open.set)
            return [*(await threads), *(each.status_code for each in await tasks)]

    assert asyncio.run(run()) == [200] * 2 * BURST
    assert gate.refreshes == 1


class NoTurns(MemoryStore):
    """A store of the user's that keeps nobody apart."""

    @contextmanager
    def turn(self, seconds: float) -> Iterator[bool]:
        yield False


def test_01_threads_share_one_refresh_whatever_the_store(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    auth = library.TokenAuth(gate.url, store=NoTurns(), clock=clock)
    auth.register(somebody(), PASSWORD)
    clock.running += 61
    gate.open.clear()
    with (
        library.http.Client(base_url=gate.url, auth=auth, timeout=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        calls = pool.submit(burst, client)
        assert gate.waiting.acquire(timeout=30)
        assert not gate.waiting.acquire(timeout=0.2)
        gate.open.set()
        assert calls.result() == [200] * BURST
    assert gate.refreshes == 1


@pytest.mark.parametrize("new_store", [MemoryStore, None])
def test_02_what_another_one_has_stored_is_adopted(
    library: Library, gate: Gate, clock: TestClock, file: Path, new_store: Any
) -> None:
    shared = new_store() if new_store else None
    one, other = (library.TokenAuth(gate.url, store=shared or FileStore(file), clock=clock) for _ in range(2))
    one.register(somebody(), PASSWORD)
    with (
        library.http.Client(base_url=gate.url, auth=one) as first,
        library.http.Client(base_url=gate.url, auth=other) as second,
    ):
        assert second.get("/auth/me").status_code == 200  # not even a login of its own
        gate.advance(61)
        clock.running += 61
        assert [each.get("/auth/me").status_code for each in (first, second)] == [200, 200]
        assert gate.refreshes == 1
        one.logout()
        clock.running += 61
        with pytest.raises(NotLoggedIn):
            second.get("/auth/me")


def test_02_what_another_one_stored_during_our_refresh_is_adopted(
    library: Library, gate: Gate, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went on beside us, since we held the turn for too long."""
    monkeypatch.setattr("tokenctl.client.session._TURN_WITHIN", 0.05)
    store = MemoryStore()
    one, other = (library.TokenAuth(gate.url, store=store, clock=clock) for _ in range(2))
    one.register(somebody(), PASSWORD)
    gate.advance(61)
    clock.running += 61
    gate.open.clear()
    with (
        library.http.Client(base_url=gate.url, auth=one, timeout=30) as first,
        library.http.Client(base_url=gate.url, auth=other, timeout=30) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        calls = [pool.submit(each.get, "/auth/me") for each in (first, second)]
        for _ in calls:
            assert gate.waiting.acquire(timeout=30)
        gate.open.set()
        assert [call.result().status_code for call in calls] == [200, 200]
        assert token(one) == token(other) == store.load()
        assert gate.to("/auth/logout") == []
        gate.advance(61)
        assert [each.get("/auth/me").status_code for each in (first, second)] == [200, 200]


# --- 8, 9: when -------------------------------------------------------------------------------


def test_08_a_refresh_ahead_of_expiry_delays_nobody(client: Any, gate: Gate, clock: TestClock) -> None:
    gate.open.clear()
    clock.running += 47  # of 60; the lead is 12 s at most
    assert client.get("/auth/me").status_code == 200
    assert gate.refreshes == 0
    clock.running += 5
    assert client.get("/auth/me").status_code == 200  # while the refresh waits at the gate
    assert client.get("/auth/me").status_code == 200
    assert gate.waiting.acquire(timeout=30)
    gate.open.set()
    eventually(lambda: client.get("/auth/me").status_code == 200 and len(_tokens_at(gate, "/auth/me")) == 2)
    assert gate.refreshes == 1


class Unreadable(MemoryStore):
    """A store of the user's that cannot be read while `broken`, and counts who looks."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.looks = 0

    def load(self) -> Login | None:
        self.looks += 1
        if self.broken:
            raise ConnectionError("nobody there")
        return super().load()


def test_08_a_store_that_cannot_be_read_is_not_asked_by_each_call(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    store = Unreadable()
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    auth.register(somebody(), PASSWORD)
    clock.running += 52
    store.broken, store.looks = True, 0
    with library.http.Client(base_url=gate.url, auth=auth) as client:

        def call() -> None:
            assert client.get("/auth/me").status_code == 200
            eventually(lambda: auth._session._refresh is None)

        for _ in range(3):
            call()
        assert store.looks == 1
        clock.running += 1
        call()
        assert store.looks == 2
        # That was for the sake of calls that can do without: one that needs the store looks at once.
        store.broken = False
        clock.running += 8
        assert client.get("/auth/me").status_code == 200
    assert gate.refreshes == 1


def _tokens_at(gate: Gate, path: str) -> set[str | None]:
    return {each.token for each in gate.to(path)}


def test_08_after_sleep_the_first_request_already_has_a_new_token(
    client: Any, gate: Gate, clock: TestClock
) -> None:
    gate.advance(8 * 3600)
    clock.running += 8 * 3600
    assert client.get("/auth/me").status_code == 200
    assert [each.path for each in gate.seen[1:]] == ["/auth/refresh", "/auth/me"]


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_09_a_wrong_wall_clock_changes_nothing(
    library: Library, gate: Gate, clock: TestClock, file: Path, skew: int
) -> None:
    """Neither in the process that got the tokens, nor in another one that finds them in the file."""
    auth = library.TokenAuth(gate.url, store=FileStore(file), clock=clock)
    auth.register(somebody(), PASSWORD)
    clock.wall += skew
    for each in (auth, library.TokenAuth(gate.url, store=FileStore(file), clock=clock)):
        with library.http.Client(base_url=gate.url, auth=each) as client:
            assert [client.get("/auth/me").status_code for _ in range(5)] == [200] * 5
    assert gate.refreshes == 0
    gate.advance(61)
    clock.running += 61
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        assert [client.get("/auth/me").status_code for _ in range(5)] == [200] * 5
    assert gate.refreshes == 1


# --- 10, 11: the 401 ----------------------------------------------------------------------------


def test_10_a_401_costs_one_refresh_and_one_retry(client: Any, auth: Any, gate: Gate) -> None:
    gate.refused = {token(auth).access_token}
    answer = client.post("/api/orders", json={"amount": 3})
    assert answer.status_code == 200
    assert [each.status for each in gate.to("/api/orders")] == [401, 200]
    assert [each.fields for each in gate.to("/api/orders")] == [{"amount": 3}] * 2
    assert gate.refreshes == 1


def test_10_a_second_401_surfaces(client: Any, gate: Gate) -> None:
    gate.say("/api/orders", Said(401), Said(401))
    assert client.get("/api/orders").status_code == 401
    assert len(gate.to("/api/orders")) == 2
    assert gate.refreshes == 1


def test_10_a_403_never_refreshes(client: Any, gate: Gate) -> None:
    gate.say("/api/orders", Said(403))
    assert client.get("/api/orders").status_code == 403
    assert len(gate.to("/api/orders")) == 1
    assert gate.refreshes == 0


@pytest.mark.parametrize("path", ["/auth/login", "/auth/refresh", "/auth/logout", "/oauth/token"])
def test_10_calls_with_credentials_of_their_own_are_left_alone(client: Any, gate: Gate, path: str) -> None:
    gate.say(path, Said(401))
    assert client.post(path, json={}).status_code == 401
    assert [each.token for each in gate.to(path)] == [None]


def test_11_a_401_for_an_older_token_is_repeated_without_a_refresh(
    library: Library, auth: Any, gate: Gate
) -> None:
    """Two calls leave with the same token; the answer of one comes when the other has refreshed."""
    old = token(auth).access_token
    gate.refused = {old}
    flow = auth.sync_auth_flow(library.http.Request("GET", f"{gate.url}/api/slow"))
    slow = next(flow)
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        assert client.get("/api/fast").status_code == 200
    assert gate.refreshes == 1
    assert isinstance(auth._session.token_after(old), Login)  # at once, without even a look at the store
    again = flow.send(library.http.Response(401, request=slow))
    assert again.headers["Authorization"] == f"Bearer {token(auth).access_token}"
    assert gate.refreshes == 1


# --- 12: what is no end -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "wait"),
    [
        (Said(503, {"Retry-After": "7"}), (7, 7.5)),
        (Said(429, {"Retry-After": "30"}), (30, 30.5)),
        (Said(500), (0.5, 1)),
        (Said(502, body=b"<html>"), (0.5, 1)),
        (Said(401), (0.5, 1)),  # of a proxy: no invalid_grant
        (Said(401, body=b'{"code": "invalid_client"}'), (0.5, 1)),
        (Said(404), (0.5, 1)),
        (Said(200), (0.5, 1)),
        (Said(307, {"Location": "/elsewhere"}), (0.5, 1)),
    ],
)
def test_12_no_failure_logs_out_and_one_attempt_is_made_in_a_cool_down(
    client: Any, auth: Any, gate: Gate, clock: TestClock, said: Said, wait: tuple[float, float]
) -> None:
    clock.running += 61
    gate.say("/auth/refresh", said)
    for _ in range(3):
        with pytest.raises(RefreshFailed) as failed:
            client.get("/auth/me")
        assert failed.value.status == said.status
        assert wait[0] <= failed.value.retry_after <= wait[1]
    assert gate.refreshes == 1
    assert gate.to("/auth/me") == []
    clock.running += wait[1]
    assert client.get("/auth/me").status_code == 200
    assert gate.refreshes == 2


def test_12_the_fault_of_the_server_itself(client: Any, gate: Gate, clock: TestClock) -> None:
    clock.running += 61
    gate.fault("unavailable")
    with pytest.raises(RefreshFailed) as failed:
        client.get("/auth/me")
    assert failed.value.status == 503
    clock.running += failed.value.retry_after
    assert client.get("/auth/me").status_code == 200


def test_12_a_good_token_is_used_while_refreshing_fails(client: Any, gate: Gate, clock: TestClock) -> None:
    clock.running += 52
    gate.say("/auth/refresh", Said(503, {"Retry-After": "5"}), Said(503, {"Retry-After": "5"}))
    assert burst(client) == [200] * BURST
    eventually(lambda: gate.refreshes == 1)
    assert burst(client) == [200] * BURST
    assert gate.refreshes == 1


def test_12_nobody_there_is_no_end_either(library: Library, gate: Gate, clock: TestClock) -> None:
    auth = library.TokenAuth(gate.url, clock=clock, connect=lambda: library.http.Client(timeout=10))
    auth.register(somebody(), PASSWORD)
    clock.running += 61
    gate.close()
    request = library.http.Request("GET", f"{gate.url}/auth/me")
    with pytest.raises(RefreshFailed, match="the login is kept") as failed:
        next(auth.sync_auth_flow(request))
    assert failed.value.status is None
    assert token(auth).refresh_token


def test_12_answers_that_go_on_getting_lost_are_no_end(client: Any, gate: Gate, clock: TestClock) -> None:
    clock.running += 61
    gate.say("/auth/refresh", Said(0), Said(0))
    for _ in range(3):
        with pytest.raises(RefreshFailed) as failed:
            client.get("/auth/me")
    assert gate.refreshes == 2  # the second one at once, in the hope for the same answer
    clock.running += failed.value.retry_after
    assert client.get("/auth/me").status_code == 200


def test_12_a_lost_answer_is_asked_for_again_at_once(client: Any, gate: Gate) -> None:
    """The server has rotated, and gives the same successor within its grace: nobody notices."""
    before = gate.rotations()
    gate.advance(61)
    gate.fault("drop")
    assert burst(client) == [200] * BURST
    after = gate.rotations()
    assert [after[each] - before[each] for each in ("rotated", "retried", "refused")] == [1, 1, 0]


# --- 13, 14: the end ----------------------------------------------------------------------------


def test_13_only_the_servers_word_ends_the_login_and_it_is_told_once(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    told = threading.Semaphore(0)
    store = MemoryStore()
    auth = library.TokenAuth(gate.url, store=store, clock=clock, on_end=told.release)
    auth.register(somebody(), PASSWORD)
    revoked = gate.server.post("/auth/logout", {"refresh_token": token(auth).refresh_token})
    assert revoked.status == 204
    clock.running += 61
    with library.http.Client(base_url=gate.url, auth=auth) as client:

        def call(_: int) -> type[Exception]:
            with pytest.raises(NotLoggedIn) as raised:
                client.get("/auth/me")
            return type(raised.value)

        with ThreadPoolExecutor(BURST) as pool:
            assert set(pool.map(call, range(BURST))) == {LoginEnded}
        assert told.acquire(timeout=30)
        assert call(0) is LoginEnded
    assert not told.acquire(timeout=0.2)
    assert store.load() is None
    assert gate.refreshes == 1


def test_13_a_logout_by_another_one_during_a_refresh_is_no_end(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    told = threading.Semaphore(0)
    store = MemoryStore()
    one, other = (
        library.TokenAuth(gate.url, store=store, clock=clock, on_end=told.release) for _ in range(2)
    )
    one.register(somebody(), PASSWORD)
    clock.running += 61
    gate.open.clear()
    with library.http.Client(base_url=gate.url, auth=other) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.get, "/auth/me")
        assert gate.waiting.acquire(timeout=30)
        one.logout()
        gate.open.set()
        with pytest.raises(NotLoggedIn) as raised:
            call.result()
    assert raised.type is NotLoggedIn
    assert not told.acquire(timeout=0.2)


def test_13_it_is_told_once_by_all_that_share_a_store(library: Library, gate: Gate, clock: TestClock) -> None:
    """Even where nothing keeps their refreshes apart."""
    told = threading.Semaphore(0)
    store = NoTurns()
    one, other = (
        library.TokenAuth(gate.url, store=store, clock=clock, on_end=told.release) for _ in range(2)
    )
    login = one.register(somebody(), PASSWORD)
    assert gate.server.post("/auth/logout", {"refresh_token": login.refresh_token}).status == 204
    clock.running += 61
    gate.open.clear()
    with (
        library.http.Client(base_url=gate.url, auth=one) as first,
        library.http.Client(base_url=gate.url, auth=other) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        calls = [pool.submit(each.get, "/auth/me") for each in (first, second)]
        for _ in calls:
            assert gate.waiting.acquire(timeout=30)
        gate.open.set()
        assert {type(call.exception()) for call in calls} == {LoginEnded, NotLoggedIn}
    assert told.acquire(timeout=30)
    assert not told.acquire(timeout=0.2)


def test_13_a_login_of_another_one_meanwhile_is_refreshed(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    """Ours is over, theirs has only expired."""
    name, told = somebody(), threading.Semaphore(0)
    store = MemoryStore()
    one, other = (
        library.TokenAuth(gate.url, store=store, clock=clock, on_end=told.release) for _ in range(2)
    )
    login = one.register(name, PASSWORD)
    assert gate.server.post("/auth/logout", {"refresh_token": login.refresh_token}).status == 204
    clock.running += 61
    gate.open.clear()
    with library.http.Client(base_url=gate.url, auth=one) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.get, "/auth/me")
        assert gate.waiting.acquire(timeout=30)
        other.login(name, PASSWORD)
        clock.running += 61
        gate.open.set()
        assert call.result().status_code == 200
    assert gate.refreshes == 2
    assert store.load() == token(one)
    assert not told.acquire(timeout=0.2)


class Keeping(MemoryStore):
    """A store of the user's that removes nothing."""

    def swap(self, expected: Login | None, new: Login | None) -> bool:
        if new is None:
            raise ConnectionError("nobody there")
        return super().swap(expected, new)


def test_13_tokens_that_cannot_be_removed_are_over_all_the_same(
    library: Library, gate: Gate, clock: TestClock, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Semaphore(0)
    auth = library.TokenAuth(gate.url, store=Keeping(), clock=clock, on_end=told.release)
    login = auth.register(somebody(), PASSWORD)
    assert gate.server.post("/auth/logout", {"refresh_token": login.refresh_token}).status == 204
    clock.running += 61
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        for _ in range(3):
            with pytest.raises(LoginEnded):
                client.get("/auth/me")
    assert told.acquire(timeout=30)
    assert not told.acquire(timeout=0.2)
    assert gate.refreshes == 1
    assert "could not be removed: ConnectionError" in caplog.text


def test_13_a_callback_may_use_the_client(library: Library, gate: Gate, clock: TestClock) -> None:
    name, back = somebody(), threading.Event()

    def log_in_again() -> None:
        auth.login(name, PASSWORD)
        back.set()

    auth = library.TokenAuth(gate.url, clock=clock, on_end=log_in_again)
    auth.register(name, PASSWORD)
    gate.server.post("/auth/logout", {"refresh_token": token(auth).refresh_token})
    clock.running += 61
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        with pytest.raises(LoginEnded):
            client.get("/auth/me")
        assert back.wait(30)
        assert client.get("/auth/me").status_code == 200


def test_14_a_logout_during_a_refresh_wins(library: Library, gate: Gate, clock: TestClock) -> None:
    store = MemoryStore()
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    auth.register(somebody(), PASSWORD)
    # The logout's own word gets lost: only the refresh can end what it has brought.
    gate.say("/auth/logout", Said(503))
    clock.running += 61
    gate.open.clear()
    with library.http.Client(base_url=gate.url, auth=auth) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.get, "/auth/me")
        assert gate.waiting.acquire(timeout=30)
        with pytest.raises(CallRefused, match="gone here"):
            auth.logout()
        gate.open.set()
        with pytest.raises(NotLoggedIn):
            call.result()
        assert store.load() is None
        with pytest.raises(NotLoggedIn):
            client.get("/auth/me")
    assert gate.refreshes == 1
    assert [each.status for each in gate.to("/auth/logout")] == [503, 204]
    first, dropped = (each.fields["refresh_token"] for each in gate.to("/auth/logout"))
    assert dropped != first
    assert gate.server.post("/auth/refresh", {"refresh_token": dropped}).status == 401


def test_14_a_login_during_a_refresh_wins(library: Library, gate: Gate, clock: TestClock) -> None:
    name = somebody()
    auth = library.TokenAuth(gate.url, clock=clock)
    auth.register(name, PASSWORD)
    clock.running += 61
    gate.open.clear()
    with library.http.Client(base_url=gate.url, auth=auth) as client, ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.get, "/auth/me")
        assert gate.waiting.acquire(timeout=30)
        new = auth.login(name, PASSWORD)
        assert client.get("/auth/me").status_code == 200  # and does not wait for the refresh of the old one
        gate.refused = {new.access_token}
        other = pool.submit(client.get, "/api/x")
        eventually(lambda: gate.refreshes == 2)
        gate.open.set()
        with pytest.raises(NotLoggedIn):
            call.result()
        assert other.result().status_code == 200


class Slow(MemoryStore):
    """A store of the user's whose removals wait for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.removing, self.go_on = threading.Event(), threading.Event()

    def swap(self, expected: Login | None, new: Login | None) -> bool:
        if new is None:
            self.removing.set()
            assert self.go_on.wait(30)
        return super().swap(expected, new)


def test_14_a_call_during_a_logout_does_not_take_the_login_up_again(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    store = Slow()
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    auth.register(somebody(), PASSWORD)
    with library.http.Client(base_url=gate.url, auth=auth) as client, ThreadPoolExecutor(1) as pool:
        logout = pool.submit(auth.logout)
        assert store.removing.wait(30)
        client.get("/auth/me")  # finds the tokens in the store: the logout has not got to them
        store.go_on.set()
        logout.result()
        with pytest.raises(NotLoggedIn):
            client.get("/auth/me")
    assert len(gate.to("/auth/me")) == 1


def test_14_a_login_that_a_logout_has_removed_is_not_used(library: Library, gate: Gate) -> None:
    name, store = somebody(), Slow()
    auth = library.TokenAuth(gate.url, store=store)
    auth.register(name, PASSWORD)
    with library.http.Client(base_url=gate.url, auth=auth) as client, ThreadPoolExecutor(1) as pool:
        logout = pool.submit(auth.logout)
        assert store.removing.wait(30)
        new = auth.login(name, PASSWORD)
        store.go_on.set()
        logout.result()
        assert gate.to("/auth/logout")[-1].fields["refresh_token"] == new.refresh_token
        with pytest.raises(NotLoggedIn):
            client.get("/auth/me")
    assert gate.to("/auth/me") == []


class Late(MemoryStore):
    """A store of the user's that cannot be written while `broken`, and answers late while `late`."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = self.late = False
        self.written, self.go_on = threading.Event(), threading.Event()

    def swap(self, expected: Login | None, new: Login | None) -> bool:
        if self.broken:
            raise ConnectionError("nobody there")
        done = super().swap(expected, new)
        if self.late and new is not None:
            self.written.set()
            assert self.go_on.wait(30)
        return done


def test_14_a_logout_while_tokens_are_stored_later_wins(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    store = Late()
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    auth.register(somebody(), PASSWORD)
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        store.broken = True
        gate.advance(61)
        clock.running += 61
        assert client.get("/auth/me").status_code == 200
        store.broken, store.late = False, True
        clock.running += 8
        assert client.get("/auth/me").status_code == 200  # and the tokens are stored beside it
        assert store.written.wait(30)
        refresh = auth._session._refresh
        auth.logout()
        store.go_on.set()
        with pytest.raises(NotLoggedIn):
            refresh.result()
        with pytest.raises(NotLoggedIn):
            client.get("/auth/me")


def test_14_a_refresh_that_fails_after_a_logout_is_no_news(
    library: Library, auth: Any, client: Any, gate: Gate, clock: TestClock
) -> None:
    clock.running += 61
    gate.open.clear()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.get, "/auth/me")
        assert gate.waiting.acquire(timeout=30)
        auth.logout()
        gate.fault("unavailable")
        gate.open.set()
        with pytest.raises(NotLoggedIn):
            call.result()


def test_14_a_refresh_that_fails_after_a_login_leaves_the_new_one_alone(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    name = somebody()
    auth = library.TokenAuth(gate.url, clock=clock)
    auth.register(name, PASSWORD)
    clock.running += 61
    gate.open.clear()
    with library.http.Client(base_url=gate.url, auth=auth) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.get, "/auth/me")
        assert gate.waiting.acquire(timeout=30)
        new = auth.login(name, PASSWORD)
        gate.fault("unavailable")
        gate.open.set()
        with pytest.raises(NotLoggedIn):
            call.result()
        gate.refused = {new.access_token}
        assert client.get("/api/x").status_code == 200  # its refresh need not wait for a cool-down


# --- 15: bodies ---------------------------------------------------------------------------------


def test_15_a_stream_of_unknown_length_is_not_sent_twice(client: Any, auth: Any, gate: Gate) -> None:
    gate.refused = {token(auth).access_token}
    with pytest.raises(BodyNotRepeatable, match="send the request again"):
        client.post("/api/upload", content=(part for part in (b"one ", b"two")))
    assert [each.body for each in gate.to("/api/upload")] == [b"one two"]
    # The token is new: the caller's own repetition goes through.
    assert client.post("/api/upload", content=(part for part in (b"one ", b"two"))).status_code == 200


def test_15_a_small_file_is_sent_again_and_a_large_one_not(client: Any, auth: Any, gate: Gate) -> None:
    gate.refused = {token(auth).access_token}
    assert client.post("/api/upload", content=io.BytesIO(b"small")).status_code == 200
    assert [each.body for each in gate.to("/api/upload")] == [b"small", b"small"]
    gate.refused.add(token(auth).access_token)
    with pytest.raises(BodyNotRepeatable):
        client.post("/api/large", content=io.BytesIO(bytes(1024 * 1024 + 1)))
    assert [len(each.body) for each in gate.to("/api/large")] == [1024 * 1024 + 1]


def test_15_a_form_with_a_file_is_sent_again(client: Any, auth: Any, gate: Gate) -> None:
    gate.refused = {token(auth).access_token}
    assert client.post("/api/form", files={"file": io.BytesIO(b"content")}).status_code == 200
    first, second = (each.body for each in gate.to("/api/form"))
    assert first == second
    assert b"content" in first


def test_15_a_stream_of_a_task_is_not_sent_twice(library: Library, auth: Any, gate: Gate) -> None:
    gate.refused = {token(auth).access_token}

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"

    async def run() -> None:
        async with library.http.AsyncClient(base_url=gate.url, auth=auth) as client:
            with pytest.raises(BodyNotRepeatable):
                await client.post("/api/upload", content=parts())
            assert (await client.post("/api/upload", content=parts())).status_code == 200

    asyncio.run(run())


# --- 16, 17: where tokens do not go -------------------------------------------------------------


@pytest.fixture
def stranger(server: Spawned) -> Iterator[Gate]:
    """Another origin."""
    gate = Gate(server)
    yield gate
    gate.close()


def test_16_only_allowed_origins_get_the_token(
    library: Library, auth: Any, client: Any, gate: Gate, stranger: Gate
) -> None:
    stranger.refused = {None}
    assert client.get(f"{stranger.url}/api").status_code == 401
    assert _tokens_at(stranger, "/api") == {None}
    assert gate.refreshes == 0
    trusting = library.TokenAuth(gate.url, origins=[stranger.url])
    trusting.register(somebody(), PASSWORD)
    assert client.get(f"{stranger.url}/api", auth=trusting).status_code == 200
    assert stranger.to("/api")[-1].token == token(trusting).access_token


def test_16_a_redirect_to_another_origin_loses_the_token(client: Any, gate: Gate, stranger: Gate) -> None:
    stranger.refused = {None}
    gate.say("/api/moved", Said(307, {"Location": f"{stranger.url}/api/there"}))
    assert client.get("/api/moved", follow_redirects=True).status_code == 401
    assert _tokens_at(stranger, "/api/there") == {None}
    assert gate.refreshes == 0  # the 401 of a stranger is not about our token
    assert len(gate.to("/api/moved")) == 1


def test_16_a_redirect_between_allowed_origins_loses_it_too(
    library: Library, gate: Gate, stranger: Gate
) -> None:
    """httpx drops it, so the 401 there is not about our token."""
    stranger.refused = {None}
    auth = library.TokenAuth(gate.url, origins=[stranger.url])
    auth.register(somebody(), PASSWORD)
    gate.say("/api/moved", Said(307, {"Location": f"{stranger.url}/api/there"}))
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        assert client.get("/api/moved", follow_redirects=True).status_code == 401
    assert gate.refreshes == 0


def test_17_no_part_of_a_token_is_shown(
    library: Library, gate: Gate, clock: TestClock, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    store = FileStore(tmp_path / "tokens.json")
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    shown: list[Any] = [auth, store, auth.register(somebody(), PASSWORD)]
    secrets = [token(auth)]
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        clock.running += 61
        gate.say("/auth/refresh", Said(503), Said(0), Said(0))
        for _ in range(2):
            with pytest.raises(RefreshFailed) as failed:
                client.get("/auth/me")
            shown += [failed.value, failed.value.__cause__, failed.value.__context__]
            clock.running += 8
        gate.advance(61)
        shown += [client.get("/auth/me"), auth._session._state]
        secrets.append(token(auth))
        store.path.write_text(store.path.read_text().replace("version", "other"))
        clock.running += 61
        with pytest.raises(StoreUnusable) as unusable:
            client.get("/auth/me")
        shown += [unusable.value, unusable.value.__cause__]
    said = caplog.text + "".join(f"{each!r} {each}" for each in shown)
    assert PASSWORD not in said
    for login in secrets:
        # The head of a JWT says the same for everybody; what is after it is the token.
        for secret in (login.access_token.split(".", 1)[1], login.refresh_token.removeprefix("tkr1_")):
            parts = [secret[at : at + 8] for at in range(len(secret) - 8)]
            assert not [part for part in parts if part in said]


# --- 18, 19: processes, crashes, full disks -----------------------------------------------------

_PROCESS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from {library} import Client
from {ours} import TokenAuth
from tokenctl.client import FileStore
url, file, burst = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Client(base_url=url, auth=TokenAuth(url, store=FileStore(file)), timeout=60) as client:
    assert client.get("/auth/me").status_code == 200
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(burst) as pool:
        print(*pool.map(lambda _: client.get("/auth/me").status_code, range(burst)), flush=True)
"""


def _process(library: Library, gate: Gate, file: Path) -> subprocess.Popen[str]:
    name = library.http.__name__
    program = _PROCESS.format(library=name, ours="tokenctl.client" + (".httpx2" if name == "httpx2" else ""))
    return subprocess.Popen(
        [sys.executable, "-c", program, gate.url, str(file), str(BURST)],
        env=cli.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("fault", ["none", "drop"])
def test_18_processes_that_share_a_file_refresh_once(
    library: Library, gate: Gate, file: Path, fault: str
) -> None:
    """Also when the answer of that refresh gets lost: then it is asked for once more, by one of them."""
    auth = library.TokenAuth(gate.url, store=FileStore(file))
    auth.register(somebody(), PASSWORD)
    before = gate.rotations()
    processes = [_process(library, gate, file) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        gate.advance(61)
        if fault != "none":
            gate.fault(fault)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert said == [" ".join(["200"] * BURST) + "\n"] * 2
    after = gate.rotations()
    assert after["rotated"] - before["rotated"] == 1
    assert gate.refreshes == (1 if fault == "none" else 2)
    assert sorted(each.name for each in file.parent.iterdir()) == [
        "tokens.json",
        "tokens.json.lock",
        "tokens.json.turn",
    ]
    assert {stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()} == {0o600}


def test_18_the_loop_goes_on_while_a_lock_is_waited_for(
    library: Library, gate: Gate, clock: TestClock, file: Path
) -> None:
    store = FileStore(file)
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    auth.register(somebody(), PASSWORD)
    gate.advance(61)
    clock.running += 61

    async def run() -> int:
        async with library.http.AsyncClient(base_url=gate.url, auth=auth, timeout=30) as client:
            with FileStore(file).turn(1) as taken:
                assert taken
                call = asyncio.create_task(client.get("/auth/me"))
                for _ in range(50):
                    await asyncio.sleep(0.001)  # would not come back from a loop that is blocked
                assert not call.done()
                assert gate.refreshes == 0
            return (await call).status_code  # type: ignore[no-any-return]

    assert asyncio.run(run()) == 200


def test_18_whoever_holds_the_lock_too_long_is_not_waited_for(
    library: Library, gate: Gate, clock: TestClock, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenctl.client.session._TURN_WITHIN", 0.05)
    auth = library.TokenAuth(gate.url, store=FileStore(file), clock=clock)
    auth.register(somebody(), PASSWORD)
    clock.running += 61
    with FileStore(file).turn(1), library.http.Client(base_url=gate.url, auth=auth) as client:
        assert client.get("/auth/me").status_code == 200
    assert gate.refreshes == 1


_KILLED = """
import os, signal, sys
import httpx
from tokenctl.client import FileStore, TokenAuth

class Killed(FileStore):
    def swap(self, expected, new):
        os.kill(os.getpid(), signal.SIGKILL)

url, file = sys.argv[1:]
with httpx.Client(base_url=url, auth=TokenAuth(url, store=Killed(file))) as client:
    client.get("/auth/me")
"""


def test_19_killed_between_answer_and_store_the_login_goes_on(
    library: Library, gate: Gate, file: Path
) -> None:
    name = somebody()
    library.TokenAuth(gate.url, store=FileStore(file)).register(name, PASSWORD)
    gate.advance(61)
    before, stored = gate.rotations(), file.read_bytes()
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, gate.url, str(file)],
        env=cli.environment(),
        timeout=60,
        check=False,
    )
    assert killed.returncode == -9
    assert file.read_bytes() == stored
    auth = library.TokenAuth(gate.url, store=FileStore(file))
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        assert client.get("/auth/me").json()["name"] == name
        after = gate.rotations()
        assert [after[each] - before[each] for each in ("rotated", "retried", "refused")] == [1, 1, 0]
        gate.advance(61)
        assert client.get("/auth/me").status_code == 200  # and further on


class FullDisk(FileStore):
    """A file that cannot be written while `full`."""

    full = False

    def _replace(self, login: Login | None) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super()._replace(login)


def test_19_tokens_that_cannot_be_stored_are_used_and_stored_later(
    library: Library, gate: Gate, clock: TestClock, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FullDisk(file)
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    before = auth.register(somebody(), PASSWORD)
    with library.http.Client(base_url=gate.url, auth=auth) as client:
        store.full = True
        for _ in range(2):
            gate.advance(61)
            clock.running += 61
            assert client.get("/auth/me").status_code == 200
        assert "No space left on device" in caplog.text
        assert store.load() == before
        store.full = False
        clock.running += 8
        assert client.get("/auth/me").status_code == 200
        eventually(lambda: store.load() == token(auth))
    assert gate.refreshes == 2
    other = library.TokenAuth(gate.url, store=FileStore(file), clock=clock)
    with library.http.Client(base_url=gate.url, auth=other) as client:
        assert client.get("/auth/me").status_code == 200


@pytest.mark.parametrize("said", [Said(503), Said(500), Said(0), Said(200, body=b'{"access_token": "a"}')])
def test_19_a_refresh_that_fails_leaves_the_file_alone(
    library: Library, gate: Gate, clock: TestClock, file: Path, said: Said
) -> None:
    auth = library.TokenAuth(gate.url, store=FileStore(file), clock=clock)
    auth.register(somebody(), PASSWORD)
    stored = file.read_bytes()
    clock.running += 61
    gate.say("/auth/refresh", said, said)
    with library.http.Client(base_url=gate.url, auth=auth) as client, pytest.raises(RefreshFailed):
        client.get("/auth/me")
    assert file.read_bytes() == stored
    # What a new process would do, without the cool-down of this one.
    again = library.TokenAuth(gate.url, store=FileStore(file), clock=clock)
    gate.instead.clear()
    with library.http.Client(base_url=gate.url, auth=again) as client:
        assert client.get("/auth/me").status_code == 200


# --- 20: cancelling -----------------------------------------------------------------------------


def test_20_cancelling_one_waiter_cancels_nothing_else(
    library: Library, auth: Any, gate: Gate, clock: TestClock
) -> None:
    gate.advance(61)
    clock.running += 61
    gate.open.clear()

    async def run() -> int:
        async with library.http.AsyncClient(base_url=gate.url, auth=auth, timeout=30) as client:
            first, second = (asyncio.create_task(client.get("/auth/me")) for _ in range(2))
            assert await asyncio.to_thread(gate.waiting.acquire, timeout=30)
            first.cancel()  # the one that began it
            with pytest.raises(asyncio.CancelledError):
                await first
            gate.open.set()
            return (await second).status_code  # type: ignore[no-any-return]

    assert asyncio.run(run()) == 200
    assert gate.refreshes == 1


def test_20_a_refresh_that_nobody_waits_for_any_more_is_stored(
    library: Library, gate: Gate, clock: TestClock
) -> None:
    store = MemoryStore()
    auth = library.TokenAuth(gate.url, store=store, clock=clock)
    before = auth.register(somebody(), PASSWORD)
    clock.running += 61
    gate.open.clear()

    async def run() -> None:
        async with library.http.AsyncClient(base_url=gate.url, auth=auth) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get("/auth/me"), 0.05)

    asyncio.run(run())  # even the loop has ended
    gate.open.set()
    eventually(lambda: store.load() != before)
    assert gate.refreshes == 1


# --- beside the list ----------------------------------------------------------------------------


def test_a_refused_login_says_why(library: Library, gate: Gate) -> None:
    auth = library.TokenAuth(gate.url)
    with pytest.raises(CallRefused) as refused:
        auth.login(somebody(), PASSWORD)
    assert (refused.value.status, refused.value.code) == (401, "password.wrong")
    with pytest.raises(NotLoggedIn, match="log in: "):
        next(auth.sync_auth_flow(library.http.Request("GET", gate.url)))


def test_logging_in_and_out_in_a_loop(library: Library, gate: Gate) -> None:
    name = somebody()
    auth = library.TokenAuth(gate.url)

    async def run() -> None:
        async with library.http.AsyncClient(base_url=gate.url, auth=auth) as client:
            await auth.aregister(name, PASSWORD)
            await auth.alogin(name, PASSWORD)
            assert (await client.get("/auth/me")).json()["name"] == name
            await auth.alogout(everywhere=True)
            with pytest.raises(NotLoggedIn):
                await client.get("/auth/me")

    asyncio.run(run())
    assert json.loads(gate.to("/auth/logout")[0].body)["all"] is True


def test_a_login_that_is_over_cannot_end_the_others(library: Library, auth: Any, gate: Gate) -> None:
    revoked = gate.server.post("/auth/logout", {"refresh_token": token(auth).refresh_token})
    assert revoked.status == 204
    with pytest.raises(CallRefused, match="could not end the others; log in") as refused:
        auth.logout(everywhere=True)
    assert (refused.value.status, refused.value.code) == (401, "invalid_grant")


def test_a_logout_of_a_login_that_is_over_is_no_error(auth: Any, gate: Gate) -> None:
    gate.say("/auth/logout", Said(401, body=b'{"code": "invalid_grant"}'))
    auth.logout()
    assert [each.status for each in gate.to("/auth/logout")] == [401]


def test_a_logout_whose_tokens_cannot_be_removed_ends_the_login(
    library: Library, gate: Gate, file: Path
) -> None:
    store = FullDisk(file)
    auth = library.TokenAuth(gate.url, store=store)
    login = auth.register(somebody(), PASSWORD)
    store.full = True
    with pytest.raises(StoreUnusable):
        auth.logout()
    assert store.load() == login
    assert gate.server.post("/auth/refresh", {"refresh_token": login.refresh_token}).status == 401


def test_the_login_of_another_server_is_not_sent_here(library: Library, gate: Gate, file: Path) -> None:
    library.TokenAuth(gate.url, store=FileStore(file)).register(somebody(), PASSWORD)
    other = library.TokenAuth("https://elsewhere.example", store=FileStore(file))
    with pytest.raises(StoreUnusable, match="a store of its own"):
        next(other.sync_auth_flow(library.http.Request("GET", "https://elsewhere.example/")))


def test_the_login_of_another_server_is_neither_replaced_nor_removed(
    library: Library, gate: Gate, stranger: Gate, file: Path
) -> None:
    name = somebody()
    library.TokenAuth(gate.url, store=FileStore(file)).register(name, PASSWORD)
    stored = file.read_bytes()
    other = library.TokenAuth(stranger.url, store=FileStore(file))
    with pytest.raises(StoreUnusable, match="a store of its own"):
        other.login(name, PASSWORD)
    assert [each.status for each in stranger.to("/auth/logout")] == [204]  # what it got is revoked
    with pytest.raises(StoreUnusable, match="a store of its own"):
        other.logout()
    assert file.read_bytes() == stored
    assert gate.to("/auth/logout") == []
