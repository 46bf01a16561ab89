"""The routes under /auth: what each answers, what it changes, and every refusal.

All tests share one server. Each has a user of its own, and the clock only goes forwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.http.live import PASSWORD, Live, Reply, running, shared, somebody
from tests.service import run_sql
from tests.service.test_rotate import forged
from tokenctl import Context, Settings
from tokenctl.core.token_string import parse_unverified
from tokenctl.errors import TokenctlError, UserDisabled, UserNotFound, WrongPassword
from tokenctl.http.problems import problem

NEW_PASSWORD = "nine herons paint by noon"
GRACE = timedelta(seconds=30)
MALFORMED = "tkr1_" + "A" * 84
USER_ID = re.compile("usr_[0-9a-f]{32}")
TOKEN_ID = re.compile("rt_[0-9a-f]{32}")


@pytest.fixture(scope="module")
def live(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with shared(new_database, tmp_path_factory.mktemp("auth")) as live:
        live.service.clients.create("app")
        live.service.clients.create("api", introspect=True)
        yield live


@pytest.fixture
def user(live: Live) -> str:
    """The name of a user whose password is PASSWORD."""
    return live.service.create_user(somebody(), PASSWORD).name


@pytest.fixture
def pair(live: Live, user: str) -> dict[str, Any]:
    """What a login of that user, with a scope, was answered."""
    return live.log_in(user, scope="read write")


def refresh(live: Live, string: str, **fields: Any) -> Reply:
    return live.post("/auth/refresh", {"refresh_token": string, **fields})


def refreshed(live: Live, string: str, **fields: Any) -> dict[str, Any]:
    reply = refresh(live, string, **fields)
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json
    return found


def token_id(string: str) -> str:
    return parse_unverified(string).token_id


def me(live: Live, pair: dict[str, Any]) -> int:
    return live.get("/auth/me", pair["access_token"]).status


def anonymous(reply: Reply) -> tuple[int, bytes, dict[str, str]]:
    """The answer as it came, without what differs from request to request."""
    body = re.sub(rb'"request_id":"[0-9a-f]+"', b"", reply.body)
    headers = {name: value for name, value in reply.headers.items() if name not in ("x-request-id", "date")}
    return reply.status, body, headers


def demand_problem(reply: Reply, status: int, code: str) -> None:
    problem = reply.json
    assert (reply.status, problem["status"], problem["code"]) == (status, status, code)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert set(problem) - {"errors"} == {"title", "status", "code", "detail", "request_id"}


# --- the pair ------------------------------------------------------------------------------

FIELDS = {
    "access_token": str,
    "token_type": str,
    "expires_in": int,
    "refresh_expires_in": int,
    "scope": str,
    "user": dict,
    "refresh_token": str,
}


def demand_pair(reply: Reply, status: int) -> dict[str, Any]:
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-request-id"]
    pair: dict[str, Any] = reply.json
    assert {name: type(value) for name, value in pair.items()} == FIELDS
    assert (pair["token_type"], pair["expires_in"]) == ("Bearer", 600)
    assert pair["access_token"].count(".") == 2
    assert re.fullmatch("tkr1_[A-Za-z0-9_-]{84}", pair["refresh_token"])
    assert USER_ID.fullmatch(pair["user"]["id"])
    return pair


def test_a_login_is_answered_with_a_pair_and_the_user(live: Live, user: str) -> None:
    reply = live.post("/auth/login", {"username": user, "password": PASSWORD, "scope": "read write"})
    pair = demand_pair(reply, 200)
    assert (pair["scope"], pair["refresh_expires_in"]) == ("read write", 30 * 86_400)
    assert pair["user"] == {"id": live.service.users.get(user).id, "name": user}


def test_a_registration_makes_the_user_and_logs_it_in(live: Live) -> None:
    name = somebody()
    pair = demand_pair(live.post("/auth/register", {"username": name, "password": PASSWORD}), 201)
    assert pair["user"] == {"id": live.service.users.get(name).id, "name": name}
    assert pair["scope"] == ""
    assert me(live, pair) == 200
    assert live.log_in(name)["user"] == pair["user"]


def test_a_refresh_is_answered_with_the_successor_and_the_user_s_id(live: Live, pair: dict[str, Any]) -> None:
    live.clock.advance(timedelta(minutes=5))
    after = demand_pair(refresh(live, pair["refresh_token"]), 200)
    assert after["refresh_token"] != pair["refresh_token"]
    assert after["access_token"] != pair["access_token"]
    assert after["user"] == {"id": pair["user"]["id"]}
    assert after["scope"] == "read write"
    # The login does not live longer for being used.
    assert after["refresh_expires_in"] == pair["refresh_expires_in"] - 300
    assert me(live, after) == 200


def test_the_name_is_compared_without_case(live: Live, user: str) -> None:
    assert live.log_in(user.upper())["user"]["name"] == user


# --- retry and reuse -----------------------------------------------------------------------


@pytest.mark.parametrize("late", [timedelta(), GRACE], ids=["at once", "at the last moment"])
def test_a_retry_in_the_grace_gets_the_same_string(live: Live, pair: dict[str, Any], late: timedelta) -> None:
    first = refreshed(live, pair["refresh_token"])
    live.clock.advance(late)
    again = refreshed(live, pair["refresh_token"])
    assert again["refresh_token"] == first["refresh_token"]
    assert again["expires_in"] == first["expires_in"] - late.seconds
    assert me(live, again) == 200


@pytest.mark.parametrize("after", ["the grace", "its successor was used"])
def test_a_spent_string_ends_the_login_for_everybody(live: Live, pair: dict[str, Any], after: str) -> None:
    pairs = [pair, refreshed(live, pair["refresh_token"])]
    if after == "the grace":
        live.clock.advance(GRACE + timedelta(microseconds=1))
    else:
        pairs.append(refreshed(live, pairs[-1]["refresh_token"]))
    assert me(live, pairs[-1]) == 200
    demand_problem(refresh(live, pair["refresh_token"]), 401, "invalid_grant")
    for each in pairs:
        demand_problem(refresh(live, each["refresh_token"]), 401, "invalid_grant")
        demand_problem(live.get("/auth/me", each["access_token"]), 401, "invalid_token")
    assert live.service.inspect(token_id(pair["refresh_token"])).token.revoked_reason == "reuse"


def test_another_client_s_string_is_refused_and_stays_untouched(live: Live, user: str) -> None:
    pair = live.log_in(user, client_id="app")
    before = live.service.inspect(token_id(pair["refresh_token"])).token
    for fields in ({}, {"client_id": "default"}, {"client_id": "nobody"}, {"client_id": "api"}):
        demand_problem(refresh(live, pair["refresh_token"], **fields), 401, "invalid_grant")
    assert live.service.inspect(token_id(pair["refresh_token"])).token == before
    assert refreshed(live, pair["refresh_token"], client_id="app")


# --- scope ---------------------------------------------------------------------------------


def test_narrowing_the_scope_affects_that_access_token_only(live: Live, pair: dict[str, Any]) -> None:
    narrow = refreshed(live, pair["refresh_token"], scope="read")
    assert narrow["scope"] == "read"
    assert live.get("/auth/me", narrow["access_token"]).json["scope"] == "read"
    assert refreshed(live, narrow["refresh_token"])["scope"] == "read write"


@pytest.mark.parametrize(
    ("scope", "code"),
    [
        pytest.param("admin", "scope.invalid", id="another one"),
        pytest.param("read admin", "scope.invalid", id="wider"),
        pytest.param('a"b', "input.invalid", id="malformed"),
        pytest.param("read  write", "input.invalid", id="two spaces"),
        pytest.param("read\n", "scope.invalid", id="a newline"),
    ],
)
def test_a_wrong_scope_is_told_and_spends_nothing(
    live: Live, pair: dict[str, Any], scope: str, code: str
) -> None:
    demand_problem(refresh(live, pair["refresh_token"], scope=scope), 422, code)
    assert parse_unverified(refreshed(live, pair["refresh_token"])["refresh_token"]).generation == 1


# --- refused refreshes look alike -----------------------------------------------------------


def unknown(live: Live, pair: dict[str, Any], user: str) -> str:
    live.service.users.delete(user)
    return str(pair["refresh_token"])


def revoked(live: Live, pair: dict[str, Any], user: str) -> str:
    live.service.revoke([token_id(pair["refresh_token"])], reason="test")
    return str(pair["refresh_token"])


def expired(live: Live, _: dict[str, Any], user: str) -> str:
    string = live.service.issue(user, ttl=timedelta(hours=1)).refresh_token
    live.clock.advance(timedelta(hours=1))
    return string


def idle(live: Live, pair: dict[str, Any], user: str) -> str:
    live.clock.advance(timedelta(days=14))
    return str(pair["refresh_token"])


def superseded(live: Live, pair: dict[str, Any], user: str) -> str:
    live.service.reissue(token_id(pair["refresh_token"]))
    return str(pair["refresh_token"])


def cut_off(live: Live, pair: dict[str, Any], user: str) -> str:
    run_sql(live.service.settings, "UPDATE users SET not_before = ? WHERE name = ?", live.clock(), user)
    return str(pair["refresh_token"])


def disabled(live: Live, pair: dict[str, Any], user: str) -> str:
    live.service.users.disable(user, duration=timedelta(hours=1))
    return str(pair["refresh_token"])


def reused(live: Live, pair: dict[str, Any], user: str) -> str:
    refreshed(live, refreshed(live, pair["refresh_token"])["refresh_token"])
    return str(pair["refresh_token"])


REFUSED: dict[str, Callable[[Live, dict[str, Any], str], str]] = {
    "malformed": lambda *_: MALFORMED,
    "no token at all": lambda *_: "\0 ∅",
    "forged": lambda live, pair, user: forged(pair["refresh_token"]),
    "another client's": lambda live, pair, user: str(live.log_in(user, client_id="app")["refresh_token"]),
    "unknown": unknown,
    "revoked": revoked,
    "expired": expired,
    "idle": idle,
    "superseded": superseded,
    "cut off": cut_off,
    "the user is disabled": disabled,
    "reuse": reused,
}


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind) for kind in REFUSED])
def test_all_refusals_look_alike(live: Live, pair: dict[str, Any], user: str, kind: str) -> None:
    reply = refresh(live, REFUSED[kind](live, pair, user))
    demand_problem(reply, 401, "invalid_grant")
    assert reply.headers["www-authenticate"] == 'Bearer realm="tokenctl", error="invalid_token"'
    assert anonymous(reply) == anonymous(refresh(live, "anything else"))


def test_a_database_behind_the_token_is_no_refusal(live: Live, pair: dict[str, Any]) -> None:
    newest = refreshed(live, refreshed(live, pair["refresh_token"])["refresh_token"])["refresh_token"]
    raw_id = bytes.fromhex(token_id(newest).removeprefix("rt_"))
    go_back = "UPDATE refresh_tokens SET generation = ? WHERE id = ?"
    run_sql(live.service.settings, go_back, 0, raw_id)
    reply = refresh(live, newest)
    demand_problem(reply, 503, "unavailable")
    assert 1 <= int(reply.headers["retry-after"]) <= 7
    assert "www-authenticate" not in reply.headers
    run_sql(live.service.settings, go_back, 3, raw_id)
    assert refreshed(live, newest)


# --- logging out ---------------------------------------------------------------------------


def log_out(live: Live, string: str, **fields: Any) -> Reply:
    return live.post("/auth/logout", {"refresh_token": string, **fields})


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_logging_out_takes_a_string_of_any_generation(
    live: Live, pair: dict[str, Any], generation: int
) -> None:
    pairs = [pair]
    for _ in range(2):
        pairs.append(refreshed(live, pairs[-1]["refresh_token"]))
    reply = log_out(live, pairs[generation]["refresh_token"])
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["cache-control"] == "no-store"
    assert "content-length" not in reply.headers
    assert reply.headers["x-request-id"]
    assert [me(live, each) for each in pairs] == [401, 401, 401]
    demand_problem(refresh(live, pairs[-1]["refresh_token"]), 401, "invalid_grant")
    assert live.service.inspect(token_id(pair["refresh_token"])).token.revoked_reason == "logout"


def test_logging_out_ends_this_login_only_and_twice_is_fine(
    live: Live, user: str, pair: dict[str, Any]
) -> None:
    other = live.log_in(user)
    assert [log_out(live, pair["refresh_token"]).status for _ in range(2)] == [204, 204]
    assert me(live, other) == 200


def test_logging_out_everywhere(live: Live, user: str, pair: dict[str, Any]) -> None:
    others = [live.log_in(user), live.log_in(user, client_id="app")]
    assert log_out(live, pair["refresh_token"], all=True).status == 204
    assert [me(live, each) for each in (pair, *others)] == [401, 401, 401]
    assert live.log_in(user)  # which says nothing against a new one


@pytest.mark.parametrize("kind", ["malformed", "forged", "another client's", "superseded"])
def test_what_is_no_string_of_ours_logs_nobody_out(
    live: Live, pair: dict[str, Any], user: str, kind: str
) -> None:
    reply = log_out(live, REFUSED[kind](live, pair, user))
    demand_problem(reply, 401, "invalid_grant")
    assert anonymous(reply) == anonymous(refresh(live, "anything else"))
    assert me(live, pair) == 200


def test_a_dead_login_cannot_end_the_others(live: Live, user: str, pair: dict[str, Any]) -> None:
    other = live.log_in(user)
    log_out(live, pair["refresh_token"])
    demand_problem(log_out(live, pair["refresh_token"], all=True), 401, "invalid_grant")
    assert me(live, other) == 200


# --- /auth/me ------------------------------------------------------------------------------


def test_me_is_who_the_access_token_is_of(live: Live, user: str, pair: dict[str, Any]) -> None:
    reply = live.get("/auth/me", pair["access_token"])
    assert reply.json == {
        "id": pair["user"]["id"],
        "name": user,
        "client_id": "default",
        "scope": "read write",
        "session_id": token_id(pair["refresh_token"]),
        "expires_at": live.clock() // 1_000_000 + 600,
    }
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("kind", ["unknown", "revoked", "idle", "cut off", "the user is disabled"])
def test_an_access_token_ends_with_its_login(live: Live, pair: dict[str, Any], user: str, kind: str) -> None:
    REFUSED[kind](live, pair, user)
    reply = live.get("/auth/me", pair["access_token"])
    demand_problem(reply, 401, "invalid_token")
    assert reply.headers["www-authenticate"] == 'Bearer realm="tokenctl", error="invalid_token"'
    assert anonymous(reply) == anonymous(live.get("/auth/me", "x.y.z"))


def test_an_access_token_ends_by_itself(live: Live, pair: dict[str, Any]) -> None:
    live.clock.advance(timedelta(seconds=599))
    assert me(live, pair) == 200
    live.clock.advance(timedelta(seconds=1))
    assert me(live, pair) == 401


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic YTpi", "Token x"],
    ids=["none", "empty", "no token", "a space", "Basic", "another scheme"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/auth/me"), ("GET", "/auth/sessions"), ("DELETE", "/auth/sessions/rt_1")],
)
def test_without_credentials_the_challenge_has_no_error(
    live: Live, method: str, path: str, header: str | None
) -> None:
    reply = live.send(method, path, None, {} if header is None else {"Authorization": header})
    demand_problem(reply, 401, "credentials.missing")
    assert reply.headers["www-authenticate"] == 'Bearer realm="tokenctl"'


def test_a_refresh_token_is_no_access_token(live: Live, pair: dict[str, Any]) -> None:
    demand_problem(live.get("/auth/me", pair["refresh_token"]), 401, "invalid_token")


def test_the_scheme_s_case_does_not_matter(live: Live, pair: dict[str, Any]) -> None:
    headers = {"Authorization": f"bEARER  {pair['access_token']}"}
    assert live.send("GET", "/auth/me", None, headers).status == 200


# --- sessions ------------------------------------------------------------------------------


def sessions(live: Live, pair: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = live.get("/auth/sessions", pair["access_token"]).json["sessions"]
    return found


def test_sessions_are_the_user_s_live_logins_the_last_used_first(
    live: Live, user: str, pair: dict[str, Any]
) -> None:
    live.log_in()  # somebody else's
    dead = live.log_in(user)
    log_out(live, dead["refresh_token"])
    live.clock.advance(timedelta(minutes=1))
    app = live.post(
        "/auth/login",
        {"username": user, "password": PASSWORD, "client_id": "app"},
        user_agent="Phone/1",
    ).json
    now = live.clock() // 1_000_000
    assert sessions(live, pair) == [
        {
            "id": token_id(app["refresh_token"]),
            "client_id": "app",
            "scope": "",
            "current": False,
            "created_at": now,
            "last_used_at": now,
            "expires_at": now + 30 * 86_400,
            "ip": "127.0.0.1",
            "user_agent": "Phone/1",
        },
        {
            "id": token_id(pair["refresh_token"]),
            "client_id": "default",
            "scope": "read write",
            "current": True,
            "created_at": now - 60,
            "last_used_at": now - 60,
            "expires_at": now - 60 + 30 * 86_400,
            "ip": "127.0.0.1",
            "user_agent": None,
        },
    ]
    assert [each["current"] for each in sessions(live, app)] == [True, False]


def test_a_user_ends_a_session_of_its_own(live: Live, user: str, pair: dict[str, Any]) -> None:
    other = live.log_in(user)
    path = f"/auth/sessions/{token_id(other['refresh_token'])}"
    replies = [live.delete(path, pair["access_token"], user_agent="Phone/1") for _ in range(2)]
    assert [(reply.status, reply.body) for reply in replies] == [(204, b""), (204, b"")]
    assert (me(live, other), me(live, pair)) == (401, 200)
    event = live.service.inspect(token_id(other["refresh_token"])).events[-1]
    assert (event.reason, event.actor, event.ip_text) == ("session ended", user, "127.0.0.1")


def test_a_user_ends_the_session_that_asks(live: Live, pair: dict[str, Any]) -> None:
    path = f"/auth/sessions/{token_id(pair['refresh_token'])}"
    assert live.delete(path, pair["access_token"]).status == 204
    assert me(live, pair) == 401


def test_another_user_s_session_is_not_there(live: Live, pair: dict[str, Any]) -> None:
    other = live.log_in(somebody())
    missing = [
        token_id(other["refresh_token"]),
        "rt_" + "0" * 32,
        "rt_1",
        "x",
        "%00",
        "%F0%9F%A6%A6",
        "%FF%FE",
        pair["refresh_token"],
    ]
    replies = [live.delete(f"/auth/sessions/{each}", pair["access_token"]) for each in missing]
    for reply in replies:
        demand_problem(reply, 404, "token.not_found")
        assert anonymous(reply) == anonymous(replies[0])
    assert (me(live, other), me(live, pair)) == (200, 200)


# --- the password --------------------------------------------------------------------------


def change(live: Live, pair: dict[str, Any], current: str, new: str) -> Reply:
    fields = {"current_password": current, "new_password": new}
    return live.post("/auth/password", fields, pair["access_token"])


def test_a_new_password_ends_every_login_but_this_one(live: Live, user: str, pair: dict[str, Any]) -> None:
    others = [live.log_in(user), live.log_in(user, client_id="app")]
    reply = change(live, pair, PASSWORD, NEW_PASSWORD)
    assert (reply.status, reply.body) == (204, b"")
    assert [me(live, each) for each in (pair, *others)] == [200, 401, 401]
    for other, client_id in zip(others, ("default", "app"), strict=True):
        reply = refresh(live, other["refresh_token"], client_id=client_id)
        demand_problem(reply, 401, "invalid_grant")
    assert refreshed(live, pair["refresh_token"])
    old, new = (
        live.post("/auth/login", {"username": user, "password": each}) for each in (PASSWORD, NEW_PASSWORD)
    )
    assert (old.status, new.status) == (401, 200)


def test_a_wrong_current_password_changes_nothing(live: Live, user: str, pair: dict[str, Any]) -> None:
    other = live.log_in(user)
    reply = change(live, pair, NEW_PASSWORD, "eleven newts hum in rain")
    demand_problem(reply, 403, "password.wrong")
    assert "www-authenticate" not in reply.headers  # no refresh will help
    assert [me(live, pair), me(live, other)] == [200, 200]
    assert live.log_in(user)


@pytest.mark.parametrize(
    "new",
    [
        pytest.param("qx7", id="short"),
        pytest.param("password password", id="common"),
        pytest.param("x7" * 65, id="long"),
        pytest.param(PASSWORD, id="the same"),
    ],
)
def test_a_weak_new_password_is_refused(live: Live, pair: dict[str, Any], user: str, new: str) -> None:
    reply = change(live, pair, PASSWORD, new)
    demand_problem(reply, 422, "password.refused")
    assert new not in reply.json["detail"]
    assert live.log_in(user)


def test_a_password_is_changed_with_a_live_access_token_only(live: Live, pair: dict[str, Any]) -> None:
    log_out(live, pair["refresh_token"])
    demand_problem(change(live, pair, PASSWORD, NEW_PASSWORD), 401, "invalid_token")
    fields = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    demand_problem(live.post("/auth/password", fields), 401, "credentials.missing")


def test_the_audit_knows_from_where_a_password_was_changed(
    live: Live, user: str, pair: dict[str, Any]
) -> None:
    change(live, pair, "wrong", NEW_PASSWORD)
    change(live, pair, PASSWORD, NEW_PASSWORD)
    found = [
        (event.type, event.ip_text)
        for event in live.service.audit.tail(20)
        if event.user_id == pair["user"]["id"] and event.type.startswith(("password", "user.password"))
    ]
    assert found == [("password.failed", "127.0.0.1"), ("user.password", "127.0.0.1")]


# --- refused logins ------------------------------------------------------------------------


def test_refused_logins_look_alike(live: Live, user: str) -> None:
    def log_in(name: str, password: str = PASSWORD) -> Reply:
        return live.post("/auth/login", {"username": name, "password": password})

    no_password, disabled = somebody(), live.service.create_user(somebody(), PASSWORD).name
    live.service.create_user(no_password)
    live.service.users.disable(disabled)
    first = log_in(user, "wrong")
    demand_problem(first, 401, "password.wrong")
    assert first.headers["www-authenticate"] == 'Bearer realm="tokenctl"'
    assert user not in first.json["detail"]
    for reply in (
        log_in(user, PASSWORD + " "),
        log_in(user, PASSWORD.upper()),
        log_in(user, "x" * 4096),
        log_in(somebody()),
        log_in("nobody can be\0called that"),
        log_in(live.service.users.get(user).id),
        log_in(no_password),
        log_in(disabled),
        log_in(disabled, "wrong"),
    ):
        assert anonymous(reply) == anonymous(first)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(UserDisabled("the user ada is disabled"), id="disabled"),
        pytest.param(UserNotFound("there is no user usr_1"), id="deleted"),
        pytest.param(WrongPassword("the password was changed during the login"), id="changed"),
    ],
)
def test_what_happens_while_a_password_is_checked_is_not_told(error: TokenctlError) -> None:
    wrong = WrongPassword("the user name or the password is wrong")
    assert problem(error, "id") == problem(wrong, "id")
    assert problem(error, "id")[0] == 401


@pytest.mark.parametrize("path", ["/auth/login", "/auth/register"])
@pytest.mark.parametrize(
    ("client_id", "code"),
    [
        pytest.param("nobody", "client.not_found", id="unknown"),
        pytest.param("api", "input.invalid", id="has a secret"),
        pytest.param("a b", "input.invalid", id="malformed"),
        pytest.param("default\n", "input.invalid", id="a newline"),
    ],
)
def test_a_login_to_a_client_that_is_none_is_refused_whatever_the_password(
    live: Live, user: str, path: str, client_id: str, code: str
) -> None:
    name = somebody() if path == "/auth/register" else user
    replies = [
        live.post(path, {"username": name, "password": password, "client_id": client_id})
        for password in (PASSWORD, NEW_PASSWORD)
    ]
    for reply in replies:
        demand_problem(reply, 422, code)
    assert anonymous(replies[0]) == anonymous(replies[1])
    if path == "/auth/register":  # and no user was made for it
        assert live.post("/auth/login", {"username": name, "password": PASSWORD}).status == 401
        assert live.post("/auth/register", {"username": name, "password": PASSWORD}).status == 201


# --- refused registrations -----------------------------------------------------------------


def test_a_name_that_is_taken_is_told(live: Live, user: str) -> None:
    for name in (user, user.upper()):
        reply = live.post("/auth/register", {"username": name, "password": NEW_PASSWORD})
        demand_problem(reply, 409, "user.exists")
    assert live.log_in(user)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"password": "qx7"}, "password.refused", id="short password"),
        pytest.param({"password": "password password"}, "password.refused", id="common password"),
        pytest.param({"password": "a7" * 65}, "password.refused", id="long password"),
        pytest.param({"scope": 'a"b'}, "input.invalid", id="scope"),
        pytest.param({"username": " ada"}, "input.invalid", id="space in front"),
        pytest.param({"username": "ada\n"}, "input.invalid", id="newline behind"),
        pytest.param({"username": "a\u202eda"}, "input.invalid", id="not printable"),
        pytest.param({"username": "usr_" + "0" * 32}, "input.invalid", id="an id for a name"),
        pytest.param({"username": "x" * 255}, "input.invalid", id="long name"),
        pytest.param({"username": ""}, "input.invalid", id="no name"),
        pytest.param({"username": MALFORMED}, "input.invalid", id="a token for a name"),
    ],
)
def test_a_registration_says_what_is_wrong_and_makes_no_user(
    live: Live, fields: dict[str, str], code: str
) -> None:
    before = live.service.users.count()
    reply = live.post("/auth/register", {"username": somebody(), "password": PASSWORD, **fields})
    demand_problem(reply, 422, code)
    assert live.service.users.count() == before
    assert MALFORMED not in reply.body.decode()
    if password := fields.get("password"):
        assert password not in reply.json["detail"]


def test_where_registration_is_closed_only_an_operator_makes_users(settings: Settings, clock: Any) -> None:
    with running(replace(settings, registration="closed"), clock) as live:
        reply = live.post("/auth/register", {"username": "ada", "password": PASSWORD})
        demand_problem(reply, 403, "request.forbidden")
        assert live.service.users.count() == 0
        assert live.log_in("ada")


# --- the context ---------------------------------------------------------------------------


def test_address_agent_and_device_are_recorded(live: Live, user: str) -> None:
    login = {"username": user, "password": PASSWORD}
    headers = {"tokenctl_device": "laptop 7", "user_agent": "Browser/1"}
    pair = live.post("/auth/login", login, **headers).json
    row = live.service.inspect(token_id(pair["refresh_token"])).token
    assert row.issued == Context.of(ip="127.0.0.1", user_agent="Browser/1", device="laptop 7")
    headers = {"tokenctl_device": "laptop 8", "user_agent": "Browser/2"}
    live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}, **headers)
    row = live.service.inspect(token_id(pair["refresh_token"])).token
    assert row.last == Context.of(ip="127.0.0.1", user_agent="Browser/2", device="laptop 8")


@pytest.mark.parametrize("device", ["", "x" * 129, "\u00e9", "a\tb"], ids=["empty", "long", "é", "tab"])
@pytest.mark.parametrize("path", ["login", "register", "refresh", "logout"])
def test_a_device_of_a_wrong_form_is_told(
    live: Live, pair: dict[str, Any], user: str, path: str, device: str
) -> None:
    fields = {
        "login": {"username": user, "password": PASSWORD},
        "register": {"username": somebody(), "password": PASSWORD},
    }.get(path, {"refresh_token": pair["refresh_token"]})
    reply = live.post(f"/auth/{path}", fields, tokenctl_device=device)
    demand_problem(reply, 422, "input.invalid")
    assert me(live, pair) == 200
