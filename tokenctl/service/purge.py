"""Purging: deleting what is dead for long enough, in small transactions, and nothing else.

Owns the pace, the one-runner lock and the suspicion against the clock. What "dead" means is the
condition in `storage.tokens`, which every batch asks again under the write lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from tokenctl.errors import ClockSuspect
from tokenctl.service.revocation import Stop
from tokenctl.service.runtime import Runtime, micros
from tokenctl.service.sealing import seal_in_passing
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, tokens
from tokenctl.storage.events import Event

DEFAULT_BATCH = 1_000
#: So many rows later the log goes into the file, between two batches: a commit that also did that would hold
#: the writer for as long.
_CHECKPOINT_ROWS = 8_000
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """What a purge did. `dead_since` (µs): rows dead at that instant already were deleted.

    complete: False when `stop` or `max_runtime` ended it early; the next run goes on.
    """

    purged: int
    batches: int
    seconds: float
    dead_since: int
    complete: bool
    dry_run: bool = False


def purge(
    runtime: Runtime,
    *,
    retention: timedelta,
    batch: int,
    dry_run: bool,
    force: bool,
    max_runtime: timedelta | None,
    lock_wait: timedelta,
    stop: Stop,
    progress: Callable[[int, int], None] | None,
    actor: str,
) -> Purge:
    """Delete rows that were dead before `retention` ago. See `TokenService.purge`."""
    started = time.monotonic()
    if dry_run:
        dead_since = runtime.clock() - micros(retention)
        with runtime.storage.read() as connection:
            found = tokens.count_dead(connection, dead_since=dead_since)
        return _report(started, found, 0, dead_since, complete=True, dry_run=True)

    def over() -> bool:
        late = max_runtime is not None and time.monotonic() - started >= max_runtime.total_seconds()
        return late or stop()

    with runtime.storage.exclusive("purge", wait=lock_wait.total_seconds()):
        # After the waiting, and once: the clock may be put right at any moment, and then the time that was
        # found plausible must be the time that is deleted by.
        now = runtime.clock()
        if not force:
            _demand_plausible_clock(runtime, retention, now)
        dead_since = now - micros(retention)
        purged, batches, complete = _delete(
            runtime, dead_since, batch, over=over, progress=progress, actor=actor
        )
        facts = {"purged": purged, "batches": batches, "complete": complete}
        with runtime.storage.write() as connection:
            # By it the next run can tell that the clock moves as it should.
            events.add(connection, [Event(at=runtime.clock(), type="purge", actor=actor, data=facts)])
    seal_in_passing(runtime, over)
    return _report(started, purged, batches, dead_since, complete=complete)


def _delete(
    runtime: Runtime,
    dead_since: int,
    batch: int,
    *,
    over: Stop,
    progress: Callable[[int, int], None] | None,
    actor: str,
) -> tuple[int, int, bool]:
    """How many rows and batches, and whether all that was found is deleted."""
    purged = batches = total = 0
    if progress is not None:
        with runtime.storage.read() as connection:
            total = tokens.count_dead(connection, dead_since=dead_since)
        progress(0, total)
    after, since_checkpoint, version = b"", 0, None
    while not over():
        began = time.monotonic()
        # Searching takes no lock; only the deleting does.
        with runtime.storage.read() as connection:
            found = tokens.next_dead(connection, after=after, dead_since=dead_since, limit=batch)
        if found is None:
            return purged, batches, True
        before = version
        deleted, version = _delete_batch(runtime, found, dead_since, actor=actor)
        purged += deleted
        batches += 1
        after = found[1]
        if progress is not None:
            progress(purged, total)
        worked = time.monotonic() - began
        since_checkpoint += batch
        if since_checkpoint >= _CHECKPOINT_ROWS:
            runtime.storage.checkpoint()
            since_checkpoint = 0
        if version != before:  # somebody else writes: they get the writer for as long as we had it
            time.sleep(worked)
    return purged, batches, False


@repeated
def _delete_batch(
    runtime: Runtime, between: tuple[bytes, bytes], dead_since: int, *, actor: str
) -> tuple[int, int]:
    """One transaction: how many rows it deleted, and the version of the database that it found."""
    with runtime.storage.write() as connection:
        version = runtime.storage.data_version(connection)
        deleted = tokens.delete_dead(connection, *between, dead_since=dead_since)
        event = Event(at=runtime.clock(), type="purge.batch", actor=actor, data={"purged": deleted})
        events.add(connection, [event])
    return deleted, version


@repeated
def _demand_plausible_clock(runtime: Runtime, retention: timedelta, now: int) -> None:
    """A clock that is years ahead makes everything look dead, and what is deleted stays deleted.

    It shows as a leap in what was written since the last purge. To look at the newest write alone would
    not do: the first refresh under a wrong clock is a write, too.
    """
    limit = micros(max(retention, _DAY))
    with runtime.storage.read() as connection:
        for before, after in events.gaps_since_last_purge(connection, longer_than=limit, now=now):
            # Rotations leave no event while nothing changes: only then it pays to look at every row. What
            # was written shortly before the end of the leap proves nothing: the clock may have been wrong.
            if not tokens.written_between(connection, after - limit, after - limit // 2):
                raise ClockSuspect(
                    f"between two writes lie {(after - before) / micros(_DAY):.1f} days, so the clock may be "
                    "wrong, and nothing was deleted",
                    hint="check the date; if it is right: tokenctl purge --force",
                )


def _report(
    started: float, purged: int, batches: int, dead_since: int, *, complete: bool, dry_run: bool = False
) -> Purge:
    return Purge(
        purged=purged,
        batches=batches,
        seconds=round(time.monotonic() - started, 3),
        dead_since=dead_since,
        complete=complete,
        dry_run=dry_run,
    )
