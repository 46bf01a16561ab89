"""Many users of another system: counted, in chunks, again after a kill, and beside a second import."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection

import psycopg
import pytest
from argon2.low_level import Type, hash_secret

from tests.conftest import CHEAP, Clock, eventually
from tests.core.test_passwords import (
    PASSWORD,
    argon2_hash,
    bcrypt_hash,
    django_hash,
    pbkdf2_hash,
    scrypt_hash,
)
from tests.service import dump, is_postgres, run_sql, statements, write_transactions
from tokenctl import Settings, TokenService
from tokenctl.errors import InvalidInput, UserDisabled, WrongPassword
from tokenctl.service import user_lines
from tokenctl.service.importing import CHUNK, Import, NewUser, Unusable

HASH = "$2b$04$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"
ENDLESS = hash_secret(PASSWORD.encode(), b"s" * 3_000, 1, 64, 1, 32, Type.ID).decode()
CLASH = "there is a user already whose name differs from this one in its case alone"

spawn = multiprocessing.get_context("spawn")


def people(number: int, *, seed: int | None = None) -> list[NewUser]:
    """user0, user1, …; in an order of chance with a seed."""
    found = [NewUser(line, f"user{line}", HASH) for line in range(number)]
    if seed is not None:
        random.Random(seed).shuffle(found)
    return found


def demand_whole(settings: Settings, number: int) -> None:
    """Each user is there once, and has its one event."""
    [(users,)] = run_sql(settings, "SELECT count(*) FROM users")
    [(events, of_users)] = run_sql(
        settings, "SELECT count(*), count(DISTINCT user_id) FROM events WHERE type = 'user.create'"
    )
    [(strangers,)] = run_sql(
        settings,
        "SELECT count(*) FROM events WHERE type = 'user.create' AND user_id NOT IN (SELECT id FROM users)",
    )
    assert (users, events, of_users, strangers) == (number, number, number, 0)


class TestImport:
    def test_leaves_what_create_leaves(self, service: TokenService, clock: Clock) -> None:
        done = service.users.import_many(
            [NewUser(1, "Ada", HASH), NewUser(2, "bob"), NewUser(3, "Cleo", HASH, True)], actor="nina"
        )
        assert done == Import(imported=3, without_password=1)
        ada, bob, cleo = service.users.list()
        assert (ada.name, ada.password_hash, ada.created_at, ada.disabled_at) == ("Ada", HASH, clock(), None)
        assert (bob.name, bob.password_hash, cleo.disabled_at) == ("bob", None, clock())
        events = service.audit.tail(3)
        assert [(each.type, each.actor, each.at) for each in events] == [("user.create", "nina", clock())] * 3
        assert [each.user_id for each in events] == [ada.id, bob.id, cleo.id]
        assert [each.data for each in events] == [
            {"name": "Ada"},
            {"name": "bob"},
            {"name": "Cleo", "disabled": True},
        ]
        assert service.issue("bob")
        with pytest.raises(UserDisabled):
            service.issue("cleo")

    def test_what_is_there_stays_as_it_is(self, service: TokenService, settings: Settings) -> None:
        service.create_user("user3", PASSWORD)
        first = service.users.import_many(people(5))
        assert first == Import(imported=4, existing=1)
        after = dump(settings)
        assert service.users.import_many([each._replace(password_hash=None) for each in people(5)]) == Import(
            existing=5
        )
        assert dump(settings) == after
        assert service.users.authenticate("user3", PASSWORD)

    def test_in_chunks_of_one_statement_each(self, service: TokenService, settings: Settings) -> None:
        told: list[int] = []
        with statements(service) as sent:
            done = service.users.import_many(people(2 * CHUNK + 1), progress=told.append)
        assert done == Import(imported=2 * CHUNK + 1)
        assert told == [CHUNK, CHUNK, 1]
        assert write_transactions(sent) == 3
        assert sum(each.startswith("INSERT INTO users") for each in sent) == 3
        demand_whole(settings, 2 * CHUNK + 1)

    def test_a_name_twice(self, service: TokenService, settings: Settings) -> None:
        """Near and far, in the same case and in another: the first one counts, no second is lost unseen."""
        refused: list[tuple[int, str]] = []

        def report(line: int, reason: str) -> None:
            refused.append((line, reason))

        names = ["Ada", "ada", "Ada", "Straße", *(f"user{i}" for i in range(CHUNK)), "STRASSE", "Ada", "ADA"]
        records = [
            NewUser(line, name, HASH if line == 1 else bcrypt_hash()) for line, name in enumerate(names, 1)
        ]
        done = service.users.import_many(records, report=report)
        assert done == Import(imported=CHUNK + 2, existing=2, refused=3)
        assert refused == [(2, CLASH), (len(names) - 2, CLASH), (len(names), CLASH)]
        assert service.users.get("ada").password_hash == HASH
        again = service.users.import_many(records, report=report)
        assert again == Import(existing=CHUNK + 4, refused=3)
        demand_whole(settings, CHUNK + 2)

    def test_a_dry_run_tells_the_same_and_changes_nothing(
        self, service: TokenService, settings: Settings
    ) -> None:
        service.create_user("user1")
        records: list[NewUser | Unusable] = [
            *people(CHUNK + 3),
            NewUser(9_001, "USER1"),
            NewUser(9_002, "user\n"),
            NewUser(9_003, "new"),
            NewUser(9_003, "New"),
            NewUser(9_003, "new"),
            Unusable(9_004, "no record"),
        ]
        before, told = dump(settings), list[object]()
        would = service.users.import_many(records, dry_run=True, report=lambda *refusal: told.append(refusal))
        assert dump(settings) == before
        assert would == Import(imported=CHUNK + 3, existing=2, refused=4, without_password=1, dry_run=True)
        done = service.users.import_many(records, report=lambda *refusal: told.append(refusal))
        assert (done.imported, done.existing, done.refused, done.without_password) == (CHUNK + 3, 2, 4, 1)
        assert told[:4] == told[4:]

    @pytest.mark.parametrize(
        ("name", "password_hash", "reason"),
        [
            pytest.param("", HASH, "1 to 254 characters", id="no name"),
            pytest.param("a" * 255, HASH, "1 to 254 characters", id="too long"),
            pytest.param(" ada", HASH, "no space at an end", id="a space in front"),
            pytest.param("a\0b", HASH, "characters that are printed", id="a NUL"),
            pytest.param("\udcff", HASH, "characters that are printed", id="no UTF-8"),
            pytest.param("usr_1", HASH, "marks a user's id", id="like an id"),
            pytest.param("tkr1_" + "A" * 84, HASH, "token string", id="a token string"),
            pytest.param(HASH, "ada", "where the name belongs", id="the two changed round"),
            pytest.param("ada", "5f4dcc3b5aa765d61d8327deb882cf99", "no scheme", id="MD5"),
            pytest.param("ada", "!", "no scheme", id="Django's unusable one"),
            pytest.param("ada", HASH[:-1], "no scheme", id="cut short"),
            pytest.param("ada", HASH.replace("$04", "$31"), "absurd cost", id="bcrypt for days"),
            pytest.param("ada", scrypt_hash().replace("ln=4", "ln=40"), "absurd cost", id="scrypt, 1 PB"),
            pytest.param("ada", django_hash().replace("$10$", "$4000000000$"), "absurd cost", id="PBKDF2"),
            pytest.param("ada", argon2_hash().replace("$m", "\0$m"), "no scheme", id="NUL in the hash"),
            pytest.param("ada", argon2_hash()[:-20] + "\0" + argon2_hash()[-20:], "no scheme", id="NUL"),
            pytest.param("ada", "\udcff" + HASH, "no scheme", id="hash no UTF-8"),
            pytest.param("ada", pbkdf2_hash().replace("$10$", "$1٤$"), "no scheme", id="another script"),
            pytest.param("ada", pbkdf2_hash().replace("$10$", "$10\n$"), "no scheme", id="newline"),
            pytest.param("ada", django_hash().replace("$10$", "$10 $"), "no scheme", id="space"),
            pytest.param("ada", ENDLESS, "no scheme", id="endless hash"),
        ],
    )
    def test_refuses_one_and_goes_on(
        self, service: TokenService, settings: Settings, name: str, password_hash: str, reason: str
    ) -> None:
        told: list[tuple[int, str]] = []
        done = service.users.import_many(
            [NewUser(1, "bob"), NewUser(2, name, password_hash), NewUser(3, "cleo")],
            report=lambda *refusal: told.append(refusal),
        )
        assert done == Import(imported=2, refused=1, without_password=2)
        [(line, why)] = told
        assert line == 2
        assert reason in why
        assert password_hash[-8:] not in why
        demand_whole(settings, 2)

    def test_stops_between_two_chunks_and_goes_on(self, service: TokenService, settings: Settings) -> None:
        told: list[int] = []
        done = service.users.import_many(people(3 * CHUNK), progress=told.append, stop=lambda: len(told) == 2)
        assert done == Import(imported=2 * CHUNK, complete=False)
        demand_whole(settings, 2 * CHUNK)
        assert service.users.import_many(people(3 * CHUNK)) == Import(imported=CHUNK, existing=2 * CHUNK)

    @pytest.mark.parametrize(
        "stored",
        [
            lambda: argon2_hash(memory=32),
            bcrypt_hash,
            lambda: bcrypt_hash(prefix=b"2a"),
            pbkdf2_hash,
            django_hash,
            scrypt_hash,
        ],
        ids=["argon2", "bcrypt", "supabase", "pbkdf2", "django", "scrypt"],
    )
    def test_the_old_password_logs_in_and_its_hash_is_replaced(
        self, service: TokenService, stored: object
    ) -> None:
        assert callable(stored)
        old = stored()
        assert service.users.import_many([NewUser(1, "ada", old)]).imported == 1
        with pytest.raises(WrongPassword):
            service.login("ada", PASSWORD + "!")
        assert service.users.get("ada").password_hash == old
        assert service.login("ada", PASSWORD)
        new = service.users.get("ada").password_hash
        assert new is not None
        assert new.startswith("$argon2id$")
        assert new != old
        assert service.login("ada", PASSWORD)


# --- beside others, and killed -----------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_two_at_once(service: TokenService, settings: Settings, isolation: str) -> None:
    number = 6 * CHUNK
    if is_postgres(settings):
        name = settings.database.rpartition("/")[2]
        run_sql(settings, f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")

    def one(seed: int) -> Import:
        with TokenService(settings, passwords=CHEAP) as another:
            return another.users.import_many(people(number, seed=seed))

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(one, range(3)))
    assert sum(each.imported for each in done) == number
    assert sum(each.existing for each in done) == 2 * number
    demand_whole(settings, number)


def _import(settings: Settings, number: int, pipe: Connection) -> None:
    """One process; it says when it begins, and never comes to the last record."""

    def records() -> Iterator[NewUser]:
        pipe.send("begin")
        yield from people(number)
        pipe.recv()

    with TokenService(settings, passwords=CHEAP) as service:
        service.users.import_many(records())


def test_killed_in_the_middle_it_is_resumed(service: TokenService, settings: Settings) -> None:
    number = 8 * CHUNK + 7
    for until in (1, 2 * CHUNK + 1, 6 * CHUNK):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_import, args=(settings, number, theirs))
        process.start()
        theirs.close()
        with closing(ours):
            assert ours.recv() == "begin"
            eventually(lambda least=until: service.users.count() >= least)  # type: ignore[misc] # its default
            process.kill()
            process.join()
        assert service.users.count() % CHUNK == 0  # of the chunk in hand nothing is left
        demand_whole(settings, service.users.count())
    left = number - service.users.count()
    assert left > 0
    assert service.users.import_many(people(number)) == Import(imported=left, existing=number - left)
    demand_whole(settings, number)


def test_a_failure_of_the_database_leaves_the_chunks_before(
    service: TokenService, settings: Settings
) -> None:
    def records() -> Iterator[NewUser]:
        yield from people(CHUNK)
        if is_postgres(settings):
            with closing(psycopg.connect(settings.database, autocommit=True)) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        yield NewUser(CHUNK, f"user{CHUNK}")

    # A connection that broke between two transactions is replaced without a word.
    assert service.users.import_many(records()).imported == CHUNK + 1
    demand_whole(settings, CHUNK + 1)


# --- what a file says --------------------------------------------------------------------------


def read(*lines: bytes | str | None, **fields: str) -> list[NewUser | Unusable]:
    as_bytes = (line.encode() if isinstance(line, str) else line for line in lines)
    return list(user_lines.read(as_bytes, **fields))


class TestLines:
    def test_json(self) -> None:
        assert read(
            "",
            '\ufeff{"name": "ada", "password_hash": "h", "disabled": true, "more": [1]}',
            " ",
            '{"name": "bob", "password_hash": "", "disabled": null}',
            '{"name": "cleo"}',
        ) == [NewUser(2, "ada", "h", True), NewUser(4, "bob"), NewUser(5, "cleo")]

    def test_csv(self) -> None:
        assert read(
            "\ufeffdisabled,name,note,password_hash\r",
            "t,ada,,h\r",
            "\r",
            'f,"O\'Neill, ""Bo""",x,',
            '0,bob,"over two',
            'lines, with a ""quote""",h',
            ",cleo,,",
        ) == [
            NewUser(2, "ada", "h", True),
            NewUser(4, 'O\'Neill, "Bo"'),
            NewUser(5, "bob", "h"),
            NewUser(7, "cleo"),
        ]

    def test_fields_of_others(self) -> None:
        fields = {"name_field": "email", "hash_field": "encrypted_password"}
        expected = [NewUser(2, "a@b.example", "h")]
        assert read("id,email,encrypted_password", "7,a@b.example,h", **fields) == expected
        line = json.dumps({"id": 7, "email": "a@b.example", "encrypted_password": "h"})
        assert read("", line, **fields) == expected

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{", "no JSON object"),
            ("[]", "no JSON object"),
            ("[" * 100_000, "no JSON object"),
            ('{"name": ' + "9" * 5_000 + "}", "no JSON object"),
            (b"\xff\xfe{", "no JSON object"),
            (None, "longer than"),
            ('{"nam": "ada"}', "there is no field name"),
            ('{"name": 7}', "the field name is no text"),
            ('{"name": null}', "the field name is no text"),
            ('{"name": "ada", "password_hash": {"s": "h"}}', "the field password_hash is no text"),
            ('{"name": "ada", "disabled": "perhaps"}', "neither true nor false"),
            ('{"name": "ada", "disabled": [true]}', "neither true nor false"),
            ('{"name": "ada", "disabled": 2}', "neither true nor false"),
        ],
    )
    def test_a_bad_line_of_json(self, line: bytes | str | None, reason: str) -> None:
        first, bad, last = read('{"name": "x"}', line, '{"name": "y"}')
        assert (first, last) == (NewUser(1, "x"), NewUser(3, "y"))
        assert isinstance(bad, Unusable)
        assert (bad.line, reason in bad.reason) == (2, True)

    @pytest.mark.parametrize(
        "line",
        ["ada", "ada,h,x", '"a"da,h', '"too"long,h', None],
        ids=["few", "many", "quote", "mark", "long"],
    )
    def test_a_bad_line_of_csv(self, line: str | None) -> None:
        first, bad, last = read("name,password_hash", "x,", line, "y,")
        assert (first, last) == (NewUser(2, "x"), NewUser(4, "y"))
        assert isinstance(bad, Unusable)
        assert (bad.line, "longer than" in bad.reason) == (3, True)

    @pytest.mark.parametrize("line", ['"a"da', None], ids=["quote", "long"])
    def test_a_bad_line_of_csv_with_one_field(self, line: str | None) -> None:
        first, bad, last = read("name", "x", line, "y")
        assert (first, last) == (NewUser(2, "x"), NewUser(4, "y"))
        assert isinstance(bad, Unusable)
        assert bad.line == 3

    @pytest.mark.parametrize(
        ("rest", "last"),
        [(["y,h", "z,h"], 5), (["y,h", '"z",h', "a,h"], 5), (["y" * 100 + ",h"] * 3_000, 1_276)],
        ids=["to the end", "to the next quote", "for long"],
    )
    def test_a_quote_that_is_never_closed_ends_the_import(self, rest: list[str], last: int) -> None:
        """What it swallows may be users, and what is behind it the inside of a text: nobody guesses."""
        found = user_lines.read(line.encode() for line in ["name,password_hash", "x,h", '"swallows,h', *rest])
        assert next(found) == NewUser(2, "x", "h")
        with pytest.raises(InvalidInput, match=rf"line 3 opens .* line {last:,}: the import ends") as refusal:
            next(found)
        assert "run the same command again" in refusal.value.hint

    def test_what_is_no_utf_8_harms_its_own_field_alone(self) -> None:
        [ada, other] = read("name,note", b"ada,\xff", b"\xff,")
        assert ada == NewUser(2, "ada")
        assert isinstance(other, NewUser)
        assert not other.name.isprintable()

    def test_an_explicit_hash_field_must_be_there(self) -> None:
        """Or a typing error would import everybody without a password."""
        [bad] = read('{"name": "ada", "password_hash": "h"}', hash_field="pasword")
        assert bad == Unusable(1, "there is no field pasword")

    @pytest.mark.parametrize(
        ("lines", "fields", "message"),
        [
            ([], {}, "no users"),
            (["", " "], {}, "no users"),
            (["ada,secrethash"], {}, "no header"),
            (["name,name,password_hash"], {}, "no header"),
            (["name,password_hash,password_hash"], {}, "no header"),
            (["name,password_hash"], {"hash_field": "pasword"}, "name and pasword"),
            (["name,password_hash"], {"name_field": "email"}, "email"),
            ([None, "name"], {}, "no header"),
            (['[{"name": "ada"}]'], {}, "JSON array"),
            ([b"\x1f\x8b\x08\0"], {}, "gzip"),
            ([b"\xff\xfen\0a\0m\0e\0"], {}, "no header"),
        ],
    )
    def test_what_is_no_such_file(
        self, lines: list[bytes | str | None], fields: dict[str, str], message: str
    ) -> None:
        with pytest.raises(InvalidInput, match=message) as caught:
            read(*lines, **fields)
        assert caught.value.hint
        assert "secret" not in caught.value.message
