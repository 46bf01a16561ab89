"""Archiving the audit log, on each database: nothing is lost, and what was done by force still shows."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHEAP, START, Clock, Postgres
from tests.service import DAY, add_rows, is_postgres, key_file, refuse_events, run_sql
from tokenctl import (
    ClockSuspect,
    Contended,
    DatabaseError,
    DatabaseLocked,
    InvalidInput,
    KeyMissing,
    Settings,
    TokenService,
)
from tokenctl.core.audit_chain import Anchor, Head
from tokenctl.service.archiving import Archive
from tokenctl.service.backup import copy
from tokenctl.service.revocation import unseen
from tokenctl.service.verifying import Findings, Verification, _Walk
from tokenctl.storage.segments import MOST_EVENTS

NINETY = timedelta(days=90)
FORGED = f"3-{'0' * 64} {START} {'0' * 64}"


def add_events(settings: Settings, number: int, at: int, **columns: Any) -> None:
    row = {"at": at, "type": "token.revoke", "actor": "nina", "token_id": b"t" * 16, "data": "{}"}
    add_rows(settings, "events", [row | columns for _ in range(number)])


def found(done: Verification | None) -> list[tuple[str, int | None, int | None]]:
    assert done is not None
    return [(str(each.kind), each.segment, each.event_id) for each in done.findings]


def numbers(settings: Settings) -> list[int]:
    return [number for (number,) in run_sql(settings, "SELECT number FROM segments ORDER BY number")]


def counted(settings: Settings) -> int:
    [(number,)] = run_sql(settings, "SELECT count(*) FROM events")
    return int(number)


def anchor_of(settings: Settings) -> str | None:
    rows = run_sql(settings, "SELECT value FROM meta WHERE key = 'audit_anchor'")
    return rows[0][0] if rows else None


def put_anchor(settings: Settings, text: str | None) -> None:
    run_sql(settings, "DELETE FROM meta WHERE key = 'audit_anchor'")
    if text is not None:
        run_sql(settings, "INSERT INTO meta (key, value) VALUES ('audit_anchor', ?)", text)


@pytest.fixture
def aged(service: TokenService, settings: Settings, clock: Clock) -> TokenService:
    """Six segments, a month apart each; the clock stands a day behind the last, which has the only purge."""
    for month in range(6):
        add_events(settings, 3, clock.now)
        if month == 5:
            add_events(settings, 1, clock.now, type="purge", token_id=None)
        service.audit.seal()
        clock.advance(timedelta(days=1 if month == 5 else 30))
    assert numbers(settings) == [1, 2, 3, 4, 5, 6]
    return service


def archive(service: TokenService, place: Path, older_than: timedelta = NINETY, **given: Any) -> Archive:
    return service.audit.archive(place, older_than=older_than, **given)


def verified(service: TokenService, path: Path, head: str | None = None) -> Verification:
    with path.open("rb") as file:
        return service.audit.verify_export(file, head)


# what it does


def test_old_segments_go_into_a_file_and_the_chain_holds(
    aged: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    heads = [str(Head(*row)) for row in run_sql(settings, "SELECT number, mac FROM segments ORDER BY number")]
    done = archive(aged, tmp_path)
    path = tmp_path / "audit-1-3.jsonl"
    assert replace(done, verification=None) == Archive(
        before=clock.now - 90 * DAY,
        first=1,
        last=3,
        events=10,
        deleted=3,
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    assert done.holds
    assert path.stat().st_mode & 0o777 == 0o600
    assert numbers(settings) == [4, 5, 6]
    assert run_sql(settings, "SELECT id FROM events WHERE segment < 4") == []
    here = aged.audit.verify()
    assert (here.holds, here.archived, here.first, here.segments) == (True, 3, 4, 4)
    file = verified(aged, path)
    assert (file.holds, file.ends_proven, file.first, file.segments, file.events) == (True, True, 1, 3, 10)
    assert str(file.head) == heads[2]
    # Heads that were kept: of the archive's end, of what is here, and of what lies in the file.
    assert aged.audit.verify(heads[2]).holds
    assert aged.audit.verify(heads[3]).holds
    assert not aged.audit.verify(f"3-{'0' * 64}").holds
    with pytest.raises(InvalidInput, match="segments 1 to 3 are archived") as refused:
        aged.audit.verify(heads[0])
    assert f"--head {heads[0]} --export FILE" in refused.value.hint
    assert verified(aged, path, heads[0]).holds


def test_what_was_archived_is_an_event(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    done = archive(aged, tmp_path, actor="nina")
    [event] = aged.audit.tail(1)
    assert (event.type, event.actor) == ("audit.archive", "nina")
    assert event.data == {
        "first_segment": 1,
        "last_segment": 3,
        "events": 10,
        "file": "audit-1-3.jsonl",
        "sha256": done.sha256,
    }


def test_archives_follow_each_other(
    aged: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    first = archive(aged, tmp_path)
    add_events(settings, 1, clock.now, type="purge")
    clock.advance(timedelta(days=60))
    second = archive(aged, tmp_path / "second.jsonl")
    assert (second.first, second.last, second.path) == (4, 5, tmp_path / "second.jsonl")
    assert first.path is not None
    assert second.path is not None
    ends = [verified(aged, path) for path in (first.path, second.path)]
    assert [(each.holds, each.ends_proven, each.archived) for each in ends] == [
        (True, True, None),
        (True, True, 3),
    ]
    header, begin = map(json.loads, second.path.read_text().splitlines()[:2])
    assert ends[0].head is not None
    assert begin["previous"] == ends[0].head.mac.hex()
    assert header["archived"].startswith(f"{ends[0].head} ")
    assert verified(aged, second.path, str(ends[0].head)).holds
    assert aged.audit.verify(str(ends[1].head)).archived == 5


def test_nothing_of_that_age_is_nothing(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    before = counted(settings)
    done = archive(aged, tmp_path, timedelta(days=400))
    assert (done.first, done.path, done.complete) == (None, None, True)
    assert list(tmp_path.glob("audit-*")) == []
    assert counted(settings) == before
    assert anchor_of(settings) is None


def test_a_dry_run_counts_and_does_nothing(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    done = archive(aged, tmp_path, dry_run=True)
    assert (done.first, done.last, done.events, done.deleted, done.dry_run) == (1, 3, 10, 0, True)
    assert numbers(settings) == [1, 2, 3, 4, 5, 6]
    assert list(tmp_path.glob("audit-*")) == []


def test_one_young_event_keeps_its_segment_and_all_behind(
    aged: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    run_sql(
        settings,
        "UPDATE events SET at = ? WHERE id = (SELECT max(id) FROM events WHERE segment = 2)",
        clock.now,
    )
    assert archive(aged, tmp_path, dry_run=True).last == 1
    # One that is ahead of now is of a clock that was put right since.
    run_sql(settings, "UPDATE events SET at = ? WHERE at = ?", clock.now + 1, clock.now)
    assert archive(aged, tmp_path, dry_run=True).last == 3


def test_a_seal_that_is_young_keeps_its_events(
    service: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    """They may have been written under a clock that was behind."""
    add_events(settings, 3, START - 400 * DAY)
    assert archive(service, tmp_path).first is None
    assert numbers(settings) == [1]


def test_the_newest_segment_stays(
    aged: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    add_events(settings, 1, clock.now, type="purge")
    aged.audit.seal()
    clock.advance(timedelta(days=400))
    assert archive(aged, tmp_path).last == 6
    assert numbers(settings) == [7]
    assert aged.audit.verify().holds


def test_what_the_next_purge_judges_the_clock_by_stays(
    service: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    for _ in range(3):
        service.audit.seal()
        service.create_user(f"user-{clock.now}")
        clock.advance(timedelta(days=100))
    assert numbers(settings) == [1, 2, 3]
    # Without any purge the last old segment stays.
    assert archive(service, tmp_path).last == 2
    assert numbers(settings) == [3, 4]
    with pytest.raises(ClockSuspect):
        service.purge()
    service.purge(force=True)
    [(segment,)] = run_sql(settings, "SELECT segment FROM events WHERE type = 'purge'")
    for _ in range(3):
        service.create_user(f"user-{clock.now}")
        service.audit.seal()
        clock.advance(timedelta(days=100))
    done = archive(service, tmp_path)
    assert done.last == segment - 1
    with pytest.raises(ClockSuspect):
        service.purge()


def test_events_that_are_not_sealed_stay(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    add_events(settings, 2, START - 900 * DAY)
    archive(aged, tmp_path)
    left = run_sql(settings, "SELECT segment FROM events WHERE at = ?", START - 900 * DAY)
    assert [segment for (segment,) in left] == [7, 7]


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=6, hours=23)])
def test_what_is_still_asked_for_is_not_archived(aged: TokenService, tmp_path: Path, age: timedelta) -> None:
    with pytest.raises(InvalidInput, match="younger than 7 days"):
        archive(aged, tmp_path, age)


def test_an_old_login_says_that_its_timeline_is_shorter(
    service: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    service.create_user("ada")
    old = service.issue("ada", ttl=timedelta(days=400)).token_id
    service.audit.seal()
    clock.advance(timedelta(days=100))
    add_events(settings, 1, clock.now, type="purge", token_id=None)
    young = service.issue("ada").token_id
    service.audit.seal()
    assert service.inspect(old).archived_before is None
    archive(service, tmp_path)
    assert service.inspect(old).events == []
    assert service.inspect(old).archived_before == clock.now - 90 * DAY
    assert service.inspect(young).archived_before is None


# what was done by force


def test_a_tampered_event_is_named_and_nothing_deleted(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    before = counted(settings)
    [(event_id,)] = run_sql(settings, "SELECT max(id) FROM events WHERE segment = 2")
    run_sql(settings, "UPDATE events SET actor = 'mallory' WHERE id = ?", event_id)
    done = archive(aged, tmp_path)
    assert not done.holds
    assert found(done.verification) == [("edited_event", 2, event_id)]
    assert (done.deleted, done.complete, done.path) == (0, False, None)
    assert counted(settings) == before
    assert anchor_of(settings) is None
    assert list(tmp_path.glob("audit-*")) == []


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (
            "DELETE FROM events WHERE segment = 2 AND id = (SELECT max(id) FROM events WHERE segment = 2)",
            "deleted_event",
        ),
        ("UPDATE segments SET sealed_at = sealed_at + 1 WHERE number = 2", "edited_segment"),
        ("DELETE FROM segments WHERE number = 2", "missing_segment"),
        ("DELETE FROM segments WHERE number = 1", "missing_segment"),
        ("UPDATE events SET segment = 2 WHERE segment = 1", "inserted_event"),
    ],
)
def test_whatever_does_not_hold_is_not_archived(
    aged: TokenService, settings: Settings, tmp_path: Path, statement: str, kind: str
) -> None:
    run_sql(settings, statement)
    before = counted(settings)
    done = archive(aged, tmp_path)
    assert kind in {each for each, _, _ in found(done.verification)}
    assert counted(settings) == before
    assert anchor_of(settings) is None


def test_a_cut_front_is_no_archive(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    archive(aged, tmp_path)
    genuine = anchor_of(settings)
    assert genuine is not None
    run_sql(settings, "DELETE FROM events WHERE segment = 4")
    run_sql(settings, "DELETE FROM segments WHERE number = 4")
    assert found(aged.audit.verify()) == [("missing_segment", 4, None)]
    [(mac,)] = run_sql(settings, "SELECT previous.mac FROM segments previous WHERE number = 5")
    pretended = genuine.replace(genuine[:66], f"4-{mac.hex()}")
    for text, kinds in (
        (pretended, ["edited_anchor", "missing_segment"]),
        (genuine.replace(genuine[67:69], "99", 1), ["edited_anchor", "missing_segment"]),
        ("junk", ["edited_anchor", "missing_segment"]),
        (FORGED, ["edited_anchor", "missing_segment"]),
        (None, ["missing_segment"]),
    ):
        put_anchor(settings, text)
        done = aged.audit.verify()
        assert [kind for kind, _, _ in found(done)] == kinds, text
        # Nor is a genuine anchor put behind it.
        refused = archive(aged, tmp_path, timedelta(days=20))
        assert not refused.holds
        assert anchor_of(settings) == text


def test_an_older_anchor_put_back_is_found(
    aged: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    archive(aged, tmp_path)
    older = anchor_of(settings)
    clock.advance(timedelta(days=30))
    assert archive(aged, tmp_path).last == 4
    put_anchor(settings, older)
    assert found(aged.audit.verify()) == [("missing_segment", 4, None)]
    assert not archive(aged, tmp_path, timedelta(days=31)).holds


def test_what_was_archived_and_is_there_again_is_found(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    [segment] = run_sql(
        settings, "SELECT number, sealed_at, events, members, mac FROM segments WHERE number = 2"
    )
    archive(aged, tmp_path)
    add_rows(settings, "events", [{"id": 1, "at": 1, "type": "x", "data": "{}", "segment": 3}])
    names = ("number", "sealed_at", "events", "members", "mac")
    add_rows(settings, "segments", [dict(zip(names, segment, strict=True))])
    assert found(aged.audit.verify()) == [("edited_segment", 2, None), ("inserted_event", 3, 1)]


def test_all_cut_behind_an_archive_is_found_by_a_head(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    archive(aged, tmp_path)
    head = aged.audit.head()
    run_sql(settings, "DELETE FROM events")
    run_sql(settings, "DELETE FROM segments")
    aged.create_user("ada")
    done = aged.audit.verify()
    assert (done.holds, done.first, done.archived) == (True, 4, 3)
    assert [kind for kind, _, _ in found(aged.audit.verify(str(head)))] == ["cut"]


def test_a_changed_archive_is_found(
    aged: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    archive(aged, tmp_path)
    clock.advance(timedelta(days=30))
    path = archive(aged, tmp_path).path
    assert path is not None
    lines = path.read_text().splitlines()
    header = json.loads(lines[0])
    without = json.dumps({name: value for name, value in header.items() if name != "archived"})
    assert found(aged.audit.verify_export([without, *lines[1:]]))[0][0] == "missing_segment"
    other = json.dumps(header | {"archived": FORGED})
    assert {kind for kind, _, _ in found(aged.audit.verify_export([other, *lines[1:]]))} >= {
        "edited_anchor",
        "edited_export",
    }
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert verified(aged, packed).holds


# exports of what is left


def test_an_export_behind_an_archive_holds(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    archive(aged, tmp_path)
    lines = [json.dumps(line) for line in aged.audit.export()]
    done = aged.audit.verify_export(lines)
    assert (done.holds, done.ends_proven, done.first, done.archived) == (True, True, 4, 3)
    part = [json.dumps(line) for line in aged.audit.export(since=START + 125 * DAY)]
    assert (aged.audit.verify_export(part).holds, aged.audit.verify_export(part).first) == (True, 6)
    cut = [lines[0], *lines[5:]]
    assert "missing_segment" in {kind for kind, _, _ in found(aged.audit.verify_export(cut))}
    key_file(settings).rename(tmp_path / "elsewhere")
    with TokenService(settings, passwords=CHEAP) as keyless:
        unproven = [json.dumps(line) for line in keyless.audit.export()]
    done = aged.audit.verify_export(unproven)
    assert (done.holds, done.ends_proven, done.first) == (True, False, 4)


def test_an_export_that_an_archive_overtakes_is_none(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    lines = aged.audit.export()
    for _ in range(3):
        next(lines)
    archive(aged, tmp_path)
    with pytest.raises(Contended, match="archived while it was exported"):
        list(lines)


def test_a_verification_that_an_archive_overtakes_holds(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    """Between any two of its reads."""
    done: list[Archive] = []

    def overtake(_events: int) -> None:
        if not done:
            done.append(archive(aged, tmp_path))

    result = aged.audit.verify(progress=overtake)
    assert done[0].deleted == 3
    assert (result.holds, result.archived) == (True, 3)


def test_a_segment_that_is_archived_while_it_is_looked_at_is_no_finding(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    """After its row was read, and before its events."""
    findings = Findings(None, unseen)
    walk = _Walk(aged._runtime, findings)
    segment = walk._next()
    assert segment is not None
    archive(aged, tmp_path)
    walk._compare(segment)
    assert findings.found == 0
    run_sql(settings, "DELETE FROM events WHERE segment = 4")
    segment = walk._next()
    assert segment is not None
    walk._compare(segment)
    assert findings.found == 3


# faults


def test_without_the_key_nothing_is_archived(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    key_file(settings).unlink()
    with TokenService(settings, passwords=CHEAP) as keyless, pytest.raises(KeyMissing):
        archive(keyless, tmp_path)


def test_a_file_that_is_there_stays(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    for name, content in (("mine.txt", "mine"), ("audit-1-3.jsonl", "{}\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidInput, match="is there already and is no archive of the segments 1 to 3"):
            archive(aged, tmp_path / name)
        assert (tmp_path / name).read_text() == content
    part = tmp_path / "part.jsonl"
    assert aged.audit.write_export(part, since=START, until=START + 40 * DAY)
    with pytest.raises(InvalidInput, match="is there already and is no archive of the segments 1 to 3"):
        archive(aged, part)
    with pytest.raises(DatabaseError, match="there is no directory"):
        archive(aged, tmp_path / "none" / "file")
    assert numbers(settings) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stopped_after", [0, 1, 2])
def test_what_a_run_leaves_the_next_one_goes_on_with(
    aged: TokenService, settings: Settings, tmp_path: Path, stopped_after: int
) -> None:
    """Stopped between two transactions, which is where a kill leaves the database, too."""
    before = counted(settings)
    full = tmp_path / "audit-1-3.jsonl"

    def stop() -> bool:
        return full.exists() and len(numbers(settings)) == 6 - stopped_after

    first = archive(aged, tmp_path, stop=stop)
    assert (first.deleted, first.complete) == (stopped_after, False)
    content = full.read_bytes()
    held = aged.audit.verify()
    assert (held.holds, held.archived) == (True, stopped_after or None)
    second = archive(aged, tmp_path)
    assert second.complete
    assert second.path == tmp_path / f"audit-{stopped_after + 1}-3.jsonl"
    assert full.read_bytes() == content
    for path in {full, second.path}:
        assert verified(aged, path).holds
    assert aged.audit.verify().archived == 3
    assert counted(settings) == before - 10 + (1 if stopped_after == 0 else 2)


def test_stopped_while_it_is_exported_there_is_no_file(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    asked = count()
    done = archive(aged, tmp_path, stop=lambda: next(asked) > 5)
    assert (done.deleted, done.complete, done.path) == (0, False, None)
    assert list(tmp_path.glob("audit-*")) == []


def test_an_event_that_is_refused_keeps_its_segment(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    before = counted(settings)
    refuse_events(settings, "audit.archive")
    with pytest.raises(DatabaseError):
        archive(aged, tmp_path)
    assert (counted(settings), anchor_of(settings)) == (before, None)
    assert numbers(settings) == [1, 2, 3, 4, 5, 6]


def test_what_is_changed_after_the_export_is_not_sealed_into_the_anchor(
    aged: TokenService, settings: Settings, tmp_path: Path
) -> None:
    changed: list[int] = []

    def change(_events: int) -> None:
        if not changed:
            changed.append(2)
            run_sql(settings, "UPDATE segments SET mac = ? WHERE number = 2", b"x" * 32)

    with pytest.raises(Contended, match="segment 2 was changed after it was exported"):
        archive(aged, tmp_path, progress=change)
    anchor = Anchor.parse(anchor_of(settings) or "")
    assert anchor is not None
    assert anchor.head.number == 1
    assert numbers(settings) == [2, 3, 4, 5, 6]


def test_one_runs_at_a_time(aged: TokenService, settings: Settings, tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(_events: int) -> None:
        with TokenService(settings, passwords=CHEAP, clock=lambda: START + 151 * DAY) as another:
            try:
                archive(another, tmp_path)
            except DatabaseLocked as locked:
                refused.append(locked.message)

    assert archive(aged, tmp_path, progress=meanwhile).deleted == 3
    assert refused
    assert all("is being archived already (pid" in each for each in refused)


def test_a_copy_keeps_the_anchor(
    aged: TokenService, settings: Settings, tmp_path: Path, postgres: Postgres
) -> None:
    archive(aged, tmp_path)
    with postgres.empty() as url:
        target = str(tmp_path / "copy.db") if is_postgres(settings) else url
        copy(settings, target)
        copied = Settings(database=target, key_file=str(key_file(settings)))
        assert anchor_of(copied) == anchor_of(settings)
        with TokenService(copied, passwords=CHEAP) as service:
            done = service.audit.verify()
            assert (done.holds, done.archived) == (True, 3)


def test_refreshes_and_sealers_go_on_meanwhile(
    service: TokenService, settings: Settings, tmp_path: Path, clock: Clock
) -> None:
    add_events(settings, 12 * MOST_EVENTS, clock.now)
    service.audit.seal()
    clock.advance(timedelta(days=100))
    service.purge(force=True)
    over = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with TokenService(settings, passwords=CHEAP, clock=clock) as another:
                for number in count():
                    another.create_user(f"user-{number}")
                    another.audit.seal()
                    if over.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 - the test's own to report
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        done = archive(service, tmp_path)
    finally:
        over.set()
        thread.join()
    assert failed == []
    assert done.deleted == 13
    assert service.audit.verify().holds
