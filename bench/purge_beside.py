"""`bench.purge --beside`: clients that rotate over HTTP, idle and while a purge runs, in turns of one run.

A real `tokenctl serve` and a real `tokenctl purge` on one database, each in a process of its own. The purge
of each turn but the last is killed (kill -9) at the end of its window, and the next one goes on from there;
the last one is left to its end. Then the rows are counted: every live one must be there, and no dead one.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import load, logins, postgres
from bench.http import Contender, Failed, judged, window
from bench.peers import servers
from bench.purge import File, Server, condition, placed
from bench.table import ratio, show
from tokenctl.core import ids, token_string
from tokenctl.core.keys import derive_keys

_TURNS = 6
_GOALS = {"sqlite": 5, "postgresql": 2}


def run(kind: str, rows: int, clients: int, seconds: float, *, quick: bool) -> int:
    """Print the table, or say what went wrong."""
    try:
        _measure(kind, rows, clients, seconds, quick=quick)
    except (Failed, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _measure(kind: str, rows: int, clients: int, seconds: float, *, quick: bool) -> None:
    now = time.time_ns() // 1000
    chance = random.Random(1)
    made = [
        (ids.uuid7(now - i * 1_000_000, chance.randbytes(10)), chance.randbytes(16)) for i in range(clients)
    ]
    mac_key = derive_keys(logins.MASTER_KEY).mac
    strings = [token_string.mint(raw_id, 0, secret, mac_key) for raw_id, secret in made]
    with placed(kind) as place, tempfile.TemporaryDirectory() as name:
        dead = place.build(rows, now, [(raw_id, token_string.hash_secret(secret)) for raw_id, secret in made])
        if isinstance(place, File):
            serving = servers.tokenctl(Path(place.address))
        else:
            serving = servers.tokenctl_postgresql(place.address, Path(name), place.key_file)
        with serving as server:
            contender = Contender("tokenctl", load.JSON, server, strings)
            everybody = [(contender, range(clients))]
            window(everybody, seconds)  # warms caches
            idle, beside, kills = [], [], 0
            for turn in range(_TURNS):
                [found] = window(everybody, seconds)
                idle.append(found)
                with _purging(place) as purge:
                    [found] = window(everybody, seconds)
                    over = purge.poll() is not None
                    if quick or not over:  # a window that the purge did not fill says nothing
                        beside.append(found)
                    if not over and turn < _TURNS - 1:
                        purge.kill()
                        kills += 1
                    if purge.wait() not in (0, -signal.SIGKILL):
                        raise Failed(f"the purge ended with {purge.returncode}")
                if over:
                    break
            window(everybody, seconds)  # every chain goes on
            _demand_all(place, now, rows - dead + clients)
    if not beside:
        raise Failed("the purge was over before its first window: give it more --rows")
    _show(kind, rows, dead, clients, seconds, idle, beside, kills)


def _left(place: File | Server, now: int) -> int:
    return place.count(f"FROM refresh_tokens WHERE {condition(place.kind, now - 7 * logins.DAY)}")


def _demand_all(place: File | Server, now: int, live: int) -> None:
    found, dead = place.count("FROM refresh_tokens"), _left(place, now)
    if (found, dead) != (live, 0):
        raise Failed(f"{found:,} rows are left, {dead:,} of them dead; {live:,} are live")


@contextmanager
def _purging(place: File | Server) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        *(sys.executable, "-m", "tokenctl", "purge", "--json", "--lock-wait", "30s"),
        *("--key-file", str(place.key_file)),
    ]
    with subprocess.Popen(
        command, env={**os.environ, "TOKENCTL_DATABASE": place.address}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _show(
    kind: str,
    rows: int,
    dead: int,
    clients: int,
    seconds: float,
    idle: list[load.Result],
    beside: list[load.Result],
    kills: int,
) -> None:
    def median(results: list[load.Result], part: float) -> float:
        return statistics.median(each.percentile(part) for each in results)

    lines = []
    for name, results in (("idle", idle), ("beside a purge", beside)):
        times = median(results, 0.99) / median(idle, 0.99)
        lines.append([
            name, str(len(results)), f"{statistics.median(each.rate for each in results):,.0f}",
            f"{median(results, 0.5):.2f}", f"{median(results, 0.99):.2f}",
            ratio(median(results, 0.99), median(idle, 0.99)),
            judged(times <= _GOALS[kind]) if results is beside else "",
        ])  # fmt: skip
    show(
        f"{kind}, {clients} clients, medians of windows of {seconds:g} s each, in turns; {dead:,} of "
        f"{rows:,} rows were dead. The purge was killed {kills} times; afterwards 0 live rows were lost, "
        "0 dead ones left, and every chain went on.",
        ["", "windows", "rotations/s", "p50 ms", "p99 ms", "p99 / idle", f"goal ≤ {_GOALS[kind]}"],
        lines,
        [f"{postgres.version()}."] if kind == "postgresql" else [],
    )
