"""The command line run many times over: each run is a process of its own, forked from one that is warm.

What a run costs is mostly imports, and they are the same every time. The entry point is the real one
(`tokenctl.__main__`), as are arguments, environment, streams and exit codes; only what it imports is there
already. Start-up itself, terminals and signals are for `tests.cli.run` and its neighbours.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from tests.cli import environment


class Warm:
    """Runs `tokenctl ARGV…`, one after the other."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.warm", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment(),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(10)

    def __call__(
        self,
        *argv: str,
        input: str | bytes | None = None,  # noqa: A002 - the word of subprocess
        env: Mapping[str, str] | None = None,
        cwd: Path,
    ) -> subprocess.CompletedProcess[str]:
        """As `tests.cli.run`: stdin is `input` or empty, never a terminal."""
        data = input.encode() if isinstance(input, str) else input or b""
        request = {"argv": argv, "env": environment(env), "cwd": str(cwd)}
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            stdin.write(data)
            stdin.seek(0)
            fds = [file.fileno() for file in (stdin, out, err)]
            socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], fds)
            code = int(self._socket.recv(16))
            return subprocess.CompletedProcess(argv, code, _content(out), _content(err))


def _content(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


# --- the warm process --------------------------------------------------------------------------

# What the commands import when they need it.
WARM = (
    "alembic.command",
    "jwt",
    "rich.progress",
    "tokenctl.cli.main",
    "tokenctl.core.passwords",
    "tokenctl.service.doctor",
    "tokenctl.service.sample",
)


def _serve(connection: socket.socket) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not data:
            return
        while not data.endswith(b"\n"):
            data += connection.recv(1 << 20)
        pid = os.fork()
        if not pid:
            os._exit(_run(json.loads(data), fds))
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run(request: dict[str, Any], fds: list[int]) -> int:
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    time.tzset()
    sys.argv = ["tokenctl", *request["argv"]]
    try:
        runpy.run_module("tokenctl", run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - what the interpreter would do with it
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for name in WARM:
        importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
