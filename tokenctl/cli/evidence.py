"""`tokenctl evidence`: the bundle for the file of an incident."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, Format, amount
from tokenctl.errors import InvalidInput

_SUMMARY = [
    Column("file"),
    Column("sha256"),
    Column("logins"),
    Column("users"),
    Column("revoked"),
    Column("reuse"),
    Column("refused_since"),
    Column("alive"),
    Column("purged"),
    Column("events"),
    Column("verified"),
    Column("head"),
]


@command(
    app,
    "evidence",
    example="tokenctl evidence --reason INC-7 -o INC-7.tgz\n"
    "tokenctl evidence --reason INC-7 -o INC-7.tgz --json > INC-7.json",
)
def evidence(
    run: Run,
    *,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="What was given as --reason to `revoke`.")
    ],
    # Here -o is where the bundle goes; what stdout looks like, --json says.
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="The new file; one that is there is kept."),
    ],
    slice_only: Annotated[
        bool,
        typer.Option(
            "--slice-only", help="Without the sealed segments, which also have events of other logins."
        ),
    ] = False,
) -> int:
    """Write all that was revoked with a reason, and how that was done, into a bundle for the incident's file.

    A tar.gz with a page for people, the logins before and after, their audit events, and what verifies them;
    no secret is in it. With the master key the audit log is sealed and verified before; without it, the
    bundle says that it was not. Exits 7 when the audit log does not hold.
    """
    run.out.expect(_SUMMARY)
    path = _file(output)
    service = run.service
    with run.out.progress("collecting") as advance:
        done = service.evidence(reason, path, export=not slice_only, progress=advance)
    counts = done.counts
    record = {
        "file": str(done.path),
        "sha256": done.sha256,
        "logins": counts.logins,
        "users": counts.users,
        "revoked": counts.revoked,
        "reuse": counts.reuse,
        "refused_since": counts.refused_since,
        "alive": counts.alive,
        "purged": counts.purged,
        "events": counts.events,
        "verified": done.verified,
        "head": done.head,
    }
    of = f"{amount(counts.logins, 'login')} of {amount(counts.users, 'user')}"
    sentence = f"wrote {done.path}: {of}, {amount(counts.events, 'event')}; sha256 {done.sha256}"
    run.out.summary(record, _SUMMARY, sentence)
    if counts.alive:
        run.out.warn(f"alive now: {amount(counts.alive, 'login')} of these")
    if not done.verified:
        run.out.warn(done.seal)
    return 7 if done.verified is False else 0


def _file(text: str) -> Path:
    if text in get_args(Format):
        raise InvalidInput(
            f"-o names the file of the bundle here, and {text} is a format",
            hint="tokenctl evidence --reason TEXT -o FILE.tgz, with --json for data on stdout",
        )
    if text in {"", "-"}:
        raise InvalidInput(
            "a bundle goes into a new file, not to stdout",
            hint="tokenctl evidence --reason TEXT -o FILE.tgz",
        )
    return Path(text)
