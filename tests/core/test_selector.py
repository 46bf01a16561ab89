"""What a selector's texts mean, and which selectors are refused before any database is asked."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenctl.core.context import hash_device, pack_ip, unpack_ip
from tokenctl.core.selector import (
    MAX_ALTERNATIVES,
    Selector,
    SelectState,
    address_ranges,
    clean_glob,
    device_hashes,
)
from tokenctl.errors import EmptySelector, InvalidInput

DIGITS = hash_device("laptop").hex()

ALONE: dict[str, Any] = {
    "users": ("ada",),
    "clients": ("web",),
    "states": (SelectState.LIVE,),
    "token_ids": ("rt_" + "0" * 32,),
    "ips": ("192.0.2.0/24",),
    "user_agents": ("curl/*",),
    "devices": ("laptop",),
    "issued_after": 0,
    "issued_before": 1,
    "idle": 1,
    "everything": True,
}


def test_each_field_names_something() -> None:
    assert set(ALONE) == set(Selector.__dataclass_fields__)
    for name, value in ALONE.items():
        selector = Selector(**{name: value})
        assert selector.require_some().require_valid() is selector


def test_nothing_is_refused() -> None:
    for empty in (Selector(), Selector(users=(), ips=(), everything=False, idle=None)):
        with pytest.raises(EmptySelector):
            empty.require_some()


# --- addresses and networks --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("192.0.2.7", [("192.0.2.7", "192.0.2.7")], id="IPv4 address"),
        pytest.param("2001:DB8::7", [("2001:db8::7", "2001:db8::7")], id="IPv6 address"),
        pytest.param("::ffff:192.0.2.7", [("192.0.2.7", "192.0.2.7")], id="mapped address"),
        pytest.param("192.0.2.0/24", [("192.0.2.0", "192.0.2.255")], id="IPv4 network"),
        pytest.param("192.0.2.7/32", [("192.0.2.7", "192.0.2.7")], id="network of one"),
        pytest.param("0.0.0.0/0", [("0.0.0.0", "255.255.255.255")], id="all of IPv4"),
        pytest.param(
            "2001:db8::/32", [("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")], id="IPv6 network"
        ),
        pytest.param("::ffff:192.0.2.0/120", [("192.0.2.0", "192.0.2.255")], id="mapped network"),
        pytest.param("::ffff:0:0/96", [("0.0.0.0", "255.255.255.255")], id="all that is mapped"),
        pytest.param(
            "::/0",
            [("::", "::fffe:ffff:ffff"), ("::1:0:0:0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")],
            id="all of IPv6, which is none of IPv4",
        ),
        pytest.param("::/80", [("::", "::fffe:ffff:ffff")], id="mapped ones at its end"),
    ],
)
def test_addresses(text: str, expected: list[tuple[str, str]]) -> None:
    ranges = address_ranges(text)
    assert ranges == [(pack_ip(first), pack_ip(last)) for first, last in expected]


@given(st.ip_addresses(), st.ip_addresses(), st.data())
def test_a_network_is_what_the_standard_library_says(address: Any, other: Any, data: st.DataObject) -> None:
    bits = data.draw(st.integers(0, address.max_prefixlen))
    network = ipaddress.ip_network((address, bits), strict=False)
    # Of what is stored one cannot tell a mapped address from its IPv4 one.
    for each in (other, address):
        stored = ipaddress.ip_address(unpack_ip(pack_ip(str(each))))
        if str(network).startswith("::ffff:") and bits >= 96:
            continue
        found = any(first <= pack_ip(str(each)) <= last for first, last in address_ranges(str(network)))
        assert found == (stored in network)


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        pytest.param("", "'' is neither an IP address nor a network", "203.0.113.0/24", id="empty"),
        pytest.param("web", "'web' is neither", "203.0.113.0/24", id="word"),
        pytest.param("192.0.2", "'192.0.2' is neither", "203.0.113.0/24", id="three parts"),
        pytest.param("192.0.2.*", "neither", "203.0.113.0/24", id="glob"),
        pytest.param("192.0.2.0/", "neither", "203.0.113.0/24", id="no prefix"),
        pytest.param("192.0.2.0/255.255.255.0", "neither", "203.0.113.0/24", id="netmask"),
        pytest.param("192.0.2.0/+24", "neither", "203.0.113.0/24", id="sign"),
        pytest.param("192.0.2.0/٢٤", "neither", "203.0.113.0/24", id="other digits"),
        pytest.param("fe80::%eth0/64", "neither", "203.0.113.0/24", id="zone"),
        pytest.param(
            "192.0.2.0/33", "an IPv4 network has at most 32 bits", "192.0.2.0 for", id="IPv4 prefix"
        ),
        pytest.param("::/129", "an IPv6 network has at most 128 bits", ":: for", id="IPv6 prefix"),
        pytest.param(
            "192.0.2.7/24", "bits set beyond", "192.0.2.0/24 for the network, 192.0.2.7 for", id="host bits"
        ),
        pytest.param("2001:db8::1/32", "bits set beyond", "2001:db8::/32 for", id="IPv6 host bits"),
        pytest.param(
            "::ffff:192.0.2.7/120", "bits set beyond", "/120 for the network", id="mapped host bits"
        ),
    ],
)
def test_no_network(text: str, what: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Selector(ips=("192.0.2.1", text)).require_valid()
    assert what in raised.value.message
    assert hint in raised.value.hint


def test_a_string_given_as_an_address_is_not_echoed() -> None:
    with pytest.raises(InvalidInput) as raised:
        address_ranges("tkr1_" + "x" * 84)
    assert "x" * 20 not in f"{raised.value.message} {raised.value.hint}"


# --- user agents, devices, times ---------------------------------------------------------------


def test_a_run_of_stars_is_one() -> None:
    assert clean_glob("**a*?**?b***") == "*a*?*?b*"
    assert clean_glob("*" * 100_000) == "*"
    longest = "*a" * 256 + "*"
    assert clean_glob(longest) == longest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("laptop", [hash_device("laptop")], id="what it sends"),
        pytest.param(f"sha256:{DIGITS}", [bytes.fromhex(DIGITS)], id="its hash"),
        pytest.param(f"sha256:{DIGITS.upper()}", [bytes.fromhex(DIGITS)], id="in capitals"),
        pytest.param(DIGITS, [hash_device(DIGITS), bytes.fromhex(DIGITS)], id="either"),
        pytest.param(DIGITS[1:], [hash_device(DIGITS[1:])], id="one digit less"),
        pytest.param(f"SHA256:{DIGITS}", [hash_device(f"SHA256:{DIGITS}")], id="another prefix"),
    ],
)
def test_a_device_by_what_it_sends_or_by_its_hash(text: str, expected: list[bytes]) -> None:
    assert device_hashes(text) == expected


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        pytest.param({"user_agents": ("",)}, "empty pattern", id="empty pattern"),
        pytest.param({"user_agents": ("a\0",)}, "NUL", id="NUL"),
        pytest.param({"user_agents": ("\ud800",)}, "UTF-8", id="half a surrogate"),
        pytest.param({"user_agents": ("é" * 129,)}, "258 bytes", id="longer than any user agent"),
        pytest.param({"devices": ("",)}, "a device is", id="empty device"),
        pytest.param({"devices": ("é",)}, "a device is", id="device beyond ASCII"),
        pytest.param({"devices": ("sha256:",)}, "64 hex digits", id="empty hash"),
        pytest.param({"devices": (f"sha256:{'0' * 63}",)}, "64 hex digits", id="short hash"),
        pytest.param({"devices": (f"sha256:{'0' * 63} ",)}, "64 hex digits", id="hash with a space"),
        pytest.param({"devices": (f"sha256:{chr(0x660) * 64}",)}, "64 hex digits", id="hash in other digits"),
        pytest.param({"issued_after": 5, "issued_before": 5}, "no login can match", id="no time between"),
        pytest.param({"issued_after": -1}, "out of range", id="before 1970"),
        pytest.param({"issued_before": 2**63}, "out of range", id="beyond 64 bits"),
        pytest.param({"idle": -1}, "out of range", id="negative"),
        pytest.param({"idle": 0}, "every login", id="idle for no time"),
        pytest.param({"ips": ("192.0.2.1",) * (MAX_ALTERNATIVES + 1)}, "101 addresses", id="addresses"),
        pytest.param({"user_agents": ("a",) * (MAX_ALTERNATIVES + 1)}, "101 agents", id="agents"),
        pytest.param({"devices": ("a",) * (MAX_ALTERNATIVES + 1)}, "101 devices", id="devices"),
    ],
)
def test_refused(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        Selector(**fields).require_some().require_valid()
