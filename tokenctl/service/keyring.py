"""The signing keys as a running process knows them: which one signs now, and which ones verify.

Owns which of several keys signs at a moment, how old a look at the database may be, and the opened keys:
a private one is unwrapped once, a public one loaded once. What a key is and how it is wrapped, `core.keys`
knows; who makes and retires one is `service.keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import TYPE_CHECKING

from tokenctl.errors import KeyMissing
from tokenctl.service.transactions import repeated
from tokenctl.storage import keys as stored_keys
from tokenctl.storage.engine import Storage
from tokenctl.storage.keys import StoredKey

if TYPE_CHECKING:  # cryptography costs start-up
    from tokenctl.core.access_token import PublicKey
    from tokenctl.core.keys import SigningKey

#: So long (µs) a process may go without a look: it is how late it learns of another one's rotation.
_FRESH = 5_000_000


class KeyState(StrEnum):
    """What a signing key is for at a moment. All but the retired ones are published in the JWKS."""

    NEXT = "next"
    SIGNING = "signing"
    VERIFYING = "verifying"
    RETIRED = "retired"


def signer(keys: Sequence[StoredKey], now: int) -> StoredKey | None:
    """The key that signs at `now` (µs): of those that are not retired the one that became active last.

    Where none is active yet this clock is behind the one that made them, and the first of them signs.
    """
    there = [key for key in keys if not key.is_retired(now)]
    active = [key for key in there if key.active_at <= now]
    if active:
        return max(active, key=_order)
    return min(there, key=_order, default=None)


def key_states(keys: Sequence[StoredKey], now: int) -> list[KeyState]:
    """The state of each key at `now` (µs), in the order given; `keys` are all that there are."""
    signs = signer(keys, now)

    def state(key: StoredKey) -> KeyState:
        if key.is_retired(now):
            return KeyState.RETIRED
        if key is signs:
            return KeyState.SIGNING
        return KeyState.NEXT if key.active_at > now else KeyState.VERIFYING

    return [state(key) for key in keys]


def _order(key: StoredKey) -> tuple[int, int, str]:
    # Every node must choose the same one, also of two that were made at one instant.
    return key.active_at, key.created_at, key.kid


@dataclass(frozen=True, slots=True)
class _Look:
    """What the database said at `at` (µs), and what follows from it until `until`: no key changes between."""

    at: int
    until: int
    published: list[StoredKey]
    signs: StoredKey | None


class KeyRing:
    """Reached as `Runtime.key_ring`. Safe to share between threads; a fresh look takes no lock."""

    def __init__(self, storage: Storage, clock: Callable[[], int], wrap_key: Callable[[], bytes]) -> None:
        """`wrap_key` is asked for at the first private key, and raises what a missing master key raises."""
        self._storage = storage
        self._clock = clock
        self._wrap_key = wrap_key
        self._lock = Lock()
        self._look: _Look | None = None
        self._private: dict[str, SigningKey] = {}
        self._public: dict[str, PublicKey] = {}

    def signing_key(self) -> SigningKey:
        """The key that signs now. Raises KeyMissing, KeyUnusable, KeyWrong."""
        key = self._fresh().signs
        if key is None:
            raise KeyMissing(f"{self._storage.label} has no signing key in use", hint="tokenctl keys rotate")
        return self._private.get(key.kid) or self._unwrap(key)

    def verification_keys(self) -> Mapping[str, PublicKey]:
        """The keys that are not retired, by kid, those included that do not sign yet."""
        return {key.kid: self._public.get(key.kid) or self._load(key) for key in self._fresh().published}

    def published(self) -> list[StoredKey]:
        """The keys whose public halves the JWKS shows now, the newest first."""
        return list(self._fresh().published)

    def forget(self) -> None:
        """Look again at the next question: this process has changed the keys."""
        with self._lock:  # else a look that began before the change could come after this
            self._look = None

    def _fresh(self) -> _Look:
        look, now = self._look, self._clock()
        if look is not None and look.at <= now < look.until:
            return look
        with self._lock:
            look, now = self._look, self._clock()  # another thread may have looked meanwhile
            if look is None or not look.at <= now < look.until:
                self._look = look = self._read(now)
            return look

    @repeated
    def _read(self, now: int) -> _Look:
        with self._storage.read() as connection:
            keys = stored_keys.unretired(connection, now=now)
        changes = (at for key in keys for at in (key.active_at, key.retired_at) if at is not None)
        # A private key that signs no more need not stay in the memory.
        kids = {key.kid for key in keys}
        self._private = {kid: key for kid, key in self._private.items() if kid in kids}
        self._public = {kid: key for kid, key in self._public.items() if kid in kids}
        return _Look(now, min([now + _FRESH, *(at for at in changes if at > now)]), keys, signer(keys, now))

    def _unwrap(self, key: StoredKey) -> SigningKey:
        from tokenctl.core.keys import unwrap_signing_key

        wrap_key = self._wrap_key()
        with self._lock:
            if (known := self._private.get(key.kid)) is not None:
                return known
            opened = unwrap_signing_key(key.kid, key.algorithm, key.wrapped_private_key, wrap_key)
            self._private[key.kid] = opened
            return opened

    def _load(self, key: StoredKey) -> PublicKey:
        from tokenctl.core.access_token import prepare_public_key

        with self._lock:
            if (known := self._public.get(key.kid)) is None:
                known = self._public[key.kid] = prepare_public_key(key.public_jwk)
            return known
