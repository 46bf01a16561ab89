"""`tokenctl audit` as its users run it: an auditor's story, without the key, with files that are none."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli import environment
from tests.cli.warm import Warm
from tests.conftest import leave_free
from tests.sample import SAMPLE
from tokenctl import TokenService, initialise
from tokenctl.settings import Settings
from tokenctl.storage.segments import MOST_EVENTS


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


class Shell:
    """Runs `tokenctl …` in a directory, on one database."""

    def __init__(self, warm: Warm, place: Path, database: str) -> None:
        self._warm = warm
        self.place = place
        self.database = database

    def __call__(self, *argv: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = self._warm(*argv, "--database", self.database, input=stdin, cwd=self.place)
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done.stderr
        return done

    def force(self, statement: str) -> None:
        """What no constraint lets in."""
        with closing(sqlite3.connect(self.place / self.database)) as connection, connection:
            connection.execute("PRAGMA ignore_check_constraints = 1")
            connection.execute(statement)

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.place / self.database)) as connection, connection:
            connection.execute(statement)


@pytest.fixture
def sample(warm: Warm, tmp_path: Path) -> Shell:
    shutil.copy(SAMPLE, tmp_path / "sample.db")
    return Shell(warm, tmp_path, "sample.db")


@pytest.fixture
def keyless(warm: Warm, tmp_path: Path) -> Shell:
    """A database whose key is elsewhere; two events."""
    initialise(Settings(database=str(tmp_path / "own.db")))
    (tmp_path / "own.db.key").rename(tmp_path / "elsewhere")
    shell = Shell(warm, tmp_path, "own.db")
    shell("client", "create", "web")
    return shell


def test_an_auditor_finds_what_was_changed_and_cut(sample: Shell) -> None:
    kept = sample("audit", "head").stdout.strip()
    assert sample("audit", "verify", "--head", kept).stdout == (
        f"100 events in 1 segment hold; head {kept}\n"
    )
    sample.sql("UPDATE events SET actor = 'nobody' WHERE id = 42")
    done = sample("audit", "verify", code=7)
    assert "1 finding in 100 events in 1 segment" in done.stdout
    assert done.stdout.splitlines()[2].split()[:4] == ["edited", "event", "1", "42"]
    [finding] = json.loads(sample("audit", "verify", "--json", code=7).stdout)["findings"]
    assert (finding["kind"], finding["event"]) == ("edited_event", 42)
    sample.sql("DELETE FROM segments")
    sample.sql("UPDATE events SET segment = NULL")
    sample("audit", "verify")
    assert "rewritten" in sample("audit", "verify", "--head", kept, code=7).stdout


def test_an_export_is_verified_where_there_is_no_table(sample: Shell) -> None:
    sample("audit", "export", "--to", "audit.jsonl")
    exported = sample.place / "audit.jsonl"
    assert exported.stat().st_mode & 0o777 == 0o600
    text = exported.read_text()
    # Two exports differ in their first line, and in the MAC of the last one, which is over it.
    assert sample("audit", "export").stdout.splitlines()[1:-1] == text.splitlines()[1:-1]
    sample.sql("DELETE FROM events")
    sample.sql("DELETE FROM segments")
    assert "100 events in 1 segment hold" in sample("audit", "verify", "--export", "audit.jsonl").stdout
    assert "100 events in 1 segment hold" in sample("audit", "verify", "--export", "-", stdin=text).stdout
    packed = gzip.compress(text.encode())
    (sample.place / "audit.jsonl.gz").write_bytes(packed)
    done = sample("audit", "verify", "--export", "audit.jsonl.gz")
    assert done.stdout.startswith("100 events in 1 segment hold; segment 1; head 1-")
    exported.write_text(text.replace('"actor": "nina"', '"actor": "ben"', 1))
    done = sample("audit", "verify", "--export", "audit.jsonl", code=7)
    assert "line 3: it is not what was sealed" in done.stdout


def test_a_part_of_the_log_says_that_it_is_one(sample: Shell) -> None:
    text = sample("audit", "export", "--since", "2026-03-14T02:00Z").stdout
    done = sample("audit", "verify", "--export", "-", stdin=text)
    assert "; segment 1; exported since 2026-03-14 02:00:00+00:00; head 1-" in done.stdout
    record = json.loads(sample("audit", "verify", "--export", "-", "--json", stdin=text).stdout)
    assert {
        key: record[key] for key in ("first_segment", "last_segment", "since", "until", "ends_proven")
    } == {
        "first_segment": 1,
        "last_segment": 1,
        "since": "2026-03-14T02:00:00.000000Z",
        "until": None,
        "ends_proven": True,
    }
    sample("client", "create", "later")
    lines = sample("audit", "export").stdout.splitlines(keepends=True)
    header = lines[0].replace('"since": null', '"since": "2026-03-14T02:00:00.000000Z"')
    second = next(index for index, line in enumerate(lines) if line.startswith('{"segment": 2'))
    done = sample("audit", "verify", "--export", "-", stdin="".join([header, *lines[second:]]), code=7)
    assert "segment 2; exported since 2026-03-14 02:00:00+00:00" in done.stdout
    assert "edited export" in done.stdout


def test_a_tampered_event_breaks_no_command(sample: Shell) -> None:
    reuse = "rt_019cbbf93f407290a2a21f01d707b00d"
    sample.sql("UPDATE events SET data = 'zzz' WHERE type = 'token.reuse'")
    sample.sql("UPDATE events SET reason = CAST(x'ff41' AS TEXT) WHERE type = 'token.rotate'")
    sample.force("UPDATE events SET ip = x'0001020304' WHERE type = 'token.issue'")
    for format_ in ("table", "json", "jsonl", "csv", "id"):
        for argv in (["audit", "tail", "-n", "100"], ["audit", "search"], ["inspect", reuse]):
            assert sample(*argv, "-o", format_).stdout
    done = sample("inspect", reuse)
    assert "\nwhy           revoked 2026-03-14 02:49:00+00:00: reuse\n" in done.stdout
    assert r"token.rotate (\udcffA)" in done.stdout
    assert " 0001020304 " in done.stdout
    text = sample("audit", "export").stdout
    sample("audit", "verify", "--export", "-", stdin=text)  # they were tampered with before they were sealed


def test_inspect_says_when_its_timeline_is_cut(sample: Shell) -> None:
    login = "rt_019cbbf93f407290a2a21f01d707b00d"
    assert json.loads(sample("inspect", login, "--json").stdout)["events_complete"] is True
    sample.sql(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 998)"
        " INSERT INTO events (at, type, token_id, data)"
        " SELECT at, type, token_id, data FROM events, n WHERE type = 'token.reuse'"
        " AND token_id = x'019cbbf93f407290a2a21f01d707b00d'"
    )
    done = sample("inspect", login)
    assert f"only the newest 1,000 events are shown; all of them: tokenctl audit search --token {login}" in (
        done.stderr
    )
    record = json.loads(sample("inspect", login, "--json").stdout)
    assert (len(record["events"]), record["events_complete"]) == (1_000, False)
    found = sample("audit", "search", "--token", login, "-o", "id").stdout
    assert len(found.splitlines()) == 1_001


def test_an_export_never_overwrites(sample: Shell) -> None:
    sample("audit", "export", "--to", "audit.jsonl")
    before = (sample.place / "audit.jsonl").read_bytes()
    done = sample("audit", "export", "--to", "audit.jsonl", code=2)
    assert "is there already" in done.stderr
    assert (sample.place / "audit.jsonl").read_bytes() == before
    assert "there is no directory" in sample("audit", "export", "--to", "none/audit.jsonl", code=1).stderr
    assert "No such file" in sample("audit", "verify", "--export", "none.jsonl", code=1).stderr


def test_without_the_key_it_is_said_what_needs_it(keyless: Shell) -> None:
    done = keyless("audit", "verify", code=1)
    assert done.stderr.startswith("error[key.missing]: ")
    assert "--key-file FILE" in done.stderr
    assert "nothing is sealed yet" in keyless("audit", "head").stderr
    warning = "warning: the master key is not at hand, so 2 events are not sealed\n"
    assert keyless("audit", "head", "-q").stderr == warning
    exported = keyless("audit", "export")
    assert exported.stderr == warning
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    assert lines[1] == {"segment": None}
    assert [line["type"] for line in lines[2:4]] == ["key.create", "client.create"]
    assert lines[4] == {"head": None, "mac": None}
    done = keyless("audit", "verify", "--export", "-", "--key-file", "elsewhere", stdin=exported.stdout)
    assert done.stdout == "0 events in 0 segments hold; 2 are not sealed yet\n"
    assert "it was exported without the master key, so nothing shows" in done.stderr
    assert keyless("audit", "head", "--key-file", "elsewhere").stdout.startswith("1-")
    assert keyless("audit", "head", "--key-file", "elsewhere").stderr == ""
    assert keyless("audit", "search", "--type", "client.*", "-o", "id").stdout == "2\n"


def test_a_key_of_another_database_is_refused(keyless: Shell) -> None:
    initialise(Settings(database=str(keyless.place / "other.db")))
    done = keyless("audit", "verify", "--key-file", "other.db.key", code=1)
    assert done.stderr.startswith("error[key.wrong]: ")


@pytest.mark.parametrize("head", ["17", " ", "1-" + "A" * 64])
def test_what_is_no_head_is_refused(sample: Shell, head: str) -> None:
    done = sample("audit", "verify", "--head", head, code=2)
    assert "is not the head of an audit log" in done.stderr
    assert "Try: " in done.stderr


def test_a_purge_without_the_key_leaves_the_events_for_later(keyless: Shell) -> None:
    keyless("purge")
    assert "3 events are not sealed" in keyless("audit", "head").stderr
    keyless("purge", "--key-file", "elsewhere")
    assert keyless("audit", "head").stderr == ""


# archives


@pytest.fixture
def old(sample: Shell) -> Shell:
    """The sample, sealed, then a user and a purge, a hundred days ago."""
    sample("audit", "head")
    sample("user", "create", "zoe", "--no-password")
    sample("purge")
    sample.sql("UPDATE meta SET value = CAST(value AS INTEGER) + 8640000000000 WHERE key = 'sample_clock'")
    return sample


def test_a_month_is_archived_and_everything_still_verifies(old: Shell) -> None:
    kept = old("audit", "head").stdout.strip()
    (old.place / "archives").mkdir()
    argv = ("audit", "archive", "--older-than", "90d", "--to", "archives")
    done = old(*argv, code=5)
    assert "move 100 events (segment 1) to archives" in done.stderr
    assert "then add --yes" in done.stderr
    assert list((old.place / "archives").iterdir()) == []
    assert old(*argv, "--dry-run").stdout.startswith("would archive 100 events (segment 1), older than ")
    assert old(*argv, "--yes").stdout == "archived 100 events (segment 1) in archives/audit-1-1.jsonl\n"
    assert "; segment 1 is archived; head " in old("audit", "verify", "--head", kept).stdout
    assert (
        "100 events in 1 segment hold"
        in old("audit", "verify", "--export", "archives/audit-1-1.jsonl").stdout
    )
    assert old(*argv, "--yes").stdout.startswith("nothing to archive")
    done = old("inspect", "rt_019cbbf93f407290a2a21f01d707b00d")
    assert "may be in an archive of the audit log" in done.stderr
    record = json.loads(old("inspect", "rt_019cbbf93f407290a2a21f01d707b00d", "--json").stdout)
    assert (record["events"], record["events_complete"]) == ([], False)
    assert record["revoked_reason"] == "reuse"
    # A backup keeps it.
    old("db", "backup", "backup.db")
    assert "segment 1 is archived" in old("audit", "verify", "--database", "backup.db").stdout
    first = (old.place / "archives" / "audit-1-1.jsonl").read_text().splitlines()
    [head] = [json.loads(line)["mac"] for line in first if '"segment"' in line]
    refused = old("audit", "verify", "--head", f"1-{'0' * 64}", code=7)
    assert "rewritten" in refused.stdout
    old("audit", "verify", "--head", f"1-{head}")


def test_a_tampered_log_is_not_archived(old: Shell) -> None:
    old.sql("UPDATE events SET actor = 'nobody' WHERE id = 42")
    argv = ("audit", "archive", "--older-than", "90d", "--to", "old.jsonl", "--yes")
    done = old(*argv, code=7)
    assert done.stdout == "nothing was archived: the log does not hold, 1 finding\n"
    assert "warning: edited event segment 1 event 42: " in done.stderr
    record = json.loads(old(*argv, "--json", code=7).stdout)
    assert (record["archived"], record["file"], record["complete"], record["found"]) == (0, None, False, 1)
    assert not (old.place / "old.jsonl").exists()
    assert "103 events in " in old("audit", "verify", code=7).stdout


_SEGMENTS = 100


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory with a database of many segments, all sealed long ago, and a purge behind them."""
    settings = Settings(database=str(tmp_path / "own.db"))
    initialise(settings)
    (tmp_path / "archives").mkdir()
    long_ago = 1_700_000_000_000_000
    with closing(sqlite3.connect(tmp_path / "own.db")) as connection, connection:
        rows = ((long_ago, "token.revoke", "nina", "{}") for _ in range(MOST_EVENTS * _SEGMENTS - 1))
        connection.executemany("INSERT INTO events (at, type, actor, data) VALUES (?, ?, ?, ?)", rows)
        connection.execute("UPDATE events SET at = ?", (long_ago,))
    with TokenService(settings, clock=lambda: long_ago) as service:
        service.audit.seal()
    with TokenService(settings) as service:
        service.purge(force=True)
    return tmp_path


def _archived(place: Path) -> int:
    """How far the anchor says that it came."""
    with closing(sqlite3.connect(place / "own.db")) as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = 'audit_anchor'").fetchone()
    return 0 if row is None else int(row[0].partition("-")[0])


def test_killed_again_and_again_nothing_is_lost(warm: Warm, large: Path) -> None:
    shell = Shell(warm, large, "own.db")
    argv = ("audit", "archive", "--older-than", "90d", "--to", "archives", "--yes")
    reached: tuple[Callable[[], bool], ...] = (
        lambda: any(large.glob("archives/*.new-*")),
        (large / "archives" / f"audit-1-{_SEGMENTS}.jsonl").exists,
        lambda: _archived(large) > 2,
        lambda: _archived(large) > 9,
    )
    for is_reached in reached:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenctl", *argv, "--database", "own.db"],
            cwd=large,
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        while not is_reached() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        shell("audit", "verify")
    shell(*argv)
    assert _archived(large) == _SEGMENTS
    done = shell("audit", "verify")
    assert f"segments 1 to {_SEGMENTS} are archived" in done.stdout
    held: set[int] = set()
    for path in large.glob("archives/*.jsonl"):
        shell("audit", "verify", "--export", str(path))
        lines = map(json.loads, path.read_text().splitlines())
        held |= {line["event"] for line in lines if "event" in line}
    assert held == set(range(1, MOST_EVENTS * _SEGMENTS + 1))


def test_a_full_disk_archives_nothing(warm: Warm, large: Path, small_disk: Path) -> None:
    shell = Shell(warm, large, "own.db")
    ballast = leave_free(small_disk, 1_000_000)
    done = shell("audit", "archive", "--older-than", "90d", "--to", "small", "--yes", code=1)
    name = f"small/audit-1-{_SEGMENTS}.jsonl"
    assert done.stderr.startswith(f"error[db.full]: {name} cannot be made: No space left")
    assert "Try: free some space, or name a place on another file system with --to" in done.stderr
    assert list(small_disk.iterdir()) == [ballast]
    assert _archived(large) == 0
    # The purge's event is in one of its own.
    assert f" in {_SEGMENTS + 1} segments hold" in shell("audit", "verify").stdout


def test_on_a_full_disk_what_is_sealed_is_verified(warm: Warm, small_disk: Path) -> None:
    settings = Settings(database=str(small_disk / "own.db"))
    initialise(settings)
    shell = Shell(warm, small_disk, "own.db")
    with TokenService(settings) as service:
        service.audit.seal()
        rows = ", ".join(["(0, 'purge', '{}')"] * 1_000)
        shell.sql(f"INSERT INTO events (at, type, data) VALUES {rows}")
        leave_free(small_disk, 20_000)
        done = shell("audit", "verify")
    assert re.match(r"\d+ events? in \d segments? holds?; [\d,]+ are not sealed yet; head \d-", done.stdout)
