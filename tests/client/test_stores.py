"""The token stores: one change at a time, all or nothing, and nobody else may read them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import cli
from tokenctl.client import FileStore, Login, MemoryStore, Moment, Store, StoreUnusable

LOGIN = Login(
    access_token="access",
    refresh_token="refresh",
    expires_in=60.0,
    asked_at=Moment(running=12.345678901, wall=1_700_000_000.123456, boot="boot"),
    base_url="https://auth.example:443",
    client_id="default",
    scope="read write",
    user_id="usr_1",
)
NEXT = replace(LOGIN, access_token="next access", refresh_token="next refresh", user_id=None, scope="")


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else FileStore(tmp_path / "own" / "tokens.json")


def test_what_is_stored_is_there(store: Store) -> None:
    assert store.load() is None
    for before, after in [(None, LOGIN), (LOGIN, NEXT), (NEXT, NEXT), (NEXT, None), (None, None)]:
        assert store.swap(before, after)
        assert store.load() == after


def test_a_change_of_what_is_not_there_is_none(store: Store) -> None:
    assert not store.swap(LOGIN, NEXT)
    assert store.swap(None, LOGIN)
    for wrong in (None, NEXT, replace(LOGIN, access_token="other"), replace(LOGIN, refresh_token="other")):
        assert not store.swap(wrong, NEXT)
    assert store.load() == LOGIN


def test_one_of_many_changes_wins(store: Store) -> None:
    store.swap(None, LOGIN)
    with ThreadPoolExecutor(16) as pool:
        news = [replace(NEXT, access_token=f"of {number}") for number in range(16)]
        done = list(pool.map(lambda new: store.swap(LOGIN, new), news))
    assert done.count(True) == 1
    assert store.load() == news[done.index(True)]


def test_one_has_the_turn_and_the_wait_is_bounded(store: Store) -> None:
    with store.turn(1) as first:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(_turn(store, 0.05)).result() is False
        assert first
    assert _turn(store, 0)() is True


def _turn(store: Store, seconds: float) -> Callable[[], bool]:
    def take() -> bool:
        with store.turn(seconds) as taken:
            return taken

    return take


def test_the_end_of_a_process_frees_its_locks(tmp_path: Path) -> None:
    program = (
        "import os, sys; from tokenctl.client import FileStore\n"
        "with FileStore(sys.argv[1]).turn(5) as taken:\n"
        "    print(taken, flush=True); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "tokens.json"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=cli.environment(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == b"True\n"
    assert _turn(FileStore(path), 0)() is True


def test_two_names_of_one_file_are_one_store(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "tokens.json")
    one, other = FileStore(tmp_path / "tokens.json"), FileStore(tmp_path / "link.json")
    assert one.swap(None, LOGIN)
    assert other.load() == LOGIN
    with one.turn(0):
        assert _turn(other, 0)() is False


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        FileStore(tmp_path / "own" / "tokens.json").swap(None, LOGIN)
    finally:
        os.umask(before)
    assert {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "own").iterdir()} == {
        "tokens.json": 0o600,
        "tokens.json.lock": 0o600,
    }
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "tokens.json")
    store.swap(None, LOGIN)
    store.path.chmod(0o640)
    with pytest.raises(StoreUnusable, match=r"can be read by others.*rm "):
        store.load()


def test_what_a_crash_left_behind_is_written_over(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "tokens.json")
    (tmp_path / "tokens.json.new").write_text("half of")
    assert store.swap(None, LOGIN)
    assert store.load() == LOGIN
    assert not (tmp_path / "tokens.json.new").exists()


def test_what_the_store_says_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def count(fd: int) -> None:
        synced.append(stat.S_IFMT(os.fstat(fd).st_mode))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", count)
    FileStore(tmp_path / "tokens.json").swap(None, LOGIN)
    assert synced == [stat.S_IFREG, stat.S_IFDIR]  # the file before it takes the place, then the name


def _changed(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda found: {**found, **fields}


@pytest.mark.parametrize(
    "change",
    [
        _changed(version=2),
        _changed(access_token=None),
        _changed(refresh_token=""),
        _changed(expires_in="60"),
        _changed(expires_in=float("nan")),
        _changed(asked_at=None),
        _changed(asked_at={"running": 1, "wall": True, "boot": None}),
        lambda _: [],
        lambda _: None,
        lambda _: {},
    ],
)
def test_another_content_is_refused_and_not_shown(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    store = FileStore(tmp_path / "tokens.json")
    store.swap(None, LOGIN)
    store.path.write_text(json.dumps(change(json.loads(store.path.read_text()))))
    with pytest.raises(StoreUnusable, match=r"holds no tokens.*rm ") as unusable:
        store.load()
    assert unusable.value.__suppress_context__
    assert unusable.value.__cause__ is None
    assert "refresh" not in str(unusable.value)


def test_a_directory_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FileStore(tmp_path / "file" / "tokens.json")
    with pytest.raises(StoreUnusable, match=r"cannot .*tokens\.json"):
        store.load()
    with pytest.raises(StoreUnusable, match=r"check the directory: ls -ld"):
        store.swap(None, LOGIN)
