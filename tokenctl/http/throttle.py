"""How often somebody may try: failed logins of an account, and attempts from an address.

Owns that guessing is slow and that nobody can lock another's account from afar for good: an address from
which an account was logged in to lately has a count of its own, which strangers do not raise. Counts live in
the memory of this process, for the length of their window.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Literal
from unicodedata import normalize

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from tokenctl.errors import Throttled

#: Pairs of account and address that are remembered as good.
_KNOWN = 10_000


#: What an address is counted for; who fails at one is not kept from another.
Attempt = Literal["login", "register", "client"]


class Throttle:
    """`account_limit` and `address_limit` as in the settings: `10/minute`, or `none`."""

    def __init__(self, *, account_limit: str, address_limit: str) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._account = None if account_limit == "none" else parse(account_limit)
        self._address = None if address_limit == "none" else parse(address_limit)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def address(self, what: Attempt, ip: str | None) -> None:
        """Raises Throttled when this address failed too often at that."""
        if self._address and not self._limiter.test(self._address, what, _network(ip)):
            raise self._refusal(self._address, what, _network(ip))

    def address_failed(self, what: Attempt, ip: str | None) -> None:
        """Count one failure of this address."""
        if self._address:
            self._limiter.hit(self._address, what, _network(ip))

    def attempt(self, name: str, ip: str | None) -> None:
        """Count a password that is about to be checked. Raises Throttled: it must not be checked."""
        if (_account(name), _network(ip)) not in self._known:  # a neighbour behind the same address may guess
            self.address("login", ip)
        # Counted before the check and not after it: else all that are checked at once would be let through.
        if self._account and not self._limiter.hit(self._account, *self._key(name, ip)):
            raise self._refusal(self._account, *self._key(name, ip))

    def succeeded(self, name: str, ip: str | None) -> None:
        """The password was right: this address is known to the account."""
        if self._account:
            self._limiter.clear(self._account, *self._key(name, ip))
        pair = _account(name), _network(ip)
        self._known[pair] = None
        self._known.move_to_end(pair)
        while len(self._known) > _KNOWN:
            self._known.popitem(last=False)

    def _key(self, name: str, ip: str | None) -> tuple[str, ...]:
        pair = _account(name), _network(ip)
        return ("known", *pair) if pair in self._known else ("account", pair[0])

    def _refusal(self, item: RateLimitItem, *key: str) -> Throttled:
        reset = self._limiter.get_window_stats(item, *key).reset_time
        wait = max(1, math.ceil(reset - time.time()))
        return Throttled(f"too many attempts: try again in {wait} s", retry_after=wait)


def _account(name: str) -> str:
    """What counts as one account: all spellings of a name that the service takes for the same."""
    return normalize("NFC", normalize("NFC", name).casefold())


def _network(ip: str | None) -> str:
    """What counts as one address: an IPv6 network of 64 bits belongs to one caller (RFC 6177)."""
    try:
        address = ip_address(ip or "")
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
    return str(address)
