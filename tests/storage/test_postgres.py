"""What only a server does: its address, its outages, its locks, its clock, and updates that stay in place.

A commit whose answer is lost is made by a relay between us and the server, which sees the COMMIT go by.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
import sqlalchemy as sa

from tests.conftest import CHEAP, START, Clock, Postgres, eventually
from tests.postgres import Server, started
from tests.service import event_types, run_sql
from tokenctl import Context, RotateRequest, Settings, TokenPair, TokenService, initialise
from tokenctl.core.ids import to_bytes
from tokenctl.errors import (
    ClockApart,
    ConfigInvalid,
    ConnectionRefused,
    DatabaseAway,
    DatabaseError,
    DatabaseLocked,
    DatabaseMissing,
    InvalidInput,
    OutcomeUnknown,
    RowLocked,
    StatementRefused,
    TokenctlError,
    TransactionAborted,
    UserExists,
)
from tokenctl.service.runtime import system_clock
from tokenctl.service.transactions import repeated
from tokenctl.storage import postgres as implementation
from tokenctl.storage.engine import locate
from tokenctl.storage.postgres import PostgresDatabase, PostgresStorage

PASSWORD = "p%40ss w?rd/s3cret"  # the per cent sign is its own
QUOTED = "p%2540ss%20w%3Frd%2Fs3cret"


@pytest.fixture
def database_kind() -> str:
    return "postgresql"


@pytest.fixture
def ada(service: TokenService) -> TokenPair:
    service.create_user("ada")
    return service.issue("ada")


@pytest.fixture
def storage(settings: Settings) -> Iterator[PostgresStorage]:
    storage = PostgresDatabase(settings.database).open()
    with closing(storage):
        yield storage


def granted(result: TokenPair | TokenctlError) -> TokenPair:
    assert isinstance(result, TokenPair), result
    return result


@contextmanager
def held(settings: Settings, pair: TokenPair) -> Iterator[psycopg.Connection]:
    """Somebody else's transaction has the row of that login."""
    with psycopg.connect(settings.database) as other:
        lock = "SELECT 1 FROM refresh_tokens WHERE id = %s FOR UPDATE"
        assert other.execute(lock, [to_bytes(pair.token_id)]).fetchall() == [(1,)]
        yield other
        other.rollback()


# --- the address -----------------------------------------------------------------------------


class TestAddress:
    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
    def test_schemes(self, settings: Settings, scheme: str) -> None:
        url = settings.database.replace("postgresql://", f"{scheme}://")
        with TokenService(replace(settings, database=url)) as service:
            service.create_user("ada")
        assert run_sql(settings, "SELECT name FROM users") == [("ada",)]

    def test_options_reach_the_server(self, settings: Settings) -> None:
        url = f"{settings.database}?application_name=mine&options=-c%20work_mem%3D5MB"
        with closing(PostgresDatabase(url).open()) as storage, storage.read() as connection:
            names = ("application_name", "work_mem")
            found = [connection.scalar(sa.select(sa.func.current_setting(name))) for name in names]
        assert found == ["mine", "5MB"]

    def test_of_several_hosts_the_one_that_answers(self, settings: Settings, postgres: Postgres) -> None:
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            dead = f"127.0.0.1:{taken.getsockname()[1]}"
            url = settings.database.replace("@", f"@{dead},")
            location = PostgresDatabase(url)
            name = url.rpartition("/")[2]
            assert location.label == f"postgresql://{dead},127.0.0.1:{postgres.server.port}/{name}"
            with closing(location.open()) as storage:
                assert storage.check_migrated()

    def test_a_server_that_only_reads_is_not_taken(self, settings: Settings) -> None:
        run_sql(settings, f"ALTER DATABASE {name_of(settings)} SET default_transaction_read_only = on")
        with pytest.raises(DatabaseAway) as caught:
            TokenService(settings)
        assert "read-only" in caught.value.message

    @pytest.mark.parametrize(
        ("url", "label"),
        [
            ("postgresql:///tokens", "postgresql://localhost/tokens"),
            ("postgres://h/", "postgresql://h/"),
            ("postgresql://u@a:1,b:2,c/n", "postgresql://a:1,b:2,c/n"),
            (
                f"postgresql://u:{QUOTED}@db.example:5433/n?connect_timeout=9",
                "postgresql://db.example:5433/n",
            ),
            (f"postgresql://db.example/n?user=u&password={QUOTED}", "postgresql://db.example/n"),
            ("postgresql://u@/n?host=/run/postgresql&port=5", "postgresql:///run/postgresql:5/n"),
            ("postgresql://u@[2001:db8::1]:5433/n", "postgresql://[2001:db8::1]:5433/n"),
        ],
    )
    def test_labels(self, url: str, label: str) -> None:
        assert locate(url).label == label

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://u:{QUOTED}@h:port/n",
            f"postgresql://u:{QUOTED}@h/n?nonsense=1",
            f"postgresql://u:{QUOTED}%zz@h/n",
            f"postgresql://u:{QUOTED}@h/n?sslmode=maybe",
            f"postgresql://u:{QUOTED}@[::1/n",
            f"postgresql://u:{QUOTED}%00@h/n",
            f"postgresql://u:{QUOTED}@h,i:1:2/n",
        ],
    )
    def test_what_is_none(self, url: str) -> None:
        with pytest.raises(ConfigInvalid) as caught:
            locate(url)
        assert "s3cret" not in f"{caught.value} {caught.value.hint} {caught.value.facts}"

    @pytest.mark.parametrize(
        ("option", "verified"),
        [
            ("", "verify-full"),
            ("?sslmode=verify-full", "verify-full"),
            ("?sslmode=verify-ca", "verify-ca"),
        ],
    )
    def test_a_host_on_the_network_is_verified(self, option: str, verified: str) -> None:
        for host in ("db.example", "10.0.0.7", "[2001:db8::1]", "localhost,db.example", "127.0.0.1.example"):
            location = PostgresDatabase(f"postgresql://u@{host}/n{option}")
            assert location._parameters["sslmode"] == verified

    @pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require"])
    def test_a_host_on_the_network_is_not_trusted_unseen(self, mode: str) -> None:
        addresses = [
            "u@db.example/n?",
            "u@localhost,db.example/n?",
            "/n?host=10.0.0.7&",
            "/n?hostaddr=10.0.0.7&",
        ]
        for address in addresses:
            with pytest.raises(ConfigInvalid) as caught:
                locate(f"postgresql://{address}sslmode={mode}")
            assert mode in caught.value.message
            assert caught.value.hint

    def test_a_name_of_this_machine_does_not_hide_an_address_elsewhere(self) -> None:
        """libpq connects to hostaddr, whatever host says."""
        with pytest.raises(ConfigInvalid):
            locate("postgresql://u@localhost/n?hostaddr=10.0.0.7&sslmode=disable")
        location = PostgresDatabase("postgresql://u@localhost/n?hostaddr=10.0.0.7")
        assert location._parameters["sslmode"] == "verify-full"

    @pytest.mark.parametrize("variable", ["PGHOST", "PGHOSTADDR"])
    def test_a_host_from_the_environment_is_one_on_the_network(
        self, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, "10.0.0.7")
        location = PostgresDatabase("postgresql://u@/n")
        assert (location._parameters["sslmode"], location.label) == ("verify-full", "postgresql://10.0.0.7/n")

    def test_a_service_does_not_tell_where_it_leads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigInvalid, match="service"):
            locate("postgresql:///n?service=mine")
        monkeypatch.setenv("PGSERVICE", "mine")
        with pytest.raises(ConfigInvalid, match="service"):
            locate("postgresql:///n")

    @pytest.mark.parametrize("mode", ["disable", "prefer"])
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "%2Frun%2Fpostgresql", ""])
    def test_this_machine_needs_no_tls(self, host: str, mode: str) -> None:
        assert locate(f"postgresql://u@{host}/n?sslmode={mode}").label

    def test_the_key_of_a_database_lies_in_the_working_directory(self) -> None:
        assert locate("postgresql://u@h/tokens").key_file == Path("tokens.key")
        assert locate("postgresql://h").key_file == Path("tokenctl.key")
        assert locate("postgresql://h/..%2F..%2Fetc%2Fpasswd").key_file == Path("passwd.key")

    def test_without_the_driver_it_says_what_to_install(self) -> None:
        code = (
            "import sys; sys.modules['psycopg'] = None\n"
            "from tokenctl import Settings, TokenService\n"
            "from tokenctl.errors import ConfigInvalid\n"
            "try: TokenService(Settings(database='postgresql://h/n'))\n"
            "except ConfigInvalid as error: print(error.message, error.hint)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "tokenctl[postgres]" in done.stdout


def name_of(settings: Settings) -> str:
    return settings.database.rpartition("/")[2]


# --- it does not let us in -------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that asks for a password, of whom its superuser is not asked."""
    with started() as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        server.execute("CREATE DATABASE theirs OWNER app")
        rules = "host all app 127.0.0.1/32 scram-sha-256\nhost all tokenctl 127.0.0.1/32 trust\n"
        (server.data / "pg_hba.conf").write_text(rules)
        server.restart()
        yield server


def at(server: Server, user: str, name: str) -> str:
    return f"postgresql://{user}@127.0.0.1:{server.port}/{name}"


class TestRefusedConnection:
    def test_with_the_password_all_is_well(self, guarded: Server, tmp_path: Path) -> None:
        settings = Settings(
            database=at(guarded, f"app:{QUOTED}", "theirs"), key_file=str(tmp_path / "tokens.key")
        )
        done = initialise(settings)
        assert done.database == f"postgresql://127.0.0.1:{guarded.port}/theirs"
        with TokenService(settings, passwords=CHEAP) as service:
            service.create_user("ada")
            assert service.rotate(service.issue("ada").refresh_token)
            assert "s3cret" not in repr(service._runtime.storage.engine)

    @pytest.mark.parametrize(
        ("user", "name", "kind"),
        [
            pytest.param("app:s3cret-wrong", "theirs", ConnectionRefused, id="wrong password"),
            pytest.param("app", "theirs", ConnectionRefused, id="no password"),
            pytest.param("nobody:s3cret", "theirs", ConnectionRefused, id="no rule for that user"),
            pytest.param("tokenctl:s3cret", "nowhere", DatabaseMissing, id="no such database"),
        ],
    )
    def test_is_told_at_once_and_without_the_password(
        self,
        guarded: Server,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        user: str,
        name: str,
        kind: type[DatabaseError],
    ) -> None:
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
        caplog.set_level(logging.DEBUG)
        began = time.monotonic()
        with pytest.raises(kind) as caught:
            TokenService(Settings(database=at(guarded, user, name)))
        assert time.monotonic() - began < 1
        assert type(caught.value) is kind
        assert caught.value.hint
        assert "s3cret" not in f"{caught.value} {caught.value.facts} {caplog.text}"

    def test_by_a_role_that_is_not_there(self, settings: Settings) -> None:
        with pytest.raises(ConnectionRefused, match="nobody") as caught:
            TokenService(replace(settings, database=settings.database.replace("tokenctl@", "nobody@")))
        assert "createuser" in caught.value.hint


# --- it goes away ----------------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[tuple[Server, Settings]]:
    """A server of the test's own, with a database."""
    with started(options={"synchronous_commit": "on"}) as server:
        url = server.create_database("tokens")
        settings = Settings(database=url, key_file=str(server.home / "tokens.key"))
        initialise(settings)
        yield server, settings


class TestAway:
    def test_is_told_within_two_seconds_and_then_at_once(self, mortal: tuple[Server, Settings]) -> None:
        server, settings = mortal
        with TokenService(settings) as service:
            service.create_user("ada")
            string = service.issue("ada").refresh_token
            server.kill()
            began = time.monotonic()
            with pytest.raises(DatabaseAway):
                service.rotate(string)
            assert time.monotonic() - began < 3
            again = time.monotonic()
            for _ in range(20):
                with pytest.raises(DatabaseAway) as caught:
                    service.rotate(string)
            # The cool-down: many callers must not queue up behind each other's attempts.
            assert time.monotonic() - again < 0.3
            assert type(caught.value) is DatabaseAway
            server.start()
            time.sleep(implementation._COOL_DOWN)
            assert service.rotate(string)

    def test_a_restart_between_two_calls_costs_no_error(self, mortal: tuple[Server, Settings]) -> None:
        server, settings = mortal
        with TokenService(settings) as service:
            service.create_user("ada")
            string = service.issue("ada").refresh_token
            for _ in range(3):
                # Several lie in the pool, and all of them are broken afterwards.
                with ExitStack() as stack:
                    for _ in range(4):
                        stack.enter_context(service._runtime.storage.read())
                server.restart()
                pair = service.rotate(string)
                assert not pair.retried
                string = pair.refresh_token

    def test_a_restart_during_a_call_is_waited_for(self, mortal: tuple[Server, Settings]) -> None:
        server, settings = mortal
        with TokenService(settings) as service, ThreadPoolExecutor(1) as pool:
            service.create_user("ada")
            string = service.issue("ada").refresh_token
            server.stop()
            waiting = pool.submit(service.rotate, string)
            time.sleep(0.3)
            server.start()
            assert waiting.result(10)

    def test_paused_the_new_connections_are_told(self, mortal: tuple[Server, Settings]) -> None:
        server, settings = mortal
        with TokenService(settings) as service:
            service._runtime.storage.engine.dispose()  # a new one has to be made
            server.pause()
            began = time.monotonic()
            with pytest.raises(DatabaseAway):
                service.users.list_page() if hasattr(service.users, "list_page") else list(
                    service.users.list()
                )
            assert time.monotonic() - began < 5
            server.resume()
            time.sleep(implementation._COOL_DOWN)
            assert list(service.users.list()) == []


# --- a row that somebody else has ------------------------------------------------------------


class TestLockedRow:
    def requests(self, service: TokenService, ada: TokenPair, count: int = 64) -> list[RotateRequest]:
        pairs = [service.issue("ada") for _ in range(count - 1)]
        pairs.insert(count // 2, ada)
        return [RotateRequest(pair.refresh_token) for pair in pairs]

    def test_the_others_of_its_batch_do_not_wait(
        self, service: TokenService, settings: Settings, ada: TokenPair
    ) -> None:
        requests = self.requests(service, ada)
        with held(settings, ada):
            began = time.monotonic()
            results = service.rotate_many(requests, wait=False)
            assert time.monotonic() - began < 1
        locked = results.pop(32)
        assert type(locked) is RowLocked
        assert len([granted(result) for result in results if not granted(result).retried]) == 63
        assert not service.rotate(ada.refresh_token).retried

    def test_with_patience_it_is_waited_for(
        self, service: TokenService, settings: Settings, ada: TokenPair
    ) -> None:
        requests = self.requests(service, ada)
        with ThreadPoolExecutor(1) as pool:
            with held(settings, ada):
                waiting = pool.submit(service.rotate_many, requests)
                time.sleep(0.5)
                done = "SELECT count(*) FROM refresh_tokens WHERE generation = 1"
                assert run_sql(settings, done) == [(63,)]
                assert not waiting.done()
            results = [granted(result) for result in waiting.result(10)]
        assert not any(result.retried for result in results)

    @pytest.mark.parametrize("count", [1, 64])
    def test_patience_ends(
        self, service: TokenService, settings: Settings, ada: TokenPair, count: int
    ) -> None:
        requests = self.requests(service, ada, count)
        with held(settings, ada):
            began = time.monotonic()
            results = service.rotate_many(requests)
            assert 1.5 < time.monotonic() - began < 4
        assert type(results.pop(count // 2)) is RowLocked
        assert all(map(granted, results))
        assert service.inspect(ada.token_id).token.generation == 0

    def test_two_of_the_batch_are_the_locked_one(
        self, service: TokenService, settings: Settings, ada: TokenPair
    ) -> None:
        with held(settings, ada):
            results = service.rotate_many([RotateRequest(ada.refresh_token)] * 2, wait=False)
        assert [type(result) for result in results] == [RowLocked, RowLocked]

    def test_rows_locked_in_two_orders_are_no_error(
        self, service: TokenService, settings: Settings, ada: TokenPair
    ) -> None:
        """Batches that meet: a deadlock is found by the server, and one of them begins again."""
        pairs = [ada, *(service.issue("ada") for _ in range(31))]
        strings = {pair.token_id: pair.refresh_token for pair in pairs}

        def rotate(backwards: bool) -> list[TokenPair | TokenctlError]:
            order = sorted(strings, reverse=backwards)
            return service.rotate_many([RotateRequest(strings[each]) for each in order])

        with ThreadPoolExecutor(8) as pool:
            for _ in range(10):
                answers = [list(map(granted, each)) for each in pool.map(rotate, [True, False] * 4)]
                successors = {(pair.token_id, pair.refresh_token) for each in answers for pair in each}
                assert len(successors) == len(pairs)
                strings = dict(successors)
        assert run_sql(settings, "SELECT DISTINCT generation FROM refresh_tokens") == [(10,)]
        assert "token.reuse" not in event_types(settings)


# --- what the server gives up ----------------------------------------------------------------


class TestRepeated:
    def test_a_deadlock(self, service: TokenService, settings: Settings, storage: PostgresStorage) -> None:
        for name in ("ada", "bob"):
            service.create_user(name)
        both = threading.Barrier(2)
        tries: list[str] = []

        @repeated
        def cut(first: str, second: str) -> None:
            tries.append(first)
            with storage.write() as connection:
                for i, name in enumerate((first, second)):
                    change = "UPDATE users SET not_before = not_before + 1 WHERE name = :name"
                    connection.execute(sa.text(change), {"name": name})
                    if i == 0 and len(tries) <= 2:  # one that is repeated is alone
                        both.wait(30)

        with ThreadPoolExecutor(2) as pool:
            for each in [pool.submit(cut, "ada", "bob"), pool.submit(cut, "bob", "ada")]:
                each.result(30)
        assert run_sql(settings, "SELECT not_before FROM users") == [(2,), (2,)]
        assert len(tries) == 3

    def test_a_serialization_failure(self, settings: Settings, service: TokenService, ada: TokenPair) -> None:
        run_sql(
            settings,
            f"ALTER DATABASE {name_of(settings)} SET default_transaction_isolation = 'repeatable read'",
        )
        # The snapshot is taken with the first statement, which waits: what was committed since it cannot see.
        with (
            TokenService(settings, clock=lambda: START) as second,
            held(settings, ada) as other,
            ThreadPoolExecutor(1) as pool,
        ):
            waiting = pool.submit(second.rotate, ada.refresh_token)
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            eventually(lambda: run_sql(settings, blocked) != [(0,)])
            change = "UPDATE refresh_tokens SET last_user_agent = 'x' WHERE id = %s"
            other.execute(change, [to_bytes(ada.token_id)])
            other.commit()
            assert not waiting.result(10).retried
        assert run_sql(settings, "SELECT generation, last_user_agent FROM refresh_tokens") == [(1, "x")]

    def test_a_connection_that_is_cut_before_the_commit(
        self, settings: Settings, service: TokenService, ada: TokenPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tokenctl.storage import swap

        real = swap.rotate
        cuts: list[int] = []

        def cut(connection: Any, *args: Any, **options: Any) -> Any:
            done = real(connection, *args, **options)
            if not cuts:
                cuts.append(pid := connection.scalar(sa.text("SELECT pg_backend_pid()")))
                run_sql(settings, "SELECT pg_terminate_backend(?, 5000)", pid)
                # What follows in the transaction finds out.
                connection.execute(sa.text("SELECT 1"))
            return done

        monkeypatch.setattr(swap, "rotate", cut)
        pair = service.rotate(ada.refresh_token)
        assert (len(cuts), pair.retried) == (1, False)
        assert run_sql(settings, "SELECT generation FROM refresh_tokens") == [(1,)]

    def test_ends_at_some_time(self, settings: Settings, storage: PostgresStorage) -> None:
        @repeated
        def hopeless() -> None:
            with storage.write() as connection:
                connection.execute(sa.text("DO $$ BEGIN RAISE 'no' USING ERRCODE = '40001'; END $$"))

        began = time.monotonic()
        with pytest.raises(TransactionAborted):
            hopeless()
        assert 2.5 < time.monotonic() - began < 6


# --- a commit whose answer is lost -----------------------------------------------------------


class Relay:
    """Between us and the server. Armed, it cuts the connection at the next COMMIT of a write.

    Forwarded, it is committed before that; withheld, the server never sees it.
    """

    def __init__(self, server: Server) -> None:
        self._target = ("127.0.0.1", server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.armed: Literal["forwarded", "withheld"] | None = None
        #: At that of a read, too.
        self.of_reads = False
        self.cuts = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._sockets:
            _cut(each)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(self._target)
            self._sockets += [ours, theirs]
            wire = _Wire(ours, theirs)
            for pump in (self._upstream, self._downstream):
                thread = threading.Thread(target=pump, args=(wire,))
                self._threads.append(thread)
                thread.start()

    def _upstream(self, wire: _Wire) -> None:
        writes = False
        with suppress(OSError):
            while data := wire.ours.recv(65536):
                if b"BEGIN" in data:
                    writes = self.of_reads or b"lock_timeout" in data
                if self.armed and writes and b"COMMIT" in data:
                    how, self.armed = self.armed, None
                    self.cuts += 1
                    if how == "forwarded":
                        wire.silent.set()
                        wire.theirs.sendall(data)
                        wire.answered.wait(10)
                    break
                wire.theirs.sendall(data)
        wire.cut()

    def _downstream(self, wire: _Wire) -> None:
        with suppress(OSError):
            while data := wire.theirs.recv(65536):
                if wire.silent.is_set():
                    break
                wire.ours.sendall(data)
        wire.answered.set()
        wire.cut()


@dataclass
class _Wire:
    """One connection, and both its ends."""

    ours: socket.socket
    theirs: socket.socket
    #: What the server says from here on is kept from us.
    silent: threading.Event = field(default_factory=threading.Event)
    #: It has said something since.
    answered: threading.Event = field(default_factory=threading.Event)

    def cut(self) -> None:
        _cut(self.ours)
        _cut(self.theirs)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(postgres: Postgres) -> Iterator[Relay]:
    relay = Relay(postgres.server)
    yield relay
    relay.close()


def through(relay: Relay, settings: Settings, **more: Any) -> Settings:
    name = name_of(settings)
    return replace(settings, database=f"postgresql://tokenctl@127.0.0.1:{relay.port}/{name}", **more)


@pytest.mark.parametrize("how", ["forwarded", "withheld"])
class TestUnknownOutcome:
    def test_the_caller_gets_the_pair_and_one_generation_is_gone(
        self,
        settings: Settings,
        service: TokenService,
        ada: TokenPair,
        clock: Clock,
        relay: Relay,
        how: Literal["forwarded", "withheld"],
    ) -> None:
        with TokenService(through(relay, settings), clock=clock) as far:
            string = ada.refresh_token
            for number in range(1, 4):
                relay.armed = how
                pair = far.rotate(string)
                assert relay.cuts == number
                # What was kept is answered as any retry is.
                assert pair.retried == (how == "forwarded")
                assert service.inspect(ada.token_id).token.generation == number
                assert service.rotate(string).refresh_token == pair.refresh_token, "the one right successor"
                string = pair.refresh_token
        assert "token.reuse" not in event_types(settings)

    def test_of_a_batch(
        self,
        settings: Settings,
        service: TokenService,
        ada: TokenPair,
        clock: Clock,
        relay: Relay,
        how: Literal["forwarded", "withheld"],
    ) -> None:
        pairs = [ada, *(service.issue("ada") for _ in range(15))]
        with TokenService(through(relay, settings), clock=clock) as far:
            relay.armed = how
            results = far.rotate_many([RotateRequest(pair.refresh_token) for pair in pairs])
        assert relay.cuts == 1
        assert [granted(result).token_id for result in results] == [pair.token_id for pair in pairs]
        assert run_sql(settings, "SELECT DISTINCT generation FROM refresh_tokens") == [(1,)]
        assert "token.reuse" not in event_types(settings)

    def test_without_a_grace_it_is_said(
        self,
        settings: Settings,
        service: TokenService,
        ada: TokenPair,
        clock: Clock,
        relay: Relay,
        how: Literal["forwarded", "withheld"],
    ) -> None:
        with TokenService(through(relay, settings, grace=timedelta(0)), clock=clock) as far:
            relay.armed = how
            with pytest.raises(OutcomeUnknown) as caught:
                far.rotate(ada.refresh_token)
        assert caught.value.hint
        row = service.inspect(ada.token_id).token
        assert (row.generation, row.is_revoked) == (int(how == "forwarded"), False)
        assert "token.reuse" not in event_types(settings)

    def test_what_is_no_rotation_is_not_repeated(
        self,
        settings: Settings,
        service: TokenService,
        ada: TokenPair,
        clock: Clock,
        relay: Relay,
        how: Literal["forwarded", "withheld"],
    ) -> None:
        with TokenService(through(relay, settings), clock=clock) as far:
            relay.armed = how
            with pytest.raises(OutcomeUnknown):
                far.issue("ada")
        assert relay.cuts == 1
        assert len(run_sql(settings, "SELECT 1 FROM refresh_tokens")) == 1 + (how == "forwarded")


def test_a_read_has_read_all_before_its_commit(
    settings: Settings, ada: TokenPair, clock: Clock, relay: Relay
) -> None:
    with TokenService(through(relay, settings), clock=clock) as far:
        relay.of_reads, relay.armed = True, "withheld"
        assert [user.name for user in far.users.list()] == ["ada"]
        assert relay.cuts == 1
        relay.armed = "withheld"  # the first rotation of a process looks for its key
        assert not far.rotate(ada.refresh_token).retried
    assert relay.cuts == 2


# --- two at once -----------------------------------------------------------------------------


def test_of_two_registrations_of_one_name_one_is_told(service: TokenService, settings: Settings) -> None:
    for number in range(20):
        start = threading.Barrier(4)

        def register(name: str = f"user {number}", start: threading.Barrier = start) -> object:
            start.wait(10)
            try:
                return service.create_user(name).name
            except TokenctlError as error:
                return type(error)

        with ThreadPoolExecutor(4) as pool:
            found = [each.result(20) for each in [pool.submit(register) for _ in range(4)]]
        assert sorted(map(str, found)) == sorted(map(str, [UserExists] * 3 + [f"user {number}"]))


class TestExclusive:
    def test_one_at_a_time(self, settings: Settings, storage: PostgresStorage) -> None:
        with closing(PostgresDatabase(settings.database).open()) as other:
            with storage.exclusive("purge"):
                with pytest.raises(DatabaseLocked, match="already running"), other.exclusive("purge"):
                    pytest.fail("two at once")
                with other.exclusive("another job"):
                    pass
            with other.exclusive("purge"):
                pass

    def test_is_waited_for(self, settings: Settings, storage: PostgresStorage) -> None:
        entered = threading.Event()

        def enter() -> None:
            with (
                closing(PostgresDatabase(settings.database).open()) as other,
                other.exclusive("purge", wait=20),
            ):
                entered.set()

        with ThreadPoolExecutor(1) as pool:
            with storage.exclusive("purge"):
                waiting = pool.submit(enter)
                assert not entered.wait(0.5)
            waiting.result(20)
            assert entered.is_set()

    def test_ends_with_its_process(self, settings: Settings, storage: PostgresStorage) -> None:
        code = (
            "import os, sys\n"
            "from tokenctl.storage.postgres import PostgresDatabase\n"
            "with PostgresDatabase(sys.argv[1]).open().exclusive('purge'): os._exit(0)"
        )
        subprocess.run([sys.executable, "-c", code, settings.database], check=True)
        with storage.exclusive("purge", wait=10):
            pass


# --- the clock, texts ------------------------------------------------------------------------


class TestClock:
    @pytest.mark.parametrize("ahead", [-3, 3])
    def test_apart(self, settings: Settings, ahead: int) -> None:
        with TokenService(settings, clock=lambda: system_clock() + ahead * 1_000_000) as service:
            with pytest.raises(ClockApart) as caught:
                service.ready()
            assert caught.value.facts["seconds"] == pytest.approx(ahead, abs=0.5)

    def test_together(self, settings: Settings) -> None:
        with TokenService(settings, clock=lambda: system_clock() + 1_000_000) as service:
            service.ready()


@pytest.mark.parametrize("bad", ["a\0b", "\ud800", "\0", "x\udfff"])
def test_what_no_text_of_a_server_can_hold(
    service: TokenService, settings: Settings, ada: TokenPair, bad: str
) -> None:
    with pytest.raises((InvalidInput, StatementRefused)):
        service.create_user(f"bob{bad}")
    with pytest.raises(StatementRefused):
        service.issue("ada", context=Context(user_agent=bad))
    with pytest.raises((InvalidInput, StatementRefused)):
        service.revoke([ada.token_id], reason=bad)
    with pytest.raises((InvalidInput, StatementRefused)):
        service.clients.create(bad)
    with pytest.raises(StatementRefused):
        service.rotate(ada.refresh_token, context=Context(user_agent=bad))
    assert not service.rotate(ada.refresh_token).retried
    assert run_sql(settings, "SELECT count(*) FROM refresh_tokens") == [(1,)]


# --- updates in place ------------------------------------------------------------------------


class TestUpdatesInPlace:
    def count(self, service: TokenService, settings: Settings, clock: Clock) -> tuple[int, int]:
        """How many updates there were, and how many of them in place."""
        counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'refresh_tokens'"
        [before] = run_sql(settings, counts)
        service.create_user("ada")
        strings = [service.issue("ada").refresh_token for _ in range(20)]
        for number in range(100):
            clock.advance(timedelta(seconds=1))
            context = Context(ip=number.to_bytes(16, "big"), user_agent=f"Browser/{number}")
            requests = [RotateRequest(string, context=context) for string in strings]
            strings = [granted(result).refresh_token for result in service.rotate_many(requests)]
        service.close()  # the sessions tell what they did at their end at the latest
        eventually(lambda: run_sql(settings, counts)[0][0] - before[0] >= 2000)
        [after] = run_sql(settings, counts)
        return after[0] - before[0], after[1] - before[1]

    def test_a_rotation_touches_no_index(
        self, service: TokenService, settings: Settings, clock: Clock
    ) -> None:
        all_, in_place = self.count(service, settings, clock)
        assert all_ == 2000
        assert in_place > 0.95 * all_

    @pytest.mark.parametrize("column", ["rotated_at", "generation", "last_ip"])
    def test_an_index_on_what_changes_would_end_that(
        self, service: TokenService, settings: Settings, clock: Clock, column: str
    ) -> None:
        """The test above sees what it is there to see."""
        run_sql(settings, f"CREATE INDEX mine ON refresh_tokens ({column})")
        all_, in_place = self.count(service, settings, clock)
        assert in_place < 0.5 * all_
