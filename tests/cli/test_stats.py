"""`tokenctl stats` and what `tokenctl inspect` tells of other logins, on the sample."""

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
import sqlalchemy as sa

from tests.cli import run, run_on_terminal
from tests.cli.warm import Warm
from tests.sample import SAMPLE
from tokenctl.cli.main import main

STOLEN = "rt_019cbbf93f407290a2a21f01d707b00d"  # ada's, which a thief used last
#: The thief, who used these as well.
OTHERS = ["rt_019c83313c80751fb3651be1214bb42a", "rt_019cbb9313007a24b2cdb50f560e7004"]
THIEF = "203.0.113.7"
EVENTS = ("issued", "context_changed", "reuse", "revoked", "refused")


class Tool(Protocol):
    def __call__(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]: ...


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
    """`tokenctl ARGV…` there."""
    env = {"TZ": "UTC", "HOME": str(place), "XDG_CONFIG_HOME": str(place), "LC_ALL": "C.UTF-8"}
    return lambda *argv, **more: warm(*argv, env=env | more, cwd=place)


def data(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bars(table: str, marks: str) -> dict[str, str]:
    """The bar of each hour that has one, by the hour."""
    lines = [line for line in table.splitlines() if "+00:00  " in line and line[:1].isdigit()]
    return {line[:11]: bar for line in lines if (bar := line.split()[-1]).strip(marks) == ""}


# --- stats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("selectors", [[], ["--client", "web"], ["--ip", f"{THIEF}/32", "--user", "ada"]])
def test_the_counts_are_those_of_list(tool: Tool, selectors: list[str]) -> None:
    seen = data(tool("stats", "--json", "--hours", "168", "--top", "1000", *selectors))
    rows = data(tool("list", "--json", *(selectors or ["--all"])))
    for state, number in seen["states"].items():
        assert number == sum(row["state"] == state for row in rows)
    live = [row for row in rows if row["state"] == "live"]
    assert sum(seen["states"].values()) == len(rows)
    assert seen["users"] == len({row["user_id"] for row in live})
    for key, field in (("clients", "client"), ("addresses", "last_ip"), ("widest_users", "user_id")):
        name = {"clients": "client", "addresses": "ip", "widest_users": "user_id"}[key]
        counted = {each[name]: each["live"] for each in seen[key]}
        assert counted == {value: sum(row[field] == value for row in live) for value in counted}
        assert sum(counted.values()) == len(live)
    reuses = sum(row["revoked_reason"] == "reuse" for row in rows)
    assert sum(hour["reuse"] for hour in seen["hours"]) == reuses


@pytest.mark.parametrize("columns", [40, 80, 132, 400])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_bar_fits_and_is_as_long_as_its_counts(place: Path, columns: int, encoding: str) -> None:
    # In a process that begins with it: later nobody asks for the encoding.
    env = {"TZ": "UTC", "HOME": str(place), "COLUMNS": str(columns), "PYTHONIOENCODING": encoding}
    table = run("stats", env=env, cwd=place).stdout
    marks = "█▓!▒░" if encoding == "utf-8" else "#=!x."
    assert table.isascii() == (encoding == "ascii")
    found = bars(table, marks)
    assert list(found) == ["03-14 01:00", "03-14 02:00"]
    most, few = found.values()
    assert set(most) == {marks[1]}
    assert set(few) == {"!"}
    assert len(few) == len(most) * 3 // 10  # 10 events and 3
    widest = max(len(line) for line in table.splitlines() if line.startswith("03-14"))
    assert widest == min(max(columns, widest - len(most) + 8), widest - len(most) + 60)


def test_what_is_rare_is_seen_beside_what_is_frequent(tool: Tool, place: Path) -> None:
    with closing(sqlite3.connect(place / "tokenctl.db")) as connection, connection:
        [(at,)] = connection.execute("SELECT max(at) FROM events")
        new = [(at, "token.issue")] * 5_000 + [(at, "token.revoke"), (at, "token.refuse")]
        connection.executemany("INSERT INTO events (at, type, data) VALUES (?, ?, '{}')", new)
    table = tool("stats", COLUMNS="80").stdout
    found = bars(table, "█▓!▒░")
    assert set(found["03-14 02:00"]) == set("█!▒░")
    assert set(found["03-14 01:00"]) == {"▓"}
    assert max(len(line) for line in table.splitlines()) == 80
    assert "5,000" in table


def test_of_the_logins_that_a_file_names(tool: Tool, place: Path) -> None:
    (place / "leak.txt").write_text("\n".join([STOLEN, *OTHERS]))
    seen = data(tool("stats", "--json", "--from-file", "leak.txt"))
    assert {state: number for state, number in seen["states"].items() if number} == {"live": 2, "revoked": 1}
    assert [sum(hour[kind] for hour in seen["hours"]) for kind in EVENTS] == [0, 3, 1, 0, 0]


def test_hours_are_local_and_buckets_of_utc(tool: Tool) -> None:
    table = tool("stats", "--hours", "2", TZ="Asia/Kolkata").stdout
    assert "\n03-14 07:30+05:30 " in table
    assert "\n03-14 08:30+05:30 " in table
    hours = data(tool("stats", "--hours", "2", "--json", TZ="Asia/Kolkata"))["hours"]
    assert [hour["hour"] for hour in hours] == ["2026-03-14T02:00:00.000000Z", "2026-03-14T03:00:00.000000Z"]


def test_on_a_terminal(place: Path) -> None:
    env = {"HOME": str(place), "TZ": "UTC", "COLUMNS": "80", "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    code, shown = run_on_terminal("stats", "--hours", "168", env=env, cwd=place)
    assert code == 0
    assert sum("+00:00  " in line for line in shown.splitlines()) == 168, "no line is held back"
    assert "Traceback" not in shown


def test_without_a_row(tool: Tool, place: Path) -> None:
    with closing(sqlite3.connect(place / "tokenctl.db")) as connection, connection:
        connection.execute("DELETE FROM refresh_tokens")
        connection.execute("DELETE FROM events")
    seen = data(tool("stats", "--json"))
    assert not any(seen["states"].values())
    assert (seen["clients"], seen["addresses"], seen["widest_users"]) == ([], [], [])
    assert len(seen["hours"]) == 24
    assert not any(hour[kind] for hour in seen["hours"] for kind in EVENTS)
    table = tool("stats")
    assert (table.returncode, bars(table.stdout, "█▓!▒░")) == (0, {})


# --- inspect -----------------------------------------------------------------------------------


def test_inspect_tells_of_the_others(tool: Tool) -> None:
    related = data(tool("inspect", STOLEN, "--json"))["related"]
    assert related["total"] == 2
    assert [each["id"] for each in related["logins"]] == OTHERS
    assert all(each["shared"] == ["ip", "device"] for each in related["logins"])
    shown = tool("inspect", STOLEN)
    assert all(other in shown.stdout for other in OTHERS)
    assert "2 other logins with an address or a device of this one" in shown.stderr


def test_the_commands_that_it_names_list_them(tool: Tool) -> None:
    notes = tool("inspect", STOLEN).stderr
    commands = [line.partition("tokenctl list ")[2] for line in notes.splitlines() if "tokenctl list" in line]
    assert [command.split()[0] for command in commands] == ["--ip", "--device"]
    for command in commands:
        listed = tool("list", *command.split(), "-o", "id").stdout.split()
        assert sorted(listed) == sorted([STOLEN, *OTHERS])


def test_what_list_prints_of_a_device_selects_it(tool: Tool) -> None:
    [row] = [row for row in data(tool("list", "--all", "--json")) if row["id"] == STOLEN]
    for given in (row["last_device"], row["last_device"].upper(), f"sha256:{row['last_device']}"):
        listed = tool("list", "--device", given, "-o", "id").stdout.split()
        assert sorted(listed) == sorted([STOLEN, *OTHERS])


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        pytest.param(["--json"], 1, id="all"),
        pytest.param(["--check", "--json"], 0, id="check"),
        pytest.param(["--json", "--fields", "state"], 0, id="fields"),
        pytest.param(["-o", "id"], 0, id="id"),
    ],
)
def test_the_others_are_looked_for_where_they_are_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], looks: int
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        assert main(["inspect", STOLEN, *options]) == (4 if "--check" in options else 0)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert sent
    assert sum("last_ip IN" in statement for statement in sent) == looks
