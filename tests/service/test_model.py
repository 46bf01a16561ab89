"""TokenService against a small model of it: whatever is done in whatever order, they never differ.

The environment variable TOKENCTL_MODEL_STEPS sets how many steps are taken (default 1500).
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as how
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import START, Clock
from tests.service import run_sql
from tokenctl import Context, RotateRequest, Selector, Settings, State, TokenPair, TokenService
from tokenctl.errors import DatabaseBehind, InvalidInput, TokenctlError, TokenRefused, UserDisabled

S = 1_000_000
GRACE = 30 * S
ACCESS = 600 * S
IDLE = 3600 * S
LIFE = 4 * 3600 * S
CLIENTS = ["default", "app"]
USERS = ["ada", "bob"]
DEVICES = {name: Context.of(device=name) for name in ("laptop", "phone")} | {None: Context()}

STEPS_OF_A_RUN = 50
RUNS = max(1, int(os.environ.get("TOKENCTL_MODEL_STEPS", "1500")) // STEPS_OF_A_RUN)


# --- the model -------------------------------------------------------------------------------


@dataclass
class User:
    name: str
    disabled: bool = False
    until: int | None = None

    def is_disabled(self, now: int) -> bool:
        return self.disabled and (self.until is None or now < self.until)


@dataclass(frozen=True)
class Use:
    """What the last rotation left of a login."""

    generation: int
    at: int
    access_until: int
    device: str | None


@dataclass
class Login:
    """What the service ought to know of a login, and every string that it ever handed out for it."""

    id: str
    user: User
    client: str
    expires: int
    use: Use
    #: How often it was re-issued: each time has a secret of its own.
    issue: int = 0
    revoked: bool = False
    strings: dict[tuple[int, int], str] = field(default_factory=dict)
    #: The uses since the last re-issue, for a backup to go back to.
    past: list[Use] = field(default_factory=list)

    def obstacle(self, now: int) -> str | None:
        if self.revoked:
            return "revoked"
        if now >= self.expires:
            return "expired"
        if now >= self.use.at + IDLE:
            return "idle"
        if self.user.is_disabled(now):
            return "user_disabled"
        return None

    def is_dead(self, now: int) -> bool:
        return self.obstacle(now) in ("revoked", "expired", "idle")

    def state(self, now: int) -> State:
        obstacle = self.obstacle(now)
        if obstacle is None:
            return State.LIVE
        return State.BLOCKED if obstacle == "user_disabled" else State(obstacle)


@dataclass(frozen=True)
class Shown:
    """A string as it is presented: which one of which login, by which client, from which device."""

    login: Login
    issue: int
    generation: int
    client: str
    device: str | None

    @property
    def text(self) -> str:
        return self.login.strings[self.issue, self.generation]


picks = st.integers(0, 7)
devices = st.sampled_from(list(DEVICES))


class Model(RuleBasedStateMachine):
    """Each rule does one thing to the service and to the model, and compares the answers."""

    #: Makes a database, what it needs of files in that directory.
    new_settings: ClassVar[Callable[[Path], AbstractContextManager[Settings]]]
    #: How often each verdict came up, over all runs.
    counts: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.settings = self.stack.enter_context(type(self).new_settings(directory))
        self.clock = Clock()
        self.users = [User(name) for name in USERS]
        self.known: list[Login] = []
        self.recovered_at: int | None = None
        self.seen: Counter[str] = Counter()

    @initialize(grace=st.sampled_from([GRACE, GRACE, GRACE, 0]), strict=st.booleans())
    def open(self, grace: int, strict: bool) -> None:
        self.grace, self.strict = grace, strict
        settings = replace(
            self.settings,
            grace=timedelta(microseconds=grace),
            access_ttl=timedelta(microseconds=ACCESS),
            idle_ttl=timedelta(microseconds=IDLE),
            refresh_ttl=timedelta(microseconds=LIFE),
            foreign_retry="reuse" if strict else "event",
        )
        self.service = TokenService(settings, clock=self.clock)
        for user in self.users:
            self.service.create_user(user.name)
        self.service.clients.create("app")
        for number, client in enumerate(CLIENTS):
            self.log_in(number, client, "laptop")

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.service.close()
        self.counts.update(self.seen)
        self.stack.close()

    @property
    def now(self) -> int:
        return self.clock.now

    def login(self, pick: int, *, alive: bool = True) -> Login:
        """A login, drawn by number; one that is alive, made when there is none, unless any will do."""
        if alive:
            if not self.living and not all(user.is_disabled(self.now) for user in self.users):
                self.log_in(int(self.users[0].is_disabled(self.now)), "default", "laptop")
            if self.living:
                return self.living[pick % len(self.living)]
        return self.known[pick % len(self.known)]

    @property
    def living(self) -> list[Login]:
        return [login for login in self.known if not login.is_dead(self.now)]

    # --- time ---

    @rule(step=st.sampled_from([1, S, 10 * S, GRACE - 1, GRACE, GRACE + 1, ACCESS]))
    def time_passes(self, step: int) -> None:
        self.clock.now += step

    @rule(step=st.sampled_from([1, S, 5 * S, 5 * S + 1, ACCESS]))
    def the_clock_is_set_back(self, step: int) -> None:
        self.clock.now = max(START, self.now - step)

    @rule(
        pick=picks,
        edge=st.sampled_from(["grace", "tolerance", "grace", "tolerance", "grace", "idle", "life"]),
        off=st.sampled_from([-1, 0, 1]),
    )
    def an_edge_of_a_login_comes(self, pick: int, edge: str, off: int) -> None:
        login = self.login(pick)
        at = {
            "grace": login.use.at + self.grace,
            "tolerance": login.use.at - 5 * S,
            "idle": login.use.at + IDLE,
            "life": login.expires,
        }
        self.clock.now = at[edge] + off

    # --- logins ---

    @rule(user=st.integers(0, 1), client=st.sampled_from(CLIENTS), device=devices)
    def issue(self, user: int, client: str, device: str | None) -> None:
        self.log_in(user, client, device)

    def log_in(self, user: int, client: str, device: str | None) -> None:
        owner = self.users[user]
        if owner.is_disabled(self.now):
            with pytest.raises(UserDisabled):
                self.service.issue(owner.name, client_id=client)
            return
        pair = self.service.issue(owner.name, client_id=client, context=DEVICES[device])
        use = Use(0, self.now, self.now + ACCESS, device)
        login = Login(pair.token_id, owner, client, self.now + LIFE, use, past=[use])
        login.strings[0, 0] = pair.refresh_token
        assert pair.access_expires_at == use.access_until
        assert pair.refresh_expires_at == login.expires
        self.known.append(login)

    @rule(pick=picks, alive=st.booleans())
    def reissue(self, pick: int, alive: bool) -> None:
        login = self.login(pick, alive=alive)
        if (reason := login.obstacle(self.now)) is not None:
            with pytest.raises(TokenRefused) as caught:
                self.service.reissue(login.id)
            assert caught.value.reason == reason
            return
        again = self.service.reissue(login.id)
        assert again.refresh_expires_at == login.expires
        assert again.refresh_token not in login.strings.values()
        login.issue += 1
        # No access token was signed, and nobody used it.
        login.use = Use(login.use.generation + 1, self.now, login.use.access_until, None)
        login.past = [login.use]
        login.strings[login.issue, login.use.generation] = again.refresh_token

    # --- presenting a string ---

    @rule(pick=picks, device=devices)
    def rotate_the_current_string(self, pick: int, device: str | None) -> None:
        self.present([self.shown(self.login(pick), 0, device)])

    @rule(pick=picks, device=devices)
    def retry_the_previous_string(self, pick: int, device: str | None) -> None:
        self.present([self.shown(self.login(pick), 1, device)])

    @rule(
        pick=picks,
        wait=st.sampled_from([0, 0, S, GRACE - 1, GRACE, GRACE + 1, -1, -5 * S, -5 * S - 1]),
        device=devices,
    )
    def a_client_loses_the_answer(self, pick: int, wait: int, device: str | None) -> None:
        login = self.login(pick)
        self.present([self.shown(login, 0, login.use.device)])
        self.clock.now += wait
        self.present([self.shown(login, 1, device)])

    @rule(pick=picks, alive=st.booleans(), device=devices, data=st.data())
    def present_any_string(self, pick: int, alive: bool, device: str | None, data: st.DataObject) -> None:
        login = self.login(pick, alive=alive)
        issue, generation = data.draw(st.sampled_from(sorted(login.strings)))
        self.present([Shown(login, issue, generation, login.client, device)])

    @rule(pick=picks, data=st.data())
    def another_client_presents_any_string(self, pick: int, data: st.DataObject) -> None:
        login = self.login(pick)
        issue, generation = data.draw(st.sampled_from(sorted(login.strings)))
        other = next(client for client in CLIENTS if client != login.client)
        self.present([Shown(login, issue, generation, other, None)])

    @rule(entries=st.lists(st.tuples(picks, st.sampled_from([0, 0, 0, 1, 1, 2]), devices), max_size=6))
    def present_several_at_once(self, entries: list[tuple[int, int, str | None]]) -> None:
        self.present([self.shown(self.login(pick), back, device) for pick, back, device in entries])

    @rule(pick=picks, place=st.integers(5, 88))
    def present_a_mistyped_string(self, pick: int, place: int) -> None:
        text = self.shown(self.login(pick), 0, None).text
        other = "A" if text[place] != "A" else "B"
        [answer] = self.service.rotate_many([RotateRequest(text[:place] + other + text[place + 1 :])])
        assert isinstance(answer, TokenctlError)
        assert answer.code == "token.invalid"

    def shown(self, login: Login, back: int, device: str | None) -> Shown:
        """The string that is `back` generations behind the current one, or the nearest there is."""
        generations = sorted(generation for issue, generation in login.strings if issue == login.issue)
        here = generations.index(login.use.generation)
        return Shown(login, login.issue, generations[max(0, here - back)], login.client, device)

    def present(self, entries: list[Shown]) -> None:
        """Present them in one batch, which must be as if they had been presented one after the other."""
        answers = self.service.rotate_many(
            [RotateRequest(shown.text, shown.client, DEVICES[shown.device]) for shown in entries]
        )
        assert len(answers) == len(entries)
        for shown, answer in zip(entries, answers, strict=True):
            expected = self.verdict(shown)
            self.seen[expected] += 1
            self.follow(shown, expected)
            self.compare(shown, expected, answer)

    def verdict(self, shown: Shown) -> str:
        login, now = shown.login, self.now
        if shown.client != login.client:
            return "wrong_client"
        if (obstacle := login.obstacle(now)) is not None:
            return obstacle
        if shown.issue != login.issue:
            return "superseded"
        if shown.generation == login.use.generation:
            return "rotated"
        if shown.generation > login.use.generation:
            if self.recovered_at is None:
                return "behind"
            return "rotated" if login.use.at <= self.recovered_at else "reuse"
        age = now - login.use.at
        if shown.generation == login.use.generation - 1:
            if self.grace and -5 * S <= age <= self.grace:
                foreign = shown.device is not None and shown.device != login.use.device
                return "reuse" if foreign and self.strict else "retried"
            if age < -5 * S:
                return "clock_skew"
        return "reuse"

    def follow(self, shown: Shown, verdict: str) -> None:
        login = shown.login
        if verdict == "reuse":
            login.revoked = True
        elif verdict == "rotated":
            device = shown.device or login.use.device
            # The latest that was signed: a clock that was set back makes the new one the earlier one.
            until = max(login.use.access_until, min(self.now + ACCESS, login.expires))
            login.use = Use(shown.generation + 1, self.now, until, device)
            login.past.append(login.use)

    def compare(self, shown: Shown, verdict: str, answer: TokenPair | TokenctlError) -> None:
        login = shown.login
        if verdict == "behind":
            assert isinstance(answer, DatabaseBehind)
        elif verdict in ("rotated", "retried"):
            assert isinstance(answer, TokenPair), answer
            assert answer.retried is (verdict == "retried")
            assert answer.token_id == login.id
            # Whoever gets a successor of one string gets the same one.
            key = shown.issue, shown.generation + 1
            assert answer.refresh_token == login.strings.setdefault(key, answer.refresh_token)
            assert list(login.strings.values()).count(answer.refresh_token) == 1
            # An earlier entry of the batch may have been rotated again by a later one.
            assert answer.access_expires_at == min(login.use.at + ACCESS, login.expires)
            assert answer.refresh_expires_at == login.expires
        else:
            assert isinstance(answer, TokenRefused), answer
            assert (answer.reason, answer.token_id) == (verdict, login.id)

    # --- revoking and disabling ---

    @rule(pick=picks, alive=st.booleans(), by_id=st.booleans(), data=st.data())
    def revoke(self, pick: int, alive: bool, by_id: bool, data: st.DataObject) -> None:
        login = self.login(pick, alive=alive)
        issue, generation = data.draw(st.sampled_from(sorted(login.strings)))
        known = by_id or issue == login.issue
        done = self.service.revoke([login.id if by_id else login.strings[issue, generation]], reason="test")
        dead = login.is_dead(self.now)
        counted = (done.revoked, done.already_dead, done.unknown, done.forged, done.malformed)
        assert counted == (known and not dead, known and dead, not known, 0, 0)
        login.revoked |= known and not dead

    @rule(user=st.integers(0, 1), seconds=st.sampled_from([0, 0, 0, 1, 30, 600, None]))
    def disable_or_enable(self, user: int, seconds: int | None) -> None:
        """For a time, which only blocks; for good (None), which revokes; or let in again (0)."""
        owner = self.users[user]
        if seconds == 0:
            self.service.users.enable(owner.name)
            owner.disabled, owner.until = False, None
            return
        duration = None if seconds is None else timedelta(seconds=seconds)
        if duration is not None and owner.disabled and owner.until is None:
            with pytest.raises(InvalidInput):  # a time would end what is meant for good
                self.service.users.disable(owner.name, duration=duration)
            return
        change = self.service.users.disable(owner.name, duration=duration)
        ended = [login for login in self.living if login.user is owner and seconds is None]
        assert change.revoked == len(ended)
        for login in ended:
            login.revoked = True
        owner.disabled, owner.until = True, None if seconds is None else self.now + seconds * S

    # --- a backup is restored ---

    @rule(pick=picks, back=st.integers(1, 3), declared=st.booleans(), device=devices)
    def a_login_falls_back(self, pick: int, back: int, declared: bool, device: str | None) -> None:
        """As if the database had been restored from a backup, as far as this login goes."""
        login = self.login(pick)
        held = Shown(login, login.issue, login.use.generation, login.client, device)
        login.use = login.past[max(0, len(login.past) - 1 - back)]
        if declared:
            self.recovered_at = self.now
        self.write(login)
        self.present([held])

    def write(self, login: Login) -> None:
        device = DEVICES[login.use.device].device
        run_sql(
            self.settings,
            "UPDATE refresh_tokens SET generation = ?, rotated_at = ?, access_until = ?, last_device = ?"
            " WHERE id = ?",
            login.use.generation,
            login.use.at,
            login.use.access_until,
            device,
            bytes.fromhex(login.id[3:]),
        )
        run_sql(self.settings, "UPDATE realm SET recovered_at = ?", self.recovered_at)

    # --- always ---

    @invariant()
    def the_service_knows_what_the_model_knows(self) -> None:
        if not hasattr(self, "service"):
            return
        found = {row.id: row for row in self.service.list(Selector(everything=True))}
        assert set(found) == {login.id for login in self.known}
        for login in self.known:
            row, use = found[login.id], login.use
            assert row.state(self.now) is login.state(self.now)
            assert (row.generation, row.rotated_at, row.access_until) == (
                use.generation,
                use.at,
                use.access_until,
            )
            assert (row.is_revoked, row.expires_at, row.client_id) == (
                login.revoked,
                login.expires,
                login.client,
            )
            assert row.last.device == DEVICES[use.device].device

    @invariant()
    def every_reuse_is_in_the_log(self) -> None:
        if hasattr(self, "service"):
            counted = run_sql(self.settings, "SELECT count(*) FROM events WHERE type = 'token.reuse'")
            assert counted == [(self.seen["reuse"],)]


def test_the_service_and_the_model_never_differ(
    new_settings: Callable[[Path], AbstractContextManager[Settings]],
) -> None:
    class Here(Model):
        counts: ClassVar[Counter[str]] = Counter()

    Here.new_settings = staticmethod(new_settings)
    run_state_machine_as_test(
        Here,
        settings=how(
            max_examples=RUNS,
            stateful_step_count=STEPS_OF_A_RUN,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # A walk that never got there would show nothing.
    assert Here.counts["rotated"] >= RUNS
    assert Here.counts["retried"] > 0
    assert Here.counts["reuse"] > 0


# --- what a model of single strings does not reach -------------------------------------------


@pytest.mark.parametrize(
    "client_id",
    [
        pytest.param("nobody", id="unknown"),
        pytest.param("", id="empty"),
        pytest.param("default\0", id="NUL"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("x" * 1_000_000, id="1 MB"),
    ],
)
def test_a_client_id_of_any_form_harms_nobody_else(service: TokenService, client_id: str) -> None:
    service.create_user("ada")
    mine, other = service.issue("ada"), service.issue("ada")
    answers = service.rotate_many(
        [RotateRequest(mine.refresh_token, client_id), RotateRequest(other.refresh_token)]
    )
    assert isinstance(answers[0], TokenctlError)
    assert isinstance(answers[1], TokenPair)
    assert service.inspect(mine.token_id).token.generation == 0


def test_a_refusal_that_repeats_is_noted_once(service: TokenService) -> None:
    """Whether a client in a loop sends its requests one after the other or many at once."""
    service.create_user("ada")
    pair = service.issue("ada")
    service.revoke([pair.token_id], reason="test")
    for _ in range(2):
        service.rotate_many([RotateRequest(pair.refresh_token)] * 3)
    noted = [event.type for event in service.inspect(pair.token_id).events]
    assert noted == ["token.issue", "token.revoke", "token.refuse"]
