"""The purge below the service: its one scan, its one connection, what it says of who runs, its vacuum."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.conftest import CHEAP, KINDS, START, Clock, leave_free
from tests.service import DAY, SECOND, add_logins, is_postgres, login_row, run_sql
from tokenctl import Settings, TokenService
from tokenctl.errors import DatabaseAway, DatabaseError, DatabaseFull, DatabaseLocked
from tokenctl.storage import purging
from tokenctl.storage.engine import Job, Storage, locate

ON_POSTGRESQL = pytest.mark.parametrize("database_kind", ["postgresql"])
ON_SQLITE = pytest.mark.parametrize("database_kind", ["sqlite"])


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ada(service: TokenService) -> str:
    return service.create_user("ada").id


@pytest.fixture
def storage(settings: Settings) -> Iterator[Storage]:
    with closing(locate(settings.database).open()) as storage:
        yield storage


@contextmanager
def holding(storage: Storage) -> Iterator[Job]:
    with storage.exclusive("purge") as job:
        yield job


def add_mixed(settings: Settings, user_id: str, count: int) -> None:
    """Every second one revoked eight days before START."""
    add_logins(
        settings,
        (
            login_row(
                i,
                user_id,
                created_at=START - 9 * DAY,
                rotated_at=START - SECOND,
                revoked_at=START - 8 * DAY if i % 2 else None,
                revoked_reason="x" if i % 2 else None,
            )
            for i in range(1, count + 1)
        ),
    )


def purge_batch(job: Job, after: Any = None, limit: int = 10) -> purging.Stretch:
    with job.write() as connection:
        return purging.delete_after(connection, after=after, dead_since=START - 7 * DAY, limit=limit)


def write_something(settings: Settings) -> None:
    run_sql(settings, "UPDATE realm SET not_before = not_before + 1")


@ON_POSTGRESQL
class TestByPlace:
    @pytest.mark.parametrize("analyzed", [False, True], ids=["fresh", "analyzed"])
    @pytest.mark.parametrize("rows", [20, 3_000])
    def test_no_batch_reads_the_table_from_its_beginning(
        self, storage: Storage, settings: Settings, ada: str, rows: int, analyzed: bool
    ) -> None:
        add_mixed(settings, ada, rows)
        if analyzed:
            run_sql(settings, "ANALYZE refresh_tokens")
        given = {"after": "(0,3)", "at": START - 7 * DAY, "limit": 5}
        for statement, scans in (
            (purging._DELETE, ["Tid Range Scan", "Tid Scan"]),
            (purging._SEARCH, ["Tid Range Scan"]),
        ):
            text = str(statement.compile(dialect=storage.engine.dialect))
            with storage.write() as connection:
                connection.execute(purging._BY_PLACE)
                lines = connection.exec_driver_sql(f"EXPLAIN {text}", given).scalars().all()
            plan = [line.strip().removeprefix("->").strip() for line in lines]
            on_table = [line for line in plan if " Scan" in line and " on refresh_tokens" in line]
            assert [line.partition(" on ")[0] for line in on_table] == scans

    def test_the_settings_of_a_batch_end_with_it(
        self, storage: Storage, settings: Settings, ada: str
    ) -> None:
        add_mixed(settings, ada, 4)
        with holding(storage) as job:
            purge_batch(job)
            with job.read() as connection:
                assert connection.scalar(sa.text("SHOW enable_seqscan")) == "on"

    def test_each_goes_on_where_the_last_one_ended(
        self, storage: Storage, settings: Settings, ada: str
    ) -> None:
        add_mixed(settings, ada, 400)
        with holding(storage) as job:
            first = purge_batch(job, limit=70)
            second = purge_batch(job, first.last, limit=70)
            third = purge_batch(job, second.last, limit=70)
        assert [each.deleted for each in (first, second, third)] == [70, 70, 60]
        assert [each.is_last for each in (first, second, third)] == [False, False, True]
        assert run_sql(settings, "SELECT count(*) FROM refresh_tokens") == [(200,)]

    def test_what_lies_before_a_place_is_not_looked_at(
        self, storage: Storage, settings: Settings, ada: str
    ) -> None:
        add_mixed(settings, ada, 400)
        middle = "SELECT ctid::text FROM refresh_tokens ORDER BY id OFFSET 199 LIMIT 1"
        [(place,)] = run_sql(settings, middle)
        with holding(storage) as job:
            found = purge_batch(job, place, limit=1_000)
        assert (found.deleted, found.is_last) == (100, True)

    def test_a_row_that_is_locked_is_the_next_runs(
        self, service: TokenService, settings: Settings, ada: str
    ) -> None:
        add_mixed(settings, ada, 20)
        with psycopg.connect(settings.database) as other:
            other.execute("SELECT 1 FROM refresh_tokens WHERE id = %s FOR UPDATE", [(7).to_bytes(16, "big")])
            done = service.purge(batch=4)
            assert (done.purged, done.complete) == (9, True)
        assert service.purge(batch=4).purged == 1

    def test_a_server_that_is_too_old_is_refused(
        self, storage: Storage, settings: Settings, ada: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_mixed(settings, ada, 4)
        with holding(storage) as job:
            monkeypatch.setattr(storage.engine.dialect, "server_version_info", (13, 9))
            with pytest.raises(DatabaseError, match="PostgreSQL 13") as caught:
                purge_batch(job)
        assert caught.value.hint
        assert run_sql(settings, "SELECT count(*) FROM refresh_tokens") == [(4,)]


class TestOthersWrote:
    def test_alone_only_the_first_answer_is_yes(self, storage: Storage, settings: Settings, ada: str) -> None:
        with holding(storage) as job:
            assert self.ask_and_write(job)
            assert not any(self.ask_and_write(job) for _ in range(5))

    def test_another_program_is_noticed_once(self, storage: Storage, settings: Settings, ada: str) -> None:
        with holding(storage) as job:
            self.ask_and_write(job)
            write_something(settings)
            assert [self.ask_and_write(job) for _ in range(2)] == [True, False]

    def test_so_are_others_of_the_same_process(self, storage: Storage, settings: Settings, ada: str) -> None:
        """The connections of a pool change hands, and each of them would tell a story of its own."""
        with holding(storage) as job:
            self.ask_and_write(job)
            for _ in range(7):
                with storage.write() as connection:
                    connection.execute(sa.text("UPDATE realm SET not_before = not_before + 1"))
                assert self.ask_and_write(job)
                assert not self.ask_and_write(job)

    def test_readers_do_not_count(self, storage: Storage, settings: Settings, ada: str) -> None:
        with holding(storage) as job:
            self.ask_and_write(job)
            run_sql(settings, "SELECT count(*) FROM users")
            with storage.read() as connection:
                connection.execute(sa.text("SELECT count(*) FROM users"))
            assert not self.ask_and_write(job)

    @staticmethod
    def ask_and_write(job: Job) -> bool:
        with job.write() as connection:
            others_wrote = job.others_wrote(connection)
            connection.execute(sa.text("UPDATE users SET not_before = not_before + 1"))
        return others_wrote


@ON_POSTGRESQL
class TestTheLock:
    def test_a_second_run_learns_who_has_it(self, storage: Storage, settings: Settings) -> None:
        with (
            closing(locate(settings.database).open()) as other,
            storage.exclusive("purge"),
            pytest.raises(DatabaseLocked) as caught,
            other.exclusive("purge"),
        ):
            pytest.fail("two at once")
        facts = caught.value.facts
        assert facts["pid"] == os.getpid()
        assert platform.node().startswith(facts["node"])
        assert 0 <= facts["seconds"] < 60
        assert f"pid {os.getpid()} on {facts['node']}" in caught.value.message
        assert "127.0.0.1" in caught.value.message

    def test_of_one_that_does_not_tell_its_name_at_least_the_address_is_known(
        self, storage: Storage, settings: Settings
    ) -> None:
        with psycopg.connect(settings.database, autocommit=True) as other:
            other.execute("SELECT pg_advisory_lock(%s, hashtext('purge'))", [0x746B6374])
            with (
                pytest.raises(DatabaseLocked, match="pid unknown on 127") as caught,
                holding(storage),
            ):
                pytest.fail("two at once")
        assert caught.value.facts["pid"] is None

    def test_its_name_does_not_outlive_the_job(self, storage: Storage, settings: Settings) -> None:
        with holding(storage) as job, job.read() as connection:
            name = connection.scalar(sa.text("SHOW application_name"))
            assert name.startswith("tokenctl purge since ")
        with storage.read() as connection:
            assert connection.scalar(sa.text("SHOW application_name")) == "tokenctl"

    @pytest.mark.parametrize("in_a_batch", [False, True], ids=["between batches", "in a batch"])
    def test_lost_with_its_connection_ends_the_run(
        self, storage: Storage, settings: Settings, ada: str, in_a_batch: bool
    ) -> None:
        add_mixed(settings, ada, 40)

        def go_on(job: Job) -> None:
            if not in_a_batch:
                cut_jobs(settings)
            with job.write() as connection:
                if in_a_batch:
                    cut_jobs(settings)
                connection.execute(sa.text("DELETE FROM refresh_tokens"))

        with closing(locate(settings.database).open()) as other, holding(storage) as job:
            assert purge_batch(job, limit=5).deleted == 5
            with pytest.raises(DatabaseAway, match="the lock of the purge"):
                go_on(job)
            with other.exclusive("purge"):  # another one begins, and the first cannot go on beside it
                with pytest.raises(DatabaseAway, match="the lock of the purge"):
                    purge_batch(job, limit=5)
                with pytest.raises(DatabaseAway), job.read():
                    pytest.fail("it goes on")
        assert run_sql(settings, "SELECT count(*) FROM refresh_tokens") == [(35,)]

    def test_a_purge_that_lost_it_is_resumed_by_the_next(
        self, service: TokenService, settings: Settings, ada: str
    ) -> None:
        add_mixed(settings, ada, 40)

        def cut(done: int, total: int) -> None:
            if done == 10:
                cut_jobs(settings)

        with pytest.raises(DatabaseAway, match="another one may have begun") as caught:
            service.purge(batch=5, progress=cut)
        assert "tokenctl purge" in caught.value.hint
        assert run_sql(settings, "SELECT count(*) FROM refresh_tokens") == [(30,)]
        assert service.purge(batch=5).purged == 10


def cut_jobs(settings: Settings) -> None:
    """End the connections of purges on this database, as an administrator or a failover does."""
    run_sql(
        settings,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'tokenctl purge %'",
    )


def kill_all(settings: Settings) -> None:
    """So that whole pages become free: the ids of rows that die one by one leave gaps only."""
    run_sql(settings, "UPDATE refresh_tokens SET revoked_at = 1, revoked_reason = 'x'")


class TestSpace:
    def test_is_reported(self, service: TokenService, settings: Settings, ada: str) -> None:
        add_mixed(settings, ada, 4_000)
        kill_all(settings)
        before = service.purge(dry_run=True)
        after = service.purge()
        assert not after.vacuumed
        if is_postgres(settings):
            table = run_sql(settings, "SELECT pg_total_relation_size('refresh_tokens')")
            assert [(after.size_bytes,)] == table
            assert after.free_bytes is None
        else:
            [(pages,)], [(size,)], [(free,)] = (
                run_sql(settings, f"PRAGMA {name}") for name in ("page_count", "page_size", "freelist_count")
            )
            assert (after.size_bytes, after.free_bytes) == (pages * size, free * size)
            assert before.free_bytes is not None
            assert after.free_bytes is not None
            assert after.free_bytes > before.free_bytes

    @ON_SQLITE
    def test_is_given_back_when_asked(self, service: TokenService, settings: Settings, ada: str) -> None:
        add_mixed(settings, ada, 4_000)
        kill_all(settings)
        run_sql(settings, "PRAGMA wal_checkpoint(TRUNCATE)")
        before = Path(settings.database).stat().st_size
        done = service.purge(vacuum=True)
        assert (done.vacuumed, done.free_bytes) == (True, 0)
        assert done.size_bytes == Path(settings.database).stat().st_size < before / 2
        assert Path(f"{settings.database}-wal").stat().st_size < 100_000, "the log is cut, too"
        assert run_sql(settings, "PRAGMA integrity_check") == [("ok",)]

    @ON_POSTGRESQL
    def test_is_made_free_for_others_when_asked(
        self, service: TokenService, settings: Settings, ada: str
    ) -> None:
        add_mixed(settings, ada, 400)
        assert service.purge(vacuum=True).vacuumed
        run_sql(settings, "SELECT pg_stat_force_next_flush()")
        [(vacuumed, analyzed)] = run_sql(
            settings,
            "SELECT vacuum_count, analyze_count FROM pg_stat_user_tables WHERE relname = 'refresh_tokens'",
        )
        assert (vacuumed, analyzed) == (1, 1)

    def test_is_left_when_the_time_is_over(self, service: TokenService, settings: Settings, ada: str) -> None:
        add_mixed(settings, ada, 40)
        assert not service.purge(vacuum=True, stop=lambda: True).vacuumed

    @ON_SQLITE
    def test_writers_wait_for_a_vacuum_in_their_queue(
        self, storage: Storage, settings: Settings, ada: str
    ) -> None:
        """It takes the writer's turn: SQLite alone would let it fail, or them."""
        with ThreadPoolExecutor(1) as pool:
            with holding(storage) as job, storage.write():
                vacuum = pool.submit(job.vacuum)
                wait([vacuum], 0.3)
                assert not vacuum.done()
            vacuum.result(20)


def test_a_vacuum_on_a_full_disk_leaves_the_database_as_it_was(
    small_disk: Path, new_database: Path, clock: Clock
) -> None:
    for file in new_database.iterdir():
        shutil.copy(file, small_disk)
    settings = Settings(database=str(small_disk / "tokens.db"))
    with TokenService(settings, clock=clock, passwords=CHEAP) as service:
        add_mixed(settings, service.create_user("ada").id, 3_000)
        run_sql(settings, "PRAGMA wal_checkpoint(TRUNCATE)")
        assert service.purge().purged == 1_500
        run_sql(settings, "PRAGMA wal_checkpoint(TRUNCATE)")
        ballast = leave_free(small_disk, 100_000)
        with pytest.raises(DatabaseFull) as caught:
            service.purge(vacuum=True)
        assert caught.value.hint
        assert run_sql(settings, "SELECT count(*) FROM refresh_tokens") == [(1_500,)]
        with closing(sqlite3.connect(settings.database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ballast.unlink()
        done = service.purge(vacuum=True)
        assert (done.purged, done.vacuumed, done.free_bytes) == (0, True, 0)
