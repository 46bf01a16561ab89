"""Purging half of a table, beside one raw DELETE of the same rows.

    python -m bench.purge [--rows N] [--batches 1000,5000] [--rounds N] [--quick]

Half of the rows are dead, mixed at random with the live ones: a third each was revoked, lay idle, or was
issued for 12 hours; all others live for 30 days from their issue. Each contender runs in a process of its
own, on its own copy of one file (WAL, synchronous=FULL), in turns:

- *raw*: BEGIN IMMEDIATE, one DELETE with the service's own condition, COMMIT, on the driver
- *batch N*: `TokenService.purge(batch=N)`, which sleeps about as long as it works; *wall* has the sleep
  in it, *busy* has not

A hold is the time from BEGIN IMMEDIATE to the end of the commit, and of the checkpoint that the commit may
do: so long a rotation waits for the purge.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from bench import logins
from bench.table import options, ratio, show
from tokenctl import TokenService
from tokenctl.core import ids
from tokenctl.service import purge as purging
from tokenctl.storage import tokens
from tokenctl.storage.engine import Connection
from tokenctl.storage.schema import refresh_tokens
from tokenctl.storage.sqlite import SQLiteStorage

_NOW = 1_772_366_400_000_000
_SINCE = _NOW - 7 * logins.DAY
_GOAL = 0.25


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=400_000, metavar="N", help="half of them are dead")
    parser.add_argument("--batches", default=f"{purging.DEFAULT_BATCH},5000", metavar="N,N")
    parser.add_argument("--rounds", type=int, default=2, metavar="N")
    parser.add_argument("--contender", nargs=2, metavar=("FILE", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        return _contend(Path(given.contender[0]), int(given.contender[1]))
    rows, rounds = (4_000, 1) if given.quick else (given.rows, given.rounds)
    batches = list(dict.fromkeys([0, *(int(size) for size in given.batches.split(","))]))
    found: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "full.db"
        dead = _build(path, rows)
        for _ in range(rounds):
            for batch in batches:
                done = _run(path, batch)
                assert done["purged"] == dead, "all of the dead and none of the living"
                found[batch].append(done)
        _show(found, path.stat().st_size, rows, dead, rounds)
    return 0


def _build(path: Path, rows: int) -> int:
    """The database that all copies are of; how many rows of it are dead."""
    users, dead = max(1, rows // 20), 0

    def made() -> Iterator[tuple[Any, ...]]:
        nonlocal dead
        chance = random.Random(1)
        step = 20 * logins.DAY // rows
        for i in range(rows):
            created = _NOW - 29 * logins.DAY + i * step
            rotated, life, revoked = _NOW - chance.randrange(logins.DAY), 30 * logins.DAY, None
            if chance.random() < 0.5:
                kind = chance.randrange(3)
                if kind == 0:
                    revoked = _SINCE - 1 - chance.randrange(logins.DAY)
                elif kind == 1:
                    rotated = _SINCE - 14 * logins.DAY - 1
                else:
                    life = logins.DAY // 2
                dead += 1
            yield logins.login(
                ids.uuid7(created, chance.randbytes(10)),
                chance.randrange(users),
                secret_hash=chance.randbytes(32),
                created_at=created,
                rotated_at=rotated,
                expires_at=created + life,
                revoked_at=revoked,
            )

    logins.build(path, users=users, rows=made(), now=_NOW)
    return dead


def _run(path: Path, batch: int) -> dict[str, float]:
    """What a contender measured in its own process; batch 0 is the raw DELETE."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        copy = Path(directory) / "copy.db"
        shutil.copy(path, copy)
        os.sync()  # or the first commit would pay for the copy
        command = [sys.executable, "-m", "bench.purge", "--contender", str(copy), str(batch)]
        root = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, cwd=root, env=environment
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _show(found: dict[int, list[dict[str, float]]], size: int, rows: int, dead: int, rounds: int) -> None:
    def median(batch: int, name: str) -> float:
        return statistics.median(each[name] for each in found[batch])

    lines = []
    for batch in found:
        wall, busy = median(batch, "wall"), median(batch, "busy")
        speed = [ratio(median(0, "wall"), each) if batch else "" for each in (wall, busy)]
        met = median(0, "wall") / wall >= _GOAL
        lines.append(
            [
                f"batch {batch:,}" if batch else "raw DELETE",
                f"{wall:.1f}",
                f"{busy:.1f}",
                f"{dead / busy:,.0f}",
                *speed,
                f"{median(batch, 'longest') * 1e3:,.0f}",
                f"{median(batch, 'middle') * 1e3:,.0f}",
                f"{median(batch, 'before'):.0f} + {median(batch, 'grown'):.0f}",
                ("met" if met else "NOT met") if batch else "",
            ]
        )
    show(
        f"Medians of {rounds} runs each, in turns; {dead:,} of {rows:,} rows are dead, {size / 1e6:.0f} MB.",
        [
            "", "wall s", "busy s", "rows/s busy", "raw / wall", "raw / busy", "longest hold ms",
            "median hold ms", "peak MB", f"goal: raw / wall ≥ {_GOAL}",
        ],
        lines,
    )  # fmt: skip


# --- in a process of its own -----------------------------------------------------------------


def _contend(path: Path, batch: int) -> int:
    found = _purge(path, batch) if batch else _raw(path)
    json.dump(found, sys.stdout)
    return 0


def _raw(path: Path) -> dict[str, float]:
    condition = sa.delete(refresh_tokens).where(tokens._dead(_SINCE))
    text = str(condition.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    with closing(logins.connect(path)) as connection:
        before, began = _peak(), time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        purged = connection.execute(text).rowcount
        connection.execute("COMMIT")
        seconds = time.perf_counter() - began
        return _report(purged, seconds, 0, [seconds], before)


def _purge(path: Path, batch: int) -> dict[str, float]:
    holds: list[float] = []
    slept = 0.0
    write, sleep = SQLiteStorage.write, time.sleep

    @contextmanager
    def watched_write(storage: SQLiteStorage, *, lock_wait: float | None = None) -> Iterator[Connection]:
        with write(storage, lock_wait=lock_wait) as connection:
            began = time.perf_counter()
            yield connection
        holds.append(time.perf_counter() - began)

    def watched_sleep(seconds: float) -> None:
        nonlocal slept
        began = time.perf_counter()
        sleep(seconds)
        slept += time.perf_counter() - began

    SQLiteStorage.write = watched_write  # type: ignore[method-assign, assignment] # it only watches
    time.sleep = watched_sleep  # type: ignore[assignment] # it only watches
    with TokenService(logins.settings(path), clock=lambda: _NOW) as service:
        before, began = _peak(), time.perf_counter()
        done = service.purge(batch=batch)
        return _report(done.purged, time.perf_counter() - began, slept, holds, before)


def _report(purged: int, seconds: float, slept: float, holds: list[float], before: float) -> dict[str, float]:
    return {
        "purged": purged,
        "wall": seconds,
        "busy": seconds - slept,
        "longest": max(holds),
        "middle": statistics.median(holds),
        "before": before,
        "grown": _peak() - before,
    }


def _peak() -> float:
    """The most memory that this process ever had (MB)."""
    with suppress(FileNotFoundError):
        # Linux hands ru_maxrss down from the parent, which built the table.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3  # type: ignore[index] # Linux has that line
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    sys.exit(main())
