"""Sealing: committed events go into segments, each of which is chained to the one before.

Owns the pace, and that of several sealers at once none does harm. They need no lock of their own: whoever
inserts a segment of a number that is there already finds the primary key in its way, keeps nothing, and
begins again behind the other one's. On SQLite there is one writer anyhow. A lock would have to be taken and
waited for, and could be left behind; the key must be right in any case.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from tokenctl.core import audit_chain
from tokenctl.core.audit_chain import Anchor, Head
from tokenctl.errors import TokenctlError
from tokenctl.service.revocation import Stop, never
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, segments
from tokenctl.storage.engine import Connection
from tokenctl.storage.segments import MOST_EVENTS, Segment

#: After so many segments the log goes into the file, between two transactions: see `service.purge`.
_CHECKPOINT_SEGMENTS = 40


@dataclass(frozen=True, slots=True)
class Sealed:
    """How many segments were closed, over how many events."""

    segments: int = 0
    events: int = 0


def seal(runtime: Runtime, stop: Stop = never) -> Sealed:
    """Put the events that are in no segment into new ones, of at most 200 each and a transaction each.

    Those up to the newest when it begins: it would never end if it went after all that come meanwhile. What
    another sealer has in hand is left to that one, and what commits late, behind it, to the next run. Ends
    after the transaction in hand when `stop` returns True. Raises the errors of `Runtime.keys`.
    """
    key = runtime.keys.audit
    done, count = 0, 0
    last = _newest_id(runtime)
    first = _first_unsealed(runtime, None)
    while first is not None and first <= last and not stop():
        began = time.monotonic()
        event_ids = _seal_chunk(runtime, key, first)
        done += bool(event_ids)
        count += len(event_ids)
        if len(event_ids) == MOST_EVENTS:  # a backlog
            first = event_ids[-1] + 1
            if done % _CHECKPOINT_SEGMENTS == 0:
                runtime.storage.checkpoint()
            # Others get the writer, and the interpreter, for as long as we had it. Not only while somebody
            # writes: a pool has many connections, and each tells a story of its own about that.
            time.sleep(time.monotonic() - began)
        else:
            # Ids that were rolled back, or are sealed already, may fill more than one window.
            behind = first + segments.WINDOW
            first = _first_unsealed(runtime, behind) if behind <= last else None
    return Sealed(done, count)


def seal_in_passing(runtime: Runtime, stop: Stop = never) -> Sealed:
    """`seal` by who came for something else: without the key, or where it fails, the next one does it."""
    with suppress(TokenctlError):
        if runtime.has_master_key:
            return seal(runtime, stop)
    return Sealed()


@repeated
def _newest_id(runtime: Runtime) -> int:
    with runtime.storage.read() as connection:
        return events.newest_id(connection)


@repeated
def _first_unsealed(runtime: Runtime, first: int | None) -> int | None:
    """The id of the first event, from that one on, that is in no segment."""
    with runtime.storage.read() as connection:
        return segments.first_unsealed(connection, first)


@repeated
def _seal_chunk(runtime: Runtime, key: bytes, first: int) -> list[int]:
    """One transaction: the ids of the events that it sealed, from `first` on, in order."""
    with runtime.storage.write() as connection:
        head = segments.head(connection) or _archived(connection, key)
        taken = segments.take_unsealed(connection, first)
        if not taken:
            return []
        number, previous = (1, audit_chain.NO_SEGMENT) if head is None else (head.number + 1, head.mac)
        members, now = audit_chain.seal_events(key, taken), runtime.clock()
        mac = audit_chain.segment_mac(
            key,
            previous=previous,
            number=number,
            sealed_at=now,
            members_hash=audit_chain.hash_members(members),
        )
        new = Segment(number=number, sealed_at=now, events=len(taken), members=members, mac=mac)
        event_ids = [event.id for event in taken]
        segments.insert(connection, new, event_ids)
    return event_ids


def _archived(connection: Connection, key: bytes) -> Head | None:
    """The last archived segment, where nothing is behind it: somebody cut it off."""
    text = segments.anchor(connection)
    anchor = None if text is None else Anchor.parse(text)
    return anchor.head if anchor is not None and anchor.holds(key) else None
