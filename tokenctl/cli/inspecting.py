"""`tokenctl inspect`: all that is known of one login, and why its state is what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import records, targets, times
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, amount, instant

if TYPE_CHECKING:
    from tokenctl.core.refresh_token import RefreshToken
    from tokenctl.service.statistics import Related, RelatedLogin
    from tokenctl.service.tokens import Inspection
    from tokenctl.storage.events import Event


@command(
    app,
    "inspect",
    example="tokenctl inspect rt_01a2070c17097d77944c7d0f55441a4a\ntokenctl inspect --check - < token.txt",
    settings=("grace",),
)
def inspect(
    run: Run,
    target: Annotated[str, targets.ONE],
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="Judge it as presented by this client.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 4 when it is not usable.")] = False,
) -> int:
    """Show what is known of a login: its state and why, where it was used, what happened to it.

    And the other logins, of whichever user, that share an address or a device with it: live ones first, the
    20 most recently used, and how many there are. For them every login is read, so --check leaves them out.

    Of a string it tells the verdict, too, if it were presented now. Nothing is changed, and no secret shown.
    """
    found = run.service.inspect(targets.one(target), client_id=client)
    related = None
    if not check and _prints_related(run):
        with run.out.progress("looking for logins with the same address or device"):
            related = run.service.related(found.token.id)
    record = records.token(found.token, found.now) | {
        "usable": _usable(found),
        "why": _why(found, times.show_local if run.out.format == "table" else times.show_utc),
        "presented_generation": found.presented and found.presented.generation,
        "verdict": found.judgement and str(found.judgement.verdict),
        "verdict_reason": found.judgement and found.judgement.reason and str(found.judgement.reason),
        "events": [records.event_as_data(event) for event in found.events],
        "events_complete": found.events_complete and found.archived_before is None,
        "related": related
        and {"total": related.total, "logins": [_related_as_data(each) for each in related.logins]},
    }
    columns = [
        *(column._replace(table=True) for column in records.token_columns(found.now)),
        *(
            Column(name)
            for name in (
                "usable",
                "why",
                "presented_generation",
                "verdict",
                "verdict_reason",
                "events",
                "events_complete",
                "related",
            )
        ),
    ]
    run.out.one(record, columns, card=_card(found))
    if run.out.format == "table" and not run.out.fields:
        _timeline(run, found)
        if related is not None:
            _others(run, found, related)
    return 4 if check and not _usable(found) else 0


def _prints_related(run: Run) -> bool:
    if run.out.fields:
        return "related" in run.out.fields
    return run.out.format != "id"


def _usable(found: Inspection) -> bool:
    if found.judgement is not None:
        return found.judgement.verdict in ("rotate", "retry", "recover")
    return str(found.state) == "live"


def _why(found: Inspection, show: Callable[[int], str]) -> str:
    """One sentence that explains the state; `show` writes an instant."""
    row = found.token
    if found.judgement is not None and found.judgement.verdict == "behind":
        return (
            f"the string is newer than the database, which has generation {row.generation}: was it restored?"
        )

    def at(instant: int | None) -> str:
        return "never" if instant is None else show(instant)

    match str(found.state):
        case "revoked":
            by = f" by {row.revoked_by}" if row.revoked_by else ""
            return f"revoked {at(row.revoked_at)}{by}: {row.revoked_reason}{_reuse(found)}"
        case "expired":
            return f"its absolute lifetime ended {at(row.expires_at)}"
        case "idle":
            return f"not used since {at(row.rotated_at)}, so it ended {at(row.idle_expires_at)}"
        case "blocked" if row.is_user_disabled(found.now):
            until = f" until {at(row.user_disabled_until)}" if row.user_disabled_until else ""
            return f"the user is disabled{until}"
        case "blocked":
            return f"issued before the cut-off of {at(row.not_before)}"
    return "its current string is accepted"


def _reuse(found: Inspection) -> str:
    for event in found.events:
        if event.type == "token.reuse":
            # Somebody may have written other data there by force.
            presented, current = (event.data.get(name) for name in ("generation", "current_generation"))
            if presented is not None and current is not None:
                return f"; generation {presented} was presented when {current} was the current one"
    return ""


def _at(instant: int | None) -> str:
    return "never" if instant is None else times.show_local(instant)


def _card(found: Inspection) -> Iterator[tuple[str, str]]:
    row = found.token
    yield "id", row.id
    yield "user", f"{row.user_name} ({row.user_id})"
    yield "client", row.client_id
    yield "scope", row.scope or "-"
    yield "state", str(found.state)
    yield "why", _why(found, times.show_local)
    yield "generation", str(row.generation)
    yield "issued", f"{_at(row.created_at)} {_where(row.issued)}"
    yield "last used", f"{_at(row.rotated_at)} {_where(row.last)}"
    yield "expires", f"{_at(row.expires_at)}, when idle {_at(row.idle_expires_at)}"
    exposed = "until" if row.access_until > found.now else "ended"
    yield "access token", f"{exposed} {_at(row.access_until)}"
    if found.presented and found.judgement:
        reason = f" ({found.judgement.reason})" if found.judgement.reason else ""
        yield "presented", f"generation {found.presented.generation}"
        yield "verdict now", f"{found.judgement.verdict}{reason}"


def _where(context: Any) -> str:
    known = [part for part in (context.ip_text, context.user_agent) if part]
    if context.device:
        known.append(f"device {context.device.hex()[:12]}…")
    return f"from {', '.join(known)}" if known else "(from where is not known)"


# --- below the card --------------------------------------------------------------------------

_TIMELINE = [
    instant("at", "when"),
    Column("what"),
    Column("who", shrink=True),
    Column("ip", "from"),
    Column("more", shrink=True),
]
_RELATED = [
    Column("id"),
    Column("user", shrink=True),
    Column("state"),
    Column("shared", "same"),
    instant("last_used_at", "last used"),
]


def _timeline(run: Run, found: Inspection) -> None:
    """What happened, the oldest first."""
    if found.events:
        run.out.raw("")
        run.out.rows(map(_happened, found.events), _TIMELINE, limit=0)
    if found.archived_before is not None:
        before = times.show_local(found.archived_before)
        run.out.note(f"its events before {before} may be in an archive of the audit log")
    if not found.events_complete:
        shown = f"only the newest {len(found.events):,} events are shown"
        run.out.note(f"{shown}; all of them: tokenctl audit search --token {found.token.id}")


def _happened(event: Event) -> dict[str, Any]:
    reason = f" ({event.reason})" if event.reason else ""
    return {
        "at": event.at,
        "what": f"{event.type}{reason}",
        "who": event.actor,
        "ip": event.ip_text,
        "more": records.facts(event.data),
    }


def _others(run: Run, found: Inspection, related: Related) -> None:
    """The logins that share an address or a device, and which commands list them all."""
    if not related.total:
        return
    run.out.raw("")
    run.out.rows(map(_related, related.logins), _RELATED, limit=0)
    shown = f"{len(related.logins)} of " if related.total > len(related.logins) else ""
    run.out.note(f"{shown}{amount(related.total, 'other login')} with an address or a device of this one")
    flags = _selectors(found.token)
    for name, which in (("ip", "from its address"), ("device", "by its device")):
        if any(name in each.shared for each in related.logins):
            run.out.note(f"every login {which}: tokenctl list {' '.join(flags[name])}")


def _related(other: RelatedLogin) -> dict[str, Any]:
    return {
        "id": other.token.id,
        "user": other.token.user_name,
        "user_id": other.token.user_id,
        "state": str(other.state),
        "shared": list(other.shared),
        "last_used_at": other.token.rotated_at,
    }


def _related_as_data(other: RelatedLogin) -> dict[str, Any]:
    return _related(other) | {"last_used_at": times.show_utc(other.token.rotated_at)}


def _selectors(row: RefreshToken) -> dict[str, list[str]]:
    """What selects by its addresses, and by its devices; each of them once."""
    contexts = (row.issued, row.last)
    ips = dict.fromkeys(f"--ip {each.ip_text}" for each in contexts if each.ip_text)
    devices = dict.fromkeys(f"--device sha256:{each.device.hex()}" for each in contexts if each.device)
    return {"ip": list(ips), "device": list(devices)}
