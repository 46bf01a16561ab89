"""Verifying the seal: what in the database, or in a chain from elsewhere, is not what was sealed.

Owns the words for what can be wrong, and the walk along the chain in the database, one segment at a time.
What an export looks like is `exporting`; what is under a MAC is `core.audit_chain`.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from tokenctl.core import audit_chain
from tokenctl.core.audit_chain import MEMBER_BYTES, NO_SEGMENT, Anchor, Head, StoredEvent, event_mac
from tokenctl.errors import DatabaseFull, DatabaseReadOnly, InvalidInput
from tokenctl.service.revocation import Progress, unseen
from tokenctl.service.runtime import Runtime
from tokenctl.service.sealing import seal
from tokenctl.service.transactions import repeated
from tokenctl.storage import segments
from tokenctl.storage.segments import CHUNK, Segment

#: Findings that are kept; of what comes after these only the number is told.
MOST_FINDINGS = 1_000


class FindingKind(StrEnum):
    """What can be wrong. A line is one of an export."""

    EDITED_EVENT = "edited_event"
    DELETED_EVENT = "deleted_event"
    INSERTED_EVENT = "inserted_event"
    EDITED_SEGMENT = "edited_segment"
    EDITED_ANCHOR = "edited_anchor"
    EDITED_EXPORT = "edited_export"
    MISSING_SEGMENT = "missing_segment"
    CUT = "cut"
    REWRITTEN = "rewritten"
    DAMAGED_LINE = "damaged_line"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was sealed; `detail` is a sentence."""

    kind: FindingKind
    segment: int | None
    event_id: int | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a verification saw: so many events in so many segments, and so many in none.

    `first` is the number of the oldest segment and `head` the newest one; None when there is none. `findings`
    are the first 1,000 in the order of the chain, and `found` is how many there are. archived: the number of
    the last segment that was archived; None when none was.

    Of an export: `since` and `until` (µs) as its first line has them; `ends_proven`, whether a MAC says that
    it begins and ends where it did when it was written. Of a database that is None.
    """

    segments: int
    events: int
    unsealed: int
    first: int | None
    head: Head | None
    findings: tuple[Finding, ...]
    found: int
    archived: int | None = None
    since: int | None = None
    until: int | None = None
    ends_proven: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return self.found == 0


@dataclass(slots=True)
class Findings:
    """A verification under way. `kept`: a head from elsewhere, through which the chain must lead."""

    kept: Head | None
    progress: Progress
    segments: int = 0
    events: int = 0
    unsealed: int = 0
    first: int | None = None
    head: Head | None = None
    archived: Head | None = None
    found: int = 0
    _first_ones: list[Finding] = field(default_factory=list)
    _met: bool = False

    def add(
        self, kind: FindingKind, detail: str, *, segment: int | None, event_id: int | None = None
    ) -> None:
        """Something is wrong."""
        self.found += 1
        if len(self._first_ones) < MOST_FINDINGS:
            self._first_ones.append(Finding(kind, segment, event_id, detail))

    def pass_segment(self, head: Head) -> None:
        """The next segment of the chain, whose events come now."""
        self.segments += 1
        self.first = head.number if self.first is None else self.first
        self.head = head
        self._meet(head)

    def pass_archive(self, head: Head) -> None:
        """What comes now is behind the segments up to that one, which were archived."""
        self.archived = head
        self._meet(head)

    def demand_not_archived(self, last: Head) -> None:
        """Raises InvalidInput for a kept head of a segment before that one, which is not here any more."""
        if self.kept is not None and not self._met and self.kept.number < last.number:
            raise InvalidInput(
                f"the kept head is of segment {self.kept.number}, and the segments 1 to {last.number} are "
                "archived: nothing here can prove it",
                hint=f"tokenctl audit verify --head {self.kept} --export FILE, with the archive that has it",
            )

    def _meet(self, head: Head) -> None:
        if self.kept is None or self.kept.number != head.number:
            return
        self._met = True
        if not hmac.compare_digest(self.kept.mac, head.mac):
            self.add(
                FindingKind.REWRITTEN,
                f"the kept head is of another segment {head.number}: the chain was rewritten since",
                segment=head.number,
            )

    def result(self) -> Verification:
        """At the end of the chain."""
        if self.kept is not None and not self._met:
            there = "there is no segment"
            if self.archived is not None:
                there = f"there is none behind {self.archived.number}, the last that is archived"
            if self.head is not None and self.first is not None:
                there = f"the chain begins with {self.first} and ends with {self.head.number}"
            self.add(
                FindingKind.CUT,
                f"the kept head is of segment {self.kept.number}, which is not there; {there}",
                segment=self.kept.number,
            )
        return Verification(
            segments=self.segments,
            events=self.events,
            unsealed=self.unsealed,
            first=self.first,
            head=self.head,
            findings=tuple(self._first_ones),
            found=self.found,
            archived=None if self.archived is None else self.archived.number,
        )


def verify(runtime: Runtime, *, head: Head | None, progress: Progress = unseen) -> Verification:
    """Seal what can be sealed, then follow the whole chain. See `AuditLog.verify`."""
    walk = _Walk(runtime, Findings(head, progress))
    # A copy on a medium that cannot be written to can be looked at, and a log on a disk that is full.
    with suppress(DatabaseReadOnly, DatabaseFull):
        seal(runtime)
    return walk.run()


class _Walk:
    """Along the chain in the database."""

    def __init__(self, runtime: Runtime, findings: Findings) -> None:
        self._runtime = runtime
        self._findings = findings
        self._key = runtime.keys.audit
        self._number = 0
        #: The number of the last segment that was archived.
        self._archived = 0
        self._anchor: str | None = None
        #: What the next segment may be chained to; nothing when the segment before it is missing.
        self._previous: set[bytes] = {NO_SEGMENT}

    def run(self) -> Verification:
        while (segment := self._next()) is not None:
            if segment.number <= self._archived:
                self._edited(segment, "it was archived, and is there again")
                self._number = segment.number
                continue
            self._demand_next(segment)
            self._findings.pass_segment(Head(segment.number, segment.mac, segment.sealed_at))
            self._demand_mac(segment)
            self._compare(segment)
            self._number = segment.number
        self._look_behind()
        return self._findings.result()

    def _demand_next(self, segment: Segment) -> None:
        first, last = max(self._number, self._archived) + 1, segment.number - 1
        if first > last:
            return
        named = _count_naming(self._runtime, first, last)
        missing = f"segment {first} is" if first == last else f"the segments {first} to {last} are"
        self._findings.add(
            FindingKind.MISSING_SEGMENT,
            f"{missing} missing, so that {segment.number} cannot be checked whole; events that name what is "
            f"missing: {named:,}",
            segment=first,
        )
        self._previous = set()

    def _demand_mac(self, segment: Segment) -> None:
        # Where the MAC before was changed, this segment is still chained to the right one: one finding each.
        members_hash = audit_chain.hash_members(segment.members)
        macs = {
            audit_chain.segment_mac(
                self._key,
                previous=previous,
                number=segment.number,
                sealed_at=segment.sealed_at,
                members_hash=members_hash,
            )
            for previous in self._previous
        }
        if macs and segment.mac not in macs:
            self._edited(segment, "its MAC does not hold: what it lists, its instant or its MAC was changed")
        elif segment.events * MEMBER_BYTES != len(segment.members):
            listed = len(segment.members) // MEMBER_BYTES
            self._edited(segment, f"it says that it holds {segment.events:,} events, and lists {listed:,}")
        self._previous = {segment.mac, *macs}

    def _edited(self, segment: Segment, detail: str) -> None:
        self._findings.add(FindingKind.EDITED_SEGMENT, detail, segment=segment.number)

    def _compare(self, segment: Segment) -> None:
        """The events that name the segment with those that it lists."""
        listed, number = dict(audit_chain.split_members(segment.members)), segment.number
        for event in self._events(number):
            mac = listed.pop(event.id, None)
            if mac is None:
                self._findings.add(
                    FindingKind.INSERTED_EVENT,
                    "it names a segment that does not list it",
                    segment=number,
                    event_id=event.id,
                )
            elif not hmac.compare_digest(mac, event_mac(self._key, event)):
                self._findings.add(
                    FindingKind.EDITED_EVENT,
                    "it is not what was sealed: one of its columns was changed",
                    segment=number,
                    event_id=event.id,
                )
        left = list(listed)
        for start in range(0, len(left), CHUNK):
            self._missing(number, left[start : start + CHUNK])

    def _events(self, number: int) -> Iterator[StoredEvent]:
        after, full = None, True
        while full:
            page = events_of(self._runtime, number, after)
            yield from page
            full = len(page) == CHUNK
            after = page[-1].id if page else None
            self._findings.events += len(page)
            self._findings.progress(len(page))

    def _missing(self, number: int, event_ids: list[int]) -> None:
        """Events that the segment lists and that do not name it."""
        named, anchor = _named_segments(self._runtime, event_ids)
        self._take_anchor(anchor)
        if number <= self._archived:  # archived while we looked at it
            return
        for event_id in event_ids:
            if event_id not in named:
                kind, detail = FindingKind.DELETED_EVENT, "it was sealed, and is not there any more"
            else:
                of = "none" if named[event_id] is None else str(named[event_id])
                kind, detail = FindingKind.EDITED_EVENT, f"the segment that it names was changed to {of}"
            self._findings.add(kind, detail, segment=number, event_id=event_id)

    def _look_behind(self) -> None:
        """What names no segment of the chain, and what is not sealed."""
        after: int | None = None
        while page := _strays(self._runtime, max(self._number, self._archived), self._archived, after):
            for event_id, number in page:
                self._findings.add(
                    FindingKind.INSERTED_EVENT,
                    "it names a segment that does not exist",
                    segment=number,
                    event_id=event_id,
                )
            after = page[-1][0]
        self._findings.unsealed = _count_unsealed(self._runtime)

    def _next(self) -> Segment | None:
        """The next segment. What is archived while we are on our way is passed over."""
        segment, anchor = next_segment(self._runtime, self._number)
        self._take_anchor(anchor)
        return segment

    def _take_anchor(self, text: str | None) -> None:
        if text is None or text == self._anchor:
            return
        self._anchor = text
        anchor = genuine_anchor(self._key, text, self._findings)
        if anchor is None:
            return
        self._archived = anchor.head.number
        if self._number < self._archived:
            self._findings.demand_not_archived(anchor.head)
            self._findings.pass_archive(anchor.head)
            self._previous = {anchor.head.mac}


def genuine_anchor(key: bytes, text: str | None, findings: Findings) -> Anchor | None:
    """What stands for the archived segments; when that is none of ours, it is found and not believed."""
    anchor = None if text is None else Anchor.parse(text)
    if anchor is not None and anchor.holds(key):
        return anchor
    if text is not None:
        findings.add(
            FindingKind.EDITED_ANCHOR,
            "what says how far the log was archived was changed, or made without the key, and proves nothing",
            segment=None,
        )
    return None


# --- one transaction each --------------------------------------------------------------------


@repeated
def next_segment(runtime: Runtime, number: int) -> tuple[Segment | None, str | None]:
    """The next segment behind that number, and the anchor as it stands at that time."""
    with runtime.storage.read() as connection:
        return segments.next_after(connection, number), segments.anchor(connection)


@repeated
def events_of(runtime: Runtime, number: int, after: int | None) -> list[StoredEvent]:
    """The next events that name the segment, at most CHUNK."""
    with runtime.storage.read() as connection:
        return segments.events_of(connection, number, after=after)


@repeated
def _named_segments(runtime: Runtime, event_ids: list[int]) -> tuple[dict[int, int | None], str | None]:
    with runtime.storage.read() as connection:
        return segments.named_segments(connection, event_ids), segments.anchor(connection)


@repeated
def _count_naming(runtime: Runtime, first: int, last: int) -> int:
    with runtime.storage.read() as connection:
        return segments.count_naming(connection, first, last)


@repeated
def _strays(runtime: Runtime, number: int, archived: int, after: int | None) -> list[tuple[int, int]]:
    with runtime.storage.read() as connection:
        return segments.strays(connection, number, archived=archived, after=after)


@repeated
def _count_unsealed(runtime: Runtime) -> int:
    with runtime.storage.read() as connection:
        return segments.count_unsealed(connection)
