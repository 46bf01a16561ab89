"""`tokenctl user import`: what an operator is told, and that it ends cleanly wherever it is stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import environment, run_on_terminal
from tests.cli.test_safety import MIB_OF_A, Tool, demand_three_parts, dump, initialised, real, tool, warm
from tests.conftest import eventually
from tests.core.test_passwords import PASSWORD, django_hash

__all__ = ["initialised", "real", "tool", "warm"]  # fixtures

HASH = "$2b$04$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"
HOSTILE = (
    b"name,password_hash,disabled\r\n"
    b"ada," + HASH.encode() + b",f\r\n"
    b"\xff\xfe," + HASH.encode() + b",f\r\n"
    b"cleo,5f4dcc3b5aa765d61d8327deb882cf99,f\r\n" + MIB_OF_A + b"\r\n"
    b"\x1b[31mdave\x1b[0m,,\r\n"
    b'"erin,' + b"\0" * 100 + b'"x,,\r\n'
    b"BOB,,\r\n"
    b"tkr1_" + b"A" * 84 + b",,\r\n"
    b"frank,,maybe\r\n"
    b"grace,,true\r\n"
)


def imported(tool: Tool, *argv: str, stdin: str | bytes | None = None) -> dict[str, object]:
    done = tool("user", "import", *argv, "--json", input=stdin)
    counts: dict[str, object] = json.loads(done.stdout)
    return counts | {"exit": done.returncode}


def run_python(code: str, place: Path) -> str:
    """What it prints in a process of its own; it has to end with 0."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.usefixtures("real")
class TestImport:
    def test_hostile_lines(self, tool: Tool, tmp_path: Path) -> None:
        (tmp_path / "users.csv").write_bytes(HOSTILE)
        before = dump(tmp_path / "tokenctl.db")
        would = imported(tool, "users.csv", "--dry-run")
        assert dump(tmp_path / "tokenctl.db") == before
        done = tool("user", "import", "users.csv", "--json")
        assert (done.returncode, would["exit"]) == (3, 3)
        counts = json.loads(done.stdout)
        assert counts == {
            "imported": 2,
            "existing": 0,
            "refused": 8,
            "without_password": 1,
            "complete": True,
            "dry_run": False,
        }
        assert would == counts | {"dry_run": True, "exit": 3}
        lines = sorted(int(line.split()[2].rstrip(":")) for line in done.stderr.splitlines())
        assert lines == [3, 4, 5, 6, 7, 8, 9, 10]
        assert all(line.startswith("warning: line ") for line in done.stderr.splitlines())
        assert done.stderr.replace("\n", "").isprintable()
        for secret in (HASH[-20:], "5f4dcc3b", "tkr1_A", "erin"):
            assert secret not in done.stderr
        again = imported(tool, "users.csv")
        assert (again["imported"], again["existing"], again["refused"], again["exit"]) == (0, 2, 8, 3)

    def test_exit_codes(self, tool: Tool) -> None:
        assert imported(tool, "-", stdin='{"name": "zoe"}')["exit"] == 0
        assert imported(tool, "-", stdin='{"name": "zoe"}')["exit"] == 0
        assert imported(tool, "-", stdin="name,password_hash\n")["exit"] == 0
        assert imported(tool, "-", stdin='{"name": "zoe"}\n{"nam": "x"}')["exit"] == 3
        assert imported(tool, "-", stdin='{"nam": "x"}')["exit"] == 4

    def test_it_says_who_cannot_log_in(self, tool: Tool) -> None:
        done = tool("user", "import", "-", input="name,password\nzoe,x\nbob,x\nyan,x\n \n")
        assert done.stdout == "imported 2 · existing 1 · refused 1 · without password 2\n"

    def test_a_dump_of_another_system(self, tool: Tool, tmp_path: Path) -> None:
        csv = f"email,encrypted_password\nzoe@example.com,{django_hash()}\n"
        fields = ("--name-field", "email", "--hash-field", "encrypted_password")
        assert imported(tool, "-", *fields, stdin=csv)["imported"] == 1
        shown = json.loads(tool("user", "show", "ZOE@example.com", "--json").stdout)
        assert shown["has_password"] is True
        code = (
            "from tokenctl import Settings, TokenService\n"
            "with TokenService(Settings(database='tokenctl.db')) as service:\n"
            f"    print(service.login('zoe@example.com', {PASSWORD!r}).token_id)"
        )
        assert run_python(code, tmp_path).startswith("rt_")

    @pytest.mark.parametrize(
        ("argv", "stdin", "hint"),
        [
            pytest.param(["none.csv"], "", "name a file that can be read", id="no file"),
            pytest.param(["."], "", "name a file that can be read", id="a directory"),
            pytest.param(["-"], "", "JSON lines, or CSV", id="empty"),
            pytest.param(["-"], "ada,secret\n", "--name-field", id="no header"),
            pytest.param(["-", "--hash-field", "pw"], "name,pwd\n", "--hash-field", id="no such field"),
            pytest.param(["-"], '[{"name": "x"}]', "jq -c", id="array"),
            pytest.param(["-"], b"\x1f\x8b\x08\0", "gzip -dc", id="gzip"),
            pytest.param(["tkr1_" + "A" * 84], "", "revoke", id="a token string"),
            pytest.param(["-", "-o", "id"], "", "-o jsonl", id="a format"),
        ],
    )
    def test_refusals_come_before_anything_is_done(
        self, tool: Tool, tmp_path: Path, argv: list[str], stdin: str | bytes, hint: str
    ) -> None:
        before = dump(tmp_path / "tokenctl.db")
        done = tool("user", "import", *argv, input=stdin)
        assert (done.returncode, done.stdout) == (2, "")
        demand_three_parts(done.stderr, "input.invalid", hint)
        assert "secret" not in done.stderr
        assert dump(tmp_path / "tokenctl.db") == before

    @pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="nothing here that cannot be read")
    def test_a_failed_read_is_told_as_one(self, tool: Tool) -> None:
        done = tool("user", "import", "/proc/self/mem")
        assert (done.returncode, done.stdout) == (1, "")
        demand_three_parts(done.stderr, "io.failed", "copy /proc/self/mem")

    def test_a_terminal_gets_the_first_refusals(self, tool: Tool, tmp_path: Path) -> None:
        (tmp_path / "users.csv").write_text("name\nada\n" + "usr_\n" * 30)
        code, shown = run_on_terminal(
            "user", "import", "users.csv", cwd=tmp_path, env={"HOME": str(tmp_path), "TERM": "dumb"}
        )
        assert code == 3
        assert shown.count("warning: line ") == 20
        assert "and 10 more; 2> FILE has all of them" in shown
        assert "imported 1 · refused 30" in shown

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_ends_the_wait_for_the_next_line(
        self, tool: Tool, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        lines = "".join(f'{{"name": "user{i}"}}\n' for i in range(1_200))
        command = [sys.executable, "-m", "tokenctl", "user", "import", "-", "--json"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(lines.encode())
            process.stdin.flush()
            eventually(lambda: len(json.loads(tool("user", "list", "--json").stdout)) == 1_001)
            process.send_signal(number)
            assert process.wait(60) == code  # and stdin is still open
            counts = json.loads(process.stdout.read())
        assert (counts["imported"], counts["complete"]) == (1_000, False)
        again = imported(tool, "-", stdin=lines)
        assert (again["imported"], again["existing"], again["exit"]) == (200, 1_000, 0)

    def test_memory_is_flat(self, tool: Tool, tmp_path: Path) -> None:
        def peak(number: int) -> int:
            (tmp_path / "users.jsonl").write_text(
                "".join(f'{{"name": "x", "more": "{"y" * 1_000}", "n": {i}}}\n' for i in range(number))
            )
            code = (
                "import resource, sys\n"
                "from tokenctl.cli.main import main\n"
                "assert main(['user', 'import', 'users.jsonl', '-q']) == 0\n"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
            )
            return int(run_python(code, tmp_path).split()[-1])

        assert peak(20_000) < peak(1_000) + 8_000  # KiB, of 20 MB that are read
