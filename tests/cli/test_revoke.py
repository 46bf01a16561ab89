"""`tokenctl revoke` beyond one login: plans and their drift, files of a leak, reports, and looking again."""

from __future__ import annotations

import csv
import json
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import environment
from tests.cli.test_safety import (
    DEAD,
    LIVE,
    OTHER,
    STOLEN,
    UNKNOWN,
    Tool,
    alive,
    demand_three_parts,
    initialised,
    real,
    sample,
    strings,
    tool,
    warm,
)
from tokenctl.core import token_string

__all__ = ["initialised", "real", "sample", "strings", "tool", "warm"]  # fixtures

NETWORK = ("--ip", "203.0.113.0/24")


def planned(tool: Tool, *argv: str, stdin: str | None = None) -> dict[str, object]:
    done = tool("revoke", *argv, "--dry-run", "--json", input=stdin)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


# --- plans -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sample")
class TestPlan:
    def test_what_was_shown_is_revoked(self, tool: Tool) -> None:
        shown = planned(tool, *NETWORK)
        assert (shown["would_revoke"], shown["users"]) == (7, 5)
        per_user = shown["per_user"]
        assert isinstance(per_user, list)
        assert sum(each["tokens"] for each in per_user) == 7
        done = tool("revoke", "--plan", str(shown["plan"]), "--reason", "INC-7", "--confirm", "5", "--json")
        assert (done.returncode, json.loads(done.stdout)["revoked"]) == (0, 7)
        assert alive(tool, *NETWORK) == 0
        again = tool("revoke", "--plan", str(shown["plan"]), "--reason", "INC-7", "--confirm", "5")
        assert (again.returncode, again.stdout.partition(" · ")[:1]) == (0, ("revoked 0",))

    def test_a_new_match_stops_it_and_is_shown(self, tool: Tool) -> None:
        shown = planned(tool, "--user", "olga")
        assert tool("issue", "--user", "olga").returncode == 0
        done = tool("revoke", "--plan", str(shown["plan"]), "--confirm", "1", "--json")
        assert done.returncode == 6
        [new] = json.loads(done.stdout)
        assert (new["user"], new["state"]) == ("olga", "live")
        error = json.loads(done.stderr.splitlines()[-1])["error"]
        assert (error["code"], error["facts"]["tokens"]) == ("plan.drift", 1)
        assert "--dry-run" in error["hint"]
        assert alive(tool, "--user", "olga") == 3

    def test_a_member_that_is_gone_changes_nothing_of_what_is_confirmed(self, tool: Tool) -> None:
        shown = planned(tool, *NETWORK)
        tokens = shown["tokens"]
        assert isinstance(tokens, list)
        of_ada = [each["id"] for each in tokens if each["user"] == "ada"]
        assert tool("revoke", *of_ada, "--yes").returncode == 0
        done = tool("revoke", "--plan", str(shown["plan"]), "--confirm", "5", "--json")
        counts = json.loads(done.stdout)
        assert (counts["revoked"], counts["already_dead"]) == (6, 1)

    def test_it_can_be_looked_at_again(self, tool: Tool) -> None:
        shown = planned(tool, *NETWORK)
        again = planned(tool, "--plan", str(shown["plan"]))
        assert {**again, "already_dead": 3} == shown  # those were never members

    def test_of_a_pipe(self, tool: Tool, strings: dict[str, str]) -> None:
        shown = planned(tool, "-", stdin=f"{strings[LIVE]}\n{OTHER}\n")
        assert tool("issue", "--user", "olga").returncode == 0  # matches nothing that was asked
        done = tool("revoke", "--plan", str(shown["plan"]), "--yes", "--json")
        assert json.loads(done.stdout)["revoked"] == 2

    @pytest.mark.parametrize(
        "more",
        [["--user", "olga"], [LIVE], ["--from-file", "x"], ["--from-audit", "x"], ["--all"]],
        ids=lambda more: more[0][:11],
    )
    def test_together_with_another_way_to_name_them(self, tool: Tool, more: list[str]) -> None:
        done = tool("revoke", "--plan", "7f3a", *more, "--yes")
        assert done.returncode == 2
        demand_three_parts(done.stderr, "input.invalid", "one of them")

    def test_without_a_terminal_it_wants_the_number_of_users(self, tool: Tool) -> None:
        shown = planned(tool, "--state", "live")
        done = tool("revoke", "--plan", str(shown["plan"]), "--yes")
        assert done.returncode == 5
        demand_three_parts(done.stderr, "confirm.missing", f"--confirm {shown['users']}")
        wrong = tool("revoke", "--plan", str(shown["plan"]), "--confirm", "1")
        assert wrong.returncode == 5
        assert alive(tool, "--state", "live") == shown["would_revoke"]

    def test_an_empty_selection_has_no_plan(self, tool: Tool) -> None:
        shown = planned(tool, "--state", "revoked")
        assert (shown["plan"], shown["tokens"], shown["per_user"]) == (None, [], [])


# --- files -------------------------------------------------------------------------------------


class TestFromFile:
    @pytest.fixture
    def leak(self, sample: Path, strings: dict[str, str], tmp_path: Path) -> Path:
        broken = strings[OTHER][:-1] + ("A" if strings[OTHER][-1] != "A" else "B")
        wrong = token_string.mint(bytes.fromhex(LIVE[3:]), 0, b"s" * 16, b"k" * 32)
        lines = [strings[LIVE], "", OTHER, DEAD, UNKNOWN, broken, wrong, "junk", "  ", strings[STOLEN]]
        path = tmp_path / "leak.txt"
        path.write_text("\n".join(lines))
        return path

    def test_every_line_is_reported(self, tool: Tool, leak: Path, tmp_path: Path) -> None:
        argv = ("revoke", "--from-file", "leak.txt", "--yes", "--reason", "INC-7")
        done = tool(*argv, "--report", "report.csv", "--json")
        assert done.returncode == 3
        counts = json.loads(done.stdout)
        assert (counts["revoked"], counts["already_dead"], counts["unknown"]) == (2, 2, 1)
        assert (counts["forged"], counts["malformed"]) == (1, 2)
        report = tmp_path / "report.csv"
        assert stat.S_IMODE(report.stat().st_mode) == 0o600
        rows = list(csv.DictReader(report.read_text().splitlines()))
        assert {int(row["line"]): (row["id"], row["result"]) for row in rows} == {
            1: (LIVE, "revoked"),
            3: (OTHER, "revoked"),
            4: (DEAD, "already_dead"),
            5: (UNKNOWN, "unknown"),
            6: ("", "malformed"),
            7: ("", "forged"),
            8: ("", "malformed"),
            10: (STOLEN, "already_dead"),
        }
        assert "tkr1_" not in report.read_text() + done.stdout + done.stderr
        # What it told stays, and a second run goes on.
        again = tool(*argv, "--report", "report.csv")
        assert again.returncode == 3
        assert len(report.read_text().splitlines()) == 1 + 2 * len(rows)

    def test_stdin_and_selectors_with_it(self, tool: Tool, leak: Path) -> None:
        done = tool("revoke", "--from-file", "-", "--user", "olga", "--yes", "--json", input=leak.read_text())
        assert (done.returncode, json.loads(done.stdout)["revoked"]) == (0, 1)
        assert alive(tool, OTHER) == 1

    def test_a_file_that_names_nobody_selects_nobody(self, tool: Tool, sample: Path, tmp_path: Path) -> None:
        """Else the other selectors would mean all that they match."""
        (tmp_path / "none.txt").write_text(f"{UNKNOWN}\n")
        done = tool("revoke", "--from-file", "none.txt", "--user", "olga", "--yes")
        assert done.returncode == 4
        demand_three_parts(done.stderr, "token.not_found", "scan")
        assert alive(tool, "--user", "olga") == 2

    @pytest.mark.usefixtures("sample")
    @pytest.mark.parametrize(("name", "code"), [("no-such-file", 2), (".", 2), ("empty", 2)])
    def test_a_file_that_cannot_be_read(self, tool: Tool, tmp_path: Path, name: str, code: int) -> None:
        (tmp_path / "empty").write_bytes(b"\n\n")
        for command in ("revoke", "list"):
            done = tool(command, "--from-file", name)
            assert done.returncode == code
            assert "Try: " in done.stderr

    def test_a_report_needs_lines(self, tool: Tool, sample: Path, tmp_path: Path) -> None:
        done = tool("revoke", "--user", "olga", "--yes", "--report", "report.csv")
        assert done.returncode == 2
        demand_three_parts(done.stderr, "input.invalid", "--from-file")
        assert not (tmp_path / "report.csv").exists()
        assert alive(tool, "--user", "olga") == 2

    @pytest.mark.parametrize("path", ["/dev/full", ".", "none/report.csv"])
    def test_a_report_that_cannot_be_written(self, tool: Tool, leak: Path, path: str) -> None:
        done = tool("revoke", "--from-file", "leak.txt", "--yes", "--report", path)
        assert done.returncode == 2
        demand_three_parts(done.stderr, "input.invalid", "a new file")
        assert alive(tool, OTHER) == 1


# --- looking again -----------------------------------------------------------------------------


class TestVerify:
    def login(self, tool: Tool) -> str:
        done = tool("issue", "--user", "bob", "--json", TOKENCTL_ACCESS_TTL="2s", TOKENCTL_GRACE="1s")
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["id"])

    def test_it_waits_until_no_access_token_lives(self, tool: Tool, real: Path) -> None:
        token = self.login(tool)
        done = tool("revoke", token, "--yes", "--verify", "--json")
        assert done.returncode == 0
        found = json.loads(done.stdout)
        assert (found["revoked"], found["live"]) == (1, 0)
        assert found["verified_at"] >= found["access_exposure_until"]
        assert "access tokens live until" in done.stderr  # told at once

    def test_for_a_person(self, tool: Tool, real: Path) -> None:
        self.login(tool)
        done = tool("revoke", "--user", "bob", "--yes", "--verify")
        assert re.fullmatch(r"verified .+: 0 live; no access token of these lives any more\n", done.stdout)

    def test_what_is_new_meanwhile_is_found(self, tool: Tool, real: Path, tmp_path: Path) -> None:
        self.login(tool)
        command = [sys.executable, "-m", "tokenctl", "revoke", "--user", "bob", "--yes", "--verify", "--json"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            assert b"access tokens live until" in process.stderr.readline()
            self.login(tool)
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 7
        assert json.loads(out)["live"] == 1

    def test_it_can_be_interrupted(self, tool: Tool, real: Path, tmp_path: Path) -> None:
        done = tool("issue", "--user", "bob", "--json")
        assert done.returncode == 0
        command = [sys.executable, "-m", "tokenctl", "revoke", "--user", "bob", "--yes", "--verify", "--json"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            process.stderr.readline()
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        found = json.loads(out)
        assert (found["revoked"], found["verified_at"]) == (1, None)


# --- again, after a restore --------------------------------------------------------------------


class TestFromAudit:
    @pytest.fixture
    def restored(self, tool: Tool, real: Path, tmp_path: Path) -> dict[str, str]:
        """A backup, then two revocations and a login, an export, and the backup is back; the ids."""
        found: dict[str, str] = {}

        def login(name: str) -> None:
            done = tool("issue", "--user", "bob", "--json")
            assert done.returncode == 0, done.stderr
            found[name] = str(json.loads(done.stdout)["id"])

        assert tool("create-user", "carol", "--no-password").returncode == 0
        for name in ("first", "second", "kept"):
            login(name)
        assert tool("db", "backup", "monday.db").returncode == 0
        login("later")
        done = tool("revoke", found["first"], found["second"], found["later"], "--yes", "--reason", "INC-7")
        assert done.returncode == 0
        assert tool("user", "disable", "carol", "--for", "1h").returncode == 0
        exported = tool("audit", "export")
        (tmp_path / "audit.jsonl").write_text(exported.stdout)
        done = tool("db", "restore", "monday.db", "--yes")
        assert done.returncode == 0, done.stderr
        assert alive(tool, "--user", "bob") == 3
        return found

    def test_revocations_since_the_backup_are_done_again(self, tool: Tool, restored: dict[str, str]) -> None:
        done = tool("revoke", "--from-audit", "audit.jsonl", "--yes", "--reason", "after restore", "--json")
        assert "not done again: 1 user.disable" in done.stderr
        counts = json.loads(done.stdout)
        # The backup does not know the login that came later: it is gone with it.
        assert (done.returncode, counts["revoked"], counts["unknown"]) == (3, 2, 1)
        left = tool("list", "--user", "bob", "--state", "live", "-o", "id")
        assert left.stdout == f"{restored['kept']}\n"
        again = tool("revoke", "--from-audit", "audit.jsonl", "--yes", "--json")
        assert json.loads(again.stdout)["already_dead"] == 2

    def test_an_edited_export_is_refused(self, tool: Tool, restored: dict[str, str], tmp_path: Path) -> None:
        export = tmp_path / "audit.jsonl"
        edited = export.read_text().replace(restored["first"], restored["kept"])
        export.write_text(edited)
        done = tool("revoke", "--from-audit", "audit.jsonl", "--yes")
        assert done.returncode == 2
        demand_three_parts(done.stderr, "input.invalid", "tokenctl audit verify --export")
        assert alive(tool, "--user", "bob") == 3
        # Without the key nobody can tell, and it says so.
        (tmp_path / "tokenctl.db.key").rename(tmp_path / "elsewhere")
        warned = tool("revoke", "--from-audit", "-", "--dry-run", input=edited)
        assert "the master key is not at hand" in warned.stderr

    def test_it_can_be_looked_at_first(self, tool: Tool, restored: dict[str, str]) -> None:
        done = tool("revoke", "--from-audit", "audit.jsonl", "--dry-run", "--json")
        assert (done.returncode, json.loads(done.stdout)["would_revoke"]) == (3, 2)

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            pytest.param(b"", 2, id="empty"),
            pytest.param(b"junk\n", 2, id="junk"),
            pytest.param(b"\xff\xfe\x00\n", 2, id="binary"),
            pytest.param(b'{"a": 1}\n', 2, id="other-json"),
            pytest.param(b"[" * 100_000, 2, id="deep"),
        ],
    )
    @pytest.mark.usefixtures("sample")
    def test_what_is_no_export(self, tool: Tool, tmp_path: Path, content: bytes, code: int) -> None:
        (tmp_path / "audit.jsonl").write_bytes(content)
        done = tool("revoke", "--from-audit", "audit.jsonl", "--yes")
        assert done.returncode == code, done.stderr
        assert "Try: " in done.stderr
        assert "Traceback" not in done.stderr


# --- when the output fails ---------------------------------------------------------------------


def test_what_was_done_is_told_although_stdout_is_full(sample: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tokenctl", "revoke", LIVE, "--yes"],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert "this was done, and could not be written to stdout: revoked 1" in done.stderr


@pytest.mark.usefixtures("sample")
def test_a_report_goes_on_where_a_run_was_stopped(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "leak.txt").write_text(f"{LIVE}\n{OTHER}\n")
    report = tmp_path / "report.csv"
    report.write_text(f"line,id,result\n1,{LIVE},revoked\n")
    assert tool("revoke", "--from-file", "leak.txt", "--yes", "--report", "report.csv").returncode == 0
    assert report.read_text().count("\n") == 4
    report.write_text("something else\n")
    done = tool("revoke", "--from-file", "leak.txt", "--yes", "--report", "report.csv")
    assert done.returncode == 2
    demand_three_parts(done.stderr, "input.invalid", "a new file")
    assert report.read_text() == "something else\n"


def test_a_plan_of_everything_wants_the_number_of_users(tool: Tool, real: Path) -> None:
    assert tool("issue", "--user", "bob").returncode == 0
    shown = planned(tool, "--all")
    done = tool("revoke", "--plan", str(shown["plan"]), "--yes")
    assert done.returncode == 5
    demand_three_parts(done.stderr, "confirm.missing", "--confirm 1")
