"""Whether the time of a failed login tells if there is such a user.

    python -m bench.login [--logins N] [--quick]

Wrong passwords, in turns, for a user that there is and for one that there is not, through
`TokenService.users.authenticate` as `/auth/login` calls it: Argon2id with its default cost, and the audit
event on the disk. Also two halves of the same case beside each other, for what the machine alone makes of it.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path

from bench.table import options, show
from tokenctl import Settings, TokenService, WrongPassword, initialise

_GOAL = 2.0  # % of the median
_USERS = 50


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--logins", type=int, default=10_000, metavar="N", help="of each kind")
    given = parser.parse_args()
    many = 4 if given.quick else given.logins
    with tempfile.TemporaryDirectory() as directory:
        known, unknown = _measure(Path(directory) / "login.db", many)
    known_a, known_b = known[::2], known[1::2]
    base = statistics.median(known)
    rows = [
        _row("known user, wrong password", known, base),
        _row("unknown user", unknown, base),
        _row("known user, every second", known_a, base),
        _row("known user, the others", known_b, base),
    ]
    apart = abs(statistics.median(unknown) - base) / base * 100
    rows[1].append("met" if apart < _GOAL else "open")
    show(
        f"{many:,} failed logins of each kind, in random order.",
        ["", "median ms", "p90 ms", "against the first, %", f"goal: < {_GOAL:.0f} %"],
        [row + [""] * (5 - len(row)) for row in rows],
    )
    return 0


def _measure(path: Path, many: int) -> tuple[list[float], list[float]]:
    """The ms of each login of either kind."""
    settings = Settings(database=str(path))
    initialise(settings)
    found: dict[bool, list[float]] = {True: [], False: []}
    with TokenService(settings) as service:
        hashed = service.create_user("user-0", "seven otters knit at dawn").password_hash
        for number in range(1, _USERS):
            service.users.create(f"user-{number}", password_hash=hashed)
        order = [True, False] * (many + 1)
        random.shuffle(order)
        for known in order:
            name = f"{'user' if known else 'nobody'}-{random.randrange(_USERS)}"
            began = time.perf_counter()
            try:
                service.users.authenticate(name, "a wrong password of some length")
            except WrongPassword:
                found[known].append((time.perf_counter() - began) * 1e3)
    return found[True][1:], found[False][1:]


def _row(name: str, times: list[float], base: float) -> list[str]:
    middle, high = statistics.median(times), statistics.quantiles(times, n=10)[-1]
    return [name, f"{middle:.2f}", f"{high:.2f}", f"{(middle - base) / base * 100:+.2f}"]


if __name__ == "__main__":
    raise SystemExit(main())
