"""A flood of logins: connections that post passwords, wrong and right in turns, and never wait.

A process of its own, like the load generator whose sockets and loop it uses, so that what it costs is not
in the latencies that the other one measures. `start` begins a flood, and `Flood.end` says what it got.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.load import Client, drive

_ALLOWED = frozenset({"200", "401", "429", "503"})


@dataclass(frozen=True)
class Job:
    """`users` are names that share one password."""

    port: int
    connections: int
    users: list[str]
    password: str
    seconds: float


@dataclass(frozen=True)
class Answers:
    """How many answers of each status, and anything that no flood may cause."""

    seconds: float
    statuses: dict[str, int]
    errors: list[str]

    def __str__(self) -> str:
        return ", ".join(f"{status}: {count / self.seconds:,.0f}" for status, count in self.statuses.items())


class Flood:
    """A flood that goes on in its own process."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.flood"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)))
        self._process.stdin.close()
        self._process.stdin = None

    def end(self) -> Answers:
        """Wait until its time is over."""
        output, _ = self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise RuntimeError("the flood failed")
        return Answers(**json.loads(output))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class _Login(Client):
    """A client that tries to log in, each from an address of its own."""

    def __init__(self, job: Job, number: int, statuses: Counter[str]) -> None:
        super().__init__(job.port, "/auth/login", "application/json", source=f"127.0.1.{number + 1}")
        name = job.users[number % len(job.users)]
        self._bodies = [
            json.dumps({"username": name, "password": password}).encode()
            for password in ("wrong otters knit at dusk", job.password)
        ]
        self._statuses = statuses
        self._turn = number

    def body(self) -> bytes:
        self._turn += 1
        return self._bodies[self._turn % 2]

    def take(self, answer: bytes, body: bytes) -> bool:
        status = answer[9:12].decode("latin-1")
        self._statuses[status] += 1
        return status in _ALLOWED and bool(body)


def main() -> int:
    job = Job(**json.load(sys.stdin))
    statuses: Counter[str] = Counter()
    clients = [_Login(job, number, statuses) for number in range(job.connections)]
    drive(clients, job.seconds, answered=lambda _client, _took: None)
    errors = [client.error for client in clients if client.error]
    json.dump(asdict(Answers(job.seconds, dict(sorted(statuses.items())), errors)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
