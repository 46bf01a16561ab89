"""Users of another system, many at a time, with the password hashes that they have there.

Owns what becomes of each and that a second run goes on where one stopped: a name that is there already is
left as it is. Each chunk is a transaction of its own, with an event for each user; what a hash costs to look
at is paid between them, where others can write. What a file of users looks like is `user_lines`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from tokenctl.core import ids
from tokenctl.core.names import clean_user_name, user_name_key
from tokenctl.errors import InvalidInput
from tokenctl.service.revocation import Progress, Stop, never, unseen
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, users
from tokenctl.storage.events import Event

#: Called with the line and the reason for each that was refused; no text of the line is in it.
Report = Callable[[int, str], None]

#: Users in a transaction.
CHUNK = 500

Row = dict[str, Any]
_OTHER_CASE = "there is a user already whose name differs from this one in its case alone"
_CHANGE_IT = "change it where it comes from, and import it again"


class NewUser(NamedTuple):
    """A user as another system knows it; `line` is where it stands, for the report.

    Without a password hash it can be issued tokens, and not log in.
    """

    line: int
    name: str
    password_hash: str | None = None
    disabled: bool = False


class Unusable(NamedTuple):
    """A line that is no user, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What an import did, or with `dry_run` would do. `existing`: the names that were there already."""

    imported: int = 0
    existing: int = 0
    refused: int = 0
    #: Of the imported ones.
    without_password: int = 0
    #: False when `stop` ended it before all was read.
    complete: bool = True
    dry_run: bool = False


def nobody(_line: int, _reason: str) -> None:
    """The `report` of a caller who needs the counts alone."""


def import_users(
    runtime: Runtime,
    records: Iterable[NewUser | Unusable],
    *,
    actor: str,
    dry_run: bool = False,
    stop: Stop = never,
    progress: Progress = unseen,
    report: Report = nobody,
) -> Import:
    """Make the users whose names are free, CHUNK at a time.

    A dry run does not know what the file itself has twice, far apart: it counts such a name twice.
    """
    counts: Counter[str] = Counter()
    source = iter(records)
    while (chunk := list(islice(source, CHUNK))) and not stop():
        lines: list[int] = []
        rows: list[Row] = []
        refused: list[tuple[int, str]] = []
        for record in chunk:
            try:
                rows.append(_row(runtime, record))
                lines.append(record.line)
            except InvalidInput as refusal:
                refused.append((record.line, refusal.message))
        new, names = _look(runtime, rows) if dry_run else _store(runtime, rows, actor)
        for line, row in zip(lines, rows, strict=True):
            if row["id"] in new:
                counts["imported"] += 1
                counts["without_password"] += row["password_hash"] is None
            elif names.get(row["name_key"], row["name"]) == row["name"]:
                counts["existing"] += 1
            else:  # somebody who can log in there, and must not be lost here without a word
                refused.append((line, _OTHER_CASE))
        counts["refused"] += len(refused)
        for line, reason in sorted(refused):
            report(line, reason)
        progress(len(chunk))
    return Import(**counts, complete=not stop(), dry_run=dry_run)


def _row(runtime: Runtime, record: NewUser | Unusable) -> Row:
    """The row that it would be. Raises InvalidInput."""
    from tokenctl.core.passwords import known_scheme

    if isinstance(record, Unusable):
        raise InvalidInput(record.reason, hint=_CHANGE_IT)
    if known_scheme(record.name):  # names are shown, and stand in the audit log for ever
        raise InvalidInput("there is a password hash where the name belongs", hint=_CHANGE_IT)
    name = clean_user_name(record.name)
    if record.password_hash is not None and not known_scheme(record.password_hash):
        raise InvalidInput(
            "the password hash is of no scheme that can be verified, or of an absurd cost", hint=_CHANGE_IT
        )
    now = runtime.clock()
    return {
        "id": ids.uuid7(now, runtime.entropy(10)),
        "name": name,
        "name_key": user_name_key(name),
        "password_hash": record.password_hash,
        "created_at": now,
        "disabled_at": now if record.disabled else None,
        "not_before": 0,
    }


@repeated
def _look(runtime: Runtime, rows: list[Row]) -> tuple[set[bytes], dict[str, str]]:
    """What `_store` would tell."""
    with runtime.storage.read() as connection:
        names = users.names_of_keys(connection, [row["name_key"] for row in rows])
    new = set()
    for row in rows:
        if row["name_key"] not in names:
            names[row["name_key"]] = row["name"]
            new.add(row["id"])
    return new, names


@repeated
def _store(runtime: Runtime, rows: list[Row], actor: str) -> tuple[set[bytes], dict[str, str]]:
    """One transaction: the ids of those whose names were free; the names that the others met, by key."""
    with runtime.storage.write() as connection:
        new = users.insert_new(connection, rows)
        events.add(connection, [_event(runtime, row, actor) for row in rows if row["id"] in new])
        met = [row["name_key"] for row in rows if row["id"] not in new]
        return new, users.names_of_keys(connection, met)


def _event(runtime: Runtime, row: Row, actor: str) -> Event:
    return Event(
        at=runtime.clock(),
        type="user.create",
        actor=actor,
        user_id=ids.user_id(row["id"]),
        data={"name": row["name"]} | ({"disabled": True} if row["disabled_at"] else {}),
    )
