"""Purging: what is dead for long enough, all of it, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.conftest import CHEAP, START, Clock
from tests.service import (
    DAY,
    SECOND,
    add_logins,
    dump,
    event_types,
    is_postgres,
    key_file,
    login_row,
    run_sql,
    statements,
    write_transactions,
)
from tokenctl import Selector, Settings, State, TokenPair, TokenService
from tokenctl.errors import (
    ClockSuspect,
    DatabaseLocked,
    InvalidInput,
    TokenctlError,
    TokenNotFound,
    TokenRefused,
    WrongPassword,
)
from tokenctl.storage.users import User

TICK = timedelta(microseconds=1)
WEEK = timedelta(days=7)
EVERYTHING = Selector(everything=True)


@pytest.fixture
def ada(service: TokenService) -> User:
    return service.create_user("ada")


def dead_rows(ada: User, count: int, first: int = 1) -> list[dict[str, Any]]:
    """Revoked eight days before START."""
    return [
        login_row(
            i,
            ada.id,
            created_at=START - 9 * DAY,
            rotated_at=START - 9 * DAY,
            revoked_at=START - 8 * DAY,
            revoked_reason="x",
        )
        for i in range(first, first + count)
    ]


def left(service: TokenService) -> set[str]:
    return {row.id for row in service.list(EVERYTHING)}


class TestRetention:
    @pytest.mark.parametrize(
        "columns",
        [
            pytest.param({"revoked_at": START, "revoked_reason": "x"}, id="revoked"),
            pytest.param({"revoked_at": START, "revoked_reason": "reuse"}, id="reused"),
            pytest.param({"expires_at": START}, id="expired"),
            pytest.param({"rotated_at": START - 14 * DAY}, id="idle"),
            pytest.param(
                {"rotated_at": START - 14 * DAY, "expires_at": START + DAY}, id="idle, then expired"
            ),
            pytest.param(
                {"revoked_at": START + 3 * DAY, "revoked_reason": "x", "expires_at": START},
                id="expired, then revoked",
            ),
        ],
    )
    def test_ends_on_the_microsecond(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock, columns: dict[str, Any]
    ) -> None:
        row = login_row(1, ada.id, created_at=START - 20 * DAY, idle_ttl=14 * DAY)
        add_logins(settings, [{**row, **columns}])
        clock.advance(WEEK - TICK)
        assert service.purge().purged == 0
        clock.advance(TICK)
        assert service.purge().purged == 1
        assert left(service) == set()

    @pytest.mark.parametrize(
        "columns",
        [
            pytest.param({}, id="live"),
            pytest.param({"idle_ttl": None, "rotated_at": START - 29 * DAY}, id="no idle life"),
            pytest.param({"expires_at": START + 1}, id="about to expire"),
            pytest.param({"created_at": 1, "rotated_at": START}, id="blocked by a cut-off"),
        ],
    )
    def test_of_nothing_keeps_what_is_not_dead(
        self, service: TokenService, settings: Settings, ada: User, columns: dict[str, Any]
    ) -> None:
        run_sql(settings, "UPDATE realm SET not_before = 1")
        ids = add_logins(settings, [login_row(1, ada.id, **columns)])
        assert service.purge(retention=timedelta(0)).purged == 0
        assert left(service) == set(ids)

    def test_of_nothing_deletes_what_died_just_now(self, service: TokenService, ada: User) -> None:
        pair = service.issue("ada")
        service.revoke([pair.token_id], reason="x")
        assert service.purge(retention=timedelta(0)).purged == 1

    def test_the_evidence_of_a_reuse_lives_that_long(
        self, service: TokenService, ada: User, clock: Clock
    ) -> None:
        pair = service.issue("ada")
        service.rotate(pair.refresh_token)
        clock.advance(timedelta(minutes=1))
        with pytest.raises(TokenRefused):
            service.rotate(pair.refresh_token)
        clock.advance(WEEK - TICK)
        service.purge()
        found = service.inspect(pair.token_id)
        assert (found.state, found.token.revoked_reason) == (State.REVOKED, "reuse")
        clock.advance(TICK)
        assert service.purge().purged == 1
        with pytest.raises(TokenNotFound):
            service.inspect(pair.token_id)
        events = [event for event in service.audit.tail(100) if event.token_id == pair.token_id]
        assert [event.type for event in events] == ["token.issue", "token.reuse"]

    def test_takes_the_setting_unless_told(self, service: TokenService, ada: User, clock: Clock) -> None:
        pair = service.issue("ada")
        service.revoke([pair.token_id], reason="x")
        clock.advance(timedelta(hours=1))
        assert service.purge().purged == 0
        assert service.purge(retention=timedelta(hours=1)).purged == 1

    def test_a_purged_string_is_refused_like_any_other(
        self, service: TokenService, ada: User, clock: Clock
    ) -> None:
        pair = service.issue("ada", ttl=timedelta(hours=1))
        clock.advance(timedelta(days=8))
        service.purge(force=True)
        with pytest.raises(TokenRefused) as caught:
            service.rotate(pair.refresh_token)
        assert caught.value.reason == "not_found"

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"retention": -TICK}, id="negative retention"),
            pytest.param({"batch": 0}, id="no batch"),
            pytest.param({"batch": -1}, id="negative batch"),
            pytest.param({"max_rows": 0}, id="no rows"),
        ],
    )
    def test_refuses(
        self, service: TokenService, settings: Settings, ada: User, options: dict[str, Any]
    ) -> None:
        before = dump(settings)
        with pytest.raises(InvalidInput):
            service.purge(**options)
        assert dump(settings) == before


YEAR = 365 * DAY
near = st.integers(-40 * DAY, 40 * DAY) | st.sampled_from([-7 * DAY - 1, -7 * DAY, -7 * DAY + 1, -1, 0, 1])


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Up to eight logins with instants around START, as the rules allow them."""
    found = []
    for number in range(1, draw(st.integers(1, 8)) + 1):
        created_at = START - draw(st.integers(1, 80 * DAY))
        revoked = draw(st.none() | st.integers(0, 60 * DAY))
        found.append(
            {
                "number": number,
                "created_at": created_at,
                "rotated_at": draw(st.integers(created_at, START)),
                "expires_at": max(created_at + 1, START + draw(near)),
                "idle_ttl": draw(st.none() | st.integers(1, 90 * DAY)),
                "revoked_at": None if revoked is None else START - revoked,
                "revoked_reason": None if revoked is None else "x",
            }
        )
    return found


def died_at(row: dict[str, Any]) -> int:
    """When the row died, or will."""
    ends: list[int | None] = [row["expires_at"], row["revoked_at"]]
    if row["idle_ttl"] is not None:
        ends.append(row["rotated_at"] + row["idle_ttl"])
    return min(end for end in ends if end is not None)


class TestNeverALiveRow:
    @given(
        rows=rows(),
        # The clock is wrong by up to a year either way, and mostly by about as much as is let pass.
        wrong_by=st.integers(-YEAR, YEAR) | st.integers(-10 * DAY, 10 * DAY) | st.just(0),
        retention=st.integers(1, 30).map(lambda days: days * DAY),
        batch=st.integers(1, 5),
    )
    @hypothesis_settings(
        max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_whatever_the_clock_says(
        self,
        service: TokenService,
        settings: Settings,
        clock: Clock,
        rows: list[dict[str, Any]],
        wrong_by: int,
        retention: int,
        batch: int,
    ) -> None:
        clock.now = START
        for table in ("refresh_tokens", "users", "events"):
            run_sql(settings, f"DELETE FROM {table}")
        user = service.create_user("ada")  # the newest write: at START
        ids = add_logins(settings, [login_row(user_id=user.id, **row) for row in rows])
        clock.now = START + wrong_by
        expected = {
            id_ for id_, row in zip(ids, rows, strict=True) if died_at(row) > START + wrong_by - retention
        }
        try:
            report = service.purge(retention=timedelta(microseconds=retention), batch=batch)
        except ClockSuspect:
            assert wrong_by > max(retention, DAY)
            assert left(service) == set(ids)
            return
        assert wrong_by <= max(retention, DAY)
        assert left(service) == expected
        assert (report.purged, report.complete) == (len(ids) - len(expected), True)
        alive = {id_ for id_, row in zip(ids, rows, strict=True) if died_at(row) > START}
        assert alive <= left(service)


HOUR = 3_600 * SECOND
JUMPS = [HOUR, -HOUR, YEAR, -YEAR]
#: The clock jumps, time passes (and somebody puts it right), or something is done.
steps = st.lists(
    st.one_of(
        st.sampled_from([("jump", jump) for jump in JUMPS]),
        st.integers(1, 6).map(lambda days: ("pass", days * DAY)),
        st.just(("right", 0)),
        st.tuples(st.sampled_from(["issue", "rotate", "revoke", "reuse", "purge"]), st.integers(0, 9)),
    ),
    max_size=30,
)


class Login:
    """A model of one row, and what really happened to it."""

    def __init__(self, pair: TokenPair, now: int) -> None:
        self.strings = [pair.refresh_token]
        self.row: dict[str, Any] = {"rotated_at": now, "revoked_at": None, "idle_ttl": 14 * DAY}
        self.row["expires_at"] = now + 30 * DAY
        self.really_revoked_at: int | None = None


class TestHostileClock:
    """The clock jumps by an hour or a year between any two steps; a model says what each row is."""

    @given(steps=steps)
    @hypothesis_settings(
        max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_nothing_goes_that_lives_or_is_evidence(
        self, service: TokenService, settings: Settings, clock: Clock, steps: list[tuple[str, int]]
    ) -> None:
        clock.now = true_time = START
        for table in ("segments", "refresh_tokens", "users", "events"):
            run_sql(settings, f"DELETE FROM {table}")
        service.create_user("ada")
        service.purge()
        logins: dict[str, Login] = {}
        for what, number in steps:
            chosen = list(logins)[number % len(logins)] if logins else None
            match what:
                case "jump":
                    clock.now += number
                case "pass":
                    true_time += number
                    clock.now = true_time
                case "right":
                    clock.now = true_time
                case "issue":
                    pair = service.issue("ada")
                    logins[pair.token_id] = Login(pair, clock.now)
                case "purge":
                    self.purge(service, clock.now, true_time, logins)
                case _ if chosen is not None:
                    self.use(service, what, logins[chosen], chosen, clock.now, true_time)
        assert left(service) == set(logins)

    @staticmethod
    def purge(service: TokenService, now: int, true_time: int, logins: dict[str, Login]) -> None:
        try:
            done = service.purge(batch=2)
        except ClockSuspect:
            assert left(service) == set(logins), "a refusal deletes nothing"
            return
        gone = set(logins) - left(service)
        assert gone == {id_ for id_, login in logins.items() if died_at(login.row) <= now - 7 * DAY}
        assert done.purged == len(gone)
        for id_ in gone:
            revoked_at = logins.pop(id_).really_revoked_at
            assert revoked_at is None or revoked_at <= true_time - 7 * DAY + 12 * HOUR, "evidence"

    @staticmethod
    def use(service: TokenService, how: str, login: Login, id_: str, now: int, true_time: int) -> None:
        was_alive = login.row["revoked_at"] is None
        with suppress(TokenctlError):
            if how == "rotate":
                login.strings.append(service.rotate(login.strings[-1]).refresh_token)
            elif how == "revoke":
                service.revoke([id_], reason="x")
            else:
                service.rotate(login.strings[0])
        # When it is rotated and revoked is another model's business; here only by which time.
        row = service.inspect(id_).token
        assert row.rotated_at in (login.row["rotated_at"], now)
        login.row.update(rotated_at=row.rotated_at, revoked_at=row.revoked_at)
        if was_alive and row.is_revoked:
            assert row.revoked_at == now
            login.really_revoked_at = true_time

    def test_evidence_written_under_a_clock_that_was_behind_is_not_taken_for_old(
        self, service: TokenService, ada: User, clock: Clock
    ) -> None:
        pair = service.issue("ada")
        clock.advance(timedelta(days=-365))
        service.revoke([pair.token_id], reason="stolen")
        clock.advance(timedelta(days=365))
        for _ in range(2):
            with pytest.raises(ClockSuspect, match="went back"):
                service.purge()
        assert left(service) == {pair.token_id}
        assert service.purge(force=True).purged == 1


class TestBatches:
    @pytest.mark.parametrize(
        ("batch", "batches"), [(1, 10), (3, 4), (10, 1), (1000, 1)], ids=["one", "three", "all", "more"]
    )
    def test_are_as_large_as_told(
        self, service: TokenService, settings: Settings, ada: User, batch: int, batches: int
    ) -> None:
        add_logins(settings, dead_rows(ada, 10))
        with statements(service) as sent:
            report = service.purge(batch=batch)
        assert (report.purged, report.batches, report.complete) == (10, batches, True)
        # And the record of the run, and its seal. A server tells only by the next search that a full batch
        # was the last one; on a file that is no write.
        searched = is_postgres(settings) and 10 % batch == 0
        assert write_transactions(sent) == batches + 2 + searched

    def test_skip_the_living_between_the_dead(
        self, service: TokenService, settings: Settings, ada: User
    ) -> None:
        living = add_logins(settings, [login_row(i, ada.id) for i in range(1, 40, 2)])
        add_logins(settings, [dead_rows(ada, 1, i)[0] for i in range(2, 41, 2)])
        assert service.purge(batch=7).purged == 20
        assert left(service) == set(living)

    def test_a_login_that_comes_alive_between_search_and_deletion_is_kept(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock
    ) -> None:
        """Deleting judges again: here a row between two dead ones is live by the time it is its turn."""
        dead = add_logins(settings, dead_rows(ada, 6))

        def revive(done: int, total: int) -> None:
            if done == 2:
                run_sql(
                    settings,
                    "UPDATE refresh_tokens SET revoked_at = NULL, revoked_reason = NULL, rotated_at = ?"
                    " WHERE id = ?",
                    START,
                    bytes.fromhex(dead[4].removeprefix("rt_")),
                )

        assert service.purge(batch=2, progress=revive).purged == 5
        assert left(service) == {dead[4]}

    def test_report_their_progress(self, service: TokenService, settings: Settings, ada: User) -> None:
        add_logins(settings, dead_rows(ada, 10))
        seen: list[tuple[int, int]] = []
        service.purge(batch=4, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]

    def test_stop_when_told_and_go_on_in_the_next_run(
        self, service: TokenService, settings: Settings, ada: User
    ) -> None:
        add_logins(settings, dead_rows(ada, 10))
        asked: list[None] = []

        def stop() -> bool:
            asked.append(None)
            return len(asked) > 2

        first = service.purge(batch=3, stop=stop)
        assert (first.purged, first.batches, first.complete) == (6, 2, False)
        second = service.purge(batch=3)
        assert (second.purged, second.batches, second.complete) == (4, 2, True)
        records = [event for event in service.audit.tail() if event.type == "purge"]
        assert [(event.data["purged"], event.data["complete"]) for event in records] == [
            (6, False),
            (4, True),
        ]

    @pytest.mark.parametrize(
        ("max_runtime", "complete"), [(timedelta(0), False), (timedelta(hours=1), True)], ids=["none", "1 h"]
    )
    def test_stop_when_the_time_is_over(
        self,
        service: TokenService,
        settings: Settings,
        ada: User,
        max_runtime: timedelta,
        complete: bool,
    ) -> None:
        add_logins(settings, dead_rows(ada, 5))
        report = service.purge(batch=1, max_runtime=max_runtime)
        assert (report.complete, report.purged) == (complete, 5 if complete else 0)

    @pytest.mark.parametrize("batch", [1, 3, 4, 100])
    def test_stop_after_so_many_rows(
        self, service: TokenService, settings: Settings, ada: User, batch: int
    ) -> None:
        add_logins(settings, dead_rows(ada, 10))
        rehearsed = service.purge(max_rows=4, dry_run=True)
        assert (rehearsed.purged, rehearsed.complete) == (4, False)
        found = []
        for _ in range(3):
            report = service.purge(max_rows=4, batch=batch)
            found.append((report.purged, report.complete, len(left(service))))
        assert found == [(4, False, 6), (4, False, 2), (2, True, 0)]

    @pytest.mark.parametrize("batch", [1, 3, 6, 100])
    def test_that_many_and_no_more_is_all(
        self, service: TokenService, settings: Settings, ada: User, batch: int
    ) -> None:
        living = add_logins(settings, [login_row(100, ada.id)])
        add_logins(settings, dead_rows(ada, 6))
        report = service.purge(max_rows=6, batch=batch)
        assert (report.purged, report.complete) == (6, True)
        assert left(service) == set(living)

    def test_a_run_leaves_its_record(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock
    ) -> None:
        add_logins(settings, dead_rows(ada, 5))
        service.purge(actor="cron")
        event = service.audit.tail()[-1]
        assert (event.at, event.type, event.actor) == (clock(), "purge", "cron")
        assert event.data == {"purged": 5, "batches": 1, "complete": True}


class TestDryRun:
    def test_counts_and_changes_nothing(self, service: TokenService, settings: Settings, ada: User) -> None:
        add_logins(settings, dead_rows(ada, 5))
        before = dump(settings)
        report = service.purge(dry_run=True)
        assert (report.purged, report.batches, report.dry_run) == (5, 0, True)
        assert dump(settings) == before
        done = service.purge()
        assert (done.purged, done.dead_since) == (report.purged, report.dead_since)


class TestOneRunner:
    def test_the_second_is_told_who_the_first_is(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock
    ) -> None:
        add_logins(settings, dead_rows(ada, 2))
        refused: list[DatabaseLocked] = []

        def run_another(done: int, total: int) -> None:
            with TokenService(settings, clock=clock) as other, pytest.raises(DatabaseLocked) as caught:
                other.purge()
            refused.append(caught.value)

        assert service.purge(progress=run_another).purged == 2
        assert refused
        for error in refused:
            assert "already running" in error.message
            assert error.facts["pid"] == os.getpid()
            assert str(os.getpid()) in error.message
        assert service.purge().complete

    def test_rotations_go_on_meanwhile(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock
    ) -> None:
        pair = service.issue("ada")
        add_logins(settings, dead_rows(ada, 6))
        strings = [pair.refresh_token]
        with TokenService(settings, clock=clock) as other:

            def rotate(done: int, total: int) -> None:
                strings.append(other.rotate(strings[-1]).refresh_token)

            assert service.purge(batch=2, progress=rotate).purged == 6
        assert service.inspect(pair.token_id).token.generation == len(strings) - 1 == 4


PURGER = """
import sys
from tests.conftest import START
from tokenctl import Settings, TokenService
from tokenctl.errors import DatabaseLocked

settings = Settings(database=sys.argv[1], key_file=sys.argv[2])
with TokenService(settings, clock=lambda: START) as service:
    def tell(done, total):
        print(done, flush=True)
    try:
        done = service.purge(batch=int(sys.argv[3]), progress=tell)
        print("done", done.purged, done.complete, flush=True)
    except DatabaseLocked as error:
        print("locked", error.facts["pid"], flush=True)
"""


def start_purge(settings: Settings, batch: int) -> subprocess.Popen[str]:
    """In a process of its own, which prints how many rows are deleted after each batch."""
    return subprocess.Popen(
        [sys.executable, "-c", PURGER, settings.database, str(key_file(settings)), str(batch)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from (line.strip() for line in process.stdout)


class TestAtScale:
    """Processes and threads, on the real database."""

    def test_killed_at_any_moment_it_is_resumed(
        self, service: TokenService, settings: Settings, ada: User
    ) -> None:
        living = add_logins(settings, [login_row(i, ada.id) for i in range(1, 6_000, 3)])
        add_logins(settings, [row for i in range(2, 6_000, 3) for row in dead_rows(ada, 2, i)])
        before = 6_000
        for batches in (1, 2, 5, 3, 8):
            with start_purge(settings, 20) as process:
                for number, _ in enumerate(lines_of(process)):
                    if number == batches:
                        process.kill()
                        break
                process.kill()
            rest = len(left(service))
            assert len(living) < rest < before
            # Each batch with its event, or neither.
            [(events,)] = run_sql(settings, "SELECT count(*) FROM events WHERE type = 'purge.batch'")
            assert events * 20 == 6_000 - rest
            before = rest
        done = service.purge(lock_wait=timedelta(seconds=20))
        assert (done.purged, done.complete) == (before - len(living), True)
        assert left(service) == set(living)
        recorded = [event.data["purged"] for event in service.audit.tail(10_000, types=["purge.batch"])]
        assert sum(recorded) == 6_000 - len(living)

    def test_of_two_at_once_one_is_at_work(
        self, service: TokenService, settings: Settings, ada: User
    ) -> None:
        living = add_logins(settings, [login_row(i, ada.id) for i in range(1, 1_000, 2)])
        add_logins(settings, [dead_rows(ada, 1, i)[0] for i in range(2, 1_001, 2)])
        with start_purge(settings, 1) as first:
            said = lines_of(first)
            assert next(said) == "0"
            first.send_signal(signal.SIGSTOP)
            with start_purge(settings, 1) as second:
                answers = list(lines_of(second))
            first.send_signal(signal.SIGCONT)
            assert answers == [f"locked {first.pid}"]
            assert list(said)[-1] == "done 500 True"
        assert left(service) == set(living)

    def test_logins_are_issued_rotated_and_revoked_meanwhile(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock
    ) -> None:
        add_logins(settings, dead_rows(ada, 3_000))
        ended = threading.Event()

        def live() -> tuple[TokenPair, int, list[str]]:
            """One client: its newest pair, how often it rotated, and the logins that it ended."""
            mine, rotations, revoked = service.issue("ada"), 0, []
            while not ended.is_set() or rotations < 3:
                mine, rotations = service.rotate(mine.refresh_token), rotations + 1
                other = service.issue("ada")
                service.revoke([other.token_id], reason="x")
                revoked.append(other.token_id)
            return mine, rotations, revoked

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(live) for _ in range(4)]
            with TokenService(settings, clock=clock) as night:
                done = night.purge(batch=100)
            ended.set()
            found = [client.result(60) for client in clients]
        assert (done.purged, done.complete) == (3_000, True)
        assert left(service) == {pair.token_id for pair, _, _ in found} | {
            id_ for _, _, revoked in found for id_ in revoked
        }
        for pair, rotations, _ in found:
            assert service.inspect(pair.token_id).token.generation == rotations
            assert not service.rotate(pair.refresh_token).retried


class TestSuspectClock:
    @pytest.mark.parametrize(
        ("retention", "ahead", "suspect"),
        [
            pytest.param(WEEK, WEEK, False, id="as long as the retention"),
            pytest.param(WEEK, WEEK + TICK, True, id="longer than the retention"),
            pytest.param(timedelta(0), timedelta(days=1), False, id="a day"),
            pytest.param(timedelta(0), timedelta(days=1) + TICK, True, id="longer than a day"),
            pytest.param(WEEK, timedelta(days=365), True, id="a year"),
            pytest.param(WEEK, timedelta(days=-365), False, id="a year back"),
        ],
    )
    def test_nothing_is_deleted(
        self,
        service: TokenService,
        settings: Settings,
        ada: User,
        clock: Clock,
        retention: timedelta,
        ahead: timedelta,
        suspect: bool,
    ) -> None:
        add_logins(settings, dead_rows(ada, 3))
        clock.advance(ahead)
        before = dump(settings)
        if not suspect:
            assert service.purge(retention=retention).complete
            return
        with pytest.raises(ClockSuspect) as caught:
            service.purge(retention=retention)
        assert "--force" in caught.value.hint
        assert dump(settings) == before
        assert service.purge(retention=retention, force=True).purged == 3
        # The run was a write: the clock is believed from now on.
        assert service.purge(retention=retention).complete

    @pytest.mark.parametrize("write", ["refused refresh", "wrong password", "new login"])
    def test_a_write_under_the_wrong_clock_does_not_make_it_right(
        self, service: TokenService, ada: User, clock: Clock, write: str
    ) -> None:
        pair = service.issue("ada")
        clock.advance(timedelta(days=365))
        with suppress(TokenRefused, WrongPassword):
            {
                "refused refresh": lambda: service.rotate(pair.refresh_token),
                "wrong password": lambda: service.login("ada", "not the password"),
                "new login": lambda: service.issue("ada"),
            }[write]()
        for _ in range(2):
            with pytest.raises(ClockSuspect):
                service.purge()
        clock.advance(timedelta(days=-364))
        assert service.purge().purged == 0, "put right, it is believed at once"
        assert service.rotate(pair.refresh_token)

    def test_a_rotation_is_a_write_although_it_leaves_no_event(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock
    ) -> None:
        pair: TokenPair = service.issue("ada")
        string = pair.refresh_token
        for _ in range(3):
            clock.advance(timedelta(days=5))
            string = service.rotate(string).refresh_token
        before = event_types(settings)
        clock.advance(timedelta(days=6))
        assert service.purge().complete
        assert event_types(settings) == [*before, "purge"]

    def test_a_database_that_was_never_used_has_nothing_to_compare_with(
        self, settings: Settings, clock: Clock
    ) -> None:
        run_sql(settings, "DELETE FROM events")
        clock.advance(timedelta(days=1000))
        with TokenService(settings, clock=clock, passwords=CHEAP) as service:
            assert service.purge().complete

    def test_a_clock_that_is_put_right_while_the_purge_waits_deletes_nothing_early(
        self, service: TokenService, settings: Settings, ada: User, clock: Clock
    ) -> None:
        """The instant that is judged with must be the one that was found plausible."""
        ids = add_logins(settings, [login_row(1, ada.id, expires_at=START + DAY)])
        times = iter([START + YEAR])
        with (
            TokenService(settings, clock=lambda: next(times, START + SECOND)) as jumpy,
            suppress(ClockSuspect),
        ):
            jumpy.purge()
        assert left(service) == set(ids)
