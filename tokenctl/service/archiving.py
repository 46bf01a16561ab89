"""Archiving: the oldest segments of the audit log go into a file, and then out of the database.

Owns the order in which that is safe, the pace, and what a second run finds of one that was killed. The file
is an export (`exporting`). It is verified as it lies on the disk before anything is deleted, and each
transaction that deletes a segment moves the anchor behind it, so that the chain holds at any moment: see
`core.audit_chain.Anchor`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from tokenctl.core import audit_chain
from tokenctl.core.audit_chain import NO_SEGMENT, Anchor, Head
from tokenctl.errors import Contended, DatabaseFull, DatabaseLocked, InvalidInput
from tokenctl.service import exporting
from tokenctl.service.exporting import Line
from tokenctl.service.revocation import Progress, Stop
from tokenctl.service.runtime import Runtime, micros
from tokenctl.service.sealing import seal
from tokenctl.service.transactions import repeated
from tokenctl.service.verifying import Findings, Verification, genuine_anchor
from tokenctl.storage import events, files, segments
from tokenctl.storage.engine import Job
from tokenctl.storage.events import Event
from tokenctl.storage.segments import Segment

#: Younger events are asked for: by `stats`, by the doctor, and before a refusal is noted again.
LEAST_AGE = timedelta(days=7)
#: After so many segments the log goes into the file, between two transactions: see `service.purge`.
_CHECKPOINT_SEGMENTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What an archive run did. Of the segments `first` to `last` (None: there is nothing of that age).

    before (µs): their events and seals are older. deleted: how many of these segments are gone. complete:
    False when `stop` ended it early, or when they do not hold; the next run goes on. sha256 of the file, in
    hex; None where none was made. verification: what was found in it.
    """

    before: int
    first: int | None = None
    last: int | None = None
    events: int = 0
    deleted: int = 0
    complete: bool = True
    dry_run: bool = False
    path: Path | None = None
    sha256: str | None = None
    verification: Verification | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return self.verification is None or self.verification.holds


def archive(
    runtime: Runtime,
    place: Path,
    *,
    older_than: timedelta,
    dry_run: bool,
    stop: Stop,
    progress: Progress,
    actor: str,
) -> Archive:
    """Export, verify, delete. See `AuditLog.archive`."""
    key = runtime.keys.audit
    if older_than < LEAST_AGE:
        raise InvalidInput(
            f"events younger than {LEAST_AGE.days} days are still asked for, by tokenctl stats for one",
            hint="--older-than 90d",
        )
    if dry_run:
        return replace(_choose(runtime, key, micros(older_than), Findings(None, progress)), dry_run=True)
    with _only_one(runtime) as job:
        seal(runtime, stop)
        findings = Findings(None, progress)
        chosen = _choose(runtime, key, micros(older_than), findings)
        if findings.found:
            return replace(chosen, complete=False, verification=findings.result())
        first, last = chosen.first, chosen.last
        if first is None or last is None or stop():
            return replace(chosen, complete=first is None)
        path = place / f"audit-{first}-{last}.jsonl" if place.is_dir() else place
        try:
            verification = _file(runtime, path, chosen, findings, stop)
        except _StoppedError:
            return replace(chosen, complete=False)
        except _HoldsNotError as failed:
            return replace(chosen, complete=False, verification=failed.verification)
        chosen = replace(chosen, path=path, sha256=_sum(path), verification=verification)
        deleted = _Deletion(runtime, job, key, chosen, actor).run(stop, progress)
        return replace(chosen, deleted=deleted, complete=deleted == last - first + 1)


@contextmanager
def _only_one(runtime: Runtime) -> Iterator[Job]:
    with ExitStack() as stack:
        try:
            job = stack.enter_context(runtime.storage.exclusive("archiving"))
        except DatabaseLocked as locked:
            pid, seconds = (locked.facts.get(name) for name in ("pid", "seconds"))
            who = f" (pid {pid or 'unknown'}, {seconds} s)" if seconds is not None else ""
            raise DatabaseLocked(
                f"the audit log of {runtime.storage.label} is being archived already{who}", **locked.facts
            ) from None
        yield job


def _choose(runtime: Runtime, key: bytes, age: int, findings: Findings) -> Archive:
    """Which segments are old enough. An anchor that proves nothing is found, and none is."""
    now = runtime.clock()
    anchor, last, count = _look(runtime, now - age, now)
    genuine = genuine_anchor(key, anchor, findings)
    behind = 0 if genuine is None else genuine.head.number
    if findings.found or last <= behind:
        return Archive(before=now - age)
    return Archive(before=now - age, first=behind + 1, last=last, events=count)


@repeated
def _look(runtime: Runtime, before: int, now: int) -> tuple[str | None, int, int]:
    """The anchor, the last segment that is old enough, and how many events there are up to it."""
    with runtime.storage.read() as connection:
        text = segments.anchor(connection)
        anchor = None if text is None else Anchor.parse(text)
        behind = 0 if anchor is None else anchor.head.number
        last = segments.last_before(connection, before, behind=behind, now=now)
        return text, last, segments.count_between(connection, behind + 1, last)


# --- the file --------------------------------------------------------------------------------


class _StoppedError(Exception):
    """Before the file was finished."""


class _HoldsNotError(Exception):
    """What was exported is not what was sealed."""

    def __init__(self, verification: Verification) -> None:
        super().__init__()
        self.verification = verification


def _file(runtime: Runtime, path: Path, chosen: Archive, findings: Findings, stop: Stop) -> Verification:
    """Make the file, or find the one of a run that was killed before it had deleted anything.

    Raises InvalidInput when something else has that name, DatabaseFull, and the two above.
    """
    key = runtime.keys.audit
    if files.is_there(path):
        return _demand_same(runtime, path, chosen, findings)
    verified: list[Verification] = []

    def look(building: Path) -> None:
        done = _verify(key, building, findings)
        if not (done.holds and done.ends_proven):
            raise _HoldsNotError(done)
        verified.append(done)

    lines = exporting.export(runtime, since=None, until=None, unsealed=False, up_to=chosen.last)
    files.sweep(path)
    try:
        exporting.write_export(_until(stop, lines), path, look)
    except DatabaseFull as full:
        raise DatabaseFull(
            f"{full.message}; nothing was archived",
            hint="free some space, or name a place on another file system with --to",
        ) from None
    return verified[0]


def _until(stop: Stop, lines: Iterator[Line]) -> Iterator[Line]:
    for line in lines:
        if stop():
            raise _StoppedError
        yield line


def _verify(key: bytes, path: Path, findings: Findings) -> Verification:
    """What lies on the disk, and not what the system still has of it in memory."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return exporting.verify_export(key, file, findings)


def _demand_same(runtime: Runtime, path: Path, chosen: Archive, findings: Findings) -> Verification:
    """The file that is there already, when it is just what would be written."""
    there = InvalidInput(
        f"{path} is there already and is no archive of the segments {chosen.first} to {chosen.last}; it "
        "stays as it is, and nothing was archived",
        hint="name a directory or a new file with --to",
    )
    if not path.is_file():
        raise there
    try:
        done = _verify(runtime.keys.audit, path, findings)
    except InvalidInput:
        raise there from None
    ours = done.holds and done.ends_proven and done.first == chosen.first and done.unsealed == 0
    if not ours or done.head is None or done.head.number != chosen.last:
        raise there
    if done.head.mac != _mac_of(runtime, done.head.number):
        raise there
    return done


@repeated
def _mac_of(runtime: Runtime, number: int) -> bytes | None:
    with runtime.storage.read() as connection:
        return segments.mac_of(connection, number)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- deleting --------------------------------------------------------------------------------


class _Deletion:
    """Of the segments that are in the file: one after the other, each in a transaction with its anchor."""

    def __init__(self, runtime: Runtime, job: Job, key: bytes, chosen: Archive, actor: str) -> None:
        self._runtime = runtime
        self._job = job
        self._key = key
        self._chosen = chosen
        self._actor = actor

    def run(self, stop: Stop, progress: Progress) -> int:
        """How many segments it deleted."""
        assert self._chosen.first is not None
        assert self._chosen.last is not None
        deleted = 0
        for number in range(self._chosen.first, self._chosen.last + 1):
            if stop():
                break
            began = time.monotonic()
            count, others_wrote = self._delete(number)
            deleted += 1
            progress(count)
            worked = time.monotonic() - began
            if deleted % _CHECKPOINT_SEGMENTS == 0:
                self._runtime.storage.checkpoint()
            if others_wrote:  # they get the writer, and the machine, for as long as we had them
                time.sleep(worked)
        return deleted

    @repeated
    def _delete(self, number: int) -> tuple[int, bool]:
        """One transaction: how many events, and whether somebody else wrote before it."""
        with self._job.write() as connection:
            others_wrote = self._job.others_wrote(connection)
            text = segments.anchor(connection)
            anchor = None if text is None else Anchor.parse(text)
            if text is not None and (anchor is None or not anchor.holds(self._key)):
                raise self._changed(number)
            segment = segments.next_after(connection, number - 1)
            if segment is None or not self._follows(segment, number, anchor):
                raise self._changed(number)
            if segments.delete(connection, number) != segment.events:
                raise self._changed(number)
            limit = self._chosen.before if anchor is None else max(anchor.before, self._chosen.before)
            segments.set_anchor(connection, str(Anchor.make(self._key, Head(number, segment.mac), limit)))
            if number == self._chosen.first:
                # With the first of them, so that no segment is ever gone without a word about its file.
                events.add(connection, [self._event()])
        return segment.events, others_wrote

    def _follows(self, segment: Segment, number: int, anchor: Anchor | None) -> bool:
        """Whether it is the segment of that number, sealed behind the anchor: the new one will say so."""
        behind, previous = (0, NO_SEGMENT) if anchor is None else (anchor.head.number, anchor.head.mac)
        mac = audit_chain.segment_mac(
            self._key,
            previous=previous,
            number=segment.number,
            sealed_at=segment.sealed_at,
            members_hash=audit_chain.hash_members(segment.members),
        )
        return segment.number == number == behind + 1 and hmac.compare_digest(mac, segment.mac)

    def _changed(self, number: int) -> Contended:
        return Contended(
            f"segment {number} was changed after it was exported, and stays with all behind it",
            hint="tokenctl audit verify",
        )

    def _event(self) -> Event:
        chosen = self._chosen
        assert chosen.path is not None
        facts = {
            "first_segment": chosen.first,
            "last_segment": chosen.last,
            "events": chosen.events,
            "file": chosen.path.name,
            "sha256": chosen.sha256,
        }
        return Event(at=self._runtime.clock(), type="audit.archive", actor=self._actor, data=facts)
