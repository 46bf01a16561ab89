"""What is no proper request: it is answered with what was wrong, never with a 5xx, and never echoes a secret.

All tests share one server; after each it still answers.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.live import PASSWORD, Live, Reply, shared, somebody
from tokenctl.http import body as message_body
from tokenctl.http import call, endpoint

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
AUTH = ["/auth/register", "/auth/login", "/auth/refresh", "/auth/logout"]
OAUTH = ["/oauth/token", "/oauth/revoke", "/oauth/introspect"]
GETS = [
    "/healthz",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
]
STRING = "tkr1_" + "A" * 84
SECRET = "tks1_" + "A" * 43
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.AAAA"


@pytest.fixture(scope="module")
def server(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with shared(new_database, tmp_path_factory.mktemp("requests")) as live:
        live.service.create_user("ada", PASSWORD)
        yield live
        live.log_in()


@pytest.fixture
def live(server: Live) -> Iterator[Live]:
    """The server, which answers after the test as before."""
    server.log.clear()
    yield server
    assert server.get("/readyz").json == {"status": "ok"}


def login_of(size: int) -> bytes:
    """A good login in a body of that many bytes."""
    body = json.dumps({"username": "ada", "password": PASSWORD}).encode()
    return body[:-1] + b" " * (size - len(body)) + b"}"


def demand_problem(reply: Reply | None, status: int, code: str | None = None) -> None:
    assert reply is not None
    assert (reply.status, reply.json["status"]) == (status, status)
    assert code is None or reply.json["code"] == code
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-request-id"] == reply.json["request_id"]


# --- how much ------------------------------------------------------------------------------


def test_a_body_of_8_kib_is_read(live: Live) -> None:
    assert live.send("POST", "/auth/login", login_of(8192), JSON).status == 200


@pytest.mark.parametrize("size", [8193, 70_000, 131_072])
def test_a_larger_one_is_not(live: Live, size: int) -> None:
    reply = live.send("POST", "/auth/login", login_of(size), JSON)
    demand_problem(reply, 413, "request.too_large")
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("path", [*AUTH, *OAUTH])
def test_so_it_is_on_every_route(live: Live, path: str) -> None:
    reply = live.send("POST", path, b"x" * 8193, FORM if path in OAUTH else JSON)
    assert (reply.status, reply.headers["connection"]) == (413, "close")


def test_8_kib_in_chunks(live: Live) -> None:
    for size, status in ((8192, 200), (8193, 413)):
        body = login_of(size)
        head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        chunks = [body[at : at + 1000] for at in range(0, size, 1000)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        reply = live.raw(head, sent)
        assert reply is not None
        assert reply.status == status


@pytest.mark.parametrize("size", [131_073, 1_000_000, 100_000_000, 10**18, 10**19, 10**30])
def test_what_is_announced_as_too_large_is_answered_before_it_is_sent(live: Live, size: int) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reply = live.raw(head + b"Content-Length: %d\r\n\r\n" % size)
    assert reply is not None
    assert reply.status == (413 if size < 2**64 else 400)
    assert reply.headers["connection"] == "close"


def test_who_asks_first_whether_to_send_it_is_told_no(live: Live) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reply = live.raw(head + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
    assert reply is not None
    assert reply.status == 413


def test_a_megabyte_is_answered_or_cut_off(live: Live) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reply = live.raw(head + b"Content-Length: 1000000\r\n\r\n", b"x" * 1_000_000)
    assert reply is None or reply.status == 413


def test_chunks_without_end_come_to_one(live: Live) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"3e8\r\n%s\r\n" % (b"x" * 1000)
    reply = live.raw(head, *[chunk] * 2000)
    assert reply is None or reply.status == 413


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_long_header_ends_the_connection_or_is_ignored(live: Live, size: int) -> None:
    reply = live.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * size + b"\r\n\r\n")
    assert (reply and reply.status) == (200 if size < 262_144 else None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz?x={}", 400),
        ("GET", "/{}", 400),
        ("DELETE", "/auth/sessions/{}", 400),
        ("POST", "/oauth/token?x={}", 400),
    ],
)
def test_a_long_url_is_refused(live: Live, method: str, path: str, status: int) -> None:
    reply = live.send(method, path.format("a" * 8192))
    assert reply.status == status
    assert b"the URL is longer than 8192 bytes" in reply.body
    assert b"the URL is longer" not in live.send(method, path.format("a" * 8000)).body


def test_what_looks_like_many_tokens_takes_no_time() -> None:
    started = time.monotonic()
    for text in (b"eyJ" * 20_000, b"eyJ-" * 20_000, b"&token" * 20_000):
        assert endpoint._TOKEN_IN_URL.search(text) is None
    for text in (b"eyJ" * 20_000 + b".", b"x" + b"eyJ" * 20_000 + b".", b"." + b"eyJx" * 20_000 + b"."):
        assert endpoint._TOKEN_IN_URL.search(text) is not None
    assert time.monotonic() - started < 0.5


def test_a_media_type_with_many_spaces_takes_no_time(live: Live) -> None:
    started = time.monotonic()
    for path, kind in (("/auth/refresh", "application/json"), ("/oauth/token", FORM["Content-Type"])):
        for spaces in (f"{kind};{' ' * 40_000}x", f"{kind}{' ' * 40_000};x"):
            assert live.send("POST", path, b"{}", {"Content-Type": spaces}).status == 415
    for between in (b";", b"", b"; charset=utf-8"):
        rest = between + b" " * 40_000 + b"x"
        assert not message_body._JSON.fullmatch(b"application/json" + rest)
        assert not message_body._FORM.fullmatch(b"application/x-www-form-urlencoded" + rest)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("count", [300, 30_000])
def test_many_headers(live: Live, count: int) -> None:
    lines = b"".join(b"X-%d: x\r\n" % number for number in range(count))
    reply = live.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
    assert (reply and reply.status) == (200 if count == 300 else None)


def test_the_rest_of_a_long_user_agent_is_not_kept(live: Live) -> None:
    known = call._context.cache_info().currsize
    for number in range(3):
        agent = "agent " * 1000 + str(number)
        live.post("/auth/refresh", {"refresh_token": "x"}, user_agent=agent, tokenctl_device="x")
    assert call._context.cache_info().currsize == known + 1


# --- what is no JSON -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b" ", id="a space"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"{}{}", id="two"),
        pytest.param(b"nonsense", id="nonsense"),
        pytest.param(b"{'username': 'ada'}", id="single quotes"),
        pytest.param(b'{"username": "ada",}', id="a comma at the end"),
        pytest.param(b'{"username": NaN}', id="NaN"),
        pytest.param(b'{"username": "\xff\xfe"}', id="no UTF-8"),
        pytest.param(b'{"username": "\xed\xa0\x80"}', id="half a surrogate pair in UTF-8"),
        pytest.param(b'{"username": "\xc0\x80"}', id="overlong"),
        pytest.param(b'\xef\xbb\xbf{"username": "ada"}', id="a byte order mark"),
        pytest.param('{"username": "ada"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"username": "a\x00b"}', id="a raw NUL"),
        pytest.param(b"[" * 4000 + b"]" * 4000, id="deep arrays"),
        pytest.param(b'{"a":' * 1300 + b"1" + b"}" * 1300, id="deep objects"),
        pytest.param(b'{"username":' + b"[" * 8000, id="deep and cut off"),
        pytest.param(b'{"x":' + b"9" * 8000 + b"}", id="a number of 8,000 digits"),
        pytest.param(b'{"username":1e' + b"9" * 8000 + b"}", id="its exponent"),
        pytest.param(b'{"username":-' + b"9" * 8000 + b"}", id="a negative one"),
        pytest.param(b'{"username":1e400}', id="infinite"),
        pytest.param(b'"text"', id="a string"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"[{}]", id="an array of objects"),
        pytest.param(b"null", id="null"),
        pytest.param(b"1", id="a number"),
    ],
)
@pytest.mark.parametrize("path", AUTH)
def test_what_is_no_object_of_json_is_told(live: Live, path: str, body: bytes) -> None:
    reply = live.send("POST", path, body, JSON)
    assert reply.status in (400, 422)
    demand_problem(reply, reply.status)


# --- what is wrong with the fields ---------------------------------------------------------

REFRESH = {"refresh_token": STRING}
LOGIN = {"username": "ada", "password": PASSWORD}
CHANGE = {"current_password": PASSWORD, "new_password": PASSWORD}


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        pytest.param("/auth/login", {"username": "ada"}, "password", id="password missing"),
        pytest.param("/auth/login", {}, "username", id="all missing"),
        pytest.param("/auth/refresh", {}, "refresh_token", id="refresh token missing"),
        pytest.param("/auth/login", LOGIN | {"username": 1}, "username", id="number for a text"),
        pytest.param("/auth/login", LOGIN | {"username": None}, "username", id="null for a text"),
        pytest.param("/auth/login", LOGIN | {"username": ["ada"]}, "username", id="array for a text"),
        pytest.param("/auth/login", LOGIN | {"password": {"$ne": ""}}, "password", id="object for a text"),
        pytest.param("/auth/login", LOGIN | {"password": True}, "password", id="true for a text"),
        pytest.param("/auth/login", LOGIN | {"username": ""}, "username", id="empty"),
        pytest.param("/auth/login", LOGIN | {"username": "x" * 255}, "username", id="long name"),
        pytest.param("/auth/login", LOGIN | {"password": "x" * 4097}, "password", id="long password"),
        pytest.param("/auth/login", LOGIN | {"client_id": "a b"}, "client_id", id="form of a client"),
        pytest.param("/auth/login", LOGIN | {"client_id": None}, "client_id", id="null for a client"),
        pytest.param("/auth/login", LOGIN | {"scope": 'a"'}, "scope", id="form of a scope"),
        pytest.param("/auth/login", LOGIN | {"user_name": "ada"}, "user_name", id="a typing error"),
        pytest.param("/auth/refresh", REFRESH | {"all": True}, "all", id="a field of another route"),
        pytest.param("/auth/logout", REFRESH | {"all": 1}, "all", id="number for a switch"),
        pytest.param("/auth/logout", REFRESH | {"all": "true"}, "all", id="text for a switch"),
        pytest.param("/auth/logout", REFRESH | {"all": None}, "all", id="null for a switch"),
    ],
)
def test_the_field_that_is_wrong_is_named(live: Live, path: str, fields: dict[str, Any], name: str) -> None:
    reply = live.post(path, fields)
    demand_problem(reply, 422, "input.invalid")
    [error] = reply.json["errors"]
    assert error["field"] == name
    assert reply.json["detail"] == f"{name}: {error['message']}"
    assert STRING not in reply.body.decode()
    assert PASSWORD not in reply.body.decode()


@pytest.mark.parametrize("secret", [STRING, SECRET, JWT, PASSWORD, "Hunter2", "\U0001f9a6", "x" * 41])
@pytest.mark.parametrize("path", AUTH)
def test_what_stands_where_a_name_belongs_is_not_repeated(live: Live, path: str, secret: str) -> None:
    good = LOGIN if path in AUTH[:2] else REFRESH
    for fields in ({**good, secret: 1}, {secret: 1}, {**good, secret: secret}):
        reply = live.post(path, fields)
        demand_problem(reply, 422, "input.invalid")
        assert secret not in json.dumps(reply.json, ensure_ascii=False)


@pytest.mark.parametrize("name", ["", "`", "``", "a`", "`a", " - at `$", "` - at `$", "a` - at `$.b", "$.a"])
@pytest.mark.parametrize("path", [*AUTH, "/auth/password"])
def test_a_name_that_looks_like_a_message_is_a_name(live: Live, path: str, name: str) -> None:
    demand_problem(live.post(path, {name: 1}), 422, "input.invalid")


@pytest.mark.parametrize("secret", [STRING, SECRET, JWT])
@pytest.mark.parametrize("name", ["username", "client_id", "scope"])
@pytest.mark.parametrize("path", ["/auth/login", "/auth/register"])
def test_a_secret_in_the_wrong_field_is_not_repeated_and_not_logged(
    live: Live, path: str, name: str, secret: str
) -> None:
    reply = live.post(path, {"username": somebody(), "password": "x", name: secret})
    assert 400 <= reply.status < 500
    assert secret not in reply.body.decode()
    assert secret not in str(live.log)


@pytest.mark.parametrize("secret", [STRING, SECRET])
def test_a_client_that_is_a_secret_is_not_logged(live: Live, secret: str) -> None:
    live.post("/auth/refresh", {**REFRESH, "client_id": secret})
    live.post("/auth/logout", {**REFRESH, "client_id": secret})
    for path in OAUTH:
        fields = {"grant_type": "refresh_token", "refresh_token": "x", "token": "x", "client_id": secret}
        for each in (fields, {**fields, "client_secret": "api"}):
            assert secret not in live.form(path, each).body.decode()
    assert "/oauth/introspect" in str(live.log)
    assert secret not in str(live.log)


@pytest.mark.parametrize(
    ("path", "name", "text"),
    [
        ("/auth/register", "username", "bo\u202eb"),
        ("/auth/register", "username", "usr_bob"),
        ("/auth/register", "username", "b\u00a0o\u200bb"),
        ("/auth/register", "client_id", "bob\n"),
        ("/auth/login", "client_id", "bob\n"),
    ],
)
def test_a_name_of_a_wrong_form_is_not_repeated(live: Live, path: str, name: str, text: str) -> None:
    reply = live.post(path, {"username": somebody(), "password": PASSWORD, name: text})
    demand_problem(reply, 422)
    said = reply.json["detail"]
    assert said.isprintable()
    assert "bo" not in said
    assert "u202e" not in said


def test_a_key_that_comes_twice_is_the_last(live: Live) -> None:
    body = b'{"username": "nobody", "password": "%s", "username": "ada"}' % PASSWORD.encode()
    assert live.send("POST", "/auth/login", body, JSON).status == 200


TEXTS = {
    "a NUL": "a\0b",
    "control characters": "".join(map(chr, range(32))),
    "emoji": "\U0001f9a6" * 20,
    "half a surrogate pair": "a\ud800b",
    "the other half": "\udfff",
    "right to left": "\u202eada",
    "no character": "\uffff",
    "a thousand accents": "e" + "\u0301" * 1000,
    "a ligature": "\ufdfa" * 200,
    "upper case that grows": "\u0390" * 200,
    "percent": "%s%n%00",
    "an injection": "' OR 1=1; --",
    "a path": "../../etc/passwd",
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in TEXTS.items()])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/auth/register", ["username", "password", "client_id", "scope"]),
        ("/auth/login", ["username", "password", "client_id", "scope"]),
        ("/auth/refresh", ["refresh_token", "client_id", "scope"]),
        ("/auth/logout", ["refresh_token", "client_id"]),
        ("/auth/password", ["current_password", "new_password"]),
    ],
)
def test_strange_texts_are_texts(live: Live, path: str, fields: list[str], text: str) -> None:
    pair = live.log_in(somebody())
    for name in fields:
        good = {"username": somebody(), "password": PASSWORD}
        if path == "/auth/password":
            good = CHANGE
        elif path not in AUTH[:2]:
            good = {"refresh_token": pair["refresh_token"]}
        reply = live.post(path, {**good, name: text}, pair["access_token"])
        assert reply.status < 500, (name, reply.body)
        json.loads(reply.body or b"0")


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in TEXTS.items()])
@pytest.mark.parametrize("path", OAUTH)
def test_strange_texts_are_texts_in_a_form(live: Live, path: str, text: str) -> None:
    good = {"grant_type": "refresh_token", "refresh_token": STRING, "token": STRING}
    names = ["grant_type", "refresh_token", "token", "scope", "client_id", "client_secret", "token_type_hint"]
    for name in names:
        encoded = {key: value.encode("utf-8", "surrogatepass") for key, value in {**good, name: text}.items()}
        reply = live.form(path, encoded)
        assert reply.status < 500, (name, reply.body)
        # RFC 6749 §5.2: no other characters in a description.
        description = reply.json.get("error_description", "")
        assert all(" " <= each <= "~" and each not in '"\\' for each in description)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xff\xfe", id="raw bytes"),
        pytest.param(b"token=%FF%FE", id="no UTF-8"),
        pytest.param(b"token=%ED%A0%80", id="half a surrogate pair"),
        pytest.param(b"&".join(b"a%d=x" % number for number in range(65)), id="many parameters"),
        pytest.param(b"token=x&token=y", id="twice"),
    ],
)
@pytest.mark.parametrize("path", OAUTH)
def test_what_is_no_form_is_told(live: Live, path: str, body: bytes) -> None:
    reply = live.send("POST", path, body, FORM)
    assert (reply.status, reply.json["error"]) == (400, "invalid_request")


# --- the media type ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        pytest.param("application/json", 200, id="JSON"),
        pytest.param("application/json; charset=utf-8", 200, id="charset"),
        pytest.param("application/json;charset=UTF-8", 200, id="upper case"),
        pytest.param('application/json; charset="utf-8"', 200, id="quotes"),
        pytest.param("application/json ;  charset=utf-8", 200, id="spaces"),
        pytest.param("application/json;", 200, id="a semicolon"),
        pytest.param(f"application/json;{' ' * 180}charset=utf-8", 415, id="long"),
        pytest.param("Application/JSON", 200, id="all upper case"),
        pytest.param("application/json; charset=latin-1", 415, id="another charset"),
        pytest.param("application/json; charset=utf-16", 415, id="UTF-16"),
        pytest.param("application/x-www-form-urlencoded", 415, id="form"),
        pytest.param("text/plain", 415, id="what a form of another site can send"),
        pytest.param("text/json", 415, id="text"),
        pytest.param("application/jsonx", 415, id="longer"),
        pytest.param("application/problem+json", 415, id="problem"),
        pytest.param("", 415, id="empty"),
        pytest.param("\u00e9", 415, id="not ASCII"),
        pytest.param(None, 415, id="none"),
    ],
)
def test_the_media_type_of_json(live: Live, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    reply = live.send("POST", "/auth/login", login_of(100), headers)
    assert reply.status == status
    if status == 415:
        demand_problem(reply, 415, "request.unsupported_type")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/x-www-form-urlencoded", 200),
        ("application/x-www-form-urlencoded; charset=UTF-8", 200),
        ("application/json", 415),
        ("multipart/form-data; boundary=x", 415),
        (None, 415),
    ],
)
def test_the_media_type_of_a_form(live: Live, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    reply = live.send("POST", "/oauth/revoke", b"token=x", headers)
    assert reply.status == status
    if status == 415:
        assert reply.json["error"] == "invalid_request"


# --- addresses and methods -----------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "access_token=x",
        "refresh_token=x",
        "token=x",
        "a=b&access_token=",
        f"q={STRING}",
        STRING,
        f"secret={SECRET}",
        f"x={JWT}",
        "ACCESS_TOKEN=x",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/auth/me"), ("GET", "/healthz"), ("POST", "/auth/refresh"), ("POST", "/oauth/introspect")],
)
def test_a_token_in_the_address_is_refused(live: Live, method: str, path: str, query: str) -> None:
    reply = live.send(method, f"{path}?{query}")
    assert reply.status == 400
    assert (reply.json.get("code") or reply.json["error"]) in ("request.malformed", "invalid_request")
    for secret in (STRING, SECRET, JWT):
        assert secret not in reply.body.decode()
        assert secret not in str(live.log)


@pytest.mark.parametrize("query", ["", "a=b", "q=token", "%ff=%00", "&&&==", "next=keyjar.html"])
def test_another_query_is_ignored(live: Live, query: str) -> None:
    assert live.get(f"/healthz?{query}").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/auth",
        "/auth/",
        "/auth/login/",
        "//auth/login",
        "/AUTH/LOGIN",
        "/auth/../auth/login",
        "/auth/sessions/",
        "/auth/sessions/a/b",
        "/docs/../auth.py",
        "/docs/%2e%2e/auth.py",
        "/docs/%2e%2e%2fauth.py",
        "/docs/SHA256SUMS",
        "/docs/nothing.js",
        "/%00",
        "/%FF%FE",
        "/%F0%9F%A6%A6",
        "/%",
        "/%zz",
        f"/{STRING}",
        "/dev/clock",
        "/dev/faults",
        "/dev/events",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_nothing_is_at_another_address(live: Live, method: str, path: str) -> None:
    reply = live.send(method, path)
    if path in ("/docs/SHA256SUMS", "/docs/nothing.js") and method != "GET":
        demand_problem(reply, 405, "route.method_not_allowed")
    else:
        demand_problem(reply, 404, "route.not_found")
    assert STRING not in str(live.log)


ROUTES = {
    **dict.fromkeys([*AUTH, *OAUTH, "/auth/password"], "POST"),
    **dict.fromkeys([*GETS, "/auth/me", "/auth/sessions", "/docs/init.js"], "GET, HEAD"),
    "/auth/sessions/rt_1": "DELETE",
}


@pytest.mark.parametrize("path", ROUTES)
def test_another_method_is_told_which_there_are(live: Live, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
        if method in ROUTES[path]:
            continue
        reply = live.send(method, path)
        assert (reply.status, reply.headers["allow"]) == (405, ROUTES[path]), method
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(live: Live, path: str) -> None:
    get, head = live.send("GET", path), live.send("HEAD", path)
    assert (get.status, head.status, head.body) == (200, 200, b"")
    assert get.body
    differ = {"date", "x-request-id"} | ({"content-length"} if path == "/metrics" else set())
    alike = [{name: reply.headers[name] for name in reply.headers.keys() - differ} for reply in (get, head)]
    assert alike[0] == alike[1]
    assert get.headers["x-content-type-options"] == "nosniff"


# --- what is hardly HTTP -------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x00" * 100, id="NULs"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500, id="TLS"),
        pytest.param(b"hello\r\n\r\n", id="a greeting"),
        pytest.param(b"GET /healthz HTTP/9.9\r\n\r\n", id="another version"),
        pytest.param(b"GET / HTTP/1.1\r\nno colon\r\n\r\n", id="no header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", id="a folded header"),
        pytest.param(b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", id="NUL in a header"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", id="raw bytes in the path"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(
            b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", id="negative length"
        ),
        pytest.param(
            b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n", id="length is no number"
        ),
        pytest.param(
            b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            id="two lengths",
        ),
        pytest.param(
            b"POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
            id="no chunk",
        ),
    ],
)
def test_garbage_is_answered_with_400_or_not_at_all(live: Live, sent: bytes) -> None:
    reply = live.raw(sent)
    assert reply is None or (reply.status, reply.headers["connection"]) == (400, "close")


SMUGGLED = b"GET /auth/me HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(b"Content-Length: 4\r\nTransfer-Encoding: chunked", b"0\r\n\r\n", id="both"),
        pytest.param(b"Transfer-Encoding: chunked\r\nContent-Length: 4", b"0\r\n\r\n", id="both, turned"),
        pytest.param(b"Transfer-Encoding: chunked, identity", b"0\r\n\r\n", id="chunked is not the last"),
        pytest.param(b"Transfer-Encoding: xchunked", b"0\r\n\r\n", id="nearly chunked"),
        pytest.param(b"Transfer-Encoding : chunked", b"0\r\n\r\n", id="a space before the colon"),
        pytest.param(b"Transfer-Encoding:\x0bchunked", b"0\r\n\r\n", id="a vertical tab"),
        pytest.param(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", b"0\r\n\r\n", id="twice"),
        pytest.param(b"Content-Length: +2", b"{}", id="a sign"),
        pytest.param(b"Content-Length: 2, 2", b"{}", id="a list"),
        pytest.param(b"Content-Length: 0x2", b"{}", id="hexadecimal"),
    ],
)
def test_a_request_whose_end_is_not_clear_ends_the_connection(
    live: Live, headers: bytes, body: bytes
) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(head + headers + b"\r\n\r\n" + body + SMUGGLED)
        received = b""
        while part := _receive(connection):
            received += part
    assert received.count(b"HTTP/1.1 ") <= 1
    assert received[:12] in (b"", b"HTTP/1.1 400")
    assert b"credentials.missing" not in received


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def test_a_body_where_none_belongs_is_passed_over(live: Live) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(one + last)
        received = b""
        while part := _receive(connection):
            received += part
    assert (received.count(b"HTTP/1.1 200"), received.count(b"HTTP/1.1 ")) == (2, 2)


def test_requests_in_a_row_on_one_connection_are_answered_in_order(live: Live) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /auth/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(one * 20 + last)
        received = b""
        while part := _receive(connection):
            received += part
    assert (received.count(b"HTTP/1.1 200"), received.count(b"HTTP/1.1 401")) == (20, 1)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"x"])
@pytest.mark.parametrize("pieces", [1, 2, 300])
def test_an_upgrade_is_not_made_and_takes_no_body_away(live: Live, protocol: bytes, pieces: int) -> None:
    # Java's client asks for HTTP/2 with every first request in plain text.
    body = login_of(100)
    sent = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sent += b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\n" % protocol
    sent += b"HTTP2-Settings: AAEAAEAAAAIAAAAB\r\nContent-Length: 100\r\n\r\n"
    sent = sent + body if pieces != 2 else sent
    size = -(-len(sent) // pieces) if pieces != 2 else len(sent)
    parts = [sent[at : at + size] for at in range(0, len(sent), size)]
    reply = live.raw(*parts, *([body] if pieces == 2 else []))
    assert reply is not None
    assert reply.status == 200


def test_the_body_of_an_upgrade_is_never_the_next_request(live: Live) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(head)
        time.sleep(0.05)  # else all of it arrives at once
        connection.sendall(SMUGGLED + last)
        received = b""
        while part := _receive(connection):
            received += part
    assert received.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 415" in received
    assert b"HTTP/1.1 200" in received


def test_this_is_no_proxy(live: Live) -> None:
    reply = live.raw(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    assert reply is not None
    assert reply.status == 400


def test_a_client_that_goes_away_costs_nothing(live: Live) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 50\r\n\r\n"
    for sent in (b"", b"G", head, head + b"{"):
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
            connection.sendall(sent)


# --- all the rest --------------------------------------------------------------------------

FUZZ = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.sampled_from(
    [
        "username",
        "password",
        "refresh_token",
        "client_id",
        "scope",
        "all",
        "current_password",
        "new_password",
        "token",
        "grant_type",
        "client_secret",
        "token_type_hint",
    ]
)
SPICE = st.sampled_from(
    ["refresh_token", "default", "ada", PASSWORD, STRING, SECRET, JWT, "", "\0", "\ud800", "\U0001f9a6"]
)
VALUES = st.recursive(
    SPICE | st.text() | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("path", [*AUTH, "/auth/password"])
@FUZZ
@given(body=st.dictionaries(NAMES | st.text(max_size=9), VALUES, max_size=6) | VALUES)
def test_no_json_makes_a_5xx(live: Live, path: str, body: Any) -> None:
    reply = live.post(path, body, live.log_in()["access_token"])
    assert reply.status < 500, reply.body


@pytest.mark.parametrize("path", [*AUTH, "/auth/password", *OAUTH])
@FUZZ
@given(
    body=st.binary(max_size=300)
    | st.lists(st.tuples(NAMES, SPICE | st.text(max_size=20)), max_size=6).map(
        lambda pairs: "&".join(f"{name}={value}" for name, value in pairs).encode("utf-8", "surrogatepass")
    ),
    content_type=st.sampled_from([*JSON.values(), *FORM.values()]),
)
def test_no_bytes_make_a_5xx(live: Live, path: str, body: bytes, content_type: str) -> None:
    reply = live.send("POST", path, body, {"Content-Type": content_type})
    assert reply.status < 500, reply.body
