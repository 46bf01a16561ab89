"""`tokenctl revoke`: look, confirm, act, and tell how long access tokens still live."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options, records, targets, times
from tokenctl.cli.confirm import confirm
from tokenctl.cli.interrupt import Stop, stoppable
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, Part, amount, instant
from tokenctl.errors import InvalidInput, OverMax, PlanDrift

if TYPE_CHECKING:
    from tokenctl.core.selector import Selector
    from tokenctl.service.plans import Planned
    from tokenctl.service.revocation import Preview, Revocation
    from tokenctl.service.targets import Look, Report, Targets
    from tokenctl.storage.plans import Plan

_REVOKED = [
    Column("revoked"),
    Column("already_dead"),
    Column("unknown"),
    Column("forged"),
    Column("malformed"),
    Column("users"),
    instant("access_exposure_until"),
    Column("complete"),
    instant("verified_at"),
    Column("live"),
]
_SHARES = [
    Column("user", shrink=True),
    Column("user_id", table=False),
    Column("tokens", right=True),
    instant("last_used_at", "last used"),
]
#: How many that are no members are shown of a plan that has drifted.
_DRIFT_SHOWN = 50
_A_MOMENT = 0.2  # s


@command(
    app,
    "revoke",
    example="tokenctl revoke rt_01a2070c17097d77944c7d0f55441a4a --reason 'laptop stolen'\n"
    "tokenctl list --user bob -o id | tokenctl revoke - --yes\n"
    "tokenctl revoke --ip 203.0.113.0/24 --user-agent 'curl/*' --issued-after 6h --dry-run\n"
    "tokenctl revoke --plan 7f3a --reason INC-7 --confirm 11 --verify\n"
    "tokenctl revoke --from-file leaked.txt --report revoked.csv --confirm 8210\n"
    "tokenctl revoke --from-audit audit.jsonl --yes",
)
def revoke(
    run: Run,
    target: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…|-]", help="Ids; or - for ids and strings on stdin.")
    ] = None,
    *,
    selected: options.Selected,
    plan: options.PlanId = None,
    from_audit: Annotated[
        str | None,
        typer.Option("--from-audit", metavar="FILE", help="All that this audit export says was revoked."),
    ] = None,
    reason: options.Reason = None,
    dry_run: options.DryRun = False,
    max_: options.Max = None,
    yes: options.Yes = False,
    number: options.Confirm = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write there what became of each line, as CSV."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Wait until no access token lives any more, and look again.")
    ] = False,
) -> int:
    """Revoke logins: by id, by string, all that the selectors match, or exactly what a dry run has shown."""
    run.out.expect(records.token_columns(0) if dry_run else _REVOKED)
    _demand_one_way(target, selected, plan, from_audit)
    with ExitStack() as stack:
        if plan is not None:
            job = _by_plan(run, plan)
        elif target or from_audit is not None or selected.given() == {"from_file"}:
            with targets.lines(run, target or [], selected.from_file, audit=from_audit) as lines:
                named = stack.enter_context(run.service.read_targets(lines))
            job = _by_targets(run, named, None if dry_run else _report(stack, report))
            report = None
        else:
            job = _by_selector(run, targets.selector(run, selected, destructive=True))
        if report is not None and not dry_run:
            raise InvalidInput(
                "--report tells what became of each line, and here no lines name the logins",
                hint="name them with ids, - or --from-file; or list them: --dry-run --json",
            )
        if max_ is not None:
            _demand_at_most(max_, job.look())
        if dry_run:
            return _show_plan(run, job)
        everything = selected.everything
        return _act(run, job, everything=everything, reason=reason, yes=yes, number=number, verify=verify)


def _demand_one_way(
    target: list[str] | None, selected: options.Selected, plan: str | None, from_audit: str | None
) -> None:
    ways = {
        "ids": bool(target),
        "selectors": bool(selected.given()),
        "--plan": plan is not None,
        "--from-audit": from_audit is not None,
    }
    if len(given := [way for way, is_given in ways.items() if is_given]) > 1:
        raise InvalidInput(
            f"{' and '.join(given)} together are ambiguous",
            hint="give one of them, or pipe `list -o id` into `revoke -`",
        )


# --- the ways to name what is revoked --------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What to revoke, however it was named."""

    look: Callable[[], Preview]
    plan: Callable[[], Planned]
    #: Called with reason, stop and progress.
    revoke: Callable[..., Revocation]
    #: How much there is to do, where it is not the number of live tokens.
    size: int | None = None
    #: The plan that was given; its number of users is what a person confirms.
    given: Plan | None = None


def _by_plan(run: Run, plan_id: str) -> _Job:
    plan = run.service.get_plan(plan_id)
    return _Job(
        look=lambda: run.service.review_plan(plan).seen,
        plan=lambda: run.service.review_plan(plan),
        revoke=lambda **how: run.service.revoke_plan(plan, **how),
        size=plan.tokens,
        given=plan,
    )


def _by_targets(run: Run, named: Targets, report: Report | None) -> _Job:
    found: Look | None = None

    def look() -> Preview:
        nonlocal found
        found = run.service.look(named)
        return run.service.preview_targets(found)

    def revoke(**how: Any) -> Revocation:
        if report is not None or found is None:
            return run.service.revoke(named, report=report, **how)
        return run.service.revoke_found(found, **how)

    return _Job(look=look, plan=lambda: run.service.plan(named), revoke=revoke, size=named.count)


def _by_selector(run: Run, selector: Selector) -> _Job:
    return _Job(
        look=lambda: run.service.preview(selector),
        plan=lambda: run.service.plan(selector),
        revoke=lambda **how: run.service.revoke_matching(selector, **how),
    )


def _report(stack: ExitStack, path: Path | None) -> Report | None:
    """Writes a line of CSV for each that was read; the file is new, and its owner's alone."""
    if path is None:
        return None
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise InvalidInput(
            f"{path}: {error.strerror}, so nothing was done", hint="--report FILE: a new file"
        ) from None
    file = stack.enter_context(os.fdopen(handle, "w", encoding="ascii"))
    file.write("line,id,result\n")

    def report(line: int, token_id: str | None, outcome: str) -> None:
        file.write(f"{line},{token_id or ''},{outcome}\n")

    return report


# --- looking ---------------------------------------------------------------------------------


def _show_plan(run: Run, job: _Job) -> int:
    """What would be revoked, of whom, and the plan by which exactly that can be."""
    planned = job.plan()
    seen, plan, now = planned.seen, planned.plan, run.service.now()
    head = {
        "plan": plan and plan.id,
        "plan_expires_at": plan and times.show_utc(plan.expires_at),
        "would_revoke": seen.tokens,
        "users": seen.users,
        "already_dead": seen.already_dead,
        "unknown": seen.unknown,
        "forged": seen.forged,
        "malformed": seen.malformed,
        "last_used_at": seen.last_used_at and times.show_utc(seen.last_used_at),
        "access_exposure_until": seen.access_exposure_until and times.show_utc(seen.access_exposure_until),
    }
    last = f", last used {times.show_ago(seen.last_used_at, now)}" if seen.last_used_at else ""
    would = f"{amount(seen.tokens, 'refresh token')} of {amount(seen.users, 'user')}{last}"
    shares = (
        {
            "user": share.user_name,
            "user_id": share.user_id,
            "tokens": share.tokens,
            "last_used_at": share.last_used_at,
        }
        for share in planned.shares
    )
    run.out.object_with_rows(
        head,
        [
            Part("per_user", shares, _SHARES),
            Part("tokens", _members(run, planned, now), records.token_columns(now)),
        ],
        card=[
            ("would revoke", would),
            *_counts(seen),
            *_exposure(seen.access_exposure_until),
            *([("plan", f"{plan.id}, good until {times.show_local(plan.expires_at)}")] if plan else []),
        ],
    )
    if plan is not None:
        run.out.note(
            f"plan {plan.id}: {amount(plan.tokens, 'token')}, {amount(plan.users, 'user')}; "
            f"to act on exactly these: tokenctl revoke --plan {plan.id} --reason TEXT --confirm {plan.users}"
        )
    return _exit_code(seen, found=seen.tokens + seen.already_dead)


def _members(run: Run, planned: Planned, now: int) -> Iterator[dict[str, Any]]:
    """The tokens that would be revoked."""
    return (records.token(row, now) for row in run.service.list_planned(planned))


def _demand_no_drift(run: Run, plan: Plan) -> None:
    """Raise PlanDrift where more matches now than was shown, after those are shown."""
    drift = run.service.plan_drift(plan)
    if not (shown := list(islice(drift, _DRIFT_SHOWN))):
        return
    more = len(shown) + sum(1 for _ in drift)
    now = run.service.now()
    found = run.service.look_up(shown)
    run.out.rows((records.token(row, now) for row in found.values()), records.token_columns(now), limit=0)
    raise PlanDrift(
        f"{amount(more, 'refresh token')} match now that plan {plan.id} has not shown; nothing was done",
        tokens=more,
        plan=plan.id,
    )


def _demand_at_most(most: int, seen: Preview) -> None:
    if seen.tokens > most:
        raise OverMax(
            f"{amount(seen.tokens, 'refresh token')} match, and --max is {most:,}; nothing was done",
            hint="look at them with --dry-run, without --max",
            tokens=seen.tokens,
            users=seen.users,
        )


# --- acting ----------------------------------------------------------------------------------


def _act(
    run: Run,
    job: _Job,
    *,
    everything: bool,
    reason: str | None,
    yes: bool,
    number: int | None,
    verify: bool,
) -> int:
    seen = job.look()
    users = seen.users
    if job.given is not None:
        _demand_no_drift(run, job.given)
        users = job.given.users
    confirm(
        f"revoke {amount(seen.tokens, 'refresh token')} of {amount(users, 'user')}",
        tokens=seen.tokens,
        users=users,
        everything=everything,
        yes=yes,
        number=number,
    )
    why = reason or "revoked by an operator"
    with stoppable() as stop:
        with run.out.progress("revoking", job.size or seen.tokens) as advance:
            done = job.revoke(reason=why, stop=stop, progress=advance)
        told = _told(done)
        looked = None
        if verify and done.complete and not stop():
            run.out.note(told)
            looked = _verify(run, job, done, stop)
    code = _show_revocation(run, done, told, looked)
    return stop.exit_code or code


@dataclass(frozen=True)
class _Looked:
    """What --verify found: `live` of the logins, at an instant (µs) when no access token lived any more."""

    at: int
    live: int


def _verify(run: Run, job: _Job, done: Revocation, stop: Stop) -> _Looked | None:
    """None when it was interrupted."""
    until, begin = done.access_exposure_until, run.service.now()
    with run.out.progress("waiting for access tokens to expire (s)", _seconds(begin, until)) as advance:
        shown = 0
        while until is not None and (now := run.service.now()) < until:
            if stop():
                return None
            advance(_seconds(begin, now) - shown)
            shown = _seconds(begin, now)
            time.sleep(min(_A_MOMENT, (until - now) / 1_000_000))
    return _Looked(run.service.now(), job.look().tokens)


def _seconds(begin: int, end: int | None) -> int:
    return 0 if end is None else (end - begin) // 1_000_000


def _show_revocation(run: Run, done: Revocation, told: str, looked: _Looked | None) -> int:
    record = {column.name: getattr(done, column.name, None) for column in _REVOKED}
    code = _exit_code(done, found=done.revoked + done.already_dead)
    if looked is not None:
        record |= {"verified_at": looked.at, "live": looked.live}
        told = (
            f"verified {times.show_local(looked.at)}: {looked.live:,} live; "
            f"{'look at them with --dry-run' if looked.live else 'no access token of these lives any more'}"
        )
        code = 7 if looked.live else code
    run.out.summary(record, _REVOKED, told)
    return code


def _told(done: Revocation) -> str:
    parts = [f"revoked {done.revoked:,}", *(f"{label} {count}" for label, count in _counts(done))]
    parts += (f"{label} {value}" for label, value in _exposure(done.access_exposure_until))
    if not done.complete:
        parts.append("stopped early, the same command goes on")
    return " · ".join(parts)


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
