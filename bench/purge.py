"""Purging half of a table, beside one raw DELETE of the same rows.

    python -m bench.purge [--database KIND] [--rows N] [--batches 1000,5000] [--rounds N] [--quick]
    python -m bench.purge --beside CLIENTS   (rotations over HTTP while it runs, killed five times on the way)
    python -m bench.purge --peers            (beside what others have for that, on PostgreSQL)

Half of the rows are dead, mixed at random with the live ones: a third each was revoked, lay idle, or was
issued for 12 hours; all others live for 30 days from their issue. Each contender runs in a process of its
own, on its own copy of one database (a file with WAL and synchronous=FULL; a database of a PostgreSQL with
its own durability), in turns:

- *raw*: BEGIN, one DELETE with the service's own condition, COMMIT, on the driver
- *batch N*: `TokenService.purge(batch=N)`, which sleeps about as long as it works while others write; *wall*
  has the sleep in it, *busy* has not

A hold is the time from BEGIN to the end of the commit, and of the checkpoint that the commit may do: so long
a rotation on a file waits for the purge.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.dialects import postgresql, sqlite

from bench import logins, postgres
from bench.table import options, ratio, show
from tokenctl import Settings, TokenService
from tokenctl.core import ids
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.service.database import build_database
from tokenctl.storage.engine import Connection, locate
from tokenctl.storage.purging import dead
from tokenctl.storage.schema import refresh_tokens

_NOW = 1_772_366_400_000_000
_SINCE = _NOW - 7 * logins.DAY
_GOALS = {"sqlite": 0.25, "postgresql": 0.4}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--database", choices=list(_GOALS), default="sqlite")
    parser.add_argument("--rows", type=int, default=400_000, metavar="N", help="half of them are dead")
    parser.add_argument("--batches", default="2000,5000", metavar="N,N")
    parser.add_argument("--rounds", type=int, default=2, metavar="N")
    parser.add_argument("--beside", type=int, metavar="CLIENTS", help="rotations while it runs")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="N", help="--beside: a window")
    parser.add_argument("--peers", action="store_true", help="beside what others have")
    parser.add_argument("--contender", nargs=2, metavar=("DATABASE", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        return _contend(given.contender[0], int(given.contender[1]))
    if given.quick:
        given.rows, given.rounds, given.seconds = 4_000, 1, 0.3
    if given.peers:
        from bench import purge_peers

        return purge_peers.run(given.rows)
    if given.beside:
        from bench import purge_beside

        return purge_beside.run(given.database, given.rows, given.beside, given.seconds, quick=given.quick)
    batches = list(dict.fromkeys([0, *(int(size) for size in given.batches.split(","))]))
    found: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    with placed(given.database) as place:
        dead = place.build(given.rows, _NOW)
        for _ in range(given.rounds):
            for batch in batches:
                with place.copied() as copy:
                    done = _run(copy, batch)
                assert done["purged"] == dead, "all of the dead and none of the living"
                found[batch].append(done)
        _show(found, place, given.rows, dead, given.rounds)
    return 0


# --- the databases ---------------------------------------------------------------------------------


class File:
    """A database in a file, of which each contender gets a copy."""

    kind = "sqlite"

    def __init__(self, directory: Path) -> None:
        self._path = directory / "full.db"

    @property
    def address(self) -> str:
        return str(self._path)

    @property
    def key_file(self) -> Path:
        return self._path.with_name(self._path.name + ".key")

    def build(self, rows: int, now: int, chains: Iterable[tuple[bytes, bytes]] = ()) -> int:
        """Fill it, with a live login for each pair of id and secret's hash as well; how many are dead."""
        users, dead = max(1, rows // 20), 0

        def made() -> Iterator[tuple[Any, ...]]:
            nonlocal dead
            chance = random.Random(1)
            for raw_id, secret_hash in chains:
                yield logins.login(
                    raw_id, 0, secret_hash=secret_hash, created_at=now, rotated_at=now,
                    expires_at=now + 30 * logins.DAY,
                )  # fmt: skip
            step, since = 20 * logins.DAY // rows, now - 7 * logins.DAY
            for i in range(rows):
                created = now - 29 * logins.DAY + i * step
                rotated, life, revoked = now - chance.randrange(logins.DAY), 30 * logins.DAY, None
                if chance.random() < 0.5:
                    kind = chance.randrange(3)
                    if kind == 0:
                        revoked = since - 1 - chance.randrange(logins.DAY)
                    elif kind == 1:
                        rotated = since - 14 * logins.DAY - 1
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

        logins.build(self._path, users=users, rows=made(), now=now)
        return dead

    @contextmanager
    def copied(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory(dir=self._path.parent) as directory:
            copy = Path(directory) / "copy.db"
            shutil.copy(self._path, copy)
            os.sync()  # or the first commit would pay for the copy
            yield str(copy)

    def count(self, condition: str) -> int:
        with closing(sqlite3.connect(self._path)) as connection:
            return int(connection.execute(f"SELECT count(*) {condition}").fetchone()[0])

    def size(self) -> int:
        return self._path.stat().st_size


class Server:
    """A database of a server of its own, of which each contender gets a copy."""

    kind = "postgresql"

    def __init__(self, cluster: postgres.Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.address = cluster.create("full")
        self.key_file = directory / "key"
        self.key_file.write_text(format_master_key(logins.MASTER_KEY) + "\n")
        self.key_file.chmod(0o600)

    def build(self, rows: int, now: int, chains: Iterable[tuple[bytes, bytes]] = ()) -> int:
        """As `File.build`."""
        build_database(
            self.address, logins.MASTER_KEY, generate_signing_key(), actor="bench", clock=lambda: now
        )
        users, day = max(1, rows // 20), logins.DAY
        columns = (
            "(id, user_id, client_id, scope, generation, secret_hash, created_at, rotated_at, access_until,"
            " expires_at, idle_ttl, revoked_at, revoked_reason, last_user_agent, context_changed)"
        )
        given = {"now": now, "since": now - 7 * day, "day": day, "users": users, "rows": rows}
        given["step"] = 20 * day // rows
        with psycopg.connect(self.address) as connection:
            connection.execute("SELECT setseed(0.5)")
            connection.execute(
                "INSERT INTO users (id, name, name_key, created_at, not_before)"
                " SELECT decode(lpad(to_hex(i), 32, '0'), 'hex'), 'user' || i, 'user' || i, 0, 0"
                " FROM generate_series(0, %s) i",
                [users - 1],
            )
            # 0, 1 and 2 are the three kinds of the dead. Ids that grow with time, as UUIDv7 do.
            connection.execute(
                f"INSERT INTO refresh_tokens {columns}"
                " SELECT decode(lpad(to_hex(created / 1000), 12, '0') || '7' || substr(md5(i::text), 1, 19),"
                " 'hex'), decode(lpad(to_hex(i %% %(users)s), 32, '0'), 'hex'), 'default', 'profile', 0,"
                " sha256(i::text::bytea), created, CASE kind WHEN 1 THEN %(since)s - 14 * %(day)s - 1"
                " ELSE %(now)s END, %(now)s, created + CASE kind WHEN 2 THEN %(day)s / 2 ELSE 30 * %(day)s"
                " END, 14 * %(day)s, CASE kind WHEN 0 THEN %(since)s - 1 END,"
                " CASE kind WHEN 0 THEN 'logout' END, 'Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0', 0"
                " FROM (SELECT i, %(now)s - 29 * %(day)s + i * %(step)s AS created,"
                " floor(random() * 6)::int AS kind FROM generate_series(0::bigint, %(rows)s - 1) i) made",
                given,
            )
            connection.cursor().executemany(
                f"INSERT INTO refresh_tokens {columns} VALUES"
                " (%s, %s, 'default', 'profile', 0, %s, %s, %s, %s, %s, %s, NULL, NULL, 'Mozilla/5.0', 0)",
                [
                    (raw_id, logins.user_id(0), secret_hash, now, now, now, now + 30 * day, 14 * day)
                    for raw_id, secret_hash in chains
                ],
            )
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        return self.count(f"FROM refresh_tokens WHERE {condition('postgresql', now - 7 * day)}")

    @contextmanager
    def copied(self) -> Iterator[str]:
        self.cluster.execute('CREATE DATABASE "copy" TEMPLATE "full" STRATEGY FILE_COPY')
        self.cluster.execute("CHECKPOINT")
        try:
            yield self.cluster.url("copy")
        finally:
            self.cluster.execute('DROP DATABASE "copy" WITH (FORCE)')

    def count(self, condition: str) -> int:
        with psycopg.connect(self.address) as connection:
            [(count,)] = connection.execute(f"SELECT count(*) {condition}".encode()).fetchall()
            return int(count)

    def size(self) -> int:
        with psycopg.connect(self.address) as connection:
            [(size,)] = connection.execute("SELECT pg_total_relation_size('refresh_tokens')").fetchall()
            return int(size)


@contextmanager
def placed(kind: str) -> Iterator[File | Server]:
    """An empty database of that kind, and all that it needs."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        if kind == "sqlite":
            yield File(Path(name))
        else:
            yield Server(stack.enter_context(postgres.cluster()), Path(name))


def condition(kind: str, since: int) -> str:
    """The service's own, as text."""
    dialect = (sqlite if kind == "sqlite" else postgresql).dialect()
    return str(dead(since).compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


def _run(database: str, batch: int) -> dict[str, float]:
    """What a contender measured in its own process; batch 0 is the raw DELETE."""
    command = [sys.executable, "-m", "bench.purge", "--contender", database, str(batch)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=root, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _show(
    found: dict[int, list[dict[str, float]]], place: File | Server, rows: int, dead: int, rounds: int
) -> None:
    goal, size = _GOALS[place.kind], place.size()

    def median(batch: int, name: str) -> float:
        return statistics.median(each[name] for each in found[batch])

    lines = []
    for batch in found:
        wall, busy = median(batch, "wall"), median(batch, "busy")
        speed = [ratio(median(0, "wall"), each) if batch else "" for each in (wall, busy)]
        met = median(0, "wall") / wall >= goal
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
            "median hold ms", "peak MB", f"goal: raw / wall ≥ {goal}",
        ],
        lines,
        [f"{postgres.version()}."] if isinstance(place, Server) else [],
    )  # fmt: skip


# --- in a process of its own -----------------------------------------------------------------


def _contend(database: str, batch: int) -> int:
    found = _purge(database, batch) if batch else _raw(database)
    json.dump(found, sys.stdout)
    return 0


def _raw(database: str) -> dict[str, float]:
    connection: Any
    if database.startswith("postgresql://"):
        kind, connection = "postgresql", psycopg.connect(database, autocommit=True)
    else:
        kind, connection = "sqlite", logins.connect(Path(database))
    text = f"DELETE FROM {refresh_tokens.name} WHERE {condition(kind, _SINCE)}"
    with closing(connection):
        before, began = _peak(), time.perf_counter()
        connection.execute("BEGIN IMMEDIATE" if kind == "sqlite" else "BEGIN")
        purged = connection.execute(text).rowcount
        connection.execute("COMMIT")
        seconds = time.perf_counter() - began
        return _report(purged, seconds, 0, [seconds], before)


def _purge(database: str, batch: int) -> dict[str, float]:
    holds: list[float] = []
    slept = 0.0
    with closing(locate(database).open()) as storage, storage.exclusive("look") as job:
        kind: Any = type(job)
    write, sleep = kind.write, time.sleep

    @contextmanager
    def watched_write(job: Any) -> Iterator[Connection]:
        with write(job) as connection:
            began = time.perf_counter()
            yield connection
        holds.append(time.perf_counter() - began)

    def watched_sleep(seconds: float) -> None:
        nonlocal slept
        began = time.perf_counter()
        sleep(seconds)
        slept += time.perf_counter() - began

    kind.write = watched_write  # it only watches
    time.sleep = watched_sleep  # type: ignore[assignment] # it only watches
    with TokenService(Settings(database=database), clock=lambda: _NOW) as service:
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
