"""Whose pages may call, and whose word counts for the caller's address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.live import PASSWORD, Live, Reply, shared, somebody
from tokenctl.core.token_string import parse_unverified

APP = "https://app.example"
OTHER = "https://other.example:8443"
FOREIGN = ["https://evil.example", "null", "", APP + ".evil.example", "http://app.example", APP + "/", "*"]
LOCAL = [
    "http://localhost:5173",
    "http://localhost",
    "https://localhost:1",
    "http://127.0.0.1:3000",
    "http://[::1]:8",
]
NEARLY_LOCAL = [
    "http://localhost.evil.example",
    "http://localhost:5173.evil.example",
    "http://evil.example/http://localhost",
    "http://127.0.0.1.evil.example",
    "http://127.0.0.2:3000",
    "file://localhost",
    "http://localhost:",
]


@pytest.fixture(scope="module")
def live(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with shared(new_database, tmp_path_factory.mktemp("cors"), cors_origins=(APP, OTHER)) as live:
        yield live


@pytest.fixture(scope="module")
def dev(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with shared(new_database, tmp_path_factory.mktemp("dev"), cors_origins=(APP,), dev=True) as live:
        yield live


@pytest.fixture(scope="module")
def closed(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with shared(new_database, tmp_path_factory.mktemp("closed")) as live:
        yield live


def preflight(live: Live, origin: str, method: str = "POST", headers: str = "content-type") -> Reply:
    return live.send(
        "OPTIONS",
        "/auth/refresh",
        None,
        {
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers,
        },
    )


def cors(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


# --- preflights ----------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [APP, OTHER])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_page_of_the_list_is_let_in(live: Live, origin: str, method: str) -> None:
    reply = preflight(live, origin, method, "authorization, content-type, tokenctl-device, x-tokenctl")
    assert reply.status == 200
    found = cors(reply)
    assert found["access-control-allow-origin"] == origin
    assert found["access-control-allow-credentials"] == "true"
    assert set(found["access-control-allow-methods"].split(", ")) == {"GET", "POST", "DELETE"}
    allowed = {name.lower() for name in found["access-control-allow-headers"].split(", ")}
    assert {"authorization", "content-type", "x-tokenctl", "tokenctl-device"} <= allowed
    assert "*" not in str(found)
    assert "Origin" in reply.headers["vary"]


@pytest.mark.parametrize(
    ("method", "headers"), [("PUT", "content-type"), ("PATCH", "content-type"), ("POST", "x-evil")]
)
def test_not_with_every_method_and_header(live: Live, method: str, headers: str) -> None:
    assert preflight(live, APP, method, headers).status == 400


@pytest.mark.parametrize("origin", FOREIGN + LOCAL)
def test_no_other_page_is_let_in(live: Live, origin: str) -> None:
    reply = preflight(live, origin)
    assert reply.status == 400
    assert "access-control-allow-origin" not in reply.headers
    assert not origin or origin not in reply.body.decode()


@pytest.mark.parametrize("origin", [APP, *FOREIGN, *LOCAL])
def test_without_a_list_nobody_is(closed: Live, origin: str) -> None:
    reply = preflight(closed, origin)
    assert (reply.status, reply.headers["allow"], cors(reply)) == (405, "POST", {})
    assert cors(closed.get("/healthz", origin=origin)) == {}


def test_options_without_an_origin_is_no_preflight(live: Live) -> None:
    reply = live.send("OPTIONS", "/auth/refresh")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


# --- the requests themselves ----------------------------------------------------------------


def test_a_page_of_the_list_reads_answers_and_errors(live: Live) -> None:
    live.log_in("ada")
    login = {"username": "ada", "password": PASSWORD}
    replies = [
        live.post("/auth/login", login, origin=APP),
        live.post("/auth/login", login | {"password": "wrong"}, origin=APP),
        live.post("/auth/refresh", {"refresh_token": "x"}, origin=APP),
        live.get("/auth/me", origin=APP),
        live.get("/nothing", origin=APP),
        live.send("PUT", "/auth/login", None, {"Origin": APP}),
        live.send("POST", "/auth/login", b"x" * 9000, {"Origin": APP}),
        live.form("/oauth/token", {}, origin=APP),
        live.get("/.well-known/jwks.json", origin=APP),
    ]
    assert [reply.status for reply in replies] == [200, 401, 401, 401, 404, 405, 413, 400, 200]
    for reply in replies:
        assert cors(reply) == {
            "access-control-allow-origin": APP,
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": "Retry-After, WWW-Authenticate, X-Request-Id",
        }
        assert reply.headers["vary"] == "Origin"


def test_a_busy_server_s_page_reads_when_to_come_back(live: Live) -> None:
    pair = live.log_in("ada")
    live.site.rotations._limit, limit = 0, live.site.rotations._limit
    reply = live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}, origin=APP)
    live.site.rotations._limit = limit
    assert reply.status == 503
    assert reply.headers["retry-after"]
    assert reply.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("origin", FOREIGN + LOCAL)
def test_no_other_page_reads_anything(live: Live, origin: str) -> None:
    for reply in (live.get("/healthz", origin=origin), live.get("/auth/me", origin=origin)):
        assert "access-control-allow-origin" not in reply.headers
        assert not origin or origin not in str(reply.headers)


# --- with --dev ----------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [APP, *LOCAL])
def test_with_dev_a_page_of_this_machine_is_let_in(dev: Live, origin: str) -> None:
    for reply in (preflight(dev, origin), dev.get("/healthz", origin=origin)):
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize("origin", FOREIGN + NEARLY_LOCAL)
def test_with_dev_still_no_other_page(dev: Live, origin: str) -> None:
    for reply in (preflight(dev, origin), dev.get("/healthz", origin=origin)):
        assert "access-control-allow-origin" not in reply.headers


# --- the caller's address ------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxied(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server for which the tests' own client is a proxy, and 10.0.0.0/8 others."""
    networks = ("127.0.0.1/32", "10.0.0.0/8")
    with shared(new_database, tmp_path_factory.mktemp("proxied"), trusted_proxies=networks) as live:
        yield live


def recorded(live: Live, *forwarded: str, **headers: str) -> str | None:
    """The address that a login is stored with; one header X-Forwarded-For for all of `forwarded`."""
    name = live.service.create_user(somebody(), PASSWORD).name
    if forwarded:
        headers["x_forwarded_for"] = ", ".join(forwarded)
    reply = live.post("/auth/login", {"username": name, "password": PASSWORD}, **headers)
    assert reply.status == 200
    row = live.service.inspect(parse_unverified(reply.json["refresh_token"]).token_id).token
    assert live.log[-1]["ip"] in (row.issued.ip_text, *forwarded[-1:])
    return row.issued.ip_text


def test_nobody_s_word_counts_by_default(live: Live) -> None:
    assert recorded(live, "203.0.113.7") == "127.0.0.1"
    assert recorded(live, x_real_ip="203.0.113.7", forwarded_="x") == "127.0.0.1"
    assert recorded(live, x_forwarded_for="203.0.113.7", x_forwarded_proto="https") == "127.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "ip"),
    [
        pytest.param([], "127.0.0.1", id="the proxy itself"),
        pytest.param(["203.0.113.7"], "203.0.113.7", id="its client"),
        pytest.param(["203.0.113.7:4711"], "203.0.113.7", id="with a port"),
        pytest.param(["2001:db8::7"], "2001:db8::7", id="IPv6"),
        pytest.param(["[2001:db8::7]:4711"], "2001:db8::7", id="IPv6 with a port"),
        pytest.param(["203.0.113.7", "10.1.2.3"], "203.0.113.7", id="behind another proxy"),
        pytest.param(["203.0.113.7", "10.1.2.3", "10.9.9.9"], "203.0.113.7", id="behind two"),
        pytest.param(["198.51.100.1", "203.0.113.7"], "203.0.113.7", id="what the client says is not it"),
        pytest.param(
            ["127.0.0.1", "10.1.2.3", "203.0.113.7", "10.1.2.3"], "203.0.113.7", id="whatever it says"
        ),
        pytest.param(["10.1.2.3"], "10.1.2.3", id="nobody but proxies"),
    ],
)
def test_a_proxy_says_who_called(proxied: Live, forwarded: list[str], ip: str) -> None:
    assert recorded(proxied, *forwarded) == ip


@pytest.mark.parametrize(
    "forwarded",
    [
        "unknown",
        "_hidden",
        "203.0.113.7.9",
        "203.0.113.256",
        "' OR 1=1",
        "\u00e9",
        "x" * 5000,
        "[::1",
        "203.0.113.7;x",
        "fe80::1%eth0",
    ],
)
def test_what_is_no_address_is_an_unknown_one(proxied: Live, forwarded: str) -> None:
    assert recorded(proxied, forwarded) in (None, "fe80::1")
    assert recorded(proxied, "203.0.113.7", forwarded) in (None, "fe80::1")


@pytest.mark.parametrize("forwarded", ["", ",", ", ,", " "])
def test_an_empty_word_is_none(proxied: Live, forwarded: str) -> None:
    assert recorded(proxied, x_forwarded_for=forwarded) in (None, "127.0.0.1")


@pytest.mark.parametrize("name", ["x_real_ip", "forwarded", "client_ip", "true_client_ip"])
def test_no_other_header_counts(proxied: Live, name: str) -> None:
    assert recorded(proxied, **{name: "203.0.113.7"}) == "127.0.0.1"


def test_two_headers_are_one_list(proxied: Live) -> None:
    name = proxied.service.create_user(somebody(), PASSWORD).name
    body = b'{"username": "%s", "password": "%s"}' % (name.encode(), PASSWORD.encode())
    head = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.7\r\n"
    reply = proxied.raw(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert reply is not None
    row = proxied.service.inspect(parse_unverified(reply.json["refresh_token"]).token_id).token
    assert row.issued.ip_text == "203.0.113.7"


def test_the_address_of_the_last_use_is_the_caller_s(proxied: Live) -> None:
    pair = proxied.log_in("ada")
    string = pair["refresh_token"]
    proxied.post("/auth/refresh", {"refresh_token": string}, x_forwarded_for="203.0.113.9")
    row = proxied.service.inspect(string).token
    assert (row.issued.ip_text, row.last.ip_text) == ("127.0.0.1", "203.0.113.9")
