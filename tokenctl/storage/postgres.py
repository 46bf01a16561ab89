"""PostgreSQL: connecting, transactions, and what the server's failures mean.

Owns the address and how patiently it is connected to. A transaction that was given up by the server, or whose
connection broke before its commit, is TransactionAborted: nothing of it was kept, and whoever began it may
repeat it as a whole. A connection that breaks during a commit is OutcomeUnknown.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import random
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tokenctl.errors import (
    ConfigInvalid,
    ConnectionRefused,
    DatabaseAway,
    DatabaseError,
    DatabaseExists,
    DatabaseFull,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    NotADatabase,
    NotMigrated,
    OutcomeUnknown,
    RowLocked,
    StatementRefused,
    TransactionAborted,
)
from tokenctl.storage import migrate
from tokenctl.storage.engine import SCHEMA_DAMAGED, Durability, Job, Location, Space, Storage

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError:
    raise ConfigInvalid(
        "PostgreSQL needs its driver, which is not installed", hint="pip install 'tokenctl[postgres]'"
    ) from None

RV = TypeVar("RV")

#: How long a call tries to connect (s) before it says that the database is away.
_PATIENCE = 2.0
#: For so long (s) after that other calls do not try at all: else they would queue up behind each other.
_COOL_DOWN = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
#: After so long without a word (s) on a connection it is tried whether the server still answers at all; so
#: often in a row it may not. Each try takes `connect_timeout`.
_SILENCE = 3.0
_TRIES = 2
#: How long a statement waits for a row (s), unless its transaction says otherwise.
_LOCK_WAIT = 10.0
#: Between two looks whether a job that runs on another node is over (s).
_JOB_POLL = 0.1
#: The first half of the advisory locks of jobs: "tkct" in ASCII.
_JOBS = 0x746B6374

_VERIFIED = {"verify-full", "verify-ca"}
_DEFAULTS = {
    "application_name": "tokenctl",
    # After a failover the connections find the new primary by themselves.
    "target_session_attrs": "read-write",
    "connect_timeout": "2",
    # A host that vanished must not hold a call for the hours that TCP would wait.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "6000",
}


# At REPEATABLE READ a transaction that waited for a row would go on with what was true before, and a login
# could survive the password change that waited for it. The two other levels are right.
_NOT_REPEATABLE_READ = (
    "SELECT set_config('default_transaction_isolation', 'serializable', false)"
    " WHERE current_setting('default_transaction_isolation') = 'repeatable read'"
)


_READ_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


def _write_begin(lock_wait: float) -> str:
    """In one message with BEGIN. READ COMMITTED or SERIALIZABLE is the server's business: `_connect`."""
    return f"BEGIN; SET LOCAL lock_timeout = {max(1, round(lock_wait * 1000))}"


#: The name of a job's connection says who runs it, to the next one and to everybody who looks at the server's
#: list of connections. The server cuts it after 63 bytes, so the node comes last.
_SIGN = sa.text(
    "SELECT set_config('application_name', format('tokenctl %s since %s, pid %s on %s', CAST(:job AS text),"
    " floor(extract(epoch FROM clock_timestamp())), CAST(:pid AS text), CAST(:node AS text)), false)"
)
_SIGNED = re.compile(r"tokenctl \S+ since (?P<since>\d{1,12}), pid (?P<pid>\d{1,10}) on (?P<node>.*)")
_HOLDER = sa.text(
    "SELECT application_name, host(client_addr) AS address, extract(epoch FROM clock_timestamp()) AS now,"
    " extract(epoch FROM clock_timestamp() - backend_start) AS connected"
    " FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND CAST(classid AS bigint) = :jobs AND objsubid = 2"
    " AND CAST(objid AS bigint) = CAST(hashtext(:job) AS bigint) & 4294967295"
)
_SIZE = sa.text("SELECT pg_total_relation_size('refresh_tokens')")
_NEXT_ID = sa.text("SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)")


class PostgresDatabase(Location):
    """The place of a database on a server. Its address is libpq's URL, with several hosts if wanted."""

    def __init__(self, database: str) -> None:
        """Raises ConfigInvalid: no such address, or a server on the network that it would not verify."""
        _, _, rest = database.partition("://")
        try:
            given = conninfo_to_dict(f"postgresql://{rest}")
        except psycopg.ProgrammingError:
            # Not its text: that repeats the address, and a password may be in it.
            raise ConfigInvalid(
                "the database address is no URL that PostgreSQL's clients can read",
                hint="--database postgresql://USER@HOST:PORT/NAME",
            ) from None
        _demand_host_and_port(given)
        self._parameters: dict[str, Any] = {**_DEFAULTS, **_tls(given), **given}
        self.label = _label(given)
        self._name = str(given.get("dbname") or "tokenctl")

    @property
    def key_file(self) -> Path:
        """In the working directory: a database on a server has no directory of its own here."""
        return Path(f"{Path(self._name).name}.key")

    def exists(self) -> bool:
        with self._opened() as storage, storage.read() as connection:
            return migrate.current_revision(connection) is not None

    def create(self, fill: Callable[[Connection], None], *, portable: bool = False) -> None:
        if portable:
            raise ConfigInvalid("only a file can be handed on", hint="name a file")
        with self._opened() as storage, storage.write() as connection:
            before, _ = migrate.upgrade(connection)
            if before is not None:  # another init was faster, and held us up until it was done
                raise DatabaseExists(f"{self.label} is a database of tokenctl already, and stays as it is")
            fill(connection)

    def upgrade(self) -> tuple[str | None, str]:
        with self._opened() as storage, storage.write() as connection:
            if migrate.current_revision(connection) is None:
                raise NotADatabase(
                    f"{self.label} is no database of tokenctl", hint="tokenctl init makes it one"
                )
            return migrate.upgrade(connection)

    def sweep(self) -> None:
        """A transaction leaves nothing behind."""

    def open(self) -> PostgresStorage:
        return PostgresStorage(self.label, self._parameters)

    @contextmanager
    def _opened(self) -> Iterator[PostgresStorage]:
        storage = self.open()
        try:
            yield storage
        finally:
            storage.close()


class PostgresStorage(Storage):
    """The connections to one server, or to whichever of several is the primary."""

    one_writer = False

    def __init__(self, label: str, parameters: dict[str, Any]) -> None:
        self.label = label
        self._parameters = parameters
        self.engine = _engine(self._connect)
        self._away_until = 0.0

    @contextmanager
    def read(self) -> Iterator[Connection]:
        # One state of the database for all statements; such a transaction is never given up by the server.
        with self._transaction(_READ_BEGIN, writes=False) as connection:
            yield connection

    @contextmanager
    def write(self, *, lock_wait: float | None = None) -> Iterator[Connection]:
        with self._transaction(_write_begin(_LOCK_WAIT if lock_wait is None else lock_wait)) as connection:
            yield connection

    def checkpoint(self) -> None:
        """The server's own business."""

    @contextmanager
    def exclusive(self, job: str, *, wait: float = 0) -> Iterator[Job]:
        deadline = time.monotonic() + wait
        with self._connection() as connection:
            # A lock of the session: it ends with this connection, however this process ends.
            take = sa.select(sa.func.pg_try_advisory_lock(_JOBS, sa.func.hashtext(job)))
            while not connection.scalar(take):
                if time.monotonic() >= deadline:
                    raise self._already_running(connection, job)
                time.sleep(_JOB_POLL)
            connection.execute(_SIGN, {"job": job, "pid": os.getpid(), "node": platform.node()})
            connection.commit()
            connection.detach()  # it has the job's name: nobody gets it afterwards
            try:
                yield _ServerJob(self, connection, job)
            finally:
                # With a connection that broke the lock is gone, too; SQLAlchemy would connect anew.
                if not connection.invalidated:
                    with suppress(sa.exc.SQLAlchemyError, psycopg.Error):
                        connection.execution_options(tokenctl_begin="")
                        free = sa.select(sa.func.pg_advisory_unlock(_JOBS, sa.func.hashtext(job)))
                        connection.execute(free)

    def _already_running(self, connection: Connection, job: str) -> DatabaseLocked:
        """Who has the lock of that job, as far as the server tells us."""
        hint = f"tokenctl {job} --lock-wait 2m"
        row = connection.execute(_HOLDER, {"jobs": _JOBS, "job": job}).first()
        if row is None:  # it has just ended
            return DatabaseLocked(f"a {job} is already running on {self.label}", hint=hint)
        # Another role's name is not shown to everybody: then only how long it has been connected is known.
        signed = _SIGNED.fullmatch(row.application_name or "")
        pid, node = (int(signed["pid"]), signed["node"]) if signed else (None, row.address)
        seconds = max(0, int(row.now - int(signed["since"]) if signed else row.connected or 0))
        where = f"pid {pid or 'unknown'} on {node or 'an unknown node'}"
        if row.address and row.address != node:
            where += f" at {row.address}"
        return DatabaseLocked(
            f"a {job} is already running on {self.label} ({where}, {seconds} s)",
            hint=hint,
            pid=pid,
            node=node,
            seconds=seconds,
        )

    def space(self, connection: Connection) -> Space:
        return Space(int(connection.execute(_SIZE).scalar_one()), None)

    def durability(self) -> Durability:
        with self.read() as connection:
            settings = {
                name: connection.scalar(sa.select(sa.func.current_setting(name)))
                for name in ("fsync", "full_page_writes", "synchronous_commit")
            }
        wrong = [name for name, value in settings.items() if value == "off"]
        return Durability(
            not wrong,
            ", ".join(f"{name} {value}" for name, value in settings.items()),
            f"set {', '.join(wrong)} to on in postgresql.conf, or for this database",
        )

    def clock(self) -> int | None:
        with self.read() as connection:
            epoch = sa.func.extract("epoch", sa.func.clock_timestamp())
            return int(connection.execute(sa.select(epoch)).scalar_one() * 1_000_000)

    # --- transactions ---

    @contextmanager
    def _transaction(self, begin: str, *, writes: bool = True) -> Iterator[Connection]:
        connection = self._begun(begin)
        try:
            with self.committed(connection, writes=writes):
                yield connection
        finally:
            _give_back(connection)  # what is left open is rolled back

    @contextmanager
    def committed(self, connection: Connection, *, writes: bool) -> Iterator[None]:
        """Commit at the end what has begun on that connection; after an error the caller has to end it."""
        try:
            yield
        except (sa.exc.StatementError, psycopg.Error) as error:
            raise self._meaning(error) from error
        try:
            connection.commit()
        except (sa.exc.DBAPIError, psycopg.Error) as error:
            meaning = self._meaning(error)
            if isinstance(meaning, TransactionAborted) and _is_broken(error):
                if not writes:
                    return  # all that it wanted has been read
                raise OutcomeUnknown(f"{self.label} went away during a commit") from error
            raise meaning from error

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """A connection without a transaction around it."""
        with self.engine.connect() as connection:
            try:
                yield connection.execution_options(tokenctl_begin="")
            except (sa.exc.StatementError, psycopg.Error) as error:
                raise self._meaning(error) from error

    def _connect(self) -> psycopg.Connection:
        try:
            with ExitStack() as unless_all_is_well:
                connection = _Connection.connect(**self._parameters, autocommit=True)
                unless_all_is_well.callback(connection.close)
                connection.execute(_NOT_REPEATABLE_READ)
                unless_all_is_well.pop_all()
        except psycopg.Error as error:
            text = _first_line(error)
            for sign, kind, hint in _NO_CONNECTION:
                if sign in text:
                    raise kind(f"{self.label} refuses the connection: {text}", hint=hint) from error
            raise DatabaseAway(f"{self.label} does not answer: {text}") from error
        return connection

    def _begun(self, begin: str) -> Connection:
        """A connection on which the transaction has begun: tried anew while nothing was done yet.

        So a connection that broke while it lay in the pool, as all do when the server was restarted, costs
        a moment and no error.
        """
        started = time.monotonic()
        if started < self._away_until:
            raise DatabaseAway(f"{self.label} does not answer")
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._try_to_begin(begin)
            except (DatabaseAway, TransactionAborted) as error:
                if time.monotonic() + pause > started + _PATIENCE:
                    self._away_until = time.monotonic() + _COOL_DOWN
                    raise error if isinstance(error, DatabaseAway) else DatabaseAway(error.message) from error
            time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - so that not all come back at once
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _try_to_begin(self, begin: str) -> Connection:
        connection = self.engine.connect().execution_options(tokenctl_begin=begin)
        try:
            connection.begin()
        except (sa.exc.DBAPIError, psycopg.Error) as error:
            _give_back(connection)
            raise self._meaning(error) from error
        return connection

    def _meaning(self, error: BaseException) -> DatabaseError:
        """Our error for the driver's, on a connection that stood."""
        driver = error.orig if isinstance(error, sa.exc.StatementError) else error
        state = getattr(driver, "sqlstate", None)
        if state:
            return self._meaning_of(state, driver)
        if isinstance(driver, psycopg.OperationalError | psycopg.InterfaceError):
            return TransactionAborted(f"the connection to {self.label} broke")
        return StatementRefused(f"the database refused a value ({_first_line(driver)})")

    def _meaning_of(self, state: str, driver: BaseException | None) -> DatabaseError:
        for prefix, kind, hint in _STATES:
            if state.startswith(prefix):
                return kind(f"{self.label}: {_first_line(driver)}", hint=hint or kind.hint)
        return DatabaseError(
            f"{self.label} failed: {_first_line(driver)} ({state})", hint="tokenctl db check"
        )


class _ServerJob(Job):
    """A job on the connection that holds its lock: what works there is the only one that does."""

    def __init__(self, storage: PostgresStorage, connection: Connection, name: str) -> None:
        self._storage = storage
        self._connection = connection
        self._name = name
        self._next_id: int | None = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._transaction(_READ_BEGIN, writes=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._transaction(_write_begin(_LOCK_WAIT)) as connection:
            yield connection

    def others_wrote(self, connection: Connection) -> bool:
        # Every transaction that writes takes the next id, on the whole server; our last one took one.
        next_id = int(connection.execute(_NEXT_ID).scalar_one())
        before, self._next_id = self._next_id, next_id
        return before is None or next_id > before + 1

    def vacuum(self) -> None:
        with self._transaction("", writes=False) as connection:
            connection.exec_driver_sql("VACUUM (ANALYZE) refresh_tokens")

    @contextmanager
    def _transaction(self, begin: str, *, writes: bool = True) -> Iterator[Connection]:
        connection = self._connection
        self._demand_lock()
        try:
            with self._storage.committed(connection, writes=writes):
                connection.execution_options(tokenctl_begin=begin)
                connection.begin()
                yield connection
        except TransactionAborted as error:
            self._demand_lock(error)  # with the connection gone there is nothing to repeat it on
            raise
        finally:
            with suppress(sa.exc.SQLAlchemyError, psycopg.Error):
                connection.rollback()

    def _demand_lock(self, broke: TransactionAborted | None = None) -> None:
        """SQLAlchemy would connect anew, and that connection would not have the lock."""
        if self._connection.invalidated:
            raise DatabaseAway(
                f"the connection to {self._storage.label} broke, and the lock of the {self._name} with it: "
                "another one may have begun, so this one ends here",
                hint=f"what it did is kept; tokenctl {self._name} goes on from there",
            ) from broke


class _Connection(psycopg.Connection):
    """A connection that breaks when its server hangs.

    A server that stands still (a stopped process, a disk that does not answer) keeps its connections: TCP
    sees nothing, and a call would wait until it goes on, although another one was made the primary long ago.
    A statement may take its time, so the silence proves nothing: that nobody can connect does.
    """

    def wait(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """What runs every exchange with the server."""
        return super().wait(self._listened(gen), *args, **kwargs)

    def _listened(self, gen: Generator[Any, Any, RV]) -> Generator[Any, Any, RV]:
        heard, failed = time.monotonic(), 0
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    heard, failed = time.monotonic(), 0
                elif time.monotonic() - heard > _SILENCE:  # asked ten times a second
                    failed = 0 if self._server_answers() else failed + 1
                    if failed >= _TRIES:
                        self.close()
                        raise psycopg.OperationalError("the server does not answer any more")
                    if not failed:
                        heard = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as end:
            result: RV = end.value
            return result

    def _server_answers(self) -> bool:
        """Whether that very host takes a new connection, or says why not."""
        here: dict[str, Any] = self.info.get_parameters() | {
            "host": self.info.host,
            "hostaddr": self.info.hostaddr,
            "port": str(self.info.port),
            "password": self.info.password,
            "target_session_attrs": "any",
        }
        try:
            psycopg.connect(**here).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.Error:
            return True
        return True


#: By SQLSTATE, or its beginning; the first that fits (PostgreSQL, appendix A). What to do next, where that is
#: not what it is on a file.
_STATES: tuple[tuple[str, type[DatabaseError], str], ...] = (
    ("40003", OutcomeUnknown, ""),
    ("40", TransactionAborted, ""),  # a serialization failure, a deadlock
    ("55P03", RowLocked, ""),
    ("57014", DatabaseLocked, "raise the server's statement_timeout for this user, or repeat the command"),
    ("57P", TransactionAborted, ""),  # it is shutting down, or starting up: the connection is gone
    ("08", TransactionAborted, ""),
    ("53100", DatabaseFull, ""),
    ("53", TransactionAborted, ""),  # no room for another connection, or no memory
    ("25006", TransactionAborted, ""),  # this one is a standby now: connecting anew finds the primary
    ("42P01", NotMigrated, SCHEMA_DAMAGED),
    ("42703", NotMigrated, SCHEMA_DAMAGED),
    ("42P07", NotADatabase, "name a database that is empty"),  # another program's tables stand in the way
    ("42501", DatabaseReadOnly, "connect as the owner of the tables, or GRANT this user the rights on them"),
    ("3D000", DatabaseMissing, "createdb makes it; then: tokenctl init"),
    # Looked for before, so another transaction was faster: begun again, this one sees what that one did.
    ("23505", TransactionAborted, ""),
    ("23503", TransactionAborted, ""),
    ("42804", StatementRefused, ""),  # of another type than its column
    ("42846", StatementRefused, ""),
    ("22", StatementRefused, ""),
    ("23", StatementRefused, ""),
)

#: What the server, or libpq, says to a connection that no patience will help; the state is not told there.
_NO_CONNECTION: tuple[tuple[str, type[DatabaseError], str], ...] = (
    ("authentication failed", ConnectionRefused, "check the address, PGPASSWORD or ~/.pgpass"),
    ("no password supplied", ConnectionRefused, "give it in PGPASSWORD or ~/.pgpass"),
    ("no pg_hba.conf entry", ConnectionRefused, "allow host, user and database in the server's pg_hba.conf"),
    ("certificate", ConnectionRefused, "check sslrootcert, and the host name in the address"),
    ("does not support SSL", ConnectionRefused, "switch ssl on in the server's postgresql.conf"),
    ("root.crt", ConnectionRefused, "name the file of the authority's certificate: ?sslrootcert=FILE"),
    ('role "', ConnectionRefused, "check the user in the address; createuser makes one"),
    ('database "', DatabaseMissing, "createdb makes it; then: tokenctl init"),
)


def _engine(connect: Callable[[], psycopg.Connection]) -> Engine:
    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=connect,
        poolclass=sa.QueuePool,
        pool_size=0,  # as many as there are threads, and kept: a new one costs the server a process
        hide_parameters=True,  # a value may be a password's hash, and an error may reach a log
        use_native_hstore=False,
    )

    @sa.event.listens_for(engine, "handle_error")
    def refuse(context: sa.engine.ExceptionContext) -> BaseException | None:
        if getattr(context.original_exception, "sqlstate", None) == "25006":
            context.is_disconnect = True  # the pool is of a standby now
        # What the driver says to a value that it cannot bind, which SQLAlchemy lets pass as it is.
        if isinstance(context.original_exception, TypeError | ValueError | OverflowError):
            return StatementRefused("the database cannot hold a value: no Unicode text, or of no such type")
        return None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The driver is told to leave transactions alone, so that BEGIN can bring more in the same message.
        if text := connection.get_execution_options().get("tokenctl_begin", ""):
            connection.exec_driver_sql(text)

    return engine


def _tls(given: dict[str, Any]) -> dict[str, str]:
    """How a server on the network is verified; nothing for one on this machine."""
    # libpq connects to the address, if there is one, whatever the name says.
    targets = zip_longest(_hosts(given, "host"), _hosts(given, "hostaddr"), fillvalue="")
    remote = [target for name, address in targets if not _is_local(target := address or name)]
    if not remote:
        return {}
    mode = given.get("sslmode")
    if mode is not None and mode not in _VERIFIED:
        raise ConfigInvalid(
            f"with sslmode={mode} anybody between here and {remote[0]} could answer in its place",
            hint="leave sslmode out, which means verify-full; a tunnel or a Unix socket needs no TLS",
        )
    tls = {"sslmode": "verify-full"}
    if "sslrootcert" not in given and (authorities := _authorities()):
        tls["sslrootcert"] = authorities
    return tls


def _demand_host_and_port(given: dict[str, Any]) -> None:
    """What libpq would only find out when it connects, or not tell us at all."""
    for port in str(given.get("port") or "").split(","):
        if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
            raise ConfigInvalid(
                "the database address has a port that is no number from 1 to 65535",
                hint="--database postgresql://USER@HOST:PORT/NAME",
            )
    hosts = str(given.get("host") or "").split(",")
    if any("@" in host[1:] for host in hosts) or "@" in str(given.get("dbname")):
        # Not what stands there: it is the rest of a password.
        raise ConfigInvalid(
            "the database address has an @ where a host or a name should be",
            hint="in a password @ is written %40 and / is written %2F; or give it in PGPASSWORD",
        )
    if given.get("service") or os.environ.get("PGSERVICE"):
        raise ConfigInvalid(
            "the database address names a service, which does not tell whether its server is verified",
            hint="name host and database in the address itself, and unset PGSERVICE",
        )


def _hosts(given: dict[str, Any], key: str) -> list[str]:
    """As given in the address, else in the environment, as libpq has it."""
    return str(given.get(key) or os.environ.get(f"PG{key.upper()}", "")).split(",")


def _is_local(host: str) -> bool:
    """Whether it is this machine, with nobody in between."""
    if host in {"", "localhost"} or host.startswith(("/", "@")):
        return True
    with suppress(ValueError):  # a name, which may begin with 127., too
        return ipaddress.ip_address(host).is_loopback
    return False


def _authorities() -> str | None:
    """The file of certificates that this machine trusts; the one of the driver's own libraries is not it."""
    import ssl

    paths = ssl.get_default_verify_paths()
    return paths.cafile


def _label(given: dict[str, Any]) -> str:
    hosts = [host for host in _hosts(given, "host") if host] or _hosts(given, "hostaddr")
    hosts = [f"[{host}]" if ":" in host else host or "localhost" for host in hosts]
    ports = str(given.get("port") or "").split(",")
    ports += [ports[-1]] * (len(hosts) - len(ports))
    places = ",".join(f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False))
    return f"postgresql://{places}/{given.get('dbname') or ''}"


def _give_back(connection: Connection) -> None:
    with suppress(sa.exc.DBAPIError, psycopg.Error):  # one that is broken cannot be rolled back
        connection.close()


def _is_broken(error: BaseException) -> bool:
    """Whether the connection is gone, so that nobody knows what became of a commit."""
    driver = error.orig if isinstance(error, sa.exc.StatementError) else error
    state = getattr(driver, "sqlstate", None) or ""
    return not state or state.startswith(("08", "57P"))


def _first_line(error: BaseException | None) -> str:
    """The server's sentence without the statement; it holds no values but those of a constraint's detail."""
    return str(error).partition("\n")[0][:300]
