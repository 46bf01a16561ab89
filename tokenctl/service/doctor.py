"""The doctor: is everything in order for the next night, and what to do where it is not. Changes nothing."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from tokenctl.errors import TokenctlError
from tokenctl.service.runtime import Clock, Runtime, micros
from tokenctl.service.transactions import repeated
from tokenctl.settings import Settings, format_duration
from tokenctl.storage import events, purging, tokens
from tokenctl.storage.engine import Storage, locate

_DAY = 86_400_000_000
_LOOK_BACK = 7 * _DAY


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `fix` says what to do when it is not ok."""

    check: str
    ok: bool
    detail: str
    fix: str = ""


def examine(settings: Settings, *, clock: Clock | None = None) -> list[Check]:
    """Every check that can be made, in order; where the database is not usable, only those before it."""
    try:
        label = locate(settings.database).label
        runtime = Runtime.open(settings, clock=clock, entropy=None, actor="doctor")
    except TokenctlError as error:
        return [Check("database", ok=False, detail=error.message, fix=error.hint)]
    try:
        checks = [Check("database", ok=True, detail=f"{label} is migrated")]
        checks += _master_key(runtime)
        checks.append(_attempt("signing key", lambda: f"signs with {runtime.signing_key.kid}"))
        checks.append(_durable(runtime.storage, sample=runtime.is_sample))
        checks.append(_attempt("clock", lambda: _clock(runtime)))
        checks.append(_recovery(runtime))
        checks.append(_critical_events(runtime))
        checks.append(_purged(runtime))
    finally:
        runtime.storage.close()
    return checks


def _attempt(check: str, answer: Callable[[], str]) -> Check:
    try:
        return Check(check, ok=True, detail=answer())
    except TokenctlError as error:
        return Check(check, ok=False, detail=error.message, fix=error.hint)


def _master_key(runtime: Runtime) -> Iterator[Check]:
    if runtime.is_sample:
        yield Check(
            "master key",
            ok=True,
            detail="this is the sample database: its key is public, so trust none of its tokens; "
            "its clock stands still between commands",
        )
        return
    yield _attempt("master key", lambda: f"{runtime.key_source} fits" if runtime.keys else "")
    file = runtime.key_path
    if runtime.settings.master_key is None and file.is_file():
        mode = stat.S_IMODE(file.stat().st_mode)
        yield Check(
            "key file",
            ok=not mode & 0o077,
            detail=f"{file} has mode {mode:04o}; keep a copy apart from the database: "
            "losing it ends every login",
            fix=f"chmod 600 {file}",
        )


def _clock(runtime: Runtime) -> str:
    apart = runtime.demand_same_time()
    return (
        "the database has no clock of its own"
        if apart is None
        else f"{apart / 1e6:+.3f} s from the database's"
    )


def _durable(storage: Storage, *, sample: bool) -> Check:
    ok, detail, fix = storage.durability()
    return Check("durability", ok=sample or ok, detail=detail, fix=fix)


@repeated
def _recovery(runtime: Runtime) -> Check:
    """A declared restore is no fault, and whoever looks after the database should know of it."""
    with runtime.storage.read() as connection:
        at = tokens.recovered_at(connection)
    if at is None:
        return Check("restored", ok=True, detail="never from a backup")
    when = datetime.fromtimestamp(at / 1e6, tz=UTC).isoformat(" ", "seconds")
    return Check(
        "restored",
        ok=True,
        detail=f"declared restored at {when}: logins not used since are followed to their newer strings",
    )


@repeated
def _critical_events(runtime: Runtime) -> Check:
    """An older database than its tokens, or a wrong clock: both need a person."""
    since = runtime.clock() - _LOOK_BACK
    with runtime.storage.read() as connection:
        found = events.critical_since(connection, since)
    kinds = ", ".join(sorted({f"{event.type} of {event.token_id}" for event in found})[:3])
    return Check(
        "alarms",
        ok=not found,
        detail=f"{len(found)} critical in 7 days ({kinds})" if found else "none critical in 7 days",
        fix=str(found[-1].data.get("try", "tokenctl audit tail")) if found else "",
    )


@repeated
def _purged(runtime: Runtime) -> Check:
    """Whether the purge keeps up: dead rows of twice the retention mean that nobody runs it."""
    retention = runtime.settings.purge_retention
    with runtime.storage.read() as connection:
        late = purging.count_dead(connection, dead_since=runtime.clock() - 2 * micros(retention) - _DAY)
    return Check(
        "purge",
        ok=not late,
        detail=f"{late:,} rows dead for more than twice the retention of {format_duration(retention)}"
        if late
        else "nothing is overdue",
        fix="tokenctl purge, every night from cron",
    )
