"""What an endpoint is: declared as data, and run as ASGI.

Owns the way of every request: read, validate, call the handler, answer or say what was wrong, log, count.
Routes, validation and the OpenAPI document come from the same `Endpoint`. Does not know any route.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_to_bytes

import msgspec

from tokenctl import errors
from tokenctl.http import problems
from tokenctl.http.body import read_message
from tokenctl.http.call import Call
from tokenctl.http.problems import BadRequest, Headers, MethodNotAllowed, NoSuchRoute

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tokenctl.http.site import Site

JSON = b"application/json"
PROBLEM = b"application/problem+json"
NO_STORE = b"no-store"

_log = logging.getLogger("tokenctl.http")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler gives back when a plain message is not enough."""

    content: msgspec.Struct | bytes | None
    headers: Headers = field(default_factory=list)
    status: int | None = None
    #: None: the endpoint's.
    content_type: bytes | None = None


Result = Answer | msgspec.Struct | None
Handler = Callable[[Call, Any], Awaitable[Result]]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One route and method. The handler's docstring is its description in the OpenAPI document."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    tag: str
    request: type[msgspec.Struct] | None = None
    #: The body is a form, and errors are RFC 6749's.
    oauth: bool = False
    response: type[msgspec.Struct] | None = None
    status: int = 200
    #: What this route can answer with, beside what every route can.
    errors: tuple[type[errors.TokenctlError], ...] = ()
    credentials: Literal["bearer", "client"] | None = None
    cache: bytes = NO_STORE
    content_type: bytes = JSON
    #: In cookie mode a page of another site could cause it, and must not.
    guarded: bool = False
    #: What takes the place of `request` in cookie mode.
    request_by_cookie: type[msgspec.Struct] | None = None
    #: Whether it stands in the OpenAPI document.
    documented: bool = True
    request_example: Mapping[str, Any] | None = None
    response_example: Mapping[str, Any] | None = None

    @cached_property
    def base_headers(self) -> Headers:
        return [(b"cache-control", self.cache), (b"x-content-type-options", b"nosniff")]

    @cached_property
    def decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.request)

    @cached_property
    def may_be_empty(self) -> bool:
        """Whether no body means that all of it is as by default."""
        try:
            self.decoder.decode(b"{}")
        except msgspec.ValidationError:
            return False
        return True


class PathApp:
    """The ASGI application of one path: its endpoints by method."""

    def __init__(
        self, site: Site, path: str | None, endpoints: Sequence[Endpoint], *, elsewhere: Sequence[str] = ()
    ) -> None:
        """`elsewhere` are methods of this path that never come here, as another application has them."""
        self._site = site
        self._path = path
        self._endpoints = {endpoint.method: endpoint for endpoint in endpoints}
        allowed = [*elsewhere, *self._endpoints]
        self._allowed = ", ".join(allowed + (["HEAD"] if "GET" in self._endpoints else []))
        #: An error without an endpoint looks like those of its neighbours.
        self._oauth = any(endpoint.oauth for endpoint in endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        call = Call(scope, self._site, secrets.token_hex(8))
        call.route = self._path
        status, headers, body = await self._answer(call, receive)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._site.observe(call, status, time.perf_counter() - started)

    async def _answer(self, call: Call, receive: Receive) -> tuple[int, Headers, bytes]:
        method = call.scope["method"]
        endpoint = self._endpoints.get("GET" if method == "HEAD" else method)
        try:
            _demand_clean_url(call.scope)
            if endpoint is None:
                return self._failed(call, self._no_endpoint())
            result = await endpoint.handler(call, await read_message(endpoint, call, receive))
            return _succeeded(endpoint, call, result)
        except errors.TokenctlError as error:
            return self._failed(call, error)
        except Exception:  # noqa: BLE001 - what is logged above us would have neither the id nor our format
            _log.exception("a request failed", extra={"request_id": call.request_id})
            return self._failed(call, errors.TokenctlError("internal error"))

    def _no_endpoint(self) -> errors.TokenctlError:
        if not self._allowed:
            return NoSuchRoute("there is nothing at this address; /docs lists what there is")
        return MethodNotAllowed(f"this address takes {self._allowed}", allow=self._allowed)

    def _failed(self, call: Call, error: errors.TokenctlError) -> tuple[int, Headers, bytes]:
        oauth = self._oauth
        status, body = problems.oauth_error(error) if oauth else problems.problem(error, call.request_id)
        call.code = error.code
        call.reason = error.facts.get("reason")
        call.token_id = call.token_id or error.facts.get("token_id")
        if status >= 500:
            call.detail = error.message
        headers: Headers = [
            (b"content-type", JSON if oauth else PROBLEM),
            (b"cache-control", NO_STORE),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", call.request_id.encode()),
            (b"content-length", b"%d" % len(body)),
            *problems.headers_for(error, under_oauth=oauth, retry_after=call.site.retry_after),
        ]
        return status, headers, body


def _succeeded(endpoint: Endpoint, call: Call, result: Result) -> tuple[int, Headers, bytes]:
    answer = result if isinstance(result, Answer) else Answer(result)
    content, status = answer.content, answer.status or endpoint.status
    body = content if isinstance(content, bytes) else b"" if content is None else msgspec.json.encode(content)
    headers = [*endpoint.base_headers, *answer.headers, (b"x-request-id", call.request_id.encode())]
    if status not in (204, 304):  # RFC 9110 §8.6: no Content-Length there, or not this one
        content_type = answer.content_type or endpoint.content_type
        headers += [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    return status, headers, body


#: Bytes of path and query.
_MAX_URL = 8192
# A JWT is looked for once in each run of its characters, from the first `eyJ`: from each of them would take
# the square of their number.
_TOKEN_IN_URL = re.compile(
    rb"(?i:(?:^|&)(?:access_token|refresh_token|token)=)|tkr1_|tks1_|(?<![\w-])(?>[\w-]*?eyJ)[\w-]++\."
)


def _demand_clean_url(scope: Scope) -> None:
    """URLs end up in logs and histories (RFC 6750 §5.3, RFC 9700 §4.3.2): a token there is refused."""
    query = scope["query_string"]
    if len(scope["raw_path"]) + len(query) > _MAX_URL:
        raise BadRequest(f"the URL is longer than {_MAX_URL} bytes, and nothing here needs as much")
    if query and _TOKEN_IN_URL.search(unquote_to_bytes(query)):
        raise BadRequest(
            "there is a token in the URL, where logs and histories keep it: send it in the body or in a"
            " header, and revoke that one"
        )
