"""The sealer of a server: it seals by itself, hinders nobody, and survives what goes wrong meanwhile."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from tests.conftest import CHEAP, Postgres, eventually
from tests.http.spawned import ISSUER, serving
from tests.service import key_file, run_sql
from tests.service.test_audit import add_events
from tokenctl import Settings, TokenService
from tokenctl.http.sealer import Sealer

#: Ten times a second in place of once a minute.
OFTEN = "import tokenctl.http.sealer as sealer; sealer.EVERY = 0.1"
PATIENCE = 60.0


def test_a_server_seals_what_happens(settings: Settings, tmp_path: Path) -> None:
    with (
        TokenService(settings, passwords=CHEAP) as service,
        serving(tmp_path, "--database", "tokens.db", "--issuer", ISSUER, prelude=OFTEN) as server,
    ):
        for name in ("ada", "bob"):
            service.create_user(name)
            eventually(lambda: service.audit.unsealed() == 0)
        assert service.audit.verify().segments >= 2
        assert service.audit.verify().holds
        assert server.stop() == 0


def test_a_server_for_development_seals_too(tmp_path: Path) -> None:
    with serving(tmp_path, "--dev", prelude=OFTEN) as server:
        with TokenService(Settings(database=str(tmp_path / "tokenctl-dev.db"))) as service:
            eventually(lambda: service.audit.unsealed() == 0)
            assert service.audit.verify().holds
        assert server.stop() == 0


def test_without_the_key_nothing_is_sealed_until_it_comes(settings: Settings) -> None:
    key = key_file(settings)
    text = key.read_text()
    key.unlink()
    with TokenService(settings) as service, Sealer(service, every=0.01):
        time.sleep(0.1)
        assert service.audit.unsealed() == 1
        key.write_text(text)
        eventually(lambda: service.audit.unsealed() == 0)


def test_what_goes_wrong_is_logged_and_tried_again(
    settings: Settings, service: TokenService, caplog: pytest.LogCaptureFixture
) -> None:
    run_sql(settings, "CREATE TRIGGER fault BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'fault'); END")
    with caplog.at_level(logging.WARNING, "tokenctl.sealer"), Sealer(service, every=0.01):
        eventually(lambda: len(caplog.records) >= 2)
        assert service.audit.unsealed() == 1
        assert "was not sealed, and is tried again" in caplog.text
        assert caplog.records[0].exc_info is None, "an error of ours is a line, and no traceback"
        run_sql(settings, "DROP TRIGGER fault")
        eventually(lambda: service.audit.unsealed() == 0)


def test_a_database_that_is_away_is_no_crash(postgres: Postgres, tmp_path: Path) -> None:
    from tests.conftest import MASTER_KEY
    from tokenctl.core.keys import format_master_key

    key = tmp_path / "key"
    key.write_text(format_master_key(MASTER_KEY))
    with postgres.new() as url:
        name = url.rpartition("/")[2].partition("?")[0]
        with TokenService(Settings(database=url, key_file=str(key))) as service, Sealer(service, every=0.05):
            eventually(lambda: service.audit.unsealed() == 0)
            admin = postgres._admin
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            time.sleep(0.3)
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
            service.create_user("ada")
            eventually(lambda: service.audit.unsealed() == 0)
            assert service.audit.verify().holds


def test_it_stops_in_the_middle_of_a_backlog(settings: Settings, service: TokenService) -> None:
    add_events(settings, 30_000)
    with Sealer(service, every=0.001) as sealer:
        eventually(lambda: service.audit.unsealed() < 30_000)
        sealer.stop()
    assert not sealer._thread.is_alive()
    left = service.audit.unsealed()
    assert 0 < left < 30_001
    assert service.audit.verify().holds


def test_a_sealer_that_never_woke_ends_at_once(service: TokenService) -> None:
    sealer = Sealer(service)
    with sealer:
        pass
    assert not sealer._thread.is_alive()
    assert service.audit.unsealed() == 1
