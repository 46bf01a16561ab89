"""`tokenctl demo`: what it shows is true, and nothing is left of it, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli import ROOT, environment, run, run_on_terminal
from tests.conftest import eventually, leave_free
from tokenctl.cli.demo import ROUNDS

PAGE = ROOT / "docs" / "client.md"
_SHOWN = "```console\n$ tokenctl demo\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory for temporary files."""
    place = tmp_path / "temporary"
    place.mkdir()
    return place


def broken(directory: Path, module: str) -> dict[str, str]:
    """An environment in which that module cannot be imported, as if it were not installed."""
    return beginning(directory, f"import sys\nsys.modules[{module!r}] = None\n")


def beginning(directory: Path, code: str) -> dict[str, str]:
    """An environment in which every Python begins with that code."""
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"}


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The error of a run with --json."""
    assert (done.stdout, "Traceback" in done.stderr) == ("", False)
    error: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])["error"]
    return error


# --- what it shows -----------------------------------------------------------------------------


def test_every_round_ends_as_the_client_promises(place: Path) -> None:
    done = run("demo", "--tabs", "2", "--burst", "5", "--json", env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = json.loads(done.stdout)
    assert [each["round"] for each in rounds] == [1, 2, 3, 4, 5]
    assert all(each["ok"] for each in rounds)
    seen = [
        tuple(each[name] for name in ("tabs", "calls", "succeeded", "rotations", "ended", "logged_in"))
        for each in rounds
    ]
    assert seen == [
        (2, 10, 10, 1, 0, True),
        (2, 10, 10, 1, 0, True),
        (2, 10, 10, 1, 0, True),
        (1, 5, 5, 1, 0, True),
        (1, 5, 0, 0, 1, False),
    ]
    assert [each["repeated"] > 0 for each in rounds] == [False, False, True, False, False]
    refreshes = [each["refreshes"] for each in rounds]
    assert refreshes[:3] == [1, 2, 2]
    assert refreshes[3] in (3, 4)
    assert refreshes[4] == 1
    assert [each["failures"] for each in rounds] == [{}, {}, {}, {}, {"LoginEnded": 5}]
    assert list(place.iterdir()) == []


def test_settings_of_the_user_change_nothing(place: Path, tmp_path: Path) -> None:
    """Nor is anything done to the user's own database."""
    settings = 'access_ttl = "2h"\nrefresh_ttl = "1s"\ncookies = "true"\ndatabase = "own.db"\n'
    (tmp_path / "tokenctl.toml").write_text(settings)
    (tmp_path / "tokenctl").mkdir()
    (tmp_path / "tokenctl" / "tokenctl.toml").write_text(settings)
    env = {
        "TMPDIR": str(place),
        "XDG_CONFIG_HOME": str(tmp_path),
        "TOKENCTL_REFRESH_TTL": "1s",
        "TOKENCTL_ISSUER": "https://auth.example",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    done = run(
        "demo", "--tabs", "2", "--burst", "2", "-q", "-o", "csv", "--fields", "ok", env=env, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["ok", *["true"] * len(ROUNDS)]
    assert {file.name for file in tmp_path.iterdir()} == {"tokenctl.toml", "tokenctl", "temporary"}


def test_on_a_terminal_it_shows_a_table_and_nothing_of_a_token(place: Path) -> None:
    env = {"TMPDIR": str(place), "TERM": "xterm", "COLUMNS": "110"}
    code, shown = run_on_terminal("demo", "--tabs", "2", "--burst", "3", env=env)
    assert code == 0, shown
    assert all(each.situation in shown for each in ROUNDS)
    assert not re.search("tk[rms]1_|eyJ", shown)


def test_the_page_shows_what_the_command_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    block = page.partition(_SHOWN)[2].partition("```\n")[0]
    done = run("demo", env={"COLUMNS": "110"})
    played = done.stderr + done.stdout
    if os.environ.get("TOKENCTL_UPDATE_DOCS") and steady(played) != steady(block):
        PAGE.write_text(page.replace(f"{_SHOWN}{block}", f"{_SHOWN}{played}"), encoding="utf-8")
        return
    assert done.returncode == 0
    assert steady(played) == steady(block)


def steady(table: str) -> str:
    """Without what is chance: the seconds, the calls that met a 503, how far the tab came that is killed."""
    table = re.sub(r" +\d+\.\d$", "  N.N", table, flags=re.MULTILINE)
    table = re.sub(r"(with 503 +60 +60) +[1-9]\d? ", r"\1 N ", table)
    return re.sub(r"(is killed +40 +40 +0 +)[34] ", r"\1N ", table)


# --- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tabs", "1"], "1 is not in the range 2<=x<=8"),
        (["--tabs", "9"], "9 is not in the range 2<=x<=8"),
        (["--burst", "0"], "0 is not in the range 1<=x<=100"),
        (["--burst", "101"], "101 is not in the range 1<=x<=100"),
        (["--fields", "nothing"], "no field 'nothing' here"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_started(
    argv: list[str], said: str, place: Path
) -> None:
    done = run("demo", *argv, "--json", env={"TMPDIR": str(place)})
    assert done.returncode == 2
    assert said in told(done)["message"]
    assert list(place.iterdir()) == []


def test_without_httpx_it_says_what_to_install(tmp_path: Path, place: Path) -> None:
    env = broken(tmp_path, "httpx") | {"TMPDIR": str(place)}
    error = told(run("demo", "--json", env=env))
    assert (error["code"], error["hint"]) == ("config.invalid", "pip install 'tokenctl[client]'")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "who"),
    [("uvicorn", "the server of the demo has ended"), ("httpcore", "tab 1 of the demo has ended")],
)
def test_a_process_that_does_not_start_is_told_of(module: str, who: str, tmp_path: Path, place: Path) -> None:
    env = broken(tmp_path, module) | {"TMPDIR": str(place)}
    done = run("demo", "--tabs", "2", "--json", env=env)
    error = told(done)
    assert (done.returncode, error["code"]) == (1, "demo.failed")
    assert error["message"].startswith(who)
    assert module in error["message"]
    assert error["hint"]
    assert list(place.iterdir()) == []


# --- how it ends -------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_said(small_disk: Path) -> None:
    leave_free(small_disk, 900_000)
    error = told(run("demo", "--json", env={"TMPDIR": str(small_disk)}))
    assert error["code"] == "demo.failed"
    assert error["message"] == f"there is almost no space left in {small_disk}"
    assert "TMPDIR" in error["hint"]
    assert [each.name for each in small_disk.iterdir()] == ["ballast"]


def start(place: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, so that its processes can be told from all others."""
    return subprocess.Popen(
        [sys.executable, "-m", "tokenctl", "demo", "--json"],
        env=environment({"TMPDIR": str(place)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def members(session: int) -> list[int]:
    """The processes of a session, but for its leader."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session != int(entry.name):
                found.append(int(entry.name))
        except ProcessLookupError:
            pass
    return found


def is_starting(place: Path, session: int) -> bool:
    return bool(members(session))


def is_playing(place: Path, session: int) -> bool:
    return len(members(session)) == 4 and bool(list(place.glob("*/tokens.json")))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("moment", [is_starting, is_playing])
@pytest.mark.parametrize(
    ("number", "code", "everybody"),
    [
        pytest.param(signal.SIGINT, 130, True, id="ctrl-c"),
        pytest.param(signal.SIGINT, 130, False, id="sigint"),
        pytest.param(signal.SIGTERM, 143, False, id="sigterm"),
        pytest.param(signal.SIGHUP, 143, True, id="a closed terminal"),
        pytest.param(signal.SIGHUP, 143, False, id="sighup"),
    ],
)
def test_a_signal_leaves_nothing_behind(
    moment: Callable[[Path, int], bool], number: int, code: int, everybody: bool, place: Path
) -> None:
    with start(place) as process:
        eventually(lambda: moment(place, process.pid))
        # A terminal sends ^C to all processes of the group.
        (os.killpg if everybody else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (code, b"")
        assert json.loads(err.splitlines()[-1])["error"]["code"] == "interrupted", err
        assert b"Traceback" not in err
        # Whatever those were about to start has heard of it a moment later.
        eventually(lambda: members(process.pid) == [])
        assert list(place.iterdir()) == []


def test_a_signal_waits_for_what_is_being_connected(tmp_path: Path, place: Path) -> None:
    """Otherwise Python tells of the socket that nobody has closed."""
    code = (
        "import os, signal, sys\n"
        "def look(event, args):\n"
        "    if event == 'socket.connect' and 'demo' in sys.orig_argv:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(look)\n"
    )
    done = run("demo", "--json", env=beginning(tmp_path, code) | {"TMPDIR": str(place)})
    assert (done.returncode, told(done)["code"]) == (130, "interrupted"), done.stderr
    assert list(place.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes in /proc")
def test_a_server_that_dies_ends_it(place: Path) -> None:
    with start(place) as process:
        eventually(lambda: is_playing(place, process.pid))
        os.kill(min(members(process.pid)), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, b"")
        error = json.loads(err.splitlines()[-1])["error"]
        assert error["code"] == "demo.failed"
        assert error["message"].startswith("the server of the demo")
        # Whatever those were about to start has heard of it a moment later.
        eventually(lambda: members(process.pid) == [])
        assert list(place.iterdir()) == []
