"""Points in time as people write and read them. Inside they are integers: microseconds since the epoch, UTC.

Durations that are settings are parsed by `settings`; the clock is the caller's.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from tokenctl.errors import InvalidInput
from tokenctl.service import instants

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000
# Stricter than datetime.fromisoformat, which also takes 20260131, week dates and an hour alone.
_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


def parse_instant(text: str, *, now: int, destructive: bool) -> int:
    """`now`, a duration (that long ago), or ISO 8601: local time without a zone, unless `destructive`.

    Raises InvalidInput.
    """
    if text == "now":
        return now
    if iso := _ISO.fullmatch(text):
        instant = _from_iso(text)
        if destructive and not iso["zone"]:
            raise InvalidInput(
                f"{text} has no time zone, and this command destroys something", hint=_with_zone(text)
            )
    else:
        instant = now - _age(text)
    if instant < 0:
        raise InvalidInput(f"{text} is before 1970", hint="a later one, such as 30d or 1970-01-01T00:00Z")
    return instant


#: RFC 3339 in UTC with microseconds: the form of data.
show_utc = instants.show_utc


def show_local(instant: int) -> str:
    """Local time with its offset: the form of tables. `parse_instant` takes it back."""
    try:
        moment = (_EPOCH + timedelta(microseconds=instant)).astimezone()
    except (OverflowError, ValueError, OSError):
        return show_utc(instant)
    return moment.isoformat(sep=" ", timespec="seconds")


def show_duration(length: int) -> str:
    """One unit, rounded down: `40 s`, `5 min`, `3 h`, `12 d`."""
    seconds = abs(length) // _SECOND
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def show_ago(instant: int, now: int) -> str:
    """`40 s ago`, `in 12 d`."""
    length = show_duration(now - instant)
    return f"in {length}" if instant > now else f"{length} ago"


def _age(text: str) -> int:
    from tokenctl.settings import parse_duration

    try:
        return parse_duration(text) // timedelta(microseconds=1)
    except InvalidInput:
        # No more of it than parse_duration shows: it may be a secret in the wrong place.
        raise InvalidInput(
            f"{text[:20]!r} is no time", hint="now, an age such as 2h or 30d, or 2026-01-31T12:00:00Z"
        ) from None


def _from_iso(text: str) -> int:
    try:
        # A naive one becomes local time here.
        return (datetime.fromisoformat(text).astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(
            f"no calendar has the time {text}", hint="one that there is, such as 2026-01-31T12:00:00Z"
        ) from None


def _with_zone(text: str) -> str:
    return f"{text}Z for UTC" if len(text) > 10 else f"{text}T00:00Z for UTC"
