"""`TokenAuth` for httpx2: its base class, its exceptions, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import httpx2

from tokenctl.client.core import Moment
from tokenctl.client.flow import TIMEOUT, Flow, poster
from tokenctl.client.stores import Store


class TokenAuth(Flow, httpx2.Auth):
    """Sends requests with an access token that is always fresh; for `httpx2.Client` and `httpx2.AsyncClient`.

    One object is for one login; any number of clients, threads and tasks may share it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        store: Store | None = None,
        client_id: str = "default",
        origins: Iterable[str] = (),
        on_end: Callable[[], None] | None = None,
        connect: Callable[[], httpx2.Client] | None = None,
        clock: Callable[[], Moment] | None = None,
    ) -> None:
        """`base_url` is that of `tokenctl serve`; the token goes there and to `origins`, to no other.

        store: where the tokens are kept, in memory by default.
        on_end: called once, from a thread of ours, when the server has ended the login.
        connect: makes the client for our own calls, where yours needs a proxy or a private CA.
        clock: for tests.

        Raises ValueError for what is no address of a server.
        """
        super().__init__(
            base_url,
            store=store,
            client_id=client_id,
            origins=origins,
            on_end=on_end,
            clock=clock,
            post=poster(
                connect or (lambda: httpx2.Client(timeout=TIMEOUT)),
                httpx2.RequestError,
                (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout),
            ),
        )
