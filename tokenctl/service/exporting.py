"""The audit log as a file: JSON lines that other tools can read, and that the key holder can verify.

Owns the form of the lines, once for writing and once, strictly, for reading. The first line says what it
is, then each segment comes with its events behind it, then perhaps `{"segment": null}` with those that are
not sealed, and the last line has the head, so that a file that was cut is known.

An event's MAC stands on its line, so that one that was edited can be named; the segment's own is over all of
them. Where the master key is at hand the last line has a MAC, too: over the first line, over where the
segments begin and end, and over the events behind them.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, NamedTuple

from tokenctl.core import audit_chain
from tokenctl.core.audit_chain import NO_SEGMENT, Anchor, Ends, Head, StoredEvent, event_mac
from tokenctl.core.context import pack_ip, unpack_ip
from tokenctl.core.ids import TOKEN_PREFIX, USER_PREFIX
from tokenctl.errors import Contended, InvalidInput, KeyMissing, KeyUnusable, KeyWrong
from tokenctl.service.instants import show_utc
from tokenctl.service.revocation import unseen
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.service.verifying import (
    FindingKind,
    Findings,
    Verification,
    events_of,
    genuine_anchor,
    next_segment,
)
from tokenctl.storage import files, segments
from tokenctl.storage.events import data_text, parse_data
from tokenctl.storage.segments import CHUNK, Segment

#: The version of the form.
FORMAT = 1
#: Bytes of a line: many times those of the longest one that we write.
LONGEST_LINE = 1 << 20

Line = dict[str, Any]
#: What an export is read from: a binary stream, packed by gzip or not, or its lines.
Source = BinaryIO | Iterable[str | bytes]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z|@-?[0-9]{1,19}", re.ASCII
)
_HEX = re.compile("(?:[0-9a-f]{2})*", re.ASCII)
_HINT = "hand in a whole file as `tokenctl audit export` wrote it"
_GZIP = b"\x1f\x8b"
#: The events after which a login is revoked.
_REVOKING = frozenset({"token.revoke", "token.reuse"})
_KEEPING_OUT = frozenset(
    {"cutoff.set", "cutoff.clear", "user.disable", "user.enable", "user.delete", "user.password"}
)
#: Bytes of ids that are held in memory; more go to a temporary file.
_IN_MEMORY = 16_000_000


# --- writing ---------------------------------------------------------------------------------


def export(
    runtime: Runtime,
    *,
    since: int | None,
    until: int | None,
    unsealed: bool = True,
    up_to: int | None = None,
) -> Iterator[Line]:
    """The lines. Whole segments: from the first to the last that has an event of [since, until) (µs).

    unsealed: with the events that are in no segment, of [since, until) only. up_to: the number of the last
    segment, where it is not to go as far as it can. Raises Contended when the log is archived meanwhile.
    """
    key, exported_at = _key_at_hand(runtime), runtime.clock()
    began_behind = _anchor(runtime)
    anchor = _genuine(key, began_behind)
    line = {
        "tokenctl_audit": FORMAT,
        "exported_at": show_utc(exported_at),
        "since": None if since is None else show_utc(since),
        "until": None if until is None else show_utc(until),
    }
    yield line if anchor is None else line | {"archived": str(anchor)}
    number, last, newest = _bounds(runtime, since, until)
    last = up_to if last is None else last
    first: int | None = None
    head = None if anchor is None else anchor.head
    while (segment := _next_segment(runtime, number, began_behind)) is not None:
        if last is not None and segment.number > last:
            break
        yield from _segment_lines(runtime, segment, head)
        first = segment.number if first is None else first
        number, head = segment.number, Head(segment.number, segment.mac, segment.sealed_at)
    _next_segment(runtime, number, began_behind)  # the last one may have been archived under our eyes
    behind = _Members(key)
    if unsealed:
        # Those, too, that were sealed meanwhile: no event is left out.
        yield from _unsealed_lines(runtime, max(number, newest), since, until, behind)
    end = None if head is None or first is None else str(head)
    mac = None
    if key is not None:
        beginning = None if anchor is None else str(anchor)
        ends = Ends(exported_at, since, until, first, end, behind.digest(), beginning)
        mac = audit_chain.export_mac(key, ends).hex()
    yield {"head": end, "mac": mac}


def _key_at_hand(runtime: Runtime) -> bytes | None:
    """Of one that is no good whoever asked for it before was told, and went on without."""
    try:
        return runtime.keys.audit
    except (KeyMissing, KeyUnusable, KeyWrong):
        return None


@repeated
def _anchor(runtime: Runtime) -> str | None:
    with runtime.storage.read() as connection:
        return segments.anchor(connection)


def _genuine(key: bytes | None, text: str | None) -> Anchor | None:
    """What the export begins behind. One made without the key is left out, and what it hides is found."""
    anchor = None if text is None else Anchor.parse(text)
    return anchor if anchor is not None and (key is None or anchor.holds(key)) else None


def _next_segment(runtime: Runtime, number: int, began_behind: str | None) -> Segment | None:
    """The next segment. Raises Contended when the anchor is not the one of the beginning any more."""
    segment, anchor = next_segment(runtime, number)
    if anchor != began_behind:
        raise Contended("the log was archived while it was exported", hint="repeat the command")
    return segment


class _Members:
    """A sum over events in their order, as `hash_members` is; without the key over none."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        self._sum = hashlib.sha256()

    def add(self, event: StoredEvent) -> None:
        if self._key is not None:
            self._sum.update(audit_chain.member(event.id, event_mac(self._key, event)))

    def digest(self) -> bytes:
        return self._sum.digest()


def write_export(lines: Iterable[Line], path: Path, look: Callable[[Path], None] | None = None) -> int:
    """A new file of mode 0600 with these lines, whole or not there; how many lines. Raises InvalidInput.

    `look` gets it when it is on the disk and has another name yet; what it raises leaves no file.
    """
    count = 0

    def write(building: Path) -> None:
        nonlocal count
        with building.open("r+b") as file:
            for line in lines:
                file.write(json.dumps(line).encode("ascii") + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if look is not None:
            look(building)

    try:
        files.create(path, write)
    except FileExistsError:
        raise InvalidInput(f"{path} is there already, and stays as it is", hint="name a new file") from None
    return count


@repeated
def _bounds(runtime: Runtime, since: int | None, until: int | None) -> tuple[int, int | None, int]:
    """The number before the first segment, the last one (None: as far as it goes), and the newest one now."""
    if since is None and until is None:
        return 0, None, 0
    with runtime.storage.read() as connection:
        found, head = segments.bounds(connection, since, until), segments.head(connection)
    newest = 0 if head is None else head.number
    if found is None:
        return 0, 0, newest
    return 0 if since is None else found[0] - 1, found[1], newest


def _segment_lines(runtime: Runtime, segment: Segment, before: Head | None) -> Iterator[Line]:
    previous = before.mac if before is not None and before.number == segment.number - 1 else None
    if previous is None:
        previous = NO_SEGMENT if segment.number == 1 else _mac_of(runtime, segment.number - 1)
    yield {
        "segment": segment.number,
        "sealed_at": show_utc(segment.sealed_at),
        "events": segment.events,
        "previous": None if previous is None else previous.hex(),
        "mac": segment.mac.hex(),
    }
    macs = dict(audit_chain.split_members(segment.members))
    for event in _pages(lambda after: events_of(runtime, segment.number, after)):
        mac = macs.get(event.id)
        yield _event_line(event) | {"mac": None if mac is None else mac.hex()}


def _unsealed_lines(
    runtime: Runtime, number: int, since: int | None, until: int | None, behind: _Members
) -> Iterator[Line]:
    first = True
    for event in _pages(lambda after: _events_behind(runtime, number, after, since, until)):
        if first:
            yield {"segment": None}
            first = False
        behind.add(event)
        yield _event_line(event)


def _pages(read: Callable[[int | None], list[StoredEvent]]) -> Iterator[StoredEvent]:
    after: int | None = None
    while page := read(after):
        yield from page
        if len(page) < CHUNK:
            return
        after = page[-1].id


def _event_line(event: StoredEvent) -> Line:
    data = parse_data(event.data)
    return {
        "event": event.id,
        "at": show_utc(event.at),
        "type": event.type,
        "actor": event.actor,
        "user_id": None if event.user_id is None else USER_PREFIX + event.user_id.hex(),
        "token_id": None if event.token_id is None else TOKEN_PREFIX + event.token_id.hex(),
        "client": event.client_id,
        "ip": None if event.ip is None else unpack_ip(event.ip),
        "reason": event.reason,
        # The MAC is over the text. One that we have not written would not come out of its values again.
        "data": data if data_text(data) == event.data else event.data,
    }


@repeated
def _mac_of(runtime: Runtime, number: int) -> bytes | None:
    with runtime.storage.read() as connection:
        return segments.mac_of(connection, number)


@repeated
def _events_behind(
    runtime: Runtime, number: int, after: int | None, since: int | None, until: int | None
) -> list[StoredEvent]:
    with runtime.storage.read() as connection:
        return segments.events_behind(connection, number, after=after, since=since, until=until)


# --- reading ---------------------------------------------------------------------------------


class _Header(NamedTuple):
    exported_at: int
    since: int | None
    until: int | None
    anchor: Anchor | None


class _SegmentLine(NamedTuple):
    number: int
    sealed_at: int
    events: int
    previous: bytes | None
    mac: bytes


class _Unsealed(NamedTuple):
    """The events behind it are in no segment."""


class _EventLine(NamedTuple):
    event: StoredEvent
    #: None for one that its segment did not list, or that is in none.
    mac: bytes | None
    line: Line


class _Last(NamedTuple):
    head: str | None
    #: None when it was exported without the key.
    mac: bytes | None


_Entry = _Header | _SegmentLine | _Unsealed | _EventLine | _Last


def _lines(source: Source) -> Iterator[str | bytes]:
    """Each line. Of a stream's no more is held than is too much; what gzip has packed is unpacked."""
    if not isinstance(source, io.BufferedIOBase):
        yield from source
        return
    begin = source.read(len(_GZIP))
    rest = io.BufferedReader(_Rejoined(begin, source))
    stream = gzip.GzipFile(fileobj=rest, mode="rb") if begin == _GZIP else rest
    number = 1
    try:
        while line := stream.readline(LONGEST_LINE + 1):
            yield line
            number += 1
            is_cut = len(line) > LONGEST_LINE
            while is_cut and line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_LINE)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise _no_export(number, "what gzip has packed is damaged or cut from here on") from None


class _Rejoined(io.RawIOBase):
    """A stream with what was read of it already in front again. Closing it closes nothing else."""

    def __init__(self, begin: bytes, rest: io.BufferedIOBase) -> None:
        self._begin = begin
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._begin[: len(buffer)] or self._rest.read(len(buffer))
        self._begin = self._begin[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def read_export(source: Source, check: _Check | None = None) -> Iterator[Line]:
    """The events of an export, as its lines have them, in constant memory.

    Checks their form, and by `check`, which is told of each line, their MACs. Raises InvalidInput, with the
    number of the line, for what is no export, and at its end for one that was cut: so have it whole before
    anything is done by it.
    """
    last = 0
    over = False
    for number, line in enumerate(_lines(source), 1):
        entry = _parse(line, number)
        if (number == 1) != isinstance(entry, _Header) or over:
            raise _no_export(number, "it stands in the wrong place")
        if check is not None:
            check.take(entry, number)
        if isinstance(entry, _EventLine):
            yield entry.line
        over, last = isinstance(entry, _Last), number
    if not over:
        raise _no_export(last + 1, "it is missing: the last one has the head, so the file was cut")


class RevokedLogins(Iterator[str]):
    """The `rt_…` of each login that an export says was revoked, in its order; it was read to its end before.

    `doubt` is None when the export was verified. Otherwise it says why nothing shows that it was not changed.
    `others`: of what keeps logins out and is no revocation, how many events there are of each type.
    """

    def __init__(
        self, doubt: str | None, others: Mapping[str, int], held: SpooledTemporaryFile[bytes]
    ) -> None:
        self.doubt = doubt
        self.others = others
        self._held = held

    def __next__(self) -> str:
        line = b"" if self._held.closed else self._held.readline()
        if not line:
            self._held.close()
            raise StopIteration
        return line.decode("ascii").strip()

    def close(self) -> None:
        """Forget them; whoever has read them to their end need not."""
        self._held.close()


def revoked_in(key: bytes | None, source: Source) -> RevokedLogins:
    """The logins that an export says were revoked. With the key it is verified.

    Raises InvalidInput for what is no export, and for one that does not hold.
    """
    check = None if key is None else _Check(key, Findings(None, unseen))
    held = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by who reads it to its end
    others: Counter[str] = Counter()
    try:
        for line in read_export(source, check):
            if line["type"] in _KEEPING_OUT:
                others[line["type"]] += 1
            if line["type"] in _REVOKING and line["token_id"] is not None:
                held.write(f"{line['token_id']}\n".encode("ascii"))
        doubt = _doubt(check)
    except BaseException:
        held.close()
        raise
    held.seek(0)
    return RevokedLogins(doubt, others, held)


def _doubt(check: _Check | None) -> str | None:
    """Why nothing shows that the export is what was written. Raises InvalidInput when it is not."""
    if check is None:
        return "the master key is not at hand, so nothing shows whether the export was changed"
    done = check.result()
    if not done.holds:
        [finding, *_] = done.findings
        where = "" if finding.segment is None else f" (segment {finding.segment})"
        raise InvalidInput(
            f"the export does not hold, so nothing was done by it; of {done.found:,} findings the first: "
            f"{str(finding.kind).replace('_', ' ')}{where}, {finding.detail}",
            hint="tokenctl audit verify --export FILE names them all; take another copy of the export",
            findings=done.found,
        )
    if not done.ends_proven:
        return "it was exported without the master key, so nothing shows whether the export was changed"
    return None


def verify_export(key: bytes, source: Source, findings: Findings) -> Verification:
    """Whether a file is what was exported. Raises InvalidInput when it does not begin like one."""
    check = _Check(key, findings)
    lines = enumerate(_lines(source), 1)
    while True:
        try:
            number, line = next(lines)
            check.take(_parse(line, number), number)
        except StopIteration:
            return check.result()
        except InvalidInput as error:
            if not check.has_begun:
                raise
            findings.add(FindingKind.DAMAGED_LINE, error.message, segment=check.number)


@dataclass(slots=True)
class _Check:
    """A verification of lines under way."""

    key: bytes
    findings: Findings
    number: int | None = None
    _segment: _SegmentLine | None = None
    _before: _SegmentLine | None = None
    _header: _Header | None = None
    _sealed: bool = True
    #: The number of the last segment that was archived before, and its MAC.
    _archived: int = 0
    _before_first: bytes | None = None
    _count: int = 0
    _line: int = 0
    _last: _Last | None = None
    _members: Any = field(default_factory=hashlib.sha256)
    _behind: _Members = field(init=False)

    def __post_init__(self) -> None:
        self._behind = _Members(self.key)

    @property
    def has_begun(self) -> bool:
        """Whether the first line was taken."""
        return self._header is not None

    def take(self, entry: _Entry, line: int) -> None:
        """The next line."""
        if (line == 1) != isinstance(entry, _Header):
            if line == 1:
                raise _no_export(1, "an export begins with another one")
            self._misplaced(line)
            return
        if self._last is not None:
            self._misplaced(line)
            return
        self._line = line
        match entry:
            case _Header():
                self._begin(entry)
            case _SegmentLine():
                self._close()
                self._open(entry)
            case _Unsealed():
                self._close()
                self._sealed = False
            case _EventLine():
                self._event(entry)
            case _Last():
                self._close()
                self._last = entry

    def result(self) -> Verification:
        """After the last line."""
        if self._header is None:
            raise _no_export(1, "the file is empty")
        self._close()
        if self._last is None:
            self._add(FindingKind.CUT, "the line with the head is missing: the end of the file was cut off")
        elif self._last.head != self._head:
            self._add(FindingKind.CUT, "the last line has the head of another segment than the last one here")
        since, until, proven = self._header.since, self._header.until, self._demand_ends(self._header)
        return replace(self.findings.result(), since=since, until=until, ends_proven=proven)

    @property
    def _head(self) -> str | None:
        return None if self.findings.head is None else str(self.findings.head)

    def _demand_ends(self, header: _Header) -> bool:
        """Whether the last line's MAC is there, and holds."""
        first, mac = self.findings.first, None if self._last is None else self._last.mac
        if mac is None:
            # Where it is missing, or was taken away, a part cannot be told from what is left of a whole.
            if header.since is not None and first is not None and first > self._archived + 1:
                self.findings.add(
                    FindingKind.CUT,
                    f"it begins with segment {first}, and no MAC says that it did when it was written",
                    segment=first,
                )
            return False
        anchor = None if header.anchor is None else str(header.anchor)
        ends = Ends(
            header.exported_at, header.since, header.until, first, self._head, self._behind.digest(), anchor
        )
        if hmac.compare_digest(mac, audit_chain.export_mac(self.key, ends)):
            return True
        self._add(
            FindingKind.EDITED_EXPORT,
            "the MAC of the last line does not hold: that line or the first one was changed, segments were "
            "left out at the front or at the end, or events that are in none were changed",
        )
        return False

    def _add(self, kind: FindingKind, detail: str, event_id: int | None = None) -> None:
        self.findings.add(kind, detail, segment=self.number, event_id=event_id)

    def _misplaced(self, line: int) -> None:
        self._add(FindingKind.DAMAGED_LINE, f"line {line} of the export stands in the wrong place")

    def _open(self, segment: _SegmentLine) -> None:
        if not self._sealed:
            self._misplaced(self._line)
        self._demand_next(segment)
        self._segment, self.number, self._sealed = segment, segment.number, True
        self._count, self._members = 0, hashlib.sha256()
        self.findings.pass_segment(Head(segment.number, segment.mac, segment.sealed_at))

    def _begin(self, header: _Header) -> None:
        self._header = header
        if header.anchor is None:
            return
        anchor = genuine_anchor(self.key, str(header.anchor), self.findings)
        if anchor is not None:
            self._archived = anchor.head.number
            self._before_first = anchor.head.mac
            self.findings.pass_archive(anchor.head)

    @property
    def _is_from_start(self) -> bool:
        return self._header is not None and self._header.since is None

    def _demand_next(self, segment: _SegmentLine) -> None:
        before = self._before
        start = self._archived + 1
        first = before.number + 1 if before else start if self._is_from_start else max(start, segment.number)
        previous = segment.previous
        if before is not None:
            previous = before.mac
        elif segment.number == start and self._before_first is not None:
            previous = self._before_first
        if segment.number < first:
            self._misplaced(self._line)
        elif segment.number > first:
            last = segment.number - 1
            missing = f"segment {first} is" if first == last else f"the segments {first} to {last} are"
            self.findings.add(FindingKind.MISSING_SEGMENT, f"{missing} missing", segment=first)
        elif segment.previous != previous:
            self.findings.add(
                FindingKind.EDITED_SEGMENT,
                "it is not chained to the segment before it",
                segment=segment.number,
            )

    def _event(self, entry: _EventLine) -> None:
        event, mac = entry.event, entry.mac
        if not self._sealed:
            self._behind.add(event)
            self.findings.unsealed += 1
            return
        if self._segment is None:
            self._misplaced(self._line)
            return
        self.findings.events += 1
        self.findings.progress(1)
        if mac is None:
            self._add(FindingKind.INSERTED_EVENT, f"line {self._line}: it has no MAC", event.id)
            return
        self._count += 1
        self._members.update(audit_chain.member(event.id, mac))
        if not hmac.compare_digest(mac, event_mac(self.key, event)):
            self._add(FindingKind.EDITED_EVENT, f"line {self._line}: it is not what was sealed", event.id)

    def _close(self) -> None:
        """The segment whose events are all here."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        self._before = segment
        there = f"it was sealed with {segment.events:,} events, and {self._count:,} are here"
        if self._count < segment.events:
            self._add(FindingKind.DELETED_EVENT, there)
        elif self._count > segment.events:
            self._add(FindingKind.INSERTED_EVENT, there)
        elif not self._holds(segment):
            self._add(
                FindingKind.EDITED_SEGMENT,
                "its MAC does not hold: its line was changed, or its events are not those that were sealed",
            )

    def _holds(self, segment: _SegmentLine) -> bool:
        previous = NO_SEGMENT if segment.number == 1 else segment.previous
        if previous is None or previous != segment.previous:
            return False
        mac = audit_chain.segment_mac(
            self.key,
            previous=previous,
            number=segment.number,
            sealed_at=segment.sealed_at,
            members_hash=self._members.digest(),
        )
        return hmac.compare_digest(mac, segment.mac)


# --- one line --------------------------------------------------------------------------------


def _no_export(number: int, why: str) -> InvalidInput:
    return InvalidInput(f"line {number} is no line of an exported audit log: {why}", hint=_HINT, line=number)


def _parse(line: str | bytes, number: int) -> _Entry:
    """The entry on a line. Raises InvalidInput, which repeats nothing of it."""
    try:
        return _entry(line)
    except (_Wrong, InvalidInput) as error:
        why = str(error)
    except ValueError:
        why = "it is not JSON"
    except RecursionError:  # in reading it, or in writing what it says once more
        why = "it is not JSON of ours: it is nested too deeply"
    raise _no_export(number, why)


def _entry(line: str | bytes) -> _Entry:
    if len(line) > LONGEST_LINE:
        raise _Wrong(f"it has more than {LONGEST_LINE:,} bytes")
    fields = json.loads(line, object_pairs_hook=_once)
    if not isinstance(fields, dict):
        raise _Wrong("it is no JSON object")
    for names, make in _KINDS:
        if fields.keys() == names:
            return make(fields)
    raise _Wrong("its fields are not those of any")


class _Wrong(Exception):
    """What is wrong with a line, or with a field."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Two readers could see two different objects.
        raise _Wrong("it has a name twice")
    return fields


def _header(fields: Line) -> _Header:
    if fields["tokenctl_audit"] != FORMAT or isinstance(fields["tokenctl_audit"], bool):
        raise _Wrong(f"its form is not {FORMAT}, the one that this release reads")
    since, until = (None if fields[name] is None else _instant(fields, name) for name in ("since", "until"))
    anchor = Anchor.parse(_text(fields, "archived") or "") if "archived" in fields else None
    if anchor is None and "archived" in fields:
        raise _Wrong("archived is a head, an instant and 64 hex digits")
    return _Header(_instant(fields, "exported_at"), since, until, anchor)


def _segment_line(fields: Line) -> _SegmentLine:
    number, count = _number(fields, "segment"), _number(fields, "events")
    if number < 1 or count < 1:
        raise _Wrong("segment and events are at least 1")
    mac = _bytes(fields, "mac", 32)
    if mac is None:
        raise _Wrong("mac is 64 hex digits")
    return _SegmentLine(number, _instant(fields, "sealed_at"), count, _bytes(fields, "previous", 32), mac)


def _unsealed_line(fields: Line) -> _Unsealed:
    if fields["segment"] is not None:
        raise _Wrong("segment alone is null")
    return _Unsealed()


def _event_entry(fields: Line) -> _EventLine:
    data = fields["data"]
    if not isinstance(data, str | dict):
        raise _Wrong("data is a JSON object, or a text")
    event = StoredEvent(
        id=_number(fields, "event"),
        at=_instant(fields, "at"),
        type=_text(fields, "type") or "",
        actor=_text(fields, "actor"),
        user_id=_public_id(fields, "user_id", USER_PREFIX),
        token_id=_public_id(fields, "token_id", TOKEN_PREFIX),
        client_id=_text(fields, "client"),
        ip=_address(fields, "ip"),
        reason=_text(fields, "reason"),
        data=_encodable("data", data if isinstance(data, str) else data_text(data)),
    )
    if fields["type"] is None:
        raise _Wrong("type is a text")
    return _EventLine(event, _bytes(fields, "mac", 16) if "mac" in fields else None, fields)


def _last_line(fields: Line) -> _Last:
    head = _text(fields, "head")
    return _Last(None if head is None else str(Head.parse(head)), _bytes(fields, "mac", 32))


_EVENT_FIELDS = {
    "event", "at", "type", "actor", "user_id", "token_id", "client", "ip", "reason", "data",
}  # fmt: skip
_KINDS: tuple[tuple[set[str], Callable[[Line], _Entry]], ...] = (
    (_EVENT_FIELDS | {"mac"}, _event_entry),
    (_EVENT_FIELDS, _event_entry),
    ({"segment", "sealed_at", "events", "previous", "mac"}, _segment_line),
    ({"segment"}, _unsealed_line),
    ({"head", "mac"}, _last_line),
    ({"tokenctl_audit", "exported_at", "since", "until"}, _header),
    ({"tokenctl_audit", "exported_at", "since", "until", "archived"}, _header),
)


def _number(fields: Line, name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise _Wrong(f"{name} is a whole number")
    return value


def _text(fields: Line, name: str) -> str | None:
    value = fields[name]
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Wrong(f"{name} is a text or null")
    return _encodable(name, value)


def _encodable(name: str, value: str) -> str:
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _Wrong(f"{name} is no Unicode text") from None
    return value


def _bytes(fields: Line, name: str, length: int) -> bytes | None:
    value = _text(fields, name)
    if value is None:
        return None
    if len(value) != 2 * length or not _HEX.fullmatch(value):
        raise _Wrong(f"{name} is {2 * length} hex digits or null")
    return bytes.fromhex(value)


def _public_id(fields: Line, name: str, prefix: str) -> bytes | None:
    value = _text(fields, name)
    if value is None:
        return None
    digits = value.removeprefix(prefix)
    if digits == value or not _HEX.fullmatch(digits):
        raise _Wrong(f"{name} is {prefix} and hex digits, or null")
    return bytes.fromhex(digits)


def _address(fields: Line, name: str) -> bytes | None:
    value = _text(fields, name)
    if value is None:
        return None
    # Hex is of what is no address: see `unpack_ip`.
    packed = bytes.fromhex(value) if _HEX.fullmatch(value) else pack_ip(value)
    if unpack_ip(packed) != value:
        raise _Wrong(f"{name} is an address in its usual spelling, or null")
    return packed


def _instant(fields: Line, name: str) -> int:
    value = _text(fields, name)
    if value is None or not _INSTANT.fullmatch(value):
        raise _Wrong(f"{name} is an instant such as 2026-01-31T12:00:00.000000Z")
    try:
        instant = (
            int(value[1:])
            if value.startswith("@")
            else (datetime.fromisoformat(value) - _EPOCH) // timedelta(microseconds=1)
        )
        spelt = show_utc(instant)
    except (ValueError, OverflowError):
        spelt = None
    if spelt != value or not -(2**63) <= instant < 2**63:
        raise _Wrong(f"{name} is no instant")
    return instant
