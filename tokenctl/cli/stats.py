"""`tokenctl stats`: the logins by state, client, address and user, and what the last hours brought.

Owns how the hours are drawn. The counting is the service's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options, targets, times
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, Part, amount, instant

if TYPE_CHECKING:
    from tokenctl.service.statistics import Hour, Statistics

# The kinds of events of an hour: the field, the header, the mark in a bar, and the mark where stdout can
# write nothing but ASCII.
_KINDS = (
    ("issued", "issued", "█", "#"),
    ("context_changed", "moved", "▓", "="),
    ("reuse", "reuse", "!", "!"),
    ("revoked", "revoked", "▒", "x"),
    ("refused", "refused", "░", "."),
)
_BLOCKS, _ASCII = ("".join(kind[i] for kind in _KINDS) for i in (2, 3))
# A bar is neither shorter, be the terminal as narrow as it may, nor longer.
_SHORTEST, _LONGEST = 8, 60

_HOURS = [instant("hour"), *(Column(kind[0]) for kind in _KINDS)]
_CLIENTS = [Column("client", shrink=True), Column("live", right=True), Column("users", right=True)]
_ADDRESSES = [Column("ip", "last used from"), Column("live", right=True), Column("users", right=True)]
_USERS = [Column("user", shrink=True), Column("live", right=True), Column("addresses", right=True)]


@command(
    app,
    "stats",
    example="tokenctl stats\ntokenctl stats --client web --hours 72\ntokenctl stats --json | jq .states",
)
def stats(
    run: Run,
    selected: options.Selected,
    *,
    top: Annotated[
        int,
        typer.Option("--top", metavar="N", min=1, max=1000, help="Clients, addresses and users at most."),
    ] = 10,
    hours: Annotated[
        int,
        typer.Option(
            "--hours", metavar="N", min=1, max=168, help="Hours at most, the running one with them."
        ),
    ] = 24,
) -> None:
    """Count the logins by state, client, address and user, and what happened hour by hour.

    Without a selector it counts everything. A selector applies to the logins as they are now; of the events
    it counts those of the logins that it selects, by their ids, so that nothing is counted of a login that
    was purged or deleted since. Without one every event counts.

    The clients, addresses and users are those of live logins: the addresses with the most users first, and
    the users with the most addresses. Hours are of UTC in data and local in the table. A refusal is noted
    once a minute for each login and reason.

    CSV has the hours alone; JSON lines have all else on the first line, then an hour on each.
    """
    run.out.expect(_HOURS)
    # Nothing is destroyed here, so nothing may mean everything.
    chosen = selected if selected.given() else replace(selected, everything=True)
    selector = targets.selector(run, chosen, destructive=False)
    with run.out.progress("counting"):
        seen = run.service.statistics(selector, top=top, hours=hours)
    if run.out.format != "table" or run.out.fields:
        hourly = (each._asdict() | {"hour": each.at} for each in seen.hours)
        run.out.object_with_rows(_head(seen), [Part("hours", hourly, _HOURS)], card=_card(seen))
        return
    run.out.one({}, [], card=_card(seen))
    _lists(run, seen, top)
    _draw(run, seen.hours)


def _head(seen: Statistics) -> dict[str, Any]:
    """All but the hours, as data."""
    return {
        "at": times.show_utc(seen.at),
        "states": {str(state): number for state, number in seen.states.items()},
        "users": seen.users,
        "expiring": seen.expiring,
        "client_count": seen.client_count,
        "clients": _clients(seen),
        "address_count": seen.address_count,
        "addresses": _addresses(seen),
        "widest_users": _users(seen),
    }


def _clients(seen: Statistics) -> list[dict[str, Any]]:
    return [{"client": each.client_id, "live": each.live, "users": each.users} for each in seen.clients]


def _addresses(seen: Statistics) -> list[dict[str, Any]]:
    return [{"ip": each.ip, "live": each.live, "users": each.users} for each in seen.addresses]


def _users(seen: Statistics) -> list[dict[str, Any]]:
    return [
        {"user": each.user_name, "user_id": each.user_id, "live": each.live, "addresses": each.addresses}
        for each in seen.widest_users
    ]


def _card(seen: Statistics) -> Iterator[tuple[str, str]]:
    yield "at", times.show_local(seen.at)
    yield "logins", f"{sum(seen.states.values()):,}"
    for state, number in seen.states.items():
        of = f" of {amount(seen.users, 'user')}" if str(state) == "live" else ""
        yield f"  {state}", f"{number:,}{of}"
    for span, number in seen.expiring.items():
        yield f"live, expiring within {span}", f"{number:,}"


def _lists(run: Run, seen: Statistics, top: int) -> None:
    """The table of each list that has anything, and that there is more where there is."""
    for records, columns in (
        (_clients(seen), _CLIENTS),
        (_addresses(seen), _ADDRESSES),
        (_users(seen), _USERS),
    ):
        if records:
            run.out.raw("")
            run.out.rows(records, columns, limit=0)
    all_of = (("clients", seen.client_count), ("addresses", seen.address_count), ("users", seen.users))
    cut = [f"{top} of {number:,} {noun}" for noun, number in all_of if number > top]
    if cut:
        run.out.note(f"{', '.join(cut)}; --top shows more")


# --- the hours -------------------------------------------------------------------------------


def _draw(run: Run, hours: Sequence[Hour]) -> None:
    """A line for each hour, with its counts and a bar that is as long as they are many; then the sums."""
    marks = _marks()
    records: list[dict[str, Any]] = [{"hour": _local_hour(each.at), **_counts(each)} for each in hours]
    total: dict[str, Any] = {"hour": "total"}
    total |= {kind[0]: sum(record[kind[0]] for record in records) for kind in _KINDS}
    columns = [
        Column("hour", f"{len(hours)} h to now"),
        *(Column(name, header, show=_or_dash, right=True) for name, header, *_ in _KINDS),
    ]
    length = _bar_length(columns, [*records, total])
    most = max(sum(_counts(each).values()) for each in hours)
    for record, hour in zip(records, hours, strict=True):
        record["bar"] = _bar(list(_counts(hour).values()), most, length, marks)
    run.out.raw("")
    columns.append(Column("bar", " "))
    run.out.rows([*records, total | {"bar": ""}], columns, limit=0)
    run.out.raw("  ".join(f"{mark} {kind[1]}" for mark, kind in zip(marks, _KINDS, strict=True)))


def _or_dash(number: int) -> str:
    return f"{number:,}" if number else "-"


def _counts(hour: Hour) -> dict[str, int]:
    return {kind[0]: getattr(hour, kind[0]) for kind in _KINDS}


def _local_hour(at: int) -> str:
    """Month, day, hour and offset: not every offset is of whole hours, and one hour in a year comes twice."""
    local = times.show_local(at)
    return local[5:16] + local[19:]


def _marks() -> str:
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return _BLOCKS


def _bar_length(columns: Sequence[Column], records: Sequence[dict[str, Any]]) -> int:
    """What the columns leave of the terminal's width."""
    taken = sum(
        2 + max(len(column.title), *(len(column.cell(record)) for record in records)) for column in columns
    )
    return min(max(shutil.get_terminal_size().columns - taken, _SHORTEST), _LONGEST)


def _bar(counts: Sequence[int], most: int, length: int, marks: str) -> str:
    """Each count as its mark, as often as is its share of `length` when all of them are `most`.

    What happened at all is seen: it has one mark at least, and the longest part gives it up.
    """
    if not any(counts):
        return ""
    parts = [max(1, count * length // most) if count else 0 for count in counts]
    while sum(parts) > length and max(parts) > 1:
        parts[parts.index(max(parts))] -= 1
    return "".join(mark * part for mark, part in zip(marks, parts, strict=True))
