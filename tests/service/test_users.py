"""Users and clients: who may log in, and what ends with the right to."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bcrypt
import pytest

from tests.conftest import CHEAP, Clock
from tests.service import DAY, add_logins, add_rows, dump, event_types, login_row, run_sql
from tokenctl import Context, PasswordPolicy, Settings, State, TokenPair, TokenService
from tokenctl.errors import (
    ClientExists,
    ClientNotFound,
    InvalidInput,
    PasswordRefused,
    TokenctlError,
    TokenNotFound,
    TokenRefused,
    UserDisabled,
    UserExists,
    UserNotFound,
    WrongPassword,
)
from tokenctl.service.users import UserService
from tokenctl.storage.users import User

TICK = timedelta(microseconds=1)
PASSWORD = "plum orbit kettle sandal"
ANOTHER = "another kettle of sandals"


@pytest.fixture
def ada(service: TokenService) -> User:
    return service.create_user("Ada", PASSWORD)


@pytest.fixture
def pair(service: TokenService, ada: User) -> TokenPair:
    return service.issue("ada")


def logins_of(service: TokenService, pairs: list[TokenPair]) -> list[State]:
    return [service.inspect(pair.token_id).state for pair in pairs]


class TestCreate:
    def test_makes_a_user(self, service: TokenService, ada: User, clock: Clock) -> None:
        assert (ada.name, ada.created_at, ada.disabled_at, ada.not_before) == ("Ada", clock(), None, 0)
        assert service.users.get("ada") == service.users.get(ada.id) == ada
        event = service.audit.tail()[-1]
        assert (event.type, event.user_id, event.data) == ("user.create", ada.id, {"name": "Ada"})
        assert ada.password_hash is not None
        assert ada.password_hash.startswith("$argon2id$")
        assert ada.password_hash not in repr(ada)

    @pytest.mark.parametrize("name", ["Ada", "ADA", "ada", "Straße", "STRASSE", "A\u030angstro\u0308m"])
    def test_a_name_is_taken_whatever_its_case(
        self, service: TokenService, ada: User, settings: Settings, name: str
    ) -> None:
        for other in ("strasse", "ångström"):
            service.create_user(other)
        before = dump(settings)
        with pytest.raises(UserExists):
            service.create_user(name)
        assert dump(settings) == before

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("", id="empty"),
            pytest.param("a" * 255, id="too long"),
            pytest.param(" ada", id="a space in front"),
            pytest.param("a\nb", id="a newline"),
            pytest.param("a\0b", id="a NUL"),
            pytest.param("\ud800", id="half a surrogate"),
            pytest.param("usr_ada", id="like an id"),
        ],
    )
    def test_refuses_a_name(self, service: TokenService, settings: Settings, name: str) -> None:
        before = dump(settings)
        with pytest.raises(InvalidInput):
            service.create_user(name)
        assert dump(settings) == before

    @pytest.mark.parametrize(
        "password",
        [
            pytest.param("", id="empty"),
            pytest.param("x7!kQ", id="too short"),
            pytest.param("q" * 129, id="too long"),
            pytest.param("passwordpassword", id="common"),
            pytest.param("Ada.Ada.Ada.Ada.", id="the name"),
            pytest.param("half of a surrogate \ud800", id="half a surrogate"),
        ],
    )
    def test_refuses_a_password(
        self, service: TokenService, settings: Settings, ada: User, password: str
    ) -> None:
        before = dump(settings)
        with pytest.raises(PasswordRefused):
            service.create_user("ada.new", password)
        with pytest.raises(PasswordRefused):
            service.users.set_password("ada", password)
        assert dump(settings) == before

    def test_the_policy_is_the_one_that_was_given(self, settings: Settings, clock: Clock) -> None:
        short = PasswordPolicy(min_length=8, memory_kib=64, iterations=1)
        with TokenService(settings, clock=clock, passwords=short) as service:
            assert service.create_user("ada", "g7kettle")

    def test_refuses_a_hash_that_it_cannot_verify(self, service: TokenService, settings: Settings) -> None:
        before = dump(settings)
        with pytest.raises(InvalidInput):
            service.users.create("ada", password_hash="5f4dcc3b5aa765d61d8327deb882cf99")
        assert dump(settings) == before

    def test_lists_more_than_a_page(self, service: TokenService, settings: Settings) -> None:
        row = {"created_at": 1, "not_before": 0}
        names = [f"user {i:04}" for i in range(2100)]
        rows = [{"id": name.encode().rjust(16), "name": name, "name_key": name, **row} for name in names]
        add_rows(settings, "users", rows)
        assert [user.name for user in service.users.list()] == names
        assert service.users.count() == 2100


class TestAuthenticate:
    @pytest.mark.parametrize("name", ["Ada", "ADA", "ada"])
    def test_accepts_the_right_password(self, service: TokenService, ada: User, name: str) -> None:
        assert service.users.authenticate(name, PASSWORD) == ada

    @pytest.mark.parametrize(
        ("name", "password", "reason"),
        [
            pytest.param("ada", "wrong horse battery", "wrong_password", id="wrong password"),
            pytest.param("ada", "", "wrong_password", id="empty password"),
            pytest.param("ada", PASSWORD + " ", "wrong_password", id="a space too many"),
            pytest.param("ada", PASSWORD.upper(), "wrong_password", id="another case"),
            pytest.param("ada", "x" * 100_000, "wrong_password", id="endless password"),
            pytest.param("ada", "\ud800", "wrong_password", id="password with half a surrogate"),
            pytest.param("s3cret-typed-as-name", PASSWORD, "no_such_user", id="unknown user"),
            pytest.param("usr_" + "0" * 32, PASSWORD, "no_such_user", id="an id"),
            pytest.param("\ud800", PASSWORD, "no_such_user", id="name with half a surrogate"),
            pytest.param("ada\0", PASSWORD, "no_such_user", id="name with a NUL"),
            pytest.param("x" * 100_000, PASSWORD, "no_such_user", id="endless name"),
            pytest.param("nopassword", PASSWORD, "wrong_password", id="user without a password"),
            pytest.param("carol", PASSWORD, "user_disabled", id="disabled user"),
            pytest.param("dave", PASSWORD, "user_disabled", id="user disabled for a time"),
            pytest.param("carol", ANOTHER, "wrong_password", id="disabled user, wrong password"),
        ],
    )
    def test_refusals_look_alike_and_leave_an_event_without_the_typed_name(
        self, service: TokenService, ada: User, settings: Settings, name: str, password: str, reason: str
    ) -> None:
        users = {"ada": ada, "nopassword": service.create_user("nopassword")}
        for disabled, duration in (("carol", None), ("dave", timedelta(days=1))):
            users[disabled] = service.create_user(disabled, PASSWORD)
            service.users.disable(disabled, duration=duration)
        before = dump(settings)
        with pytest.raises(WrongPassword) as caught:
            service.users.authenticate(name, password)
        assert caught.value.message == "the user name or the password is wrong"
        assert (caught.value.facts, caught.value.hint) == ({}, "")
        [added] = [line for line in dump(settings) if line not in before]
        event = service.audit.tail()[-1]
        assert (event.type, event.reason) == ("login.failed", reason)
        assert event.user_id == (users[name].id if name in users else None)
        assert name not in added
        assert password == "" or password not in added

    def test_after_a_time_the_user_is_let_in_again(
        self, service: TokenService, ada: User, clock: Clock
    ) -> None:
        service.users.disable("ada", duration=timedelta(hours=1))
        clock.advance(timedelta(hours=1) - TICK)
        with pytest.raises(WrongPassword):
            service.users.authenticate("ada", PASSWORD)
        clock.advance(TICK)
        assert service.users.authenticate("ada", PASSWORD)


def bcrypt_hash() -> str:
    return bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()


def pbkdf2_hash() -> str:
    """As Django writes it."""
    checksum = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), b"saltsalt", 10)
    return f"pbkdf2_sha256$10$saltsalt${base64.b64encode(checksum).decode()}"


class TestLogin:
    def test_leaves_its_events(self, service: TokenService, settings: Settings) -> None:
        service.create_user("ada", PASSWORD)
        pair = service.login("ada", PASSWORD, context=Context.of(ip="192.0.2.1", user_agent="Browser"))
        with pytest.raises(WrongPassword):
            service.login("ada", ANOTHER, context=Context.of(ip="192.0.2.66", user_agent="Spray/1"))
        assert service.rotate(pair.refresh_token)
        ok, issued, failed = service.audit.tail(3)
        assert [event.type for event in (ok, issued, failed)] == ["login.ok", "token.issue", "login.failed"]
        assert ok.token_id == issued.token_id == pair.token_id
        assert (failed.ip_text, failed.data["user_agent"]) == ("192.0.2.66", "Spray/1")
        assert failed.user_name == "ada"


@pytest.mark.parametrize("older", [bcrypt_hash, pbkdf2_hash])
class TestOlderHash:
    def test_is_upgraded_once(
        self, service: TokenService, settings: Settings, older: Callable[[], str]
    ) -> None:
        old = older()
        service.users.create("ada", password_hash=old)
        first = service.users.authenticate("ada", PASSWORD)
        assert first.password_hash is not None
        assert first.password_hash.startswith("$argon2id$")
        after_first = dump(settings)
        assert service.users.authenticate("ada", PASSWORD) == first
        assert dump(settings) == after_first
        assert service.issue("ada", verified_password_hash=first.password_hash)

    def test_is_not_upgraded_by_a_wrong_password(
        self, service: TokenService, older: Callable[[], str]
    ) -> None:
        created = service.users.create("ada", password_hash=older())
        with pytest.raises(WrongPassword):
            service.users.authenticate("ada", ANOTHER)
        assert service.users.get("ada") == created

    def test_an_upgrade_keeps_the_logins(self, service: TokenService, older: Callable[[], str]) -> None:
        service.users.create("ada", password_hash=older())
        pair = service.issue("ada")
        service.users.authenticate("ada", PASSWORD)
        assert service.rotate(pair.refresh_token)

    def test_a_password_change_during_the_login_wins(
        self, service: TokenService, settings: Settings, clock: Clock, older: Callable[[], str]
    ) -> None:
        """The change comes between the check of the old password and the upgrade of its hash."""
        service.users.create("ada", password_hash=older())

        def clock_during_which_it_changes() -> int:
            if service.users.get("ada").password_hash == old:
                service.users.set_password("ada", ANOTHER)
            return clock()

        old = service.users.get("ada").password_hash
        with TokenService(settings, clock=clock_during_which_it_changes, passwords=CHEAP) as slow:

            def log_in() -> None:
                user = slow.users.authenticate("ada", PASSWORD)
                slow.issue("ada", verified_password_hash=user.password_hash)

            with pytest.raises(WrongPassword):
                log_in()
        assert service.users.authenticate("ada", ANOTHER)
        assert event_types(settings).count("token.issue") == 0

    def test_two_logins_at_once_both_succeed(
        self, service: TokenService, settings: Settings, clock: Clock, older: Callable[[], str]
    ) -> None:
        """The other one upgrades the hash between our check of it and our upgrade."""
        old = service.users.create("ada", password_hash=older()).password_hash

        def clock_during_which_it_is_upgraded() -> int:
            if service.users.get("ada").password_hash == old:
                service.users.authenticate("ada", PASSWORD)
            return clock()

        with TokenService(settings, clock=clock_during_which_it_is_upgraded, passwords=CHEAP) as slow:
            user = slow.users.authenticate("ada", PASSWORD)
            assert slow.issue("ada", verified_password_hash=user.password_hash)


class TestDisable:
    def test_for_good_revokes_every_login_in_the_same_transaction(
        self, service: TokenService, ada: User, settings: Settings, clock: Clock
    ) -> None:
        service.create_user("bob")
        mine, other = [service.issue("ada"), service.issue("ada")], service.issue("bob")
        clock.advance(timedelta(minutes=1))
        change = service.users.disable("ada", reason="left", actor="admin")
        assert (change.revoked, change.user.disabled_at, change.user.disabled_until) == (2, clock(), None)
        assert logins_of(service, [*mine, other]) == [State.REVOKED, State.REVOKED, State.LIVE]
        assert event_types(settings)[-3:] == ["user.disable", "token.revoke", "token.revoke"]
        rows = run_sql(settings, "SELECT at, reason, actor FROM events ORDER BY id DESC LIMIT 3")
        assert rows == [(clock(), "left", "admin")] * 3
        with pytest.raises(UserDisabled):
            service.issue("ada")

    def test_for_a_time_revokes_nothing_and_ends_by_itself(
        self, service: TokenService, pair: TokenPair, clock: Clock
    ) -> None:
        change = service.users.disable("ada", duration=timedelta(hours=24))
        assert (change.revoked, change.user.disabled_until) == (0, clock() + DAY)
        assert logins_of(service, [pair]) == [State.BLOCKED]
        clock.advance(timedelta(hours=24) - TICK)
        with pytest.raises(TokenRefused):
            service.rotate(pair.refresh_token)
        clock.advance(TICK)
        assert service.rotate(pair.refresh_token)
        assert service.issue("ada")

    def test_for_good_after_a_time(self, service: TokenService, pair: TokenPair, clock: Clock) -> None:
        service.users.disable("ada", duration=timedelta(hours=1))
        assert service.users.disable("ada").revoked == 1
        clock.advance(timedelta(hours=2))
        with pytest.raises(UserDisabled):
            service.issue("ada")

    def test_enable_lets_in_again_and_revives_nothing(
        self, service: TokenService, pair: TokenPair, settings: Settings
    ) -> None:
        service.users.disable("ada")
        change = service.users.enable("ada")
        assert (change.revoked, change.user.disabled_at) == (0, None)
        assert event_types(settings)[-1] == "user.enable"
        assert logins_of(service, [pair]) == [State.REVOKED]
        assert service.users.authenticate("ada", PASSWORD)
        assert service.issue("ada")

    def test_ends_more_logins_than_a_chunk_holds(
        self, service: TokenService, ada: User, settings: Settings
    ) -> None:
        add_logins(settings, (login_row(i, ada.id) for i in range(1, 2502)))
        assert service.users.disable("ada").revoked == 2501
        assert event_types(settings).count("token.revoke") == 2501


class TestDelete:
    def test_takes_the_logins_along_and_keeps_the_events(
        self, service: TokenService, ada: User, pair: TokenPair, settings: Settings
    ) -> None:
        service.create_user("bob")
        other = service.issue("bob")
        dead = service.issue("ada")
        service.revoke([dead.token_id], reason="before")
        events = event_types(settings)
        change = service.users.delete("ada", reason="asked for", actor="admin")
        assert (change.user, change.revoked) == (ada, 1)
        assert event_types(settings) == [*events, "token.revoke", "user.delete"]
        [(user_id, reason, data)] = run_sql(
            settings, "SELECT user_id, reason, data FROM events ORDER BY id DESC LIMIT 1"
        )
        assert (f"usr_{user_id.hex()}", reason) == (ada.id, "asked for")
        assert json.loads(data)["name"] == "Ada"
        for gone in (pair, dead):
            with pytest.raises(TokenNotFound):
                service.inspect(gone.token_id)
        with pytest.raises(TokenRefused) as caught:
            service.rotate(pair.refresh_token)
        assert caught.value.reason == "not_found"
        assert service.rotate(other.refresh_token)
        with pytest.raises(UserNotFound):
            service.users.get("ada")

    def test_frees_the_name(self, service: TokenService, ada: User) -> None:
        service.users.delete("ada")
        assert service.create_user("ADA").id != ada.id


class TestSetPassword:
    def test_ends_every_login(
        self, service: TokenService, ada: User, settings: Settings, clock: Clock
    ) -> None:
        service.create_user("bob", PASSWORD)
        mine, other = [service.issue("ada"), service.issue("ada")], service.issue("bob")
        change = service.users.set_password("ADA", ANOTHER, actor="admin")
        assert change.revoked == 2
        assert logins_of(service, [*mine, other]) == [State.REVOKED, State.REVOKED, State.LIVE]
        assert sorted(event_types(settings)[-3:]) == ["token.revoke", "token.revoke", "user.password"]
        assert service.users.authenticate("ada", ANOTHER) == change.user
        with pytest.raises(WrongPassword):
            service.users.authenticate("ada", PASSWORD)

    def test_a_login_that_began_before_does_not_survive_it(
        self, service: TokenService, ada: User, settings: Settings
    ) -> None:
        verified = service.users.authenticate("ada", PASSWORD)
        service.users.set_password("ada", ANOTHER)
        before = dump(settings)
        with pytest.raises(WrongPassword):
            service.issue("ada", verified_password_hash=verified.password_hash)
        assert dump(settings) == before

    def test_nor_when_the_new_password_is_the_old_one(self, service: TokenService, ada: User) -> None:
        verified = service.users.authenticate("ada", PASSWORD)
        service.users.set_password("ada", PASSWORD)
        with pytest.raises(WrongPassword):
            service.issue("ada", verified_password_hash=verified.password_hash)

    def test_does_not_enable(self, service: TokenService, ada: User) -> None:
        service.users.disable("ada")
        service.users.set_password("ada", ANOTHER)
        with pytest.raises(WrongPassword):
            service.users.authenticate("ada", ANOTHER)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda users, name: users.get(name), id="get"),
        pytest.param(lambda users, name: users.disable(name), id="disable"),
        pytest.param(lambda users, name: users.enable(name), id="enable"),
        pytest.param(lambda users, name: users.delete(name), id="delete"),
        pytest.param(lambda users, name: users.set_password(name, PASSWORD), id="set_password"),
    ],
)
@pytest.mark.parametrize(
    ("name", "error"),
    [
        pytest.param("nobody", UserNotFound, id="unknown name"),
        pytest.param("usr_" + "0" * 32, UserNotFound, id="unknown id"),
        pytest.param("usr_x", InvalidInput, id="malformed id"),
        pytest.param("", TokenctlError, id="empty"),
        pytest.param("\ud800", TokenctlError, id="half a surrogate"),
    ],
)
def test_a_user_that_is_not_there(
    service: TokenService,
    ada: User,
    settings: Settings,
    use: Callable[[UserService, str], object],
    name: str,
    error: type[Exception],
) -> None:
    before = dump(settings)
    with pytest.raises(error):
        use(service.users, name)
    assert dump(settings) == before


class TestClients:
    def test_create_list_delete(self, service: TokenService, settings: Settings, clock: Clock) -> None:
        clock.advance(timedelta(hours=1))
        assert service.clients.create("app").created_at == clock()
        service.clients.create("App")
        assert [client.id for client in service.clients.list()] == ["App", "app", "default"]
        service.clients.delete("app")
        assert [client.id for client in service.clients.list()] == ["App", "default"]
        assert event_types(settings) == ["client.create", "client.create", "client.delete"]

    @pytest.mark.parametrize(
        ("client_id", "error"),
        [
            pytest.param("app", ClientExists, id="duplicate"),
            pytest.param("default", ClientExists, id="the default"),
            pytest.param("", InvalidInput, id="empty"),
            pytest.param("two words", InvalidInput, id="a space"),
            pytest.param("é", InvalidInput, id="not ASCII"),
            pytest.param("a" * 129, InvalidInput, id="too long"),
        ],
    )
    def test_refuses_to_create(
        self, service: TokenService, settings: Settings, client_id: str, error: type[Exception]
    ) -> None:
        service.clients.create("app")
        before = dump(settings)
        with pytest.raises(error):
            service.clients.create(client_id)
        assert dump(settings) == before

    @pytest.mark.parametrize(
        ("client_id", "error"),
        [
            pytest.param("nothing", ClientNotFound, id="unknown"),
            pytest.param("default", InvalidInput, id="the default"),
            pytest.param("app", InvalidInput, id="has logins"),
            pytest.param("\ud800", TokenctlError, id="half a surrogate"),
        ],
    )
    def test_refuses_to_delete(
        self,
        service: TokenService,
        settings: Settings,
        ada: User,
        client_id: str,
        error: type[Exception],
    ) -> None:
        service.clients.create("app")
        pair = service.issue("ada", client_id="app")
        service.revoke([pair.token_id], reason="dead, and not purged")
        before = dump(settings)
        with pytest.raises(error):
            service.clients.delete(client_id)
        assert dump(settings) == before


@pytest.mark.parametrize(
    "options",
    [{"client_id": ""}, {"client_id": "nobody"}, {"scope": '"'}],
    ids=["client", "unknown", "scope"],
)
def test_a_refusal_tells_nothing_of_the_password(service: TokenService, options: dict[str, Any]) -> None:
    service.create_user("ada", PASSWORD)
    said = []
    for password in (PASSWORD, ANOTHER):
        with pytest.raises(TokenctlError) as caught:
            service.login("ada", password, **options)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]
    assert said[0][0] is not WrongPassword
