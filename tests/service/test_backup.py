"""Backups, what they mean for the logins once they are restored, and copies into other databases."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHEAP, MASTER_KEY, Clock
from tests.postgres import Server, started
from tests.sample import SAMPLE
from tests.service import add_logins, dump, event_types, login_row, run_sql
from tokenctl import Settings, TokenPair, TokenService
from tokenctl.core.keys import format_master_key
from tokenctl.core.token_string import parse_unverified
from tokenctl.errors import (
    ConfigInvalid,
    DatabaseBehind,
    DatabaseError,
    DatabaseExists,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    InvalidInput,
    KeyWrong,
    NotADatabase,
    NotMigrated,
    TokenRefused,
)
from tokenctl.service.backup import Restored, backup, copy, look, restore
from tokenctl.service.doctor import examine
from tokenctl.settings import Secret
from tokenctl.storage import backup as stored
from tokenctl.storage.schema import SCHEMA_VERSION

HOUR = timedelta(hours=1)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def database_kind() -> str:
    """A backup is of a file; the copies have a server of their own."""
    return "sqlite"


@pytest.fixture
def database(settings: Settings) -> Path:
    return Path(settings.database)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a backup goes."""
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "monday.db"


def opened(settings: Settings, clock: Clock) -> TokenService:
    return TokenService(settings, clock=clock, passwords=CHEAP)


def generation(refresh_token: str) -> int:
    return parse_unverified(refresh_token).generation


def names(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}


def content(path: Path) -> list[str]:
    return dump(Settings(database=str(path)))


# --- backup --------------------------------------------------------------------------------------


def test_a_backup_is_the_database(settings: Settings, service: TokenService, file: Path) -> None:
    service.create_user("ada")
    pair, dead = service.issue("ada"), service.issue("ada")
    service.revoke([dead.token_id], reason="lost")
    seen: list[tuple[int, int]] = []
    done = backup(settings, file, clock=service.now, progress=lambda *step: seen.append(step))
    assert content(file) == dump(settings)
    assert (done.counts.users, done.counts.tokens, done.counts.live) == (1, 2, 1)
    assert done.counts.events == len(service.audit.tail(100))
    assert (done.at, done.schema, done.size) == (service.now(), SCHEMA_VERSION, file.stat().st_size)
    assert done.key_file == Path(f"{settings.database}.key")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert names(file.parent) == {"monday.db"}
    assert seen[-1][0] == seen[-1][1] > 0
    # It can be used as it is, even where nothing can be written beside it.
    with TokenService(
        replace(settings, database=str(file), key_file=f"{settings.database}.key"), clock=service.now
    ) as other:
        assert other.rotate(pair.refresh_token).refresh_token


def test_it_never_holds_the_master_key(settings: Settings, service: TokenService, file: Path) -> None:
    service.create_user("ada")
    service.issue("ada")
    backup(settings, file)
    held = file.read_bytes()
    assert MASTER_KEY not in held
    assert format_master_key(MASTER_KEY).encode() not in held


def test_what_lies_only_in_the_log_is_in_it(settings: Settings, service: TokenService, file: Path) -> None:
    service.create_user("ada")
    assert Path(f"{settings.database}-wal").stat().st_size
    backup(settings, file)
    assert run_sql(Settings(database=str(file)), "SELECT name FROM users") == [("ada",)]


def test_a_file_that_is_there_is_refused(settings: Settings, file: Path, tmp_path: Path) -> None:
    file.write_text("precious")
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    for there in (file, file.parent, dangling, Path(settings.database)):
        with pytest.raises(DatabaseExists, match="is there already"):
            backup(settings, there)
    assert file.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_no_directory(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError) as caught:
        backup(settings, tmp_path / "none" / "file.db")
    assert "there is no directory" in caught.value.message
    assert caught.value.hint == f"mkdir -p {tmp_path / 'none'}"


def test_a_damaged_database_gets_no_backup(settings: Settings, database: Path, file: Path) -> None:
    damage(database)
    with pytest.raises(NotADatabase):
        backup(settings, file)
    assert names(file.parent) == set()


def test_orphans_are_damage(settings: Settings, file: Path) -> None:
    add_logins(settings, [login_row(1, f"usr_{7:032x}")])
    with pytest.raises(NotADatabase, match="1 row of refresh_tokens without the row of users"):
        backup(settings, file)
    assert names(file.parent) == set()


def test_an_index_of_the_owner_is_no_damage(settings: Settings, file: Path) -> None:
    run_sql(settings, "CREATE INDEX mine ON users (created_at)")
    backup(settings, file)
    restore(settings, file)
    assert run_sql(settings, "SELECT name FROM sqlite_master WHERE name = 'mine'")


def test_other_files_are_no_database_of_ours(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE places (url TEXT)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('a1b2c3d4e5f6')")
        connection.commit()
    with pytest.raises(NotADatabase, match="another program"):
        backup(Settings(database=str(other)), file)
    with pytest.raises(DatabaseMissing):
        backup(Settings(database=str(tmp_path / "none.db")), file)
    assert names(file.parent) == set()


def test_what_a_killed_backup_left_goes_an_hour_later(settings: Settings, file: Path) -> None:
    left = [file.with_name(f"{file.name}.new-{'0' * 16}{end}") for end in ("", "-journal")]
    for each in left:
        each.touch()
        os.utime(each, (0, 0))
    backup(settings, file)
    assert names(file.parent) == {file.name}


ROTATE = """
import sys, time
from tokenctl import Settings, TokenService
from tokenctl.service.runtime import system_clock
string = sys.argv[2]
with TokenService(Settings(database=sys.argv[1])) as service:
    for generation in range(1, 100000):
        string = service.rotate(string).refresh_token
        print(system_clock(), generation, flush=True)
"""


def test_nothing_acknowledged_before_its_instant_is_missing(settings: Settings, file: Path) -> None:
    with TokenService(settings) as service:
        user = service.create_user("ada")
        logins = [service.issue("ada") for _ in range(2)]
        rows = [login_row(number, user.id) for number in range(1, 30_001)]
        add_logins(settings, rows)  # so that there is something to copy
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", ROTATE, settings.database, login.refresh_token],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for login in logins
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                writer.stdout.readline()
            done = [backup(settings, file.with_name(f"{number}.db")) for number in range(5)]
            time.sleep(0.1)
        finally:
            for writer in writers:
                writer.kill()
        acknowledged = []
        for writer in writers:
            said = writer.communicate()[0].splitlines()
            acknowledged.append([tuple(map(int, line.split())) for line in said if line.count(" ") == 1])
    assert min(map(len, acknowledged)) > 10
    for each in done:
        for login, steps in zip(logins, acknowledged, strict=True):
            [(held,)] = run_sql(
                Settings(database=str(each.file)),
                "SELECT generation FROM refresh_tokens WHERE id = ?",
                bytes.fromhex(login.token_id.removeprefix("rt_")),
            )
            assert held >= max((generation for at, generation in steps if at < each.at), default=1)


# --- restore -------------------------------------------------------------------------------------


@pytest.fixture
def rotated(settings: Settings, file: Path, clock: Clock) -> list[str]:
    """A login's strings, of which the backup knows the first two: it went on three times after it."""
    with opened(settings, clock) as service:
        service.create_user("ada")
        strings = [service.issue("ada").refresh_token]
        for number in range(4):
            if number == 1:
                backup(settings, file, clock=clock)
            clock.advance(HOUR)
            strings.append(service.rotate(strings[-1]).refresh_token)
    clock.advance(HOUR)
    return strings


def restored(settings: Settings, file: Path, clock: Clock) -> Restored:
    done = restore(settings, file, clock=clock, actor="nina")
    clock.advance(timedelta(seconds=1))
    return done


def test_a_client_that_rotated_since_goes_on(
    settings: Settings, file: Path, rotated: list[str], clock: Clock
) -> None:
    before = dump(settings)
    done = restored(settings, file, clock)
    with opened(settings, clock) as service:
        following = service.rotate(rotated[4])
        assert generation(following.refresh_token) == 5
        clock.advance(HOUR)
        assert generation(service.rotate(following.refresh_token).refresh_token) == 6
        [event] = service.audit.tail(1, types=["database.restored"])
    assert (event.actor, event.at, event.reason) == ("nina", done.recovered_at, "db restore")
    assert done.set_aside is not None
    newest = run_sql(Settings(database=str(file)), "SELECT max(at) FROM events")[0][0]
    assert event.data == {
        "backup": str(file),
        "newest_event_at": newest,
        "set_aside": done.set_aside.name,
    }
    assert event_types(settings)[-2:] == ["database.restored", "token.recover"]
    # The old one is whole, and beside it.
    assert done.set_aside.name.startswith("tokens.db.before-restore-2")
    assert content(done.set_aside) == before
    assert not list(done.set_aside.parent.glob("*.new-*"))
    assert not list(done.set_aside.parent.glob("*before-restore*-*[wl]"))


@pytest.mark.parametrize("spent", [0, 1, 3, 4])
def test_a_thief_who_comes_second_is_caught(
    settings: Settings, file: Path, rotated: list[str], clock: Clock, spent: int
) -> None:
    restored(settings, file, clock)
    with opened(settings, clock) as service:
        service.rotate(rotated[4])  # the client
        clock.advance(HOUR)
        with pytest.raises(TokenRefused) as caught:
            service.rotate(rotated[spent])
        assert caught.value.reason == "reuse"
        assert event_types(settings)[-1] == "token.reuse"


@pytest.mark.parametrize("spent", [1, 2])
def test_a_thief_who_comes_first_is_caught_by_the_client(
    settings: Settings, file: Path, rotated: list[str], clock: Clock, spent: int
) -> None:
    """1 is current in the backup, 2 is newer than the backup and spent."""
    restored(settings, file, clock)
    with opened(settings, clock) as service:
        service.rotate(rotated[spent])
        clock.advance(HOUR)
        with pytest.raises(TokenRefused) as caught:
            service.rotate(rotated[4])
        assert caught.value.reason == "reuse"
        assert event_types(settings)[-1] == "token.reuse"


def test_a_thief_with_the_last_spent_string_is_caught_one_step_later(
    settings: Settings, file: Path, rotated: list[str], clock: Clock
) -> None:
    """What he gets for it is the client's own string: two hold one string, as after any theft."""
    restored(settings, file, clock)
    with opened(settings, clock) as service:
        assert service.rotate(rotated[3]).refresh_token == rotated[4]
        for _ in range(2):
            clock.advance(HOUR)
            try:
                service.rotate(rotated[4])  # by whoever comes next, and then by the other one
            except TokenRefused as error:
                caught = error.reason
        assert caught == "reuse"
        assert event_types(settings)[-1] == "token.reuse"


def test_what_was_spent_in_the_backup_already_stays_reuse(
    settings: Settings, file: Path, rotated: list[str], clock: Clock
) -> None:
    restored(settings, file, clock)
    with opened(settings, clock) as service:
        with pytest.raises(TokenRefused) as caught:
            service.rotate(rotated[0])
        assert caught.value.reason == "reuse"


def test_a_copy_by_hand_keeps_everybody_waiting_until_it_is_declared(
    settings: Settings, database: Path, file: Path, rotated: list[str], clock: Clock
) -> None:
    shutil.copy(file, database)
    with opened(settings, clock) as service:
        before = run_sql(settings, "SELECT generation, rotated_at, revoked_at FROM refresh_tokens")
        for _ in range(2):
            with pytest.raises(DatabaseBehind) as caught:
                service.rotate(rotated[4])
        assert "tokenctl db restored" in caught.value.hint
        after = run_sql(settings, "SELECT generation, rotated_at, revoked_at FROM refresh_tokens")
        assert before == after
        # The doctor and the audit log say so, once.
        assert event_types(settings)[-1:] == ["database.behind"]
        alarm = next(check for check in examine(settings, clock=clock) if check.check == "alarms")
        assert not alarm.ok
        assert "tokenctl db restored" in alarm.fix
        service.declare_restored()
        clock.advance(timedelta(seconds=1))
        assert service.rotate(rotated[4]).refresh_token


def test_twice(settings: Settings, file: Path, rotated: list[str], clock: Clock) -> None:
    first = restored(settings, file, clock)
    with opened(settings, clock) as service:
        following = service.rotate(rotated[4]).refresh_token
    clock.advance(HOUR)
    second = restored(settings, file, clock)
    assert first.set_aside != second.set_aside
    with opened(settings, clock) as service:
        assert generation(service.rotate(following).refresh_token) == 6


def test_it_is_declared_before_it_has_its_name(
    settings: Settings, database: Path, file: Path, rotated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment there is a database under the name: the old one, or a declared one."""
    seen = []
    put = stored._put

    def look_then_put(building: Path, path: Path, *rest: Any) -> Path | None:
        declared = Settings(database=str(building))
        seen.append(run_sql(declared, "SELECT recovered_at FROM realm")[0][0])
        seen.append(event_types(declared)[-1])
        assert run_sql(settings, "SELECT recovered_at FROM realm") == [(None,)]
        return put(building, path, *rest)

    monkeypatch.setattr(stored, "_put", look_then_put)
    done = restore(settings, file)
    assert seen == [done.recovered_at, "database.restored"]


@pytest.mark.parametrize("step", ["link", "replace"])
def test_a_failure_at_the_last_steps_leaves_the_old_one(
    settings: Settings,
    database: Path,
    file: Path,
    rotated: list[str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    before = dump(settings)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    owner: Any = os if step == "link" else Path
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(DatabaseError):
        restore(settings, file)
    monkeypatch.undo()
    assert dump(settings) == before
    assert run_sql(settings, "PRAGMA journal_mode") == [("wal",)]
    assert not list(database.parent.glob("*.new-*"))
    assert not list(database.parent.glob("*.before-restore-*"))
    # Killed there, it leaves a second name of the same file, which would be opened with a log of its own.
    os.link(database, f"{database}.before-restore-20260301T120000.000000Z")
    restore(settings, file)
    aside = list(database.parent.glob("*.before-restore-*"))
    assert len(aside) == 1
    assert content(aside[0]) == before


def test_where_no_database_is(settings: Settings, database: Path, file: Path, rotated: list[str]) -> None:
    with opened(settings, Clock()) as service:
        service.create_user("bob")
        log = Path(f"{database}-wal")
        kept = log.read_bytes()
    database.unlink()
    log.write_bytes(kept)  # of the lost one: it must not come into the new one
    done = restore(settings, file)
    assert done.set_aside is None
    assert run_sql(settings, "SELECT name FROM users") == [("ada",)]
    [aside] = database.parent.glob("*.before-restore-*-wal")
    assert aside.read_bytes() == kept
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert database.with_name("tokens.db.write").exists()


def test_in_place_of_a_damaged_one(
    settings: Settings, database: Path, file: Path, rotated: list[str]
) -> None:
    for garbage in (b"\0" * 8192, b"not a database at all, whatever it was"):
        database.write_bytes(garbage)
        Path(f"{database}-wal").write_bytes(b"log")
        assert look(settings, file).damaged
        done = restore(settings, file)
        assert done.set_aside is not None
        assert done.set_aside.read_bytes() == garbage
        assert Path(f"{done.set_aside}-wal").read_bytes() == b"log"
        assert run_sql(settings, "SELECT name FROM users") == [("ada",)]


def test_in_place_of_what_was_never_ours(tmp_path: Path, settings: Settings, file: Path) -> None:
    backup(settings, file)
    text = tmp_path / "letter.txt"
    text.write_text("dear ada, " * 100)
    with pytest.raises(NotADatabase, match="nothing beside it says"):
        restore(Settings(database=str(text)), file)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE places (url TEXT)")
    with pytest.raises(InvalidInput, match="another program"):
        restore(Settings(database=str(other)), file)
    with pytest.raises(DatabaseExists, match="is a directory"):
        restore(Settings(database=str(tmp_path)), file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatabaseMissing, match="not a file"):
        restore(Settings(database=str(tmp_path / "pipe")), file)
    assert not list(tmp_path.glob("*.before-restore-*"))


def test_through_a_link(tmp_path: Path, settings: Settings, database: Path, file: Path) -> None:
    backup(settings, file)
    link = tmp_path / "link.db"
    link.symlink_to(database)
    linked_file = tmp_path / "linked-backup.db"
    linked_file.symlink_to(file)
    done = restore(Settings(database=str(link)), linked_file)
    assert link.is_symlink()
    assert done.key_fits
    assert done.set_aside is not None
    assert done.set_aside.parent == database.parent
    assert done.set_aside.name.startswith("tokens.db.before-restore-")


def test_what_is_no_backup(settings: Settings, database: Path, file: Path, tmp_path: Path) -> None:
    before = dump(settings)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("SQLite is a nice database" * 10)
    (tmp_path / "empty").touch()
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE places (url TEXT)")
    (tmp_path / "loop").symlink_to("loop")
    backup(settings, file)
    cut = tmp_path / "cut.db"
    cut.write_bytes(file.read_bytes()[:-8192])
    shutil.copy(file, flipped := tmp_path / "flipped.db")
    damage(flipped)
    for wrong, error in {
        "none": DatabaseMissing,
        "pipe": NotADatabase,
        "backups": NotADatabase,
        "text": NotADatabase,
        "empty": NotADatabase,
        "other.db": NotADatabase,
        "loop": NotADatabase,
        "cut.db": NotADatabase,
        "flipped.db": NotADatabase,
        "tokens.db": InvalidInput,
    }.items():
        with pytest.raises(error) as caught:
            restore(settings, tmp_path / wrong)
        assert wrong in caught.value.message, wrong
        assert caught.value.hint
    assert dump(settings) == before
    assert not list(tmp_path.glob("*.before-restore-*"))
    assert not list(tmp_path.glob("*.new-*"))


def test_a_newer_schema(settings: Settings, file: Path) -> None:
    backup(settings, file)
    run_sql(Settings(database=str(file)), "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NotMigrated, match="newer release"):
        restore(settings, file)


def test_an_older_schema_is_saved_as_it_is_and_upgraded_when_it_comes_back(
    settings: Settings, database: Path, file: Path, tmp_path: Path, rotated: list[str], clock: Clock
) -> None:
    # What came after 0001 is taken back.
    for statement in (
        "DROP TABLE plan_members",
        "DROP TABLE plans",
        "DROP TABLE segments",
        "DROP INDEX ix_events_segment",
        "ALTER TABLE events DROP COLUMN segment",
        "ALTER TABLE clients DROP COLUMN secret_hash",
        "ALTER TABLE signing_keys DROP COLUMN active_at",
        "UPDATE alembic_version SET version_num = '0001'",
    ):
        run_sql(settings, statement)
    older = tmp_path / "older.db"
    assert backup(settings, older, clock=clock).schema == "0001"
    assert content(older) == dump(settings)
    assert look(settings, older, clock=clock).schema == "0001"
    done = restored(settings, older, clock)
    assert (done.schema_before, done.schema) == ("0001", SCHEMA_VERSION)
    with opened(settings, clock) as service:
        assert service.rotate(rotated[4]).refresh_token


def test_the_backup_of_another_master_key(
    settings: Settings, database: Path, file: Path, tmp_path: Path
) -> None:
    backup(settings, file)
    key = Path(f"{settings.database}.key")
    other = format_master_key(b"x" * 32)
    key.write_text(f"{other}\n")
    with pytest.raises(KeyWrong, match=r"tokens\.db\.key is not the one of the backup"):
        restore(settings, file)
    with pytest.raises(KeyWrong, match="TOKENCTL_MASTER_KEY"):
        restore(replace(settings, master_key=Secret(other)), file)
    key.unlink()
    assert not look(settings, file).key_fits
    # Without a key at hand the database that is there tells.
    with pytest.raises(KeyWrong, match="another database"):
        restore(settings, SAMPLE)
    assert not restore(settings, file).key_fits


def test_a_database_that_is_open_is_not_replaced(
    settings: Settings, service: TokenService, file: Path
) -> None:
    """A service in this very process; another process is tested with the command."""
    backup(settings, file)
    service.create_user("bob")
    before = dump(settings)
    for attempt in (look, restore):
        with pytest.raises(DatabaseLocked, match="is in use"):
            attempt(settings, file)
    assert dump(settings) == before
    service.create_user("carol")
    assert run_sql(settings, "PRAGMA journal_mode") == [("wal",)]


def test_one_that_is_opened_at_the_last_moment(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(settings, file)
    before = dump(settings)
    put, services = stored._put, []

    def open_then_put(*args: Any) -> Path | None:
        services.append(TokenService(settings))
        return put(*args)

    monkeypatch.setattr(stored, "_put", open_then_put)
    with pytest.raises(DatabaseLocked, match="is in use"):
        restore(settings, file)
    services[0].close()
    assert dump(settings) == before


def test_the_backup_stays_as_it_is(settings: Settings, file: Path, rotated: list[str]) -> None:
    before = file.read_bytes()
    restore(settings, file)
    assert file.read_bytes() == before
    assert names(file.parent) == {file.name}


def test_a_closed_copy_of_a_database_is_a_backup_too(
    settings: Settings, database: Path, file: Path, rotated: list[str]
) -> None:
    """In WAL mode, as it was: read without a file beside it."""
    file.unlink()
    shutil.copy(database, file)
    restore(settings, file)
    assert names(file.parent) == {file.name}
    assert run_sql(settings, "SELECT generation FROM refresh_tokens") == [(4,)]


def test_mode_and_owner_stay(settings: Settings, database: Path, file: Path) -> None:
    backup(settings, file)
    database.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(database, 1234, 5678)
    before = database.stat()
    restore(settings, file)
    after = database.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino


def test_somebody_elses_database_is_left_to_them(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(settings, file)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(DatabaseReadOnly, match="belongs to another user") as caught:
        restore(settings, file)
    assert caught.value.hint.startswith("sudo -u '#")


def test_nothing_can_be_written_there(settings: Settings, file: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be made"):
        backup(settings, Path("/sys/monday.db"))
    backup(settings, file)
    with pytest.raises(DatabaseError, match="cannot be made"):
        restore(Settings(database="/sys/tokens.db", key_file=f"{settings.database}.key"), file)
    with pytest.raises(DatabaseError, match="cannot be made"):
        copy(settings, "/sys/tokens.db")


def damage(path: Path) -> None:
    """Overwrite the middle of the pages of the largest table, behind the schema."""
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        for _ in range(4096 * 3, path.stat().st_size - 100, 512):
            file.write(b"\xa5" * 100)
            file.seek(412, os.SEEK_CUR)


# --- copy ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


@pytest.fixture
def empty(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database."""
    name = f"copy_{abs(hash(request.node.name))}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture
def filled(settings: Settings, clock: Clock) -> tuple[Settings, TokenPair]:
    """A source with something in every table, more than one batch of it, and a login to go on with."""
    with opened(settings, clock) as service:
        user = service.create_user("ada", "seven otters knit at dawn")
        service.create_user("Ünïcode 名前")
        service.clients.create("app")
        pair = service.issue("ada")
        add_logins(settings, [login_row(number, user.id) for number in range(1, 4_500)])
        service.keys.rotate()
        service.revoke([service.issue("ada").token_id], reason="lost — 'quoted'")
    return replace(settings, key_file=f"{settings.database}.key"), pair


def rows(dumped: list[str]) -> list[str]:
    return sorted(line for line in dumped if line.startswith("INSERT"))


def test_to_postgresql_and_back(
    filled: tuple[Settings, TokenPair], empty: str, clock: Clock, tmp_path: Path
) -> None:
    settings, pair = filled
    there = copy(settings, empty, clock=clock)
    assert (there.counts.users, there.counts.tokens, there.counts.live) == (2, 4_501, 4_500)
    assert there.rows == {
        "meta": 1,
        "realm": 1,
        "clients": 2,
        "users": 2,
        "refresh_tokens": 4_501,
        "events": there.counts.events,
        "segments": 0,
        "plans": 0,
        "plan_members": 0,
        "signing_keys": 2,
    }
    assert rows(dump(replace(settings, database=empty))) == rows(dump(settings))
    back = tmp_path / "back.db"
    copied = copy(replace(settings, database=empty), str(back), clock=clock)
    assert copied.rows == there.rows
    assert rows(content(back)) == rows(dump(settings))
    assert stat.S_IMODE(back.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.new-*"))
    for place in (empty, str(back)):
        with opened(replace(settings, database=place), clock) as service:
            assert service.rotate(pair.refresh_token).refresh_token
            assert service.login("ada", "seven otters knit at dawn").refresh_token


@pytest.mark.parametrize("target", ["postgresql", "sqlite"])
def test_new_events_come_after_all_that_there_ever_were(
    filled: tuple[Settings, TokenPair], empty: str, clock: Clock, tmp_path: Path, target: str
) -> None:
    settings, _ = filled
    [(last,)] = run_sql(settings, "SELECT max(id) FROM events")
    run_sql(settings, "DELETE FROM events WHERE id > ?", last - 2)
    middle, place = (
        (str(tmp_path / "a.db"), empty) if target == "postgresql" else (empty, str(tmp_path / "a.db"))
    )
    copy(settings, middle, clock=clock)
    copy(replace(settings, database=middle), place, clock=clock)
    with opened(replace(settings, database=place), clock) as service:
        service.create_user("carol")
        assert service.audit.tail(1)[0].id == last + 1


def test_where_the_key_is_looked_for(settings: Settings, empty: str) -> None:
    done = copy(settings, empty)
    assert done.key_file == Path(f"{settings.database}.key")
    assert done.target_key_file == Path(f"{empty.rpartition('/')[2]}.key")


def test_a_target_that_is_not_empty(
    filled: tuple[Settings, TokenPair], server: Server, empty: str, tmp_path: Path, clock: Clock
) -> None:
    settings, _ = filled
    text = tmp_path / "text"
    text.write_text("precious")
    for there in (str(text), str(tmp_path), settings.database):
        with pytest.raises(DatabaseExists):
            copy(settings, there)
    assert text.read_text() == "precious"
    name = empty.rpartition("/")[2]
    server.execute("CREATE TABLE places (url TEXT)", dbname=name)
    with pytest.raises(DatabaseExists, match="there is a table places"):
        copy(settings, empty)
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert server.execute(tables, dbname=name) == [("places",)]
    server.execute("DROP TABLE places", dbname=name)
    copy(settings, empty, clock=clock)
    before = dump(replace(settings, database=empty))
    with pytest.raises(DatabaseExists):
        copy(settings, empty)
    with pytest.raises(DatabaseExists):
        copy(replace(settings, database=empty), empty)
    assert dump(replace(settings, database=empty)) == before


def test_no_such_target(settings: Settings, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatabaseMissing) as caught:
        copy(settings, server.url("nowhere"))
    assert caught.value.hint == "createdb makes it"
    with pytest.raises(DatabaseError, match="there is no directory"):
        copy(settings, str(tmp_path / "none" / "file.db"))


@pytest.mark.parametrize("target", ["postgresql", "sqlite"])
def test_a_row_that_was_not_written_as_it_was_read(
    filled: tuple[Settings, TokenPair],
    empty: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    settings, _ = filled
    counter = stored._set_event_counter

    def spoil(connection: Any, value: int) -> None:
        connection.exec_driver_sql("UPDATE users SET disabled_at = 5 WHERE name = 'ada'")
        counter(connection, value)

    monkeypatch.setattr(stored, "_set_event_counter", spoil)
    place = empty if target == "postgresql" else str(tmp_path / "a.db")
    with pytest.raises(DatabaseError, match="the rows of users are not the same"):
        copy(settings, place)
    assert not list(tmp_path.glob("a.db*"))
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert server.execute(tables, dbname=empty.rpartition("/")[2]) == []


def test_writes_meanwhile_are_not_in_it(
    filled: tuple[Settings, TokenPair], empty: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One state of the source, on both databases."""
    settings, _ = filled
    batches = stored._batches

    def disturbed(source: Settings) -> Any:
        def each(connection: Any, table: Any, label: str) -> Any:
            for batch in batches(connection, table, label):
                run_sql(source, "UPDATE refresh_tokens SET generation = generation + 1")
                yield batch

        return each

    before = rows(dump(settings))
    monkeypatch.setattr(stored, "_batches", disturbed(settings))
    copy(settings, empty, clock=clock)
    assert rows(dump(replace(settings, database=empty))) == before
    assert rows(dump(settings)) != before
    back = f"{settings.database}.back"
    monkeypatch.setattr(stored, "_batches", disturbed(replace(settings, database=empty)))
    copy(replace(settings, database=empty), back, clock=clock)
    assert rows(content(Path(back))) == before


def test_a_database_on_postgresql_has_its_own_tools(settings: Settings, file: Path, empty: str) -> None:
    on_server = replace(settings, database=empty)
    for attempt in (backup, restore, look):
        with pytest.raises(ConfigInvalid) as caught:
            attempt(on_server, file)
        for word in ("pg_dump", "PITR", "tokenctl db restored"):
            assert word in caught.value.hint
