"""`bench.purge --peers`: `tokenctl purge` beside the commands that others have for it, on one PostgreSQL.

Each on a database of its own with the same number of rows, of which every second one is dead: django-oauth-
toolkit's `cleartokens` (revoked refresh tokens), simplejwt's `flushexpiredtokens` (expired ones, of which a
rotation has put each on the blacklist). Each is the command as cron would run it, its start included.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from bench import postgres
from bench.peers import servers
from bench.peers.servers import DJANGO, ROOT, NotSetUp
from bench.purge import Server, condition, placed
from bench.table import ratio, show

#: How long (s) a peer may take; then what it did until then is what counts.
_PATIENCE = 900.0
_DAY_US = 86_400_000_000

_SIMPLEJWT = """
INSERT INTO token_blacklist_outstandingtoken (jti, token, created_at, expires_at, user_id)
SELECT md5(i::text), repeat(md5(i::text), 8), now() - interval '40 days',
  now() + CASE WHEN i % 2 = 0 THEN interval '-10 days' ELSE interval '10 days' END,
  (SELECT min(id) FROM auth_user) FROM generate_series(1, {rows}) i;
INSERT INTO token_blacklist_blacklistedtoken (token_id, blacklisted_at)
SELECT id, now() - interval '39 days' FROM token_blacklist_outstandingtoken WHERE expires_at < now();
"""
_DOT = """
INSERT INTO oauth2_provider_accesstoken
  (token, token_checksum, expires, scope, application_id, user_id, created, updated, resource)
SELECT md5(i::text), encode(sha256(md5(i::text)::bytea), 'hex'), now() + interval '1 day', 'profile',
  a.id, u.id, now(), now(), '[]' FROM generate_series(1, {rows}, 2) i,
  (SELECT min(id) AS id FROM oauth2_provider_application) a, (SELECT min(id) AS id FROM auth_user) u;
INSERT INTO oauth2_provider_refreshtoken
  (token, token_checksum, application_id, user_id, created, updated, revoked, access_token_id, resource)
SELECT md5(i::text), encode(sha256(md5(i::text)::bytea), 'hex'), a.id, u.id, now() - interval '40 days',
  now(), CASE WHEN i % 2 = 0 THEN now() - interval '10 days' END, t.id, '[]'
  FROM generate_series(1, {rows}) i LEFT JOIN oauth2_provider_accesstoken t ON t.token = md5(i::text),
  (SELECT min(id) AS id FROM oauth2_provider_application) a, (SELECT min(id) AS id FROM auth_user) u;
"""
#: The peer, its command, its rows, and what counts the dead ones.
_PEERS = (
    ("simplejwt", "flushexpiredtokens", _SIMPLEJWT,
     "token_blacklist_outstandingtoken WHERE expires_at < now()"),
    ("dot", "cleartokens", _DOT, "oauth2_provider_refreshtoken WHERE revoked IS NOT NULL"),
)  # fmt: skip


def run(rows: int) -> int:
    """Print the table."""
    lines: list[list[str]] = []
    notes = [f"{postgres.version()}."]
    with placed("postgresql") as place:
        assert isinstance(place, Server)
        ours = _ours(place, rows)
        lines.append(_line("tokenctl purge", *ours, ours))
        for peer, command, fill, dead in _PEERS:
            try:
                found = _peer(place, peer, command, fill.format(rows=rows), dead)
            except NotSetUp as why:
                lines.append([f"{peer}: {why}", *[""] * 5])
                continue
            lines.append(_line(f"{peer} {command}", *found, ours))
            notes.append(servers.django_versions(peer))
    show(
        f"{rows:,} rows each, every second one dead; one run each, one after the other. What took longer "
        f"than {_PATIENCE:.0f} s was stopped, and its rate is of the rows that it had deleted by then.",
        ["", "rows deleted", "s", "rows/s", "peak MB", "ours / its rows/s"],
        lines,
        notes,
    )
    return 0


def _line(name: str, gone: int, seconds: float, peak: float, ours: tuple[int, float, float]) -> list[str]:
    rate, our_rate = gone / seconds, ours[0] / ours[1]
    times = "" if rate == our_rate else "∞" if not rate else ratio(our_rate, rate)
    return [name, f"{gone:,}", f"{seconds:.1f}", f"{rate:,.0f}", f"{peak:.0f}", times]


def _ours(place: Server, rows: int) -> tuple[int, float, float]:
    now = time.time_ns() // 1000
    place.build(rows, now)
    dead = f"FROM refresh_tokens WHERE {condition('postgresql', now - 7 * _DAY_US)}"
    before = place.count(dead)
    command = [sys.executable, "-m", "tokenctl", "purge", "--json", "--key-file", str(place.key_file)]
    seconds, peak = _timed(command, {"TOKENCTL_DATABASE": place.address})
    return before - place.count(dead), seconds, peak


def _peer(place: Server, peer: str, command: str, fill: str, dead: str) -> tuple[int, float, float]:
    """How many rows it deleted, in how many seconds, with how much memory (MB). Raises NotSetUp."""
    python = DJANGO / ".venv" / "bin" / "python"
    if not (python.exists() and (DJANGO / "signing-key.pem").exists()):
        raise NotSetUp(f"not set up: {(DJANGO / 'setup').relative_to(ROOT)}")
    url = place.cluster.create(peer)
    env = {
        "BENCH_PEER": peer,
        "BENCH_DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "bench.peers.django.settings",
        "PYTHONPATH": str(ROOT),
    }
    seed = ["-m", "bench.peers.django.seed", "--chains", "1", "--strings", os.devnull]
    subprocess.run([str(python), *seed], env={**os.environ, **env}, check=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(fill.encode())
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
        count = f"SELECT count(*) FROM {dead}".encode()
        [(before,)] = connection.execute(count).fetchall()
        seconds, peak = _timed([str(python), "-m", "django", command], env)
        [(after,)] = connection.execute(count).fetchall()
    return before - after, seconds, peak


def _timed(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Run it to its end, or to the end of our patience: seconds, and the most memory that it had (MB)."""
    began, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None and time.perf_counter() - began < _PATIENCE:
            if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
                peak = int(found[1]) / 1e3
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        late = process.poll() is None
        process.kill()
    if not late and process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return seconds, peak
