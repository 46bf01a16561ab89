"""Refresh tokens as somebody names them, a line each: by id, or by a string of any generation.

Owns how such lines are read and held, what each of them turns out to be, and revoking what they name, a
chunk at a time. The same chunks serve a plan, whose members are ids. Revoking by a selector is `revocation`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
from tokenctl.storage.revoking import Revoked, Row
from tokenctl.storage.tokens import CHUNK

#: Called with the line (from 1), the `rt_…` if it names one, and what became of it.
Report = Callable[[int, str | None, str], None]

ID, STRING, FORGED, MALFORMED = range(4)
#: What becomes of a target, in the words of `Revocation`.
_REVOKED, _ALREADY_DEAD, _UNKNOWN = "revoked", "already_dead", "unknown"
_WORTHLESS = {FORGED: "forged", MALFORMED: "malformed"}


class Target(NamedTuple):
    """What one line names, before any row was looked at.

    `kind` is ID, STRING (then `secret_hash` is what its row must have), FORGED or MALFORMED.
    """

    line: int
    kind: int
    raw_id: bytes
    secret_hash: bytes

    @property
    def token_id(self) -> str | None:
        """The `rt_…`, if it names one."""
        return ids.token_id(self.raw_id) if self.kind <= STRING else None


_HELD = struct.Struct(">16sQB32s")  # the id first: they are sorted by it
#: Bytes (over a million lines) that are held in memory; what is more goes to a temporary file.
_IN_MEMORY = 64_000_000
#: So many lines are put in order at once: logins of the same time lie in the same page of the database.
_SORTED = 1_000_000


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
        self._file.write(
            b"".join([_HELD.pack(raw_id, line, kind, secret) for line, kind, raw_id, secret in some])
        )
        self.count += len(some)

    def chunks(self) -> Iterator[list[Target]]:
        """All of them, at most CHUNK at a time, in order of id as far as that fits in the memory."""
        self._file.seek(0)
        while data := self._file.read(_HELD.size * _SORTED):
            held = sorted([data[i : i + _HELD.size] for i in range(0, len(data), _HELD.size)])
            for start in range(0, len(held), CHUNK):
                unpacked = _HELD.iter_unpack(b"".join(held[start : start + CHUNK]))
                yield [Target(line, kind, raw_id, secret) for raw_id, line, kind, secret in unpacked]


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
                yield Target(number, ID, ids.to_bytes(ids.parse_token_id(text)), b"")
                continue
            if not asked:  # once, and not for ids alone: they need no key
                mac_key, asked = (runtime.keys.mac if runtime.has_master_key else None), True
            # Without the master key the secret alone decides: it is 128 random bits, which nobody guesses.
            token = parse_unverified(text) if mac_key is None else parse(text, mac_key)
        except ForgedToken:
            yield Target(number, FORGED, b"", b"")
        except (InvalidInput, InvalidToken):
            yield Target(number, MALFORMED, b"", b"")
        else:
            yield Target(number, STRING, token.raw_id, token.secret_hash)


# --- looking ---------------------------------------------------------------------------------


@dataclass
class Look:
    """What was found so far, of the logins that are not dead: each once, and of each user how many."""

    alive: set[bytes] = field(default_factory=set)
    #: By the id of the user: how many tokens, and when one of them was used last (µs).
    users: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    #: Of the targets that are none of these, by what they are.
    others: Counter[str] = field(default_factory=Counter)
    access_until: int = 0

    def add(self, row: Row) -> bool:
        """Add a login that is named, dead or alive; whether it is one more that is not dead."""
        self.access_until = max(self.access_until, row.access_until)
        if not row.is_alive or row.raw_id in self.alive:
            self.others[_ALREADY_DEAD] += 1
            return False
        self.alive.add(row.raw_id)
        number, last_used_at = self.users.get(row.user_id, (0, 0))
        self.users[row.user_id] = (number + 1, max(last_used_at, row.rotated_at))
        return True

    def judge(self, chunk: list[Target], rows: Mapping[bytes, Row]) -> list[str]:
        """Add what the chunk names; what would become of each target now."""
        return [self._judge(kind, secret_hash, rows.get(raw_id)) for _, kind, raw_id, secret_hash in chunk]

    def _judge(self, kind: int, secret_hash: bytes, row: Row | None) -> str:
        if kind > STRING:
            outcome = _WORTHLESS[kind]
        # A superseded string names nothing any more.
        elif row is None or (kind == STRING and secret_hash != row.secret_hash):
            outcome = _UNKNOWN
        else:
            return _REVOKED if self.add(row) else _ALREADY_DEAD
        self.others[outcome] += 1
        return outcome

    def preview(self, runtime: Runtime) -> Preview:
        """The counts alone."""
        return Preview(
            tokens=len(self.alive),
            users=len(self.users),
            already_dead=self.others[_ALREADY_DEAD],
            unknown=self.others[_UNKNOWN],
            forged=self.others[_WORTHLESS[FORGED]],
            malformed=self.others[_WORTHLESS[MALFORMED]],
            last_used_at=max((last for _, last in self.users.values()), default=None),
            access_exposure_until=exposure(runtime, self.access_until),
        )


def look(runtime: Runtime, chunks: Iterable[list[Target]]) -> Look:
    """What revoking these would hit. Changes nothing."""
    found = Look()
    for chunk in chunks:
        found.judge(chunk, _rows(runtime, chunk))
    return found


def named(runtime: Runtime, chunks: Iterable[list[Target]]) -> Iterator[bytes]:
    """The ids of the logins that these name, dead ones too."""
    for chunk in chunks:
        outcomes = Look().judge(chunk, _rows(runtime, chunk))
        known = {_REVOKED, _ALREADY_DEAD}
        yield from {
            target.raw_id for target, outcome in zip(chunk, outcomes, strict=True) if outcome in known
        }


@repeated
def _rows(runtime: Runtime, chunk: list[Target]) -> dict[bytes, Row]:
    wanted = {target.raw_id for target in chunk if target.kind <= STRING}
    with runtime.storage.read() as connection:
        return {row.raw_id: row for row in revoking.look(connection, wanted, now=runtime.clock())}


# --- revoking --------------------------------------------------------------------------------


def revoke(
    runtime: Runtime, chunks: Iterable[list[Target]], order: Order, report: Report | None = None
) -> Revocation:
    """Revoke what is named, each chunk in a transaction of its own; what is dead already stays as it is."""
    found, done = Look(), Done()
    for chunk in chunks:
        if order.stop():
            done.complete = False
            break
        outcomes = found.judge(chunk, _rows(runtime, chunk))
        alive = [target.raw_id for target, now in zip(chunk, outcomes, strict=True) if now == _REVOKED]
        revoked = done.revoke(runtime, sorted(alive), order)
        order.progress(len(chunk))
        if report is not None:
            for target, outcome in zip(chunk, outcomes, strict=True):
                is_late = outcome == _REVOKED and target.raw_id not in revoked  # it died in between
                report(target.line, target.token_id, _ALREADY_DEAD if is_late else outcome)
    return done.revocation(runtime, found)


def revoke_found(runtime: Runtime, found: Look, order: Order) -> Revocation:
    """Revoke what a look has found, and only that."""
    alive, done = sorted(found.alive), Done()
    for start in range(0, len(alive), CHUNK):
        if order.stop():
            done.complete = False
            break
        page = alive[start : start + CHUNK]
        done.revoke(runtime, page, order)
        order.progress(len(page))
    return done.revocation(runtime, found)


@dataclass
class Done:
    """What was revoked so far, and of whom."""

    revoked: int = 0
    already_dead: int = 0
    users: set[bytes] = field(default_factory=set)
    access_until: int = 0
    complete: bool = True

    def revoke(self, runtime: Runtime, raw_ids: list[bytes], order: Order) -> set[bytes]:
        """Revoke these in a transaction, at most CHUNK in order of id; which of them were not dead."""
        rows = _revoke(runtime, raw_ids, order)
        self.revoked += len(rows)
        self.already_dead += len(raw_ids) - len(rows)
        self.users.update([row.user_id for row in rows])
        self.access_until = max([self.access_until, *[row.access_until for row in rows]])
        return {row.raw_id for row in rows}

    def revocation(self, runtime: Runtime, found: Look) -> Revocation:
        """The counts, with those of the targets that are not revoked."""
        counts = found.others + Counter({_ALREADY_DEAD: self.already_dead, _REVOKED: self.revoked})
        latest = max(self.access_until, found.access_until)
        return Revocation(
            **counts,
            users=len(self.users),
            access_exposure_until=exposure(runtime, latest),
            complete=self.complete,
        )


@repeated
def _revoke(runtime: Runtime, raw_ids: list[bytes], order: Order) -> list[Revoked]:
    with runtime.storage.write() as connection:
        return revoking.revoke_ids(connection, raw_ids, order.mark(runtime.clock()))
