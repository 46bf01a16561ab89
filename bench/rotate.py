"""Rotations in batches, beside the bare UPDATE of the driver, and beside the least that a rotation needs.

    python -m bench.rotate [--batches 1,16,64,256] [--logins N] [--profile] [--quick]

Three contenders rotate the same logins in the same order, each on its own copy of one database (a file,
WAL, synchronous=FULL), a slice each in turn:

- *update*: BEGIN IMMEDIATE, the service's own UPDATE, COMMIT, on the driver; parameters made beforehand
- *floor*: the same, and for each string what cannot be left out: parse and MAC, successor, signed JWT
- *service*: `TokenService.rotate_many`

CPU is that of the whole process, kernel included. It also holds that a batch is one statement and that
nothing grows: no event, no row.
"""

from __future__ import annotations

import cProfile
import pstats
import random
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.dialects import sqlite

from bench import logins
from bench.table import options, ratio, show
from tokenctl import RotateRequest, TokenPair, TokenService
from tokenctl.core import ids, token_string
from tokenctl.core.access_token import AccessClaims, sign_access_token
from tokenctl.core.keys import SigningKey, derive_keys, generate_signing_key
from tokenctl.core.token_string import PresentedToken
from tokenctl.storage.swap import rotation_statement

_MAC_KEY = derive_keys(logins.MASTER_KEY).mac


@dataclass(slots=True)
class Slice:
    """What rotating one slice took, in seconds."""

    rotations: int
    wall: float
    cpu: float


@dataclass(slots=True)
class Meter:
    """Runs parts and adds up the time of all of one slice."""

    wall: float = 0
    cpu: int = 0

    def run(self, part: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time_ns()
        result = part()
        self.cpu += time.process_time_ns() - cpu
        self.wall += time.perf_counter() - wall
        return result


class _Contender(ABC):
    """One way to rotate a batch of logins, given by their places; keeps the current strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = list(strings)

    def slice(self, batches: Sequence[Sequence[int]]) -> Slice:
        meter = Meter()
        for batch in batches:
            successors = self.rotate(batch, meter)
            for place, successor in zip(batch, successors, strict=True):
                self.strings[place] = successor
        return Slice(sum(map(len, batches)), meter.wall, meter.cpu / 1e9)

    @abstractmethod
    def rotate(self, batch: Sequence[int], meter: Meter) -> list[str]:
        """The successors; only what runs on the meter counts."""

    @abstractmethod
    def close(self) -> None: ...


class _Driver(_Contender):
    """The rotation's own SQL on the bare driver."""

    def __init__(self, strings: Sequence[str], path: Path) -> None:
        super().__init__(strings)
        self._connection = logins.connect(path)
        self._texts: dict[int, tuple[str, list[str]]] = {}

    def close(self) -> None:
        self._connection.close()

    def parameters(self, tokens: Sequence[PresentedToken]) -> tuple[str, tuple[Any, ...]]:
        if len(tokens) not in self._texts:
            compiled = rotation_statement(len(tokens)).compile(dialect=sqlite.dialect(paramstyle="qmark"))
            self._texts[len(tokens)] = str(compiled), list(compiled.positiontup or ())
        text, names = self._texts[len(tokens)]
        now = time.time_ns() // 1000
        values: dict[str, Any] = {
            "now": now,
            "access_until": now + 600_000_000,
            "last_generation": token_string.LAST_GENERATION,
        }
        for i, token in enumerate(tokens):
            values[f"id_{i}"] = token.raw_id
            values[f"generation_{i}"] = token.generation
            values[f"secret_hash_{i}"] = token.secret_hash
            values[f"client_id_{i}"] = "default"
            values[f"ip_{i}"] = values[f"user_agent_{i}"] = values[f"device_{i}"] = None
        return text, tuple([values[name] for name in names])

    def update(self, text: str, values: tuple[Any, ...]) -> list[Any]:
        self._connection.execute("BEGIN IMMEDIATE")
        rows = self._connection.execute(text, values).fetchall()
        self._connection.execute("COMMIT")
        return rows


class Update(_Driver):
    def rotate(self, batch: Sequence[int], meter: Meter) -> list[str]:
        tokens = [token_string.parse(self.strings[place], _MAC_KEY) for place in batch]
        text, values = self.parameters(tokens)
        rows = meter.run(lambda: self.update(text, values))
        assert len(rows) == len(batch), "every string is the current one"
        return [token_string.successor(token, _MAC_KEY) for token in tokens]


class _Floor(_Driver):
    def __init__(self, strings: Sequence[str], path: Path, key: SigningKey) -> None:
        super().__init__(strings, path)
        self._key = key

    def rotate(self, batch: Sequence[int], meter: Meter) -> list[str]:
        presented = [self.strings[place] for place in batch]
        successors: list[str] = meter.run(lambda: self._all(presented))
        return successors

    def _all(self, presented: Sequence[str]) -> list[str]:
        tokens = [token_string.parse(string, _MAC_KEY) for string in presented]
        rows = {row[0]: row for row in self.update(*self.parameters(tokens))}
        now = time.time_ns() // 1000
        for token in tokens:
            _, user_id, scope, *_ = rows[token.raw_id]
            _sign(token, self._key, ids.user_id(user_id), scope, now)
        return [token_string.successor(token, _MAC_KEY) for token in tokens]


class _Service(_Contender):
    def __init__(self, strings: Sequence[str], path: Path) -> None:
        super().__init__(strings)
        self.service = TokenService(logins.settings(path))

    def close(self) -> None:
        self.service.close()

    def rotate(self, batch: Sequence[int], meter: Meter) -> list[str]:
        requests = [RotateRequest(self.strings[place]) for place in batch]
        pairs: list[TokenPair] = meter.run(lambda: self.service.rotate_many(requests))
        return [pair.refresh_token for pair in pairs]  # an error as a value has none, and ends the run


def _sign(token: PresentedToken, key: SigningKey, user_id: str, scope: str, now: int) -> str:
    claims = AccessClaims(
        user_id=user_id,
        client_id="default",
        scope=scope,
        token_id=token.token_id,
        issued_at=now,
        expires_at=now + 600_000_000,
        issuer="tokenctl",
        audience="tokenctl",
        jti=secrets.token_bytes(16).hex(),
    )
    return sign_access_token(claims, key)


# --- the parts -------------------------------------------------------------------------------


@dataclass(slots=True)
class Parts:
    """µs of CPU for one token each: the token work of the floor, and a signature without its JWT."""

    parse: list[float] = field(default_factory=list)
    successor: list[float] = field(default_factory=list)
    sign: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    def measure(self, strings: Sequence[str], key: SigningKey) -> None:
        tokens = [token_string.parse(string, _MAC_KEY) for string in strings]
        now = time.time_ns() // 1000
        user, private, es256 = ids.user_id(logins.user_id(1)), key.private, ec.ECDSA(hashes.SHA256())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        message = b"a JWT is about that long" * 16
        for found, part in (
            (self.parse, lambda: [token_string.parse(string, _MAC_KEY).secret_hash for string in strings]),
            (self.successor, lambda: [token_string.successor(token, _MAC_KEY) for token in tokens]),
            (self.sign, lambda: [_sign(token, key, user, "profile", now) for token in tokens]),
            (self.bare, lambda: [private.sign(message, es256) for _ in tokens]),
        ):
            meter = Meter()
            meter.run(part)
            found.append(meter.cpu / 1e3 / len(strings))


# --- the run ---------------------------------------------------------------------------------


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--batches", default="1,16,64,256", metavar="N,N", help="the sizes of a batch")
    parser.add_argument("--logins", type=int, default=10_000, metavar="N")
    parser.add_argument("--slices", type=int, default=11, metavar="N", help="turns of each contender")
    parser.add_argument("--profile", action="store_true", help="where the service's own time goes, for each")
    given = parser.parse_args()
    sizes = [int(size) for size in given.batches.split(",")]
    many, slices = (512, 1) if given.quick else (given.logins, given.slices)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "service.db"
        strings = build(path, many)
        contenders: list[_Contender] = []
        try:
            for name in ("update", "floor"):
                shutil.copy(path, path.with_name(f"{name}.db"))
            key = generate_signing_key()
            service = _Service(strings, path)
            contenders += [
                Update(strings, path.with_name("update.db")),
                _Floor(strings, path.with_name("floor.db"), key),
                service,
            ]
            before = _size(path)
            parts = Parts()
            rows = [_measure(contenders, parts, key, size, slices, quick=given.quick) for size in sizes]
            grown = [after - was for after, was in zip(_size(path), before, strict=True)]
            assert grown[:2] == [0, 0], "a rotation writes no row and no event"
            statements = _statements(service, max(sizes))
            assert statements == 1, "a batch is one statement"
            _show(rows, parts, many, slices, grown[2])
            if given.profile:
                for size in sizes:
                    _profile(service, size)
        finally:
            for contender in contenders:
                contender.close()
    return 0


def build(path: Path, many: int) -> list[str]:
    now = time.time_ns() // 1000
    chance = random.Random(1)
    made = [(ids.uuid7(now - many + i, chance.randbytes(10)), chance.randbytes(16)) for i in range(many)]
    rows = (
        logins.login(
            raw_id,
            chance.randrange(max(1, many // 2)),
            secret_hash=token_string.hash_secret(secret),
            created_at=now,
            rotated_at=now,
            expires_at=now + 30 * logins.DAY,
        )
        for raw_id, secret in made
    )
    logins.build(path, users=max(1, many // 2), rows=rows, now=now)
    return [token_string.mint(raw_id, 0, secret, _MAC_KEY) for raw_id, secret in made]


def _measure(
    contenders: Sequence[_Contender],
    parts: Parts,
    key: SigningKey,
    size: int,
    slices: int,
    *,
    quick: bool,
) -> list[str]:
    """A row of the table: rotations/s and CPU of each contender, at batches of that size."""
    many = len(contenders[0].strings)
    # A commit waits for the disk, so that small batches need more time for the same number of rotations.
    rotations = max(size, 32 if quick else 200 if size == 1 else 4096)
    found: list[list[Slice]] = [[] for _ in contenders]
    order = list(range(many))
    random.Random(2).shuffle(order)
    for turn in range(slices + 1):
        start = turn * rotations
        batches = [
            [order[place % many] for place in range(first, first + size)]
            for first in range(start, start + rotations, size)
        ]
        for contender, slices_of in zip(contenders, found, strict=True):
            done = contender.slice(batches)
            if turn > 0:  # the first one warms the caches
                slices_of.append(done)
        parts.measure(contenders[0].strings[:512], key)
    rates = [statistics.median(each.rotations / each.wall for each in of) for of in found]
    update, floor, service = (
        statistics.median(each.cpu / each.rotations * 1e6 for each in of) for of in found
    )
    # The goal is set against a signature, and ours is the making of a JWT around it.
    bare = floor - statistics.median(parts.sign) + statistics.median(parts.bare)
    return [
        str(size),
        *(f"{rate:,.0f}" for rate in rates),
        f"{update:.1f}",
        f"{floor:.1f}",
        f"{service:.1f}",
        f"{service - floor:.1f}",
        ratio(service, floor),
        ratio(service, bare),
        "" if size != 64 else "met" if service <= 2 * bare else "NOT met",
    ]


def _size(path: Path) -> list[int]:
    """Rows, events and pages of the database."""
    with closing(logins.connect(path)) as connection:
        queries = ("SELECT count(*) FROM refresh_tokens", "SELECT count(*) FROM events", "PRAGMA page_count")
        return [connection.execute(query).fetchone()[0] for query in queries]


def _statements(service: _Service, size: int) -> int:
    """How many statements the service sends for one batch, BEGIN and COMMIT aside."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(statement)

    engine = service.service._runtime.storage.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        service.slice([range(size)])
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    return len(sent)


def _show(rows: list[list[str]], parts: Parts, many: int, slices: int, pages: int) -> None:
    parse, successor, sign, bare = (
        statistics.median(part) for part in (parts.parse, parts.successor, parts.sign, parts.bare)
    )
    show(
        f"Medians of {slices} slices each, in turns, {many:,} logins.",
        [
            "batch", "update/s", "floor/s", "service/s", "update µs CPU", "floor µs CPU",
            "service µs CPU", "its own part", "service / floor", "/ floor, bare signature",
            "at 64, without HTTP: ≤ 2",
        ],
        rows,
        [
            f"µs of CPU for each token within the floor: parse, MAC and hash {parse:.1f}, "
            f"successor {successor:.1f}, JWT {sign:.1f} (its ES256 signature alone {bare:.1f}).",
            f"Statements in a batch: 1. Events and rows that these rotations added: 0; pages: {pages}.",
        ],
    )  # fmt: skip


def _profile(service: _Service, size: int) -> None:
    profile = cProfile.Profile()
    many = len(service.strings)
    batches = [range(first, min(first + size, many)) for first in range(0, min(many, 50 * size), size)]
    profile.runcall(service.slice, batches)
    sys.stdout.write(f"\nBatches of {size}:\n")
    pstats.Stats(profile, stream=sys.stdout).strip_dirs().sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    sys.exit(main())
