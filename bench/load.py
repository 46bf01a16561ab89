"""A load generator for one HTTP exchange: present the newest string, get the next one, at once again.

Owns the sockets, the parsing of answers, the window of time and what is counted in it. It is a process of
its own (`python -m bench.load` with a `Job` as JSON on stdin, a `Result` for each group on stdout), because
the contenders are not to share an interpreter with it; and it is as cheap as Python allows, because it
shares the machine's cores with them: sockets and epoll, no framework, nothing but the standard library.

Every client is one connection that is kept alive, and a chain of its own: it presents what it was given
last, and waits for the answer (a closed loop). After the window no client begins anew, and those that wait
are waited for, so that each chain can go on in a later window.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

clock = time.perf_counter

_TOKEN = re.compile(rb'"refresh(?:_token)?"\s*:\s*"([^"\\]+)"')  # simplejwt calls it "refresh"
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_TICKS = os.sysconf("SC_CLK_TCK")
_STALLED = 15.0  # s without any answer: a server that hangs ends the run instead of the patience


@dataclass(frozen=True)
class Style:
    """How a string is presented: the request's path, and what stands around the string in its body."""

    path: str
    content_type: str
    before: str
    after: str


JSON = Style("/auth/refresh", "application/json", '{"refresh_token": "', '"}')
FORM = Style(
    "/oauth/token",
    "application/x-www-form-urlencoded",
    "grant_type=refresh_token&client_id=default&refresh_token=",
    "",
)


@dataclass(frozen=True)
class Group:
    """Clients of one server, counted together: their newest strings, and the server's processes."""

    port: int
    pids: list[int]
    style: Style
    strings: list[str]
    rotates: bool = True  # an answer must bring another string than was presented


@dataclass(frozen=True)
class Job:
    groups: list[Group]
    seconds: float


@dataclass
class Result:
    """What one group did within the window; latencies in seconds, sorted.

    `cpu` is the server's, kernel included, and `own_cpu` that of the load generator for all groups; `others`
    is the part of the machine that went to everybody else.
    """

    seconds: float
    cpu: float
    own_cpu: float
    others: float
    latencies: list[float]
    strings: list[str]
    errors: list[str] = field(default_factory=list)

    @property
    def rotations(self) -> int:
        return len(self.latencies)

    @property
    def rate(self) -> float:
        return self.rotations / self.seconds

    @property
    def cpu_each(self) -> float:
        """µs of the server's CPU for one rotation."""
        return self.cpu / max(1, self.rotations) * 1e6

    def percentile(self, part: float) -> float:
        """Nearest rank, in milliseconds."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(self.rotations - 1, int(part * self.rotations))] * 1e3


def run(job: Job) -> list[Result]:
    """The job in a process of its own: a result for each group."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=job.seconds + 60,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    return [Result(**each) for each in json.loads(done.stdout)]


def cpu_of(pids: Sequence[int]) -> float:
    """Seconds of CPU that these processes took so far, all their threads and the kernel's part included."""
    return sum(map(_ticks, pids)) / _TICKS


def _ticks(pid: int) -> int:
    # The name in parentheses may hold anything; utime and stime are the 14th and 15th field (proc(5)).
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])


def _busy() -> float:
    """Seconds of CPU that the whole machine took so far, by all its cores."""
    user, nice, system, _idle, _wait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *rest))) / _TICKS


# --- the generator's own process -----------------------------------------------------------------


class Client(ABC):
    """One connection: says what to ask, and takes what was answered."""

    def __init__(self, port: int, path: str, content_type: str, source: str = "127.0.0.1") -> None:
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: "
        ).encode()
        self._received = b""
        self.sent = 0.0  # when the request was that waits for its answer; 0: none waits
        self.error = ""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @abstractmethod
    def body(self) -> bytes:
        """The body of the next request."""

    @abstractmethod
    def take(self, answer: bytes, body: bytes) -> bool:
        """Whether the answer is a right one."""

    def send(self) -> None:
        body = self.body()
        request = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        self.sent = clock()
        self.socket.sendall(request)  # less than a socket's buffer: it never waits

    def receive(self) -> float:
        """The seconds that the answer took, once it is whole or `error` says what is wrong; before, 0."""
        data = self.socket.recv(65536)
        self._received += data
        body = answer_body(self._received)
        if body is None and data:
            return 0.0
        took = clock() - self.sent
        self.sent = 0.0
        if body is None:
            self.error = "the server closed the connection"
        elif not self.take(self._received, body):
            self.error = self._received[:600].decode("latin-1")
        self._received = b""
        return took


class _Chain(Client):
    """A client that presents the newest string of its chain."""

    def __init__(self, group: Group, string: str) -> None:
        super().__init__(group.port, group.style.path, group.style.content_type)
        self._before = group.style.before.encode()
        self._after = group.style.after.encode()
        self._rotates = group.rotates
        self.string = string.encode()
        self.latencies: list[float] = []

    def body(self) -> bytes:
        return self._before + self.string + self._after

    def take(self, answer: bytes, body: bytes) -> bool:
        found = _TOKEN.search(body)
        if found is None or not answer.startswith(b"HTTP/1.1 200 "):
            return False
        if self._rotates and found[1] == self.string:
            return False
        self.string = found[1]
        return True


def answer_body(received: bytes) -> bytes | None:
    """The body of an answer once it is whole, by Content-Length or in chunks; before, None."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(received, 0, end + 2)
    if length is not None:
        body = received[end + 4 :]
        return body if len(body) >= int(length[1]) else None
    if _CHUNKED.search(received, 0, end + 2):
        return _joined(received[end + 4 :])
    return b""


def _joined(chunks: bytes) -> bytes | None:
    """The content of chunks (RFC 9112 §7.1), or None while the last one is missing."""
    parts: list[bytes] = []
    place = 0
    while (line := chunks.find(b"\r\n", place)) >= 0:
        size = int(chunks[place:line].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts) if chunks.find(b"\r\n", line + 2) >= 0 else None
        parts.append(chunks[line + 2 : line + 2 + size])
        place = line + 2 + size + 2
    return None


def drive(
    clients: Sequence[Client],
    seconds: float,
    *,
    answered: Callable[[Client, float], None],
    closing: Callable[[], None] = lambda: None,
) -> None:
    """Let the clients ask for that long, call `closing`, and wait for the answers that are under way.

    `answered` hears of each right answer within the window. A client with an error asks no more.
    """
    by_number = {client.socket.fileno(): client for client in clients}
    poll = select.epoll()
    end = clock() + seconds
    for number, client in by_number.items():
        poll.register(number, select.EPOLLIN)
        client.send()
    while (left := end - clock()) > 0:
        for number, _ in poll.poll(left):
            client = by_number[number]
            took = client.receive()
            if client.error:
                poll.unregister(number)
            elif took:
                answered(client, took)
                client.send()
    closing()
    while any(client.sent for client in clients):
        ready = poll.poll(_STALLED)
        for number, _ in ready:
            if by_number[number].receive():
                poll.unregister(number)
        if not ready:
            _give_up(clients)
    poll.close()
    for client in clients:
        client.socket.close()


def _give_up(clients: Sequence[Client]) -> None:
    for client in clients:
        if client.sent:
            client.sent, client.error = 0.0, f"no answer for {_STALLED:.0f} s"


def _measure(job: Job) -> list[Result]:
    groups = [[_Chain(group, string) for string in group.strings] for group in job.groups]
    everyone = [client for of in groups for client in of]
    before, own, busy = _cpu(job), time.process_time(), _busy()
    after, own_cpu, others = before, 0.0, 0.0

    def answered(client: Client, took: float) -> None:
        assert isinstance(client, _Chain)
        client.latencies.append(took)

    def closing() -> None:
        nonlocal after, own_cpu, others
        after, own_cpu = _cpu(job), time.process_time() - own
        others = _busy() - busy - own_cpu - (sum(after) - sum(before))

    drive(everyone, job.seconds, answered=answered, closing=closing)
    return [
        Result(
            seconds=job.seconds,
            cpu=now - was,
            own_cpu=own_cpu,
            others=max(0.0, others) / (job.seconds * (os.cpu_count() or 1)),
            latencies=sorted(latency for client in of for latency in client.latencies),
            strings=[client.string.decode() for client in of],
            errors=[client.error for client in of if client.error],
        )
        for of, was, now in zip(groups, before, after, strict=True)
    ]


def _cpu(job: Job) -> list[float]:
    return [cpu_of(group.pids) for group in job.groups]


def _job(text: str) -> Job:
    read = json.loads(text)
    groups = [Group(**{**group, "style": Style(**group["style"])}) for group in read["groups"]]
    return Job(groups, read["seconds"])


def main() -> int:
    json.dump([asdict(result) for result in _measure(_job(sys.stdin.read()))], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
