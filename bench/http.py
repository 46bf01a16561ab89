"""Rotations over HTTP: our server, the least that it could cost, and the peer that comes nearest.

    python -m bench.http [--clients 1,16,64] [--seconds N] [--turns N] [--only tokenctl,floor,oidc] [--quick]
    python -m bench.http --flood            (refreshes beside a flood of logins)
    python -m bench.http --processes 2      (servers that share a database)

Every client rotates a chain of its own, over a connection of its own, and presents what it was given last.
All contenders write SQLite files on one disk (WAL, synchronous=FULL), sign ES256, run at once, and take
turns: each has the machine and the load generator to itself for some seconds, several times.

- *tokenctl*: `tokenctl serve` as it comes, by both of its routes
- *bare ASGI*: an answer of the same size on the same uvicorn, without any work
- *floor*: the CPU of bare ASGI, of one row of the UPDATE at batches of that many, of parse, MAC and
  successor, and of one bare ES256 signature; the last three are measured on the driver, in this process
- *oidc-provider*: node oidc-provider, with an adapter that commits each write, and with one that has our
  group commit

An answer that is not 200 with a new string ends the run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import flood, load, logins, rotate
from bench.peers import servers
from bench.peers.servers import NotSetUp, Server
from bench.table import options, ratio, show
from tokenctl import TokenService
from tokenctl.core.keys import SigningKey, generate_signing_key

TOKEN_ENDPOINT = load.Style("/token", load.FORM.content_type, load.FORM.before, load.FORM.after)
_NAMES = ("tokenctl", "floor", "oidc")
_GOAL_CPU, _GOAL_RATE, _GOAL_FLOOD = 2, 5, 2
_FLOOD_CLIENTS, _FLOOD_USERS = 16, 8
_PASSWORD = "seven otters knit at dawn"
_NO_LIMITS = {"TOKENCTL_ACCOUNT_LIMIT": "none", "TOKENCTL_ADDRESS_LIMIT": "none"}
# By the number of connections: as many as the server lets wait for a password hash, so that all of them hash;
# twice as many, so that as many again are turned away at once, and come back at once. With limits most are
# turned away before a password is looked at.
_FLOODS: tuple[tuple[str, dict[str, str], int], ...] = (
    ("no limits", _NO_LIMITS, 16),
    ("no limits", _NO_LIMITS, 32),
    ("default limits", {}, 32),
)
_ANSWER_BYTES = 780  # of ours, if there is none to ask


class Failed(Exception):
    """A run whose figures would be worth nothing."""


@dataclass
class Contender:
    """A server, how it is asked, and the newest strings of its chains; or why it is not there."""

    name: str
    style: load.Style = load.JSON
    server: Server | None = None
    strings: list[str] = field(default_factory=list)
    rotates: bool = True
    missing: str = ""

    def group(self, clients: range) -> load.Group:
        assert self.server is not None
        chosen = [self.strings[number] for number in clients]
        return load.Group(self.server.port, self.server.pids, self.style, chosen, self.rotates)


def window(contenders: Sequence[tuple[Contender, range]], seconds: float) -> list[load.Result]:
    """One window of load; several contenders only if they are to run beside each other. Raises Failed."""
    results = load.run(load.Job([contender.group(clients) for contender, clients in contenders], seconds))
    for (contender, clients), result in zip(contenders, results, strict=True):
        assert contender.server is not None
        if result.errors or not result.rotations:
            what = result.errors[0] if result.errors else "no answer in the whole window"
            raise Failed(
                f"{contender.name}: {len(result.errors)} of {len(clients)} clients failed; the first:\n"
                f"{what}\n{contender.server.last_words()}"
            )
        for number, string in zip(clients, result.strings, strict=True):
            contender.strings[number] = string
    return results


# --- the contenders --------------------------------------------------------------------------------


def _tokenctl(stack: ExitStack, database: Path, strings: list[str]) -> list[Contender]:
    """Both routes of one server; they share its chains."""
    names = {"tokenctl /auth/refresh": load.JSON, "tokenctl /oauth/token": load.FORM}
    try:
        server = stack.enter_context(servers.tokenctl(database))
    except NotSetUp as why:
        return [Contender("tokenctl", missing=str(why))]
    return [Contender(name, style, server, strings) for name, style in names.items()]


def bare(stack: ExitStack, directory: Path, size: int, many: int) -> Contender:
    server = stack.enter_context(servers.bare(directory, size=size))
    return Contender("bare ASGI", load.JSON, server, ["x" * 89] * many, rotates=False)


def _oidc(stack: ExitStack, directory: Path, many: int) -> list[Contender]:
    found = []
    for commit, name in (("each", "oidc-provider"), ("group", "oidc-provider, our group commit")):
        path = directory / f"oidc-{commit}.db"
        try:
            server, strings = stack.enter_context(servers.oidc_provider(path, chains=many, commit=commit))
        except NotSetUp as why:
            return [Contender("oidc-provider", missing=str(why))]
        found.append(Contender(name, TOKEN_ENDPOINT, server, strings))
    return found


def answer_bytes(contender: Contender) -> int:
    """The size of the contender's answer to the last of its chains, which goes on from there."""
    assert contender.server is not None
    style, string = contender.style, contender.strings[-1]
    request = urllib.request.Request(
        f"http://127.0.0.1:{contender.server.port}{style.path}",
        f"{style.before}{string}{style.after}".encode(),
        {"Content-Type": style.content_type},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        body: bytes = answer.read()
    contender.strings[-1] = json.loads(body)["refresh_token"]
    return len(body)


class _Floor:
    """The parts of a rotation that are not HTTP, on the driver: µs of CPU for each."""

    def __init__(self, strings: Sequence[str], path: Path) -> None:
        self._update = rotate.Update(strings, path)
        self._key: SigningKey = generate_signing_key()
        self._parts = rotate.Parts()
        self._rows: dict[int, list[float]] = {}
        self._chance = random.Random(3)

    def measure(self, size: int, *, quick: bool) -> None:
        order = list(range(len(self._update.strings)))
        self._chance.shuffle(order)
        many = max(size, min(len(order), 64 if quick else 200 if size == 1 else 4096))
        batches = [order[first : first + size] for first in range(0, many - many % size, size)]
        done = self._update.slice(batches)
        self._rows.setdefault(size, []).append(done.cpu / done.rotations * 1e6)
        self._parts.measure(self._update.strings[:512], self._key)

    def parts(self, size: int) -> dict[str, float]:
        parts = self._parts
        return {
            "ES256 signature": statistics.median(parts.bare),
            "UPDATE": statistics.median(self._rows[size]),
            "parse, MAC, hash and successor": statistics.median(parts.parse)
            + statistics.median(parts.successor),
        }

    def close(self) -> None:
        self._update.close()


# --- clients that rotate ---------------------------------------------------------------------------


@dataclass
class _Run:
    """The windows of each contender at each number of clients, and the floor's other parts."""

    contenders: list[Contender]
    floor: _Floor | None
    sizes: list[int]
    seconds: float
    quick: bool
    found: dict[tuple[str, int], list[load.Result]] = field(default_factory=dict)

    def turns(self, many: int) -> None:
        for turn in range(many + 1):
            for size in self.sizes:
                if self.floor:
                    self.floor.measure(size, quick=self.quick)
                for contender in self.contenders:
                    if contender.missing:
                        continue
                    (result,) = window([(contender, range(size))], self.seconds)
                    if turn > 0 or many == 0:  # the first one warms caches and compilers
                        self.found.setdefault((contender.name, size), []).append(result)

    def median(self, name: str, size: int, of: Callable[[load.Result], float]) -> float | None:
        found = self.found.get((name, size))
        return statistics.median(map(of, found)) if found else None

    def floor_cpu(self, size: int) -> float | None:
        answer = self.median("bare ASGI", size, _cpu)
        return None if answer is None or self.floor is None else answer + sum(self.floor.parts(size).values())


def _cpu(result: load.Result) -> float:
    return result.cpu_each


def _rate(result: load.Result) -> float:
    return result.rate


def _p50(result: load.Result) -> float:
    return result.percentile(0.5)


def _p99(result: load.Result) -> float:
    return result.percentile(0.99)


def _rotations(given: argparse.Namespace) -> None:
    sizes = [int(size) for size in given.clients.split(",")]
    most = max(sizes)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        strings = rotate.build(directory / "tokenctl.db", max(10_000 if not given.quick else 512, most + 1))
        contenders: list[Contender] = []
        floor = None
        if "floor" in given.only:
            shutil.copy(directory / "tokenctl.db", directory / "floor.db")
            floor = _Floor(strings, directory / "floor.db")
            stack.callback(floor.close)
        if "tokenctl" in given.only:
            contenders += _tokenctl(stack, directory / "tokenctl.db", strings)
        if floor:
            ours = contenders[0] if contenders and not contenders[0].missing else None
            size = answer_bytes(ours) if ours else _ANSWER_BYTES
            contenders.append(bare(stack, directory, size, most))
        if "oidc" in given.only:
            contenders += _oidc(stack, directory, most)
        run = _Run(contenders, floor, sizes, given.seconds, given.quick)
        run.turns(given.turns)
        _show_rotations(run, given.turns)


def _show_rotations(run: _Run, turns: int) -> None:
    there = [contender for contender in run.contenders if not contender.missing]
    rows = []
    for size in run.sizes:
        rows += [_row(run, contender, size) for contender in there]
        floor = run.floor_cpu(size)
        if floor is not None:
            rows.append(["floor", str(size), "", "", "", f"{floor:.1f}", "1.00", "", "", "", ""])
    # Never left out in silence.
    rows += [[f"{each.name}: {each.missing}", *[""] * 10] for each in run.contenders if each.missing]
    show(
        f"Medians of {turns} windows of {run.seconds:g} s each, in turns, after one that does not count.",
        [
            "contender", "clients", "rotations/s", "p50 ms", "p99 ms", "µs CPU", "CPU / floor",
            "rate / oidc", "/ oidc, group commit", f"at 64: CPU / floor ≤ {_GOAL_CPU}",
            f"at 64: rate / oidc ≥ {_GOAL_RATE}",
        ],
        rows,
        _notes(run),
    )  # fmt: skip


def _row(run: _Run, contender: Contender, size: int) -> list[str]:
    name = contender.name
    rate, cpu = run.median(name, size, _rate), run.median(name, size, _cpu)
    assert rate is not None
    assert cpu is not None
    floor = run.floor_cpu(size)
    peers = [run.median(peer, size, _rate) for peer in ("oidc-provider", "oidc-provider, our group commit")]
    ours = name.startswith("tokenctl") and size == 64
    return [
        name,
        str(size),
        f"{rate:,.0f}",
        f"{run.median(name, size, _p50):.2f}",
        f"{run.median(name, size, _p99):.2f}",
        f"{cpu:.1f}",
        ratio(cpu, floor) if floor else "",
        *(ratio(rate, peer) if peer else "" for peer in peers),
        judged(cpu / floor <= _GOAL_CPU) if ours and floor else "",
        judged(rate / peers[0] >= _GOAL_RATE) if ours and peers[0] else "",
    ]


def judged(met: bool) -> str:
    return "met" if met else "open"


def _notes(run: _Run) -> Iterable[str]:
    if run.floor:
        for size in run.sizes:
            parts = [f"{name} {took:.1f}" for name, took in run.floor.parts(size).items()]
            answer = run.median("bare ASGI", size, _cpu)
            yield f"Floor at {size}, µs of CPU: bare ASGI {answer:.1f}, {', '.join(parts)}."
    everything = [result for of in run.found.values() for result in of]
    if everything:
        own = sum(each.own_cpu for each in everything) / sum(each.rotations for each in everything) * 1e6
        yield (
            f"The load generator took {own:.1f} µs of CPU for a request, on the same cores. "
            f"{others(everything)} Errors: 0, or the run would have failed."
        )
    if any(contender.server for contender in run.contenders if contender.style is TOKEN_ENDPOINT):
        yield servers.oidc_versions()


def others(results: Sequence[load.Result]) -> str:
    """How far the machine was not ours: it says how much the rates and the latencies are worth."""
    shares = sorted(each.others for each in results)
    return (
        f"Somebody else had {statistics.median(shares):.0%} of the cores in the median window, "
        f"{shares[-1]:.0%} in the worst."
    )


# --- refreshes beside logins -----------------------------------------------------------------------


def _flood(given: argparse.Namespace) -> None:
    rows = []
    for name, env, connections in _FLOODS:
        with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
            path = Path(directory) / "tokenctl.db"
            strings = rotate.build(path, 512)
            users = _users(path)
            try:
                server = stack.enter_context(servers.tokenctl(path, env=env))
            except NotSetUp as why:
                rows = [[f"tokenctl: {why}", *[""] * 11]]
                break
            contender = Contender(f"tokenctl, {name}", load.JSON, server, strings)
            rows.append(_flooded(contender, users, connections, given))
    show(
        f"{_FLOOD_CLIENTS} clients that refresh, idle and beside connections that log in, with a wrong and "
        f"the right password and without a pause, in turns: medians of {given.turns} windows of "
        f"{given.seconds:g} s each.",
        [
            "server", "logins from", "idle rotations/s", "idle p50 ms", "idle p99 ms", "flood rotations/s",
            "flood p50 ms", "flood p99 ms", "p99, flood / idle", f"goal ≤ {_GOAL_FLOOD}",
            "logins/s by status", "others' part of the cores",
        ],
        rows,
    )  # fmt: skip


def _users(path: Path) -> list[str]:
    with TokenService(logins.settings(path)) as service:
        return [service.create_user(f"flood{i}", _PASSWORD).name for i in range(_FLOOD_USERS)]


def _flooded(
    contender: Contender, users: list[str], connections: int, given: argparse.Namespace
) -> list[str]:
    assert contender.server is not None
    clients = range(_FLOOD_CLIENTS)
    idle: list[load.Result] = []
    beside: list[load.Result] = []
    answers: list[flood.Answers] = []
    job = flood.Job(contender.server.port, connections, users, _PASSWORD, given.seconds + 1.5)
    window([(contender, clients)], given.seconds)  # warms up
    for _ in range(given.turns):
        idle += window([(contender, clients)], given.seconds)
        storm = flood.Flood(job)
        try:
            time.sleep(0.75)  # it begins before the window and ends after it
            beside += window([(contender, clients)], given.seconds)
            answers.append(storm.end())
        finally:
            storm.kill()
        if answers[-1].errors:
            raise Failed(f"the flood got an answer that it must not:\n{answers[-1].errors[0]}")
    figures = [
        statistics.median(map(of, results)) for results in (idle, beside) for of in (_rate, _p50, _p99)
    ]
    times = figures[5] / figures[2]
    return [
        contender.name,
        str(connections),
        *(f"{figure:,.0f}" if place % 3 == 0 else f"{figure:.2f}" for place, figure in enumerate(figures)),
        f"{times:.2f}",
        judged(times <= _GOAL_FLOOD),
        str(answers[-1]),
        f"{statistics.median(each.others for each in idle):.0%}",  # beside a flood it is one of the others
    ]


# --- servers that share a database -----------------------------------------------------------------


def _processes(given: argparse.Namespace) -> None:
    sizes = [int(size) for size in given.clients.split(",") if int(size) >= given.processes]
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        path = Path(directory) / "tokenctl.db"
        strings = rotate.build(path, max(512, *sizes))
        try:
            group = [
                Contender(
                    f"server {number + 1}", load.JSON, stack.enter_context(servers.tokenctl(path)), strings
                )
                for number in range(given.processes)
            ]
        except NotSetUp as why:
            show("Servers that share a database.", ["tokenctl serve", "clients"], [[str(why), ""]])
            return
        _show_processes(group, sizes, given)


def _show_processes(group: Sequence[Contender], sizes: Sequence[int], given: argparse.Namespace) -> None:
    rows, seen = [], []
    for size in sizes:
        alone: list[load.Result] = []
        together: list[list[load.Result]] = []
        shares = [range(size * n // len(group), size * (n + 1) // len(group)) for n in range(len(group))]
        for turn in range(given.turns + 1):
            one = window([(group[0], range(size))], given.seconds)
            all_ = window(list(zip(group, shares, strict=True)), given.seconds)
            if turn > 0:
                seen += [*one, all_[0]]
                alone += one
                together.append(all_)
        base = statistics.median(map(_rate, alone))
        rows.append(["one server", size, *_figures(alone), "1.00", ""])
        for contender, share, results in zip(group, shares, zip(*together, strict=True), strict=True):
            rows.append([contender.name, len(share), *_figures(results), "", ""])
        sums = [sum(map(_rate, results)) for results in together]
        unfair = [max(map(_rate, results)) / min(map(_rate, results)) for results in together]
        total = statistics.median(sums)
        rows.append(
            ["all of them", size, f"{total:,.0f}", "", "", "", ratio(total, base), f"{max(unfair):.2f}"]
        )
    show(
        f"{len(group)} servers on one SQLite file, and one of them alone, in turns: medians of {given.turns} "
        f"windows of {given.seconds:g} s each.",
        [
            "tokenctl serve", "clients", "rotations/s", "p50 ms", "p99 ms", "µs CPU", "rate / one server",
            "fastest / slowest, worst window",
        ],
        [[str(cell) for cell in row] for row in rows],
        [others(seen)],
    )  # fmt: skip


def _figures(results: Sequence[load.Result]) -> list[str]:
    rate, p50, p99, cpu = (statistics.median(map(of, results)) for of in (_rate, _p50, _p99, _cpu))
    return [f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{cpu:.1f}"]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--clients", default="1,16,64", metavar="N,N", help="how many rotate at once")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="N", help="the length of a window")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="windows of each contender")
    parser.add_argument("--only", default=",".join(_NAMES), metavar="NAME,NAME", help=f"of {_NAMES}")
    parser.add_argument("--flood", action="store_true", help="refreshes beside a flood of logins")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="servers on one database")
    given = parser.parse_args()
    given.only = given.only.split(",")
    if unknown := set(given.only) - set(_NAMES):
        parser.error(f"--only knows {', '.join(_NAMES)}, and not {', '.join(sorted(unknown))}")
    if given.quick:
        given.seconds, given.turns, given.clients = 0.2, 1, "1,4"
    # The servers end with this process, also when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        (_flood if given.flood else _processes if given.processes > 1 else _rotations)(given)
    except (Failed, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
