"""What an error looks like on the wire: one map from our errors to a status, and the two forms of a body.

Owns what a caller may know. A message of ours may name a path or a command of the operator: only the errors
marked here show theirs. All refusals of a refresh token look alike; the reason is in the log and the audit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from tokenctl import errors
from tokenctl.http import messages

# --- what only HTTP knows -------------------------------------------------------------------


class BadRequest(errors.TokenctlError):
    """The request cannot be read. `fields`, a list of {field, message}, says where."""

    code = "request.malformed"


class InvalidFields(BadRequest):
    """The body is JSON, and not what this route takes."""

    code = "input.invalid"


class TooLarge(errors.TokenctlError):
    """The body is larger than anything that is needed here."""

    code = "request.too_large"


class UnsupportedType(errors.TokenctlError):
    """The body is of another media type than this route takes."""

    code = "request.unsupported_type"


class NoSuchRoute(errors.TokenctlError):
    code = "route.not_found"


class MethodNotAllowed(errors.TokenctlError):
    code = "route.method_not_allowed"


class Forbidden(errors.TokenctlError):
    """A request that a page of another site could have caused (cookie mode), or a closed registration."""

    code = "request.forbidden"


class CredentialsMissing(errors.TokenctlError):
    """No credentials at all: the challenge then carries no error (RFC 6750 §3.1)."""

    code = "credentials.missing"


class CurrentPasswordWrong(errors.WrongPassword):
    """403 and not 401: it is not the access token that is wrong, and a client must not refresh for it."""


class GrantTypeUnsupported(errors.TokenctlError):
    """Another grant than refresh_token."""

    code = "grant_type.unsupported"


# --- the map -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """The HTTP status of an error, and what the caller is told."""

    status: int
    #: The code of a problem; None: the error's own.
    code: str | None = None
    #: None: the error's own message.
    detail: str | None = None
    #: RFC 6749 §5.2.
    oauth: str = "invalid_request"
    #: The status under /oauth, where RFC 6749 demands another one.
    oauth_status: int | None = None


_REFUSED = Status(
    401, "invalid_grant", "the refresh token is not valid: log in again", "invalid_grant", oauth_status=400
)
_WRONG_PASSWORD = Status(401, "password.wrong", "the user name or the password is wrong")
_UNAVAILABLE = Status(
    503,
    "unavailable",
    "this cannot be answered now: keep the token that you have, and repeat the request",
    "temporarily_unavailable",
)

# The first class of the error's MRO that stands here decides.
STATUS: dict[type[errors.TokenctlError], Status] = {
    errors.TokenctlError: Status(500, "internal", "internal error", "server_error"),
    BadRequest: Status(400),
    InvalidFields: Status(422, oauth_status=400),
    TooLarge: Status(413),
    UnsupportedType: Status(415),
    NoSuchRoute: Status(404),
    MethodNotAllowed: Status(405),
    Forbidden: Status(403),
    GrantTypeUnsupported: Status(400, oauth="unsupported_grant_type"),
    CredentialsMissing: Status(401, oauth="invalid_client"),
    errors.InvalidInput: Status(422, oauth_status=400),
    errors.PasswordRefused: Status(422),
    errors.InvalidScope: Status(422, oauth="invalid_scope", oauth_status=400),
    errors.InvalidToken: _REFUSED,
    errors.TokenRefused: _REFUSED,
    errors.InvalidAccessToken: Status(401, "invalid_token", "the access token is not valid", "invalid_token"),
    errors.WrongPassword: _WRONG_PASSWORD,
    CurrentPasswordWrong: Status(403),
    errors.ClientRefused: Status(
        401, "invalid_client", "the client's credentials are wrong", "invalid_client"
    ),
    # Disabled or deleted while the password was checked: whoever learns of that knows that it was right.
    errors.UserDisabled: _WRONG_PASSWORD,
    errors.UserNotFound: _WRONG_PASSWORD,
    errors.NotFound: Status(404),
    # Not the error's own message: that repeats what was sent, which may be a token in the wrong place.
    errors.ClientNotFound: Status(
        422, detail="there is no such client", oauth="invalid_client", oauth_status=401
    ),
    errors.UserExists: Status(409),
    errors.Throttled: Status(429, oauth="temporarily_unavailable"),
    errors.Busy: _UNAVAILABLE,
    errors.DatabaseError: _UNAVAILABLE,
    errors.KeyMissing: _UNAVAILABLE,
    errors.KeyUnusable: _UNAVAILABLE,
    errors.KeyWrong: _UNAVAILABLE,
}


def status_of(error: type[errors.TokenctlError]) -> Status:
    """The entry of the first class of the error's MRO that stands in STATUS."""
    return next(STATUS[kind] for kind in error.__mro__ if kind in STATUS)


def wire_code(error: type[errors.TokenctlError]) -> str:
    """The `code` of the error's problem."""
    return status_of(error).code or error.code


# --- the bodies ----------------------------------------------------------------------------

Headers = list[tuple[bytes, bytes]]


def problem(error: errors.TokenctlError, request_id: str) -> tuple[int, bytes]:
    """Status and body as RFC 9457 problem details."""
    entry = status_of(type(error))
    body = messages.Problem(
        title=HTTPStatus(entry.status).phrase,
        status=entry.status,
        code=entry.code or error.code,
        detail=entry.detail or error.message,
        request_id=request_id,
        errors=[messages.FieldError(**field) for field in error.facts.get("fields", ())],
    )
    return entry.status, msgspec.json.encode(body)


def oauth_error(error: errors.TokenctlError) -> tuple[int, bytes]:
    """Status and body as RFC 6749 §5.2 has them."""
    entry = status_of(type(error))
    # RFC 6749 appendix A.8: printable ASCII without quote and backslash.
    said = "".join(c if " " <= c <= "~" and c not in '"\\' else "'" for c in entry.detail or error.message)
    body = messages.OAuthError(error=entry.oauth, error_description=said)
    return entry.oauth_status or entry.status, msgspec.json.encode(body)


def headers_for(error: errors.TokenctlError, *, under_oauth: bool, retry_after: int) -> Headers:
    """What RFC 6750 §3, RFC 9110 §15.5.6 and §10.2.3 want with some errors."""
    entry = status_of(type(error))
    status = (under_oauth and entry.oauth_status) or entry.status
    found: Headers = []
    if status == 401:
        found.append((b"www-authenticate", _challenge(error, under_oauth)))
    if allowed := error.facts.get("allow"):
        found.append((b"allow", allowed.encode()))
    if status in (429, 503):
        seconds = error.facts.get("retry_after", retry_after)
        found.append((b"retry-after", str(math.ceil(seconds)).encode()))
    if isinstance(error, TooLarge):
        found.append((b"connection", b"close"))
    return found


def _challenge(error: errors.TokenctlError, under_oauth: bool) -> bytes:
    if under_oauth:
        return b'Basic realm="tokenctl", charset="UTF-8"'
    if isinstance(error, errors.InvalidToken | errors.TokenRefused | errors.InvalidAccessToken):
        return b'Bearer realm="tokenctl", error="invalid_token"'
    return b'Bearer realm="tokenctl"'
