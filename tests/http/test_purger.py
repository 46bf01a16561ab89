"""The purger of a server: it purges by itself, one node at a time, and survives what goes wrong meanwhile."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import cli
from tests.cli.test_purge import Place, fill, make_place, now
from tests.conftest import KINDS, Postgres, eventually
from tests.http.spawned import ISSUER, Spawned, serving
from tokenctl import Settings, TokenService
from tokenctl.http.metrics import Metrics
from tokenctl.http.purger import Purger

#: The shortest that is allowed, in place of 24 h.
OFTEN = ("--purge-every", "1s", "--issuer", ISSUER)
PATIENCE = 60.0
#: With it the first part of an interval is less than a thousandth.
SOON = 12214
DEAD = 3_000


def figures(metrics: bytes) -> dict[str, float]:
    """What /metrics tells of purges, by name and result."""
    return {
        " ".join([sample.name, *sample.labels.values()]).removeprefix("tokenctl_"): sample.value
        for family in text_string_to_metric_families(metrics.decode())
        for sample in family.samples
        if "purge" in sample.name and not sample.name.endswith("_created")
    }


def told(server: Spawned, name: str) -> float:
    return figures(server.get("/metrics").body).get(name, 0)


def complaints(server: Spawned) -> list[str]:
    return [line["event"] for line in server.log if line["level"] not in {"info", "debug"}]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield make_place(tmp_path, str(tmp_path / "tokens.db"), born=now())
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with postgres.empty() as url:
        yield make_place(tmp_path, url, born=now())


@pytest.fixture
def file(tmp_path: Path) -> Place:
    """A database in a file, with something to purge."""
    place = make_place(tmp_path, str(tmp_path / "tokens.db"), born=now())
    fill(place, dead=DEAD, live=50)
    return place


def test_a_server_purges_by_itself(place: Place) -> None:
    fill(place, dead=DEAD, live=50)
    began = time.time()
    with serving(place.directory, *OFTEN, env=place.environment) as server:
        eventually(lambda: told(server, "purges_total done") >= 1)
        assert place.count() == place.live() == 50
        assert told(server, "purged_rows_total") == DEAD
        assert began <= told(server, "purge_last_success_timestamp_seconds") <= time.time()
        # And again, with what has died meanwhile.
        place.tokenctl("revoke", "--all", "--confirm", "1")
        eventually(lambda: told(server, "purges_total done") >= 3)
        assert place.count() == 50, "its retention is not over"
        assert [line["event"] for line in server.log if line["event"].startswith("purged")] == [
            line["event"] for line in server.log if line["event"].startswith(f"purged {DEAD} in ")
        ]
        assert complaints(server) == []
        assert server.stop() == 0


def test_without_the_setting_it_never_does(file: Place) -> None:
    with serving(file.directory, "--issuer", ISSUER, env=file.environment) as server:
        time.sleep(1.5)
        assert figures(server.get("/metrics").body) == {"purged_rows_total": 0}
    with TokenService(file.settings) as service, Purger(service, Metrics(), every=None) as purger:
        assert purger._thread.ident is None
    assert file.count() == DEAD + 50


def test_an_interval_that_is_none(tmp_path: Path) -> None:
    done = cli.run("serve", "--dev", "--purge-every", "0s", cwd=tmp_path)
    assert done.returncode == 2
    assert "purge_every must be from 1s to 365d" in done.stderr


def test_a_server_for_development_purges_too(tmp_path: Path) -> None:
    with serving(tmp_path, "--dev", "--purge-every", "1s") as server:
        eventually(lambda: told(server, "purges_total done") >= 2)


def test_one_node_at_a_time_and_nobody_complains(place: Place) -> None:
    fill(place, dead=DEAD, live=50)
    with TokenService(place.settings) as service, service._runtime.storage.exclusive("purge"):
        server = serving(place.directory, *OFTEN, env=place.environment)
        with server as one:
            eventually(lambda: told(one, "purges_total locked") >= 2)
            assert (told(one, "purges_total done"), place.count()) == (0, DEAD + 50)
            assert complaints(one) == []
            assert "purge_last_success_timestamp_seconds" not in figures(one.get("/metrics").body)


def test_two_servers_share_the_work(place: Place) -> None:
    fill(place, dead=DEAD, live=50)
    with (
        serving(place.directory, *OFTEN, env=place.environment) as one,
        serving(place.directory, *OFTEN, env=place.environment) as two,
    ):
        eventually(lambda: told(one, "purges_total done") >= 1 and told(two, "purges_total done") >= 1)
        assert told(one, "purged_rows_total") + told(two, "purged_rows_total") == DEAD
        assert complaints(one) == complaints(two) == []
    assert place.count() == place.live() == 50


def test_nodes_that_start_together_come_one_after_the_other(file: Place) -> None:
    """The first one comes after a part of the interval, which is chosen anew by each."""
    random.seed(SOON)
    with (
        TokenService(file.settings) as service,
        Purger(service, Metrics(), every=timedelta(minutes=10)),
    ):
        eventually(lambda: file.count() == 50)


def test_what_goes_wrong_is_logged_and_tried_again(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    # That database was made months ago, and nothing was written since.
    metrics = Metrics()
    with (
        TokenService(settings) as service,
        caplog.at_level(logging.INFO, "tokenctl.purger"),
        Purger(service, metrics, every=timedelta(milliseconds=10)),
    ):
        eventually(lambda: len(caplog.records) >= 2)
        assert "the purge failed, and is tried again: " in caplog.messages[0]
        assert "tokenctl purge --force" in caplog.messages[0]
        assert caplog.records[0].exc_info is None, "an error of ours is a line, and no traceback"
        assert figures(metrics.render())["purges_total failed"] >= 2
        service.purge(force=True)
        eventually(lambda: figures(metrics.render()).get("purges_total done", 0) >= 1)


def test_a_database_that_is_away_is_no_crash(
    postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with postgres.empty() as url:
        place = make_place(tmp_path, url, born=now())
        name = url.rpartition("/")[2].partition("?")[0]
        metrics = Metrics()
        with (
            TokenService(place.settings) as service,
            Purger(service, metrics, every=timedelta(milliseconds=50)),
        ):
            eventually(lambda: "purges_total done" in figures(metrics.render()))
            admin = postgres._admin
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            eventually(lambda: "purges_total failed" in figures(metrics.render()))
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
            fill(place, dead=DEAD, live=50)
            eventually(lambda: place.count() == 50)
    assert all(record.exc_info is None for record in caplog.records)


def test_it_stops_in_the_middle(tmp_path: Path) -> None:
    place = make_place(tmp_path, str(tmp_path / "tokens.db"), born=now())
    fill(place, dead=50_000, live=50)
    metrics = Metrics()
    with (
        TokenService(place.settings) as service,
        Purger(service, metrics, every=timedelta(milliseconds=1)) as purger,
    ):
        eventually(lambda: place.count() < 50_000)
        purger.stop()
    assert not purger._thread.is_alive()
    assert 50 < place.count() < 50_000
    assert place.live() == 50
    assert figures(metrics.render())["purges_total stopped"] == 1


def test_one_that_never_began_ends_at_once(file: Place) -> None:
    with TokenService(file.settings) as service:
        with Purger(service, Metrics(), every=timedelta(days=1)) as purger:
            pass
        assert not purger._thread.is_alive()
    assert file.count() == DEAD + 50


def test_a_server_that_stops_in_the_middle(tmp_path: Path) -> None:
    place = make_place(tmp_path, str(tmp_path / "tokens.db"), born=now())
    fill(place, dead=100_000, live=50)
    with serving(place.directory, *OFTEN, env=place.environment) as server:
        eventually(lambda: place.count() < 100_000)
        assert server.stop() == 0
        assert complaints(server) == []
    assert place.count() > 50
    assert place.live() == 50
    assert place.tokenctl("purge").returncode == 0
    assert place.count() == 50
