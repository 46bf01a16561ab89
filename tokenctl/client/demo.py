"""One tab of `tokenctl demo`: a program such as yours, which makes calls and leaves the tokens to the client.

    python -m tokenctl.client.demo URL FILE

With the other tabs it shares the token file, and nothing else. A line of JSON on stdin is a command, lines of
JSON on stdout say what happens, and the end of stdin is its end. No part of a token is in what it says.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections import Counter
from typing import Any

import httpx

from tokenctl.client import FileStore, RefreshFailed, TokenAuth, TokenClientError

#: How often a call is made while the client says that it may be repeated.
_ATTEMPTS = 3
#: For one step of a call (s), waiting for a connection included.
_TIMEOUT = 30.0


class Tab:
    """One program with one login, which others share."""

    def __init__(self, url: str, file: str) -> None:
        self._url = url
        self._repeated = 0
        self._auth = TokenAuth(
            url, store=FileStore(file), on_end=lambda: say({"ended": True}), connect=self._connect
        )

    def _connect(self) -> httpx.Client:
        return httpx.Client(timeout=_TIMEOUT, event_hooks={"request": [_tell_of_refresh]})

    def log_in(self, name: str, password: str) -> dict[str, Any]:
        """Raises TokenClientError."""
        self._auth.login(name, password)
        return {"logged_in": True}

    def burst(self, calls: int, connections: int) -> dict[str, Any]:
        """So many calls at once, over so many connections at most; how many of them came to what."""
        self._repeated = 0
        outcomes = Counter(asyncio.run(self._burst(calls, connections)))
        for thread in set(threading.enumerate()) - {threading.current_thread()}:
            thread.join()  # the calls have their answer before on_end is called
        succeeded = outcomes.pop("", 0)
        return {"succeeded": succeeded, "repeated": self._repeated, "failures": dict(outcomes)}

    async def _burst(self, calls: int, connections: int) -> list[str]:
        limits = httpx.Limits(max_connections=connections)
        async with httpx.AsyncClient(
            base_url=self._url, auth=self._auth, timeout=_TIMEOUT, limits=limits
        ) as http:
            return await asyncio.gather(*(self._call(http) for _ in range(calls)))

    async def _call(self, http: httpx.AsyncClient, attempts: int = _ATTEMPTS) -> str:
        """What went wrong with a call; nothing when it succeeded."""
        try:
            response = await http.get("/auth/me")
        except RefreshFailed as error:
            if attempts == 1:
                return type(error).__name__
            # The login is kept: this is what the client asks of a program.
            self._repeated += 1
            await asyncio.sleep(error.retry_after)
            return await self._call(http, attempts - 1)
        except (TokenClientError, httpx.HTTPError) as error:
            return type(error).__name__
        return "" if response.status_code == 200 else f"HTTP {response.status_code}"


def _tell_of_refresh(request: httpx.Request) -> None:
    if request.url.path == "/auth/refresh":
        say({"refreshing": True})


def say(what: dict[str, Any]) -> None:
    """One line, in one piece: threads of the client speak as well."""
    os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


def main(url: str, file: str) -> None:
    tab = Tab(url, file)
    say({"ready": True})
    for line in sys.stdin:
        match json.loads(line):
            case {"log_in": [name, password]}:
                say(tab.log_in(name, password))
            case {"burst": calls, "connections": connections}:
                say(tab.burst(calls, connections))


if __name__ == "__main__":
    main(*sys.argv[1:])
