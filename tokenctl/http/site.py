"""What all requests share: the service, its threads, the throttle, the cookie, the log and the metrics.

One Site lives from start to stop of a server. Handlers reach everything through it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tokenctl.errors import Busy, InvalidToken, Throttled
from tokenctl.http.logs import WriteLine, masked
from tokenctl.http.metrics import Metrics
from tokenctl.http.pools import HASHING_THREADS, Pool
from tokenctl.http.problems import Forbidden, Headers
from tokenctl.http.rotations import Rotations
from tokenctl.http.throttle import Throttle

if TYPE_CHECKING:
    from tokenctl import TokenPair, TokenService
    from tokenctl.http.call import Call
    from tokenctl.service.access import Access

#: Of a page that a developer serves to himself, on whatever port.
LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")
#: Passwords that are checked or wait for it; the next caller is told to come back.
MAX_LOGINS = 16
#: How long (s) a login that is turned away waits for its answer.
_REFUSAL_DELAY = 0.2


class Site:
    """Made before the server starts; `start` and `stop` run on its event loop."""

    rotations: Rotations

    def __init__(
        self, service: TokenService, hashing: Executor, write_line: WriteLine, *, dev: bool = False
    ) -> None:
        self.service = service
        self.settings = service.settings
        self.dev = dev
        self.metrics = Metrics()
        self.throttle = Throttle(
            account_limit=self.settings.account_limit, address_limit=self.settings.address_limit
        )
        self._hashing = hashing
        #: For calls of the database that are no rotation.
        self.database = Pool("database", threads=8, limit=256)
        #: For calls that wait for a password's hash: no other call waits behind them. One more thread than
        #: hash, so that one writes meanwhile; more would only compete for the writer's turn.
        self.logins = Pool("logins", threads=HASHING_THREADS + 1, limit=MAX_LOGINS)
        self.metrics.watch("database", lambda: self.database.held)
        self.metrics.watch("logins", lambda: self.logins.held)
        # A client that waits this long and retries is still well inside the grace.
        self.retry_after = max(1, min(2, int(self.settings.grace.total_seconds() // 4)))
        parts = urlsplit(self.settings.issuer)
        self._origins = {*self.settings.cors_origins, f"{parts.scheme}://{parts.netloc}"}
        self._hearers = [write_line]

    async def start(self) -> None:
        """Begin to take rotations."""
        self.rotations = Rotations(
            partial(self.service.rotate_many, wait=False),
            self.service.rotate_request,
            observe_batch=self.metrics.observe_batch,
        )

    async def stop(self) -> None:
        """Finish what waits, then close the database."""
        await self.rotations.close()
        self.database.close()
        self.logins.close()
        self._hashing.shutdown()
        self.service.close()

    # --- callers ---

    @asynccontextmanager
    async def slow_refusals(self) -> AsyncIterator[None]:
        """Let a caller who may not try, or for whom there is no room, wait a little before it is told.

        Without this a program that never waits collects thousands of refusals a second, on the event loop
        that the refreshes need.
        """
        try:
            yield
        except (Throttled, Busy):
            await asyncio.sleep(_REFUSAL_DELAY)
            raise

    async def access(self, call: Call) -> Access:
        """Who the access token is of; its login lives. Raises CredentialsMissing, InvalidAccessToken."""
        access = await self.database.run(self.service.check_access, call.bearer())
        call.user_id, call.token_id, call.client_id = access.user_id, access.token_id, access.client_id
        return access

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether pages of that origin may act for a user."""
        return origin in self._origins or (self.dev and LOCAL_ORIGIN.fullmatch(origin) is not None)

    def demand_own_page(self, call: Call) -> None:
        """In cookie mode: raises Forbidden unless one of our own pages sent this.

        A form of another site can send neither the header nor another Origin than its own.
        """
        if not self.settings.cookies:
            return
        if call.headers.get(b"x-tokenctl") != b"1":
            raise Forbidden("with cookies this needs the header X-Tokenctl: 1")
        if not self.is_allowed_origin(call.headers.get(b"origin", b"").decode("latin-1")):
            raise Forbidden("with cookies this needs an Origin that is allowed (cors_origins)")

    # --- the cookie ---

    @property
    def cookie_name(self) -> str:
        return "tokenctl" if self._plain_cookie else "__Host-tokenctl"

    @property
    def _plain_cookie(self) -> bool:
        # A browser keeps a Secure cookie from http://localhost in some browsers only.
        return self.dev and self.settings.issuer.startswith("http:")

    def cookie(self, pair: TokenPair | None) -> Headers:
        """The Set-Cookie of a refresh token, or with None the one that deletes it; none without cookies."""
        if not self.settings.cookies:
            return []
        value, age = "", 0
        if pair is not None:
            value = pair.refresh_token
            age = max(0, pair.refresh_expires_at - pair.issued_at) // 1_000_000
        secure = "" if self._plain_cookie else "; Secure"
        text = f"{self.cookie_name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"
        return [(b"set-cookie", text.encode())]

    def refresh_token_of(self, call: Call) -> str:
        """The refresh token in the request's cookie. Raises InvalidToken, as for any that is of no use."""
        for part in call.headers.get(b"cookie", b"").decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie_name and value:
                return value
        raise InvalidToken("there is no refresh token in the cookie")

    # --- watching ---

    def observe(self, call: Call, status: int, seconds: float) -> None:
        """Log and count a request that was answered."""
        route = call.route or "none"
        self.metrics.request(route, status, seconds)
        line = {
            "request_id": call.request_id,
            "method": call.scope["method"][:16],
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 2),
            "ip": call.ip,
        }
        for name in ("code", "reason", "user_id", "token_id", "client_id", "detail"):
            if (value := getattr(call, name)) is not None:
                line[name] = value
        if call.client_id is not None:  # what the caller said, and some say their secret
            line["client_id"] = masked(call.client_id[:128])
        for hear in self._hearers:
            hear(line)

    def watch(self, hear: WriteLine) -> None:
        """Call it with each line of the log of requests, too."""
        self._hearers.append(hear)
