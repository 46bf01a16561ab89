"""What every command gets from the framework: exit codes, streams, formats, prompts, times."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import environment, run, run_on_terminal
from tokenctl import errors
from tokenctl.cli import confirm, times
from tokenctl.cli.help import EXIT_CODES
from tokenctl.cli.main import EXIT, main
from tokenctl.cli.options import Entry, Menu, app
from tokenctl.cli.output import Column, Part, Printer, instant, printable

SECRET = "tkr1_" + "AbC-_123" * 10


def probe(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run(*argv, module="tests.cli.probe", **options)


def probe_on_terminal(*argv: str, **options: Any) -> tuple[int, str]:
    return run_on_terminal(*argv, module="tests.cli.probe", **options)


def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.cli.probe", *argv], env=environment(), **options)


# --- exit codes and the form of an error -------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "stderr"),
    [
        (["boom", "0"], 0, ""),
        (["boom", "3"], 3, ""),
        (["boom", "7"], 7, ""),
        (["boom", "UserExists", "ada is there"], 1, "error[user.exists]: ada is there\n"),
        (["boom", "InvalidInput", "no."], 2, "error[input.invalid]: no.\n"),
        (["boom", "PasswordRefused", "weak"], 2, "error[password.refused]: weak\n"),
        (["boom", "UserNotFound", "who"], 4, "error[user.not_found]: who. Try: tokenctl user list\n"),
        (
            ["boom", "TokenRefused"],
            4,
            "[token.refused]: the refresh token is refused: reuse detected. Try: tokenctl inspect rt_1\n",
        ),
        (
            ["boom", "Declined", "no"],
            5,
            "error[confirm.declined]: no. Try: repeat the command if",
        ),
        (["boom", "OverMax", "no"], 6, "error[selector.over_max]: no\n"),
        (["boom", "NotMigrated", "old"], 10, "error[db.not_migrated]: old. Try: tokenctl db upgrade\n"),
        (
            ["boom", "DatabaseLocked", "busy"],
            11,
            "error[db.locked]: busy. Try: wait for the other one",
        ),
        (["boom", "DatabaseFull", "a\x1b[2Jb\nc"], 1, r"error[db.full]: a\x1b[2Jb\nc. Try: free some space"),
        (["boom", "KeyError", "k"], 1, "error[internal]: KeyError: 'k'. Try: the same command with --debug"),
        (
            ["boom", "MemoryError"],
            1,
            "error[internal]: MemoryError. Try: the same command with less",
        ),
        (["boom", "Recursion"], 1, "error[internal]: RecursionError: maximum recursion depth"),
        (["boom", "Abort"], 5, "error[confirm.missing]: there is no terminal to ask on. Try: answer"),
        (["boom", "Pipe"], 1, "error[io.failed]: "),
        (["--foo"], 2, "error[usage]: No such option: --foo. Try: tokenctl --help\n"),
        (["boom", "--foo"], 2, "error[usage]: No such option: --foo"),
        (["thing", "list", "--foo"], 2, "Try: tokenctl thing list --help\n"),
        (["bom"], 2, "error[usage]: No such command 'bom'. Did you mean 'boom'? Try: tokenctl --help\n"),
        (["boo"], 2, "error[usage]: No such command 'boo'."),
        (
            ["thing", "list", "--count", "x"],
            2,
            "error[usage]: Invalid value for '--count': 'x' is not a valid",
        ),
        (["completion"], 2, "error[usage]: Missing argument 'SHELL'. Choose from: bash, zsh, fish."),
        (["thing", "options", "--grace", "soon"], 2, "error[config.invalid]: "),
    ],
)
def test_an_error_has_its_form_and_its_exit_code(argv: list[str], code: int, stderr: str) -> None:
    done = probe(*argv)
    assert done.returncode == code
    assert stderr in done.stderr if stderr else not done.stderr
    assert done.stdout.strip() == ""  # Typer ends its own prompt with a space
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["-o", "json", "--foo"],
        ["--json", "boom", "--foo"],
        ["boom", "--foo", "--output=jsonl"],
        ["boom", "--foo", "-ojson"],
        ["boom", "--foo", "-qo", "json"],
    ],
)
def test_with_json_output_an_error_is_a_json_object(argv: list[str]) -> None:
    done = probe(*argv)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["code"], error["message"]) == (2, "usage", "No such option: --foo")
    assert error["hint"].endswith("--help")


@pytest.mark.parametrize("argv", [["boom", "--foo", "-o", "csv"], ["boom", "--foo", "--", "--json"]])
def test_without_json_output_it_is_none(argv: list[str]) -> None:
    assert probe(*argv).stderr.startswith("error[usage]")


def test_a_json_error_carries_its_facts() -> None:
    error = json.loads(probe("boom", "TokenRefused", "--json").stderr)["error"]
    assert error["facts"] == {"reason": "reuse_detected", "token_id": "rt_1"}


def test_debug_shows_a_traceback_without_local_variables() -> None:
    done = probe("boom", "KeyError", f"it {SECRET}", "--debug")
    assert "Traceback" in done.stderr
    assert "tests/cli/probe.py" in done.stderr.replace(os.sep, "/")
    assert "local variable" not in done.stderr.replace('"local variable"', "")
    assert SECRET not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error[internal]")


@pytest.mark.parametrize(
    "argv",
    [
        [SECRET],
        [f"--{SECRET}"],
        ["boom", "InvalidInput", f"no {SECRET}"],
        ["boom", "KeyError", SECRET, "--debug"],
        ["boom", "InvalidInput", SECRET, "--json"],
        ["thing", "list", "--count", SECRET],
        ["thing", "list", SECRET],
        ["config", SECRET.replace("tkr1", "tkm1")],
        ["boom", "InvalidInput", f"no {SECRET.replace('tkr1', 'tks1')}"],
        ["boom", "KeyError", SECRET.replace("tkr1", "tks1"), "--debug"],
    ],
)
def test_a_token_string_in_argv_is_never_repeated(argv: list[str]) -> None:
    done = probe(*argv)
    assert done.returncode in {1, 2}
    assert "AbC-_123" not in done.stderr + done.stdout


def test_a_superfluous_argument_is_not_repeated() -> None:
    done = run("config", "hunter2", "hunter3")
    assert done.returncode == 2
    assert "2 argument(s) more" in done.stderr
    assert "hunter" not in done.stderr


def test_every_error_that_we_raise_ends_in_a_documented_exit_code() -> None:
    assert set(EXIT.values()) <= set(EXIT_CODES)
    assert {3, 7, 0} == set(EXIT_CODES) - set(EXIT.values())
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.TokenctlError):
            assert any(base in EXIT for base in kind.__mro__)


# --- streams and signals -----------------------------------------------------------------------


def test_a_closed_pipe_is_success() -> None:
    with start("thing", "list", "--count", "100000", stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")


@pytest.mark.parametrize("argv", [["--help"], ["thing", "list", "-o", "id"]])
def test_a_pipe_that_nobody_reads_at_the_final_flush_is_success(argv: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with start(*argv, stdout=write, stderr=-1) as process:
        os.close(write)
        assert process.stderr is not None
        assert (process.wait(), process.stderr.read()) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("argv", [["thing", "list"], ["thing", "list", "--count", "100000"], ["--help"]])
def test_a_full_disk_under_stdout_is_an_error(argv: list[str]) -> None:
    with Path("/dev/full").open("wb") as full, start(*argv, stdout=full, stderr=-1) as process:
        assert process.stderr is not None
        assert process.wait() == 1
        said = process.stderr.read()
    assert said.startswith(
        b"error[io.failed]: writing the output: No space left on device. Try: free some space"
    )


def test_closed_standard_streams_are_no_error() -> None:
    command = f"exec {sys.executable} -m tests.cli.probe thing list <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=environment(), check=False).returncode == 0


def test_a_terminal_without_unicode_is_no_error() -> None:
    done = probe("thing", "list", "--agent", "ü", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert r"\xfc" in done.stdout


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)]
)
def test_a_signal_unwinds_and_has_its_exit_code(number: int, code: int) -> None:
    with start("hang", stderr=-1) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait() == code
        shown = process.stderr.read()
    assert shown.startswith(b"rolled back\nerror[interrupted]: stopped by SIG")


def test_nohup_is_respected() -> None:
    with start("hang", stderr=-1, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


# --- start-up and completion -------------------------------------------------------------------

HEAVY = {
    "sqlalchemy",
    "rich",
    "pydantic",
    "msgspec",
    "jwt",
    "cryptography",
    "alembic",
    "passlib",
    "platformdirs",
}


def imported(*argv: str, env: dict[str, str] | None = None) -> set[str]:
    code = (
        "import atexit, sys\n"
        "names = lambda: ' '.join(name for name, module in sys.modules.items() if module)\n"
        "atexit.register(lambda: sys.stderr.write('\\n' + names()))\n"
        "from tokenctl.cli.main import main\n"
        f"sys.exit(main({list(argv)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(env), capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


def test_help_loads_nothing_but_typer() -> None:
    ours = imported("--help") - set(sys.stdlib_module_names)
    assert not HEAVY & ours
    assert "tokenctl" in ours


def test_a_table_needs_no_rich() -> None:
    assert not HEAVY & imported("help", "exit-codes")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (
            {"_TOKENCTL_COMPLETE": "complete_bash", "COMP_WORDS": "tokenctl comp", "COMP_CWORD": "1"},
            "completion",
        ),
        (
            {"_TOKENCTL_COMPLETE": "complete_bash", "COMP_WORDS": "tokenctl config -o ", "COMP_CWORD": "3"},
            "jsonl",
        ),
        ({"_TOKENCTL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "tokenctl conf"}, '"config":'),
        (
            {
                "_TOKENCTL_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_ARGS": "tokenctl help ",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
            "exit-codes",
        ),
    ],
)
def test_completion_answers_without_the_database_layer(env: dict[str, str], expected: str) -> None:
    done = run(env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout
    assert not HEAVY & imported(env=env)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_TOKENCTL_COMPLETE=complete_" + shell in done.stdout
    assert done.stdout[0] != "\n"


# --- help --------------------------------------------------------------------------------------


def walk(menu: Menu, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Entry | Menu]]:
    found: list[tuple[tuple[str, ...], Entry | Menu]] = []
    for name, entry in menu.entries.items():
        found.append(((*path, name), entry))
        if isinstance(entry, Menu):
            found += walk(entry, (*path, name))
    return found


@pytest.mark.parametrize("path", [path for path, _ in walk(app)], ids=" ".join)
def test_every_command_has_help_with_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    by_option = capsys.readouterr().out
    assert "\n  Example:\n    tokenctl " in by_option
    assert main(["help", *path]) == 0
    assert capsys.readouterr().out == by_option


def test_help_alone_is_the_help() -> None:
    assert run("help").stdout == run("--help").stdout


def test_no_command_shows_the_help_but_is_no_success() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: tokenctl")
    assert done.stderr.endswith("error[usage]: Missing command. Try: tokenctl --help\n")
    assert json.loads(run("--json").stderr)["error"]["code"] == "usage"


def test_help_of_what_is_not_there() -> None:
    assert run("help", "nothing").returncode == 2
    assert run("help", "config", "more").returncode == 2


def test_exit_codes_as_data() -> None:
    codes = json.loads(run("help", "exit-codes", "--json").stdout)
    assert {row["code"] for row in codes} == set(EXIT_CODES)
    assert "db.locked" in next(row for row in codes if row["code"] == 11)["errors"]


def test_version() -> None:
    assert run("--version").stdout.startswith("tokenctl 0")


# --- shared options ----------------------------------------------------------------------------


def arrived(*argv: str, **options: Any) -> dict[str, str]:
    done = probe(*argv, **options)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_shared_options_go_before_and_after_and_the_inner_one_wins() -> None:
    assert arrived("--actor", "a", "thing", "options")["actor"] == "a"
    assert arrived("thing", "--actor", "b", "options")["actor"] == "b"
    assert arrived("--actor", "a", "thing", "--actor", "b", "options", "--actor", "c")["actor"] == "c"
    assert probe("-o", "csv", "thing", "list", "--json").stdout.startswith("[")
    assert probe("--json", "thing", "list", "-o", "id").stdout == "rt_0\nrt_1\nrt_2\n"


def test_flags_become_settings(tmp_path: Path) -> None:
    values = arrived("--database", "x.db", "thing", "options", "--grace", "5s", cwd=tmp_path)
    assert (values["database"], values["grace"]) == ("x.db", "0:00:05")
    values = arrived("thing", "options", "--user", "a", "--user", "b", "--state", "live", cwd=tmp_path)
    assert (values["grace"], values["user"]) == ("0:00:30", "['a', 'b']")
    assert "live" in values["state"]


def test_actor_is_the_flag_or_the_environment_or_the_os_user() -> None:
    env = {"TOKENCTL_ACTOR": "cron", "USER": "forged", "LOGNAME": "forged"}
    assert arrived("thing", "options", env=env)["actor"] == "cron"
    assert arrived("thing", "options", "--actor", "me", env=env)["actor"] == "me"
    assert arrived("thing", "options", env={**env, "TOKENCTL_ACTOR": ""})["actor"] not in {"", "forged"}


def test_a_parameter_of_a_command_replaces_the_shared_one() -> None:
    assert probe("bundle", "-o", "x.tgz").stdout == "x.tgz\n"
    own, shared = probe("bundle", "--help").stdout.split("Shared options:")
    assert "--output" in own
    assert "--output" not in shared


def test_quiet_drops_notes() -> None:
    assert probe("thing", "options").stderr == "a note\n"
    assert probe("thing", "options", "-q").stderr == ""


def test_config_shows_values_and_sources(tmp_path: Path) -> None:
    env = {"TOKENCTL_GRACE": "7s", "TOKENCTL_MASTER_KEY": SECRET.replace("tkr1", "tkm1")}
    done = run("config", "--json", "--database", "x.db", env=env, cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["grace"]["value"] == "7s"
    assert rows["grace"]["source"] == "environment TOKENCTL_GRACE"
    assert rows["database"]["source"] == "flag --database"
    assert "AbC-_123" not in done.stdout + done.stderr


# --- output ------------------------------------------------------------------------------------

COLUMNS = (
    Column("id"),
    Column("n", right=True),
    Column("agent", "user agent", shrink=True),
    instant("at"),
    Column("hidden", table=False),
)
EVIL = "=x\x1b[31m\u202e\nü界 [red]"
RECORDS: list[dict[str, Any]] = [
    {"id": "a", "n": 1000, "agent": EVIL, "at": 0, "hidden": ["x", 1]},
    {"id": "b", "n": None, "agent": None, "at": None, "hidden": None},
]


def printed(
    act: Callable[[Printer], object], capsys: pytest.CaptureFixture[str], *args: Any, **options: Any
) -> str:
    act(Printer(*args, **options))
    return capsys.readouterr().out


@pytest.mark.usefixtures("berlin")
def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(lambda p: p.rows(RECORDS, COLUMNS), capsys)
    assert out.splitlines() == [
        "ID      N  USER AGENT                   AT",
        r"a   1,000  =x\x1b[31m\u202e\nü界 [red]  1970-01-01 01:00:00+01:00",
        "b       -  -                            -",
    ]


def test_json_is_ascii_and_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(lambda p: p.rows(RECORDS, COLUMNS), capsys, "json")
    assert out.isascii()
    assert json.loads(out) == [
        {"id": "a", "n": 1000, "agent": EVIL, "at": "1970-01-01T00:00:00.000000Z", "hidden": ["x", 1]},
        {"id": "b", "n": None, "agent": None, "at": None, "hidden": None},
    ]
    assert json.loads(printed(lambda p: p.rows([], COLUMNS), capsys, "json")) == []
    lines = printed(lambda p: p.rows(RECORDS, COLUMNS), capsys, "jsonl").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b"]


def test_csv_quotes_and_defuses_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    import csv

    out = printed(lambda p: p.rows(RECORDS, COLUMNS), capsys, "csv")
    head, first, second = csv.reader(io.StringIO(out))
    assert head == ["id", "n", "agent", "at", "hidden"]
    assert first == ["a", "1000", "'" + EVIL, "1970-01-01T00:00:00.000000Z", '["x", 1]']
    assert second == ["b", "", "", "", ""]


def test_id_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(lambda p: p.rows(RECORDS, COLUMNS), capsys, "id") == "a\nb\n"
    out = printed(lambda p: p.rows(RECORDS, COLUMNS), capsys, "csv", fields=["hidden", "id"])
    assert out.splitlines()[0] == "hidden,id"
    out = printed(lambda p: p.rows(RECORDS, COLUMNS), capsys, fields=["hidden"])
    assert out.splitlines() == ["HIDDEN", "x, 1", "-"]
    with pytest.raises(errors.InvalidInput) as caught:
        Printer(fields=["nope"]).rows([], COLUMNS)
    assert caught.value.hint == "--fields id,n,agent,at,hidden"
    with pytest.raises(errors.InvalidInput):
        Printer("id").rows([], COLUMNS[1:])


def test_one(capsys: pytest.CaptureFixture[str]) -> None:
    columns = COLUMNS[:3]
    out = printed(lambda p: p.one(RECORDS[0], columns), capsys)
    assert out == "id          a\nn           1,000\nuser agent  " + printable(EVIL) + "\n"
    out = printed(lambda p: p.one(RECORDS[0], columns, card=[("why", "x\ny")]), capsys)
    assert out == "why  x\\ny\n"
    assert json.loads(printed(lambda p: p.one(RECORDS[0], columns), capsys, "json"))["n"] == 1000
    assert printed(lambda p: p.one(RECORDS[0], columns), capsys, "id") == "a\n"
    assert printed(lambda p: p.one(RECORDS[0], columns), capsys, "csv", fields=["n"]) == "n\n1000\n"


def test_object_with_rows(capsys: pytest.CaptureFixture[str]) -> None:
    def act(printer: Printer) -> None:
        printer.object_with_rows(
            {"plan": "7f3a", "tokens": 2},
            [Part("owners", iter([{"n": 3}]), [Column("n")]), Part("members", iter(RECORDS), COLUMNS[:2])],
            card=[("plan", "7f3a"), ("tokens", "2")],
        )

    assert json.loads(printed(act, capsys, "json")) == {
        "plan": "7f3a",
        "tokens": 2,
        "owners": [{"n": 3}],
        "members": [{"id": "a", "n": 1000}, {"id": "b", "n": None}],
    }
    lines = [json.loads(line) for line in printed(act, capsys, "jsonl").splitlines()]
    assert lines[0] == {"plan": "7f3a", "tokens": 2}
    assert len(lines) == 3
    assert printed(act, capsys).splitlines() == [
        "plan    7f3a",
        "tokens  2",
        "",
        "N",
        "3",
        "",
        "ID      N",
        "a   1,000",
        "b       -",
    ]
    assert printed(act, capsys, fields=["id"]).splitlines()[3:] == ["ID", "a", "b"]
    assert printed(act, capsys, "id") == "a\nb\n"


def test_a_table_that_is_no_terminal_is_complete_and_wide() -> None:
    agent = "x" * 300
    lines = probe("thing", "list", "--count", "1200", "--agent", agent).stdout.splitlines()
    assert len(lines) == 1201
    assert all(agent in line for line in lines[1:])


def test_a_limit_is_a_limit_in_every_format() -> None:
    done = probe("thing", "list", "--limit", "2", "-o", "id")
    assert (done.stdout, done.stderr) == ("rt_0\nrt_1\n", "2 of 3; --limit 0 shows all\n")
    assert probe("thing", "list", "--limit", "3").stderr == ""
    assert probe("thing", "list", "--count", "0").stderr == "nothing found\n"


def test_a_table_on_a_terminal_is_cut_and_fits() -> None:
    code, shown = probe_on_terminal(
        "thing", "list", "--count", "8210", "--agent", "y" * 300, env={"COLUMNS": "80", "TERM": "xterm"}
    )
    lines = shown.splitlines()
    assert (code, lines[-1]) == (0, "50 of 8,210; --limit 0 shows all")
    assert len(lines) == 52
    assert lines[0].startswith("\x1b[1mID")
    assert all(len(line) <= 80 and "y…" in line for line in lines[1:-1])
    assert "\x1b" not in probe_on_terminal("thing", "list", "--no-color")[1]
    assert "\x1b" not in probe_on_terminal("thing", "list", env={"NO_COLOR": "1"})[1]
    assert "\x1b" not in probe_on_terminal("thing", "list", "-o", "csv", "--agent", "\x1b[2J")[1]


def test_memory_is_constant() -> None:
    def peak(count: int, output: str) -> int:
        code = (
            "import resource, sys; from tests.cli import probe\n"
            f"probe.main(['thing', 'list', '--count', '{count}', '-o', '{output}'])\n"
            "sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), stdout=subprocess.DEVNULL, stderr=-1, check=True
        )
        return int(done.stderr)

    for output in ("table", "json", "csv"):
        assert peak(100_000, output) < peak(1000, output) * 1.1


def test_progress_is_for_a_terminal_only() -> None:
    assert probe("hang", "--seconds", "0.1").stderr == "ready\nrolled back\n"
    _, shown = probe_on_terminal("hang", "--seconds", "2", env={"TERM": "xterm"})
    assert shown.startswith("hanging …")
    assert "10/10" in shown
    assert "hanging" not in probe_on_terminal("hang", "--seconds", "0.1", env={"TERM": "dumb"})[1]
    assert "hanging" not in probe_on_terminal("hang", "--seconds", "0.1", "-q", env={"TERM": "xterm"})[1]


# --- confirmations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "stderr"),
    [
        (["0", "0"], 0, ""),
        (["0", "0", "--everything"], 0, ""),
        (["20", "3", "--yes"], 0, ""),
        (["20", "3", "--confirm", "3"], 0, ""),
        (
            ["20", "3"],
            5,
            "error[confirm.missing]: this needs a confirmation, and there is no terminal to ask on",
        ),
        (["20", "3"], 5, "add --yes"),
        (["21", "3", "--yes"], 5, "add --confirm 3"),
        (["1", "1", "--everything", "--yes"], 5, "add --confirm 1"),
        (["21", "3", "--confirm", "3"], 0, ""),
        (["21", "3", "--confirm", "4"], 5, "error[confirm.declined]: --confirm 4 is not the number"),
        (["2", "2", "--yes", "--confirm", "4"], 5, "error[confirm.declined]"),
    ],
)
def test_a_script_confirms_with_a_flag(argv: list[str], code: int, stderr: str) -> None:
    done = probe("kill", *argv, input="y\n3\n")
    assert (done.returncode, done.stdout) == (code, "" if code else "killed\n")
    assert stderr in done.stderr


@pytest.mark.parametrize(
    ("argv", "typed", "code"),
    [
        (["2", "1"], "y\n", 0),
        (["2", "1"], "YES\n", 0),
        (["2", "1"], "\n", 5),
        (["2", "1"], "n\n", 5),
        (["2", "1"], "\x04\n", 5),
        (["2", "1"], "\x03\n", 130),
        (["21", "3"], "3\n", 0),
        (["21", "3"], "y\n", 5),
        (["21", "3"], "4\n", 5),
        (["21", "3", "--yes"], "3\n", 0),
        (["2", "1", "--everything"], "1\n", 0),
        (["2", "1", "--everything"], "y\n", 5),
    ],
)
def test_a_person_confirms_by_typing(argv: list[str], typed: str, code: int) -> None:
    ended, shown = probe_on_terminal("kill", *argv, typed=typed)
    assert ended == code, shown
    assert ("killed\n" in shown) == (code == 0)
    assert f"revoke {argv[0]} tokens of {argv[1]} users" in shown


# --- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"hunter2\n", "'hunter2'\n"),
        (b"hunter2\r\nmore\n", "'hunter2'\n"),
        (b" with space \n", "' with space '\n"),
        ("schön".encode(), "'schön'\n"),
        (b"x" * 8192, f"'{'x' * 8192}'\n"),
        (b"x" * 8193, None),
        (b"", None),
        (b"\n", None),
        (b"a\0b\n", None),
        (b"hunter2\xff\n", None),
    ],
)
def test_a_password_from_stdin_or_a_file(given: bytes, expected: str | None, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(given)
    for done in (probe("password", "--stdin", input=given), probe("password", "--file", str(file))):
        if expected is None:
            assert (done.returncode, done.stdout) == (2, "")
            assert "hunter2" not in done.stderr
            assert "xxxx" not in done.stderr
        else:
            assert (done.returncode, done.stdout) == (0, expected)


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    done = probe("password", "--file", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such file" in done.stderr


def test_a_password_from_a_hidden_prompt() -> None:
    code, shown = probe_on_terminal("password", typed="hunter2\nhunter2\n")
    assert (code, shown.count("hunter2")) == (0, 1)  # the one that the probe prints
    code, shown = probe_on_terminal("password", typed="hunter2\nhunter3\n")
    assert code == 2
    assert "hunter" not in shown
    done = probe("password")
    assert done.returncode == 5
    assert "--password-stdin" in done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [(b"  abc\n\n", "'abc'\n"), (b"", None), (b" \n", None), (b"x" * 8193, None), (b"ab\xff", None)],
)
def test_a_token_from_stdin(given: bytes, expected: str | None) -> None:
    done = probe("token", input=given)
    assert (done.returncode, done.stdout) == ((0, expected) if expected else (2, ""))
    code, shown = probe_on_terminal("token", typed=" abc \n")
    assert (code, shown.count("abc")) == (0, 1)


def test_lines_in_bounded_memory() -> None:
    class Counting(io.BytesIO):
        most = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            self.most = max(self.most, len(line))
            return line

    stream = Counting(
        b"a\n\r\n" + b"x" * 4096 + b"\r\n" + b"y" * 4097 + b"\n" + b"z" * 3_000_000 + b"\nend \nlast"
    )
    assert list(confirm.read_lines(stream)) == [b"a", b"", b"x" * 4096, None, None, b"end ", b"last"]
    assert stream.most <= 65536


# --- times -------------------------------------------------------------------------------------

NOW = 1_800_000_000_000_000


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("2h", NOW - 7_200_000_000),
        ("1h30m", NOW - 5_400_000_000),
        ("0s", NOW),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000_000),
        ("2026-01-31 12:00:00.5+01:00", 1_769_857_200_500_000),
        ("2026-01-31T12:00Z", 1_769_860_800_000_000),
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-31T13:00:00", 1_769_860_800_000_000),
        ("2026-07-01", 1_782_856_800_000_000),
    ],
)
def test_an_instant(text: str, expected: int) -> None:
    assert times.parse_instant(text, now=NOW, destructive=False) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2",
        "-2h",
        "2H",
        "٢h",
        "2h ",
        "2h\n",
        "99999999999w",
        "36500d",
        "20260131",
        "2026-01-31T12",
        "2026-W05-6",
        "2026-02-30",
        "2026-01-31T25:00:00Z",
        "2026-01-31T12:00:00+99:00",
        "2026-01-31T12:00:00.1234567Z",
        "\uff12026-01-31T12:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "0001-01-01",
        "9999-12-31T23:59:59-14:00",
        "1969-12-31T23:59:59Z",
        SECRET,
    ],
)
def test_no_instant(text: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        times.parse_instant(text, now=NOW, destructive=False)
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T12:00", "2026-01-31 12:00:00.5"])
def test_a_naive_time_is_refused_where_something_is_destroyed(text: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        times.parse_instant(text, now=NOW, destructive=True)
    again = caught.value.hint.removesuffix(" for UTC")
    assert times.parse_instant(again, now=NOW, destructive=True)


@pytest.mark.usefixtures("berlin")
def test_shown_times() -> None:
    assert times.show_utc(NOW + 1) == "2027-01-15T08:00:00.000001Z"
    assert times.show_local(NOW) == "2027-01-15 09:00:00+01:00"
    assert times.parse_instant(times.show_local(NOW), now=0, destructive=True) == NOW
    assert times.parse_instant(times.show_utc(NOW + 1), now=0, destructive=True) == NOW + 1
    for beyond in (2**63, -(2**63), 253402300800_000_000):
        assert times.show_utc(beyond) == times.show_local(beyond) == f"@{beyond}"
    assert times.show_local(253402300799_000_000).startswith("9999-12-31")


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, "0 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (86400, "24 h ago"),
        (172800, "2 d ago"),
        (-40, "in 40 s"),
    ],
)
def test_ago(length: int, expected: str) -> None:
    assert times.show_ago(NOW - length * 1_000_000, NOW) == expected
