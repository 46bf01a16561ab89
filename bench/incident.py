"""The incident of docs/incident.md on PostgreSQL with a million logins: every command, one after the other.

    python -m bench.incident [--rows N] [--quick]

Fourteen strings leaked, in a log of 20,000 lines; nine logins came from one address range since. Each line is
a process of its own, as an operator starts it, with its start-up in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import logins, revoke
from bench.table import options, show
from tokenctl import Settings, TokenService
from tokenctl.core.context import Context

_SECOND = 1_000_000
_ROOT = Path(__file__).parents[1]
_LEAKED, _STRANGE, _USERS = 14, 9, 11
_FIND = "tokenctl list --ip 203.0.113.0/24 --issued-after 6h"
#: `7f3a` stands for the plan that the dry run has made; the exit code is what it must be.
_STORY = (
    ("tokenctl doctor", {0, 7}),
    ("tokenctl scan leak.txt", {7}),
    (_FIND, {0}),
    (f"(tokenctl scan leak.txt -o id; {_FIND} -o id) | tokenctl revoke - --dry-run", {0}),
    (f"tokenctl revoke --plan 7f3a --reason INC-7 --confirm {_USERS}", {0}),
    ("tokenctl scan leak.txt", {0}),
    (_FIND, {0}),
    ("tokenctl evidence --reason INC-7 -o INC-7.tgz", {0}),
    ("tokenctl audit verify", {0}),
)
_GOAL = 60.0


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N")
    given = parser.parse_args()
    rows = 4_000 if given.quick else given.rows
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        with revoke.on_postgresql(directory, list(revoke.some_logins(rows))) as copy, copy() as target:
            url, key = target.arguments[1], target.arguments[3]
            _happen(directory, Settings(database=url, key_file=key))
            took = _tell(directory, {"TOKENCTL_DATABASE": url, "TOKENCTL_KEY_FILE": key})
    lines = [
        [f"`{command}`", f"{seconds:.2f}", ""] for (command, _), seconds in zip(_STORY, took, strict=True)
    ]
    total = sum(took)
    lines.append(["all of it", f"{total:.2f}", f"< {_GOAL:.0f} s: {'met' if total < _GOAL else 'NOT met'}"])
    show(f"{rows:,} logins on PostgreSQL.", ["", "wall s", "goal"], lines)
    return 0


def _happen(directory: Path, settings: Settings) -> None:
    """The leak, and the strange logins of the last hours."""
    moment = [time.time_ns() // 1_000]
    begin = moment[0]
    with TokenService(settings, clock=lambda: moment[0]) as service:
        for i in range(_USERS):
            service.create_user(f"victim{i}")
        moment[0] = begin - logins.DAY
        strings = [service.issue(f"victim{i % 7}").refresh_token for i in range(_LEAKED)]
        for i in range(_STRANGE):
            moment[0] = begin - (40 + (_STRANGE - i) * 1_800) * _SECOND
            context = Context.of(ip=f"203.0.113.{20 + i}", user_agent="curl/8.5.0")
            service.issue(f"victim{7 + i % 4}", context=context)
    noise = [f"03:0{i % 10} GET /healthz 200 {i}" for i in range(10_000)]
    leaked = [f"03:0{i % 10} POST /auth/refresh token={string}" for i, string in enumerate(strings)]
    (directory / "leak.txt").write_text("\n".join([*noise, *leaked, *noise]) + "\n")


def _tell(directory: Path, env: dict[str, str]) -> list[float]:
    """The seconds of each command."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENCTL_")}
    plan, took = "7f3a", []
    for command, codes in _STORY:
        began = time.perf_counter()
        done = subprocess.run(
            ["sh", "-c", f'tokenctl() {{ "$PYTHON" -m tokenctl "$@"; }}; {command.replace("7f3a", plan)}'],
            cwd=directory,
            env={**kept, "PYTHONPATH": str(_ROOT), "PYTHON": sys.executable, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        took.append(time.perf_counter() - began)
        assert done.returncode in codes, f"{command}: exit code {done.returncode}: {done.stderr}"
        if made := re.search(r"^plan ([0-9a-f]{4,}): ", done.stderr, re.MULTILINE):
            plan = made[1]
    return took


if __name__ == "__main__":
    sys.exit(main())
