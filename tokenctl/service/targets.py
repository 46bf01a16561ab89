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
from tokenctl.service.revocation import Done, Order, Preview, Revocation, exposure
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import revoking
from tokenctl.storage.revoking import Revoked, Row
from tokenctl.storage.tokens import CHUNK

#: Called with the line (from 1), the `rt_…` if it names one, and what became of it.
Report = Callable[[int, str | None, str], None]

ID, STRING, FORGED, MALFORMED = range(4)
#: What becomes of a target, in the words of `Revocation`.
_REVOKED, _ALREADY_DEAD, _REPEATED, _UNKNOWN = "revoked", "already_dead", "repeated", "unknown"
_WORTHLESS = {FORGED: "forged", MALFORMED: "malformed"}
_OTHERS = (_ALREADY_DEAD, _REPEATED, _UNKNOWN, *_WORTHLESS.values())


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

    #: By its id what the row's secret_hash must still be; empty where the id alone named it.
    alive: dict[bytes, bytes] = field(default_factory=dict)
    #: By the id of the user: how many tokens, and when one of them was used last (µs).
    users: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    #: Of the targets that are none of these, by what they are.
    others: Counter[str] = field(default_factory=Counter)
    access_until: int = 0

    def add(self, row: Row, secret_hash: bytes = b"") -> str:
        """Add a login that is named, dead or alive; what would become of it."""
        self.access_until = max(self.access_until, row.access_until)
        if row.raw_id in self.alive:
            if not secret_hash:
                self.alive[row.raw_id] = b""
            return self._other(_REPEATED)
        if not row.is_alive:
            return self._other(_ALREADY_DEAD)
        self.alive[row.raw_id] = secret_hash
        number, last_used_at = self.users.get(row.user_id, (0, 0))
        self.users[row.user_id] = (number + 1, max(last_used_at, row.rotated_at))
        return _REVOKED

    def judge(self, chunk: list[Target], rows: Mapping[bytes, Row]) -> list[str]:
        """Add what the chunk names; what would become of each target now."""
        return [self._judge(kind, secret_hash, rows.get(raw_id)) for _, kind, raw_id, secret_hash in chunk]

    def _judge(self, kind: int, secret_hash: bytes, row: Row | None) -> str:
        if kind > STRING:
            return self._other(_WORTHLESS[kind])
        # A superseded string names nothing any more.
        if row is None or (kind == STRING and secret_hash != row.secret_hash):
            return self._other(_UNKNOWN)
        return self.add(row, secret_hash if kind == STRING else b"")

    def _other(self, outcome: str) -> str:
        self.others[outcome] += 1
        return outcome

    def preview(self, runtime: Runtime) -> Preview:
        """The counts alone."""
        return Preview(
            tokens=len(self.alive),
            users=len(self.users),
            already_dead=self.others[_ALREADY_DEAD],
            repeated=self.others[_REPEATED],
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
        known = {_REVOKED, _ALREADY_DEAD, _REPEATED}
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
        named = {target.raw_id for target, now in zip(chunk, outcomes, strict=True) if now == _REVOKED}
        rows = _revoke(runtime, {raw_id: found.alive[raw_id] for raw_id in sorted(named)}, order)
        done.add(rows)
        order.progress(len(chunk))
        if report is not None:
            late = named.difference(row.raw_id for row in rows)  # they died in between
            for target, outcome in zip(chunk, outcomes, strict=True):
                is_late = outcome == _REVOKED and target.raw_id in late
                report(target.line, target.token_id, _ALREADY_DEAD if is_late else outcome)
    return _revocation(runtime, found, done)


def revoke_found(runtime: Runtime, found: Look, order: Order) -> Revocation:
    """Revoke what a look has found, and only that."""
    alive, done = sorted(found.alive), Done()
    for start in range(0, len(alive), CHUNK):
        if order.stop():
            done.complete = False
            break
        page = {raw_id: found.alive[raw_id] for raw_id in alive[start : start + CHUNK]}
        done.add(_revoke(runtime, page, order))
        order.progress(len(page))
    return _revocation(runtime, found, done)


def _revocation(runtime: Runtime, found: Look, done: Done) -> Revocation:
    done.access_until = max(done.access_until, found.access_until)
    others = {name: found.others[name] for name in _OTHERS}
    if done.complete:
        others[_ALREADY_DEAD] += len(found.alive) - done.revoked  # they died in between
    return done.revocation(runtime, **others)


@repeated
def _revoke(runtime: Runtime, named: Mapping[bytes, bytes], order: Order) -> list[Revoked]:
    """One transaction. Those named by a string only if it still names them: they may be re-issued by now."""
    by_id = [raw_id for raw_id, secret_hash in named.items() if not secret_hash]
    by_string = {raw_id: secret_hash for raw_id, secret_hash in named.items() if secret_hash}
    with runtime.storage.write() as connection:
        mark = order.mark(runtime.clock())
        return revoking.revoke_ids(connection, by_id, mark) + revoking.revoke_ids(
            connection, by_string, mark, secret_hashes=by_string.values()
        )
