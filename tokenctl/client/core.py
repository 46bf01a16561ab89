"""What the client decides: when to refresh, what an answer means, whose tokens are newer.

Owns every rule of the client, as pure functions over plain data. No clock, no network, no file, no thread:
`now` comes in, a decision goes out. `session.py` does what is decided here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

#: A refresh is due this long before the access token expires (s), or at this share of its life if less.
LEAD = 60.0
LEAD_SHARE = 0.2
#: By how much of itself jitter shortens the lead: clients that logged in together do not refresh together.
LEAD_JITTER = 0.25

#: Between failed refreshes (s), when the server does not say. The longest is a quarter of the server's
#: default grace: an answer that got lost has to be asked for again while the server still gives it again.
FIRST_COOL_DOWN = 1.0
LONGEST_COOL_DOWN = 7.5
#: No Retry-After is honoured for longer (s): a server's mistake must not lock a program for a year.
LONGEST_RETRY_AFTER = 3600.0

#: A streamed body of at most so many bytes is kept in memory, to be sent again after a 401.
LARGEST_KEPT_BODY = 1024 * 1024

#: What is posted there carries its own credentials: no access token, and no refresh for a 401.
OWN_PATHS = (
    "/auth/register",
    "/auth/login",
    "/auth/refresh",
    "/auth/logout",
    "/oauth/token",
    "/oauth/revoke",
    "/oauth/introspect",
)


# --- time ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant, read from two clocks.

    `running`: seconds that the machine has been running, sleep included; nobody can set that clock. It is the
    same for every process until the next start, which `boot` names (None: not known here). `wall`: seconds
    since the epoch, which may be wrong and may jump.
    """

    running: float
    wall: float
    boot: str | None = None


def elapsed(since: Moment, now: Moment, *, same_process: bool) -> float:
    """Seconds from one instant to another; negative when they cannot be compared.

    The wall clock is asked only where the other one cannot say: about what another process stored before
    the machine was started, or where a start has no name.
    """
    if same_process or (since.boot is not None and since.boot == now.boot):
        return now.running - since.running
    return now.wall - since.wall


# --- the login -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Login:
    """The tokens of one login, as a store keeps them. Its repr shows no part of a token."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    #: The life of the access token (s) from `asked_at`, when the request for it was sent.
    expires_in: float
    asked_at: Moment
    #: Whose login it is: tokens are never sent to another server, or as another client.
    base_url: str
    client_id: str
    scope: str = ""
    user_id: str | None = None
    #: Not stored: whether this process got it from the server, so that its own clock is good enough.
    own: bool = field(default=False, compare=False, repr=False)


def same(one: Login | None, other: Login | None) -> bool:
    """Whether these are the same tokens."""
    if one is None or other is None:
        return one is other
    return (one.access_token, one.refresh_token) == (other.access_token, other.refresh_token)


def remaining(login: Login, now: Moment) -> float:
    """Seconds that the access token still lives; 0 when it is not known, which costs one refresh."""
    passed = elapsed(login.asked_at, now, same_process=login.own)
    if passed < 0:
        return 0.0
    return max(0.0, login.expires_in - passed)


def lead(life: float, jitter: float) -> float:
    """How long before the expiry of an access token a refresh is due (s). `jitter`: from 0 to 1."""
    return min(LEAD, LEAD_SHARE * life) * (1 - LEAD_JITTER * jitter)


# --- the state, and what is to be done ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What one client knows. `session.py` holds one, and puts another in its place."""

    login: Login | None = None
    #: What the store held when we last looked. Other than `login` while ours could not be stored.
    stored: Login | None = None
    #: One more at each login and logout of our own: what began before counts no longer.
    epoch: int = 0
    #: The server has said that the login is over.
    ended: bool = False
    failures: int = 0
    #: Until when (`Moment.running`) nobody asks the server, and why.
    cool_until: float = 0.0
    cool_status: int | None = None
    cool_reason: str = ""
    #: From when (`Moment.running`) a refresh ahead may be begun again: the last refresh brought nothing.
    ahead_from: float = 0.0
    #: From 0 to 1, drawn anew for each access token.
    jitter: float = 0.0


class Need(Enum):
    USE = "use"  # the access token is good
    AHEAD = "ahead"  # it is good, and a refresh is due: use it, and refresh beside
    REFRESH = "refresh"  # look at the store, and refresh, before the request is sent


def need(state: State, now: Moment) -> Need:
    """What a request needs before it is sent."""
    if state.login is None:
        return Need.REFRESH
    left = remaining(state.login, now)
    if left <= 0:
        return Need.REFRESH
    due = left <= lead(state.login.expires_in, state.jitter) or not same(state.login, state.stored)
    waits = cooling(state, now) or now.running < state.ahead_from
    return Need.AHEAD if due and not waits else Need.USE


def cooling(state: State, now: Moment) -> float:
    """Seconds until the server may be asked again; 0 when it may now."""
    return max(0.0, state.cool_until - now.running)


def is_older(sent: str, state: State) -> bool:
    """Whether a 401 was for another access token than the current one: then the current one is sent."""
    return state.login is not None and state.login.access_token != sent


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the store said: the login to go on with, and whether its access token is good."""

    login: Login | None
    good: bool
    #: What was stored then: whoever stores something in its place must find it unchanged.
    stored: Login | None = None
    #: Ours is newer than what is stored, which failed: it has to be stored before it is used up.
    unsaved: bool = False


def reconcile(state: State, stored: Login | None, rejected: str | None, now: Moment) -> Found:
    """Whose tokens count: what another process stored since we looked, or else our own.

    `rejected` is an access token that a 401 was for. Good is a token that needs no refresh.
    """
    ours = same(stored, state.stored)
    login = state.login if ours else stored
    if login is None:
        return Found(None, good=False, stored=stored)
    left = remaining(login, now)
    good = login.access_token != rejected and left > lead(login.expires_in, state.jitter)
    return Found(login, good=good, stored=stored, unsaved=ours and not same(login, stored))


def adopted(state: State, login: Login | None, stored: Login | None, jitter: float) -> State:
    """The state with the tokens that count from now on."""
    if same(login, state.login):
        return replace(state, stored=stored)
    return replace(state, login=login, stored=stored, ended=False, failures=0, cool_until=0.0, jitter=jitter)


def began(state: State, login: Login | None, jitter: float) -> State:
    """The state after a login of our own, or with None a logout."""
    return State(login=login, stored=login, epoch=state.epoch + 1, jitter=jitter)


def ended(state: State, stored: Login | None) -> State:
    """The state after `invalid_grant`."""
    return State(stored=stored, epoch=state.epoch + 1, ended=True)


# --- answers -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The network failed. `lost`: the request may have arrived, and only its answer got lost."""

    lost: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Renewed:
    login: Login


@dataclass(frozen=True, slots=True)
class Ended:
    """The server refuses the refresh token for good."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Anything else. `status` None: no answer; `retry_after` None: the server did not say."""

    reason: str
    status: int | None = None
    code: str | None = None
    retry_after: float | None = None


_TOKEN = re.compile(r"[\x21-\x7e]+")

Outcome = Renewed | Ended | Failed


def judge(answer: Answer | NoAnswer, asked_at: Moment, base_url: str, client_id: str) -> Outcome:
    """What came of a request for a token pair, sent at `asked_at`."""
    if isinstance(answer, NoAnswer):
        return Failed(answer.reason)
    if 200 <= answer.status < 300:
        login = _login(answer.body, asked_at, base_url, client_id)
        return Renewed(login) if login else Failed("the server's answer has no token pair", answer.status)
    code, detail = _problem(answer.body)
    # Only a server that says so ends a login: a 401 of some proxy does not.
    if answer.status in (400, 401) and code == "invalid_grant":
        return Ended()
    reason = f"the server answered {answer.status}" + (f": {detail}" if detail else "")
    return Failed(reason, answer.status, code, retry_after(answer.headers))


def _login(body: bytes, asked_at: Moment, base_url: str, client_id: str) -> Login | None:
    found = _object(body)
    access, refresh, life = (found.get(name) for name in ("access_token", "refresh_token", "expires_in"))
    if not isinstance(access, str) or not isinstance(refresh, str):
        return None
    # What cannot stand in a header would be in the error that says so.
    if not (_TOKEN.fullmatch(access) and _TOKEN.fullmatch(refresh)):
        return None
    if isinstance(life, bool) or not isinstance(life, int | float):
        return None
    user, scope = found.get("user"), found.get("scope")
    user_id = user.get("id") if isinstance(user, dict) else None
    return Login(
        access_token=access,
        refresh_token=refresh,
        expires_in=float(life),
        asked_at=asked_at,
        base_url=base_url,
        client_id=client_id,
        scope=scope if isinstance(scope, str) else "",
        user_id=user_id if isinstance(user_id, str) else None,
        own=True,
    )


def _problem(body: bytes) -> tuple[str | None, str | None]:
    """`code` and `detail` of a problem, without what is no short text."""
    found = _object(body)
    code, detail = (found.get(name) for name in ("code", "detail"))
    return (
        code if isinstance(code, str) and len(code) <= 80 else None,
        detail if isinstance(detail, str) and len(detail) <= 300 else None,
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110 §10.2.3), None where it does not say.

    A date is compared with the answer's own: our wall clock may be wrong.
    """
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return min(float(said[:9]), LONGEST_RETRY_AFTER)
    try:
        until, at = parsedate_to_datetime(said), parsedate_to_datetime(headers.get("date", ""))
        return min(max(0.0, (until - at).total_seconds()), LONGEST_RETRY_AFTER)
    except (ValueError, TypeError):
        return None


def cooled(state: State, failed: Failed, now: Moment, jitter: float) -> State:
    """The state after a refresh that failed; the login stays. `jitter`: from 0 to 1."""
    wait = min(FIRST_COOL_DOWN * 2.0 ** min(state.failures, 10), LONGEST_COOL_DOWN) * (1 - 0.5 * jitter)
    if failed.retry_after is not None:
        # Never earlier than the server said; jitter goes on top.
        wait = max(failed.retry_after, FIRST_COOL_DOWN) + 0.5 * jitter
    return replace(
        state,
        failures=state.failures + 1,
        cool_until=now.running + wait,
        cool_status=failed.status,
        cool_reason=failed.reason,
    )


def put_off(state: State, now: Moment) -> State:
    """The state after a refresh that brought nothing, whatever the reason.

    A store that cannot be read is not asked by each call whose token is still good. Calls that cannot do
    without ask it all the same: it is the server that a cool-down spares.
    """
    return replace(state, ahead_from=now.running + FIRST_COOL_DOWN)


# --- where tokens may go --------------------------------------------------------------------


def base(url: str) -> str:
    """The address of the server, without a slash at its end. Raises ValueError."""
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        raise ValueError("base_url is scheme, host, and if need be port and path: https://auth.example")
    return origin(url) + parts.path.rstrip("/")


def origin(url: str) -> str:
    """Scheme, host and port, in one spelling (RFC 6454 §4). Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the address of a server begins with http:// or https:// and has a host")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@dataclass(frozen=True, slots=True)
class Scope:
    """To which requests the access token is added."""

    base_url: str
    origins: frozenset[str]

    def covers(self, url: str) -> bool:
        """Whether a request to that address gets the token, and its 401 a refresh."""
        try:
            where = origin(url)
        except ValueError:
            return False
        if where not in self.origins:
            return False
        own = urlsplit(self.base_url)
        path = urlsplit(url).path
        return where != origin(self.base_url) or path not in {own.path + each for each in OWN_PATHS}


def keeps_body(content_length: str | None) -> bool:
    """Whether a streamed body is small enough to be kept, to be sent again after a 401."""
    return (
        content_length is not None and content_length.isdigit() and int(content_length) <= LARGEST_KEPT_BODY
    )
