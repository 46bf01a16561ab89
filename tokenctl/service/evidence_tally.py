"""What is counted for an evidence bundle while logins and events go by.

Owns which login is told of in the picture, and what is kept of each: all numbers, however many logins.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from tokenctl.service.evidence_page import MOST_LANES, Lane
from tokenctl.service.evidence_runs import least, most
from tokenctl.storage.events import Event
from tokenctl.storage.evidence import REVOKE, SlicedEvent

#: Of one login that many instants of events are kept for the picture.
_MOST_DOTS = 250


@dataclass(slots=True)
class Login:
    """One login while its events go by; of these only what is told of it is kept."""

    told: list[Event] = field(default_factory=list)
    revoked_at: int | None = None
    user_id: str | None = None
    events: int = 0
    dots: list[int] = field(default_factory=list)
    reuse: list[int] = field(default_factory=list)
    refused_since: bool = False

    def add(self, sliced: SlicedEvent, reason: str) -> None:
        """The next one of its events; with that reason it was revoked."""
        event = sliced.event
        self.events += 1
        self.user_id = self.user_id or event.user_id
        if event.type == REVOKE and event.reason == reason:
            self.revoked_at = event.at
            self.told.append(event)
        elif event.type == "token.reuse":
            if len(self.reuse) < _MOST_DOTS:
                self.reuse.append(event.at)
        elif len(self.dots) < _MOST_DOTS:
            self.dots.append(event.at)
        if event.type == "token.issue":
            self.told.append(event)
        elif event.type == "token.refuse" and self.revoked_at is not None:
            self.refused_since = True


@dataclass(frozen=True, slots=True)
class Use:
    """A revocation with the reason: one event, and what is counted of it."""

    event_id: int
    at: int
    actor: str | None
    plan: str | None
    access_until: object


@dataclass(slots=True)
class PlanUse:
    """What was revoked by one plan."""

    revoked: int
    first_event: int
    first_at: int
    last_at: int
    actors: dict[str, None]
    made: SlicedEvent | None = None


@dataclass(slots=True)
class Tally:
    """What is counted over all logins and events."""

    logins: int = 0
    revoked: int = 0
    reuse: int = 0
    refused_since: int = 0
    alive: int = 0
    purged: int = 0
    events: int = 0
    without_plan: int = 0
    first_at: int | None = None
    last_at: int | None = None
    issued_from: int | None = None
    revoked_from: int | None = None
    revoked_until: int | None = None
    access_until: int | None = None
    actors: Counter[str] = field(default_factory=Counter)
    plans: dict[str, PlanUse] = field(default_factory=dict)
    users: Counter[bytes] = field(default_factory=Counter)
    lanes: list[tuple[bool, int, int, bytes, Lane]] = field(default_factory=list)

    def add_use(self, use: Use) -> None:
        """A revocation with the reason."""
        self.add_revocation(use.at, use.actor, use.access_until)
        if use.plan is None:
            self.without_plan += 1
            return
        plan = self.plans.setdefault(use.plan, PlanUse(0, use.event_id, use.at, use.at, {}))
        plan.revoked += 1
        plan.first_event = min(plan.first_event, use.event_id)
        plan.first_at, plan.last_at = min(plan.first_at, use.at), max(plan.last_at, use.at)
        if use.actor is not None:
            plan.actors[use.actor] = None

    def add_revocation(self, at: int, actor: str | None, access_until: object) -> None:
        """When, by whom, and until when an access token of it was good (µs), if that is known."""
        self.revoked_from = least(self.revoked_from, at)
        self.revoked_until = most(self.revoked_until, at)
        if actor is not None:
            self.actors[actor] += 1
        if isinstance(access_until, int):
            self.access_until = most(self.access_until, access_until)

    def add_lane(self, raw_id: bytes, lane: Lane) -> None:
        """Keep the most telling ones: with reuse, with most events, the newest."""
        entry = (bool(lane.reuse), lane.events, self.logins, raw_id, lane)
        push = heapq.heappush if len(self.lanes) < MOST_LANES else heapq.heappushpop
        push(self.lanes, entry)
