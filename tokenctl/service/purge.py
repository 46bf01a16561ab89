"""Purging: deleting what is dead for long enough, in small transactions, and nothing else.

Owns the pace, the bounds of a run and the suspicion against the clock. What "dead" means is the condition in
`storage.purging`, which every batch asks in the transaction that deletes. That one run is at work at a time,
on however many nodes, is the storage's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

from tokenctl.errors import ClockSuspect, DatabaseLocked, Interrupted
from tokenctl.service.revocation import Stop
from tokenctl.service.runtime import Runtime, micros
from tokenctl.service.sealing import seal_in_passing
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, purging, tokens
from tokenctl.storage.engine import Job
from tokenctl.storage.events import Event
from tokenctl.storage.purging import Place, Stretch

#: So many rows later the log goes into the file, between two batches: a commit that also did that would hold
#: the writer for as long.
_CHECKPOINT_ROWS = 8_000
#: While others write, a batch is so many times smaller where only one can write at a time, and so is what is
#: brought into the file at once: their commits wait for both.
_BESIDE_OTHERS = 8
#: A batch of so many rows is over in a few milliseconds.
_SMALL = 250
#: Between two looks whether to wait any longer (s).
_LOOK = 0.5
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """What a purge did. `dead_since` (µs): rows dead at that instant already were deleted.

    complete: False when `stop`, `max_runtime` or `max_rows` ended it early; the next run goes on.
    size_bytes: of the table with its indexes, or of the SQLite file. free_bytes: how much of that is free
    and will be used again; None where the database does not tell.
    """

    purged: int
    batches: int
    seconds: float
    dead_since: int
    complete: bool
    dry_run: bool = False
    size_bytes: int
    free_bytes: int | None
    vacuumed: bool = False


def purge(
    runtime: Runtime,
    *,
    retention: timedelta,
    batch: int,
    dry_run: bool,
    force: bool,
    max_runtime: timedelta | None,
    max_rows: int | None,
    vacuum: bool,
    lock_wait: timedelta,
    stop: Stop,
    progress: Callable[[int, int], None] | None,
    actor: str,
) -> Purge:
    """Delete rows that were dead before `retention` ago. See `TokenService.purge`."""
    started = time.monotonic()
    if dry_run:
        return _rehearse(runtime, started, retention, max_rows)

    def over() -> bool:
        late = max_runtime is not None and time.monotonic() - started >= max_runtime.total_seconds()
        return late or stop()

    with ExitStack() as held:
        job = _take_turn(runtime, held, lock_wait.total_seconds(), stop)
        # After the waiting, and once: the clock may be put right at any moment, and then the time that was
        # found plausible must be the time that is deleted by.
        now = runtime.clock()
        if not force:
            _demand_plausible_clock(job, retention, now)
        run = _Run(runtime, job, dead_since=now - micros(retention), actor=actor)
        complete = run.delete(batch, max_rows, over, progress)
        facts = {"purged": run.purged, "batches": run.batches, "complete": complete}
        _leave_record(runtime, job, facts, actor)
        vacuumed = vacuum and not over()
        if vacuumed:
            job.vacuum()
        with job.read() as connection:
            space = runtime.storage.space(connection)
    seal_in_passing(runtime, over)
    return Purge(
        purged=run.purged,
        batches=run.batches,
        seconds=_seconds(started),
        dead_since=run.dead_since,
        complete=complete,
        size_bytes=space.taken,
        free_bytes=space.free,
        vacuumed=vacuumed,
    )


def _take_turn(runtime: Runtime, held: ExitStack, wait: float, stop: Stop) -> Job:
    """The only run's job, held until the stack is closed. Raises DatabaseLocked, or Interrupted by `stop`."""
    deadline = time.monotonic() + wait
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            return held.enter_context(runtime.storage.exclusive("purge", wait=min(left, _LOOK)))
        except DatabaseLocked:
            if left <= _LOOK:
                raise
        if stop():
            raise Interrupted("stopped while another purge was waited for; nothing was done")


@repeated
def _rehearse(runtime: Runtime, started: float, retention: timedelta, max_rows: int | None) -> Purge:
    dead_since = runtime.clock() - micros(retention)
    with runtime.storage.read() as connection:
        found = purging.count_dead(connection, dead_since=dead_since)
        space = runtime.storage.space(connection)
    would = found if max_rows is None else min(found, max_rows)
    return Purge(
        purged=would,
        batches=0,
        seconds=_seconds(started),
        dead_since=dead_since,
        complete=would == found,
        dry_run=True,
        size_bytes=space.taken,
        free_bytes=space.free,
    )


class _Run:
    """One pass over the table: what it deletes, how much it has, and the place where it is."""

    def __init__(self, runtime: Runtime, job: Job, *, dead_since: int, actor: str) -> None:
        self.dead_since = dead_since
        self.purged = self.batches = 0
        self._runtime = runtime
        self._job = job
        self._actor = actor
        self._place: Place | None = None

    def delete(
        self, batch: int, max_rows: int | None, over: Stop, progress: Callable[[int, int], None] | None
    ) -> bool:
        """Batch after batch; whether nothing is left that could be deleted."""
        total = since_checkpoint = 0
        one_writer, others_wrote = self._runtime.storage.one_writer, False
        if progress is not None:
            total = self._count()
            progress(0, total)
        while not over():
            limit = batch if max_rows is None else min(batch, max_rows - self.purged)
            if limit <= 0:
                return not self._any_left()
            if one_writer and others_wrote:  # they wait for as long as a batch takes
                limit = min(limit, max(batch // _BESIDE_OTHERS, _SMALL))
            began = time.monotonic()
            stretch, others_wrote = self._delete_next(limit)
            if stretch.deleted:
                self.purged += stretch.deleted
                self.batches += 1
                if progress is not None:
                    progress(self.purged, total)
            if stretch.is_last:
                return True
            self._place = stretch.last
            worked = time.monotonic() - began
            since_checkpoint += limit
            if since_checkpoint >= _CHECKPOINT_ROWS // (_BESIDE_OTHERS if others_wrote else 1):
                self._runtime.storage.checkpoint()
                since_checkpoint = 0
            if others_wrote:  # they get the writer, and the machine, for as long as we had them
                time.sleep(worked)
        return False

    @repeated
    def _delete_next(self, limit: int) -> tuple[Stretch, bool]:
        """One transaction, with the event that reports it; and whether somebody else wrote before it."""
        found = None
        if self._runtime.storage.one_writer:  # searching takes no lock; only the deleting does
            found = self._search(limit)
            if found is None:
                return Stretch(0, self._place, is_last=True), False
        with self._job.write() as connection:
            others_wrote = self._job.others_wrote(connection)
            if found is not None:
                stretch = purging.delete_between(connection, *found, dead_since=self.dead_since)
            else:
                stretch = purging.delete_after(
                    connection, after=self._place, dead_since=self.dead_since, limit=limit
                )
            if stretch.deleted:
                facts = {"purged": stretch.deleted}
                event = Event(at=self._runtime.clock(), type="purge.batch", actor=self._actor, data=facts)
                events.add(connection, [event])
        return stretch, others_wrote

    def _search(self, limit: int) -> tuple[bytes, bytes] | None:
        with self._job.read() as connection:
            return purging.next_dead(connection, after=self._place, dead_since=self.dead_since, limit=limit)

    @repeated
    def _count(self) -> int:
        with self._job.read() as connection:
            return purging.count_dead(connection, dead_since=self.dead_since)

    @repeated
    def _any_left(self) -> bool:
        with self._job.read() as connection:
            return purging.any_left(connection, after=self._place, dead_since=self.dead_since)


@repeated
def _leave_record(runtime: Runtime, job: Job, facts: dict[str, int], actor: str) -> None:
    """By it the next run can tell that the clock moves as it should."""
    with job.write() as connection:
        events.add(connection, [Event(at=runtime.clock(), type="purge", actor=actor, data=facts)])


@repeated
def _demand_plausible_clock(job: Job, retention: timedelta, now: int) -> None:
    """A clock that is years ahead makes everything look dead, and what is deleted stays deleted.

    It shows as a leap in what was written since the last purge. To look at the newest write alone would
    not do: the first refresh under a wrong clock is a write, too.
    """
    limit = micros(max(retention, _DAY))
    with job.read() as connection:
        fall = events.fall_since_last_purge(connection, longer_than=limit, now=now)
        if fall is not None:
            # A revocation written then looks as old as that: its evidence would be gone at once.
            raise ClockSuspect(
                f"between two writes the clock went back {(fall[0] - fall[1]) / micros(_DAY):.1f} days, so "
                "what was revoked meanwhile may look older than it is, and nothing was deleted",
                hint="check the date of every node; if nothing of it matters: tokenctl purge --force",
            )
        for before, after in events.gaps_since_last_purge(connection, longer_than=limit, now=now):
            # Rotations leave no event while nothing changes: only then it pays to look at every row. What
            # was written shortly before the end of the leap proves nothing: the clock may have been wrong.
            if not tokens.written_between(connection, after - limit, after - limit // 2):
                raise ClockSuspect(
                    f"between two writes lie {(after - before) / micros(_DAY):.1f} days, so the clock may be "
                    "wrong, and nothing was deleted",
                    hint="check the date; if it is right: tokenctl purge --force",
                )


def _seconds(started: float) -> float:
    return round(time.monotonic() - started, 3)
