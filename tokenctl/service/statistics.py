"""What the logins are like as a whole, and what the last hours were like; and which logins share a context.

Owns which events count as what, and where an hour begins. The counting is the database's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from tokenctl.core import ids
from tokenctl.core.refresh_token import RefreshToken, State
from tokenctl.core.selector import Selector
from tokenctl.errors import InvalidInput, TokenNotFound
from tokenctl.service import revocation
from tokenctl.service.runtime import Runtime, micros
from tokenctl.service.transactions import repeated
from tokenctl.storage import statistics as stored
from tokenctl.storage import tokens
from tokenctl.storage.statistics import AddressCount, ClientCount, UserCount

#: A week of hours.
MAX_HOURS = 168
MAX_TOP = 1_000
#: How soon live logins expire, by the name that the span has in data.
SPANS = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}


class Hour(NamedTuple):
    """What happened in the hour (UTC) that began at `at` (µs).

    issued: logins that began; context_changed: rotations from elsewhere than the last; reuse: logins that
    died of it; revoked: all other revocations; refused: strings refused, one a minute of each login and
    reason.
    """

    at: int
    issued: int = 0
    context_changed: int = 0
    reuse: int = 0
    revoked: int = 0
    refused: int = 0


#: The types of events behind the counts of an Hour, in order.
_TYPES = ("token.issue", "token.rotate", "token.reuse", "token.revoke", "token.refuse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The selected logins at one instant (µs), and the events of the hours up to it, oldest first.

    `users` have a live login. `expiring`: the live logins that expire within each of SPANS, the longer spans
    with the shorter. The lists are of live logins, each at most as long as was asked for; client_count and
    address_count say how long they could be.
    """

    at: int
    states: dict[State, int]
    users: int
    expiring: dict[str, int]
    client_count: int
    clients: list[ClientCount]
    address_count: int
    addresses: list[AddressCount]
    widest_users: list[UserCount]
    hours: list[Hour]


@repeated
def statistics(runtime: Runtime, selector: Selector, *, top: int, hours: int) -> Statistics:
    """See `TokenService.statistics`."""
    _demand_within(top, MAX_TOP, "entries")
    _demand_within(hours, MAX_HOURS, "hours")
    selector = revocation.resolve(runtime, selector)
    with runtime.storage.read() as connection:
        now = runtime.clock()
        expiring_by = [now + micros(span) for span in SPANS.values()]
        counts = stored.count(connection, selector, now=now, expiring_by=expiring_by)
        client_count, clients = stored.by_client(connection, selector, now=now, limit=top)
        address_count, addresses = stored.by_address(connection, selector, now=now, limit=top)
        user_count, widest_users = stored.by_user(connection, selector, now=now, limit=top)
        first = now - now % stored.HOUR - (hours - 1) * stored.HOUR
        happened = stored.by_hour(connection, selector, _TYPES, since=first, now=now)
    return Statistics(
        at=now,
        states=counts.states,
        users=user_count,
        expiring=dict(zip(SPANS, counts.expiring, strict=True)),
        client_count=client_count,
        clients=clients,
        address_count=address_count,
        addresses=addresses,
        widest_users=widest_users,
        hours=[Hour(at, *happened.get(at, ())) for at in range(first, now + 1, stored.HOUR)],
    )


def _demand_within(number: int, most: int, what: str) -> None:
    if not 1 <= number <= most:
        raise InvalidInput(f"{number} {what} are out of range", hint=f"1 to {most}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelatedLogin:
    """Another login, its state, and what it shares with the one that was asked for: `ip`, `device`."""

    token: RefreshToken
    state: State
    shared: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Related:
    """The logins that share an address or a device with one: how many there are, and the first of them."""

    total: int
    logins: list[RelatedLogin]


@repeated
def related(runtime: Runtime, token_id: str, *, limit: int) -> Related:
    """See `TokenService.related`."""
    _demand_within(limit, tokens.CHUNK, "logins")
    token_id = ids.parse_token_id(token_id)
    with runtime.storage.read() as connection:
        row = tokens.get(connection, token_id)
        if row is None:
            raise TokenNotFound(f"there is no refresh token {token_id}; it may have been purged")
        now = runtime.clock()
        total, others = stored.related(connection, row, now=now, limit=limit)
    logins = [
        RelatedLogin(token=other, state=other.state(now), shared=_shared(row, other)) for other in others
    ]
    return Related(total=total, logins=logins)


def _shared(one: RefreshToken, other: RefreshToken) -> tuple[str, ...]:
    pairs = [(a, b) for a in (one.issued, one.last) for b in (other.issued, other.last)]
    same = {
        "ip": any(a.ip is not None and a.ip == b.ip for a, b in pairs),
        "device": any(a.device is not None and a.device == b.device for a, b in pairs),
    }
    return tuple(name for name, is_same in same.items() if is_same)
