"""What a server that holds things up must not cause: answers that were not kept, a login too many, alarms."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from tests.conftest import CHEAP, Clock, eventually
from tests.service import event_types, run_sql
from tokenctl import Context, RotateRequest, Settings, TokenPair, TokenService
from tokenctl.errors import ConfigInvalid, RowLocked, WrongPassword
from tokenctl.service import rotation
from tokenctl.service.runtime import system_clock
from tokenctl.storage.engine import locate

PASSWORD = "seven otters knit at dawn"
COPIED = (
    "user_id, client_id, scope, generation, secret_hash, created_at, rotated_at, access_until, expires_at, "
    "context_changed"
)


@pytest.fixture
def database_kind() -> str:
    return "postgresql"


@contextmanager
def table_held(settings: Settings, table: str) -> Iterator[None]:
    """Locked as CREATE INDEX locks it."""
    with psycopg.connect(settings.database) as other:
        other.execute(f"LOCK TABLE {table} IN SHARE MODE")
        yield
        other.rollback()


@pytest.mark.parametrize("table", ["refresh_tokens", "events"])
def test_nothing_is_answered_that_was_rolled_back(
    service: TokenService, settings: Settings, table: str
) -> None:
    service.create_user("ada")
    strings = [service.issue("ada").refresh_token for _ in range(3)]
    # The last one has something to note, so that the batch meets the lock of either table.
    contexts = [Context(), Context(), Context(user_agent="another")]
    requests = [RotateRequest(each, context=context) for each, context in zip(strings, contexts, strict=True)]
    service.rotate_many([])
    with table_held(settings, table):
        answers = service.rotate_many(requests, wait=False)
    assert [type(each) for each in answers] == [RowLocked] * 3
    assert all(isinstance(each, TokenPair) for each in service.rotate_many(requests))
    assert "token.reuse" not in event_types(settings)


def test_a_login_does_not_survive_the_password_change_that_waited_for_it(
    settings: Settings, service: TokenService
) -> None:
    service.create_user("ada", PASSWORD)
    name = settings.database.rpartition("/")[2]
    run_sql(settings, f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    ended = threading.Event()
    with TokenService(settings, passwords=CHEAP) as strict:
        strict.login("ada", PASSWORD)
        with psycopg.connect(settings.database) as login:
            login.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")  # as another node of ours would
            # A login in the middle of its transaction: it has the user's row, and its own is not committed.
            login.execute("SELECT 1 FROM users FOR UPDATE")
            login.execute(
                f"INSERT INTO refresh_tokens (id, {COPIED}) SELECT %s, {COPIED} FROM refresh_tokens",
                [bytes(15) + b"1"],
            )

            def change() -> None:
                strict.users.set_password("ada", "nine herons paint by noon")
                ended.set()

            thread = threading.Thread(target=change)
            thread.start()
            eventually(lambda: run_sql(settings, "SELECT 1 FROM pg_locks WHERE NOT granted"))
            login.commit()
        thread.join(30)
        assert ended.is_set()
        with pytest.raises(WrongPassword):
            strict.login("ada", PASSWORD)
    assert run_sql(settings, "SELECT count(*) FROM refresh_tokens WHERE revoked_at IS NULL") == [(0,)]


def test_repeatable_read_is_raised(settings: Settings, service: TokenService) -> None:
    name = settings.database.rpartition("/")[2]
    run_sql(settings, f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    with TokenService(settings) as strict, strict._runtime.storage.write() as connection:
        level = connection.exec_driver_sql("SHOW transaction_isolation").scalar_one()
    assert level == "serializable"


def test_the_grace_begins_when_a_held_up_commit_is_through(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a synchronous standby is lost: the commit waits, and its caller has given up."""
    monkeypatch.setattr(rotation, "_STALE", 500_000)
    short = replace(settings, grace=timedelta(seconds=2), access_ttl=timedelta(minutes=10))
    with TokenService(short, clock=system_clock) as service:
        service.create_user("ada")
        string = service.issue("ada").refresh_token
        admin = psycopg.connect(settings.database, autocommit=True)
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'gone'")
        admin.execute("ALTER SYSTEM SET synchronous_commit = on")
        admin.execute("SELECT pg_reload_conf()")
        found: list[TokenPair] = []
        thread = threading.Thread(target=lambda: found.append(service.rotate(string)))
        try:
            # A checkpoint makes the server begin to wait for standbys.
            admin.execute("CHECKPOINT")
            thread.start()
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            eventually(lambda: admin.execute(waiting).fetchall())
            time.sleep(2.5)  # longer than the grace
        finally:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("ALTER SYSTEM RESET synchronous_commit")
            admin.execute("SELECT pg_reload_conf()")
            admin.close()
        thread.join(30)
        again = service.rotate(string)
        assert again.retried
        assert again.refresh_token == found[0].refresh_token
    assert "token.reuse" not in event_types(settings)


@pytest.mark.parametrize("url", ["postgresql://u:ab@GEHEIM@127.0.0.1/db", "postgresql://u:12/GEHEIM@host/db"])
def test_the_rest_of_a_password_is_not_taken_for_a_host(url: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        locate(url)
    assert "GEHEIM" not in f"{caught.value} {caught.value.hint}"


def test_a_password_is_not_in_the_name_of_a_service(service: TokenService, clock: Clock) -> None:
    secret = service.settings.database.replace("tokenctl@", "tokenctl:GEHEIM@")
    with TokenService(replace(service.settings, database=secret), clock=clock) as other:
        assert "GEHEIM" not in other.database
        assert "***" in other.database
