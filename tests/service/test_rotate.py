"""Rotation through the service: who gets a successor, who gets the same one again, who is thrown out."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import CHEAP, Clock
from tests.service import dump, event_types, key_file, refuse_events, run_sql, statements
from tokenctl import Context, RotateRequest, Settings, TokenPair, TokenService
from tokenctl.core.access_token import verify_access_token
from tokenctl.core.rotation import Verdict
from tokenctl.core.token_string import parse_unverified
from tokenctl.errors import (
    DatabaseBehind,
    ForgedToken,
    InvalidScope,
    InvalidToken,
    KeyMissing,
    TokenctlError,
    TokenRefused,
)

TICK = timedelta(microseconds=1)
GRACE = timedelta(seconds=30)
HOME = Context.of(ip="192.0.2.1", user_agent="Browser/1", device="laptop")
ELSEWHERE = Context.of(ip="2001:db8::7", user_agent="Other/2", device="phone")
MALFORMED = "tkr1_" + "A" * 84


@pytest.fixture
def pair(service: TokenService) -> TokenPair:
    """A login of Ada's, at generation 0."""
    service.create_user("ada")
    service.clients.create("app")
    return service.issue("ada", scope="read write", context=HOME)


def refusal(service: TokenService, refresh_token: str, **options: Any) -> str:
    """The reason for which the string is refused."""
    with pytest.raises(TokenRefused) as caught:
        service.rotate(refresh_token, **options)
    return caught.value.reason


def generation(service: TokenService, pair: TokenPair) -> int:
    return service.inspect(pair.token_id).token.generation


def forged(refresh_token: str) -> str:
    """Of the right form and checksum, with a MAC that is not ours."""
    data = bytearray(base64.urlsafe_b64decode(refresh_token.removeprefix("tkr1_")))
    data[40] ^= 1
    data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "big")
    return "tkr1_" + base64.urlsafe_b64encode(data).decode()


def untyped(**fields: Any) -> Context:
    """A context that nobody cleaned."""
    return Context(**fields)


def succeeded(result: TokenPair | TokenctlError) -> TokenPair:
    assert isinstance(result, TokenPair), result
    return result


class TestRotation:
    def test_gives_the_next_string_and_an_access_token(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        clock.advance(timedelta(hours=1))
        rotated = service.rotate(pair.refresh_token)
        assert parse_unverified(rotated.refresh_token).generation == 1
        assert parse_unverified(rotated.refresh_token).token_id == pair.token_id
        assert (rotated.token_id, rotated.user_id) == (pair.token_id, pair.user_id)
        assert not rotated.retried
        assert rotated.refresh_expires_at == pair.refresh_expires_at
        [key] = service.keys.list()
        claims = verify_access_token(
            rotated.access_token,
            {key.kid: key.public_jwk},
            issuer="tokenctl",
            audience="tokenctl",
            now=clock(),
        )
        assert (claims.user_id, claims.token_id) == (pair.user_id, pair.token_id)
        assert (claims.client_id, claims.scope) == ("default", "read write")
        assert claims.expires_at == rotated.access_expires_at == clock() + 600_000_000
        row = service.inspect(pair.token_id).token
        assert (row.generation, row.rotated_at, row.access_until) == (1, clock(), rotated.access_expires_at)
        assert row.created_at == pair.issued_at

    def test_goes_on_for_ever(self, service: TokenService, pair: TokenPair) -> None:
        string = pair.refresh_token
        for _ in range(20):
            string = service.rotate(string).refresh_token
        assert generation(service, pair) == 20

    def test_takes_one_statement(self, service: TokenService, pair: TokenPair) -> None:
        string = service.rotate(pair.refresh_token).refresh_token
        with statements(service) as sent:
            service.rotate(string)
        assert ["UPDATE refresh_tokens" in statement for statement in sent] == [False, True]
        assert sent[0].startswith("BEGIN")

    @pytest.mark.parametrize(
        ("context", "events"),
        [
            pytest.param(Context(), [], id="unknown"),
            pytest.param(HOME, [], id="the same"),
            pytest.param(replace(HOME, ip=ELSEWHERE.ip), ["token.rotate"], id="address"),
            pytest.param(replace(HOME, user_agent="Browser/2"), ["token.rotate"], id="user agent"),
            pytest.param(replace(HOME, device=ELSEWHERE.device), ["token.rotate"], id="device"),
        ],
    )
    def test_leaves_an_event_only_when_the_context_changed(
        self, service: TokenService, pair: TokenPair, settings: Settings, context: Context, events: list[str]
    ) -> None:
        before = event_types(settings)
        service.rotate(pair.refresh_token, context=context)
        assert event_types(settings)[len(before) :] == events

    def test_keeps_what_was_known_when_the_caller_does_not_say(
        self, service: TokenService, pair: TokenPair
    ) -> None:
        service.rotate(pair.refresh_token, context=Context(ip=ELSEWHERE.ip))
        row = service.inspect(pair.token_id).token
        assert row.issued == HOME
        assert row.last == replace(HOME, ip=ELSEWHERE.ip)


class TestRetry:
    @pytest.mark.parametrize(
        "later", [timedelta(0), TICK, GRACE], ids=["at once", "after 1 µs", "at the end"]
    )
    def test_gets_the_same_answer(
        self, service: TokenService, pair: TokenPair, clock: Clock, settings: Settings, later: timedelta
    ) -> None:
        first = service.rotate(pair.refresh_token)
        before = dump(settings)
        clock.advance(later)
        again = service.rotate(pair.refresh_token)
        assert again.refresh_token == first.refresh_token
        assert again.access_expires_at == first.access_expires_at
        assert again.retried
        assert dump(settings) == before

    def test_its_string_is_good(self, service: TokenService, pair: TokenPair) -> None:
        service.rotate(pair.refresh_token)
        again = service.rotate(pair.refresh_token)
        assert not service.rotate(again.refresh_token).retried

    def test_does_not_extend_the_window(self, service: TokenService, pair: TokenPair, clock: Clock) -> None:
        service.rotate(pair.refresh_token)
        for _ in range(3):
            clock.advance(GRACE / 3)
            assert service.rotate(pair.refresh_token).retried
        clock.advance(TICK)
        assert refusal(service, pair.refresh_token) == "reuse"

    def test_the_window_ends_when_the_successor_is_used(self, service: TokenService, pair: TokenPair) -> None:
        successor = service.rotate(pair.refresh_token).refresh_token
        service.rotate(successor)
        assert refusal(service, pair.refresh_token) == "reuse"
        assert refusal(service, successor) == "revoked"

    def test_can_be_switched_off(self, pair: TokenPair, settings: Settings, clock: Clock) -> None:
        with TokenService(replace(settings, grace=timedelta(0)), clock=clock) as strict:
            strict.rotate(pair.refresh_token)
            assert refusal(strict, pair.refresh_token) == "reuse"

    @pytest.mark.parametrize(
        ("context", "events"),
        [
            pytest.param(Context(), [], id="device unknown"),
            pytest.param(replace(ELSEWHERE, device=HOME.device), [], id="same device, another place"),
            pytest.param(ELSEWHERE, ["token.retry"], id="another device"),
        ],
    )
    def test_from_another_device_leaves_an_event(
        self, service: TokenService, pair: TokenPair, settings: Settings, context: Context, events: list[str]
    ) -> None:
        first = service.rotate(pair.refresh_token, context=HOME)
        before = event_types(settings)
        assert service.rotate(pair.refresh_token, context=context).refresh_token == first.refresh_token
        assert event_types(settings)[len(before) :] == events
        assert service.inspect(pair.token_id).token.last == HOME

    @pytest.mark.parametrize(
        ("context", "retried"),
        [
            pytest.param(Context(), True, id="device unknown"),
            pytest.param(HOME, True, id="same device"),
            pytest.param(ELSEWHERE, False, id="another device"),
        ],
    )
    def test_from_another_device_can_be_reuse(
        self, pair: TokenPair, settings: Settings, clock: Clock, context: Context, retried: bool
    ) -> None:
        with TokenService(replace(settings, foreign_retry="reuse"), clock=clock) as strict:
            strict.rotate(pair.refresh_token, context=HOME)
            if retried:
                assert strict.rotate(pair.refresh_token, context=context).retried
            else:
                assert refusal(strict, pair.refresh_token, context=context) == "reuse"
                event = strict.audit.tail()[-1]
                assert (event.type, event.reason) == ("token.reuse", "retry_from_another_device")
            assert strict.inspect(pair.token_id).token.is_revoked is not retried


class TestReuse:
    @pytest.fixture
    def live(self, service: TokenService, pair: TokenPair, clock: Clock) -> str:
        """The live string; `pair` is spent, and its window over."""
        live = service.rotate(pair.refresh_token).refresh_token
        clock.advance(GRACE + TICK)
        return live

    def test_kills_the_live_string(self, service: TokenService, pair: TokenPair, live: str) -> None:
        assert refusal(service, pair.refresh_token) == "reuse"
        assert refusal(service, live) == "revoked"
        assert refusal(service, pair.refresh_token) == "revoked"

    def test_is_committed_although_it_raises(
        self, service: TokenService, pair: TokenPair, live: str, settings: Settings, clock: Clock
    ) -> None:
        with pytest.raises(TokenRefused) as caught:
            service.rotate(pair.refresh_token, context=ELSEWHERE)
        assert caught.value.token_id == pair.token_id
        with TokenService(settings, clock=clock) as second:
            row = second.inspect(pair.token_id).token
            assert (row.revoked_at, row.revoked_reason) == (clock(), "reuse")
            assert row.last == HOME
            assert refusal(second, live) == "revoked"

    def test_its_event_tells_the_case(
        self, service: TokenService, pair: TokenPair, live: str, clock: Clock
    ) -> None:
        refusal(service, pair.refresh_token, context=ELSEWHERE)
        [event] = [event for event in service.audit.tail() if event.type == "token.reuse"]
        assert (event.at, event.token_id, event.user_id) == (clock(), pair.token_id, pair.user_id)
        assert (event.client_id, event.ip_text, event.reason) == ("default", "2001:db8::7", "spent_string")
        assert event.data["generation"] == 0
        assert event.data["current_generation"] == 1
        assert event.data["access_until"] == service.inspect(pair.token_id).token.access_until

    def test_every_older_string_is_reuse(self, service: TokenService, pair: TokenPair) -> None:
        string = pair.refresh_token
        for _ in range(5):
            string = service.rotate(string).refresh_token
        assert refusal(service, pair.refresh_token) == "reuse"
        assert refusal(service, string) == "revoked"

    def test_ends_no_other_login(self, service: TokenService, pair: TokenPair, live: str) -> None:
        other = service.issue("ada")
        refusal(service, pair.refresh_token)
        assert service.rotate(other.refresh_token)

    def test_a_fresh_revocation_is_no_fresh_rotation(
        self, service: TokenService, pair: TokenPair, live: str
    ) -> None:
        refusal(service, pair.refresh_token)
        assert refusal(service, live) == "revoked"
        assert refusal(service, pair.refresh_token) == "revoked"


class TestClient:
    @pytest.mark.parametrize("spent", [False, True], ids=["live string", "spent string"])
    @pytest.mark.parametrize("client_id", ["app", "no such client"])
    def test_of_another_login_leaves_it_untouched(
        self,
        service: TokenService,
        pair: TokenPair,
        settings: Settings,
        clock: Clock,
        spent: bool,
        client_id: str,
    ) -> None:
        live = pair.refresh_token
        if spent:
            live = service.rotate(live).refresh_token
            clock.advance(GRACE + TICK)
        before = run_sql(settings, "SELECT * FROM refresh_tokens")
        assert refusal(service, pair.refresh_token, client_id=client_id) == "wrong_client"
        assert run_sql(settings, "SELECT * FROM refresh_tokens") == before
        assert service.rotate(live)

    def test_of_its_own_is_accepted(self, service: TokenService, pair: TokenPair) -> None:
        login = service.issue("ada", client_id="app")
        assert service.rotate(login.refresh_token, client_id="app").client_id == "app"
        assert refusal(service, pair.refresh_token, client_id="app") == "wrong_client"


class TestScope:
    def test_narrows_one_access_token_only(self, service: TokenService, pair: TokenPair) -> None:
        narrow = service.rotate(pair.refresh_token, scope="read")
        assert narrow.scope == "read"
        assert service.rotate(narrow.refresh_token).scope == "read write"

    def test_narrows_a_retry(self, service: TokenService, pair: TokenPair) -> None:
        service.rotate(pair.refresh_token)
        assert service.rotate(pair.refresh_token, scope="write").scope == "write"

    @pytest.mark.parametrize("scope", ["read admin", "admin", 'a "quote"'])
    @pytest.mark.parametrize("retry", [False, True], ids=["live string", "retry"])
    def test_wider_is_refused_before_anything_changes(
        self, service: TokenService, pair: TokenPair, settings: Settings, scope: str, retry: bool
    ) -> None:
        if retry:
            service.rotate(pair.refresh_token)
        before = dump(settings)
        with pytest.raises(InvalidScope):
            service.rotate(pair.refresh_token, scope=scope)
        assert dump(settings) == before
        assert service.rotate(pair.refresh_token).scope == "read write"

    def test_wider_does_not_hide_a_reuse(self, service: TokenService, pair: TokenPair, clock: Clock) -> None:
        live = service.rotate(pair.refresh_token).refresh_token
        clock.advance(GRACE + TICK)
        assert refusal(service, pair.refresh_token, scope="read admin") == "reuse"
        assert refusal(service, live, scope="read admin") == "revoked"

    def test_wider_tells_another_client_nothing(self, service: TokenService, pair: TokenPair) -> None:
        assert refusal(service, pair.refresh_token, client_id="app", scope="admin") == "wrong_client"


class TestSuperseded:
    def test_the_older_string_is_refused_and_ends_nothing(
        self, service: TokenService, pair: TokenPair
    ) -> None:
        reissued = service.reissue(pair.token_id)
        assert refusal(service, pair.refresh_token) == "superseded"
        rotated = service.rotate(reissued.refresh_token)
        assert (generation(service, pair), rotated.refresh_expires_at) == (2, pair.refresh_expires_at)

    def test_nor_does_one_that_was_spent_before(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        service.rotate(pair.refresh_token)
        reissued = service.reissue(pair.token_id)
        assert refusal(service, pair.refresh_token) == "superseded"
        clock.advance(GRACE + TICK)
        assert refusal(service, pair.refresh_token) == "superseded"
        assert service.rotate(reissued.refresh_token)

    def test_a_dead_login_is_not_reissued(self, service: TokenService, pair: TokenPair) -> None:
        service.revoke([pair.token_id], reason="test")
        with pytest.raises(TokenRefused) as caught:
            service.reissue(pair.token_id)
        assert caught.value.reason == "revoked"


class TestExpiry:
    @pytest.mark.parametrize(
        ("ttl", "later", "outcome"),
        [
            pytest.param(timedelta(days=5), timedelta(days=5) - TICK, None, id="before its absolute end"),
            pytest.param(timedelta(days=5), timedelta(days=5), "expired", id="at its absolute end"),
            pytest.param(timedelta(days=5), timedelta(days=400), "expired", id="long after"),
            pytest.param(timedelta(days=30), timedelta(days=14) - TICK, None, id="before its idle end"),
            pytest.param(timedelta(days=30), timedelta(days=14), "idle", id="at its idle end"),
            pytest.param(timedelta(days=14), timedelta(days=14), "expired", id="both at once"),
        ],
    )
    def test_to_the_microsecond(
        self,
        service: TokenService,
        pair: TokenPair,
        clock: Clock,
        ttl: timedelta,
        later: timedelta,
        outcome: str | None,
    ) -> None:
        login = service.issue("ada", ttl=ttl)
        clock.advance(later)
        if outcome is None:
            assert service.rotate(login.refresh_token)
        else:
            assert refusal(service, login.refresh_token) == outcome
            assert not service.inspect(login.token_id).token.is_revoked

    def test_used_every_hour_it_still_dies_at_its_absolute_end(
        self, pair: TokenPair, settings: Settings, clock: Clock
    ) -> None:
        short = replace(settings, refresh_ttl=timedelta(hours=48), idle_ttl=timedelta(hours=2))
        with TokenService(short, clock=clock) as service:
            string = service.issue("ada").refresh_token
            for _ in range(47):
                clock.advance(timedelta(hours=1))
                string = service.rotate(string).refresh_token
            clock.advance(timedelta(hours=1))
            assert refusal(service, string) == "expired"

    def test_a_retry_does_not_extend_the_idle_life(
        self, pair: TokenPair, settings: Settings, clock: Clock
    ) -> None:
        short = replace(
            settings,
            idle_ttl=timedelta(seconds=60),
            access_ttl=timedelta(seconds=50),
            grace=timedelta(seconds=40),
        )
        with TokenService(short, clock=clock) as service:
            login = service.issue("ada")
            live = service.rotate(login.refresh_token).refresh_token
            clock.advance(timedelta(seconds=40))
            assert service.rotate(login.refresh_token).retried
            clock.advance(timedelta(seconds=20))
            assert refusal(service, live) == "idle"

    def test_without_an_idle_life(self, pair: TokenPair, settings: Settings, clock: Clock) -> None:
        with TokenService(replace(settings, idle_ttl=None), clock=clock) as service:
            login = service.issue("ada")
            clock.advance(timedelta(days=30) - TICK)
            assert service.rotate(login.refresh_token)

    def test_a_spent_string_of_a_dead_login_is_no_reuse(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        service.rotate(pair.refresh_token)
        clock.advance(timedelta(days=31))
        assert refusal(service, pair.refresh_token) == "expired"


class TestCutOff:
    @pytest.mark.parametrize(
        "table",
        [
            pytest.param("realm", id="of everybody"),
            pytest.param("clients", id="of the client"),
            pytest.param("users", id="of the user"),
        ],
    )
    def test_ends_what_was_created_up_to_then(
        self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock, table: str
    ) -> None:
        rotated = service.rotate(pair.refresh_token)
        run_sql(settings, f"UPDATE {table} SET not_before = ?", clock() - 1)
        string = service.rotate(rotated.refresh_token).refresh_token
        run_sql(settings, f"UPDATE {table} SET not_before = ?", clock())
        assert refusal(service, string) == "cut_off"
        assert refusal(service, pair.refresh_token) == "cut_off"
        assert not service.inspect(pair.token_id).token.is_revoked
        clock.advance(TICK)
        assert service.rotate(service.issue("ada").refresh_token)

    @pytest.mark.parametrize("latest", ["realm", "clients", "users"])
    def test_the_latest_wins(
        self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock, latest: str
    ) -> None:
        for table in ("realm", "clients", "users"):
            run_sql(settings, f"UPDATE {table} SET not_before = ?", clock() - (table != latest))
        assert refusal(service, pair.refresh_token) == "cut_off"

    def test_of_another_client_or_user_does_not_matter(
        self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock
    ) -> None:
        service.create_user("bob")
        run_sql(settings, "UPDATE users SET not_before = ? WHERE name = 'bob'", clock())
        run_sql(settings, "UPDATE clients SET not_before = ? WHERE id = 'app'", clock())
        assert service.rotate(pair.refresh_token)


class TestDisabledUser:
    def test_is_refused_until_the_time_is_over(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        service.users.disable("ada", duration=timedelta(hours=1))
        clock.advance(timedelta(hours=1) - TICK)
        assert refusal(service, pair.refresh_token) == "user_disabled"
        clock.advance(TICK)
        assert service.rotate(pair.refresh_token)

    def test_for_good_has_lost_its_logins(self, service: TokenService, pair: TokenPair) -> None:
        service.users.disable("ada")
        assert refusal(service, pair.refresh_token) == "revoked"
        service.users.enable("ada")
        assert refusal(service, pair.refresh_token) == "revoked"

    def test_refusals_are_noted_once_a_minute(
        self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock
    ) -> None:
        service.users.disable("ada", duration=timedelta(hours=1))
        before = len(event_types(settings))
        for _ in range(3):
            refusal(service, pair.refresh_token)
            clock.advance(timedelta(seconds=30))
        assert event_types(settings)[before:] == ["token.refuse"]
        clock.advance(TICK)
        refusal(service, pair.refresh_token)
        assert event_types(settings)[before:] == ["token.refuse"] * 2


class TestDatabaseBehind:
    """The database lost the newest rotations, and nobody has declared a recovery."""

    @pytest.fixture
    def live(self, service: TokenService, pair: TokenPair, settings: Settings) -> str:
        """The live string, of generation 2; the database is back at 0."""
        before = run_sql(settings, "SELECT generation, rotated_at FROM refresh_tokens")
        live = service.rotate(service.rotate(pair.refresh_token).refresh_token).refresh_token
        run_sql(settings, "UPDATE refresh_tokens SET generation = ?, rotated_at = ?", *before[0])
        return live

    def test_writes_nothing_but_the_alarm(
        self, service: TokenService, pair: TokenPair, live: str, settings: Settings
    ) -> None:
        before = dump(settings)
        with pytest.raises(DatabaseBehind) as caught:
            service.rotate(live)
        assert "db restored" in caught.value.hint
        added = [line for line in dump(settings) if line not in before]
        assert len(added) == 1
        event = service.audit.tail()[-1]
        assert (event.type, event.token_id) == ("database.behind", pair.token_id)
        assert event.data["critical"]
        assert added[0].startswith('INSERT INTO "events"')

    def test_the_alarm_is_noted_once_a_minute(
        self, service: TokenService, live: str, settings: Settings, clock: Clock
    ) -> None:
        before = len(event_types(settings))
        for _ in range(3):
            with pytest.raises(DatabaseBehind):
                service.rotate(live)
            clock.advance(timedelta(seconds=30))
        assert event_types(settings)[before:] == ["database.behind"]
        clock.advance(TICK)
        with pytest.raises(DatabaseBehind):
            service.rotate(live)
        assert event_types(settings)[before:] == ["database.behind"] * 2

    def test_the_alarm_is_noted_once_in_a_batch(
        self, service: TokenService, live: str, settings: Settings
    ) -> None:
        before = len(event_types(settings))
        results = service.rotate_many([RotateRequest(live)] * 3)
        assert [type(result) for result in results] == [DatabaseBehind] * 3
        assert event_types(settings)[before:] == ["database.behind"]

    def test_whoever_did_not_rotate_since_goes_on(
        self, service: TokenService, pair: TokenPair, live: str
    ) -> None:
        assert service.rotate(pair.refresh_token)


class TestDeclaredRecovery:
    """The database is older than the tokens, and the operator has said so."""

    @pytest.fixture
    def strings(self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock) -> list[str]:
        """The strings of generations 0 to 4; the database was restored to generation 1 and declared."""
        strings = [pair.refresh_token]
        clock.advance(timedelta(hours=1))
        strings.append(service.rotate(strings[-1]).refresh_token)
        [row] = run_sql(settings, "SELECT generation, rotated_at, access_until FROM refresh_tokens")
        for _ in range(3):
            clock.advance(timedelta(hours=1))
            strings.append(service.rotate(strings[-1]).refresh_token)
        run_sql(settings, "UPDATE refresh_tokens SET generation = ?, rotated_at = ?, access_until = ?", *row)
        clock.advance(timedelta(hours=1))
        run_sql(settings, "UPDATE realm SET recovered_at = ?", clock())
        clock.advance(timedelta(minutes=1))
        return strings

    def test_follows_the_token(
        self, service: TokenService, pair: TokenPair, strings: list[str], clock: Clock
    ) -> None:
        followed = service.rotate(strings[4], context=ELSEWHERE)
        assert parse_unverified(followed.refresh_token).generation == 5
        row = service.inspect(pair.token_id).token
        assert (row.generation, row.rotated_at, row.last) == (5, clock(), ELSEWHERE)
        assert row.access_until == followed.access_expires_at == clock() + 600_000_000
        event = service.audit.tail()[-1]
        assert (event.type, event.token_id, event.data["generation"]) == ("token.recover", pair.token_id, 4)
        assert service.rotate(strings[4]).refresh_token == followed.refresh_token
        assert service.rotate(followed.refresh_token)

    def test_the_client_first_then_the_thief(self, service: TokenService, strings: list[str]) -> None:
        live = service.rotate(strings[4]).refresh_token
        assert refusal(service, strings[2]) == "reuse"
        assert refusal(service, live) == "revoked"

    def test_the_thief_first_then_the_client(self, service: TokenService, strings: list[str]) -> None:
        stolen = service.rotate(strings[2]).refresh_token
        assert refusal(service, strings[4]) == "reuse"
        assert refusal(service, stolen) == "revoked"

    def test_the_thief_holds_the_restored_generation(self, service: TokenService, strings: list[str]) -> None:
        service.rotate(strings[1])
        assert refusal(service, strings[4]) == "reuse"

    def test_whoever_was_spent_before_the_backup_is_reuse(
        self, service: TokenService, strings: list[str]
    ) -> None:
        assert refusal(service, strings[0]) == "reuse"
        assert refusal(service, strings[4]) == "revoked"

    def test_a_login_used_after_the_recovery_is_followed_no_more(
        self, service: TokenService, strings: list[str], settings: Settings, clock: Clock
    ) -> None:
        run_sql(settings, "UPDATE refresh_tokens SET rotated_at = ?", clock())
        assert refusal(service, strings[4]) == "reuse"

    @pytest.mark.parametrize(
        ("statement", "reason"),
        [
            pytest.param("UPDATE realm SET not_before = 9e15", "cut_off", id="cut off"),
            pytest.param("UPDATE users SET disabled_at = 1", "user_disabled", id="disabled"),
            pytest.param(
                "UPDATE refresh_tokens SET revoked_at = 1, revoked_reason = 'x'", "revoked", id="revoked"
            ),
        ],
    )
    def test_does_not_wake_the_dead(
        self, service: TokenService, strings: list[str], settings: Settings, statement: str, reason: str
    ) -> None:
        run_sql(settings, statement)
        assert refusal(service, strings[4]) == reason


class TestClockSkew:
    @pytest.mark.parametrize(
        ("behind", "accepted"),
        [
            pytest.param(timedelta(seconds=5), True, id="5 s"),
            pytest.param(timedelta(seconds=5) + TICK, False, id="5 s and 1 µs"),
            pytest.param(timedelta(hours=1), False, id="1 h"),
        ],
    )
    def test_a_row_from_the_future(
        self, service: TokenService, pair: TokenPair, clock: Clock, behind: timedelta, accepted: bool
    ) -> None:
        clock.advance(timedelta(days=1))
        first = service.rotate(pair.refresh_token)
        clock.advance(-behind)
        if accepted:
            assert service.rotate(pair.refresh_token).refresh_token == first.refresh_token
            return
        assert refusal(service, pair.refresh_token) == "clock_skew"
        event = service.audit.tail()[-1]
        assert (event.type, event.reason, event.data["critical"]) == ("token.refuse", "clock_skew", True)
        assert not service.inspect(pair.token_id).token.is_revoked
        clock.advance(behind)
        assert service.rotate(pair.refresh_token).refresh_token == first.refresh_token

    def test_the_live_string_is_good_whatever_the_clock_says(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        clock.advance(timedelta(days=1))
        live = service.rotate(pair.refresh_token).refresh_token
        clock.advance(timedelta(hours=-1))
        assert service.rotate(live)

    def test_is_judged_with_the_time_after_the_failed_update(
        self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock
    ) -> None:
        """The row changes 10 s after the first look at the clock; for that one it lies in the future."""
        clock.advance(timedelta(days=1))
        first = service.rotate(pair.refresh_token)

        def late() -> int:
            tried = any("UPDATE" in statement for statement in sent)
            return clock() if tried else clock() - 10_000_000

        with TokenService(settings, clock=late) as racer, statements(racer) as sent:
            assert racer.rotate(pair.refresh_token).refresh_token == first.refresh_token


class TestBatch:
    def test_answers_in_order(self, service: TokenService, pair: TokenPair) -> None:
        other = service.issue("ada")
        results = service.rotate_many(
            [
                RotateRequest(MALFORMED),
                RotateRequest(other.refresh_token),
                RotateRequest(forged(pair.refresh_token)),
                RotateRequest(pair.refresh_token),
            ]
        )
        assert type(results[0]) is InvalidToken
        assert succeeded(results[1]).token_id == other.token_id
        assert type(results[2]) is ForgedToken
        assert succeeded(results[3]).token_id == pair.token_id

    def test_the_same_string_twice(self, service: TokenService, pair: TokenPair) -> None:
        first, second = map(succeeded, service.rotate_many([RotateRequest(pair.refresh_token)] * 2))
        assert (first.retried, second.retried) == (False, True)
        assert first.refresh_token == second.refresh_token
        assert first.access_expires_at == second.access_expires_at
        assert generation(service, pair) == 1

    def test_a_string_and_its_successor(self, service: TokenService, pair: TokenPair) -> None:
        successor = service.rotate(pair.refresh_token).refresh_token
        retry, rotation = map(
            succeeded,
            service.rotate_many([RotateRequest(pair.refresh_token), RotateRequest(successor)]),
        )
        assert (retry.retried, retry.refresh_token) == (True, successor)
        assert not rotation.retried
        assert generation(service, pair) == 2

    def test_a_successor_and_then_its_string(self, service: TokenService, pair: TokenPair) -> None:
        """In that order the first is two behind when it comes: the order of submission counts."""
        successor = service.rotate(pair.refresh_token).refresh_token
        rotation, reuse = service.rotate_many([RotateRequest(successor), RotateRequest(pair.refresh_token)])
        assert succeeded(rotation)
        assert isinstance(reuse, TokenRefused)
        assert reuse.reason == "reuse"
        assert service.inspect(pair.token_id).token.is_revoked

    def test_as_if_one_after_the_other(self, service: TokenService, pair: TokenPair) -> None:
        results = service.rotate_many(
            [
                RotateRequest(pair.refresh_token, client_id="app"),
                RotateRequest(pair.refresh_token, scope="admin"),
                RotateRequest(pair.refresh_token, scope="read"),
                RotateRequest(pair.refresh_token),
            ]
        )
        wrong, wide, first, again = results
        assert isinstance(wrong, TokenRefused)
        assert wrong.reason == "wrong_client"
        assert isinstance(wide, InvalidScope)
        assert (succeeded(first).scope, succeeded(first).retried) == ("read", False)
        assert (succeeded(again).scope, succeeded(again).retried) == ("read write", True)

    def test_more_than_one_statement_takes(self, service: TokenService, pair: TokenPair) -> None:
        strings = [service.issue("ada").refresh_token for _ in range(300)]
        with statements(service) as sent:
            results = service.rotate_many([RotateRequest(string) for string in strings])
        for string, result in zip(strings, results, strict=True):
            asked, got = parse_unverified(string), parse_unverified(succeeded(result).refresh_token)
            assert (got.raw_id, got.secret, got.generation) == (asked.raw_id, asked.secret, 1)
        assert ["UPDATE refresh_tokens" in statement for statement in sent] == [False, True, True]
        assert sent[0].startswith("BEGIN")

    def test_of_nothing(self, service: TokenService) -> None:
        with statements(service) as sent:
            assert service.rotate_many([]) == []
        assert sent == []

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param({"context": untyped(ip="192.0.2.1")}, id="address as text"),
            pytest.param({"context": untyped(ip=1)}, id="address as a number"),
            pytest.param({"context": untyped(ip=2**70)}, id="a number that no column holds"),
            pytest.param({"context": untyped(ip=["192.0.2.1"])}, id="address in a list"),
            pytest.param({"context": untyped(user_agent="\ud800")}, id="user agent with half a surrogate"),
            pytest.param({"context": untyped(user_agent=b"Browser")}, id="user agent as bytes"),
            pytest.param({"client_id": "\ud800"}, id="client with half a surrogate"),
            pytest.param({"client_id": ["default"]}, id="client in a list"),
        ],
    )
    def test_what_the_database_refuses_of_one_does_not_take_the_others_with_it(
        self, service: TokenService, pair: TokenPair, bad: dict[str, Any]
    ) -> None:
        before, after = service.issue("ada"), service.issue("ada")
        results = service.rotate_many(
            [
                RotateRequest(before.refresh_token),
                RotateRequest(pair.refresh_token, **bad),
                RotateRequest(after.refresh_token),
            ]
        )
        assert succeeded(results[0]).token_id == before.token_id
        assert isinstance(results[1], TokenctlError)
        assert succeeded(results[2]).token_id == after.token_id
        assert not succeeded(results[2]).retried
        assert generation(service, pair) == 0
        assert service.rotate(pair.refresh_token)

    def test_a_refused_event_does_not_take_the_others_with_it(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        refuse_events(settings, "token.rotate")
        other = service.issue("ada")
        bad, good = service.rotate_many(
            [RotateRequest(pair.refresh_token, context=ELSEWHERE), RotateRequest(other.refresh_token)]
        )
        assert isinstance(bad, TokenctlError)
        assert succeeded(good).token_id == other.token_id
        assert generation(service, pair) == 0


class TestOneCallersNonsense:
    """What one entry brings fails that entry alone, and reaches no row."""

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param({"scope": "tkr1_AAAAAAAAAAAA"}, id="a string for a scope"),
            pytest.param({"scope": "x" * 5000}, id="an endless scope"),
            pytest.param({"client_id": "tkr1_AAAAAAAAAAAA"}, id="a string for a client"),
            pytest.param({"client_id": "x" * 5000}, id="an endless client"),
        ],
    )
    def test_fails_alone_and_leaves_nothing(
        self, service: TokenService, pair: TokenPair, settings: Settings, bad: dict[str, Any]
    ) -> None:
        other = service.issue("ada")
        before = len(run_sql(settings, "SELECT 1 FROM events"))
        results = service.rotate_many(
            [RotateRequest(pair.refresh_token, **bad), RotateRequest(other.refresh_token)]
        )
        assert isinstance(results[0], InvalidScope | TokenRefused)
        assert succeeded(results[1]).token_id == other.token_id
        assert len(run_sql(settings, "SELECT 1 FROM events")) == before
        assert generation(service, pair) == 0

    def test_a_string_in_a_user_agent_is_not_stored(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        service.rotate(pair.refresh_token, context=Context.of(user_agent=f"Bearer {pair.refresh_token}"))
        assert not [line for line in dump(settings) if pair.refresh_token[5:40] in line]


class TestAccessUntil:
    def test_a_shorter_ttl_does_not_shorten_what_was_signed(
        self, service: TokenService, pair: TokenPair, settings: Settings, clock: Clock
    ) -> None:
        hasty = replace(settings, access_ttl=timedelta(seconds=60))
        with TokenService(hasty, clock=clock, passwords=CHEAP) as other:
            next_ = other.rotate(pair.refresh_token)
            again = other.rotate(pair.refresh_token)
        assert next_.access_expires_at == again.access_expires_at == clock() + 60_000_000
        done = service.revoke([pair.token_id], reason="x")
        assert done.access_exposure_until == pair.access_expires_at, "the first one lives on"

    def test_no_access_token_outlives_its_login(self, service: TokenService, pair: TokenPair) -> None:
        short = service.issue("ada", ttl=timedelta(seconds=5))
        assert short.access_expires_at == short.refresh_expires_at
        assert service.rotate(short.refresh_token).access_expires_at == short.refresh_expires_at


class TestForgery:
    @pytest.mark.parametrize(
        ("spoil", "error"),
        [
            pytest.param(forged, ForgedToken, id="forged"),
            pytest.param(lambda string: string[:-1], InvalidToken, id="too short"),
            pytest.param(lambda string: string + "\n", InvalidToken, id="a newline more"),
            pytest.param(lambda string: string.swapcase(), InvalidToken, id="another case"),
            pytest.param(lambda _: "", InvalidToken, id="empty"),
            pytest.param(lambda _: None, InvalidToken, id="no text"),
            pytest.param(lambda _: "tkr1_" + "\ud800" * 84, InvalidToken, id="half surrogates"),
        ],
    )
    def test_costs_no_query(
        self,
        service: TokenService,
        pair: TokenPair,
        settings: Settings,
        clock: Clock,
        spoil: Callable[[str], Any],
        error: type[InvalidToken],
    ) -> None:
        with TokenService(settings, clock=clock) as fresh, statements(fresh) as sent:
            with pytest.raises(error) as caught:
                fresh.rotate(spoil(pair.refresh_token))
            assert type(caught.value) is error
            assert sent == []

    def test_a_genuine_string_of_a_login_that_is_gone(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        run_sql(settings, "DELETE FROM refresh_tokens")
        assert refusal(service, pair.refresh_token) == "not_found"


class TestMissingKey:
    @pytest.mark.parametrize("spent", [False, True], ids=["live string", "spent string"])
    @pytest.mark.parametrize("key", ["master key", "signing key"])
    def test_is_found_before_anything_is_committed(
        self,
        service: TokenService,
        pair: TokenPair,
        settings: Settings,
        clock: Clock,
        key: str,
        spent: bool,
    ) -> None:
        if spent:
            service.rotate(pair.refresh_token)
            clock.advance(GRACE + TICK)
        if key == "master key":
            key_file(settings).unlink()
        else:
            run_sql(settings, "DELETE FROM signing_keys")
        before = dump(settings)
        with TokenService(settings, clock=clock, passwords=CHEAP) as second:
            with pytest.raises(KeyMissing):
                second.rotate(pair.refresh_token)
            with pytest.raises(KeyMissing):
                second.issue("ada")
        assert dump(settings) == before

    def test_inspect_tells_what_rotate_would_do(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        live = service.rotate(pair.refresh_token).refresh_token
        clock.advance(GRACE + TICK)
        verdicts = [service.inspect(string).judgement for string in (live, pair.refresh_token)]
        assert [verdict and verdict.verdict for verdict in verdicts] == [Verdict.ROTATE, Verdict.REUSE]


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_wider_scope_is_refused_at_the_very_moment_in_which_a_login_comes_back(
    service: TokenService, pair: TokenPair, settings: Settings, clock: Clock, moment: int
) -> None:
    """The clock passes the end of the blocking between the look at the scope and the UPDATE."""
    service.users.disable("ada", duration=timedelta(microseconds=moment))
    ticking = iter(range(clock(), clock() + 1000))
    with TokenService(settings, clock=lambda: next(ticking), passwords=CHEAP) as other:
        for _ in range(5):
            with pytest.raises((InvalidScope, TokenRefused)):
                other.rotate(pair.refresh_token, scope="read write admin")
    assert generation(service, pair) == 0
