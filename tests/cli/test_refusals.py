"""Every refusal tells what to do next, and what it tells is true.

First in the text of the package: no error can be made without a hint, and no hint names a command or an
option that is not there. Then in real runs: an operator who does what stands behind `Try:` gets on.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa

import tokenctl.cli.main  # noqa: F401 - registers the commands
from tests.cli import ROOT, environment
from tests.cli.warm import Warm
from tests.sample import SAMPLE, sample_strings
from tokenctl import errors
from tokenctl.cli.main import EXIT, exit_code
from tokenctl.cli.options import Entry, Menu, app
from tokenctl.core import token_string
from tokenctl.core.keys import derive_keys
from tokenctl.errors import TokenctlError
from tokenctl.http import problems
from tokenctl.service.runtime import SAMPLE_MASTER_KEY
from tokenctl.storage.locks import exclusive

PACKAGE = ROOT / "tokenctl"
ERRORS = {
    name: kind
    for module in (errors, problems)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, TokenctlError)
}
ONLY_HTTP = {name for name, kind in ERRORS.items() if kind.__module__ == problems.__name__}


class NeverShown(NamedTuple):
    """Errors that need no hint, as no command meets them."""

    names: set[str]
    files: tuple[str, ...]
    """Where they may be made without one."""
    reason: str
    methods: tuple[str, ...] = ()
    """What of the service raises them; no command may call it."""


NEVER_SHOWN = (
    NeverShown(
        ONLY_HTTP,
        tuple(f"http/{name}.py" for name in ("auth", "body", "call", "endpoint", "files", "oauth", "site")),
        "what HTTP answers to a request that it cannot use",
    ),
    NeverShown(
        {"TokenctlError"}, ("http/endpoint.py", "http/rotations.py"), "what HTTP answers when there is a bug"
    ),
    NeverShown({"Throttled"}, ("http/throttle.py",), "what HTTP answers to too many attempts"),
    NeverShown(
        {"ClientRefused"},
        ("http/call.py", "service/users.py"),
        "the caller may be anybody, and is told nothing but no",
        ("clients.authenticate",),
    ),
    NeverShown(
        {"WrongPassword"},
        ("service/users.py", "service/issuing.py"),
        "the caller may be anybody, and is told nothing but no",
        ("login", "change_password", "users.authenticate"),
    ),
)

# Where the class is a variable: the classes that it can be.
CHOSEN = {
    ("storage/files.py", "kind"): ("DatabaseFull", "DatabaseReadOnly"),
    ("storage/postgres.py", "kind"): (),  # out of two tables, each with hints of its own: see below
}


@cache
def modules() -> dict[str, ast.Module]:
    """The whole package, by path."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def name_of(node: ast.expr | None) -> str:
    """The last name of `errors.InvalidInput`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def constructions() -> Iterator[tuple[str, int, str, ast.Call | None]]:
    """File, line, name of the class and the call (None: raised without one) of each error that is made."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node.func) in ERRORS:
                yield path, node.lineno, name_of(node.func), node
            elif isinstance(node, ast.Raise) and name_of(node.exc) in ERRORS:
                yield path, node.lineno, name_of(node.exc), None


def may_be_empty(node: ast.expr) -> bool:
    """Whether the expression of a hint can be an empty text, as far as that can be read from it."""
    match node:
        case ast.Constant(value):
            return not str(value or "").strip()
        case ast.JoinedStr(values):
            return not values
        case ast.IfExp(_, body, orelse):
            return may_be_empty(body) or may_be_empty(orelse)
        case ast.BoolOp(ast.Or(), values):
            return may_be_empty(values[-1])
        case ast.BoolOp(ast.And(), _):
            return True
    return False


def has_hint(kind: str, call: ast.Call | None) -> bool:
    given = [each.value for each in call.keywords if each.arg == "hint"] if call else []
    # TokenctlError takes an empty hint for none, and the class's stands.
    return bool(ERRORS[kind].hint) or any(not may_be_empty(each) for each in given)


def test_every_error_that_is_made_has_a_hint() -> None:
    without = {
        f"tokenctl/{path}:{line} {kind}"
        for path, line, kind, call in constructions()
        if not has_hint(kind, call)
        and not any(kind in each.names and path in each.files for each in NEVER_SHOWN)
    }
    assert without == set()


def test_no_exception_is_left_over() -> None:
    made = {(path, kind) for path, _, kind, call in constructions() if not has_hint(kind, call)}
    for each in NEVER_SHOWN:
        assert all(any((path, kind) in made for path in each.files) for kind in each.names)
        assert all(any((path, kind) in made for kind in each.names) for path in each.files)


def test_what_needs_no_hint_is_met_by_no_command() -> None:
    called = {
        ast.unparse(node.func)
        for path, tree in modules().items()
        if path.startswith("cli/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert any(each.endswith(".service.issue") for each in called), "calls are found at all"
    for each in NEVER_SHOWN:
        for method in each.methods:
            assert not [name for name in called if name.endswith(f".{method}")], each.reason


def test_every_class_that_is_chosen_at_run_time_has_a_hint() -> None:
    found = set()
    for path, tree in modules().items():
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            made = node.exc if isinstance(node, ast.Raise) else None
            name = name_of(made.func) if isinstance(made, ast.Call) else ""
            if name.islower() and name not in functions:
                found.add((path, name))
    assert found == set(CHOSEN)
    for names in CHOSEN.values():
        assert all(ERRORS[name].hint for name in names)


def test_what_postgresql_says_is_told_with_a_hint() -> None:
    from tokenctl.storage import postgres

    assert all(hint or kind.hint for _, kind, hint in postgres._STATES)
    assert all(hint for _, _, hint in postgres._NO_CONNECTION)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in ERRORS.items()])
def test_http_tells_no_hint_to_the_world(kind: type[TokenctlError]) -> None:
    error = kind("what", hint="tokenctl: only for an operator")
    for _, body in (problems.problem(error, "request"), problems.oauth_error(error)):
        assert b"operator" not in body


def test_an_error_class_stands_where_the_others_do() -> None:
    """Or neither the tests above nor `help exit-codes` would know of it."""
    elsewhere = {
        f"{path} {node.name}"
        for path, tree in modules().items()
        if path not in {"errors.py", "http/problems.py"}
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and {name_of(base) for base in node.bases} & ERRORS.keys()
    }
    assert elsewhere == set()
    assert {name for name, kind in ERRORS.items() if kind.__module__ == errors.__name__} == {
        name for name in errors.__all__ if name in ERRORS
    }


# --- what the hints name -----------------------------------------------------------------------

# What becomes a hint: these arguments, parameters and variables.
HINTS = {"hint", "fix", "look", "flags", "_STATES", "_NO_CONNECTION", "SCHEMA_DAMAGED"}
# The names of variables that stand in the place of a command. There is one job that waits for another.
STANDS_FOR = {
    ("storage/locks.py", "name"): "purge",
    ("storage/postgres.py", "job"): "purge",
    ("storage/postgres.py", "_name"): "purge",
}


def texts(path: str, node: ast.AST) -> Iterator[str]:
    """The texts in an expression; a value that is put into one stands there as {its name}."""
    if isinstance(node, ast.JoinedStr):
        text = ""
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                name = name_of(part.value)
                text += STANDS_FOR.get((path, name), f"{{{name}}}")
            else:
                assert isinstance(part, ast.Constant)
                text += str(part.value)
        yield text
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(path, child)


def hints() -> Iterator[tuple[str, str]]:
    """File and text of every hint in the package."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            found: list[ast.expr | None] = []
            match node:
                case ast.keyword(arg, value) if arg in HINTS:
                    found = [value]
                case ast.Assign(targets, value) if name_of(targets[0]) in HINTS:
                    found = [value]
                case ast.AnnAssign(target, _, value) if name_of(target) in HINTS:
                    found = [value]
                case ast.arguments():
                    pairs = zip(node.kwonlyargs, node.kw_defaults, strict=True)
                    found = [value for each, value in pairs if each.arg in HINTS]
            for value in found:
                if value is not None:
                    yield from ((path, text) for text in texts(path, value))


def options(entry: Entry | Menu, name: str) -> set[str]:
    return {each for param in entry.build(name).params for each in (*param.opts, *param.secondary_opts)} | {
        "--help"
    }


@cache
def every_option() -> set[str]:
    found = set()
    menus = [app]
    while menus:
        for name, entry in menus.pop().entries.items():
            if isinstance(entry, Menu):
                menus.append(entry)
            else:
                found |= options(entry, name)
    return found


def what_is_not_there(hint: str) -> list[str]:
    """The commands and the options that the hint names and the program has not."""
    command = re.compile(r"\btokenctl ([^,;:`()]+)")
    missing = [flag for flag in _flags(command.sub("", hint)) if flag not in every_option()]
    for found in command.finditer(hint):
        words = [word.rstrip(".") for word in found[1].split()]
        entry: Entry | Menu = app
        name = "tokenctl"
        while isinstance(entry, Menu) and words and not words[0].startswith("-"):
            name = words.pop(0)
            if name not in entry.entries:
                return [*missing, name]
            entry = entry.entries[name]
        missing += [flag for flag in _flags(" ".join(words)) if flag not in options(entry, name)]
    return missing


def _flags(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)


def test_what_a_hint_names_is_there() -> None:
    found = list(hints())
    assert sum("tokenctl " in hint for _, hint in found) > 40, "they are found at all"
    wrong = [
        f"{path}: {hint!r} names {missing}" for path, hint in found if (missing := what_is_not_there(hint))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("hint", "missing"),
    [
        ("tokenctl db check; restore an older backup", []),
        ("--database PATH, or tokenctl db upgrade --key-file FILE", []),
        ("name the file that `tokenctl init` made with --key-file", []),
        ("tokenctl db repair", ["repair"]),
        ("tokenctl purge --lock-patience 2m", ["--lock-patience"]),
        ("tokenctl user list --yes", ["--yes"]),
        ("wait, or add --patience", ["--patience"]),
    ],
)
def test_a_hint_that_names_nothing_would_be_found(hint: str, missing: list[str]) -> None:
    assert what_is_not_there(hint) == missing


# --- the list of exit codes --------------------------------------------------------------------


def test_help_lists_each_error_under_its_exit_code(tool: Tool) -> None:
    listed = {row["code"]: row for row in json.loads(tool("help", "exit-codes", "--json").stdout)}
    assert listed.keys() == {0, 3, 7} | set(EXIT.values()), "0, 3 and 7 are results"
    for kind in ERRORS.values():
        if kind.__module__ == errors.__name__ and kind is not TokenctlError:
            assert kind.code in listed[exit_code(kind)]["errors"]
    for row in listed.values():
        assert row["meaning"]


# --- in real runs ------------------------------------------------------------------------------

Tool = Callable[..., "subprocess.CompletedProcess[str]"]

LIVE = "rt_019cda793b007ec8a12e959598c44c6b"  # olga's, at the client web
STOLEN = "rt_019cbbf93f407290a2a21f01d707b00d"  # ada's, revoked for reuse
UNKNOWN = "rt_01a2070c17097d77944c7d0f55441a4a"
PASSWORD = "mauve kettle under nine ladders"


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture
def tool(warm: Warm, tmp_path: Path) -> Tool:
    """`tokenctl` in an empty directory of its own."""

    def tokenctl(*argv: str, input: str = "") -> subprocess.CompletedProcess[str]:  # noqa: A002 - the word of subprocess
        settings = {"TZ": "UTC", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        return warm(*argv, input=input, env=settings, cwd=tmp_path)

    return tokenctl


def told(done: subprocess.CompletedProcess[str], code: str) -> str:
    """What stands behind `Try:` in an error of three parts."""
    last = done.stderr.splitlines()[-1]
    # Not always the whole line: a prompt of Typer's may stand before it.
    parts = re.search(rf"error\[{re.escape(code)}\]: (\S.*[.?!]) Try: (\S.*)$", last)
    assert parts, f"not what, why and what next: {last}"
    assert (done.stdout, "Traceback" in done.stderr) == ("", False)
    return parts[2]


class Refusal(NamedTuple):
    """A command line that is refused, and what its hint leads to."""

    argv: str
    exit: int
    code: str
    hint: str
    """What stands in the hint."""
    follow: str = ""
    """The command line that an operator makes of it; `{argv}` and `{hint}` stand for those above."""
    follow_exit: int = 0
    again: bool = False
    """Whether the refused command then works."""
    input: str = ""
    """On stdin, of both; `{LIVE}` is that login's string, `{PURGED}` and `{FOREIGN}` genuine and forged."""


ON_THE_SAMPLE = [
    # 1, failed
    Refusal("user create ada --no-password", 1, "user.exists", "tokenctl user show ada", "{hint}"),
    Refusal("client create web", 1, "client.exists", "tokenctl client list", "{hint}"),
    Refusal("issue --user judy", 1, "user.disabled", "tokenctl user enable judy", "{hint}", again=True),
    Refusal("db sample tokenctl.db", 1, "db.exists", "another path", "db sample another.db"),
    Refusal("db backup tokenctl.db", 1, "db.exists", "name a file that is not there", "db backup new.db"),
    Refusal("db copy --to tokenctl.db", 1, "db.exists", "name one", "db copy --to new.db"),
    Refusal("init --database none/new.db", 1, "db.failed", "mkdir -p none"),
    # 2, usage
    Refusal("--nope", 2, "usage", "tokenctl --help", "{hint}"),
    Refusal("nope", 2, "usage", "tokenctl --help", "{hint}"),
    Refusal("user", 2, "usage", "tokenctl user --help", "{hint}"),
    Refusal("user lsit", 2, "usage", "tokenctl user --help", "{hint}"),
    Refusal("list --nope", 2, "usage", "tokenctl list --help", "{hint}"),
    Refusal("list --user", 2, "usage", "tokenctl list --help", "{hint}"),
    Refusal("list --state nope", 2, "usage", "tokenctl list --help", "{hint}"),
    Refusal("inspect", 2, "usage", "tokenctl inspect --help", "{hint}"),
    Refusal("cutoff set --confirm many", 2, "usage", "tokenctl cutoff set --help", "{hint}"),
    Refusal("user list all", 2, "usage", "tokenctl user list --help", "{hint}"),
    Refusal("list", 2, "selector.empty", "--all", "{argv} {hint}"),
    Refusal("revoke", 2, "selector.empty", "--all", "{argv} {hint} --dry-run"),
    Refusal("cutoff set --dry-run", 2, "selector.empty", "--all", "{argv} {hint}"),
    Refusal("list --all --fields nope", 2, "input.invalid", "--fields id", "list --all {hint}"),
    Refusal("config -o id", 2, "input.invalid", "-o jsonl", "config {hint}"),
    Refusal("purge --retention 7", 2, "input.invalid", "90s", "purge --retention {hint} --dry-run"),
    Refusal("issue --user ada --scope 'a  b'", 2, "scope.invalid", "profile orders:read"),
    Refusal("issue --user ada --ttl 0s", 2, "input.invalid", "30d", "issue --user ada --ttl {hint}"),
    Refusal(
        "list --issued-after 2026-02-30",
        2,
        "input.invalid",
        "2026-01-31T12:00:00Z",
        "list --issued-after {hint}",
    ),
    Refusal("list --issued-after 60000d", 2, "input.invalid", "30d", "list --issued-after {hint}"),
    Refusal(
        "revoke --issued-after 2026-03-10 --dry-run",
        2,
        "input.invalid",
        "2026-03-10T00:00Z",
        "revoke --issued-after {hint} --dry-run",
    ),
    Refusal("cutoff set --all --confirm 11", 2, "input.invalid", "--reason", "{argv} {hint} INC-7"),
    Refusal("create-user zoe --password-stdin", 2, "password.refused", "several words", input="short\n"),
    Refusal(
        "rotate - --client web --scope everything",
        2,
        "scope.invalid",
        "leave the scope out",
        "rotate - --client web",
        input="{LIVE}",
    ),
    Refusal("list --all --database mysql://db/x", 2, "config.invalid", "--database PATH", "list --all"),
    Refusal("list --all --database http://[", 2, "config.invalid", "--database PATH", "list --all"),
    Refusal("issue --user ada --access-ttl soon", 2, "config.invalid", "30d"),
    Refusal("serve --port 0", 2, "config.invalid", "--issuer https://auth.example"),
    Refusal(
        "serve --port 0 --issuer https://auth.example",
        2,
        "config.invalid",
        "tokenctl init --database own.db",
        "{hint}",
    ),
    Refusal("client delete web", 2, "input.invalid", "tokenctl revoke --client web", "{hint} --dry-run"),
    # 4, not found or not valid
    Refusal("list --user nobody", 4, "user.not_found", "tokenctl user list", "{hint}"),
    Refusal("user show nobody", 4, "user.not_found", "tokenctl user list", "{hint}"),
    Refusal("list --client nope", 4, "client.not_found", "tokenctl client list", "{hint}"),
    Refusal("client delete nope", 4, "client.not_found", "tokenctl client list", "{hint}"),
    Refusal(
        "issue --user ada --client tv",
        4,
        "client.not_found",
        "tokenctl client create tv",
        "{hint}",
        again=True,
    ),
    Refusal(f"inspect {UNKNOWN}", 4, "token.not_found", "tokenctl list --all", "{hint}"),
    Refusal(
        "revoke --plan ffff --reason INC-7",
        4,
        "plan.not_found",
        "--dry-run",
        "revoke --user olga {hint}",
    ),
    Refusal(f"rotate {STOLEN}", 4, "token.refused", f"tokenctl inspect {STOLEN}", "{hint}"),
    Refusal(
        "rotate - --client mobile",
        4,
        "token.refused",
        f"tokenctl inspect {LIVE}",
        "{hint}",
        input="{LIVE}",
    ),
    Refusal("rotate -", 4, "token.refused", "tokenctl issue --user", "{hint} ada", input="{PURGED}"),
    Refusal("rotate -", 4, "token.forged", "--database", input="{FOREIGN}"),
    Refusal("rotate -", 4, "token.invalid", "the whole string", input="tkr1_AAAA"),
    # 5, a confirmation is missing, or was not the right one
    Refusal(f"revoke {LIVE}", 5, "confirm.missing", "--yes", "{argv} {hint}"),
    Refusal("revoke --state live", 5, "confirm.missing", "--confirm 11", "{argv} {hint}"),
    Refusal("revoke --state live", 5, "confirm.missing", "--dry-run", "{argv} {hint}"),
    Refusal("revoke --all --yes", 5, "confirm.missing", "--confirm 12", "revoke --all {hint}"),
    Refusal("cutoff set --all --reason INC-7", 5, "confirm.missing", "--confirm 11", "{argv} {hint}"),
    Refusal("cutoff set --all --reason INC-7", 5, "confirm.missing", "--dry-run", "{argv} {hint}"),
    Refusal("user disable olga", 5, "confirm.missing", "--yes", "{argv} {hint}"),
    Refusal("user disable olga", 5, "confirm.missing", "tokenctl user show olga", "{hint}"),
    Refusal("user delete olga", 5, "confirm.missing", "--yes", "{argv} {hint}"),
    Refusal("keys rotate --at-once", 5, "confirm.missing", "--yes", "{argv} {hint}"),
    Refusal("keys rotate --at-once", 5, "confirm.missing", "tokenctl keys list", "{hint}"),
    Refusal("db restored", 5, "confirm.missing", "--yes", "{argv} {hint}"),
    Refusal("create-user zoe", 5, "confirm.missing", "--no-password", "{argv} {hint}"),
    Refusal(
        "user passwd olga --yes",
        5,
        "confirm.missing",
        "--password-stdin",
        "{argv} {hint}",
        input=PASSWORD,
    ),
    Refusal(f"revoke {LIVE} --confirm 7", 5, "confirm.declined", "--dry-run", f"revoke {LIVE} {{hint}}"),
    # 6, too many
    Refusal(
        "revoke --all --max 3", 6, "selector.over_max", "--dry-run, without --max", "revoke --all --dry-run"
    ),
]


def _ids(refusals: list[Refusal]) -> list[object]:
    return [pytest.param(each, id=f"{each.exit} {each.argv} {each.hint}"[:60]) for each in refusals]


def test_with_json_output_the_hint_is_the_same(tool: Tool, tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")
    for argv in (["list", "--user", "nobody"], ["keys", "rotate", "--at-once"], ["list", "--nope"]):
        done = tool(*argv)
        error = json.loads(tool(*argv, "--json").stderr.splitlines()[-1])["error"]
        assert error["hint"] == told(done, error["code"])


def _follow(tool: Tool, refusal: Refusal, given: str = "") -> None:
    done = tool(*shlex.split(refusal.argv), input=given)
    assert done.returncode == refusal.exit
    assert refusal.hint in told(done, refusal.code)
    if refusal.follow:
        line = refusal.follow.format(argv=refusal.argv, hint=refusal.hint).removeprefix("tokenctl ")
        followed = tool(*shlex.split(line), input=given)
        assert followed.returncode == refusal.follow_exit, followed.stderr
        assert "error" not in followed.stderr
    if refusal.again:
        assert tool(*shlex.split(refusal.argv), input=given).returncode == 0


@pytest.mark.parametrize("refusal", _ids(ON_THE_SAMPLE))
def test_what_a_refusal_tells_works(tool: Tool, tmp_path: Path, refusal: Refusal) -> None:
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")
    keys = derive_keys(SAMPLE_MASTER_KEY)
    given = refusal.input.format(
        LIVE=sample_strings()[LIVE],
        PURGED=token_string.mint(bytes.fromhex(UNKNOWN[3:]), 0, b"s" * 16, keys.mac),
        FOREIGN=token_string.mint(bytes.fromhex(UNKNOWN[3:]), 0, b"s" * 16, b"k" * 32),
    )
    _follow(tool, refusal, given)


def test_a_plan_that_has_drifted_is_made_anew(tool: Tool, tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")

    def planned() -> str:
        return str(json.loads(tool("revoke", "--user", "olga", "--dry-run", "--json").stdout)["plan"])

    def act(plan: str) -> subprocess.CompletedProcess[str]:
        return tool("revoke", "--plan", plan, "--reason", "INC-7", "--yes")

    plan = planned()
    assert tool("issue", "--user", "olga").returncode == 0
    done = act(plan)
    assert done.returncode == 6
    # What the plan has not shown stands on stdout.
    assert "--dry-run" in told(subprocess.CompletedProcess("", 6, "", done.stderr), "plan.drift")
    assert act(planned()).returncode == 0


# --- 10, the database --------------------------------------------------------------------------


def _older(path: Path) -> None:
    """A database of the release before this one, as its migrations left it."""
    from alembic import command
    from alembic.config import Config

    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(PACKAGE / "storage" / "migrations"))
        command.upgrade(config, "0001")
    engine.dispose()


def _without_a_table(path: Path) -> None:
    shutil.copy(SAMPLE, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE refresh_tokens")


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        pytest.param(
            lambda _: None,
            Refusal("list --all", 10, "db.missing", "tokenctl init", "{hint}", again=True),
            id="missing",
        ),
        pytest.param(
            _older,
            Refusal("list --all", 10, "db.not_migrated", "tokenctl db upgrade", "{hint}", again=True),
            id="older",
        ),
        pytest.param(
            _without_a_table,
            Refusal("list --all", 10, "db.not_migrated", "tokenctl db check", "{hint}", follow_exit=7),
            id="damaged",
        ),
        pytest.param(
            lambda path: path.write_text("hello\n" * 1000),
            Refusal(
                "list --all", 10, "db.not_a_database", "name another --database", "init --database own.db"
            ),
            id="text",
        ),
        pytest.param(
            Path.touch,
            Refusal("list --all", 10, "db.not_migrated", "tokenctl init", "init --database own.db"),
            id="empty",
        ),
    ],
)
def test_a_database_that_is_not_usable(
    tool: Tool, tmp_path: Path, make: Callable[[Path], object], refusal: Refusal
) -> None:
    make(tmp_path / "tokenctl.db")
    _follow(tool, refusal)


def test_what_the_doctor_finds_says_what_next(tool: Tool) -> None:
    [found] = json.loads(tool("doctor", "--json").stdout)
    assert not found["ok"]
    assert found["fix"].startswith("tokenctl init")
    assert tool("init").returncode == 0
    assert tool("doctor").returncode == 0


@pytest.mark.parametrize("command", ["issue --user ada", "doctor"])
def test_a_database_without_a_signing_key(tool: Tool, tmp_path: Path, command: str) -> None:
    """Both name the command that makes one, and neither names the other."""
    database = shutil.copy(SAMPLE, tmp_path / "tokenctl.db")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM signing_keys")
    done = tool(*command.split())
    assert "tokenctl keys rotate" in done.stdout + done.stderr
    assert tool("keys", "rotate").returncode == 0
    assert tool("issue", "--user", "ada").returncode == 0


# --- the master key ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(None, "key.missing", id="missing"),
        pytest.param("other", "key.wrong", id="of-another-database"),
        pytest.param("junk", "key.unusable", id="junk"),
    ],
)
def test_the_key_that_is_named_is_taken(tool: Tool, tmp_path: Path, make: str | None, code: str) -> None:
    assert tool("init").returncode == 0
    assert tool("create-user", "bob", "--no-password").returncode == 0
    key = tmp_path / "tokenctl.db.key"
    key.rename(tmp_path / "kept.key")
    if make == "other":
        assert tool("init", "--database", "other.db").returncode == 0
        (tmp_path / "other.db.key").rename(key)
    elif make == "junk":
        key.write_text("hunter2")
    done = tool("issue", "--user", "bob")
    assert done.returncode == 1
    hint = told(done, code)
    assert "--key-file" in hint or "the whole" in hint
    assert tool("issue", "--user", "bob", "--key-file", "kept.key").returncode == 0


# --- 11 and 130 --------------------------------------------------------------------------------


def test_a_purge_waits_for_the_one_that_runs(tool: Tool, tmp_path: Path) -> None:
    database = Path(shutil.copy(SAMPLE, tmp_path / "tokenctl.db"))
    with ThreadPoolExecutor(1) as pool:
        with exclusive(database, "purge"):
            done = tool("purge")
            assert done.returncode == 11
            hint = told(done, "db.locked")
            assert hint == "tokenctl purge --lock-wait 2m"
            waiting = pool.submit(tool, *hint.split()[1:])
        assert waiting.result().returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_says_that_it_may_be_repeated(number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cli.probe", "hang"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait() == code
        done = subprocess.CompletedProcess("", code, "", process.stderr.read())
    assert told(done, "interrupted").startswith("run the same command again")


@pytest.mark.parametrize(
    ("argv", "exit_", "code"),
    [
        (["boom", "Abort"], 5, "confirm.missing"),
        (["boom", "MemoryError", "no more"], 1, "internal"),
        (["boom", "Recursion"], 1, "internal"),
        (["boom", "Pipe"], 1, "io.failed"),
        (["boom", "InvalidAccessToken", "no"], 4, "access_token.invalid"),
        (["boom", "Declined", "no"], 5, "confirm.declined"),
        (["boom", "DatabaseLocked", "busy"], 11, "db.locked"),
    ],
)
def test_what_is_rare_says_what_next(tmp_path: Path, argv: list[str], exit_: int, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.probe", *argv],
        env=environment(),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_
    told(subprocess.CompletedProcess(argv, exit_, done.stdout.strip(), done.stderr), code)


def test_a_disk_that_is_full_says_what_next(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tokenctl", "help", "exit-codes"],
            env=environment(),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "free some space" in told(subprocess.CompletedProcess("", 1, "", done.stderr), "io.failed")
