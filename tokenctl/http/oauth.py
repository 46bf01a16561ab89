"""The handlers under /oauth and /.well-known: RFC 6749 §6, RFC 7009, RFC 7662, RFC 8414, RFC 7517."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from tokenctl.errors import (
    Busy,
    ClientNotFound,
    ClientRefused,
    InvalidScope,
    InvalidToken,
    Throttled,
    TokenRefused,
)
from tokenctl.http import messages
from tokenctl.http.auth import rotate
from tokenctl.http.endpoint import Endpoint
from tokenctl.http.problems import BadRequest, CredentialsMissing, GrantTypeUnsupported

if TYPE_CHECKING:
    from tokenctl.http.call import Call

_SECOND = 1_000_000
#: How long a cache may keep the public keys (s); a new key is published for longer before it signs.
CACHED = b"public, max-age=300"


async def token(call: Call, body: messages.TokenRequest) -> messages.TokenResponse:
    """The refresh grant. There is no other one: logging in is done at /auth/login."""
    client_id = await _client(call, body.client_id, body.client_secret)
    if body.grant_type != "refresh_token":
        raise GrantTypeUnsupported("the only grant here is refresh_token")
    if body.refresh_token is None:
        raise BadRequest("refresh_token is missing")
    pair = await rotate(call, body.refresh_token, client_id, body.scope)
    call.user_id, call.token_id = pair.user_id, pair.token_id
    issued = pair.issued_at // _SECOND
    return messages.TokenResponse(
        access_token=pair.access_token,
        token_type="Bearer",  # noqa: S106 - the name of a kind of token
        expires_in=pair.access_expires_at // _SECOND - issued,
        refresh_token=pair.refresh_token,
        refresh_expires_in=pair.refresh_expires_at // _SECOND - issued,
        scope=pair.scope,
    )


async def revoke(call: Call, body: messages.RevocationRequest) -> messages.Empty:
    """End the login of a refresh token, or of an access token. 200 whatever the token is (RFC 7009 §2.2)."""
    client_id = await _client(call, body.client_id, body.client_secret)
    site = call.site
    if await site.database.run(
        site.service.revoke_presented, body.token, client_id=client_id, context=call.context
    ):
        site.metrics.revoked(1)
    return messages.Empty()


async def introspect(call: Call, body: messages.IntrospectionRequest) -> messages.Introspection:
    """What a token is worth now. Needs the credentials of a client made with `--introspect`.

    Of a token that is not active the answer is `{"active": false}` and nothing else. Never changes anything:
    a spent refresh token may be asked about without being caught as reuse.
    """
    site = call.site
    await _client(call, body.client_id, body.client_secret, confidential=True)
    found = await site.database.run(site.service.introspect, body.token)
    if found is None:
        return messages.Introspection(active=False)
    is_access = found.kind == "access_token"
    return messages.Introspection(
        active=True,
        token_type="Bearer" if is_access else None,
        client_id=found.client_id,
        username=found.user_name,
        sub=found.user_id,
        scope=found.scope or None,
        iss=site.settings.issuer,
        aud=site.settings.effective_audience if is_access else None,
        iat=found.issued_at // _SECOND,
        exp=found.expires_at // _SECOND,
        sid=found.token_id,
    )


async def _client(
    call: Call, client_id: str | None, secret: str | None, *, confidential: bool = False
) -> str:
    """The client that calls (RFC 6749 §2.3), `default` for one that does not say.

    Raises ClientRefused, CredentialsMissing, BadRequest, Throttled.
    """
    basic = call.basic()
    if basic is not None:
        if secret is not None or client_id not in (None, basic[0]):
            raise BadRequest("the client authenticates twice: in the header and in the body")
        client_id, secret = basic[0], basic[1] or None
    client_id = client_id or "default"
    call.client_id = client_id
    if secret is None:
        if confidential:
            raise CredentialsMissing("this needs the credentials of a client that may introspect")
        return client_id
    site = call.site
    site.throttle.address("client", call.ip)
    try:
        client = await site.database.run(site.service.clients.authenticate, client_id, secret)
    except ClientRefused:
        site.throttle.address_failed("client", call.ip)
        raise
    return client.id


# --- what everybody may read ---------------------------------------------------------------


async def jwks(call: Call, _: None) -> messages.Jwks:
    """The public keys that access tokens are verified with; the next one is there before it signs."""
    found = await call.site.database.run(call.site.service.keys.jwks)
    return msgspec.convert(found, messages.Jwks)


async def metadata(call: Call, _: None) -> messages.ServerMetadata:
    """Where everything is, for a client that finds it out by itself."""
    issuer = call.site.settings.issuer
    base = issuer.rstrip("/")
    with_secret = ["client_secret_basic", "client_secret_post"]
    return messages.ServerMetadata(
        issuer=issuer,
        token_endpoint=f"{base}/oauth/token",
        jwks_uri=f"{base}/.well-known/jwks.json",
        revocation_endpoint=f"{base}/oauth/revoke",
        introspection_endpoint=f"{base}/oauth/introspect",
        response_types_supported=[],
        grant_types_supported=["refresh_token"],
        token_endpoint_auth_methods_supported=["none", *with_secret],
        revocation_endpoint_auth_methods_supported=["none", *with_secret],
        introspection_endpoint_auth_methods_supported=with_secret,
        service_documentation=f"{base}/docs",
    )


def metadata_path(issuer: str) -> str:
    """Where RFC 8414 §3 looks for the metadata: the issuer's own path comes behind the well-known one."""
    return "/.well-known/oauth-authorization-server" + urlsplit(issuer).path.rstrip("/")


# --- the table -----------------------------------------------------------------------------

_CLIENT = (ClientRefused, Throttled, Busy)

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/oauth/token",
        handler=token,
        summary="Refresh, as RFC 6749 §6 has it",
        tag="oauth",
        request=messages.TokenRequest,
        oauth=True,
        response=messages.TokenResponse,
        errors=(InvalidToken, TokenRefused, InvalidScope, GrantTypeUnsupported, *_CLIENT),
        request_example={"grant_type": "refresh_token", "refresh_token": "tkr1_AQGcuy…"},
        response_example={
            "access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCIsImtpZCI6IuKApiJ9.….…",
            "token_type": "Bearer",
            "expires_in": 600,
            "refresh_token": "tkr1_AQGcuy…",
            "refresh_expires_in": 2592000,
            "scope": "profile",
        },
    ),
    Endpoint(
        method="POST",
        path="/oauth/revoke",
        handler=revoke,
        summary="Revoke a token (RFC 7009)",
        tag="oauth",
        request=messages.RevocationRequest,
        oauth=True,
        response=messages.Empty,
        errors=_CLIENT,
        request_example={"token": "tkr1_AQGcuy…"},
        response_example={},
    ),
    Endpoint(
        method="POST",
        path="/oauth/introspect",
        handler=introspect,
        summary="Introspect a token (RFC 7662)",
        tag="oauth",
        request=messages.IntrospectionRequest,
        oauth=True,
        response=messages.Introspection,
        errors=(CredentialsMissing, ClientNotFound, *_CLIENT),
        credentials="client",
        request_example={"token": "tkr1_AQGcuy…"},
        response_example={
            "active": True,
            "client_id": "default",
            "username": "ada",
            "sub": "usr_019bea1e1a4079f59b5c564be5227e58",
            "scope": "profile",
            "iss": "https://auth.example",
            "iat": 1773457200,
            "exp": 1774666800,
            "sid": "rt_019cda793b007ec8a12e959598c44c6b",
        },
    ),
    Endpoint(
        method="GET",
        path="/.well-known/jwks.json",
        handler=jwks,
        summary="The public keys (RFC 7517)",
        tag="discovery",
        response=messages.Jwks,
        cache=CACHED,
        response_example={
            "keys": [
                {
                    "kty": "EC",
                    "use": "sig",
                    "alg": "ES256",
                    "kid": "yq2mkqArIIaMq0MmFFNpUwiUJ_vESmZtLNwLT3ad1mU",
                    "crv": "P-256",
                    "x": "…",
                    "y": "…",
                }
            ]
        },
    ),
    Endpoint(
        method="GET",
        path="/.well-known/oauth-authorization-server",
        handler=metadata,
        summary="The server's metadata (RFC 8414)",
        tag="discovery",
        response=messages.ServerMetadata,
        cache=CACHED,
        response_example={
            "issuer": "https://auth.example",
            "token_endpoint": "https://auth.example/oauth/token",
            "jwks_uri": "https://auth.example/.well-known/jwks.json",
            "revocation_endpoint": "https://auth.example/oauth/revoke",
            "introspection_endpoint": "https://auth.example/oauth/introspect",
            "response_types_supported": [],
            "grant_types_supported": ["refresh_token"],
            "token_endpoint_auth_methods_supported": ["none"],
            "revocation_endpoint_auth_methods_supported": ["none"],
            "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
            "service_documentation": "https://auth.example/docs",
        },
    ),
)
