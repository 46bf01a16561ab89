"""Plans: exactly what a dry run has shown is acted on, and what else has come since is told."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import Clock
from tests.service import SECOND, add_logins, dump, event_types, login_row, run_sql
from tokenctl import Selector, SelectState, Settings, TokenService
from tokenctl.core.context import Context
from tokenctl.core.refresh_token import State
from tokenctl.errors import PlanNotFound, TokenctlError, UserNotFound
from tokenctl.service.plans import Planned
from tokenctl.storage.plans import Plan

ALL = Selector(everything=True)


@pytest.fixture(autouse=True)
def people(service: TokenService) -> None:
    for name in ("ada", "bob"):
        service.create_user(name)


def plan_of(planned: Planned) -> Plan:
    assert planned.plan is not None
    return planned.plan


def drift(service: TokenService, planned: Planned) -> list[str]:
    return list(service.plan_drift(plan_of(planned)))


def listed(service: TokenService, planned: Planned) -> list[str]:
    return [row.id for row in service.list_planned(planned)]


def test_shows_the_set_in_total_and_per_user(service: TokenService, clock: Clock) -> None:
    first = service.issue("bob")
    clock.advance(timedelta(minutes=1))
    others = [service.issue("ada"), service.issue("ada")]
    dead = service.issue("ada")
    service.revoke([dead.token_id], reason="before")
    planned = service.plan(ALL)
    assert listed(service, planned) == [first.token_id, *sorted(pair.token_id for pair in others)]
    assert (planned.seen.tokens, planned.seen.users, planned.seen.already_dead) == (3, 2, 1)
    assert planned.seen.last_used_at == service.now()
    shares = [(share.user_name, share.tokens, share.last_used_at) for share in planned.shares]
    assert shares == [("ada", 2, service.now()), ("bob", 1, service.now() - 60 * SECOND)]
    assert (plan_of(planned).tokens, plan_of(planned).users) == (3, 2)
    assert planned.seen.access_exposure_until == max(pair.access_expires_at for pair in others)


def test_acts_on_exactly_its_members(service: TokenService, settings: Settings) -> None:
    member, other = service.issue("ada"), service.issue("bob")
    planned = service.plan(Selector(users=("ada",)))
    later = service.issue("ada")
    done = service.revoke_plan(service.get_plan(plan_of(planned).id), reason="INC-7")
    assert (done.revoked, done.already_dead, done.users, done.complete) == (1, 0, 1, True)
    assert service.inspect(member.token_id).state is State.REVOKED
    for pair in (other, later):
        assert service.inspect(pair.token_id).state is State.LIVE
    [(data,)] = run_sql(settings, "SELECT data FROM events WHERE type = 'token.revoke'")
    assert json.loads(data)["plan"] == plan_of(planned).id
    again = service.revoke_plan(plan_of(planned), reason="INC-7")
    assert (again.revoked, again.already_dead) == (0, 1)


class TestDrift:
    def test_a_new_match_is_drift(self, service: TokenService) -> None:
        service.issue("ada")
        planned = service.plan(Selector(users=("ada",)))
        assert drift(service, planned) == []
        new, _ = service.issue("ada"), service.issue("bob")
        assert drift(service, planned) == [new.token_id]

    def test_a_member_that_died_or_was_rotated_is_none(self, service: TokenService) -> None:
        pairs = [service.issue("ada") for _ in range(3)]
        planned = service.plan(Selector(users=("ada",)))
        service.revoke([pairs[0].token_id], reason="logout")
        service.rotate(pairs[1].refresh_token)
        assert drift(service, planned) == []
        done = service.revoke_plan(plan_of(planned), reason="INC-7")
        assert (done.revoked, done.already_dead, done.unknown) == (2, 1, 0)

    def test_a_member_that_was_purged_is_none(self, service: TokenService, clock: Clock) -> None:
        pairs = [service.issue("ada") for _ in range(2)]
        planned = service.plan(ALL)
        service.revoke([pairs[0].token_id], reason="logout")
        clock.advance(timedelta(seconds=1))
        service.purge(retention=timedelta(0))
        assert (drift(service, planned), listed(service, planned)) == ([], [pairs[1].token_id])
        done = service.revoke_plan(plan_of(planned), reason="INC-7")
        assert (done.revoked, done.already_dead, done.unknown) == (1, 1, 0)

    def test_what_matches_again_by_time_is_drift(self, service: TokenService, clock: Clock) -> None:
        """--idle is asked at its own time, --issued-after stays the instant that it was."""
        idle = service.issue("ada")
        clock.advance(timedelta(days=2, seconds=1))
        busy = service.issue("ada")
        clock.advance(timedelta(minutes=30))
        by_idle = service.plan(Selector(idle=86_400 * SECOND))
        assert listed(service, by_idle) == [idle.token_id]
        clock.advance(timedelta(minutes=29))
        assert drift(service, by_idle) == []
        close = service.plan(Selector(idle=60 * 60 * SECOND))
        assert listed(service, close) == [idle.token_id]
        clock.advance(timedelta(minutes=1))
        assert drift(service, close) == [busy.token_id]

    def test_with_many_members(self, service: TokenService, settings: Settings) -> None:
        user = service.users.get("ada")
        add_logins(settings, [login_row(number, user.id) for number in range(1, 2_501)])
        planned = service.plan(ALL)
        assert len(listed(service, planned)) == 2_500
        assert drift(service, planned) == []
        new = service.issue("bob")
        assert drift(service, planned) == [new.token_id]
        done = service.revoke_plan(plan_of(planned), reason="INC-7")
        assert (done.revoked, done.users) == (2_500, 1)
        assert service.inspect(new.token_id).state is State.LIVE


def test_of_ids_and_strings(service: TokenService) -> None:
    pair, dead, superseded = (service.issue("ada") for _ in range(3))
    service.revoke([dead.token_id], reason="before")
    service.reissue(superseded.token_id)
    lines = [pair.refresh_token, None, pair.token_id, dead.token_id, superseded.refresh_token, "junk"]
    with service.read_targets(lines) as named:
        planned = service.plan(named)
    assert listed(service, planned) == [pair.token_id]
    assert (planned.seen.tokens, planned.seen.already_dead, planned.seen.repeated) == (1, 1, 1)
    assert (planned.seen.unknown, planned.seen.malformed) == (1, 1)
    assert plan_of(planned).selector is None
    service.issue("ada")
    assert drift(service, planned) == []
    assert service.revoke_plan(plan_of(planned), reason="INC-7").revoked == 1


def test_of_nothing_there_is_no_plan(service: TokenService, settings: Settings) -> None:
    planned = service.plan(Selector(users=("ada",)))
    assert (planned.plan, planned.members, planned.shares) == (None, [], [])
    assert "plan.create" not in event_types(settings)


def test_is_good_for_an_hour(service: TokenService, settings: Settings, clock: Clock) -> None:
    service.issue("ada")
    plan = plan_of(service.plan(ALL))
    assert plan.expires_at == service.now() + 3600 * SECOND
    clock.advance(timedelta(hours=1) - timedelta(microseconds=1))
    assert service.get_plan(plan.id) == plan
    clock.advance(timedelta(microseconds=1))
    with pytest.raises(PlanNotFound, match="its hour is over"):
        service.get_plan(plan.id)
    service.plan(ALL)
    assert len(run_sql(settings, "SELECT id FROM plans")) == 2  # who acts on it still may go on
    clock.advance(timedelta(days=2, seconds=1))
    other = plan_of(service.plan(ALL))
    assert run_sql(settings, "SELECT id FROM plans") == [(other.id,)]
    assert run_sql(settings, "SELECT DISTINCT plan_id FROM plan_members") == [(other.id,)]


def test_one_that_was_never_finished_is_none(service: TokenService, settings: Settings) -> None:
    service.issue("ada")
    plan = plan_of(service.plan(ALL))
    run_sql(settings, "UPDATE plans SET expires_at = 0")
    with pytest.raises(PlanNotFound):
        service.get_plan(plan.id)


def test_one_that_was_swept_away_revokes_nobody(service: TokenService, settings: Settings) -> None:
    """It is gone while somebody holds it, and its id is another plan's by now."""
    service.issue("ada")
    plan = plan_of(service.plan(ALL))
    boss = service.issue("bob")
    other = plan_of(service.plan(Selector(token_ids=(boss.token_id,))))
    run_sql(settings, "DELETE FROM plans WHERE id = ?", plan.id)
    with pytest.raises(PlanNotFound):
        service.revoke_plan(plan, reason="INC-7")
    same_id = replace(plan, id=other.id, created_at=plan.created_at - 1)
    with pytest.raises(PlanNotFound):
        service.revoke_plan(same_id, reason="INC-7")
    assert service.preview(ALL).tokens == 2


@pytest.mark.parametrize("field", ["users", "user_agents", "devices", "clients", "token_ids", "ips"])
def test_no_secret_is_kept(service: TokenService, settings: Settings, field: str) -> None:
    """A token string in the wrong place is refused, and a device's own text stands nowhere."""
    pair = service.issue("ada", context=Context.of(device="phone-7"))
    wrong: dict[str, Any] = {field: (pair.refresh_token, pair.token_id)}
    with pytest.raises(TokenctlError):
        service.plan(Selector(**wrong))
    service.plan(Selector(devices=("phone-7",)))
    kept = "\n".join(dump(settings))
    assert pair.refresh_token not in kept
    assert "phone-7" not in kept


@pytest.mark.parametrize("plan_id", ["", "0000", "x" * 1_000_000, "'; DROP TABLE plans; --", "\0", "\ud800"])
def test_an_id_of_none(service: TokenService, plan_id: str) -> None:
    with pytest.raises(PlanNotFound) as caught:
        service.get_plan(plan_id)
    assert len(caught.value.message) < 100


def test_the_selector_comes_back_as_it_was(service: TokenService) -> None:
    pair = service.issue("ada")
    asked = Selector(
        users=("ADA",),
        clients=("default",),
        states=(SelectState.LIVE, SelectState.BLOCKED),
        token_ids=(pair.token_id,),
        issued_after=0,
        issued_before=service.now() + 1,
    )
    plan = plan_of(service.plan(asked))
    assert plan.selector is not None
    assert plan.selector.states == asked.states
    assert plan.selector.users == (service.users.get("ada").id,)
    assert (plan.selector.issued_after, plan.selector.issued_before) == (0, service.now() + 1)


def test_the_audit_log_tells_of_it(service: TokenService) -> None:
    service.issue("ada")
    plan = plan_of(service.plan(Selector(users=("ada",)), actor="nina"))
    event = service.audit.tail(1)[0]
    assert (event.type, event.actor) == ("plan.create", "nina")
    assert event.data == {
        "plan": plan.id,
        "tokens": 1,
        "users": 1,
        "selector": {"users": [service.users.get("ada").id]},
    }


def test_a_user_that_is_not_there(service: TokenService) -> None:
    with pytest.raises(UserNotFound):
        service.plan(Selector(users=("nobody",)))
