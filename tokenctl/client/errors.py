"""What the client raises: one root, and a class for each thing that a caller can do about it.

Owns the sentences. None of them ever holds a part of a token or of a body: they end in logs.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BodyNotRepeatable",
    "CallRefused",
    "LoginEnded",
    "NotLoggedIn",
    "RefreshFailed",
    "StoreUnusable",
    "TokenClientError",
]


class TokenClientError(Exception):
    """Root of all errors of the client; `message` says what and why, `hint` what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Else those with facts could not be copied, nor come back from a pool of processes.
        return _made, (type(self), self.args, self.__dict__)


def _made(kind: type[TokenClientError], args: tuple[Any, ...], facts: dict[str, Any]) -> TokenClientError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class NotLoggedIn(TokenClientError):
    """There is no login: nobody logged in, or somebody logged out."""


class LoginEnded(NotLoggedIn):
    """The server says that the login is over (`invalid_grant`): the user has to log in again."""


class RefreshFailed(TokenClientError):
    """No new access token could be had now. The login is kept: repeat the call later.

    `status` is the server's, None when there was no answer. `retry_after` is how many seconds the client
    waits until it asks again; calls before that fail at once.
    """

    def __init__(self, message: str, *, status: int | None, retry_after: float) -> None:
        super().__init__(message, hint=f"the login is kept: repeat this in {retry_after:.1f} s")
        self.status = status
        self.retry_after = retry_after


class CallRefused(TokenClientError):
    """The server refused a login, a registration or a logout, or could not be reached for it.

    `status` and `code` are the server's (`password.wrong`, `throttled`, …), None when there was no answer;
    `retry_after` seconds, where the server said so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class BodyNotRepeatable(TokenClientError):
    """A request was answered with 401, and its body was a stream that is used up."""


class StoreUnusable(TokenClientError):
    """The token store cannot be read or written."""
