"""Guessing is slow, by account and by address; and nobody can lock another's account from afar."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.http.live import PASSWORD, Live, Reply, shared, somebody
from tokenctl.errors import Throttled
from tokenctl.http.site import MAX_LOGINS
from tokenctl.http.throttle import Throttle

HOME, AWAY, THIRD = "203.0.113.7", "198.51.100.9", "192.0.2.33"
NEW_PASSWORD = "nine herons paint by noon"
Start = Callable[..., Live]


@pytest.fixture
def start(new_database: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a server that believes this client, as a proxy, where a request came from."""
    with ExitStack() as stack:

        def start(**limits: Any) -> Live:
            return stack.enter_context(
                shared(new_database, tmp_path, trusted_proxies=("127.0.0.1",), **limits)
            )

        yield start


def log_in(live: Live, name: str, password: str = PASSWORD, *, ip: str = HOME) -> Reply:
    return live.post("/auth/login", {"username": name, "password": password}, x_forwarded_for=ip)


def statuses(live: Live, name: str, attempts: int, *, ip: str = HOME) -> list[int]:
    """What so many wrong passwords are answered with."""
    return [log_in(live, name, "wrong", ip=ip).status for _ in range(attempts)]


def demand_throttled(reply: Reply, window: int = 3600) -> None:
    assert reply.status == 429
    assert 1 <= int(reply.headers["retry-after"]) <= window
    assert reply.headers["cache-control"] == "no-store"
    assert (reply.json.get("code") or reply.json["error"]) in ("throttled", "temporarily_unavailable")


# --- by account ----------------------------------------------------------------------------


def test_wrong_passwords_of_an_account_come_to_an_end(start: Start) -> None:
    live = start(account_limit="3/minute")
    live.service.create_user("ada", PASSWORD)
    assert statuses(live, "ada", 3) == [401, 401, 401]
    throttled = log_in(live, "ada", "wrong")
    demand_throttled(throttled, 60)
    # Then the right one is not looked at either, from wherever, however the name is written.
    for name, ip in (("ada", HOME), ("ada", AWAY), ("ADA", THIRD), ("Ada", HOME)):
        demand_throttled(log_in(live, name, ip=ip), 60)
    assert log_in(live, "bob").status == 401


def test_an_unknown_account_is_throttled_alike(start: Start) -> None:
    live = start(account_limit="2/hour")
    assert statuses(live, "nobody", 2) == [401, 401]
    demand_throttled(log_in(live, "nobody"))


def test_all_spellings_of_a_name_are_one_account(start: Start) -> None:
    live = start(account_limit="3/hour")
    live.service.create_user("Zo\u00eb", PASSWORD)
    names = ["zo\u00eb", "ZO\u00cb", "zoe\u0308", "ZOE\u0308"]
    assert [log_in(live, name, "wrong").status for name in names] == [401, 401, 401, 429]


def test_strangers_cannot_lock_out_who_was_there_before(start: Start) -> None:
    live = start(account_limit="3/hour")
    live.service.create_user("ada", PASSWORD)
    assert log_in(live, "ada", ip=HOME).status == 200
    assert statuses(live, "ada", 5, ip=AWAY) == [401, 401, 401, 429, 429]
    demand_throttled(log_in(live, "ada", ip=AWAY))
    demand_throttled(log_in(live, "ada", ip=THIRD))
    assert [log_in(live, "ada", ip=HOME).status for _ in range(5)] == [200] * 5


def test_an_address_that_is_known_is_no_free_pass(start: Start) -> None:
    live = start(account_limit="3/hour")
    live.service.create_user("ada", PASSWORD)
    log_in(live, "ada", ip=HOME)
    assert statuses(live, "ada", 4, ip=HOME) == [401, 401, 401, 429]
    demand_throttled(log_in(live, "ada", ip=HOME))
    # Its count is its own: elsewhere all are still there.
    assert statuses(live, "ada", 4, ip=AWAY) == [401, 401, 401, 429]


def test_a_known_address_is_known_to_that_account_only(start: Start) -> None:
    live = start(account_limit="2/hour")
    for name in ("ada", "bob"):
        live.service.create_user(name, PASSWORD)
    log_in(live, "ada", ip=HOME)
    statuses(live, "bob", 2, ip=AWAY)
    demand_throttled(log_in(live, "bob", ip=HOME))


def test_the_right_password_clears_the_count(start: Start) -> None:
    live = start(account_limit="3/hour")
    live.service.create_user("ada", PASSWORD)
    for _ in range(3):
        assert statuses(live, "ada", 2) == [401, 401]
        assert log_in(live, "ada").status == 200


def test_attempts_at_the_same_time_cannot_exceed_the_limit(start: Start) -> None:
    live = start(account_limit="3/hour")
    live.service.create_user("ada", PASSWORD)
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda _: log_in(live, "ada", "wrong").status, range(12)))
    assert sorted(found) == [401] * 3 + [429] * 9
    assert len([each for each in live.service.audit.tail(50) if each.type == "login.failed"]) == 3


@pytest.mark.parametrize("path", ["/auth/login", "/auth/password", "/auth/register"])
def test_who_is_told_to_come_back_used_up_no_attempt(
    start: Start, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    live = start(account_limit="3/hour", address_limit="3/hour")
    live.service.create_user("ada", PASSWORD)
    token = log_in(live, "ada").json["access_token"]
    fields: dict[str, str] = {"username": somebody(), "password": PASSWORD}
    if path == "/auth/login":
        fields["username"] = "ada"
    elif path == "/auth/password":
        fields = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}

    def ask(ip: str) -> int:
        return live.post(path, fields, token, x_forwarded_for=ip).status

    with monkeypatch.context() as full:
        full.setattr(live.site.logins, "_held", MAX_LOGINS)
        assert [ask(AWAY) for _ in range(5)] == [503] * 5
    assert ask(AWAY) in (200, 201, 204)


def test_guessing_the_current_password_is_guessing(start: Start) -> None:
    live = start(account_limit="3/hour")
    live.service.create_user("ada", PASSWORD)
    token = log_in(live, "ada").json["access_token"]

    def change(current: str) -> Reply:
        fields = {"current_password": current, "new_password": NEW_PASSWORD}
        return live.post("/auth/password", fields, token, x_forwarded_for=HOME)

    assert [change("wrong").status for _ in range(3)] == [403, 403, 403]
    demand_throttled(change(PASSWORD))
    demand_throttled(log_in(live, "ada"))


# --- by address ----------------------------------------------------------------------------


def test_an_address_tries_so_many_accounts_and_no_more(start: Start) -> None:
    live = start(address_limit="3/hour")
    live.service.create_user("ada", PASSWORD)
    assert [log_in(live, somebody(), "wrong").status for _ in range(3)] == [401, 401, 401]
    demand_throttled(log_in(live, somebody()))
    demand_throttled(log_in(live, "ada"))
    assert log_in(live, "ada", ip=AWAY).status == 200


def test_right_passwords_are_no_attempts(start: Start) -> None:
    live = start(address_limit="2/hour", account_limit="2/hour")
    live.service.create_user("ada", PASSWORD)
    assert [log_in(live, "ada").status for _ in range(6)] == [200] * 6


def test_the_network_of_an_ipv6_address_counts_as_one(start: Start) -> None:
    live = start(address_limit="2/hour")
    ips = ["2001:db8::1", "2001:db8::ffff", "2001:db8:0:0:1::", "2001:db8:0:1::1"]
    assert [log_in(live, somebody(), "wrong", ip=ip).status for ip in ips] == [401, 401, 429, 401]


def test_registrations_from_an_address_come_to_an_end(start: Start) -> None:
    live = start(address_limit="3/hour")

    def register(name: str, ip: str = HOME) -> Reply:
        return live.post("/auth/register", {"username": name, "password": PASSWORD}, x_forwarded_for=ip)

    # One that fails counts as well: else it would tell for nothing who has an account.
    found = [register("ada").status, register("ada").status, register(somebody()).status]
    assert found == [201, 409, 201]
    before = live.service.users.count()
    demand_throttled(register(somebody()))
    assert live.service.users.count() == before
    assert register(somebody(), AWAY).status == 201


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/revoke", "/oauth/introspect"])
@pytest.mark.parametrize("where", ["header", "body"])
def test_guessing_a_client_s_secret_comes_to_an_end(start: Start, path: str, where: str) -> None:
    live = start(address_limit="3/hour")
    made = live.service.clients.create("api", introspect=True)

    def ask(secret: str | None, ip: str = HOME) -> Reply:
        fields = {"token": "x", "grant_type": "refresh_token", "refresh_token": "x"}
        headers = {"x_forwarded_for": ip}
        if where == "header":
            headers["authorization"] = "Basic " + b64encode(f"api:{secret}".encode()).decode()
        else:
            fields |= {"client_id": "api", "client_secret": secret or ""}
        return live.form(path, fields, **headers)

    right = ask(made.secret).status
    assert right in (200, 400)
    assert [ask("tks1_" + "A" * 43).status for _ in range(3)] == [401, 401, 401]
    demand_throttled(ask(made.secret))
    assert ask(made.secret, AWAY).status == right


def test_without_a_proxy_the_header_is_no_way_around(new_database: Path, tmp_path: Path) -> None:
    with shared(new_database, tmp_path, address_limit="2/hour") as live:
        ips = [HOME, AWAY, THIRD]
        assert [log_in(live, somebody(), "wrong", ip=ip).status for ip in ips] == [401, 401, 429]


# --- what is never throttled ---------------------------------------------------------------


def test_refreshes_are_never_throttled(start: Start) -> None:
    live = start(account_limit="1/hour", address_limit="1/hour")
    live.service.create_user("ada", PASSWORD)
    pair = log_in(live, "ada").json
    statuses(live, "ada", 3)
    statuses(live, "ada", 3, ip=AWAY)
    from_here = {"x_forwarded_for": AWAY}
    string = pair["refresh_token"]
    for _ in range(20):
        reply = live.post("/auth/refresh", {"refresh_token": string}, **from_here)
        assert reply.status == 200
        string = reply.json["refresh_token"]
        assert live.post("/auth/refresh", {"refresh_token": "x"}, **from_here).status == 401
    fields = {"grant_type": "refresh_token", "refresh_token": string}
    assert live.form("/oauth/token", fields, **from_here).status == 200
    assert live.get("/auth/me", reply.json["access_token"], **from_here).status == 200
    assert live.post("/auth/logout", {"refresh_token": string}, **from_here).status == 204


def test_none_switches_the_limits_off(start: Start) -> None:
    live = start(account_limit="none", address_limit="none")
    live.service.create_user("ada", PASSWORD)
    assert statuses(live, "ada", 80) == [401] * 80
    assert log_in(live, "ada").status == 200


def test_a_throttled_login_is_counted(start: Start) -> None:
    live = start(account_limit="1/hour")
    statuses(live, "ada", 3)
    metrics = live.get("/metrics").body.decode()
    assert 'tokenctl_logins_total{result="failed"} 1.0' in metrics
    assert 'tokenctl_logins_total{result="throttled"} 2.0' in metrics


# --- the throttle itself -------------------------------------------------------------------


def allowed(throttle: Throttle, name: str, ip: str | None) -> bool:
    try:
        throttle.attempt(name, ip)
    except Throttled:
        return False
    return True


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("192.0.2.1", "192.0.2.2", False, id="IPv4"),
        pytest.param("2001:db8::1", "2001:db8::2", True, id="one /64"),
        pytest.param("2001:db8::1", "2001:db8:0:1::1", False, id="another /64"),
        pytest.param("::ffff:192.0.2.1", "::ffff:192.0.2.2", False, id="IPv4 in IPv6"),
        pytest.param("::ffff:192.0.2.1", "192.0.2.1", True, id="IPv4 in IPv6 and without"),
        pytest.param("unknown", None, True, id="unknown"),
        pytest.param("fe80::1%eth0", "fe80::2%eth1", True, id="with a zone"),
    ],
)
def test_what_counts_as_one_address(one: str, other: str | None, same: bool) -> None:
    throttle = Throttle(account_limit="none", address_limit="1/hour")
    throttle.address_failed("login", one)
    assert not allowed(throttle, "ada", one)
    assert allowed(throttle, "ada", other) is not same


def test_who_fails_at_one_thing_is_not_kept_from_another() -> None:
    throttle = Throttle(account_limit="none", address_limit="1/hour")
    throttle.address_failed("login", HOME)
    throttle.address("register", HOME)
    throttle.address("client", HOME)
    assert not allowed(throttle, "ada", HOME)


def test_a_neighbour_who_guesses_does_not_lock_out_who_was_here_before() -> None:
    throttle = Throttle(account_limit="none", address_limit="1/hour")
    throttle.succeeded("ada", HOME)
    throttle.address_failed("login", HOME)
    assert allowed(throttle, "ada", HOME)
    assert not allowed(throttle, "bob", HOME)


def test_known_addresses_are_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenctl.http.throttle._KNOWN", 2)
    throttle = Throttle(account_limit="1/hour", address_limit="none")
    for ip in (HOME, AWAY, HOME, THIRD):
        throttle.succeeded("ada", ip)
    assert allowed(throttle, "ada", "192.0.2.250")  # the one attempt that strangers have
    found: dict[str, Any] = {ip: allowed(throttle, "ada", ip) for ip in (HOME, AWAY, THIRD)}
    assert found == {HOME: True, AWAY: False, THIRD: True}
