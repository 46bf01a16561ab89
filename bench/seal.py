"""Rotations beside a sealer that works off a backlog.

    python -m bench.seal [--events N] [--seconds N] [--turns N] [--quick]

On each database (a file with WAL and synchronous=FULL; a PostgreSQL of its own with its own durability) one
thread rotates the same logins in batches, as the server's writer does: first alone, then while a sealer in a
process of its own seals the events of a large revocation, in turns within one run. A turn of the sealer
begins with the backlog as it was, and with as many events as it cannot finish meanwhile, or the time in which
it was at work is what counts.

- *rotations/s* and *p99*: of the batches that began while the sealer was at work
- *events/s*: what it sealed meanwhile, its pauses included
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg

from bench import logins, postgres, rotate
from bench.table import options, ratio, show
from tokenctl import RotateRequest, Settings, TokenPair, TokenService
from tokenctl.service.backup import copy

#: How much slower the slowest percent of batches may be beside a sealer.
_GOALS = {"SQLite": 5.0, "PostgreSQL": 2.0}
_BATCH = 16

_EVENT = (
    "INSERT INTO events (at, type, actor, token_id, client_id, reason, data)"
    " VALUES ({0}, 'token.revoke', 'bench', {0}, 'default', 'INC-7', '{{\"access_until\":1772367000000000}}')"
)


@dataclass(slots=True)
class Turn:
    """What one turn came to: batches of rotations, and events that were sealed meanwhile."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    sealed: int = 0


class _Place:
    """One database, with logins to rotate and a backlog to seal."""

    def __init__(self, name: str, settings: Settings, strings: Sequence[str]) -> None:
        self.name = name
        self.settings = settings
        self._strings = list(strings)
        self._service = TokenService(settings)
        self._at = 0

    def close(self) -> None:
        self._service.close()

    def add_backlog(self, events: int) -> None:
        """The log as a revocation of so many logins leaves it, and nothing of it sealed."""
        rows = ((number, number.to_bytes(16, "big")) for number in range(events))
        if self.name == "SQLite":
            with closing(sqlite3.connect(self.settings.database)) as connection, connection:
                connection.execute("DELETE FROM segments")
                connection.execute("DELETE FROM events")
                connection.executemany(_EVENT.format("?"), rows)
            return
        with psycopg.connect(self.settings.database) as server:
            server.execute("TRUNCATE segments, events")
            with server.cursor().copy(
                "COPY events (at, type, actor, token_id, client_id, reason, data) FROM STDIN"
            ) as out:
                for number, token_id in rows:
                    out.write_row(
                        (number, "token.revoke", "bench", token_id, "default", "INC-7", '{"access_until":0}')
                    )

    def sealed(self) -> int:
        """How many events are in a segment."""
        query = "SELECT coalesce(sum(events), 0) FROM segments"
        if self.name == "SQLite":
            with closing(sqlite3.connect(self.settings.database)) as connection:
                return int(connection.execute(query).fetchone()[0])
        with psycopg.connect(self.settings.database) as server:
            [[count]] = server.execute(query.encode()).fetchall()
            return int(count)

    def rotate(self, seconds: float, still: Callable[[], bool]) -> Turn:
        """Batch after batch for so long, and no longer than `still` says."""
        began = time.perf_counter()
        turn = Turn(0.0)
        while time.perf_counter() - began < seconds and still():
            turn.latencies.append(self._rotate_batch())
        turn.seconds = time.perf_counter() - began
        return turn

    def _rotate_batch(self) -> float:
        places = [(self._at + i) % len(self._strings) for i in range(_BATCH)]
        self._at += _BATCH
        requests = [RotateRequest(self._strings[place]) for place in places]
        began = time.perf_counter()
        results = self._service.rotate_many(requests)
        took = time.perf_counter() - began
        for place, pair in zip(places, results, strict=True):
            assert isinstance(pair, TokenPair), pair
            self._strings[place] = pair.refresh_token
        return took


@contextmanager
def _sealing(settings: Settings) -> Iterator[Callable[[], bool]]:
    """A sealer in its own process; yields whether it is still at work."""
    command = [sys.executable, "-m", "bench.seal", "--sealer", settings.database, str(settings.key_file)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        yield lambda: process.poll() is None
        process.stdin.close()  # asks it to stop
        process.stdout.read()
    assert process.returncode == 0


def _seal(database: str, key_file: str) -> int:
    """The sealer's process: until all is sealed, or its stdin is closed."""
    import select

    settings = Settings(database=database, key_file=key_file)
    with TokenService(settings) as service:
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        done = service.audit.seal(lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
    sys.stdout.write(json.dumps({"events": done.events}))
    return 0


def _measure(place: _Place, events: int, seconds: float, turns: int) -> tuple[list[Turn], list[Turn]]:
    alone, beside = [], []
    place.rotate(seconds / 4, lambda: True)  # warms the caches
    for _ in range(turns):
        place.add_backlog(events)
        alone.append(place.rotate(seconds, lambda: True))
        with _sealing(place.settings) as still:
            turn = place.rotate(seconds, still)
        turn.sealed = place.sealed()
        assert turn.latencies, "the backlog was too small"
        beside.append(turn)
    return alone, beside


def _p99(turns: Sequence[Turn]) -> float:
    """The median of the turns, in seconds."""
    return statistics.median(sorted(turn.latencies)[int(len(turn.latencies) * 0.99)] for turn in turns)


def _rate(turns: Sequence[Turn]) -> float:
    return statistics.median(len(turn.latencies) * _BATCH / turn.seconds for turn in turns)


def _rows(name: str, alone: Sequence[Turn], beside: Sequence[Turn]) -> list[list[str]]:
    times = _p99(beside) / _p99(alone)
    sealed = statistics.median(turn.sealed / turn.seconds for turn in beside)
    goal = _GOALS[name]
    return [
        [f"{name}, alone", f"{_rate(alone):,.0f}", "", f"{_p99(alone) * 1e3:.1f}", "", "", ""],
        [
            f"{name}, beside the sealer",
            f"{_rate(beside):,.0f}",
            ratio(_rate(beside), _rate(alone)),
            f"{_p99(beside) * 1e3:.1f}",
            f"{times:.2f}",
            f"{sealed:,.0f}",
            f"≤ {goal:g}: {'met' if times <= goal else 'NOT met'}",
        ],
    ]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, metavar="N", help="the backlog")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="N", help="for each turn")
    parser.add_argument("--turns", type=int, default=5, metavar="N")
    parser.add_argument("--sealer", nargs=2, metavar=("DATABASE", "KEY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sealer:
        return _seal(*given.sealer)
    events, seconds, turns = (20_000, 0.3, 1) if given.quick else (given.events, given.seconds, given.turns)
    rows = []
    with tempfile.TemporaryDirectory() as directory, postgres.cluster() as server:
        path = Path(directory) / "tokens.db"
        strings = rotate.build(path, 512 if given.quick else 10_000)
        settings = replace(logins.settings(path), key_file=f"{path}.key")
        url = server.create("seal")
        copy(settings, url)
        for name, database in (("SQLite", settings.database), ("PostgreSQL", url)):
            place = _Place(name, replace(settings, database=database), strings)
            with closing(place):
                rows += _rows(name, *_measure(place, events, seconds, turns))
    show(
        f"Medians of {turns} turns of {seconds:g} s, batches of {_BATCH}, a backlog of {events:,} events. "
        f"{postgres.version()}.",
        ["", "rotations/s", "/ alone", "p99 ms", "/ alone", "events/s sealed", "goal for p99"],
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
