"""The main job from beginning to end, as its users do it: processes, pipes, signals, a terminal."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.cli import environment, run
from tests.cli.warm import Warm
from tests.sample import SAMPLE

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
