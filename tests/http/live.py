"""The server inside the test's own process: real sockets, a clock that the test moves, cheap hashes."""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.conftest import CHEAP, Clock
from tokenctl import Settings, TokenService
from tokenctl.http.app import make_app
from tokenctl.http.pools import hashing_executor
from tokenctl.http.server import listen, make_server
from tokenctl.http.site import Site

PASSWORD = "seven otters knit at dawn"


@dataclass(frozen=True)
class Reply:
    """An answer; `headers` by lower-case name, a repeated one joined by a comma."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Live:
    """A running server and what is inside of it."""

    port: int
    service: TokenService
    site: Site
    clock: Clock
    #: The line of each request, as the site has it written.
    log: list[Any]

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request on a connection of its own, exactly as given."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            return _reply(connection.getresponse())

    def raw(self, *parts: bytes) -> Reply | None:
        """What these bytes are answered with; None when the connection ended without an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have answered before it hung up
            with closing(http.client.HTTPResponse(connection)) as answer:
                try:
                    answer.begin()
                    return _reply(answer)
                except (http.client.HTTPException, ConnectionError):
                    return None

    def get(self, path: str, token: str | None = None, **headers: str) -> Reply:
        """GET, with an access token if there is one; `tokenctl_device="x"` is the header Tokenctl-Device."""
        return self.send("GET", path, None, _headers(headers, token))

    def delete(self, path: str, token: str | None = None, **headers: str) -> Reply:
        return self.send("DELETE", path, None, _headers(headers, token))

    def post(self, path: str, fields: Any, token: str | None = None, **headers: str) -> Reply:
        """POST as JSON."""
        all_headers = {"Content-Type": "application/json"} | _headers(headers, token)
        return self.send("POST", path, json.dumps(fields).encode(), all_headers)

    def form(self, path: str, fields: Any, **headers: str) -> Reply:
        """POST as a form; `fields` is a mapping, or pairs where a name comes twice."""
        all_headers = {"Content-Type": "application/x-www-form-urlencoded"} | _headers(headers, None)
        return self.send("POST", path, urlencode(fields).encode(), all_headers)

    def log_in(self, name: str = "ada", **fields: Any) -> dict[str, Any]:
        """The pair of a new login; the user is made when there is none."""
        reply = self.post("/auth/login", {"username": name, "password": PASSWORD, **fields})
        if reply.status == 401:
            self.service.create_user(name, PASSWORD)
            reply = self.post("/auth/login", {"username": name, "password": PASSWORD, **fields})
        assert reply.status == 200, reply.body
        pair: dict[str, Any] = reply.json
        return pair


def somebody() -> str:
    """A user's name that no other test has."""
    return f"somebody-{secrets.token_hex(6)}"


@contextmanager
def shared(
    new_database: Path, directory: Path, clock: Clock | None = None, *, dev: bool = False, **changes: Any
) -> Iterator[Live]:
    """A server for many tests, each of which has users of its own; without limits on attempts."""
    for file in new_database.iterdir():
        shutil.copy(file, directory)
    limits = {"account_limit": "none", "address_limit": "none"}
    settings = Settings(database=str(directory / "tokens.db"), **(limits | changes))
    with running(settings, clock or Clock(), dev=dev) as live:
        yield live


@contextmanager
def running(settings: Settings, clock: Clock, *, dev: bool = False) -> Iterator[Live]:
    """A server on these settings; the port is a free one and the issuer fits, whatever they say."""
    from dataclasses import replace

    settings = replace(settings, port=0)
    bound, url = listen(settings)
    settings = replace(settings, issuer=url if settings.issuer == "tokenctl" else settings.issuer)
    hashing = hashing_executor()
    service = TokenService(settings, clock=clock, passwords=CHEAP, hashing=hashing)
    # No thread of ours writes to what pytest puts in the place of stdout, and takes away again.
    log: list[dict[str, Any]] = []
    site = Site(service, hashing, log.append, dev=dev)
    started = threading.Event()
    server = make_server(make_app(site), settings, ready=started.set)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        assert started.wait(30)
        yield Live(bound.getsockname()[1], service, site, clock, log)
    finally:
        server.should_exit = True
        thread.join()


def _reply(answer: http.client.HTTPResponse) -> Reply:
    found: dict[str, str] = {}
    for name, value in answer.getheaders():
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return Reply(answer.status, found, answer.read())


def _headers(named: Mapping[str, str], token: str | None) -> dict[str, str]:
    found = {name.replace("_", "-"): value for name, value in named.items()}
    return found | ({"Authorization": f"Bearer {token}"} if token else {})
