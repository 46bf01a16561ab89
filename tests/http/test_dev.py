"""`tokenctl serve --dev`: all that a developer needs on the spot, a clock that goes ahead, faults on demand,
and a stream of events; none of which exists without it.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.http.conftest import StartServer
from tests.http.live import Live, Reply
from tests.http.spawned import Spawned, serving, spawn
from tests.sample import SAMPLE
from tokenctl.http.dev import DEMO_PASSWORD, DEMO_USER

DAY = 86_400
#: An answer of which there is no more than the beginning.
CUT = (ConnectionResetError, http.client.IncompleteRead)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Spawned]:
    """A server of the test's own, in an empty directory."""
    with serving(tmp_path, "--dev") as server:
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawned]:
    """One server for all tests that leave its clock alone, and no fault behind."""
    with serving(tmp_path_factory.mktemp("dev"), "--dev") as server:
        yield server


def log_in(server: Spawned) -> dict[str, Any]:
    reply = server.post("/auth/login", {"username": DEMO_USER, "password": DEMO_PASSWORD})
    assert reply.status == 200, reply.body
    pair: dict[str, Any] = reply.json
    return pair


def refresh(server: Spawned, string: str) -> Reply:
    return server.post("/auth/refresh", {"refresh_token": string})


def advance(server: Spawned, seconds: int) -> None:
    reply = server.post("/dev/clock", {"seconds": seconds})
    assert reply.status == 200, reply.body


# the start


def test_in_an_empty_directory_it_makes_what_it_needs(tmp_path: Path) -> None:
    with serving(tmp_path, "--dev") as server:
        assert json.loads(server.stdout.read_text()) == {
            "url": server.url,
            "issuer": f"http://localhost:{server.port}",
            "database": "tokenctl-dev.db",
            "dev": True,
        }
        assert (tmp_path / "tokenctl-dev.db").exists()
        assert (tmp_path / "tokenctl-dev.db.key").stat().st_mode & 0o777 == 0o600
        pair = log_in(server)
        assert pair["expires_in"] == 60
        claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
        assert claims["iss"] == f"http://localhost:{server.port}"
        assert claims["exp"] - claims["iat"] == 60
        assert server.get("/auth/me", pair["access_token"]).json["name"] == DEMO_USER
    # A second start finds it all, with the login of the first.
    with serving(tmp_path, "--dev") as again:
        assert refresh(again, pair["refresh_token"]).status == 200
        log_in(again)


def test_a_password_of_eight_characters_will_do(shared: Spawned) -> None:
    body = {"username": "dora", "password": "kx7 vw2p"}
    assert shared.post("/auth/register", body).status == 201
    assert shared.post("/auth/register", {"username": "emil", "password": "kx7 vw2"}).status == 422


def test_what_was_set_stays_set(tmp_path: Path) -> None:
    (tmp_path / "tokenctl.toml").write_text('password_min_length = "12"\n')
    env = {"TOKENCTL_ISSUER": "http://127.0.0.1:9999"}
    with serving(tmp_path, "--dev", "--access-ttl", "5m", "--database", "mine.db", env=env) as server:
        said = json.loads(server.stdout.read_text())
        assert (said["issuer"], said["database"]) == ("http://127.0.0.1:9999", "mine.db")
        assert log_in(server)["expires_in"] == 300
        assert server.post("/auth/register", {"username": "dora", "password": "kx7 vw2p"}).status == 422


def test_it_runs_on_a_copy_of_the_sample_whose_clock_goes_on_from_its_own(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "sample.db")
    with serving(tmp_path, "--dev", "--database", "sample.db") as server:
        pair = log_in(server)
        issued = jwt.decode(pair["access_token"], options={"verify_signature": False})["iat"]
        assert 1_773_400_000 < issued < 1_773_500_000  # 2026-03-13 or -14, and not today
        assert refresh(server, pair["refresh_token"]).status == 200
        assert "this is the sample database" in server.stderr.read_text()


def test_for_people_it_says_where_to_look_and_how_to_log_in(
    start_server: StartServer, tmp_path: Path
) -> None:
    said = start_server("--dev", database=tmp_path / "dev.db").log.read_text()
    assert f"{DEMO_USER} / {DEMO_PASSWORD}" in said
    assert "/docs" in said


@pytest.mark.parametrize("more", [(), ("--behind-proxy",)])
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_this_machine_it_is_refused(tmp_path: Path, host: str, more: tuple[str, ...]) -> None:
    server = spawn(tmp_path, "--dev", "--host", host, *more)
    if server.url:
        server.kill()
        pytest.fail(f"it serves {server.url}")
    assert server.wait() == 2
    assert '"code": "config.invalid"' in server.stderr.read_text()
    assert "tokenctl-dev.db" not in [file.name for file in tmp_path.iterdir()]


def test_an_issuer_that_is_no_address_is_refused(tmp_path: Path) -> None:
    for issuer in ("https://[x", "https://a.example:99999999"):
        server = spawn(tmp_path, "--dev", "--issuer", issuer)
        assert server.wait() == 2
        assert '"code": "config.invalid"' in server.stderr.read_text()


# the clock


def test_the_clock_goes_ahead(dev: Spawned) -> None:
    pair = log_in(dev)
    assert dev.get("/auth/me", pair["access_token"]).status == 200
    before = dev.post("/dev/clock", {"seconds": 1}).json
    advance(dev, 90)
    assert dev.get("/auth/me", pair["access_token"]).status == 401
    string = refresh(dev, pair["refresh_token"]).json["refresh_token"]
    # Used now and then it lives for 30 days, however often that is.
    for _ in range(2):
        advance(dev, 13 * DAY)
        string = refresh(dev, string).json["refresh_token"]
    advance(dev, 5 * DAY)
    dead = refresh(dev, string)
    assert (dead.status, dead.json["code"]) == (401, "invalid_grant")
    after = dev.post("/dev/clock", {"seconds": 1}).json
    assert after["offset"] - before["offset"] == 31 * DAY + 91
    assert after["now"] - before["now"] >= 31 * DAY + 91


def test_the_clock_lets_an_idle_login_and_the_grace_run_out(dev: Spawned) -> None:
    idle, spent = log_in(dev)["refresh_token"], log_in(dev)["refresh_token"]
    successor = refresh(dev, spent).json["refresh_token"]
    advance(dev, 31)
    assert refresh(dev, spent).status == 401  # later than the grace: reuse
    assert refresh(dev, successor).status == 401
    advance(dev, 15 * DAY)
    assert refresh(dev, idle).status == 401


@pytest.mark.parametrize("seconds", [0, -5, 40_000_000, 1.5, "60", None])
def test_the_clock_takes_only_seconds_ahead(shared: Spawned, seconds: object) -> None:
    assert shared.post("/dev/clock", {"seconds": seconds}).status == 422


# faults


@contextmanager
def fault(server: Spawned, **fields: Any) -> Iterator[None]:
    reply = server.post("/dev/faults", fields)
    assert reply.status == 200, reply.body
    try:
        yield
    finally:
        assert server.post("/dev/faults", {"kind": "none"}).status == 200


def test_a_dropped_answer_was_committed_and_the_retry_gets_the_same_one(shared: Spawned) -> None:
    first = log_in(shared)["refresh_token"]
    with fault(shared, kind="drop"):
        with pytest.raises(CUT):
            refresh(shared, first)
        got = refresh(shared, first)
    assert got.status == 200
    assert refresh(shared, first).json["refresh_token"] == got.json["refresh_token"]
    # Committed by the first, so what we got was a retry.
    counted = shared.get("/metrics").body.decode()
    assert 'tokenctl_rotations_total{result="retried"} 2.0' in counted
    assert refresh(shared, got.json["refresh_token"]).status == 200


def test_a_dropped_answer_has_begun_and_has_no_cookie(tmp_path: Path) -> None:
    """A browser that got no byte of it would ask again by itself, and the page would never know."""
    with serving(tmp_path, "--dev", "--cookies") as server:
        headers = {"X-Tokenctl": "1", "Origin": f"http://localhost:{server.port}"}
        body = {"username": DEMO_USER, "password": DEMO_PASSWORD}
        server.post("/dev/faults", {"kind": "drop", "path": "/auth/login"})
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
            connection.request(
                "POST", "/auth/login", json.dumps(body), {"Content-Type": "application/json", **headers}
            )
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.headers["set-cookie"] is None
            with pytest.raises(CUT):
                answer.read()
        assert server.send("POST", "/auth/login", body, headers).headers["set-cookie"]


def test_a_drop_ends_only_its_own_connection(shared: Spawned) -> None:
    string = log_in(shared)["refresh_token"]
    with closing(http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)) as other:
        other.request("GET", "/healthz")
        assert other.getresponse().read()
        with fault(shared, kind="drop"), pytest.raises(CUT):
            refresh(shared, string)
        other.request("GET", "/healthz")
        assert other.getresponse().status == 200


def test_unavailable_is_503_with_retry_after_and_changes_nothing(shared: Spawned) -> None:
    string = log_in(shared)["refresh_token"]
    with fault(shared, kind="unavailable", count=2):
        for _ in range(2):
            reply = refresh(shared, string)
            assert (reply.status, reply.json["code"]) == (503, "unavailable")
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.headers["cache-control"] == "no-store"
            assert {"title", "status", "detail", "request_id"} <= reply.json.keys()
        assert refresh(shared, string).status == 200


def test_a_fault_under_oauth_looks_as_oauth_errors_do(shared: Spawned) -> None:
    with fault(shared, kind="unavailable", path="/oauth/token"):
        reply = shared.send("POST", "/oauth/token")
    assert (reply.status, reply.json["error"]) == (503, "temporarily_unavailable")
    assert reply.headers["content-type"] == "application/json"


def test_a_page_can_read_a_fault_and_is_cut_off_like_anybody(shared: Spawned) -> None:
    page = {"Origin": "http://localhost:5173"}
    body = {"refresh_token": log_in(shared)["refresh_token"]}
    with fault(shared, kind="unavailable"):
        reply = shared.send("POST", "/auth/refresh", body, page)
    assert reply.status == 503
    assert reply.headers["access-control-allow-origin"] == page["Origin"]
    assert "Retry-After" in reply.headers["access-control-expose-headers"]
    with fault(shared, kind="drop"), pytest.raises(CUT):
        shared.send("POST", "/auth/refresh", body, page)
    assert shared.send("POST", "/auth/refresh", body, page).status == 200


def test_a_delay_delays_that_path_and_no_other(shared: Spawned) -> None:
    string = log_in(shared)["refresh_token"]
    with fault(shared, kind="delay", milliseconds=1500), ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        slow = pool.submit(refresh, shared, string)
        assert shared.get("/healthz").status == 200
        assert time.monotonic() - started < 1.5
        assert slow.result().status == 200
        assert time.monotonic() - started >= 1.5


def test_a_fault_may_be_of_another_path_and_is_used_up(shared: Spawned) -> None:
    with fault(shared, kind="unavailable", count=3, path="/healthz"):
        assert refresh(shared, log_in(shared)["refresh_token"]).status == 200
        assert [shared.get("/healthz").status for _ in range(4)] == [503, 503, 503, 200]
    with fault(shared, kind="unavailable", count=9, path="/healthz"):
        assert shared.get("/healthz").status == 503
    assert shared.get("/healthz").status == 200  # `none` ended it


def test_a_fault_that_there_is_none_of_is_refused(shared: Spawned) -> None:
    for fields in ({"kind": "explode"}, {}, {"kind": "drop", "count": 0}, {"kind": "drop", "more": 1}):
        assert shared.post("/dev/faults", fields).status == 422


# under which names it answers


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_it_answers_to_the_names_of_this_machine(shared: Spawned, name: str) -> None:
    for host in (name, f"{name}:{shared.port}"):
        assert shared.send("GET", "/dev/state", None, {"Host": host}).status == 200


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_a_page_of_another_name_gets_nothing(shared: Spawned, name: str) -> None:
    """DNS rebinding: the name leads here, and to a browser the page is one of our origin."""
    for path in ("/", "/dev/state", "/dev/events", "/auth/me"):
        assert shared.send("GET", path, None, {"Host": f"{name}:{shared.port}"}).status == 400
    origin = {"Host": name, "Origin": f"http://{name}"}
    assert shared.send("POST", "/dev/clock", {"seconds": 60}, origin).status == 400


# the page, and what it has to know


def test_the_page_and_its_files_are_there(shared: Spawned) -> None:
    page = shared.get("/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["cache-control"] == "no-cache"
    named = set(re.findall(rb'(?:src|href)="(/page/[^"]+)"', page.body))
    assert named == {b"/page/page.css", b"/page/page.js"}
    for name in ("page.css", "page.js", "dom.js"):
        reply = shared.get(f"/page/{name}")
        assert (reply.status, reply.headers["x-content-type-options"]) == (200, "nosniff")
        assert reply.headers["content-security-policy"] == page.headers["content-security-policy"]
    for name in ("none.js", "..%2Ftokenctl.js", "%2e%2e/package.json", ""):
        assert shared.get(f"/page/{name}").status == 404
    assert shared.post("/", {}).headers["allow"] == "GET, HEAD"


def test_the_state_is_what_was_caused(dev: Spawned) -> None:
    state = dev.get("/dev/state").json
    assert (state["username"], state["password"], state["cookies"]) == (DEMO_USER, DEMO_PASSWORD, False)
    assert state["issuer"] == state["audience"] == f"http://localhost:{dev.port}"
    assert (state["fault"]["kind"], state["clock"]["offset"]) == ("none", 0)
    advance(dev, 60)
    dev.post("/dev/faults", {"kind": "unavailable", "count": 2})
    refresh(dev, "any")
    state = dev.get("/dev/state").json
    assert (state["fault"]["kind"], state["fault"]["count"]) == ("unavailable", 1)
    assert state["clock"]["offset"] == 60
    assert abs(state["clock"]["now"] - time.time() - 60) < 30
    refresh(dev, "any")
    assert dev.get("/dev/state").json["fault"]["kind"] == "none"


# the stream of events


@contextmanager
def listening(
    server: Spawned, query: str = "", headers: dict[str, str] | None = None, event: str = "audit"
) -> Iterator[Callable[[], dict[str, Any]]]:
    """The stream; calling what it gives waits for the next one of those events."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("GET", f"/dev/events{query}", headers=headers or {})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        begin = [answer.readline() for _ in range(4)]
        assert begin[0].startswith(b"id: ")
        assert begin[1:] == [b"event: listening\n", b"data:\n", b"\n"]

        def following() -> dict[str, Any]:
            fields: dict[str, str] = {}
            while fields.get("event") != event:
                fields = {}
                while (line := answer.readline().decode().rstrip("\n")) != "":
                    name, _, value = line.partition(": ")
                    fields[name] = value
            told: dict[str, Any] = json.loads(fields["data"])
            assert event != "audit" or fields["id"] == str(told["id"])
            return told

        yield following


def test_the_stream_tells_of_each_event_as_it_happens(shared: Spawned) -> None:
    with listening(shared) as following, listening(shared) as other:
        pair = log_in(shared)
        spent = pair["refresh_token"]
        refresh(shared, refresh(shared, spent).json["refresh_token"])
        refresh(shared, spent)
        for each in (following, other):
            told = {}
            while "token.reuse" not in told:
                event = each()
                told[event["type"]] = event
            assert [*told] == ["login.ok", "token.issue", "token.reuse"]
            assert {event["user"] for event in told.values()} == {DEMO_USER}
            assert told["token.issue"]["token_id"] == told["token.reuse"]["token_id"]
            assert pair["refresh_token"] not in str(told)


def test_the_stream_tells_of_refreshes(shared: Spawned) -> None:
    first = log_in(shared)["refresh_token"]
    with listening(shared, event="refresh") as following, listening(shared, event="refresh") as other:
        refresh(shared, first)
        refresh(shared, first)
        refresh(shared, "tkr1_no")
        for each in (following, other):
            told = [each() for _ in range(3)]
            assert [one["status"] for one in told] == [200, 200, 401]
            assert [one["reason"] or one["code"] for one in told] == [None, "retried", "token.invalid"]
            assert told[0]["token_id"] == told[1]["token_id"]
            assert first not in str(told)


def test_who_comes_again_misses_nothing(shared: Spawned) -> None:
    with listening(shared) as following:
        log_in(shared)
        login, issue = following(), following()
    with listening(shared, f"?after={login['id']}") as following:
        assert following() == issue
    with listening(shared, headers={"Last-Event-ID": str(login["id"])}) as following:
        assert following() == issue


@pytest.mark.parametrize("said", ["", "x", "-1", "1e3", "9" * 30, "%00"])
def test_who_says_no_number_gets_what_comes(shared: Spawned, said: str) -> None:
    log_in(shared)
    with listening(shared, f"?after={said}") as following:
        shared.post("/auth/login", {"username": "nobody", "password": "x"})
        assert following()["type"] == "login.failed"


def test_ids_of_a_database_that_was_there_before_hide_nothing(shared: Spawned) -> None:
    with listening(shared, "?after=999999999") as following:
        log_in(shared)
        assert following()["type"] == "login.ok"


def test_whoever_asks_for_the_head_of_the_stream_gets_no_more(shared: Spawned) -> None:
    reply = shared.send("HEAD", "/dev/events")
    assert (reply.status, reply.body) == (200, b"")


def test_a_listener_who_goes_away_costs_nothing(shared: Spawned) -> None:
    for _ in range(20):
        with listening(shared):
            pass
    with listening(shared) as following:
        log_in(shared)
        assert following()["type"] == "login.ok"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_stream(tmp_path: Path, signum: int) -> None:
    server = spawn(tmp_path, "--dev")
    with listening(server):
        started = time.monotonic()
        assert server.stop(signum) == 0
        assert time.monotonic() - started < 10
    assert "Traceback" not in server.stderr.read_text()


def test_whoever_posts_to_the_stream_is_told(shared: Spawned) -> None:
    for method in ("POST", "DELETE", "PUT"):
        reply = shared.send(method, "/dev/events")
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json["code"] == "route.method_not_allowed"
        assert reply.json["request_id"] == reply.headers["x-request-id"]


# who may, and where it is not


def test_any_page_of_localhost_may_call_it_and_no_other(shared: Spawned) -> None:
    for origin in ("http://localhost:5173", "http://127.0.0.1:3000", "https://localhost", "http://[::1]:1"):
        reply = shared.send("GET", "/healthz", None, {"Origin": origin})
        assert reply.headers["access-control-allow-origin"] == origin
        assert reply.headers["access-control-allow-credentials"] == "true"
    for origin in (
        "http://localhost.evil.example",
        "https://evil.example",
        "http://127.0.0.1.nip.io",
        "null",
    ):
        reply = shared.send("GET", "/healthz", None, {"Origin": origin})
        assert "access-control-allow-origin" not in reply.headers
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in shared.send("OPTIONS", "/dev/clock", None, asked).headers


def test_a_page_of_another_site_cannot_cause_a_fault_or_move_the_clock(shared: Spawned) -> None:
    # What a form or `fetch` may send without a preflight: no JSON.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        for path, body in (("/dev/clock", {"seconds": 60}), ("/dev/faults", {"kind": "drop"})):
            headers = {"Content-Type": kind, "Origin": "https://evil.example"}
            assert shared.send("POST", path, body, headers).status == 415


def test_cookies_work_on_plain_localhost(tmp_path: Path) -> None:
    with serving(tmp_path, "--dev", "--cookies") as server:
        headers = {"Origin": "http://localhost:5173", "X-Tokenctl": "1"}
        body = {"username": DEMO_USER, "password": DEMO_PASSWORD}
        reply = server.send("POST", "/auth/login", body, headers)
        assert reply.status == 200
        assert "refresh_token" not in reply.json
        cookie, _, attributes = reply.headers["set-cookie"].partition("; ")
        assert cookie.startswith("tokenctl=tkr1_")
        assert "Secure" not in attributes
        assert "HttpOnly; SameSite=Strict" in attributes
        again = server.send("POST", "/auth/refresh", None, headers | {"Cookie": cookie})
        assert again.status == 200
        assert again.headers["set-cookie"] != reply.headers["set-cookie"]


@pytest.mark.parametrize(
    "path",
    ["/dev/clock", "/dev/faults", "/dev/state", "/dev/events", "/dev", "/dev/", "/", "/page/page.js"],
)
def test_without_development_there_is_none_of_it(live: Live, path: str) -> None:
    for reply in (live.get(path), live.post(path, {"seconds": 1}), live.post(path, {"kind": "drop"})):
        assert (reply.status, reply.json["code"]) == (404, "route.not_found")
