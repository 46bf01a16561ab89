"""Identities: 128-bit UUIDv7, written `rt_` (refresh token) or `usr_` (user) + 32 lowercase hex digits.

Above storage an id is always this text; inside the database and inside a token string it is 16 bytes.
"""

from __future__ import annotations

import re

from tokenctl.errors import InvalidInput

TOKEN_PREFIX = "rt_"  # noqa: S105 - no secret: it marks an id
USER_PREFIX = "usr_"

_UUID_TEXT = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def uuid7(now: int, random: bytes) -> bytes:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then 74 of the 80 random bits.

    `now` in microseconds since the epoch; `random` is 10 bytes.
    """
    tail = int.from_bytes(random, "big")
    value = (now // 1000 & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (tail >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | tail & (1 << 62) - 1
    return value.to_bytes(16, "big")


def token_id(raw: bytes) -> str:
    """`rt_…` for the 16 bytes of a refresh token's id."""
    return TOKEN_PREFIX + raw.hex()


def user_id(raw: bytes) -> str:
    """`usr_…` for the 16 bytes of a user's id."""
    return USER_PREFIX + raw.hex()


def to_bytes(public_id: str) -> bytes:
    """The 16 bytes of an id that we wrote ourselves; text from outside goes through `parse_…` first."""
    return bytes.fromhex(public_id[-32:])


def parse_token_id(text: str) -> str:
    """The canonical `rt_…` for what a person pasted: `rt_` + hex, or a UUID with or without dashes.

    Raises InvalidInput.
    """
    return _parse(text, TOKEN_PREFIX, "a refresh token's id")


def parse_user_id(text: str) -> str:
    """The canonical `usr_…` for what a person pasted. Raises InvalidInput."""
    return _parse(text, USER_PREFIX, "a user's id")


def _parse(text: str, prefix: str, what: str) -> str:
    digits = text.lower().removeprefix(prefix)
    if not _UUID_TEXT.fullmatch(digits):
        # No more of it than this: it may be a piece of a token string.
        raise InvalidInput(
            f"{text[:8]!r}… is not {what}" if len(text) > 8 else f"{text!r} is not {what}",
            hint=f"an id is {prefix} and 32 hex digits, or a UUID",
        )
    return prefix + digits.replace("-", "")
