"""What a database is to the service: where it is, how its transactions begin and end. Knows none by name.

Owns the two interfaces that `sqlite` and `postgres` implement, and `locate`, which chooses between them.
`read()` and `write()` are the only ways to a connection; a transaction begins and ends with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tokenctl.errors import NotADatabase, NotMigrated
from tokenctl.storage.migrate import current_revision
from tokenctl.storage.schema import SCHEMA_VERSION, meta

# Connection is here for the service, which passes it through and never looks inside.
__all__ = [
    "SCHEMA_DAMAGED",
    "Connection",
    "Durability",
    "Job",
    "Location",
    "Space",
    "Storage",
    "locate",
]

#: What to do when a table is missing under the right version: an upgrade would find nothing to do.
SCHEMA_DAMAGED = "tokenctl db check; where that fails, too, name another --database or restore a backup"


def locate(database: str) -> Location:
    """The place that a path or a URL names; nothing is opened. Raises ConfigInvalid."""
    # Each imports its driver: a command pays for the one that it needs.
    if database.partition("://")[0].partition("+")[0] in {"postgresql", "postgres"}:
        from tokenctl.storage.postgres import PostgresDatabase

        return PostgresDatabase(database)
    from tokenctl.storage.sqlite import SQLiteFile

    return SQLiteFile(database)


class Location(ABC):
    """Where a database is, or will be. `label` names it in messages, without a password."""

    label: str

    @property
    @abstractmethod
    def key_file(self) -> Path:
        """Where its master key lies when the settings do not say."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything. Raises DatabaseExists where no database can be."""

    @abstractmethod
    def create(self, fill: Callable[[Connection], None], *, portable: bool = False) -> None:
        """Make the newest schema, with what `fill` adds: whole, or not at all. Raises DatabaseExists.

        `portable`: it is to be handed on, so nothing may lie beside it.
        """

    @abstractmethod
    def upgrade(self) -> tuple[str | None, str]:
        """Bring the schema to the newest version; the versions before and after, which may be the same.

        Raises NotADatabase for a database that is not ours, and NotMigrated for one of a newer release.
        """

    @abstractmethod
    def sweep(self) -> None:
        """Remove what an init left that was killed long ago."""

    @abstractmethod
    def open(self) -> Storage:
        """Its connections. Raises DatabaseMissing."""


class Durability(NamedTuple):
    """Whether a commit that was acknowledged survives the loss of power; `fix` where it may not."""

    ok: bool
    detail: str
    fix: str


class Space(NamedTuple):
    """Bytes: taken on the disk; free within that, to be used again (None: the database does not tell)."""

    taken: int
    free: int | None


class Job(ABC):
    """What a job of which one runs at a time works on: one connection, from its beginning to its end.

    Only so it can tell whether others write, and does not go on when it is not the only one any more.
    """

    @abstractmethod
    def read(self) -> AbstractContextManager[Connection]:
        """As `Storage.read`. Raises DatabaseAway when the connection broke."""

    @abstractmethod
    def write(self) -> AbstractContextManager[Connection]:
        """As `Storage.write`. Raises DatabaseAway when the connection broke: another one may have begun."""

    @abstractmethod
    def others_wrote(self, connection: Connection) -> bool:
        """Whether anybody else did since the last time, which was in the write transaction before this one.

        To be asked before anything is written. The first time nobody knows, and the answer is yes.
        """

    @abstractmethod
    def vacuum(self) -> None:
        """Give up the space of what was deleted. On a file writers wait meanwhile. Raises DatabaseFull."""


class Storage(ABC):
    """The connections to one database. Safe to share between threads; open a new one after a fork."""

    label: str
    engine: Engine
    #: Whether a write transaction keeps out all others, or only those that want the same rows.
    one_writer: bool

    def close(self) -> None:
        """Give the connections back; the object is of no use afterwards."""
        self.engine.dispose()

    @abstractmethod
    def read(self) -> AbstractContextManager[Connection]:
        """A connection in a transaction that sees one state of the database and changes nothing."""

    @abstractmethod
    def write(self, *, lock_wait: float | None = None) -> AbstractContextManager[Connection]:
        """A connection in a write transaction: committed at the end, rolled back when anything is raised.

        Raise what a caller must see only after this block, or the change that it reports is rolled back.
        `lock_wait`: how long (s) a statement waits for a row that somebody else has; then RowLocked.
        """

    @abstractmethod
    def checkpoint(self) -> None:
        """Bring what is committed from the log into the file. No writer waits for it."""

    @abstractmethod
    def exclusive(self, job: str, *, wait: float = 0) -> AbstractContextManager[Job]:
        """Hold this for a job of which one may run at a time. Raises DatabaseLocked after `wait` seconds.

        Its facts say what is known of who runs: `pid`, `seconds` so far, on a server also `node`.
        """

    @abstractmethod
    def space(self, connection: Connection) -> Space:
        """For reports: of the refresh tokens, or of the file when they lie in one with everything else."""

    @abstractmethod
    def durability(self) -> Durability:
        """For the doctor."""

    @abstractmethod
    def clock(self) -> int | None:
        """The database's own time (µs since the epoch), if it has one."""

    def check_migrated(self) -> dict[str, str]:
        """The meta rows, once it is clear that the schema is this release's. Raises NotMigrated."""
        with self.read() as connection:
            revision = current_revision(connection)
            if revision is None:
                raise NotMigrated(
                    f"{self.label} is no database of tokenctl",
                    hint="name another --database; tokenctl init makes a new one",
                )
            if revision != SCHEMA_VERSION:
                if len(revision) != len(SCHEMA_VERSION) or not revision.isdecimal():
                    raise NotADatabase(
                        f"{self.label} is a database of another program", hint="name another --database"
                    )
                newer = revision > SCHEMA_VERSION
                raise NotMigrated(
                    f"the schema of {self.label} is {revision}, and this release works on {SCHEMA_VERSION}",
                    hint="install the release that upgraded it" if newer else "tokenctl db upgrade",
                )
            return {row.key: row.value for row in connection.execute(sa.select(meta))}
