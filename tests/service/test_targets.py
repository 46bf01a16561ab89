"""Ids and strings, a line each: read once, held without a secret, looked at, revoked, reported."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.conftest import Clock
from tests.service import add_logins, key_file, login_row, run_sql
from tokenctl import Selector, SelectState, Settings, State, TokenPair, TokenService
from tokenctl.core.token_string import mint, parse_unverified
from tokenctl.errors import KeyWrong
from tokenctl.service import targets

UNKNOWN = "rt_" + "0" * 32


@pytest.fixture
def pair(service: TokenService) -> TokenPair:
    service.create_user("ada")
    return service.issue("ada")


def forged(pair: TokenPair) -> str:
    token = parse_unverified(pair.refresh_token)
    return mint(token.raw_id, token.generation, token.secret, b"another key, of 32 bytes in all..")


def test_each_line_is_reported(service: TokenService, pair: TokenPair) -> None:
    dead = service.issue("ada")
    service.revoke([dead.token_id], reason="before")
    lines = [None, pair.refresh_token, UNKNOWN, "junk", dead.token_id, forged(pair), None, pair.token_id]
    seen: dict[int, tuple[str | None, str]] = {}

    def note(line: int, token_id: str | None, outcome: str) -> None:
        seen[line] = (token_id, outcome)

    with service.read_targets(lines) as named:
        assert named.count == 6
        for _ in range(2):  # they may be looked at again and again
            found = service.preview_targets(named)
            assert (found.tokens, found.already_dead, found.repeated, found.unknown) == (1, 1, 1, 1)
            assert (found.forged, found.malformed) == (1, 1)
        service.revoke(named, reason="INC-7", report=note)
        assert seen == {
            2: (pair.token_id, "revoked"),
            3: (UNKNOWN, "unknown"),
            4: (None, "malformed"),
            5: (dead.token_id, "already_dead"),
            6: (None, "forged"),
            8: (pair.token_id, "repeated"),
        }
        # A second run goes on: nothing is left to do, and it says so.
        again = service.revoke(named, reason="INC-7")
    assert (again.revoked, again.already_dead, again.unknown) == (0, 3, 1)


def test_no_secret_is_held(
    service: TokenService, pair: TokenPair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What does not fit into the memory goes to a file, and there must be nothing in it to steal."""
    monkeypatch.setattr(targets, "_IN_MEMORY", 1)
    with service.read_targets([pair.refresh_token] * 3) as named:
        file = named._file
        file.rollover()
        file.seek(0)
        held = file.read()
        token = parse_unverified(pair.refresh_token)
        assert token.raw_id in held
        assert token.secret not in held
        assert pair.refresh_token.encode() not in held
        assert service.revoke(named, reason="INC-7").revoked == 1
    assert file.closed


def test_named_twice_far_apart(service: TokenService, settings: Settings, pair: TokenPair) -> None:
    user = service.users.get("ada")
    others = add_logins(settings, [login_row(number, user.id) for number in range(1, 2_101)])
    lines = [pair.token_id, *others, pair.refresh_token]
    with service.read_targets(lines) as named:
        found = service.preview_targets(named)
        assert (found.tokens, found.repeated) == (2_101, 1)
        done = service.revoke(named, reason="INC-7")
    assert (done.revoked, done.repeated, done.users) == (2_101, 1, 1)
    assert run_sql(settings, "SELECT count(*) FROM events WHERE type = 'token.revoke'") == [(2_101,)]


def test_they_are_read_in_runs(
    service: TokenService, settings: Settings, pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than are put in order at once are still all dealt with."""
    monkeypatch.setattr(targets, "_SORTED", 700)
    user = service.users.get("ada")
    ids = add_logins(settings, [login_row(number, user.id) for number in range(1, 2_001)])
    with service.read_targets(reversed(ids)) as named:
        sizes = [len(chunk) for chunk in named.chunks()]
        assert (sum(sizes), max(sizes)) == (2_000, 700)
        assert service.revoke(named, reason="INC-7").revoked == 2_000
    assert service.preview(Selector(everything=True)).tokens == 1


def test_stopped_it_tells_what_it_did(service: TokenService, settings: Settings, pair: TokenPair) -> None:
    user = service.users.get("ada")
    ids = add_logins(settings, [login_row(number, user.id) for number in range(1, 2_001)])
    calls: Iterator[bool] = iter([False, True])
    done = service.revoke(ids, reason="INC-7", stop=lambda: next(calls))
    assert (done.revoked, done.complete) == (1_000, False)
    again = service.revoke(ids, reason="INC-7")
    assert (again.revoked, again.already_dead, again.complete) == (1_000, 1_000, True)


def test_a_wrong_key_is_found_before_anything_is_done(
    service: TokenService, settings: Settings, pair: TokenPair, clock: Clock
) -> None:
    key_file(settings).write_text("tkm1_" + "A" * 43 + "\n")
    with TokenService(settings, clock=clock) as other, pytest.raises(KeyWrong):
        other.read_targets([pair.token_id, pair.refresh_token])
    assert service.preview(Selector(everything=True)).tokens == 1


def test_named_gives_the_ids_that_are_there(service: TokenService, pair: TokenPair) -> None:
    superseded = service.issue("ada")
    service.reissue(superseded.token_id)
    lines = [pair.refresh_token, superseded.refresh_token, UNKNOWN, "junk", pair.token_id]
    with service.read_targets(lines) as named:
        assert list(service.named(named)) == [pair.token_id]


def test_a_string_that_names_its_login_no_longer(service: TokenService, pair: TokenPair) -> None:
    """Somebody re-issued it between the look and the deed; who named it by its id means it still."""
    by_id = service.issue("ada")
    with service.read_targets([pair.refresh_token, by_id.token_id]) as named:
        found = service.look(named)
        service.reissue(pair.token_id)
        service.reissue(by_id.token_id)
        done = service.revoke_found(found, reason="INC-7")
    assert (done.revoked, done.already_dead) == (1, 1)
    assert service.inspect(pair.token_id).state is State.LIVE
    assert service.inspect(by_id.token_id).state is State.REVOKED


def test_at_most_as_many_as_were_confirmed(service: TokenService, pair: TokenPair, clock: Clock) -> None:
    clock.advance(timedelta(seconds=1))
    seen = service.preview(Selector(users=("ada",)))
    later = service.issue("ada")
    done = service.revoke_matching(Selector(users=("ada",)), reason="INC-7", seen=seen)
    assert (done.revoked, done.complete) == (1, True)
    assert service.inspect(later.token_id).state is State.LIVE
    seen = service.preview(Selector(users=("ada",), states=(SelectState.REVOKED,)))
    nothing = service.revoke_matching(Selector(users=("ada",)), reason="INC-7", seen=seen)
    assert (nothing.revoked, nothing.complete) == (0, True)
