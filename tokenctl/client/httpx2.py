"""`TokenAuth` for httpx2: its base class, its client and its exceptions, and nothing else."""

from __future__ import annotations

import httpx2

from tokenctl.client.flow import TIMEOUT, Flow, Library


class TokenAuth(Flow[httpx2.Client], httpx2.Auth):
    """Sends requests with an access token that is always fresh; for `httpx2.Client` and `httpx2.AsyncClient`.

    One object is for one login; any number of clients, threads and tasks may share it.
    """

    _library = Library(
        client=lambda: httpx2.Client(timeout=TIMEOUT),
        request_error=httpx2.RequestError,
        never_sent=(httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout),
    )
