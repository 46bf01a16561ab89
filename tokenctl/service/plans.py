"""Plans: what a dry run has shown, so that exactly that can be acted on.

Owns how a plan is made, for how long it is good, and what drift is: a login that matches now, is not dead
and is no member. A member that died or was rotated meanwhile is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from tokenctl.core import ids
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.selector import Selector
from tokenctl.errors import PlanNotFound
from tokenctl.service import targets
from tokenctl.service.revocation import Order, Preview, Revocation, parts, resolve
from tokenctl.service.runtime import Runtime
from tokenctl.service.targets import ID, Look, Target, Targets
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, plans, revoking, tokens, users
from tokenctl.storage.events import Event
from tokenctl.storage.plans import Plan
from tokenctl.storage.revoking import Row

_ID = re.compile("[0-9a-f]{4,32}")
#: For so long (µs) a plan is good.
LIFETIME = 3_600_000_000
#: So long (µs) after it was made it is deleted: nobody can still be acting on it.
_KEPT = 48 * LIFETIME


@dataclass(frozen=True, slots=True)
class UserShare:
    """One user's part of a plan. `last_used_at` in µs."""

    user_id: str
    user_name: str
    tokens: int
    last_used_at: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What a dry run shows: the counts, each user's part, largest first, the ids of what is not dead.

    Where that is nothing there is no plan.
    """

    seen: Preview
    shares: list[UserShare]
    members: list[bytes]
    plan: Plan | None


# --- making one ------------------------------------------------------------------------------


def plan_matching(runtime: Runtime, selector: Selector, *, actor: str) -> Planned:
    """Look at what the selector matches, and keep what is not dead. Changes no login."""
    resolved = resolve(runtime, selector)
    found = Look()
    for row in _alive(runtime, resolved):
        found.add(row)
    with runtime.storage.read() as connection:
        count = tokens.count(connection, resolved, now=runtime.clock())
    found.others["already_dead"] = count.tokens - count.alive
    found.access_until = max(found.access_until, count.access_until or 0)
    return _planned(runtime, found, resolved, actor)


def plan_targets(runtime: Runtime, named: Targets, *, actor: str) -> Planned:
    """Look at what is named, and keep what is not dead. Changes no login."""
    return _planned(runtime, targets.look(runtime, named.chunks()), None, actor)


def _alive(runtime: Runtime, selector: Selector) -> Iterator[Row]:
    """What the resolved selector matches and is not dead, in order of id; each page is one read."""
    for part in parts(selector):
        after = b""
        while page := _next_alive(runtime, part, after):
            yield from page
            after = page[-1].raw_id


@repeated
def _next_alive(runtime: Runtime, part: Selector, after: bytes) -> list[Row]:
    with runtime.storage.read() as connection:
        return revoking.next_alive(connection, part, now=runtime.clock(), after=after)


def _planned(runtime: Runtime, found: Look, selector: Selector | None, actor: str) -> Planned:
    alive = sorted(found.alive)
    plan = _store(runtime, found, alive, selector, actor) if alive else None
    return Planned(found.preview(runtime), _shares(runtime, found), alive, plan)


def _store(runtime: Runtime, found: Look, alive: list[bytes], selector: Selector | None, actor: str) -> Plan:
    """The plan in the database. In small transactions: one with a million members must hold up nobody."""
    plan = _begin(runtime, found, selector, actor)
    for number, start in enumerate(range(0, len(alive), tokens.CHUNK)):
        _add_members(runtime, plan.id, number, alive[start : start + tokens.CHUNK])
    return _complete(runtime, plan)


@repeated
def _begin(runtime: Runtime, found: Look, selector: Selector | None, actor: str) -> Plan:
    with runtime.storage.write() as connection:
        now = runtime.clock()
        plans.delete_old(connection, before=now - _KEPT)
        digits = 4  # for a person to type; longer where so many are taken
        while True:
            plan = Plan(
                id=runtime.entropy(digits // 2).hex(),
                created_at=now,
                expires_at=0,
                actor=actor,
                selector=selector,
                tokens=len(found.alive),
                users=len(found.users),
            )
            if plans.insert(connection, plan):
                return plan
            digits += 2


@repeated
def _add_members(runtime: Runtime, plan_id: str, number: int, page: list[bytes]) -> None:
    with runtime.storage.write() as connection:
        plans.add_members(connection, plan_id, number, page)


@repeated
def _complete(runtime: Runtime, plan: Plan) -> Plan:
    with runtime.storage.write() as connection:
        now = runtime.clock()
        plans.complete(connection, plan.id, expires_at=now + LIFETIME)
        facts = {"plan": plan.id, "tokens": plan.tokens, "users": plan.users, "selector": _said(plan)}
        events.add(connection, [Event(at=now, type="plan.create", actor=plan.actor, data=facts)])
        complete = plans.get(connection, plan.id)
    assert complete is not None
    return complete


def _said(plan: Plan) -> dict[str, object] | None:
    """What was selected by, for the audit log; how many ids, not which: they are the plan's members."""
    if plan.selector is None:
        return None
    said = plans.as_data(plan.selector)
    return {key: len(value) if key == "token_ids" else value for key, value in said.items() if value}


def _shares(runtime: Runtime, found: Look) -> list[UserShare]:
    names: dict[bytes, str] = {}
    wanted = iter(found.users)
    while page := list(islice(wanted, tokens.CHUNK)):
        with runtime.storage.read() as connection:
            names.update(users.names(connection, page))
    shares = [
        UserShare(ids.user_id(raw_id), names.get(raw_id, ""), number, last)
        for raw_id, (number, last) in found.users.items()
    ]
    return sorted(shares, key=lambda share: (-share.tokens, share.user_name))


# --- acting on one ---------------------------------------------------------------------------


@repeated
def get(runtime: Runtime, plan_id: str) -> Plan:
    """The plan, while it is good. Raises PlanNotFound."""
    plan = None
    if _ID.fullmatch(plan_id):
        with runtime.storage.read() as connection:
            plan = plans.get(connection, plan_id)
    if plan is None or plan.expires_at <= runtime.clock():
        raise _gone(plan_id)
    return plan


def _pages(runtime: Runtime, plan: Plan) -> Iterator[list[bytes]]:
    """All members, or PlanNotFound: nothing may look like the end of a plan but its end."""
    number = read = 0
    while page := _page(runtime, plan, number):
        yield page
        number += 1
        read += len(page)
    if read != plan.tokens:
        raise _gone(plan.id)


@repeated
def _page(runtime: Runtime, plan: Plan, number: int) -> list[bytes]:
    with runtime.storage.read() as connection:
        return plans.members(connection, plan, number)


def _gone(plan_id: str) -> PlanNotFound:
    return PlanNotFound(f"there is no plan {plan_id[:20]!r}, or its hour is over")


def rows(runtime: Runtime, planned: Planned) -> Iterator[RefreshToken]:
    """What a dry run shows, as it is now, oldest login first; what was purged meanwhile is missing."""
    for start in range(0, len(planned.members), tokens.CHUNK):
        page = planned.members[start : start + tokens.CHUNK]
        with runtime.storage.read() as connection:
            found = tokens.fetch(connection, page)
        yield from (found[raw_id] for raw_id in page if raw_id in found)


def drift(runtime: Runtime, plan: Plan) -> Iterator[str]:
    """The ids of the logins that match now, are not dead and are no members; in order."""
    if plan.selector is None:
        return
    members = chain.from_iterable(_pages(runtime, plan))
    member = next(members, None)
    for row in _alive(runtime, plan.selector):
        while member is not None and member < row.raw_id:
            member = next(members, None)
        if row.raw_id != member:
            yield ids.token_id(row.raw_id)


def revoke(runtime: Runtime, plan: Plan, order: Order) -> Revocation:
    """Revoke the members that are not dead. What was purged meanwhile is dead."""
    done = targets.revoke(runtime, _chunks(runtime, plan), order)
    return replace(done, already_dead=done.already_dead + done.unknown, unknown=0)


def review(runtime: Runtime, plan: Plan) -> Planned:
    """What of the members is not dead now."""
    found = targets.look(runtime, _chunks(runtime, plan))
    seen = found.preview(runtime)
    seen = replace(seen, already_dead=seen.already_dead + seen.unknown, unknown=0)
    return Planned(seen, _shares(runtime, found), sorted(found.alive), plan)


def _chunks(runtime: Runtime, plan: Plan) -> Iterator[list[Target]]:
    """The members as targets named by their ids."""
    for page in _pages(runtime, plan):
        yield [Target(0, ID, raw_id, b"") for raw_id in page]
