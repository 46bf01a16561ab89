"""`tokenctl cutoff`: look, confirm, set or clear, and tell what that did to how many logins.

`set` and `clear` print one and the same record, with `--dry-run` as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options, times
from tokenctl.cli.confirm import confirm
from tokenctl.cli.options import Run, app, command, group
from tokenctl.cli.output import Column, amount, instant
from tokenctl.errors import InvalidInput

if TYPE_CHECKING:
    from tokenctl.service.cutoff import CutOffChange, Reach
    from tokenctl.storage.cutoffs import Scope

cutoffs = group(
    app,
    "cutoff",
    "Cut-offs: refuse every login that was created up to an instant.",
    example="tokenctl cutoff set --user ada --reason INC-7\ntokenctl cutoff show",
)

_SCOPE = [Column("scope"), Column("client"), Column("user", shrink=True), Column("user_id", table=False)]
_STANDING = [*_SCOPE, instant("not_before")._replace(header="created until")]
_CHANGED = [
    *_SCOPE,
    instant("not_before"),
    instant("previously"),
    Column("blocked"),
    Column("let_in"),
    Column("users"),
    instant("access_exposure_until"),
    Column("dry_run"),
]

_User = Annotated[str | None, typer.Option("--user", metavar="NAME", help="The logins of this user.")]
_Client = Annotated[str | None, typer.Option("--client", metavar="ID", help="The logins at this client.")]
_All = Annotated[bool, typer.Option("--all", help="Every login there is.")]


@command(
    cutoffs,
    "set",
    example="tokenctl cutoff set --all --dry-run\n"
    "tokenctl cutoff set --all --reason INC-7 --confirm 11\n"
    "tokenctl cutoff set --client web --at 2026-03-14T02:00Z --reason INC-7",
)
def set_(
    run: Run,
    *,
    everything: _All = False,
    user: _User = None,
    client: _Client = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="Up to then: an age such as 2h, or ISO 8601 with a zone; default now.",
        ),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="Why, for the audit log; needed without --dry-run."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also earlier than what stands, which lets logins in again.")
    ] = False,
    dry_run: options.DryRun = False,
    number: options.Confirm = None,
) -> None:
    """Refuse every login created at or before an instant: of all, of a client or of a user.

    One row changes, however many logins there are, and it holds for whatever begins afterwards, on every
    node. No login is revoked, and whoever logs in later is let in. Of several cut-offs the latest wins.
    """
    run.out.expect(_CHANGED)
    if reason is None and not dry_run:
        raise InvalidInput("a cut-off needs a reason, for the audit log", hint="add --reason TEXT")
    service = run.service.cutoffs
    instant_ = None if at is None else times.parse_instant(at, now=run.service.now(), destructive=True)
    planned = service.plan(everything=everything, client=client, user=user, at=instant_, force=force)
    seen = service.reach(planned)
    if dry_run:
        _show(run, planned, seen, dry_run=True)
        return
    _confirm(f"cut off {_whose(planned.scope)}", seen, number)
    # Without --at the instant is the one inside the transaction, and not that of the question.
    done = service.set(
        everything=everything, client=client, user=user, at=instant_, force=force, reason=reason or ""
    )
    _show(run, done, service.reach(done), dry_run=False)


@command(
    cutoffs,
    "clear",
    example="tokenctl cutoff clear --client web --dry-run\ntokenctl cutoff clear --user ada --reason INC-7",
)
def clear(
    run: Run,
    *,
    everything: _All = False,
    user: _User = None,
    client: _Client = None,
    reason: options.Reason = None,
    dry_run: options.DryRun = False,
    number: options.Confirm = None,
) -> None:
    """Take a cut-off back: what nothing else holds back is let in again.

    A login that was revoked, expired or fell idle meanwhile stays dead.
    """
    run.out.expect(_CHANGED)
    service = run.service.cutoffs
    planned = service.plan_clear(everything=everything, client=client, user=user)
    seen = service.reach(planned)
    if dry_run:
        _show(run, planned, seen, dry_run=True)
        return
    _confirm(f"clear the cut-off of {_whose(planned.scope)}", seen, number)
    done = service.clear(
        everything=everything, client=client, user=user, reason=reason or "cut-off cleared by an operator"
    )
    _show(run, done, service.reach(done), dry_run=False)


@command(cutoffs, "show", example="tokenctl cutoff show --json")
def show(run: Run, limit: options.Limit = None) -> None:
    """Show the cut-offs that stand: of all, of clients, of users. Why and by whom is in the audit log."""
    rows = (
        _scope_record(each.scope) | {"not_before": each.not_before} for each in run.service.cutoffs.list()
    )
    run.out.rows(rows, _STANDING, limit=limit)


def _confirm(what: str, seen: Reach, number: int | None) -> None:
    does = f"lets in {amount(seen.let_in, 'login')}"
    if not seen.let_in:
        does = f"blocks {amount(seen.blocked, 'live login')}"
    confirm(
        f"{what}, which {does} of {amount(seen.users, 'user')}",
        tokens=seen.blocked + seen.let_in,
        users=seen.users,
        everything=True,  # no cut-off is small: the number is asked for, of one user's too
        number=number,
    )


def _whose(scope: Scope) -> str:
    if scope.user_name is not None:
        return f"the user {scope.user_name}"
    return "everybody" if scope.client_id is None else f"the client {scope.client_id}"


def _scope_record(scope: Scope) -> dict[str, Any]:
    return {
        "scope": scope.kind,
        "client": scope.client_id,
        "user": scope.user_name,
        "user_id": scope.user_id,
    }


def _show(run: Run, change: CutOffChange, seen: Reach, *, dry_run: bool) -> None:
    record = _scope_record(change.scope) | {
        "not_before": change.not_before or None,
        "previously": change.previously or None,
        "blocked": seen.blocked,
        "let_in": seen.let_in,
        "users": seen.users,
        "access_exposure_until": seen.access_exposure_until,
        "dry_run": dry_run,
    }
    run.out.summary(record, _CHANGED, _sentence(change, seen, dry_run=dry_run))


def _sentence(change: CutOffChange, seen: Reach, *, dry_run: bool) -> str:
    would = "would " if dry_run else ""
    whose = _whose(change.scope)
    if change.not_before:
        parts = [f"{would}cut off {whose}: logins created until {times.show_local(change.not_before)}"]
    elif change.previously:
        verb = "would clear" if dry_run else "cleared"
        parts = [f"{verb} the cut-off of {whose} at {times.show_local(change.previously)}"]
    else:
        return f"no cut-off of {whose} stands, nothing to clear"
    of = f" of {amount(seen.users, 'user')}"
    if change.not_before < change.previously:
        parts.append(f"{amount(seen.let_in, 'login')}{of} let in again")
    else:
        parts.append(f"{amount(seen.blocked, 'live login')}{of} blocked")
    if seen.access_exposure_until is not None:
        parts.append(f"access tokens live until {times.show_local(seen.access_exposure_until)}")
    return " · ".join(parts)
