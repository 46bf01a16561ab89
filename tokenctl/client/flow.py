"""The life of one request: the token put in, the 401 understood, the body sent again or not.

Owns what httpx and httpx2 have in common, which is all but their base class and their exceptions; so their
requests are Any here. Decides nothing that `core` can decide.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tokenctl.client import core
from tokenctl.client.clock import now
from tokenctl.client.core import Answer, Login, Moment, NoAnswer
from tokenctl.client.errors import BodyNotRepeatable, TokenClientError
from tokenctl.client.session import Post, Session
from tokenctl.client.stores import MemoryStore, Store

#: How long one step of a call of our own may take (s): connecting, sending, each part of the answer.
TIMEOUT = 10.0


#: The client of an HTTP library.
C = TypeVar("C")


@dataclass(frozen=True)
class Library(Generic[C]):
    """What httpx and httpx2 call by the same names, without being the same."""

    client: Callable[[], C]
    request_error: type[Exception]
    #: The errors after which nothing has arrived at the server.
    never_sent: tuple[type[Exception], ...]


class Flow(Generic[C]):
    """What `TokenAuth` does, whichever library sends the requests."""

    #: Which one that is.
    _library: Library[C]

    def __init__(
        self,
        base_url: str,
        *,
        store: Store | None = None,
        client_id: str = "default",
        origins: Iterable[str] = (),
        on_end: Callable[[], None] | None = None,
        connect: Callable[[], C] | None = None,
        clock: Callable[[], Moment] = now,
    ) -> None:
        """`base_url` is that of `tokenctl serve`; the token goes there and to `origins`, to no other.

        store: where the tokens are kept, in memory by default.
        on_end: called once, from a thread of ours, when the server has ended the login.
        connect: makes the client for our own calls, where yours needs a proxy or a private CA.
        clock: for tests.

        Raises ValueError for what is no address of a server.
        """
        self._session = Session(
            base_url=base_url,
            client_id=client_id,
            store=MemoryStore() if store is None else store,
            post=_poster(self._library, connect or self._library.client),
            clock=clock,
            on_end=on_end,
        )
        base_url = self._session.base_url
        self._scope = core.Scope(base_url, frozenset(core.origin(each) for each in (base_url, *origins)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._session.base_url!r})"

    # --- logging in and out --------------------------------------------------------------

    def login(self, name: str, password: str, *, scope: str = "") -> Login:
        """Log in; the tokens take the place of those that are stored.

        Raises CallRefused (`code` is `password.wrong`, `throttled`, …) and StoreUnusable.
        """
        return self._session.log_in("/auth/login", {"username": name, "password": password, "scope": scope})

    def register(self, name: str, password: str, *, scope: str = "") -> Login:
        """Make a user, and be logged in as that. Raises as `login`; `code` may be `user.exists`."""
        fields = {"username": name, "password": password, "scope": scope}
        return self._session.log_in("/auth/register", fields)

    def logout(self, *, everywhere: bool = False) -> None:
        """Forget the tokens and end the login, or with `everywhere` every login of the user.

        Raises CallRefused when the server could not be told, or when a login that was over could not end the
        others; the tokens are gone here all the same. Raises StoreUnusable when they could not be removed.
        """
        self._session.log_out(everywhere=everywhere)

    async def alogin(self, name: str, password: str, *, scope: str = "") -> Login:
        """`login` for an event loop, which goes on meanwhile."""
        return await asyncio.to_thread(self.login, name, password, scope=scope)

    async def aregister(self, name: str, password: str, *, scope: str = "") -> Login:
        """`register` for an event loop."""
        return await asyncio.to_thread(self.register, name, password, scope=scope)

    async def alogout(self, *, everywhere: bool = False) -> None:
        """`logout` for an event loop."""
        await asyncio.to_thread(self.logout, everywhere=everywhere)

    # --- what the HTTP library calls -----------------------------------------------------

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Send the request with the access token; after a 401 once more with a new one."""
        if not self._scope.covers(str(request.url)):
            yield request
            return
        repeatable = _is_in_memory(request)
        if not repeatable and _can_be_kept(request, "__iter__"):
            request.read()
            repeatable = True
        sent = _wait(self._session.token())
        response = yield _with(request, sent)
        if not self._is_refusal(response, sent):
            return
        fresh = _wait(self._session.token_after(sent.access_token))
        if not repeatable:
            raise _not_repeatable()
        yield _with(request, fresh)

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """The same for an event loop, which is never blocked."""
        if not self._scope.covers(str(request.url)):
            yield request
            return
        repeatable = _is_in_memory(request)
        if not repeatable and _can_be_kept(request, "__aiter__"):
            await request.aread()
            repeatable = True
        sent = await _wait_async(self._session.token())
        response = yield _with(request, sent)
        if not self._is_refusal(response, sent):
            return
        fresh = await _wait_async(self._session.token_after(sent.access_token))
        if not repeatable:
            raise _not_repeatable()
        yield _with(request, fresh)

    def _is_refusal(self, response: Any, sent: Login) -> bool:
        """Whether it was our token that was refused: a redirect may have led to where it does not go."""
        last = response.request
        return (
            response.status_code == 401
            and self._scope.covers(str(last.url))
            and last.headers.get("Authorization") == _bearer(sent)
        )


def _with(request: Any, login: Login) -> Any:
    request.headers["Authorization"] = _bearer(login)
    return request


def _bearer(login: Login) -> str:
    return f"Bearer {login.access_token}"


def _wait(found: Login | Future[Login]) -> Login:
    if isinstance(found, Login):
        return found
    try:
        return found.result()
    except TokenClientError as error:
        raise _of_one_waiter(error) from error.__cause__


async def _wait_async(found: Login | Future[Login]) -> Login:
    if isinstance(found, Login):
        return found
    # A waiter that is cancelled leaves the refresh alone: it runs already, so it cannot be cancelled.
    waiter = asyncio.wrap_future(found, loop=asyncio.get_running_loop())
    try:
        return await waiter
    except TokenClientError as error:
        raise _of_one_waiter(error) from error.__cause__


def _of_one_waiter(error: TokenClientError) -> TokenClientError:
    """An error for one of those who wait: raising the same one in many threads would mix their tracebacks."""
    return copy.copy(error)


def _is_in_memory(request: Any) -> bool:
    try:
        _ = request.content
    except RuntimeError:  # RequestNotRead, of whichever library
        return False
    return True


def _can_be_kept(request: Any, iterates: str) -> bool:
    return core.keeps_body(request.headers.get("Content-Length")) and hasattr(request.stream, iterates)


def _not_repeatable() -> BodyNotRepeatable:
    return BodyNotRepeatable(
        "the request was answered with 401, and its body was a stream that cannot be sent again",
        hint="the token is new now: send the request again with a new body, or give the body as bytes",
    )


# --- calls of our own ----------------------------------------------------------------------


def _poster(library: Library[Any], connect: Callable[[], Any]) -> Post:
    """How the session reaches the server: a connection for each call, so nothing has to be closed."""

    def post(url: str, fields: Any) -> Answer | NoAnswer:
        try:
            with connect() as http:
                # auth=None: with an `auth` of its own that client would wait for itself.
                response = http.post(url, json=dict(fields), auth=None, follow_redirects=False)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status_code, headers, response.content)
        except library.request_error as error:
            reason = f"the server does not answer ({type(error).__name__}: {error})"
            return NoAnswer(lost=not isinstance(error, library.never_sent), reason=reason)

    return post
