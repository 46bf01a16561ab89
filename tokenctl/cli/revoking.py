"""`tokenctl revoke`: look, confirm, act, and tell how long access tokens still live."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tokenctl.cli import options, records, targets, times
from tokenctl.cli.confirm import confirm
from tokenctl.cli.interrupt import Stop, stoppable
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Advance, Column, Part, amount, instant
from tokenctl.errors import InvalidInput, OverMax, PlanDrift

if TYPE_CHECKING:
    from tokenctl.core.selector import Selector
    from tokenctl.service.plans import Planned
    from tokenctl.service.revocation import Preview, Revocation
    from tokenctl.service.targets import Look, Targets
    from tokenctl.storage.plans import Plan

_REVOKED = [
    Column("revoked"),
    Column("already_dead"),
    Column("repeated"),
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
_REPORT_HEAD = "line,id,result\n"


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
    if dry_run and verify:
        raise InvalidInput(
            "--verify looks again after a revocation, and a dry run revokes nothing", hint="one of them"
        )
    if report is not None:
        demand_report(report)  # before a million lines are read
    with ExitStack() as stack:
        if plan is not None:
            job: _Job = _OfPlan(run, plan)
        elif target or from_audit is not None or selected.given() == {"from_file"}:
            with targets.lines(run, target or [], selected.from_file, audit=from_audit) as lines:
                named = stack.enter_context(run.service.read_targets(lines))
            job = _OfLines(run, named, report)
        else:
            job = _OfSelector(run, targets.selector(run, selected, destructive=True))
        if report is not None and not isinstance(job, _OfLines):
            raise InvalidInput(
                "--report tells what became of each line, and here no lines name the logins",
                hint="name them with ids, - or --from-file; or list them: --dry-run --json",
            )
        if max_ is not None:
            _demand_at_most(max_, job.look())
        if dry_run:
            return _show_plan(run, job)
        return _act(run, job, reason=reason, yes=yes, number=number, verify=verify)


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


class _Job(ABC):
    """What to revoke, however it was named. What a person confirmed is a bound to what is done."""

    #: Whether everything there is was asked for.
    everything = False
    #: 1 when all was done but what was to be written of it.
    exit_code = 0

    def __init__(self, run: Run) -> None:
        self.run = run

    @abstractmethod
    def look(self) -> Preview:
        """What would be revoked now."""

    @abstractmethod
    def plan(self) -> Planned:
        """The same, kept as a plan."""

    @property
    def users(self) -> int | None:
        """The number of users that a person has to know, where it is not the one that was just seen."""
        return None

    def demand_no_drift(self) -> None:  # noqa: B027 - only a plan can have any
        """Raise PlanDrift, after what is new is shown."""

    @abstractmethod
    def revoke(self, reason: str, stop: Stop, advance: Advance) -> Revocation:
        """Act on what the last look has seen."""


class _OfSelector(_Job):
    def __init__(self, run: Run, selector: Selector) -> None:
        super().__init__(run)
        self._selector = selector
        self.everything = selector.everything
        self._seen: Preview | None = None

    def look(self) -> Preview:
        self._seen = self.run.service.preview(self._selector)
        return self._seen

    def plan(self) -> Planned:
        return self.run.service.plan(self._selector)

    def revoke(self, reason: str, stop: Stop, advance: Advance) -> Revocation:
        # Who logs in while a person is asked comes last, and is beyond what was confirmed.
        return self.run.service.revoke_matching(
            self._selector, reason=reason, stop=stop, progress=advance, seen=self._seen
        )


class _OfLines(_Job):
    def __init__(self, run: Run, named: Targets, report: Path | None) -> None:
        super().__init__(run)
        self._named = named
        self._report = report
        self._found: Look | None = None

    def look(self) -> Preview:
        self._found = self.run.service.look(self._named)
        return self.run.service.preview_targets(self._found)

    def plan(self) -> Planned:
        return self.run.service.plan(self._named)

    def revoke(self, reason: str, stop: Stop, advance: Advance) -> Revocation:
        found, self._found = self._found, None
        if self._report is None and found is not None:
            return self.run.service.revoke_found(found, reason=reason, stop=stop, progress=advance)
        with _Report(self.run, self._report) as report:
            done = self.run.service.revoke(
                self._named, reason=reason, stop=stop, progress=advance, report=report
            )
        self.exit_code = int(report.failed)
        return done


class _OfPlan(_Job):
    def __init__(self, run: Run, plan_id: str) -> None:
        super().__init__(run)
        self._plan = run.service.get_plan(plan_id)
        self.everything = self._plan.selector is not None and self._plan.selector.everything

    def look(self) -> Preview:
        return self.run.service.review_plan(self._plan).seen

    def plan(self) -> Planned:
        if more := _drift(self.run, self._plan, []):
            self.run.out.warn(
                f"plan {self._plan.id} has not shown {amount(more, 'refresh token')} that match now"
            )
        return self.run.service.review_plan(self._plan)

    def demand_no_drift(self) -> None:
        _demand_no_drift(self.run, self._plan)

    @property
    def users(self) -> int:
        return self._plan.users  # a member may have died since

    def revoke(self, reason: str, stop: Stop, advance: Advance) -> Revocation:
        self.run.service.get_plan(self._plan.id)  # a person may have been asked for an hour
        self.demand_no_drift()
        return self.run.service.revoke_plan(self._plan, reason=reason, stop=stop, progress=advance)


def demand_report(path: Path) -> None:
    """Raise InvalidInput unless there is nothing at the path, or the report of a run that goes on."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_REPORT_HEAD))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _no_report(path, error.strerror) from None
    if begin != _REPORT_HEAD.encode():
        raise _no_report(path, "there is something else already")


def _no_report(path: Path, reason: str | None) -> InvalidInput:
    return InvalidInput(f"{path}: {reason}, so nothing was done", hint="--report FILE: a new file")


class _Report:
    """A line of CSV for each line that was read. The file is its owner's alone.

    One of a run that was stopped is continued. When it cannot be written any further the rest is done all the
    same, and told.
    """

    def __init__(self, run: Run, path: Path | None) -> None:
        self._run = run
        self._path = path
        self._file: TextIO | None = None
        self.failed = False

    def __enter__(self) -> _Report:
        if self._path is not None:
            demand_report(self._path)
            try:
                handle = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            except OSError as error:
                raise _no_report(self._path, error.strerror) from None
            self._file = os.fdopen(handle, "a", encoding="ascii")
            if not self._file.tell():
                self._write(_REPORT_HEAD)
        return self

    def __call__(self, line: int, token_id: str | None, outcome: str) -> None:
        self._write(f"{line},{token_id or ''},{outcome}\n")

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, line: str) -> None:
        if self._file is not None:
            try:
                self._file.write(line)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        file, self._file, self.failed = self._file, None, True
        self._run.out.warn(f"{self._path} is not complete: {error.strerror}; what it was to tell is done")
        with suppress(OSError):
            if file is not None:
                file.close()


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
        "repeated": seen.repeated,
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
    return _exit_code(seen, found=seen.tokens + seen.already_dead + seen.repeated)


def _members(run: Run, planned: Planned, now: int) -> Iterator[dict[str, Any]]:
    """The tokens that would be revoked."""
    return (records.token(row, now) for row in run.service.list_planned(planned))


def _drift(run: Run, plan: Plan, shown: list[str]) -> int:
    """How many match now that the plan has not shown; the first of them go into `shown`."""
    drift = run.service.plan_drift(plan)
    shown += islice(drift, _DRIFT_SHOWN)
    return len(shown) + sum(1 for _ in drift)


def _demand_no_drift(run: Run, plan: Plan) -> None:
    """Raise PlanDrift where more matches now than was shown, after those are shown."""
    shown: list[str] = []
    if not (more := _drift(run, plan, shown)):
        return
    now = run.service.now()
    found = run.service.look_up(shown)
    run.out.rows((records.token(row, now) for row in found.values()), records.token_columns(now), limit=0)
    raise PlanDrift(
        f"plan {plan.id} has not shown {amount(more, 'refresh token')} that match now; nothing was done",
        hint="the same selectors with --dry-run make a new plan; to end what this one has shown all the same:"
        f" tokenctl revoke --plan {plan.id} --dry-run -o id | tokenctl revoke - --confirm {plan.users}",
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


def _act(run: Run, job: _Job, *, reason: str | None, yes: bool, number: int | None, verify: bool) -> int:
    seen = job.look()
    users = seen.users if job.users is None else job.users
    job.demand_no_drift()  # before a person is asked, and once more after that
    confirm(
        f"revoke {amount(seen.tokens, 'refresh token')} of {amount(users, 'user')}",
        tokens=seen.tokens,
        users=users,
        everything=job.everything,
        yes=yes,
        number=number,
    )
    with stoppable() as stop:
        with run.out.progress("revoking", seen.tokens) as advance:
            done = job.revoke(reason or "revoked by an operator", stop, advance)
        told, looked = _told(done), None
        if verify and done.complete and not stop():
            run.out.note(told)
            looked = _verify(run, job, done, stop)
            told = _verified(looked)
    record = {column.name: getattr(done, column.name, None) for column in _REVOKED}
    if looked is not None:
        record |= {"verified_at": looked.at, "live": looked.live}
    run.out.summary(record, _REVOKED, told)
    if looked is not None and looked.live:
        return 7
    return (
        stop.exit_code
        or job.exit_code
        or _exit_code(done, found=done.revoked + done.already_dead + done.repeated)
    )


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


def _verified(looked: _Looked | None) -> str:
    if looked is None:
        return "interrupted before it was verified; the same command looks again"
    if looked.live:
        return f"verified {times.show_local(looked.at)}: {looked.live:,} live; look at them with --dry-run"
    return f"verified {times.show_local(looked.at)}: 0 live; no access token of these lives any more"


def _told(done: Revocation) -> str:
    parts = [f"revoked {done.revoked:,}", *(f"{label} {count}" for label, count in _counts(done))]
    parts += (f"{label} {value}" for label, value in _exposure(done.access_exposure_until))
    if not done.complete:
        parts.append("stopped early, the same command goes on")
    return " · ".join(parts)


def _counts(done: Revocation | Preview) -> Iterator[tuple[str, str]]:
    for name in ("already_dead", "repeated", "unknown", "forged", "malformed"):
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
