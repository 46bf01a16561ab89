"""Refresh tokens as somebody names them, a line each: by id, or by a string of any generation.

Owns how such lines are read and held, what each of them turns out to be, and revoking what they name, a
chunk at a time. The same chunks serve a plan, whose members are ids. Revoking by a selector is `revocation`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import NamedTuple

from tokenctl.core import ids
from tokenctl.core.token_string import looks_like, parse, parse_unverified
from tokenctl.errors import ForgedToken, InvalidInput, InvalidToken
from tokenctl.service.revocation import Order, Preview, Revocation, exposure
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import revoking
from tokenctl.storage.revoking import Row
from tokenctl.storage.tokens import CHUNK

#: Called with the line (from 1), the `rt_…` if it names one, and what became of it.
Report = Callable[[int, str | None, str], None]


class Kind(IntEnum):
    """What a line is before any row was looked at."""

    ID = 0
    STRING = 1
    FORGED = 2
    MALFORMED = 3


class Target(NamedTuple):
    """What one line names. `secret_hash` is what the row of a STRING must have."""

    line: int
    kind: int
    raw_id: bytes
    secret_hash: bytes

    @property
    def token_id(self) -> str | None:
        """The `rt_…`, if it names one."""
        return ids.token_id(self.raw_id) if self.kind <= Kind.STRING else None

    def means(self, rows: Mapping[bytes, Row]) -> Row | None:
        """The row that is named; a superseded string names nothing any more."""
        row = rows.get(self.raw_id)
        if row is None or (self.kind == Kind.STRING and self.secret_hash != row.secret_hash):
            return None
        return row


_HELD = struct.Struct(">QB16s32s")
#: Bytes (over a million lines) that are held in memory; what is more goes to a temporary file.
_IN_MEMORY = 64_000_000


class Targets:
    """The lines that were read, in 57 bytes each; of a string no more is kept than the hash of its secret.

    They may be gone through as often as need be: to look, then to act. `close` ends that, as does a `with`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by `close`

    def __enter__(self) -> Targets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget them."""
        self._file.close()

    def add(self, some: list[Target]) -> None:
        """Hold these, behind those that are there."""
        self._file.write(b"".join([_HELD.pack(*target) for target in some]))
        self.count += len(some)

    def chunks(self) -> Iterator[list[Target]]:
        """All of them in order, at most CHUNK at a time."""
        self._file.seek(0)
        while data := self._file.read(_HELD.size * CHUNK):
            yield [Target._make(held) for held in _HELD.iter_unpack(data)]


def hold(runtime: Runtime, lines: Iterable[str | None]) -> Targets:
    """Read lines of ids and strings to their end; None is a line without anything. No query is made.

    Raises KeyUnusable or KeyWrong at the first string.
    """
    targets = Targets()
    try:
        for chunk in read(runtime, lines):
            targets.add(chunk)
    except BaseException:
        targets.close()
        raise
    return targets


def read(runtime: Runtime, lines: Iterable[str | None]) -> Iterator[list[Target]]:
    """The same, not held: at most CHUNK at a time."""
    targets = _read(runtime, lines)
    while chunk := list(islice(targets, CHUNK)):
        yield chunk


def _read(runtime: Runtime, lines: Iterable[str | None]) -> Iterator[Target]:
    mac_key, asked = None, False
    for number, text in enumerate(lines, 1):
        if text is None:
            continue
        try:
            if not looks_like(text):
                yield Target(number, Kind.ID, ids.to_bytes(ids.parse_token_id(text)), b"")
                continue
            if not asked:  # once, and not for ids alone: they need no key
                mac_key, asked = (runtime.keys.mac if runtime.has_master_key else None), True
            # Without the master key the secret alone decides: it is 128 random bits, which nobody guesses.
            token = parse_unverified(text) if mac_key is None else parse(text, mac_key)
        except ForgedToken:
            yield Target(number, Kind.FORGED, b"", b"")
        except (InvalidInput, InvalidToken):
            yield Target(number, Kind.MALFORMED, b"", b"")
        else:
            yield Target(number, Kind.STRING, token.raw_id, token.secret_hash)


# --- looking ---------------------------------------------------------------------------------


@dataclass
class Look:
    """What was found so far, of the logins that are not dead: each once, and of each user how many."""

    alive: set[bytes] = field(default_factory=set)
    #: By the id of the user: how many tokens, and when one of them was used last (µs).
    users: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    already_dead: int = 0
    unknown: int = 0
    forged: int = 0
    malformed: int = 0
    access_until: int = 0

    def add(self, row: Row) -> None:
        """A login that is named, dead or alive."""
        self.access_until = max(self.access_until, row.access_until)
        if not row.is_alive or row.raw_id in self.alive:
            self.already_dead += 1
            return
        self.alive.add(row.raw_id)
        number, last_used_at = self.users.get(row.user_id, (0, 0))
        self.users[row.user_id] = (number + 1, max(last_used_at, row.rotated_at))

    def preview(self, runtime: Runtime) -> Preview:
        """The counts alone."""
        return Preview(
            tokens=len(self.alive),
            users=len(self.users),
            already_dead=self.already_dead,
            unknown=self.unknown,
            forged=self.forged,
            malformed=self.malformed,
            last_used_at=max((last for _, last in self.users.values()), default=None),
            access_exposure_until=exposure(runtime, self.access_until),
        )


def look(runtime: Runtime, chunks: Iterable[list[Target]]) -> Look:
    """What revoking these would hit. Changes nothing."""
    found = Look()
    for chunk in chunks:
        rows = _rows(runtime, chunk)
        for target in chunk:
            if target.kind == Kind.FORGED:
                found.forged += 1
            elif target.kind == Kind.MALFORMED:
                found.malformed += 1
            elif (row := target.means(rows)) is None:
                found.unknown += 1
            else:
                found.add(row)
    return found


def named(runtime: Runtime, chunks: Iterable[list[Target]]) -> Iterator[bytes]:
    """The ids of the logins that these name, dead ones too."""
    for chunk in chunks:
        rows = _rows(runtime, chunk)
        yield from {row.raw_id for target in chunk if (row := target.means(rows)) is not None}


@repeated
def _rows(runtime: Runtime, chunk: list[Target]) -> dict[bytes, Row]:
    with runtime.storage.read() as connection:
        return {row.raw_id: row for row in revoking.look(connection, _ids(chunk), now=runtime.clock())}


def _ids(chunk: list[Target]) -> set[bytes]:
    return {target.raw_id for target in chunk if target.kind <= Kind.STRING}


# --- revoking --------------------------------------------------------------------------------


def revoke(
    runtime: Runtime, chunks: Iterable[list[Target]], order: Order, report: Report | None = None
) -> Revocation:
    """Revoke what is named, each chunk in a transaction of its own; what is dead already stays as it is."""
    counts = dict.fromkeys(("revoked", "already_dead", "unknown", "forged", "malformed"), 0)
    users, access_until, complete = set[bytes](), 0, True
    for chunk in chunks:
        if order.stop():
            complete = False
            break
        done = _revoke(runtime, chunk, order)
        users.update(done.users)
        access_until = max(access_until, done.access_until)
        for target in chunk:
            outcome = done.outcome(target)
            counts[outcome] += 1
            if report is not None:
                report(
                    target.line, ids.token_id(target.raw_id) if target.kind <= Kind.STRING else None, outcome
                )
        order.progress(len(chunk))
    return Revocation(
        **counts, users=len(users), access_exposure_until=exposure(runtime, access_until), complete=complete
    )


@dataclass(frozen=True, slots=True)
class _Done:
    """What one transaction found and did."""

    rows: dict[bytes, Row]
    #: What was revoked, and is not yet told of: a login is revoked once, however often it is named.
    revoked: set[bytes]
    users: set[bytes]
    access_until: int

    def outcome(self, target: Target) -> str:
        if target.kind == Kind.FORGED:
            return "forged"
        if target.kind == Kind.MALFORMED:
            return "malformed"
        if target.means(self.rows) is None:
            return "unknown"
        if target.raw_id in self.revoked:
            self.revoked.remove(target.raw_id)
            return "revoked"
        return "already_dead"


@repeated
def _revoke(runtime: Runtime, chunk: list[Target], order: Order) -> _Done:
    with runtime.storage.write() as connection:
        now = runtime.clock()
        rows = {row.raw_id: row for row in revoking.look(connection, _ids(chunk), now=now)}
        meant = {row.raw_id: row for target in chunk if (row := target.means(rows)) is not None}
        alive = sorted(raw_id for raw_id, row in meant.items() if row.is_alive)
        done = revoking.revoke_ids(connection, alive, order.mark(now))
    latest = max([row.access_until for row in meant.values()] + [row.access_until for row in done], default=0)
    return _Done(rows, {row.raw_id for row in done}, {row.user_id for row in done}, latest)
