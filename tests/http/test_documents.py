"""The documents, followed by somebody who types each command: in the shell that README left, and in another.

What the commands print is compared by tests/test_docs.py, each document by itself; here is that they fit.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.http.conftest import OPENER, free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def commands(block: str) -> list[str]:
    """The lines to type: all of a plain block, those behind a `$ ` of one with output."""
    lines = block.splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")] or lines


def first_block(text: str) -> list[str]:
    found = re.search(r"^```(?:sh|console)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return commands(found[1])


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(first_block(README.partition("\n## Over HTTP\n")[2]), id="README"),
        pytest.param(first_block(PAGE), id="http.md"),
    ],
)
def test_after_the_readme_a_server_and_a_second_terminal_have_one_database(
    tmp_path: Path, start: list[str]
) -> None:
    assert start[-1] == "tokenctl serve --dev"  # which does not come back
    [in_second] = [
        block
        for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
        if "tokenctl client create" in block
    ]
    second = commands(in_second)[:2]

    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "tokenctl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tokenctl "$@"\n')
    program.chmod(0o755)
    shutil.copy(ROOT / "sample.db", tmp_path / "play.db")
    port = free_port()
    fresh = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOKENCTL_", "PYTHON"))
    }
    fresh |= {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TOKENCTL_PORT": str(port),
    }
    left_by_readme = re.findall(r"export TOKENCTL_DATABASE=(\S+)", README)[-1]

    server = subprocess.Popen(
        ["bash", "-c", "\n".join([*start[:-1], f"exec {start[-1]}"])],
        cwd=tmp_path,
        env=fresh | {"TOKENCTL_DATABASE": left_by_readme},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/readyz", server)
        done = subprocess.run(
            ["bash", "-ec", "\n".join(second)],
            cwd=tmp_path,
            env=fresh,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert '"id": "api"' in done.stdout, done.stderr
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None
        assert time.monotonic() < deadline
        try:
            with OPENER.open(urllib.request.Request(url), timeout=5):
                return
        except OSError:
            time.sleep(0.05)


def test_the_deployment_makes_every_directory_for_the_user_of_the_unit() -> None:
    typed = first_block(DEPLOYMENT)
    [user] = re.findall(r"^User=(\w+)$", DEPLOYMENT, re.MULTILINE)
    init = next(number for number, line in enumerate(typed) if "tokenctl init" in line)
    assert typed[init] == f"runuser -u {user} -- tokenctl init"
    before = typed[:init]
    assert any(line.startswith("useradd ") and line.endswith(f" {user}") for line in before)
    [made] = [line for line in before if line.startswith(f"install -d -o {user} ")]
    for name in ("database", "key_file"):
        [path] = [line.partition(" = ")[2].strip('"') for line in before if line.startswith(f"{name} = ")]
        assert str(Path(path).parent) in made.split()
