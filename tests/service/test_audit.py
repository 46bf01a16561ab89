"""The sealed audit log, on each database: what was changed behind our back is found, and named."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from io import BufferedReader, BytesIO, RawIOBase
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

import tokenctl
from tests.conftest import CHEAP, START, Clock, Postgres
from tests.sample import SAMPLE
from tests.service import SECOND, add_rows, is_postgres, key_file, run_sql, statements, write_transactions
from tokenctl import (
    DatabaseError,
    Event,
    InvalidInput,
    KeyMissing,
    KeyWrong,
    Settings,
    TokenService,
    UserNotFound,
    initialise,
)
from tokenctl.core.context import Context
from tokenctl.service.backup import copy
from tokenctl.service.exporting import LONGEST_LINE, export, read_export
from tokenctl.service.sealing import Sealed
from tokenctl.service.verifying import MOST_FINDINGS, FindingKind, Verification
from tokenctl.storage import segments
from tokenctl.storage.segments import MOST_EVENTS

Found = list[tuple[str, int | None, int | None]]


def add_events(settings: Settings, number: int, **columns: Any) -> None:
    """Events as a use case would leave them, many faster."""
    row = {
        "at": START,
        "type": "token.revoke",
        "actor": "nina",
        "user_id": b"u" * 16,
        "token_id": b"t" * 16,
        "client_id": "web",
        "ip": b"\0" * 10 + b"\xff\xff" + bytes([192, 0, 2, 1]),
        "reason": "INC-7",
        "data": '{"access_until":1772367000000000}',
    }
    add_rows(settings, "events", [row | columns for _ in range(number)])


def found(done: Verification) -> Found:
    return [(str(each.kind), each.segment, each.event_id) for each in done.findings]


def ids_of(settings: Settings, segment: int) -> list[int]:
    rows = run_sql(settings, "SELECT id FROM events WHERE segment = ? ORDER BY id", segment)
    return [event_id for (event_id,) in rows]


@pytest.fixture
def sealed(service: TokenService, settings: Settings, clock: Clock) -> TokenService:
    """Three segments of five events each; the first also has the one of the database's making."""
    for _ in range(3):
        add_events(settings, 5)
        clock.advance(timedelta(minutes=1))
        service.audit.seal()
    return service


# sealing


def test_nothing_is_sealed_at_first(service: TokenService) -> None:
    assert service.audit._head() is None
    assert service.audit.unsealed() == 1


def test_what_is_committed_goes_into_the_next_segment(
    service: TokenService, settings: Settings, clock: Clock
) -> None:
    assert service.audit.seal() == Sealed(segments=1, events=1)
    assert service.audit.seal() == Sealed(segments=0, events=0)
    service.create_user("ada")
    service.issue("ada")
    clock.advance(timedelta(seconds=1))
    assert service.audit.seal() == Sealed(segments=1, events=2)
    head = service.audit.head()
    assert head is not None
    assert (head.number, head.sealed_at) == (2, START + SECOND)
    done = service.audit.verify(str(head))
    assert (done.segments, done.events, done.unsealed, done.head) == (2, 3, 0, head)
    assert done.holds


def test_a_backlog_is_sealed_in_segments_of_a_bounded_size(service: TokenService, settings: Settings) -> None:
    # The user makes an event, too.
    add_events(settings, 2 * MOST_EVENTS + 50)
    with statements(service) as sent:
        assert service.audit.seal() == Sealed(segments=3, events=2 * MOST_EVENTS + 51)
    assert write_transactions(sent) == 3
    sizes = run_sql(settings, "SELECT number, events FROM segments ORDER BY number")
    assert [tuple(row) for row in sizes] == [(1, MOST_EVENTS), (2, MOST_EVENTS), (3, 51)]
    progress: list[int] = []
    assert service.audit.verify(progress=progress.append).holds
    assert sum(progress) == 2 * MOST_EVENTS + 51


def test_gaps_in_the_ids_hide_nothing(service: TokenService, settings: Settings) -> None:
    add_events(settings, 3)
    for far in (10_000, 20_000):
        add_rows(settings, "events", [{"id": far, "at": START, "type": "purge", "data": "{}"}])
    assert service.audit.seal().events == 6
    assert service.audit.verify().holds


@pytest.mark.parametrize("far", [6_000, 2**63 - 100])
def test_a_gap_behind_full_segments_hides_nothing(
    service: TokenService, settings: Settings, far: int
) -> None:
    """Such as ids that a large transaction took and rolled back."""
    add_events(settings, 2 * MOST_EVENTS - 1)
    row = {"at": START, "type": "user.create", "data": "{}"}
    add_rows(settings, "events", [row | {"id": far + number} for number in range(100)])
    events = 2 * MOST_EVENTS + 100
    assert service.audit.seal() == Sealed(segments=3, events=events)
    assert service.audit.unsealed() == 0
    assert sum("event" in json.loads(line) for line in lines_of(service)) == events


def test_stopped_after_the_first_segment_the_next_run_goes_on(
    service: TokenService, settings: Settings
) -> None:
    add_events(settings, 2 * MOST_EVENTS + 50)
    asked = count()
    assert service.audit.seal(lambda: next(asked) > 0) == Sealed(segments=1, events=MOST_EVENTS)
    assert service.audit.unsealed() == MOST_EVENTS + 51
    assert service.audit.seal() == Sealed(segments=2, events=MOST_EVENTS + 51)
    assert service.audit.verify().holds


def test_a_segment_that_the_database_refuses_leaves_nothing_behind(
    service: TokenService, settings: Settings
) -> None:
    """As a kill between the two statements would: they are one transaction."""
    if is_postgres(settings):
        run_sql(settings, "ALTER TABLE events ADD CONSTRAINT fault CHECK (segment IS NULL)")
    else:
        run_sql(
            settings,
            "CREATE TRIGGER fault BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'fault'); END",
        )
    with pytest.raises(DatabaseError, match=r"refused a value|fault"):
        service.audit.seal()
    assert run_sql(settings, "SELECT number FROM segments") == []
    assert service.audit.unsealed() == 1


def test_any_number_of_sealers_leave_one_chain(service: TokenService, settings: Settings) -> None:
    add_events(settings, 6_000)
    failed: list[BaseException] = []
    sealed: list[Sealed] = []
    gate = threading.Barrier(4)

    def work() -> None:
        try:
            with TokenService(settings) as another:
                gate.wait()
                sealed.append(another.audit.seal())
        except BaseException as error:  # noqa: BLE001 - the test's own to report
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    service.audit.seal()
    done = service.audit.verify()
    assert done.holds
    assert (done.events, done.unsealed) == (6_001, 0)
    assert sum(each.events for each in sealed) == 6_001


def test_a_purge_seals_at_its_end(service: TokenService, settings: Settings) -> None:
    service.purge()
    assert service.audit.unsealed() == 0
    assert [event.type for event in service.audit.search()][-1] == "purge"
    assert service.audit.verify().holds


def test_a_purge_needs_no_key_and_seals_nothing_then(service: TokenService, settings: Settings) -> None:
    key = key_file(settings)
    text = key.read_text()
    for spoilt in (None, "tkm1_" + "A" * 43, "junk"):
        key.unlink()
        if spoilt is not None:
            key.write_text(spoilt)
        with TokenService(settings, passwords=CHEAP, clock=lambda: START) as without:
            assert without.purge().complete
        key.write_text(text)
    assert service.audit._head() is None


# an event that commits late (PostgreSQL; SQLite has one writer)


def test_an_event_that_commits_late_comes_into_a_later_segment(
    postgres: Postgres, tmp_path: Path, clock: Clock
) -> None:
    with postgres.new() as url:
        settings = Settings(database=url, key_file=str(tmp_path / "key"))
        (tmp_path / "key").write_text(_key_text())
        with TokenService(settings, clock=clock) as service, closing(psycopg.connect(url)) as late:
            insert = "INSERT INTO events (at, type, data) VALUES (1, 'late', '{}') RETURNING id"
            [held] = late.execute(insert).fetchall()
            service.create_user("ada")
            assert service.audit.seal() == Sealed(segments=1, events=2)
            first = ids_of(settings, 1)
            assert first[0] < held[0] < first[-1]
            late.commit()
            done = service.audit.verify()
            assert done.holds
            assert (done.segments, done.events, done.unsealed) == (2, 3, 0)
            assert ids_of(settings, 2) == [held[0]]


def test_a_sealer_waits_for_no_row_that_another_has(postgres: Postgres, tmp_path: Path, clock: Clock) -> None:
    with postgres.new() as url:
        settings = Settings(database=url, key_file=str(tmp_path / "key"))
        (tmp_path / "key").write_text(_key_text())
        with TokenService(settings, clock=clock) as service, closing(psycopg.connect(url)) as another:
            service.create_user("ada")
            [[held]] = another.execute("SELECT max(id) FROM events").fetchall()
            another.execute("SELECT id FROM events WHERE id = %s FOR UPDATE", [held])
            assert service.audit.seal() == Sealed(segments=1, events=1)
            another.rollback()
            assert service.audit.seal() == Sealed(segments=1, events=1)
            assert service.audit.verify().holds


def test_a_large_transaction_that_commits_late_hides_nothing_behind_it(
    postgres: Postgres, tmp_path: Path, clock: Clock
) -> None:
    """It fills two segments to the last place, and what comes next is sealed already."""
    insert = b"INSERT INTO events (at, type, data) SELECT 1, 'x', '{}' FROM generate_series(1, %d)"
    with postgres.new() as url:
        settings = Settings(database=url, key_file=str(tmp_path / "key"))
        (tmp_path / "key").write_text(_key_text())
        with TokenService(settings, clock=clock) as service, closing(psycopg.connect(url)) as late:
            service.audit.seal()
            late.execute(insert % 1_000)
            run_sql(settings, (insert % 3_000).decode())
            assert service.audit.seal().events == 3_000
            late.commit()
            run_sql(settings, (insert % 300).decode())
            exported = [json.loads(line) for line in lines_of(service)]
            assert sum("event" in line for line in exported) == 4_301
            assert service.audit.unsealed() == 0
            assert service.audit.verify().holds


def test_what_another_has_in_hand_is_passed_over_and_exported(
    postgres: Postgres, tmp_path: Path, clock: Clock
) -> None:
    with postgres.new() as url:
        settings = Settings(database=url, key_file=str(tmp_path / "key"))
        (tmp_path / "key").write_text(_key_text())
        with TokenService(settings, clock=clock) as service, closing(psycopg.connect(url)) as another:
            row = {"at": START, "type": "user.create", "data": "{}"}
            add_rows(settings, "events", [row | {"id": 5_000}, row | {"id": 9_000}])
            another.execute("SELECT id FROM events WHERE id < 9000 FOR UPDATE")
            assert service.audit.seal() == Sealed(segments=1, events=1)
            lines = lines_of(service)
            done = service.audit.verify_export(lines)
            assert (done.holds, done.events, done.unsealed, done.ends_proven) == (True, 1, 2, True)
            another.rollback()
            assert service.audit.seal().events == 2


def _key_text() -> str:
    from tests.conftest import MASTER_KEY
    from tokenctl.core.keys import format_master_key

    return format_master_key(MASTER_KEY) + "\n"


# an event that was changed

_EDITS: list[tuple[str, Any]] = [
    ("at", START + 1),
    ("type", "token.issue"),
    ("actor", "mallory"),
    ("actor", None),
    ("actor", ""),
    ("user_id", b"x" * 16),
    ("user_id", None),
    ("token_id", b"x" * 16),
    ("token_id", None),
    ("client_id", "web2"),
    ("client_id", None),
    ("ip", b"\0" * 16),
    ("ip", None),
    ("reason", "INC-8"),
    ("reason", None),
    ("data", '{"access_until":1772367000000001}'),
    ("data", '{"access_until": 1772367000000000}'),
    ("data", "no JSON"),
    ("segment", None),
    ("segment", 1),
    ("segment", 4),
    ("segment", -1),
]


@pytest.mark.parametrize(
    ("column", "value"), [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in _EDITS]
)
def test_an_edited_event_is_named(sealed: TokenService, settings: Settings, column: str, value: Any) -> None:
    event_id = ids_of(settings, 2)[2]
    run_sql(settings, f"UPDATE events SET {column} = ? WHERE id = ?", value, event_id)
    there = {(FindingKind.EDITED_EVENT, 2, event_id)}
    # Another segment's it is not, and without one it is sealed once more, in vain.
    strayed = {(FindingKind.INSERTED_EVENT, value, event_id)} if column == "segment" and value else set()
    assert set(found(sealed.audit.verify())) == there | strayed


def test_an_edited_id_is_a_deleted_and_an_inserted_event(sealed: TokenService, settings: Settings) -> None:
    event_id = ids_of(settings, 2)[2]
    run_sql(settings, "UPDATE events SET id = 900 WHERE id = ?", event_id)
    assert found(sealed.audit.verify()) == [
        (FindingKind.INSERTED_EVENT, 2, 900),
        (FindingKind.DELETED_EVENT, 2, event_id),
    ]


def test_a_text_that_is_none_is_found_and_named(sealed: TokenService, settings: Settings) -> None:
    event_id = ids_of(settings, 2)[2]
    if is_postgres(settings):  # it lets none in
        with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
            run_sql(settings, "UPDATE events SET reason = convert_from('\\x494e43ff', 'UTF8')")
        return
    run_sql(settings, "UPDATE events SET reason = CAST(x'494e43ff' AS TEXT) WHERE id = ?", event_id)
    assert found(sealed.audit.verify()) == [(FindingKind.EDITED_EVENT, 2, event_id)]
    lines = [json.dumps(line) for line in sealed.audit.export()]
    assert found(sealed.audit.verify_export(lines)) == [(FindingKind.EDITED_EVENT, 2, event_id)]


def _force(settings: Settings, change: str, event_id: int) -> None:
    """A change that no constraint lets in."""
    if is_postgres(settings):
        run_sql(settings, "ALTER TABLE events DROP CONSTRAINT ck_events_ip")
        run_sql(settings, f"UPDATE events SET {change} WHERE id = ?", event_id)
        return
    with closing(sqlite3.connect(settings.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute(f"UPDATE events SET {change} WHERE id = ?", [event_id])


@pytest.mark.parametrize(
    ("change", "column", "seen"),
    [
        pytest.param({"sqlite": "ip = x'00ff'", "pg": "ip = '\\x00ff'"}, "ip_text", "00ff", id="ip"),
        pytest.param({"sqlite": "ip = x''", "pg": "ip = ''"}, "ip_text", "", id="no ip"),
        pytest.param({"sqlite": "reason = CAST(x'494e43ff' AS TEXT)"}, "reason", "INC\udcff", id="no text"),
        pytest.param({"sqlite": "type = CAST(x'78ff' AS TEXT)"}, "type", "x\udcff", id="no type"),
        pytest.param(
            dict.fromkeys(("sqlite", "pg"), "data = '[1]'"), "data", {"unreadable": "[1]"}, id="data"
        ),
        pytest.param(
            dict.fromkeys(("sqlite", "pg"), f"data = '{{\"a\":{'[' * 700}{']' * 700}}}'"),
            "data",
            {"unreadable": f'{{"a":{"[" * 700}{"]" * 700}}}'},
            id="deep data",
        ),
    ],
)
def test_a_tampered_event_hides_no_other(
    sealed: TokenService, settings: Settings, change: dict[str, str], column: str, seen: Any
) -> None:
    kind = "pg" if is_postgres(settings) else "sqlite"
    if kind not in change:  # it lets none in: see above
        return
    event_id = ids_of(settings, 2)[2]
    _force(settings, change[kind], event_id)
    token = "rt_" + b"t".hex() * 16
    audit = sealed.audit
    for read in (audit.tail(100), audit.after(0), [*audit.search()], [*audit.search(token_id=[token])]):
        assert len(read) in {15, 16}
        [event] = [event for event in read if event.id == event_id]
        assert getattr(event, column) == seen
    lines = lines_of(sealed)
    assert found(audit.verify()) == found(audit.verify_export(lines)) == [("edited_event", 2, event_id)]


@pytest.mark.parametrize("place", [0, 2, -1])
@pytest.mark.parametrize("segment", [1, 2, 3])
def test_a_deleted_event_is_named(sealed: TokenService, settings: Settings, segment: int, place: int) -> None:
    event_id = ids_of(settings, segment)[place]
    run_sql(settings, "DELETE FROM events WHERE id = ?", event_id)
    assert found(sealed.audit.verify()) == [(FindingKind.DELETED_EVENT, segment, event_id)]


@pytest.mark.parametrize("segment", [1, 3, 4, 99, 0])
def test_an_inserted_event_is_named(sealed: TokenService, settings: Settings, segment: int) -> None:
    add_events(settings, 1, segment=segment)
    [(event_id,)] = run_sql(settings, "SELECT max(id) FROM events")
    assert found(sealed.audit.verify()) == [(FindingKind.INSERTED_EVENT, segment, event_id)]


def test_two_events_that_changed_places_are_both_named(sealed: TokenService, settings: Settings) -> None:
    one, other = ids_of(settings, 1)[:2]
    run_sql(settings, "UPDATE events SET id = 901 WHERE id = ?", one)
    run_sql(settings, "UPDATE events SET id = ? WHERE id = ?", one, other)
    run_sql(settings, "UPDATE events SET id = ? WHERE id = 901", other)
    assert [event_id for _, _, event_id in found(sealed.audit.verify())] == [one, other]


def test_an_event_that_was_edited_before_it_was_sealed_is_not_found(
    service: TokenService, settings: Settings
) -> None:
    """The documented limit: what is not sealed yet is not protected."""
    add_events(settings, 1)
    run_sql(settings, "UPDATE events SET actor = 'mallory'")
    assert service.audit.verify().holds


def test_more_findings_than_anybody_reads_are_counted(sealed: TokenService, settings: Settings) -> None:
    add_events(settings, MOST_FINDINGS + 5, segment=2)
    done = sealed.audit.verify()
    assert (len(done.findings), done.found) == (MOST_FINDINGS, MOST_FINDINGS + 5)
    assert not done.holds


# a segment that was changed


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param("sealed_at = sealed_at + 1", "edited_segment", id="sealed_at"),
        pytest.param("events = events + 1", "edited_segment", id="events"),
        pytest.param("mac = (SELECT mac FROM segments WHERE number = 3)", "edited_segment", id="mac"),
        pytest.param(
            "members = (SELECT members FROM segments WHERE number = 3)", "edited_segment", id="members"
        ),
        pytest.param("number = 7", "missing_segment", id="number"),
    ],
)
def test_an_edited_segment_is_named(
    sealed: TokenService, settings: Settings, change: str, expected: str
) -> None:
    before = sealed.audit._head()
    run_sql(settings, f"UPDATE segments SET {change} WHERE number = 2")
    done = sealed.audit.verify()
    assert (expected, 2, None) in found(done)
    if change.startswith(("sealed_at", "events", "mac")):
        assert found(done) == [(expected, 2, None)], "the one behind it is right, and so are the events"
    assert before is not None


def test_members_of_half_an_entry_are_found(sealed: TokenService, settings: Settings) -> None:
    [(members,)] = run_sql(settings, "SELECT members FROM segments WHERE number = 2")
    run_sql(settings, "UPDATE segments SET members = ? WHERE number = 2", bytes(members)[:-1])
    assert (FindingKind.EDITED_SEGMENT, 2, None) in found(sealed.audit.verify())


@pytest.mark.parametrize("number", [1, 2])
def test_a_deleted_segment_is_named(sealed: TokenService, settings: Settings, number: int) -> None:
    run_sql(settings, "DELETE FROM segments WHERE number = ?", number)
    [finding] = sealed.audit.verify().findings
    assert (finding.kind, finding.segment) == (FindingKind.MISSING_SEGMENT, number)
    assert f"events that name what is missing: {6 if number == 1 else 5}" in finding.detail


def test_a_segment_deleted_with_its_events_is_named(sealed: TokenService, settings: Settings) -> None:
    run_sql(settings, "DELETE FROM segments WHERE number = 2")
    run_sql(settings, "DELETE FROM events WHERE segment = 2")
    assert found(sealed.audit.verify()) == [(FindingKind.MISSING_SEGMENT, 2, None)]


def test_an_inserted_segment_is_named(sealed: TokenService, settings: Settings) -> None:
    add_events(settings, 1, segment=4)
    run_sql(
        settings,
        "INSERT INTO segments SELECT 4, sealed_at, events, members, mac FROM segments WHERE number = 3",
    )
    kinds = {(kind, segment) for kind, segment, _ in found(sealed.audit.verify())}
    assert (FindingKind.EDITED_SEGMENT, 4) in kinds
    assert (FindingKind.INSERTED_EVENT, 4) in kinds


# the end of the chain


def cut(settings: Settings, number: int) -> None:
    """The newest segments with their events, as if they had never been."""
    run_sql(settings, "DELETE FROM segments WHERE number >= ?", number)
    run_sql(settings, "DELETE FROM events WHERE segment >= ?", number)


def test_a_cut_end_is_found_by_a_head_that_was_kept(sealed: TokenService, settings: Settings) -> None:
    kept = str(sealed.audit.head())
    cut(settings, 3)
    assert sealed.audit.verify().holds, "the documented limit: nothing in the database tells"
    assert found(sealed.audit.verify(kept)) == [(FindingKind.CUT, 3, None)]


def test_a_cut_end_that_grew_again_is_found_by_the_head(sealed: TokenService, settings: Settings) -> None:
    kept = str(sealed.audit.head())
    cut(settings, 3)
    add_events(settings, 5)
    assert sealed.audit.verify().holds
    assert found(sealed.audit.verify(kept)) == [(FindingKind.REWRITTEN, 3, None)]


def test_all_cut_is_found_by_the_head(sealed: TokenService, settings: Settings) -> None:
    kept = str(sealed.audit.head())
    run_sql(settings, "DELETE FROM segments")
    run_sql(settings, "DELETE FROM events")
    assert found(sealed.audit.verify(kept)) == [(FindingKind.CUT, 3, None)]
    assert sealed.audit.verify().head is None


def test_events_left_of_a_cut_segment_are_found_without_a_head(
    sealed: TokenService, settings: Settings
) -> None:
    left = ids_of(settings, 3)
    run_sql(settings, "DELETE FROM segments WHERE number = 3")
    assert found(sealed.audit.verify()) == [(FindingKind.INSERTED_EVENT, 3, each) for each in left]


def test_a_log_that_was_sealed_anew_is_found_by_the_head(
    sealed: TokenService, settings: Settings, clock: Clock
) -> None:
    kept = str(sealed.audit.head())
    run_sql(settings, "UPDATE events SET segment = NULL, actor = 'mallory'")
    run_sql(settings, "DELETE FROM segments")
    clock.advance(timedelta(seconds=1))
    assert sealed.audit.verify().holds
    [finding] = sealed.audit.verify(kept).findings
    assert finding.kind in (FindingKind.CUT, FindingKind.REWRITTEN)


def test_an_older_head_holds_too(sealed: TokenService, settings: Settings) -> None:
    kept = str(sealed.audit.head())
    add_events(settings, 5)
    done = sealed.audit.verify(kept)
    assert done.holds
    assert done.head is not None
    assert done.head.number == 4


def test_what_is_no_head_is_refused(sealed: TokenService) -> None:
    with pytest.raises(InvalidInput, match="is not the head"):
        sealed.audit.verify("17")


# the key


def test_without_the_key_it_can_be_read_and_not_verified(sealed: TokenService, settings: Settings) -> None:
    key_file(settings).unlink()
    add_events(settings, 2)
    with TokenService(settings) as without:
        assert not without.audit.can_seal
        assert without.audit.unsealed() == 2
        head = without.audit.head()
        assert head is not None
        assert head.number == 3
        for call in (without.audit.verify, without.audit.seal, lambda: without.audit.verify_export([])):
            with pytest.raises(KeyMissing) as missing:
                call()
            assert "--key-file" in missing.value.hint


def test_another_key_is_refused(sealed: TokenService, settings: Settings) -> None:
    key_file(settings).write_text("tkm1_" + "A" * 43)
    with TokenService(settings) as other, pytest.raises(KeyWrong):
        other.audit.verify()


# copies


def test_the_seal_survives_a_copy_to_the_other_database(
    sealed: TokenService, settings: Settings, tmp_path: Path, postgres: Postgres
) -> None:
    kept = str(sealed.audit.head())
    with postgres.empty() as url:
        target = str(tmp_path / "copied.db") if is_postgres(settings) else url
        copy(settings, target)
        there = replace(settings, database=target, key_file=str(key_file(settings)))
        with TokenService(there) as copied:
            assert copied.audit.verify(kept).holds


# searching


@pytest.fixture
def eventful(service: TokenService, clock: Clock) -> TokenService:
    """Users, logins from two addresses, revocations with reasons."""
    for name, ip in (("ada", "192.0.2.1"), ("bob", "198.51.100.7")):
        service.create_user(name, actor="nina")
        clock.advance(timedelta(hours=1))
        pair = service.issue(name, context=Context.of(ip=ip), actor="web 1")
        clock.advance(timedelta(hours=1))
        service.revoke([pair.token_id], reason=f"INC-7 {name}", actor="nina")
    return service


def types(events: Iterator[Event]) -> list[str]:
    return [event.type for event in events]


ALL = [
    "key.create", "user.create", "token.issue", "token.revoke", "user.create", "token.issue", "token.revoke",
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, ALL, id="all"),
        pytest.param({"user": ["ada"]}, ALL[1:4], id="user"),
        pytest.param({"user": ["ADA", "bob"]}, ALL[1:], id="users"),
        pytest.param({"types": ["token.issue"]}, ["token.issue"] * 2, id="type"),
        pytest.param({"types": ["user.*", "key.creat?"]}, ["key.create", *["user.create"] * 2], id="types"),
        pytest.param({"types": ["token"]}, [], id="no beginning of a type"),
        pytest.param({"types": ["TOKEN.*"]}, [], id="case"),
        pytest.param({"types": ["token_issue"]}, [], id="no wildcard of LIKE"),
        pytest.param({"reason": ["INC-7*"]}, ["token.revoke"] * 2, id="reason"),
        pytest.param({"reason": ["INC-7 ada"]}, ["token.revoke"], id="the whole reason"),
        pytest.param({"reason": ["INC-7"]}, [], id="a part of the reason"),
        pytest.param({"actor": ["web 1"]}, ["token.issue"] * 2, id="actor"),
        pytest.param({"actor": ["n*"], "user": ["ada"]}, ["user.create", "token.revoke"], id="and"),
        pytest.param({"ip": ["192.0.2.1"]}, ["token.issue"], id="address"),
        pytest.param({"ip": ["192.0.2.0/24", "198.51.100.0/24"]}, ["token.issue"] * 2, id="networks"),
        pytest.param({"client": ["default"]}, ["token.issue", "token.revoke"] * 2, id="client"),
        pytest.param({"client": ["gone"]}, [], id="a client that is not there"),
        pytest.param({"since": START + 7200 * SECOND}, ALL[3:], id="since"),
        pytest.param({"until": START + 7200 * SECOND}, ALL[:3], id="until"),
    ],
)
def test_a_search_finds(eventful: TokenService, given: dict[str, Any], expected: list[str]) -> None:
    assert types(eventful.audit.search(**given)) == expected


def test_a_search_by_token_and_for_a_user_who_is_gone(eventful: TokenService) -> None:
    ada = eventful.users.get("ada")
    [token] = {event.token_id for event in eventful.audit.search(user=["ada"])} - {None}
    assert token is not None
    assert types(eventful.audit.search(token_id=[token.removeprefix("rt_")])) == [
        "token.issue",
        "token.revoke",
    ]
    eventful.users.delete("ada", reason="left")
    assert types(eventful.audit.search(user=[ada.id])) == [*ALL[1:4], "user.delete"]
    with pytest.raises(UserNotFound):
        eventful.audit.search(user=["ada"])


def test_the_newest_of_some_types_are_named_by_the_same_patterns(eventful: TokenService) -> None:
    assert [event.type for event in eventful.audit.tail(types=["token.*", "key.creat?"])] == [
        each for each in ALL if not each.startswith("user")
    ]
    assert [event.type for event in eventful.audit.tail(1, types=["user.create"])] == ["user.create"]
    assert eventful.audit.tail(types=["token"]) == []
    for wrong in ([""], ["a"] * 101):
        with pytest.raises(InvalidInput):
            eventful.audit.tail(types=wrong)


def test_a_search_goes_over_pages(service: TokenService, settings: Settings) -> None:
    add_events(settings, 1_201, reason="many")
    assert len(list(service.audit.search(reason=["many"]))) == 1_201
    assert [event.id for event in service.audit.search()] == list(range(1, 1_203))


def test_the_batches_of_a_purge_come_when_they_are_asked_for(
    service: TokenService, settings: Settings
) -> None:
    add_events(settings, 1, type="purge.batch")
    assert types(service.audit.search()) == ["key.create"]
    assert types(service.audit.search(types=["purge*"])) == ["purge.batch"]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"ip": ["192.0.2.1/24"]}, id="network"),
        pytest.param({"token_id": ["junk"]}, id="token"),
        pytest.param({"user": ["usr_junk"]}, id="user"),
        pytest.param({"client": [""]}, id="client"),
        pytest.param({"types": [""]}, id="type"),
        pytest.param({"reason": ["a\nb"]}, id="reason"),
        pytest.param({"actor": ["a" * 257]}, id="actor"),
        pytest.param({"reason": ["tkr1_" + "A" * 84]}, id="a secret"),
        pytest.param({"since": 2, "until": 2}, id="no time"),
        pytest.param({"types": ["a"] * 101}, id="too many"),
    ],
)
def test_a_search_refuses_what_can_match_nothing(service: TokenService, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.audit.search(**given)
    assert refused.value.hint
    assert "AAAA" not in refused.value.message


# exports


def lines_of(service: TokenService, **given: Any) -> list[str]:
    return [json.dumps(line) for line in service.audit.export(**given)]


def test_an_export_holds_all_of_it(sealed: TokenService, settings: Settings) -> None:
    add_events(settings, 1, reason="größer", data='{"a": 1}', ip=None, actor=None)
    lines = [json.loads(line) for line in lines_of(sealed)]
    assert lines[0]["tokenctl_audit"] == 1
    assert lines[-1] == {"head": str(sealed.audit.head()), "mac": lines[-1]["mac"]}
    chain = [line for line in lines if "segment" in line]
    assert [(line["segment"], line["events"]) for line in chain] == [(1, 6), (2, 5), (3, 5), (4, 1)]
    assert [line["previous"] for line in chain] == ["0" * 64, *(line["mac"] for line in chain[:-1])]
    first = lines[3]
    assert first == {
        "event": 2,
        "at": "2026-03-01T12:00:00.000000Z",
        "type": "token.revoke",
        "actor": "nina",
        "user_id": "usr_" + b"u".hex() * 16,
        "token_id": "rt_" + b"t".hex() * 16,
        "client": "web",
        "ip": "192.0.2.1",
        "reason": "INC-7",
        "data": {"access_until": 1772367000000000},
        "mac": first["mac"],
    }
    assert lines[-2]["data"] == '{"a": 1}', "a text that we have not written stays as it is"
    done = sealed.audit.verify_export(map(json.dumps, lines), lines[-1]["head"])
    assert done.holds
    assert (done.segments, done.events, done.unsealed) == (4, 17, 0)
    assert [line["event"] for line in read_export(map(json.dumps, lines))] == list(range(1, 18))


def test_instants_that_no_calendar_has_survive_an_export(service: TokenService, settings: Settings) -> None:
    for at in (2**63 - 1, -(2**63), -1, 0):
        add_events(settings, 1, at=at)
    assert service.audit.verify_export(lines_of(service)).holds


def test_without_the_key_an_export_ends_with_what_is_not_sealed(
    sealed: TokenService, settings: Settings
) -> None:
    add_events(settings, 2)
    key = key_file(settings)
    text = key.read_text()
    key.unlink()
    with TokenService(settings) as without:
        lines = lines_of(without)
    key.write_text(text)
    assert json.loads(lines[-4]) == {"segment": None}
    assert "mac" not in json.loads(lines[-2])
    assert json.loads(lines[-1])["mac"] is None
    done = sealed.audit.verify_export(lines)
    assert done.holds
    assert (done.segments, done.events, done.unsealed, done.ends_proven) == (3, 16, 2, False)
    assert len(list(read_export(lines))) == 18


def test_a_segment_that_was_sealed_meanwhile_is_there(sealed: TokenService) -> None:
    """Between the last look along the chain and the one behind it another sealer may have been."""
    with sealed._runtime.storage.read() as connection:
        assert segments.strays(connection, 2, archived=0, after=None) == []


def test_a_part_of_the_log_is_whole_segments(service: TokenService, settings: Settings, clock: Clock) -> None:
    for hour in range(1, 5):
        add_events(settings, 2, at=START + hour * 3600 * SECOND)
        service.audit.seal()
    hour = 3600 * SECOND

    def numbers(**given: int) -> list[int]:
        lines = lines_of(service, **given)
        done = service.audit.verify_export(lines)
        assert (done.holds, done.ends_proven) == (True, True)
        assert {name: at for name in ("since", "until") if (at := getattr(done, name)) is not None} == given
        found = [json.loads(line)["segment"] for line in lines if "segment" in line]
        assert (done.first, done.head and done.head.number) == (
            (found[0], found[-1]) if found else (None, None)
        )
        return found

    assert numbers() == [1, 2, 3, 4]
    assert numbers(since=START + 2 * hour) == [2, 3, 4]
    assert numbers(until=START + 2 * hour) == [1]
    assert numbers(since=START + 2 * hour, until=START + 3 * hour + 1) == [2, 3]
    assert numbers(since=START + 9 * hour) == []
    with pytest.raises(InvalidInput):
        service.audit.export(5, 5)


def test_an_export_is_written_whole_or_not_at_all(sealed: TokenService, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert sealed.audit.write_export(path) == 21
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("rb") as file:
        assert sealed.audit.verify_export(file).holds
    content = path.read_bytes()
    with pytest.raises(InvalidInput, match="is there already"):
        sealed.audit.write_export(path)
    assert path.read_bytes() == content


def edited(line: str, **fields: Any) -> str:
    return json.dumps(json.loads(line) | fields)


def place(lines: list[str], **fields: Any) -> int:
    """Where the line with these fields is."""
    [index] = [i for i, line in enumerate(lines) if fields.items() <= json.loads(line).items()]
    return index


@pytest.mark.parametrize(
    "fields",
    [
        {"at": "2026-03-01T12:00:00.000001Z"},
        {"type": "token.issue"},
        {"actor": None},
        {"user_id": "usr_" + "0" * 32},
        {"token_id": None},
        {"client": ""},
        {"ip": "192.0.2.2"},
        {"reason": "INC-8"},
        {"data": {}},
        {"data": {"access_until": 1772367000000000, "more": 1}},
        {"mac": "0" * 32},
    ],
    ids="".join,
)
def test_an_edited_event_of_an_export_is_named(sealed: TokenService, fields: dict[str, Any]) -> None:
    lines = lines_of(sealed)
    index = place(lines, event=9)
    lines[index] = edited(lines[index], **fields)
    assert (FindingKind.EDITED_EVENT, 2, 9) in found(sealed.audit.verify_export(lines))


def test_other_changes_of_an_export_are_found(sealed: TokenService) -> None:
    right = lines_of(sealed)
    segment, event, last = place(right, segment=2), place(right, event=9), len(right) - 1
    inserted = edited(right[event], event=99)
    cases: list[tuple[list[str], str, int | None]] = [
        (right[:event] + right[event + 1 :], "deleted_event", 2),
        ([*right[:event], inserted, *right[event:]], "inserted_event", 2),
        (right[: event + 1] + right[event:], "inserted_event", 2),
        ([*right[:event], edited(right[event], event=99), *right[event + 1 :]], "edited_event", 2),
        ([*right[:event], right[event + 1], right[event], *right[event + 2 :]], "edited_segment", 2),
        (right[:segment] + right[segment + 1 :], "inserted_event", 1),
        (right[:segment] + right[place(right, segment=3) :], "missing_segment", 2),
        (
            [
                *right[:segment],
                edited(right[segment], sealed_at="2026-03-01T12:00:00.000000Z"),
                *right[segment + 1 :],
            ],
            "edited_segment",
            2,
        ),
        (
            [*right[:segment], edited(right[segment], mac="0" * 64), *right[segment + 1 :]],
            "edited_segment",
            2,
        ),
        (
            [*right[:segment], edited(right[segment], previous="0" * 64), *right[segment + 1 :]],
            "edited_segment",
            2,
        ),
        ([*right[:segment], edited(right[segment], events=6), *right[segment + 1 :]], "deleted_event", 2),
        (right[:1] + right[segment:], "missing_segment", 1),
        (right[:-1], "cut", 3),
        (right[: place(right, segment=3)], "cut", 2),
        (right[: place(right, segment=3)] + right[-1:], "cut", 2),
        ([*right[:last], edited(right[last], head=None)], "cut", 3),
        ([*right[:last], edited(right[last], mac="0" * 64)], "edited_export", 3),
        ([*right[:last], '{"head": null}'], "damaged_line", 3),
        ([*right[:event], "junk", *right[event:]], "damaged_line", 2),
        ([*right[:event], '{"event": 1}', *right[event:]], "damaged_line", 2),
        (
            [*right[:event], right[event].replace('"type"', '"type": "x", "type"'), *right[event + 1 :]],
            "damaged_line",
            2,
        ),
        ([*right[:event], right[0], *right[event:]], "damaged_line", 2),
        ([*right, right[event]], "damaged_line", 3),
    ]
    for lines, kind, number in cases:
        done = sealed.audit.verify_export(lines)
        assert (kind, number) in {(each.kind, each.segment) for each in done.findings}, (kind, found(done))


def test_an_export_that_was_cut_cleanly_is_found_by_the_head(sealed: TokenService) -> None:
    right = lines_of(sealed)
    kept = json.loads(right[-1])["head"]
    mac = json.loads(right[place(right, segment=2)])["mac"]
    end = edited(right[-1], head=f"2-{mac}")
    assert found(sealed.audit.verify_export([*right[: place(right, segment=3)], end])) == [
        (FindingKind.EDITED_EXPORT, 2, None)
    ]
    # Without its MAC it is like one that was exported without the key.
    cut_cleanly = [*right[: place(right, segment=3)], edited(end, mac=None)]
    done = sealed.audit.verify_export(cut_cleanly)
    assert (done.holds, done.ends_proven) == (True, False)
    assert found(sealed.audit.verify_export(cut_cleanly, kept)) == [(FindingKind.CUT, 3, None)]


def test_an_export_that_somebody_else_made_is_found(
    sealed: TokenService, settings: Settings, tmp_path: Path
) -> None:
    """Whoever has another key can make a chain, and not this one."""
    other = Settings(database=str(tmp_path / "other.db"))
    initialise(other)
    with TokenService(other) as forger:
        forged = lines_of(forger)
    assert {each.kind for each in sealed.audit.verify_export(forged).findings} == {
        FindingKind.EDITED_EVENT,
        FindingKind.EDITED_SEGMENT,
        FindingKind.EDITED_EXPORT,
    }


@pytest.mark.parametrize("field", ["exported_at", "since", "until"])
@pytest.mark.parametrize("given", [{}, {"since": START - SECOND, "until": START + 3600 * SECOND}], ids=len)
def test_an_edited_first_line_is_found(sealed: TokenService, given: dict[str, int], field: str) -> None:
    lines = lines_of(sealed, **given)
    lines[0] = edited(lines[0], **{field: "2026-03-01T11:58:00.000000Z"})
    assert found(sealed.audit.verify_export(lines)) == [(FindingKind.EDITED_EXPORT, 3, None)]


def test_a_cut_front_of_an_export_is_found(sealed: TokenService) -> None:
    right = lines_of(sealed)
    kept = json.loads(right[-1])["head"]
    marked = edited(right[0], since="2026-03-01T12:00:00.000000Z")
    part = [marked, *right[place(right, segment=2) :]]
    for lines, expected in (
        ([right[0], *part[1:]], [(FindingKind.MISSING_SEGMENT, 1), (FindingKind.EDITED_EXPORT, 3)]),
        (part, [(FindingKind.EDITED_EXPORT, 3)]),
        ([*part[:-1], edited(part[-1], mac=None)], [(FindingKind.CUT, 2)]),
    ):
        done = sealed.audit.verify_export(lines, kept)
        assert [(each.kind, each.segment) for each in done.findings] == expected
        assert not done.ends_proven


def test_a_kept_head_from_before_a_part_is_named(service: TokenService, settings: Settings) -> None:
    head = str(service.audit.head())
    add_events(settings, 1, at=START + 3600 * SECOND)
    lines = lines_of(service, since=START + 1800 * SECOND)
    [finding] = service.audit.verify_export(lines, head).findings
    assert finding.detail.endswith("segment 1, which is not there; the chain begins with 2 and ends with 2")


def test_what_is_not_sealed_is_proven_by_whoever_exported_it_with_the_key(
    sealed: TokenService, settings: Settings
) -> None:
    add_events(settings, 2)
    lines = [json.dumps(line) for line in export(sealed._runtime, since=None, until=None)]
    done = sealed.audit.verify_export(lines)
    assert (done.holds, done.unsealed, done.ends_proven) == (True, 2, True)
    for wrong in (
        [*lines[:-2], edited(lines[-2], actor="mallory"), lines[-1]],
        [*lines[:-2], lines[-1]],
        [*lines[:-2], lines[-2], lines[-2], lines[-1]],
    ):
        assert found(sealed.audit.verify_export(wrong)) == [(FindingKind.EDITED_EXPORT, 3, None)]


def test_the_ends_of_an_export_are_not_asked_of_a_database(sealed: TokenService) -> None:
    done = sealed.audit.verify()
    assert (done.first, done.since, done.until, done.ends_proven) == (1, None, None, None)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param([], "line 1", id="empty"),
        pytest.param(["junk"], "line 1 .* not JSON", id="junk"),
        pytest.param([b"\xff\xfe\x00"], "line 1 .* not JSON", id="binary"),
        pytest.param(["[]"], "line 1 .* no JSON object", id="an array"),
        pytest.param(["[" * 100_000], "line 1 .* not JSON", id="deep"),
        pytest.param(["{}"], "line 1 .* fields", id="an object"),
        pytest.param([b" " * (LONGEST_LINE + 1)], "line 1 .* more than 1,048,576 bytes", id="long"),
        pytest.param(['{"head": null}'], "line 1 ", id="the end"),
        pytest.param(
            ['{"tokenctl_audit": 2, "exported_at": "", "since": null, "until": null}'],
            "line 1 .* form",
            id="another version",
        ),
    ],
)
def test_a_file_that_is_no_export_is_refused(
    service: TokenService, lines: list[str | bytes], said: str
) -> None:
    for read in (service.audit.verify_export, lambda given: list(read_export(given))):
        with pytest.raises(InvalidInput, match=said) as refused:
            read(lines)
        assert "tokenctl audit export" in refused.value.hint


def test_reading_an_export_tells_the_line_that_is_wrong(sealed: TokenService) -> None:
    right = lines_of(sealed)
    for wrong, said in (
        ([*right[:5], "junk", *right[5:]], "line 6 .* not JSON"),
        ([*right[:5], right[0], *right[5:]], "line 6 .* wrong place"),
        ([*right[:5], edited(right[5], token_id="rt_x"), *right[6:]], "line 6 .* token_id"),
        ([*right[:5], edited(right[5], at="2026-03-01T12:00:00Z"), *right[6:]], "line 6 .* at is"),
        ([*right[:5], edited(right[5], event=True), *right[6:]], "line 6 .* event is"),
        (right[:-1], f"line {len(right)} .* cut"),
    ):
        with pytest.raises(InvalidInput, match=said):
            list(read_export(wrong))


@pytest.mark.parametrize("depth", [*range(500, 1_100, 10), 100_000])
def test_a_line_that_is_nested_too_deeply_is_named(sealed: TokenService, depth: int) -> None:
    """Python may give up in reading it, or only in writing it once more."""
    lines = lines_of(sealed)
    index = place(lines, event=9)
    text = json.dumps(json.loads(lines[index]) | {"data": "@"})
    lines[index] = text.replace('"@"', f'{{"a":{"[" * depth}{"]" * depth}}}')
    kinds = {each.kind for each in sealed.audit.verify_export(lines).findings}
    assert kinds & {FindingKind.DAMAGED_LINE, FindingKind.EDITED_EVENT}
    with pytest.raises(InvalidInput):
        sealed.audit.revoked_in(lines)


# the logins that an export says were revoked


def file_of(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def without_key(settings: Settings, clock: Clock) -> TokenService:
    key_file(settings).unlink()
    return TokenService(settings, clock=clock)


def test_an_export_names_the_logins_that_were_revoked(eventful: TokenService) -> None:
    revoked = [event.token_id for event in eventful.audit.search(types=["token.revoke"])]
    lines = lines_of(eventful)
    for source in (lines, BytesIO(file_of(lines)), BytesIO(gzip.compress(file_of(lines)))):
        named = eventful.audit.revoked_in(source)
        assert (named.doubt, list(named), list(named)) == (None, revoked, [])
    named = eventful.audit.revoked_in(lines)
    assert next(named) == revoked[0]
    named.close()
    assert list(named) == []


def test_a_changed_export_names_none(eventful: TokenService) -> None:
    victim = eventful.issue("ada").token_id
    lines = lines_of(eventful)
    forged = edited(next(line for line in lines if '"token.revoke"' in line), token_id=victim)
    unsealed = json.dumps({key: value for key, value in json.loads(forged).items() if key != "mac"})
    for wrong in (
        [line if '"token.issue"' not in line else forged for line in lines],
        [*lines[:-1], forged, lines[-1]],
        [*lines[:-1], '{"segment": null}', unsealed, lines[-1]],
        [edited(lines[0], until="2026-03-01T12:00:00.000000Z"), *lines[1:]],
    ):
        with pytest.raises(InvalidInput, match="the export does not hold, so nothing was done") as refused:
            eventful.audit.revoked_in(wrong)
        assert "tokenctl audit verify --export" in refused.value.hint


def test_without_the_key_there_is_a_doubt(eventful: TokenService, settings: Settings, clock: Clock) -> None:
    revoked = [event.token_id for event in eventful.audit.search(types=["token.revoke"])]
    key = key_file(settings).read_text()
    lines = lines_of(eventful)
    with without_key(settings, clock) as keyless:
        named = keyless.audit.revoked_in(lines)
        assert named.doubt is not None
        assert "not at hand" in named.doubt
        assert list(named) == revoked
        lines = lines_of(keyless)
    key_file(settings).write_text(key)
    named = eventful.audit.revoked_in(lines)
    assert named.doubt is not None
    assert "exported without the master key" in named.doubt
    assert list(named) == revoked


def test_a_file_is_read_in_bounded_memory_and_what_is_wrong_with_it_is_named(
    eventful: TokenService, settings: Settings
) -> None:
    add_events(settings, 400)
    lines = lines_of(eventful)
    data = file_of(lines)
    packed = gzip.compress(data)
    long = file_of(lines[:2]) + b" " * 50_000_000 + b"\n" + file_of(lines[2:])
    for wrong, said in (
        (packed[:-12], "gzip has packed is damaged or cut"),
        (packed[:-30] + b"\0" * 20 + packed[-10:], "gzip has packed is damaged or cut|line [0-9]+"),
        (long, "line 3 .* more than 1,048,576 bytes"),
    ):
        with pytest.raises(InvalidInput, match=said):
            eventful.audit.revoked_in(BytesIO(wrong))
        damaged = {each.kind for each in eventful.audit.verify_export(BytesIO(wrong)).findings}
        assert FindingKind.DAMAGED_LINE in damaged
    assert found(eventful.audit.verify_export(BytesIO(long))) == [(FindingKind.DAMAGED_LINE, 1, None)]
    assert eventful.audit.verify_export(BytesIO(packed)).holds
    read = _Counted(long)
    eventful.audit.verify_export(BufferedReader(read))
    assert read.most <= 2 * LONGEST_LINE


class _Counted(RawIOBase):
    """A file that notes how much of it was asked for at once."""

    def __init__(self, data: bytes) -> None:
        self._data = BytesIO(data)
        self.most = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.most = max(self.most, len(buffer))
        return self._data.readinto(buffer)


# the page


def _documented() -> dict[str, set[str]]:
    """The types of docs/audit.md, with the names in their data."""
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+(?:\.[a-z]+)?)` \|[^|]*\|([^|]*)\|$", page, re.MULTILINE)
    return {type_: set(re.findall(r"`(\w+)`", data)) for type_, data in rows}


def test_the_page_has_every_type_of_event() -> None:
    sources = Path(tokenctl.__file__).parent.joinpath("service").glob("*.py")
    nouns = "token|login|password|user|client|cutoff|plan|key|purge|database|audit"
    written = {
        type_
        for source in sources
        for type_ in re.findall(
            rf'"((?:{nouns})\.[a-z]+)"|type="(purge)"', source.read_text(encoding="utf-8")
        )
    }
    assert {one or other for one, other in written} == _documented().keys()


def test_the_page_has_what_stands_in_the_events_of_the_sample(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "sample.db")
    with TokenService(Settings(database=str(tmp_path / "sample.db"))) as service:
        for event in service.audit.search():
            assert event.data.keys() <= _documented()[event.type], event.type
