"""The signing keys of a database: which there are, which are published, and how a new one takes over.

Owns the times of a rotation. Making and wrapping a key is `core.keys`; which one signs is `keyring`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tokenctl.service.runtime import Entropy, Runtime, micros
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, keys
from tokenctl.storage.events import Event
from tokenctl.storage.keys import StoredKey

if TYPE_CHECKING:  # cryptography costs start-up
    from tokenctl.core.keys import SigningKey

#: Whoever verifies keeps a JWKS for 5 minutes. The new public half is published for twice as long before
#: anything is signed with it, so that nobody meets a token whose key is not known.
_PUBLISHED_BEFORE = timedelta(minutes=10)
#: The longest access_ttl that the settings allow: the last token of the old key has expired by then.
_VERIFIES_AFTER = timedelta(days=1)


class KeyService:
    """Reached as `TokenService.keys`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @repeated
    def list(self) -> list[StoredKey]:
        """All signing keys, the newest first; the private halves stay wrapped. Needs no master key."""
        with self._runtime.storage.read() as connection:
            return keys.all_keys(connection)

    def current(self) -> str:
        """The kid of the key that signs now. Raises KeyMissing, KeyUnusable, KeyWrong."""
        return self._runtime.signing_key.kid

    def jwks(self) -> dict[str, Any]:
        """The public halves that verify access tokens now or soon (RFC 7517 §5), the newest first.

        Needs no master key.
        """
        return {"keys": [dict(key.public_jwk) for key in self._runtime.key_ring.published()]}

    @repeated
    def rotate(self, *, at_once: bool = False, actor: str | None = None) -> StoredKey:
        """A new signing key, of the algorithm that is set. Running processes take it up by themselves.

        It signs 10 minutes from now, and the older keys verify for a day longer: nobody notices. With
        `at_once`, because a key was stolen, it signs now and the older ones are retired: every access token
        that they signed is refused here within 5 seconds, and by others when their copy of the JWKS ends.
        Raises KeyMissing, KeyUnusable, KeyWrong.
        """
        from tokenctl.core.keys import generate_signing_key

        runtime, actor = self._runtime, self._runtime.who(actor)
        wrap_key = runtime.keys.wrap
        # Before the transaction: an RSA key takes a second, and nobody should wait for it.
        made = generate_signing_key(runtime.settings.algorithm)
        with runtime.storage.write() as connection:
            now = runtime.clock()
            active_at = now if at_once else now + micros(_PUBLISHED_BEFORE)
            new = wrapped(made, wrap_key, runtime.entropy, now=now, active_at=active_at)
            if at_once:
                keys.retire_all(connection, now=now)
            else:
                keys.retire_open(connection, at=active_at + micros(_VERIFIES_AFTER))
            keys.insert(connection, new)
            facts = {"kid": new.kid, "algorithm": new.algorithm, "active_at": active_at, "at_once": at_once}
            events.add(connection, [Event(at=now, type="key.rotate", actor=actor, data=facts)])
        runtime.key_ring.forget()
        return new


def wrapped(key: SigningKey, wrap_key: bytes, entropy: Entropy, *, now: int, active_at: int) -> StoredKey:
    """The key as it is stored; instants in µs."""
    from tokenctl.core.keys import NONCE_BYTES, wrap_signing_key

    return StoredKey(
        kid=key.kid,
        algorithm=key.algorithm,
        public_jwk=key.public_jwk,
        wrapped_private_key=wrap_signing_key(key, wrap_key, entropy(NONCE_BYTES)),
        created_at=now,
        active_at=active_at,
    )
