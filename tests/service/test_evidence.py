"""The evidence of an incident: what is in the bundle, that it is true, and that no secret is in it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import stat
import subprocess
import tarfile
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_secrets import found_in, secret_of, spellings
from tests.conftest import MASTER_KEY, START, Clock, unpack
from tests.service import SECOND, add_logins, add_rows, is_postgres, key_file, login_row, run_sql
from tokenctl import Selector, Settings, TokenService
from tokenctl.cli import records
from tokenctl.core import ids
from tokenctl.core.context import Context
from tokenctl.core.keys import format_master_key
from tokenctl.errors import DatabaseError, DatabaseExists, InvalidInput, NotFound, TokenRefused
from tokenctl.service.evidence import directory_name
from tokenctl.service.evidence_page import MOST_LANES

PASSWORD = "mauve kettle under nine ladders"
SOMEWHERE = Context.of(ip="203.0.113.7", user_agent="curl/8.1", device="d-1")
FILES = [
    "README.txt", "summary.html", "summary.json", "plans.json", "before.jsonl", "after.jsonl",
    "events.jsonl", "audit-head.txt", "audit-export.jsonl", "SHA256SUMS",
]  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'&amp;\u202e\u2066אבג"


class Bundle:
    """An archive, unpacked; `sha256sum` agrees with it."""

    def __init__(self, path: Path, name: str = "INC-7") -> None:
        self.place = path.parent / f"{path.name}.unpacked"
        self.entries = unpack(path, self.place)
        self.directory = self.place / name
        self.names = [entry.name.removeprefix(f"{name}/") for entry in self.entries]
        subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=self.directory, check=True)

    def text(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")

    def json(self, name: str) -> Any:
        return json.loads(self.text(name))

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text(name).splitlines()]


def write(service: TokenService, place: Path, reason: str = "INC-7", **options: Any) -> Bundle:
    path = place / f"{directory_name(reason)}.tgz"
    service.evidence(reason, path, **options)
    return Bundle(path, directory_name(reason))


def as_listed(service: TokenService, token_id: str) -> dict[str, Any]:
    """The login as `list --json` has it."""
    row, now = service.inspect(token_id).token, service.now()
    record = records.token(row, now)
    return {column.name: column.value(record) for column in records.token_columns(now)}


def incident(service: TokenService, clock: Clock) -> list[str]:
    """Three logins of two users, revoked by a plan; ada's other login, from elsewhere, is none of them."""
    service.create_user("ada", PASSWORD)
    service.create_user("bob")
    pairs = [service.issue(user, context=SOMEWHERE) for user in ("ada", "bob", "ada")]
    service.issue("ada", context=Context.of(ip="192.0.2.1"))
    clock.advance(timedelta(minutes=5))
    service.rotate(pairs[0].refresh_token, context=Context.of(ip="203.0.113.9", user_agent="wget"))
    clock.advance(timedelta(minutes=1))
    planned = service.plan(Selector(ips=("203.0.113.0/24",)), actor="nina")
    assert planned.plan is not None
    clock.advance(timedelta(minutes=1))
    assert service.revoke_plan(planned.plan, reason="INC-7", actor="olaf").revoked == 3
    clock.advance(timedelta(minutes=1))
    return sorted(pair.token_id for pair in pairs)


def test_a_bundle_has_what_happened(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    revoked = incident(service, clock)
    path = tmp_path / "INC-7.tgz"
    done = service.evidence("INC-7", path, actor="nina")
    bundle = Bundle(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (bundle.names, {entry.mtime for entry in bundle.entries}) == (FILES, {clock.now // SECOND})
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith((".", "INC-7.tgz."))) == [
        "INC-7.tgz.unpacked"
    ]

    after = bundle.lines("after.jsonl")
    assert [line["id"] for line in after] == revoked
    assert after == [as_listed(service, token_id) | {"purged": False} for token_id in revoked]
    before = bundle.lines("before.jsonl")
    changed = {"state": "live", "revoked_at": None, "revoked_reason": None, "revoked_by": None}
    assert before == [line | changed for line in after]

    plan = bundle.json("plans.json")
    assert [(each["made_by"], each["acted_by"], each["tokens"], each["revoked"]) for each in plan] == [
        ("nina", ["olaf"], 3, 3)
    ]
    assert plan[0]["selector"] == {"ips": ["203.0.113.0/24"]}

    summary = bundle.json("summary.json")
    assert {key: summary[key] for key in ("logins", "users", "revoked", "reuse", "alive", "purged")} == {
        "logins": 3, "users": 2, "revoked": 3, "reuse": 0, "alive": 0, "purged": 0,
    }  # fmt: skip
    assert (summary["made_by"], summary["revoked_by"]) == ("nina", ["olaf"])
    assert summary["revoked_from"] == summary["revoked_until"] == "2026-03-01T12:07:00.000000Z"
    assert summary["first_event_at"] == "2026-03-01T12:00:00.000000Z"
    assert summary["access_until"] == "2026-03-01T12:15:00.000000Z"
    assert summary["plans"] == [plan[0]["plan"]]
    assert summary["audit"]["verified"] is done.verified is True
    assert (summary["audit"]["head"], bundle.text("audit-head.txt")) == (done.head, f"{done.head}\n")


def test_the_slice_is_of_the_log_and_can_be_verified(
    service: TokenService, clock: Clock, tmp_path: Path
) -> None:
    revoked = incident(service, clock)
    service.users.disable("bob", reason="INC-7", actor="olaf")
    bundle = write(service, tmp_path)
    slice_ = bundle.lines("events.jsonl")
    assert [(event["type"], event["token_id"]) for event in slice_] == [
        *[("token.issue", each["token_id"]) for each in slice_[:3]],
        ("token.rotate", slice_[3]["token_id"]),
        ("plan.create", None),
        *[("token.revoke", token_id) for token_id in revoked],
        ("user.disable", None),
    ]
    assert {event["token_id"] for event in slice_[:3]} == set(revoked)
    # Each stands in the export, with its MAC, in the segment that it names.
    number, exported = None, []
    for line in bundle.lines("audit-export.jsonl"):
        number = line.get("segment", number)
        if "event" in line:
            exported.append({key: value for key, value in line.items() if key != "mac"} | {"segment": number})
    assert [event for event in exported if event in slice_] == slice_
    with (bundle.directory / "audit-export.jsonl").open("rb") as file:
        assert service.audit.verify_export(file).holds
    assert service.audit.verify(bundle.text("audit-head.txt").strip()).holds


def test_an_event_with_the_reason_of_such_a_login_comes_once(
    service: TokenService, clock: Clock, tmp_path: Path
) -> None:
    service.create_user("ada")
    token, other = service.issue("ada").token_id, service.issue("ada").token_id
    for each in (token, other):
        service.reissue(each, reason="INC-7")
    service.revoke([token], reason="INC-7")
    events = write(service, tmp_path).lines("events.jsonl")
    assert [(event["type"], event["token_id"]) for event in events] == [
        ("token.issue", token), ("token.reissue", token), ("token.reissue", other), ("token.revoke", token),
    ]  # fmt: skip


def test_the_same_twice_is_the_same_bytes(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    incident(service, clock)
    one = service.evidence("INC-7", tmp_path / "one.tgz")
    other = service.evidence("INC-7", tmp_path / "other.tgz")
    assert one.sha256 == other.sha256


def test_a_slice_alone_tells_of_no_other_login(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    revoked = incident(service, clock)
    bundle = write(service, tmp_path, export=False)
    assert bundle.names == [name for name in FILES if name != "audit-export.jsonl"]
    whole = "".join(bundle.text(name) for name in bundle.names)
    assert set(re.findall(r"rt_[0-9a-f]{32}", whole)) == set(revoked)
    assert "audit-export" not in whole


def test_a_login_that_was_blocked_was_so_before(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    tokens = []
    for user in ("ada", "bob", "eve"):
        service.create_user(user)
        tokens.append(service.issue(user).token_id)
    clock.advance(timedelta(minutes=1))
    service.users.disable("ada", duration=timedelta(hours=1), reason="away")
    clock.advance(timedelta(minutes=1))
    service.revoke(tokens, reason="INC-7")
    clock.advance(timedelta(minutes=1))
    service.cutoffs.set(user="bob", reason="later")
    service.users.disable("eve", reason="later")
    states = {line["user"]: line["state"] for line in write(service, tmp_path).lines("before.jsonl")}
    assert states == {"ada": "blocked", "bob": "live", "eve": "live"}


def test_what_was_presented_since_is_told(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    service.create_user("ada")
    pair, other = service.issue("ada"), service.issue("ada")
    service.revoke([pair.token_id, other.token_id], reason="INC-7")
    clock.advance(timedelta(minutes=1))
    with pytest.raises(TokenRefused):
        service.rotate(pair.refresh_token)
    bundle = write(service, tmp_path)
    assert bundle.json("summary.json")["refused_since"] == 1
    assert "somebody tried to use <strong>1 of them</strong>" in bundle.text("summary.html")


def test_reuse_is_a_reason_too(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    service.create_user("ada")
    pair = service.issue("ada")
    service.rotate(pair.refresh_token)
    clock.advance(timedelta(hours=1))
    with pytest.raises(TokenRefused):
        service.rotate(pair.refresh_token)
    bundle = write(service, tmp_path, reason="reuse")
    summary = bundle.json("summary.json")
    assert (summary["logins"], summary["reuse"], summary["revoked"]) == (1, 1, 1)
    assert summary["revoked_from"] == "2026-03-01T13:00:00.000000Z"
    page = bundle.text("summary.html")
    assert page.count('class="reuse"') == 2  # in the lane, and in the legend
    assert "a spent refresh token was presented again" in page


def test_a_purged_login_is_told_by_its_events(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    [first, *_] = incident(service, clock)
    was = as_listed(service, first)
    clock.advance(timedelta(hours=1))
    service.purge(retention=timedelta(0))
    bundle = write(service, tmp_path)
    summary = bundle.json("summary.json")
    assert (summary["logins"], summary["purged"], summary["users"], summary["revoked"]) == (3, 3, 2, 3)
    known = ("id", "user", "user_id", "client", "created_at", "expires_at", "access_until")
    told = {key: was[key] for key in known} | {"purged": True}
    assert bundle.lines("before.jsonl")[0] == told
    ended = {key: was[key] for key in ("revoked_at", "revoked_reason", "revoked_by")}
    assert bundle.lines("after.jsonl")[0] == told | ended
    assert "row purged" in bundle.text("summary.html")


def test_without_the_master_key_it_is_made_and_says_so(
    service: TokenService, clock: Clock, settings: Settings, tmp_path: Path
) -> None:
    incident(service, clock)
    sealed = service.audit.seal()
    service.users.disable("bob", reason="INC-7")
    key_file(settings).unlink()
    with TokenService(settings, clock=clock) as keyless:
        bundle = write(keyless, tmp_path)
    audit = bundle.json("summary.json")["audit"]
    assert audit["verified"] is None
    assert "the master key is not here" in audit["said"]
    assert audit["said"] in bundle.text("summary.html")
    assert audit["said"] in bundle.text("README.txt")
    assert audit["head"].startswith(f"{sealed.segments}-")
    # What is not sealed is exported, too, and later whoever has the key can still say what holds.
    assert bundle.lines("events.jsonl")[-1] | {"event": 0} == {
        "event": 0, "at": "2026-03-01T12:08:00.000000Z", "type": "user.disable", "actor": "service",
        "user_id": bundle.lines("events.jsonl")[-1]["user_id"], "token_id": None, "client": None, "ip": None,
        "reason": "INC-7", "data": {"name": "bob", "until": None}, "segment": None,
    }  # fmt: skip
    with (bundle.directory / "audit-export.jsonl").open("rb") as file:
        done = service.audit.verify_export(file)
    assert (done.holds, done.unsealed) == (True, 1)


def test_a_key_that_is_no_good_is_named(
    service: TokenService, clock: Clock, settings: Settings, tmp_path: Path
) -> None:
    incident(service, clock)
    key_file(settings).write_text(format_master_key(b"another key, and 32 bytes of it.") + "\n")
    with TokenService(settings, clock=clock) as other:
        done = other.evidence("INC-7", tmp_path / "INC-7.tgz")
    assert (done.verified, done.head) == (None, None)
    assert "is not the one of" in done.seal


def test_a_log_that_does_not_hold_is_shouted(
    service: TokenService, clock: Clock, settings: Settings, tmp_path: Path
) -> None:
    incident(service, clock)
    service.audit.seal()
    # SQLite lets in what is no text at all; it must not hide the rest.
    somebody = "'somebody'" if is_postgres(settings) else "CAST(x'6eff' AS TEXT)"
    run_sql(settings, f"UPDATE events SET actor = {somebody} WHERE type = 'plan.create'")
    bundle = write(service, tmp_path)
    assert bundle.json("summary.json")["audit"]["verified"] is False
    assert '<p class="seal bad">THE AUDIT LOG DOES NOT HOLD: 1 finding' in bundle.text("summary.html")


def test_a_plan_is_the_last_of_its_id_before_it_was_acted_on(
    service: TokenService, clock: Clock, settings: Settings, tmp_path: Path
) -> None:
    incident(service, clock)
    other = service.issue("bob").token_id
    [used] = service.audit.search(types=["plan.create"])
    later = service.audit.newest_id() + 100

    def event(event_id: int, type_: str, **columns: Any) -> dict[str, Any]:
        nothing = {"actor": None, "token_id": None, "reason": None}
        return {"id": event_id, "at": START, "type": type_, **nothing, **columns}

    made = {"actor": "eve", "data": json.dumps({"plan": used.data["plan"], "tokens": 9})}
    # By another plan, so that what was made meanwhile is looked at, too.
    acted = {"token_id": ids.to_bytes(other), "reason": "INC-7", "data": '{"plan":"0001"}'}
    rows = [event(later, "plan.create", **made), event(later + 1, "token.revoke", **acted)]
    add_rows(settings, "events", [event(-1, "plan.create", **made), *rows])
    plan, unknown = write(service, tmp_path).json("plans.json")
    assert (plan["made_by"], plan["tokens"]) == ("nina", 3)
    assert (unknown["plan"], unknown["made_by"], unknown["revoked"]) == ("0001", None, 1)


def test_a_reason_of_a_cut_off_alone(service: TokenService, tmp_path: Path) -> None:
    service.create_user("ada")
    service.issue("ada")
    service.cutoffs.set(user="ada", reason="INC-8", actor="nina")
    bundle = write(service, tmp_path, reason="INC-8")
    assert [event["type"] for event in bundle.lines("events.jsonl")] == ["cutoff.set"]
    assert (bundle.text("before.jsonl"), bundle.json("plans.json")) == ("", [])
    page = bundle.text("summary.html")
    assert "No login was revoked with this reason" in page
    assert "<code>cutoff.set</code>" in page


def test_a_reason_that_nothing_has(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    incident(service, clock)
    place = tmp_path / "place"
    place.mkdir()
    for reason in ("INC", "inc-7", "INC-_"):
        with pytest.raises(NotFound, match="nothing was done with the reason") as error:
            service.evidence(reason, place / "x.tgz")
        assert error.value.hint == "tokenctl audit search --type token.revoke"
    with pytest.raises(InvalidInput):
        service.evidence("", place / "x.tgz")
    assert list(place.iterdir()) == []


def test_a_file_that_is_there_stays(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    incident(service, clock)
    path = tmp_path / "INC-7.tgz"
    path.write_text("mine")
    with pytest.raises(DatabaseExists, match=r"INC-7\.tgz is there already, and stays"):
        service.evidence("INC-7", path)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DatabaseExists):
        service.evidence("INC-7", tmp_path / "link")
    with pytest.raises(DatabaseError, match="there is no directory"):
        service.evidence("INC-7", tmp_path / "none" / "INC-7.tgz")
    assert path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_one_that_comes_meanwhile_stays_too(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    incident(service, clock)
    path = tmp_path / "place" / "INC-7.tgz"
    path.parent.mkdir()

    def come(_done: int) -> None:
        path.write_text("theirs")

    with pytest.raises(DatabaseExists):
        service.evidence("INC-7", path, progress=come)
    assert [each.name for each in path.parent.iterdir()] == ["INC-7.tgz"]
    assert path.read_text() == "theirs"


def test_one_that_is_stopped_leaves_nothing(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    incident(service, clock)
    (tmp_path / "place").mkdir()

    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        service.evidence("INC-7", tmp_path / "place" / "INC-7.tgz", progress=stop)
    assert list((tmp_path / "place").iterdir()) == []


def test_more_logins_than_are_read_or_drawn_at_once(
    service: TokenService, settings: Settings, clock: Clock, tmp_path: Path
) -> None:
    """Their events come interleaved out of several runs, and each once."""
    users = [service.create_user(name).id for name in ("ada", "bob")]
    rows = [login_row(number, users[number % 2]) for number in range(1, 2_101)]
    expected = add_logins(settings, rows)
    for half in (expected[::2], expected[1::2]):
        clock.advance(timedelta(seconds=1))
        service.revoke(half, reason="INC-7")
    steps: list[int] = []
    bundle = write(service, tmp_path, progress=steps.append)
    assert [line["id"] for line in bundle.lines("before.jsonl")] == expected
    events = bundle.lines("events.jsonl")
    numbers = [event["event"] for event in events]
    assert (len(numbers), numbers) == (2_100, sorted(set(numbers)))
    assert {event["token_id"] for event in events} == set(expected)
    assert steps[-3:] == [1_000, 1_000, 100]
    summary = bundle.json("summary.json")
    assert (summary["logins"], summary["users"], summary["events"]) == (2_100, 2, 2_100)
    assert (summary["plans"], summary["revoked_without_plan"]) == ([], 2_100)
    page = bundle.text("summary.html")
    assert page.count('class="user"') == MOST_LANES
    assert f"… and {2_100 - MOST_LANES:,} more" in page


def test_those_with_most_events_are_drawn(
    service: TokenService, settings: Settings, clock: Clock, tmp_path: Path
) -> None:
    user = service.create_user("ada").id
    logins = add_logins(settings, [login_row(number, user) for number in range(1, MOST_LANES + 11)])
    busy = logins[5]
    told = [
        {"at": START + i, "type": "token.rotate", "token_id": ids.to_bytes(each), "data": "{}"}
        for each in logins[:MOST_LANES]
        for i in range(300 if each == busy else 1)
    ]
    add_rows(settings, "events", told)
    service.revoke(logins, reason="INC-7")
    page = write(service, tmp_path).text("summary.html")
    drawn = re.findall(r"<title>ada, (rt_[0-9a-f]{32})", page)[:MOST_LANES]
    assert (drawn[:2], set(drawn)) == ([busy, logins[MOST_LANES - 1]], set(logins[:MOST_LANES]))
    assert '<td class="number">301</td>' in page


# --- the page --------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Which elements and attributes a page has; fails where one is not closed."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_hostile_texts_stay_texts(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    name = '<img src=x onerror="alert(1)">אבג\''
    service.create_user(name)
    context = Context.of(ip="203.0.113.7", user_agent=f"{HOSTILE}\x1b[31m\n")
    token = service.issue(name, context=context).token_id
    clock.advance(timedelta(minutes=1))
    reason = "</title><script>alert(2)</script> ../../x"
    service.revoke([token], reason=reason, actor='"><svg onload=alert(3)>')
    bundle = write(service, tmp_path, reason=reason)
    assert bundle.directory.parent == bundle.place
    page, reader = bundle.text("summary.html"), Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.tags.isdisjoint({"script", "img", "link", "iframe", "a", "object", "foreignobject"})
    assert not [
        each for each in reader.attributes if each.startswith("on") or each in ("src", "href", "style")
    ]
    assert not re.findall(r"\b(?:https?|data|javascript):|url\(|@import", page)
    assert all(c.isprintable() or c == "\n" for c in page)
    assert "\\u202e\\u2066אבג\\x1b[31m\\n" in page
    assert '<bdi dir="ltr">&lt;img src=x onerror=&quot;alert(1)&quot;&gt;אבג&#x27;</bdi>' in page
    assert bundle.lines("before.jsonl")[0]["last_user_agent"] == f"{HOSTILE}\x1b[31m\n"
    assert all(c.isprintable() or c == "\n" for c in bundle.text("README.txt"))


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("INC-7", "INC-7"),
        ("../../etc/x y", "etc-x-y"),
        ("אבג", "incident"),
        ("..", "incident"),
        ("a" * 99, "a" * 64),
    ],
)
def test_the_directory_is_safe(reason: str, name: str) -> None:
    assert directory_name(reason) == name


# --- secrets ---------------------------------------------------------------------------------


def test_no_secret_is_in_a_bundle(
    service: TokenService, settings: Settings, clock: Clock, tmp_path: Path
) -> None:
    revoked = incident(service, clock)
    strings = []
    for user in ("ada", "bob"):
        pair = service.issue(user, context=Context.of(user_agent="x"))
        strings += [pair.refresh_token, service.rotate(pair.refresh_token).refresh_token]
        service.revoke([pair.refresh_token], reason="INC-7")
    client = service.clients.create("api", introspect=True)
    assert client.secret is not None
    path = tmp_path / "INC-7.tgz"
    service.evidence("INC-7", path)
    with gzip.open(path) as file:
        data = file.read()
    assert revoked[0].encode() in data  # otherwise the search proves nothing
    canaries = [("the master key", spelt) for spelt in spellings(MASTER_KEY)]
    canaries += [("the master key's text", format_master_key(MASTER_KEY).encode())]
    canaries += [("a password", PASSWORD.encode()), ("a string", b"tkr1_"), ("a client's secret", b"tks1_")]
    canaries += [("an access token", b"eyJ"), ("a password's hash", b"$argon2")]
    for string in strings:
        canaries += [("a secret", spelt) for spelt in spellings(secret_of(string))]
    for (hash_,) in run_sql(settings, "SELECT secret_hash FROM refresh_tokens"):
        canaries += [("a secret's hash", spelt) for spelt in spellings(bytes(hash_))]
    assert found_in(data, canaries) == set()
    if settings.database.startswith("postgresql://"):
        assert settings.database.split("@")[0].encode() not in data


def test_a_secret_is_no_reason(service: TokenService, tmp_path: Path) -> None:
    service.create_user("ada")
    string = service.issue("ada").refresh_token
    with pytest.raises(InvalidInput) as error:
        service.evidence(string, tmp_path / "x.tgz")
    assert string[5:20] not in str(error.value)


def test_an_archive_is_what_any_tar_reads(service: TokenService, clock: Clock, tmp_path: Path) -> None:
    incident(service, clock)
    path = tmp_path / "INC-7.tgz"
    service.evidence("INC-7", path)
    listed = subprocess.run(["tar", "-tzf", path], capture_output=True, text=True, check=True).stdout
    assert listed.splitlines() == [f"INC-7/{name}" for name in FILES]
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        owners = {(entry.uid, entry.gid, entry.uname, entry.mode) for entry in archive.getmembers()}
    assert owners == {(0, 0, "", 0o600)}
