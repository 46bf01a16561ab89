"""A stage: a directory and the processes that work in it, of which nothing is left, however it ends.

Owns starting, listening and ending. Does not know what the processes do: each is a Python module that reads
lines of JSON on stdin, if any, and says lines of JSON on stdout. A signal is taken while we listen, and
nowhere else: one that comes in the middle of starting something would leave it behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from tokenctl.cli.interrupt import Stop, stoppable
from tokenctl.errors import DemoFailed, InvalidInput

#: How long the processes may say nothing at all (s).
_PATIENCE = 60.0


@dataclass(eq=False)
class Process:
    """A process that we started. Its stderr goes to a file, as a reason for when it ends too early."""

    name: str
    popen: subprocess.Popen[bytes]
    errors: Path
    reader: threading.Thread

    def tell(self, what: dict[str, Any]) -> None:
        """One line on its stdin; if it has ended, the end of its stdout will say so."""
        assert self.popen.stdin is not None
        with suppress(OSError):
            self.popen.stdin.write(json.dumps(what).encode() + b"\n")

    def kill(self) -> None:
        """End it in the middle of whatever it does; returns when it is gone."""
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def fail(self) -> NoReturn:
        """It has ended by itself. Raises DemoFailed, with the reason: the last line of its stderr."""
        lines = self.errors.read_text(encoding="utf-8", errors="replace").splitlines()
        last, hint = lines[-1] if lines else "it does not say why", ""
        with suppress(ValueError, KeyError, TypeError):  # the server's is an error of ours, as JSON
            error = json.loads(last)["error"]
            last, hint = str(error["message"]), str(error["hint"])
        raise DemoFailed(f"{self.name} of the demo has ended: {last}", hint=hint)


Said = tuple[Process, dict[str, Any] | None]


class Stage:
    """A directory, the processes that work in it, and what they say, in the order in which they say it."""

    def __init__(self, stop: Stop) -> None:
        self.directory = Path()
        self._stop = stop
        self._processes: list[Process] = []
        self._said: SimpleQueue[Said] = SimpleQueue()

    def start(self, name: str, *argv: str) -> Process:
        """Run a module with our own Python, and with none of our user's settings."""
        errors = self.directory / f"{len(self._processes)}.stderr"
        with errors.open("wb") as stderr:
            popen = subprocess.Popen(  # noqa: S603 - our own Python, and no shell
                [sys.executable, "-m", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self.directory,
                env=self._environment(),
                bufsize=0,
            )
        reader = threading.Thread(target=lambda: self._read(process), daemon=True)
        process = Process(name, popen, errors, reader)
        self._processes.append(process)
        reader.start()
        return process

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENCTL_")}
        package = Path(__file__).parents[2]
        return kept | {
            "XDG_CONFIG_HOME": str(self.directory),
            # The current directory is another one, and may be where we were found.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(package), kept.get("PYTHONPATH")])),
            # A proxy does not reach this machine's own address.
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def _read(self, process: Process) -> None:
        assert process.popen.stdout is not None
        with process.popen.stdout as lines:
            for line in lines:
                # A line that was cut is one that nobody is waiting for.
                with suppress(ValueError):
                    self._said.put((process, json.loads(line)))
        self._said.put((process, None))

    def next(self) -> Said:
        """What is said next, by whom; None when that one has ended. Raises DemoFailed, KeyboardInterrupt."""
        try:
            for said in self._stop.until(iter(lambda: self._said.get(timeout=_PATIENCE), None)):
                return said
        except Empty:
            raise DemoFailed(f"nothing has happened for {_PATIENCE:g} s") from None
        raise KeyboardInterrupt

    def demand(self) -> tuple[Process, dict[str, Any]]:
        """The same, where none may end. Raises DemoFailed."""
        process, said = self.next()
        if said is None:
            process.fail()
        return process, said

    def clear(self) -> None:
        """End every process, by force: what they hold goes with the directory."""
        for process in self._processes:
            process.kill()
            process.reader.join()
        if self.directory.name:
            shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def set_stage() -> Iterator[Stage]:
    """However the block ends, no process and no directory is left; a signal is raised again behind that."""
    stop = None
    try:
        with stoppable() as stop:
            stage = Stage(stop)
            try:
                stage.directory = _new_directory()
                yield stage
            finally:
                stage.clear()
    finally:
        if stop is not None and stop():
            signal.raise_signal(stop.signal_number)


def _new_directory() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="tokenctl-demo-"))
    except OSError as error:
        raise InvalidInput(
            f"there is no directory for temporary files: {error.strerror}",
            hint="TMPDIR=DIRECTORY tokenctl demo, with one that this user may write in",
        ) from None
