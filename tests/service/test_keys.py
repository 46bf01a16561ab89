"""The rotation of the signing keys: who signs and who verifies at which moment, and who learns of it when."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import jwt
import pytest

from tests.conftest import CHEAP, MASTER_KEY, START, Clock
from tests.service import DAY, SECOND, accept_events, dump, key_file, refuse_events, run_sql, statements
from tokenctl import Settings, TokenPair, TokenService
from tokenctl.core.access_token import AccessClaims, verify_access_token
from tokenctl.core.keys import derive_keys, unwrap_signing_key
from tokenctl.errors import InvalidAccessToken, KeyMissing, KeyWrong, TokenctlError
from tokenctl.service.keyring import KeyState, key_states, signer
from tokenctl.storage.keys import StoredKey

TICK = timedelta(microseconds=1)
BEFORE = timedelta(minutes=10)
AFTER = timedelta(days=1)
LOOK = timedelta(seconds=5)
MINUTE = 60 * SECOND
#: What RFC 7518 §6 knows of a private or a symmetric key.
PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


@pytest.fixture
def ada(service: TokenService) -> str:
    return service.create_user("ada").id


@pytest.fixture
def second(settings: Settings, clock: Clock) -> Iterator[TokenService]:
    """Another process on the same database: it shares nothing with the first but the file."""
    with TokenService(settings, clock=clock, passwords=CHEAP) as second:
        yield second


def kid_of(pair: TokenPair) -> str:
    return str(jwt.get_unverified_header(pair.access_token)["kid"])


def first_kid(service: TokenService) -> str:
    return service.keys.list()[-1].kid


def verified(service: TokenService, pair: TokenPair) -> AccessClaims:
    """The claims, as a service that asks the runtime for its keys sees them."""
    return verify_access_token(
        pair.access_token,
        service._runtime.verification_keys(),
        issuer="tokenctl",
        audience="tokenctl",
        now=service.now(),
    )


def published(service: TokenService) -> list[str]:
    return [key["kid"] for key in service.keys.jwks()["keys"]]


def states(service: TokenService) -> list[str]:
    return [str(state) for state in key_states(service.keys.list(), service.now())]


class TestRotate:
    def test_the_new_key_is_published_before_it_signs(
        self, service: TokenService, ada: str, clock: Clock
    ) -> None:
        old = first_kid(service)
        new = service.keys.rotate()
        assert (new.created_at, new.active_at, new.retired_at) == (clock(), clock() + 10 * MINUTE, None)
        assert published(service) == [new.kid, old]
        assert kid_of(service.issue("ada")) == old
        clock.advance(BEFORE - TICK)
        assert kid_of(service.issue("ada")) == old
        clock.advance(TICK)
        assert kid_of(service.issue("ada")) == new.kid
        assert published(service) == [new.kid, old]

    def test_the_old_key_verifies_until_its_last_token_has_expired(
        self, settings: Settings, service: TokenService, ada: str, clock: Clock
    ) -> None:
        longest = replace(settings, access_ttl=AFTER)
        old = first_kid(service)
        service.keys.rotate()
        clock.advance(BEFORE - TICK)
        with TokenService(longest, clock=clock) as slow:
            pair = slow.issue("ada")
        assert kid_of(pair) == old
        clock.advance(AFTER - timedelta(seconds=1))
        assert verified(service, pair).user_id == ada
        clock.advance(timedelta(seconds=1) + TICK)
        assert published(service) == [service.keys.list()[0].kid]
        with pytest.raises(InvalidAccessToken, match="its key is not known"):
            verified(service, pair)

    def test_both_kinds_of_token_verify_meanwhile(
        self, service: TokenService, ada: str, clock: Clock
    ) -> None:
        before = service.issue("ada")
        new = service.keys.rotate()
        clock.advance(BEFORE - timedelta(minutes=5))
        late = service.rotate(before.refresh_token)
        assert verified(service, late).token_id == before.token_id
        clock.advance(timedelta(minutes=5))
        after = service.rotate(late.refresh_token)
        assert (kid_of(late), kid_of(after)) == (first_kid(service), new.kid)
        assert verified(service, late)
        assert verified(service, after)

    def test_states(self, service: TokenService, clock: Clock) -> None:
        assert states(service) == ["signing"]
        service.keys.rotate()
        assert states(service) == ["next", "signing"]
        clock.advance(BEFORE)
        assert states(service) == ["signing", "verifying"]
        clock.advance(AFTER)
        assert states(service) == ["signing", "retired"]

    def test_again_before_the_first_has_begun(self, service: TokenService, ada: str, clock: Clock) -> None:
        """Each signs in its turn, and the end of the oldest is not put off."""
        old = first_kid(service)
        first = service.keys.rotate()
        clock.advance(timedelta(minutes=4))
        last = service.keys.rotate()
        ends = {key.kid: key.retired_at for key in service.keys.list()}
        assert ends == {
            last.kid: None,
            first.kid: last.active_at + DAY,
            old: first.active_at + DAY,
        }
        signed = []
        for _ in range(3):
            signed.append(kid_of(service.issue("ada")))
            clock.advance(timedelta(minutes=6))
        assert signed == [old, first.kid, last.kid]

    def test_is_an_event(self, service: TokenService, clock: Clock) -> None:
        clock.advance(timedelta(hours=1))
        new = service.keys.rotate(actor="nina")
        event = service.audit.tail()[-1]
        assert (event.type, event.at, event.actor) == ("key.rotate", clock(), "nina")
        assert event.data == {
            "kid": new.kid,
            "algorithm": "ES256",
            "active_at": clock() + 10 * MINUTE,
            "at_once": False,
        }

    def test_the_private_half_is_wrapped_under_the_master_key(self, service: TokenService) -> None:
        new = service.keys.rotate()
        [stored] = [key for key in service.keys.list() if key.kid == new.kid]
        assert stored == new
        wrap = derive_keys(MASTER_KEY).wrap
        opened = unwrap_signing_key(new.kid, "ES256", stored.wrapped_private_key, wrap)
        assert opened.public_jwk == new.public_jwk

    def test_rs256(self, settings: Settings, service: TokenService, ada: str, clock: Clock) -> None:
        old = service.issue("ada")
        rsa = replace(settings, algorithm="RS256")
        with TokenService(rsa, clock=clock) as other:
            new = other.keys.rotate()
        clock.advance(BEFORE)
        pair = service.rotate(old.refresh_token)
        assert jwt.get_unverified_header(pair.access_token)["alg"] == new.algorithm == "RS256"
        assert kid_of(pair) == new.kid
        assert verified(service, pair).token_id == old.token_id
        assert [key["kty"] for key in service.keys.jwks()["keys"]] == ["RSA", "EC"]

    def test_needs_the_master_key_and_changes_nothing_without_it(
        self, service: TokenService, settings: Settings, second: TokenService
    ) -> None:
        key_file(settings).unlink()
        before = dump(settings)
        with pytest.raises(KeyMissing):
            second.keys.rotate()
        assert dump(settings) == before

    def test_when_it_fails_nothing_has_changed(
        self, service: TokenService, ada: str, settings: Settings, clock: Clock
    ) -> None:
        """The event is the last statement; it cannot be written."""
        refuse_events(settings, "%")
        before = dump(settings)
        for at_once in (False, True):
            with pytest.raises(TokenctlError):
                service.keys.rotate(at_once=at_once)
            assert dump(settings) == before
        accept_events(settings)
        clock.advance(BEFORE + AFTER)
        assert kid_of(service.issue("ada")) == first_kid(service)

    @pytest.mark.parametrize("at_once", [False, True])
    def test_killed_before_the_commit_it_never_was(
        self, settings: Settings, service: TokenService, ada: str, at_once: bool
    ) -> None:
        program = (
            "import os, sys\n"
            "from tokenctl import Settings, TokenService\n"
            "from tokenctl.storage import events\n"
            "database, key_file, at_once = sys.argv[1:]\n"
            "events.add = lambda *_: os._exit(9)  # keys are written, nothing is committed\n"
            "settings = Settings(database=database, key_file=key_file)\n"
            "TokenService(settings).keys.rotate(at_once=bool(at_once))\n"
        )
        before = dump(settings)
        done = subprocess.run(
            [sys.executable, "-c", program, settings.database, str(key_file(settings)), "x" * at_once],
            check=False,
            timeout=60,
        )
        assert done.returncode == 9
        assert dump(settings) == before
        pair = service.issue("ada")
        assert verified(service, pair)
        assert kid_of(pair) == first_kid(service)
        assert service.keys.rotate(at_once=at_once)


class TestAtOnce:
    def test_signs_now_and_the_old_tokens_verify_no_more(
        self, service: TokenService, ada: str, clock: Clock
    ) -> None:
        pair = service.issue("ada")
        assert verified(service, pair)
        clock.advance(timedelta(minutes=1))
        new = service.keys.rotate(at_once=True)
        assert (new.active_at, new.retired_at) == (clock(), None)
        assert [key.retired_at for key in service.keys.list()] == [None, clock()]
        with pytest.raises(InvalidAccessToken, match="its key is not known"):
            verified(service, pair)
        again = service.rotate(pair.refresh_token)
        assert kid_of(again) == new.kid
        assert verified(service, again).token_id == pair.token_id
        assert published(service) == [new.kid]
        assert states(service) == ["signing", "retired"]
        assert service.audit.tail()[-1].data["at_once"] is True

    def test_retires_also_what_was_to_verify_for_a_while_and_what_was_to_sign_next(
        self, service: TokenService, ada: str, clock: Clock
    ) -> None:
        service.keys.rotate()
        clock.advance(BEFORE)
        service.keys.rotate()
        assert states(service) == ["next", "signing", "verifying"]
        new = service.keys.rotate(at_once=True)
        assert published(service) == [new.kid]
        assert states(service).count("retired") == 3
        clock.advance(BEFORE)
        assert kid_of(service.issue("ada")) == new.kid, "the one that was next never signs"

    def test_leaves_the_past_as_it_was(self, service: TokenService, clock: Clock) -> None:
        service.keys.rotate()
        clock.advance(BEFORE + AFTER + BEFORE)
        retired = service.keys.list()[-1].retired_at
        service.keys.rotate(at_once=True)
        assert service.keys.list()[-1].retired_at == retired


class TestRunningProcesses:
    def test_another_one_takes_the_new_key_up_within_5_s(
        self, service: TokenService, second: TokenService, ada: str, clock: Clock
    ) -> None:
        old = first_kid(service)
        assert kid_of(second.issue("ada")) == old
        new = service.keys.rotate(at_once=True)
        clock.advance(LOOK - TICK)
        assert kid_of(second.issue("ada")) == old, "it does not look at every call"
        clock.advance(TICK)
        assert kid_of(second.issue("ada")) == new.kid

    def test_another_one_refuses_the_old_tokens_within_5_s(
        self, service: TokenService, second: TokenService, ada: str, clock: Clock
    ) -> None:
        pair = service.issue("ada")
        assert verified(second, pair)
        service.keys.rotate(at_once=True)
        clock.advance(LOOK)
        with pytest.raises(InvalidAccessToken):
            verified(second, pair)

    def test_another_one_verifies_what_the_first_signs_from_its_first_moment(
        self, service: TokenService, second: TokenService, ada: str, clock: Clock
    ) -> None:
        verified(second, service.issue("ada"))
        new = service.keys.rotate()
        clock.advance(LOOK)
        assert published(second) == [new.kid, first_kid(service)]
        # The switch comes on time, though the last look was a moment before.
        clock.now = new.active_at - 1
        assert kid_of(second.issue("ada")) == first_kid(service)
        clock.advance(TICK)
        pair = second.issue("ada")
        assert kid_of(pair) == kid_of(service.issue("ada")) == new.kid
        assert verified(service, pair)

    def test_looks_again_when_the_clock_went_back(
        self, service: TokenService, second: TokenService, ada: str, clock: Clock
    ) -> None:
        clock.advance(timedelta(days=3))
        second.issue("ada")
        service.keys.rotate(at_once=True)
        clock.advance(-TICK)
        # One microsecond before its end the old key still signs: what counts is that a look was taken.
        with statements(second) as sent:
            second.issue("ada")
        assert sum("FROM signing_keys" in statement for statement in sent) == 1

    def test_a_clock_that_is_behind_all_keys_still_signs(
        self, service: TokenService, ada: str, clock: Clock
    ) -> None:
        old = first_kid(service)
        service.keys.rotate()
        clock.now = START - DAY
        assert kid_of(service.issue("ada")) == old

    def test_a_look_is_one_query_and_opens_nothing_again(
        self, service: TokenService, ada: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = service._runtime
        signing, verifying = runtime.signing_key, dict(runtime.verification_keys())
        monkeypatch.setattr("tokenctl.core.keys.unwrap_signing_key", None)
        monkeypatch.setattr("tokenctl.core.access_token.prepare_public_key", None)
        for looks, wait in [(0, timedelta(0)), (0, LOOK - TICK), (1, TICK), (1, timedelta(hours=1))]:
            clock.advance(wait)
            with statements(service) as sent:
                for _ in range(3):
                    assert runtime.signing_key is signing
                    assert dict(runtime.verification_keys()) == verifying
                    assert service.keys.jwks()
            assert len([each for each in sent if not each.startswith("BEGIN")]) == looks

    def test_a_fresh_look_takes_no_lock(
        self, service: TokenService, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring = service._runtime.key_ring
        known = ring.signing_key(), ring.verification_keys()
        monkeypatch.setattr(ring, "_lock", None)
        assert (ring.signing_key(), ring.verification_keys()) == known
        clock.advance(LOOK)
        with pytest.raises(TypeError):
            ring.signing_key()

    def test_what_is_retired_leaves_the_memory(self, service: TokenService, ada: str, clock: Clock) -> None:
        verified(service, service.issue("ada"))
        new = service.keys.rotate(at_once=True)
        verified(service, service.issue("ada"))
        ring = service._runtime.key_ring
        assert set(ring._private) == set(ring._public) == {new.kid}

    def test_a_look_that_began_before_a_rotation_is_not_kept_after_it(
        self, service: TokenService, ada: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread has read the old keys and stops there; meanwhile another one rotates."""
        from tokenctl.storage import keys

        read, go_on = threading.Event(), threading.Event()
        real = keys.unretired

        def slow(*args: object, **options: int) -> list[StoredKey]:
            found = real(*args, **options)  # type: ignore[arg-type] # what the real one was given
            read.set()
            assert go_on.wait(20)
            return found

        service.issue("ada")
        ring = service._runtime.key_ring
        ring.forget()
        monkeypatch.setattr("tokenctl.storage.keys.unretired", slow)
        looking = threading.Thread(target=ring.published)
        looking.start()
        assert read.wait(20)
        monkeypatch.undo()
        made: list[StoredKey] = []
        rotating = threading.Thread(target=lambda: made.append(service.keys.rotate(at_once=True)))
        rotating.start()
        rotating.join(1)
        go_on.set()
        for thread in (looking, rotating):
            thread.join(20)
        assert published(service) == [made[0].kid]

    def test_many_threads_at_once_get_one_key(self, service: TokenService, clock: Clock) -> None:
        ring, found = service._runtime.key_ring, []
        start = threading.Barrier(8)

        def ask() -> None:
            start.wait()
            found.append((ring.signing_key(), tuple(ring.verification_keys().values())))

        with statements(service) as sent:
            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len({id(key) for key, _ in found}) == 1
        assert len({id(public) for _, (public,) in found}) == 1
        assert sum("FROM signing_keys" in statement for statement in sent) == 1


class TestErrors:
    def test_a_key_that_cannot_be_unwrapped(
        self, service: TokenService, second: TokenService, ada: str, settings: Settings
    ) -> None:
        run_sql(settings, "UPDATE signing_keys SET wrapped_private_key = ?", bytes(200))
        for _ in range(2):
            with pytest.raises(KeyWrong, match="cannot be unwrapped") as caught:
                second.issue("ada")
            assert caught.value.facts == {"kid": first_kid(service)}
        assert published(second) == [first_kid(service)], "verifying needs no private half"

    def test_no_key_is_left(
        self, service: TokenService, second: TokenService, ada: str, settings: Settings, clock: Clock
    ) -> None:
        run_sql(settings, "UPDATE signing_keys SET retired_at = ?", clock())
        with pytest.raises(KeyMissing, match="no signing key in use"):
            second.issue("ada")
        assert second.keys.jwks() == {"keys": []}
        assert service.keys.rotate(at_once=True)
        clock.advance(LOOK)
        assert second.issue("ada")


class TestJwks:
    def test_has_public_halves_only(self, settings: Settings, service: TokenService, clock: Clock) -> None:
        clock.advance(LOOK)
        service.keys.rotate()
        clock.advance(LOOK)
        with TokenService(replace(settings, algorithm="RS256"), clock=clock) as rsa:
            rsa.keys.rotate()
        clock.advance(LOOK)
        jwks = service.keys.jwks()
        assert [key["alg"] for key in jwks["keys"]] == ["RS256", "ES256", "ES256"]
        assert [key["kid"] for key in jwks["keys"]] == [key.kid for key in service.keys.list()]
        shared = {"kty", "use", "alg", "kid"}
        for key in jwks["keys"]:
            assert set(key) == shared | ({"n", "e"} if key["kty"] == "RSA" else {"crv", "x", "y"})
            assert not PRIVATE & set(key)
            assert (key["use"], key["alg"]) == ("sig", "RS256" if key["kty"] == "RSA" else "ES256")
        assert json.loads(json.dumps(jwks)) == jwks

    def test_another_library_verifies_with_it(self, service: TokenService, ada: str, clock: Clock) -> None:
        service.keys.rotate()
        clock.advance(BEFORE)
        pair = service.issue("ada")
        keys = jwt.PyJWKSet.from_dict(service.keys.jwks())
        claims = jwt.decode(
            pair.access_token,
            keys[kid_of(pair)].key,
            algorithms=["ES256"],
            audience="tokenctl",
            options={"verify_exp": False, "verify_iat": False},
        )
        assert claims["sub"] == ada

    def test_needs_no_master_key(self, settings: Settings, clock: Clock) -> None:
        key_file(settings).unlink()
        with TokenService(settings, clock=clock) as bare:
            assert len(bare.keys.jwks()["keys"]) == 1
            assert len(bare._runtime.verification_keys()) == 1

    def test_what_a_caller_does_to_it_stays_with_the_caller(self, service: TokenService) -> None:
        first = service.keys.jwks()
        first["keys"][0]["x"] = "changed"
        first["keys"].clear()
        assert service.keys.jwks()["keys"][0]["x"] != "changed"


class TestRules:
    """`signer` and `key_states` on keys that need no database."""

    @staticmethod
    def key(kid: str, active_at: int, retired_at: int | None = None) -> StoredKey:
        return StoredKey(
            kid=kid,
            algorithm="ES256",
            public_jwk={},
            wrapped_private_key=b"",
            created_at=0,
            active_at=active_at,
            retired_at=retired_at,
        )

    @pytest.mark.parametrize(
        ("keys", "now", "signs"),
        [
            pytest.param([("a", 10, None)], 10, "a", id="from active_at on"),
            pytest.param([("a", 10, None)], 9, "a", id="alone, and the clock is behind"),
            pytest.param([("a", 10, None), ("b", 20, None)], 19, "a", id="before the second"),
            pytest.param([("a", 10, None), ("b", 20, None)], 20, "b", id="at the second"),
            pytest.param([("a", 10, None), ("b", 20, None)], 5, "a", id="before both"),
            pytest.param([("a", 10, 30), ("b", 20, 25)], 24, "b", id="the last one before its end"),
            pytest.param([("a", 10, 30), ("b", 20, 25)], 25, "a", id="it ends first"),
            pytest.param([("a", 10, 30), ("b", 20, 25)], 30, None, id="none is left"),
            pytest.param([("a", 10, 15), ("b", 20, None)], 16, "b", id="a gap is bridged"),
            pytest.param([("a", 10, None), ("b", 10, None)], 10, "b", id="two of one instant"),
            pytest.param([], 10, None, id="none at all"),
        ],
    )
    @pytest.mark.parametrize("turn", [lambda keys: keys, lambda keys: keys[::-1]], ids=["", "reversed"])
    def test_signer(
        self,
        keys: list[tuple[str, int, int | None]],
        now: int,
        signs: str | None,
        turn: Callable[[list[StoredKey]], list[StoredKey]],
    ) -> None:
        there = turn([self.key(*each) for each in keys])
        found = signer(there, now)
        assert (found and found.kid) == signs
        states = dict(zip((key.kid for key in there), key_states(there, now), strict=True))
        assert [kid for kid, state in states.items() if state is KeyState.SIGNING] == (
            [signs] if signs else []
        )
        retired = {kid for kid, _, end in keys if end is not None and end <= now}
        assert {kid for kid, state in states.items() if state is KeyState.RETIRED} == retired
