"""Refresh tokens in the middle of anything: found by their form and checksum, without a key.

Owns what a string looks like where it leaked: as it is, URL-encoded or escaped in JSON. The checksum tells a
token from noise (one in four billion passes by chance); whether it is genuine needs the key, and whether it
lives the database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tokenctl.core.token_string import PresentedToken, parse, parse_unverified
from tokenctl.errors import ForgedToken, InvalidToken

#: No spelling of a string is longer (bytes): whoever reads in pieces keeps so much of the last one.
LONGEST = 600

#: What every spelling begins with, and the bytes of which one follows.
_MARK = b"tkr1"
_NEXT = (b"_", b"%", b"\\")
#: Of so many in one piece each costs more than looking for the whole mark.
_FREQUENT = 100
# `_` and `-` percent-encoded (RFC 3986 §2.1), once or twice, or as JSON may write them (RFC 8259 §7), also
# as JSON inside of JSON.
_ESCAPE = r"(?:%(?:25)?|\\{1,2}u00)"
_ENCODED = rf"{_ESCAPE}(?:5[Ff]|2[Dd])"
_BEGIN = rf"tkr1(?:_|{_ESCAPE}5[Ff])"
_CHARACTER = rf"(?:[A-Za-z0-9_-]|{_ENCODED})"
_FORM = re.compile(f"{_BEGIN}{_CHARACTER}{{84}}".encode())
_ESCAPED = re.compile(_ENCODED.encode())
_PART = re.compile(f"{_BEGIN}{_CHARACTER}+")


class Leak(NamedTuple):
    """A string, and where in the text it stands."""

    start: int
    end: int
    token: PresentedToken
    #: The key says that we did not make it; without a key nobody knows.
    forged: bool


def find(text: bytes, mac_key: bytes | None = None) -> Iterator[Leak]:
    """Each string in `text`, in order, and what it says of itself."""
    end = 0
    for start in _starts(text):
        if start < end or not (found := _FORM.match(text, start)):
            continue
        plain = _ESCAPED.sub(lambda escape: b"_" if escape[0][-2:-1] == b"5" else b"-", found[0]).decode(
            "ascii"
        )
        try:
            token, forged = parse_unverified(plain), False
            if mac_key is not None:
                parse(plain, mac_key)
        except ForgedToken:
            forged = True
        except InvalidToken:
            continue
        end = found.end()
        yield Leak(start, end, token, forged)


def masked(text: str) -> str:
    """`text` with nothing left of strings in it, or of parts of them."""
    return _PART.sub("tkr1_…", text)


def _starts(text: bytes) -> Iterable[int]:
    """Wherever a string may begin."""
    # Looking for one byte is several times as fast as looking for four: unless it is everywhere.
    starts: list[int] = []
    for byte in _NEXT:
        at = misses = 0
        while (at := text.find(byte, at)) >= 0:
            if text.endswith(_MARK, 0, at):
                starts.append(at - len(_MARK))
            elif (misses := misses + 1) > _FREQUENT:
                return _marks(text)
            at += 1
    return sorted(starts)


def _marks(text: bytes) -> Iterator[int]:
    at = -1
    while (at := text.find(_MARK, at + 1)) >= 0:
        yield at
