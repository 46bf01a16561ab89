"""`tokenctl revoke`: look, confirm, act, and tell how long access tokens still live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options, records, targets, times
from tokenctl.cli.confirm import confirm
from tokenctl.cli.interrupt import stoppable
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, amount, instant
from tokenctl.errors import InvalidInput, OverMax

if TYPE_CHECKING:
    from tokenctl.service.revocation import Preview, Revocation

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
    "tokenctl revoke --user ada --dry-run\n"
    "tokenctl revoke --ip 203.0.113.0/24 --user-agent 'curl/*' --issued-after 6h --reason INC-7",
)
def revoke(
    run: Run,
    target: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…|-]", help="Ids; or - for ids and strings on stdin.")
    ] = None,
    *,
    selected: options.Selected,
    reason: options.Reason = None,
    dry_run: options.DryRun = False,
    max_: options.Max = None,
    yes: options.Yes = False,
    number: options.Confirm = None,
) -> int:
    """Revoke logins: by id, by string on stdin, or all that the selectors match."""
    run.out.expect(records.token_columns(0) if dry_run else _REVOKED)
    if target and selected.given():
        raise InvalidInput(
            "ids and selectors together are ambiguous",
            hint="give either, or pipe `list -o id` into `revoke -`",
        )
    named = targets.several(run, target or [])
    seen = (
        run.service.preview_targets(named)
        if named
        else run.service.preview(targets.selector(run, selected, destructive=True))
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
        everything=selected.everything,
        yes=yes,
        number=number,
    )
    why = reason or "revoked by an operator"
    with stoppable() as stop, run.out.progress("revoking", len(named) or seen.tokens) as advance:
        done = (
            run.service.revoke(named, reason=why, stop=stop, progress=advance)
            if named
            else run.service.revoke_matching(seen.selector, reason=why, stop=stop, progress=advance)
        )
    code = _show_revocation(run, done)
    return stop.exit_code or code


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
