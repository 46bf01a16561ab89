"""`tokenctl scan`: which refresh tokens leaked, where, and which of them still work; never a string."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from tokenctl.cli import targets
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Advance, Column
from tokenctl.errors import DatabaseMissing, InvalidInput

if TYPE_CHECKING:
    from tokenctl import TokenService
    from tokenctl.service.scan import Finding

_FIELDS = [Column("file"), Column("line"), Column("id"), Column("state"), Column("user")]
_TABLE = [Column("where"), Column("id"), Column("state", show=str.upper), Column("user")]
# What is found at once is printed at once: a bar and rows at the same time would mix on a terminal.
_PAGE = 1_000
_MEGABYTE = 1_000_000


@command(
    app,
    "scan",
    example="tokenctl scan /var/log/app\n"
    "zstdcat app.log.zst | tokenctl scan -\n"
    "tokenctl scan leak.txt -o id | tokenctl revoke - --dry-run",
)
def scan(
    run: Run,
    path: Annotated[
        list[str], typer.Argument(metavar="PATH…|-", help="Files and directories; or - for stdin.")
    ],
    *,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no database: every token of ours counts.")
    ] = False,
) -> int:
    """Find leaked refresh tokens: in files, gzip, directories, stdin. Exits 7 when one still works.

    LIVE works, SPENT is an older string of a live login, DEAD does nothing any more. -o id prints the logins
    that are not dead, each once, for `revoke -`. Strings are found in the middle of a line, URL-encoded or
    escaped in JSON too, and never shown. Exits 1 when a file could not be read and nothing was found.
    """
    columns = _TABLE if run.out.format == "table" and not run.out.fields else _FIELDS
    run.out.expect(columns)
    sources = _sources(run, path)
    if offline:
        run.out.note("offline: no database was asked, so nobody knows which of these still work")
    service = None if offline else _service(run)
    looking = _Looking(run, sources, service)
    run.out.rows(looking.records(), columns, limit=0)
    looking.tell()
    if looking.interrupted is not None:
        raise looking.interrupted
    return 7 if looking.dangerous else 1 if looking.unread else 0


def _sources(run: Run, given: list[str]) -> list[Path | BinaryIO]:
    sources: list[Path | BinaryIO] = []
    for each in dict.fromkeys(given):
        if each != "-":
            sources.append(Path(targets.one(each)))
            continue
        if sys.stdin.name == os.devnull:  # the stand-in of one that was closed
            raise InvalidInput(
                "stdin is closed, so there is nothing to scan", hint="name files, or pipe them in"
            )
        if sys.stdin.isatty():
            run.out.note("reading what you type; Ctrl-D ends")
        sources.append(sys.stdin.buffer)
    return sources


def _service(run: Run) -> TokenService | None:
    try:
        return run.service
    except DatabaseMissing as error:
        run.out.warn(f"{error.message}: scanning offline, so nobody knows which of these still work")
        return None


class _Looking:
    """A scan under way, and what it has come to."""

    def __init__(self, run: Run, sources: list[Path | BinaryIO], service: TokenService | None) -> None:
        from tokenctl.service.scan import scan

        self.dangerous = False
        self._count: Counter[str] = Counter()
        self.unread = 0
        self.interrupted: KeyboardInterrupt | None = None
        self._run = run
        self._total = _size(sources)
        self._read = self._shown = 0
        self._advance: Advance | None = None
        self._findings = scan(sources, service=service, unreadable=self._unreadable, progress=self._progress)

    def records(self) -> Iterator[dict[str, Any]]:
        """The findings to print."""
        from tokenctl.service.scan import Danger

        only_ids, printed = self._run.out.format == "id", set[str]()
        for finding in self._pages():
            self._count[str(finding.danger)] += 1
            if finding.danger is not Danger.DEAD:
                self.dangerous = True
            if only_ids:
                if finding.danger is Danger.DEAD or finding.token_id in printed:
                    continue
                printed.add(finding.token_id)
            yield {
                "file": finding.file,
                "line": finding.line,
                "where": f"{finding.file}:{finding.line}",
                "id": finding.token_id,
                "state": str(finding.danger),
                "user": finding.user_name,
            }

    def tell(self) -> None:
        """What it comes to, and what to do about it."""
        if not self._count:
            return
        said = ", ".join(f"{count:,} {danger}" for danger, count in self._count.items())
        if self.dangerous:
            said += "; to see what would be revoked: -o id | tokenctl revoke - --dry-run"
        self._run.out.note(said)

    def _pages(self) -> Iterator[Finding]:
        while self.interrupted is None:
            page: list[Finding] = []
            with self._run.out.progress("scanning (MB)", self._total) as self._advance:
                self._advance(self._shown)
                try:
                    for finding in islice(self._findings, _PAGE):
                        page.append(finding)  # one by one: what came before an interrupt is kept
                except KeyboardInterrupt as error:
                    self.interrupted = error
            if not page:
                return
            yield from page

    def _progress(self, count: int) -> None:
        self._read += count
        if self._advance is not None and (done := self._read // _MEGABYTE) != self._shown:
            self._advance(done - self._shown)
            self._shown = done

    def _unreadable(self, sentence: str) -> None:
        self.unread += 1
        self._run.out.warn(sentence)


def _size(sources: Iterable[Path | BinaryIO]) -> int | None:
    """How many megabytes there are to read; None where a directory or a stream leaves that open."""
    size = 0
    for source in sources:
        if not isinstance(source, Path):
            return None
        with suppress(OSError):
            if not source.is_file():
                return None
            size += source.stat().st_size
    return size // _MEGABYTE
