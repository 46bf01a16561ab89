"""The secret of a resource server: `tks1_` and 43 characters of base64url over 32 random bytes."""

from __future__ import annotations

import base64
import hashlib
import re

SECRET_BYTES = 32
PREFIX = "tks1_"

_FORM = re.compile(r"tks1_[A-Za-z0-9_-]{43}", re.ASCII)


def format_secret(raw: bytes) -> str:
    """The text of 32 bytes, which the client is given once."""
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hash_secret(text: str) -> bytes | None:
    """What the database has in place of a secret; None for what is none, whatever it is.

    A plain SHA-256: a slow hash protects what people think of, and nobody guesses 256 random bits.
    """
    if not _FORM.fullmatch(text):
        return None
    raw = base64.urlsafe_b64decode(text.removeprefix(PREFIX) + "=")
    # The last character carries two spare bits, so four spellings decode alike; one of them is ours.
    return hashlib.sha256(raw).digest() if format_secret(raw) == text else None
