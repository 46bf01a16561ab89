"""What the documents show is what the program does.

`TOKENCTL_UPDATE_DOCS=1` writes the real output into README.md instead of comparing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"(?<=^```python\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
_SAMPLE_NOTE = re.compile(r"^this is the sample database: .*\n", re.MULTILINE)

#: What differs from run to run: strings, ids, keys, times of day, durations.
_VARIES = [
    (re.compile(r"tkr1_[\w-]{84}"), "tkr1_…"),
    (re.compile(r"(rt|usr)_[0-9a-f]{32}"), r"\1_…"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "<time>"),
    (re.compile(r'"seconds": [\d.]+'), '"seconds": …'),
    (re.compile(r"(signing key +)[\w-]{43}"), r"\1…"),
    (re.compile(r"\b(expires_at|access_until|rotated_at)=\S+"), r"\1=…"),
]


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_in_step(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == generate.PAGES[name](), "run: python docs/generate.py"


def test_readme_shows_what_the_commands_print(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    shell = _Shell(tmp_path)
    played = _CONSOLE.sub(lambda block: shell.play(block.group()), text)
    if os.environ.get("TOKENCTL_UPDATE_DOCS") and _masked(played) != _masked(text):
        README.write_text(played, encoding="utf-8")
        return
    assert shell.commands > 20
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
        r"`((?:core|storage|service|tests)/[\w/]+\.py)`", README.read_text(encoding="utf-8")
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
            ["bash", "-c", command],
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
        return f"$ {command}\n{output}"


def _masked(text: str) -> str:
    for varying, mask in _VARIES:
        text = varying.sub(mask, text)
    # A masked value may be shorter than what stood there, so columns move.
    return re.sub(r" {2,}", "  ", text)
