"""What goes in and out over HTTP, as data: these types are the validation, and the schemas of the OpenAPI.

Under /auth an unknown field is refused, since it is a typing error; under /oauth it is ignored, as RFC 6749
§3.2 says. Durations are whole seconds, instants whole seconds since the epoch (as in a JWT), UTC.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

# --- the forms of single values -------------------------------------------------------------

UserName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=254,
        pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?$",
        description="A user's name; an e-mail address will do. Compared without case.",
    ),
]
Password = Annotated[str, Meta(min_length=1, max_length=4096, description="As the user typed it.")]
ClientId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"^[\x21-\x7e]+$",
        description="The application that the login belongs to.",
    ),
]
Scope = Annotated[
    str,
    Meta(
        max_length=1024,
        pattern=r"^([\x21\x23-\x5b\x5d-\x7e]{1,128}( [\x21\x23-\x5b\x5d-\x7e]{1,128})*)?$",
        description="Words with a space between (RFC 6749 §3.3).",
    ),
]
# A string of another form is refused like any wrong one: its form is nobody's business but ours.
RefreshToken = Annotated[str, Meta(min_length=1, max_length=4096, description="The refresh token's string.")]
Token = Annotated[str, Meta(min_length=1, description="An access token or a refresh token.")]
Seconds = Annotated[int, Meta(ge=0, description="Seconds.")]
Instant = Annotated[int, Meta(ge=0, description="Seconds since the epoch (UTC).")]
UserId = Annotated[str, Meta(pattern="^usr_[0-9a-f]{32}$")]
TokenId = Annotated[str, Meta(pattern="^rt_[0-9a-f]{32}$", description="The login's id, the claim `sid`.")]


# --- /auth, requests -----------------------------------------------------------------------


class Register(Struct, forbid_unknown_fields=True):
    """A new user, who is logged in at once."""

    username: UserName
    password: Password
    client_id: ClientId = "default"
    scope: Scope = ""


class Login(Struct, forbid_unknown_fields=True):
    """A user's name and password."""

    # Any text: a name that nobody can have gets the answer of a wrong password.
    username: Annotated[str, Meta(min_length=1, max_length=254)]
    password: Password
    client_id: ClientId = "default"
    scope: Scope = ""


class Refresh(Struct, forbid_unknown_fields=True):
    """The newest refresh token of a login."""

    refresh_token: RefreshToken
    client_id: ClientId = "default"
    #: Narrows the scope of this access token only.
    scope: Scope | None = None


class RefreshByCookie(Struct, forbid_unknown_fields=True):
    """The refresh token is in the cookie."""

    client_id: ClientId = "default"
    scope: Scope | None = None


class Logout(Struct, forbid_unknown_fields=True):
    """A refresh token of any generation; `all` ends every login of its user."""

    refresh_token: RefreshToken
    client_id: ClientId = "default"
    all: bool = False


class LogoutByCookie(Struct, forbid_unknown_fields=True):
    """The refresh token is in the cookie; `all` ends every login of its user."""

    client_id: ClientId = "default"
    all: bool = False


class ChangePassword(Struct, forbid_unknown_fields=True):
    """The current password, and the one that takes its place."""

    current_password: Password
    new_password: Password


# --- /auth, answers ------------------------------------------------------------------------


class User(Struct):
    """`name` is left out of the answer to a refresh, which reads no user: /auth/me has it."""

    id: UserId
    name: str | UnsetType = UNSET


class TokenPair(Struct):
    """An access token for the API, and the refresh token that gets the next one.

    With `--cookies` there is no `refresh_token` here: it is in the cookie.
    """

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: Seconds
    refresh_expires_in: Seconds
    scope: str
    user: User
    refresh_token: str | UnsetType = UNSET


class Me(Struct):
    """The user behind an access token, and its login."""

    id: UserId
    name: str
    client_id: str
    scope: str
    session_id: TokenId
    expires_at: Instant


class Session(Struct):
    """One login. `current`: the one of the access token that asked."""

    id: TokenId
    client_id: str
    scope: str
    current: bool
    created_at: Instant
    last_used_at: Instant
    expires_at: Instant
    ip: str | None
    user_agent: str | None


class Sessions(Struct):
    """The user's live logins, the most recently used first; at most 200."""

    sessions: list[Session]


# --- /oauth --------------------------------------------------------------------------------


class TokenRequest(Struct):
    """RFC 6749 §6. `client_secret` is for clients that have one."""

    grant_type: Annotated[str, Meta(min_length=1)]
    refresh_token: str | None = None
    scope: str | None = None
    client_id: str | None = None
    client_secret: str | None = None


class RevocationRequest(Struct):
    """RFC 7009 §2.1."""

    token: Token
    token_type_hint: str | None = None
    client_id: str | None = None
    client_secret: str | None = None


class IntrospectionRequest(Struct):
    """RFC 7662 §2.1; the client's secret here, or in `Authorization: Basic`."""

    token: Token
    token_type_hint: str | None = None
    client_id: str | None = None
    client_secret: str | None = None


class TokenResponse(Struct):
    """RFC 6749 §5.1."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: Seconds
    refresh_token: str
    refresh_expires_in: Seconds
    scope: str


class Empty(Struct):
    """An empty object: RFC 7009 §2.2 leaves the body to us, and every client can read this one."""


class Introspection(Struct, omit_defaults=True):
    """RFC 7662 §2.2. Of a token that is not active there is `active` and nothing else."""

    active: bool
    token_type: str | None = None
    client_id: str | None = None
    username: str | None = None
    sub: str | None = None
    scope: str | None = None
    iss: str | None = None
    aud: str | None = None
    iat: int | None = None
    exp: int | None = None
    sid: str | None = None


class ServerMetadata(Struct):
    """RFC 8414 §2."""

    issuer: str
    token_endpoint: str
    jwks_uri: str
    revocation_endpoint: str
    introspection_endpoint: str
    response_types_supported: list[str]
    grant_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    service_documentation: str


class Jwk(Struct, omit_defaults=True):
    """A public key (RFC 7517 §4); `kid` is its thumbprint (RFC 7638)."""

    kty: Literal["EC", "RSA"]
    use: Literal["sig"]
    alg: Literal["ES256", "RS256"]
    kid: str
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    n: str | None = None
    e: str | None = None


class Jwks(Struct):
    """RFC 7517 §5."""

    keys: list[Jwk]


# --- errors and health ---------------------------------------------------------------------


class FieldError(Struct):
    """Where in the body, and what is wrong there."""

    field: str
    message: str


class Problem(Struct, omit_defaults=True):
    """RFC 9457 problem details; `code` is stable, `request_id` is in the server's log."""

    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[FieldError] = []


class OAuthError(Struct):
    """RFC 6749 §5.2."""

    error: str
    error_description: str


class Health(Struct):
    """All is well; what is not well is a problem with 503."""

    status: Literal["ok"]
