"""`db backup`, `db restore` and `db copy` as processes: beside a server, at once, killed, without space."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli import environment, run, run_on_terminal
from tests.conftest import START
from tests.http.live import PASSWORD
from tests.http.spawned import ISSUER, serving
from tests.postgres import Server, started
from tests.service import add_logins, login_row
from tokenctl import Settings, TokenService

#: How often each command is killed; TOKENCTL_KILLS is more.
KILLS = int(os.environ.get("TOKENCTL_KILLS", "3"))
SERVE = ("--database", "tokens.db", "--issuer", ISSUER)
LOGINS = 8_000


@pytest.fixture
def place(tmp_path: Path, new_database: Path) -> Path:
    """A directory with a database of some size, whose schema is checked with every command."""
    for file in new_database.iterdir():
        shutil.copy(file, tmp_path)
    settings = Settings(database=str(tmp_path / "tokens.db"))
    with TokenService(settings, clock=lambda: START) as service:
        user = service.create_user("ada")
    add_logins(settings, [login_row(number, user.id) for number in range(1, LOGINS + 1)])
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


def tokenctl(place: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return run(*argv, cwd=place, env={"TOKENCTL_DATABASE": "tokens.db", "TOKENCTL_ACTOR": "nina"})


def done(place: Path, *argv: str) -> str:
    """What a command says that has to succeed."""
    ran = tokenctl(place, *argv)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def begun(place: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tokenctl", *argv],
        cwd=place,
        env=environment({"TOKENCTL_DATABASE": "tokens.db", "TOKENCTL_ACTOR": "nina"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def asides(place: Path) -> list[Path]:
    return sorted(place.glob("tokens.db.before-restore-*"))


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def demand_sound(path: Path, logins: int = LOGINS) -> None:
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, "SELECT count(*) FROM refresh_tokens") == [(logins,)]


# --- what is said --------------------------------------------------------------------------------


def test_a_backup_says_what_is_not_in_it(place: Path) -> None:
    said = done(place, "db", "backup", "monday.db")
    assert re.search(
        r"^master key  not in it, but tokens\.db\.key; keep the key apart: losing it", said, re.M
    )
    assert "8,000 tokens (" in said
    again = tokenctl(place, "db", "backup", "monday.db")
    assert again.returncode == 1
    assert "monday.db is there already" in again.stderr


def test_a_restore_asks(place: Path) -> None:
    done(place, "db", "backup", "monday.db")
    done(place, "create-user", "bob", "--no-password")
    unasked = tokenctl(place, "db", "restore", "monday.db")
    assert unasked.returncode == 5
    assert "restore monday.db (1 user, 8,000 tokens (" in unasked.stderr
    assert "add --yes" in unasked.stderr
    env = {"TOKENCTL_DATABASE": "tokens.db"}
    code, shown = run_on_terminal("db", "restore", "monday.db", typed="n\n", cwd=place, env=env)
    assert (code, asides(place)) == (5, [])
    code, shown = run_on_terminal("db", "restore", "monday.db", typed="y\n", cwd=place, env=env)
    assert code == 0, shown
    assert "declared  " in shown
    assert len(asides(place)) == 1


def test_what_was_revoked_since_is_revoked_again_as_it_says(place: Path) -> None:
    done(place, "create-user", "bob", "--no-password")
    ids = [json.loads(done(place, "issue", "--user", "bob", "--json"))["id"] for _ in range(3)]
    done(place, "db", "backup", "monday.db")
    done(place, "revoke", *ids[:2], "--yes")
    said = done(place, "db", "restore", "monday.db", "--yes")
    assert json.loads(done(place, "user", "show", "bob", "--json"))["live_tokens"] == 3
    [command] = re.findall(r"^next +(tokenctl list .*)$", said, re.M)
    program = f"{shlex.quote(sys.executable)} -m tokenctl"
    subprocess.run(
        ["bash", "-c", command.replace("tokenctl ", f"{program} ", 1).replace("| tokenctl", f"| {program}")],
        cwd=place,
        env=environment(),
        check=True,
    )
    live = done(place, "list", "--user", "bob", "--state", "live", "-o", "id").split()
    assert live == ids[2:]


def test_without_the_key_at_hand(place: Path) -> None:
    done(place, "db", "backup", "monday.db")
    (place / "tokens.db.key").unlink()
    ran = tokenctl(place, "db", "restore", "monday.db", "--yes", "--json")
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["key_fits"] is False
    assert "the master key is not at hand" in ran.stderr


def test_on_postgresql_its_own_tools_are_named(place: Path, server: Server) -> None:
    for command in (["backup", "x.db"], ["restore", "x.db", "--yes"]):
        ran = tokenctl(place, "db", *command, "--database", server.url("none"))
        assert ran.returncode == 2
        for word in ("pg_dump", "PITR", "tokenctl db restored"):
            assert word in ran.stderr


# --- beside a server -----------------------------------------------------------------------------


def test_beside_a_server(place: Path) -> None:
    with serving(place, *SERVE) as server:
        registered = server.post("/auth/register", {"username": "eve", "password": PASSWORD}).json
        done(place, "db", "backup", "monday.db")
        string = registered["refresh_token"]
        for _ in range(3):
            string = server.post("/auth/refresh", {"refresh_token": string}).json["refresh_token"]
        refused = tokenctl(place, "db", "restore", "monday.db", "--yes")
        assert refused.returncode == 11
        assert "tokens.db is in use" in refused.stderr
        assert "systemctl stop tokenctl" in refused.stderr
        assert asides(place) == []
        # It goes on, in the journal mode that it had.
        string = server.post("/auth/refresh", {"refresh_token": string}).json["refresh_token"]
        assert query(place / "tokens.db", "PRAGMA journal_mode") == [("wal",)]
    done(place, "db", "restore", "monday.db", "--yes")
    with serving(place, *SERVE) as server:
        answer = server.post("/auth/refresh", {"refresh_token": string})
        assert answer.status == 200
        assert server.post("/auth/refresh", {"refresh_token": registered["refresh_token"]}).status == 401
        assert server.post("/auth/refresh", {"refresh_token": answer.json["refresh_token"]}).status == 401
    types = [event["type"] for event in json.loads(done(place, "audit", "tail", "-n", "4", "--json"))]
    assert types[:3] == ["database.restored", "token.recover", "token.reuse"]


def test_a_copy_by_hand_beside_a_server_and_after_it(place: Path) -> None:
    with serving(place, *SERVE) as server:
        string = server.post("/auth/register", {"username": "eve", "password": PASSWORD}).json[
            "refresh_token"
        ]
        done(place, "db", "backup", "monday.db")
        string = server.post("/auth/refresh", {"refresh_token": string}).json["refresh_token"]
        shutil.copy(place / "monday.db", place / "by-hand.db")
        (place / "by-hand.db").rename(place / "tokens.db")
        # The server has another file open than the one that is there now.
        answer = server.post("/auth/refresh", {"refresh_token": string})
        assert answer.status == 503
        server.kill()
    for ending in ("-wal", "-shm"):
        (place / f"tokens.db{ending}").unlink(missing_ok=True)
    with serving(place, *SERVE) as server:
        answer = server.post("/auth/refresh", {"refresh_token": string})
        assert answer.status == 503
        assert tokenctl(place, "doctor").returncode == 7
        assert "tokenctl db restored" in tokenctl(place, "doctor").stdout
        done(place, "db", "restored", "--yes")
        assert server.post("/auth/refresh", {"refresh_token": string}).status == 200


def test_another_program_has_it_open(place: Path) -> None:
    done(place, "db", "backup", "monday.db")
    with closing(sqlite3.connect(place / "tokens.db", isolation_level=None)) as other:
        other.execute("SELECT count(*) FROM users").fetchall()
        assert tokenctl(place, "db", "restore", "monday.db", "--yes").returncode == 11
    assert tokenctl(place, "db", "restore", "monday.db", "--yes").returncode == 0


# --- at once -------------------------------------------------------------------------------------


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    results = []
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr
        results.append((process.returncode, stderr))
    return results


def test_backups_at_once_to_one_file(place: Path) -> None:
    codes = ended([begun(place, "db", "backup", "monday.db") for _ in range(4)])
    assert sorted(code for code, _ in codes) == [0, 1, 1, 1]
    demand_sound(place / "monday.db")
    assert not list(place.glob("*.new-*"))


def test_restores_at_once(place: Path) -> None:
    done(place, "db", "backup", "monday.db")
    results = ended([begun(place, "db", "restore", "monday.db", "--yes") for _ in range(4)])
    codes = [code for code, _ in results]
    assert set(codes) <= {0, 11}, results
    # Each may find the database in use by the others, who look at it first: then nothing has happened.
    assert codes.count(0) == len(asides(place))
    if 0 not in codes:
        done(place, "db", "restore", "monday.db", "--yes")
        assert len(asides(place)) == 1
    for each in (place / "tokens.db", *asides(place)):
        assert each.stat().st_nlink == 1
        demand_sound(each)
    assert not list(place.glob("*.new-*"))


@pytest.mark.parametrize("target", ["postgresql", "sqlite"])
def test_copies_at_once_to_one_database(place: Path, server: Server, target: str) -> None:
    to = server.create_database("at_once") if target == "postgresql" else "new.db"
    results = ended([begun(place, "db", "copy", "--to", to) for _ in range(3)])
    assert sorted(code for code, _ in results) == [0, 1, 1], results
    assert f"{LOGINS:,} tokens" in done(place, "db", "copy", "--to", "again.db", "--database", to)


# --- killed --------------------------------------------------------------------------------------


def kill_somewhere(place: Path, *argv: str) -> bool:
    """Run the command and kill it at any moment of what it does; whether it had ended before."""
    process = begun(place, *argv)
    time.sleep(random.uniform(0.2, 1.0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == 0


def test_a_backup_that_is_killed(place: Path) -> None:
    for number in range(KILLS):
        file = place / f"{number}.db"
        finished = kill_somewhere(place, "db", "backup", file.name)
        assert file.exists() or not finished
        if file.exists():
            demand_sound(file)
    demand_sound(place / "tokens.db")
    assert tokenctl(place, "db", "check").returncode == 0


def test_a_restore_that_is_killed(place: Path) -> None:
    done(place, "db", "backup", "monday.db")
    done(place, "create-user", "bob", "--no-password")
    for _ in range(KILLS):
        kill_somewhere(place, "db", "restore", "monday.db", "--yes")
        demand_sound(place / "tokens.db")
        [(users,)] = query(place / "tokens.db", "SELECT count(*) FROM users")
        [(declared,)] = query(place / "tokens.db", "SELECT recovered_at FROM realm")
        # The old one, or the backup and declared: nothing else is ever under the name.
        assert (users == 2) == (declared is None)
        done(place, "db", "check")
    done(place, "db", "restore", "monday.db", "--yes")
    assert all(each.stat().st_nlink == 1 for each in (place / "tokens.db", *asides(place)))


@pytest.mark.parametrize("target", ["postgresql", "sqlite"])
def test_a_copy_that_is_killed(place: Path, server: Server, target: str) -> None:
    for number in range(KILLS):
        name = f"{target}_killed_{number}"
        to = server.create_database(name) if target == "postgresql" else f"{name}.db"
        finished = kill_somewhere(place, "db", "copy", "--to", to)
        if target == "sqlite":
            there = (place / to).exists()
        else:
            # What is left of its transaction ends when the server sees that nobody is there.
            others = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
            deadline = time.monotonic() + 30
            while server.execute(others) != [(0,)]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            there = bool(server.execute("SELECT 1 FROM pg_tables WHERE tablename = 'meta'", dbname=name))
        assert there or not finished
        if there:
            assert tokenctl(place, "db", "check", "--database", to).returncode == 0
        else:
            done(place, "db", "copy", "--to", to)


# --- no space ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["backup full.db", "restore monday.db --yes", "copy --to full.db"])
def test_no_space(place: Path, command: str) -> None:
    done(place, "db", "backup", "monday.db")
    done(place, "create-user", "bob", "--no-password")
    before = {each.name for each in place.iterdir()}
    limit = (place / "tokens.db").stat().st_size // 2
    ran = subprocess.run(
        [sys.executable, "-m", "tokenctl", "db", *command.split()],
        cwd=place,
        env=environment({"TOKENCTL_DATABASE": "tokens.db"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("error[db."), ran.stderr
    assert {each.name for each in place.iterdir()} - before <= {"tokens.db.restore"}
    demand_sound(place / "tokens.db")
    assert query(place / "tokens.db", "SELECT count(*) FROM users") == [(2,)]


def test_progress_on_a_terminal(place: Path) -> None:
    code, shown = run_on_terminal(
        "db", "copy", "--to", "new.db", cwd=place, env={"TOKENCTL_DATABASE": "tokens.db", "COLUMNS": "100"}
    )
    assert code == 0
    assert "copying …" in shown
