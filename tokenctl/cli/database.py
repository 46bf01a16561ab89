"""The commands on the database as a whole: init, doctor, db, keys, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenctl.cli import options, records, times
from tokenctl.cli.confirm import confirm
from tokenctl.cli.options import Run, app, command, group
from tokenctl.cli.output import Column, instant

db = group(app, "db", "The database: upgrade, check, restored, sample.", example="tokenctl db check")
keys = group(app, "keys", "The keys that sign access tokens: list, rotate.", example="tokenctl keys list")
audit = group(app, "audit", "The audit log.", example="tokenctl audit tail")

_INITIALISED = [Column(name) for name in ("database", "kid", "schema", "key_file", "created")]


@command(
    app,
    "init",
    example="tokenctl init\ntokenctl init --database /var/lib/tokenctl/tokens.db",
    settings=("algorithm",),
)
def init(run: Run) -> None:
    """Make a database and its master key. What is there already is left as it is."""
    from tokenctl import initialise

    run.out.expect(_INITIALISED)
    done = initialise(run.settings, actor=run.actor)
    record = {
        "database": str(done.database),
        "kid": done.kid,
        "schema": done.schema,
        "key_file": done.key_file and str(done.key_file),
        "created": done.created,
    }
    key = record["key_file"] or "given by TOKENCTL_MASTER_KEY"
    care = "keep a copy apart from the database: losing it ends every login"
    card = [
        ("database", f"{done.database} ({'created' if done.created else 'was there, unchanged'})"),
        ("master key", "the sample's own, which is public" if done.is_sample else f"{key}; {care}"),
        ("signing key", done.kid),
        ("next", "tokenctl create-user NAME"),
    ]
    run.out.one(record, _INITIALISED, card=card)


_CHECKS = [
    Column("ok", " ", show=lambda ok: "✓" if ok else "✗"),
    Column("check"),
    Column("detail", "what"),
    Column("fix"),
]


@command(app, "doctor", example="tokenctl doctor\ntokenctl doctor --json | jq '.[] | select(.ok | not)'")
def doctor(run: Run) -> int:
    """Check that everything is in order, and say what to do where it is not. Exits 7 on a finding."""
    from tokenctl.service.doctor import examine

    run.out.expect(_CHECKS)
    checks = examine(run.settings)
    well = all(each.ok for each in checks)
    rows = (
        {"check": each.check, "ok": each.ok, "detail": each.detail, "fix": "" if each.ok else each.fix}
        for each in checks
    )
    shown = [column._replace(table=column.name != "fix" or not well) for column in _CHECKS]
    run.out.rows(rows, shown, limit=0)
    return 0 if well else 7


@command(db, "upgrade", example="tokenctl db upgrade")
def upgrade(run: Run) -> None:
    """Bring the schema to the one of this release."""
    from tokenctl.service.database import upgrade

    columns = [Column("before"), Column("after")]
    run.out.expect(columns)
    before, after = upgrade(run.settings)
    sentence = f"the schema is {after} already" if before == after else f"upgraded from {before} to {after}"
    run.out.summary({"before": before, "after": after}, columns, sentence)


@command(db, "check", example="tokenctl db check")
def check(run: Run) -> int:
    """Look for damage and for differences to the schema of this release. Exits 7 on a finding.

    It reads the whole database, which may take a while.
    """
    from tokenctl.service.database import check

    columns = [Column("finding")]
    run.out.expect(columns)
    with run.out.progress("checking"):
        findings = check(run.settings)
    if findings or run.out.format != "table":
        run.out.rows(({"finding": each} for each in findings), columns, limit=0)
    else:
        run.out.note("no damage, and the schema is this release's")
    return 7 if findings else 0


@command(db, "restored", example="tokenctl db restored --yes")
def restored(run: Run, yes: options.Yes = False) -> None:
    """Declare that the database was restored from a backup.

    Clients that rotated since the backup hold strings newer than the database, and are told to wait until
    this is said. From then on such a string is followed, once; a second holder of one is caught.
    """
    columns = [instant("recovered_at")]
    run.out.expect(columns)
    service = run.service
    confirm("declare that the database was restored", tokens=1, users=0, yes=yes, look="tokenctl doctor")
    at = service.declare_restored()
    run.out.summary({"recovered_at": at}, columns, f"declared restored at {times.show_local(at)}")


@command(db, "sample", example="tokenctl db sample playground.db")
def sample(run: Run, path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to make it.")]) -> None:
    """Make the sample database: users, tokens in every state, and a night in which something happened.

    It is the same every time. Its master key is public, so keep no real login in it.
    """
    from tokenctl.service.sample import build_sample

    columns = [Column("database"), Column("tokens")]
    run.out.expect(columns)
    record = {"database": str(path), "tokens": len(build_sample(path))}
    run.out.summary(record, columns, f"made {path}; try: tokenctl list --all --database {path}")


_KEYS = [
    Column("kid"),
    Column("algorithm"),
    Column("state"),
    instant("created_at", "created"),
    instant("active_at", "active"),
    instant("retired_at", "retired"),
]
_ROTATED = [
    Column("kid"),
    Column("algorithm"),
    instant("active_at", "active from"),
    instant("older_retired_at", "older ones until"),
]


@command(keys, "list", example="tokenctl keys list --json")
def list_keys(run: Run) -> None:
    """List the signing keys, the newest first. Private halves are never shown.

    One is `next` until it signs. Then the older ones are `verifying` until the last token of theirs has
    expired, and `retired` for ever.
    """
    from tokenctl.service.keyring import key_states

    found = run.service.keys.list()
    rows = (
        {
            "kid": key.kid,
            "algorithm": key.algorithm,
            "state": str(state),
            "created_at": key.created_at,
            "active_at": key.active_at,
            "retired_at": key.retired_at,
        }
        for key, state in zip(found, key_states(found, run.service.now()), strict=True)
    )
    run.out.rows(rows, _KEYS, limit=0)


@command(
    keys,
    "rotate",
    example="tokenctl keys rotate --algorithm RS256\ntokenctl keys rotate --at-once --yes",
    settings=("algorithm",),
)
def rotate_keys(
    run: Run,
    *,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="A key was stolen: retire the older ones now.")
    ] = False,
    yes: options.Yes = False,
) -> None:
    """Make a new signing key. Running servers take it up by themselves.

    It signs 10 minutes from now, when everybody who verifies has its public half. The older keys verify for
    a day longer, so that nobody notices. With --at-once the access tokens that are out are refused within
    5 s, and by others when their copy of the JWKS ends. Refresh tokens stay good either way.
    """
    run.out.expect(_ROTATED)
    service = run.service
    if at_once:
        what = "retire every older signing key now, which ends all access tokens that are out"
        confirm(what, tokens=1, users=0, yes=yes, look="tokenctl keys list")
    new = service.keys.rotate(at_once=at_once)
    older = (key.retired_at for key in service.keys.list() if key.kid != new.kid)
    record = {
        "kid": new.kid,
        "algorithm": new.algorithm,
        "active_at": new.active_at,
        "older_retired_at": max((at for at in older if at is not None), default=None),
    }
    run.out.one(record, _ROTATED)


@command(audit, "tail", example="tokenctl audit tail -n 50\ntokenctl audit tail -o jsonl | jq .type")
def tail(
    run: Run,
    number: Annotated[
        int, typer.Option("--number", "-n", metavar="N", min=1, max=100_000, help="How many.")
    ] = 20,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Of this type, as token.reuse; may be repeated."),
    ] = None,
) -> None:
    """Show the newest events, the newest last; a purge's single batches only when asked for."""
    rows = (records.event(event) for event in run.service.audit.tail(number, types=type_ or ()))
    run.out.rows(rows, records.EVENT_COLUMNS, limit=0)
