"""The compare-and-swap against the judgement: the UPDATE hits exactly when `judge` says ROTATE.

Rows, users, clients and the realm are drawn around the edges of every rule and written with plain SQL
into a real database; each example is rolled back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from tests.conftest import KINDS, Postgres
from tokenctl.core.context import Context
from tokenctl.core.rotation import Policy, Presented, Verdict, judge
from tokenctl.core.token_string import LAST_GENERATION, PresentedToken, hash_secret
from tokenctl.storage import swap as swap_statements
from tokenctl.storage import tokens as token_rows
from tokenctl.storage.postgres import PostgresDatabase
from tokenctl.storage.sqlite import SQLiteFile, sqlite_engine
from tokenctl.storage.swap import Swap, Swapped

DAY = 24 * 3600 * 1_000_000
#: 2026-03-01 12:00 UTC, in µs.
NOW = 1_772_366_400_000_000
ACCESS_UNTIL = NOW + 600_000_000
CREATED_AT = NOW - 5 * DAY
SECRET = bytes(range(16))
OTHER_SECRET = bytes(range(1, 17))
POLICY = Policy(grace=30_000_000)

Values = Mapping[str, Any]
Table = dict[bytes, dict[str, Any]]


@pytest.fixture(scope="module", params=KINDS)
def connection(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connection]:
    """On a new database; roll back what you do."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            path = tmp_path_factory.mktemp("agrees") / "tokens.db"
            SQLiteFile(str(path)).create(lambda _: None)
            engine = sqlite_engine(path, 1.0)
        else:
            postgres: Postgres = request.getfixturevalue("postgres")
            url = stack.enter_context(postgres.empty())
            PostgresDatabase(url).create(lambda _: None)
            engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
        stack.callback(engine.dispose)
        yield stack.enter_context(engine.connect())


@contextmanager
def rolled_back(connection: Connection) -> Iterator[None]:
    transaction = connection.begin()
    try:
        yield
    finally:
        transaction.rollback()


def insert(connection: Connection, table: str, values: Values) -> None:
    columns, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), dict(values))


def stored(connection: Connection) -> Table:
    """All of refresh_tokens, by id."""
    rows = connection.exec_driver_sql("SELECT * FROM refresh_tokens").mappings()
    return {row["id"]: dict(row) for row in rows}


# --- cases -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A login with its user and its client, and a string that somebody presents as one of this login."""

    exists: bool
    row: Values
    user: Values
    client: Values
    #: The client that presents it; None: the login's own.
    by: str | None
    generation: int
    secret: bytes
    context: Context


edges = st.sampled_from([0, -1, 1, -DAY, DAY])
around_now = edges.map(NOW.__add__)
around_creation = edges.map(CREATED_AT.__add__)
contexts = st.builds(
    Context,
    st.sampled_from([None, bytes(16), b"\1" * 16]),
    st.sampled_from([None, "", "Browser/1", "Br\u00f6wser/2"]),
    st.sampled_from([None, b"d" * 32, b"e" * 32]),
)
#: What may be the matter, by name: what stands where, drawn around the edge of the rule.
troubles: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "unknown": st.just({"exists": False}),
    "another client": st.just({"by": "default"}),
    "unknown client": st.sampled_from(["nobody", "", "APP0", "app0 ", "app0\x01"]).map(lambda by: {"by": by}),
    "another secret": st.just({"secret": OTHER_SECRET}),
    "a generation off": st.sampled_from([-2, -1, 1, 2]).map(lambda off: {"off": off}),
    "the last generation": st.integers(LAST_GENERATION - 2, LAST_GENERATION).map(lambda g: {"generation": g}),
    "revoked": around_now.map(lambda at: {"revoked_at": at, "revoked_reason": "test"}),
    "expired": around_now.map(lambda at: {"expires_at": at}),
    "idle": st.tuples(around_now, st.sampled_from([1, 2, 100, DAY])).map(
        lambda at: {"rotated_at": at[0] - at[1], "idle_ttl": at[1]}
    ),
    "user cut off": around_creation.map(lambda at: {"user.not_before": at}),
    "client cut off": around_creation.map(lambda at: {"client.not_before": at}),
    "created at the beginning": st.sampled_from([-1, 0, 1]).map(lambda at: {"created_at": at}),
    "user disabled": around_now.map(lambda at: {"user.disabled_at": at}),
    "user disabled for a time": st.tuples(around_now, around_now).map(
        lambda at: {"user.disabled_at": at[0], "user.disabled_until": at[1]}
    ),
}


maybe_trouble = st.sampled_from([*[None] * 10, *troubles])


@st.composite
def cases(draw: st.DrawFn, number: int) -> Case:
    """Case `number` of a batch; many have nothing the matter, some one thing or two."""
    drawn: dict[str, Any] = {
        "exists": True,
        "by": None,
        "secret": SECRET,
        "off": draw(st.sampled_from([*[0] * 9, -1, -2, 1])),
        "generation": draw(st.sampled_from([0, 1, 2, 1000, 2**31])),
        "created_at": CREATED_AT,
        "rotated_at": NOW - draw(st.sampled_from([-DAY, -1, 0, 1, DAY])),
        "expires_at": NOW + DAY,
        "idle_ttl": draw(st.sampled_from([None, 14 * DAY])),
        "revoked_at": None,
        "revoked_reason": None,
        "user.not_before": 0,
        "user.disabled_at": None,
        "user.disabled_until": None,
        "client.not_before": 0,
    }
    for name in (draw(maybe_trouble), draw(maybe_trouble)):
        if name is not None:
            drawn |= draw(troubles[name])
    last = draw(contexts)
    raw_id = b"token" + bytes(10) + bytes([number])
    user_id = b"user" + bytes(11) + bytes([number])
    own = ("created_at", "rotated_at", "expires_at", "idle_ttl", "revoked_at", "revoked_reason", "generation")
    row = {name: drawn[name] for name in own} | {
        "id": raw_id,
        "user_id": user_id,
        "client_id": f"app{number}",
        "scope": draw(st.sampled_from(["", "read write"])),
        "secret_hash": hash_secret(SECRET),
        "access_until": NOW + number,
        "issued_user_agent": "Setup/0",
        "last_ip": last.ip,
        "last_user_agent": last.user_agent,
        "last_device": last.device,
        "context_changed": draw(st.sampled_from([0, 1])),
    }
    user = {"id": user_id, "name": f"user{number}", "name_key": f"user{number}", "created_at": 0}
    user |= {name: drawn[f"user.{name}"] for name in ("not_before", "disabled_at", "disabled_until")}
    return Case(
        exists=drawn["exists"],
        row=row,
        user=user,
        client={"id": f"app{number}", "created_at": 0, "not_before": drawn["client.not_before"]},
        by=drawn["by"],
        generation=min(max(drawn["generation"] + drawn["off"], 0), LAST_GENERATION),
        secret=drawn["secret"],
        context=draw(contexts),
    )


realm_cut_offs = st.sampled_from([*[0] * 9, CREATED_AT - 1, CREATED_AT, CREATED_AT + 1])


@st.composite
def batches(draw: st.DrawFn, most: int) -> list[Case]:
    size = draw(st.integers(1, most))
    return draw(st.permutations([draw(cases(number)) for number in range(size)]))


def write(connection: Connection, batch: list[Case], realm_cut_off: int, recovered_at: int | None) -> None:
    connection.execute(
        sa.text("UPDATE realm SET not_before = :cut_off, recovered_at = :recovered_at"),
        {"cut_off": realm_cut_off, "recovered_at": recovered_at},
    )
    for case in batch:
        insert(connection, "clients", case.client)
        insert(connection, "users", case.user)
        if case.exists:
            insert(connection, "refresh_tokens", case.row)


def swap_of(case: Case) -> Swap:
    token = PresentedToken(case.row["id"], case.generation, case.secret)
    return Swap(token, case.row["client_id"] if case.by is None else case.by, case.context)


def verdicts(connection: Connection, swaps: list[Swap]) -> dict[bytes, Verdict]:
    """What the judgement says of each entry now."""
    rows = token_rows.fetch(connection, [swap.token.raw_id for swap in swaps])
    judged = {}
    for swap in swaps:
        token = swap.token
        presented = Presented(token.generation, token.secret_hash, swap.client_id, swap.context.device)
        judged[token.raw_id] = judge(rows.get(token.raw_id), presented, NOW, POLICY).verdict
    return judged


def rotated(row: Values, context: Context) -> dict[str, Any]:
    """The row as a rotation from there has to leave it."""
    said = {"ip": context.ip, "user_agent": context.user_agent, "device": context.device}
    known = {f"last_{name}": value for name, value in said.items() if value is not None}
    changed = any(row[name] != value for name, value in known.items())
    return {
        **row,
        **known,
        "generation": row["generation"] + 1,
        "rotated_at": NOW,
        # The latest of all that were signed, and none outlives the login.
        "access_until": max(row["access_until"], min(ACCESS_UNTIL, row["expires_at"])),
        "context_changed": int(changed),
    }


def check(connection: Connection, batch: list[Case]) -> list[Verdict]:
    """Rotate the batch, and compare with the judgement all that is answered and all that is stored."""
    swaps = [swap_of(case) for case in batch]
    judged = verdicts(connection, swaps)
    before = stored(connection)
    answers = swap_statements.rotate(connection, swaps, now=NOW, access_until=ACCESS_UNTIL)

    hits = {raw_id for raw_id, verdict in judged.items() if verdict is Verdict.ROTATE}
    assert set(answers) == hits
    expected = dict(before)
    for swap in swaps:
        raw_id = swap.token.raw_id
        if raw_id in hits:
            row = expected[raw_id] = rotated(before[raw_id], swap.context)
            told = (raw_id, row["user_id"], row["scope"], row["expires_at"], row["context_changed"])
            assert answers[raw_id] == Swapped(*told)
    assert stored(connection) == expected
    return list(judged.values())


# --- the property ----------------------------------------------------------------------------

quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_the_update_hits_exactly_when_the_judgement_says_rotate(connection: Connection) -> None:
    seen: Counter[Verdict] = Counter()

    @settings(quick, max_examples=1000)
    @given(cases(0), realm_cut_offs, st.none() | around_now)
    def agree(case: Case, realm_cut_off: int, recovered_at: int | None) -> None:
        with rolled_back(connection):
            write(connection, [case], realm_cut_off, recovered_at)
            seen.update(check(connection, [case]))

    agree()
    # A property over misses alone would hold for an UPDATE that never hits, and the other way round.
    assert seen[Verdict.ROTATE] > 50
    assert seen.total() - seen[Verdict.ROTATE] > 50


def test_each_entry_of_a_batch_is_decided_by_itself(connection: Connection) -> None:
    mixed = 0

    @settings(quick, max_examples=200)
    @given(batches(6), realm_cut_offs, st.none() | around_now)
    def agree(batch: list[Case], realm_cut_off: int, recovered_at: int | None) -> None:
        nonlocal mixed
        with rolled_back(connection):
            write(connection, batch, realm_cut_off, recovered_at)
            mixed += len({verdict is Verdict.ROTATE for verdict in check(connection, batch)}) == 2

    agree()
    assert mixed > 20


HEALTHY = Case(
    exists=True,
    row={
        "id": b"token" + bytes(11),
        "user_id": b"user" + bytes(12),
        "client_id": "app0",
        "scope": "read",
        "generation": 7,
        "secret_hash": hash_secret(SECRET),
        "created_at": CREATED_AT,
        "rotated_at": NOW - DAY,
        "access_until": NOW - DAY,
        "expires_at": NOW + DAY,
        "idle_ttl": 14 * DAY,
        "last_ip": b"\1" * 16,
        "last_user_agent": "Browser/1",
        "last_device": b"d" * 32,
        "context_changed": 0,
    },
    user={
        "id": b"user" + bytes(12),
        "name": "ada",
        "name_key": "ada",
        "created_at": 0,
        "not_before": 0,
        "disabled_at": None,
        "disabled_until": None,
    },
    client={"id": "app0", "created_at": 0, "not_before": 0},
    by=None,
    generation=7,
    secret=SECRET,
    context=Context(),
)


@pytest.mark.parametrize(
    ("row", "user", "hits"),
    [
        pytest.param({}, {}, True, id="healthy"),
        pytest.param({"expires_at": NOW + 1}, {}, True, id="last µs of its life"),
        pytest.param({"expires_at": NOW}, {}, False, id="expires now"),
        pytest.param({"rotated_at": NOW - DAY + 1, "idle_ttl": DAY}, {}, True, id="last µs before idle"),
        pytest.param({"rotated_at": NOW - DAY, "idle_ttl": DAY}, {}, False, id="idle now"),
        pytest.param({"rotated_at": 0, "idle_ttl": None}, {}, True, id="no idle lifetime"),
        pytest.param({"generation": LAST_GENERATION - 1}, {}, True, id="into the last generation"),
        pytest.param({"generation": LAST_GENERATION}, {}, False, id="the last generation"),
        pytest.param({"revoked_at": 0, "revoked_reason": ""}, {}, False, id="revoked at 0, without words"),
        pytest.param({}, {"not_before": CREATED_AT - 1}, True, id="created after the cut-off"),
        pytest.param({}, {"not_before": CREATED_AT}, False, id="created at the cut-off"),
        pytest.param({}, {"disabled_at": NOW, "disabled_until": NOW}, True, id="disabled until now"),
        pytest.param({}, {"disabled_at": NOW, "disabled_until": NOW + 1}, False, id="disabled for 1 µs more"),
        pytest.param({}, {"disabled_at": 0}, False, id="disabled for good, at 0"),
    ],
)
def test_the_edges(connection: Connection, row: Values, user: Values, hits: bool) -> None:
    generation = row.get("generation", HEALTHY.generation)
    case = Case(
        exists=True,
        row={**HEALTHY.row, **row},
        user={**HEALTHY.user, **user},
        client=HEALTHY.client,
        by=None,
        generation=generation,
        secret=SECRET,
        context=Context(),
    )
    with rolled_back(connection):
        write(connection, [case], 0, None)
        assert (check(connection, [case]) == [Verdict.ROTATE]) is hits


@pytest.mark.parametrize(
    ("context", "changed", "last"),
    [
        pytest.param(Context(), 0, (b"\1" * 16, "Browser/1", b"d" * 32), id="nothing said"),
        pytest.param(
            Context(b"\1" * 16, "Browser/1", b"d" * 32),
            0,
            (b"\1" * 16, "Browser/1", b"d" * 32),
            id="the same",
        ),
        pytest.param(Context(ip=b"\2" * 16), 1, (b"\2" * 16, "Browser/1", b"d" * 32), id="another address"),
        pytest.param(
            Context(user_agent="Browser/2"), 1, (b"\1" * 16, "Browser/2", b"d" * 32), id="another browser"
        ),
        pytest.param(Context(device=b"e" * 32), 1, (b"\1" * 16, "Browser/1", b"e" * 32), id="another device"),
        pytest.param(
            Context(b"\1" * 16, "Browser/2", None), 1, (b"\1" * 16, "Browser/2", b"d" * 32), id="one of two"
        ),
    ],
)
def test_where_it_was_used_last(
    connection: Connection, context: Context, changed: int, last: tuple[bytes, str, bytes]
) -> None:
    swap = Swap(PresentedToken(HEALTHY.row["id"], 7, SECRET), "app0", context)
    with rolled_back(connection):
        write(connection, [HEALTHY], 0, None)
        answers = swap_statements.rotate(connection, [swap], now=NOW, access_until=ACCESS_UNTIL)
        assert answers[HEALTHY.row["id"]].context_changed == changed
        row = stored(connection)[HEALTHY.row["id"]]
        assert (row["last_ip"], row["last_user_agent"], row["last_device"]) == last
        assert row["issued_ip"] is row["issued_user_agent"] is row["issued_device"] is None


def test_without_a_realm_nothing_rotates(connection: Connection) -> None:
    """A database that lost the row of the cut-offs must not be taken for one that has none."""
    swap = swap_of(HEALTHY)
    with rolled_back(connection):
        write(connection, [HEALTHY], 0, None)
        connection.exec_driver_sql("DELETE FROM realm")
        assert swap_statements.rotate(connection, [swap], now=NOW, access_until=ACCESS_UNTIL) == {}


# --- the cached text -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 256])
def test_the_cached_text_is_that_of_a_fresh_compilation(size: int) -> None:
    dialect = sqlite.dialect()
    fresh = swap_statements.rotation_statement(size).compile(dialect=dialect)
    for _ in range(2):
        text, names = swap_statements._rotation_text(dialect, size)
        assert text == str(fresh)
        assert names == fresh.positiontup
    # Each parameter has its place: none is written out, and none is left over.
    assert len(names) == text.count("?")
    used = {f"{name}_{i}" for i in range(size) for name in ("id", "generation", "secret_hash", "client_id")}
    assert used <= set(names)


def test_one_text_for_every_size_on_postgresql() -> None:
    dialect = sa.make_url("postgresql+psycopg://").get_dialect()()
    text, names = swap_statements._rotation_text(dialect, 0)
    assert text == str(swap_statements.rotation_statement(0).compile(dialect=dialect))
    assert names == []
    assert all(f"%({name})s" in text for name in ("id", "generation", "secret_hash", "client_id", "now"))


def test_a_client_with_a_nul_is_nobody(connection: Connection) -> None:
    swap = replace(swap_of(HEALTHY), client_id="app0\0")
    with rolled_back(connection):
        write(connection, [HEALTHY], 0, None)
        if connection.dialect.name == "sqlite":
            assert swap_statements.rotate(connection, [swap], now=NOW, access_until=ACCESS_UNTIL) == {}
        else:
            with pytest.raises(sa.exc.DataError, match="NUL"):
                swap_statements.rotate(connection, [swap], now=NOW, access_until=ACCESS_UNTIL)


def test_a_full_batch(connection: Connection) -> None:
    """256 logins at once, every other one with a spent string."""
    batch = [
        Case(
            exists=True,
            row={**HEALTHY.row, "id": b"token" + bytes(10) + bytes([n]), "generation": n},
            user=HEALTHY.user,
            client=HEALTHY.client,
            by=None,
            generation=n - n % 2,
            secret=SECRET,
            context=Context(ip=bytes([n]) * 16),
        )
        for n in range(swap_statements.MAX_BATCH)
    ]
    with rolled_back(connection):
        write(connection, batch[:1], 0, None)
        for case in batch[1:]:
            insert(connection, "refresh_tokens", case.row)
        assert Counter(check(connection, batch))[Verdict.ROTATE] == swap_statements.MAX_BATCH // 2
