"""The main job from beginning to end, as its users do it: processes, pipes, signals, a terminal."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.cli import environment, run, run_on_terminal
from tests.cli.warm import Warm
from tests.sample import SAMPLE
from tokenctl.core import ids
from tokenctl.storage.locks import exclusive

PASSWORD = "mauve kettle under nine ladders"
Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """`tokenctl` in an empty directory of its own."""
    return partial(run, cwd=tmp_path)


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A line of a shell, in which `tokenctl` and `python` are those under test; no terminal anywhere."""
    functions = 'python() { "$PYTHON" "$@"; }; tokenctl() { "$PYTHON" -m tokenctl "$@"; }; '
    return subprocess.run(
        ["sh", "-c", functions + script],
        env=environment({"PYTHON": sys.executable}),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        timeout=60,
    )


def test_from_init_to_a_reuse_that_is_caught(tool: Tool, tmp_path: Path) -> None:
    made = tool("init")
    assert made.returncode == 0
    assert "losing it ends every login" in made.stdout
    assert "tokenctl create-user" in made.stdout
    for name in ("tokenctl.db", "tokenctl.db.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600

    created = tool("create-user", "ada", "--password-stdin", input=f"{PASSWORD}\n")
    assert created.returncode == 0
    assert created.stdout.startswith("created ada (usr_")

    issued = tool("issue", "--user", "ada")
    first = issued.stdout
    assert re.fullmatch(r"tkr1_[\w-]{84}\n", first), "the string stands alone, so that it can be piped"
    found = re.search(r"rt_[0-9a-f]{32}", issued.stderr)
    assert found
    token = found[0]
    assert "expires" in issued.stderr

    rotated = tool("rotate", "-", input=first)
    second = rotated.stdout
    assert rotated.returncode == 0
    assert re.fullmatch(r"tkr1_[\w-]{84}\n", second)
    assert second != first
    again = tool("rotate", "-", input=first)
    assert (again.returncode, again.stdout) == (0, second)
    assert "a retry in the grace" in again.stderr
    assert "a retry" not in rotated.stderr

    time.sleep(1.1)
    began = datetime.now(UTC)
    refused = tool("rotate", "-", "--grace", "1s", input=first)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "error[token.refused]" in refused.stderr
    assert f"Try: tokenctl inspect {token}" in refused.stderr
    dead = tool("rotate", "-", input=second)
    assert (dead.returncode, dead.stdout) == (4, "")
    assert "revoked" in dead.stderr

    card = tool("inspect", token).stdout
    assert "reuse; generation 0 was presented when 1 was the current one" in card
    assert tool("inspect", token, "--check").returncode == 4
    record = json.loads(tool("inspect", "-", "--json", input=first).stdout)
    assert (record["state"], record["revoked_reason"], record["usable"]) == ("revoked", "reuse", False)
    assert (record["generation"], record["presented_generation"]) == (1, 0)
    revoked_at = datetime.fromisoformat(record["revoked_at"])
    assert began <= revoked_at <= datetime.now(UTC)
    assert revoked_at.strftime("%Y-%m-%d") in card
    [reuse] = [event for event in record["events"] if event["type"] == "token.reuse"]
    assert (reuse["data"]["generation"], reuse["data"]["current_generation"]) == (0, 1)


def test_a_string_two_generations_old_is_reuse_in_the_grace_too(tmp_path: Path) -> None:
    with Warm() as warm:
        _present_a_string_two_generations_old(partial(warm, cwd=tmp_path))


def _present_a_string_two_generations_old(tool: Tool) -> None:
    assert tool("init").returncode == 0
    assert tool("create-user", "ada", "--no-password").returncode == 0
    first = tool("issue", "--user", "ada", "-q").stdout
    second = tool("rotate", "-", "-q", input=first).stdout
    third = tool("rotate", "-", "-q", input=second).stdout
    assert tool("rotate", "-", "-q", input=second).stdout == third
    assert tool("rotate", "-", input=first).returncode == 4
    assert tool("rotate", "-", input=third).returncode == 4
    verdict = json.loads(tool("inspect", "-", "--json", input=third).stdout)
    assert (verdict["verdict"], verdict["revoked_reason"]) == ("refuse", "reuse")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of the sample, as the database of the current directory."""
    return Path(shutil.copy(SAMPLE, tmp_path / "tokenctl.db"))


def test_lists_go_into_pipes(sample: Path) -> None:
    pretty = shell("tokenctl list --all --json | python -m json.tool", sample.parent)
    assert pretty.returncode == 0
    assert len(json.loads(pretty.stdout)) == 60
    done = shell("tokenctl list --user bob -o id -q | tokenctl revoke - --yes", sample.parent)
    assert done.returncode == 0
    assert done.stdout == "revoked 1 · already dead 2\n"
    left = shell("tokenctl list --user bob --state live -o id", sample.parent)
    assert (left.returncode, left.stdout) == (0, "")


def test_a_dry_run_shows_the_set_and_revokes_nothing(tool: Tool, sample: Path) -> None:
    shown = tool("revoke", "--user", "ada", "--dry-run", "--json")
    preview = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert preview["would_revoke"] == len(preview["tokens"]) == 1
    assert preview["tokens"][0]["user"] == "ada"
    done = tool("revoke", "--user", "ada", "--yes", "--json")
    assert json.loads(done.stdout)["revoked"] == 1


def test_purge_needs_neither_stdin_nor_a_terminal(sample: Path) -> None:
    """As from cron."""
    done = shell("exec 0<&-; tokenctl purge --json", sample.parent)
    assert done.returncode == 0
    summary = json.loads(done.stdout)
    assert (summary["purged"], summary["batches"], summary["complete"]) == (5, 1, True)


# --- a purge that takes its time ---------------------------------------------------------------

DEAD_ROWS = 100_000


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a database of many rows that are dead for long, and 10 live ones among them."""
    directory = tmp_path_factory.mktemp("full")
    assert run("init", cwd=directory).returncode == 0
    assert run("create-user", "bob", "--no-password", cwd=directory).returncode == 0
    now = time.time_ns() // 1_000
    month, day = 30 * 86_400_000_000, 86_400_000_000
    with closing(sqlite3.connect(directory / "tokenctl.db")) as connection, connection:
        [(bob,)] = connection.execute("SELECT id FROM users")

        def row(n: int) -> tuple[object, ...]:
            live = n % (DEAD_ROWS // 10 + 1) == 7
            created = now - day if live else now - 3 * month + n
            raw_id = ids.uuid7(created, n.to_bytes(10, "big"))
            return raw_id, bob, created, created, created, created + month

        connection.executemany(
            "INSERT INTO refresh_tokens (id, user_id, client_id, scope, generation, secret_hash, created_at,"
            " rotated_at, access_until, expires_at, context_changed)"
            " VALUES (?, ?, 'default', '', 0, zeroblob(32), ?, ?, ?, ?, 0)",
            (row(n) for n in range(DEAD_ROWS + 10)),
        )
    return directory


@pytest.fixture
def many(full: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tokenctl.db"


def count(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM refresh_tokens").fetchone()[0])


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    ],
)
def test_a_purge_that_is_stopped_finishes_its_batch_and_the_next_one_goes_on(
    tool: Tool, many: Path, number: int, code: int
) -> None:
    total = count(many)
    command = [sys.executable, "-m", "tokenctl", "purge", "--json", "--batch", "500"]
    with subprocess.Popen(
        command, env=environment(), cwd=many.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while count(many) == total:
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.01)
        # It runs: a second one is told so, and by whom.
        second = tool("purge")
        assert (second.returncode, second.stdout) == (11, "")
        assert f"a purge is already running (pid {process.pid}" in second.stderr
        assert process.poll() is None, "it ended before it could be stopped"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert b"Traceback" not in err
    summary = json.loads(out)
    assert summary["complete"] is False
    assert summary["purged"] == total - count(many) == 500 * summary["batches"]

    rest = tool("purge", "--json", "--batch", "50000")
    assert rest.returncode == 0
    assert json.loads(rest.stdout)["complete"] is True
    assert json.loads(rest.stdout)["purged"] + summary["purged"] == DEAD_ROWS
    assert count(many) == 10
    wanted = ("--type", "purge", "--type", "purge.batch")
    events = json.loads(tool("audit", "tail", "-n", "1000", *wanted, "--json").stdout)
    runs = [event["data"]["complete"] for event in events if event["type"] == "purge"]
    assert runs == [False, True]
    batches = [event["data"]["purged"] for event in events if event["type"] == "purge.batch"]
    assert sum(batches) == DEAD_ROWS


def test_a_purge_stops_after_its_time(tool: Tool, many: Path) -> None:
    done = tool("purge", "--json", "--batch", "500", "--max-runtime", "300ms")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["complete"]) == (0, False)
    assert 0 < summary["purged"] < DEAD_ROWS
    assert summary["purged"] == DEAD_ROWS + 10 - count(many)
    assert "stopped early, the next run goes on" in tool("purge", "--max-runtime", "0s").stdout


def test_a_purge_waits_for_the_other_when_told_so(tool: Tool, sample: Path) -> None:
    began = time.monotonic()
    with exclusive(sample, "purge"):
        refused = tool("purge", "--lock-wait", "500ms")
    assert refused.returncode == 11
    assert time.monotonic() - began >= timedelta(milliseconds=500).total_seconds()


def test_a_purge_shows_its_progress_on_a_terminal_and_as_json_lines(tool: Tool, many: Path) -> None:
    code, shown = run_on_terminal(
        "purge",
        "--batch",
        "100",
        "--max-runtime",
        "2s",
        cwd=many.parent,
        env={"TERM": "xterm", "COLUMNS": "90"},
    )
    assert code == 0
    assert shown.startswith("purging …")
    steps = [int(step.replace(",", "")) for step in re.findall(r"([\d,]+)/", shown)]
    assert steps
    assert steps == sorted(steps)
    assert 0 < steps[-1] <= DEAD_ROWS
    assert re.search(r"purged [\d,]+ in [\d,]+ batches, \d+\.\d s", shown.splitlines()[-1])

    done = tool("purge", "-o", "jsonl", "--batch", "500", "--max-runtime", "2s")
    *progress, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert progress
    assert all(set(each) == {"purged", "found"} for each in progress)
    assert progress[-1]["purged"] <= summary["purged"]
    assert done.stderr == ""
