"""A PostgreSQL database of tokenctl, servers and commands on it, and clients that outlive its outages.

Owns what tests of several processes on one database share. The server underneath is `tests.postgres`, the
clients' behaviour is that of `test_kill`: who gets no pair presents the same string again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests import cli
from tests.http.live import Reply
from tests.http.spawned import ISSUER, Spawned, serving
from tests.http.test_kill import Client
from tests.postgres import Server
from tokenctl import Settings, TokenService

#: With these a commit that returned outlives the end of every process of the server.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
#: No answer may take longer (s), whatever becomes of the database.
BOUND = 12.0
#: A quarter of the default grace (s): who waits this long, three times, is still inside of it.
LONGEST_WAIT = 7
#: Connections of one `tokenctl serve` at most: as many as it has threads that use any.
CONNECTIONS = 16


@dataclass(frozen=True)
class Database:
    """One database, its key in `directory`; `url` may name more hosts than one."""

    url: str
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"TOKENCTL_DATABASE": self.url, "TOKENCTL_KEY_FILE": str(self.directory / "tokenctl.key")}

    @property
    def settings(self) -> Settings:
        return Settings(
            database=self.url,
            key_file=str(self.directory / "tokenctl.key"),
            account_limit="none",
            address_limit="none",
        )

    def tokenctl(self, *argv: str) -> str:
        """What an operator's command prints; it has to succeed."""
        done = cli.run(*argv, env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def authority(self) -> Iterator[TokenService]:
        """The same database from beside the servers, with the user ada."""
        with TokenService(self.settings) as service:
            service.create_user("ada")
            yield service

    @contextmanager
    def serving(self, *args: str) -> Iterator[Spawned]:
        """`tokenctl serve` on it."""
        with serving(self.directory, "--issuer", ISSUER, *args, env=self.environment) as server:
            yield server

    def alarms(self) -> str:
        """The reuse alarms, one a line: there must be none."""
        return self.tokenctl("audit", "tail", "--type", "token.reuse", "-o", "jsonl")


def initialised(url: str, directory: Path) -> Database:
    """What `tokenctl init` makes of an empty database."""
    database = Database(url, directory)
    database.tokenctl("init")
    return database


@dataclass
class Steady(Client):
    """A client that notes what its answers must keep to: how long they took, when to come back."""

    slowest: float = 0.0
    #: Every Retry-After that came with a 503.
    waits: set[int] = field(default_factory=set)

    def ask(self, port: int, path: str, body: dict[str, str]) -> Reply:
        began = time.monotonic()
        reply = super().ask(port, path, body)
        self.slowest = max(self.slowest, time.monotonic() - began)
        if reply.status == 503:
            self.waits.add(int(reply.headers["retry-after"]))
        return reply


@dataclass
class Onlooker:
    """Asks the same thing with GET again and again; counts the answers."""

    server: Spawned
    path: str
    token: str | None = None
    statuses: dict[int, int] = field(default_factory=dict)
    slowest: float = 0.0

    def __call__(self) -> bool:
        began = time.monotonic()
        reply = self.server.get(self.path, self.token)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.statuses[reply.status] = self.statuses.get(reply.status, 0) + 1
        if reply.status == 503:
            assert 1 <= int(reply.headers["retry-after"]) <= LONGEST_WAIT
        time.sleep(0.1)
        return True


def steady(authority: TokenService, count: int, *ports: int, user: str = "ada") -> list[Steady]:
    """So many clients, each with a login of its own."""
    return [Steady(list(ports), [authority.issue(user).refresh_token]) for _ in range(count)]


def went_on(clients: list[Steady]) -> Callable[[], bool]:
    """Whether each of them has got another pair since now."""
    held = [len(client.strings) for client in clients]
    return lambda: all(
        len(client.strings) > before or client.refused for client, before in zip(clients, held, strict=True)
    )


def assert_answered_well(clients: list[Steady]) -> None:
    """Every request had its answer, in time; it was a pair, or said when to come back."""
    for client in clients:
        assert client.unanswered == 0
        assert {status for _, status in client.answers} <= {200, 503}
        assert client.waits <= set(range(1, LONGEST_WAIT + 1))
        assert client.slowest < BOUND


class Connections:
    """Counts in a thread how many connections of tokenctl there are; an outage counts as none."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.most = 0

    def now(self) -> int:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tokenctl'"
        found: int = self._server.execute(sql)[0][0]
        return found

    def __enter__(self) -> Connections:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            with suppress(psycopg.Error):
                self.most = max(self.most, self.now())
