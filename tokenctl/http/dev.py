"""What `serve --dev` has beside: demo user, page, a clock to advance, faults on demand, a stream of events.

None of it exists without `--dev`, and `--dev` runs on no database that was not made for it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta, Struct, structs
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tokenctl import TokenService, initialise
from tokenctl.errors import Busy, ConfigInvalid, TokenctlError, UserExists
from tokenctl.http import problems
from tokenctl.http.endpoint import JSON, NO_STORE, PROBLEM, Endpoint
from tokenctl.http.files import Files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tokenctl import Event, Settings
    from tokenctl.http.call import Call
    from tokenctl.http.site import Site

DEMO_USER = "demo"
#: Known to everybody: a database with this user is refused without --dev.
DEMO_PASSWORD = "otters at dawn"  # noqa: S105 - it is public by design
_POLL = 0.25
#: What a listener has not been told yet, before the oldest is forgotten.
_MOST_WAITING = 1_000
_PAGE = Files(
    Path(__file__).parent.parent / "console" / "page",
    policy=b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'",
)


class Clock:
    """The system's clock, or the one of the sample, plus what was added to it; µs."""

    def __init__(self, start: int | None = None) -> None:
        self.offset = 0 if start is None else start - time.time_ns() // 1_000

    def __call__(self) -> int:
        return time.time_ns() // 1_000 + self.offset


def open_service(settings: Settings, hashing: Executor, *, actor: str) -> tuple[TokenService, Clock]:
    """The service on a development database, which is made on the spot, with the demo user in it.

    Raises ConfigInvalid for a database that is for real use.
    """
    initialise(settings, actor=actor, development=True)
    with TokenService(settings, actor=actor) as service:
        if not (service.is_development or service.is_sample):
            raise ConfigInvalid(
                f"{service.database} was not made by --dev, which adds a user with a public password",
                hint="serve --dev --database another.db, or serve without --dev",
            )
        clock = Clock(service.now() if service.is_sample else None)
    service = TokenService(settings, clock=clock, hashing=hashing, actor=actor)
    try:
        service.create_user(DEMO_USER, DEMO_PASSWORD)
    except UserExists:
        pass
    except BaseException:
        service.close()
        raise
    return service, clock


# --- the clock and the faults ----------------------------------------------------------------


class Advance(Struct, forbid_unknown_fields=True):
    """How far the server's clock goes ahead."""

    seconds: Annotated[int, Meta(ge=1, le=31_536_000)]


class ClockState(Struct):
    """`now` in seconds since the epoch; `offset` is how far it is from the machine's clock."""

    now: int
    offset: int


class Fault(Struct, forbid_unknown_fields=True):
    """What happens to the next `count` requests of `path`; a new one takes the place of the one before."""

    kind: Literal["drop", "unavailable", "delay", "none"]
    count: Annotated[int, Meta(ge=1, le=1000)] = 1
    milliseconds: Annotated[int, Meta(ge=0, le=60_000)] = 2000
    path: Annotated[str, Meta(max_length=200)] = "/auth/refresh"


class DevState(Struct):
    """What the page has to know of its server."""

    clock: ClockState
    fault: Fault
    cookies: bool
    issuer: str
    audience: str
    username: str
    password: str


class Faults:
    """ASGI around all routes: does to requests what was asked for."""

    def __init__(self, app: ASGIApp, controls: Controls) -> None:
        self._app = app
        self._controls = controls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A preflight is no request of the application's.
        asked_for = scope["type"] == "http" and scope["method"] != "OPTIONS"
        fault = self._controls.take_fault(scope["path"]) if asked_for else None
        if fault is None:
            await self._app(scope, receive, send)
        elif fault.kind == "delay":
            await asyncio.sleep(fault.milliseconds / 1000)
            await self._app(scope, receive, send)
        elif fault.kind == "unavailable":
            await _unavailable(scope, send)
        else:
            await self._app(scope, receive, _only_the_head(send))
            await _cut(receive)


def _only_the_head(send: Send) -> Send:
    """The answer is made, what it reports is committed, and nobody gets it.

    Its head goes out, without the cookie: where a browser has no byte of an answer on a connection that it
    had used before, it repeats the request by itself, and no page ever learns of it.
    """

    async def head(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message["headers"] if each[0] != b"set-cookie"]
            await send({**message, "headers": kept})

    return head


async def _cut(receive: Receive) -> None:
    # ASGI has no way to close a connection in the middle of an answer; this is uvicorn's own transport. By
    # `receive`, since the CORS middleware puts a `send` of its own in place of uvicorn's.
    cycle: Any = getattr(receive, "__self__", None)
    cycle.transport.flush()
    await asyncio.sleep(0.01)  # uvloop writes at the end of its turn
    cycle.transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unavailable(scope: Scope, send: Send) -> None:
    error, request_id = Busy("a fault on demand"), secrets.token_hex(8)
    oauth = scope["path"].startswith("/oauth/")
    status, body = problems.oauth_error(error) if oauth else problems.problem(error, request_id)
    headers = [
        (b"content-type", JSON if oauth else PROBLEM),
        (b"cache-control", NO_STORE),
        (b"x-content-type-options", b"nosniff"),
        (b"x-request-id", request_id.encode()),
        (b"content-length", b"%d" % len(body)),
        *problems.headers_for(error, under_oauth=oauth, retry_after=1),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Controls:
    """The clock and the faults of one server, their endpoints, and the page that has buttons for them."""

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self._settings = settings
        self._fault = Fault(kind="none")
        self._left = 0

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application with the faults in front, under the names of this machine alone."""
        # Another name that leads to 127.0.0.1 makes somebody else's page one of our origin (DNS rebinding).
        names = ["localhost", "127.0.0.1", "[::1]", self._settings.host]
        names.append(urlsplit(self._settings.issuer).hostname or "localhost")
        return TrustedHostMiddleware(Faults(app, self), names, www_redirect=False)

    def take_fault(self, path: str) -> Fault | None:
        """The fault that a request of that path gets, which is then one less."""
        if not self._left or path != self._fault.path:
            return None
        self._left -= 1
        return self._fault

    async def advance_clock(self, _call: Call, body: Advance) -> ClockState:
        """Let the server's clock go ahead, to see tokens expire. It never goes back: start a new database."""
        self._clock.offset += body.seconds * 1_000_000
        return self._clock_state()

    async def set_fault(self, _call: Call, body: Fault) -> Fault:
        """Let the next requests fail.

        `drop`: the request is done and committed, and the connection is cut in the middle of the answer.
        `unavailable`: 503 with Retry-After. `delay`: it is done later. `none`: all well again.
        """
        self._fault, self._left = body, 0 if body.kind == "none" else body.count
        return body

    async def state(self, _call: Call, _: None) -> DevState:
        """The clock, the fault that waits, and what is public here: the demo user and its password."""
        fault = structs.replace(self._fault, count=self._left) if self._left else Fault(kind="none")
        return DevState(
            clock=self._clock_state(),
            fault=fault,
            cookies=self._settings.cookies,
            issuer=self._settings.issuer,
            audience=self._settings.effective_audience,
            username=DEMO_USER,
            password=DEMO_PASSWORD,
        )

    def _clock_state(self) -> ClockState:
        return ClockState(now=self._clock() // 1_000_000, offset=self._clock.offset // 1_000_000)

    def endpoints(self) -> list[Endpoint]:
        return [
            _PAGE.endpoint("/", "The developer's page"),
            _PAGE.endpoint("/page/{file}", "A file of the developer's page"),
            Endpoint(
                method="GET",
                path="/dev/state",
                handler=self.state,
                summary="Clock, fault and demo user",
                tag="dev",
                response=DevState,
                response_example={
                    "clock": {"now": 1773457200, "offset": 0},
                    "fault": {"kind": "none", "count": 1, "milliseconds": 2000, "path": "/auth/refresh"},
                    "cookies": False,
                    "issuer": "http://localhost:8460",
                    "audience": "http://localhost:8460",
                    "username": DEMO_USER,
                    "password": DEMO_PASSWORD,
                },
            ),
            Endpoint(
                method="POST",
                path="/dev/clock",
                handler=self.advance_clock,
                summary="Advance the server's clock",
                tag="dev",
                request=Advance,
                response=ClockState,
                request_example={"seconds": 3600},
                response_example={"now": 1773457200, "offset": 3600},
            ),
            Endpoint(
                method="POST",
                path="/dev/faults",
                handler=self.set_fault,
                summary="Cause a fault",
                tag="dev",
                request=Fault,
                response=Fault,
                request_example={"kind": "drop"},
                response_example={"kind": "drop", "count": 1, "milliseconds": 2000, "path": "/auth/refresh"},
            ),
        ]


# --- the stream of events --------------------------------------------------------------------


class EventStream:
    """GET /dev/events: the audit log as it grows, as server-sent events, until either side ends it.

    And each answer to a refresh, since a rotation is no event of the log. It begins with the next event; or
    behind the one whose id a page that comes again has in `after`, or a browser that connects again in
    `Last-Event-ID`.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._closed = False
        #: Of those that listen now, what each has still to be told.
        self._waiting: list[deque[bytes]] = []
        site.watch(self._note)

    def _note(self, line: Mapping[str, Any]) -> None:
        """A line of the log of requests."""
        if line["route"] != "/auth/refresh":
            return
        told = {name: line.get(name) for name in ("status", "code", "reason", "token_id")}
        told["at"] = self._site.service.now() // 1_000_000
        for waiting in self._waiting:
            waiting.append(b"event: refresh\ndata: %s\n\n" % msgspec.json.encode(told))

    def close(self) -> None:
        """End every stream soon: the server stops, and none would end by itself."""
        self._closed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            if scope["method"] != "HEAD":
                # A server that is busy, or its database away: the browser comes again by itself.
                with suppress(TokenctlError):
                    await self._stream(send, gone, _last_seen(scope))
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, send: Send, gone: asyncio.Future[None], last: int | None) -> None:
        audit, pool = self._site.service.audit, self._site.database
        newest = await pool.run(audit.newest_id)
        # Of a database before this one the caller may have larger ids.
        last = newest if last is None else min(last, newest)
        # With an id, so that who is cut off before the first event comes again from here.
        waiting = deque([b"id: %d\nevent: listening\ndata:\n\n" % last], _MOST_WAITING)
        self._waiting.append(waiting)
        try:
            while not gone.done() and not self._closed:
                for event in await pool.run(audit.after, last):
                    assert event.id is not None
                    last = event.id
                    waiting.append(_sse(event))
                while waiting:
                    await send({"type": "http.response.body", "body": waiting.popleft(), "more_body": True})
                await asyncio.wait([gone], timeout=_POLL)
        finally:
            self._waiting = [each for each in self._waiting if each is not waiting]


def _last_seen(scope: Scope) -> int | None:
    """The id of the last event that the caller has; None when it says none, or no number."""
    said = [value for name, value in scope["headers"] if name == b"last-event-id"]
    said += [value for name, value in parse_qsl(scope["query_string"]) if name == b"after"]
    return int(said[0]) if said and re.fullmatch(rb"[0-9]{1,18}", said[0]) else None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _sse(event: Event) -> bytes:
    data = {
        "id": event.id,
        "at": event.at // 1_000_000,
        "type": event.type,
        "user": event.user_name,
        "token_id": event.token_id,
        "client_id": event.client_id,
        "ip": event.ip_text,
        "reason": event.reason,
        "data": event.data,
    }
    return b"id: %d\nevent: audit\ndata: %s\n\n" % (event.id or 0, msgspec.json.encode(data))
