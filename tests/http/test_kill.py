"""What is left after `kill -9`, what SIGTERM finishes, and how two servers agree on one file.

The clients behave as good ones do: who gets no answer presents the same string again. TOKENCTL_KILLS says how
often the server is killed.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import cli
from tests.conftest import eventually
from tests.http.live import PASSWORD, Reply
from tests.http.spawned import ISSUER, exchange, serving
from tokenctl import Settings, TokenService

KILLS = int(os.environ.get("TOKENCTL_KILLS", "6"))
CLIENTS = 8
#: Without an answer: the server is away, or died over the request.
NO_ANSWER = (OSError, http.client.HTTPException)
SERVE = ("--database", "tokens.db", "--issuer", ISSUER)


@dataclass
class Client:
    """One chain; `ports` are asked in turn. Its strings of every answer are kept, in order."""

    ports: list[int]
    strings: list[str]
    answers: Counter[tuple[int, int]] = field(default_factory=Counter)
    unanswered: int = 0
    refused: Reply | None = None
    _connections: dict[int, http.client.HTTPConnection] = field(default_factory=dict)

    def refresh(self) -> bool:
        """Present the string that it holds until there is an answer to go on with; False once refused."""
        body = {"refresh_token": self.strings[-1]}
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            port = self.ports[self.answers.total() % len(self.ports)]
            try:
                reply = self.ask(port, "/auth/refresh", body)
            except NO_ANSWER:
                self.unanswered += 1
                time.sleep(0.02)
                continue
            if reply.status == 200:
                self.strings.append(reply.json["refresh_token"])
                return True
            if reply.status != 503:
                self.refused = reply
                return False
            time.sleep(0.05)
        pytest.fail("no answer for a minute")

    def ask(self, port: int, path: str, body: dict[str, str]) -> Reply:
        connection = self._connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            self._connections[port] = connection
        try:
            reply = exchange(connection, "POST", path, body)
        except NO_ANSWER:
            self.close()
            raise
        self.answers[port, reply.status] += 1
        return reply

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


@pytest.fixture
def authority(settings: Settings) -> Iterator[TokenService]:
    """The same database from beside the server, on the machine's own clock."""
    with TokenService(settings) as service:
        service.create_user("ada")
        yield service


def chain(authority: TokenService, *ports: int, user: str = "ada") -> Client:
    return Client(list(ports), [authority.issue(user).refresh_token])


class Load:
    """Threads that each do one thing again and again until the end of the block."""

    def __init__(self, *actions: Callable[[], bool]) -> None:
        self.stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(action,)) for action in actions]

    def _run(self, action: Callable[[], bool]) -> None:
        try:
            while not self.stop.is_set() and action():
                pass
        except BaseException as error:
            self._errors.append(error)
            raise

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        assert self._errors == []


def assert_nothing_was_lost(authority: TokenService, clients: list[Client]) -> None:
    """Each chain is as long as the answers of its client say, and nobody was taken for a thief."""
    assert [client.refused for client in clients] == [None] * len(clients)
    for client in clients:
        shown = authority.inspect(client.strings[-1])
        assert shown.state == "live"
        # A retry got the very string that the lost answer had, so each string is one generation.
        assert shown.token.generation == len(set(client.strings)) - 1
    assert authority.audit.tail(types=["token.reuse"]) == []
    assert authority.audit.tail(types=["database.behind"]) == []


# kill -9


@dataclass
class Leaver:
    """Rotates each login once and logs out of it; whoever got the 204 for it is out for good."""

    client: Client
    logins: Iterator[str]
    out: list[str] = field(default_factory=list)

    def __call__(self) -> bool:
        string = next(self.logins, None)
        if string is None:
            return False
        self.client.strings = [string]
        assert self.client.refresh()
        self._answer_to("/auth/logout", 204)
        self.out.append(self.client.strings[-1])
        self._answer_to("/auth/refresh", 401)
        time.sleep(0.05)
        return True

    def _answer_to(self, path: str, status: int) -> None:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            with suppress(*NO_ANSWER):
                reply = self.client.ask(
                    self.client.ports[0], path, {"refresh_token": self.client.strings[-1]}
                )
                if reply.status != 503:
                    assert reply.status == status, reply.body
                    return
            time.sleep(0.02)
        pytest.fail("no answer for a minute")


@pytest.mark.timeout(300 + 15 * KILLS)
def test_kill_9_under_load_loses_nothing_that_was_acknowledged(
    authority: TokenService, tmp_path: Path
) -> None:
    chance = random.Random(9)
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, *SERVE))
        port = server.port
        clients = [chain(authority, port) for _ in range(CLIENTS)]
        logins = [authority.issue("ada").refresh_token for _ in range(40 * KILLS)]
        leaver = Leaver(Client([port], [""]), iter(logins))
        reached = [len(clients)]

        def progress() -> int:
            return sum(len(client.strings) for client in clients)

        with Load(*(client.refresh for client in clients), leaver):
            for _ in range(KILLS):
                eventually(lambda: progress() > reached[-1])
                time.sleep(chance.uniform(0, 0.6))
                server.kill()
                reached.append(progress())
                server = stack.enter_context(serving(tmp_path, *SERVE, port=port))
            time.sleep(0.5)
        for client in [*clients, leaver.client]:
            client.close()
    assert_nothing_was_lost(authority, clients)
    assert leaver.out
    for string in leaver.out:
        assert authority.inspect(string).state == "revoked"
    # The kills hit: some requests got no answer.
    assert sum(client.unanswered for client in clients) >= KILLS


# SIGTERM

#: So that some are on their way for a good while, whatever the moment.
SLOW_LOGINS = """
import time
from tokenctl import TokenService
login = TokenService.login
def slow_login(*args, **kwargs):
    time.sleep(1)
    return login(*args, **kwargs)
TokenService.login = slow_login
"""


def test_sigterm_under_load_answers_what_was_sent_before_it(authority: TokenService, tmp_path: Path) -> None:
    authority.create_user("bob", PASSWORD)
    cut_off: list[tuple[float, BaseException]] = []
    answered: Counter[int] = Counter()
    with serving(tmp_path, *SERVE, prelude=SLOW_LOGINS) as server:
        clients = [chain(authority, server.port) for _ in range(CLIENTS)]
        people = [Client([server.port], [""]) for _ in range(4)]

        def ask(client: Client, path: str, body: dict[str, str]) -> bool:
            sent = time.monotonic()
            try:
                reply = client.ask(server.port, path, body)
            except NO_ANSWER as error:
                cut_off.append((sent, error))
                return False
            answered[reply.status] += 1
            if path == "/auth/refresh":
                client.strings.append(reply.json["refresh_token"])
            return True

        def refresher(client: Client) -> Callable[[], bool]:
            return lambda: ask(client, "/auth/refresh", {"refresh_token": client.strings[-1]})

        def logger_in(client: Client) -> Callable[[], bool]:
            return lambda: ask(client, "/auth/login", {"username": "bob", "password": PASSWORD})

        with Load(*map(refresher, clients), *map(logger_in, people)):
            time.sleep(1)
            stopped = time.monotonic()
            code = server.stop()
        for client in [*clients, *people]:
            client.close()
    assert code == 0
    assert set(answered) == {200}
    assert len(cut_off) == len(clients) + len(people)
    assert [error for sent, error in cut_off if sent < stopped] == []
    assert_nothing_was_lost(authority, clients)


# two servers on one file


def test_two_servers_on_one_file_agree(authority: TokenService, settings: Settings, tmp_path: Path) -> None:
    authority.create_user("eve")
    with serving(tmp_path, *SERVE) as one, serving(tmp_path, *SERVE) as two:
        here, there = one.port, two.port
        clients = [
            *(chain(authority, here) for _ in range(2)),
            *(chain(authority, there) for _ in range(2)),
            *(chain(authority, here, there) for _ in range(2)),
        ]
        thieves = [chain(authority, here, there, user="eve"), chain(authority, there, user="eve")]
        with Load(*(client.refresh for client in [*clients, *thieves])):
            time.sleep(1)
            done = cli.run(
                *("revoke", "--user", "eve", "--yes", "--reason", "INC-7"),
                env={"TOKENCTL_DATABASE": settings.database},
            )
            held = [len(client.strings) for client in thieves]
            time.sleep(1)
        for client in [*clients, *thieves]:
            client.close()
    assert "revoked 2" in done.stdout, done.stderr
    assert_nothing_was_lost(authority, clients)
    # One answer may have been on its way when the command ended.
    for client, before in zip(thieves, held, strict=True):
        assert client.refused is not None
        assert client.refused.status == 401
        assert len(client.strings) <= before + 1
        assert authority.inspect(client.strings[-1]).state == "revoked"
    answers = sum((client.answers for client in clients), Counter[tuple[int, int]]())
    assert set(answers) == {(here, 200), (there, 200)}
    assert min(answers.values()) > 20
    assert sum(client.unanswered for client in clients) == 0
