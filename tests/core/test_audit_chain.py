"""What is under the MACs of the audit log, and how the ends of its chain are written."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from hmac import digest
from itertools import combinations
from typing import Any

import pytest

from tokenctl.core import audit_chain
from tokenctl.core.audit_chain import (
    NO_SEGMENT,
    Anchor,
    Ends,
    Head,
    StoredEvent,
    event_mac,
    export_mac,
    segment_mac,
)
from tokenctl.core.keys import derive_keys
from tokenctl.errors import InvalidInput

KEY = bytes(range(32))
FULL = StoredEvent(
    id=7,
    at=1_772_366_400_000_000,
    type="token.revoke",
    actor="nina",
    user_id=b"u" * 16,
    token_id=b"t" * 16,
    client_id="web",
    ip=b"i" * 16,
    reason="INC-7",
    data='{"access_until":1772367000000000}',
)
EMPTY = StoredEvent(8, 0, "purge", None, None, None, None, None, None, "{}")
# Written down once, from HMAC-SHA-256 by hand.
PINNED_FULL = "b0098e8f1996e2c64fe5e53973560c63"
PINNED_EMPTY = "89e66089e0d895d3ba093048c494a103"
PINNED_HEAD = "1-d9cf2dd13c83585be7caf0b94cb075d900f872733d89882cb3296d200b929b5e"


def changed(**columns: Any) -> StoredEvent:
    return FULL._replace(**columns)


def by_hand(event: StoredEvent) -> bytes:
    """The bytes under an event's MAC, written down once more."""
    text = b"tokenctl/1 audit event\0"
    for value in event:
        match value:
            case None:
                text += b"\x00"
            case int():
                text += b"\x01" + value.to_bytes(8, "big", signed=True)
            case bytes():
                text += b"\x02" + len(value).to_bytes(4, "big") + value
            case str():
                text += b"\x03" + len(value.encode()).to_bytes(4, "big") + value.encode()
    return text


@pytest.mark.parametrize("event", [FULL, EMPTY, EMPTY._replace(reason="größer", at=-1)])
def test_the_mac_of_an_event_is_over_each_column(event: StoredEvent) -> None:
    assert event_mac(KEY, event) == digest(KEY, by_hand(event), "sha256")[:16]


def test_pinned() -> None:
    """Other values would make every log that was ever sealed look edited."""
    key = derive_keys(b"a master key for tests, 32 bytes").audit
    assert event_mac(key, FULL).hex() == PINNED_FULL
    assert event_mac(key, EMPTY).hex() == PINNED_EMPTY
    members = audit_chain.seal_events(key, [FULL, EMPTY])
    assert members.hex() == f"0000000000000007{PINNED_FULL}0000000000000008{PINNED_EMPTY}"
    first = segment_mac(
        key, previous=NO_SEGMENT, number=1, sealed_at=5, members_hash=audit_chain.hash_members(members)
    )
    assert str(Head(1, first)) == PINNED_HEAD


def test_no_two_events_have_one_encoding() -> None:
    """NULL, empty and moved over a border are different; so is each column from each other one."""
    variants = [
        FULL,
        *(changed(**{name: None}) for name in FULL._fields),
        *(changed(**{name: ""}) for name in ("type", "actor", "client_id", "reason", "data")),
        *(changed(**{name: b""}) for name in ("user_id", "token_id", "ip")),
        changed(user_id=b"u" * 16 + b"t", token_id=b"t" * 15),
        changed(client_id=FULL.reason, reason=FULL.client_id),
        changed(actor="ninaw", client_id="eb"),
        changed(id=FULL.at, at=FULL.id),
        changed(id=-FULL.id),
        changed(reason="INC-7\0"),
    ]
    macs = [event_mac(KEY, event) for event in variants]
    assert all(one != other for one, other in combinations(macs, 2))
    assert event_mac(bytes(32), FULL) not in macs


def test_a_text_that_is_no_text_has_a_mac_of_its_own() -> None:
    broken = changed(reason=b"INC\xff".decode("utf-8", "surrogateescape"))
    assert event_mac(KEY, broken) != event_mac(KEY, changed(reason="INC"))


def test_the_mac_of_a_segment_is_over_all_of_it() -> None:
    right: dict[str, Any] = {
        "previous": b"p" * 32,
        "number": 3,
        "sealed_at": 4,
        "members_hash": sha256(b"members").digest(),
    }
    mac = segment_mac(KEY, **right)
    text = b"tokenctl/1 audit segment\0" + b"p" * 32 + bytes(7) + b"\3" + bytes(7) + b"\4"
    assert mac == digest(KEY, text + sha256(b"members").digest(), "sha256")
    others = {"previous": NO_SEGMENT, "number": 4, "sealed_at": 3, "members_hash": sha256(b"").digest()}
    macs = {mac, *(segment_mac(KEY, **(right | {name: value})) for name, value in others.items())}
    assert len(macs) == 1 + len(others)


def test_members_come_apart_as_they_were_put_together() -> None:
    members = audit_chain.seal_events(KEY, [FULL, EMPTY])
    assert len(members) == 2 * audit_chain.MEMBER_BYTES
    there = [(FULL.id, event_mac(KEY, FULL)), (EMPTY.id, event_mac(KEY, EMPTY))]
    assert list(audit_chain.split_members(members)) == there
    assert list(audit_chain.split_members(members[:-1])) == there[:1]
    assert list(audit_chain.split_members(b"")) == []


def test_a_head_is_read_back() -> None:
    head = Head(17, bytes(range(32)), 5)
    assert str(head) == "17-" + bytes(range(32)).hex()
    assert Head.parse(str(head)) == Head(17, bytes(range(32)))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("17", id="a number"),
        pytest.param(f"0-{'a' * 64}", id="zero"),
        pytest.param(f"017-{'a' * 64}", id="a leading zero"),
        pytest.param(f"1_7-{'a' * 64}", id="an underscore"),
        pytest.param(f"\u0661\u0667-{'a' * 64}", id="another script"),
        pytest.param(f"17-{'A' * 64}", id="capitals"),
        pytest.param(f"17-{'a' * 63}", id="short"),
        pytest.param(f"17-{'a' * 65}", id="long"),
        pytest.param(f"17-{'a' * 64}\n", id="a newline"),
        pytest.param(f" 17-{'a' * 64}", id="a space"),
        pytest.param(f"{2**63}-{'a' * 64}", id="too large"),
    ],
)
def test_every_other_spelling_of_a_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Head.parse(text)
    assert "tokenctl audit head" in refused.value.hint
    assert len(refused.value.message) < 60


def test_the_mac_of_an_export_is_over_each_of_its_ends() -> None:
    ends = Ends(5, 1, 9, 3, "4-" + "a" * 64, bytes(32))
    text = b"tokenctl/1 audit export\0"
    for number in (5, 1, 9, 3):
        text += b"\x01" + number.to_bytes(8, "big")
    text += (
        b"\x03" + (66).to_bytes(4, "big") + b"4-" + b"a" * 64 + b"\x02" + (32).to_bytes(4, "big") + bytes(32)
    )
    assert export_mac(KEY, ends) == digest(KEY, text, "sha256")
    others = [
        ends._replace(since=None),
        ends._replace(until=None),
        ends._replace(first=None),
        ends._replace(head=None),
    ]
    others += [
        ends._replace(exported_at=6),
        ends._replace(anchor=str(Anchor.make(KEY, Head(2, bytes(32)), 0))),
        ends._replace(unsealed=bytes(31) + b"x"),
        ends._replace(since=9, until=1),
    ]
    macs = [export_mac(KEY, ends), *(export_mac(KEY, other) for other in others)]
    assert len(set(macs)) == len(macs)


ANCHOR = Anchor.make(KEY, Head(17, b"m" * 32), 1_772_366_400_000_000)


def test_the_mac_of_an_anchor_is_over_all_of_it() -> None:
    number = b"\1" + (17).to_bytes(8, "big")
    before = b"\1" + (1_772_366_400_000_000).to_bytes(8, "big")
    by_hand = b"tokenctl/1 audit anchor\0" + number + b"\2\0\0\0\x20" + b"m" * 32 + before
    assert ANCHOR.mac == digest(KEY, by_hand, "sha256")
    assert ANCHOR.holds(KEY)
    assert not ANCHOR.holds(bytes(32))
    for other in (
        replace(ANCHOR, before=ANCHOR.before + 1),
        replace(ANCHOR, head=Head(18, b"m" * 32)),
        replace(ANCHOR, head=Head(17, b"n" * 32)),
        replace(ANCHOR, mac=bytes(32)),
    ):
        assert not other.holds(KEY)


def test_an_anchor_is_read_back() -> None:
    for before in (ANCHOR.before, 0, -1, 2**63 - 1):
        anchor = Anchor.make(KEY, ANCHOR.head, before)
        assert Anchor.parse(str(anchor)) == anchor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        f" {ANCHOR}",
        f"{ANCHOR}\n",
        str(ANCHOR).upper(),
        f"0{ANCHOR}",
        str(ANCHOR).replace(" ", "  "),
        str(ANCHOR).replace(" 17", " -017"),
        str(replace(ANCHOR, before=2**63)),
        str(replace(ANCHOR, head=Head(2**63, b"m" * 32))),
        str(ANCHOR).replace("17-", "¹7-", 1),
    ],
)
def test_every_other_spelling_of_an_anchor_is_none(text: str) -> None:
    assert Anchor.parse(text) is None
