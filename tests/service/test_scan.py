"""Scanning: each string at its line, however it is cut into pieces, and what it could still do."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import tracemalloc
import zlib
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import START, Clock
from tests.core.test_leak import KEY, ONE, SPELLINGS, TOKENS, spelled
from tokenctl import RefreshToken, Settings, TokenService
from tokenctl.core.token_string import mint, parse_unverified
from tokenctl.errors import InvalidInput, KeyUnusable
from tokenctl.service.scan import Danger, Finding, scan
from tokenctl.storage import tokens

ID = parse_unverified(ONE).token_id
LINE = f"12:00:00 GET /?t={ONE} 200\n".encode()


def offline(*sources: Path | BinaryIO, piece: int = 1 << 18) -> list[Finding]:
    def fail(sentence: str) -> None:
        raise AssertionError(sentence)

    return list(scan(sources, unreadable=fail, piece=piece))


def with_errors(*sources: Path | BinaryIO) -> tuple[list[tuple[str, int]], list[str]]:
    """Where something was found, and what could not be read."""
    said: list[str] = []
    return [(each.file, each.line) for each in scan(sources, unreadable=said.append)], said


# --- reading ---------------------------------------------------------------------------------

# A stream that begins like gzip is read as such.
NOISE = st.binary(max_size=700).filter(lambda data: not data.startswith(b"\x1f\x8b\x08"))
LEAKS = st.lists(st.tuples(TOKENS, st.sampled_from(SPELLINGS), st.binary(max_size=200)), max_size=4)


@given(before=NOISE, leaks=LEAKS, piece=st.integers(1, 900), pack=st.booleans())
def test_every_string_is_found_at_its_line_whatever_the_pieces(
    before: bytes, leaks: list[tuple[str, tuple[str, str], bytes]], piece: int, pack: bool
) -> None:
    text, expected = before, []
    for token, spelling, after in leaks:
        expected.append((text.count(b"\n") + 1, parse_unverified(token).token_id))
        text += spelled(token, spelling) + after
    data = gzip.compress(text) if pack else text
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        for source in (io.BytesIO(data), Path(file.name)):
            assert [(each.line, each.token_id) for each in offline(source, piece=piece)] == expected


def test_a_file_a_directory_and_a_stream(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"\n\n" + LINE)
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "b.log.gz").write_bytes(gzip.compress(LINE) + gzip.compress(b"\n" + LINE))
    (deep / "empty").touch()
    (deep / "core.bin").write_bytes(os.urandom(5_000) + b"\0" + LINE + bytes(range(256)))
    (deep / "link").symlink_to(tmp_path / "a.log")
    (deep / "round").symlink_to(tmp_path)
    os.mkfifo(deep / "pipe")  # nobody writes: to open it would take for ever
    found = offline(io.BytesIO(LINE), tmp_path, deep / "link")
    assert [(each.file, each.line) for each in found if not each.file.endswith("core.bin")] == [
        ("(stdin)", 1),
        (f"{tmp_path}/a.log", 3),
        (f"{deep}/b.log.gz", 1),
        (f"{deep}/b.log.gz", 3),
        (f"{deep}/link", 3),
    ]
    assert any(each.file == f"{deep}/core.bin" for each in found)
    assert {(each.token_id, each.danger, each.user_name) for each in found} == {(ID, Danger.UNKNOWN, None)}


def test_ten_megabytes_in_one_line() -> None:
    text = b"x" * 5_000_000 + ONE.encode() + b"y" * 5_000_000 + ONE.encode() + b"\n" + ONE.encode()
    assert [each.line for each in offline(io.BytesIO(text))] == [1, 1, 2]


def test_a_cut_and_a_damaged_gzip_give_what_they_have(tmp_path: Path) -> None:
    whole = gzip.compress(LINE + os.urandom(100_000))
    for name, data in {
        "a-cut.gz": whole[:60_000],
        "b-damaged.gz": whole[:60_000] + b"\0" * 1_000 + whole[61_000:],
        "c-longer.gz": whole + b"something else",
        "d-no.gz": b"\x1f\x8b\x08",
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "e.log").write_bytes(b"\x1f\x8b" + LINE)
    found, said = with_errors(tmp_path)
    assert [Path(name).name for name, _ in found] == ["a-cut.gz", "b-damaged.gz", "c-longer.gz", "e.log"]
    assert [sentence.split(" cannot be read to its end: ")[0] for sentence in said] == [
        str(tmp_path / name) for name in ("a-cut.gz", "b-damaged.gz", "c-longer.gz", "d-no.gz")
    ]


def test_what_is_not_there_or_breaks_stops_nothing(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            if data := super().read1(size):
                return data
            raise OSError(5, "Input/output error")

    (tmp_path / f"{ONE}.txt").write_bytes(LINE)
    found, said = with_errors(tmp_path / "none", Broken(LINE), tmp_path, tmp_path / ONE)
    assert found == [("(stdin)", 1), (f"{tmp_path}/tkr1_….txt", 1)]
    assert said == [
        f"{tmp_path}/none cannot be read: No such file or directory",
        "(stdin) cannot be read to its end: Input/output error",
        f"{tmp_path}/tkr1_… cannot be read: No such file or directory",
    ]


def test_a_directory_that_cannot_be_listed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert with_errors(tmp_path) == ([], [f"{tmp_path}/below cannot be read: Permission denied"])


class _Endless:
    """Log lines with a string now and then, made as they are read."""

    def __init__(self, pieces: int) -> None:
        self._left = pieces
        self._noise = b"12:00:00 INFO a request was answered with_status=200 in 3 ms\n" * 4_000

    def read1(self, _size: int) -> bytes:
        self._left -= 1
        return self._noise + LINE if self._left >= 0 else b""


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_stream_takes_no_more_memory(packed: bool) -> None:
    pieces = 300  # 73 MB
    if packed:
        pack = zlib.compressobj(1, wbits=31)
        stream = _Endless(pieces)
        data = b"".join(pack.compress(piece) for piece in iter(lambda: stream.read1(0), b"")) + pack.flush()
        source = cast("BinaryIO", io.BytesIO(data))
    else:
        source = cast("BinaryIO", _Endless(pieces))
    tracemalloc.start()
    try:
        last = sum(1 for _ in scan([source], unreadable=print))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last == pieces
    assert peak < 5_000_000


def test_progress_tells_every_byte_that_was_read(tmp_path: Path) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(os.urandom(300_000)))
    told: list[int] = []
    list(scan([packed, io.BytesIO(LINE)], unreadable=print, progress=told.append))
    assert sum(told) == packed.stat().st_size + len(LINE)


def test_what_was_found_before_an_interrupt_is_told() -> None:
    class Interrupted(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            if data := super().read1(size):
                return data
            raise KeyboardInterrupt

    found = scan([Interrupted(LINE)], unreadable=print)
    assert next(found).line == 1
    with pytest.raises(KeyboardInterrupt):
        next(found)


# --- what they could still do ------------------------------------------------------------------


def judged(service: TokenService, *strings: str) -> list[tuple[str, str | None]]:
    text = "\n".join(strings).encode()
    found = list(scan([io.BytesIO(text)], service=service, unreadable=print))
    assert [each.token_id for each in found] == [parse_unverified(each).token_id for each in strings]
    return [(str(each.danger), each.user_name) for each in found]


@pytest.fixture
def ada(service: TokenService) -> str:
    """Ada's string."""
    service.create_user("ada", "plum orbit kettle sandal")
    return service.issue("ada").refresh_token


def test_the_current_string_lives_and_the_older_ones_are_spent(
    service: TokenService, ada: str, clock: Clock
) -> None:
    second = service.rotate(ada).refresh_token
    # Within the grace it still gets the current one.
    assert judged(service, ada, second) == [("live", "ada"), ("live", "ada")]
    clock.advance(timedelta(seconds=31))
    assert judged(service, ada, second) == [("spent", "ada"), ("live", "ada")]
    service.revoke([parse_unverified(second).token_id], reason="leaked")
    assert judged(service, ada, second) == [("dead", "ada"), ("dead", "ada")]


def test_a_superseded_string_is_dead(service: TokenService, ada: str) -> None:
    new = service.reissue(parse_unverified(ada).token_id).refresh_token
    assert judged(service, ada, new) == [("dead", None), ("live", "ada")]


def test_an_unknown_and_an_expired_one_are_dead(service: TokenService, ada: str, clock: Clock) -> None:
    assert judged(service, ONE) == [("dead", None)]
    clock.advance(timedelta(days=31))
    assert judged(service, ada) == [("dead", "ada")]


def test_what_is_only_blocked_lives(service: TokenService, ada: str) -> None:
    service.users.disable("ada", duration=timedelta(hours=1))
    assert judged(service, ada) == [("live", "ada")]


def test_without_the_key_the_secret_decides(settings: Settings, service: TokenService, ada: str) -> None:
    genuine = parse_unverified(ada)
    made_up = mint(genuine.raw_id, 0, b"0123456789abcdef", KEY)
    with_its_secret = mint(genuine.raw_id, 0, genuine.secret, KEY)
    assert judged(service, ada, made_up, with_its_secret) == [("live", "ada"), ("dead", None), ("dead", None)]
    with TokenService(replace(settings, key_file="/nowhere"), clock=lambda: START) as keyless:
        assert judged(keyless, ada, made_up, with_its_secret) == [
            ("live", "ada"),
            ("dead", None),
            ("live", "ada"),
        ]


def test_an_unusable_key_is_said_before_anything_is_read(settings: Settings, service: TokenService) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("no key")
        file.flush()
        with (
            TokenService(replace(settings, key_file=file.name), clock=lambda: START) as other,
            pytest.raises(KeyUnusable),
        ):
            scan([], service=other, unreadable=print)


def test_look_up_reads_in_chunks(service: TokenService, monkeypatch: pytest.MonkeyPatch) -> None:
    service.create_user("ada", "plum orbit kettle sandal")
    made = [service.issue("ada").token_id for _ in range(7)]
    sizes: list[int] = []
    real = tokens.fetch

    def fetch(connection: object, raw_ids: list[bytes]) -> object:
        sizes.append(len(raw_ids))
        return real(connection, raw_ids)  # type: ignore[arg-type] # it only counts

    monkeypatch.setattr(tokens, "fetch", fetch)
    monkeypatch.setattr(tokens, "CHUNK", 3)
    found = service.look_up([*made, ID])
    assert sizes == [3, 3, 2]
    assert sorted(found) == sorted(made)
    assert all(row.id == token_id for token_id, row in found.items())
    assert service.look_up([]) == {}
    with pytest.raises(InvalidInput):
        service.look_up(["rt_no"])


def test_more_findings_than_are_judged_at_once(
    service: TokenService, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = service.look_up

    def look_up(token_ids: Collection[str]) -> dict[str, RefreshToken]:
        asked.append(len(token_ids))
        return real(token_ids)

    monkeypatch.setattr(service, "look_up", look_up)
    assert len(judged(service, *[ada] * 2_500)) == 2_500
    assert asked == [1, 1, 1]
