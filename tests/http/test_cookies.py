"""Cookie mode: the refresh token is in the cookie and nowhere else, and only our own pages may use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.live import PASSWORD, Live, Reply, shared, somebody
from tokenctl.core.token_string import parse_unverified

APP = "https://app.example"
STRING = re.compile("tkr1_[A-Za-z0-9_-]{84}")
MONTH = 30 * 86_400
GUARDED = ["/auth/register", "/auth/login", "/auth/refresh", "/auth/logout", "/auth/password"]


@pytest.fixture(scope="module")
def live(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("cookies")
    with shared(new_database, directory, cookies=True, cors_origins=(APP,)) as live:
        yield live


@pytest.fixture
def user(live: Live) -> str:
    return live.service.create_user(somebody(), PASSWORD).name


def post(live: Live, path: str, fields: Any, token: str | None = None, **headers: str) -> Reply:
    """POST as a page of the application does it."""
    return live.post(path, fields, token, **({"x_tokenctl": "1", "origin": APP} | headers))


def log_in(live: Live, user: str) -> Reply:
    reply = post(live, "/auth/login", {"username": user, "password": PASSWORD})
    assert reply.status == 200
    return reply


def cookie_of(reply: Reply, name: str = "__Host-tokenctl") -> str:
    """The string in the answer's cookie; each attribute is the right one."""
    secure = "; Secure" if name.startswith("__Host-") else ""
    pattern = rf"{name}=({STRING.pattern}); Path=/; Max-Age={MONTH}; HttpOnly; SameSite=Strict{secure}"
    found = re.fullmatch(pattern, reply.headers["set-cookie"])
    assert found
    return found.group(1)


def _sent(string: str) -> str:
    return f"__Host-tokenctl={string}"


def test_no_body_has_the_refresh_token(live: Live, user: str) -> None:
    registered = post(live, "/auth/register", {"username": somebody(), "password": PASSWORD})
    logged_in = log_in(live, user)
    refreshed = post(live, "/auth/refresh", {}, cookie=_sent(cookie_of(logged_in)))
    assert [reply.status for reply in (registered, logged_in, refreshed)] == [201, 200, 200]
    for reply in (registered, logged_in, refreshed):
        assert not STRING.search(reply.body.decode())
        assert set(reply.json) == {
            "access_token",
            "token_type",
            "expires_in",
            "refresh_expires_in",
            "scope",
            "user",
        }
        assert reply.headers["cache-control"] == "no-store"
        assert cookie_of(reply)
    assert cookie_of(refreshed) != cookie_of(logged_in)


def test_a_retry_gets_the_same_cookie(live: Live, user: str) -> None:
    old = cookie_of(log_in(live, user))
    first, again = (post(live, "/auth/refresh", {}, cookie=_sent(old)) for _ in range(2))
    assert cookie_of(first) == cookie_of(again)


def test_a_refresh_needs_no_body(live: Live, user: str) -> None:
    string = cookie_of(log_in(live, user))
    headers = {"X-Tokenctl": "1", "Origin": APP, "Cookie": _sent(string)}
    assert live.send("POST", "/auth/refresh", None, headers).status == 200
    assert live.send("POST", "/auth/refresh", b"", headers).status == 200


def test_logging_out_deletes_the_cookie(live: Live, user: str) -> None:
    logged_in = log_in(live, user)
    reply = post(live, "/auth/logout", {}, cookie=_sent(cookie_of(logged_in)))
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["set-cookie"] == (
        "__Host-tokenctl=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"
    )
    assert live.get("/auth/me", logged_in.json["access_token"]).status == 401


def test_logging_out_everywhere(live: Live, user: str) -> None:
    one, two = log_in(live, user), log_in(live, user)
    assert post(live, "/auth/logout", {"all": True}, cookie=_sent(cookie_of(one))).status == 204
    assert live.get("/auth/me", two.json["access_token"]).status == 401


@pytest.mark.parametrize(
    "cookie",
    [
        "a=b; {}; c=d",
        "a=b;{};c=d",
        "__Host-tokenctl=; {}",
        "tokenctl=x; {}",
        "__host-tokenctl=x; {}",
        "x__Host-tokenctl=x; {}",
        "junk; =; {}",
    ],
)
def test_other_cookies_do_no_harm(live: Live, user: str, cookie: str) -> None:
    string = cookie_of(log_in(live, user))
    assert post(live, "/auth/refresh", {}, cookie=cookie.format(_sent(string))).status == 200


@pytest.mark.parametrize(
    "cookie", ["", "a=b", "tokenctl={}", "__host-tokenctl={}", "a=__Host-tokenctl={}", "__Host-tokenctl=x"]
)
@pytest.mark.parametrize("path", ["/auth/refresh", "/auth/logout"])
def test_without_the_cookie_it_is_a_refusal_like_any(live: Live, user: str, path: str, cookie: str) -> None:
    string = cookie_of(log_in(live, user))
    reply = post(live, path, {}, cookie=cookie.format(string))
    assert (reply.status, reply.json["code"]) == (401, "invalid_grant")
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("path", ["/auth/refresh", "/auth/logout"])
def test_a_string_in_the_body_is_refused(live: Live, user: str, path: str) -> None:
    logged_in = log_in(live, user)
    string = cookie_of(logged_in)
    for headers in ({}, {"cookie": _sent(string)}):
        reply = post(live, path, {"refresh_token": string}, **headers)
        assert (reply.status, reply.json["code"]) == (422, "input.invalid")
        assert reply.json["errors"] == [{"field": "refresh_token", "message": "there is no such field here"}]
        assert string not in reply.body.decode()
    assert live.get("/auth/me", logged_in.json["access_token"]).status == 200


# --- whose page it is ----------------------------------------------------------------------


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": APP}, id="no header"),
        pytest.param({"Origin": APP, "X-Tokenctl": "0"}, id="another value"),
        pytest.param({"Origin": APP, "X-Tokenctl": ""}, id="an empty value"),
        pytest.param({"X-Tokenctl": "1"}, id="no origin"),
        pytest.param({"X-Tokenctl": "1", "Origin": ""}, id="an empty origin"),
        pytest.param({"X-Tokenctl": "1", "Origin": "null"}, id="null"),
        pytest.param({"X-Tokenctl": "1", "Origin": "https://evil.example"}, id="foreign"),
        pytest.param({"X-Tokenctl": "1", "Origin": APP + ".evil.example"}, id="a longer one"),
        pytest.param({"X-Tokenctl": "1", "Origin": "http://app.example"}, id="another scheme"),
        pytest.param({"X-Tokenctl": "1", "Origin": APP + ":8443"}, id="another port"),
        pytest.param({"X-Tokenctl": "1", "Origin": f"{APP}, https://evil.example"}, id="two"),
        pytest.param({"X-Tokenctl": "1", "Origin": "http://localhost:5173"}, id="localhost without --dev"),
        pytest.param({"X-Tokenctl": "1", "Origin": "http://\u00e9.example"}, id="not ASCII"),
    ],
)
def test_a_page_of_another_site_causes_nothing(
    live: Live, user: str, path: str, headers: dict[str, str]
) -> None:
    logged_in = log_in(live, user)
    body = f'{{"username": "{user}", "password": "{PASSWORD}"}}'.encode()
    sent = {"Content-Type": "application/json", "Cookie": _sent(cookie_of(logged_in)), **headers}
    reply = live.send("POST", path, body, sent)
    assert (reply.status, reply.json["code"]) == (403, "request.forbidden")
    assert "set-cookie" not in reply.headers
    row = live.service.inspect(parse_unverified(cookie_of(logged_in)).token_id).token
    assert (row.generation, row.is_revoked) == (0, False)


def test_the_issuer_s_own_pages_are_ours(live: Live, user: str) -> None:
    login = {"username": user, "password": PASSWORD}
    assert post(live, "/auth/login", login, origin=live.service.settings.issuer).status == 200


def test_a_password_is_changed_from_our_pages(live: Live, user: str) -> None:
    token = log_in(live, user).json["access_token"]
    fields = {"current_password": PASSWORD, "new_password": "nine herons paint by noon"}
    assert live.post("/auth/password", fields, token).status == 403
    assert post(live, "/auth/password", fields, token).status == 204


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("path", GUARDED)
def test_the_cookie_never_counts_on_another_method(live: Live, user: str, path: str, method: str) -> None:
    string = cookie_of(log_in(live, user))
    headers = {"X-Tokenctl": "1", "Origin": APP, "Cookie": _sent(string)}
    assert live.send(method, path, None, headers).status == 405
    assert live.service.inspect(string).token.generation == 0


def test_the_cookie_never_counts_under_oauth(live: Live, user: str) -> None:
    string = cookie_of(log_in(live, user))
    headers = {"x_tokenctl": "1", "origin": APP, "cookie": _sent(string)}
    reply = live.form("/oauth/token", {"grant_type": "refresh_token"}, **headers)
    assert (reply.status, reply.json["error"]) == (400, "invalid_request")
    reply = live.form("/oauth/revoke", {}, **headers)
    assert (reply.status, reply.json["error"]) == (400, "invalid_request")
    row = live.service.inspect(string).token
    assert (row.generation, row.is_revoked) == (0, False)


def test_what_needs_an_access_token_takes_no_cookie(live: Live, user: str) -> None:
    string = cookie_of(log_in(live, user))
    headers = {"x_tokenctl": "1", "origin": APP, "cookie": _sent(string)}
    assert live.get("/auth/me", **headers).status == 401
    assert live.get("/auth/sessions", **headers).status == 401


# --- the name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dev", "issuer", "name"),
    [
        pytest.param(True, "http://localhost:8460", "tokenctl", id="dev over http"),
        pytest.param(True, "https://localhost:8460", "__Host-tokenctl", id="dev over https"),
        pytest.param(False, "http://localhost:8460", "__Host-tokenctl", id="http without dev"),
    ],
)
def test_only_dev_over_http_has_the_name_without_the_prefix(
    new_database: Path, tmp_path: Path, dev: bool, issuer: str, name: str
) -> None:
    with shared(new_database, tmp_path, dev=dev, cookies=True, issuer=issuer) as live:
        user = live.service.create_user(somebody(), PASSWORD).name
        headers = {"x_tokenctl": "1", "origin": issuer}
        reply = live.post("/auth/login", {"username": user, "password": PASSWORD}, **headers)
        string = cookie_of(reply, name)
        after = live.post("/auth/refresh", {}, cookie=f"{name}={string}", **headers)
        assert cookie_of(after, name) != string


def test_without_cookie_mode_there_is_no_cookie(new_database: Path, tmp_path: Path) -> None:
    with shared(new_database, tmp_path) as live:
        user = live.service.create_user(somebody(), PASSWORD).name
        reply = live.post("/auth/login", {"username": user, "password": PASSWORD})
        assert "set-cookie" not in reply.headers
        string = reply.json["refresh_token"]
        for name in ("__Host-tokenctl", "tokenctl"):
            reply = live.post("/auth/refresh", {}, cookie=f"{name}={string}")
            assert (reply.status, reply.json["code"]) == (422, "input.invalid")
        assert "set-cookie" not in live.post("/auth/logout", {"refresh_token": string}).headers
