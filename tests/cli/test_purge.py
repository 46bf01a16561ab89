"""`tokenctl purge` as cron starts it, on each database: how it ends when something is wrong, what it leaves.

Processes of their own throughout. What is deleted, and at what pace, is tried in tests/service/test_purge.py.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import cli
from tests.conftest import CHEAP, KINDS, MASTER_KEY, Postgres, leave_free
from tests.postgres import Server, started
from tests.sample import SAMPLE
from tests.service import DAY, add_logins, dump, login_row, run_sql
from tokenctl import Settings, TokenService
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.service.database import build_database
from tokenctl.storage.locks import exclusive

DEAD = 20_000
LIVE = 200
#: Rows in a transaction where a run has to last until something has happened to it.
SMALL = ("--batch", "5")
YEAR = 365 * DAY
_PATIENCE = 60.0


def now() -> int:
    return time.time_ns() // 1_000


@dataclass(frozen=True)
class Place:
    """A directory with the key of a database, and commands in it."""

    directory: Path
    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        return {
            "TOKENCTL_DATABASE": self.settings.database,
            "TOKENCTL_KEY_FILE": str(self.directory / "master.key"),
            "TOKENCTL_ACTOR": "cron",
        }

    def tokenctl(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return cli.run(*argv, env=self.environment, cwd=self.directory)

    def start(self, *argv: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tokenctl", *argv],
            env=cli.environment(self.environment),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def start_purge(self, *argv: str, **more: Any) -> subprocess.Popen[str]:
        """One that has deleted something already, and is still at it."""
        before = self.count()
        process = self.start("purge", "--json", *SMALL, *argv, **more)
        deadline = time.monotonic() + _PATIENCE
        while self.count() == before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None, "it ended before anything could happen to it"
        return process

    def count(self) -> int:
        [(count,)] = run_sql(self.settings, "SELECT count(*) FROM refresh_tokens")
        return int(count)

    def live(self) -> int:
        [(count,)] = run_sql(self.settings, "SELECT count(*) FROM refresh_tokens WHERE expires_at > ?", now())
        return int(count)

    def events(self, type_: str) -> list[dict[str, Any]]:
        rows = run_sql(self.settings, "SELECT data FROM events WHERE type = ? ORDER BY id", type_)
        return [json.loads(data) for (data,) in rows]


def make_place(directory: Path, database: str, *, born: int) -> Place:
    """A database that was made at that instant (µs)."""
    (directory / "master.key").write_text(format_master_key(MASTER_KEY) + "\n")
    build_database(database, MASTER_KEY, generate_signing_key(), actor="test", clock=lambda: born)
    return Place(directory, Settings(database=database, key_file=str(directory / "master.key")))


def fill(place: Place, *, dead: int = DEAD, live: int = LIVE) -> None:
    """Logins that ended three weeks ago, and live ones among them."""
    with TokenService(place.settings, passwords=CHEAP) as service:
        user = service.create_user("ada").id
    ended, step = now() - 21 * DAY, (dead + live) // max(live, 1)
    begun = {"created_at": ended - 30 * DAY, "rotated_at": ended - 20 * DAY, "access_until": ended - 19 * DAY}
    add_logins(
        place.settings,
        (
            login_row(n, user, **begun, expires_at=ended + (30 * DAY if n % step == 7 else n), idle_ttl=None)
            for n in range(dead + live)
        ),
    )
    assert place.live() == live


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where an empty database may be made."""
    if request.param == "sqlite":
        yield str(tmp_path / "tokens.db")
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with postgres.empty() as url:
        yield url


@pytest.fixture
def place(database: str, tmp_path: Path) -> Place:
    return make_place(tmp_path, database, born=now())


@pytest.fixture
def full(place: Place) -> Place:
    """The same with much to purge."""
    fill(place)
    return place


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of the sample, as the database of the current directory."""
    return Path(shutil.copy(SAMPLE, tmp_path / "tokenctl.db"))


def figures(path: Path) -> dict[str, float]:
    """A metrics file, as Prometheus' own library reads it."""
    families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    assert all(family.documentation and family.type == "gauge" for family in families)
    return {
        sample.name.removeprefix("tokenctl_purge_"): sample.value
        for family in families
        for sample in family.samples
    }


# --- one line ----------------------------------------------------------------------------------


def test_a_script_reads_one_line(full: Place) -> None:
    done = full.tokenctl("purge", "--json", "--max-runtime", "5m")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    summary = json.loads(done.stdout)
    assert set(summary) == {
        *("purged", "batches", "seconds", "dead_since", "complete", "dry_run"),
        *("size_bytes", "free_bytes", "vacuumed"),
    }
    assert (summary["purged"], summary["complete"], summary["vacuumed"]) == (DEAD, True, False)
    assert summary["size_bytes"] > 100_000
    assert full.count() == full.live() == LIVE

    again = full.tokenctl("purge")
    assert again.returncode == 0
    assert re.fullmatch(r"purged 0 in 0 batches, \d+\.\d s\n", again.stdout)


def test_it_stops_after_so_many_rows_and_the_next_one_goes_on(full: Place) -> None:
    done = full.tokenctl("purge", "--json", "--batch", "300", "--max-rows", "1000")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["purged"], summary["complete"]) == (0, 1_000, False)
    assert full.count() == DEAD + LIVE - 1_000
    assert full.tokenctl("purge", "--max-rows", "0").returncode == 2
    said = full.tokenctl("purge", "--max-rows", "500").stdout
    assert "stopped early, the next run goes on" in said
    assert json.loads(full.tokenctl("purge", "--json").stdout)["purged"] == DEAD - 1_500


def test_it_stops_after_its_time(full: Place) -> None:
    done = full.tokenctl("purge", "--json", *SMALL, "--max-runtime", "300ms")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["complete"]) == (0, False)
    assert summary["purged"] == DEAD + LIVE - full.count() < DEAD
    assert "stopped early, the next run goes on" in full.tokenctl("purge", "--max-runtime", "0s").stdout


def test_the_space_is_given_back(full: Place) -> None:
    before = json.loads(full.tokenctl("purge", "--json").stdout)
    done = full.tokenctl("purge", "--json", "--vacuum")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert after["vacuumed"]
    if full.settings.database.endswith(".db"):  # PostgreSQL gives back only pages at the end
        assert after["size_bytes"] < before["size_bytes"] / 2
    said = full.tokenctl("purge", "--vacuum").stdout
    assert re.fullmatch(r"purged 0 in 0 batches, \d+\.\d s · vacuumed: \d+\.\d MB\n", said)


def test_progress_on_a_terminal(full: Place) -> None:
    code, shown = cli.run_on_terminal(
        *("purge", *SMALL, "--max-runtime", "3s"),
        cwd=full.directory,
        env=full.environment | {"TERM": "xterm", "COLUMNS": "90"},
    )
    assert code == 0
    assert shown.startswith("purging …")
    steps = [int(step.replace(",", "")) for step in re.findall(r"([\d,]+)/20,?000", shown)]
    assert steps
    assert steps == sorted(steps)
    assert 0 <= steps[-1] <= DEAD
    assert re.search(r"purged [\d,]+ in [\d,]+ batches, \d+\.\d s", shown.splitlines()[-1])


def test_progress_as_json_lines(full: Place) -> None:
    done = full.tokenctl("purge", "-o", "jsonl", *SMALL, "--max-runtime", "3s")
    *progress, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert progress
    assert all(set(each) == {"purged", "found", "seconds"} for each in progress)
    assert progress[0]["found"] == DEAD
    assert [each["purged"] for each in progress] == sorted(each["purged"] for each in progress)
    assert progress[-1]["seconds"] <= summary["seconds"]
    assert 0 <= progress[-1]["purged"] <= summary["purged"]


def test_fields_are_those_of_the_summary(full: Place) -> None:
    done = full.tokenctl("purge", "-o", "jsonl", "--fields", "purged,complete")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"purged": DEAD, "complete": True}]


# --- something else is at it -------------------------------------------------------------------


def test_two_at_once(full: Place) -> None:
    metrics = ("--metrics-file", "purge.prom")
    first = full.start_purge(*metrics)
    second = full.tokenctl("purge", "--json", *metrics)
    # It found another one at work: the figures are that one's.
    assert not (full.directory / "purge.prom").exists()
    assert (second.returncode, second.stdout) == (11, "")
    error = json.loads(second.stderr)["error"]
    assert error["code"] == "db.locked"
    assert error["message"].startswith("a purge is already running")
    assert error["hint"] == "tokenctl purge --lock-wait 2m"
    if full.settings.database.endswith(".db"):
        assert f"(pid {first.pid}, " in error["message"]
    waits = full.start("purge", "--json", "--lock-wait", "2m")
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=_PATIENCE)
    rest, told = waits.communicate(timeout=_PATIENCE)
    assert waits.returncode == 0, told
    assert json.loads(out)["purged"] + json.loads(rest)["purged"] == DEAD
    assert figures(full.directory / "purge.prom")["last_exit_code"] == 143


def test_a_locked_out_run_leaves_the_figures_of_the_last(sample: Path, tmp_path: Path) -> None:
    argv = ("purge", "--metrics-file", "purge.prom")
    assert cli.run(*argv, cwd=tmp_path).returncode == 0
    before = (tmp_path / "purge.prom").read_bytes()
    with exclusive(sample, "purge"):
        assert cli.run(*argv, "--lock-wait", "500ms", cwd=tmp_path).returncode == 11
    assert (tmp_path / "purge.prom").read_bytes() == before


def test_a_copy_is_made_meanwhile(full: Place) -> None:
    """A backup of SQLite; of PostgreSQL, whose backups are its own, a copy."""
    is_file = full.settings.database.endswith(".db")
    process = full.start_purge()
    argv = ["db", "backup", "monday.db"] if is_file else ["db", "copy", "--to", "monday.db"]
    copied = full.tokenctl(*argv)
    assert copied.returncode == 0, copied.stderr
    out, err = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 0, err
    assert (json.loads(out)["purged"], full.count()) == (DEAD, LIVE)
    monday = Place(full.directory, Settings(database=str(full.directory / "monday.db")))
    assert monday.live() == LIVE
    assert monday.tokenctl("purge", "--json").returncode == 0
    assert monday.count() == LIVE


# --- it is ended -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    ],
)
def test_a_signal_lets_it_finish_its_batch_and_the_next_one_goes_on(
    full: Place, number: int, code: int
) -> None:
    process = full.start_purge()
    process.send_signal(number)
    out, err = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, err) == (code, "")
    summary = json.loads(out)
    assert summary["complete"] is False
    assert summary["purged"] == DEAD + LIVE - full.count()

    rest = full.tokenctl("purge", "--json")
    assert rest.returncode == 0
    assert json.loads(rest.stdout)["complete"] is True
    assert json.loads(rest.stdout)["purged"] + summary["purged"] == DEAD
    assert full.count() == full.live() == LIVE
    assert [event["complete"] for event in full.events("purge")] == [False, True]
    assert sum(event["purged"] for event in full.events("purge.batch")) == DEAD


def test_killed_again_and_again(full: Place) -> None:
    for _ in range(3):
        process = full.start_purge("--lock-wait", "30s")
        process.kill()
        process.communicate(timeout=_PATIENCE)
        assert full.live() == LIVE
    done = full.tokenctl("purge", "--json", "--lock-wait", "30s")
    assert done.returncode == 0, done.stderr
    assert full.count() == full.live() == LIVE
    # Not one transaction was done by halves: what is gone stands in the log.
    assert sum(event["purged"] for event in full.events("purge.batch")) == DEAD


# --- the disk, the clock, the database -----------------------------------------------------------


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    place = make_place(tmp_path, str(small_disk / "tokens.db"), born=now())
    fill(place)
    ballast = leave_free(small_disk, 150_000)
    argv = ("purge", "--json", "--batch", "5000", "--metrics-file", str(tmp_path / "purge.prom"))
    done = place.tokenctl(*argv)
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "db.full"
    assert error["hint"] == "free some space on the file system of the database, then repeat the command"
    assert figures(tmp_path / "purge.prom")["last_exit_code"] == 1
    assert place.live() == LIVE
    ballast.unlink()
    done = place.tokenctl(*argv)
    assert done.returncode == 0, done.stderr
    assert place.count() == place.live() == LIVE
    assert run_sql(place.settings, "PRAGMA integrity_check") == [("ok",)]


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The nearest to a full disk that every user of every machine can have."""
    place = make_place(tmp_path, str(tmp_path / "tokens.db"), born=now())
    fill(place)
    process = place.start(
        *("purge", "--batch", "5000"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    out, err = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert re.fullmatch(r"error\[db\.\w+\]: .*\. Try: .*\n", err)
    assert place.live() == LIVE
    assert json.loads(place.tokenctl("purge", "--json").stdout)["complete"]
    assert place.count() == place.live() == LIVE


def test_a_clock_a_year_ahead(database: str, tmp_path: Path) -> None:
    """Of the database's own time, which is all that a purge can measure its clock by."""
    then = now() - YEAR
    place = make_place(tmp_path, database, born=then)
    with TokenService(place.settings, clock=lambda: then, passwords=CHEAP) as service:
        service.create_user("ada")
        for _ in range(5):
            service.issue("ada")
    before = dump(place.settings)
    done = place.tokenctl("purge", "--metrics-file", "purge.prom")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error[clock.suspect]: ")
    assert done.stderr.endswith(". Try: check the date; if it is right: tokenctl purge --force\n")
    assert dump(place.settings) == before
    found = figures(tmp_path / "purge.prom")
    assert (found["last_exit_code"], found["complete"]) == (1, 0)
    assert "last_success_timestamp_seconds" not in found
    forced = place.tokenctl("purge", "--json", "--force")
    assert (forced.returncode, json.loads(forced.stdout)["purged"]) == (0, 5)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


def test_the_database_goes_away_in_the_middle(server: Server, tmp_path: Path) -> None:
    place = make_place(tmp_path, server.create_database("away"), born=now())
    fill(place)
    process = place.start_purge("--metrics-file", "purge.prom")
    server.stop()
    out, err = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, out) == (10, "")
    assert json.loads(err.splitlines()[-1])["error"]["code"] in {"db.away", "db.outcome_unknown"}
    again = place.tokenctl("purge", "--metrics-file", "purge.prom")
    assert again.returncode == 10
    assert again.stderr.startswith("error[db.away]: ")
    assert figures(tmp_path / "purge.prom")["last_exit_code"] == 10
    server.start()
    assert place.live() == LIVE
    done = place.tokenctl("purge", "--json", "--metrics-file", "purge.prom")
    assert done.returncode == 0, done.stderr
    assert place.count() == place.live() == LIVE
    assert figures(tmp_path / "purge.prom")["last_exit_code"] == 0


def test_no_database(tmp_path: Path) -> None:
    done = cli.run("purge", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (10, "")
    assert json.loads(done.stderr)["error"]["code"] == "db.missing"


# --- the metrics file --------------------------------------------------------------------------


def test_the_metrics_file_says_what_the_summary_says(full: Place) -> None:
    path = full.directory / "purge.prom"
    began = time.time()
    before = os.umask(0o077)
    try:
        done = full.tokenctl("purge", "--json", "--metrics-file", str(path))
    finally:
        os.umask(before)
    summary = json.loads(done.stdout)
    found = figures(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    # To a millisecond, and rounded.
    assert began - 0.001 <= found["last_run_timestamp_seconds"] <= time.time() + 0.001
    assert found["last_success_timestamp_seconds"] == found["last_run_timestamp_seconds"]
    assert found["duration_seconds"] >= summary["seconds"] > 0
    assert {name: found[name] for name in ("last_exit_code", "rows", "batches", "complete")} == {
        "last_exit_code": 0,
        "rows": summary["purged"],
        "batches": summary["batches"],
        "complete": 1,
    }
    assert found["database_size_bytes"] == summary["size_bytes"]
    assert found.get("database_free_bytes") == summary["free_bytes"]
    assert [each.name for each in full.directory.glob("purge.prom*")] == ["purge.prom"]

    stopped = full.tokenctl("purge", "--max-runtime", "0s", "--metrics-file", str(path))
    assert stopped.returncode == 0
    assert (figures(path)["complete"], figures(path)["last_exit_code"]) == (0, 0)


def test_a_failed_run_keeps_the_last_success(sample: Path, tmp_path: Path) -> None:
    path = tmp_path / "purge.prom"
    argv = ("purge", "--metrics-file", "purge.prom")
    assert cli.run(*argv, cwd=tmp_path).returncode == 0
    first = figures(path)
    for more, code in ((["--database", "no.db"], 10), (["--retention", "7"], 2), (["--batch", "5"], 0)):
        assert cli.run(*argv, *more, cwd=tmp_path).returncode == code
        found = figures(path)
        assert found["last_exit_code"] == code
        assert found["last_run_timestamp_seconds"] > first["last_run_timestamp_seconds"]
        is_kept = found["last_success_timestamp_seconds"] == first["last_success_timestamp_seconds"]
        assert is_kept == (code != 0)
        assert ("rows" in found) == (code == 0)


def test_the_database_is_a_label_without_its_password(tmp_path: Path) -> None:
    for database in ('a "quoted" \\ name\n', "postgresql://ada:hunter2@127.0.0.1:1/x"):
        env = {"TOKENCTL_DATABASE": database.replace("\n", "")}
        assert cli.run("purge", "--metrics-file", "p.prom", cwd=tmp_path, env=env).returncode == 10
        [family, *_] = text_string_to_metric_families((tmp_path / "p.prom").read_text())
        [sample] = family.samples
        assert sample.labels == {"database": env["TOKENCTL_DATABASE"].replace("hunter2", "***")}


def linked(directory: Path) -> None:
    (directory / "purge.prom").symlink_to("tokenctl.db")


@pytest.mark.parametrize(
    ("path", "spoil", "code", "said"),
    [
        ("none/purge.prom", None, 2, "Try: mkdir -p none\n"),
        ("purge.prom", lambda directory: (directory / "purge.prom").mkdir(), 2, "is no regular file"),
        ("purge.prom", linked, 2, "is no regular file"),
        ("/dev/null", None, 2, "is no regular file"),
        ("/sys/purge.prom", None, 1, "Try: ls -ld /sys shows its owner and its mode"),
    ],
    ids=["directory-missing", "is-a-directory", "is-a-link", "is-a-device", "not-allowed"],
)
def test_a_file_that_cannot_be_written_ends_the_run_before_it_begins(
    sample: Path, tmp_path: Path, path: str, spoil: Callable[[Path], None] | None, code: int, said: str
) -> None:
    if spoil is not None:
        spoil(tmp_path)
    before = sample.read_bytes()
    done = cli.run("purge", "--metrics-file", path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert sample.read_bytes() == before
    assert cli.run("purge", cwd=tmp_path).stdout.startswith("purged 5 ")


def test_a_dry_run_measures_nothing(sample: Path, tmp_path: Path) -> None:
    done = cli.run("purge", "--dry-run", "--metrics-file", "purge.prom", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("Try: leave out --metrics-file\n")


def test_a_reader_of_the_metrics_file_always_finds_a_whole_one(sample: Path, tmp_path: Path) -> None:
    argv = ("purge", "--metrics-file", "purge.prom")
    assert cli.run(*argv, cwd=tmp_path).returncode == 0
    names = set(figures(tmp_path / "purge.prom"))
    process = subprocess.Popen(
        ["sh", "-c", f'for i in 1 2 3 4 5; do "{sys.executable}" -m tokenctl {" ".join(argv)}; done'],
        env=cli.environment(),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    looks = 0
    while process.poll() is None:
        assert set(figures(tmp_path / "purge.prom")) == names
        looks += 1
    assert process.returncode == 0
    assert looks > 100


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_waiting_for_another_one(tmp_path: Path, number: int, code: int) -> None:
    sample = Path(shutil.copy(SAMPLE, tmp_path / "tokenctl.db"))
    with exclusive(sample, "purge"):
        waiting = subprocess.Popen(
            [sys.executable, "-m", "tokenctl", "purge", "--lock-wait", "1h"],
            cwd=tmp_path,
            env=cli.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        waiting.stderr.readline()  # that this is the sample: it has begun
        time.sleep(1)
        waiting.send_signal(number)
        _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == code
    assert "error[interrupted]" in said
