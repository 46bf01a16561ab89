"""The command line, run as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Makes the terminal the controlling one: that is where getpass asks, and what turns ^C into SIGINT.
_ON_TERMINAL = """
import os, sys
os.login_tty(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

ROOT = Path(__file__).parents[2]


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Nothing of the machine's settings but what Python needs, then `env`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENCTL_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **(env or {})}


def run(
    *argv: str,
    input: str | bytes | None = None,  # noqa: A002 - the word of subprocess
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    module: str = "tokenctl",
) -> subprocess.CompletedProcess[str]:
    """`tokenctl ARGV…`; stdin is `input` or empty, never a terminal."""
    data = input.encode() if isinstance(input, str) else input
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        input=data or b"",
        capture_output=True,
        env=environment(env),
        cwd=cwd,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def run_on_terminal(
    *argv: str,
    typed: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    module: str = "tokenctl",
) -> tuple[int, str]:
    """The same with all three streams on a terminal where `typed` is typed: exit code, what it showed."""
    fd, terminal = pty.openpty()
    # Not pty.fork(): forking a test runner that has threads is deprecated.
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_TERMINAL, str(terminal), "-m", module, *argv],
        pass_fds=[terminal],
        env=environment(env),
        cwd=cwd,
    )
    os.close(terminal)
    shown = b""
    waiting = typed.splitlines(keepends=True)
    while True:
        try:
            chunk = os.read(fd, 4096)
        except OSError:  # Linux says EIO when the child is gone
            break
        if not chunk:
            break
        shown += chunk
        # A hidden prompt drops what was typed before it: type a line for each prompt that appears.
        if waiting and chunk.rstrip(b" ") != chunk and not chunk.endswith(b"\n"):
            os.write(fd, waiting.pop(0).encode())
    os.close(fd)
    return process.wait(), shown.decode().replace("\r\n", "\n")
