"""The sample database: the same every time, in step with the schema, and of use to somebody who learns."""

from __future__ import annotations

import base64
import ipaddress
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.warm import Warm
from tests.sample import SAMPLE, sample_strings
from tokenctl import Selector, Settings, TokenService
from tokenctl.core.keys import format_master_key, load_signing_key
from tokenctl.errors import DatabaseExists, KeyMissing, KeyWrong, TokenRefused
from tokenctl.service.database import build_database, check
from tokenctl.service.runtime import SAMPLE_MASTER_KEY
from tokenctl.service.sample import _SIGNING_KEY, NOW, PASSWORD, build_sample

MINUTE = 60_000_000
THIEVES = ipaddress.ip_network("203.0.113.0/24")


@pytest.fixture
def strings() -> dict[str, str]:
    """The current string of each login."""
    return sample_strings()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(SAMPLE, tmp_path / "sample.db"))


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


def rows(query: str, database: Path = SAMPLE) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def dump(database: Path) -> list[str]:
    """Schema and rows, all of them."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return [*connection.iterdump(), *(str(row) for row in connection.execute("PRAGMA user_version"))]


# --- how it is made ----------------------------------------------------------------------------


def test_two_builds_are_the_same_and_the_committed_one_is_in_step(
    strings: dict[str, str], tmp_path: Path
) -> None:
    """When it is out of step: rm sample.db && tokenctl db sample sample.db"""
    for name in ("first.db", "second.db"):
        assert build_sample(tmp_path / name) == strings
    assert (tmp_path / "first.db").read_bytes() == (tmp_path / "second.db").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"first.db", "second.db"}, "nothing lies beside it"
    fresh, committed = dump(tmp_path / "first.db"), dump(SAMPLE)
    assert len(fresh) > 190
    assert committed == fresh
    assert check(Settings(database=str(SAMPLE))) == []


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.db").write_text("mine")
    with pytest.raises(DatabaseExists):
        build_sample(tmp_path / "mine.db")
    assert (tmp_path / "mine.db").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]


# --- what is in it -----------------------------------------------------------------------------


def test_users_and_clients() -> None:
    users = rows("SELECT name, password_hash, disabled_until FROM users")
    assert len(users) == 12
    schemes = {
        (hash_ or "none").split("$")[1 if (hash_ or "").startswith("$") else 0] for _, hash_, _ in users
    }
    assert schemes == {"argon2id", "2b", "pbkdf2_sha256", "none"}
    assert [name for name, _, until in users if until] == ["judy"]
    assert {client for (client,) in rows("SELECT id FROM clients")} == {"default", "web", "mobile", "batch"}


def test_sixty_tokens_in_every_state() -> None:
    with TokenService(Settings(database=str(SAMPLE))) as service:
        tokens = list(service.list(Selector(everything=True)))
        states = Counter(str(token.state(service.now())) for token in tokens)
    assert states == {"live": 24, "blocked": 2, "idle": 8, "expired": 13, "revoked": 13}
    reasons = Counter(token.revoked_reason for token in tokens if token.is_revoked)
    assert reasons["reuse"] == 3
    assert len(reasons) >= 6
    assert len({token.user_id for token in tokens}) == 12
    assert len({token.client_id for token in tokens}) == 3


def test_the_night() -> None:
    """Five users' logins were used from one range after one o'clock; three owners came back."""
    with TokenService(Settings(database=str(SAMPLE))) as service:
        tokens = list(service.list(Selector(everything=True)))
        events = service.audit.tail(1000)
    taken = [t for t in tokens if t.last.ip_text and ipaddress.ip_address(t.last.ip_text) in THIEVES]
    assert {token.user_name for token in taken} == {"ada", "bob", "carol", "erin", "grace"}
    assert len(taken) == 10
    assert all(NOW - 120 * MINUTE <= token.rotated_at < NOW for token in taken)
    assert not any(ipaddress.ip_address(token.issued.ip_text or "::") in THIEVES for token in tokens)
    caught = {event.token_id for event in events if event.type == "token.reuse"}
    assert caught == {token.id for token in taken if token.revoked_reason == "reuse"}
    assert len(caught) == 3
    assert sum(token.state(NOW).value == "live" for token in taken) == 7


def test_its_passwords_and_its_strings_work(strings: dict[str, str], copy: Path) -> None:
    with TokenService(Settings(database=str(copy))) as service:
        assert abs(service.now() - NOW) < MINUTE
        states = {token.id: str(token.state(NOW)) for token in service.list(Selector(everything=True))}
        assert set(strings) == set(states)
        for name in ("ada", "frank", "heidi"):
            assert service.users.authenticate(name, PASSWORD).name == name
        seen = Counter[str]()
        for token_id, string in strings.items():
            found = service.inspect(string)
            assert found.judgement
            assert found.token.id == token_id
            assert (str(found.judgement.verdict) == "rotate") == (states[token_id] == "live")
            seen[str(found.judgement.reason)] += 1
        assert seen == {"None": 24, "user_disabled": 2, "idle": 8, "expired": 13, "revoked": 13}
        token_id = next(each for each, state in states.items() if state == "live")
        client = service.inspect(token_id).token.client_id
        pair = service.rotate(strings[token_id], client_id=client)
        assert pair.token_id == token_id
        assert service.rotate(strings[token_id], client_id=client).refresh_token == pair.refresh_token
        dead = next(each for each, state in states.items() if state == "revoked")
        with pytest.raises(TokenRefused):
            service.rotate(strings[dead], client_id=service.inspect(dead).token.client_id)


# --- how it behaves ----------------------------------------------------------------------------


def test_it_does_not_age_says_what_it_is_and_leaves_no_files(
    warm: Warm, copy: Path, strings: dict[str, str]
) -> None:
    before = copy.read_bytes()
    string = next(iter(strings.values()))
    note = (
        "this is the sample database: its clock stands at 2026-03-14 03:10:00+00:00, and its key is public\n"
    )
    for argv in (["list", "--all", "--json"], ["inspect", "-"], ["user", "list"], ["audit", "tail"]):
        done = warm(*argv, "--database", "sample.db", input=string, env={"TZ": "UTC"}, cwd=copy.parent)
        assert (done.returncode, done.stderr) == (0, note), argv
        assert note not in done.stdout
        if argv[0] == "list":
            states = Counter(record["state"] for record in json.loads(done.stdout))
            assert states == {"live": 24, "blocked": 2, "idle": 8, "expired": 13, "revoked": 13}
    quiet = warm("list", "--all", "-q", "--database", "sample.db", cwd=copy.parent)
    assert quiet.stderr == ""
    doctor = warm("doctor", "--json", "--database", "sample.db", cwd=copy.parent)
    checks = {each["check"]: each for each in json.loads(doctor.stdout)}
    assert "this is the sample database: its key is public" in checks["master key"]["detail"]
    assert [path.name for path in copy.parent.iterdir()] == ["sample.db"]
    assert copy.read_bytes() == before


def test_init_does_not_speak_of_a_key_file_that_is_not_there(warm: Warm, copy: Path) -> None:
    record = json.loads(warm("init", "--json", "--database", "sample.db", cwd=copy.parent).stdout)
    assert record["created"] is False
    assert record["key_file"] is None


def test_a_change_to_a_copy_stays_on_the_copys_clock(copy: Path) -> None:
    with TokenService(Settings(database=str(copy))) as service:
        token = service.issue("ada").token_id
        assert NOW <= service.inspect(token).token.created_at < NOW + MINUTE
    # The next one begins at the same instant again, which must not look like a clock that is wrong.
    with TokenService(Settings(database=str(copy))) as service:
        assert str(service.inspect(token).state) == "live"
        assert service.purge().purged == 5


def test_its_key_opens_only_what_is_marked(copy: Path, strings: dict[str, str]) -> None:
    string = next(iter(strings.values()))
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("DELETE FROM meta WHERE key = 'sample_clock'")
    with TokenService(Settings(database=str(copy))) as service:
        assert not service.is_sample
        with pytest.raises(KeyMissing):
            service.inspect(string)
    # Given on purpose, it is a key like any other.
    copy.with_name("sample.db.key").write_text(format_master_key(SAMPLE_MASTER_KEY))
    with TokenService(Settings(database=str(copy))) as service:
        assert service.inspect(string).judgement


def test_a_mark_gives_the_public_key_to_no_other_database(tmp_path: Path) -> None:
    key = load_signing_key(base64.b64decode(_SIGNING_KEY), "ES256")
    build_database(
        str(tmp_path / "real.db"), b"another master key, of 32 bytes!", key, actor="test", clock=lambda: NOW
    )
    with closing(sqlite3.connect(tmp_path / "real.db")) as connection, connection:
        connection.execute("INSERT INTO meta (key, value) VALUES ('sample_clock', ?)", (str(NOW),))
    with TokenService(Settings(database=str(tmp_path / "real.db"))) as service:
        service.users.create("ada")
        with pytest.raises(KeyWrong):
            service.issue("ada")
