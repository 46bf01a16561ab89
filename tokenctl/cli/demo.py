"""`tokenctl demo`: the Python client against a server of its own, in front of one's eyes.

Owns the server, the tabs, the rounds, and what is expected of each. What a tab does is
`tokenctl.client.demo`; how processes are started, and leave nothing behind, is `stage`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column
from tokenctl.errors import ConfigInvalid, DemoFailed

if TYPE_CHECKING:
    from pathlib import Path

    from tokenctl.cli.stage import Process, Stage

#: The life of an access token (s), and how far the server's clock goes ahead to end it.
_ACCESS_TTL, _EXPIRED = 60, 61
#: Calls that are under way at once, in all: the server answers 503 when 256 wait for its database.
_AT_ONCE = 200
#: What the database and the token file need at least (bytes).
_SPACE = 1_000_000
#: How long the server may take to answer (s).
_TIMEOUT = 30.0

#: What a call says when the login is over: in the tab that was told so by the server, and in the others.
_OVER = ("LoginEnded", "NotLoggedIn")


def _failures(found: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in found.items()) or "-"


_COLUMNS = [
    Column("round", right=True),
    Column("situation", "what happens", shrink=True),
    Column("expected", table=False),
    Column("tabs", table=False),
    Column("calls", right=True),
    Column("succeeded", right=True),
    Column("repeated", right=True),
    Column("failures", show=_failures, table=False),
    Column("refreshes", right=True),
    Column("rotations", right=True),
    Column("ended", table=False),
    Column("logged_in"),
    Column("ok"),
    Column("seconds", "s", show="{:.1f}".format, right=True),
]


class Round(NamedTuple):
    """One thing that goes wrong while all tabs find that their access token has expired."""

    situation: str
    expected: str
    #: How many requests for a refresh the tabs may send in all.
    refreshes: tuple[int, ...]
    #: What `serve --dev` does to so many of them.
    fault: tuple[str, int] | None = None
    #: Whether the refreshing tab is killed when its request has been lost once.
    killing: bool = False
    #: Whether somebody presents the first refresh token of the login, which has long been spent.
    theft: bool = False
    #: Whether calls fail at first, and the program has to repeat them.
    repeating: bool = False


ROUNDS = (
    Round("the access token has expired", "1 refresh, every call succeeds", (1,)),
    Round(
        "the answer of a refresh is lost",
        "asked for again, the server gives the same answer: 1 rotation, every call succeeds",
        (2,),
        fault=("drop", 1),
    ),
    Round(
        "a refresh is answered with 503",
        "nobody is logged out: calls that fail with RefreshFailed succeed when they are repeated",
        (2,),
        fault=("unavailable", 1),
        repeating=True,
    ),
    Round(
        "the refreshing tab is killed",
        "1 rotation, whose answer another tab gets: every call of the others succeeds",
        # The request that it was killed at may never have left; then the fault meets the next one.
        (3, 4),
        fault=("drop", 2),
        killing=True,
    ),
    Round(
        "a thief presents a spent token",
        "the login is revoked: every call says so, and one tab calls on_end, once",
        (1,),
        theft=True,
    ),
)


@command(app, "demo", example="tokenctl demo --tabs 3 --burst 20\ntokenctl demo --json | jq '.[].rotations'")
def demo(
    run: Run,
    *,
    tabs: Annotated[
        int, typer.Option("--tabs", metavar="N", min=2, max=8, help="Processes that share one login.")
    ] = 3,
    burst: Annotated[
        int, typer.Option("--burst", metavar="N", min=1, max=100, help="Calls of each tab at once.")
    ] = 20,
) -> int:
    """Show how the Python client refreshes, with a server of its own, in a few seconds.

    Each tab is a process; all of them share the token file of one login. In each round the access token
    expires, something goes wrong, and every tab makes its calls at once. Nothing is left behind.

    repeated: calls that failed, and were made again as the client said that they may be. refreshes: requests
    of the tabs for new tokens. rotations: how often the server has made new ones. The calls of a tab that was
    killed are not counted. Exit code 1 when a round did not end as expected.

    Needs httpx: pip install 'tokenctl[client]'.
    """
    run.out.expect(_COLUMNS)
    _demand_httpx()
    from tokenctl.cli.stage import set_stage

    run.out.note(
        f"{tabs} tabs share one login. In each round its access token expires, and each tab makes {burst} "
        "calls at once:"
    )
    with run.out.progress("playing", len(ROUNDS)) as advance, set_stage() as stage:
        records = []
        for record in _play(stage, tabs, burst):
            records.append(record)
            advance(1)
    run.out.rows(records, _COLUMNS, limit=0)
    if wrong := [str(record["round"]) for record in records if not record["ok"]]:
        run.out.warn(f"not as expected: round {', '.join(wrong)}; --fields round,expected,failures says more")
    return 1 if wrong else 0


def _demand_httpx() -> None:
    from importlib.util import find_spec

    if find_spec("httpx") is None:
        raise ConfigInvalid(
            "the client needs httpx, which is not installed", hint="pip install 'tokenctl[client]'"
        )


# --- the rounds ------------------------------------------------------------------------------


def _play(stage: Stage, count: int, burst: int) -> Iterator[dict[str, Any]]:
    """The record of each round, as it ends. Raises DemoFailed."""
    from tokenctl.client import FileStore
    from tokenctl.http.dev import DEMO_PASSWORD, DEMO_USER

    server = Server.start(stage)
    store = FileStore(stage.directory / "tokens.json")
    tabs = Tabs.start(stage, count, server.url, store.path)
    tabs.log_in(DEMO_USER, DEMO_PASSWORD)
    first = store.load()
    assert first is not None
    for number, this in enumerate(ROUNDS, 1):
        _demand_space(stage.directory)
        began = time.monotonic()
        rotations = server.rotations()
        if this.fault is not None:
            server.fault(*this.fault)
        if this.theft:
            server.refresh(first.refresh_token)
        server.expire()
        came = tabs.burst(burst, killing=this.killing)
        record = {
            "round": number,
            "situation": this.situation,
            "expected": this.expected,
            "tabs": came.tabs,
            "calls": came.tabs * burst,
            "succeeded": came.succeeded,
            "repeated": came.repeated,
            "failures": dict(sorted(came.failures.items())),
            "refreshes": came.refreshes,
            "rotations": server.rotations() - rotations,
            "ended": came.ended,
            "logged_in": store.load() is not None,
        }
        yield record | {"ok": _is_expected(this, record), "seconds": round(time.monotonic() - began, 3)}


def _demand_space(directory: Path) -> None:
    """Without it the rounds would only not end as expected, and nothing would say why."""
    import shutil

    if shutil.disk_usage(directory).free < _SPACE:
        raise DemoFailed(
            f"there is almost no space left in {directory.parent}",
            hint="free some, or name another place: TMPDIR=/var/tmp tokenctl demo",
        )


def _is_expected(this: Round, record: dict[str, Any]) -> bool:
    """Whether the round ended as the client and the server promise."""
    succeeded, rotations, ended = (0, 0, 1) if this.theft else (record["calls"], 1, 0)
    over = sum(number for name, number in record["failures"].items() if name in _OVER)
    return (
        record["calls"] > 0
        and record["succeeded"] == succeeded
        and over == record["calls"] - succeeded
        and (record["repeated"] > 0) == this.repeating
        and record["refreshes"] in this.refreshes
        and record["rotations"] == rotations
        and record["ended"] == ended
        and record["logged_in"] == (not this.theft)
    )


# --- the server ------------------------------------------------------------------------------


class Server:
    """`tokenctl serve --dev`."""

    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    def start(cls, stage: Stage) -> Server:
        """Returns when it answers."""
        database = str(stage.directory / "demo.db")
        # What a file in /etc might say otherwise.
        settings = {"host": "127.0.0.1", "port": "0", "access-ttl": f"{_ACCESS_TTL}s", "grace": "30s"}
        settings |= {"database": database, "key-file": f"{database}.key"}
        flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
        stage.start("the server", "tokenctl", "serve", "--dev", "--json", "--no-cookies", *flags)
        _, said = stage.demand()
        return cls(said["url"])

    def expire(self) -> None:
        """Let every access token of now expire."""
        self._demand("POST", "/dev/clock", {"seconds": _EXPIRED})

    def fault(self, kind: str, count: int) -> None:
        """What happens to the next refreshes."""
        self._demand("POST", "/dev/faults", {"kind": kind, "count": count})

    def rotations(self) -> int:
        """How often a login was given new tokens so far."""
        name = b'tokenctl_rotations_total{result="rotated"} '
        lines = self._demand("GET", "/metrics").splitlines()
        return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))

    def refresh(self, refresh_token: str) -> None:
        """Present a refresh token, as a thief would."""
        self._send("POST", "/auth/refresh", {"refresh_token": refresh_token})

    def _demand(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        status, answer = self._send(method, path, body)
        if status != 200:
            raise DemoFailed(f"the server of the demo answers {method} {path} with {status}")
        return answer

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        from http.client import HTTPConnection, HTTPException
        from urllib.parse import urlsplit

        data = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            with closing(HTTPConnection(urlsplit(self.url).netloc, timeout=_TIMEOUT)) as connection:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
        except (OSError, HTTPException) as error:
            raise DemoFailed(f"the server of the demo does not answer: {type(error).__name__}") from None


# --- the tabs --------------------------------------------------------------------------------


@dataclass
class Came:
    """What came of one burst: of the tabs that answered, and what all of them told meanwhile."""

    tabs: int = 0
    succeeded: int = 0
    #: Calls that were made again, as the client says that they may be.
    repeated: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    #: Requests for a refresh.
    refreshes: int = 0
    #: Calls of on_end.
    ended: int = 0

    def note(self, said: dict[str, Any]) -> None:
        """Count one line of a tab."""
        self.refreshes += "refreshing" in said
        self.ended += "ended" in said
        if "succeeded" in said:
            self.tabs += 1
            self.succeeded += said["succeeded"]
            self.repeated += said["repeated"]
            self.failures.update(said["failures"])


class Tabs:
    """The processes of `tokenctl.client.demo`."""

    def __init__(self, stage: Stage, processes: list[Process]) -> None:
        self._stage = stage
        self._processes = processes

    @classmethod
    def start(cls, stage: Stage, count: int, url: str, file: Path) -> Tabs:
        """Returns when all of them wait for a command."""
        module = "tokenctl.client.demo"
        processes = [stage.start(f"tab {i}", module, url, str(file)) for i in range(1, count + 1)]
        for _ in processes:
            stage.demand()
        return cls(stage, processes)

    def log_in(self, name: str, password: str) -> None:
        """One of them logs in; the others find that in the file."""
        self._processes[0].tell({"log_in": [name, password]})
        self._stage.demand()

    def burst(self, calls: int, *, killing: bool) -> Came:
        """So many calls of every tab at once; `killing` takes the tab whose refresh has been lost."""
        came = Came()
        requests: Counter[Process] = Counter()
        killed: set[Process] = set()
        waiting = set(self._processes)
        for process in self._processes:
            process.tell({"burst": calls, "connections": _AT_ONCE // len(self._processes)})
        while waiting:
            process, said = self._stage.next()
            if said is None:
                if process not in killed:
                    process.fail()
                waiting.discard(process)
                continue
            came.note(said)
            requests[process] += "refreshing" in said
            # Its second request: the server has done the first one, and nobody knows the answer.
            if killing and not killed and requests[process] == 2:
                killed.add(process)
                process.kill()
            elif "succeeded" in said:
                waiting.discard(process)
        self._processes = [each for each in self._processes if each not in killed]
        return came
