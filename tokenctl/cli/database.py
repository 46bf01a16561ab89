"""The commands on the database as a whole: init, doctor, db, keys."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from tokenctl.cli import options, times
from tokenctl.cli.confirm import confirm
from tokenctl.cli.options import Run, app, command, group
from tokenctl.cli.output import Advance, Column, amount, instant

if TYPE_CHECKING:  # a command imports what it needs when it runs
    from tokenctl.service.backup import Counts, Progress

db = group(
    app,
    "db",
    "The database: upgrade, check, backup, restore, restored, copy, sample.",
    example="tokenctl db check",
)
keys = group(app, "keys", "The keys that sign access tokens: list, rotate.", example="tokenctl keys list")

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


_COUNTS = [Column("users"), Column("tokens"), Column("live"), Column("events")]
_BACKUP = [Column("file"), instant("at"), Column("schema"), *_COUNTS, Column("bytes"), Column("key_file")]
_APART = "keep the key apart: losing it ends every login"


@command(
    db,
    "backup",
    example="tokenctl db backup /backup/monday.db\ntokenctl db backup /backup/tuesday.db --json | jq .at",
)
def backup(
    run: Run, file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; none is replaced.")]
) -> None:
    """Write the database to a new file while it is in use.

    The file is searched for damage before it gets its name, and holds everything that was acknowledged before
    its instant. The master key is never in it. A database on PostgreSQL has tools of its own: pg_dump, PITR.
    """
    from tokenctl.service.backup import backup

    run.out.expect(_BACKUP)
    with run.out.progress("backing up") as advance:
        done = backup(run.settings, file, progress=_steps(advance))
    record = {
        "file": str(file),
        "at": done.at,
        "schema": done.schema,
        **_counted(done.counts),
        "bytes": done.size,
        "key_file": done.key_file and str(done.key_file),
    }
    key = done.key_file or "TOKENCTL_MASTER_KEY"
    card = [
        ("backup", f"{file} ({done.size:,} bytes, schema {done.schema})"),
        ("of", f"{done.database} at {times.show_local(done.at)}"),
        ("holds", _holds(done.counts)),
        ("master key", _SAMPLE_KEY if done.is_sample else f"not in it, but {key}; {_APART}"),
    ]
    run.out.one(record, _BACKUP, card=card)


_RESTORED = [
    Column("database"),
    Column("file"),
    Column("set_aside"),
    instant("recovered_at"),
    instant("newest_event_at", "newest event"),
    Column("schema_before"),
    Column("schema"),
    *_COUNTS,
    Column("key_fits"),
]


@command(
    db,
    "restore",
    example="tokenctl db restore /backup/monday.db --database /var/lib/tokenctl/tokens.db",
)
def restore(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of db backup.")],
    yes: options.Yes = False,
) -> None:
    """Put a backup in the place of the database, and declare that.

    Stop the server first: a database in use is refused. The old one stays beside the new one. Clients that
    rotated since the backup go on, once each, and a second holder of a string is caught. What was revoked,
    disabled, changed or deleted since the backup is as it was before.
    """
    from tokenctl.service.backup import look, restore

    run.out.expect(_RESTORED)
    found = look(run.settings, file)
    newest = found.newest_event_at
    holds = _holds(found.counts) + (f", newest at {times.show_local(newest)}" if newest is not None else "")
    place = f"in place of {found.database}" if found.replaces else f"as {found.database}"
    damaged = ", which is damaged" if found.damaged else ""
    confirm(
        f"restore {file} ({holds}) {place}{damaged}",
        tokens=1,
        users=0,
        yes=yes,
        look=f"tokenctl db check --database {quote(str(file))}",
    )
    with run.out.progress("restoring") as advance:
        done = restore(run.settings, file, actor=run.actor, progress=_steps(advance))
    record = {
        "database": done.database,
        "file": str(file),
        "set_aside": done.set_aside and str(done.set_aside),
        "recovered_at": done.recovered_at,
        "newest_event_at": done.newest_event_at,
        "schema_before": done.schema_before,
        "schema": done.schema,
        **_counted(done.counts),
        "key_fits": done.key_fits,
    }
    upgraded = "" if done.schema_before == done.schema else f", upgraded from schema {done.schema_before}"
    card = [
        ("restored", f"{done.database} from {file}{upgraded}"),
        ("holds", holds),
        ("declared", f"{times.show_local(done.recovered_at)}: clients that rotated since the backup go on"),
        ("lost", "what was revoked, disabled, changed or made since the backup"),
        ("old one", f"{done.set_aside or 'there was none'}"),
    ]
    if done.set_aside is not None and not found.damaged:
        list_revoked = f"tokenctl list --state revoked -o id --database {quote(str(done.set_aside))}"
        revoke = f"tokenctl revoke - --yes --reason restored --database {quote(done.database)}"
        card.append(("next", f"{list_revoked} | {revoke}"))
    else:
        card.append(("next", "revoke again what was revoked since the backup"))
    card.append(("then", "start the server; tokenctl doctor"))
    run.out.one(record, _RESTORED, card=card)
    if not done.key_fits:
        run.out.warn("the master key is not at hand, so nobody looked whether it is this backup's")


_COPIED = [
    Column("source"),
    Column("target"),
    instant("at"),
    *_COUNTS,
    Column("rows", show=lambda rows: ", ".join(f"{table} {count:,}" for table, count in rows.items())),
    Column("key_file"),
    Column("target_key_file"),
]
_SAMPLE_KEY = "the sample's own, which is public"


@command(
    db,
    "copy",
    example="tokenctl db copy --to postgresql://tokenctl@db.example/tokenctl\ntokenctl db copy --to other.db",
)
def copy(
    run: Run,
    *,
    to: Annotated[
        str,
        typer.Option("--to", metavar="PATH|URL", help="A new file, or an empty database on PostgreSQL."),
    ],
) -> None:
    """Copy the whole database into a new one, as from SQLite to PostgreSQL.

    Stop the server first: what is written afterwards is not in the copy. It is made whole, read again and
    compared, or not at all. The master key stays the same, and goes where the new database looks for it.
    """
    from tokenctl.service.backup import copy

    run.out.expect(_COPIED)
    with run.out.progress("copying") as advance:
        done = copy(run.settings, to, progress=_steps(advance))
    record = {
        "source": done.source,
        "target": done.target,
        "at": done.at,
        **_counted(done.counts),
        "rows": dict(done.rows),
        "key_file": done.key_file and str(done.key_file),
        "target_key_file": done.target_key_file and str(done.target_key_file),
    }
    if done.key_file is None:
        key = _SAMPLE_KEY if done.is_sample else "the same, from TOKENCTL_MASTER_KEY"
    elif done.key_file == done.target_key_file:
        key = f"the same, {done.key_file}"
    else:
        files = f"{quote(str(done.key_file))} {quote(str(done.target_key_file))}"
        key = f"the same, looked for in {done.target_key_file}: cp -p {files}"
    card = [
        ("copied", f"{done.source} at {times.show_local(done.at)}"),
        ("to", f"{done.target} ({amount(sum(done.rows.values()), 'row')}, read again and the same)"),
        ("holds", _holds(done.counts)),
        ("master key", key),
        (
            "next",
            f"tokenctl doctor --database {quote(done.target)}; what is written to the old one is not in it",
        ),
    ]
    run.out.one(record, _COPIED, card=card)


def _counted(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in ("users", "tokens", "live", "events")}


def _holds(counts: Counts) -> str:
    logins = f"{amount(counts.tokens, 'token')} ({counts.live:,} live)"
    return f"{amount(counts.users, 'user')}, {logins}, {amount(counts.events, 'event')}"


def _steps(advance: Advance) -> Progress:
    """The service says how much is done; the bar wants to hear how much was added."""
    before = 0

    def step(done: int, total: int) -> None:
        nonlocal before
        advance(done - before, total)
        before = done

    return step


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
