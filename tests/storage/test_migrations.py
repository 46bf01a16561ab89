"""The migrations against the tables in code, the constraints that they make, and what `differences` sees."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from tokenctl.errors import NotMigrated
from tokenctl.storage import schema
from tokenctl.storage.migrate import current_revision, differences, upgrade
from tokenctl.storage.sqlite import SQLiteFile, SQLiteStorage

USER = {
    "id": b"u" * 16,
    "name": "Anna",
    "name_key": "anna",
    "password_hash": None,
    "created_at": 1,
    "disabled_at": None,
    "disabled_until": None,
    "not_before": 0,
}
TOKEN = {
    "id": b"t" * 16,
    "user_id": USER["id"],
    "client_id": "default",
    "scope": "",
    "generation": 0,
    "secret_hash": b"h" * 32,
    "created_at": 10,
    "rotated_at": 10,
    "access_until": 20,
    "expires_at": 30,
    "context_changed": 0,
}


def engine_on(path: Path | str) -> Engine:
    """An engine whose transactions hold DDL, too."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return engine_on(tmp_path / "tokens.db")


@pytest.fixture
def migrated(engine: Engine) -> Engine:
    with engine.begin() as connection:
        upgrade(connection)
    return engine


@pytest.fixture
def connection(migrated: Engine) -> Iterator[Connection]:
    """A migrated database with one user and one login, in a transaction that is not kept."""
    with migrated.connect() as connection:
        connection.execute(schema.users.insert(), USER)
        connection.execute(schema.refresh_tokens.insert(), TOKEN)
        yield connection


def ddl(connection: Connection) -> dict[str, str]:
    rows = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    return {name: " ".join(sql.split()) for name, sql in rows if name != "alembic_version"}


def damage(engine: Engine, *statements: str) -> None:
    """Run statements as somebody who knows no rules."""
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        for statement in ("PRAGMA foreign_keys = OFF", "PRAGMA writable_schema = ON", *statements):
            raw.execute(statement)


def rewrite(table: str, old: str, new: str) -> str:
    return f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE name = '{table}'"


def found(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return differences(connection)


class TestUpgrade:
    def test_makes_what_the_tables_in_code_say(self, migrated: Engine, tmp_path: Path) -> None:
        other = engine_on(tmp_path / "other.db")
        with other.begin() as connection:
            schema.metadata.create_all(connection)
            wanted = ddl(connection)
        with migrated.connect() as connection:
            assert ddl(connection) == wanted
        assert "STRICT" in wanted["users"]
        assert "WITHOUT ROWID" in wanted["refresh_tokens"]

    def test_leaves_alembic_nothing_to_do(self, migrated: Engine) -> None:
        with migrated.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []

    def test_says_from_where_to_where(self, engine: Engine) -> None:
        with engine.begin() as connection:
            assert upgrade(connection) == (None, schema.SCHEMA_VERSION)
            assert current_revision(connection) == schema.SCHEMA_VERSION

    def test_ends_at_the_version_that_this_release_works_on(self) -> None:
        folder = Path(schema.__file__).parent / "migrations"
        assert ScriptDirectory(str(folder)).get_current_head() == schema.SCHEMA_VERSION

    def test_twice_is_once(self, migrated: Engine) -> None:
        with migrated.begin() as connection:
            before = ddl(connection)
            assert upgrade(connection) == (schema.SCHEMA_VERSION, schema.SCHEMA_VERSION)
            assert ddl(connection) == before

    def test_brings_the_rows_that_a_rotation_reads(self, migrated: Engine) -> None:
        with migrated.connect() as connection:
            assert connection.execute(sa.select(schema.realm)).all() == [(1, 0, None)]
            assert connection.execute(sa.select(schema.clients)).all() == [("default", 0, 0, None)]

    def test_is_one_transaction(self, engine: Engine) -> None:
        with engine.begin() as connection:
            upgrade(connection)
            connection.rollback()
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT name FROM sqlite_master")).all() == []

    def test_refuses_the_schema_of_a_newer_release(self, migrated: Engine) -> None:
        with migrated.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        with migrated.begin() as connection:
            with pytest.raises(NotMigrated, match="9999") as caught:
                upgrade(connection)
            assert current_revision(connection) == "9999"
        assert caught.value.hint

    def test_works_where_the_path_has_a_percent_sign(self, tmp_path: Path) -> None:
        """Alembic's configuration would take it for a variable."""
        package = tmp_path / "100%" / "tokenctl"
        package.parent.mkdir()
        package.symlink_to(Path(schema.__file__).parents[1])
        code = (
            "import sqlalchemy as sa, tokenctl; from tokenctl.storage.migrate import upgrade\n"
            "with sa.create_engine('sqlite://').begin() as connection:\n"
            "    print(tokenctl.__file__, upgrade(connection))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=package.parent, check=False, capture_output=True, text=True
        )
        assert "100%" in done.stdout, done.stderr


@pytest.fixture
def first(engine: Engine) -> Engine:
    """A database as the first release left it, with rows of every table that has changed since."""
    folder = Path(schema.__file__).parent / "migrations"
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(folder))
        command.upgrade(config, "0001")
        for statement in (
            "INSERT INTO clients (id, created_at, not_before) VALUES ('web', 7, 3)",
            "INSERT INTO users (id, name, name_key, created_at, not_before)"
            " VALUES (CAST('uuuuuuuuuuuuuuuu' AS BLOB), 'Anna', 'anna', 1, 0)",
            "INSERT INTO refresh_tokens (id, user_id, client_id, scope, generation, secret_hash, created_at,"
            " rotated_at, access_until, expires_at, context_changed) SELECT CAST('tttttttttttttttt' AS BLOB),"
            " id, 'web', '', 0, zeroblob(32), 10, 10, 20, 30, 0 FROM users",
            "INSERT INTO signing_keys VALUES ('new', 'ES256', '{}', x'01', 500, NULL)",
            "INSERT INTO signing_keys VALUES ('old', 'RS256', '{}', x'02', 400, 600)",
        ):
            connection.execute(sa.text(statement))
    return engine


class TestFromTheFirstRelease:
    def test_the_rows_stay_and_get_what_they_lack(self, first: Engine, tmp_path: Path) -> None:
        assert SQLiteFile(str(tmp_path / "tokens.db")).upgrade() == ("0001", schema.SCHEMA_VERSION)
        with first.connect() as connection:
            clients = connection.execute(sa.select(schema.clients).order_by(schema.clients.c.id)).all()
            assert clients == [("default", 0, 0, None), ("web", 7, 3, None)]
            keys = connection.execute(sa.select(schema.signing_keys).order_by(schema.signing_keys.c.kid))
            assert keys.all() == [
                ("new", "ES256", "{}", b"\x01", 500, None, 500),
                ("old", "RS256", "{}", b"\x02", 400, 600, 400),
            ]
            assert connection.scalar(sa.select(schema.refresh_tokens.c.client_id)) == "web"

    def test_the_schema_is_that_of_a_new_database(self, first: Engine, tmp_path: Path) -> None:
        SQLiteFile(str(tmp_path / "tokens.db")).upgrade()
        assert found(first) == []
        other = engine_on(tmp_path / "other.db")
        with other.begin() as connection, first.connect() as upgraded:
            schema.metadata.create_all(connection)
            assert ddl(upgraded) == ddl(connection)

    def test_the_first_schema_is_not_this_release_s(self, first: Engine, tmp_path: Path) -> None:
        with (
            closing(SQLiteStorage(tmp_path / "tokens.db")) as storage,
            pytest.raises(NotMigrated) as caught,
        ):
            storage.check_migrated()
        assert caught.value.hint == "tokenctl db upgrade"


class TestCurrentRevision:
    def test_of_an_empty_database(self, engine: Engine) -> None:
        with engine.connect() as connection:
            assert current_revision(connection) is None

    def test_needs_no_alembic(self) -> None:
        code = "import sys, tokenctl.storage.migrate; sys.exit('alembic' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestDifferences:
    def test_of_a_fresh_database(self, migrated: Engine) -> None:
        assert found(migrated) == []

    def test_of_a_database_in_use(self, migrated: Engine) -> None:
        with migrated.begin() as connection:
            connection.execute(schema.users.insert(), USER)
            connection.execute(schema.refresh_tokens.insert(), TOKEN)
            connection.execute(sa.text("ANALYZE"))
        assert found(migrated) == []

    @pytest.mark.parametrize(
        ("statements", "expected"),
        [
            pytest.param(
                ["DROP INDEX ix_refresh_tokens_user_id"],
                ["the index ix_refresh_tokens_user_id is missing"],
                id="dropped index",
            ),
            pytest.param(
                ["DROP TABLE signing_keys"], ["the table signing_keys is missing"], id="missing table"
            ),
            pytest.param(
                ["CREATE TABLE mine (a)"], ["the table mine is not one of ours"], id="foreign table"
            ),
            pytest.param(
                ["CREATE TRIGGER mine AFTER INSERT ON users BEGIN DELETE FROM users; END"],
                ["the trigger mine is not one of ours"],
                id="foreign trigger",
            ),
            pytest.param(
                [rewrite("refresh_tokens", "4294967295", "99")],
                [
                    "the table refresh_tokens lacks: CONSTRAINT ck_refresh_tokens_generation "
                    "CHECK (generation BETWEEN 0 AND 4294967295)",
                    "the table refresh_tokens should not have: CONSTRAINT ck_refresh_tokens_generation "
                    "CHECK (generation BETWEEN 0 AND 99)",
                ],
                id="altered CHECK",
            ),
            pytest.param(
                [rewrite("meta", "STRICT", "")],
                ["the table meta lacks: STRICT"],
                id="not STRICT",
            ),
            pytest.param(
                [rewrite("refresh_tokens", " ON DELETE CASCADE", "")],
                [
                    "the table refresh_tokens lacks: CONSTRAINT fk_refresh_tokens_user_id "
                    "FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE",
                    "the table refresh_tokens should not have: CONSTRAINT fk_refresh_tokens_user_id "
                    "FOREIGN KEY(user_id) REFERENCES users (id)",
                ],
                id="altered foreign key",
            ),
            pytest.param(
                ["DELETE FROM users"],
                ["1 row of refresh_tokens without the row of users that it belongs to"],
                id="orphan row",
            ),
            pytest.param(
                ["PRAGMA ignore_check_constraints = ON", "UPDATE refresh_tokens SET generation = -1"],
                ["the file is damaged: CHECK constraint failed in refresh_tokens"],
                id="row against a CHECK",
            ),
        ],
    )
    def test_are_named(self, migrated: Engine, statements: list[str], expected: list[str]) -> None:
        with migrated.begin() as connection:
            connection.execute(schema.users.insert(), USER)
            connection.execute(schema.refresh_tokens.insert(), TOKEN)
        damage(migrated, *statements)
        assert found(migrated) == expected


class TestConstraints:
    @pytest.mark.parametrize(
        ("table", "change", "expected"),
        [
            pytest.param("refresh_tokens", {"id": b"short"}, "ck_refresh_tokens_id", id="token id"),
            pytest.param(
                "refresh_tokens", {"generation": -1}, "ck_refresh_tokens_generation", id="generation -1"
            ),
            pytest.param(
                "refresh_tokens", {"generation": 2**32}, "ck_refresh_tokens_generation", id="generation 2^32"
            ),
            pytest.param(
                "refresh_tokens", {"secret_hash": b"h" * 31}, "ck_refresh_tokens_secret_hash", id="hash"
            ),
            pytest.param(
                "refresh_tokens", {"expires_at": 10}, "ck_refresh_tokens_expires_at", id="no lifetime"
            ),
            pytest.param(
                "refresh_tokens", {"idle_ttl": 0}, "ck_refresh_tokens_idle_ttl", id="no idle lifetime"
            ),
            pytest.param(
                "refresh_tokens", {"revoked_at": 11}, "ck_refresh_tokens_revoked", id="revoked, no reason"
            ),
            pytest.param(
                "refresh_tokens",
                {"revoked_reason": "x"},
                "ck_refresh_tokens_revoked",
                id="reason, not revoked",
            ),
            pytest.param(
                "refresh_tokens",
                {"revoked_by": "x"},
                "ck_refresh_tokens_revoked",
                id="by somebody, not revoked",
            ),
            pytest.param(
                "refresh_tokens",
                {"context_changed": 2},
                "ck_refresh_tokens_context_changed",
                id="context changed",
            ),
            pytest.param("refresh_tokens", {"user_id": b"x" * 16}, "FOREIGN KEY", id="no such user"),
            pytest.param("refresh_tokens", {"client_id": "x"}, "FOREIGN KEY", id="no such client"),
            pytest.param(
                "refresh_tokens", {"generation": "first"}, "cannot store TEXT", id="text for a number"
            ),
            pytest.param("refresh_tokens", {"scope": b"\xff"}, "cannot store BLOB", id="bytes for text"),
            pytest.param(
                "refresh_tokens", {"created_at": 9.5}, "cannot store REAL", id="a fraction of a microsecond"
            ),
            pytest.param("refresh_tokens", {"rotated_at": None}, "NOT NULL", id="never rotated"),
            pytest.param("users", {"id": b"u" * 17}, "ck_users_id", id="user id"),
            pytest.param("users", {"name": ""}, "ck_users_name", id="empty name"),
            pytest.param("users", {"name": "x" * 255}, "ck_users_name", id="long name"),
            pytest.param("users", {"disabled_until": 5}, "ck_users_disabled", id="until, not disabled"),
            pytest.param("users", {"not_before": -1}, "ck_users_not_before", id="cut-off of a user"),
            pytest.param("realm", {"not_before": -1}, "ck_realm_not_before", id="cut-off of the realm"),
            pytest.param("realm", {"id": 2}, "ck_realm_single_row", id="second realm"),
            pytest.param("clients", {"id": "x" * 129}, "ck_clients_id", id="client id"),
            pytest.param("clients", {"not_before": -1}, "ck_clients_not_before", id="cut-off of a client"),
            pytest.param("clients", {"secret_hash": b"h" * 31}, "ck_clients_secret_hash", id="short secret"),
            pytest.param("clients", {"secret_hash": b""}, "ck_clients_secret_hash", id="empty secret"),
            pytest.param("clients", {"secret_hash": "h" * 32}, "cannot store TEXT", id="secret as text"),
        ],
    )
    def test_refuse(self, connection: Connection, table: str, change: dict[str, Any], expected: str) -> None:
        statement = sa.text(f"UPDATE {table} SET {', '.join(f'{column} = :{column}' for column in change)}")
        with pytest.raises(sa.exc.IntegrityError, match=expected):
            connection.execute(statement, change)

    def test_refuse_an_algorithm_that_is_not_ours(self, connection: Connection) -> None:
        row = {
            "kid": "k",
            "algorithm": "none",
            "public_jwk": "{}",
            "wrapped_private_key": b"",
            "created_at": 1,
        }
        with pytest.raises(sa.exc.IntegrityError, match="ck_signing_keys_algorithm"):
            connection.execute(schema.signing_keys.insert(), row)
        with pytest.raises(sa.exc.IntegrityError, match="NOT NULL"):
            connection.execute(schema.signing_keys.insert(), {**row, "algorithm": "ES256", "active_at": None})

    def test_refuse_a_second_user_of_a_name(self, connection: Connection) -> None:
        with pytest.raises(sa.exc.IntegrityError, match=r"users\.name_key"):
            connection.execute(schema.users.insert(), {**USER, "id": b"v" * 16})

    @pytest.mark.parametrize("value", [2**63, str(2**63), float(2**63)])
    def test_refuse_what_has_more_than_64_bits(self, connection: Connection, value: object) -> None:
        # The first never reaches SQLite: the driver cannot bind it.
        with pytest.raises((sa.exc.IntegrityError, OverflowError)):
            connection.execute(sa.text("UPDATE users SET created_at = :value"), {"value": value})

    def test_accept_the_limits(self, connection: Connection) -> None:
        connection.execute(schema.refresh_tokens.update().values(generation=2**32 - 1, expires_at=2**63 - 1))
        connection.execute(schema.users.update().values(name="x" * 254, disabled_at=1, disabled_until=2))

    def test_a_user_takes_its_logins_along(self, connection: Connection) -> None:
        connection.execute(schema.users.delete())
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.refresh_tokens)) == 0

    def test_a_client_with_logins_stays(self, connection: Connection) -> None:
        with pytest.raises(sa.exc.IntegrityError, match="FOREIGN KEY"):
            connection.execute(schema.clients.delete())
