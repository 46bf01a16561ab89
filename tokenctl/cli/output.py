"""The only printer: data on stdout, everything else on stderr.

It owns the five formats, the choice of fields, paging, escaping and the progress bar. It does not own the
words: a command hands in its records, and columns that say how a value looks. Records come from an iterator
and leave one by one, so a million of them need no more memory than one page.

Values are untrusted: a user name or a user agent must not move the cursor of the operator's terminal, break
a line of a table, or become a formula of a spreadsheet. Tables are laid out here and not by rich, whose
import takes as long as many a command; rich draws the progress bar.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple, TextIO

from tokenctl.cli import times
from tokenctl.errors import InvalidInput

Format = Literal["table", "json", "jsonl", "csv", "id"]
Record = Mapping[str, Any]
Advance = Callable[..., None]  # advance(n), or advance(n, total) where that is known later

TERMINAL_ROWS = 50
_PAGE = 500  # rows of a table that share their column widths, and that are held at once
_SHRUNK = 12  # the least that a column of free text keeps when the terminal is too narrow


class Column(NamedTuple):
    """One field of a record: how it is called, and how its value looks (None is never converted)."""

    name: str
    header: str = ""
    show: Callable[[Any], str] | None = None
    """For a person; default `text`."""
    data: Callable[[Any], Any] | None = None
    """For JSON and CSV; default the value itself."""
    shrink: bool = False
    """Long free text: cut short on a narrow terminal, and only there."""
    right: bool = False
    table: bool = True
    """False: in a table only when `--fields` asks for it."""

    def cell(self, record: Record) -> str:
        value = record[self.name]
        return text(value) if value is None or self.show is None else self.show(value)

    def value(self, record: Record) -> Any:
        value = record[self.name]
        return value if value is None or self.data is None else self.data(value)

    @property
    def title(self) -> str:
        return self.header or self.name.replace("_", " ")


def instant(name: str, header: str = "") -> Column:
    """A point in time, in microseconds: local in a table, UTC in data."""
    return Column(name, header, show=times.show_local, data=times.show_utc)


def text(value: Any) -> str:
    """How a value without a `show` looks to a person."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(text(item) for item in value)
    return str(value)


def amount(number: int, noun: str) -> str:
    """`1 batch`, `1,204 batches`."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def printable(line: str) -> str:
    r"""`line` with what is no visible character written as `\x1b`: controls, newlines, bidi marks."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


class Part(NamedTuple):
    """One array of an object."""

    key: str
    records: Iterable[Record]
    columns: Sequence[Column]


class Printer:
    """Everything that a command says goes through one of these methods."""

    def __init__(
        self,
        format: Format = "table",  # noqa: A002 - the word of the command line
        *,
        fields: Sequence[str] = (),
        quiet: bool = False,
        color: bool = True,
    ) -> None:
        self.format = format
        self.fields = fields
        self.quiet = quiet
        self._plain = not color or bool(os.environ.get("NO_COLOR"))

    # --- data ----------------------------------------------------------------------------------

    def rows(
        self,
        records: Iterable[Record],
        columns: Sequence[Column],
        *,
        total: Callable[[], int] | None = None,
        limit: int | None = None,
    ) -> int:
        """Print records; returns how many. `limit` 0 is all, None is all but for a table on a terminal."""
        columns = self._columns(columns)
        if limit is None:
            limit = TERMINAL_ROWS if self.format == "table" and _is_terminal(sys.stdout) else 0
        stream = iter(records)
        count = self._write_rows(islice(stream, limit) if limit else stream, columns)
        if limit and count == limit and next(stream, None) is not None:
            of = f"{total():,}" if total else "more"
            self.note(f"{count:,} of {of}; --limit 0 shows all")
        if not count and self.format == "table":
            self.note("nothing found")
        return count

    def one(
        self,
        record: Record,
        columns: Sequence[Column],
        *,
        card: Iterable[tuple[str, str]] | None = None,
    ) -> None:
        """Print one record. `card` replaces the lines of label and value that a person gets."""
        columns = self._columns(columns)
        if self.format == "json":
            _print(_encode()(_data(record, columns)))
        elif self.format == "table":
            if card is None or self.fields:
                card = [(column.title, column.cell(record)) for column in columns]
            self._card(card)
        else:
            self._write_rows([record], columns)

    def object_with_rows(
        self, head: Record, parts: Sequence[Part], *, card: Iterable[tuple[str, str]]
    ) -> int:
        """Print an object of which some members are arrays that are streamed; returns the rows of the last.

        JSON: the one object. JSON lines: the head on the first, then a record of the last part on each.
        Table: `card` in place of the head, then the tables. CSV and id: the records of the last part alone.
        """
        *others, last = parts
        if self.format == "json":
            _print(_encode()(dict(head)).removesuffix("}"), end="")
            count = 0
            for i, part in enumerate(parts):
                _print((", " if head or i else "") + f"{_encode()(part.key)}: ", end="")
                count = self._write_rows(
                    part.records, self._columns(part.columns) if part is last else part.columns
                )
            _print("}")
            return count
        if self.format == "jsonl":
            _print(_encode()(dict(head)))
        elif self.format == "table":
            self._card(card)
            for part in () if self.fields else others:
                _print("")
                self.rows(part.records, part.columns)
            _print("")
        return self.rows(last.records, last.columns)

    def expect(self, columns: Sequence[Column], needed: str | None = None) -> None:
        """Refuse a format or a field that does not fit *before* a command acts.

        `needed` names what would be lost if it were not printed: a string that is stored nowhere.
        """
        chosen = self._columns(columns)
        if needed is not None and sys.stdout.name == os.devnull:
            raise InvalidInput(
                f"stdout is closed, and {needed} cannot be shown again",
                hint="the same command with stdout to a terminal, a pipe or a file",
            )
        if needed is not None and needed not in (column.name for column in chosen):
            raise InvalidInput(
                f"this output would not show {needed}, which cannot be shown again",
                hint=f"--fields id,{needed}",
            )

    def summary(self, record: Record, columns: Sequence[Column], sentence: str) -> None:
        """What a command did: one sentence for a person, the record as data.

        It is done, whatever becomes of stdout: then the sentence goes to stderr.
        """
        try:
            if self.format == "table" and not self.fields:
                _print(printable(sentence))
            else:
                self.one(record, columns)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError:
            self.warn(f"this was done, and could not be written to stdout: {sentence}")
            raise

    def flush(self) -> None:
        """Let a reader see now what is there."""
        sys.stdout.flush()

    def secret(self, value: str) -> None:
        """A token string: alone on stdout, so that it can be piped; ours, hence not escaped."""
        _print(value)

    def raw(self, value: str) -> None:
        """A text of ours that is no record: a help page, a script."""
        _print(value)

    # --- everything else ---------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """What a person may like to know."""
        if not self.quiet:
            sys.stderr.write(printable(line) + "\n")

    def warn(self, line: str) -> None:
        """What a person has to know, also with --quiet."""
        sys.stderr.write(f"warning: {printable(line)}\n")

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Advance]:
        """Yields `advance(n)`: on a terminal a line at once, and a bar from the first call after a second."""
        if self.quiet or not _is_terminal(sys.stderr):
            yield lambda *_: None
            return
        stream, begin, done, bar = sys.stderr, time.monotonic(), 0, None
        stream.write(f"{printable(what)} …\r")
        stream.flush()

        def advance(n: int, of: int | None = total) -> None:
            nonlocal done, bar
            done += n
            if bar is None and time.monotonic() - begin > 1:
                stream.write("\x1b[K")
                bar = _bar(what, of, plain=self._plain)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)

        try:
            yield advance
        finally:
            if bar is not None:
                bar.stop()
            stream.write("\x1b[K")
            stream.flush()

    # --- the formats -------------------------------------------------------------------------------

    def _columns(self, columns: Sequence[Column]) -> Sequence[Column]:
        """The columns that were asked for."""
        known = {column.name: column for column in columns}
        if self.format == "id":
            if "id" not in known:
                raise InvalidInput("-o id does not fit here: what is printed has no id", hint="-o jsonl")
            return [known["id"]]
        if not self.fields:
            return [c for c in columns if c.table] if self.format == "table" else columns
        if unknown := [name for name in self.fields if name not in known]:
            raise InvalidInput(f"no field {unknown[0]!r} here", hint=f"--fields {','.join(known)}")
        return [known[name] for name in self.fields]

    def _write_rows(self, records: Iterable[Record], columns: Sequence[Column]) -> int:
        write = {
            "table": self._table,
            "json": _json_array,
            "jsonl": _json_lines,
            "csv": _csv,
            "id": _ids,
        }[self.format]
        return write(records, columns)

    def _card(self, lines: Iterable[tuple[str, str]]) -> None:
        lines = [(printable(label), printable(value)) for label, value in lines]
        width = max((_width(label) for label, _ in lines), default=0)
        for label, value in lines:
            _print(f"{_pad(label, width)}  {value}".rstrip())

    def _table(self, records: Iterable[Record], columns: Sequence[Column]) -> int:
        terminal = _is_terminal(sys.stdout)
        bold, plain = ("\x1b[1m", "\x1b[0m") if terminal and not self._plain else ("", "")
        head = [column.title.upper() for column in columns]
        widths = [_width(cell) for cell in head]
        records = iter(records)
        count = 0
        while page := [[printable(c.cell(record)) for c in columns] for record in islice(records, _PAGE)]:
            for i, cells in enumerate(zip(*page, strict=True)):
                widths[i] = max(widths[i], *map(_width, cells))
            if terminal:
                widths = _fit(widths, columns)
            if not count:
                _print(bold + _line(head, widths, columns) + plain)
            _print("\n".join(_line(row, widths, columns) for row in page))
            count += len(page)
        return count


def _json_array(records: Iterable[Record], columns: Sequence[Column]) -> int:
    encode, count = _encode(), 0
    _print("[", end="")
    for record in records:
        _print((",\n" if count else "\n") + encode(_data(record, columns)), end="")
        count += 1
    _print("\n]" if count else "]")
    return count


def _json_lines(records: Iterable[Record], columns: Sequence[Column]) -> int:
    encode, count = _encode(), 0
    for record in records:
        _print(encode(_data(record, columns)))
        count += 1
    return count


def _csv(records: Iterable[Record], columns: Sequence[Column]) -> int:
    import csv

    encode = _encode()
    escape = printable if _is_terminal(sys.stdout) else str
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(column.name for column in columns)
    count = 0
    for record in records:
        values = [column.value(record) for column in columns]
        writer.writerow(
            "" if value is None else escape(_no_formula(value)) if isinstance(value, str) else encode(value)
            for value in values
        )
        count += 1
    return count


def _ids(records: Iterable[Record], columns: Sequence[Column]) -> int:
    count = 0
    for record in records:
        _print(printable(str(columns[0].value(record))))
        count += 1
    return count


def _data(record: Record, columns: Sequence[Column]) -> dict[str, Any]:
    return {column.name: column.value(record) for column in columns}


def _encode() -> Callable[[Any], str]:
    """Plain ASCII: the same bytes in every locale, lone surrogates survive, no C1 control gets through."""
    import json

    return json.JSONEncoder().encode


def _no_formula(value: str) -> str:
    """A spreadsheet runs a cell that begins like a formula, and anybody can choose a user agent.

    CSV is the format for spreadsheets, hence the quote in front; JSON is the exact one.
    """
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# --- the layout of a table ---------------------------------------------------------------------


def _width(cell: str) -> int:
    """Columns of a terminal that the text takes."""
    if cell.isascii():
        return len(cell)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in cell)


def _pad(cell: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    return "  ".join(
        _pad(_cut(cell, width), width, right=column.right)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    ).rstrip()


def _cut(cell: str, width: int) -> str:
    if _width(cell) <= width:
        return cell
    while _width(cell) >= width:
        cell = cell[:-1]
    return cell + "…"


def _fit(widths: Sequence[int], columns: Sequence[Column]) -> list[int]:
    """Take what is too much for the terminal from the columns that may shrink, the widest first."""
    widths = list(widths)
    excess = sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        if columns[i].shrink and excess > 0:
            kept = max(widths[i] - excess, min(_SHRUNK, widths[i]), _width(columns[i].title))
            excess -= widths[i] - kept
            widths[i] = kept
    return widths


# --- streams -----------------------------------------------------------------------------------


def _print(line: str, end: str = "\n") -> None:
    sys.stdout.write(line + end)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _bar(what: str, total: int | None, *, plain: bool) -> Any:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, no_color=plain),
        transient=True,
    )
    bar.add_task(escape(printable(what)), total=total)
    bar.start()
    return bar
