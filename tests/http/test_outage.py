"""The database is away: from the start, stopped, killed, paused, cutting connections. Nobody is logged out.

Whatever happens to it, each request is answered in time with a pair or with 503, and every client goes on
afterwards with the string that it holds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.http.databases import (
    BOUND,
    CONNECTIONS,
    DURABLE,
    LONGEST_WAIT,
    Connections,
    Database,
    Onlooker,
    assert_answered_well,
    initialised,
    steady,
    went_on,
)
from tests.http.live import PASSWORD, Reply
from tests.http.spawned import serving
from tests.http.test_kill import Client, Load, assert_nothing_was_lost
from tests.postgres import Server, started
from tokenctl import TokenService

CLIENTS = 16
#: How long (s) the database is away: longer than anybody waits for it, and well inside the grace (30 s).
AWAY = 8.0


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with started(options=DURABLE) as server:
        yield server


@pytest.fixture
def address(shared: Server) -> Iterator[str]:
    """The URL of an empty database of the test's own; its server runs again when the test ends."""
    yield shared.create_database(name := f"outage_{time.monotonic_ns()}")
    shared.resume()
    if shared._process is None:
        shared.start()
    shared.drop_database(name)


@pytest.fixture
def database(address: str, tmp_path: Path) -> Database:
    return initialised(address, tmp_path)


@pytest.fixture
def authority(database: Database) -> Iterator[TokenService]:
    with database.authority() as service:
        yield service


# from the start


def test_it_starts_while_the_database_is_away_and_serves_when_it_comes(
    shared: Server, database: Database, authority: TokenService
) -> None:
    authority.users.create("bob", PASSWORD)
    string = authority.issue("ada").refresh_token
    shared.stop()
    with database.serving() as server:
        assert server.get("/healthz").status == 200
        asked: list[Callable[[], Reply]] = [
            lambda: server.get("/readyz"),
            lambda: server.get("/.well-known/jwks.json"),
            lambda: server.post("/auth/refresh", {"refresh_token": string}),
            lambda: server.post("/auth/logout", {"refresh_token": string}),
            lambda: server.post("/auth/login", {"username": "bob", "password": PASSWORD}),
        ]
        for ask in asked:
            began = time.monotonic()
            reply = ask()
            assert (reply.status, reply.json["code"]) == (503, "unavailable")
            assert 1 <= int(reply.headers["retry-after"]) <= LONGEST_WAIT
            assert time.monotonic() - began < BOUND
            assert string.encode() not in reply.body
        shared.start()
        eventually(lambda: server.get("/readyz").status == 200)
        refreshed = server.post("/auth/refresh", {"refresh_token": string})
        assert refreshed.status == 200
        assert server.get("/auth/me", refreshed.json["access_token"]).status == 200
        assert server.post("/auth/login", {"username": "bob", "password": PASSWORD}).status == 200
        assert {line.get("status", 200) for line in server.log} <= {200, 503}
    assert database.alarms() == ""


def test_a_developers_database_that_comes_late_ends_the_server(
    shared: Server, address: str, tmp_path: Path
) -> None:
    database = Database(address, tmp_path)
    with serving(tmp_path, "--dev", env=database.environment):
        pass
    shared.stop()
    with database.serving() as server:
        assert server.get("/healthz").status == 200
        shared.start()
        assert server.wait() == 2
    assert "was made by --dev" in server.stderr.read_text()


# under load


def stopped(server: Server) -> None:
    server.stop()
    time.sleep(AWAY)
    server.start()


def killed(server: Server) -> None:
    # Several times, each at another moment of some transaction.
    for away in (0, 0, AWAY):
        time.sleep(random.uniform(0.2, 0.6))
        server.kill()
        time.sleep(away)
        server.start()


def paused(server: Server) -> None:
    server.pause()
    # Whoever waits for an answer of the database, and does not give up, has it too late.
    time.sleep(BOUND + 2)
    server.resume()


def cut(server: Server) -> None:
    """No outage, but no connection lives for long."""
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tokenctl'"
    until = time.monotonic() + AWAY
    while time.monotonic() < until:
        server.execute(sql)
        time.sleep(0.05)


@pytest.mark.parametrize("outage", [stopped, killed, paused, cut])
def test_an_outage_under_load_costs_time_and_no_login(
    outage: Callable[[Server], None], shared: Server, database: Database, authority: TokenService
) -> None:
    with database.serving() as server, Connections(shared) as connections:
        clients = steady(authority, CLIENTS, server.port)
        bearer = server.post("/auth/refresh", {"refresh_token": authority.issue("ada").refresh_token})
        onlookers = [
            Onlooker(server, "/auth/me", bearer.json["access_token"]),
            Onlooker(server, "/readyz"),
            Onlooker(server, "/healthz"),
        ]
        with Load(*(client.refresh for client in clients), *onlookers):
            eventually(went_on(clients))
            outage(shared)
            eventually(went_on(clients))
            # More than once: what was repaired for the first of them has to last.
            eventually(went_on(clients))
        for client in clients:
            client.close()
        assert server.get("/readyz").status == 200
        # What is idle is given back, but for the few that a pool keeps: the server's and the test's own.
        eventually(lambda: connections.now() <= 10)
    assert connections.most <= CONNECTIONS + 10
    assert_nothing_was_lost(authority, [*clients])
    assert_answered_well(clients)
    assert database.alarms() == ""
    for onlooker in onlookers:
        assert set(onlooker.statuses) <= {200, 503}, onlooker.path
        assert onlooker.slowest < BOUND, onlooker.path
    assert set(onlookers[-1].statuses) == {200}
    if outage is not cut:
        # It hit: somebody was told to come back.
        assert any(client.waits for client in clients)
    assert [line for line in server.log if line.get("level") == "error"] == []


def test_sigterm_ends_it_while_the_database_hangs(
    shared: Server, database: Database, authority: TokenService
) -> None:
    with database.serving() as server:
        clients = steady(authority, 4, server.port)
        for client in clients:
            assert client.refresh()
        shared.pause()
        statuses: list[int] = []

        def ask(client: Client) -> bool:
            reply = client.ask(server.port, "/auth/refresh", {"refresh_token": client.strings[-1]})
            statuses.append(reply.status)
            return False

        with Load(*(partial(ask, client) for client in clients)):
            # All are with the database when the signal comes.
            time.sleep(1)
            assert server.stop() == 0
        for client in clients:
            client.close()
        assert statuses == [503] * len(clients)
    shared.resume()
    for client in clients:
        assert authority.inspect(client.strings[-1]).state == "live"
