"""Issuing: a new login, and a new string for an old one.

Owns what is demanded of a user before a login may begin. The pair is signed after the commit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

from tokenctl.core import ids, token_string
from tokenctl.core.context import Context
from tokenctl.core.names import clean_client_id, clean_note, clean_scope
from tokenctl.core.rotation import Presented, judge
from tokenctl.core.token_string import SECRET_BYTES
from tokenctl.errors import (
    ClientNotFound,
    Contended,
    InvalidInput,
    TokenNotFound,
    TokenRefused,
    UserDisabled,
    WrongPassword,
)
from tokenctl.service.pair import TokenPair, make_pair
from tokenctl.service.revocation import exposure
from tokenctl.service.runtime import Runtime, micros
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, swap, tokens, users
from tokenctl.storage.engine import Connection
from tokenctl.storage.events import Event
from tokenctl.storage.users import Client, User

_LONGEST_LIFE = timedelta(days=3650)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reissue:
    """A login that an operator re-issued by id: the only string that is good for it now. Instants in µs."""

    token_id: str
    refresh_token: str = field(repr=False)
    refresh_expires_at: int
    access_exposure_until: int | None


@repeated
def issue(
    runtime: Runtime,
    user: str,
    *,
    client_id: str,
    scope: str,
    ttl: timedelta | None,
    context: Context,
    verified_password_hash: str | None,
    actor: str | None,
) -> TokenPair:
    """See `TokenService.issue`."""
    scope, client_id = clean_scope(scope), clean_client_id(client_id)
    lifetime = _lifetime(runtime, ttl)
    key = runtime.signing_key  # a missing one must be found before anything is committed
    idle_ttl = runtime.settings.idle_ttl
    with runtime.storage.write() as connection:
        owner = _may_log_in(runtime, connection, user, client_id, verified_password_hash)
        now = runtime.clock()
        raw_id, secret = ids.uuid7(now, runtime.entropy(10)), runtime.entropy(SECRET_BYTES)
        access_until = now + min(runtime.access_ttl, lifetime)
        tokens.insert(
            connection,
            raw_id=raw_id,
            user_id=ids.to_bytes(owner.id),
            client_id=client_id,
            scope=scope,
            secret_hash=token_string.hash_secret(secret),
            now=now,
            access_until=access_until,
            expires_at=now + lifetime,
            idle_ttl=None if idle_ttl is None else micros(idle_ttl),
            context=context,
        )
        event = Event(
            at=now,
            type="token.issue",
            actor=runtime.who(actor),
            user_id=owner.id,
            token_id=ids.token_id(raw_id),
            client_id=client_id,
            ip=context.ip,
            data={"expires_at": now + lifetime, "user_agent": context.user_agent},
        )
        login = replace(event, type="login.ok", data={}) if verified_password_hash else None
        events.add(connection, [event] if login is None else [login, event])
    return make_pair(
        runtime,
        key=key,
        refresh_token=token_string.mint(raw_id, 0, secret, runtime.keys.mac),
        token_id=ids.token_id(raw_id),
        user_id=owner.id,
        client_id=client_id,
        scope=scope,
        now=now,
        access_until=access_until,
        expires_at=now + lifetime,
        user_name=owner.name,
    )


@repeated
def reissue(runtime: Runtime, token_id: str, *, reason: str, actor: str | None) -> Reissue:
    """See `TokenService.reissue`."""
    token_id, reason = ids.parse_token_id(token_id), clean_note(reason)
    mac_key = runtime.keys.mac
    secret = runtime.entropy(SECRET_BYTES)
    with runtime.storage.write() as connection:
        row = tokens.get(connection, token_id)
        now = runtime.clock()
        if row is None:
            raise TokenNotFound(f"there is no refresh token {token_id}")
        # Its own current string, judged: whatever would refuse that refuses this.
        mine = Presented(row.generation, row.secret_hash, row.client_id)
        if (reason_against := judge(row, mine, now, runtime.policy).reason) is not None:
            raise TokenRefused(reason_against, token_id=row.id)
        secret_hash = token_string.hash_secret(secret)
        if not swap.replace_secret(connection, row, secret_hash=secret_hash, now=now):
            raise Contended(f"{row.id} changed during the call")
        event = Event(
            at=now,
            type="token.reissue",
            actor=runtime.who(actor),
            user_id=row.user_id,
            token_id=row.id,
            client_id=row.client_id,
            reason=reason,
            data={
                "generation": row.generation + 1,
                "access_until": row.access_until,
                "last_ip": row.last.ip_text,
                "last_user_agent": row.last.user_agent,
            },
        )
        events.add(connection, [event])
    return Reissue(
        token_id=row.id,
        refresh_token=token_string.mint(ids.to_bytes(row.id), row.generation + 1, secret, mac_key),
        refresh_expires_at=row.expires_at,
        access_exposure_until=exposure(runtime, row.access_until),
    )


def _may_log_in(
    runtime: Runtime, connection: Connection, user: str, client_id: str, verified_password_hash: str | None
) -> User:
    """The user, whose row stays locked until the commit."""
    owner = users.require(connection, user, lock=True)
    if owner.is_disabled(runtime.clock()):
        raise UserDisabled(f"the user {owner.name} is disabled", hint=f"tokenctl user enable {owner.name}")
    if verified_password_hash is not None and verified_password_hash != owner.password_hash:
        raise WrongPassword("the password was changed during the login")
    client = users.get_client(connection, client_id)
    if client is None:
        raise ClientNotFound(f"there is no client {client_id}", hint=f"tokenctl client create {client_id}")
    demand_login_client(client)
    return owner


def demand_login_client(client: Client) -> None:
    """Raises InvalidInput for a resource server: it has a secret, and nobody logs in to it."""
    if client.may_introspect:
        raise InvalidInput(
            f"{client.id} is a resource server, which asks about tokens: nobody logs in to it",
            hint="name the client that the user has in hand; tokenctl client list",
        )


def _lifetime(runtime: Runtime, ttl: timedelta | None) -> int:
    lifetime = runtime.settings.refresh_ttl if ttl is None else ttl
    if not timedelta(0) < lifetime <= _LONGEST_LIFE:
        raise InvalidInput(
            f"a refresh token lives for more than 0 s and at most {_LONGEST_LIFE.days} days",
            hint="for example 30d",
        )
    return micros(lifetime)
