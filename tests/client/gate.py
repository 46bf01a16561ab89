"""A server in front of `tokenctl serve` that counts, holds and falsifies what the client sends.

Everything goes on to the real server but `/api…`, which is somebody's own API, and what a test has put in the
place of an answer. Real sockets: the client does not know of it.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.http.spawned import Spawned


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 0

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    @property
    def fields(self) -> Any:
        return json.loads(self.body)


@dataclass
class Said:
    """An answer that a test has prepared; status 0 hangs up instead."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"


class Gate:
    """`open` lets refreshes through; a test that clears it holds them, and sees them in `waiting`."""

    def __init__(self, server: Spawned) -> None:
        self.server = server
        self.seen: list[Seen] = []
        self.instead: dict[str, deque[Said]] = {}
        #: What arrives at /api is answered 401 unless its token is none of these.
        self.refused: set[str | None] = set()
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Semaphore(0)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.open.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def say(self, path: str, *answers: Said) -> None:
        """What the next requests of that path are answered, without the real server."""
        self.instead.setdefault(path, deque()).extend(answers)

    def to(self, path: str) -> list[Seen]:
        """The requests of that path."""
        return [each for each in self.seen if each.path == path]

    @property
    def refreshes(self) -> int:
        return len(self.to("/auth/refresh"))

    def advance(self, seconds: int) -> None:
        """Let the server's clock go ahead."""
        assert self.server.post("/dev/clock", {"seconds": seconds}).status == 200

    def fault(self, kind: str, count: int = 1) -> None:
        """What `serve --dev` does to the next refreshes."""
        assert self.server.post("/dev/faults", {"kind": kind, "count": count}).status == 200

    def rotations(self) -> dict[str, int]:
        """How often the server has rotated, given a successor again, and refused."""
        lines = self.server.get("/metrics").body.decode().splitlines()
        name = "tokenctl_rotations_total"
        return {
            line.split('"')[1]: int(float(line.split()[-1])) for line in lines if line.startswith(name + "{")
        }

    def answer(self, seen: Seen) -> Said:
        if self.instead.get(seen.path):
            return self.instead[seen.path].popleft()
        if seen.path == "/auth/refresh" and not self.open.is_set():
            self.waiting.release()
            self.open.wait(30)
        if seen.path.startswith("/api"):
            return Said(401 if seen.token in self.refused else 200)
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)) as connection:
            kept = {
                name: value
                for name, value in seen.headers.items()
                if name in ("content-type", "authorization", "user-agent")
            }
            connection.request(seen.method, seen.path, seen.body or None, kept)
            try:
                reply = connection.getresponse()
            except (http.client.HTTPException, ConnectionError):
                return Said(0)
            headers = {
                name: value
                for name, value in reply.getheaders()
                if name.lower() in ("content-type", "retry-after", "www-authenticate")
            }
            return Said(reply.status, headers, reply.read())


def _handler(gate: Gate) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.command, self.path, headers, self._body(headers))
            gate.seen.append(seen)
            said = gate.answer(seen)
            seen.status = said.status
            if said.status == 0:
                return
            self.send_response(said.status)
            for name, value in {**said.headers, "Content-Length": str(len(said.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if said.status != 204:
                self.wfile.write(said.body)

        do_GET = do_POST = do_PUT = do_DELETE = do  # noqa: N815 - the names that http.server looks for

        def _body(self, headers: dict[str, str]) -> bytes:
            if headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(headers.get("content-length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of http.server
            pass

    return Handler


@contextmanager
def gate_before(server: Spawned) -> Iterator[Gate]:
    gate = Gate(server)
    try:
        yield gate
    finally:
        gate.close()
