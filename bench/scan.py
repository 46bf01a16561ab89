"""Looking for leaked strings in a log, beside `grep -c` for what they begin with.

    python -m bench.scan [--megabytes N] [--rounds N] [--quick]

All read the same files from memory, in turns. *plain* are lines as web servers write them, *JSON* such with
`_` everywhere, which keeps the scan from looking for that one byte alone. One line in 20,000 has a string;
*clean* are lines as in plain, without any.

- *grep*: `grep -c tkr1_`, a whole process
- *grep -n*: the same with the lines' numbers, which the scan tells too
- *scan*: `service.scan` without a database, which checks each string and counts the lines up to it
- *tokenctl scan --offline -o id*: the same as a whole process
- *read*, *look*, *count*: where the scan's time goes, each alone on the same pieces: reading, looking for
  what a string begins with, counting lines

Times are those of the CPU, since each contender has one thread that never waits.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.table import options, ratio, show
from tokenctl.core import leak
from tokenctl.core.token_string import mint
from tokenctl.service.scan import _PIECE, scan

_GOAL = 0.3
_EVERY = 20_000  # lines
ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--megabytes", type=int, default=500, metavar="N", help="of each of the three files")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    given = parser.parse_args()
    size, rounds = (2_000_000, 1) if given.quick else (given.megabytes * 1_000_000, given.rounds)
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as directory:
        for name, line in (("plain", _plain), ("JSON", _json), ("clean", _plain)):
            path = Path(directory) / f"{name}.log"
            expected = _write(path, size, line, with_strings=name != "clean")
            seconds = _measure(path, expected, rounds)
            grep = seconds["grep"]
            for contender in ("grep", "numbered", "scan", "process"):
                speed = grep / seconds[contender]
                rows.append(
                    [
                        f"{name}: {_LABELS[contender]}",
                        f"{seconds[contender] * 1e3:,.0f}",
                        f"{path.stat().st_size / seconds[contender] / 1e6:,.0f}",
                        "" if contender == "grep" else ratio(grep, seconds[contender]),
                        "" if contender != "scan" else "met" if speed >= _GOAL else "NOT met",
                    ]
                )
            parts = ", ".join(f"{part} {seconds[part] * 1e3:,.0f}" for part in ("read", "look", "count"))
            notes.append(f"{name}: {expected:,} strings; of the scan, in ms: {parts}.")
    show(
        f"Medians of {rounds} rounds, in turns; files of {size // 1_000_000:,} MB, in memory.",
        ["", "CPU ms", "MB/s", "of grep's rate", f"goal: ≥ {_GOAL}"],
        rows,
        notes,
    )
    return 0


_LABELS = {
    "grep": "`grep -c tkr1_`",
    "numbered": "`grep -n tkr1_`",
    "scan": "scan",
    "process": "`tokenctl scan --offline -o id`",
}


def _plain(chance: random.Random, token: str) -> str:
    return (
        f"203.0.113.{chance.randrange(256)} - - [14/Mar/2026:03:{chance.randrange(60):02}:"
        f"{chance.randrange(60):02} +0000] "
        f'"GET /items/{chance.randrange(99_999)}{token and f"?t={token}"} HTTP/1.1" 200 '
        f'{chance.randrange(9_999)} "-" "Mozilla/5.0 (X11; Linux x86-64) Firefox/140.0"\n'
    )


def _json(chance: random.Random, token: str) -> str:
    return (
        f'{{"time": "2026-03-14T03:{chance.randrange(60):02}:{chance.randrange(60):02}Z", "request_id": '
        f'"{chance.getrandbits(64):016x}", "path": "/items/{chance.randrange(99_999)}", "status_code": 200, '
        f'"user_agent": "Firefox/140.0", "took_ms": {chance.randrange(500)}, "refresh_token": "{token}"}}\n'
    )


def _write(path: Path, size: int, line: Callable[[random.Random, str], str], *, with_strings: bool) -> int:
    """Fill the file; how many strings are in it."""
    chance = random.Random(1)
    count = written = 0
    with path.open("wb") as file:
        block = "".join(line(chance, "") for _ in range(_EVERY)).encode()
        while written < size:
            token = mint(chance.randbytes(16), 0, chance.randbytes(16), b"k" * 32)
            written += file.write(block + line(chance, token if with_strings else "").encode())
            count += with_strings
    return count


def _measure(path: Path, expected: int, rounds: int) -> dict[str, float]:
    """The median CPU seconds of each contender; all of them find every string."""
    program = [sys.executable, "-m", "tokenctl", "scan", "--offline", "-q", "-o", "id", str(path)]
    contenders: dict[str, Callable[[], int]] = {
        "grep": lambda: int(_output("grep", "-c", "tkr1_", str(path), code=0 if expected else 1)),
        "numbered": lambda: len(
            _output("grep", "-n", "tkr1_", str(path), code=0 if expected else 1).splitlines()
        ),
        "scan": lambda: sum(1 for _ in scan([path], unreadable=print)),
        "process": lambda: len(_output(*program, code=7 if expected else 0).splitlines()),
        "read": lambda: _each(path, lambda _piece: 0, expected),
        "look": lambda: _each(path, lambda piece: len(list(leak._starts(piece))), expected),
        "count": lambda: _each(path, lambda piece: piece.count(b"\n"), expected),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contend in contenders.items():
            began = _cpu()
            found = contend()
            seconds[name].append(_cpu() - began)
            assert found == expected, (name, found, expected)
    found_seconds = {name: statistics.median(each) for name, each in seconds.items()}
    for name in ("look", "count"):
        found_seconds[name] -= found_seconds["read"]
    return found_seconds


def _cpu() -> float:
    """What this process and those that it started have used so far (s)."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(each.ru_utime + each.ru_stime for each in both)


def _each(path: Path, work: Callable[[bytes], int], expected: int) -> int:
    """Does that with each piece."""
    with path.open("rb") as file:
        while piece := file.read1(_PIECE):
            work(piece)
    return expected


def _output(*command: str, code: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code, done.stderr
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
