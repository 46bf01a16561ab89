"""`tokenctl cutoff` as an operator meets it: the questions, the refusals, and what it says of the logins."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.cli import run_on_terminal
from tests.cli.warm import Warm
from tests.sample import SAMPLE

OLGAS = "rt_019cda793b007ec8a12e959598c44c6b"


class Tool(Protocol):
    def __call__(self, *argv: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a copy of the sample."""
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")
    return tmp_path


@pytest.fixture
def tool(warm: Warm, place: Path) -> Tool:
    """`tokenctl cutoff ARGV…` there."""
    env = {"TZ": "UTC", "HOME": str(place), "XDG_CONFIG_HOME": str(place), "TOKENCTL_ACTOR": "nina"}
    return lambda *argv: warm("cutoff", *argv, env=env, cwd=place)


def data(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def standing(tool: Tool) -> list[tuple[str, str | None]]:
    return [(each["scope"], each["client"] or each["user"]) for each in data(tool("show", "--json"))]


def state(warm: Warm, place: Path, token_id: str) -> str:
    return str(data(warm("inspect", token_id, "--json", cwd=place))["state"])


def test_set_show_clear(tool: Tool, warm: Warm, place: Path) -> None:
    done = tool("set", "--user", "OLGA", "--reason", "INC-7", "--confirm", "1")
    assert done.returncode == 0
    assert done.stdout.startswith("cut off the user olga: logins created until 2026-03-14 03:10:00+00:00 · ")
    assert " of 1 user blocked" in done.stdout
    assert standing(tool) == [("user", "olga")]
    assert state(warm, place, OLGAS) == "blocked"
    let_in = data(tool("clear", "--user", "olga", "--dry-run", "--json"))
    assert (let_in["not_before"], let_in["dry_run"]) == (None, True)
    assert standing(tool) == [("user", "olga")]
    cleared = tool("clear", "--user", "olga", "--confirm", "1", "--reason", "was none")
    assert f"{let_in['let_in']} login" in cleared.stdout
    assert "of 1 user let in again" in cleared.stdout
    assert standing(tool) == []
    assert state(warm, place, OLGAS) == "live"
    again = tool("clear", "--user", "olga")
    assert (again.returncode, again.stdout) == (
        0,
        "no cut-off of the user olga stands, nothing to clear\n",
    )
    noted = data(warm("audit", "tail", "-n", "2", "--json", cwd=place))
    assert [(each["type"], each["actor"], each["user"], each["reason"]) for each in noted] == [
        ("cutoff.set", "nina", "olga", "INC-7"),
        ("cutoff.clear", "nina", "olga", "was none"),
    ]


def test_the_dry_run_says_what_set_then_does(tool: Tool) -> None:
    for scope in (["--all"], ["--client", "web"], ["--user", "ada"]):
        looked = data(tool("set", *scope, "--dry-run", "--json"))
        assert standing(tool) == []
        set_ = data(tool("set", *scope, "--reason", "x", "--confirm", str(looked["users"]), "--json"))
        compared = ("blocked", "let_in", "users", "access_exposure_until", "scope", "client", "user_id")
        assert [looked[name] for name in compared] == [set_[name] for name in compared]
        assert set_["blocked"] > 0
        assert (
            data(tool("clear", *scope, "--confirm", str(looked["users"]), "--json"))["let_in"]
            == (looked["blocked"])
        )


def test_says_how_long_access_tokens_live(tool: Tool, place: Path) -> None:
    argv = ["set", "--user", "olga", "--dry-run"]
    assert "access tokens" not in tool(*argv).stdout
    with closing(sqlite3.connect(place / "tokenctl.db")) as connection, connection:
        until = 1_773_458_400_000_000  # 03:20, ten minutes after the sample's clock
        connection.execute("UPDATE refresh_tokens SET access_until = ?", (until,))
    assert tool(*argv).stdout.endswith(" · access tokens live until 2026-03-14 03:20:00+00:00\n")
    assert data(tool(*argv, "--json"))["access_exposure_until"] == "2026-03-14T03:20:00.000000Z"


@pytest.mark.parametrize("verb", ["set", "clear"])
def test_a_wrong_number_or_nobody_to_ask(tool: Tool, verb: str) -> None:
    if verb == "clear":
        assert tool("set", "--user", "olga", "--reason", "x", "--confirm", "1").returncode == 0
    before = standing(tool)
    argv = [verb, "--user", "olga", "--reason", "x"]
    done = tool(*argv)
    assert (done.returncode, done.stdout) == (5, "")
    assert "error[confirm.missing]" in done.stderr
    assert "--confirm 1" in done.stderr
    done = tool(*argv, "--confirm", "2")
    assert (done.returncode, done.stdout) == (5, "")
    assert "error[confirm.declined]" in done.stderr
    assert standing(tool) == before
    assert tool(*argv, "--yes").returncode == 2  # there is no such way around the number


@pytest.mark.parametrize(("typed", "code"), [("11\n", 0), ("y\n", 5), ("12\n", 5)])
def test_on_a_terminal_the_number_is_typed(tool: Tool, place: Path, typed: str, code: int) -> None:
    argv = ["cutoff", "set", "--all", "--reason", "INC-7"]
    ended, shown = run_on_terminal(*argv, typed=typed, env={"TZ": "UTC", "HOME": str(place)}, cwd=place)
    assert ended == code
    assert "cut off everybody, which blocks" in shown
    assert "Type the number of affected users" in shown
    assert bool(standing(tool)) is (code == 0)


@pytest.mark.parametrize(
    ("argv", "code", "name", "said"),
    [
        pytest.param(["--reason", "x"], 2, "selector.empty", "--user NAME", id="nothing named"),
        pytest.param(["--all", "--user", "ada", "--reason", "x"], 2, "input.invalid", "one user", id="two"),
        pytest.param(["--all", "--confirm", "11"], 2, "input.invalid", "--reason TEXT", id="no reason"),
        pytest.param(["--all", "--dry-run", "--at", "2026-03-14"], 2, "input.invalid", "zone", id="naive"),
        pytest.param(
            ["--all", "--dry-run", "--at", "2100-01-01T00:00Z"], 2, "input.invalid", "new login", id="ahead"
        ),
        pytest.param(["--all", "--dry-run", "--at", "soon"], 2, "input.invalid", "2h or 30d", id="no time"),
        pytest.param(["--user", "nobody", "--dry-run"], 4, "user.not_found", "user list", id="no user"),
        pytest.param(["--client", "no", "--dry-run"], 4, "client.not_found", "client list", id="no client"),
        pytest.param(["--all", "--dry-run", "-o", "id"], 2, "input.invalid", "no id", id="no id"),
    ],
)
def test_what_set_refuses(tool: Tool, argv: list[str], code: int, name: str, said: str) -> None:
    done = tool("set", *argv)
    assert (done.returncode, done.stdout) == (code, "")
    assert f"error[{name}]" in done.stderr
    assert said in done.stderr
    assert standing(tool) == []


def test_an_earlier_one_needs_force(tool: Tool) -> None:
    first = data(tool("set", "--user", "olga", "--reason", "x", "--confirm", "1", "--json"))
    done = tool("set", "--user", "olga", "--at", "30d", "--reason", "x")
    assert done.returncode == 2
    assert "let logins in again" in done.stderr
    assert "--force" in done.stderr
    forced = ["set", "--user", "olga", "--at", "30d", "--reason", "x", "--force"]
    assert tool(*forced).returncode == 5
    second = data(tool(*forced, "--confirm", "1", "--json"))
    assert second["previously"] == first["not_before"]
    assert second["let_in"] == first["blocked"] > 0
    assert second["access_exposure_until"] is None


def test_show_has_every_scope(tool: Tool) -> None:
    assert tool("show").stdout == ""
    for scope in (["--user", "ada"], ["--client", "web"], ["--all"]):
        assert (
            tool("set", *scope, "--at", "2026-01-01T00:00:00.000001+00:00", "--reason", "x").returncode == 0
        )
    found = data(tool("show", "--json"))
    assert standing(tool) == [("all", None), ("client", "web"), ("user", "ada")]
    assert {each["not_before"] for each in found} == {"2026-01-01T00:00:00.000001Z"}
    assert "2026-01-01 00:00:00+00:00" in tool("show").stdout
    assert len(tool("show", "-o", "csv").stdout.splitlines()) == 4
