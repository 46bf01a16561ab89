"""What every use case needs: the settings, the database, the clock, the entropy and the keys.

Owns how the master key is found and checked, and what "now" is. Rules live in `core`, statements in
`storage`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokenctl.core.names import clean_note
from tokenctl.core.rotation import Policy
from tokenctl.errors import ClockApart, DatabaseAway, KeyMissing, KeyUnusable, KeyWrong
from tokenctl.service.keyring import KeyRing
from tokenctl.settings import Settings
from tokenctl.storage import keys as stored_keys
from tokenctl.storage.engine import Location, Storage, locate

if TYPE_CHECKING:  # cryptography costs start-up, and half of the commands need no key
    from tokenctl.core.access_token import PublicKey
    from tokenctl.core.keys import DerivedKeys, SigningKey

#: Returns the time in µs since the epoch (UTC).
Clock = Callable[[], int]
#: Returns that many random bytes.
Entropy = Callable[[int], bytes]

#: More (µs) than two clocks that are kept by NTP ever differ.
_CLOCKS_APART = 2_000_000

#: The master key of the sample database: public by nature, and used for nothing else.
SAMPLE_MASTER_KEY = b"tokenctl sample - not a secret!!"


def system_clock() -> int:
    """The time in µs since the epoch (UTC)."""
    return time.time_ns() // 1_000


def micros(duration: timedelta) -> int:
    """A duration in µs, exactly."""
    return duration // timedelta(microseconds=1)


def standing_clock(instant: int) -> Clock:
    """A clock that stood at `instant` (µs) when it was made, and goes on from there."""
    started = time.monotonic_ns()
    return lambda: instant + (time.monotonic_ns() - started) // 1_000


@dataclass(frozen=True)
class Runtime:
    """Shared by all use cases of one service. `actor` stands in the audit log where a call names nobody."""

    settings: Settings
    storage: Storage
    clock: Clock
    entropy: Entropy
    actor: str

    key_path: Path

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        clock: Clock | None,
        entropy: Entropy | None,
        actor: str,
        may_be_away: bool = False,
    ) -> Runtime:
        """Open the database. Raises DatabaseMissing, NotMigrated and their relatives.

        With `may_be_away` a server that does not answer is no error: it may come, and is then looked at.
        """
        location = locate(settings.database)
        storage = location.open()
        # The key's path is fixed now: the key itself may be read after a change of directory.
        where = key_path(settings, location).absolute()
        runtime = cls(settings, storage, clock or system_clock, entropy or secrets.token_bytes, actor, where)
        try:
            stopped_at = runtime.meta.get(stored_keys.SAMPLE_CLOCK)
        except DatabaseAway:
            if may_be_away:
                return runtime
            storage.close()
            raise
        except BaseException:
            storage.close()
            raise
        if clock is None and stopped_at is not None:
            return replace(runtime, clock=standing_clock(int(stopped_at)))
        return runtime

    @cached_property
    def meta(self) -> dict[str, str]:
        """What the database says of itself. Raises NotMigrated, DatabaseAway and their relatives."""
        return self.storage.check_migrated()

    def who(self, actor: str | None) -> str:
        """Who stands in the audit log. Raises InvalidInput."""
        return clean_note(actor or self.actor)

    @property
    def is_sample(self) -> bool:
        """Whether this is the sample database, or a copy: its key is public and its clock its own."""
        return stored_keys.SAMPLE_CLOCK in self.meta

    @property
    def is_development(self) -> bool:
        """Whether this database was made by `serve --dev`: a user's password is public."""
        return stored_keys.DEVELOPMENT in self.meta

    @cached_property
    def policy(self) -> Policy:
        return Policy(
            grace=micros(self.settings.grace),
            foreign_retry_is_reuse=self.settings.foreign_retry == "reuse",
        )

    @cached_property
    def access_ttl(self) -> int:
        return micros(self.settings.access_ttl)

    def demand_same_time(self) -> int | None:
        """How far (µs) this clock is from the database's; None where that has none. Raises ClockApart.

        Nodes judge what is reuse by their own clocks: within the tolerance of `core.rotation` all is well.
        """
        before = self.clock()
        theirs = self.storage.clock()
        if theirs is None:
            return None
        apart = (before + self.clock()) // 2 - theirs
        if abs(apart) > _CLOCKS_APART:
            raise ClockApart(
                f"this clock and the one of {self.storage.label} are {abs(apart) / 1e6:.1f} s apart",
                seconds=apart / 1e6,
            )
        return apart

    # --- keys ---

    @property
    def key_source(self) -> str:
        """Where the master key would come from, for a person."""
        if self.is_sample:
            return "the sample's own, which is public"
        if self.settings.master_key is not None:
            return "TOKENCTL_MASTER_KEY"
        return str(self.key_path)

    @property
    def has_master_key(self) -> bool:
        """Whether there is a master key at hand. Raises KeyUnusable or KeyWrong for one that is no good."""
        with suppress(KeyMissing):
            return bool(self.keys)
        return False

    @cached_property
    def keys(self) -> DerivedKeys:
        """The keys derived from the master key. Raises KeyMissing, KeyUnusable, KeyWrong."""
        from tokenctl.core.keys import derive_keys

        master = SAMPLE_MASTER_KEY if self.is_sample else read_master_key(self.settings, self.key_path)
        keys = derive_keys(master)
        if keys.check != self.meta.get(stored_keys.MASTER_KEY_CHECK):
            raise KeyWrong(
                f"the master key from {self.key_source} is not the one of {self.storage.label}",
                hint="name the file that `tokenctl init` made with --key-file",
            )
        return keys

    @cached_property
    def key_ring(self) -> KeyRing:
        return KeyRing(self.storage, self.clock, lambda: self.keys.wrap)

    @property
    def signing_key(self) -> SigningKey:
        """The key that signs access tokens now. Raises the errors of `keys`."""
        return self.key_ring.signing_key()

    def verification_keys(self) -> Mapping[str, PublicKey]:
        """The keys that access tokens are verified with, by kid."""
        return self.key_ring.verification_keys()


def key_path(settings: Settings, location: Location) -> Path:
    """The master key's file: as set, or the database's own."""
    return location.key_file if settings.key_file is None else Path(settings.key_file).absolute()


def read_master_key(settings: Settings, path: Path) -> bytes:
    """The 32 bytes of the master key: the one in the settings, else the file's.

    Raises KeyMissing or KeyUnusable.
    """
    from tokenctl.core.keys import parse_master_key

    if settings.master_key is not None:
        return parse_master_key(settings.master_key.reveal())
    try:
        with path.open("rb") as file:
            text = file.read(1024)
    except FileNotFoundError:
        raise KeyMissing(
            f"this needs the master key, and there is no {path}",
            hint="--key-file FILE, or TOKENCTL_KEY_FILE; the key was made by `tokenctl init`",
        ) from None
    except OSError as error:
        raise KeyUnusable(
            f"the master key cannot be read from {path}: {error.strerror}", hint="--key-file FILE"
        ) from None
    return parse_master_key(text.decode("ascii", "replace"))
