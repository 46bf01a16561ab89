"""What an operator can select refresh tokens by, as plain data, and what the texts in it mean.

OR within a field, AND across fields. A selector that names nothing is refused: nothing ever means
"everything" by accident. `storage.tokens` turns it into a WHERE clause.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum

from tokenctl.core.context import MAX_USER_AGENT_BYTES, hash_device, pack_ip
from tokenctl.core.names import refuse_secret
from tokenctl.errors import EmptySelector, InvalidInput

#: Addresses, user agents or devices. One is up to four conditions, and SQLite takes a thousand in all.
MAX_ALTERNATIVES = 100

#: How a device is named by its hash, which is all of it that is stored.
DEVICE_HASH = "sha256:"

_HASH = re.compile("[0-9A-Fa-f]{64}")
_PREFIX_LENGTH = re.compile("[0-9]{1,3}")
_LAST_INSTANT = 2**63 - 1
#: Where the IPv4 addresses are among the stored ones.
_IPV4 = pack_ip("0.0.0.0"), pack_ip("255.255.255.255")  # noqa: S104 - nothing listens there


class SelectState(StrEnum):
    """States to select by. `expired` holds the idle ones too; `dead` is expired or revoked."""

    LIVE = "live"
    BLOCKED = "blocked"
    IDLE = "idle"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """A tuple holds alternatives; an empty one, or None, does not restrict. Instants and durations in µs.

    users: names or `usr_…`; clients: client ids; token_ids: `rt_…`; everything lifts the refusal.

    ips: addresses, or networks such as 203.0.113.0/24; user_agents: globs, see `clean_glob`; devices: the
    fingerprints as the devices send them, or their hashes, see `device_hashes`. Each of these looks at both
    contexts, at issue and at last use.

    issued_after, issued_before: the login began at the first or later, and before the second, so that one
    instant cuts all logins in two. idle: not rotated for that long or longer.
    """

    users: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    states: tuple[SelectState, ...] = ()
    token_ids: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    user_agents: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    issued_after: int | None = None
    issued_before: int | None = None
    idle: int | None = None
    everything: bool = False

    def require_some(self) -> Selector:
        """Itself; raises EmptySelector when it names nothing."""
        texts = (self.users, self.clients, self.states, self.token_ids)
        contexts = (self.ips, self.user_agents, self.devices)
        times = (self.issued_after, self.issued_before, self.idle)  # 0 is one
        if not (self.everything or any(texts) or any(contexts) or any(each is not None for each in times)):
            raise EmptySelector("nothing is selected")
        return self

    def require_valid(self) -> Selector:
        """Itself; raises InvalidInput for what needs no database to be seen as wrong."""
        for what, given in (("addresses", self.ips), ("agents", self.user_agents), ("devices", self.devices)):
            if len(given) > MAX_ALTERNATIVES:
                raise InvalidInput(
                    f"{len(given):,} {what} are more than one selector takes, which is {MAX_ALTERNATIVES}",
                    hint="several runs with some each; a network instead of many addresses",
                )
        for ip in self.ips:
            address_ranges(ip)
        for glob in self.user_agents:
            clean_glob(glob)
        for device in self.devices:
            device_hashes(device)
        self._require_valid_times()
        return self

    def _require_valid_times(self) -> None:
        after, before, idle = self.issued_after, self.issued_before, self.idle
        if any(each is not None and not 0 <= each <= _LAST_INSTANT for each in (after, before, idle)):
            raise InvalidInput("an instant or a duration is out of range", hint="µs since 1970, below 2^63")
        if idle == 0:
            raise InvalidInput(
                "idle for no time at all is every login, used or not", hint="a duration such as 30d"
            )
        # "Nothing found" would be believed, and ages are easily given in the wrong order.
        if after is not None and before is not None and after >= before:
            raise InvalidInput(
                "issued-after is not before issued-before, so no login can match both",
                hint="exchange them: of two ages the longer is the earlier, 6h before 2h",
            )


def address_ranges(text: str) -> list[tuple[bytes, bytes]]:
    """The first and the last address, as stored, of an address or a network. Raises InvalidInput.

    Two ranges for an IPv6 network as large as ::/0: IPv4 addresses are stored inside it, and are none of it.
    """
    address, slash, prefix = text.partition("/")
    try:
        packed = pack_ip(address)
    except InvalidInput:
        raise _no_network(text) from None
    if not slash:
        return [(packed, packed)]
    bits = ipaddress.ip_address(address).max_prefixlen
    if "%" in address or not _PREFIX_LENGTH.fullmatch(prefix):
        raise _no_network(text)
    if int(prefix) > bits:
        raise InvalidInput(
            f"there is no network {text}: the prefix of an IPv{4 if bits == 32 else 6} network has"
            f" at most {bits} bits",
            hint=f"{address} for the one address",
        )
    network = ipaddress.ip_network(text, strict=False)
    if pack_ip(str(network.network_address)) != packed:
        raise InvalidInput(
            f"{text} is no network: the address has bits set beyond the prefix",
            hint=f"{network} for the network, {address} for the one address",
        )
    first, last = packed, pack_ip(str(network.broadcast_address))
    return _without_ipv4(first, last) if bits == 128 else [(first, last)]


def _no_network(text: str) -> InvalidInput:
    # Twenty characters tell a person what they wrote, and of a pasted token string hold no secret.
    return InvalidInput(
        f"{text[:20]!r} is neither an IP address nor a network",
        hint="198.51.100.7, 203.0.113.0/24, 2001:db8::7 or 2001:db8::/32",
    )


def _without_ipv4(first: bytes, last: bytes) -> list[tuple[bytes, bytes]]:
    # Of two networks one holds the other or neither has anything of it.
    if not (first <= _IPV4[0] and last >= _IPV4[1] and (first, last) != _IPV4):
        return [(first, last)]
    before = (int.from_bytes(_IPV4[0]) - 1).to_bytes(16)
    behind = (int.from_bytes(_IPV4[1]) + 1).to_bytes(16)
    return [(low, high) for low, high in ((first, before), (behind, last)) if low <= high]


def clean_glob(text: str) -> str:
    """A pattern for a whole user agent, each run of `*` made one. Raises InvalidInput.

    `*` stands for any text, also none, and `?` for one character. All else, `[` too, is itself; case counts.
    """
    glob = re.sub(r"\*+", "*", text)
    if not glob:
        raise InvalidInput(
            "an empty pattern matches no user agent", hint="'*' matches every one, '*Firefox*' some"
        )
    try:
        length = len(glob.replace("*", "").encode())
    except UnicodeEncodeError:
        raise InvalidInput("a pattern of a user agent is not UTF-8", hint="? is any character") from None
    refuse_secret(text)
    if "\0" in glob:
        raise InvalidInput("a pattern of a user agent has a NUL, as no user agent has", hint="leave it out")
    if length > MAX_USER_AGENT_BYTES:
        raise InvalidInput(
            f"a pattern of {length} bytes matches nothing: user agents are cut to {MAX_USER_AGENT_BYTES}",
            hint="write its beginning and a *",
        )
    return glob


def device_hashes(text: str) -> list[bytes]:
    """What may be stored for a device: of the text that it sends, or of `sha256:` and 64 hex digits.

    The digits alone, as records show them, could be either, so they stand for both. Raises InvalidInput.
    """
    refuse_secret(text)
    if text.startswith(DEVICE_HASH):
        return [_device_hash(text.removeprefix(DEVICE_HASH))]
    sent = hash_device(text)
    return [sent, bytes.fromhex(text)] if _HASH.fullmatch(text) else [sent]


def _device_hash(digits: str) -> bytes:
    # Taken for the text of a device it would find nothing, and that would be believed.
    if not _HASH.fullmatch(digits):
        raise InvalidInput(
            "the hash of a device is sha256: and 64 hex digits",
            hint="tokenctl list --all --fields id,last_device shows them",
        )
    return bytes.fromhex(digits)
