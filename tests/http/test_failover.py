"""The primary dies or hangs under load, its synchronous standby takes over: no acknowledged answer is lost.

The server has one address with both hosts, and finds the new primary by itself. TOKENCTL_FAILOVERS says how
often, each time with new servers.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.http.databases import (
    BOUND,
    DURABLE,
    Onlooker,
    assert_answered_well,
    initialised,
    steady,
    went_on,
)
from tests.http.test_kill import Client, Leaver, Load, assert_nothing_was_lost
from tests.postgres import USER, standby_of, started

FAILOVERS = int(os.environ.get("TOKENCTL_FAILOVERS", "1"))
CLIENTS = 16


@pytest.mark.parametrize("number", range(FAILOVERS))
def test_a_failover_loses_nothing_that_was_acknowledged(number: int, tmp_path: Path) -> None:
    chance = random.Random()  # the moment is a different one each time, in CI too
    with started(options=DURABLE) as primary:
        primary.create_database("tokens")
        with standby_of(primary) as standby:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            database = initialised(f"postgresql://{USER}@{hosts}/tokens", tmp_path)
            with database.authority() as authority, database.serving() as server:
                clients = steady(authority, CLIENTS, server.port)
                logins = [authority.issue("ada").refresh_token for _ in range(200)]
                leaver = Leaver(Client([server.port], [""]), iter(logins))
                health = Onlooker(server, "/readyz")
                with Load(*(client.refresh for client in clients), leaver, health):
                    eventually(went_on(clients))
                    eventually(lambda: len(leaver.out) > 2)
                    time.sleep(chance.uniform(0, 1))
                    primary.kill()
                    died = time.monotonic()
                    acknowledged = [client.strings[-1] for client in clients]
                    out = list(leaver.out)
                    time.sleep(chance.uniform(1, 5))
                    standby.promote()
                    away = time.monotonic() - died
                    eventually(went_on(clients))
                    eventually(lambda: len(leaver.out) > len(out) + 1)
                for client in [*clients, leaver.client]:
                    client.close()
                assert_nothing_was_lost(authority, [*clients])
                assert_answered_well(clients)
                # It hit: somebody waited for it, if not from its first moment, or was told to come back.
                assert any(client.waits or client.slowest > away / 2 for client in clients)
                assert set(health.statuses) <= {200, 503}
                assert health.slowest < BOUND
                # What was the newest at that moment was not forgotten: each chain went on from there.
                for client, string in zip(clients, acknowledged, strict=True):
                    assert client.strings.index(string) < len(client.strings) - 1
                for string in leaver.out:
                    assert authority.inspect(string).state == "revoked"
                    assert server.post("/auth/refresh", {"refresh_token": string}).status == 401
                assert server.get("/readyz").status == 200
            assert database.alarms() == ""
            assert [line for line in server.log if line.get("level") == "error"] == []


def test_a_primary_that_hangs_is_left_for_the_new_one(tmp_path: Path) -> None:
    """It keeps its connections: TCP sees nothing, and only who tries to connect learns of it."""
    with started(options=DURABLE) as primary:
        primary.create_database("tokens")
        with standby_of(primary) as standby:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            database = initialised(f"postgresql://{USER}@{hosts}/tokens", tmp_path)
            with database.authority() as authority, database.serving() as server:
                clients = steady(authority, CLIENTS, server.port)
                bearer = server.post("/auth/refresh", {"refresh_token": authority.issue("ada").refresh_token})
                onlooker = Onlooker(server, "/auth/me", bearer.json["access_token"])
                with Load(*(client.refresh for client in clients), onlooker):
                    eventually(went_on(clients))
                    primary.pause()
                    time.sleep(1)
                    standby.promote()
                    # Within the grace, or retries of what the old one took to its grave would be reuse.
                    eventually(went_on(clients))
                    seen = onlooker.statuses[200]
                    eventually(lambda: onlooker.statuses[200] > seen)
                    primary.kill()
                    eventually(went_on(clients))
                for client in clients:
                    client.close()
                assert_nothing_was_lost(authority, [*clients])
                assert_answered_well(clients)
                assert onlooker.slowest < BOUND
            assert database.alarms() == ""
