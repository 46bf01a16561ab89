"""The start of the command line: fresh processes, beside those that only import what it is made of.

    python -m bench.startup [--rounds N] [--quick]

All contenders run with the same interpreter and environment, from compiled modules, as an installed
program does. Each round runs each of them once. Every command gets a fresh copy of the sample database, so
that `revoke` finds the same live login every time; making the copy is not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.table import options, ratio, show

_ROOT = Path(__file__).parents[1]
# What pip writes into the console script, less its guard.
_PROGRAM = "import sys; from tokenctl.cli.main import main; sys.exit(main())"
_DATABASE = "copy.db"


@dataclass(slots=True)
class _Contender:
    """A process: the interpreter's arguments, and how many times its base it may cost."""

    name: str
    arguments: Sequence[str]
    base: str = ""
    goal: float = 0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    given = parser.parse_args()
    rounds, warm = (1, 0) if given.quick else (given.rounds, 1)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        environment = _environment(place)
        contenders = _contenders(_live_login(place, environment))
        for number in range(warm + rounds):
            for contender in contenders:
                wall, cpu = _run(contender, place, environment)
                if number >= warm:  # the first round compiles the modules
                    contender.wall.append(wall)
                    contender.cpu.append(cpu)
    _show(contenders, rounds)
    return 0


def _contenders(live: str) -> list[_Contender]:
    typer, both = "import typer", "import typer, sqlalchemy"

    def command(*arguments: str, database: bool = True) -> _Contender:
        name = " ".join(("tokenctl", *("ID" if word == live else word for word in arguments)))
        options = ["--database", _DATABASE] if database else []
        base, goal = (both, 1.25) if database else (typer, 1.6)
        return _Contender(name, ["-c", _PROGRAM, *options, *arguments], base, goal)

    return [
        _Contender("pass", ["-c", "pass"]),
        _Contender(typer, ["-c", typer]),
        _Contender(both, ["-c", both]),
        command("--help", database=False),
        command("inspect", live),
        command("list", "--user", "ada"),
        command("revoke", live, "--yes"),
        command("issue", "--user", "ada"),
    ]


def _environment(place: Path) -> dict[str, str]:
    """No settings, and a place for compiled modules: an installed program has them, a checkout may not."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENCTL_", "PYTHON"))}
    ours = {"PYTHONPATH": str(_ROOT), "PYTHONPYCACHEPREFIX": str(place / "compiled")}
    return {**kept, **ours, "XDG_CONFIG_HOME": str(place)}


def _live_login(place: Path, environment: Mapping[str, str]) -> str:
    shutil.copy(_ROOT / "sample.db", place / _DATABASE)
    program = [sys.executable, "-c", _PROGRAM, "--database", _DATABASE]
    listing = [*program, "list", "--all", "--state", "live", "--json"]
    done = subprocess.run(listing, capture_output=True, check=True, cwd=place, env=environment)
    return str(json.loads(done.stdout)[0]["id"])


def _run(contender: _Contender, place: Path, environment: Mapping[str, str]) -> tuple[float, float]:
    """Wall and CPU time (ms) of one process, from its start to its end."""
    shutil.copy(_ROOT / "sample.db", place / _DATABASE)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *contender.arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=place,
        env=environment,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{contender.name}: exit {process.returncode}")
    return wall * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3


def _show(contenders: Sequence[_Contender], rounds: int) -> None:
    medians = {each.name: (statistics.median(each.wall), statistics.median(each.cpu)) for each in contenders}
    rows = []
    for each in contenders:
        wall, cpu = medians[each.name]
        row = [f"`{each.name}`", f"{wall:.0f}", f"{cpu:.0f}", "", "", ""]
        if each.base:
            base_wall, base_cpu = medians[each.base]
            met = max(wall / base_wall, cpu / base_cpu) <= each.goal
            row[3:] = [
                ratio(wall, base_wall),
                ratio(cpu, base_cpu),
                f"≤ {each.goal} of `{each.base}`: {'met' if met else 'NOT met'}",
            ]
        rows.append(row)
    show(
        f"Medians of {rounds} fresh processes each, in turns, on a copy of sample.db; ID is a live login.",
        ["process", "wall ms", "CPU ms", "wall / base", "CPU / base", "goal for both"],
        rows,
    )


if __name__ == "__main__":
    sys.exit(main())
