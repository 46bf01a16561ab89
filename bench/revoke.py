"""Revoking a million logins: by a predicate beside raw SQL that writes the same, and from a file of strings.

    python -m bench.revoke [--rows N] [--rounds N] [--databases sqlite,postgresql] [--quick]

All rows are of one client, live, of a twentieth as many users. Each contender gets a copy of its own of the
same database, in turns:

- *raw*: one transaction with one UPDATE of the rows and one INSERT … SELECT of the same audit events
- *predicate*: `tokenctl revoke --client default --confirm N`, as a process, looking first as it always does
- *strings*: `tokenctl revoke --from-file FILE --confirm N`, as a process, on a file of as many lines: of each
  login its current string, and one line in ten is an id, junk, or forged

A process also pays for its start, about 0.3 s. Durable everywhere (WAL and synchronous=FULL; fsync on).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench import logins, postgres
from bench.table import options, ratio, show
from tokenctl.core import ids, keys
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.core.token_string import hash_secret, mint
from tokenctl.service.database import build_database

_NOW = time.time_ns() // 1_000
_ROOT = Path(__file__).parents[1]
_PER_USER = 20

_MARK = "revoked_at = {now}, revoked_reason = 'bench', revoked_by = 'bench'"
_UPDATE = f"UPDATE refresh_tokens SET {_MARK} WHERE client_id = 'default' AND revoked_at IS NULL"
_EVENTS = (
    "INSERT INTO events (at, type, actor, user_id, token_id, client_id, reason, data)"
    " SELECT {now}, 'token.revoke', 'bench', user_id, id, client_id, 'bench',"
    " '{{\"access_until\":' || access_until || '}}'"
    " FROM refresh_tokens WHERE revoked_at = {now}"
)


@dataclass
class _Sample:
    """What one contender took: wall seconds, and the most memory that its process had (MB)."""

    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=2, metavar="N")
    parser.add_argument("--databases", default="sqlite,postgresql")
    given = parser.parse_args()
    rows, rounds = (4_000, 1) if given.quick else (given.rows, given.rounds)
    found: dict[tuple[str, str], _Sample] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        lines = directory / "strings.txt"
        named = list(some_logins(rows))
        _write_strings(lines, named)
        for database in given.databases.split(","):
            with _DATABASES[database](directory, named) as copy:
                for _ in range(rounds):
                    for contender in ("raw", "predicate", "strings"):
                        sample = found.setdefault((database, contender), _Sample())
                        with copy() as target:
                            _run(sample, contender, target, lines, rows)
    _show(found, rows, rounds)
    return 0


@dataclass(frozen=True)
class _Login:
    raw_id: bytes
    secret: bytes
    user: int


def some_logins(rows: int) -> Iterator[_Login]:
    chance = random.Random(1)
    for i in range(rows):
        created = _NOW - logins.DAY + i * (logins.DAY // rows)
        yield _Login(ids.uuid7(created, chance.randbytes(10)), chance.randbytes(16), i // _PER_USER)


def _write_strings(path: Path, named: list[_Login]) -> None:
    """A line a login, shuffled: what comes out of a log is in no order of ours."""
    mac = keys.derive_keys(logins.MASTER_KEY).mac
    chance = random.Random(2)
    lines = []
    for i, login in enumerate(named):
        string = mint(login.raw_id, 0, login.secret, mac)
        other = {
            0: ids.token_id(login.raw_id),
            10: f"junk {i}",
            20: mint(login.raw_id, 0, login.secret, b"x"),
        }
        lines.append(other.get(i % 30, string))
    chance.shuffle(lines)
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class _Target:
    """One copy of a database: how the tool is told of it, and how raw SQL is run on it."""

    arguments: list[str]
    run: Callable[[list[str]], None]


def _run(sample: _Sample, contender: str, target: _Target, lines: Path, rows: int) -> None:
    users = -(-rows // _PER_USER)
    if contender == "raw":
        began = time.perf_counter()
        target.run([text.format(now=_NOW) for text in (_UPDATE, _EVENTS)])
        sample.seconds.append(time.perf_counter() - began)
        return
    which = ["--client", "default"] if contender == "predicate" else ["--from-file", str(lines)]
    command = [sys.executable, "-m", "tokenctl", "revoke", *which, "--confirm", str(users), "--json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOKENCTL_")}
    began = time.perf_counter()
    done = subprocess.Popen(
        [*command, "--reason", "bench", *target.arguments],
        stdout=subprocess.DEVNULL,
        cwd=_ROOT,
        env={**environment, "PYTHONPATH": str(_ROOT)},
    )
    # Not ru_maxrss, in which Linux counts what this process has, too.
    while (code := done.poll()) is None:
        with suppress(OSError):
            high = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{done.pid}/status").read_text())
            sample.peak = max(sample.peak, int(high[1]) / 1e3 if high else 0)
        time.sleep(0.02)
    sample.seconds.append(time.perf_counter() - began)
    assert code == (0 if contender == "predicate" else 3), f"{contender}: exit code {code}"


# --- the databases ---------------------------------------------------------------------------

_Copies = Callable[[], AbstractContextManager[_Target]]


@contextmanager
def _sqlite(directory: Path, named: list[_Login]) -> Iterator[_Copies]:
    path = directory / "full.db"
    logins.build(
        path,
        users=named[-1].user + 1,
        now=_NOW,
        rows=(
            logins.login(
                login.raw_id,
                login.user,
                secret_hash=hash_secret(login.secret),
                created_at=_NOW - logins.DAY,
                rotated_at=_NOW - 1,
                expires_at=_NOW + 30 * logins.DAY,
            )
            for login in named
        ),
    )

    @contextmanager
    def copy() -> Iterator[_Target]:
        with tempfile.TemporaryDirectory(dir=directory) as name:
            target = Path(name) / "copy.db"
            shutil.copy(path, target)
            shutil.copy(f"{path}.key", f"{target}.key")
            os.sync()  # or the first commit would pay for the copy

            def run(statements: list[str]) -> None:
                with closing(logins.connect(target)) as connection:
                    for statement in ["BEGIN IMMEDIATE", *statements, "COMMIT"]:
                        connection.execute(statement)

            yield _Target(["--database", str(target)], run)

    yield copy


@contextmanager
def on_postgresql(directory: Path, named: list[_Login]) -> Iterator[_Copies]:
    key = directory / "postgres.key"
    key.write_text(format_master_key(logins.MASTER_KEY) + "\n")
    with postgres.cluster() as server:
        full = server.create("full")
        build_database(full, logins.MASTER_KEY, generate_signing_key(), actor="bench")
        with psycopg.connect(full, autocommit=True) as connection:
            _fill(connection, named)
            connection.execute("VACUUM (ANALYZE)")
        number = 0

        @contextmanager
        def copy() -> Iterator[_Target]:
            nonlocal number
            number += 1
            server.execute(f'CREATE DATABASE "copy{number}" TEMPLATE "full"')
            server.execute("CHECKPOINT")
            url = server.url(f"copy{number}")

            def run(statements: list[str]) -> None:
                with psycopg.connect(url) as connection:
                    for statement in statements:
                        connection.execute(statement.encode())

            yield _Target(["--database", url, "--key-file", str(key)], run)
            server.execute(f'DROP DATABASE "copy{number}" WITH (FORCE)')

        yield copy


def _fill(connection: psycopg.Connection, named: list[_Login]) -> None:
    columns = "id, name, name_key, created_at, not_before"
    with connection.cursor().copy(f"COPY users ({columns}) FROM STDIN".encode()) as copy:
        for number in range(named[-1].user + 1):
            copy.write_row((logins.user_id(number), f"user{number}", f"user{number}", 0, 0))
    columns = (
        "id, user_id, client_id, scope, generation, secret_hash, created_at, rotated_at, access_until,"
        " expires_at, idle_ttl, context_changed"
    )
    with connection.cursor().copy(f"COPY refresh_tokens ({columns}) FROM STDIN".encode()) as copy:
        for login in named:
            begin, end = _NOW - logins.DAY, _NOW + 30 * logins.DAY
            who = (
                login.raw_id,
                logins.user_id(login.user),
                "default",
                "profile",
                0,
                hash_secret(login.secret),
            )
            copy.write_row((*who, begin, _NOW - 1, _NOW + 600_000_000, end, 14 * logins.DAY, 0))


_DATABASES = {"sqlite": _sqlite, "postgresql": on_postgresql}


# --- the table -------------------------------------------------------------------------------


def _show(found: dict[tuple[str, str], _Sample], rows: int, rounds: int) -> None:
    lines = []
    for (database, contender), sample in found.items():
        seconds = statistics.median(sample.seconds)
        raw = statistics.median(found[database, "raw"].seconds)
        goal = {
            "raw": "",
            "predicate": f"≥ 0.5: {'met' if raw / seconds >= 0.5 else 'NOT met'}",
            "strings": f"≥ 50,000/s: {'met' if rows / seconds >= 50_000 else 'NOT met'}",
        }[contender]
        lines.append(
            [
                f"{database}: {contender}",
                f"{seconds:.1f}",
                f"{rows / seconds:,.0f}",
                ratio(raw, seconds),
                f"{sample.peak:.0f}" if sample.peak else "",
                goal,
            ]
        )
    show(
        f"Medians of {rounds} runs each, in turns; {rows:,} live logins.",
        ["", "wall s", "per second", "raw / wall", "peak MB", "goal"],
        lines,
    )


if __name__ == "__main__":
    sys.exit(main())
