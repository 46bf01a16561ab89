"""Revoking by a selector; and looking at what that would hit before it is done.

Owns what every revocation is asked for with and tells. Large sets go in chunks, each its own transaction, in
order of id, so that rotations stay fast and a second run goes on where one stopped. What is named by ids and
strings is in `targets`, what a dry run has shown in `plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from tokenctl.core import ids
from tokenctl.core.context import NO_CONTEXT, Context
from tokenctl.core.names import clean_client_id
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.selector import DEVICE_HASH, Selector, device_hashes
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
    #: Named once more, after a line that named the same login.
    repeated: int = 0
    unknown: int = 0
    forged: int = 0
    malformed: int = 0
    users: int = 0
    access_exposure_until: int | None = None
    #: False when `stop`, or the bound of what was seen, ended it before the whole set was done.
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a revocation would hit: live and blocked tokens, and of how many users. Instants in µs."""

    tokens: int = 0
    users: int = 0
    already_dead: int = 0
    repeated: int = 0
    unknown: int = 0
    forged: int = 0
    malformed: int = 0
    last_used_at: int | None = None
    access_exposure_until: int | None = None


@dataclass
class Done:
    """What was revoked so far, and of whom. `access_until` in µs, also of what is only looked at."""

    revoked: int = 0
    users: set[bytes] = field(default_factory=set)
    access_until: int = 0
    complete: bool = True

    def add(self, rows: list[Revoked]) -> None:
        """Add what a chunk's transaction revoked."""
        self.revoked += len(rows)
        self.users.update([row.user_id for row in rows])
        self.access_until = max([self.access_until, *[row.access_until for row in rows]])

    def revocation(self, runtime: Runtime, *, already_dead: int = 0, **others: int) -> Revocation:
        """With the counts of what was not revoked."""
        return Revocation(
            revoked=self.revoked,
            already_dead=already_dead,
            **others,
            users=len(self.users),
            access_exposure_until=exposure(runtime, self.access_until),
            complete=self.complete,
        )


def revoke_matching(
    runtime: Runtime, selector: Selector, order: Order, *, seen: Preview | None = None
) -> Revocation:
    """Revoke all that the selector matches and that is not dead, in chunks of CHUNK; no more than `seen`."""
    selector = resolve(runtime, selector)
    before = preview(runtime, selector) if seen is None else seen
    most = None if seen is None else seen.tokens
    done = Done(access_until=before.access_exposure_until or 0)
    for part in parts(selector):
        after = _SMALLEST_ID
        while done.complete:
            if order.stop() or done.revoked == most:
                done.complete = done.revoked >= before.tokens
                break
            limit = tokens.CHUNK if most is None else min(tokens.CHUNK, most - done.revoked)
            if not (rows := _revoke_next(runtime, part, order, after, limit=limit)):
                break
            done.add(rows)
            order.progress(len(rows))
            after = rows[-1].raw_id
    # What was not dead before, and is nobody's work here, died in between.
    late = max(0, before.tokens - done.revoked) if done.complete else 0
    return done.revocation(runtime, already_dead=before.already_dead + late)


@repeated
def _revoke_next(
    runtime: Runtime, part: Selector, order: Order, after: bytes, *, limit: int
) -> list[Revoked]:
    with runtime.storage.write() as connection:
        mark = order.mark(runtime.clock())
        return revoking.revoke_next(connection, part, mark, after=after, limit=limit)


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


@repeated
def preview(runtime: Runtime, selector: Selector) -> Preview:
    """What `revoke_matching` would hit. Changes nothing."""
    selector = resolve(runtime, selector)
    with runtime.storage.read() as connection:
        count = tokens.count(connection, selector, now=runtime.clock())
    return Preview(
        tokens=count.alive,
        users=count.users,
        already_dead=count.tokens - count.alive,
        last_used_at=count.last_used_at,
        access_exposure_until=exposure(runtime, count.access_until or 0),
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
    # As they are stored: a device's own text may be anything, and stands nowhere in clear.
    devices = tuple(f"{DEVICE_HASH}{each.hex()}" for text in selector.devices for each in device_hashes(text))
    return replace(selector, users=found, token_ids=token_ids, devices=devices)


def exposure(runtime: Runtime, access_until: int) -> int | None:
    """The instant itself, or None when it is over."""
    return access_until if access_until > runtime.clock() else None


def parts(selector: Selector) -> Iterator[Selector]:
    """The resolved selector, cut up where it names many ids: each page would go through all of them again."""
    if len(selector.token_ids) <= tokens.CHUNK:
        yield selector
        return
    for i in range(0, len(selector.token_ids), tokens.CHUNK):
        yield replace(selector, token_ids=selector.token_ids[i : i + tokens.CHUNK])
