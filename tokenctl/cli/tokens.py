"""The verbs on refresh tokens: issue, list, inspect, rotate, revoke, purge."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options, records, times
from tokenctl.cli.confirm import confirm, read_lines, read_token
from tokenctl.cli.interrupt import stoppable
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, amount, instant
from tokenctl.errors import EmptySelector, InvalidInput, OverMax

if TYPE_CHECKING:
    from tokenctl.core.selector import Selector
    from tokenctl.service.revocation import Preview, Revocation
    from tokenctl.service.tokens import Inspection

_SECRET_PREFIX = "tkr1_"  # noqa: S105 - the mark of a token string, and no secret
_TOKEN_ARGUMENT = typer.Argument(metavar="ID|-", help="An id, rt_…; or - for a token string on stdin.")

# --- issue -----------------------------------------------------------------------------------

_ISSUED = [
    Column("id"),
    Column("refresh_token"),
    instant("expires_at"),
    Column("user_id"),
    Column("client"),
    Column("scope"),
    Column("access_token"),
    instant("access_expires_at"),
]


@command(
    app,
    "issue",
    example="tokenctl issue --user ada\ntokenctl issue --user ada --ttl 12h --json",
    settings=("access_ttl", "idle_ttl", "issuer", "audience"),
)
def issue(
    run: Run,
    *,
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="Whose login it is.")],
    client: Annotated[
        str, typer.Option("--client", metavar="ID", help="The client of the login.")
    ] = "default",
    scope: Annotated[str, typer.Option("--scope", metavar="TEXT", help="Words, one space between.")] = "",
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="DURATION", help="The absolute lifetime; default 30d.")
    ] = None,
) -> None:
    """Issue a refresh token: a new login. Its string is printed once, and stored nowhere."""
    run.out.expect(_ISSUED, "refresh_token")
    pair = run.service.issue(user, client_id=client, scope=scope, ttl=options.duration(ttl))
    _show_string(run, _pair_record(pair), _ISSUED)


def _pair_record(pair: Any) -> dict[str, Any]:
    return {
        "id": pair.token_id,
        "refresh_token": pair.refresh_token,
        "expires_at": pair.refresh_expires_at,
        "user_id": pair.user_id,
        "client": pair.client_id,
        "scope": pair.scope,
        "access_token": pair.access_token,
        "access_expires_at": pair.access_expires_at,
        "retried": pair.retried,
    }


def _show_string(run: Run, record: dict[str, Any], columns: list[Column]) -> None:
    """The string alone on stdout, what belongs to it on stderr; or all of it as data."""
    if run.out.format != "table" or run.out.fields:
        run.out.one(record, columns)
        return
    run.out.secret(record["refresh_token"])
    run.out.note(f"{record['id']} expires {times.show_local(record['expires_at'])}")
    if record.get("retried"):
        run.out.note("its string was handed out before, and this is the same one: a retry in the grace")
    if exposed := record.get("access_exposure_until"):
        run.out.note(f"older access tokens of this login live until {times.show_local(exposed)}")


# --- list and inspect ------------------------------------------------------------------------


@command(
    app,
    "list",
    example="tokenctl list --user ada --state live\ntokenctl list --all --json | jq length",
)
def list_(
    run: Run,
    *,
    user: options.Users = None,
    client: options.Clients = None,
    state: options.States = None,
    everything: options.Everything = False,
    limit: options.Limit = None,
) -> None:
    """List refresh tokens, the oldest login first."""
    selector = _selector(user, client, state, everything=everything)
    now = run.service.now()
    rows = (records.token(row, now) for row in run.service.list(selector))
    total = lambda: (seen := run.service.preview(selector)).tokens + seen.already_dead  # noqa: E731
    run.out.rows(rows, records.token_columns(now), total=total, limit=limit)


def _selector(
    user: list[str] | None,
    client: list[str] | None,
    state: list[options.State] | None,
    *,
    everything: bool,
) -> Selector:
    from tokenctl import Selector, SelectState

    selector = Selector(
        users=tuple(user or ()),
        clients=tuple(client or ()),
        states=tuple(SelectState(each.value) for each in state or ()),
        everything=everything,
    )
    return selector.require_some()


@command(
    app,
    "inspect",
    example="tokenctl inspect rt_01a2070c17097d77944c7d0f55441a4a\ntokenctl inspect --check - < token.txt",
    settings=("grace",),
)
def inspect(
    run: Run,
    target: Annotated[str, _TOKEN_ARGUMENT],
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="Judge it as presented by this client.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 4 when it is not usable.")] = False,
) -> int:
    """Show what is known of a login: its state and why, where it was used, what happened to it.

    Of a string it tells the verdict, too, if it were presented now. Nothing is changed, and no secret shown.
    """
    found = run.service.inspect(_id_or_stdin(target), client_id=client)
    record = records.token(found.token, found.now) | {
        "usable": _usable(found),
        "why": _why(found),
        "presented_generation": found.presented and found.presented.generation,
        "verdict": found.judgement and str(found.judgement.verdict),
        "verdict_reason": found.judgement and found.judgement.reason and str(found.judgement.reason),
        "events": [_event_data(event) for event in found.events],
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
            )
        ),
    ]
    run.out.one(record, columns, card=_card(found))
    return 4 if check and not _usable(found) else 0


def _id_or_stdin(target: str) -> str:
    if target == "-":
        return read_token()
    if target.startswith(_SECRET_PREFIX):
        raise InvalidInput(
            "a whole token string was given as an argument, where shell history and `ps` show it",
            hint="give - and the string on stdin, and revoke this one: it has been seen",
        )
    return target


def _usable(found: Inspection) -> bool:
    if found.judgement is not None:
        return found.judgement.verdict in ("rotate", "retry", "recover")
    return str(found.state) == "live"


def _why(found: Inspection) -> str:
    """One sentence that explains the state."""
    row = found.token
    match str(found.state):
        case "revoked":
            by = f" by {row.revoked_by}" if row.revoked_by else ""
            return f"revoked {_at(row.revoked_at)}{by}: {row.revoked_reason}{_reuse(found)}"
        case "expired":
            return f"its absolute lifetime ended {_at(row.expires_at)}"
        case "idle":
            return f"not used since {_at(row.rotated_at)}, so it ended {_at(row.idle_expires_at)}"
        case "blocked" if row.is_user_disabled(found.now):
            until = f" until {_at(row.user_disabled_until)}" if row.user_disabled_until else ""
            return f"the user is disabled{until}"
        case "blocked":
            return f"issued before the cut-off of {_at(row.not_before)}"
    return "its current string is accepted"


def _reuse(found: Inspection) -> str:
    for event in found.events:
        if event.type == "token.reuse":
            return (
                f"; generation {event.data['generation']} was presented when "
                f"{event.data['current_generation']} was the current one"
            )
    return ""


def _at(instant_: int | None) -> str:
    return "never" if instant_ is None else times.show_local(instant_)


def _card(found: Inspection) -> Iterator[tuple[str, str]]:
    row = found.token
    yield "id", row.id
    yield "user", f"{row.user_name} ({row.user_id})"
    yield "client", row.client_id
    yield "scope", row.scope or "-"
    yield "state", str(found.state)
    yield "why", _why(found)
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
    for event in found.events:
        data = _event_data(event)
        what = " ".join(str(data[key]) for key in ("type", "reason", "actor", "ip") if data[key])
        yield _at(event.at), f"{what}  {records.facts(data['data'])}".rstrip()


def _where(context: Any) -> str:
    known = [part for part in (context.ip_text, context.user_agent) if part]
    if context.device:
        known.append(f"device {context.device.hex()[:12]}…")
    return f"from {', '.join(known)}" if known else "(from where is not known)"


def _event_data(event: Any) -> dict[str, Any]:
    return records.event(event) | {"at": times.show_utc(event.at)}


# --- rotate ----------------------------------------------------------------------------------

_ROTATED = [*_ISSUED, Column("retried")]
_REISSUED = [Column("id"), Column("refresh_token"), instant("expires_at"), instant("access_exposure_until")]


@command(
    app,
    "rotate",
    example="tokenctl rotate - < token.txt > next.txt\ntokenctl rotate rt_01a2070c17097d77944c7d0f55441a4a",
    settings=("grace", "foreign_retry", "access_ttl", "issuer", "audience"),
)
def rotate(
    run: Run,
    target: Annotated[str, _TOKEN_ARGUMENT],
    client: Annotated[
        str, typer.Option("--client", metavar="ID", help="Who presents the string.")
    ] = "default",
    scope: Annotated[
        str | None, typer.Option("--scope", metavar="TEXT", help="Narrow this access token to that.")
    ] = None,
    reason: options.Reason = None,
) -> None:
    """Rotate: a string on stdin to its successor, or a login named by id to a new string.

    The string is printed once. A spent string presented outside the grace revokes its login. Of a login
    named by id every older string stops working.
    """
    if target == "-":
        run.out.expect(_ROTATED, "refresh_token")
        pair = run.service.rotate(read_token(), client_id=client, scope=scope)
        _show_string(run, _pair_record(pair), _ROTATED)
        return
    run.out.expect(_REISSUED, "refresh_token")
    done = run.service.reissue(_id_or_stdin(target), reason=reason or "reissued")
    record = {
        "id": done.token_id,
        "refresh_token": done.refresh_token,
        "expires_at": done.refresh_expires_at,
        "access_exposure_until": done.access_exposure_until,
    }
    _show_string(run, record, _REISSUED)


# --- revoke ----------------------------------------------------------------------------------

_REVOKED = [
    Column("revoked"),
    Column("already_dead"),
    Column("unknown"),
    Column("forged"),
    Column("malformed"),
    Column("users"),
    instant("access_exposure_until"),
    Column("complete"),
]


@command(
    app,
    "revoke",
    example="tokenctl revoke rt_01a2070c17097d77944c7d0f55441a4a --reason 'laptop stolen'\n"
    "tokenctl list --user bob -o id | tokenctl revoke - --yes\n"
    "tokenctl revoke --user ada --dry-run",
)
def revoke(
    run: Run,
    target: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…|-]", help="Ids; or - for ids and strings on stdin.")
    ] = None,
    *,
    user: options.Users = None,
    client: options.Clients = None,
    state: options.States = None,
    everything: options.Everything = False,
    reason: options.Reason = None,
    dry_run: options.DryRun = False,
    max_: options.Max = None,
    yes: options.Yes = False,
    number: options.Confirm = None,
) -> int:
    """Revoke logins: by id, by string on stdin, or all that the selectors match."""
    targets = _targets(run, target or [])
    if targets and (user or client or state or everything):
        raise InvalidInput(
            "ids and selectors together are ambiguous",
            hint="give either, or pipe `list -o id` into `revoke -`",
        )
    seen = (
        run.service.preview_targets(targets)
        if targets
        else run.service.preview(_selector(user, client, state, everything=everything))
    )
    if max_ is not None and seen.tokens > max_:
        raise OverMax(
            f"{amount(seen.tokens, 'refresh token')} match, and --max is {max_:,}; nothing was done",
            hint="look at them with --dry-run",
            tokens=seen.tokens,
            users=seen.users,
        )
    if dry_run:
        return _show_preview(run, seen)
    confirm(
        f"revoke {amount(seen.tokens, 'refresh token')} of {amount(seen.users, 'user')}",
        tokens=seen.tokens,
        users=seen.users,
        everything=everything,
        yes=yes,
        number=number,
    )
    why = reason or "revoked by an operator"
    with stoppable() as stop, run.out.progress("revoking", len(targets) or seen.tokens) as advance:
        done = (
            run.service.revoke(targets, reason=why, stop=stop, progress=advance)
            if targets
            else run.service.revoke_matching(seen.selector, reason=why, stop=stop, progress=advance)
        )
    code = _show_revocation(run, done)
    return stop.exit_code or code


def _targets(run: Run, given: list[str]) -> list[str]:
    """The ids and strings that were named, those on stdin too."""
    if any(each.startswith(_SECRET_PREFIX) for each in given):
        run.out.warn("a whole token string in the arguments stays in the shell's history; next time give -")
    if "-" not in given:
        return given
    read = list(_stdin_targets(sys.stdin.buffer))
    targets = [each for each in given if each != "-"] + read
    if not targets:
        raise EmptySelector(
            "stdin names no refresh token, so nothing was done", hint="ids or strings, a line each"
        )
    return targets


def _stdin_targets(stream: Any) -> Iterator[str]:
    """A target a line; what is too long or no text stays in, to be counted as malformed."""
    for line in read_lines(stream):
        text = "(too long)" if line is None else line.decode("utf-8", "replace").strip()
        if text:
            yield text


def _show_preview(run: Run, seen: Preview) -> int:
    head = {
        "would_revoke": seen.tokens,
        "users": seen.users,
        "already_dead": seen.already_dead,
        "unknown": seen.unknown,
        "forged": seen.forged,
        "malformed": seen.malformed,
        "last_used_at": seen.last_used_at and times.show_utc(seen.last_used_at),
        "access_exposure_until": seen.access_exposure_until and times.show_utc(seen.access_exposure_until),
    }
    now = run.service.now()
    last = f", last used {times.show_ago(seen.last_used_at, now)}" if seen.last_used_at else ""
    would = f"{amount(seen.tokens, 'refresh token')} of {amount(seen.users, 'user')}{last}"
    card = [("would revoke", would), *_counts(seen), *_exposure(seen.access_exposure_until)]
    run.out.object_with_rows(head, "tokens", _alive(run, seen, now), records.token_columns(now), card=card)
    return _exit_code(seen, found=seen.tokens + seen.already_dead)


def _alive(run: Run, seen: Preview, now: int) -> Iterable[dict[str, Any]]:
    """The tokens that would be revoked; a selection of nothing lists nothing."""
    if not seen.tokens:
        return []
    rows = run.service.list(seen.selector)
    return (records.token(row, now) for row in rows if not row.is_dead(now))


def _show_revocation(run: Run, done: Revocation) -> int:
    parts = [f"revoked {done.revoked:,}", *(f"{label} {count}" for label, count in _counts(done))]
    parts += (f"{label} {value}" for label, value in _exposure(done.access_exposure_until))
    if not done.complete:
        parts.append("stopped early, the same command goes on")
    record = {column.name: getattr(done, column.name) for column in _REVOKED}
    run.out.summary(record, _REVOKED, " · ".join(parts))
    return _exit_code(done, found=done.revoked + done.already_dead)


def _counts(done: Revocation | Preview) -> Iterator[tuple[str, str]]:
    for name in ("already_dead", "unknown", "forged", "malformed"):
        if count := getattr(done, name):
            yield name.replace("_", " "), f"{count:,}"


def _exposure(until: int | None) -> Iterator[tuple[str, str]]:
    if until is not None:
        yield "access tokens live until", times.show_local(until)


def _exit_code(done: Revocation | Preview, *, found: int) -> int:
    """0, or 3 when some of what was named is unknown, 4 when all of it is."""
    if not done.unknown + done.forged + done.malformed:
        return 0
    return 3 if found else 4
