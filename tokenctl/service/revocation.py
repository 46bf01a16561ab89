"""Revoking by a selector; and looking at what that would hit before it is done.

Owns what every revocation is asked for with and tells. Large sets go in chunks, each its own transaction, in
order of id, so that rotations stay fast and a second run goes on where one stopped. What is named by ids and
strings is in `targets`, what a dry run has shown in `plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter

from tokenctl.core import ids
from tokenctl.core.context import NO_CONTEXT, Context
from tokenctl.core.names import clean_client_id
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.selector import Selector
from tokenctl.errors import ClientNotFound
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import revoking, tokens, users
from tokenctl.storage.engine import Connection
from tokenctl.storage.revoking import Mark, Revoked

#: Asked between chunks; True ends the work there.
Stop = Callable[[], bool]
#: Told how many of the targets a chunk has dealt with.
Progress = Callable[[int], None]
_SMALLEST_ID = b""
_USER_ID, _ACCESS_UNTIL = attrgetter("user_id"), attrgetter("access_until")


def never() -> bool:
    """The `stop` of a caller who lets the work run to its end."""
    return False


def unseen(_done: int) -> None:
    """The `progress` of a caller who does not watch."""


@dataclass(frozen=True, slots=True)
class Order:
    """Why, by whom, and how a revocation is watched and stopped."""

    reason: str
    actor: str
    stop: Stop = never
    progress: Progress = unseen
    #: The plan that it acts on; stands in its events.
    plan_id: str | None = None

    def mark(self, now: int) -> Mark:
        """What it leaves in rows and events."""
        data = {} if self.plan_id is None else {"plan": self.plan_id}
        return Mark(now, self.reason, self.actor, data=data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What a revocation did. `users`: of the revoked ones.

    access_exposure_until (µs): until then access tokens of these logins may still be accepted by whoever
    checks only their signature; None when none lives any more.
    """

    revoked: int = 0
    already_dead: int = 0
    unknown: int = 0
    forged: int = 0
    malformed: int = 0
    users: int = 0
    access_exposure_until: int | None = None
    #: False when `stop` ended it before the whole set was done.
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a revocation would hit: live and blocked tokens, and of how many users. Instants in µs."""

    tokens: int = 0
    users: int = 0
    already_dead: int = 0
    unknown: int = 0
    forged: int = 0
    malformed: int = 0
    last_used_at: int | None = None
    access_exposure_until: int | None = None
    #: Selects exactly what was looked at.
    selector: Selector = field(default_factory=Selector)


def revoke_matching(runtime: Runtime, selector: Selector, order: Order) -> Revocation:
    """Revoke all that the selector matches and that is not dead, in chunks of CHUNK."""
    before = preview(runtime, selector)
    revoked, users_hit, latest, complete = 0, set[bytes](), before.access_exposure_until or 0, True
    for done in _revoke_chunks(runtime, before.selector, order):
        if done is None:
            complete = False
            break
        revoked += len(done)
        users_hit.update(map(_USER_ID, done))
        latest = max(latest, *map(_ACCESS_UNTIL, done))
        order.progress(len(done))
    return Revocation(
        revoked=revoked,
        already_dead=before.already_dead,
        users=len(users_hit),
        access_exposure_until=exposure(runtime, latest),
        complete=complete,
    )


def _revoke_chunks(runtime: Runtime, selector: Selector, order: Order) -> Iterator[list[Revoked] | None]:
    """What each chunk's transaction revoked; None when it was told to stop before the end."""
    for part in parts(selector):
        after = _SMALLEST_ID
        while True:
            if order.stop():
                yield None
                return
            if not (done := _revoke_next(runtime, part, order, after)):
                break
            yield done
            after = done[-1].raw_id


@repeated
def _revoke_next(runtime: Runtime, part: Selector, order: Order, after: bytes) -> list[Revoked]:
    with runtime.storage.write() as connection:
        return revoking.revoke_next(connection, part, order.mark(runtime.clock()), after=after)


def bearers_mark(now: int, reason: str, actor: str | None, context: Context) -> Mark:
    """What it leaves that a bearer asked for, from there."""
    data = {} if context.user_agent is None else {"user_agent": context.user_agent}
    return Mark(now, reason, actor, context.ip, data)


def revoke_all_of_user(
    connection: Connection,
    user_id: str,
    *,
    now: int,
    reason: str,
    actor: str | None,
    keep: str | None = None,
    context: Context = NO_CONTEXT,
) -> list[Revoked]:
    """All logins of one user but `keep`, in the caller's transaction: what ends them is not without it."""
    selector = Selector(users=(user_id,))
    every: list[Revoked] = []
    after = _SMALLEST_ID
    mark = bearers_mark(now, reason, actor, context)
    while done := revoking.revoke_next(connection, selector, mark, after=after, keep=keep):
        every += done
        after = done[-1].raw_id
    return every


def preview(runtime: Runtime, selector: Selector) -> Preview:
    """What `revoke_matching` would hit. Changes nothing."""
    selector = resolve(runtime, selector)
    now = runtime.clock()
    total, alive, last_used_at, access_until = 0, 0, 0, 0
    users_hit: set[bytes] = set()
    users_counted = 0
    several = len(selector.token_ids) > tokens.CHUNK
    for part in parts(selector):
        with runtime.storage.read() as connection:
            count = tokens.count(connection, part, now=now)
            if several:  # a user may have tokens in several parts
                users_hit.update(tokens.users_of(connection, part, now=now))
        total += count.tokens
        alive += count.alive
        users_counted = len(users_hit) if several else count.users
        last_used_at = max(last_used_at, count.last_used_at or 0)
        access_until = max(access_until, count.access_until or 0)
    return Preview(
        tokens=alive,
        users=users_counted,
        already_dead=total - alive,
        last_used_at=last_used_at or None,
        access_exposure_until=exposure(runtime, access_until),
        selector=selector,
    )


def select(runtime: Runtime, selector: Selector) -> Iterator[RefreshToken]:
    """All rows of the selection, oldest login first, in constant memory; each page is one read."""
    return _pages(runtime, resolve(runtime, selector))  # resolved now, not when the first row is asked for


def _pages(runtime: Runtime, selector: Selector) -> Iterator[RefreshToken]:
    for part in parts(selector):
        after: str | None = None
        while True:
            with runtime.storage.read() as connection:
                rows = tokens.page(connection, part, now=runtime.clock(), after=after)
            yield from rows
            if len(rows) < tokens.CHUNK:
                break
            after = rows[-1].id


@repeated
def resolve(runtime: Runtime, selector: Selector) -> Selector:
    """The selector with its users as ids, and each id once, in its one form.

    Raises EmptySelector, InvalidInput, UserNotFound, ClientNotFound.
    """
    selector.require_some().require_valid()
    token_ids = tuple(sorted({ids.parse_token_id(token) for token in selector.token_ids}))
    with runtime.storage.read() as connection:
        found = tuple(users.require(connection, user).id for user in selector.users)
        for client in selector.clients:
            if users.get_client(connection, clean_client_id(client)) is None:
                raise ClientNotFound(f"there is no client {client}")
    return replace(selector, users=found, token_ids=token_ids)


def exposure(runtime: Runtime, access_until: int) -> int | None:
    """The instant itself, or None when it is over."""
    return access_until if access_until > runtime.clock() else None


def parts(selector: Selector) -> Iterator[Selector]:
    """The resolved selector, cut up where it names more ids than one statement takes; in order of id."""
    if len(selector.token_ids) <= tokens.CHUNK:
        yield selector
        return
    for i in range(0, len(selector.token_ids), tokens.CHUNK):
        yield replace(selector, token_ids=selector.token_ids[i : i + tokens.CHUNK])
