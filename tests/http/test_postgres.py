"""Two servers on one PostgreSQL: what one does holds at the other, and no foreign lock holds up refreshes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import psycopg
import pytest

from tests import cli
from tests.conftest import Clock, eventually
from tests.http.databases import BOUND, LONGEST_WAIT, Database, Steady, initialised, steady
from tests.http.live import PASSWORD, running
from tests.http.spawned import ISSUER, Spawned
from tests.http.test_kill import Load, assert_nothing_was_lost
from tests.postgres import Server, started
from tokenctl import TokenService
from tokenctl.core import ids

JWKS = "/.well-known/jwks.json"


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with started() as server:
        yield server


@pytest.fixture
def database(shared: Server, tmp_path: Path) -> Iterator[Database]:
    yield initialised(shared.create_database(name := f"two_{time.monotonic_ns()}"), tmp_path)
    shared.drop_database(name)


@pytest.fixture
def authority(database: Database) -> Iterator[TokenService]:
    with database.authority() as service:
        yield service


@pytest.fixture
def one(database: Database) -> Iterator[Spawned]:
    with database.serving() as server:
        yield server


@pytest.fixture
def two(database: Database) -> Iterator[Spawned]:
    with database.serving() as server:
        yield server


def refreshed(server: Spawned, string: str) -> dict[str, Any]:
    reply = server.post("/auth/refresh", {"refresh_token": string})
    assert reply.status == 200, reply.body
    pair: dict[str, Any] = reply.json
    return pair


def introspected(server: Spawned, secret: str, token: str) -> Any:
    """What the client `api` is told."""
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Authorization": f"Basic {b64encode(f'api:{secret}'.encode()).decode()}",
    }
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("POST", "/oauth/introspect", urlencode({"token": token}), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        return json.load(answer)


def publishes(server: Spawned, kids: list[str]) -> bool:
    return [key["kid"] for key in server.get(JWKS).json["keys"]] == kids


# what one does holds at the other


def test_a_login_at_one_goes_on_at_the_other(one: Spawned, two: Spawned) -> None:
    made = one.post("/auth/register", {"username": "bob", "password": PASSWORD})
    assert made.status == 201
    assert two.get("/auth/me", made.json["access_token"]).json["name"] == "bob"
    pair = refreshed(two, made.json["refresh_token"])
    # A retry at the first one gets what the second one gave.
    assert refreshed(one, made.json["refresh_token"])["refresh_token"] == pair["refresh_token"]
    taken = two.post("/auth/register", {"username": "bob", "password": PASSWORD})
    assert (taken.status, taken.json["code"]) == (409, "user.exists")
    assert two.post("/auth/logout", {"refresh_token": pair["refresh_token"]}).status == 204
    assert one.get("/auth/me", pair["access_token"]).status == 401
    assert one.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}).status == 401


def test_a_new_signing_key_is_taken_up_by_both(
    one: Spawned, two: Spawned, database: Database, authority: TokenService
) -> None:
    pairs = [refreshed(server, authority.issue("ada").refresh_token) for server in (one, two)]
    [stolen] = one.get(JWKS).json["keys"]
    made = json.loads(database.tokenctl("keys", "rotate", "--at-once", "--yes", "--json"))["kid"]
    assert made != stolen["kid"]
    for server in (one, two):
        # A server looks every 5 s; this waits for longer, since the machine may be busy.
        eventually(partial(publishes, server, [made]))
    for server, other, old in zip((one, two), (two, one), reversed(pairs), strict=True):
        assert server.get("/auth/me", old["access_token"]).status == 401
        pair = refreshed(server, old["refresh_token"])
        key = jwt.PyJWKSet.from_dict(other.get(JWKS).json)[made]
        claims = jwt.decode(pair["access_token"], key, algorithms=["ES256"], audience=ISSUER, issuer=ISSUER)
        assert claims["sub"] == pair["user"]["id"]
        assert other.get("/auth/me", pair["access_token"]).status == 200


def test_disabling_a_user_holds_at_both_at_once(
    one: Spawned, two: Spawned, database: Database, authority: TokenService
) -> None:
    pairs = [refreshed(server, authority.issue("ada").refresh_token) for server in (one, two)]
    database.tokenctl("user", "disable", "ada", "--yes")
    for server in (one, two):
        for pair in pairs:
            assert server.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}).status == 401
            assert server.get("/auth/me", pair["access_token"]).status == 401
    assert database.alarms() == ""


def test_introspection_agrees(
    one: Spawned, two: Spawned, database: Database, authority: TokenService
) -> None:
    secret = json.loads(database.tokenctl("client", "create", "api", "--introspect", "--json"))["secret"]
    first = refreshed(one, authority.issue("ada").refresh_token)
    second = refreshed(two, first["refresh_token"])
    third = refreshed(one, second["refresh_token"])
    tokens = [each[kind] for each in (first, second, third) for kind in ("access_token", "refresh_token")]

    def active() -> list[bool]:
        said = [[introspected(server, secret, token) for token in tokens] for server in (one, two)]
        assert said[0] == said[1]
        return [each["active"] for each in said[0]]

    # Of the refresh tokens the newest, and in its grace the one before.
    assert active() == [True, False, True, True, True, True]
    assert one.post("/auth/logout", {"refresh_token": third["refresh_token"]}).status == 204
    assert active() == [False] * 6


def test_one_purge_at_a_time(shared: Server, database: Database, authority: TokenService) -> None:
    authority.revoke([authority.issue("ada").token_id], reason="test")
    argv = ("purge", "--retention", "0s")
    with psycopg.connect(database.url) as lock:
        # The one that runs stands before its first row, for as long as this transaction lasts.
        lock.execute("LOCK TABLE refresh_tokens IN EXCLUSIVE MODE")
        first = subprocess.Popen(
            [sys.executable, "-m", "tokenctl", *argv],
            env=cli.environment(database.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        runs = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"
        eventually(lambda: bool(shared.execute(runs)))
        second = cli.run(*argv, env=database.environment)
        assert (second.returncode, second.stdout) == (11, "")
        assert "a purge is already running" in second.stderr
        # For longer than a silence that a connection bears without asking whether the server still lives.
        time.sleep(5)
        lock.rollback()
        said, _ = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert b"purged 1 " in said
    assert cli.run(*argv, env=database.environment).returncode == 0


def test_one_string_at_both_at_once_has_one_successor(
    one: Spawned, two: Spawned, database: Database, authority: TokenService
) -> None:
    ports = [server.port for server in (one, two)]
    clients = [Steady(ports if i % 2 else ports[::-1], [""]) for i in range(16)]
    string = authority.issue("ada").refresh_token
    together = threading.Barrier(len(clients))
    rounds = 40

    def present(client: Steady) -> str:
        client.strings = [string]
        together.wait(30)
        assert client.refresh(), client.refused
        return client.strings[-1]

    with ThreadPoolExecutor(len(clients)) as pool:
        for generation in range(1, rounds + 1):
            [string] = set(pool.map(present, clients))
            assert authority.inspect(string).token.generation == generation
    for client in clients:
        client.close()
    answers = [sum(client.answers[port, 200] for client in clients) for port in ports]
    assert answers == [rounds * len(clients) / 2] * 2
    assert sum(client.answers.total() for client in clients) == rounds * len(clients)
    assert authority.inspect(string).state == "live"
    assert database.alarms() == ""


def test_chains_that_change_servers_at_every_refresh(
    one: Spawned, two: Spawned, authority: TokenService
) -> None:
    here, there = one.port, two.port
    clients = [*steady(authority, 2, here), *steady(authority, 2, there), *steady(authority, 4, here, there)]
    with Load(*(client.refresh for client in clients)):
        eventually(lambda: min(len(client.strings) for client in clients) > 50)
    for client in clients:
        client.close()
    assert_nothing_was_lost(authority, [*clients])
    assert {status for client in clients for _, status in client.answers} == {200}


# the clocks


class Shifted(Clock):
    """The machine's own clock, and some seconds."""

    seconds = 0.0

    def __call__(self) -> int:
        return time.time_ns() // 1_000 + round(self.seconds * 1e6)


def test_a_node_whose_clock_is_apart_is_not_ready(database: Database, authority: TokenService) -> None:
    clock = Shifted()
    string = authority.issue("ada").refresh_token
    with running(database.settings, clock) as live:
        for seconds, status in ((0, 200), (3, 503), (1, 200), (-3, 503), (-1, 200)):
            clock.seconds = seconds
            reply = live.get("/readyz")
            assert reply.status == status, seconds
            assert ("retry-after" in reply.headers) == (status == 503)
            # Only the balancer is told. Whoever comes all the same is served: the rules bear this much.
            reply = live.post("/auth/refresh", {"refresh_token": string})
            assert reply.status == 200
            string = reply.json["refresh_token"]
            assert live.get("/healthz").status == 200
    assert database.alarms() == ""


# a row that somebody else has


def test_a_locked_row_holds_up_nobody_else(database: Database, authority: TokenService, one: Spawned) -> None:
    clients = steady(authority, 32, one.port)
    [held] = steady(authority, 1, one.port)
    row = ids.to_bytes(authority.inspect(held.strings[0]).token.id)
    answered: list[float] = []
    released: list[float] = []

    def rotate_held() -> bool:
        assert held.refresh()
        answered.append(time.monotonic())
        return False

    with psycopg.connect(database.url) as lock:
        lock.execute("SELECT FROM refresh_tokens WHERE id = %s FOR UPDATE", [row])
        locked = time.monotonic()
        with Load(rotate_held, *(client.refresh for client in clients)):
            # Twenty times each, while the row is locked and its client presents its string again and again.
            # Batches that wait for the row, 2 s each time, would take at least twice that long.
            eventually(lambda: min(len(client.strings) for client in clients) > 20)
            assert time.monotonic() - locked < 20
            time.sleep(max(0.0, locked + 3 - time.monotonic()))
            assert answered == []
            released.append(time.monotonic())
            lock.rollback()
            eventually(lambda: bool(answered))
    for client in [*clients, held]:
        client.close()
    assert answered[0] >= released[0]
    assert_nothing_was_lost(authority, [*clients, held])
    # 2 s is how long it is waited for; then it was told to come back, and its string was still good.
    assert held.answers[one.port, 503] >= 1
    assert held.answers[one.port, 200] == 1
    assert held.waits <= set(range(1, LONGEST_WAIT + 1))
    assert held.slowest < BOUND
    assert {status for client in clients for _, status in client.answers} == {200}
