"""The rules of the client, as tables: no server, no clock, no file."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from tokenctl.client import (
    CallRefused,
    LoginEnded,
    RefreshFailed,
    StoreUnusable,
    TokenClientError,
    core,
)
from tokenctl.client.core import Answer, Ended, Failed, Login, Moment, Need, NoAnswer, Renewed, State

URL = "https://auth.example:443"
NOW = Moment(running=1000.0, wall=1_700_000_000.0, boot="this")
LOGIN = Login("access", "refresh", 600.0, NOW, URL, "default")


def later(seconds: float, *, wall: float | None = None, boot: str | None = "this") -> Moment:
    return Moment(NOW.running + seconds, NOW.wall + (seconds if wall is None else wall), boot)


def known(login: Login = LOGIN, **fields: Any) -> State:
    return replace(State(login=login, stored=login), **fields)


# --- time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "now", "left"),
    [
        (True, later(0), 600),
        (True, later(599), 1),
        (True, later(601), 0),
        (True, later(100, wall=-3600), 500),
        (True, later(100, wall=3600), 500),
        (False, later(100, wall=-3600), 500),
        (False, later(100, wall=3600), 500),
        # Another start of the machine: only the wall clock is left.
        (False, later(-900, wall=100, boot="next"), 500),
        (False, later(-900, wall=-100, boot="next"), 0),
        (False, later(100, wall=3600, boot="next"), 0),
        (False, later(5, wall=100, boot=None), 500),
        # The same start, and yet earlier: another time namespace.
        (False, later(-5), 0),
    ],
)
def test_how_long_a_token_lives(own: bool, now: Moment, left: float) -> None:
    assert core.remaining(replace(LOGIN, own=own), now) == left


def test_a_start_without_a_name_is_not_the_same_start() -> None:
    login = replace(LOGIN, asked_at=replace(NOW, boot=None))
    assert core.remaining(login, later(5, wall=100, boot=None)) == 500


@pytest.mark.parametrize(
    ("life", "jitter", "lead"),
    [(60, 0, 12), (60, 1, 9), (300, 0, 60), (600, 0, 60), (86_400, 0, 60), (86_400, 1, 45), (0, 1, 0)],
)
def test_the_lead_is_a_minute_or_a_fifth_of_the_life(life: float, jitter: float, lead: float) -> None:
    assert core.lead(life, jitter) == lead


@pytest.mark.parametrize(
    ("state", "now", "need"),
    [
        (State(), NOW, Need.REFRESH),
        (State(ended=True), NOW, Need.REFRESH),
        (known(), NOW, Need.USE),
        (known(), later(539), Need.USE),
        (known(), later(541), Need.AHEAD),
        (known(jitter=1.0), later(541), Need.USE),
        (known(jitter=1.0), later(556), Need.AHEAD),
        (known(), later(600), Need.REFRESH),
        (known(cool_until=NOW.running + 550), later(541), Need.USE),
        (known(cool_until=NOW.running + 650), later(601), Need.REFRESH),
        (known(ahead_from=NOW.running + 550), later(541), Need.USE),
        (known(ahead_from=NOW.running + 550), later(550), Need.AHEAD),
        (known(ahead_from=NOW.running + 650), later(601), Need.REFRESH),
        (known(stored=None), NOW, Need.AHEAD),  # to store what could not be stored
        (known(stored=None, cool_until=NOW.running + 5), NOW, Need.USE),
    ],
)
def test_what_a_request_needs(state: State, now: Moment, need: Need) -> None:
    assert core.need(state, now) is need


# --- whose tokens count ----------------------------------------------------------------------

THEIRS = replace(LOGIN, access_token="theirs", refresh_token="their refresh")
SPENT = replace(THEIRS, expires_in=0.0)


@pytest.mark.parametrize(
    ("state", "stored", "rejected", "found"),
    [
        (State(), None, None, core.Found(None, good=False)),
        (State(), LOGIN, None, core.Found(LOGIN, good=True)),
        (known(), LOGIN, None, core.Found(LOGIN, good=True)),
        (known(), LOGIN, "access", core.Found(LOGIN, good=False)),
        (known(), THEIRS, "access", core.Found(THEIRS, good=True)),
        (known(), THEIRS, "theirs", core.Found(THEIRS, good=False)),
        (known(), SPENT, None, core.Found(SPENT, good=False)),
        (known(), None, None, core.Found(None, good=False)),  # somebody logged out
        # Ours could not be stored: what is stored is older, unless another one has changed it since.
        (known(stored=THEIRS), THEIRS, None, core.Found(LOGIN, good=True, unsaved=True)),
        (known(stored=THEIRS), None, None, core.Found(None, good=False)),
        (known(stored=None), THEIRS, None, core.Found(THEIRS, good=True)),
    ],
)
def test_whose_tokens_count(
    state: State, stored: Login | None, rejected: str | None, found: core.Found
) -> None:
    assert core.reconcile(state, stored, rejected, NOW) == replace(found, stored=stored)


def test_only_another_ones_tokens_end_a_cool_down() -> None:
    cooled = core.cooled(known(), Failed("no"), NOW, 0.0)
    assert core.cooling(core.adopted(cooled, LOGIN, LOGIN, 0.5), NOW) == 1
    assert core.cooling(core.adopted(cooled, THEIRS, THEIRS, 0.5), NOW) == 0


def test_a_401_is_for_an_older_token() -> None:
    assert core.is_older("before", known())
    assert not core.is_older("access", known())
    assert not core.is_older("access", State())


# --- answers ----------------------------------------------------------------------------------

PAIR = {"access_token": "a", "refresh_token": "r", "expires_in": 60, "scope": "s", "user": {"id": "usr_1"}}


def answer(status: int, body: Any = None, **headers: str) -> Answer:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, text)


@pytest.mark.parametrize("status", [200, 201])
def test_an_answer_with_a_pair(status: int) -> None:
    login = Login("a", "r", 60.0, NOW, URL, "app", scope="s", user_id="usr_1")
    assert core.judge(answer(status, PAIR), NOW, URL, "app") == Renewed(login)


@pytest.mark.parametrize(
    "said",
    [
        answer(401, {"code": "invalid_grant"}),
        answer(400, {"code": "invalid_grant", "detail": "…"}),
    ],
)
def test_an_answer_that_ends_the_login(said: Answer) -> None:
    assert core.judge(said, NOW, URL, "app") == Ended()


#: No text that could stand in a header.
_BAD = ("", "a b", "a\r\nX: b", "ä", 5)


@pytest.mark.parametrize(
    "said",
    [
        answer(status, body)
        for status, body in [
            *((status, {}) for status in (301, 400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 504)),
            *((status, {"code": "invalid_grant"}) for status in (403, 422, 429, 500, 503)),
            *((401, {"code": code}) for code in ("invalid_token", "invalid_client", "x" * 100, 3, None)),
            *((401, body) for body in (b"", b"<html>", b"[]", b"[" * 100_000, b"\xff", b"null")),
            *((200, {**PAIR, name: None}) for name in ("access_token", "refresh_token", "expires_in")),
            *((200, {**PAIR, "expires_in": life}) for life in ("60", True, [60])),
            *((200, {**PAIR, name: bad}) for name in ("access_token", "refresh_token") for bad in _BAD),
            *((200, body) for body in (b"", b"<html>", b"[]")),
        ]
    ],
)
def test_any_other_answer_ends_nothing(said: Answer) -> None:
    outcome = core.judge(said, NOW, URL, "app")
    assert isinstance(outcome, Failed)
    assert outcome.status == said.status


def test_no_answer_ends_nothing() -> None:
    assert core.judge(NoAnswer(lost=True, reason="why"), NOW, URL, "app") == Failed("why")


DATE = "Mon, 23 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "99999999999999"}, 3600),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT", "date": DATE}, 30),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT", "date": DATE}, 0),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, None),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "7.5"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "soon", "date": DATE}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert core.retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("failures", "said", "jitter", "wait"),
    [
        (0, None, 0.0, 1),
        (0, None, 1.0, 0.5),
        (1, None, 0.0, 2),
        (2, None, 0.0, 4),
        (3, None, 0.0, 7.5),
        (5000, None, 0.0, 7.5),
        (0, 7.0, 0.0, 7),
        (0, 7.0, 1.0, 7.5),
        (0, 0.0, 0.0, 1),
    ],
)
def test_the_cool_down(failures: int, said: float | None, jitter: float, wait: float) -> None:
    state = core.cooled(known(failures=failures), Failed("no", 503, retry_after=said), NOW, jitter)
    assert core.cooling(state, NOW) == pytest.approx(wait)
    assert core.cooling(state, later(wait + 0.001)) == 0
    assert (state.login, state.failures, state.cool_status) == (LOGIN, failures + 1, 503)


@pytest.mark.parametrize(
    "error",
    [
        RefreshFailed("why", status=503, retry_after=2.0),
        CallRefused("why", status=401, code="password.wrong", hint="type it again"),
        LoginEnded("why"),
        StoreUnusable("why", hint="what to do"),
    ],
)
def test_errors_come_back_from_another_process(error: TokenClientError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


# --- where tokens may go ----------------------------------------------------------------------

SCOPE = core.Scope(core.base("https://auth.example/tokens/"), frozenset({URL, "https://api.example:8443"}))


@pytest.mark.parametrize(
    ("url", "covered"),
    [
        ("https://auth.example/", True),
        ("https://auth.example:443/tokens/auth/me", True),
        ("https://AUTH.example/x", True),
        ("https://api.example:8443/auth/login", True),
        ("https://auth.example/tokens/auth/login", False),
        ("https://auth.example/tokens/auth/refresh?x=1", False),
        ("https://auth.example/auth/refresh", True),  # not the server's own path
        ("http://auth.example/", False),
        ("https://auth.example:8443/", False),
        ("https://api.example/", False),
        ("https://auth.example.evil.example/", False),
        ("https://auth.example@evil.example/", False),
        ("ftp://auth.example/", False),
        ("https:///x", False),
        ("https://auth.example:99999/", False),
    ],
)
def test_where_the_token_goes(url: str, covered: bool) -> None:
    assert SCOPE.covers(url) is covered


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://auth.example", "https://auth.example:443"),
        ("http://localhost:8460/", "http://localhost:8460"),
        ("https://Auth.Example/a/b/", "https://auth.example:443/a/b"),
        ("http://[::1]:8460", "http://[::1]:8460"),
        ("https://bücher.example", "https://xn--bcher-kva.example:443"),
    ],
)
def test_the_address_of_the_server(url: str, base: str) -> None:
    assert core.base(url) == base


@pytest.mark.parametrize(
    "url",
    ["", "auth.example", "ftp://auth.example", "https://", "https://u:p@h", "https://h/?q", "https://h#f"],
)
def test_no_address_of_a_server(url: str) -> None:
    with pytest.raises(ValueError, match="https://"):
        core.base(url)


@pytest.mark.parametrize(
    ("length", "kept"),
    [(None, False), ("", False), ("0", True), ("1048576", True), ("1048577", False), ("x", False)],
)
def test_which_bodies_are_kept(length: str | None, kept: bool) -> None:
    assert core.keeps_body(length) is kept
