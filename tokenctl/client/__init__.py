"""The Python client of `tokenctl serve`: tokens that refresh themselves, across threads, tasks and processes.

`TokenAuth` is for httpx; its twin for httpx2 is `tokenctl.client.httpx2.TokenAuth`. These are the public
names. The client knows only HTTP: nothing else of tokenctl is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenctl.client.core import Login, Moment
from tokenctl.client.errors import (
    BodyNotRepeatable,
    CallRefused,
    LoginEnded,
    NotLoggedIn,
    RefreshFailed,
    StoreUnusable,
    TokenClientError,
)
from tokenctl.client.stores import FileStore, MemoryStore, Store

if TYPE_CHECKING:
    from tokenctl.client.with_httpx import TokenAuth

__all__ = [
    "BodyNotRepeatable",
    "CallRefused",
    "FileStore",
    "Login",
    "LoginEnded",
    "MemoryStore",
    "Moment",
    "NotLoggedIn",
    "RefreshFailed",
    "Store",
    "StoreUnusable",
    "TokenAuth",
    "TokenClientError",
]


def __getattr__(name: str) -> Any:
    # Not before it is used: who has only httpx2 must be able to import the stores and the errors.
    if name != "TokenAuth":
        raise AttributeError(f"module 'tokenctl.client' has no attribute {name!r}")
    try:
        from tokenctl.client.with_httpx import TokenAuth
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        message = "httpx is not installed: pip install 'tokenctl[client]', or use tokenctl.client.httpx2"
        raise ModuleNotFoundError(message, name="httpx") from None
    return TokenAuth
