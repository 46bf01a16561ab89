"""What the bearer of a token can do with it: have it judged, see the user's logins, and end them.

Owns when an access token is still good: what it says, by its signature, and then the login behind it, by
one read. Looking never changes anything, not even for a spent string. Which verdict a refresh token gets,
`core.rotation` decides; how a login ends, `revocation`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenctl.core import ids, token_string
from tokenctl.core.context import Context
from tokenctl.core.refresh_token import RefreshToken, State
from tokenctl.core.rotation import Presented, Reason, Verdict, judge
from tokenctl.core.token_string import PresentedToken
from tokenctl.errors import InvalidAccessToken, InvalidInput, InvalidToken, TokenNotFound, TokenRefused
from tokenctl.service.revocation import Revocation, bearers_mark, exposure, revoke_all_of_user
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import revoking, tokens, users
from tokenctl.storage.engine import Connection
from tokenctl.storage.revoking import Revoked

if TYPE_CHECKING:
    from tokenctl.core.access_token import AccessClaims

_ACTIVE = frozenset({Verdict.ROTATE, Verdict.RETRY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a good access token allows, and to whom; `scope` is the token's own. Instants in µs (UTC)."""

    token_id: str
    user_id: str
    user_name: str
    client_id: str
    scope: str
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Introspection:
    """An active token of either kind (RFC 7662 §2.2). Instants in µs (UTC).

    Of a refresh token `issued_at` is when its login began, and `expires_at` when it ends if nobody uses it.
    """

    kind: Literal["access_token", "refresh_token"]
    token_id: str
    user_id: str
    user_name: str
    client_id: str
    scope: str
    issued_at: int
    expires_at: int


# --- looking ---------------------------------------------------------------------------------


@repeated
def check_access(runtime: Runtime, access_token: str) -> Access:
    """See `TokenService.check_access`."""
    claims = _verified(runtime, access_token)
    with runtime.storage.read() as connection:
        row = _live_login(runtime, connection, claims)
    return Access(
        token_id=row.id,
        user_id=row.user_id,
        user_name=row.user_name,
        client_id=row.client_id,
        scope=claims.scope,
        issued_at=claims.issued_at,
        expires_at=claims.expires_at,
    )


def introspect(runtime: Runtime, token: str) -> Introspection | None:
    """See `TokenService.introspect`."""
    try:
        if token_string.looks_like(token):
            return _introspect_refresh_token(runtime, token)
        access = check_access(runtime, token)
    except (InvalidToken, InvalidAccessToken):
        return None
    return Introspection(
        kind="access_token",
        token_id=access.token_id,
        user_id=access.user_id,
        user_name=access.user_name,
        client_id=access.client_id,
        scope=access.scope,
        issued_at=access.issued_at,
        expires_at=access.expires_at,
    )


@repeated
def _introspect_refresh_token(runtime: Runtime, text: str) -> Introspection | None:
    token = token_string.parse(text, runtime.keys.mac)
    with runtime.storage.read() as connection:
        row = tokens.get(connection, token.token_id)
    if row is None:
        return None
    # By its own client: who introspects is another party than who refreshes.
    shown = Presented(token.generation, token.secret_hash, row.client_id)
    if judge(row, shown, runtime.clock(), runtime.policy).verdict not in _ACTIVE:
        return None
    idle_expires_at = row.idle_expires_at
    return Introspection(
        kind="refresh_token",
        token_id=row.id,
        user_id=row.user_id,
        user_name=row.user_name,
        client_id=row.client_id,
        scope=row.scope,
        issued_at=row.created_at,
        expires_at=row.expires_at if idle_expires_at is None else min(row.expires_at, idle_expires_at),
    )


@repeated
def sessions(runtime: Runtime, user_id: str, *, limit: int) -> list[RefreshToken]:
    """See `TokenService.sessions`."""
    user_id = ids.parse_user_id(user_id)
    with runtime.storage.read() as connection:
        return tokens.live_of_user(connection, user_id, now=runtime.clock(), limit=limit)


def _verified(runtime: Runtime, access_token: str) -> AccessClaims:
    """What an access token of ours says; the login behind it may be over. Raises InvalidAccessToken."""
    from tokenctl.core.access_token import verify_access_token

    claims = verify_access_token(
        access_token,
        runtime.verification_keys(),
        issuer=runtime.settings.issuer,
        audience=runtime.settings.effective_audience,
        now=runtime.clock(),
    )
    try:
        ids.parse_token_id(claims.token_id)
    except InvalidInput:
        # Our key signed it, and we did not: an application may sign with it as well.
        raise InvalidAccessToken("the access token is refused: it names no login") from None
    return claims


def _live_login(runtime: Runtime, connection: Connection, claims: AccessClaims) -> RefreshToken:
    """The login behind an access token. Raises InvalidAccessToken unless it is live, and the claims' own."""
    row = tokens.get(connection, claims.token_id)
    reason = "not_found"
    if row is not None and (row.user_id, row.client_id) == (claims.user_id, claims.client_id):
        state = row.state(runtime.clock())
        if state is State.LIVE:
            return row
        reason = state
    raise InvalidAccessToken(
        "the access token is refused: its login is not live", reason=reason, token_id=claims.token_id
    )


# --- ending ----------------------------------------------------------------------------------


@repeated
def end_session(runtime: Runtime, user_id: str, token_id: str, *, actor: str, context: Context) -> bool:
    """See `TokenService.end_session`."""
    user_id, actor = ids.parse_user_id(user_id), runtime.who(actor)
    unknown = TokenNotFound("the user has no such login")  # never whether somebody else has
    try:
        token_id = ids.parse_token_id(token_id)
    except InvalidInput:
        raise unknown from None
    with runtime.storage.write() as connection:
        row = tokens.get(connection, token_id)
        if row is None or row.user_id != user_id:
            raise unknown
        now = runtime.clock()
        return bool(_end(connection, row, now=now, reason="session ended", actor=actor, context=context))


@repeated
def logout(
    runtime: Runtime, refresh_token: str, *, client_id: str, everywhere: bool, context: Context
) -> Revocation:
    """See `TokenService.logout`."""
    token = token_string.parse(refresh_token, runtime.keys.mac)
    with runtime.storage.write() as connection:
        row = _named_login(connection, token, client_id)
        if row is None:
            if everywhere:
                raise TokenRefused(Reason.NOT_FOUND, token_id=token.token_id)
            return Revocation(unknown=1)
        if everywhere:
            return _logout_everywhere(runtime, connection, row, context)
        now, actor = runtime.clock(), row.user_name
        done = _end(connection, row, now=now, reason="logout", actor=actor, context=context)
        return Revocation(
            revoked=len(done),
            already_dead=1 - len(done),
            users=len(done),
            access_exposure_until=exposure(runtime, row.access_until),
        )


def _logout_everywhere(
    runtime: Runtime, connection: Connection, row: RefreshToken, context: Context
) -> Revocation:
    """End every login of the row's user. Raises TokenRefused when this one is dead or cut off itself."""
    # Before anything else: who is just logging in either comes before this, and is ended, or after it.
    users.get(connection, row.user_id, lock=True)
    now = runtime.clock()
    # Its own current string, judged: whatever would refuse that refuses this. Who is kept out for a time is
    # still the user; what is dead or was cut off may be in anybody's hands.
    mine = Presented(row.generation, row.secret_hash, row.client_id)
    reason_against = judge(row, mine, now, runtime.policy).reason
    if reason_against not in (None, Reason.USER_DISABLED):
        raise TokenRefused(reason_against, token_id=row.id)
    done = revoke_all_of_user(
        connection,
        row.user_id,
        now=now,
        reason="logout everywhere",
        actor=row.user_name,
        context=context,
    )
    latest = max((each.access_until for each in done), default=0)
    return Revocation(revoked=len(done), users=1, access_exposure_until=exposure(runtime, latest))


def revoke_presented(runtime: Runtime, token: str, *, client_id: str, context: Context) -> bool:
    """See `TokenService.revoke_presented`."""
    try:
        if token_string.looks_like(token):
            return _revoke_refresh_token(runtime, token, client_id, context)
        return _revoke_access_token(runtime, token, client_id, context)
    except (InvalidToken, InvalidAccessToken, TokenRefused):
        return False


@repeated
def _revoke_refresh_token(runtime: Runtime, text: str, client_id: str, context: Context) -> bool:
    token = token_string.parse(text, runtime.keys.mac)
    with runtime.storage.write() as connection:
        row = _named_login(connection, token, client_id)
        return row is not None and _end_for_client(runtime, connection, row, context)


@repeated
def _revoke_access_token(runtime: Runtime, text: str, client_id: str, context: Context) -> bool:
    claims = _verified(runtime, text)
    if claims.client_id != client_id:
        return False
    with runtime.storage.write() as connection:
        row = _live_login(runtime, connection, claims)
        return _end_for_client(runtime, connection, row, context)


def _end_for_client(runtime: Runtime, connection: Connection, row: RefreshToken, context: Context) -> bool:
    """End a login because its client says so; whether that changed anything."""
    now, actor = runtime.clock(), f"client {row.client_id}"
    return bool(_end(connection, row, now=now, reason="revoked by the client", actor=actor, context=context))


def _named_login(connection: Connection, token: PresentedToken, client_id: str) -> RefreshToken | None:
    """The login that a genuine string of any generation names; None when it is purged.

    Raises TokenRefused for another client's, and when the string was superseded by a re-issue.
    """
    row = tokens.get(connection, token.token_id)
    if row is None:
        return None
    if row.client_id != client_id:
        raise TokenRefused(Reason.WRONG_CLIENT, token_id=row.id)
    if not hmac.compare_digest(row.secret_hash, token.secret_hash):
        raise TokenRefused(Reason.SUPERSEDED, token_id=row.id)
    return row


def _end(
    connection: Connection, row: RefreshToken, *, now: int, reason: str, actor: str, context: Context
) -> list[Revoked]:
    """Revoke one login, with its event; nothing when it is dead already."""
    mark = bearers_mark(now, reason, actor, context)
    return revoking.revoke_ids(connection, [ids.to_bytes(row.id)], mark)
