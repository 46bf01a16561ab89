"""Users and clients: creating, disabling, deleting, passwords.

Owns that whatever ends a user's right to be logged in ends the logins in the same transaction.
Passwords are hashed before a transaction begins, so that nobody waits for a hash, and in the executor
that was given for it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from tokenctl.core import client_secret, ids
from tokenctl.core.context import NO_CONTEXT, Context
from tokenctl.core.names import DEFAULT_CLIENT, clean_client_id, clean_note, clean_user_name
from tokenctl.errors import (
    ClientExists,
    ClientNotFound,
    ClientRefused,
    InvalidInput,
    PasswordRefused,
    UserExists,
    WrongPassword,
)
from tokenctl.service.revocation import Progress, Stop, exposure, never, revoke_all_of_user, unseen
from tokenctl.service.runtime import Runtime, micros
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, users
from tokenctl.storage.engine import Connection
from tokenctl.storage.events import Event
from tokenctl.storage.revoking import Revoked
from tokenctl.storage.users import Client, User

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tokenctl.core.passwords import PasswordHasher, PasswordPolicy, Verified
    from tokenctl.service.importing import Import, NewUser, Report, Unusable

_P = ParamSpec("_P")
_R = TypeVar("_R")

_PAGE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UserChange:
    """What a change did to a user. access_exposure_until (µs): as in `Revocation`."""

    user: User
    revoked: int = 0
    access_exposure_until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClient(Client):
    """A client that was just made. Its secret stands nowhere else; None for one that users log in to."""

    secret: str | None = field(repr=False)


class UserService:
    """Reached as `TokenService.users`. A user is named by its name, without case, or by its `usr_…`."""

    def __init__(
        self, runtime: Runtime, passwords: PasswordPolicy | None, hashing: Executor | None = None
    ) -> None:
        self._runtime = runtime
        self._given_policy = passwords
        self._hashing = hashing

    # --- reading ---

    @repeated
    def get(self, user: str) -> User:
        """The user. Raises UserNotFound."""
        with self._runtime.storage.read() as connection:
            return users.require(connection, user)

    def list(self) -> Iterator[User]:
        """All users in order of name, in constant memory."""
        after: str | None = None
        while True:
            with self._runtime.storage.read() as connection:
                page = users.page(connection, after=after, limit=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].name

    @repeated
    def count(self) -> int:
        """How many users there are."""
        with self._runtime.storage.read() as connection:
            return users.count(connection)

    # --- changing ---

    @repeated
    def create(
        self,
        name: str,
        password: str | None = None,
        *,
        password_hash: str | None = None,
        actor: str | None = None,
    ) -> User:
        """A new user. Without a password it can be issued tokens, and not log in.

        `password_hash` takes over a hash of an older system instead; it is upgraded at the first login.
        Raises InvalidInput, PasswordRefused, UserExists.
        """
        name = clean_user_name(name)
        if password is not None and password_hash is not None:
            raise InvalidInput("give a password or a password hash, not both", hint="leave one of them out")
        if password is not None:
            password_hash = self._new_hash(password, name)
        elif password_hash is not None:
            self._demand_known_scheme(password_hash)
        now = self._runtime.clock()
        raw_id = ids.uuid7(now, self._runtime.entropy(10))
        with self._runtime.storage.write() as connection:
            if users.insert(connection, raw_id=raw_id, name=name, password_hash=password_hash, now=now):
                user = users.require(connection, ids.user_id(raw_id))
                self._note(connection, "user.create", user, now, actor)
                return user
        raise UserExists(f"there is a user {name} already", hint=f"tokenctl user show {name}")

    def import_many(
        self,
        records: Iterable[NewUser | Unusable],
        *,
        dry_run: bool = False,
        actor: str | None = None,
        stop: Stop = never,
        progress: Progress = unseen,
        report: Report | None = None,
    ) -> Import:
        """New users with their password hashes, as `create` makes one; `user_lines.read` reads them.

        A name that is there already is left as it is, so the same call goes on after an interruption. What
        cannot be used is counted and reported, and the rest is done.
        """
        from tokenctl.service.importing import import_users, nobody

        return import_users(
            self._runtime,
            records,
            actor=self._runtime.who(actor),
            dry_run=dry_run,
            stop=stop,
            progress=progress,
            report=report or nobody,
        )

    @repeated
    def disable(
        self,
        user: str,
        *,
        duration: timedelta | None = None,
        reason: str = "user disabled",
        actor: str | None = None,
    ) -> UserChange:
        """Keep a user out: for good, which revokes every login, or for a time, which revokes nothing.

        Raises UserNotFound, InvalidInput.
        """
        if duration is not None and duration <= timedelta(0):
            raise InvalidInput("a user is disabled for more than 0 s", hint="for example 24h")
        with self._runtime.storage.write() as connection:
            found = users.require(connection, user, lock=True)
            now = self._runtime.clock()
            if duration is not None and found.disabled_at is not None and found.disabled_until is None:
                raise InvalidInput(
                    f"{found.name} is disabled for good, and a time would end that",
                    hint=f"tokenctl user enable {found.name}, if that is meant",
                )
            until = None if duration is None else now + micros(duration)
            since = found.disabled_at if found.is_disabled(now) else now
            users.set_disabled(connection, found.id, at=since, until=until)
            self._note(connection, "user.disable", found, now, actor, reason=reason, until=until)
            ended = [] if until else self._end_logins(connection, found, now, reason, actor)
            return self._changed(users.require(connection, found.id), ended)

    @repeated
    def enable(self, user: str, *, actor: str | None = None) -> UserChange:
        """Let a user in again. Revoked logins stay revoked. Raises UserNotFound."""
        with self._runtime.storage.write() as connection:
            found = users.require(connection, user, lock=True)
            users.set_disabled(connection, found.id, at=None, until=None)
            self._note(connection, "user.enable", found, self._runtime.clock(), actor)
            return self._changed(users.require(connection, found.id), [])

    @repeated
    def delete(self, user: str, *, reason: str = "user deleted", actor: str | None = None) -> UserChange:
        """Delete a user and, by cascade, every login; each alive leaves an event. Raises UserNotFound."""
        with self._runtime.storage.write() as connection:
            found = users.require(connection, user, lock=True)
            now = self._runtime.clock()
            ended = self._end_logins(connection, found, now, reason, actor)
            users.delete(connection, found.id)
            self._note(connection, "user.delete", found, now, actor, reason=reason)
            return self._changed(found, ended)

    @repeated
    def set_password(
        self, user: str, password: str, *, reason: str = "password changed", actor: str | None = None
    ) -> UserChange:
        """A new password, set by an operator; every login of the user ends with the old one.

        Raises UserNotFound, PasswordRefused.
        """
        password_hash = self._new_hash(password, self.get(user).name)
        with self._runtime.storage.write() as connection:
            found = users.require(connection, user, lock=True)
            now = self._runtime.clock()
            users.set_password_hash(connection, found.id, password_hash)
            self._note(connection, "user.password", found, now, actor, reason=reason)
            ended = self._end_logins(connection, found, now, reason, actor)
            return self._changed(users.require(connection, found.id), ended)

    @repeated
    def change_password(
        self,
        user_id: str,
        current: str,
        new: str,
        *,
        keep: str | None,
        context: Context = NO_CONTEXT,
    ) -> UserChange:
        """A new password, set by the user; every login ends but `keep`, the `rt_…` that authorised it.

        Raises WrongPassword, alike when `current` is wrong, when it was changed during the call and when the
        user is disabled; PasswordRefused, also for the current one again; UserNotFound, InvalidInput.
        """
        user = self.get(ids.parse_user_id(user_id))
        keep = None if keep is None else ids.parse_token_id(keep)
        if not self._verify(current, user.password_hash).ok:
            raise self._refused_change(user, "wrong_password", context)
        if new == current:
            raise PasswordRefused("the new password is the current one", hint="use another one")
        password_hash = self._new_hash(new, user.name)
        reason = "password changed by the user"
        with self._runtime.storage.write() as connection:
            found = users.require(connection, user.id, lock=True)
            now = self._runtime.clock()
            if not found.is_disabled(now) and users.set_password_hash(
                connection, found.id, password_hash, instead_of=user.password_hash
            ):
                self._note(connection, "user.password", found, now, user.name, reason=reason, context=context)
                ended = self._end_logins(
                    connection, found, now, reason, user.name, keep=keep, context=context
                )
                return self._changed(users.require(connection, found.id), ended)
        why = "user_disabled" if found.is_disabled(now) else "password_changed"
        raise self._refused_change(user, why, context)

    def authenticate(
        self,
        name: str,
        password: str,
        *,
        client_id: str = DEFAULT_CLIENT,
        context: Context = NO_CONTEXT,
    ) -> User:
        """The user whose password this is; a hash of an older scheme is upgraded.

        Raises WrongPassword, alike and after one hash for a wrong password, an unknown and a disabled user;
        the reason is in the audit log. `TokenService.login` goes on from here. Who calls `issue` instead
        hands it the result's `password_hash`, or a login that began before a password change survives it.
        """
        client_id = clean_client_id(client_id)  # before the password: a refusal must not tell of it
        with self._runtime.storage.read() as connection:
            user = users.find(connection, name)
        verified = self._verify(password, user.password_hash if user else None)
        if user is None or not verified.ok:
            reason = "no_such_user" if user is None else "wrong_password"
            self._failed(user, reason, client_id, context)
        if user.is_disabled(self._runtime.clock()):
            self._failed(user, "user_disabled", client_id, context)
        if verified.upgraded_hash is None:
            return user
        with self._runtime.storage.write() as connection:
            if users.set_password_hash(
                connection, user.id, verified.upgraded_hash, instead_of=user.password_hash
            ):
                return users.require(connection, user.id)
        # Changed meanwhile: by another login's upgrade, or by a new password. Which, only a new look tells.
        return self.authenticate(name, password, client_id=client_id, context=context)

    # --- shared ---

    @cached_property
    def _policy(self) -> PasswordPolicy:
        from tokenctl.core.passwords import PasswordPolicy

        shortest = self._runtime.settings.password_min_length
        return self._given_policy or PasswordPolicy(min_length=shortest)

    @cached_property
    def _hasher(self) -> PasswordHasher:
        from tokenctl.core.passwords import PasswordHasher

        return PasswordHasher(self._policy)

    def _new_hash(self, password: str, user_name: str) -> str:
        from tokenctl.core.passwords import check_new_password

        check_new_password(password, user_name, self._policy)
        return self._compute(self._hasher.hash, password)

    def _verify(self, password: str, password_hash: str | None) -> Verified:
        return self._compute(self._hasher.verify, password, password_hash)

    def _compute(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """What costs a password's hash, in the executor when there is one. Never inside a transaction."""
        if self._hashing is None:
            return function(*args, **kwargs)
        return self._hashing.submit(function, *args, **kwargs).result()

    @staticmethod
    def _demand_known_scheme(password_hash: str) -> None:
        from tokenctl.core.passwords import known_scheme

        if not known_scheme(password_hash):
            raise InvalidInput(
                "the password hash is of no scheme that can be verified",
                hint="make the user without it, and set a new password: tokenctl user passwd NAME",
            )

    @repeated
    def _failed(self, user: User | None, reason: str, client_id: str, context: Context) -> NoReturn:
        """Note a failed login, then raise. A name that is no user's may be a password: it is not noted."""
        with self._runtime.storage.write() as connection:
            at = self._runtime.clock()
            event = Event(
                at=at,
                type="login.failed",
                user_id=user.id if user else None,
                client_id=client_id,
                ip=context.ip,
                reason=reason,
                data={"user_agent": context.user_agent},
            )
            events.add(connection, [event])
        raise WrongPassword("the user name or the password is wrong")

    @repeated
    def _refused_change(self, user: User, reason: str, context: Context) -> WrongPassword:
        """Note that a user could not change the password; what to raise for it."""
        with self._runtime.storage.write() as connection:
            now = self._runtime.clock()
            self._note(connection, "password.failed", user, now, user.name, reason=reason, context=context)
        return WrongPassword("the current password is wrong")

    def _end_logins(
        self,
        connection: Connection,
        user: User,
        now: int,
        reason: str,
        actor: str | None,
        *,
        keep: str | None = None,
        context: Context = NO_CONTEXT,
    ) -> Sequence[Revoked]:
        return revoke_all_of_user(
            connection,
            user.id,
            now=now,
            reason=reason,
            actor=self._runtime.who(actor),
            keep=keep,
            context=context,
        )

    def _changed(self, user: User, ended: Sequence[Revoked]) -> UserChange:
        latest = max((row.access_until for row in ended), default=0)
        return UserChange(
            user=user, revoked=len(ended), access_exposure_until=exposure(self._runtime, latest)
        )

    def _note(
        self,
        connection: Connection,
        type_: str,
        user: User,
        now: int,
        actor: str | None,
        *,
        reason: str | None = None,
        context: Context = NO_CONTEXT,
        **facts: int | None,
    ) -> None:
        whence = {} if context.user_agent is None else {"user_agent": context.user_agent}
        events.add(
            connection,
            [
                Event(
                    at=now,
                    type=type_,
                    actor=self._runtime.who(actor),
                    user_id=user.id,
                    ip=context.ip,
                    reason=None if reason is None else clean_note(reason),
                    data={"name": user.name, **facts, **whence},
                )
            ],
        )


class ClientService:
    """Reached as `TokenService.clients`: the applications that users log in to."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @repeated
    def create(self, client_id: str, *, introspect: bool = False, actor: str | None = None) -> NewClient:
        """A new client that users log in to; or, with `introspect`, a resource server with a secret.

        Raises InvalidInput, ClientExists.
        """
        client_id = clean_client_id(client_id)
        secret = None
        if introspect:
            secret = client_secret.format_secret(self._runtime.entropy(client_secret.SECRET_BYTES))
        secret_hash = None if secret is None else client_secret.hash_secret(secret)
        facts = {"may_introspect": True} if introspect else {}
        with self._runtime.storage.write() as connection:
            now = self._runtime.clock()
            if users.insert_client(connection, client_id, now=now, secret_hash=secret_hash):
                self._note(connection, "client.create", client_id, now, actor, **facts)
                return NewClient(
                    id=client_id, created_at=now, not_before=0, may_introspect=introspect, secret=secret
                )
        raise ClientExists(f"there is a client {client_id} already", hint="tokenctl client list")

    @repeated
    def require(self, client_id: str) -> Client:
        """The client. Raises InvalidInput, ClientNotFound."""
        client_id = clean_client_id(client_id)
        with self._runtime.storage.read() as connection:
            found = users.get_client(connection, client_id)
        if found is None:
            raise ClientNotFound(f"there is no client {client_id}")
        return found

    @repeated
    def authenticate(self, client_id: str, secret: str) -> Client:
        """The resource server whose secret this is.

        Raises ClientRefused, alike for a wrong secret, a client without one, an unknown client and nonsense.
        """
        given = client_secret.hash_secret(secret)
        try:
            client_id = clean_client_id(client_id)
        except InvalidInput:
            given = None  # no such client can be
        if given is not None:
            with self._runtime.storage.read() as connection:
                found = users.get_secret_client(connection, client_id)
            if found is not None and hmac.compare_digest(found[1], given):
                return found[0]
        raise ClientRefused("the client is not known, or its secret is wrong")

    @repeated
    def list(self) -> list[Client]:
        """All clients in order of id."""
        with self._runtime.storage.read() as connection:
            return list(users.all_clients(connection))

    @repeated
    def delete(self, client_id: str, *, actor: str | None = None) -> None:
        """Delete a client that nobody is logged in to. Raises ClientNotFound, InvalidInput."""
        if client_id == DEFAULT_CLIENT:
            raise InvalidInput(
                f"the client {DEFAULT_CLIENT} stands for logins that name none, and stays",
                hint="tokenctl client list",
            )
        with self._runtime.storage.write() as connection:
            if users.get_client(connection, client_id) is None:
                raise ClientNotFound(f"there is no client {client_id}")
            if users.delete_client(connection, client_id):
                self._note(connection, "client.delete", client_id, self._runtime.clock(), actor)
                return
        raise InvalidInput(
            f"the client {client_id} still has refresh tokens",
            hint=f"tokenctl revoke --client {client_id}, and delete it when they are purged",
        )

    def _note(
        self, connection: Connection, type_: str, client_id: str, now: int, actor: str | None, **facts: bool
    ) -> None:
        event = Event(at=now, type=type_, actor=self._runtime.who(actor), client_id=client_id, data=facts)
        events.add(connection, [event])
