"""Instants as data: µs since 1970 on the inside, RFC 3339 on the outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def show_utc(instant: int) -> str:
    """RFC 3339 in UTC with microseconds; an instant (µs) that no calendar has as `@` and its µs."""
    try:
        moment = _EPOCH + timedelta(microseconds=instant)
    except OverflowError:
        return f"@{instant}"
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
