"""The commands on the audit log: tail, search, verify, export, head, archive."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options, records, times
from tokenctl.cli.confirm import confirm
from tokenctl.cli.interrupt import stoppable
from tokenctl.cli.options import Run, app, command, group
from tokenctl.cli.output import Column, Part, amount, instant
from tokenctl.errors import InvalidInput

if TYPE_CHECKING:
    from tokenctl.service.archiving import Archive
    from tokenctl.service.verifying import Verification

audit = group(
    app,
    "audit",
    "The audit log: tail, search, verify, export, head, archive.",
    example="tokenctl audit tail\ntokenctl audit verify",
)

Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="From then on: 2h (ago), or 2026-01-31T12:00Z."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then.")]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="GLOB", help="Of this type, as token.reuse or 'user.*'; may be repeated."),
]


@command(audit, "tail", example="tokenctl audit tail -n 50\ntokenctl audit tail -o jsonl | jq .type")
def tail(
    run: Run,
    number: Annotated[
        int, typer.Option("--number", "-n", metavar="N", min=1, max=100_000, help="How many.")
    ] = 20,
    type_: Types = None,
) -> None:
    """Show the newest events, the newest last; a purge's single batches only when asked for."""
    rows = (records.event(event) for event in run.service.audit.tail(number, types=type_ or ()))
    run.out.rows(rows, records.EVENT_COLUMNS, limit=0)


@command(
    audit,
    "search",
    example="tokenctl audit search --reason INC-7\n"
    "tokenctl audit search --type 'token.*' --ip 203.0.113.0/24 --since 6h -o jsonl",
)
def search(
    run: Run,
    *,
    type_: Types = None,
    user: Annotated[
        list[str] | None,
        typer.Option("--user", metavar="NAME", help="About this user, or usr_…; may be repeated."),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", metavar="ID", help="About this refresh token; may be repeated."),
    ] = None,
    client: options.Clients = None,
    ip: Annotated[
        list[str] | None,
        typer.Option("--ip", metavar="ADDRESS|CIDR", help="Asked for from there; may be repeated."),
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option(
            "--reason", metavar="GLOB", help="With this reason, as INC-7 or 'INC-*'; may be repeated."
        ),
    ] = None,
    actor: Annotated[
        list[str] | None,
        typer.Option("--actor", metavar="GLOB", help="Done by this actor; may be repeated."),
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: options.Limit = None,
) -> None:
    """List the events that match, the oldest first: OR within an option, AND across options.

    A GLOB is the whole text: * stands for any text, ? for one character, and case counts. Without any option
    it lists them all, but a purge's single batches, which come when --type asks for them.
    """
    run.out.expect(records.EVENT_COLUMNS)
    service = run.service
    found = service.audit.search(
        types=type_ or (),
        user=user or (),
        token_id=token or (),
        client=client or (),
        ip=ip or (),
        reason=reason or (),
        actor=actor or (),
        since=_instant(run, since),
        until=_instant(run, until),
    )
    run.out.rows((records.event(event) for event in found), records.EVENT_COLUMNS, limit=limit)


_FINDINGS = [
    Column("kind", show=lambda kind: str(kind).replace("_", " ")),
    Column("segment", show=str, right=True),
    Column("event", show=str, right=True),
    Column("detail", "what", shrink=True),
]


@command(
    audit,
    "verify",
    example="tokenctl audit verify\n"
    'tokenctl audit verify --head "$(tail -n 1 heads.txt)"\n'
    "tokenctl audit verify --export audit.jsonl",
)
def verify(
    run: Run,
    *,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="HEAD", help="A head that was kept: find a cut end, too."),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export", metavar="FILE|-", help="Look at an exported file, gzip too, or stdin, instead."
        ),
    ] = None,
) -> int:
    """Check that no sealed event was edited, inserted or deleted. Exits 7 when one was. Needs the master key.

    What is not sealed yet is sealed before. Whether the newest events were cut off shows only against a head
    that `audit head` or `audit export` gave, and that was kept elsewhere. What was archived is not in the
    database: --export checks each archive.
    """
    run.out.expect(_FINDINGS)
    done = _verified_export(run, export, head) if export is not None else _verified(run, head)
    record = {
        "holds": done.holds,
        "segments": done.segments,
        "events": done.events,
        "unsealed": done.unsealed,
        "first_segment": done.first,
        "last_segment": done.head and done.head.number,
        "head": done.head and str(done.head),
        "since": None if done.since is None else times.show_utc(done.since),
        "until": None if done.until is None else times.show_utc(done.until),
        "ends_proven": done.ends_proven,
        "found": done.found,
        "archived_segments": done.archived,
    }
    rows = (
        {
            "kind": str(finding.kind),
            "segment": finding.segment,
            "event": finding.event_id,
            "detail": finding.detail,
        }
        for finding in done.findings
    )
    if run.out.format == "table":
        run.out.raw(_sentence(done))
        if not done.holds:
            run.out.rows(rows, _FINDINGS)
    else:
        run.out.object_with_rows(record, [Part("findings", rows, _FINDINGS)], card=())
    if done.found > len(done.findings):
        run.out.note(f"{len(done.findings):,} of {done.found:,} findings; the others are like these")
    if done.holds and done.ends_proven is False:
        run.out.warn(
            "it was exported without the master key, so nothing shows whether segments were left out at its "
            "end, or whether what is not sealed was changed"
        )
    return 0 if done.holds else 7


def _verified(run: Run, head: str | None) -> Verification:
    service = run.service
    with run.out.progress("verifying") as advance:
        return service.audit.verify(head, progress=advance)


def _verified_export(run: Run, export: str, head: str | None) -> Verification:
    service = run.service
    if export != "-":
        with Path(export).open("rb") as file, run.out.progress("verifying") as advance:
            return service.audit.verify_export(file, head, progress=advance)
    with run.out.progress("verifying") as advance:
        return service.audit.verify_export(sys.stdin.buffer, head, progress=advance)


def _sentence(done: Verification) -> str:
    where = f"{amount(done.events, 'event')} in {amount(done.segments, 'segment')}"
    facts = [
        f"{where} {'hold' if done.events != 1 else 'holds'}"
        if done.holds
        else f"{amount(done.found, 'finding')} in {where}"
    ]
    facts += _part(done)
    if done.archived is not None and done.ends_proven is None:
        facts.append(f"{_segments(1, done.archived)} {'is' if done.archived == 1 else 'are'} archived")
    if done.unsealed:
        facts.append(f"{done.unsealed:,} {'are' if done.unsealed != 1 else 'is'} not sealed yet")
    if done.head is not None:
        facts.append(f"head {done.head}")
    return "; ".join(facts)


def _part(done: Verification) -> list[str]:
    """Which part of the log an export is."""
    if done.ends_proven is None:
        return []
    facts = []
    if done.first is not None and done.head is not None:
        facts.append(_segments(done.first, done.head.number))
    given = (("since", done.since), ("until", done.until))
    if period := [f"{word} {times.show_local(at)}" for word, at in given if at is not None]:
        facts.append(f"exported {' '.join(period)}")
    return facts


def _segments(first: int, last: int) -> str:
    return f"segment {last}" if first == last else f"segments {first} to {last}"


_EXPORTED = [Column("file"), Column("lines")]


@command(
    audit,
    "export",
    example="tokenctl audit export --since 30d | gzip > audit.jsonl.gz\n"
    "tokenctl audit export --to audit.jsonl",
)
def export(
    run: Run,
    *,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FILE", help="Into this new file, of mode 0600, and not to stdout."),
    ] = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write the log as JSON lines, which `audit verify --export` checks and other tools can read.

    Whole segments: from the first to the last that has an event of the time asked for. What is not sealed yet
    is sealed before; what cannot be, as without the master key, comes at the end. The last line has the head:
    keep it.
    """
    if to is None and (run.out.format not in ("table", "jsonl") or run.out.fields):
        raise InvalidInput(
            "an export has one form, which is JSON lines with all fields", hint="-o jsonl, or --to FILE"
        )
    if to is not None:
        run.out.expect(_EXPORTED)
    audit_log, begin, end = run.service.audit, _instant(run, since), _instant(run, until)
    if to is None:
        import json

        encode = json.JSONEncoder().encode
        for line in audit_log.export(begin, end):
            run.out.raw(encode(line))
    else:
        count = audit_log.write_export(Path(to), begin, end)
        run.out.summary({"file": to, "lines": count}, _EXPORTED, f"wrote {amount(count, 'line')} to {to}")
    _note_unsealed(run)


_HEAD = [Column("head"), Column("number", show=str), instant("sealed_at", "sealed at")]


@command(
    audit,
    "head",
    example="tokenctl audit head >> heads.txt\ntokenctl audit head --json",
)
def head(run: Run) -> None:
    """Print the newest segment's number and MAC, to be kept where nobody who writes the database can write.

    What is not sealed yet is sealed before. `audit verify --head` then finds when the log was cut or
    rewritten since.
    """
    run.out.expect(_HEAD)
    found = run.service.audit.head()
    record: dict[str, Any] = {"head": None, "number": None, "sealed_at": None}
    if found is not None:
        record = {"head": str(found), "number": found.number, "sealed_at": found.sealed_at}
    if found is not None or run.out.format != "table" or run.out.fields:
        run.out.summary(record, _HEAD, str(found))
    else:
        run.out.note("nothing is sealed yet")
    _note_unsealed(run)


_ARCHIVED = [
    Column("archived"),
    Column("first_segment", show=str),
    Column("last_segment", show=str),
    Column("events"),
    instant("before"),
    Column("file"),
    Column("sha256"),
    Column("complete"),
    Column("dry_run"),
    Column("found"),
]
#: Findings that an archive names; `verify` names more.
_NAMED = 10


@command(
    audit,
    "archive",
    example="tokenctl audit archive --older-than 90d --to /var/lib/tokenctl/audit --dry-run\n"
    "tokenctl audit archive --older-than 90d --to /var/lib/tokenctl/audit --yes",
)
def archive(
    run: Run,
    *,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="What is younger stays; at least 7d.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="DIR|FILE", help="Into a new file, of mode 0600: this one, or one in there."
        ),
    ],
    dry_run: options.DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Move old events into a file, by whole segments: export them, verify the file, then delete them.

    Exits 7, with nothing deleted, when they are not what was sealed. The chain holds without them: `audit
    verify` begins behind them, and with --export it checks the file. What a killed run leaves, the next one
    goes on with. Needs the master key.
    """
    run.out.expect(_ARCHIVED)
    age, place, log = options.required_duration(older_than), Path(to), run.service.audit
    if not dry_run and not yes:
        would = log.archive(place, older_than=age, dry_run=True)
        if would.first is not None and would.last is not None:
            where = f"{amount(would.events, 'event')} ({_segments(would.first, would.last)})"
            confirm(f"move {where} to {to}", tokens=1, users=0)
    with stoppable() as stop, run.out.progress("archiving") as advance:
        done = log.archive(place, older_than=age, dry_run=dry_run, stop=stop, progress=advance)
    record = {
        "archived": done.deleted,
        "first_segment": done.first,
        "last_segment": done.last,
        "events": done.events,
        "before": done.before,
        "file": done.path and str(done.path),
        "sha256": done.sha256,
        "complete": done.complete,
        "dry_run": done.dry_run,
        "found": 0 if done.verification is None else done.verification.found,
    }
    run.out.summary(record, _ARCHIVED, _archived(done))
    if done.verification is None or done.holds:
        return stop.exit_code
    for finding in done.verification.findings[:_NAMED]:
        of = (("segment", finding.segment), ("event", finding.event_id))
        where = " ".join(f"{word} {number}" for word, number in of if number is not None)
        run.out.warn(f"{str(finding.kind).replace('_', ' ')} {where}: {finding.detail}".replace(" :", ":"))
    run.out.note("tokenctl audit verify looks at the whole log and names all that it finds")
    return 7


def _archived(done: Archive) -> str:
    if done.verification is not None and not done.holds:
        return f"nothing was archived: the log does not hold, {amount(done.verification.found, 'finding')}"
    if done.first is None or done.last is None:
        return f"nothing to archive: no whole segment is older than {times.show_local(done.before)}"
    where = f"{amount(done.events, 'event')} ({_segments(done.first, done.last)})"
    if done.dry_run:
        return f"would archive {where}, older than {times.show_local(done.before)}"
    if done.complete:
        return f"archived {where} in {done.path}"
    return f"stopped early: {amount(done.deleted, 'segment')} of {where} archived; the next run goes on"


def _note_unsealed(run: Run) -> None:
    """Only without the key is anything left that matters."""
    audit_log = run.service.audit
    if not audit_log.can_seal and (unsealed := audit_log.unsealed()):
        are = "events are" if unsealed != 1 else "event is"
        run.out.warn(f"the master key is not at hand, so {unsealed:,} {are} not sealed")


def _instant(run: Run, text: str | None) -> int | None:
    if text is None:
        return None
    return times.parse_instant(text, now=run.service.now(), destructive=False)
