"""The schema on PostgreSQL: made, upgraded, compared; and what is not a database of ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from tests.conftest import CHEAP, Postgres
from tests.service import dump, run_sql
from tokenctl import Settings, TokenService, initialise
from tokenctl.errors import DatabaseError, DatabaseExists, DatabaseReadOnly, NotADatabase, NotMigrated
from tokenctl.storage import schema
from tokenctl.storage.migrate import current_revision, differences, upgrade
from tokenctl.storage.postgres import PostgresDatabase


@pytest.fixture
def database_kind() -> str:
    return "postgresql"


@pytest.fixture
def empty(postgres: Postgres, tmp_path: Path) -> Iterator[Settings]:
    """Settings for an empty database."""
    with postgres.empty() as url:
        yield Settings(database=url, key_file=str(tmp_path / "tokens.key"))


def found(settings: Settings) -> list[str]:
    with closing(PostgresDatabase(settings.database).open()) as storage, storage.read() as connection:
        return differences(connection)


def relations(settings: Settings) -> list[str]:
    sql = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    return [name for (name,) in run_sql(settings, sql)]


class TestUpgrade:
    def test_makes_what_the_tables_in_code_say(self, empty: Settings) -> None:
        PostgresDatabase(empty.database).create(lambda _: None)
        assert found(empty) == []
        collations = run_sql(
            empty,
            "SELECT collname FROM pg_collation WHERE oid IN "
            "(SELECT attcollation FROM pg_attribute WHERE attname IN ('name_key', 'client_id')"
            " AND attrelid IN ('users'::regclass, 'refresh_tokens'::regclass))",
        )
        assert collations == [("C",)]

    def test_a_second_one_changes_nothing(self, empty: Settings) -> None:
        location = PostgresDatabase(empty.database)
        location.create(lambda _: None)
        before = dump(empty)
        assert location.upgrade() == (schema.SCHEMA_VERSION, schema.SCHEMA_VERSION)
        with pytest.raises(DatabaseExists):
            location.create(lambda _: None)
        assert dump(empty) == before

    def test_is_whole_or_not_at_all(self, empty: Settings) -> None:
        def fail(_: object) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            PostgresDatabase(empty.database).create(fail)
        assert relations(empty) == []

    def test_from_the_first_release(self, empty: Settings) -> None:
        with closing(PostgresDatabase(empty.database).open()) as storage, storage.write() as connection:
            config = Config(attributes={"connection": connection})
            folder = Path(schema.__file__).parent / "migrations"
            config.set_main_option("script_location", str(folder))
            command.upgrade(config, "0001")
            for statement in (
                "INSERT INTO clients (id, created_at, not_before) VALUES ('web', 7, 3)",
                "INSERT INTO signing_keys VALUES ('new', 'ES256', '{}', '\\x01', 500, NULL)",
                "INSERT INTO signing_keys VALUES ('old', 'RS256', '{}', '\\x02', 400, 600)",
            ):
                connection.execute(sa.text(statement))
        with pytest.raises(NotMigrated) as caught:
            TokenService(empty)
        assert caught.value.hint == "tokenctl db upgrade"
        assert PostgresDatabase(empty.database).upgrade() == ("0001", schema.SCHEMA_VERSION)
        assert found(empty) == []
        clients = "SELECT id, created_at, not_before, secret_hash FROM clients ORDER BY id"
        assert run_sql(empty, clients) == [("default", 0, 0, None), ("web", 7, 3, None)]
        keys = "SELECT kid, created_at, retired_at, active_at FROM signing_keys ORDER BY kid"
        assert run_sql(empty, keys) == [("new", 500, None, 500), ("old", 400, 600, 400)]

    def test_two_upgrades_at_once(self, empty: Settings) -> None:
        start = threading.Barrier(4)

        def run() -> tuple[str | None, str]:
            with closing(PostgresDatabase(empty.database).open()) as storage:
                start.wait(20)
                with storage.write() as connection:
                    return upgrade(connection)

        with ThreadPoolExecutor(4) as pool:
            done = [each.result(30) for each in [pool.submit(run) for _ in range(4)]]
        assert sorted(before or "" for before, _ in done) == ["", *[schema.SCHEMA_VERSION] * 3]

    def test_of_many_inits_at_once_one_makes_it(self, postgres: Postgres, tmp_path: Path) -> None:
        for number in range(3):
            with postgres.empty() as url:
                settings = Settings(database=url, key_file=str(tmp_path / f"{number}.key"))
                start = threading.Barrier(6)

                def init(settings: Settings = settings, start: threading.Barrier = start) -> tuple[bool, str]:
                    start.wait(20)
                    done = initialise(settings)
                    return done.created, done.kid

                with ThreadPoolExecutor(6) as pool:
                    done = [each.result(30) for each in [pool.submit(init) for _ in range(6)]]
                assert sorted(created for created, _ in done) == [False] * 5 + [True]
                assert len({kid for _, kid in done}) == 1
                with TokenService(settings, passwords=CHEAP) as service:
                    service.create_user("ada")
                    assert service.rotate(service.issue("ada").refresh_token)


class TestDifferences:
    @pytest.mark.parametrize(
        ("statement", "named"),
        [
            pytest.param("ALTER TABLE events DROP COLUMN actor", "actor", id="dropped column"),
            pytest.param(
                "DROP INDEX ix_refresh_tokens_user_id", "ix_refresh_tokens_user_id", id="dropped index"
            ),
            pytest.param("CREATE INDEX mine ON refresh_tokens (rotated_at)", "mine", id="foreign index"),
            pytest.param("CREATE TABLE mine (a int)", "mine", id="foreign table"),
            pytest.param("ALTER TABLE users ADD mine int", "mine", id="foreign column"),
            pytest.param("DROP TABLE signing_keys", "signing_keys", id="dropped table"),
            pytest.param("ALTER TABLE users ALTER name DROP NOT NULL", "users.name", id="nullable"),
            pytest.param("ALTER TABLE realm ALTER not_before TYPE int", "realm.not_before", id="type"),
            pytest.param(
                "ALTER TABLE refresh_tokens DROP CONSTRAINT ck_refresh_tokens_generation",
                "generation",
                id="dropped check",
            ),
            pytest.param(
                "ALTER TABLE refresh_tokens DROP CONSTRAINT fk_refresh_tokens_user_id",
                "fk_refresh_tokens_user_id",
                id="dropped foreign key",
            ),
            pytest.param(
                "ALTER TABLE users DROP CONSTRAINT uq_users_name_key",
                "uq_users_name_key",
                id="dropped unique",
            ),
            pytest.param(
                "ALTER TABLE refresh_tokens SET (fillfactor = 100)", "refresh_tokens", id="changed fillfactor"
            ),
            pytest.param(
                "ALTER TABLE refresh_tokens RESET (fillfactor)", "refresh_tokens", id="no fillfactor"
            ),
        ],
    )
    def test_are_named(self, settings: Settings, statement: str, named: str) -> None:
        assert found(settings) == []
        run_sql(settings, statement)
        sentences = found(settings)
        assert len(sentences) == 1, sentences
        assert named in sentences[0]

    def test_what_an_operator_tunes_is_none(self, settings: Settings) -> None:
        run_sql(settings, "ALTER TABLE refresh_tokens SET (autovacuum_vacuum_scale_factor = 0.01)")
        assert found(settings) == []


class TestWhatIsNoDatabaseOfOurs:
    @pytest.mark.parametrize(
        ("statements", "opened", "initialised"),
        [
            pytest.param([], NotMigrated, None, id="empty"),
            pytest.param(["CREATE TABLE mine (a int)"], NotMigrated, None, id="beside our tables is room"),
            pytest.param(
                ["CREATE TABLE users (name text)"], NotMigrated, NotADatabase, id="tables of our names"
            ),
            pytest.param(
                ["CREATE TABLE alembic_version (version_num text)"], NotMigrated, None, id="no version"
            ),
            pytest.param(
                ["CREATE TABLE alembic_version AS SELECT 'ae1027a6acf' AS version_num"],
                NotADatabase,
                NotADatabase,
                id="another program's version",
            ),
            pytest.param(
                ["CREATE TABLE alembic_version AS SELECT '9999' AS version_num"],
                NotMigrated,
                NotMigrated,
                id="a newer release",
            ),
        ],
    )
    def test_is_refused_and_left_as_it_is(
        self,
        empty: Settings,
        statements: list[str],
        opened: type[DatabaseError],
        initialised: type[DatabaseError] | None,
    ) -> None:
        for statement in statements:
            run_sql(empty, statement)
        before = relations(empty), dump(empty)
        with pytest.raises(opened) as caught:
            TokenService(empty)
        assert type(caught.value) is opened
        assert caught.value.hint
        assert "127.0.0.1" in caught.value.message
        with pytest.raises(DatabaseError):
            PostgresDatabase(empty.database).upgrade()
        assert (relations(empty), dump(empty)) == before
        if initialised is None:
            assert initialise(empty).created
        else:
            with pytest.raises(initialised):
                initialise(empty)
            assert (relations(empty), dump(empty)) == before

    def test_a_role_that_may_make_no_tables(self, empty: Settings) -> None:
        run_sql(empty, "DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
        run_sql(empty, "REVOKE CREATE ON SCHEMA public FROM public")
        weak = Settings(database=empty.database.replace("tokenctl@", "reader@"), key_file=empty.key_file)
        with pytest.raises(DatabaseReadOnly) as caught:
            initialise(weak)
        assert "permission denied" in caught.value.message
        assert relations(empty) == []


def test_current_revision_of_an_empty_database(empty: Settings) -> None:
    with closing(PostgresDatabase(empty.database).open()) as storage, storage.read() as connection:
        assert current_revision(connection) is None
