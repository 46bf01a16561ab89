"""What docs/migration.md tells to do with another system's database is done: its statements, its function."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Postgres
from tests.core.test_passwords import PASSWORD, argon2_hash, bcrypt_hash, django_hash
from tests.service import accept_events, refuse_events
from tokenctl import Context, Settings, TokenPair, TokenService
from tokenctl.errors import TokenctlError, WrongPassword
from tokenctl.service import user_lines
from tokenctl.service.importing import Import

PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text(encoding="utf-8")
DJANGO, SUPABASE, DEVISE = re.findall(r"(?<=^```sql\n).*?(?=^```$)", PAGE, re.DOTALL | re.MULTILINE)
[CODE] = re.findall(r"(?<=^```python\n).*?(?=^```$)", PAGE, re.DOTALL | re.MULTILINE)

Exchange = Callable[[psycopg.Connection, TokenService, str, Context], TokenPair | None]


@pytest.fixture
def old_url(postgres: Postgres) -> Iterator[str]:
    with postgres.empty() as url:
        yield url


@pytest.fixture
def old(old_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(old_url, autocommit=True) as connection:
        yield connection


# --- users -------------------------------------------------------------------------------------


def handed_over(old: psycopg.Connection, service: TokenService, statement: str, **fields: str) -> Import:
    with old.cursor().copy(statement.strip().rstrip(";").encode()) as copy:
        lines = b"".join(bytes(each) for each in copy).splitlines()
    refused: list[object] = []
    done = service.users.import_many(
        user_lines.read(lines, **fields), report=lambda *refusal: refused.append(refusal)
    )
    assert refused == []
    return done


def test_django(old: psycopg.Connection, service: TokenService) -> None:
    old.execute("CREATE TABLE auth_user (username varchar(150), password varchar(128), is_active boolean)")
    for name, stored, is_active in (
        ("ada", django_hash(), True),
        ("bob, jr", f"argon2{argon2_hash()}", True),
        ("cleo", "!Y7h0pN1x", True),
        ("dan", django_hash(), False),
    ):
        old.execute("INSERT INTO auth_user VALUES (%s, %s, %s)", [name, stored, is_active])
    assert handed_over(old, service, DJANGO) == Import(imported=4, without_password=1)
    assert service.login("ada", PASSWORD)
    assert service.login("bob, jr", PASSWORD)
    assert service.issue("cleo")
    with pytest.raises(WrongPassword):
        service.login("dan", PASSWORD)


def test_supabase(old: psycopg.Connection, service: TokenService) -> None:
    old.execute("CREATE SCHEMA auth")
    old.execute(
        "CREATE TABLE auth.users (email text, encrypted_password text, banned_until timestamptz,"
        " deleted_at timestamptz, is_sso_user boolean NOT NULL DEFAULT false)"
    )
    old.execute(
        "INSERT INTO auth.users VALUES ('ada@example.com', %s, NULL, NULL),"
        " ('bob@example.com', '', NULL, NULL), ('dan@example.com', '', NULL, now()),"
        " ('cleo@example.com', %s, now() + interval '1 day', NULL),"
        " (NULL, '', NULL, NULL), ('', '', NULL, NULL)",
        [bcrypt_hash(prefix=b"2a"), bcrypt_hash()],
    )
    fields = {"name_field": "email", "hash_field": "encrypted_password"}
    assert handed_over(old, service, SUPABASE, **fields) == Import(imported=3, without_password=1)
    assert service.login("ada@example.com", PASSWORD)
    with pytest.raises(WrongPassword):
        service.login("cleo@example.com", PASSWORD)


def test_devise(old: psycopg.Connection, service: TokenService) -> None:
    old.execute("CREATE TABLE users (email text, encrypted_password text, locked_at timestamp)")
    old.execute(
        "INSERT INTO users VALUES ('ada@example.com', %s, NULL), ('bob@example.com', %s, now())",
        [bcrypt_hash(prefix=b"2a")] * 2,
    )
    fields = {"name_field": "email", "hash_field": "encrypted_password"}
    assert handed_over(old, service, DEVISE, **fields) == Import(imported=2)
    assert service.login("ada@example.com", PASSWORD)
    assert service.users.get("bob@example.com").disabled_at


# --- logins ------------------------------------------------------------------------------------


@pytest.fixture
def exchange() -> Exchange:
    names: dict[str, Any] = {}
    exec(compile(CODE, "docs/migration.md", "exec"), names)
    found: Exchange = names["exchange"]
    return found


@pytest.fixture
def tokens(old: psycopg.Connection, service: TokenService) -> None:
    """Of ada one that is good and one that has expired, one of somebody disabled, one of nobody here."""
    old.execute("CREATE TABLE old_tokens (token text PRIMARY KEY, user_name text, expires_at timestamptz)")
    old.execute(
        "INSERT INTO old_tokens VALUES ('good', 'ada', now() + interval '3 days'),"
        " ('expired', 'ada', now() - interval '1 second'),"
        " ('disabled', 'bob', now() + interval '3 days'), ('stranger', 'cleo', now() + interval '3 days')"
    )
    for name in ("ada", "bob"):
        service.create_user(name)
    service.users.disable("bob")


def left(old: psycopg.Connection) -> set[str]:
    return {token for (token,) in old.execute("SELECT token FROM old_tokens").fetchall()}


WHENCE = Context.of(ip="192.0.2.7", user_agent="Old/1.0")


@pytest.mark.usefixtures("tokens")
class TestExchange:
    def test_once(self, old: psycopg.Connection, service: TokenService, exchange: Exchange) -> None:
        pair = exchange(old, service, "good", WHENCE)
        assert pair is not None
        token = service.inspect(pair.token_id).token
        assert (token.user_name, token.issued) == ("ada", WHENCE)
        lifetime = timedelta(microseconds=token.expires_at - token.created_at)
        assert timedelta(days=2, hours=23) < lifetime <= timedelta(days=3)
        assert service.rotate(pair.refresh_token)
        assert service.audit.tail()[-1].actor == "exchange"
        assert exchange(old, service, "good", WHENCE) is None
        assert left(old) == {"expired", "disabled", "stranger"}

    @pytest.mark.parametrize("token", ["expired", "disabled", "stranger", "never there", ""])
    def test_not_at_all(
        self, old: psycopg.Connection, service: TokenService, exchange: Exchange, token: str
    ) -> None:
        assert exchange(old, service, token, WHENCE) is None
        assert left(old) == {"good", "expired", "disabled", "stranger"}
        assert [event.type for event in service.audit.tail() if event.type.startswith("token")] == []

    def test_many_at_once(
        self, old: psycopg.Connection, old_url: str, service: TokenService, exchange: Exchange
    ) -> None:
        start = threading.Barrier(8)

        def present(_: int) -> TokenPair | None:
            with psycopg.connect(old_url, autocommit=True) as own:
                start.wait()
                return exchange(own, service, "good", WHENCE)

        with ThreadPoolExecutor(8) as pool:
            pairs = list(pool.map(present, range(8)))
        assert sum(pair is not None for pair in pairs) == 1
        issued = [event for event in service.audit.tail() if event.type == "token.issue"]
        assert len(issued) == 1

    def test_a_failure_leaves_the_old_token(
        self, old: psycopg.Connection, service: TokenService, settings: Settings, exchange: Exchange
    ) -> None:
        refuse_events(settings, "token.issue")
        with pytest.raises(TokenctlError):
            exchange(old, service, "good", WHENCE)
        assert "good" in left(old)
        accept_events(settings)
        assert exchange(old, service, "good", WHENCE)
