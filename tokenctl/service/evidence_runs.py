"""Sorting the events of an evidence bundle, of which there may be more than fit into memory.

Logins are read a thousand at a time, and so are their events: each thousand is a sorted run, and the whole is
merged from these.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from tokenctl.service import evidence_lines
from tokenctl.service.evidence_lines import encoded
from tokenctl.storage.evidence import SlicedEvent

#: How much of each run is in memory while they are merged.
_PIECE = 1 << 13
_ID_DIGITS = 19


def least(known: int | None, value: int) -> int:
    """The smaller one, where something is known already."""
    return value if known is None else min(known, value)


def most(known: int | None, value: int) -> int:
    """The larger one, where something is known already."""
    return value if known is None else max(known, value)


class Runs:
    """Sorted runs of events in one file, to be merged: no more of it than a piece of each is in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._ends = [0]
        #: Of all events (µs).
        self.first_at: int | None = None
        self.last_at: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, events: Iterable[SlicedEvent]) -> None:
        """The next run, in order of id: whole, or as if it had never begun."""
        self._file.seek(self._ends[-1])
        self._file.truncate()
        first_at, last_at = self.first_at, self.last_at
        for sliced in events:
            first_at, last_at = least(first_at, sliced.event.at), most(last_at, sliced.event.at)
            # As wide as any id, so that lines sort as numbers do.
            event_id = b"%0*d" % (_ID_DIGITS, sliced.event.id or 0)
            self._file.write(event_id + encoded(evidence_lines.event(sliced)))
        self._ends.append(self._file.tell())
        self.first_at, self.last_at = first_at, last_at

    def merged(self) -> Iterator[bytes]:
        """The lines of all runs in order of id, each event once."""
        self._file.flush()
        last = b""
        for line in heapq.merge(*map(self._run, self._ends, self._ends[1:])):
            event_id = line[:_ID_DIGITS]
            if event_id != last:
                yield line[_ID_DIGITS:]
            last = event_id

    def _run(self, place: int, end: int) -> Iterator[bytes]:
        left = b""
        while place < end:
            piece = os.pread(self._file.fileno(), min(_PIECE, end - place), place)
            place += len(piece)
            *lines, left = (left + piece).split(b"\n")
            for line in lines:
                yield line + b"\n"
