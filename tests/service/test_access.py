"""What the bearer of a token can do with it: when it is good, which logins there are, how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import CHEAP, MASTER_KEY, START, Clock
from tests.service import (
    DAY,
    SECOND,
    accept_events,
    add_logins,
    drop_database,
    dump,
    event_types,
    key_file,
    login_row,
    refuse_events,
    run_sql,
    statements,
    write_transactions,
)
from tests.service.test_rotate import ELSEWHERE, GRACE, HOME, MALFORMED, TICK, forged
from tokenctl import Context, Introspection, Settings, State, TokenPair, TokenService
from tokenctl.core.access_token import AccessClaims, sign_access_token
from tokenctl.core.keys import SigningKey, derive_keys, generate_signing_key
from tokenctl.core.token_string import mint, parse_unverified
from tokenctl.errors import (
    DatabaseError,
    DatabaseMissing,
    ForgedToken,
    InvalidAccessToken,
    InvalidInput,
    InvalidToken,
    NotMigrated,
    TokenNotFound,
    TokenRefused,
)

PASSWORD = "plum orbit kettle sandal"
ANOTHER = "another kettle of sandals"
UNKNOWN_ID = "rt_" + "0" * 32


@dataclass(frozen=True)
class Login:
    """A login of Ada's through the client `app`, at generation 2, and what acts on it."""

    service: TokenService
    settings: Settings
    clock: Clock
    #: All its pairs; the last is the current one.
    pairs: list[TokenPair]

    @property
    def pair(self) -> TokenPair:
        return self.pairs[-1]

    def sql(self, statement: str, *values: Any) -> None:
        run_sql(self.settings, statement, *values)


@pytest.fixture
def login(service: TokenService, settings: Settings, clock: Clock) -> Login:
    service.create_user("ada", PASSWORD)
    service.create_user("bob")
    service.clients.create("app")
    pairs = [service.issue("ada", client_id="app", scope="read write")]
    clock.advance(timedelta(minutes=1))
    for _ in range(2):
        pairs.append(service.rotate(pairs[-1].refresh_token, client_id="app", context=HOME))
    return Login(service, settings, clock, pairs)


def made_up(pair: TokenPair) -> str:
    """A string with our MAC for a login that never was."""
    return mint(bytes(16), 0, parse_unverified(pair.refresh_token).secret, derive_keys(MASTER_KEY).mac)


def present_a_spent_string(login: Login) -> None:
    with pytest.raises(TokenRefused):
        login.service.rotate(login.pairs[0].refresh_token, client_id="app")


def log_out_elsewhere(login: Login) -> None:
    login.service.logout(login.service.issue("ada").refresh_token, everywhere=True)


def change_password(login: Login) -> None:
    login.service.users.change_password(login.pair.user_id, PASSWORD, ANOTHER, keep=None)


def leave_unused(login: Login) -> None:
    login.sql("UPDATE refresh_tokens SET idle_ttl = 1000000")
    login.clock.advance(timedelta(seconds=1))


def reach_its_end(login: Login) -> None:
    login.sql("UPDATE refresh_tokens SET expires_at = ?", login.clock() + SECOND)
    login.clock.advance(timedelta(seconds=1))


def cut_off(table: str) -> Callable[[Login], None]:
    return lambda login: login.sql(f"UPDATE {table} SET not_before = ?", login.pair.issued_at)


#: After each of these the login is dead, and a string of it has nothing left to end.
DEATHS: dict[str, Callable[[Login], object]] = {
    "revoked": lambda login: login.service.revoke([login.pair.token_id], reason="x"),
    "revoked for reuse": present_a_spent_string,
    "logged out": lambda login: login.service.logout(login.pair.refresh_token, client_id="app"),
    "logged out elsewhere": log_out_elsewhere,
    "session ended": lambda login: login.service.end_session(
        login.pair.user_id, login.pair.token_id, actor="ada"
    ),
    "revoked by its client": lambda login: login.service.revoke_presented(
        login.pair.refresh_token, client_id="app"
    ),
    "user disabled": lambda login: login.service.users.disable("ada"),
    "password set": lambda login: login.service.users.set_password("ada", ANOTHER),
    "password changed": change_password,
    "idle": leave_unused,
    "expired": reach_its_end,
}
#: After each of these the row is gone.
PURGES: dict[str, Callable[[Login], object]] = {
    "user deleted": lambda login: login.service.users.delete("ada"),
    "purged": lambda login: login.sql("DELETE FROM refresh_tokens"),
}
#: After each of these nobody gets in with it, though that can be taken back.
BLOCKS: dict[str, Callable[[Login], object]] = {
    "user disabled for a time": lambda login: login.service.users.disable("ada", duration=timedelta(hours=1)),
    "cut-off of all": cut_off("realm"),
    "cut-off of the client": cut_off("clients"),
    "cut-off of the user": cut_off("users"),
}
ENDS = {**DEATHS, **PURGES, **BLOCKS}


def of_table(table: dict[str, Callable[[Login], object]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("end", [pytest.param(end, id=name) for name, end in table.items()])


# --- access tokens ---------------------------------------------------------------------------


def signed(login: Login, key: SigningKey | None = None, **claims: Any) -> str:
    """An access token as ours, but for what is named."""
    now = login.clock()
    good = AccessClaims(
        user_id=login.pair.user_id,
        client_id="app",
        scope="read",
        token_id=login.pair.token_id,
        issued_at=now,
        expires_at=now + 60 * SECOND,
        issuer="tokenctl",
        audience="tokenctl",
        jti="x",
    )
    return sign_access_token(replace(good, **claims), key or login.service._runtime.signing_key)


#: What is no access token of ours, whatever became of any login.
NO_ACCESS_TOKENS: dict[str, Callable[[Login], str]] = {
    "another audience": lambda login: signed(login, audience="api"),
    "another issuer": lambda login: signed(login, issuer="https://elsewhere.example"),
    "another key": lambda login: signed(login, generate_signing_key()),
    "another key under our kid": lambda login: signed(
        login, replace(generate_signing_key(), kid=login.service._runtime.signing_key.kid)
    ),
    "expired": lambda login: signed(login, expires_at=login.clock()),
    "of tomorrow": lambda login: signed(login, issued_at=login.clock() + 86_400 * SECOND),
    "of no login": lambda login: signed(login, token_id="nonsense"),
    "a piece short": lambda login: login.pair.access_token[:-1],
    "an id": lambda login: login.pair.token_id,
    "empty": lambda _: "",
    "half a surrogate": lambda _: "\ud800",
    "a NUL": lambda _: "a\0b",
    "dots": lambda _: "..",
    "endless": lambda _: "e" * 100_000,
}

#: Ours, and not of the login that it names.
FOREIGN_CLAIMS: dict[str, Callable[[Login], dict[str, Any]]] = {
    "an unknown login": lambda _: {"token_id": UNKNOWN_ID},
    "another user": lambda login: {"user_id": login.service.users.get("bob").id},
    "another client": lambda _: {"client_id": "default"},
    "another user's login": lambda login: {"token_id": login.service.issue("bob", client_id="app").token_id},
}


class TestCheckAccess:
    def test_tells_who_may_do_what(self, login: Login) -> None:
        access = login.service.check_access(login.pair.access_token)
        assert (access.token_id, access.client_id, access.scope) == (login.pair.token_id, "app", "read write")
        assert (access.user_id, access.user_name) == (login.pair.user_id, "ada")
        assert access.issued_at == login.clock()
        assert access.expires_at == login.pair.access_expires_at

    def test_the_scope_is_the_tokens_own(self, login: Login) -> None:
        narrow = login.service.rotate(login.pair.refresh_token, client_id="app", scope="read")
        assert login.service.check_access(narrow.access_token).scope == "read"

    def test_older_ones_of_a_live_login_are_good_until_they_expire(self, login: Login) -> None:
        for pair in login.pairs:
            assert login.service.check_access(pair.access_token)
        login.clock.now = login.pairs[0].access_expires_at
        with pytest.raises(InvalidAccessToken):
            login.service.check_access(login.pairs[0].access_token)
        assert login.service.check_access(login.pair.access_token)

    def test_reads_the_login_once_and_writes_nothing(self, login: Login) -> None:
        with statements(login.service) as sent:
            login.service.check_access(login.pair.access_token)
        assert sum("refresh_tokens" in statement for statement in sent) == 1
        assert write_transactions(sent) == 0

    @pytest.mark.parametrize("make", NO_ACCESS_TOKENS.values(), ids=NO_ACCESS_TOKENS)
    def test_what_is_none_of_ours_is_refused_without_a_look_at_a_login(
        self, login: Login, make: Callable[[Login], str]
    ) -> None:
        token = make(login)
        with statements(login.service) as sent, pytest.raises(InvalidAccessToken) as caught:
            login.service.check_access(token)
        assert not [statement for statement in sent if "refresh_tokens" in statement]
        assert not token or token not in str(caught.value)

    @pytest.mark.parametrize("claims", FOREIGN_CLAIMS.values(), ids=FOREIGN_CLAIMS)
    def test_the_login_must_be_the_claims_own(
        self, login: Login, claims: Callable[[Login], dict[str, Any]]
    ) -> None:
        assert login.service.check_access(signed(login))
        with pytest.raises(InvalidAccessToken) as caught:
            login.service.check_access(signed(login, **claims(login)))
        assert caught.value.facts["reason"] == "not_found"

    @of_table(ENDS)
    def test_ends_with_the_login(self, login: Login, end: Callable[[Login], object]) -> None:
        end(login)
        with pytest.raises(InvalidAccessToken) as caught:
            login.service.check_access(login.pair.access_token)
        assert caught.value.message == "the access token is refused: its login is not live"
        assert caught.value.facts["reason"] in ("revoked", "idle", "expired", "not_found", "blocked")

    def test_comes_back_when_a_user_is_let_in_again(self, login: Login) -> None:
        login.service.users.disable("ada", duration=timedelta(minutes=1))
        login.clock.advance(timedelta(minutes=1) - TICK)
        with pytest.raises(InvalidAccessToken):
            login.service.check_access(login.pair.access_token)
        login.clock.advance(TICK)
        assert login.service.check_access(login.pair.access_token)

    def test_needs_no_master_key(self, login: Login, settings: Settings) -> None:
        key_file(settings).unlink()
        with TokenService(settings, clock=login.clock) as bare:
            assert bare.check_access(login.pair.access_token)

    def test_of_another_audience_is_good_where_that_is_ours(self, login: Login, settings: Settings) -> None:
        api = replace(settings, issuer="https://auth.example", audience="api")
        with TokenService(api, clock=login.clock, passwords=CHEAP) as other:
            token = other.issue("ada").access_token
            assert other.check_access(token)
            with pytest.raises(InvalidAccessToken):
                other.check_access(login.pair.access_token)
        with pytest.raises(InvalidAccessToken):
            login.service.check_access(token)


# --- introspection ---------------------------------------------------------------------------

NO_REFRESH_TOKENS: dict[str, Callable[[Login], str]] = {
    "malformed": lambda _: MALFORMED,
    "forged": lambda login: forged(login.pair.refresh_token),
    "of no login": lambda login: made_up(login.pair),
    "a newline more": lambda login: login.pair.refresh_token + "\n",
    "half surrogates": lambda _: "tkr1_" + "\ud800" * 84,
}


class TestIntrospect:
    def test_tells_of_an_access_token(self, login: Login) -> None:
        assert login.service.introspect(login.pair.access_token) == Introspection(
            kind="access_token",
            token_id=login.pair.token_id,
            user_id=login.pair.user_id,
            user_name="ada",
            client_id="app",
            scope="read write",
            issued_at=login.clock(),
            expires_at=login.pair.access_expires_at,
        )

    def test_tells_of_a_refresh_token(self, login: Login) -> None:
        assert login.service.introspect(login.pair.refresh_token) == Introspection(
            kind="refresh_token",
            token_id=login.pair.token_id,
            user_id=login.pair.user_id,
            user_name="ada",
            client_id="app",
            scope="read write",
            issued_at=login.pairs[0].issued_at,
            expires_at=login.clock() + timedelta(days=14) // TICK,
        )

    @pytest.mark.parametrize(
        ("column", "value", "ends"),
        [
            pytest.param("idle_ttl", None, lambda login: login.pair.refresh_expires_at, id="never idle"),
            pytest.param("idle_ttl", 5 * SECOND, lambda login: login.clock() + 5 * SECOND, id="idle first"),
            pytest.param("expires_at", START + DAY, lambda _: START + DAY, id="absolute first"),
        ],
    )
    def test_a_refresh_token_expires_when_the_first_of_its_lives_ends(
        self, login: Login, column: str, value: int | None, ends: Callable[[Login], int]
    ) -> None:
        login.sql(f"UPDATE refresh_tokens SET {column} = ?", value)
        found = login.service.introspect(login.pair.refresh_token)
        assert found is not None
        assert found.expires_at == ends(login)

    @of_table(ENDS)
    def test_of_a_login_that_has_ended_nothing_is_active_and_nothing_changes(
        self, login: Login, end: Callable[[Login], object]
    ) -> None:
        assert login.service.introspect(login.pair.refresh_token)
        assert login.service.introspect(login.pair.access_token)
        end(login)
        before = dump(login.settings)
        for pair in login.pairs:
            assert login.service.introspect(pair.refresh_token) is None
            assert login.service.introspect(pair.access_token) is None
        assert dump(login.settings) == before

    @pytest.mark.parametrize(
        "make",
        [*NO_ACCESS_TOKENS.values(), *NO_REFRESH_TOKENS.values()],
        ids=[*NO_ACCESS_TOKENS, *NO_REFRESH_TOKENS],
    )
    def test_of_anything_else_there_is_nothing(self, login: Login, make: Callable[[Login], str]) -> None:
        token = make(login)
        before = dump(login.settings)
        assert login.service.introspect(token) is None
        assert dump(login.settings) == before

    @pytest.mark.parametrize("claims", FOREIGN_CLAIMS.values(), ids=FOREIGN_CLAIMS)
    def test_nor_of_an_access_token_of_another_login(
        self, login: Login, claims: Callable[[Login], dict[str, Any]]
    ) -> None:
        assert login.service.introspect(signed(login, **claims(login))) is None

    def test_the_previous_string_is_active_in_the_grace(self, login: Login) -> None:
        _, previous, current = (pair.refresh_token for pair in login.pairs)
        login.clock.advance(GRACE)
        assert login.service.introspect(previous)
        login.clock.advance(TICK)
        assert login.service.introspect(previous) is None
        assert login.service.introspect(current)

    def test_and_not_when_the_successor_was_used(self, login: Login) -> None:
        login.service.rotate(login.pair.refresh_token, client_id="app")
        assert login.service.introspect(login.pairs[1].refresh_token) is None
        assert login.service.introspect(login.pair.refresh_token)

    def test_a_spent_string_is_no_reuse(self, login: Login) -> None:
        login.clock.advance(timedelta(hours=1))
        before = dump(login.settings)
        for pair in login.pairs[:-1]:
            assert login.service.introspect(pair.refresh_token) is None
        assert dump(login.settings) == before
        assert login.service.rotate(login.pair.refresh_token, client_id="app")

    def test_a_superseded_string_is_not_active(self, login: Login) -> None:
        reissued = login.service.reissue(login.pair.token_id)
        assert login.service.introspect(login.pair.refresh_token) is None
        assert login.service.introspect(reissued.refresh_token)

    def test_a_string_that_is_newer_than_the_database_is_not_active(self, login: Login) -> None:
        login.sql("UPDATE refresh_tokens SET generation = 0")
        for declare in (lambda: None, login.service.declare_restored):
            declare()
            before = dump(login.settings)
            assert login.service.introspect(login.pair.refresh_token) is None
            assert dump(login.settings) == before


# --- the user's own logins -------------------------------------------------------------------


class TestSessions:
    def test_are_the_live_ones_with_the_last_used_first(self, login: Login) -> None:
        first = login.service.issue("ada")
        login.service.issue("bob")
        dead = login.service.issue("ada")
        login.service.revoke([dead.token_id], reason="x")
        login.clock.advance(timedelta(minutes=1))
        second = login.service.issue("ada")
        login.clock.advance(timedelta(minutes=1))
        login.service.rotate(first.refresh_token)
        user_id = login.pair.user_id
        expected = [first.token_id, second.token_id, login.pair.token_id]
        assert [row.id for row in login.service.sessions(user_id)] == expected
        assert [row.id for row in login.service.sessions(user_id, limit=2)] == expected[:2]
        assert login.service.sessions(user_id)[2].last == HOME
        assert {row.user_name for row in login.service.sessions(user_id)} == {"ada"}

    def test_are_200_at_most_unless_told(self, login: Login) -> None:
        user_id = login.pair.user_id
        ids = add_logins(login.settings, (login_row(i, user_id) for i in range(1, 251)))
        found = [row.id for row in login.service.sessions(user_id)]
        # Used at the same instant, the newer login comes first.
        assert found == [login.pair.token_id, *reversed(ids)][:200]
        assert len(login.service.sessions(user_id, limit=1000)) == 251

    @of_table(ENDS)
    def test_an_ended_one_is_none(self, login: Login, end: Callable[[Login], object]) -> None:
        end(login)
        assert login.service.sessions(login.pair.user_id) == []

    def test_of_nobody(self, login: Login) -> None:
        assert login.service.sessions("usr_" + "0" * 32) == []
        with pytest.raises(InvalidInput):
            login.service.sessions("ada")


class TestEndSession:
    def test_revokes_it(self, login: Login) -> None:
        other = login.service.issue("ada")
        login.clock.advance(timedelta(minutes=1))
        login.service.end_session(other.user_id, other.token_id, actor="ada", context=ELSEWHERE)
        row = login.service.inspect(other.token_id).token
        assert (row.revoked_at, row.revoked_reason, row.revoked_by) == (
            login.clock(),
            "session ended",
            "ada",
        )
        event = login.service.audit.tail()[-1]
        assert (event.type, event.token_id, event.ip) == ("token.revoke", other.token_id, ELSEWHERE.ip)
        assert (event.reason, event.actor) == ("session ended", "ada")
        assert login.service.check_access(login.pair.access_token)

    @of_table(DEATHS)
    def test_a_dead_one_stays_as_it_is(self, login: Login, end: Callable[[Login], object]) -> None:
        end(login)
        before = dump(login.settings)
        login.service.end_session(login.pair.user_id, login.pair.token_id, actor="ada")
        assert dump(login.settings) == before

    @of_table(BLOCKS)
    def test_a_blocked_one_ends(self, login: Login, end: Callable[[Login], object]) -> None:
        end(login)
        login.service.end_session(login.pair.user_id, login.pair.token_id, actor="ada")
        assert login.service.inspect(login.pair.token_id).state is State.REVOKED

    def test_what_is_not_the_users_own_looks_alike(self, login: Login) -> None:
        foreign = login.service.issue("bob").token_id
        before = dump(login.settings)
        said = set()
        for token_id in (foreign, UNKNOWN_ID, "rt_x", "", "\ud800", login.pair.refresh_token):
            with pytest.raises(TokenNotFound) as caught:
                login.service.end_session(login.pair.user_id, token_id, actor="ada")
            said.add((caught.value.message, caught.value.hint, str(caught.value.facts)))
        assert len(said) == 1
        assert dump(login.settings) == before


# --- logging out -----------------------------------------------------------------------------


class TestLogout:
    @pytest.mark.parametrize("generation", [0, 1, 2], ids=["spent", "the previous", "the current"])
    @pytest.mark.parametrize("later", [timedelta(0), timedelta(hours=1)], ids=["at once", "after the grace"])
    def test_a_string_of_any_generation_ends_its_login(
        self, login: Login, generation: int, later: timedelta
    ) -> None:
        other = login.service.issue("ada", client_id="app")
        login.clock.advance(later)
        done = login.service.logout(login.pairs[generation].refresh_token, client_id="app", context=ELSEWHERE)
        assert (done.revoked, done.already_dead, done.unknown, done.users) == (1, 0, 0, 1)
        assert done.access_exposure_until == (None if later else login.pair.access_expires_at)
        row = login.service.inspect(login.pair.token_id).token
        assert (row.revoked_at, row.revoked_reason, row.revoked_by) == (login.clock(), "logout", "ada")
        event = login.service.audit.tail()[-1]
        assert (event.type, event.reason, event.actor) == ("token.revoke", "logout", "ada")
        assert (event.token_id, event.user_id) == (login.pair.token_id, login.pair.user_id)
        assert (event.ip, event.data["user_agent"]) == (ELSEWHERE.ip, ELSEWHERE.user_agent)
        assert login.service.rotate(other.refresh_token, client_id="app")

    @pytest.mark.parametrize("everywhere", [False, True], ids=["here", "everywhere"])
    @pytest.mark.parametrize(
        ("make", "error"),
        [
            pytest.param(lambda login: MALFORMED, InvalidToken, id="malformed"),
            pytest.param(lambda login: forged(login.pair.refresh_token), ForgedToken, id="forged"),
            pytest.param(lambda login: login.pair.access_token, InvalidToken, id="an access token"),
            pytest.param(lambda login: login.pair.token_id, InvalidToken, id="an id"),
            pytest.param(lambda login: "", InvalidToken, id="empty"),
        ],
    )
    def test_what_is_no_string_of_ours_costs_no_query(
        self, login: Login, make: Callable[[Login], str], error: type[Exception], everywhere: bool
    ) -> None:
        with statements(login.service) as sent, pytest.raises(error) as caught:
            login.service.logout(make(login), client_id="app", everywhere=everywhere)
        assert type(caught.value) is error
        assert sent == []

    @pytest.mark.parametrize("everywhere", [False, True], ids=["here", "everywhere"])
    @pytest.mark.parametrize("client_id", ["default", "unknown", "", "two words", "\ud800", "x" * 5000])
    def test_another_clients_is_refused_and_untouched(
        self, login: Login, client_id: str, everywhere: bool
    ) -> None:
        before = dump(login.settings)
        with pytest.raises(TokenRefused) as caught:
            login.service.logout(login.pair.refresh_token, client_id=client_id, everywhere=everywhere)
        assert caught.value.reason == "wrong_client"
        assert dump(login.settings) == before

    def test_no_client_is_the_default_one(self, login: Login) -> None:
        assert login.service.logout(login.service.issue("ada").refresh_token).revoked == 1

    @pytest.mark.parametrize("everywhere", [False, True], ids=["here", "everywhere"])
    def test_a_superseded_string_ends_nothing(self, login: Login, everywhere: bool) -> None:
        reissued = login.service.reissue(login.pair.token_id)
        before = dump(login.settings)
        with pytest.raises(TokenRefused) as caught:
            login.service.logout(login.pair.refresh_token, client_id="app", everywhere=everywhere)
        assert caught.value.reason == "superseded"
        assert dump(login.settings) == before
        assert login.service.logout(reissued.refresh_token, client_id="app").revoked == 1

    @of_table(DEATHS)
    def test_of_a_dead_login_there_is_nothing_to_end(
        self, login: Login, end: Callable[[Login], object]
    ) -> None:
        end(login)
        before = dump(login.settings)
        done = login.service.logout(login.pair.refresh_token, client_id="app")
        assert (done.revoked, done.already_dead, done.unknown, done.users) == (0, 1, 0, 0)
        assert dump(login.settings) == before

    @of_table(PURGES)
    def test_nor_of_one_that_is_gone(self, login: Login, end: Callable[[Login], object]) -> None:
        end(login)
        before = dump(login.settings)
        done = login.service.logout(login.pair.refresh_token, client_id="app")
        assert (done.revoked, done.already_dead, done.unknown, done.users) == (0, 0, 1, 0)
        assert done.access_exposure_until is None
        assert dump(login.settings) == before

    @of_table(BLOCKS)
    def test_a_blocked_login_can_be_ended(self, login: Login, end: Callable[[Login], object]) -> None:
        end(login)
        assert login.service.logout(login.pair.refresh_token, client_id="app").revoked == 1
        assert login.service.inspect(login.pair.token_id).token.is_revoked


class TestLogoutEverywhere:
    @pytest.mark.parametrize("generation", [0, 1, 2], ids=["spent", "the previous", "the current"])
    def test_ends_every_login_of_the_user(self, login: Login, generation: int) -> None:
        mine, bobs = login.service.issue("ada"), login.service.issue("bob")
        login.clock.advance(timedelta(minutes=1))
        newest = login.service.rotate(mine.refresh_token)
        before = len(event_types(login.settings))
        done = login.service.logout(
            login.pairs[generation].refresh_token, client_id="app", everywhere=True, context=ELSEWHERE
        )
        assert (done.revoked, done.already_dead, done.users) == (2, 0, 1)
        assert done.access_exposure_until == newest.access_expires_at
        for pair in (login.pair, mine):
            row = login.service.inspect(pair.token_id).token
            assert (row.revoked_at, row.revoked_reason) == (login.clock(), "logout everywhere")
            assert row.revoked_by == "ada"
        assert event_types(login.settings)[before:] == ["token.revoke"] * 2
        for event in login.service.audit.tail(2):
            assert (event.actor, event.reason, event.ip) == ("ada", "logout everywhere", ELSEWHERE.ip)
        assert login.service.rotate(bobs.refresh_token)

    def test_takes_one_transaction_however_many_there_are(self, login: Login) -> None:
        add_logins(login.settings, (login_row(i, login.pair.user_id) for i in range(1, 2501)))
        with statements(login.service) as sent:
            done = login.service.logout(login.pair.refresh_token, client_id="app", everywhere=True)
        assert done.revoked == 2501
        assert write_transactions(sent) == 1
        assert login.service.sessions(login.pair.user_id) == []

    @of_table({**DEATHS, **PURGES, **{name: end for name, end in BLOCKS.items() if "cut-off" in name}})
    def test_what_is_dead_or_cut_off_cannot_end_the_others(
        self, login: Login, end: Callable[[Login], object]
    ) -> None:
        end(login)
        login.clock.advance(TICK)
        if "ada" in {user.name for user in login.service.users.list()}:
            login.service.users.enable("ada")
            others = [login.service.issue("ada", client_id="app")]
        else:
            others = []
        before = dump(login.settings)
        with pytest.raises(TokenRefused) as caught:
            login.service.logout(login.pair.refresh_token, client_id="app", everywhere=True)
        assert caught.value.reason in ("revoked", "expired", "idle", "cut_off", "not_found")
        assert dump(login.settings) == before
        for other in others:
            assert login.service.rotate(other.refresh_token, client_id="app")

    def test_a_user_that_is_disabled_for_a_time_may(self, login: Login) -> None:
        login.service.issue("ada")
        login.service.users.disable("ada", duration=timedelta(hours=1))
        done = login.service.logout(login.pair.refresh_token, client_id="app", everywhere=True)
        assert done.revoked == 2


# --- revocation by a client ------------------------------------------------------------------


class TestRevokePresented:
    TOKENS: tuple[Any, ...] = (
        pytest.param(lambda login: login.pair.refresh_token, id="the current string"),
        pytest.param(lambda login: login.pairs[0].refresh_token, id="a spent string"),
        pytest.param(lambda login: login.pair.access_token, id="an access token"),
        pytest.param(lambda login: login.pairs[0].access_token, id="an older access token"),
    )

    @pytest.mark.parametrize("choose", TOKENS)
    def test_ends_the_login(self, login: Login, choose: Callable[[Login], str]) -> None:
        other = login.service.issue("ada", client_id="app")
        assert login.service.revoke_presented(choose(login), client_id="app", context=ELSEWHERE) is True
        row = login.service.inspect(login.pair.token_id).token
        assert (row.revoked_reason, row.revoked_by) == ("revoked by the client", "client app")
        event = login.service.audit.tail()[-1]
        assert (event.type, event.client_id, event.ip) == ("token.revoke", "app", ELSEWHERE.ip)
        assert (event.reason, event.actor) == ("revoked by the client", "client app")
        for token in (login.pair.refresh_token, login.pair.access_token):
            assert login.service.introspect(token) is None
        assert login.service.rotate(other.refresh_token, client_id="app")

    @pytest.mark.parametrize("choose", TOKENS)
    @pytest.mark.parametrize("client_id", ["default", "unknown", "", "\ud800"])
    def test_another_clients_is_untouched(
        self, login: Login, choose: Callable[[Login], str], client_id: str
    ) -> None:
        before = dump(login.settings)
        assert login.service.revoke_presented(choose(login), client_id=client_id) is False
        assert dump(login.settings) == before

    def test_no_client_is_the_default_one(self, login: Login) -> None:
        assert login.service.revoke_presented(login.service.issue("ada").access_token) is True

    @pytest.mark.parametrize("choose", TOKENS)
    @of_table({**DEATHS, **PURGES})
    def test_of_a_dead_login_nothing_is_revoked(
        self, login: Login, end: Callable[[Login], object], choose: Callable[[Login], str]
    ) -> None:
        end(login)
        before = dump(login.settings)
        assert login.service.revoke_presented(choose(login), client_id="app") is False
        assert dump(login.settings) == before

    @of_table(BLOCKS)
    def test_a_blocked_login_ends_by_its_string_alone(
        self, login: Login, end: Callable[[Login], object]
    ) -> None:
        end(login)
        assert login.service.revoke_presented(login.pair.access_token, client_id="app") is False
        assert login.service.revoke_presented(login.pair.refresh_token, client_id="app") is True

    @pytest.mark.parametrize(
        "make",
        [*NO_ACCESS_TOKENS.values(), *NO_REFRESH_TOKENS.values()],
        ids=[*NO_ACCESS_TOKENS, *NO_REFRESH_TOKENS],
    )
    def test_of_anything_else_nothing_is_revoked(self, login: Login, make: Callable[[Login], str]) -> None:
        token = make(login)
        before = dump(login.settings)
        assert login.service.revoke_presented(token, client_id="app") is False
        assert dump(login.settings) == before

    def test_a_superseded_string_ends_nothing(self, login: Login) -> None:
        reissued = login.service.reissue(login.pair.token_id)
        assert login.service.revoke_presented(login.pair.refresh_token, client_id="app") is False
        assert login.service.introspect(reissued.refresh_token)


# --- faults ----------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Login], object]] = {
    "end a session": DEATHS["session ended"],
    "log out": DEATHS["logged out"],
    "log out everywhere": lambda login: login.service.logout(
        login.pair.refresh_token, client_id="app", everywhere=True
    ),
    "revoke by a string": DEATHS["revoked by its client"],
    "revoke by an access token": lambda login: login.service.revoke_presented(
        login.pair.access_token, client_id="app"
    ),
    "change the password": change_password,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("failing", ["token.revoke", "%"], ids=["of the login", "any"])
def test_a_fault_between_change_and_event_commits_neither(
    login: Login, change: Callable[[Login], object], failing: str
) -> None:
    refuse_events(login.settings, failing)
    before = dump(login.settings)
    with pytest.raises(DatabaseError):
        change(login)
    assert dump(login.settings) == before
    accept_events(login.settings)
    change(login)
    assert login.service.inspect(login.pair.token_id).state is State.REVOKED


# --- watching --------------------------------------------------------------------------------


class TestFollowingTheLog:
    def test_gives_what_came_after_in_order(self, login: Login) -> None:
        audit = login.service.audit
        seen = audit.newest_id()
        assert audit.after(seen) == []
        login.service.issue("ada", context=Context.of(ip="192.0.2.1"))
        login.service.users.disable("ada")
        new = audit.after(seen)
        assert [event.type for event in new] == [
            "token.issue",
            "user.disable",
            "token.revoke",
            "token.revoke",
        ]
        assert (new[0].user_name, new[0].ip_text) == ("ada", "192.0.2.1")
        assert [event.id for event in new] == list(range(seen + 1, seen + 5))
        assert audit.after(seen, limit=2) == new[:2]
        assert audit.after(seen + 1) == new[1:]
        assert audit.newest_id() == seen + 4

    def test_gives_500_at_a_time_unless_told(self, login: Login) -> None:
        add_logins(login.settings, (login_row(i, login.pair.user_id) for i in range(1, 601)))
        seen = login.service.audit.newest_id()
        login.service.users.disable("ada")
        found = login.service.audit.after(seen)
        assert len(found) == 500
        assert len(login.service.audit.after(found[-1].id or 0)) == 102

    def test_of_an_empty_log(self, service: TokenService, settings: Settings) -> None:
        run_sql(settings, "DELETE FROM events")
        assert (service.audit.newest_id(), service.audit.after(0)) == (0, [])


class TestReady:
    @pytest.fixture
    def service(self, settings: Settings) -> Iterator[TokenService]:
        """On the machine's own clock: a server compares it with its own."""
        with TokenService(settings) as service:
            yield service

    def test_it_is(self, service: TokenService) -> None:
        service.ready()

    @pytest.mark.parametrize(
        ("spoil", "error"),
        [
            pytest.param(drop_database, DatabaseMissing, id="the database is gone"),
            pytest.param(
                lambda settings: run_sql(settings, "UPDATE alembic_version SET version_num = '9999'"),
                NotMigrated,
                id="another release's schema",
            ),
            pytest.param(
                lambda settings: run_sql(settings, "DROP TABLE alembic_version"), NotMigrated, id="none"
            ),
        ],
    )
    def test_it_is_not(
        self,
        service: TokenService,
        settings: Settings,
        spoil: Callable[[Settings], object],
        error: type[Exception],
    ) -> None:
        service.ready()
        spoil(settings)
        with pytest.raises(error) as caught:
            service.ready()
        assert isinstance(caught.value, DatabaseError)
