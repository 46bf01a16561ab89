"""Cut-offs: which logins one refuses, what it leaves as it was, and that no race gets around it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import CHEAP, START, Clock
from tests.http.live import running
from tests.service import SECOND, dump, event_types, refuse_events, run_sql, statements
from tests.service.test_rotate import GRACE, TICK, refusal
from tokenctl import Selector, SelectState, Settings, TokenPair, TokenService
from tokenctl.errors import (
    ClientNotFound,
    DatabaseError,
    EmptySelector,
    InvalidAccessToken,
    InvalidInput,
    NotADatabase,
    TokenRefused,
    UserNotFound,
)
from tokenctl.service.cutoff import Reach

HOUR = 3600 * SECOND
#: What names the cut-offs that concern a login of Ada's at `app`.
SCOPES: dict[str, dict[str, Any]] = {
    "everything": {"everything": True},
    "client": {"client": "app"},
    "user": {"user": "Ada"},
}
each_scope = pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)


@pytest.fixture
def pair(service: TokenService, clock: Clock) -> TokenPair:
    """A login of Ada's at `app`, an hour after the clock's start; there is a user Bob."""
    service.create_user("ada")
    service.create_user("bob")
    service.clients.create("app")
    clock.advance(timedelta(hours=1))
    return service.issue("ada", client_id="app")


@pytest.fixture
def node(settings: Settings, clock: Clock) -> Iterator[TokenService]:
    """A second service on the same database."""
    with TokenService(settings, clock=clock, passwords=CHEAP) as node:
        yield node


def set_at(service: TokenService, scope: dict[str, Any], at: int | None = None, **options: Any) -> int:
    """Set a cut-off; the instant that stands now."""
    return service.cutoffs.set(**scope, at=at, reason="INC-7", **options).not_before


def is_live(service: TokenService, pair: TokenPair) -> bool:
    """What everybody who is asked says of the login. Each must say the same."""
    with suppress(InvalidAccessToken):
        service.check_access(pair.access_token)
        assert service.introspect(pair.access_token)
        assert service.introspect(pair.refresh_token)
        assert service.sessions(pair.user_id)
        return True
    assert service.introspect(pair.access_token) is None
    assert service.introspect(pair.refresh_token) is None
    assert service.sessions(pair.user_id) == []
    return False


def cut_off_events(service: TokenService) -> list[Any]:
    return [event for event in service.audit.tail(limit=100) if event.type.startswith("cutoff.")]


class TestRefuses:
    @each_scope
    def test_a_login_of_the_same_microsecond_and_none_that_is_later(
        self, service: TokenService, pair: TokenPair, clock: Clock, scope: dict[str, Any]
    ) -> None:
        set_at(service, scope, pair.issued_at - 1)
        assert is_live(service, pair)
        assert set_at(service, scope) == clock() == pair.issued_at
        assert not is_live(service, pair)
        assert refusal(service, pair.refresh_token, client_id="app") == "cut_off"
        clock.advance(TICK)
        later = service.issue("ada", client_id="app")
        assert is_live(service, later)
        assert service.rotate(later.refresh_token, client_id="app")

    @each_scope
    def test_whatever_is_presented_and_revokes_nothing(
        self, service: TokenService, pair: TokenPair, clock: Clock, scope: dict[str, Any]
    ) -> None:
        second = service.rotate(pair.refresh_token, client_id="app")
        third = service.rotate(second.refresh_token, client_id="app")
        set_at(service, scope)
        # The current string, the retry in the grace, and a spent one, which is no reuse here.
        for string in (third, second, pair):
            assert refusal(service, string.refresh_token, client_id="app") == "cut_off"
            assert service.introspect(string.refresh_token) is None
        with pytest.raises(InvalidAccessToken) as caught:
            service.check_access(third.access_token)
        assert caught.value.facts["reason"] == "blocked"
        with pytest.raises(TokenRefused, match="cut off"):
            service.reissue(pair.token_id)
        seen = service.inspect(pair.token_id)
        assert (seen.state, seen.token.is_revoked, seen.token.generation) == ("blocked", False, 2)
        service.cutoffs.clear(**scope)
        # It goes on where it was, the grace included.
        assert service.rotate(second.refresh_token, client_id="app").retried
        assert service.rotate(third.refresh_token, client_id="app")

    def test_a_retry_that_is_first_made_after_it(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        service.rotate(pair.refresh_token, client_id="app")
        clock.advance(GRACE / 2)
        set_at(service, {"user": "ada"}, pair.issued_at)
        assert refusal(service, pair.refresh_token, client_id="app") == "cut_off"
        assert not service.inspect(pair.token_id).token.is_revoked

    def test_by_when_a_login_began_and_not_by_its_last_use(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        clock.advance(timedelta(hours=1))
        string = service.rotate(pair.refresh_token, client_id="app").refresh_token
        set_at(service, {"everything": True}, pair.issued_at)
        assert refusal(service, string, client_id="app") == "cut_off"

    def test_nobody_else(self, service: TokenService, pair: TokenPair) -> None:
        bob, web = service.issue("bob", client_id="app"), service.issue("ada")
        set_at(service, {"user": "ada"})
        assert [is_live(service, each) for each in (pair, web, bob)] == [False, False, True]
        service.cutoffs.clear(user="ada")
        set_at(service, {"client": "app"})
        assert service.rotate(web.refresh_token)
        assert refusal(service, bob.refresh_token, client_id="app") == "cut_off"

    @pytest.mark.parametrize("latest", SCOPES)
    def test_the_latest_of_the_three_wins(self, service: TokenService, pair: TokenPair, latest: str) -> None:
        for name, scope in SCOPES.items():
            set_at(service, scope, pair.issued_at - (name != latest))
        assert not is_live(service, pair)
        for name, scope in SCOPES.items():
            if name != latest:
                service.cutoffs.clear(**scope)
                assert not is_live(service, pair)
        service.cutoffs.clear(**SCOPES[latest])
        assert is_live(service, pair)

    @each_scope
    def test_on_every_node(
        self, service: TokenService, node: TokenService, pair: TokenPair, scope: dict[str, Any]
    ) -> None:
        assert is_live(node, pair)
        set_at(service, scope)
        assert refusal(node, pair.refresh_token, client_id="app") == "cut_off"
        assert not is_live(node, pair)
        node.cutoffs.clear(**scope)
        assert is_live(service, pair)

    def test_over_http(self, settings: Settings, clock: Clock) -> None:
        with running(settings, clock) as live:
            pair = live.log_in()
            secret = live.service.clients.create("api", introspect=True).secret
            basic = base64.b64encode(f"api:{secret}".encode()).decode()

            def active(kind: str) -> bool:
                reply = live.form("/oauth/introspect", {"token": pair[kind]}, authorization=f"Basic {basic}")
                assert reply.status == 200
                return bool(reply.json["active"])

            def me() -> int:
                return live.get("/auth/me", pair["access_token"]).status

            def said() -> list[Any]:
                return [me(), active("access_token"), active("refresh_token")]

            with TokenService(settings, clock=clock) as operator:
                assert said() == [200, True, True]
                operator.cutoffs.set(everything=True, reason="INC-7")
                assert said() == [401, False, False]
                refused = live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]})
                assert refused.status == 401
                operator.cutoffs.clear(everything=True)
                assert said() == [200, True, True]


class TestSet:
    def test_one_row_and_one_event_whatever_the_number_of_logins(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        for _ in range(5):
            service.issue("bob")
        before = dump(settings)
        with statements(service) as sent:
            set_at(service, {"everything": True})
        changing = [each for each in sent if each.startswith(("UPDATE", "INSERT", "DELETE"))]
        assert [each.split()[:2] for each in changing] == [["UPDATE", "realm"], ["INSERT", "INTO"]]
        assert not any("refresh_tokens" in each for each in sent)
        added = [line for line in dump(settings) if line not in before]
        assert len(added) == 2

    @each_scope
    def test_not_without_its_event(
        self, service: TokenService, pair: TokenPair, settings: Settings, scope: dict[str, Any]
    ) -> None:
        refuse_events(settings, "cutoff.%")
        before = dump(settings)
        with pytest.raises(DatabaseError):
            set_at(service, scope)
        assert dump(settings) == before
        assert is_live(service, pair)

    @each_scope
    def test_what_is_ahead_is_refused(
        self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock, scope: dict[str, Any]
    ) -> None:
        before = dump(settings)
        for force in (False, True):
            with pytest.raises(InvalidInput, match="every new login would be refused"):
                set_at(service, scope, clock() + 1, force=force)
        assert dump(settings) == before

    @pytest.mark.parametrize("at", [0, -1])
    def test_the_beginning_of_time_is_none(self, service: TokenService, at: int) -> None:
        with pytest.raises(InvalidInput, match="cuts off nothing"):
            set_at(service, {"everything": True}, at, force=True)

    @each_scope
    def test_an_earlier_one_needs_force_or_a_clear(
        self, service: TokenService, pair: TokenPair, clock: Clock, scope: dict[str, Any]
    ) -> None:
        set_at(service, scope)
        set_at(service, scope, clock())  # the same once more lets nobody in
        earlier = clock() - 1
        for refused in (service.cutoffs.plan, lambda **more: service.cutoffs.set(**more, reason="x")):
            with pytest.raises(InvalidInput, match="let logins in again"):
                refused(**scope, at=earlier)
        assert not is_live(service, pair)
        change = service.cutoffs.set(**scope, at=earlier, reason="x", force=True)
        assert (change.previously, change.not_before) == (clock(), earlier)
        assert service.cutoffs.reach(change) == Reach(let_in=1, users=1)
        assert is_live(service, pair)
        set_at(service, scope)
        service.cutoffs.clear(**scope)
        assert set_at(service, scope, earlier) == earlier

    def test_a_clock_that_was_put_back_does_not_let_anybody_in(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        standing = set_at(service, {"everything": True})
        clock.advance(-timedelta(minutes=1))
        with pytest.raises(InvalidInput, match="later cut-off stands"):
            set_at(service, {"everything": True})
        assert [each.not_before for each in service.cutoffs.list()] == [standing]

    @pytest.mark.parametrize("call", ["plan", "set", "plan_clear", "clear"])
    @pytest.mark.parametrize(
        ("scope", "error"),
        [
            pytest.param({}, EmptySelector, id="nothing"),
            pytest.param({"everything": True, "user": "ada"}, InvalidInput, id="all and a user"),
            pytest.param({"client": "app", "user": "ada"}, InvalidInput, id="a client and a user"),
            pytest.param({"client": "nope"}, ClientNotFound, id="no such client"),
            pytest.param({"client": "\n"}, InvalidInput, id="no client can be that"),
            pytest.param({"user": "nobody"}, UserNotFound, id="no such user"),
            pytest.param({"user": ""}, UserNotFound, id="nobody can be called that"),
            pytest.param({"user": "usr_1"}, InvalidInput, id="no id"),
        ],
    )
    def test_what_names_no_cut_off(
        self,
        service: TokenService,
        pair: TokenPair,
        settings: Settings,
        call: str,
        scope: dict[str, Any],
        error: type[Exception],
    ) -> None:
        before = dump(settings)
        reason = {"reason": "x"} if call == "set" else {}
        with pytest.raises(error):
            getattr(service.cutoffs, call)(**scope, **reason)
        assert dump(settings) == before

    def test_of_a_database_that_lost_the_row(self, service: TokenService, settings: Settings) -> None:
        run_sql(settings, "DELETE FROM realm")
        with pytest.raises(NotADatabase):
            set_at(service, {"everything": True})

    def test_without_the_master_key(self, pair: TokenPair, settings: Settings, clock: Clock) -> None:
        from dataclasses import replace

        with TokenService(replace(settings, key_file="/nowhere/none.key"), clock=clock) as bare:
            set_at(bare, {"user": pair.user_id})
            assert bare.inspect(pair.token_id).state == "blocked"
            bare.cutoffs.clear(user=pair.user_id)

    def test_the_audit_log_has_who_what_and_why(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        service.cutoffs.set(everything=True, at=START, reason="INC-7", actor="nina")
        service.cutoffs.set(user="ADA", reason="phone lost")
        service.cutoffs.set(user="ada", at=START, reason="wrong Ada", force=True)
        service.cutoffs.set(client="app", at=START, reason="a leak")
        service.cutoffs.clear(client="app", actor="otto", reason="was none")
        service.cutoffs.clear(client="app")  # none stands: nothing is done
        noted = [
            (event.type, event.actor, event.user_id, event.client_id, event.reason, event.data)
            for event in cut_off_events(service)
        ]
        user: dict[str, Any] = {"scope": "user", "name": "ada"}
        assert noted == [
            ("cutoff.set", "nina", None, None, "INC-7", {"scope": "all", "until": START}),
            ("cutoff.set", "service", pair.user_id, None, "phone lost", user | {"until": clock()}),
            (
                *("cutoff.set", "service", pair.user_id, None, "wrong Ada"),
                user | {"until": START, "previously": clock()},
            ),
            ("cutoff.set", "service", None, "app", "a leak", {"scope": "client", "until": START}),
            ("cutoff.clear", "otto", None, "app", "was none", {"scope": "client", "until": START}),
        ]
        assert {event.at for event in cut_off_events(service)} == {clock()}


class TestReach:
    """Three logins of two users at `app`, of which one was made an hour later; one of Bob's elsewhere."""

    @pytest.fixture
    def pairs(self, service: TokenService, pair: TokenPair, clock: Clock) -> list[TokenPair]:
        pairs = [pair, service.issue("bob", client_id="app"), service.issue("bob")]
        clock.advance(timedelta(hours=1))
        return [*pairs, service.issue("ada", client_id="app")]

    @pytest.mark.parametrize(
        ("scope", "early", "all_"),
        [
            pytest.param("everything", (3, 2), (4, 2), id="everything"),
            pytest.param("client", (2, 2), (3, 2), id="client"),
            pytest.param("user", (1, 1), (2, 1), id="user"),
        ],
    )
    def test_counts_what_it_blocks_and_what_it_lets_in(
        self,
        service: TokenService,
        pairs: list[TokenPair],
        scope: str,
        early: tuple[int, int],
        all_: tuple[int, int],
    ) -> None:
        named = SCOPES[scope]
        before = list(service.list(Selector(states=(SelectState.LIVE,))))
        for at, (blocked, users) in ((pairs[0].issued_at, early), (pairs[3].issued_at, all_)):
            planned = service.cutoffs.plan(**named, at=at)
            reach = service.cutoffs.reach(planned)
            assert (reach.blocked, reach.users, reach.let_in) == (blocked, users, 0)
            assert service.cutoffs.set(**named, at=at, reason="x") == planned
            assert service.cutoffs.reach(planned) == reach
            live = list(service.list(Selector(states=(SelectState.LIVE,))))
            assert len(before) - len(live) == blocked
            planned = service.cutoffs.plan_clear(**named)
            reach = Reach(let_in=blocked, users=users)
            assert service.cutoffs.reach(planned) == reach
            assert service.cutoffs.clear(**named) == planned
            assert service.cutoffs.reach(planned) == reach

    def test_counts_only_what_nothing_else_holds_back(
        self, service: TokenService, pairs: list[TokenPair], clock: Clock
    ) -> None:
        everything = SCOPES["everything"]

        def would_block() -> int:
            return service.cutoffs.reach(service.cutoffs.plan(**everything)).blocked

        assert would_block() == 4
        service.revoke([pairs[0].token_id], reason="x")
        assert would_block() == 3
        service.users.disable("bob", duration=timedelta(hours=2))
        assert would_block() == 1
        service.users.enable("bob")
        set_at(service, {"client": "app"})
        assert would_block() == 1
        set_at(service, everything)
        assert service.cutoffs.reach(service.cutoffs.plan_clear(**everything)).let_in == 1
        assert service.cutoffs.reach(service.cutoffs.plan_clear(client="app")).let_in == 0
        clock.advance(timedelta(days=14))
        assert service.cutoffs.reach(service.cutoffs.plan_clear(**everything)).let_in == 0

    def test_a_second_one_counts_what_is_new(self, service: TokenService, pairs: list[TokenPair]) -> None:
        set_at(service, {"everything": True}, pairs[0].issued_at)
        change = service.cutoffs.set(everything=True, reason="x")
        assert service.cutoffs.reach(change).blocked == 1

    def test_tells_how_long_access_tokens_live(
        self, service: TokenService, pairs: list[TokenPair], clock: Clock
    ) -> None:
        early = service.cutoffs.plan(everything=True, at=pairs[0].issued_at)
        assert service.cutoffs.reach(early).access_exposure_until is None
        change = service.cutoffs.plan(everything=True)
        assert service.cutoffs.reach(change).access_exposure_until == pairs[3].access_expires_at
        # A revoked login has left one too.
        service.revoke([pairs[3].token_id], reason="x")
        assert service.cutoffs.reach(change).access_exposure_until == pairs[3].access_expires_at
        clock.now = pairs[3].access_expires_at
        assert service.cutoffs.reach(change).access_exposure_until is None

    def test_of_none_that_stands(self, service: TokenService, pairs: list[TokenPair]) -> None:
        assert service.cutoffs.reach(service.cutoffs.plan_clear(everything=True)) == Reach()


class TestList:
    def test_what_stands_and_nothing_else(
        self, service: TokenService, pair: TokenPair, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tokenctl.service.cutoff._PAGE", 1)
        assert list(service.cutoffs.list()) == []
        for at, scope in enumerate([*SCOPES.values(), {"user": "bob"}]):
            set_at(service, scope, START + at)
        found = [
            (each.scope.kind, each.scope.client_id, each.scope.user_name, each.not_before - START)
            for each in service.cutoffs.list()
        ]
        # Users come in the order of their ids, which is chance between two that were made at one instant.
        assert [*found[:2], *sorted(found[2:])] == [
            ("all", None, None, 0),
            ("client", "app", None, 1),
            ("user", None, "ada", 2),
            ("user", None, "bob", 3),
        ]
        for scope in SCOPES.values():
            service.cutoffs.clear(**scope)
        assert [each.scope.user_name for each in service.cutoffs.list()] == ["bob"]


# --- races -----------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the threads of a race were told. Instants of `time.monotonic`."""

    issued: list[TokenPair] = field(default_factory=list)
    #: When a rotation that was answered with a pair had begun, and when its login had.
    rotated: list[tuple[float, int]] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    strings: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize("scope", [{"everything": True}, {"client": "default"}, {"user": "ada"}], ids=SCOPES)
def test_logins_and_rotations_while_one_is_set(settings: Settings, scope: dict[str, Any]) -> None:
    """On the machine's own clock, through two nodes: the cut-off is set three times amidst them."""
    seen, stop = Seen(), threading.Event()

    def go_on(work: Callable[[TokenService], None], service: TokenService) -> None:
        while not stop.is_set():
            work(service)

    def log_in(service: TokenService) -> None:
        pair = service.issue("ada")
        seen.strings[pair.token_id] = pair.refresh_token
        seen.issued.append(pair)

    def rotate(service: TokenService) -> None:
        login = service.issue("ada")
        seen.issued.append(login)
        string = login.refresh_token
        for _ in range(20):
            began = time.monotonic()
            try:
                string = service.rotate(string).refresh_token
            except TokenRefused as error:
                seen.refused.append((began, error.reason))
                break
            seen.rotated.append((began, login.issued_at))
        seen.strings[login.token_id] = string

    with TokenService(settings) as here, TokenService(settings) as there:
        here.create_user("ada")
        with ThreadPoolExecutor(6) as pool:
            running = [
                pool.submit(go_on, work, node) for node in (here, there) for work in (log_in, rotate, rotate)
            ]
            cuts = []
            try:
                for node in (here, there, here):
                    time.sleep(0.25)
                    at = set_at(node, scope)
                    cuts.append((time.monotonic(), at))
                time.sleep(0.25)
            finally:
                stop.set()
            for each in running:
                each.result()
        last = cuts[-1][1]
        assert [at for _, at in cuts] == sorted({at for _, at in cuts})
        # What was acknowledged after a cut-off had been is of a login that began later.
        for acknowledged, at in cuts:
            after = [created for began, created in seen.rotated if began > acknowledged]
            assert after
            assert all(created > at for created in after)
        assert {reason for _, reason in seen.refused} <= {"cut_off"}
        # Every login that began before the last one is refused for good, and none was revoked.
        old = [pair for pair in seen.issued if pair.issued_at <= last]
        new = [pair for pair in seen.issued if pair.issued_at > last]
        assert old
        assert new
        for pair in old:
            assert refusal(there, seen.strings[pair.token_id]) == "cut_off"
        for pair in new:
            assert there.rotate(seen.strings[pair.token_id])
        assert run_sql(settings, "SELECT count(*) FROM refresh_tokens WHERE revoked_at IS NOT NULL") == [(0,)]
        assert event_types(settings).count("cutoff.set") == len(cuts)


def test_many_set_it_at_once(settings: Settings) -> None:
    """Each takes its own now under the lock, so none is earlier than what stands."""
    with TokenService(settings) as here, TokenService(settings) as there, ThreadPoolExecutor(8) as pool:
        nodes = [here, there] * 20
        set_ = list(pool.map(lambda node: set_at(node, {"everything": True}), nodes))
        [standing] = here.cutoffs.list()
        assert standing.not_before == max(set_)
        noted = [event.data["until"] for event in cut_off_events(here)]
        assert sorted(noted) == sorted(set_)
