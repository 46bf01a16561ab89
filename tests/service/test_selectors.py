"""Every selector on each database: what it hits is what a filter in Python over all rows hits."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.conftest import START
from tests.service import DAY, add_logins, login_row, run_sql
from tokenctl import Selector, SelectState, Settings, TokenService
from tokenctl.core.context import hash_device, pack_ip, unpack_ip
from tokenctl.core.selector import MAX_ALTERNATIVES
from tokenctl.errors import EmptySelector, InvalidInput

#: bob's logins that began until then are blocked.
CUT_OFF = START - 10 * DAY

# Few values of each, and each other's neighbours, so that a selector hits some rows and just misses others.
ADDRESSES = [
    "0.0.0.0",
    "192.0.2.0",
    "192.0.2.127",
    "192.0.2.128",
    "192.0.2.255",
    "192.0.3.0",
    "255.255.255.255",
    "::",
    "::fffe:ffff:ffff",
    "::1:0:0:0",
    "2001:db8::",
    "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db9::",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]
DEVICES = ["laptop", "Laptop", "phone"]
#: With all that is special to LIKE, to GLOB, to the ESCAPE of either, or to a regular expression.
AGENTS = [
    "a",
    "A",
    "é",
    "abc",
    "aBc",
    "a%c",
    "a_c",
    "[b]",
    "b",
    "]",
    "a[b",
    "!b",
    "!%",
    "a\\b",
    "a.c",
    "*?",
    "😀\n'",
]
MOMENTS = [START - days * DAY + tick for days in (60, 30, 14, 10, 1, 0) for tick in (-1, 0, 1)]


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    created_at = draw(st.sampled_from([moment for moment in MOMENTS if moment <= START]))
    revoked = draw(st.booleans()) and draw(st.booleans())
    ips = st.none() | st.sampled_from(ADDRESSES).map(pack_ip)
    agents = st.none() | st.sampled_from(AGENTS)
    devices = st.none() | st.sampled_from(DEVICES).map(hash_device)
    return {
        "user": draw(st.sampled_from(["ada", "bob"])),
        "client_id": draw(st.sampled_from(["default", "app"])),
        "created_at": created_at,
        "rotated_at": draw(st.sampled_from([each for each in MOMENTS if created_at <= each <= START])),
        "expires_at": created_at + draw(st.sampled_from([10, 30, 90])) * DAY,
        "idle_ttl": draw(st.sampled_from([None, DAY, 14 * DAY])),
        "revoked_at": START if revoked else None,
        "revoked_reason": "before" if revoked else None,
        "issued_ip": draw(ips),
        "last_ip": draw(ips),
        "issued_user_agent": draw(agents),
        "last_user_agent": draw(agents),
        "issued_device": draw(devices),
        "last_device": draw(devices),
    }


@st.composite
def networks(draw: st.DrawFn) -> str:
    address = draw(st.sampled_from(ADDRESSES))
    bits = draw(st.none() | st.integers(0, ipaddress.ip_address(address).max_prefixlen))
    return address if bits is None else str(ipaddress.ip_network(f"{address}/{bits}", strict=False))


@st.composite
def globs(draw: st.DrawFn) -> str:
    """An agent with some of its characters made wild."""
    agent = draw(st.sampled_from(AGENTS))
    kept = st.sampled_from(["", "", "?", "*"])
    return "".join(draw(kept) or each for each in agent) + draw(st.sampled_from(["", "", "*"]))


def ways_to_name(device: str) -> st.SearchStrategy[str]:
    """By what the device sends, by its hash, and by its hash as records show it."""
    digits = hash_device(device).hex()
    return st.sampled_from([device, f"sha256:{digits}", f"sha256:{digits.upper()}", digits])


def hash_of(device: str) -> bytes:
    digits = device.removeprefix("sha256:")
    return bytes.fromhex(digits) if len(digits) == 64 else hash_device(device)


@st.composite
def selectors(draw: st.DrawFn, numbers: int) -> Selector:
    """Of one to four fields."""

    def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
        return st.lists(values, min_size=1, max_size=3).map(tuple)

    fields: dict[str, st.SearchStrategy[Any]] = {
        "users": some(st.sampled_from(["ada", "bob"])),
        "clients": some(st.sampled_from(["default", "app"])),
        "states": some(st.sampled_from(SelectState)),
        "token_ids": some(st.integers(0, numbers).map(lambda number: f"rt_{number:032x}")),
        "ips": some(networks()),
        "user_agents": some(globs()),
        "devices": some(st.sampled_from([*DEVICES, "none"]).flatmap(ways_to_name)),
        "issued_after": st.sampled_from(MOMENTS),
        "issued_before": st.sampled_from(MOMENTS),
        "idle": st.sampled_from([START - moment for moment in MOMENTS if moment < START]),
        "everything": st.just(True),
    }
    names = draw(st.lists(st.sampled_from(list(fields)), min_size=1, max_size=4, unique=True))
    chosen = {name: draw(fields[name]) for name in names}
    if chosen.get("issued_after", 0) >= chosen.get("issued_before", START * 2):
        del chosen["issued_after"]
    return Selector(**chosen)


def hits(selector: Selector, row: dict[str, Any]) -> bool:
    """What the documents say of each field, said once more."""
    number = int.from_bytes(row["id"])
    conditions: list[tuple[Any, Callable[[Any], bool]]] = [
        (selector.users, lambda user: row["user"] == user),
        (selector.clients, lambda client: row["client_id"] == client),
        (selector.states, lambda state: state in states_of(row)),
        (selector.token_ids, lambda token_id: int(token_id.removeprefix("rt_"), 16) == number),
        (selector.ips, lambda ip: is_in(row["issued_ip"], ip) or is_in(row["last_ip"], ip)),
        (
            selector.user_agents,
            lambda glob: is_like(row["issued_user_agent"], glob) or is_like(row["last_user_agent"], glob),
        ),
        (
            selector.devices,
            lambda device: hash_of(device) in (row["issued_device"], row["last_device"]),
        ),
    ]
    return (
        all(any(map(matches, values)) for values, matches in conditions if values)
        and (selector.issued_after is None or row["created_at"] >= selector.issued_after)
        and (selector.issued_before is None or row["created_at"] < selector.issued_before)
        and (selector.idle is None or START - row["rotated_at"] >= selector.idle)
    )


def states_of(row: dict[str, Any]) -> set[SelectState]:
    over = row["expires_at"] <= START
    idle = row["idle_ttl"] is not None and row["rotated_at"] + row["idle_ttl"] <= START
    if row["revoked_at"] is not None:
        return {SelectState.REVOKED, SelectState.DEAD}
    if over:
        return {SelectState.EXPIRED, SelectState.DEAD}
    if idle:
        return {SelectState.IDLE, SelectState.EXPIRED, SelectState.DEAD}
    blocked = row["user"] == "bob" and row["created_at"] <= CUT_OFF
    return {SelectState.BLOCKED if blocked else SelectState.LIVE}


def is_in(stored: bytes | None, network: str) -> bool:
    return stored is not None and ipaddress.ip_address(unpack_ip(stored)) in ipaddress.ip_network(network)


def is_like(agent: str | None, glob: str) -> bool:
    """Character by character, as the two of them are read."""
    if agent is None:
        return False
    wild = {"*": ".*", "?": "."}
    return bool(re.fullmatch("".join(wild.get(each) or re.escape(each) for each in glob), agent, re.DOTALL))


def write(service: TokenService, settings: Settings, drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nothing but these rows, in the order of their ids."""
    users = {user.name: user.id for user in service.users.list()}
    run_sql(settings, "DELETE FROM refresh_tokens")
    all_rows = []
    for number, each in enumerate(drawn, start=1):
        values = {name: value for name, value in each.items() if name != "user"}
        all_rows.append(login_row(number, users[each["user"]], **values))
    add_logins(settings, all_rows)
    return [each | {"id": row["id"]} for each, row in zip(drawn, all_rows, strict=True)]


@pytest.fixture
def users(service: TokenService, settings: Settings) -> None:
    service.create_user("ada")
    service.create_user("bob")
    service.clients.create("app")
    run_sql(settings, "UPDATE users SET not_before = ? WHERE name = 'bob'", CUT_OFF)


@pytest.mark.usefixtures("users")
class TestHitsWhatTheFilterHits:
    @given(drawn=st.lists(rows(), min_size=1, max_size=12), data=st.data())
    @hypothesis_settings(
        max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_whatever_is_selected(
        self, service: TokenService, settings: Settings, drawn: list[dict[str, Any]], data: st.DataObject
    ) -> None:
        all_rows = write(service, settings, drawn)
        several = data.draw(st.lists(selectors(len(drawn) + 1), min_size=1, max_size=8))
        for selector in several:
            expected = [row for row in all_rows if hits(selector, row)]
            alive = [row for row in expected if SelectState.DEAD not in states_of(row)]
            seen = service.preview(selector)
            assert [bytes.fromhex(row.id.removeprefix("rt_")) for row in service.list(selector)] == [
                row["id"] for row in expected
            ]
            assert (seen.tokens, seen.already_dead) == (len(alive), len(expected) - len(alive))
            assert seen.users == len({row["user"] for row in alive})
        # The last of them: its hits are dead from there on.
        done = service.revoke_matching(selector, reason="test")
        assert (done.revoked, done.already_dead) == (len(alive), len(expected) - len(alive))
        found = run_sql(settings, "SELECT id FROM refresh_tokens WHERE revoked_reason = 'test' ORDER BY id")
        assert [bytes(raw_id) for (raw_id,) in found] == [row["id"] for row in alive]

    @given(several=st.lists(globs(), min_size=20, max_size=20))
    @hypothesis_settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_every_glob_on_every_agent(
        self, service: TokenService, settings: Settings, several: list[str]
    ) -> None:
        if not list(service.list(Selector(everything=True))):
            ada = service.users.get("ada").id
            add_logins(
                settings,
                [login_row(number, ada, issued_user_agent=each) for number, each in enumerate(AGENTS, 1)],
            )
        for glob in several:
            found = [row.issued.user_agent for row in service.list(Selector(user_agents=(glob,)))]
            assert found == [agent for agent in AGENTS if is_like(agent, glob)]


@pytest.mark.usefixtures("users")
class TestEach:
    @pytest.mark.parametrize(
        ("glob", "agents"),
        [
            ("curl/*", ["curl/8.1"]),
            ("CURL/*", []),
            ("*/?.?", ["curl/8.1"]),
            ("?", ["é", "😀", "[", "%"]),
            ("*[*", ["[", "a[b]c"]),
            ("a[b]c", ["a[b]c"]),
            ("abc", ["abc"]),
            ("%", ["%"]),
            ("*_*", ["a_c"]),
            ("a!?c", ["a!bc"]),
            ("\\*", ["\\x"]),
        ],
    )
    def test_a_glob(self, service: TokenService, settings: Settings, glob: str, agents: list[str]) -> None:
        every = ["curl/8.1", "é", "😀", "[", "%", "a[b]c", "abc", "a_c", "a!bc", "\\x"]
        ada = service.users.get("ada").id
        add_logins(
            settings, [login_row(number, ada, last_user_agent=agent) for number, agent in enumerate(every, 1)]
        )
        found = service.list(Selector(user_agents=(glob,)))
        assert [row.last.user_agent for row in found] == agents

    def test_as_many_alternatives_as_one_selector_takes(
        self, service: TokenService, settings: Settings
    ) -> None:
        """The statement stays within what either database takes, also of the longest patterns."""
        ada = service.users.get("ada").id
        context = {
            "last_ip": pack_ip("192.0.2.1"),
            "last_user_agent": "[" * 256,
            "last_device": hash_device("d0"),
        }
        [token_id] = add_logins(settings, [login_row(1, ada, **context)])
        others = (f"rt_{number:032x}" for number in range(2, 1500))
        most = Selector(
            # Each of these is two ranges.
            ips=(*("::/0",) * (MAX_ALTERNATIVES - 1), "192.0.2.1"),
            user_agents=("*[" * 256 + "*",) * MAX_ALTERNATIVES,
            devices=tuple(f"d{number}" for number in range(MAX_ALTERNATIVES)),
            states=tuple(SelectState),
            token_ids=(token_id, *others),
        )
        assert [row.id for row in service.list(most)] == [token_id]
        assert service.revoke_matching(most, reason="test").revoked == 1

    def test_a_device_that_sends_what_looks_like_a_hash(
        self, service: TokenService, settings: Settings
    ) -> None:
        """The digits alone are either: what one device sends, and the hash of what another does."""
        digits = hash_device("laptop").hex()
        ada = service.users.get("ada").id
        devices = [hash_device(digits), hash_device("laptop")]
        both = add_logins(
            settings, [login_row(number, ada, last_device=each) for number, each in enumerate(devices, 1)]
        )
        for name, found in ((digits, both), (f"sha256:{digits}", both[1:])):
            assert [row.id for row in service.list(Selector(devices=(name,)))] == found

    @pytest.mark.parametrize(
        ("selector", "error"),
        [
            pytest.param(Selector(), EmptySelector, id="empty"),
            pytest.param(Selector(ips=("192.0.2.1/24",)), InvalidInput, id="host bits"),
            pytest.param(Selector(user_agents=("a\0",)), InvalidInput, id="NUL"),
            pytest.param(Selector(devices=("",)), InvalidInput, id="empty device"),
            pytest.param(Selector(devices=("sha256:00",)), InvalidInput, id="no hash"),
            pytest.param(Selector(users=("ada",), idle=0), InvalidInput, id="idle for no time"),
            pytest.param(Selector(issued_before=2**63), InvalidInput, id="beyond 64 bits"),
        ],
    )
    def test_refused(self, service: TokenService, selector: Selector, error: type[Exception]) -> None:
        for act in (
            service.list,
            service.preview,
            lambda chosen: service.revoke_matching(chosen, reason="test"),
        ):
            with pytest.raises(error):
                act(selector)

    def test_all_times_that_there_are(self, service: TokenService, settings: Settings) -> None:
        [token_id] = add_logins(settings, [login_row(1, service.users.get("ada").id)])
        last = 2**63 - 1
        assert [row.id for row in service.list(Selector(issued_after=0, issued_before=last))] == [token_id]
        assert list(service.list(Selector(idle=last))) == []
