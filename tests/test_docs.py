"""What the documents show is what the program does.

`TOKENCTL_UPDATE_DOCS=1` writes the real output into README.md instead of comparing.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from docs import generate

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"(?<=^```python\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
#: Stands in the pages for the plan that was made last.
_PLAN = "7f3a"
_SAMPLE_NOTE = re.compile(r"^this is the sample database: .*\n", re.MULTILINE)


def _about(match: re.Match[str]) -> str:
    """A duration in seconds, rounded to a minute: a test may be slow."""
    return f'"{match[1]}":{round(int(match[2]) / 60)} min'


#: What differs from run to run: strings, ids, keys, times of day, durations.
_VARIES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"tkr1_[\w-]{84}"), "tkr1_…"),
    (re.compile(r"tks1_[\w-]{43}"), "tks1_…"),
    (re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+"), "eyJ…"),
    (re.compile(r'"(request_id)":"[0-9a-f]{16}"'), r'"\1":"…"'),
    (re.compile(r'"(created_at|last_used_at|expires_at|iat|exp|now|offset)":\d+'), r'"\1":…'),
    (re.compile(r'"(expires_in|refresh_expires_in)":(\d+)'), _about),
    (re.compile(r"(rt|usr)_[0-9a-f]{32}"), r"\1_…"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "<time>"),
    (re.compile(r'"seconds": [\d.]+'), '"seconds": …'),
    (re.compile(r"sha256 [0-9a-f]{64}"), "sha256 …"),
    (re.compile(r"(signing key +)[\w-]{43}"), r"\1…"),
    (re.compile(r"\b(expires_at|access_until|rotated_at)=\S+"), r"\1=…"),
]


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_in_step(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == generate.PAGES[name](), "run: python docs/generate.py"


@pytest.mark.parametrize(
    ("name", "commands"), [("README.md", 20), ("docs/incident.md", 10), ("docs/migration.md", 5)]
)
def test_a_page_shows_what_the_commands_print(tmp_path: Path, name: str, commands: int) -> None:
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    shell = _Shell(tmp_path)
    played = _CONSOLE.sub(lambda block: shell.play(block.group()), text)
    if os.environ.get("TOKENCTL_UPDATE_DOCS") and _masked(played) != _masked(text):
        page.write_text(played, encoding="utf-8")
        return
    assert shell.commands > commands
    assert _masked(played) == _masked(text)


def test_the_page_on_http_shows_what_the_server_answers(tmp_path: Path) -> None:
    page = ROOT / "docs" / "http.md"
    text = page.read_text(encoding="utf-8")
    with _Server(tmp_path) as shell:
        played = _CONSOLE.sub(lambda block: shell.play(block.group()), text)
    if os.environ.get("TOKENCTL_UPDATE_DOCS") and _masked(played) != _masked(text):
        page.write_text(played, encoding="utf-8")
        return
    assert shell.commands > 15
    assert _masked(played) == _masked(text)


def test_readme_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = _PYTHON.findall(README.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == re.findall(r"# (token\.refused .*)", code)[0] + "\n"


def test_every_link_leads_somewhere() -> None:
    for page in (README, *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_readme_table_names_files_that_exist() -> None:
    for name in re.findall(
        r"`((?:core|storage|service|http|tests)/[\w/]+\.py)`", README.read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists() or (ROOT / "tokenctl" / name).exists(), name


class _Shell:
    """Plays the lines that begin with `$ `; the environment and the directory last from block to block."""

    def __init__(self, directory: Path) -> None:
        self.commands = 0
        shutil.copy(ROOT / "sample.db", directory)
        shutil.copy(ROOT / "sample.db", directory / "play.db")
        (directory / "bin").mkdir()
        program = directory / "bin" / "tokenctl"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tokenctl "$@"\n')
        program.chmod(0o755)
        self._directory = directory
        self._plan = _PLAN
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("TOKENCTL_", "PYTHON"))
        } | {
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TOKENCTL_DATABASE": "play.db",
            "TOKENCTL_ACTOR": "nina",
            "TZ": "UTC",
            "COLUMNS": "110",
        }

    def play(self, block: str) -> str:
        return "".join(self._run(line[2:]) for line in block.splitlines() if line.startswith("$ "))

    def _run(self, command: str) -> str:
        self.commands += 1
        if exported := re.search(r"export (\w+)=(\S+)", command):
            self._environment[exported[1]] = exported[2]
        done = subprocess.run(
            ["bash", "-c", command.replace(_PLAN, self._plan)],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        output = "".join(f"{line.rstrip()}\n" for line in _SAMPLE_NOTE.sub("", done.stdout).splitlines())
        assert "Traceback" not in output
        if made := re.search(r"^plan ([0-9a-f]{4}): ", output, re.MULTILINE):
            self._plan = made[1]
        output = output.replace(self._plan, _PLAN)
        return f"$ {command}\n{output}"


class _Server(_Shell):
    """A shell in which `tokenctl serve --dev` goes on in the background, on a free port in place of 8460."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        del self._environment["TOKENCTL_DATABASE"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.communicate()
            assert self._server.returncode == 0

    def _run(self, command: str) -> str:
        if command == "tokenctl serve --dev":
            return f"$ {command}\n{self._serve()}"
        return super()._run(command.replace("8460", self._port)).replace(self._port, "8460")

    def _serve(self) -> str:
        self._server = subprocess.Popen(
            [str(self._directory / "bin" / "tokenctl"), "serve", "--dev", "--port", self._port],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._server.stdout is not None
        card = [self._server.stdout.readline() for _ in range(5)]
        return "".join(card).replace(self._port, "8460")


def _masked(text: str) -> str:
    for varying, mask in _VARIES:
        text = varying.sub(mask, text)
    # A masked value may be shorter than what stood there, so columns move.
    return re.sub(r" {2,}", "  ", text)
