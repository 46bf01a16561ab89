"""The judgement of a presented string, row by row of its table, and the states of a refresh token.

The table's rows are tried in its order. `first match wins` is shown by tokens that match two rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from tokenctl.core.context import Context
from tokenctl.core.refresh_token import RefreshToken, State
from tokenctl.core.rotation import CLOCK_TOLERANCE, Judgement, Policy, Presented, Reason, Verdict, judge
from tokenctl.core.token_string import LAST_GENERATION

S = 1_000_000
HOUR = 3600 * S
DAY = 24 * HOUR
#: 2026-03-01 12:00 UTC, in µs.
NOW = 1_772_366_400_000_000
GRACE = 30 * S
POLICY = Policy(grace=GRACE)
NO_GRACE = Policy(grace=0)
STRICT = Policy(grace=GRACE, foreign_retry_is_reuse=True)

SECRET_HASH = bytes(range(32))
OTHER_HASH = bytes(range(1, 33))
LAPTOP = bytes([1]) * 32
PHONE = bytes([2]) * 32

ROW = RefreshToken(
    id="rt_0190a3c4d5e67f80a1b2c3d4e5f60718",
    user_id="usr_0190a3c4d5e67f80a1b2c3d4e5f60719",
    user_name="ada",
    client_id="app",
    scope="",
    generation=5,
    secret_hash=SECRET_HASH,
    created_at=NOW - DAY,
    rotated_at=NOW - 10 * S,
    access_until=NOW + 590 * S,
    expires_at=NOW + 29 * DAY,
    idle_ttl=14 * DAY,
    revoked_at=None,
    revoked_reason=None,
    revoked_by=None,
    issued=Context(),
    last=Context(device=LAPTOP),
    user_disabled_at=None,
    user_disabled_until=None,
    not_before=0,
    recovered_at=None,
)
CURRENT = Presented(5, SECRET_HASH, "app")
PREVIOUS = replace(CURRENT, generation=4)
OLDER = replace(CURRENT, generation=3)
NEWER = replace(CURRENT, generation=6)

ROTATE = Judgement(Verdict.ROTATE)
RETRY = Judgement(Verdict.RETRY)
RECOVER = Judgement(Verdict.RECOVER)
BEHIND = Judgement(Verdict.BEHIND)
REUSE = Judgement(Verdict.REUSE, Reason.REUSE)


def refuse(reason: Reason) -> Judgement:
    return Judgement(Verdict.REFUSE, reason)


def row(**changes: Any) -> RefreshToken:
    """The row of a healthy login, ten seconds after its fifth rotation, but for the changes."""
    return replace(ROW, **changes)


# What makes a row match one line of the table each.
REVOKED: dict[str, Any] = {"revoked_at": NOW - 1, "revoked_reason": "stolen"}
EXPIRED: dict[str, Any] = {"expires_at": NOW}
IDLE: dict[str, Any] = {"idle_ttl": 10 * S}
CUT_OFF: dict[str, Any] = {"not_before": ROW.created_at}
DISABLED: dict[str, Any] = {"user_disabled_at": NOW - HOUR}


# --- the table, line by line -----------------------------------------------------------------


@pytest.mark.parametrize("presented", [CURRENT, PREVIOUS, OLDER, NEWER, replace(CURRENT, client_id="other")])
def test_no_such_row(presented: Presented) -> None:
    assert judge(None, presented, NOW, POLICY) == refuse(Reason.NOT_FOUND)


@pytest.mark.parametrize(
    ("client_id", "expected"),
    [
        pytest.param("app", ROTATE, id="the same"),
        pytest.param("other", refuse(Reason.WRONG_CLIENT), id="another"),
        pytest.param("App", refuse(Reason.WRONG_CLIENT), id="other case"),
        pytest.param("ap", refuse(Reason.WRONG_CLIENT), id="prefix"),
        pytest.param("app ", refuse(Reason.WRONG_CLIENT), id="space"),
        pytest.param("app\0", refuse(Reason.WRONG_CLIENT), id="NUL"),
        pytest.param("\uff41pp", refuse(Reason.WRONG_CLIENT), id="full-width"),
        pytest.param("", refuse(Reason.WRONG_CLIENT), id="empty"),
        pytest.param("\ud800", refuse(Reason.WRONG_CLIENT), id="lone surrogate"),
    ],
)
def test_client(client_id: str, expected: Judgement) -> None:
    assert judge(ROW, replace(CURRENT, client_id=client_id), NOW, POLICY) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, ROTATE, id="healthy"),
        pytest.param(REVOKED, refuse(Reason.REVOKED), id="revoked"),
        pytest.param(REVOKED | {"revoked_at": NOW}, refuse(Reason.REVOKED), id="revoked now"),
        pytest.param(
            REVOKED | {"revoked_at": NOW + DAY}, refuse(Reason.REVOKED), id="revoked by a fast clock"
        ),
        pytest.param(REVOKED | {"revoked_at": 0}, refuse(Reason.REVOKED), id="revoked at 0"),
        pytest.param({"expires_at": NOW + 1}, ROTATE, id="last µs of its life"),
        pytest.param({"expires_at": NOW}, refuse(Reason.EXPIRED), id="expires now"),
        pytest.param({"expires_at": NOW - 1}, refuse(Reason.EXPIRED), id="expired"),
        pytest.param({"idle_ttl": None, "rotated_at": NOW - 29 * DAY}, ROTATE, id="no idle lifetime"),
        pytest.param({"idle_ttl": 10 * S + 1}, ROTATE, id="last µs before idle"),
        pytest.param({"idle_ttl": 10 * S}, refuse(Reason.IDLE), id="idle now"),
        pytest.param({"idle_ttl": 10 * S - 1}, refuse(Reason.IDLE), id="idle"),
        pytest.param(
            {"idle_ttl": 10 * S, "rotated_at": NOW - 10 * S + 1}, ROTATE, id="idle counts from rotation"
        ),
        pytest.param({"not_before": ROW.created_at - 1}, ROTATE, id="created after the cut-off"),
        pytest.param({"not_before": ROW.created_at}, refuse(Reason.CUT_OFF), id="created at the cut-off"),
        pytest.param(
            {"not_before": ROW.created_at + 1}, refuse(Reason.CUT_OFF), id="created before the cut-off"
        ),
        pytest.param({"not_before": NOW + DAY}, refuse(Reason.CUT_OFF), id="cut-off ahead"),
        pytest.param(DISABLED, refuse(Reason.USER_DISABLED), id="disabled for good"),
        pytest.param({"user_disabled_at": NOW}, refuse(Reason.USER_DISABLED), id="disabled now"),
        pytest.param({"user_disabled_at": 0}, refuse(Reason.USER_DISABLED), id="disabled at 0"),
        pytest.param(
            DISABLED | {"user_disabled_until": NOW + 1},
            refuse(Reason.USER_DISABLED),
            id="last µs of being disabled",
        ),
        pytest.param(DISABLED | {"user_disabled_until": NOW}, ROTATE, id="disabled until now"),
        pytest.param(DISABLED | {"user_disabled_until": NOW - 1}, ROTATE, id="was disabled"),
        pytest.param(DISABLED | {"user_disabled_until": 0}, ROTATE, id="disabled until 0"),
    ],
)
@pytest.mark.parametrize("policy", [POLICY, NO_GRACE, STRICT], ids=["grace", "no grace", "strict"])
def test_dead_or_blocked(changes: dict[str, Any], expected: Judgement, policy: Policy) -> None:
    assert judge(row(**changes), CURRENT, NOW, policy) == expected


@pytest.mark.parametrize(
    "secret_hash",
    [
        pytest.param(OTHER_HASH, id="another"),
        pytest.param(SECRET_HASH[:-1] + b"\0", id="last byte"),
        pytest.param(SECRET_HASH[:31], id="shorter"),
        pytest.param(SECRET_HASH + b"\0", id="longer"),
        pytest.param(b"", id="empty"),
    ],
)
@pytest.mark.parametrize("generation", [0, 3, 4, 5, 6, 100])
def test_superseded(secret_hash: bytes, generation: int) -> None:
    """The login was re-issued by id: whoever holds an older string of it is no thief, at any generation."""
    presented = replace(CURRENT, secret_hash=secret_hash, generation=generation)
    assert judge(ROW, presented, NOW, POLICY) == refuse(Reason.SUPERSEDED)


@pytest.mark.parametrize(
    ("age", "policy", "expected"),
    [
        pytest.param(0, POLICY, RETRY, id="at once"),
        pytest.param(1, POLICY, RETRY, id="1 µs later"),
        pytest.param(GRACE - 1, POLICY, RETRY, id="1 µs before the end of the grace"),
        pytest.param(GRACE, POLICY, RETRY, id="at the end of the grace"),
        pytest.param(GRACE + 1, POLICY, REUSE, id="1 µs after the grace"),
        pytest.param(DAY, POLICY, REUSE, id="a day later"),
        pytest.param(-1, POLICY, RETRY, id="a clock 1 µs ahead"),
        pytest.param(-5 * S, POLICY, RETRY, id="a clock 5 s ahead"),
        pytest.param(-5 * S - 1, POLICY, refuse(Reason.CLOCK_SKEW), id="a clock 5 s and 1 µs ahead"),
        pytest.param(-DAY, POLICY, refuse(Reason.CLOCK_SKEW), id="a clock a day ahead"),
        pytest.param(0, Policy(grace=1), RETRY, id="the shortest grace: at once"),
        pytest.param(1, Policy(grace=1), RETRY, id="the shortest grace: at its end"),
        pytest.param(2, Policy(grace=1), REUSE, id="the shortest grace: after it"),
        pytest.param(-5 * S, Policy(grace=1), RETRY, id="the shortest grace: a clock 5 s ahead"),
        pytest.param(0, NO_GRACE, REUSE, id="no grace: at once"),
        pytest.param(1, NO_GRACE, REUSE, id="no grace: 1 µs later"),
        pytest.param(DAY, NO_GRACE, REUSE, id="no grace: a day later"),
        pytest.param(-1, NO_GRACE, REUSE, id="no grace: a clock 1 µs ahead"),
        pytest.param(-5 * S, NO_GRACE, REUSE, id="no grace: a clock 5 s ahead"),
        pytest.param(-5 * S - 1, NO_GRACE, refuse(Reason.CLOCK_SKEW), id="no grace: 5 s and 1 µs ahead"),
    ],
)
def test_the_previous_string(age: int, policy: Policy, expected: Judgement) -> None:
    assert judge(row(rotated_at=NOW - age), PREVIOUS, NOW, policy) == expected


def test_the_tolerance_is_what_the_table_says() -> None:
    assert CLOCK_TOLERANCE == 5 * S


@pytest.mark.parametrize(
    ("row_generation", "presented_generation", "expected"),
    [
        pytest.param(5, 5, ROTATE, id="current"),
        pytest.param(5, 4, RETRY, id="row - 1"),
        pytest.param(5, 3, REUSE, id="row - 2"),
        pytest.param(5, 0, REUSE, id="row - 5"),
        pytest.param(5, 6, BEHIND, id="row + 1"),
        pytest.param(5, 7, BEHIND, id="row + 2"),
        pytest.param(5, LAST_GENERATION - 1, BEHIND, id="far ahead"),
        pytest.param(0, 0, ROTATE, id="the first"),
        pytest.param(0, 1, BEHIND, id="after the first"),
        pytest.param(1, 0, RETRY, id="the first again"),
        pytest.param(2, 0, REUSE, id="the first, spent"),
        pytest.param(LAST_GENERATION - 1, LAST_GENERATION - 1, ROTATE, id="into the last"),
        pytest.param(LAST_GENERATION - 1, LAST_GENERATION - 2, RETRY, id="into the last but one again"),
        pytest.param(LAST_GENERATION - 1, LAST_GENERATION - 3, REUSE, id="near the last, spent"),
        pytest.param(LAST_GENERATION, LAST_GENERATION, refuse(Reason.EXPIRED), id="the last"),
        pytest.param(LAST_GENERATION, LAST_GENERATION - 1, refuse(Reason.EXPIRED), id="into the last again"),
        pytest.param(LAST_GENERATION, LAST_GENERATION - 2, refuse(Reason.EXPIRED), id="the last, spent"),
        pytest.param(
            LAST_GENERATION - 1, LAST_GENERATION, refuse(Reason.EXPIRED), id="the last is presented"
        ),
        pytest.param(0, LAST_GENERATION, refuse(Reason.EXPIRED), id="the last is presented to the first"),
    ],
)
def test_generations(row_generation: int, presented_generation: int, expected: Judgement) -> None:
    presented = replace(CURRENT, generation=presented_generation)
    assert judge(row(generation=row_generation), presented, NOW, POLICY) == expected


@pytest.mark.parametrize(
    "age", [-DAY, -5 * S - 1, -5 * S, 0, 10 * S, GRACE, GRACE + 1, DAY], ids=lambda age: f"age {age}"
)
@pytest.mark.parametrize("policy", [POLICY, NO_GRACE, STRICT], ids=["grace", "no grace", "strict"])
class TestWhateverTheTime:
    """Of the string before the last one no time and no clock decides."""

    def test_two_behind_is_reuse(self, age: int, policy: Policy) -> None:
        assert judge(row(rotated_at=NOW - age), OLDER, NOW, policy) == REUSE

    def test_the_current_one_rotates(self, age: int, policy: Policy) -> None:
        assert judge(row(rotated_at=NOW - age), CURRENT, NOW, policy) == ROTATE

    def test_a_newer_one_is_ahead_of_the_database(self, age: int, policy: Policy) -> None:
        assert judge(row(rotated_at=NOW - age), NEWER, NOW, policy) == BEHIND


@pytest.mark.parametrize(
    ("given_device", "row_device", "policy", "expected"),
    [
        pytest.param(None, LAPTOP, POLICY, RETRY, id="none given"),
        pytest.param(LAPTOP, LAPTOP, POLICY, RETRY, id="the same"),
        pytest.param(PHONE, LAPTOP, POLICY, replace(RETRY, foreign=True), id="another"),
        pytest.param(PHONE, None, POLICY, replace(RETRY, foreign=True), id="given, the row has none"),
        pytest.param(None, None, POLICY, RETRY, id="neither"),
        pytest.param(None, LAPTOP, STRICT, RETRY, id="strict: none given"),
        pytest.param(LAPTOP, LAPTOP, STRICT, RETRY, id="strict: the same"),
        pytest.param(PHONE, LAPTOP, STRICT, replace(REUSE, foreign=True), id="strict: another"),
        pytest.param(PHONE, None, STRICT, replace(REUSE, foreign=True), id="strict: given, the row has none"),
        pytest.param(None, None, STRICT, RETRY, id="strict: neither"),
    ],
)
def test_a_retry_from_another_device(
    given_device: bytes | None, row_device: bytes | None, policy: Policy, expected: Judgement
) -> None:
    presented = replace(PREVIOUS, device=given_device)
    # The device of the last use decides, not the one of the login.
    there = row(issued=Context(device=PHONE), last=Context(device=row_device))
    assert judge(there, presented, NOW, policy) == expected


@pytest.mark.parametrize(
    ("presented", "age", "expected"),
    [
        pytest.param(CURRENT, 0, ROTATE, id="the current string"),
        pytest.param(PREVIOUS, GRACE + 1, REUSE, id="a spent string"),
        pytest.param(PREVIOUS, -5 * S - 1, refuse(Reason.CLOCK_SKEW), id="a wrong clock"),
        pytest.param(OLDER, 0, REUSE, id="an older string"),
        pytest.param(NEWER, 0, BEHIND, id="a newer string"),
    ],
)
def test_another_device_matters_to_a_retry_only(presented: Presented, age: int, expected: Judgement) -> None:
    there = row(rotated_at=NOW - age)
    assert judge(there, replace(presented, device=PHONE), NOW, STRICT) == expected


@pytest.mark.parametrize(
    ("recovered_at", "expected"),
    [
        pytest.param(None, BEHIND, id="not declared"),
        pytest.param(ROW.rotated_at + 1, RECOVER, id="after the row's last rotation"),
        pytest.param(ROW.rotated_at, RECOVER, id="at the row's last rotation"),
        pytest.param(ROW.rotated_at - 1, REUSE, id="before the row's last rotation"),
        pytest.param(NOW + DAY, RECOVER, id="ahead of the clock"),
        pytest.param(0, REUSE, id="long ago"),
    ],
)
@pytest.mark.parametrize("generation", [6, 7, 1000, LAST_GENERATION - 1])
def test_a_string_newer_than_the_database(
    recovered_at: int | None, generation: int, expected: Judgement
) -> None:
    presented = replace(CURRENT, generation=generation, device=PHONE)
    assert judge(row(recovered_at=recovered_at), presented, NOW, STRICT) == expected


@pytest.mark.parametrize(
    ("presented", "expected"),
    [
        pytest.param(CURRENT, ROTATE, id="current"),
        pytest.param(PREVIOUS, RETRY, id="previous"),
        pytest.param(OLDER, REUSE, id="older"),
    ],
)
@pytest.mark.parametrize("recovered_at", [0, ROW.rotated_at, NOW])
def test_a_recovery_matters_to_newer_strings_only(
    recovered_at: int, presented: Presented, expected: Judgement
) -> None:
    assert judge(row(recovered_at=recovered_at), presented, NOW, POLICY) == expected


# --- first match wins ------------------------------------------------------------------------

_OTHER_CLIENT: dict[str, Any] = {"client_id": "other"}
_OTHER_SECRET: dict[str, Any] = {"secret_hash": OTHER_HASH}


@pytest.mark.parametrize(
    ("changes", "shown", "reason"),
    [
        pytest.param(REVOKED, _OTHER_CLIENT, Reason.WRONG_CLIENT, id="wrong client before revoked"),
        pytest.param(EXPIRED, _OTHER_CLIENT, Reason.WRONG_CLIENT, id="wrong client before expired"),
        pytest.param(IDLE, _OTHER_CLIENT, Reason.WRONG_CLIENT, id="wrong client before idle"),
        pytest.param(CUT_OFF, _OTHER_CLIENT, Reason.WRONG_CLIENT, id="wrong client before cut off"),
        pytest.param(DISABLED, _OTHER_CLIENT, Reason.WRONG_CLIENT, id="wrong client before disabled"),
        pytest.param(
            {}, _OTHER_CLIENT | _OTHER_SECRET, Reason.WRONG_CLIENT, id="wrong client before superseded"
        ),
        pytest.param(
            {}, _OTHER_CLIENT | {"generation": 3}, Reason.WRONG_CLIENT, id="wrong client before reuse"
        ),
        pytest.param(
            {}, _OTHER_CLIENT | {"generation": 4}, Reason.WRONG_CLIENT, id="wrong client before retry"
        ),
        pytest.param(
            {}, _OTHER_CLIENT | {"generation": 6}, Reason.WRONG_CLIENT, id="wrong client before behind"
        ),
        pytest.param(
            {},
            _OTHER_CLIENT | {"generation": LAST_GENERATION},
            Reason.WRONG_CLIENT,
            id="wrong client before the last generation",
        ),
        pytest.param(REVOKED | EXPIRED, {}, Reason.REVOKED, id="revoked before expired"),
        pytest.param(REVOKED | IDLE, {}, Reason.REVOKED, id="revoked before idle"),
        pytest.param(REVOKED | CUT_OFF, {}, Reason.REVOKED, id="revoked before cut off"),
        pytest.param(REVOKED | DISABLED, {}, Reason.REVOKED, id="revoked before disabled"),
        pytest.param(
            REVOKED, {"generation": LAST_GENERATION}, Reason.REVOKED, id="revoked before the last generation"
        ),
        pytest.param(EXPIRED | IDLE, {}, Reason.EXPIRED, id="expired before idle"),
        pytest.param(EXPIRED | CUT_OFF, {}, Reason.EXPIRED, id="expired before cut off"),
        pytest.param(EXPIRED | DISABLED, {}, Reason.EXPIRED, id="expired before disabled"),
        pytest.param(
            IDLE, {"generation": LAST_GENERATION}, Reason.EXPIRED, id="the last generation before idle"
        ),
        pytest.param(IDLE | CUT_OFF, {}, Reason.IDLE, id="idle before cut off"),
        pytest.param(IDLE | DISABLED, {}, Reason.IDLE, id="idle before disabled"),
        pytest.param(CUT_OFF | DISABLED, {}, Reason.CUT_OFF, id="cut off before disabled"),
        pytest.param(
            {"generation": LAST_GENERATION},
            _OTHER_SECRET,
            Reason.EXPIRED,
            id="the last generation before superseded",
        ),
    ],
)
def test_of_two_refusals_the_first_is_told(
    changes: dict[str, Any], shown: dict[str, Any], reason: Reason
) -> None:
    assert judge(row(**changes), replace(CURRENT, **shown), NOW, POLICY) == refuse(reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param(REVOKED, Reason.REVOKED, id="revoked"),
        pytest.param(EXPIRED, Reason.EXPIRED, id="expired"),
        pytest.param(IDLE, Reason.IDLE, id="idle"),
        pytest.param(CUT_OFF, Reason.CUT_OFF, id="cut off"),
        pytest.param(DISABLED, Reason.USER_DISABLED, id="user disabled"),
    ],
)
@pytest.mark.parametrize(
    ("shown", "beside"),
    [
        pytest.param({"generation": 5}, {}, id="before rotate"),
        pytest.param({"generation": 4}, {}, id="before retry"),
        pytest.param({"generation": 4, "device": PHONE}, {}, id="before a foreign retry"),
        pytest.param({"generation": 4}, {"rotated_at": NOW - DAY}, id="before reuse"),
        pytest.param({"generation": 3}, {}, id="before reuse of an older one"),
        pytest.param({"generation": 6}, {}, id="before behind"),
        pytest.param({"generation": 6}, {"recovered_at": NOW}, id="before recover"),
        pytest.param({"generation": 6}, {"recovered_at": 0}, id="before reuse after a recovery"),
        pytest.param({"generation": 5} | _OTHER_SECRET, {}, id="before superseded"),
        pytest.param({"generation": 3} | _OTHER_SECRET, {}, id="before superseded, spent"),
    ],
)
def test_dead_or_blocked_comes_first(
    changes: dict[str, Any], reason: Reason, shown: dict[str, Any], beside: dict[str, Any]
) -> None:
    assert judge(row(**beside | changes), replace(CURRENT, **shown), NOW, STRICT) == refuse(reason)


def test_a_dead_login_comes_before_a_wrong_clock() -> None:
    there = row(**REVOKED, rotated_at=NOW + DAY)
    assert judge(there, PREVIOUS, NOW, POLICY) == refuse(Reason.REVOKED)


def test_superseded_comes_before_a_wrong_clock() -> None:
    presented = replace(PREVIOUS, secret_hash=OTHER_HASH)
    assert judge(row(rotated_at=NOW + DAY), presented, NOW, POLICY) == refuse(Reason.SUPERSEDED)


def test_a_fresh_revocation_does_not_look_like_a_fresh_rotation() -> None:
    there = row(revoked_at=NOW, revoked_reason="reuse", rotated_at=NOW - DAY)
    assert judge(there, PREVIOUS, NOW, POLICY) == refuse(Reason.REVOKED)


# --- states ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        pytest.param({}, State.LIVE, id="healthy"),
        pytest.param(REVOKED, State.REVOKED, id="revoked"),
        pytest.param({"expires_at": NOW + 1}, State.LIVE, id="last µs of its life"),
        pytest.param(EXPIRED, State.EXPIRED, id="expires now"),
        pytest.param({"idle_ttl": 10 * S + 1}, State.LIVE, id="last µs before idle"),
        pytest.param(IDLE, State.IDLE, id="idle now"),
        pytest.param({"idle_ttl": None, "rotated_at": 0}, State.LIVE, id="no idle lifetime"),
        pytest.param({"not_before": ROW.created_at - 1}, State.LIVE, id="created after the cut-off"),
        pytest.param(CUT_OFF, State.BLOCKED, id="created at the cut-off"),
        pytest.param(DISABLED, State.BLOCKED, id="disabled"),
        pytest.param(DISABLED | {"user_disabled_until": NOW + 1}, State.BLOCKED, id="disabled for 1 µs more"),
        pytest.param(DISABLED | {"user_disabled_until": NOW}, State.LIVE, id="disabled until now"),
        pytest.param({"user_disabled_at": NOW + DAY}, State.BLOCKED, id="disabled by a fast clock"),
        pytest.param(REVOKED | EXPIRED | IDLE | CUT_OFF | DISABLED, State.REVOKED, id="all: revoked"),
        pytest.param(EXPIRED | IDLE | CUT_OFF | DISABLED, State.EXPIRED, id="all but revoked: expired"),
        pytest.param(IDLE | CUT_OFF | DISABLED, State.IDLE, id="idle and blocked: idle"),
        pytest.param(CUT_OFF | DISABLED, State.BLOCKED, id="blocked twice"),
    ],
)
def test_state(changes: dict[str, Any], state: State) -> None:
    there = row(**changes)
    assert there.state(NOW) is state
    assert there.is_valid(NOW) is (state is State.LIVE)
    assert there.is_dead(NOW) is (state in {State.REVOKED, State.EXPIRED, State.IDLE})
    assert there.is_revoked is (state is State.REVOKED)


def test_when_it_falls_idle() -> None:
    assert row(rotated_at=7, idle_ttl=5).idle_expires_at == 12
    assert row(idle_ttl=None).idle_expires_at is None
    assert not row(idle_ttl=None).is_idle(2**63)


def test_a_row_shows_no_secret_hash() -> None:
    assert repr(SECRET_HASH)[2:-1] not in repr(ROW)
    assert SECRET_HASH.hex() not in repr(ROW)


# --- for any row, string, time and policy ----------------------------------------------------

near_now = st.one_of(
    st.sampled_from([-5 * S - 1, -5 * S, -1, 0, 1, GRACE, GRACE + 1]), st.integers(-2 * DAY, 2 * DAY)
).map(NOW.__add__)
any_generation = st.one_of(
    st.integers(0, 4), st.integers(LAST_GENERATION - 3, LAST_GENERATION), st.integers(0, LAST_GENERATION)
)
devices = st.sampled_from([None, LAPTOP, PHONE])
policies = st.builds(Policy, grace=st.sampled_from([0, 1, GRACE, DAY]), foreign_retry_is_reuse=st.booleans())
#: What may be the matter with a login; each is drawn on either side of its edge.
troubles: dict[str, st.SearchStrategy[Any]] = {
    "expires_at": near_now,
    "idle_ttl": st.integers(1, 3 * DAY),
    "revoked_at": near_now,
    "created_at": near_now,
    "not_before": near_now,
    "user_disabled_at": near_now,
    "user_disabled_until": near_now,
}


@st.composite
def rows(draw: st.DrawFn) -> RefreshToken:
    """Any login: most have nothing the matter, some have one thing or two."""
    chosen = sorted(draw(st.sets(st.sampled_from(sorted(troubles)), max_size=2)))
    return row(
        generation=draw(any_generation),
        rotated_at=draw(near_now),
        recovered_at=draw(st.none() | near_now),
        last=Context(device=draw(devices)),
        **{"created_at": NOW - 5 * DAY} | {name: draw(troubles[name]) for name in chosen},
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[RefreshToken, Presented]:
    """A login, and a string that is presented as one of it: most are of its secret and a near generation."""
    there = draw(rows())
    offset = draw(st.sampled_from([0, 0, -1, -1, -2, 1, 2]))
    near = min(max(there.generation + offset, 0), LAST_GENERATION)
    generation = draw(st.sampled_from([near] * 5 + [draw(any_generation)]))
    secret_hash = draw(st.sampled_from([SECRET_HASH] * 5 + [OTHER_HASH]))
    client_id = draw(st.sampled_from(["app"] * 5 + ["other"]))
    return there, Presented(generation, secret_hash, client_id, draw(devices))


def is_good(there: RefreshToken, presented: Presented, now: int) -> bool:
    """A string of a live login's very secret, by its own client, that has a successor."""
    return (
        there.is_valid(now)
        and presented.client_id == there.client_id
        and presented.secret_hash == there.secret_hash
        and LAST_GENERATION not in (there.generation, presented.generation)
    )


@given(cases(), near_now, policies)
@example((ROW, CURRENT), NOW, POLICY)
def test_it_rotates_exactly_a_live_logins_current_string(
    case: tuple[RefreshToken, Presented], now: int, policy: Policy
) -> None:
    there, presented = case
    verdict = judge(there, presented, now, policy).verdict
    event(verdict)
    current = presented.generation == there.generation
    assert (verdict is Verdict.ROTATE) is (current and is_good(there, presented, now))


@given(cases(), near_now, policies)
def test_every_judgement_is_whole(case: tuple[RefreshToken, Presented], now: int, policy: Policy) -> None:
    judgement = judge(*case, now, policy)
    match judgement.verdict:
        case Verdict.REFUSE:
            assert judgement.reason not in (None, Reason.REUSE, Reason.NOT_FOUND)
            assert not judgement.foreign
        case Verdict.REUSE:
            assert judgement.reason is Reason.REUSE
        case _:
            assert judgement.reason is None
            assert not judgement.foreign or judgement.verdict is Verdict.RETRY


@given(cases(), near_now, policies)
def test_only_a_live_logins_own_string_has_consequences(
    case: tuple[RefreshToken, Presented], now: int, policy: Policy
) -> None:
    """Nobody who holds less than a string of this very secret can do anything to the login."""
    verdict = judge(*case, now, policy).verdict
    skewed = judge(*case, now, policy).reason is Reason.CLOCK_SKEW
    assert (verdict is not Verdict.REFUSE or skewed) is is_good(*case, now)


@given(cases(), near_now, policies)
def test_a_retry_is_exactly_the_previous_string_within_the_window(
    case: tuple[RefreshToken, Presented], now: int, policy: Policy
) -> None:
    there, presented = case
    judgement = judge(there, presented, now, policy)
    previous = presented.generation == there.generation - 1
    in_window = policy.grace > 0 and -5 * S <= now - there.rotated_at <= policy.grace
    foreign = presented.device not in (None, there.last.device)
    punished = foreign and policy.foreign_retry_is_reuse
    retried = previous and in_window and not punished and is_good(there, presented, now)
    assert (judgement.verdict is Verdict.RETRY) is retried
    if retried:
        assert judgement.foreign is foreign


@given(cases(), near_now, policies)
def test_a_newer_string_is_followed_after_a_declared_recovery_only(
    case: tuple[RefreshToken, Presented], now: int, policy: Policy
) -> None:
    there, presented = case
    verdict = judge(there, presented, now, policy).verdict
    newer = presented.generation > there.generation and is_good(there, presented, now)
    declared = there.recovered_at is not None
    unused_since = there.recovered_at is not None and there.rotated_at <= there.recovered_at
    assert (verdict is Verdict.BEHIND) is (newer and not declared)
    assert (verdict is Verdict.RECOVER) is (newer and declared and unused_since)
    if newer and declared and not unused_since:
        assert verdict is Verdict.REUSE


@given(rows(), near_now)
def test_a_state_says_what_is_and_is_not_possible(there: RefreshToken, now: int) -> None:
    state = there.state(now)
    assert there.is_dead(now) is (state in (State.REVOKED, State.EXPIRED, State.IDLE))
    assert there.is_valid(now) is (state is State.LIVE)
    blocked = there.is_cut_off() or there.is_user_disabled(now)
    assert (state is State.BLOCKED) is (blocked and not there.is_dead(now))


@given(rows(), near_now, st.integers(0, 10 * DAY))
def test_the_dead_stay_dead(there: RefreshToken, now: int, later: int) -> None:
    assert there.is_dead(now) <= there.is_dead(now + later)
