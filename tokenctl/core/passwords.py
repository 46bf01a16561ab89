"""Passwords: which new ones are accepted, and how all of them are hashed and verified.

Owns the policy, the hash schemes and the refusal of common passwords. It does not know users, throttling,
or in which thread a hash is computed; a hash takes tens of milliseconds on purpose, so a server calls this
from a bounded pool. Importing it imports passlib: do so late.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passlib.context import CryptContext  # type: ignore[import-untyped] # it has no types
from passlib.utils.binary import bcrypt64  # type: ignore[import-untyped] # it has no types

from tokenctl.errors import PasswordRefused

#: Longer ones are refused before any hashing (passlib's own limit). Not `max_length`: that one is for new
#: passwords, and an imported user may have a longer one.
MAX_VERIFIED_LENGTH = 4096

_BCRYPT_BYTES = 72
_BCRYPT_SALT = slice(7, 29)
# An imported hash states its own cost. Above these it would take the server down, not a second or so.
_MAX_MEMORY_KIB = 1 << 20
_MAX_ARGON2_ITERATIONS = 32
_MAX_LANES = 64
_MAX_BCRYPT_ROUNDS = 16
_MAX_PBKDF2_ROUNDS = 10_000_000
# passlib reads a cost with int(), which takes spaces and the digits of any script, and a salt of any length.
_HASH_TEXT = re.compile(r"[!-~]{1,1024}", re.ASCII)

_SCHEMES = CryptContext(
    ["argon2", "bcrypt", "pbkdf2_sha256", "pbkdf2_sha512", "django_pbkdf2_sha256", "scrypt"]
)


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """Lengths in characters (code points), memory in KiB.

    Defaults: the lengths of NIST SP 800-63B-4 §3.1.1.2, and Argon2id as OWASP's Password Storage Cheat
    Sheet has it.
    """

    min_length: int = 15
    max_length: int = 128
    memory_kib: int = 19456
    iterations: int = 2
    parallelism: int = 1


@dataclass(frozen=True, slots=True)
class Verified:
    """`upgraded_hash` replaces the stored one when that is of an older scheme or too weak; else None."""

    ok: bool
    upgraded_hash: str | None


class PasswordHasher:
    """Hashes with Argon2id (RFC 9106) under one policy; safe to share between threads."""

    def __init__(self, policy: PasswordPolicy) -> None:
        self._policy = policy
        self._argon2 = _SCHEMES.handler("argon2").using(
            type="ID",
            memory_cost=policy.memory_kib,
            rounds=policy.iterations,
            parallelism=policy.parallelism,
        )

    def hash(self, password: str, *, salt: bytes | None = None) -> str:
        """The hash of a password that `check_new_password` accepted.

        `salt` (at least 8 bytes) makes it reproducible, for the sample database and for nothing else.
        """
        argon2 = self._argon2 if salt is None else self._argon2.using(salt=salt)
        return str(argon2.hash(password))

    def verify(self, password: str, password_hash: str | None) -> Verified:
        """Whether the password is the one of the hash; raises nothing, whatever the two are.

        Without a usable hash (None, an unknown scheme, a malformed one) exactly one Argon2 hash is computed
        all the same, so that an unknown user takes as long as a known one.

        A bcrypt hash covers the first 72 bytes of a password and no more, as wherever it came from; such a
        longer password is accepted but does not upgrade the hash, since its tail was never verified.
        """
        stored = _parse(password_hash)
        if stored is None or len(password) > MAX_VERIFIED_LENGTH:
            return self._waste()
        verified: str | bytes = password
        try:
            if stored.name == "bcrypt":
                verified = password.encode()[:_BCRYPT_BYTES]
            ok = stored.verify(verified, stored.to_string())
        except Exception:  # noqa: BLE001 - passlib's handlers raise anything, and all of it means: not this one
            return self._waste()
        tail_unverified = isinstance(verified, bytes) and len(verified) < len(password.encode())
        if not ok or tail_unverified or not self._is_weaker(stored):
            return Verified(bool(ok), None)
        return Verified(True, self.hash(password))

    def _waste(self) -> Verified:
        self._argon2.hash("")
        return Verified(False, None)

    def _is_weaker(self, stored: Any) -> bool:
        # Not passlib's needs_update: that one also "upgrades" a stronger hash down to the policy.
        if stored.name != "argon2" or stored.type != "id" or stored.version < self._argon2.version:
            return True
        memory, work = self._policy.memory_kib, self._policy.memory_kib * self._policy.iterations
        return bool(stored.memory_cost < memory or stored.memory_cost * stored.rounds < work)


def known_scheme(password_hash: str) -> bool:
    """Whether `verify` can use the hash: a scheme of ours, well-formed, and not absurdly expensive."""
    return _HASH_TEXT.fullmatch(password_hash) is not None and _parse(password_hash) is not None


def _parse(password_hash: str | None) -> Any:
    """Passlib's handler object of the hash, or None if it cannot be used."""
    if not password_hash:
        return None
    try:
        handler = _SCHEMES.identify(password_hash, resolve=True)
        stored = handler.from_string(_repaired(password_hash)) if handler else None
    except Exception:  # noqa: BLE001 - see verify
        return None
    if stored is None or stored.checksum is None or not _is_affordable(stored):
        return None
    return stored


def _repaired(password_hash: str) -> str:
    """The last bits of a bcrypt salt mean nothing; some libraries set them, and passlib warns of that."""
    if not password_hash.startswith("$2"):
        return password_hash
    _, salt = bcrypt64.check_repair_unused(password_hash[_BCRYPT_SALT])
    return f"{password_hash[: _BCRYPT_SALT.start]}{salt}{password_hash[_BCRYPT_SALT.stop :]}"


def _is_affordable(stored: Any) -> bool:
    match stored.name:
        case "argon2":
            memory, rounds, limit = stored.memory_cost, stored.rounds, _MAX_ARGON2_ITERATIONS
            return bool(memory <= _MAX_MEMORY_KIB and rounds <= limit and stored.parallelism <= _MAX_LANES)
        case "scrypt":
            # RFC 7914 §2: 128 · r · 2^rounds bytes.
            memory = stored.block_size << stored.rounds >> 3
            return bool(memory <= _MAX_MEMORY_KIB and stored.parallelism <= _MAX_LANES)
        case "bcrypt":
            return bool(stored.rounds <= _MAX_BCRYPT_ROUNDS)
        case _:
            return bool(stored.rounds <= _MAX_PBKDF2_ROUNDS)


# --- which new passwords are accepted --------------------------------------------------------

#: So many characters must be left when everything that anybody would guess has been taken away.
_OWN_CHARACTERS = 5
#: A run of neighbours on a keyboard or in an alphabet counts from this length.
_RUN = 4
#: A part of the user's name counts from this length; "a" and "de" are in too many words.
_NAME_PART = 3

# Our own list: words that lead the published rankings of leaked passwords, whole or as a part.
_COMMON_WORDS = Path(__file__).with_name("common_words.txt").read_text("ascii").split()

_LINES = [
    "01234567890123456789",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
    "yxcvbnm",
    "azertyuiop",
    "qsdfghjklm",
    "1q2w3e4r5t6y7u8i9o0p",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "qazwsxedcrfvtgbyhnujmikolp",
    "!@#$%^&*()",
]
_RUNS = frozenset(
    line[start : start + _RUN]
    for forward in _LINES
    for line in (forward, forward[::-1])
    for start in range(len(line) - _RUN + 1)
)
_YEAR = re.compile(r"(?:19|20)[0-9]{2}")
_SEPARATORS = " -_.,!?"
_LOOKALIKES = str.maketrans("@4310$5!7", "aaeiossit")


def check_new_password(password: str, user_name: str, policy: PasswordPolicy) -> None:
    """Raise PasswordRefused if the password is too short, too long, or among the first to be guessed.

    Lengths count code points as received, without normalising; there are no composition rules (NIST
    SP 800-63B-4 §3.1.1.2). Common means: nothing but common words, runs, years, one short unit repeated,
    the user's name, with a few characters around them.
    """
    try:
        password.encode()
    except UnicodeEncodeError:
        raise PasswordRefused(
            "the password is not text: it contains half of a surrogate pair",
            hint="type it again; a faulty encoding on the way here is the usual cause",
        ) from None
    if len(password) < policy.min_length:
        raise PasswordRefused(
            f"the password is too short: at least {policy.min_length} characters are needed, and it has "
            f"{len(password)}; a short one is guessed from a stolen database",
            hint="several words in a row are easy to remember and long enough",
            min_length=policy.min_length,
        )
    if len(password) > policy.max_length:
        raise PasswordRefused(
            f"the password is too long: {len(password)} characters, and {policy.max_length} are the most",
            hint=f"use at most {policy.max_length} characters",
            max_length=policy.max_length,
        )
    if _is_common(password, user_name, policy.min_length):
        raise PasswordRefused(
            "the password is too common: it is made of words, names, repetitions or rows of keys that are "
            "among the first to be tried",
            hint="use several words that have nothing to do with each other or with the user's name",
        )


def _is_common(password: str, user_name: str, min_length: int) -> bool:
    plain = password.lower()
    longest_unit = min(len(plain) // 2, min_length - 1)
    if any(plain[unit:] == plain[:-unit] for unit in range(1, longest_unit + 1)):
        return True
    guessed: set[int] = set()
    name = user_name.lower()
    names = [part for part in (name, *re.split(r"[\W_]+", name)) if len(part) >= _NAME_PART]
    longest_first = sorted([*_COMMON_WORDS, *names], key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    for found in (
        *pattern.finditer(plain),
        *pattern.finditer(plain.translate(_LOOKALIKES)),
        *_YEAR.finditer(plain),
    ):
        guessed.update(range(*found.span()))
    for start in range(len(plain) - _RUN + 1):
        run = plain[start : start + _RUN]
        if run in _RUNS or run == run[0] * _RUN:
            guessed.update(range(start, start + _RUN))
    own = [at for at, c in enumerate(plain) if at not in guessed and c not in _SEPARATORS]
    return len(own) < _OWN_CHARACTERS
