"""Looking for leaked refresh tokens in files, and what each of them could still do.

Owns reading (files, directories, gzip, a stream) in pieces of constant size, and the verdict on what was
found. What a string looks like is `core.leak`; whether it is genuine and lives, the master key and the
database tell, each where it is at hand. Nothing that was found is echoed: a finding has an id, no string.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from tokenctl.core import leak
from tokenctl.core.refresh_token import RefreshToken, State
from tokenctl.core.rotation import Policy, Presented, Verdict, judge
from tokenctl.core.token_string import PresentedToken

if TYPE_CHECKING:
    from tokenctl.service.tokens import TokenService

#: What is read at once (bytes): it stays in the processor's cache until it has been looked at.
_PIECE = 1 << 18
#: Findings that are judged at once.
_CHUNK = 1_000
#: RFC 1952 §2.3: two bytes of identification, and deflate, the only method there is.
_GZIP = b"\x1f\x8b\x08"
#: Stands where a file's name would.
_STREAM = "(stdin)"


class Danger(StrEnum):
    """What whoever found the string can do with it."""

    #: It is, or may become again, as good as its bearer's: its login is live, or only blocked.
    LIVE = "live"
    #: An older string of a live login: presenting it now would end that login.
    SPENT = "spent"
    #: The login is over, or was never there, or the string is forged.
    DEAD = "dead"
    #: No database was asked.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One string in one place; `line` counts from 1. `user_name` is None where the login is unknown."""

    file: str
    line: int
    token_id: str
    danger: Danger
    user_name: str | None = None


@dataclass(frozen=True, slots=True)
class _Hit:
    file: str
    line: int
    token: PresentedToken
    forged: bool


def scan(
    sources: Iterable[Path | BinaryIO],
    *,
    service: TokenService | None = None,
    unreadable: Callable[[str], None],
    progress: Callable[[int], None] = lambda _bytes: None,
    piece: int = _PIECE,
) -> Iterator[Finding]:
    """Every string in the files, in all files below the directories and in the streams, in order.

    `unreadable` is told, in a sentence, of each file that cannot be read to its end, and the scan goes on;
    `progress` how many bytes were read since it was told last. With a `service` each finding says what the
    string could still do; the master key, where there is one, weeds out forgeries. What was found before a
    KeyboardInterrupt is yielded before it is raised. Raises KeyUnusable, KeyWrong.
    """
    mac_key = None
    if service is not None and service._runtime.has_master_key:
        mac_key = service._runtime.keys.mac
    return _findings(_hits(sources, mac_key, unreadable, progress, piece), service)


def _findings(hits: Iterator[_Hit], service: TokenService | None) -> Iterator[Finding]:
    interrupted = None
    at_end = False
    while not at_end:
        chunk: list[_Hit] = []
        try:
            while len(chunk) < _CHUNK and not at_end:
                if (hit := next(hits, None)) is None:
                    at_end = True
                else:
                    chunk.append(hit)
        except KeyboardInterrupt as error:
            interrupted, at_end = error, True
        yield from _judged(chunk, service)
    if interrupted is not None:
        raise interrupted


def _judged(chunk: list[_Hit], service: TokenService | None) -> Iterator[Finding]:
    if service is None:
        for hit in chunk:
            yield Finding(hit.file, hit.line, hit.token.token_id, Danger.UNKNOWN)
        return
    rows = service.look_up({hit.token.token_id for hit in chunk})
    now = service.now()
    for hit in chunk:
        row = rows.get(hit.token.token_id)
        if row is None or hit.forged or hit.token.secret_hash != row.secret_hash:
            # Whoever makes a string up must not learn whose login has that id, nor see it called live.
            yield Finding(hit.file, hit.line, hit.token.token_id, Danger.DEAD)
        else:
            danger = _danger(hit.token, row, now, service._runtime.policy)
            yield Finding(hit.file, hit.line, hit.token.token_id, danger, row.user_name)


def _danger(token: PresentedToken, row: RefreshToken, now: int, policy: Policy) -> Danger:
    if row.is_dead(now):
        return Danger.DEAD
    if row.state(now) is State.BLOCKED:  # that can be taken back
        return Danger.SPENT if token.generation < row.generation else Danger.LIVE
    # Within the grace the string before the current one gets what the current one gets.
    shown = Presented(token.generation, token.secret_hash, row.client_id)
    good = judge(row, shown, now, policy).verdict in (
        Verdict.ROTATE,
        Verdict.RETRY,
        Verdict.RECOVER,
        Verdict.BEHIND,
    )
    return Danger.LIVE if good else Danger.SPENT


# --- looking ---------------------------------------------------------------------------------


def _hits(
    sources: Iterable[Path | BinaryIO],
    mac_key: bytes | None,
    unreadable: Callable[[str], None],
    progress: Callable[[int], None],
    piece: int,
) -> Iterator[_Hit]:
    for name, opened in _opened(sources, unreadable):
        with opened as raw:
            stream = _Stream(raw, progress, piece, is_file=name != _STREAM)
            for line, found in _search(stream, mac_key):
                yield _Hit(name, line, found.token, found.forged)
            if stream.error is not None:
                unreadable(_cannot(name, stream.error, "to its end"))


def _search(stream: _Stream, mac_key: bytes | None) -> Iterator[tuple[int, leak.Leak]]:
    """The strings and their lines, a piece at a time."""
    held, line = b"", 1
    # To count lines costs more than all else, and most files have no string: only from the first one on.
    counting, skipped = not stream.is_seekable, 0
    while more := stream.read():
        piece = held + more
        counted = end = 0
        for found in leak.find(piece, mac_key):
            if not counting:
                line += stream.newlines(skipped)
                counting = True
            line += piece.count(b"\n", counted, found.start)
            counted, end = found.start, found.end
            yield line, found
        # A string that begins in the last bytes may go on in the next piece.
        kept = max(len(piece) - leak.LONGEST, end)
        if counting:
            line += piece.count(b"\n", counted, kept)
        else:
            skipped += kept
        held = piece[kept:]


# --- reading ---------------------------------------------------------------------------------


def _opened(
    sources: Iterable[Path | BinaryIO], unreadable: Callable[[str], None]
) -> Iterator[tuple[str, AbstractContextManager[BinaryIO]]]:
    for source in sources:
        if not isinstance(source, Path):
            yield _STREAM, nullcontext(source)
            continue
        for file in _files(source, unreadable):
            name = leak.masked(str(file))
            try:
                opened = file.open("rb")
            except OSError as error:
                unreadable(_cannot(name, error))
            else:
                yield name, opened


def _files(path: Path, unreadable: Callable[[str], None]) -> Iterator[Path]:
    """The file itself, or all regular files below the directory; links are not followed there."""
    if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where it may not look
        yield path
        return
    for directory, below, names in os.walk(path, onerror=lambda error: unreadable(_cannot_walk(error))):
        below.sort()
        for name in sorted(names):
            file = Path(directory, name)
            try:
                # Never a pipe or a device, which may not end.
                if stat.S_ISREG(file.lstat().st_mode):
                    yield file
            except OSError as error:
                unreadable(_cannot(leak.masked(str(file)), error))


def _cannot(name: str, error: Exception, how_far: str = "") -> str:
    reason = getattr(error, "strerror", None) or error
    return f"{name} cannot be read{how_far and ' '}{how_far}: {reason}"


def _cannot_walk(error: OSError) -> str:
    return _cannot(leak.masked(str(error.filename)), error)


class _Reads(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _Stream:
    """What is read of a file, a piece at a time and unpacked where it is gzip, up to what went wrong."""

    def __init__(self, raw: BinaryIO, progress: Callable[[int], None], piece: int, *, is_file: bool) -> None:
        self.error: Exception | None = None
        self._at_end = False
        self._raw = raw
        self._piece = piece
        self._head = b""
        self._watched: _Reads = _Watched(raw, progress)
        self._source = self._watched
        while len(self._head) < len(_GZIP) and (more := self._next()):
            self._head += more
        if self._head.startswith(_GZIP):
            rejoined = _Rejoined(self._head, self._watched)
            self._source = gzip.GzipFile(fileobj=rejoined, mode="rb")  # type: ignore[call-overload] # it reads
            self._head = b""
        #: Whether what was read can be read again.
        self.is_seekable = is_file and self._source is self._watched and raw.seekable()

    def newlines(self, size: int) -> int:
        """How many there are in the first `size` bytes, which are read again."""
        count = 0
        try:
            here = self._raw.seek(0, os.SEEK_CUR)
            self._raw.seek(0)
            while size > 0 and (data := self._raw.read(min(size, self._piece))):
                count, size = count + data.count(b"\n"), size - len(data)
            self._raw.seek(here)
        except OSError as error:
            self.error = error
        return count

    def read(self) -> bytes:
        """The next piece; empty at the end, and where no more can be read: `error` says why."""
        if head := self._head:
            self._head = b""
            return head
        return self._next()

    def _next(self) -> bytes:
        if self.error is None and not self._at_end:
            try:
                # Not `read`, which waits for a whole piece, and loses one where a gzip file is cut off.
                data = self._source.read1(self._piece)
            except (OSError, EOFError, zlib.error) as error:
                self.error = error
            else:
                self._at_end = not data  # a terminal would ask once more
                return data
        return b""


class _Watched:
    def __init__(self, raw: BinaryIO, progress: Callable[[int], None]) -> None:
        self._read1 = raw.read1  # type: ignore[attr-defined] # each buffered reader has it
        self._progress = progress

    def read1(self, size: int, /) -> bytes:
        data: bytes = self._read1(size)
        self._progress(len(data))
        return data


class _Rejoined:
    """A stream with what was read from it already put back in front."""

    def __init__(self, head: bytes, rest: _Reads) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return self._rest.read1(size)
        taken, self._head = self._head[:size], self._head[size:]
        return taken
