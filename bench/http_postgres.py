"""Rotations over HTTP on PostgreSQL: our server, one and two of them, its floor, and what others pick.

    python -m bench.http_postgres [--clients 1,16,64] [--seconds N] [--turns N] [--quick]
    python -m bench.http_postgres --rows 10000000      (latency with many rows beside that with 10,000)
    python -m bench.http_postgres --beside             (a bulk revoke, and a locked row, beside rotations)

One PostgreSQL server, which this starts with its own settings (fsync and synchronous_commit on), a database
for each contender. All run at once and take turns; every client rotates a chain of its own. CPU is that of a
contender's processes, and beside it what PostgreSQL's took meanwhile, background processes included.

- *tokenctl*: `tokenctl serve`, one process, and two that share the clients
- *floor*: as in `bench.http`; the UPDATE is what it costs the client, on the bare driver
- *simplejwt*, *django-oauth-toolkit*: gunicorn with 2 processes of 4 threads
- *oidc-provider*: one process, with an adapter that commits each write, and with one that groups them
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from bench import load, logins, postgres, rotate
from bench.http import TOKEN_ENDPOINT, Contender, Failed, answer_bytes, bare, judged, others, window
from bench.peers import servers
from bench.peers.servers import NotSetUp
from bench.table import options, ratio, show
from tokenctl.core import ids, token_string
from tokenctl.core.keys import derive_keys, format_master_key, generate_signing_key
from tokenctl.service.database import build_database
from tokenctl.storage.swap import rotation_statement

_MAC_KEY = derive_keys(logins.MASTER_KEY).mac
_SIMPLEJWT = load.Style("/refresh", "application/json", '{"refresh": "', '"}')
_DOT = load.Style("/o/token/", load.FORM.content_type, load.FORM.before, load.FORM.after)
_GOAL_CPU, _GOAL_ROWS, _GOAL_BESIDE = 2, 1.2, 5
#: The peers, and how many times their rate is the goal.
_PEERS = {"simplejwt": 30, "django-oauth-toolkit": 30, "oidc-provider": 5}
_FEW_ROWS = 10_000
_BESIDE_CLIENTS = 16


# --- a database full of logins ---------------------------------------------------------------------


def build(url: str, chains: int, rows: int) -> list[str]:
    """A migrated database with that many rows in all; the strings of the chains, which lie all over it."""
    now = time.time_ns() // 1000
    build_database(url, logins.MASTER_KEY, generate_signing_key(), actor="bench", clock=lambda: now)
    chance = random.Random(1)
    made = [
        (ids.uuid7(now - i * 1_000_000, chance.randbytes(10)), chance.randbytes(16)) for i in range(chains)
    ]
    users = max(1, rows // 2)
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO users (id, name, name_key, created_at, not_before)"
            " SELECT decode(lpad(to_hex(i), 32, '0'), 'hex'), 'user' || i, 'user' || i, 0, 0"
            " FROM generate_series(0, %s) i",
            [users - 1],
        )
        columns = (
            "(id, user_id, client_id, scope, generation, secret_hash, created_at, rotated_at, access_until,"
            " expires_at, idle_ttl, last_user_agent, context_changed)"
        )
        # Ids that grow with time, as UUIDv7 do, one login each second until now.
        connection.execute(
            f"INSERT INTO refresh_tokens {columns}"
            " SELECT decode(lpad(to_hex((%(now)s / 1000 - i::bigint * 1000)::bigint), 12, '0')"
            " || '7' || substr(md5(i::text), 1, 19), 'hex'),"
            " decode(lpad(to_hex(i %% %(users)s), 32, '0'), 'hex'), 'default', 'profile', 0,"
            " sha256(i::text::bytea), %(now)s, %(now)s, %(now)s, %(now)s + 30 * %(day)s, 14 * %(day)s,"
            " 'Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0', 0 FROM generate_series(1, %(rows)s) i",
            {"now": now, "users": users, "day": logins.DAY, "rows": rows - chains},
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO refresh_tokens {columns}"
                " VALUES (%s, %s, 'default', 'profile', 0, %s, %s, %s, %s, %s, %s, 'Mozilla/5.0', 0)",
                [
                    (
                        *(raw_id, logins.user_id(chance.randrange(users)), token_string.hash_secret(secret)),
                        *(now, now, now, now + 30 * logins.DAY, 14 * logins.DAY),
                    )
                    for raw_id, secret in made
                ],
            )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    return [token_string.mint(raw_id, 0, secret, _MAC_KEY) for raw_id, secret in made]


def _key(directory: Path) -> Path:
    path = directory / "key"
    path.write_text(format_master_key(logins.MASTER_KEY) + "\n")
    path.chmod(0o600)
    return path


class Update:
    """The rotation's own UPDATE on the bare driver, in batches: µs of CPU of this process for each row."""

    def __init__(self, url: str, strings: Sequence[str]) -> None:
        self._strings = list(strings)
        self._connection = psycopg.connect(url, autocommit=True)
        self._text = str(rotation_statement(0).compile(dialect=sa.make_url("postgresql://").get_dialect()()))

    def close(self) -> None:
        self._connection.close()

    def measure(self, size: int, batches: int) -> float:
        spent, rotated = 0, 0
        for _ in range(batches):
            tokens = [token_string.parse(string, _MAC_KEY) for string in self._strings[:size]]
            now = time.time_ns() // 1000
            values: dict[str, Any] = {
                "id": [token.raw_id for token in tokens],
                "generation": [token.generation for token in tokens],
                "secret_hash": [token.secret_hash for token in tokens],
                "client_id": ["default"] * size,
                "now": now,
                "access_until": now + 600_000_000,
                "last_generation": token_string.LAST_GENERATION,
                **{name: [None] * size for name in ("ip", "user_agent", "device")},
            }
            began = time.process_time_ns()
            self._connection.execute("BEGIN")
            rows = self._connection.execute(self._text, values).fetchall()
            self._connection.execute("COMMIT")
            spent += time.process_time_ns() - began
            assert len(rows) == size, "every string is the current one"
            rotated += size
            self._strings[:size] = [token_string.successor(token, _MAC_KEY) for token in tokens]
        return spent / rotated / 1e3


# --- contenders and their windows ------------------------------------------------------------------


@dataclass
class _Entry:
    """A contender of the table: one server, or several that share the clients."""

    name: str
    servers: list[Contender]
    found: dict[int, list[_Window]] = field(default_factory=dict)

    def run(self, size: int, seconds: float, cluster: postgres.Cluster) -> _Window:
        many = len(self.servers)
        shares = [range(size * n // many, size * (n + 1) // many) for n in range(many)]
        before = cluster.cpu()
        results = window(
            [(one, share) for one, share in zip(self.servers, shares, strict=True) if share], seconds
        )
        rotations = sum(each.rotations for each in results)
        return _Window(
            rate=sum(each.rate for each in results),
            p50=statistics.median(each.percentile(0.5) for each in results),
            p99=max(each.percentile(0.99) for each in results),
            cpu=sum(each.cpu_each * each.rotations for each in results) / rotations,
            database_cpu=(cluster.cpu() - before) / rotations * 1e6,
            result=results[0],
        )

    def median(self, size: int, figure: str) -> float:
        figures: list[float] = [getattr(each, figure) for each in self.found[size]]
        return statistics.median(figures)


@dataclass(frozen=True)
class _Window:
    """Rotations/s, ms, and µs of CPU for a rotation: the server's and PostgreSQL's."""

    rate: float
    p50: float
    p99: float
    cpu: float
    database_cpu: float
    result: load.Result


def _contenders(
    stack: ExitStack, cluster: postgres.Cluster, directory: Path, most: int, strings: list[str]
) -> tuple[list[_Entry], list[str]]:
    """All that are set up, and a line for each that is not."""
    key = _key(directory)
    url = cluster.url("tokenctl")
    ours = [
        Contender(
            f"tokenctl {n}", load.JSON,
            stack.enter_context(servers.tokenctl_postgresql(url, directory, key)), strings,
        )
        for n in (1, 2)
    ]  # fmt: skip
    entries = [_Entry("tokenctl, 1 process", ours[:1]), _Entry("tokenctl, 2 processes", ours)]
    entries.append(_Entry("bare ASGI", [bare(stack, directory, answer_bytes(ours[0]), most)]))
    missing = []

    def peer(name: str, style: load.Style, start: Any) -> None:
        try:
            server, own = stack.enter_context(start)
        except NotSetUp as why:
            missing.append(f"{name}: {why}")
        else:
            entries.append(_Entry(name, [Contender(name, style, server, own)]))

    peer("simplejwt", _SIMPLEJWT, servers.simplejwt(cluster.create("simplejwt"), directory, chains=most))
    peer(
        "django-oauth-toolkit", _DOT,
        servers.django_oauth_toolkit(cluster.create("dot"), directory, chains=most),
    )  # fmt: skip
    for commit, name in (("each", "oidc-provider"), ("group", "oidc-provider, grouped writes")):
        url = cluster.create(f"oidc_{commit}")
        start = servers.oidc_provider_postgresql(url, directory, chains=most, commit=commit)
        peer(name, TOKEN_ENDPOINT, start)
    return entries, missing


@contextmanager
def _prepared(rows: int, chains: int) -> Iterator[tuple[postgres.Cluster, Path, list[str], ExitStack]]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        cluster = stack.enter_context(postgres.cluster())
        strings = build(cluster.create("tokenctl"), chains, rows)
        yield cluster, Path(name), strings, stack


# --- the table of all contenders -------------------------------------------------------------------


def _rotations(given: argparse.Namespace) -> None:
    sizes = [int(size) for size in given.clients.split(",")]
    most = max(sizes)
    with _prepared(_FEW_ROWS, most + 1) as (cluster, directory, strings, stack):
        driver = Update(cluster.url("floor"), build(cluster.create("floor"), most, _FEW_ROWS))
        stack.callback(driver.close)
        parts, key = rotate.Parts(), generate_signing_key()
        updates: dict[int, list[float]] = {}
        entries, missing = _contenders(stack, cluster, directory, most, strings)
        for turn in range(given.turns + 1):
            for size in sizes:
                updates.setdefault(size, []).append(
                    driver.measure(size, 5 if given.quick else 2000 // size + 20)
                )
                parts.measure([*strings[:most]] * 8, key)
                for entry in entries:
                    done = entry.run(size, given.seconds, cluster)
                    if turn > 0:  # the first one warms caches and compilers
                        entry.found.setdefault(size, []).append(done)
        _show(entries, missing, sizes, updates, parts, given)


def _show(
    entries: Sequence[_Entry],
    missing: Sequence[str],
    sizes: Sequence[int],
    updates: dict[int, list[float]],
    parts: rotate.Parts,
    given: argparse.Namespace,
) -> None:
    by_name = {entry.name: entry for entry in entries}
    rows, notes = [], []
    token_work = statistics.median(parts.parse) + statistics.median(parts.successor)
    signature = statistics.median(parts.bare)
    for size in sizes:
        update = statistics.median(updates[size])
        answer = by_name["bare ASGI"].median(size, "cpu")
        floor = answer + signature + update + token_work
        notes.append(
            f"Floor at {size}, µs of CPU: bare ASGI {answer:.1f}, ES256 signature {signature:.1f}, "
            f"UPDATE {update:.1f}, parse, MAC, hash and successor {token_work:.1f}."
        )
        for entry in entries:
            rows.append(_row(entry, by_name, size, floor))
        rows.append(["floor", str(size), "", "", "", f"{floor:.1f}", "", "1.00", *[""] * len(_PEERS), ""])
    rows += [[line, *[""] * (8 + len(_PEERS))] for line in missing]  # never left out in silence
    notes += [
        others([each.result for entry in entries for found in entry.found.values() for each in found]),
        f"{postgres.version()}.",
        *(servers.django_versions(peer) for name, peer in _DJANGO.items() if name in by_name),
        *([servers.oidc_versions("pg")] if "oidc-provider" in by_name else []),
    ]
    show(
        f"Medians of {given.turns} windows of {given.seconds:g} s each, in turns, after one that does not "
        "count; an answer without a new string would have ended the run.",
        [
            "contender", "clients", "rotations/s", "p50 ms", "p99 ms", "µs CPU", "PostgreSQL's",
            "CPU / floor", *(f"rate / {peer}" for peer in _PEERS), "at 64: goals",
        ],
        rows,
        notes,
    )  # fmt: skip


_DJANGO = {"simplejwt": "simplejwt", "django-oauth-toolkit": "dot"}


def _row(entry: _Entry, by_name: dict[str, _Entry], size: int, floor: float) -> list[str]:
    rate, cpu = entry.median(size, "rate"), entry.median(size, "cpu")
    peers = {name: rate / by_name[name].median(size, "rate") for name in _PEERS if name in by_name}
    goals = ""
    if entry.name.startswith("tokenctl") and size == 64:
        met = {f"CPU ≤ {_GOAL_CPU}": cpu / floor <= _GOAL_CPU}
        met |= {f"{name} ≥ {_PEERS[name]}": times >= _PEERS[name] for name, times in peers.items()}
        goals = ", ".join(f"{name}: {judged(ok)}" for name, ok in met.items())
    return [
        entry.name,
        str(size),
        f"{rate:,.0f}",
        f"{entry.median(size, 'p50'):.2f}",
        f"{entry.median(size, 'p99'):.2f}",
        f"{cpu:.1f}",
        f"{entry.median(size, 'database_cpu'):.1f}",
        ratio(cpu, floor),
        *(f"{peers[name]:.2f}" if name in peers else "" for name in _PEERS),
        goals,
    ]


# --- many rows beside few --------------------------------------------------------------------------


def _many_rows(given: argparse.Namespace) -> None:
    sizes = [int(size) for size in given.clients.split(",")]
    rows = 20_000 if given.quick else given.rows
    with _prepared(_FEW_ROWS, max(sizes) + 1) as (cluster, directory, strings, stack):
        key = _key(directory)
        entries, sizes_of = [], ""
        for name, many, own in (("few", _FEW_ROWS, strings), ("many", rows, None)):
            url = cluster.url("tokenctl") if own else cluster.create("many")
            chains = own or build(url, max(sizes) + 1, many)
            sizes_of = _sizes(url, many)
            server = stack.enter_context(servers.tokenctl_postgresql(url, directory, key))
            entries.append(_Entry(f"{many:,} rows", [Contender(name, load.JSON, server, chains)]))
        for turn in range(given.turns + 1):
            for size in sizes:
                for entry in entries:
                    done = entry.run(size, given.seconds, cluster)
                    if turn > 0:
                        entry.found.setdefault(size, []).append(done)
        lines = []
        for size in sizes:
            few, many_ = entries
            for entry in entries:
                times = entry.median(size, "p50") / few.median(size, "p50")
                lines.append([
                    entry.name, str(size), f"{entry.median(size, 'rate'):,.0f}",
                    f"{entry.median(size, 'p50'):.2f}", f"{entry.median(size, 'p99'):.2f}",
                    f"{entry.median(size, 'database_cpu'):.1f}", f"{times:.2f}",
                    judged(times <= _GOAL_ROWS) if entry is many_ else "",
                ])  # fmt: skip
        show(
            f"Medians of {given.turns} windows of {given.seconds:g} s each, in turns.",
            [
                "database", "clients", "rotations/s", "p50 ms", "p99 ms", "PostgreSQL's µs CPU",
                "p50 / with few rows", f"goal ≤ {_GOAL_ROWS}",
            ],
            lines,
            [sizes_of, f"{postgres.version()}."],
        )  # fmt: skip


def _sizes(url: str, rows: int) -> str:
    """What the tables take on the disk with their indexes, freshly written; half as many users as logins."""
    with psycopg.connect(url) as connection:
        [[logins_, users]] = connection.execute(
            "SELECT pg_total_relation_size('refresh_tokens'), pg_total_relation_size('users')"
        ).fetchall()
    return (
        f"{rows:,} logins take {logins_ / 1e6:,.0f} MB ({logins_ / rows:.0f} bytes each) with their indexes,"
        f" {rows // 2:,} users {users / 1e6:,.0f} MB ({2 * users / rows:.0f} bytes each)."
    )


# --- what others do beside rotations ---------------------------------------------------------------


def _beside(given: argparse.Namespace) -> None:
    rows = 20_000 if given.quick else 1_000_000
    with _prepared(_FEW_ROWS, _BESIDE_CLIENTS + 2) as (cluster, directory, strings, stack):
        url, key = cluster.url("tokenctl"), _key(directory)
        server = stack.enter_context(servers.tokenctl_postgresql(url, directory, key))
        entry = _Entry("tokenctl", [Contender("tokenctl", load.JSON, server, strings)])
        entry.run(_BESIDE_CLIENTS, given.seconds, cluster)
        lines = []
        for name, disturb in (
            ("a bulk revoke", _bulk_revoke(url, key, rows)),
            ("a locked row", _locked(url, strings, server.port)),
        ):
            idle, busy, notes = [], [], []
            for _ in range(given.turns):
                idle.append(entry.run(_BESIDE_CLIENTS, given.seconds, cluster))
                with disturb() as say:
                    busy.append(entry.run(_BESIDE_CLIENTS, given.seconds, cluster))
                    notes.append(say())
            still, moved = (statistics.median(each.p99 for each in found) for found in (idle, busy))
            rates = [statistics.median(each.rate for each in found) for found in (idle, busy)]
            lines.append([
                name, f"{rates[0]:,.0f}", f"{still:.2f}", f"{rates[1]:,.0f}", f"{moved:.2f}",
                ratio(moved, still), judged(moved / still <= _GOAL_BESIDE), notes[-1],
            ])  # fmt: skip
        show(
            f"{_BESIDE_CLIENTS} clients, idle and beside it in turns: medians of {given.turns} windows of "
            f"{given.seconds:g} s each.",
            [
                "beside", "idle rotations/s", "idle p99 ms", "rotations/s", "p99 ms", "p99 / idle",
                f"goal ≤ {_GOAL_BESIDE}", "what it did meanwhile",
            ],
            lines,
            [f"{postgres.version()}."],
        )  # fmt: skip


def _bulk_revoke(url: str, key: Path, rows: int) -> Any:
    """`tokenctl revoke --user victim` of that many logins, in a process of its own; made anew each time."""

    @contextmanager
    def disturb() -> Iterator[Any]:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DELETE FROM refresh_tokens WHERE user_id = %s", [_VICTIM])
            connection.execute(
                "INSERT INTO users (id, name, name_key, created_at, not_before)"
                " VALUES (%s, 'victim', 'victim', 0, 0) ON CONFLICT DO NOTHING",
                [_VICTIM],
            )
            connection.execute(
                "INSERT INTO refresh_tokens (id, user_id, client_id, scope, generation, secret_hash,"
                " created_at, rotated_at, access_until, expires_at, context_changed)"
                " SELECT decode('02' || substr(md5(i::text), 1, 30), 'hex'), %s, 'default', '', 0,"
                " sha256(i::text::bytea), 1, 1, 1, 9000000000000000, 0 FROM generate_series(1, %s) i",
                [_VICTIM, rows],
            )
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        command = [
            *(sys.executable, "-m", "tokenctl", "revoke", "--user", "victim", "--reason", "bench"),
            *("--confirm", "1", "--json", "--key-file", str(key)),
        ]
        process = subprocess.Popen(
            command,
            env={**os.environ, "TOKENCTL_DATABASE": url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(1.5)  # it counts first, and asks nothing

        def say() -> str:
            with psycopg.connect(url) as connection:
                [(done,)] = connection.execute(
                    "SELECT count(*) FROM refresh_tokens WHERE user_id = %s AND revoked_at IS NOT NULL",
                    [_VICTIM],
                ).fetchall()
            ended = process.poll() is not None
            if not done:
                why = process.stderr.read().decode() if ended and process.stderr else "it is still counting"
                raise Failed(f"the bulk revoke had not begun: {why}")
            return f"{done:,} of {rows:,} revoked{', ended before the window did' if ended else ''}"

        try:
            yield say
        finally:
            process.terminate()
            process.wait()

    return disturb


_VICTIM = logins.user_id(2**64)


def _locked(url: str, strings: Sequence[str], port: int) -> Any:
    """A row that another transaction has locked, and a client that presents its string all the time."""
    target = token_string.parse(strings[-1], _MAC_KEY)

    @contextmanager
    def disturb() -> Iterator[Any]:
        asked = load.JSON
        code = (
            "import sys, time, urllib.request, urllib.error\n"
            "url, body = sys.argv[1], sys.stdin.buffer.read()\n"
            "while True:\n"
            "    try:\n"
            "        urllib.request.urlopen(urllib.request.Request(url, body, "
            "{'Content-Type': 'application/json'}), timeout=30).read()\n"
            "    except urllib.error.HTTPError as error:\n"
            "        print(error.code, flush=True)\n"
        )
        with psycopg.connect(url) as connection:
            connection.execute("SELECT 1 FROM refresh_tokens WHERE id = %s FOR UPDATE", [target.raw_id])
            process = subprocess.Popen(
                [sys.executable, "-c", code, f"http://127.0.0.1:{port}{asked.path}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdin is not None
            process.stdin.write(f"{asked.before}{strings[-1]}{asked.after}")
            process.stdin.close()
            process.stdin = None
            try:
                time.sleep(0.5)
                yield lambda: "one string of the row presented again and again"
            finally:
                process.kill()
                output, _ = process.communicate()
                if set(output.split()) - {"503"}:
                    raise Failed(f"the locked row's client got {output.split()}")

    return disturb


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--clients", default="1,16,64", metavar="N,N", help="how many rotate at once")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="N", help="the length of a window")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="windows of each contender")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="latency with that many rows")
    parser.add_argument("--beside", action="store_true", help="a bulk revoke, and a locked row, beside")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.turns, given.clients = 0.3, 1, "1,4"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        (_beside if given.beside else _many_rows if given.rows else _rotations)(given)
    except (Failed, NotSetUp, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
