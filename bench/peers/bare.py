"""The least that an answer over HTTP costs: an ASGI application without work, on our server's own settings.

    python -m bench.peers.bare --port N --size BYTES

It reads the request's body, which no rotation can leave out, and answers one of that size, which has the
form of a token pair, so that the load generator's work is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPResponseStartEvent, Scope


class Bare:
    """One answer for everything."""

    def __init__(self, size: int) -> None:
        empty = json.dumps({"refresh_token": "x" * 89, "access_token": ""}).encode()
        body = empty[:-2] + b"x" * max(0, size - len(empty)) + empty[-2:]
        self._start: HTTPResponseStartEvent = {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
            "trailers": False,
        }
        self._body = body

    async def __call__(self, _scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await receive()
        await send(self._start)
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    given = parser.parse_args()
    config = uvicorn.Config(
        Bare(given.size),
        host="127.0.0.1",
        port=given.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
