"""What an operator in a hurry can get wrong: nothing is done by accident, and every refusal says what next.

Exit codes, confirmations, selectors, what comes on stdin, wrong databases and wrong keys.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.cli import environment, run, run_on_terminal
from tests.cli.warm import Warm
from tests.sample import SAMPLE, sample_strings
from tokenctl.core import token_string
from tokenctl.storage.locks import exclusive

LIVE = "rt_019cda793b007ec8a12e959598c44c6b"  # olga's
OTHER = "rt_019cda9b49c075889eeac7a1f9d1dbe6"  # ivan's, live
DEAD = "rt_019cac641c80717ab3cb3fa5c4374ba5"  # dave's, revoked
STOLEN = "rt_019cbbf93f407290a2a21f01d707b00d"  # ada's, revoked for reuse
UNKNOWN = "rt_01a2070c17097d77944c7d0f55441a4a"
PASSWORD = "mauve kettle under nine ladders"
MIB_OF_A = b"a" * 3_000_000


class Tool(Protocol):
    def __call__(
        self,
        *argv: str,
        input: str | bytes | None = None,  # noqa: A002 - the word of subprocess
        **env: str,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture
def tool(warm: Warm, tmp_path: Path) -> Tool:
    """`tokenctl` in an empty directory of its own."""

    def tokenctl(
        *argv: str,
        input: str | bytes | None = None,  # noqa: A002 - the word of subprocess
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        settings = {"TZ": "UTC", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        return warm(*argv, input=input, env=settings | env, cwd=tmp_path)

    return tokenctl


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of the sample, as the database of the current directory."""
    return Path(shutil.copy(SAMPLE, tmp_path / "tokenctl.db"))


@pytest.fixture
def strings() -> dict[str, str]:
    """The current string of each login of the sample."""
    return sample_strings()


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """A directory with a real database, its key and the user bob."""
    directory = tmp_path_factory.mktemp("initialised")
    for argv in (["init"], ["create-user", "bob", "--no-password"]):
        assert warm(*argv, cwd=directory).returncode == 0
    return directory


@pytest.fixture
def real(initialised: Path, tmp_path: Path) -> Path:
    """A copy of that database and its key."""
    shutil.copy(initialised / "tokenctl.db.key", tmp_path)
    return Path(shutil.copy(initialised / "tokenctl.db", tmp_path))


def dump(database: Path) -> list[str]:
    """All that is in a database."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


def alive(tool: Tool, *selector: str) -> int:
    done = tool("revoke", *(selector or ["--all"]), "--dry-run", "--json", "--fields", "id")
    return int(json.loads(done.stdout)["would_revoke"])


def demand_three_parts(stderr: str, code: str, hint: str = "") -> None:
    """What, why, and the next command."""
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error[{code}]: ")
    assert re.fullmatch(r"error\[[a-z_.]+\]: \S.+[.?!] Try: \S.+", last), "it has no next command"
    assert hint in last


# --- exit codes --------------------------------------------------------------------------------


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("argv", "code", "name", "hint"),
    [
        pytest.param(
            ["user", "create", "ada", "--no-password"], 1, "user.exists", "user show ada", id="1-user"
        ),
        pytest.param(["client", "create", "web"], 1, "client.exists", "client list", id="1-client"),
        pytest.param(["db", "sample", "tokenctl.db"], 1, "db.exists", "another path", id="1-db"),
        pytest.param(["issue", "--user", "judy"], 1, "user.disabled", "user enable judy", id="1-disabled"),
        pytest.param(["list", "--nope"], 2, "usage", "tokenctl list --help", id="2-usage"),
        pytest.param(["nope"], 2, "usage", "tokenctl --help", id="2-no-command"),
        pytest.param(["list"], 2, "selector.empty", "--all", id="2-list-empty"),
        pytest.param(["revoke"], 2, "selector.empty", "--user NAME", id="2-revoke-empty"),
        pytest.param(["revoke", "--yes"], 2, "selector.empty", "--all", id="2-revoke-empty-yes"),
        pytest.param(["revoke", LIVE, "--user", "ada"], 2, "input.invalid", "one of", id="2-id-and-selector"),
        pytest.param(["revoke", "-", "--all"], 2, "input.invalid", "one of", id="2-stdin-and-selector"),
        pytest.param(["inspect", "rt_1"], 4, "token.invalid", "32 hex digits", id="4-id"),
        pytest.param(["inspect", LIVE, "--grace", "soon"], 2, "config.invalid", "30d", id="2-setting"),
        pytest.param(["list", "--all", "--fields", "nope"], 2, "input.invalid", "--fields id,", id="2-field"),
        pytest.param(["list", "--user", "nobody"], 4, "user.not_found", "user list", id="4-user"),
        pytest.param(["revoke", "--user", "nobody"], 4, "user.not_found", "user list", id="4-revoke-user"),
        pytest.param(["list", "--client", "nope"], 4, "client.not_found", "client list", id="4-client"),
        pytest.param(["issue", "--user", "nobody"], 4, "user.not_found", "user list", id="4-issue"),
        pytest.param(["inspect", UNKNOWN], 4, "token.not_found", "list --all", id="4-token"),
        pytest.param(["rotate", STOLEN], 4, "token.refused", f"inspect {STOLEN}", id="4-refused"),
        pytest.param(["revoke", LIVE], 5, "confirm.missing", "--yes", id="5-missing"),
        pytest.param(["revoke", LIVE, "--confirm", "7"], 5, "confirm.declined", "--dry-run", id="5-declined"),
        pytest.param(["revoke", "--all", "--max", "3"], 6, "selector.over_max", "--dry-run", id="6-max"),
        pytest.param(["list", "--all", "--database", "no.db"], 10, "db.missing", "tokenctl init", id="10"),
    ],
)
def test_an_error_has_its_exit_code_and_three_parts(
    tool: Tool, argv: list[str], code: int, name: str, hint: str
) -> None:
    done = tool(*argv, input=f"{OTHER}\n")
    assert (done.returncode, done.stdout) == (code, "")
    demand_three_parts(done.stderr, name, hint)


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("argv", "code", "stdout"),
    [
        pytest.param(["list", "--user", "ada", "--client", "batch"], 0, "", id="0-nothing-found"),
        pytest.param(["revoke", DEAD], 0, "revoked 0 · already dead 1\n", id="0-already-dead"),
        pytest.param(["revoke", DEAD, DEAD], 0, "revoked 0 · already dead 2\n", id="0-twice"),
        pytest.param(["revoke", DEAD, UNKNOWN], 3, "revoked 0 · already dead 1 · unknown 1\n", id="3-dead"),
        pytest.param(["revoke", LIVE, UNKNOWN, "--yes"], 3, "revoked 1 · unknown 1", id="3-live"),
        pytest.param(["revoke", LIVE, "junk", "--yes"], 3, "revoked 1 · malformed 1", id="3-junk"),
        pytest.param(["revoke", LIVE, UNKNOWN, "--dry-run"], 3, "would revoke", id="3-dry-run"),
        pytest.param(["revoke", UNKNOWN], 4, "revoked 0 · unknown 1\n", id="4-all-unknown"),
        pytest.param(["revoke", "junk"], 4, "revoked 0 · malformed 1\n", id="4-all-junk"),
        pytest.param(["inspect", STOLEN, "--check"], 4, "reuse", id="4-not-usable"),
        pytest.param(["inspect", LIVE, "--check"], 0, "live", id="0-usable"),
        pytest.param(["doctor"], 0, "✓  database", id="0-doctor"),
        pytest.param(["doctor", "--database", "none.db"], 7, "✗  database", id="7-doctor"),
    ],
)
def test_a_result_has_its_exit_code(tool: Tool, argv: list[str], code: int, stdout: str) -> None:
    done = tool(*argv)
    assert done.returncode == code
    assert stdout in done.stdout
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["scan", ""], "PATH"),
        (["create-user", "", "--no-password"], "NAME"),
        (["user", "import", ""], "FILE"),
        (["list", "--user", "ada", "--user", ""], "--user"),
        (["revoke", "--user", "ada", "--yes", "--reason", ""], "--reason"),
        (["--actor", "", "revoke", "--user", "ada", "--yes"], "--actor"),
    ],
)
def test_an_unset_variable_of_a_script_is_refused(tool: Tool, argv: list[str], name: str) -> None:
    """`scan "$LEAK"` must not look into the current directory, and find nothing there."""
    done = tool(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    demand_three_parts(done.stderr, "usage")
    assert name in done.stderr
    assert "is empty" in done.stderr


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("argv", "name"),
    [
        pytest.param(["create-user", " ada", "--no-password"], "input.invalid", id="user-name"),
        pytest.param(["client", "create", "a b"], "input.invalid", id="client-id"),
        pytest.param(["client", "delete", "default"], "input.invalid", id="client-default"),
        pytest.param(["issue", "--user", "ada", "--ttl", "0s"], "input.invalid", id="ttl"),
        pytest.param(["issue", "--user", "ada", "--scope", "a  b"], "scope.invalid", id="scope"),
        pytest.param(["rotate", "-"], "input.invalid", id="no-string"),
        pytest.param(
            ["user", "passwd", "ada", "--password-stdin", "--yes"], "input.invalid", id="no-password"
        ),
        pytest.param(["config", "-o", "id"], "input.invalid", id="no-id"),
    ],
)
def test_bad_input_says_what_next(tool: Tool, argv: list[str], name: str) -> None:
    done = tool(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    demand_three_parts(done.stderr, name)


def test_a_second_purge_is_locked_out(tool: Tool, sample: Path) -> None:
    with exclusive(sample, "purge"):
        done = tool("purge", "--json")
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (done.returncode, done.stdout, error["code"]) == (11, "", "db.locked")
    assert error["facts"]["pid"] == os.getpid()
    assert error["hint"] == "tokenctl purge --lock-wait 2m"
    assert tool("purge").returncode == 0


@pytest.mark.usefixtures("sample")
def test_an_option_that_a_hint_names_is_there(tool: Tool) -> None:
    for argv in (["disable", "olga"], ["delete", "olga"], ["passwd", "olga", "--password-stdin"]):
        done = tool("user", *argv)
        assert done.returncode == 5
        named = set(re.findall(r"--[a-z-]+", done.stderr.partition(" Try: ")[2]))
        assert "--yes" in named
        offered = set(re.findall(r"--[a-z-]+", tool("user", argv[0], "--help").stdout))
        assert named <= offered


# --- confirmations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        pytest.param(["revoke", "--user", "olga"], "--yes", id="few"),
        pytest.param(["revoke", "--user", "olga", "--confirm", "2"], "", id="few-wrong-number"),
        pytest.param(["revoke", "--state", "live"], "--confirm 11", id="many"),
        pytest.param(["revoke", "--state", "live", "--yes"], "--confirm 11", id="many-yes-is-not-enough"),
        pytest.param(["revoke", "--state", "live", "--confirm", "12"], "", id="many-wrong-number"),
        pytest.param(["revoke", "--all", "--yes"], "--confirm 12", id="all-yes-is-not-enough"),
        pytest.param(["revoke", "--all", "--user", "olga", "--yes"], "--confirm ", id="all-of-few"),
        pytest.param(["user", "disable", "olga"], "--yes", id="disable"),
        pytest.param(["user", "passwd", "olga", "--password-stdin"], "--yes", id="passwd"),
        pytest.param(["user", "delete", "olga"], "--yes", id="delete"),
        pytest.param(["user", "delete", "olga", "--confirm", "2"], "", id="delete-wrong-number"),
    ],
)
def test_without_its_confirmation_nothing_is_done(
    tool: Tool, sample: Path, argv: list[str], flag: str
) -> None:
    before = dump(sample)
    done = tool(*argv, input=f"{PASSWORD}\n")
    assert (done.returncode, done.stdout) == (5, "")
    assert f"add {flag}" in done.stderr if flag else "error[confirm.declined]" in done.stderr
    assert dump(sample) == before


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("argv", "left"),
    [
        pytest.param(["revoke", "--user", "olga", "--yes"], 24, id="few-yes"),
        pytest.param(["revoke", "--user", "olga", "--confirm", "1"], 24, id="few-number"),
        pytest.param(["revoke", "--state", "live", "--confirm", "11"], 2, id="many-number"),
        pytest.param(["revoke", "--all", "--confirm", "12"], 0, id="all-number"),
        pytest.param(["revoke", "--state", "dead"], 26, id="only-dead-ones"),
        pytest.param(["user", "disable", "olga", "--yes"], 24, id="disable"),
        pytest.param(["user", "disable", "olga", "--for", "1h"], 26, id="disable-for-revokes-nothing"),
        pytest.param(["user", "delete", "olga", "--yes"], 24, id="delete"),
        pytest.param(["user", "passwd", "olga", "--password-stdin", "--yes"], 24, id="passwd"),
        pytest.param(["purge"], 26, id="purge-never-asks"),
    ],
)
def test_with_its_confirmation_it_is_done(tool: Tool, argv: list[str], left: int) -> None:
    assert tool(*argv, input=f"{PASSWORD}\n").returncode == 0
    assert alive(tool) == left


@pytest.mark.usefixtures("sample")
def test_twenty_live_tokens_are_few_and_dead_ones_do_not_count(tool: Tool) -> None:
    live = tool("list", "--state", "live", "-o", "id").stdout.split()
    dead = tool("list", "--state", "revoked", "-o", "id").stdout.split()
    refused = tool("revoke", "-", "--yes", input="\n".join(live[:21]))
    assert (refused.returncode, alive(tool)) == (5, 26)
    done = tool("revoke", "-", "--yes", "--json", input="\n".join(live[:20] + dead))
    assert done.returncode == 0
    counts = json.loads(done.stdout)
    assert (counts["revoked"], counts["already_dead"]) == (20, len(dead))


@pytest.mark.parametrize(
    ("argv", "typed", "code"),
    [
        pytest.param(["revoke", "--user", "olga"], "y\n", 0, id="yes"),
        pytest.param(["revoke", "--user", "olga"], "\n", 5, id="enter-is-no"),
        pytest.param(["revoke", "--state", "live"], "11\n", 0, id="number"),
        pytest.param(["revoke", "--state", "live"], "y\n", 5, id="yes-is-no-number"),
        pytest.param(["user", "delete", "pat@example.com"], "n\n", 5, id="delete-no"),
    ],
)
def test_on_a_terminal_it_asks(sample: Path, argv: list[str], typed: str, code: int) -> None:
    before = dump(sample)
    ended, shown = run_on_terminal(*argv, typed=typed, cwd=sample.parent)
    assert ended == code, shown
    assert ("[y/N]" in shown) == ("--state" not in argv)
    assert (dump(sample) == before) == (code == 5)


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("most", "more", "code"),
    [
        pytest.param("2", [], 0, id="as-many"),
        pytest.param("1", [], 6, id="one-more"),
        pytest.param("0", [], 6, id="none"),
        pytest.param("1", ["--dry-run"], 6, id="dry-run"),
    ],
)
def test_max(tool: Tool, most: str, more: list[str], code: int) -> None:
    done = tool("revoke", "--user", "olga", "--yes", "--max", most, *more)
    assert done.returncode == code
    assert alive(tool, "--user", "olga") == (2 if code else 0)


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["revoke", "--all", "--dry-run"], id="all"),
        pytest.param(["revoke", LIVE, "--dry-run", "--yes"], id="yes"),
        pytest.param(["purge", "--dry-run", "--retention", "0s"], id="purge"),
    ],
)
def test_a_dry_run_changes_no_login(tool: Tool, sample: Path, argv: list[str]) -> None:
    def rest() -> list[str]:
        own = re.compile('INSERT INTO "(events|plans|plan_members|sqlite_sequence)"')
        return [line for line in dump(sample) if not own.match(line)]

    before = rest()
    assert tool(*argv).returncode == 0
    assert rest() == before


@pytest.mark.parametrize(
    ("argv", "output"),
    [
        pytest.param(argv, output, id=f"{name} {' '.join(output)}")
        for name, argv, output in [
            ("issue", ["issue", "--user", "ada"], ["-o", "id"]),
            ("issue", ["issue", "--user", "ada"], ["--fields", "id,expires_at"]),
            ("issue", ["issue", "--user", "ada"], ["--json", "--fields", "access_token"]),
            ("issue", ["issue", "--user", "ada"], ["--fields", "refresh_token,nope"]),
            ("rotate", ["rotate", "-", "--client", "web"], ["-o", "id"]),
            ("rotate", ["rotate", "-", "--client", "web"], ["--fields", "id"]),
            ("rotate-id", ["rotate", LIVE], ["-o", "id"]),
            ("rotate-id", ["rotate", LIVE], ["--fields", "id"]),
            ("revoke", ["revoke", LIVE, "--yes"], ["-o", "id"]),
            ("revoke", ["revoke", "--user", "olga", "--yes"], ["--fields", "nope"]),
            ("purge", ["purge"], ["-o", "id"]),
            ("disable", ["user", "disable", "olga", "--yes"], ["--fields", "nope"]),
            ("enable", ["user", "enable", "judy"], ["--fields", "nope"]),
            ("delete", ["user", "delete", "olga", "--yes"], ["--fields", "nope"]),
            ("create", ["create-user", "zoe", "--no-password"], ["--fields", "nope"]),
            ("client", ["client", "create", "tv"], ["--fields", "nope"]),
        ]
    ],
)
def test_an_output_that_does_not_fit_is_refused_before_anything_is_done(
    tool: Tool, sample: Path, strings: dict[str, str], argv: list[str], output: list[str]
) -> None:
    before = dump(sample)
    done = tool(*argv, *output, input=strings[LIVE])
    assert (done.returncode, done.stdout) == (2, "")
    assert "input.invalid" in done.stderr
    assert dump(sample) == before


# --- stdin -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sample")
def test_revoke_from_stdin_takes_everything_and_counts_it(tool: Tool, strings: dict[str, str]) -> None:
    wrong_key = token_string.mint(bytes.fromhex(LIVE[3:]), 0, b"s" * 16, b"k" * 32)
    broken = strings[LIVE][:-1] + ("A" if strings[LIVE][-1] != "A" else "B")
    lines = [
        strings[LIVE].encode() + b"\r",
        b"",
        b"  " + OTHER.encode() + b"  ",
        OTHER.upper().replace("RT_", "").encode(),  # as a bare UUID, once more
        DEAD.encode(),
        UNKNOWN.encode(),
        wrong_key.encode(),
        broken.encode(),
        b"junk",
        MIB_OF_A,
        b"\xff\xfe\x00\x1b[2J",
        strings[DEAD].encode(),  # the same login a second time, and no line end
    ]
    done = tool("revoke", "-", "--yes", "--json", input=b"\n".join(lines))
    assert done.returncode == 3
    counts = json.loads(done.stdout)
    for name in ("access_exposure_until", "verified_at", "live"):
        del counts[name]
    assert counts == {
        "revoked": 2,
        "already_dead": 2,
        "repeated": 1,
        "unknown": 1,
        "forged": 1,
        "malformed": 4,
        "users": 2,
        "complete": True,
    }
    assert "\x1b" not in done.stderr
    for token in (LIVE, OTHER):
        assert json.loads(tool("inspect", token, "--json").stdout)["state"] == "revoked"


@pytest.mark.parametrize(
    ("redirect", "code"),
    [
        pytest.param("< empty", 2, id="an-empty-file"),
        pytest.param("< blank", 2, id="blank-lines"),
        pytest.param("< /dev/null", 2, id="dev-null"),
        pytest.param("<&-", 2, id="closed"),
        pytest.param("< .", 1, id="a-directory"),  # Python itself ends there, before any code of ours
        pytest.param("< junk", 4, id="binary-junk"),
    ],
)
def test_a_stdin_that_names_nothing_revokes_nothing(sample: Path, redirect: str, code: int) -> None:
    (sample.parent / "empty").touch()
    (sample.parent / "blank").write_text("\n  \r\n\n")
    (sample.parent / "junk").write_bytes(bytes(range(1, 256)) * 100)
    before = dump(sample)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m tokenctl revoke - --yes {redirect}', sys.executable],
        env=environment(),
        cwd=sample.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert dump(sample) == before


def test_a_reader_that_goes_away_is_no_error(sample: Path) -> None:
    """`tokenctl list --all | head -1`."""
    for argv in (["list", "--all"], ["list", "--all", "--json"], ["user", "show", "ada"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "tokenctl", *argv, "-q"]
        done = subprocess.run(
            command, env=environment(), cwd=sample.parent, stdout=write, stderr=subprocess.PIPE, check=False
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")


# --- secrets in the wrong place ----------------------------------------------------------------


@pytest.mark.usefixtures("sample")
def test_revoke_takes_a_string_in_argv_and_warns(tool: Tool, strings: dict[str, str]) -> None:
    done = tool("revoke", strings[LIVE], "--yes", "-q")
    assert (done.returncode, done.stdout) == (0, "revoked 1\n")
    assert done.stderr.startswith(
        "warning: a whole token string in the arguments stays in the shell's history"
    )
    assert strings[LIVE][:20] not in done.stderr
    assert json.loads(tool("inspect", LIVE, "--json").stdout)["state"] == "revoked"


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["inspect", "{}"], id="inspect"),
        pytest.param(["rotate", "{}"], id="rotate"),
        pytest.param(["inspect", " {}"], id="inspect-space"),
        pytest.param(["list", "--user", "{}"], id="user"),
        pytest.param(["list", "--client", "{}"], id="client"),
        pytest.param(["create-user", "{}", "--no-password"], id="new-user"),
        pytest.param(["client", "create", "{}"], id="new-client"),
        pytest.param(["issue", "--user", "ada", "--scope", "{}"], id="scope"),
        pytest.param(["revoke", LIVE, "--yes", "--reason", "leaked: {}"], id="reason"),
        pytest.param(["revoke", LIVE, "--yes", "--actor", "{}"], id="actor"),
    ],
)
def test_every_other_command_refuses_a_string_in_argv(
    tool: Tool, sample: Path, strings: dict[str, str], argv: list[str]
) -> None:
    """Whatever it was meant for: it must neither be shown again nor be stored."""
    before = dump(sample)
    done = tool(*(each.replace("{}", strings[OTHER]) for each in argv))
    assert done.returncode in {2, 4}
    assert strings[OTHER][5:25] not in done.stdout + done.stderr
    assert dump(sample) == before
    if argv[0] in {"inspect", "rotate"} and argv[1] == "{}":
        assert "give - and the string on stdin" in done.stderr


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("command", ["inspect", "rotate"])
@pytest.mark.parametrize("lost", [1, 5, 6])
def test_a_string_without_its_beginning_is_not_echoed(
    tool: Tool, strings: dict[str, str], command: str, lost: int
) -> None:
    """The slip of a mouse: it is no token any more, and still has the secret in it."""
    done = tool(command, "-", input=strings[LIVE][lost:])
    assert done.returncode in {2, 4}
    assert strings[LIVE][33:53] not in done.stderr  # 15 of the secret's 16 bytes


# --- wrong databases ---------------------------------------------------------------------------


def _make(kind: str, path: Path) -> None:
    match kind:
        case "directory":
            path.mkdir()
        case "text":
            path.write_text("hello\n" * 1000)
        case "empty":
            path.touch()
        case "foreign":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("CREATE TABLE users (name)")
        case "newer" | "older":
            shutil.copy(SAMPLE, path)
            with closing(sqlite3.connect(path)) as connection, connection:
                version = "9999" if kind == "newer" else "0000"
                connection.execute("UPDATE alembic_version SET version_num = ?", (version,))


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        pytest.param("missing", "db.missing", "tokenctl init", id="missing"),
        pytest.param("directory", "db.missing", "--database", id="directory"),
        pytest.param("text", "db.not_a_database", "--database", id="text"),
        pytest.param("empty", "db.not_migrated", "--database", id="empty"),
        pytest.param("foreign", "db.not_migrated", "--database", id="foreign"),
        pytest.param("older", "db.not_migrated", "tokenctl db upgrade", id="older"),
        pytest.param("newer", "db.not_migrated", "", id="newer"),
    ],
)
def test_a_wrong_database_is_refused_and_left_alone(
    tool: Tool, tmp_path: Path, kind: str, name: str, hint: str
) -> None:
    _make(kind, tmp_path / "wrong.db")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    commands = (
        ["list", "--all"],
        ["purge"],
        ["revoke", "--all", "--confirm", "1"],
        ["issue", "--user", "ada"],
    )
    for argv in commands:
        done = tool(*argv, "--database", "wrong.db")
        assert (done.returncode, done.stdout) == (10, "")
        demand_three_parts(done.stderr, name, hint)
    error = json.loads(tool("db", "check", "--json", "--database", "wrong.db").stderr)["error"]
    assert error["code"] == name
    doctor = tool("doctor", "--database", "wrong.db", "--json")
    assert (doctor.returncode, [each["ok"] for each in json.loads(doctor.stdout)]) == (7, [False])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("kind", ["text", "empty", "foreign", "newer"])
@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_init_and_upgrade_leave_a_wrong_database_alone(
    tool: Tool, tmp_path: Path, kind: str, command: str
) -> None:
    _make(kind, tmp_path / "wrong.db")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = tool(*(["init"] if command == "init" else ["db", "upgrade"]), "--database", "wrong.db")
    assert (done.returncode, done.stdout) == (10, "")
    assert " Try: " in done.stderr
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if kind == "newer":  # is ours, and an upgrade takes the writers' locks
        after = {name: content for name, content in after.items() if name in before}
    assert after == before, "no key and no lock file beside a file that is not ours"


def test_a_hint_for_a_newer_database_leads_somewhere(tool: Tool, tmp_path: Path) -> None:
    _make("newer", tmp_path / "tokenctl.db")
    hint = tool("list", "--all").stderr.partition(" Try: ")[2].strip()
    assert hint
    if hint.startswith("tokenctl "):
        assert tool(*hint.split()[1:]).returncode == 0


# --- wrong keys, and none ----------------------------------------------------------------------


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("missing", "key.missing", id="missing"),
        pytest.param("junk", "key.unusable", id="junk"),
        pytest.param("cut", "key.unusable", id="cut-short"),
        pytest.param("other", "key.wrong", id="of-another-database"),
        pytest.param("directory", "key.unusable", id="directory"),
    ],
)
def test_a_wrong_key_file(tool: Tool, tmp_path: Path, kind: str, name: str) -> None:
    file, right = tmp_path / "given.key", (tmp_path / "tokenctl.db.key").read_text()
    match kind:
        case "junk":
            file.write_text("hunter2hunter2")
        case "cut":
            file.write_text(right[:-5])
        case "other":
            assert tool("init", "--database", "other.db").returncode == 0
            (tmp_path / "other.db.key").rename(file)
        case "directory":
            file.mkdir()
    for argv in (["issue", "--user", "bob"], ["doctor"]):
        done = tool(*argv, "--key-file", "given.key")
        assert done.returncode == (7 if argv == ["doctor"] else 1)
        if argv != ["doctor"]:
            assert done.stdout == ""
            demand_three_parts(done.stderr, name)
        for secret in ("hunter2", right[5:15]):
            assert secret not in done.stdout + done.stderr


def test_a_master_key_in_the_environment_is_taken_with_a_warning(tool: Tool, real: Path) -> None:
    file = real.with_name("tokenctl.db.key")
    key = file.read_text().strip()
    file.unlink()
    done = tool("issue", "--user", "bob", "-q", TOKENCTL_MASTER_KEY=key)
    assert done.returncode == 0
    assert token_string.looks_like(done.stdout)
    assert done.stderr.startswith("warning: the master key is in the environment")
    refused = tool("issue", "--user", "bob", TOKENCTL_MASTER_KEY=key[:-1])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error[key.unusable]" in refused.stderr
    shown = tool("config", "--json", TOKENCTL_MASTER_KEY=key)
    assert {"name": "master_key", "value": "***"}.items() <= json.loads(shown.stdout)[2].items()
    for each in (done, refused, shown):
        assert key[5:20] not in each.stdout + each.stderr


def test_what_works_without_the_master_key(tool: Tool, real: Path) -> None:
    """At 3 a.m. an operator may be on a machine that must not have it."""
    strings = [tool("issue", "--user", "bob", "-q").stdout.strip() for _ in range(3)]
    real.with_name("tokenctl.db.key").rename(real.with_name("away"))
    token = tool("list", "--user", "bob", "-o", "id").stdout.split()[1]
    works: list[tuple[list[str], str, str]] = [
        (["list", "--all"], "", "live"),
        (["inspect", token], "", "live"),
        (["revoke", token, "--yes"], "", "revoked 1"),
        (["revoke", "-", "--yes"], strings[0], "revoked 1"),
        (["revoke", "-", "--yes"], token_string.mint(b"i" * 16, 0, b"s" * 16, b"k" * 32), "unknown 1"),
        (["purge"], "", "purged 0"),
        (["user", "list"], "", "bob"),
        (["user", "disable", "bob", "--yes"], "", "disabled bob · revoked 1"),
        (["user", "enable", "bob"], "", "enabled bob"),
        (["keys", "list"], "", "signing"),
        (["audit", "tail"], "", "user.disable"),
        (["db", "check"], "", ""),
    ]
    for argv, given, shown in works:
        done = tool(*argv, input=given)
        assert shown in done.stdout, argv
        assert "error" not in done.stderr, argv
    needs: list[tuple[list[str], str]] = [
        (["issue", "--user", "bob"], ""),
        (["rotate", "-"], strings[1]),
        (["inspect", "-"], strings[1]),
        (["rotate", token], ""),
        (["init"], ""),
    ]
    before = dump(real)
    for argv, given in needs:
        done = tool(*argv, input=given)
        assert (done.returncode, done.stdout) == (1, ""), argv
        demand_three_parts(done.stderr, "key.missing", "--key-file")
    assert dump(real) == before
    assert not real.with_name("tokenctl.db.key").exists()
    assert tool("issue", "--user", "bob", "--key-file", "away").returncode == 0


# --- several at once ---------------------------------------------------------------------------


def test_eight_logins_at_once(tool: Tool, real: Path) -> None:
    def issue(_: int) -> subprocess.CompletedProcess[str]:
        return run("issue", "--user", "bob", "-q", cwd=real.parent)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(issue, range(8)))
    assert [each.returncode for each in done] == [0] * 8
    assert len({each.stdout for each in done}) == 8
    assert alive(tool, "--user", "bob") == 8


def test_init_twice_changes_nothing(tool: Tool, real: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kid = json.loads(tool("keys", "list", "--json").stdout)[0]["kid"]
    done = tool("init", "--json")
    assert done.returncode == 0
    record = json.loads(done.stdout)
    assert (record["created"], record["kid"]) == (False, kid)
    assert "was there, unchanged" in tool("init").stdout
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_two_inits_at_once_make_one_database(tmp_path: Path) -> None:
    def init(_: int) -> Any:
        done = run("init", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(init, range(4)))
    assert len({each["kid"] for each in made}) == 1
    assert sorted(each["created"] for each in made) == [False, False, False, True]
    assert run("create-user", "bob", "--no-password", cwd=tmp_path).returncode == 0
    assert run("issue", "--user", "bob", cwd=tmp_path).returncode == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"tokenctl.db{suffix}" for suffix in ("", ".key", ".gate", ".write")}
