"""A file of users, a line at a time: JSON lines, or CSV with a header. What stands first tells which.

Owns the form alone; whether a name or a hash is one that can be stored, `importing` judges. No refusal
repeats a text of the file: a password hash may stand anywhere in it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from tokenctl.errors import InvalidInput
from tokenctl.service.importing import NewUser, Unusable

#: Bytes of a line: of a whole row of most user tables, with all that is not looked at.
LONGEST_LINE = 1 << 20

_DISABLED = "disabled"
_BOOLEANS = {
    **dict.fromkeys(("", "false", "f", "no", "n", "0"), False),
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
}
#: In the place of a line that was too long: no record of either form.
_NO_RECORD = '"too"long'
#: And in the place of the values of what is none in CSV.
_NO_VALUES = [_NO_RECORD]
_OR_TOO_LONG = f"or the line is longer than {LONGEST_LINE:,} bytes"
_GZIP = "\x1f\udc8b"


class _Fields:
    """What the fields are called that are looked at."""

    def __init__(self, name: str, password_hash: str | None) -> None:
        self.name = name
        self.password_hash = password_hash or "password_hash"
        #: Of those that there must be, as they were asked for: a typing error would import nobody's password.
        self.needed = [name] if password_hash is None else [name, password_hash]

    def demand_header(self, header: list[str]) -> None:
        once = all(header.count(field) == 1 for field in self.needed)
        if not once or header.count(self.password_hash) > 1 or header.count(_DISABLED) > 1:
            raise InvalidInput(
                f"the first line is no header of CSV that names the field {' and '.join(self.needed)} once",
                hint="head -n 1 FILE shows it; say with --name-field and --hash-field what they are called",
            )

    def user(self, line: int, record: Mapping[str, object]) -> NewUser | Unusable:
        if missing := [field for field in self.needed if field not in record]:
            return Unusable(line, f"there is no field {missing[0]}")
        name, password_hash = record[self.name], record.get(self.password_hash)
        if not isinstance(name, str):
            return Unusable(line, f"the field {self.name} is no text")
        if not isinstance(password_hash, str | None):
            return Unusable(line, f"the field {self.password_hash} is no text")
        value = record.get(_DISABLED)
        disabled = _BOOLEANS.get("" if value is None else str(value).lower())
        if disabled is None:
            return Unusable(line, f"the field {_DISABLED} is neither true nor false")
        return NewUser(line, name, password_hash or None, disabled)


def read(
    lines: Iterable[bytes | None], *, name_field: str = "name", hash_field: str | None = None
) -> Iterator[NewUser | Unusable]:
    """The user of each line; None is a line that is longer than LONGEST_LINE.

    Fields: the name, the password hash (an empty one is none), `disabled` (true or false); others are passed
    over. Raises InvalidInput for what is of neither form, at the first line, and for CSV where a wrong quote
    swallows lines.
    """
    fields = _Fields(name_field, hash_field)
    texts = (_NO_RECORD if line is None else line.decode("utf-8", "surrogateescape") for line in lines)
    first, number = "", 0
    while not first.strip():
        if (text := next(texts, None)) is None:
            raise InvalidInput("no users were handed in", hint="hand in JSON lines, or CSV with a header")
        first, number = text.removeprefix("\ufeff"), number + 1
    if first.startswith(_GZIP):
        raise InvalidInput("these users are packed by gzip", hint="gzip -dc FILE | tokenctl user import -")
    if first.lstrip().startswith("["):
        raise InvalidInput(
            "these users are one JSON array, and not an object on each line",
            hint="jq -c '.[]' FILE | tokenctl user import -",
        )
    rest = chain([first], texts)
    yield from (_json if first.lstrip().startswith("{") else _csv)(rest, number, fields)


def _json(texts: Iterator[str], number: int, fields: _Fields) -> Iterator[NewUser | Unusable]:
    for line, text in enumerate(texts, number):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield fields.user(line, record)
        else:
            yield Unusable(line, f"it is no JSON object, {_OR_TOO_LONG}")


def _csv(texts: Iterator[str], number: int, fields: _Fields) -> Iterator[NewUser | Unusable]:
    # With their ends: a text in quotes may go over several lines.
    reader = csv.reader((f"{text}\n" for text in texts), strict=True)
    header: list[str] = []
    while True:
        line = number + reader.line_num
        try:
            values = next(reader, None)
        except csv.Error:
            _demand_one_line(line, number + reader.line_num - 1)
            values = _NO_VALUES
        if values is None:
            return
        if not header:
            fields.demand_header(values)
            header = values
        elif len(values) == len(header) and values is not _NO_VALUES:
            yield fields.user(line, dict(zip(header, values, strict=True)))
        elif values:
            yield Unusable(line, f"it has not as many values as the header, a quote is wrong, {_OR_TOO_LONG}")


def _demand_one_line(first: int, last: int) -> None:
    """What a wrong quote has swallowed may be users, and what is behind it the inside of a text."""
    if last > first:
        raise InvalidInput(
            f"line {first:,} opens a quote that is not closed as CSV wants it, up to line {last:,}: the "
            "import ends there",
            hint="mend that line, and run the same command again: it goes on where it stopped",
        )
