"""`tokenctl scan` as its users run it: formats, exit codes, pipes, signals, a terminal."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import environment, run_on_terminal
from tests.cli.warm import Warm
from tests.core.test_leak import ONE
from tests.sample import SAMPLE, sample_strings
from tokenctl.core.token_string import parse_unverified

LIVE = "rt_019cda793b007ec8a12e959598c44c6b"  # olga, web
STOLEN = "rt_019cbbf93f407290a2a21f01d707b00d"  # ada, web; revoked for reuse
UNKNOWN = parse_unverified(ONE).token_id
NEXT_TOKEN = b"noise\n" * 400_000


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The sample as `sample.db`, and three strings in logs: a live one twice, a dead one, an unknown one."""
    strings = sample_strings()
    shutil.copy(SAMPLE, tmp_path / "sample.db")
    logs = tmp_path / "logs"
    logs.mkdir()
    url = strings[LIVE].replace("_", "%5F").replace("-", "%2D")
    (logs / "a.log").write_text(f"\nGET /?t={url}&x=1\nrevoked {strings[STOLEN]}\n")
    (logs / "b.json.gz").write_bytes(gzip.compress(json.dumps([strings[LIVE], ONE]).encode()))
    return tmp_path


def scan(warm: Warm, place: Path, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = warm("scan", *argv, "--database", "sample.db", input=stdin, cwd=place)
    assert "Traceback" not in done.stderr
    for text in (done.stdout, done.stderr):
        assert "tkr1_" not in text.replace("tkr1_…", "")
        assert not any(string[40:52] in text for string in (ONE, *sample_strings().values()))
    return done


def test_each_format_has_the_five_fields(warm: Warm, place: Path) -> None:
    rows = [
        {"file": "logs/a.log", "line": 2, "id": LIVE, "state": "live", "user": "olga"},
        {"file": "logs/a.log", "line": 3, "id": STOLEN, "state": "dead", "user": "ada"},
        {"file": "logs/b.json.gz", "line": 1, "id": LIVE, "state": "live", "user": "olga"},
        {"file": "logs/b.json.gz", "line": 1, "id": UNKNOWN, "state": "dead", "user": None},
    ]
    done = scan(warm, place, "logs", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (7, rows)
    done = scan(warm, place, "logs", "-o", "jsonl")
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows
    done = scan(warm, place, "logs", "-o", "csv")
    assert list(csv.reader(io.StringIO(done.stdout)))[:2] == [list(rows[0]), list(map(str, rows[0].values()))]
    done = scan(warm, place, "logs", "--fields", "state,id")
    assert done.stdout.splitlines()[1].split() == ["live", LIVE]
    done = scan(warm, place, "logs")
    assert done.stdout.splitlines()[1].split() == ["logs/a.log:2", LIVE, "LIVE", "olga"]


def test_ids_are_distinct_and_alive_when_a_database_was_asked(warm: Warm, place: Path) -> None:
    done = scan(warm, place, "logs", "-o", "id")
    assert (done.returncode, done.stdout) == (7, f"{LIVE}\n")
    done = scan(warm, place, "logs", "-o", "id", "--offline")
    assert (done.returncode, done.stdout) == (7, f"{LIVE}\n{STOLEN}\n{UNKNOWN}\n")
    assert done.stderr.count("offline") == 1


def test_the_ids_go_into_revoke_and_then_nothing_lives(warm: Warm, place: Path) -> None:
    found = scan(warm, place, "logs", "-o", "id").stdout
    done = warm("revoke", "-", "--yes", "--database", "sample.db", input=found, cwd=place)
    assert (done.returncode, done.stdout[:9]) == (0, "revoked 1")
    again = scan(warm, place, "logs", "-o", "id")
    assert (again.returncode, again.stdout) == (0, "")


def test_only_dead_ones_are_no_finding_but_offline_everything_is(warm: Warm, place: Path) -> None:
    for more, code in (((), 0), (("--offline",), 7)):
        assert scan(warm, place, "-", *more, stdin=ONE.encode()).returncode == code
    assert scan(warm, place, "-", "--offline", stdin=b"nothing").returncode == 0


def test_without_a_database_it_says_once_that_it_is_offline(warm: Warm, place: Path) -> None:
    done = warm("scan", "logs", "--json", "-q", cwd=place)
    assert done.returncode == 7
    assert [line for line in done.stderr.splitlines() if "offline" in line] == done.stderr.splitlines()
    assert len(done.stderr.splitlines()) == 1
    assert {(row["state"], row["user"]) for row in json.loads(done.stdout)} == {("unknown", None)}
    assert not (place / "tokenctl.db").exists()


def test_a_database_that_is_none_is_an_error(warm: Warm, place: Path) -> None:
    (place / "sample.db").write_text("this is no database, although it is one long enough to be read as such")
    done = scan(warm, place, "logs")
    assert (done.returncode, done.stdout) == (10, "")


def test_what_cannot_be_read_is_a_line_and_the_scan_goes_on(warm: Warm, place: Path) -> None:
    done = scan(warm, place, "none", "logs")
    assert done.returncode == 7
    assert "warning: none cannot be read: No such file or directory\n" in done.stderr
    assert LIVE in done.stdout
    (place / "logs" / "a.log").unlink()
    packed = place / "logs" / "b.json.gz"
    packed.write_bytes(gzip.compress(ONE.encode())[:-8])
    done = scan(warm, place, "logs")
    assert done.returncode == 1, "a dead one is no finding, and nobody knows what else there was"
    assert "warning: logs/b.json.gz cannot be read to its end" in done.stderr


def test_a_string_is_no_path(warm: Warm, place: Path) -> None:
    done = scan(warm, place, ONE)
    assert done.returncode == 2
    assert "give -" in done.stderr


def test_a_name_that_has_a_string_in_it_is_masked(warm: Warm, place: Path) -> None:
    (place / "logs" / f"{ONE}\n\x1b[31m.log").write_text(ONE)
    done = scan(warm, place, "logs")
    assert "logs/tkr1_…\\n\\x1b[31m.log:1" in done.stdout


def test_offline_loads_no_database_layer(place: Path) -> None:
    code = (
        "import sys; from tokenctl.cli.main import main; code = main(['scan', 'logs', '--offline', '-q']);"
        "assert 'sqlalchemy' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (7, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_what_was_found(number: int, code: int, place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tokenctl", "scan", "-", "--json", "--database", "sample.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=place,
        env=environment(),
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(
            sample_strings()[LIVE].encode() + b"\n" + b"x" * 200_000
        )  # more than a pipe holds
        process.stdin.flush()
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(20) == code
        assert [row["id"] for row in json.loads(process.stdout.read())] == [LIVE]
        error = process.stderr.read().decode().splitlines()[-1]
        assert json.loads(error)["error"]["code"] == "interrupted"


def test_the_bar_on_a_terminal_takes_nothing_of_the_output(place: Path) -> None:
    fd, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tokenctl", "scan", "-", "-o", "jsonl", "--offline"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=place,
        env=environment({"TERM": "xterm"}),
    ) as process:
        os.close(terminal)
        assert process.stdin
        assert process.stdout
        for _ in range(2):
            process.stdin.write(ONE.encode() + NEXT_TOKEN)
            process.stdin.flush()
            time.sleep(1.1)
        process.stdin.close()
        assert [json.loads(line)["line"] for line in process.stdout] == [1, 400_001]
        assert process.wait(20) == 7
    shown = b""
    try:
        while data := os.read(fd, 4096):
            shown += data
    except OSError:  # Linux says EIO when nobody has the other end
        pass
    os.close(fd)
    assert b"scanning (MB)" in shown
    assert b"tkr1" not in shown


def test_on_a_terminal_all_rows_are_shown(place: Path) -> None:
    (place / "many.log").write_text(f"{ONE}\n" * 120)
    code, shown = run_on_terminal("scan", "many.log", "--database", "sample.db", cwd=place)
    assert code == 0
    assert shown.count(" DEAD ") == 120
