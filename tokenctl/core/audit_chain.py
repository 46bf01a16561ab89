"""The seal of the audit log: the MACs of an event, a segment and an export; how the chain's ends are written.

Owns what is under the MACs and in which form. When events are sealed, and what is said about those that do
not hold, are the service's affair.

A segment lists its *members*: for each event its id (8 bytes, big-endian) and the first 16 bytes of its MAC,
in order of id. Its own MAC is over the members and over the MAC of the segment before, so that whoever has
not the key can neither change nor leave out any of it, but for the end of the chain: see `Head`. Its
beginning may have been archived: then an `Anchor` stands in its place.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from tokenctl.errors import InvalidInput

#: What stands in the place of the MAC before the first segment.
NO_SEGMENT = bytes(32)

_EVENT = b"tokenctl/1 audit event\0"
_SEGMENT = b"tokenctl/1 audit segment\0"
_EXPORT = b"tokenctl/1 audit export\0"
_ANCHOR = b"tokenctl/1 audit anchor\0"
_EVENT_MAC_BYTES = 16
_ID_BYTES = 8
MEMBER_BYTES = _ID_BYTES + _EVENT_MAC_BYTES

_HEAD = re.compile("([1-9][0-9]{0,18})-([0-9a-f]{64})", re.ASCII)
_ANCHORED = re.compile("([1-9][0-9]{0,18}-[0-9a-f]{64}) (0|-?[1-9][0-9]{0,18}) ([0-9a-f]{64})", re.ASCII)


class StoredEvent(NamedTuple):
    """All columns of an event but `segment`, as they are stored; `at` in µs, `data` a JSON object's text.

    A text that is no UTF-8, which somebody has put there by force, has its bytes as lone surrogates
    (PEP 383).
    """

    id: int
    at: int
    type: str
    actor: str | None
    user_id: bytes | None
    token_id: bytes | None
    client_id: str | None
    ip: bytes | None
    reason: str | None
    data: str


def event_mac(key: bytes, event: StoredEvent) -> bytes:
    """The 16 bytes that a segment keeps of an event."""
    text = _EVENT + b"".join(map(_encoded, event))
    return hmac.digest(key, text, "sha256")[:_EVENT_MAC_BYTES]


def _encoded(value: int | str | bytes | None) -> bytes:
    """So that two different rows never give the same bytes: the kind, the length, the value."""
    if value is None:
        return b"\0"
    if isinstance(value, int):
        return b"\1" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, bytes):
        return b"\2" + len(value).to_bytes(4, "big") + value
    raw = value.encode("utf-8", "surrogateescape")
    return b"\3" + len(raw).to_bytes(4, "big") + raw


def member(event_id: int, mac: bytes) -> bytes:
    """How a segment lists an event."""
    return event_id.to_bytes(_ID_BYTES, "big", signed=True) + mac


def seal_events(key: bytes, events: Iterable[StoredEvent]) -> bytes:
    """The members of a segment of these events, which come in order of id."""
    return b"".join(member(event.id, event_mac(key, event)) for event in events)


def split_members(members: bytes) -> Iterator[tuple[int, bytes]]:
    """The id and the MAC of each event; what is left over at the end is none."""
    for start in range(0, len(members) - MEMBER_BYTES + 1, MEMBER_BYTES):
        middle = start + _ID_BYTES
        event_id = int.from_bytes(members[start:middle], "big", signed=True)
        yield event_id, members[middle : start + MEMBER_BYTES]


def hash_members(members: bytes) -> bytes:
    """What of the members is under the MAC of their segment: SHA-256."""
    return hashlib.sha256(members).digest()


def segment_mac(key: bytes, *, previous: bytes, number: int, sealed_at: int, members_hash: bytes) -> bytes:
    """The MAC of a segment; `previous` is that of the one before, or NO_SEGMENT. `sealed_at` in µs."""
    numbers = number.to_bytes(8, "big", signed=True) + sealed_at.to_bytes(8, "big", signed=True)
    return hmac.digest(key, _SEGMENT + previous + numbers + members_hash, "sha256")


class Ends(NamedTuple):
    """Where an export begins and ends: what its segments, chained to each other, do not tell.

    `since`, `until`, `exported_at` in µs; `first` is the number of its first segment, `head` the text of its
    last one's. unsealed: `hash_members` of its events that are in no segment. anchor: the text of the one
    that it begins behind.
    """

    exported_at: int
    since: int | None
    until: int | None
    first: int | None
    head: str | None
    unsealed: bytes
    anchor: str | None = None


def export_mac(key: bytes, ends: Ends) -> bytes:
    """The MAC of an export, without which its front and its end could be left out."""
    # Where there is no anchor it is left out: so it was before there were any.
    facts = ends if ends.anchor is not None else ends[:-1]
    return hmac.digest(key, _EXPORT + b"".join(map(_encoded, facts)), "sha256")


@dataclass(frozen=True, slots=True)
class Head:
    """The newest segment. Kept elsewhere, it tells later whether the chain still leads through it.

    `sealed_at` in µs; None for one that was read from a text, which does not have it.
    """

    number: int
    mac: bytes
    sealed_at: int | None = None

    def __str__(self) -> str:
        return f"{self.number}-{self.mac.hex()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The head that such a text names, in its one spelling. Raises InvalidInput."""
        found = _HEAD.fullmatch(text)
        if not found or int(found[1]) >= 2**63:
            # No more of it than this: it may be something else that was pasted.
            raise InvalidInput(
                f"{text[:8]!r} is not the head of an audit log",
                hint="a number, a dash and 64 hex digits, as `tokenctl audit head` printed it",
            )
        return cls(int(found[1]), bytes.fromhex(found[2]))


@dataclass(frozen=True, slots=True)
class Anchor:
    """What stands in place of the segments up to `head`, which were archived and deleted.

    All of their events are older than `before` (µs). Without the key nobody can make one: `holds` tells.
    """

    head: Head
    before: int
    mac: bytes

    @classmethod
    def make(cls, key: bytes, head: Head, before: int) -> Self:
        """One with its MAC."""
        return cls(head, before, _anchor_mac(key, head, before))

    def holds(self, key: bytes) -> bool:
        """Whether it was made with that key."""
        return hmac.compare_digest(self.mac, _anchor_mac(key, self.head, self.before))

    def __str__(self) -> str:
        return f"{self.head} {self.before} {self.mac.hex()}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The anchor that such a text is, in its one spelling; None for any other."""
        found = _ANCHORED.fullmatch(text)
        if not found or not -(2**63) <= int(found[2]) < 2**63:
            return None
        try:
            return cls(Head.parse(found[1]), int(found[2]), bytes.fromhex(found[3]))
        except InvalidInput:
            return None


def _anchor_mac(key: bytes, head: Head, before: int) -> bytes:
    facts = _encoded(head.number) + _encoded(head.mac) + _encoded(before)
    return hmac.digest(key, _ANCHOR + facts, "sha256")
