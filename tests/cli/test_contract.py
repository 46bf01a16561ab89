"""The contract of the output: every command in every format, as a script sees it.

The names and the types of JSON fields and the exit codes may not change; a table may, and the golden file
makes the change visible. After a change that is meant, run these tests with TOKENCTL_UPDATE_GOLDEN=1, and
read the difference.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.warm import Warm
from tests.sample import SAMPLE, sample_strings
from tokenctl.cli.main import main
from tokenctl.cli.options import Menu, app

GOLDEN = Path(__file__).parent / "golden"
FORMATS = ("table", "json", "jsonl", "csv", "id")

# Of the sample, which is the same every time.
LIVE = "rt_019cda793b007ec8a12e959598c44c6b"  # olga, web
STOLEN = "rt_019cbbf93f407290a2a21f01d707b00d"  # ada, web; revoked for reuse
MOBILE = "rt_019c82ed1f007907aab003bbc354d76a"  # ivan, mobile; live
DEVICE = "f60ea2173b57edfab6fc305af1a998f3e2714dfb50f7569bd8e391809cb6c22b"  # what STOLEN was last used by
UNKNOWN = "rt_01a2070c17097d77944c7d0f55441a4a"
# Lines of a log: a live string twice, an id, and noise that only looks like a string.
LEAK = f"\n12:00 t={{LIVE}}; again {{LIVE}}\n{UNKNOWN} is no string\ntkr1_{'A' * 84}"
# An export that was cut, and whose one event was put there.
EXPORTED = (
    '{"tokenctl_audit": 1, "exported_at": "2026-03-14T03:10:00.000000Z", "since": null, "until": null}\n'
    f'{{"segment": 1, "sealed_at": "2026-03-14T03:10:00.000000Z", "events": 1, "previous": "{"0" * 64}",'
    f' "mac": "{"0" * 64}"}}\n'
    '{"event": 1, "at": "2026-03-14T03:00:00.000000Z", "type": "token.revoke", "actor": null,'
    ' "user_id": null, "token_id": null, "client": null, "ip": null, "reason": null, "data": {},'
    f' "mac": "{"0" * 32}"}}'
)
KID = "yq2mkqArIIaMq0MmFFNpUwiUJ_vESmZtLNwLT3ad1mU"
# New, there already, there in another case, with a hash of no scheme, and no record at all.
USERS = (
    "email,encrypted_password\nzoe@example.com,$2a$04$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy\n"
    "yan@example.com,\nada,\nOLGA,\nmax,5f4dcc3b5aa765d61d8327deb882cf99\nnobody\n"
)
PASSWORD = "mauve kettle under nine ladders"


class Case(NamedTuple):
    """One command line, to be run in each format on a copy of its own; the golden file has its name."""

    name: str
    argv: str
    input: str = ""
    """`{LIVE}` stands for that login's current string."""
    formats: tuple[str, ...] = FORMATS


CASES = [
    Case("init", "init --database new.db"),
    Case("init-again", "init", formats=("table", "json")),
    Case("doctor", "doctor"),
    Case("doctor-finding", "doctor --database none.db", formats=("table", "json")),
    Case("create-user", "create-user zoe --password-stdin", input=f"{PASSWORD}\n"),
    Case("issue", "issue --user ada --client web --scope 'read write' --ttl 1d"),
    Case("list", "list --user bob --user judy --client web"),
    Case("list-all", "list --all", formats=("table",)),
    Case("list-fields", "list --state live --limit 3 --fields user,id,expires_at", formats=FORMATS[:-1]),
    Case("list-nothing", "list --user ada --client batch"),
    Case(
        "list-context",
        "list --ip 203.0.113.0/28 --ip 192.0.2.32 --user-agent '*Windows*' --user-agent 'python-*/2.?2.*'"
        " --idle 12h",
    ),
    Case("list-times", "list --issued-after 2026-03-10T00:00Z --issued-before 2h", formats=("table", "id")),
    Case(
        "list-device", "list --device ada-24 --device olga-21 --ip 198.51.100.0/24", formats=("table", "json")
    ),
    Case(
        "list-device-hash",
        f"list --device sha256:{DEVICE} --device {DEVICE.upper()} --device sha256:{'0' * 64}",
        formats=("table", "id"),
    ),
    Case("list-no-device-hash", "list --device sha256:f60e", formats=("table", "json")),
    Case("list-no-network", "list --ip 192.0.2.38/24", formats=("table", "json")),
    Case("list-times-exchanged", "list --issued-after 2h --issued-before 6h", formats=("table", "json")),
    Case("inspect", f"inspect {STOLEN}"),
    Case("inspect-string", "inspect - --check", input="{LIVE}\n", formats=("table", "json")),
    Case("inspect-check", f"inspect {STOLEN} --check -q", formats=("table",)),
    Case("rotate", "rotate - --client web", input="{LIVE}\n"),
    Case("rotate-id", f"rotate {MOBILE}"),
    Case("rotate-refused", f"rotate {STOLEN}", formats=("table", "json")),
    Case("revoke", f"revoke {LIVE} --yes --reason INC-7"),
    Case("revoke-stdin", "revoke - --yes", input=f"{{LIVE}}\n{MOBILE}\n{STOLEN}\n{UNKNOWN}\njunk\n"),
    Case("revoke-unknown", f"revoke {UNKNOWN}", formats=("table", "json")),
    Case("revoke-dry-run", "revoke --user olga --dry-run"),
    Case("revoke-plan-unknown", "revoke --plan 0000 --yes", formats=("table", "json")),
    Case("revoke-from-file", "revoke --from-file - --yes", input=f"{STOLEN}\n{UNKNOWN}\njunk\n\n{MOBILE}\n"),
    Case("revoke-from-file-and-user", "revoke --from-file - --user ivan --yes", input=f"{LIVE}\n{MOBILE}\n"),
    Case("list-from-file", "list --from-file -", input=f"{STOLEN}\n{{LIVE}}\n", formats=("table", "id")),
    Case("list-from-file-unknown", "list --from-file -", input=f"{UNKNOWN}\n", formats=("table", "json")),
    Case("revoke-ip", "revoke --ip 192.0.2.38 --ip 198.51.100.21 --issued-before 2d --yes"),
    Case("revoke-naive", "revoke --issued-after 2026-03-10 --yes", formats=("table", "json")),
    Case("revoke-id-and-ip", f"revoke {LIVE} --ip 192.0.2.38", formats=("table", "json")),
    Case("scan", "scan -", input=f"{LEAK}\n"),
    Case("scan-offline", "scan - --offline", input=f"{LEAK}\n"),
    Case("scan-nothing", "scan - none.log", formats=("table", "json")),
    Case("scan-no-database", "scan - --database none.db", input=LEAK, formats=("table", "json")),
    Case("evidence", "evidence --reason 'laptop stolen' -o stolen.tgz", formats=("table",)),
    Case("evidence-json", "evidence --reason 'laptop stolen' -o stolen.tgz --json", formats=("table",)),
    Case("evidence-slice", "--json evidence --reason reuse -o reuse.tgz --slice-only", formats=("table",)),
    Case("evidence-nothing", "evidence --reason INC-8 -o INC-8.tgz", formats=("table",)),
    Case("evidence-exists", "evidence --reason reuse -o sample.db", formats=("table",)),
    Case("evidence-format", "evidence --reason reuse -o json", formats=("table",)),
    Case("stats", "stats"),
    Case("stats-selected", "stats --user ada --user bob --hours 3 --top 1", formats=FORMATS[:-1]),
    Case("stats-fields", "stats --fields hour,reuse --hours 2", formats=("table", "csv")),
    Case("stats-nothing", "stats --client unused --hours 1", formats=("table", "json")),
    Case("stats-no-user", "stats --user nobody", formats=("table", "json")),
    Case("stats-too-many-hours", "stats --hours 169", formats=("table", "json")),
    Case("purge", "purge"),
    Case("cutoff-set", "cutoff set --user olga --reason INC-7 --confirm 1"),
    Case("cutoff-set-all", "cutoff set --all --at 2h --reason INC-7 --confirm 11", formats=("table", "json")),
    Case("cutoff-set-dry-run", "cutoff set --client web --dry-run", formats=("table", "json")),
    Case("cutoff-set-unconfirmed", "cutoff set --user olga --reason INC-7", formats=("table", "json")),
    Case("cutoff-set-ahead", "cutoff set --all --at 2100-01-01T00:00Z --dry-run", formats=("table", "json")),
    Case("cutoff-set-naive", "cutoff set --all --at 2026-03-14T00:00 --dry-run", formats=("table", "json")),
    Case("cutoff-show", "cutoff show"),
    Case("cutoff-clear", "cutoff clear --client unused"),
    Case("serve-refused", "serve --port 0", formats=("table", "json")),
    Case("demo", "demo --tabs 2 --burst 3", formats=("table", "json", "id")),
    Case("demo-refused", "demo --tabs 9", formats=("table", "json")),
    Case("purge-dry-run", "purge --dry-run --retention 0s", formats=("table", "json")),
    Case("purge-max-rows", "purge --max-rows 2", formats=("table", "json")),
    Case("purge-vacuum", "purge --vacuum", formats=("table", "json")),
    Case("purge-metrics-nowhere", "purge --metrics-file none/purge.prom", formats=("table", "json")),
    Case("user-create", "user create zoe --no-password"),
    Case("user-list", "user list"),
    Case("user-show", "user show judy"),
    Case("user-disable", "user disable olga --yes"),
    Case("user-disable-for", "user disable olga --for 24h", formats=("table", "json")),
    Case("user-enable", "user enable judy"),
    Case("user-delete", "user delete olga --yes"),
    Case(
        "user-import",
        "user import - --name-field email --hash-field encrypted_password",
        input=USERS,
        formats=FORMATS[:-1],
    ),
    Case(
        "user-import-dry-run", "user import - --name-field email --dry-run", input=USERS, formats=("table",)
    ),
    Case("user-passwd", "user passwd olga --yes --password-stdin", input=f"{PASSWORD}\n"),
    Case("client-create", "client create tv"),
    Case("client-create-introspect", "client create api --introspect"),
    Case("client-create-introspect-fields", "client create api --introspect --fields id", formats=("table",)),
    Case("client-list", "client list"),
    Case("client-delete", "client delete unused"),
    Case("keys-list", "keys list"),
    Case("keys-rotate", "keys rotate"),
    Case("keys-rotate-at-once", "keys rotate --at-once --yes --algorithm RS256", formats=("table", "json")),
    Case("keys-rotate-unconfirmed", "keys rotate --at-once", formats=("table", "json")),
    Case("audit-tail", "audit tail -n 14"),
    Case("audit-search", "audit search --type 'token.re*' --ip 192.0.2.0/26 --since 1d"),
    Case("audit-search-refused", "audit search --since 2h --until 6h", formats=("table", "json")),
    Case("audit-verify", "audit verify", formats=FORMATS[:-1]),
    Case("audit-verify-head", f"audit verify --head 3-{'a' * 64}", formats=FORMATS[:-1]),
    Case("audit-verify-export", "audit verify --export -", input=f"{EXPORTED}\n", formats=FORMATS[:-1]),
    Case("audit-verify-no-export", "audit verify --export -", input="junk", formats=("table", "json")),
    Case("audit-export", "audit export --since 2026-03-14T02:00Z", formats=("table", "jsonl", "json")),
    Case("audit-export-to", "audit export --to audit.jsonl", formats=FORMATS[:-1]),
    Case("audit-head", "audit head", formats=FORMATS[:-1]),
    Case("audit-archive", "audit archive --older-than 90d --to . --yes"),
    Case("audit-archive-too-young", "audit archive --older-than 1d --to . --yes", formats=("table", "json")),
    Case("db-upgrade", "db upgrade"),
    Case("db-restored", "db restored --yes"),
    Case("db-check", "db check"),
    Case("db-backup", "db backup new.db"),
    Case("db-backup-exists", "db backup sample.db", formats=("table", "json")),
    Case("db-restore", "db restore sample.db --database new.db --yes"),
    Case("db-restore-unconfirmed", "db restore sample.db --database new.db", formats=("table", "json")),
    Case("db-restore-itself", "db restore sample.db --yes", formats=("table", "json")),
    Case("db-copy", "db copy --to new.db"),
    Case("db-copy-exists", "db copy --to sample.db", formats=("table", "json")),
    Case("db-sample", "db sample new.db", formats=("table", "json")),
    Case("config", "config"),
    Case("completion", "completion bash", formats=("table",)),
    Case("help", "help exit-codes"),
    Case("error-usage", "list --nope", formats=("table", "json")),
    Case("error-selector", "revoke", formats=("table", "json")),
    Case("error-not-found", "list --user nobody"),
    Case("error-confirm", "revoke --all --yes", formats=("table", "json")),
    Case("error-max", "revoke --all --max 5 --confirm 12", formats=("table", "json")),
    Case("error-database", "list --all --database none.db", formats=("table", "json")),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The sample with one client that nobody uses, and the current string of LIVE."""
    directory = tmp_path_factory.mktemp("prepared")
    database = directory / "sample.db"
    shutil.copy(SAMPLE, database)
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("INSERT INTO clients (id, created_at, not_before) VALUES ('unused', 0, 0)")
    connection.close()
    return database, sample_strings()[LIVE]


@pytest.fixture(scope="module")
def ids(prepared: tuple[Path, str]) -> set[str]:
    """The ids of the sample; every other one is new, and random."""
    connection = sqlite3.connect(prepared[0])
    known = {
        f"{prefix}_{raw.hex()}"
        for prefix, table in (("rt", "refresh_tokens"), ("usr", "users"))
        for (raw,) in connection.execute(f"SELECT id FROM {table}")
    }
    connection.close()
    return known | {UNKNOWN}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


class Ran(NamedTuple):
    command: str
    format: str
    code: int
    stdout: str
    stderr: str


def _run(warm: Warm, case: Case, format_: str, prepared: tuple[Path, str], place: Path) -> Ran:
    database, string = prepared
    place.mkdir()
    shutil.copy(database, place)
    command = case.argv + ("" if format_ == "table" else f" -o {format_}")
    env = {
        "TZ": "UTC",
        "COLUMNS": "200",
        "LC_ALL": "C.UTF-8",
        "HOME": str(place),
        "XDG_CONFIG_HOME": str(place),
        "TOKENCTL_DATABASE": "sample.db",
        "TOKENCTL_ACTOR": "nina",
    }
    done = warm(*shlex.split(command), input=case.input.replace("{LIVE}", string), env=env, cwd=place)
    return Ran(command, format_, done.returncode, done.stdout, done.stderr)


def _masked(text: str, ids: set[str], *, durations: bool) -> str:
    """Without what differs from run to run; as wide as before, so that a table keeps its form."""
    text = re.sub(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+", "(access token)", text)
    text = re.sub(r"\btkr1_[\w-]{84}", "tkr1_" + "x" * 84, text)
    text = re.sub(r"\b(plan|PLAN|--plan)([ \":]+)[0-9a-f]{4}\b", r"\1\g<2>7f3a", text)
    text = re.sub(r"\btks1_[\w-]{43}", "tks1_" + "x" * 43, text)
    text = re.sub(r"\b(rt|usr)_[0-9a-f]{32}\b", lambda m: m[0] if m[0] in ids else f"{m[1]}_{'x' * 32}", text)
    # In CSV one that begins with - is quoted against spreadsheets; that is chance as well.
    text = re.sub(r"(?<![\w-])'(?=-[\w-]{42}(?![\w-]))", "", text)
    text = re.sub(r"(?<![\w-])[\w-]{43}(?![\w-])", lambda m: m[0] if m[0] == KID else "x" * 43, text)
    # The instant of a seal is under its MAC.
    text = re.sub(r'(?<="mac": ")[0-9a-f]{64}(?=")', "x" * 64, text)
    text = re.sub(r"\b1-[0-9a-f]{64}\b", "1-" + "x" * 64, text)
    # So is the instant of a bundle in its sum.
    text = re.sub(r'(?<=sha256)(": "| )[0-9a-f]{64}', r"\1" + "x" * 64, text)
    # The sample's clock stands only until a command starts. Its own instants are whole seconds.
    text = re.sub(r":\d\d\.(?!000000)\d{6}Z", ":SS.ffffffZ", text)
    text = re.sub(r"(\d\d:\d\d):\d\d([+-]\d\d:\d\d)", r"\1:SS\2", text)
    # How far the tab came that is killed is chance, and so is how many calls met the one 503.
    text = re.sub(r'(tab is killed +\d+ +\d+ +\d+ +|"refreshes": )[34]\b', r"\g<1>3", text)
    text = re.sub(r'(with 503 +\d+ +\d+ +|"repeated": )[1-9]\b', r"\g<1>1", text)
    if durations:
        text = re.sub(r"(?<![\w.])\d\.\d{1,3}(?![\d.])", "N.N", text)
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith("this is the sample database")
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_output(case: Case, warm: Warm, prepared: tuple[Path, str], ids: set[str], tmp_path: Path) -> None:
    runs = [_run(warm, case, each, prepared, tmp_path / each) for each in case.formats]
    lines = []
    for ran in runs:
        out, err = (
            _without_place(_masked(text, ids, durations=case.argv.startswith(("purge", "demo"))), tmp_path)
            for text in (ran.stdout, ran.stderr)
        )
        lines += [f"$ tokenctl {ran.command}\n", out, *(f"! {line}\n" for line in err.splitlines())]
        lines.append(f"exit {ran.code}\n\n")
    shown = "".join(lines)
    golden = GOLDEN / f"{case.name}.txt"
    if os.environ.get("TOKENCTL_UPDATE_GOLDEN"):
        golden.write_text(shown, encoding="utf-8")
    assert golden.exists(), "a new case: run it once with TOKENCTL_UPDATE_GOLDEN=1, and read what it wrote"
    assert shown == golden.read_text(encoding="utf-8")
    for ran in runs:
        _demand_form(ran)


def _without_place(text: str, place: Path) -> str:
    """A place is as long as it is on that machine, so the columns of a table that shows it move."""
    if str(place) not in text:
        return text
    return re.sub(r"(?<=\S) {2,}", "  ", text.replace(str(place), "…"))


def _demand_form(ran: Ran) -> None:
    """What a program reads is whole: of the format that was asked for, or not there at all."""
    assert "Traceback" not in ran.stderr
    if "error[" in ran.stderr or '{"error": ' in ran.stderr:
        assert ran.stdout == "", "an error comes before any output"
    elif ran.format == "json":
        assert json.loads(ran.stdout) is not None
    elif ran.format == "jsonl":
        assert all(isinstance(json.loads(line), dict) for line in ran.stdout.splitlines())
    elif ran.format == "csv":
        rows = list(csv.reader(io.StringIO(ran.stdout)))
        assert rows
        assert {len(row) for row in rows} == {len(rows[0])}
    elif ran.format == "id":
        assert re.fullmatch(r"(\S+\n)*", ran.stdout)


def test_no_golden_file_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {case.name for case in CASES}


# --- the tree of commands ----------------------------------------------------------------------


def _tree(menu: Menu = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every group and command with its path, and whether it is a command; without those of other tests."""
    for name, entry in menu.entries.items():
        here = (*path, name)
        if isinstance(entry, Menu):
            inside = list(_tree(entry, here))
            if inside:
                yield here, False
            yield from inside
        elif entry.function.__module__.startswith("tokenctl."):
            yield here, True


COMMANDS = {path for path, is_command in _tree() if is_command}


def test_every_command_has_a_case() -> None:
    words = [tuple(shlex.split(case.argv)) for case in CASES]
    covered = {path for path in COMMANDS if any(each[: len(path)] == path for each in words)}
    assert covered == COMMANDS


def test_every_command_is_in_the_order_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  ([a-z][a-z-]*)  ", capsys.readouterr().out, re.MULTILINE)
    assert set(listed) == {path[0] for path in COMMANDS}


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, ...], str]:
    """What --help says of each command and group."""
    texts = {}
    for path in [(), *(path for path, _ in _tree())]:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main([*path, "--help"]) == 0
        texts[path] = out.getvalue()
    return texts


@pytest.mark.parametrize("path", [pytest.param(path, id=" ".join(path)) for path, _ in _tree()])
def test_every_help_has_an_example_that_works(
    path: tuple[str, ...], helps: dict[tuple[str, ...], str]
) -> None:
    usage, _, examples = helps[path].partition("\n  Example:\n")
    assert usage.startswith(f"Usage: tokenctl {' '.join(path)} ")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines
    assert any(line.startswith(f"tokenctl {' '.join(path)}") for line in lines)
    for line in lines:
        for part in re.split(r"[|;()]|&&", line):
            words = part.split()
            if words[:1] != ["tokenctl"]:
                continue
            named = max((p for p in helps if tuple(words[1 : 1 + len(p)]) == p), key=len)
            assert named, f"no such command: {part}"
            for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", part):
                assert re.search(rf"(?m)^ .*(?<![\w-]){option}(?![\w-])", helps[named]), f"{option} of {part}"
