"""`TokenAuth` for httpx: its base class, its client and its exceptions, and nothing else."""

from __future__ import annotations

import httpx

from tokenctl.client.flow import TIMEOUT, Flow, Library


class TokenAuth(Flow[httpx.Client], httpx.Auth):
    """Sends requests with an access token that is always fresh; for `httpx.Client` and `httpx.AsyncClient`.

    One object is for one login; any number of clients, threads and tasks may share it.
    """

    _library = Library(
        client=lambda: httpx.Client(timeout=TIMEOUT),
        request_error=httpx.RequestError,
        never_sent=(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout),
    )
