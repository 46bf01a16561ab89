"""Issuing, looking, revoking; and what of it works without the master key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import CHEAP, MASTER_KEY, START, Clock
from tests.service import (
    DAY,
    SECOND,
    add_logins,
    dump,
    event_types,
    key_file,
    login_row,
    run_sql,
    statements,
    write_transactions,
)
from tests.service.test_rotate import MALFORMED, forged, untyped
from tokenctl import Context, Selector, SelectState, Settings, State, TokenPair, TokenService
from tokenctl.core.keys import derive_keys, format_master_key
from tokenctl.core.rotation import Verdict
from tokenctl.core.token_string import mint, parse_unverified
from tokenctl.errors import (
    ClientNotFound,
    EmptySelector,
    ForgedToken,
    InvalidInput,
    InvalidScope,
    InvalidToken,
    KeyMissing,
    KeyUnusable,
    KeyWrong,
    TokenctlError,
    TokenNotFound,
    TokenRefused,
    UserDisabled,
    UserNotFound,
    WrongPassword,
)
from tokenctl.settings import Secret
from tokenctl.storage.users import User

TICK = timedelta(microseconds=1)
UNKNOWN_ID = "rt_" + "0" * 32
ACCESS = timedelta(minutes=10)


@pytest.fixture
def ada(service: TokenService) -> User:
    return service.create_user("ada", "plum orbit kettle sandal")


@pytest.fixture
def pair(service: TokenService, ada: User) -> TokenPair:
    return service.issue("ada")


def made_up(pair: TokenPair) -> str:
    """A string with our MAC for a login that never was."""
    token = parse_unverified(pair.refresh_token)
    return mint(bytes(16), 0, token.secret, derive_keys(MASTER_KEY).mac)


class TestIssue:
    def test_makes_a_live_login(self, service: TokenService, ada: User, clock: Clock) -> None:
        context = Context.of(ip="192.0.2.1", user_agent="Browser/1", device="laptop")
        pair = service.issue("ADA", scope="read write read", context=context)
        row = service.inspect(pair.token_id).token
        assert (row.user_id, row.user_name, row.client_id) == (ada.id, "ada", "default")
        assert (row.generation, row.scope, row.issued, row.last) == (0, "read write", context, context)
        assert row.created_at == row.rotated_at == clock()
        assert row.access_until == pair.access_expires_at == clock() + 600 * SECOND
        assert row.expires_at == pair.refresh_expires_at == clock() + 30 * DAY
        assert row.idle_ttl == 14 * DAY
        assert row.state(clock()) is State.LIVE
        assert parse_unverified(pair.refresh_token).token_id == pair.token_id
        event = service.audit.tail()[-1]
        assert (event.type, event.token_id, event.ip_text) == ("token.issue", pair.token_id, "192.0.2.1")

    def test_for_a_user_by_id(self, service: TokenService, ada: User) -> None:
        assert service.issue(ada.id).user_id == ada.id

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            pytest.param({"user": "nobody"}, UserNotFound, id="unknown user"),
            pytest.param({"user": "usr_" + "0" * 32}, UserNotFound, id="unknown id of a user"),
            pytest.param({"user": "usr_x"}, InvalidInput, id="malformed id of a user"),
            pytest.param({"user": "\ud800"}, TokenctlError, id="user with half a surrogate"),
            pytest.param({"user": "ada\0"}, UserNotFound, id="user with a NUL"),
            pytest.param({"client_id": "nothing"}, ClientNotFound, id="unknown client"),
            pytest.param({"client_id": "two words"}, InvalidInput, id="malformed client"),
            pytest.param({"scope": 'a"b'}, InvalidScope, id="malformed scope"),
            pytest.param({"ttl": timedelta(0)}, InvalidInput, id="no life"),
            pytest.param({"ttl": -TICK}, InvalidInput, id="negative life"),
            pytest.param({"ttl": timedelta(days=3650) + TICK}, InvalidInput, id="too long a life"),
            pytest.param({"ttl": timedelta.max}, InvalidInput, id="the longest timedelta"),
            pytest.param({"context": untyped(ip="192.0.2.1")}, TokenctlError, id="address as text"),
            pytest.param({"context": Context(user_agent="\ud800")}, TokenctlError, id="half a surrogate"),
        ],
    )
    def test_refuses_and_changes_nothing(
        self,
        service: TokenService,
        ada: User,
        settings: Settings,
        options: dict[str, Any],
        error: type[Exception],
    ) -> None:
        before = dump(settings)
        with pytest.raises(error):
            service.issue(**{"user": "ada", **options})
        assert dump(settings) == before

    @pytest.mark.parametrize("ttl", [TICK, timedelta(days=3650)], ids=["shortest", "longest"])
    def test_takes_any_life_between(
        self, service: TokenService, ada: User, clock: Clock, ttl: timedelta
    ) -> None:
        pair = service.issue("ada", ttl=ttl)
        assert pair.refresh_expires_at == clock() + ttl // TICK

    @pytest.mark.parametrize("duration", [None, timedelta(hours=1)], ids=["for good", "for a time"])
    def test_refuses_a_disabled_user(
        self, service: TokenService, ada: User, clock: Clock, duration: timedelta | None
    ) -> None:
        service.users.disable("ada", duration=duration)
        with pytest.raises(UserDisabled):
            service.issue("ada")
        clock.advance(timedelta(hours=1))
        if duration:
            assert service.issue("ada")

    def test_after_a_password_check_the_hash_must_still_stand(self, service: TokenService, ada: User) -> None:
        assert service.issue("ada", verified_password_hash=ada.password_hash)
        service.users.set_password("ada", "another kettle of sandals")
        with pytest.raises(WrongPassword):
            service.issue("ada", verified_password_hash=ada.password_hash)

    def test_no_two_are_alike(self, service: TokenService, ada: User) -> None:
        pairs = [service.issue("ada") for _ in range(50)]
        assert len({parse_unverified(pair.refresh_token).secret for pair in pairs}) == 50
        assert len({pair.token_id for pair in pairs}) == 50
        assert len({pair.access_token for pair in pairs}) == 50


class TestInspect:
    def test_by_id_in_any_form(self, service: TokenService, pair: TokenPair) -> None:
        digits = pair.token_id.removeprefix("rt_")
        dashed = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        for target in (pair.token_id, digits, dashed, dashed.upper()):
            found = service.inspect(target)
            assert (found.token.id, found.presented, found.judgement) == (pair.token_id, None, None)

    def test_tells_the_story(self, service: TokenService, pair: TokenPair) -> None:
        service.issue("ada")
        service.rotate(pair.refresh_token, context=Context.of(ip="192.0.2.1"))
        service.revoke([pair.token_id], reason="laptop stolen", actor="admin")
        found = service.inspect(pair.token_id)
        assert [event.type for event in found.events] == ["token.issue", "token.rotate", "token.revoke"]
        assert (found.events[-1].reason, found.events[-1].actor) == ("laptop stolen", "admin")
        assert found.state is State.REVOKED
        assert found.token.revoked_by == "admin"

    @pytest.mark.parametrize(
        ("wait", "client_id", "verdicts"),
        [
            pytest.param(0, None, [Verdict.REUSE, Verdict.RETRY, Verdict.ROTATE], id="in the window"),
            pytest.param(31, None, [Verdict.REUSE, Verdict.REUSE, Verdict.ROTATE], id="after it"),
            pytest.param(0, "other", [Verdict.REFUSE] * 3, id="by another client"),
            pytest.param(31 * 86_400, None, [Verdict.REFUSE] * 3, id="when it has expired"),
        ],
    )
    def test_of_a_string_tells_the_verdict_and_changes_nothing(
        self,
        service: TokenService,
        pair: TokenPair,
        settings: Settings,
        clock: Clock,
        wait: int,
        client_id: str | None,
        verdicts: list[Verdict],
    ) -> None:
        strings = [pair.refresh_token]
        for _ in range(2):
            strings.append(service.rotate(strings[-1]).refresh_token)
        clock.advance(timedelta(seconds=wait))
        before = dump(settings)
        found = [service.inspect(string, client_id=client_id) for string in strings]
        assert [each.judgement.verdict for each in found if each.judgement] == verdicts
        assert [each.presented.generation for each in found if each.presented] == [0, 1, 2]
        assert dump(settings) == before

    def test_of_a_database_that_is_behind_changes_nothing(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        live = service.rotate(pair.refresh_token).refresh_token
        run_sql(settings, "UPDATE refresh_tokens SET generation = 0")
        before = dump(settings)
        judgement = service.inspect(live).judgement
        assert judgement is not None
        assert judgement.verdict is Verdict.BEHIND
        assert dump(settings) == before

    @pytest.mark.parametrize(
        ("target", "error"),
        [
            pytest.param(lambda _: UNKNOWN_ID, TokenNotFound, id="unknown id"),
            pytest.param(made_up, TokenNotFound, id="string of no login"),
            pytest.param(lambda pair: forged(pair.refresh_token), ForgedToken, id="forged"),
            pytest.param(lambda _: MALFORMED, InvalidToken, id="malformed string"),
            pytest.param(lambda _: "x", InvalidToken, id="neither"),
            pytest.param(lambda _: "", InvalidToken, id="empty"),
            pytest.param(lambda _: "\ud800", InvalidToken, id="half a surrogate"),
        ],
    )
    def test_refuses(
        self,
        service: TokenService,
        pair: TokenPair,
        target: Callable[[TokenPair], str],
        error: type[Exception],
    ) -> None:
        with pytest.raises(error):
            service.inspect(target(pair))


class TestList:
    """Six logins: of two users, through two clients, in every state."""

    @pytest.fixture
    def named(self, service: TokenService, settings: Settings, ada: User) -> dict[str, str]:
        bob = service.create_user("bob")
        service.clients.create("app")
        past = {
            "created_at": START - 90 * DAY,
            "rotated_at": START - 60 * DAY,
            "access_until": START - 60 * DAY,
        }
        rows = {
            "live": login_row(1, ada.id),
            "revoked": login_row(2, ada.id, revoked_at=START, revoked_reason="x"),
            "expired": login_row(3, ada.id, **{**past, "expires_at": START}),
            "idle": login_row(4, ada.id, **{**past, "idle_ttl": 60 * DAY}),
            "cut off": login_row(5, bob.id, created_at=START - 1),
            "app": login_row(6, bob.id, client_id="app"),
        }
        run_sql(settings, "UPDATE users SET not_before = ? WHERE name = 'bob'", START - 1)
        return dict(zip(add_logins(settings, rows.values()), rows, strict=True))

    @pytest.mark.parametrize(
        ("selector", "expected", "alive", "users"),
        [
            pytest.param(
                Selector(everything=True),
                ["live", "revoked", "expired", "idle", "cut off", "app"],
                3,
                2,
                id="all",
            ),
            pytest.param(Selector(users=("ADA",)), ["live", "revoked", "expired", "idle"], 1, 1, id="a user"),
            pytest.param(
                Selector(users=("ada", "bob")),
                ["live", "revoked", "expired", "idle", "cut off", "app"],
                3,
                2,
                id="two users",
            ),
            pytest.param(Selector(clients=("app",)), ["app"], 1, 1, id="a client"),
            pytest.param(Selector(users=("ada",), clients=("app",)), [], 0, 0, id="a user and a client"),
            pytest.param(Selector(states=(SelectState.LIVE,)), ["live", "app"], 2, 2, id="live"),
            pytest.param(Selector(states=(SelectState.BLOCKED,)), ["cut off"], 1, 1, id="blocked"),
            pytest.param(Selector(states=(SelectState.EXPIRED,)), ["expired", "idle"], 0, 0, id="expired"),
            pytest.param(Selector(states=(SelectState.REVOKED,)), ["revoked"], 0, 0, id="revoked"),
            pytest.param(
                Selector(states=(SelectState.DEAD,)), ["revoked", "expired", "idle"], 0, 0, id="dead"
            ),
            pytest.param(
                Selector(states=(SelectState.LIVE, SelectState.REVOKED), users=("ada",)),
                ["live", "revoked"],
                1,
                1,
                id="two states of a user",
            ),
            pytest.param(
                Selector(token_ids=(f"rt_{6:032x}", f"rt_{2:032x}", UNKNOWN_ID)),
                ["revoked", "app"],
                1,
                1,
                id="ids",
            ),
        ],
    )
    def test_finds_what_is_selected(
        self,
        service: TokenService,
        named: dict[str, str],
        settings: Settings,
        selector: Selector,
        expected: list[str],
        alive: int,
        users: int,
    ) -> None:
        before = dump(settings)
        assert [named[row.id] for row in service.list(selector)] == expected
        preview = service.preview(selector)
        assert (preview.tokens, preview.already_dead, preview.users) == (alive, len(expected) - alive, users)
        assert dump(settings) == before

    def test_the_state_of_a_row_is_the_state_it_is_selected_by(
        self, service: TokenService, named: dict[str, str], clock: Clock
    ) -> None:
        selected_by = {
            State.LIVE: SelectState.LIVE,
            State.BLOCKED: SelectState.BLOCKED,
            State.IDLE: SelectState.IDLE,
            State.EXPIRED: SelectState.EXPIRED,
            State.REVOKED: SelectState.REVOKED,
        }
        for row in service.list(Selector(everything=True)):
            found = [
                state
                for state in SelectState
                if state is not SelectState.DEAD
                and row.id in {each.id for each in service.list(Selector(states=(state,)))}
            ]
            also = [SelectState.EXPIRED] if row.state(clock()) is State.IDLE else []
            assert found == [selected_by[row.state(clock())], *also]

    @pytest.mark.parametrize(
        ("selector", "error"),
        [
            pytest.param(Selector(), EmptySelector, id="empty"),
            pytest.param(Selector(users=("nobody",)), UserNotFound, id="unknown user"),
            pytest.param(Selector(users=("ada", "usr_x")), InvalidInput, id="malformed id of a user"),
            pytest.param(Selector(clients=("nothing",)), ClientNotFound, id="unknown client"),
            pytest.param(Selector(token_ids=("nonsense",)), InvalidInput, id="malformed id"),
            pytest.param(Selector(token_ids=("usr_" + "0" * 32,)), InvalidInput, id="id of a user"),
        ],
    )
    def test_refuses(
        self,
        service: TokenService,
        named: dict[str, str],
        settings: Settings,
        selector: Selector,
        error: type[Exception],
    ) -> None:
        before = dump(settings)
        with pytest.raises(error):
            list(service.list(selector))
        with pytest.raises(error):
            service.preview(selector)
        with pytest.raises(error):
            service.revoke_matching(selector, reason="test")
        assert dump(settings) == before

    def test_takes_an_id_in_any_form(self, service: TokenService, named: dict[str, str]) -> None:
        selector = Selector(token_ids=("00000000-0000-0000-0000-000000000001",))
        assert [named[row.id] for row in service.list(selector)] == ["live"]


class TestManyRows:
    @pytest.fixture
    def ids(self, service: TokenService, settings: Settings, ada: User) -> list[str]:
        """2,500 logins of two users in turns, every fifth of them revoked."""
        bob = service.create_user("bob")
        dead = {"revoked_at": START, "revoked_reason": "x"}
        return add_logins(
            settings,
            (login_row(i, (ada, bob)[i % 2].id, **(dead if i % 5 == 0 else {})) for i in range(1, 2501)),
        )

    def test_are_listed_once_each_in_order(self, service: TokenService, ids: list[str]) -> None:
        assert [row.id for row in service.list(Selector(everything=True))] == ids

    @pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
    def test_are_named_by_id(self, service: TokenService, ids: list[str], order: int) -> None:
        selector = Selector(token_ids=tuple(ids[:2200][::order]))
        assert [row.id for row in service.list(selector)] == ids[:2200]
        preview = service.preview(selector)
        assert (preview.tokens, preview.already_dead, preview.users) == (1760, 440, 2)

    def test_an_id_that_is_named_three_times_counts_once(self, service: TokenService, ids: list[str]) -> None:
        selector = Selector(token_ids=tuple(ids[:501]) * 3)
        assert [row.id for row in service.list(selector)] == ids[:501]
        preview = service.preview(selector)
        assert preview.tokens + preview.already_dead == 501

    def test_are_revoked_with_an_event_each(
        self, service: TokenService, settings: Settings, ids: list[str]
    ) -> None:
        done = service.revoke_matching(Selector(users=("ada",)), reason="gone", actor="admin")
        assert (done.revoked, done.already_dead, done.users, done.complete) == (1000, 250, 1, True)
        events = run_sql(
            settings,
            "SELECT token_id FROM events WHERE type = 'token.revoke' AND reason = 'gone'"
            " AND actor = 'admin' ORDER BY id",
        )
        expected = [id_ for i, id_ in enumerate(ids, start=1) if i % 2 == 0 and i % 5]
        assert [f"rt_{raw.hex()}" for (raw,) in events] == expected
        bobs = service.preview(Selector(users=("bob",)))
        assert (bobs.tokens, bobs.already_dead) == (1000, 250)

    def test_a_revocation_that_was_stopped_goes_on_where_it_was(
        self, service: TokenService, settings: Settings, ids: list[str]
    ) -> None:
        asked: list[None] = []

        def stop() -> bool:
            asked.append(None)
            return len(asked) > 1

        first = service.revoke_matching(Selector(everything=True), reason="gone", stop=stop)
        assert (first.revoked, first.complete) == (1000, False)
        assert event_types(settings).count("token.revoke") == 1000
        second = service.revoke_matching(Selector(everything=True), reason="gone")
        assert (second.revoked, second.already_dead, second.complete) == (1000, 1500, True)
        assert service.preview(Selector(everything=True)).tokens == 0
        assert event_types(settings).count("token.revoke") == 2000

    def test_a_stop_after_the_last_row_leaves_nothing_to_do(
        self, service: TokenService, settings: Settings, ids: list[str]
    ) -> None:
        def stop() -> bool:
            return event_types(settings).count("token.revoke") == 2000

        assert service.revoke_matching(Selector(everything=True), reason="gone", stop=stop).revoked == 2000
        again = service.revoke_matching(Selector(everything=True), reason="gone")
        assert (again.revoked, again.already_dead) == (0, 2500)

    def test_revoking_named_ones_can_be_stopped_too(self, service: TokenService, ids: list[str]) -> None:
        asked: list[None] = []

        def stop() -> bool:
            asked.append(None)
            return len(asked) > 1

        first = service.revoke(ids, reason="gone", stop=stop)
        assert (first.revoked, first.already_dead, first.complete) == (800, 200, False)
        second = service.revoke(ids, reason="gone")
        assert (second.revoked, second.already_dead, second.complete) == (1200, 1300, True)

    def test_the_targets_are_read_one_chunk_at_a_time(
        self, service: TokenService, settings: Settings, ids: list[str]
    ) -> None:
        """What went before is committed when the rest is read: a pipe may be endless."""
        seen: list[int] = []

        def targets() -> Any:
            for i, token_id in enumerate(ids):
                if i in (0, 1000, 2000):
                    [(count,)] = run_sql(settings, "SELECT count(*) FROM events WHERE type = 'token.revoke'")
                    seen.append(count)
                yield token_id

        service.revoke(targets(), reason="gone")
        assert seen == [0, 800, 1600]

    def test_no_write_transaction_holds_more_than_a_chunk(
        self, service: TokenService, ids: list[str]
    ) -> None:
        with statements(service) as sent:
            service.revoke_matching(Selector(everything=True), reason="gone")
        # Two full ones and one that finds nothing more.
        assert write_transactions(sent) == 3


class TestRevoke:
    def test_by_id(self, service: TokenService, pair: TokenPair, clock: Clock) -> None:
        clock.advance(timedelta(minutes=1))
        done = service.revoke([pair.token_id], reason="lost", actor="admin")
        assert (done.revoked, done.users, done.complete) == (1, 1, True)
        row = service.inspect(pair.token_id).token
        assert (row.revoked_at, row.revoked_reason, row.revoked_by) == (clock(), "lost", "admin")
        with pytest.raises(TokenRefused):
            service.rotate(pair.refresh_token)

    @pytest.mark.parametrize("spent", [0, 1, 2], ids=["live", "one behind", "two behind"])
    def test_by_a_string_of_any_generation(
        self, service: TokenService, pair: TokenPair, clock: Clock, spent: int
    ) -> None:
        strings = [pair.refresh_token]
        for _ in range(2):
            strings.append(service.rotate(strings[-1]).refresh_token)
        clock.advance(timedelta(hours=1))
        assert service.revoke([strings[2 - spent]], reason="logout").revoked == 1
        assert service.inspect(pair.token_id).token.revoked_reason == "logout"

    def test_counts_each_target_for_what_it_is(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        dead, superseded = service.issue("ada"), service.issue("ada")
        service.revoke([dead.token_id], reason="before")
        service.reissue(superseded.token_id)
        targets = [
            pair.token_id,
            pair.refresh_token,  # the same login a second time
            pair.token_id.upper().replace("RT_", ""),
            dead.refresh_token,
            superseded.refresh_token,
            UNKNOWN_ID,
            made_up(pair),
            forged(pair.refresh_token),
            MALFORMED,
            "",
            "rt_123",
            "\ud800",
        ]
        previewed = service.preview_targets(targets)
        done = service.revoke(iter(targets), reason="test")
        assert (done.revoked, done.already_dead, done.repeated, done.unknown) == (1, 1, 2, 3)
        assert (done.forged, done.malformed, done.users) == (1, 4, 1)
        assert (previewed.tokens, previewed.already_dead, previewed.repeated) == (1, 1, 2)
        assert previewed.users == 1
        assert (previewed.unknown, previewed.forged, previewed.malformed) == (3, 1, 4)
        assert service.inspect(superseded.token_id).state is State.LIVE
        assert event_types(settings).count("token.revoke") == 2

    def test_is_idempotent(self, service: TokenService, pair: TokenPair, settings: Settings) -> None:
        service.revoke([pair.token_id], reason="first")
        before = dump(settings)
        done = service.revoke([pair.refresh_token], reason="second")
        assert (done.revoked, done.already_dead) == (0, 1)
        assert dump(settings) == before

    def test_leaves_the_expired_as_they_are(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        clock.advance(timedelta(days=31))
        done = service.revoke([pair.token_id], reason="late")
        assert (done.revoked, done.already_dead) == (0, 1)
        assert not service.inspect(pair.token_id).token.is_revoked

    def test_ends_the_blocked_as_well(self, service: TokenService, pair: TokenPair) -> None:
        service.users.disable("ada", duration=timedelta(hours=1))
        assert service.revoke([pair.token_id], reason="blocked").revoked == 1

    @pytest.mark.parametrize(
        "text", [pytest.param("\ud800", id="half a surrogate"), pytest.param("a\0b", id="NUL")]
    )
    @pytest.mark.parametrize("field", ["reason", "actor"])
    def test_a_note_that_is_no_line_of_text_is_refused(
        self, service: TokenService, pair: TokenPair, settings: Settings, field: str, text: str
    ) -> None:
        note: dict[str, Any] = {"reason": "x", field: text}
        before = dump(settings)
        with pytest.raises(InvalidInput):
            service.revoke([pair.token_id], **note)
        with pytest.raises(InvalidInput):
            service.revoke_matching(Selector(everything=True), **note)
        assert dump(settings) == before


class TestExposure:
    """`access_exposure_until`: until then an access token may still be accepted somewhere."""

    def revoke_by_id(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.revoke([pair.token_id], reason="x").access_exposure_until

    def revoke_by_string(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.revoke([pair.refresh_token], reason="x").access_exposure_until

    def revoke_by_user(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.revoke_matching(Selector(users=("ada",)), reason="x").access_exposure_until

    def look(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.preview(Selector(token_ids=(pair.token_id,))).access_exposure_until

    def look_at_target(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.preview_targets([pair.refresh_token]).access_exposure_until

    def reissue(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.reissue(pair.token_id).access_exposure_until

    def disable(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.users.disable("ada").access_exposure_until

    def delete(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.users.delete("ada").access_exposure_until

    def change_password(self, service: TokenService, pair: TokenPair) -> int | None:
        return service.users.set_password("ada", "another kettle of sandals").access_exposure_until

    WAYS = (
        revoke_by_id,
        revoke_by_string,
        revoke_by_user,
        look,
        look_at_target,
        reissue,
        disable,
        delete,
        change_password,
    )

    @pytest.mark.parametrize("end", WAYS)
    @pytest.mark.parametrize(
        ("later", "alive"),
        [
            pytest.param(timedelta(0), True, id="at once"),
            pytest.param(ACCESS - TICK, True, id="just before the access token ends"),
            pytest.param(ACCESS, False, id="when it has ended"),
        ],
    )
    def test_lasts_as_long_as_the_newest_access_token(
        self,
        service: TokenService,
        pair: TokenPair,
        clock: Clock,
        end: Callable[[TestExposure, TokenService, TokenPair], int | None],
        later: timedelta,
        alive: bool,
    ) -> None:
        clock.advance(timedelta(minutes=5))
        newest = service.rotate(pair.refresh_token).access_expires_at
        clock.advance(later)
        assert end(self, service, pair) == (newest if alive else None)

    def test_of_a_login_that_was_dead_already_still_counts(
        self, service: TokenService, pair: TokenPair
    ) -> None:
        service.revoke([pair.token_id], reason="first")
        again = service.revoke([pair.token_id], reason="second")
        assert again.access_exposure_until == pair.access_expires_at

    def test_of_nothing(self, service: TokenService, pair: TokenPair) -> None:
        assert service.revoke([UNKNOWN_ID], reason="x").access_exposure_until is None


class TestWithoutTheMasterKey:
    @pytest.fixture
    def bare(self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock) -> TokenService:
        """A service that has the database and not the key."""
        key_file(settings).unlink()
        return TokenService(settings, clock=clock, passwords=CHEAP)

    def test_an_operator_can_look_and_end(self, bare: TokenService, pair: TokenPair, clock: Clock) -> None:
        with bare:
            assert [row.id for row in bare.list(Selector(everything=True))] == [pair.token_id]
            assert bare.inspect(pair.token_id).state is State.LIVE
            assert bare.preview(Selector(everything=True)).tokens == 1
            assert bare.preview_targets([pair.refresh_token]).tokens == 1
            assert bare.revoke([pair.token_id], reason="3 a.m.").revoked == 1
            assert bare.users.disable("ada").user.disabled_at
            clock.advance(timedelta(hours=8))
            assert bare.purge(retention=timedelta(hours=8)).purged == 1
            assert bare.keys.list()
            assert bare.audit.tail()[-1].type == "purge"

    @pytest.mark.parametrize("generations", [0, 2], ids=["live string", "spent string"])
    def test_a_string_revokes_by_its_secret(
        self, service: TokenService, bare: TokenService, pair: TokenPair, generations: int
    ) -> None:
        string = pair.refresh_token
        for _ in range(generations):
            string = service.rotate(string).refresh_token
        with bare:
            assert bare.revoke([pair.refresh_token], reason="logout").revoked == 1
        assert service.inspect(pair.token_id).token.is_revoked

    def test_a_string_with_another_secret_is_unknown(self, bare: TokenService, pair: TokenPair) -> None:
        token = parse_unverified(pair.refresh_token)
        guess = mint(token.raw_id, 0, bytes(16), bytes(32))
        with bare:
            done = bare.revoke([guess, made_up(pair), MALFORMED], reason="guess")
        assert (done.revoked, done.unknown, done.forged, done.malformed) == (0, 2, 0, 1)

    @pytest.mark.parametrize(
        ("key", "error"),
        [
            pytest.param(None, KeyMissing, id="no key"),
            pytest.param(format_master_key(bytes(32)), KeyWrong, id="key of another database"),
            pytest.param("tkm1_short", KeyUnusable, id="damaged key"),
            pytest.param("", KeyUnusable, id="empty file"),
        ],
    )
    def test_strings_cannot_be_made_or_read(
        self,
        service: TokenService,
        bare: TokenService,
        pair: TokenPair,
        settings: Settings,
        key: str | None,
        error: type[Exception],
    ) -> None:
        if key is not None:
            key_file(settings).write_text(key)
        before = dump(settings)
        with bare:
            for use in (
                lambda: bare.issue("ada"),
                lambda: bare.rotate(pair.refresh_token),
                lambda: bare.inspect(pair.refresh_token),
                lambda: bare.reissue(pair.token_id),
            ):
                with pytest.raises(error) as caught:
                    use()
                assert type(caught.value) is error
            assert dump(settings) == before
            if (
                error is not KeyMissing
            ):  # a key that is no good is an error; only without one the secret decides
                with pytest.raises(error):
                    bare.revoke([pair.refresh_token], reason="a string")
            target = pair.refresh_token if error is KeyMissing else pair.token_id
            assert bare.revoke([target], reason="all the same").revoked == 1

    def test_a_key_from_elsewhere_is_as_good(
        self, service: TokenService, bare: TokenService, pair: TokenPair, settings: Settings, clock: Clock
    ) -> None:
        with bare, pytest.raises(KeyMissing):
            bare.issue("ada")
        given = replace(settings, master_key=Secret(format_master_key(MASTER_KEY)))
        with TokenService(given, clock=clock) as other:
            assert other.rotate(pair.refresh_token)
