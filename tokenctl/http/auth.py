"""The handlers under /auth: register, log in, refresh, log out, and what a user sees of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from tokenctl import RotateRequest
from tokenctl.errors import (
    Busy,
    ClientNotFound,
    InvalidAccessToken,
    InvalidInput,
    InvalidScope,
    InvalidToken,
    PasswordRefused,
    Throttled,
    TokenctlError,
    TokenNotFound,
    TokenRefused,
    UserExists,
    WrongPassword,
)
from tokenctl.http import messages
from tokenctl.http.endpoint import Answer, Endpoint
from tokenctl.http.problems import CredentialsMissing, CurrentPasswordWrong, Forbidden
from tokenctl.http.site import MAX_LOGINS

if TYPE_CHECKING:
    from tokenctl import TokenPair
    from tokenctl.http.call import Call
    from tokenctl.http.site import Site

_SECOND = 1_000_000


# --- logging in ----------------------------------------------------------------------------


async def register(call: Call, body: messages.Register) -> Answer:
    """Create a user and log it in.

    A name that is taken is told (409): here, and nowhere else, one can learn who has an account. Hence
    registrations are limited for each address.
    """
    site = call.site
    if site.settings.registration == "closed":
        raise Forbidden("registration is closed: an operator makes the users")
    async with site.slow_refusals():
        site.throttle.address("register", call.ip)
        _demand_room(site)
        site.throttle.address_failed("register", call.ip)
        pair = await site.logins.run(
            site.service.register,
            body.username,
            body.password,
            client_id=body.client_id,
            scope=body.scope,
            context=call.context,
        )
    return _answer(call, pair, status=201)


async def login(call: Call, body: messages.Login) -> Answer:
    """Log in with name and password.

    A wrong password and an unknown or disabled user get the same answer, after the same work. Too many
    failures of one account or from one address: 429.
    """
    site = call.site
    call.client_id = body.client_id
    context = call.context
    try:
        async with site.slow_refusals():
            _demand_room(site)
            site.throttle.attempt(body.username, call.ip)
            pair = await site.logins.run(
                site.service.login,
                body.username,
                body.password,
                client_id=body.client_id,
                scope=body.scope,
                context=context,
            )
    except Throttled:
        site.metrics.login("throttled")
        raise
    except WrongPassword:
        site.throttle.address_failed("login", call.ip)
        site.metrics.login("failed")
        raise
    site.throttle.succeeded(body.username, call.ip)
    site.metrics.login("ok")
    return _answer(call, pair)


def _demand_room(site: Site) -> None:
    """Raises Busy when no password can be looked at now; asked before an attempt is counted.

    Else a flood that is turned away with 503 would use up an account's attempts.
    """
    if site.logins.held >= MAX_LOGINS:
        raise Busy("too many calls are waiting (logins)")


# --- refreshing ----------------------------------------------------------------------------


async def refresh(
    call: Call, body: messages.Refresh | messages.RefreshByCookie
) -> Answer | messages.TokenPair:
    """A new access token, and the refresh token that takes the place of the presented one.

    Was the answer lost, present the same string again: within the grace (30 s by default) it gets the same
    new one. Later a spent string is reuse: the login ends. All refusals look alike (401, `invalid_grant`);
    a 503 is none, so keep the string and repeat.
    """
    return _answer(call, await rotate(call, _presented(call, body), body.client_id, body.scope))


async def rotate(call: Call, refresh_token: str, client_id: str, scope: str | None) -> TokenPair:
    """One rotation through the group commit, counted and noted for the log."""
    site = call.site
    call.client_id = client_id
    try:
        pair = await site.rotations.rotate(RotateRequest(refresh_token, client_id, call.context, scope))
    except TokenctlError as error:
        site.metrics.refused(error)
        raise
    site.metrics.rotated(retried=pair.retried)
    return pair


async def logout(call: Call, body: messages.Logout | messages.LogoutByCookie) -> Answer:
    """End the login of a refresh token of any generation, or with `all` every login of its user.

    A login that is over already is no error. What is no refresh token of ours, or another client's: 401.
    """
    site = call.site
    call.client_id = body.client_id
    done = await site.database.run(
        site.service.logout,
        _presented(call, body),
        client_id=body.client_id,
        everywhere=body.all,
        context=call.context,
    )
    site.metrics.revoked(done.revoked)
    return Answer(None, site.cookie(None))


def _presented(
    call: Call,
    body: messages.Refresh | messages.Logout | messages.RefreshByCookie | messages.LogoutByCookie,
) -> str:
    if isinstance(body, messages.Refresh | messages.Logout):
        return body.refresh_token
    return call.site.refresh_token_of(call)


def _answer(call: Call, pair: TokenPair, *, status: int | None = None) -> Answer:
    call.user_id, call.token_id, call.client_id = pair.user_id, pair.token_id, pair.client_id
    if pair.retried:
        call.reason = "retried"
    issued = pair.issued_at // _SECOND
    message = messages.TokenPair(
        access_token=pair.access_token,
        token_type="Bearer",  # noqa: S106 - the name of a kind of token
        expires_in=pair.access_expires_at // _SECOND - issued,
        refresh_expires_in=pair.refresh_expires_at // _SECOND - issued,
        scope=pair.scope,
        user=messages.User(id=pair.user_id, name=pair.user_name or UNSET),
        refresh_token=UNSET if call.site.settings.cookies else pair.refresh_token,
    )
    return Answer(message, call.site.cookie(pair), status=status)


# --- what a user sees of itself ------------------------------------------------------------


async def me(call: Call, _: None) -> messages.Me:
    """The user of the access token, whose login must still live."""
    access = await call.site.access(call)
    return messages.Me(
        id=access.user_id,
        name=access.user_name,
        client_id=access.client_id,
        scope=access.scope,
        session_id=access.token_id,
        expires_at=access.expires_at // _SECOND,
    )


async def sessions(call: Call, _: None) -> messages.Sessions:
    """The user's own logins that live, the most recently used first."""
    site = call.site
    access = await site.access(call)
    found = await site.database.run(site.service.sessions, access.user_id)
    return messages.Sessions(
        [
            messages.Session(
                id=token.id,
                client_id=token.client_id,
                scope=token.scope,
                current=token.id == access.token_id,
                created_at=token.created_at // _SECOND,
                last_used_at=token.rotated_at // _SECOND,
                expires_at=token.expires_at // _SECOND,
                ip=token.last.ip_text,
                user_agent=token.last.user_agent,
            )
            for token in found
        ]
    )


async def end_session(call: Call, _: None) -> None:
    """End one of the user's own logins, this one too. One that is over already is no error."""
    site = call.site
    access = await site.access(call)
    ended = await site.database.run(
        site.service.end_session,
        access.user_id,
        call.path_params["id"],
        actor=access.user_name,
        context=call.context,
    )
    site.metrics.revoked(int(ended))


async def change_password(call: Call, body: messages.ChangePassword) -> None:
    """Change the password, which needs the current one, and end every other login of the user.

    A wrong current password is 403: no refresh will help.
    """
    site = call.site
    access = await site.access(call)
    context = call.context
    try:
        async with site.slow_refusals():
            _demand_room(site)
            site.throttle.attempt(access.user_name, call.ip)
            done = await site.logins.run(
                site.service.users.change_password,
                access.user_id,
                body.current_password,
                body.new_password,
                keep=access.token_id,
                context=context,
            )
    except WrongPassword:
        site.throttle.address_failed("login", call.ip)
        raise CurrentPasswordWrong("the current password is wrong") from None
    site.throttle.succeeded(access.user_name, call.ip)
    site.metrics.revoked(done.revoked)


# --- the table -----------------------------------------------------------------------------

_PAIR = {
    "access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCIsImtpZCI6IuKApiJ9.….…",
    "token_type": "Bearer",
    "expires_in": 600,
    "refresh_expires_in": 2592000,
    "scope": "profile",
    "user": {"id": "usr_019bea1e1a4079f59b5c564be5227e58", "name": "ada"},
    "refresh_token": "tkr1_AQGcuy…",
}
_ID = "rt_019cda793b007ec8a12e959598c44c6b"
_LOGIN = {"username": "ada", "password": "seven otters knit at dawn"}
_BEARER = (CredentialsMissing, InvalidAccessToken, Busy)

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/auth/refresh",
        handler=refresh,
        summary="Refresh: a new pair for a refresh token",
        tag="auth",
        request=messages.Refresh,
        request_by_cookie=messages.RefreshByCookie,
        response=messages.TokenPair,
        errors=(InvalidToken, TokenRefused, InvalidScope, Busy),
        guarded=True,
        request_example={"refresh_token": "tkr1_AQGcuy…"},
        response_example=_PAIR | {"user": {"id": _PAIR["user"]["id"]}},  # type: ignore[index] # it is a dict
    ),
    Endpoint(
        method="POST",
        path="/auth/login",
        handler=login,
        summary="Log in with name and password",
        tag="auth",
        request=messages.Login,
        response=messages.TokenPair,
        errors=(WrongPassword, ClientNotFound, InvalidScope, Throttled, Busy),
        guarded=True,
        request_example=_LOGIN,
        response_example=_PAIR,
    ),
    Endpoint(
        method="POST",
        path="/auth/register",
        handler=register,
        summary="Register a user, and log it in",
        tag="auth",
        request=messages.Register,
        response=messages.TokenPair,
        status=201,
        errors=(
            InvalidInput,
            PasswordRefused,
            UserExists,
            ClientNotFound,
            InvalidScope,
            Forbidden,
            Throttled,
            Busy,
        ),
        guarded=True,
        request_example=_LOGIN,
        response_example=_PAIR,
    ),
    Endpoint(
        method="POST",
        path="/auth/logout",
        handler=logout,
        summary="Log out, here or everywhere",
        tag="auth",
        request=messages.Logout,
        request_by_cookie=messages.LogoutByCookie,
        status=204,
        errors=(InvalidToken, TokenRefused, Busy),
        guarded=True,
        request_example={"refresh_token": "tkr1_AQGcuy…", "all": False},
    ),
    Endpoint(
        method="GET",
        path="/auth/me",
        handler=me,
        summary="The user of the access token",
        tag="auth",
        response=messages.Me,
        errors=_BEARER,
        credentials="bearer",
        response_example={
            "id": "usr_019bea1e1a4079f59b5c564be5227e58",
            "name": "ada",
            "client_id": "default",
            "scope": "profile",
            "session_id": _ID,
            "expires_at": 1773457800,
        },
    ),
    Endpoint(
        method="GET",
        path="/auth/sessions",
        handler=sessions,
        summary="The user's own logins",
        tag="auth",
        response=messages.Sessions,
        errors=_BEARER,
        credentials="bearer",
        response_example={
            "sessions": [
                {
                    "id": _ID,
                    "client_id": "default",
                    "scope": "profile",
                    "current": True,
                    "created_at": 1773457200,
                    "last_used_at": 1773457200,
                    "expires_at": 1776049200,
                    "ip": "203.0.113.7",
                    "user_agent": "Mozilla/5.0",
                }
            ]
        },
    ),
    Endpoint(
        method="DELETE",
        path="/auth/sessions/{id}",
        handler=end_session,
        summary="End one of the user's own logins",
        tag="auth",
        status=204,
        errors=(*_BEARER, TokenNotFound),
        credentials="bearer",
    ),
    Endpoint(
        method="POST",
        path="/auth/password",
        handler=change_password,
        summary="Change the password",
        tag="auth",
        request=messages.ChangePassword,
        status=204,
        errors=(*_BEARER, CurrentPasswordWrong, PasswordRefused, Throttled),
        credentials="bearer",
        guarded=True,
        request_example={
            "current_password": "seven otters knit at dawn",
            "new_password": "nine herons paint by noon",
        },
    ),
)
