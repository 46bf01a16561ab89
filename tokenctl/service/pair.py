"""The token pair: what issue and rotate hand out, and its signing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenctl.service.runtime import Runtime

if TYPE_CHECKING:  # cryptography costs start-up
    from tokenctl.core.keys import SigningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A refresh token's string and a signed access token. Instants in µs (UTC).

    `retried`: the string was handed out before, and this is the same one again.
    """

    token_id: str
    user_id: str
    client_id: str
    scope: str
    refresh_token: str = field(repr=False)
    access_token: str = field(repr=False)
    issued_at: int
    access_expires_at: int
    refresh_expires_at: int
    retried: bool = False
    #: Set by a login; a rotation reads no user.
    user_name: str | None = None


def make_pair(
    runtime: Runtime,
    *,
    key: SigningKey,
    refresh_token: str,
    token_id: str,
    user_id: str,
    client_id: str,
    scope: str,
    now: int,
    access_until: int,
    expires_at: int,
    retried: bool = False,
    user_name: str | None = None,
) -> TokenPair:
    """Sign the access token of a login that is committed already. Instants in µs.

    `key` was found before the commit: what is committed must not be answered with an error.
    """
    from tokenctl.core.access_token import AccessClaims, sign_access_token

    claims = AccessClaims(
        user_id=user_id,
        client_id=client_id,
        scope=scope,
        token_id=token_id,
        issued_at=now,
        expires_at=access_until,
        issuer=runtime.settings.issuer,
        audience=runtime.settings.effective_audience,
        jti=runtime.entropy(16).hex(),
    )
    return TokenPair(
        token_id=token_id,
        user_id=user_id,
        client_id=client_id,
        scope=scope,
        refresh_token=refresh_token,
        access_token=sign_access_token(claims, key),
        issued_at=now,
        access_expires_at=access_until,
        refresh_expires_at=expires_at,
        retried=retried,
        user_name=user_name,
    )
