"""The incident of 3 a.m., line for line as an operator types it: find, look, kill, prove, hand over.

On a copy of the sample, and on PostgreSQL with a million other logins. A log bucket was public, so that
fourteen live strings leaked; and from one address range somebody has logged in nine times, 40 s ago the last.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.cli import environment
from tests.conftest import CHEAP, MASTER_KEY, Postgres
from tests.sample import SAMPLE, sample_strings
from tokenctl import Selector, SelectState, Settings, TokenService
from tokenctl.core.context import Context
from tokenctl.core.keys import format_master_key
from tokenctl.service.sample import NOW

SECOND = 1_000_000
ROWS = 1_000_000
LIVE_STRINGS, STRANGE_LOGINS = 14, 9


class Incident:
    """A database in which it has happened, and a directory with what leaked."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self.directory = directory
        self._env = {"PYTHON": sys.executable, "TZ": "UTC", "LC_ALL": "C.UTF-8", **env}

    def leak(self, strings: list[str]) -> None:
        """A log in which the strings stand as they do in logs."""
        forms = (
            'POST /auth/refresh token="{}" 200',
            "cookie: a=b; refresh={}; c",
            '{{"refresh_token": "{}"}}',
        )
        lines = [f"03:0{i % 10} {forms[i % 3].format(string)}" for i, string in enumerate(strings)]
        noise = [f"03:0{i % 10} GET /healthz 200 {i}" for i in range(1_000)]
        (self.directory / "leak.txt").write_text("\n".join([*noise, *lines, *noise]) + "\n")

    def __call__(self, line: str) -> subprocess.CompletedProcess[str]:
        """A line of a shell without a terminal; `tokenctl` is the one under test."""
        return subprocess.run(
            ["sh", "-c", 'tokenctl() { "$PYTHON" -m tokenctl "$@"; }; ' + line],
            env=environment(self._env),
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=120,
        )


def _strange_logins(service: TokenService, users: list[str], now: Callable[[int], int]) -> None:
    """`now` is told how many µs before the present each of them begins."""
    for i in range(STRANGE_LOGINS):
        now(-40 * SECOND - (STRANGE_LOGINS - 1 - i) * 1_800 * SECOND)
        place = Context.of(ip=f"203.0.113.{20 + i}", user_agent="curl/8.5.0")
        service.issue(users[i % len(users)], context=place)


@pytest.fixture(params=["sample", "a million on PostgreSQL"])
def incident(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Incident]:
    """Fourteen leaked strings of the living, some dead ones; nine logins more; eleven users in all."""
    if request.param == "sample":
        yield _on_the_sample(tmp_path)
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        with postgres.new() as url:
            yield _on_postgres(tmp_path, url)


def _on_the_sample(directory: Path) -> Incident:
    database = shutil.copy(SAMPLE, directory / "tokenctl.db")
    strings, moment = sample_strings(), [NOW]

    def now(before: int) -> int:
        moment[0] = NOW + before
        return moment[0]

    with TokenService(Settings(database=str(database)), clock=lambda: moment[0]) as service:
        live = list(service.list(Selector(states=(SelectState.LIVE,))))[:LIVE_STRINGS]
        dead = list(service.list(Selector(states=(SelectState.REVOKED,))))[:3]
        everybody = [user.name for user in service.users.list() if not user.is_disabled(NOW)]
        leaked = {row.user_name for row in live}
        _strange_logins(service, sorted(everybody, key=lambda name: name in leaked), now)
    incident = Incident(directory, {})
    incident.leak([strings[row.id] for row in [*live, *dead]])
    return incident


def _on_postgres(directory: Path, url: str) -> Incident:
    key = directory / "tokenctl.key"
    key.write_text(format_master_key(MASTER_KEY) + "\n")
    settings = Settings(database=url, key_file=str(key))
    with TokenService(settings, passwords=CHEAP) as service:
        begin = service.now()
        for i in range(11):
            service.create_user(f"user{i}")
    _fill(url, begin)
    moment = [begin]

    def now(before: int) -> int:
        moment[0] = begin + before
        return moment[0]

    with TokenService(settings, clock=lambda: moment[0]) as service:
        now(-86_400 * SECOND)
        pairs = [service.issue(f"user{i % 7}") for i in range(LIVE_STRINGS)]
        spent = [service.issue("user0") for _ in range(2)]
        service.revoke([pair.token_id for pair in spent], reason="logout")
        _strange_logins(service, [f"user{i}" for i in range(7, 11)], now)
    incident = Incident(directory, {"TOKENCTL_DATABASE": url, "TOKENCTL_KEY_FILE": str(key)})
    incident.leak([pair.refresh_token for pair in [*pairs, *spent]])
    return incident


def _fill(url: str, now: int) -> None:
    """A million other logins of the last month, of 100,000 users, each from an address of its own."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO users (id, name, name_key, created_at, not_before)"
            " SELECT decode(lpad(to_hex(i), 32, '0'), 'hex'), 'other' || i, 'other' || i, 0, 0"
            " FROM generate_series(1, 100000) i"
        )
        connection.execute(
            "INSERT INTO refresh_tokens (id, user_id, client_id, scope, generation, secret_hash, created_at,"
            " rotated_at, access_until, expires_at, idle_ttl, issued_ip, last_ip, context_changed)"
            " SELECT decode(lpad(to_hex((%(now)s - i * 2600000::bigint) / 1000), 12, '0')"
            "   || '7' || substr(md5(i::text), 1, 19), 'hex'),"
            " decode(lpad(to_hex(1 + i %% 100000), 32, '0'), 'hex'), 'default', '', 0,"
            " sha256(i::text::bytea),"
            " at, at, at + 600000000, at + 30 * 86400000000, 14 * 86400000000, ip, ip, 0"
            " FROM generate_series(1, %(rows)s) i,"
            " LATERAL (SELECT %(now)s - i * 2600000::bigint AS at,"
            "   decode('00000000000000000000ffff' || lpad(to_hex(167772160 + i), 8, '0'), 'hex') AS ip) x",
            {"now": now, "rows": ROWS},
        )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")


def test_the_incident_of_three_in_the_morning(incident: Incident, tmp_path: Path) -> None:
    network = "list --ip 203.0.113.0/24 --issued-after 6h"
    assert incident("tokenctl doctor").returncode in {0, 7}  # an alarm of the last days is a finding

    found = incident("tokenctl scan leak.txt")
    assert (found.returncode, found.stdout.count("LIVE")) == (7, LIVE_STRINGS)
    assert "tkr1_" not in found.stdout

    more = incident(f"tokenctl {network}")
    assert (more.returncode, more.stdout.count(" live ")) == (0, STRANGE_LOGINS)

    shown = incident(
        f"(tokenctl scan leak.txt -o id; tokenctl {network} -o id) | tokenctl revoke - --dry-run"
    )
    assert shown.returncode == 0
    would = re.search(
        r"would revoke +23 refresh tokens of 11 users, last used (\d+) (s|min) ago", shown.stdout
    )
    assert would
    plan = re.search(r"plan ([0-9a-f]{4,}): 23 tokens, 11 users", shown.stderr)
    assert plan

    done = incident(f"tokenctl revoke --plan {plan[1]} --reason INC-7 --confirm 11")
    assert done.returncode == 0
    assert re.match(
        r"revoked 23 · access tokens live until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00\n", done.stdout
    )

    again = incident("tokenctl scan leak.txt")
    assert (again.returncode, again.stdout.count("LIVE"), again.stdout.count("SPENT")) == (0, 0, 0)
    listed = incident(f"tokenctl {network}").stdout
    assert (listed.count(" live "), listed.count(" revoked ")) == (0, STRANGE_LOGINS)

    handed_over = incident("tokenctl evidence --reason INC-7 -o INC-7.tgz")
    assert handed_over.returncode == 0, handed_over.stderr
    with tarfile.open(tmp_path / "INC-7.tgz") as bundle:
        summary = bundle.extractfile("INC-7/summary.json")
        assert summary is not None
        assert json.load(summary)["logins"] == LIVE_STRINGS + STRANGE_LOGINS

    proven = incident("tokenctl audit verify")
    assert proven.returncode == 0, proven.stderr
    assert re.fullmatch(r"[\d,]+ events in \d+ segments? hold; head \d+-[0-9a-f]{64}\n", proven.stdout)
