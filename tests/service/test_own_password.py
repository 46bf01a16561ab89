"""The user's own change of the password; and where passwords are hashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import CHEAP, Clock
from tests.service import add_logins, dump, event_types, login_row, run_sql, statements, write_transactions
from tests.service.test_rotate import ELSEWHERE
from tokenctl import Settings, State, TokenPair, TokenService
from tokenctl.errors import Busy, InvalidInput, PasswordRefused, UserNotFound, WrongPassword
from tokenctl.storage.users import User

PASSWORD = "plum orbit kettle sandal"
ANOTHER = "another kettle of sandals"
THIRD = "a third one with otters"


@pytest.fixture
def ada(service: TokenService) -> User:
    return service.create_user("ada", PASSWORD)


@pytest.fixture
def mine(service: TokenService, ada: User) -> TokenPair:
    """The login in which Ada changes her password."""
    return service.issue("ada")


class TestChange:
    def test_ends_every_login_but_the_one_that_authorised_it(
        self, service: TokenService, ada: User, mine: TokenPair, clock: Clock
    ) -> None:
        service.create_user("bob", PASSWORD)
        others, bobs = [service.issue("ada"), service.issue("ada")], service.issue("bob")
        clock.advance(timedelta(minutes=1))
        change = service.users.change_password(
            ada.id, PASSWORD, ANOTHER, keep=mine.token_id, context=ELSEWHERE
        )
        assert (change.revoked, change.user.id) == (2, ada.id)
        assert change.access_exposure_until == others[0].access_expires_at
        assert service.check_access(mine.access_token)
        assert service.rotate(mine.refresh_token)
        assert service.rotate(bobs.refresh_token)
        for pair in others:
            row = service.inspect(pair.token_id).token
            assert (row.revoked_at, row.revoked_by) == (clock(), "ada")
            assert row.revoked_reason == "password changed by the user"
        changed, *ended = service.audit.tail(3)
        assert (changed.type, changed.user_id, changed.actor) == ("user.password", ada.id, "ada")
        assert (changed.reason, changed.data["name"]) == ("password changed by the user", "ada")
        for event in (changed, *ended):
            assert (event.ip, event.data["user_agent"]) == (ELSEWHERE.ip, ELSEWHERE.user_agent)
        assert [event.type for event in ended] == ["token.revoke"] * 2

    def test_from_then_on_the_new_one_counts(self, service: TokenService, ada: User) -> None:
        change = service.users.change_password(ada.id, PASSWORD, ANOTHER, keep=None)
        assert service.users.authenticate("ada", ANOTHER) == change.user
        with pytest.raises(WrongPassword):
            service.users.authenticate("ada", PASSWORD)

    @pytest.mark.parametrize("keep", [None, "rt_" + "0" * 32], ids=["none", "unknown"])
    def test_without_a_login_to_keep_all_end(
        self, service: TokenService, ada: User, mine: TokenPair, keep: str | None
    ) -> None:
        assert service.users.change_password(ada.id, PASSWORD, ANOTHER, keep=keep).revoked == 1
        assert service.inspect(mine.token_id).state is State.REVOKED

    def test_a_dead_login_is_kept_dead(self, service: TokenService, ada: User, mine: TokenPair) -> None:
        service.revoke([mine.token_id], reason="x")
        service.users.change_password(ada.id, PASSWORD, ANOTHER, keep=mine.token_id)
        assert service.inspect(mine.token_id).token.revoked_reason == "x"

    @pytest.mark.parametrize("kept", [1, 1000, 1001, 2500], ids=["first", "end of a chunk", "begin", "last"])
    def test_ends_more_logins_than_a_chunk_holds(
        self, service: TokenService, ada: User, settings: Settings, kept: int
    ) -> None:
        ids = add_logins(settings, (login_row(i, ada.id) for i in range(1, 2501)))
        with statements(service) as sent:
            change = service.users.change_password(ada.id, PASSWORD, ANOTHER, keep=ids[kept - 1])
        assert change.revoked == 2499
        assert event_types(settings).count("token.revoke") == 2499
        assert write_transactions(sent) == 1
        assert [row.id for row in service.sessions(ada.id)] == [ids[kept - 1]]

    def test_a_kept_one_at_the_end_of_the_work_is_no_endless_loop(
        self, service: TokenService, ada: User, mine: TokenPair
    ) -> None:
        assert service.users.change_password(ada.id, PASSWORD, ANOTHER, keep=mine.token_id).revoked == 0

    def test_a_login_that_began_before_does_not_survive_it(
        self, service: TokenService, ada: User, settings: Settings
    ) -> None:
        verified = service.users.authenticate("ada", PASSWORD)
        service.users.change_password(ada.id, PASSWORD, ANOTHER, keep=None)
        before = dump(settings)
        with pytest.raises(WrongPassword):
            service.issue("ada", verified_password_hash=verified.password_hash)
        assert dump(settings) == before


class TestRefusal:
    @pytest.mark.parametrize(
        ("current", "reason"),
        [
            pytest.param(ANOTHER, "wrong_password", id="wrong"),
            pytest.param("", "wrong_password", id="empty"),
            pytest.param("x" * 100_000, "wrong_password", id="endless"),
            pytest.param("\ud800", "wrong_password", id="half a surrogate"),
        ],
    )
    def test_a_wrong_password_leaves_an_event_and_nothing_else(
        self, service: TokenService, ada: User, mine: TokenPair, settings: Settings, current: str, reason: str
    ) -> None:
        before = dump(settings)
        with pytest.raises(WrongPassword) as caught:
            service.users.change_password(ada.id, current, THIRD, keep=mine.token_id, context=ELSEWHERE)
        assert (caught.value.message, caught.value.facts) == ("the current password is wrong", {})
        [added] = [line for line in dump(settings) if line not in before]
        assert not current or current not in added
        event = service.audit.tail()[-1]
        assert (event.type, event.reason, event.user_id) == ("password.failed", reason, ada.id)
        assert (event.ip, event.data["user_agent"]) == (ELSEWHERE.ip, ELSEWHERE.user_agent)

    def test_a_user_without_a_password_has_none_to_change(self, service: TokenService) -> None:
        user = service.create_user("carol")
        with pytest.raises(WrongPassword):
            service.users.change_password(user.id, "", ANOTHER, keep=None)
        assert service.users.get("carol") == user

    @pytest.mark.parametrize("duration", [None, timedelta(hours=1)], ids=["for good", "for a time"])
    def test_a_disabled_user_changes_nothing(
        self, service: TokenService, ada: User, settings: Settings, duration: timedelta | None
    ) -> None:
        service.users.disable("ada", duration=duration)
        before = dump(settings)
        with pytest.raises(WrongPassword) as caught:
            service.users.change_password(ada.id, PASSWORD, ANOTHER, keep=None)
        assert caught.value.message == "the current password is wrong"
        assert len([line for line in dump(settings) if line not in before]) == 1
        assert service.audit.tail()[-1].reason == "user_disabled"

    @pytest.mark.parametrize(
        "new",
        [
            pytest.param("x7!kQ", id="too short"),
            pytest.param("q" * 129, id="too long"),
            pytest.param("passwordpassword", id="common"),
            pytest.param("Ada.Ada.Ada.Ada.", id="the name"),
            pytest.param("half of a surrogate \ud800", id="half a surrogate"),
            pytest.param(PASSWORD, id="the current one"),
        ],
    )
    def test_a_new_password_that_is_refused_changes_nothing(
        self, service: TokenService, ada: User, mine: TokenPair, settings: Settings, new: str
    ) -> None:
        before = dump(settings)
        with pytest.raises(PasswordRefused) as caught:
            service.users.change_password(ada.id, PASSWORD, new, keep=mine.token_id)
        assert new not in str(caught.value)
        assert dump(settings) == before

    def test_the_policy_tells_nothing_to_who_does_not_know_the_current_one(
        self, service: TokenService, ada: User
    ) -> None:
        for new in ("short", ANOTHER):
            with pytest.raises(WrongPassword):
                service.users.change_password(ada.id, ANOTHER, new, keep=None)

    @pytest.mark.parametrize(
        ("changed", "error"),
        [
            pytest.param({"user_id": "usr_" + "0" * 32}, UserNotFound, id="unknown user"),
            pytest.param({"user_id": "ada"}, InvalidInput, id="a user's name"),
            pytest.param({"keep": "nonsense"}, InvalidInput, id="malformed login"),
        ],
    )
    def test_what_the_caller_gets_wrong_changes_nothing(
        self,
        service: TokenService,
        ada: User,
        settings: Settings,
        changed: dict[str, Any],
        error: type[Exception],
    ) -> None:
        before = dump(settings)
        with pytest.raises(error):
            service.users.change_password(
                **{"user_id": ada.id, "current": PASSWORD, "new": ANOTHER, "keep": None, **changed}
            )
        assert dump(settings) == before


# --- in which thread, and when ---------------------------------------------------------------


class Desk(Executor):
    """Does what is handed in at once, notes what it was, and lets a test act when the n-th is done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.after: dict[int, Callable[[], object]] = {}
        self.before: Callable[[], object] = lambda: None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.before()
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        self.done.append(fn.__name__)
        self.after.get(len(self.done), lambda: None)()
        return future


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def hashed(settings: Settings, clock: Clock, desk: Desk, ada: User) -> Iterator[TokenService]:
    """A service that hashes at the desk; Ada's password was hashed elsewhere."""
    with TokenService(settings, clock=clock, passwords=CHEAP, hashing=desk) as service:
        yield service


class TestRaces:
    """Something else happens after the current password was verified (1), or the new one hashed (2)."""

    @pytest.mark.parametrize("moment", [1, 2])
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda users, ada: users.set_password("ada", THIRD), id="by an operator"),
            pytest.param(
                lambda users, ada: users.change_password(ada.id, PASSWORD, THIRD, keep=None), id="by the user"
            ),
            pytest.param(lambda users, ada: users.set_password("ada", PASSWORD), id="to the same"),
        ],
    )
    def test_another_change_wins(
        self,
        service: TokenService,
        hashed: TokenService,
        desk: Desk,
        ada: User,
        change: Callable[..., object],
        moment: int,
    ) -> None:
        desk.after = {moment: lambda: change(service.users, ada)}
        with pytest.raises(WrongPassword):
            hashed.users.change_password(ada.id, PASSWORD, ANOTHER, keep=None)
        with pytest.raises(WrongPassword):
            service.users.authenticate("ada", ANOTHER)
        failed = [event for event in service.audit.tail() if event.type == "password.failed"]
        assert [event.reason for event in failed] == ["password_changed"]

    @pytest.mark.parametrize("moment", [1, 2])
    def test_a_disabled_user_is_too_late(
        self, service: TokenService, hashed: TokenService, desk: Desk, ada: User, moment: int
    ) -> None:
        desk.after = {moment: lambda: service.users.disable("ada")}
        with pytest.raises(WrongPassword):
            hashed.users.change_password(ada.id, PASSWORD, ANOTHER, keep=None)
        assert service.users.get("ada").password_hash == ada.password_hash

    @pytest.mark.parametrize("moment", [1, 2])
    def test_a_login_that_came_in_between_ends(
        self, service: TokenService, hashed: TokenService, desk: Desk, ada: User, moment: int
    ) -> None:
        pairs: list[TokenPair] = []
        desk.after = {moment: lambda: pairs.append(service.login("ada", PASSWORD))}
        assert hashed.users.change_password(ada.id, PASSWORD, ANOTHER, keep=None).revoked == 1
        assert service.inspect(pairs[0].token_id).state is State.REVOKED


class TestHashing:
    USES: tuple[Any, ...] = (
        pytest.param(lambda s, ada: s.create_user("bob", PASSWORD), ["hash"], id="create"),
        pytest.param(lambda s, ada: s.users.set_password("ada", ANOTHER), ["hash"], id="set"),
        pytest.param(lambda s, ada: s.users.authenticate("ada", PASSWORD), ["verify"], id="right"),
        pytest.param(lambda s, ada: s.users.authenticate("ada", ANOTHER), ["verify"], id="wrong"),
        pytest.param(lambda s, ada: s.users.authenticate("nobody", PASSWORD), ["verify"], id="unknown"),
        pytest.param(lambda s, ada: s.login("ada", PASSWORD), ["verify"], id="log in"),
        pytest.param(
            lambda s, ada: s.users.change_password(ada.id, PASSWORD, ANOTHER, keep=None),
            ["verify", "hash"],
            id="change",
        ),
        pytest.param(
            lambda s, ada: s.users.change_password(ada.id, ANOTHER, THIRD, keep=None),
            ["verify"],
            id="change, wrong",
        ),
    )

    @pytest.mark.parametrize(("use", "work"), USES)
    def test_is_done_in_the_executor_while_no_transaction_is_open(
        self,
        hashed: TokenService,
        desk: Desk,
        ada: User,
        settings: Settings,
        use: Callable[..., object],
        work: list[str],
    ) -> None:
        pool = hashed._runtime.storage.engine.pool
        assert isinstance(pool, sa.QueuePool)
        in_use: list[int] = []

        def look() -> None:
            in_use.append(pool.checkedout())
            run_sql(settings, "UPDATE realm SET recovered_at = NULL")  # nor does a writer wait

        desk.before = look
        with suppress(WrongPassword):
            use(hashed, ada)
        assert desk.done == work
        assert in_use == [0] * len(work)

    @pytest.mark.parametrize(("use", "_work"), USES)
    def test_a_full_executor_leaves_nothing(
        self,
        hashed: TokenService,
        desk: Desk,
        ada: User,
        settings: Settings,
        use: Callable[..., object],
        _work: list[str],
    ) -> None:
        def full() -> None:
            raise Busy("no more passwords now")

        desk.before = full
        before = dump(settings)
        with pytest.raises(Busy):
            use(hashed, ada)
        assert dump(settings) == before

    def test_a_pool_of_threads_will_do(self, settings: Settings, clock: Clock, ada: User) -> None:
        with (
            ThreadPoolExecutor(2) as pool,
            TokenService(settings, clock=clock, passwords=CHEAP, hashing=pool) as service,
        ):
            assert service.login("ada", PASSWORD)
            with pytest.raises(WrongPassword):
                service.login("ada", ANOTHER)
