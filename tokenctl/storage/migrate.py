"""Which schema a database has, how it gets the newest one, and where the two differ.

Owns the use of Alembic, which is imported by the functions that need it: most commands only ask for the
revision. Does not own the connection's transaction, which is the caller's, nor the migrations themselves.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tokenctl.errors import NotMigrated
from tokenctl.storage.schema import metadata

_MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"
#: What SQLAlchemy's tables do not say: the room for updates in place.
_FILL = "fillfactor=80"


def current_revision(connection: Connection) -> str | None:
    """The schema version of the database, or None when it has none."""
    # Asked first, since on PostgreSQL a failed statement would spoil the transaction.
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
    return version


def upgrade(connection: Connection) -> tuple[str | None, str]:
    """Bring the schema to the newest version; returns the one before (None: it was empty) and the one after.

    Everything happens in the transaction of `connection`, which the caller commits. Raises NotMigrated,
    with nothing done, when the version is one that this release does not know.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    assert head is not None
    if connection.dialect.name == "postgresql":
        # Two upgrades at once would both begin; SQLite has its one writer. The number is "tkctl" in ASCII.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(500017886316)"))
    before = current_revision(connection)
    if before not in {None, *(revision.revision for revision in script.walk_revisions())}:
        raise NotMigrated(
            f"the schema is {before}, made by a newer release; this one knows {head} at most",
            hint="install that release, or restore the backup from before its upgrade",
            found=before,
            known=head,
        )
    command.upgrade(config, "head")
    return before, head


def differences(connection: Connection) -> list[str]:
    """Where the database is not as the migrations leave it, one sentence each; empty when all is well.

    On SQLite that includes damage and rows that refer to nothing, and takes as long as reading the file.
    """
    if connection.dialect.name == "sqlite":
        return [*_ddl_differences(connection), *damage(connection)]
    return _metadata_differences(connection)


def _ddl_differences(connection: Connection) -> list[str]:
    """SQLite keeps the DDL as it was given, so nothing can hide from comparing it: STRICT, CHECKs and all."""
    engine = sa.create_engine("sqlite://")
    try:
        with engine.begin() as fresh:
            upgrade(fresh)
            wanted = _ddl(fresh)
    finally:
        engine.dispose()
    found = _ddl(connection)
    sentences = [f"the {thing} is missing" for thing in wanted if thing not in found]
    for thing, lines in found.items():
        if thing not in wanted:
            sentences.append(f"the {thing} is not one of ours")
            continue
        sentences += [f"the {thing} lacks: {line}" for line in wanted[thing] if line not in lines]
        sentences += [f"the {thing} should not have: {line}" for line in lines if line not in wanted[thing]]
    return sentences


def _ddl(connection: Connection) -> dict[str, list[str]]:
    """The lines of each object's DDL, without layout, by "table users" and the like."""
    rows = connection.execute(
        sa.text(
            "SELECT type || ' ' || name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
    )
    return {
        thing: [line for raw in sql.splitlines() if (line := " ".join(raw.split()).rstrip(" ,"))]
        for thing, sql in rows
    }


def damage(connection: Connection) -> list[str]:
    sentences = [
        f"the file is damaged: {finding}"
        for finding in connection.execute(sa.text("PRAGMA integrity_check")).scalars()
        if finding != "ok"
    ]
    orphans = Counter(
        (table, parent) for table, _, parent, _ in connection.execute(sa.text("PRAGMA foreign_key_check"))
    )
    return sentences + [
        f"{count} {'row' if count == 1 else 'rows'} of {table} without the row of {parent} that it belongs to"
        for (table, parent), count in orphans.items()
    ]


def _metadata_differences(connection: Connection) -> list[str]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    # CHECKs are compared by name only: PostgreSQL rewrites their text.
    plugins = ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"]
    context = MigrationContext.configure(connection, opts={"autogenerate_plugins": plugins})
    sentences = [_sentence(*diff) for diff in compare_metadata(context, metadata)]
    options = connection.scalar(
        sa.text("SELECT reloptions FROM pg_class WHERE oid = to_regclass('refresh_tokens')")
    )
    if _FILL not in (options or []):  # an operator may have set others beside it
        sentences.append(f"the table refresh_tokens has not {_FILL}, so that updates leave their place")
    return sentences


def _sentence(kind: str | tuple[Any, ...], *facts: Any) -> str:
    """One sentence for a diff as `compare_metadata` documents it."""
    if isinstance(kind, tuple):  # changes of one column
        _, _, table, column = kind[:4]
        changes = ", ".join(
            f"{what[0].removeprefix('modify_')} {what[-2]!r}, not {what[-1]!r}" for what in (kind, *facts)
        )
        return f"the column {table}.{column} has {changes}"
    verb, _, noun = kind.partition("_")
    thing = facts[-1]
    table = getattr(thing, "table", None)
    name = thing.name if table is None else f"{thing.name} of {table.name}"
    noun = noun.replace("fk", "foreign key")
    return f"the {noun} {name} " + ("is missing" if verb == "add" else "is not one of ours")
