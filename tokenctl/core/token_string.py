"""The refresh token's string: read it, check it, make the next one.

Owns the 89 characters that a bearer holds. Knows nothing of rows, clocks or who may use the token.

    tkr1_ + base64url (no padding) of 63 bytes:

    | bytes | field                                                          |
    |-------|----------------------------------------------------------------|
    | 1     | key number; 1                                                  |
    | 16    | id of the refresh token (UUIDv7)                               |
    | 4     | generation, unsigned, big-endian                               |
    | 16    | secret, made once per refresh token                            |
    | 22    | MAC: HMAC-SHA-256(key, label || all bytes before), cut to 176  |
    | 4     | CRC-32 of all bytes before, for scanners that have no key      |

63 bytes are a multiple of 3, so base64 has no spare bits and each token has exactly one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import zlib
from dataclasses import dataclass, field

from tokenctl.core import ids
from tokenctl.errors import ForgedToken, InvalidToken

PREFIX = "tkr1_"
LENGTH = 89
SECRET_BYTES = 16
#: A string of this generation counts as expired: there is no next one.
LAST_GENERATION = 2**32 - 1

_FORM = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{84}}", re.ASCII)
#: From base64url to the alphabet that the C function knows (RFC 4648 §4 and §5).
_STANDARD = bytes.maketrans(b"-_", b"+/")
_KEY_NUMBER = b"\x01"
_LABEL = b"tokenctl refresh token 1\x00"
_BODY_BYTES = 1 + 16 + 4 + SECRET_BYTES
_MAC_BYTES = 22


@dataclass(frozen=True, slots=True)
class PresentedToken:
    """What a string says; whether that is genuine depends on how it was read."""

    raw_id: bytes
    generation: int
    secret: bytes = field(repr=False)

    @property
    def token_id(self) -> str:
        """The public id, `rt_…`."""
        return ids.token_id(self.raw_id)

    @property
    def secret_hash(self) -> bytes:
        """What the database stores of the secret: SHA-256, 32 bytes."""
        return hash_secret(self.secret)


def hash_secret(secret: bytes) -> bytes:
    """SHA-256 is enough: the secret is 128 random bits, so there is nothing to guess slowly."""
    return hashlib.sha256(secret).digest()


def mint(raw_id: bytes, generation: int, secret: bytes, mac_key: bytes) -> str:
    """The string of one generation; the same arguments always give the same string."""
    body = _KEY_NUMBER + raw_id + generation.to_bytes(4, "big") + secret
    signed = body + _mac(body, mac_key)
    return PREFIX + base64.urlsafe_b64encode(signed + _crc(signed)).decode("ascii")


def successor(token: PresentedToken, mac_key: bytes) -> str:
    """The string of the next generation; it follows from the presented one, so every racer gets the same."""
    return mint(token.raw_id, token.generation + 1, token.secret, mac_key)


def parse(text: str, mac_key: bytes) -> PresentedToken:
    """Read a string and check that we made it.

    Raises InvalidToken, or its kind ForgedToken when only the MAC is wrong, and nothing else for any input.
    """
    token, body, mac = _decode(text)
    if not hmac.compare_digest(mac, _mac(body, mac_key)):
        raise ForgedToken("the string was not made with this master key: forged, or of another database")
    return token


def parse_unverified(text: str) -> PresentedToken:
    """Read a string by form and CRC, without the key: anybody can make one up. Raises InvalidToken.

    For revoking and scanning where the master key must not be. Compare `secret_hash` with the row
    before you believe the id; the generation stays unproven.
    """
    return _decode(text)[0]


def looks_like(text: str) -> bool:
    """Whether the text has a refresh token's form, right or wrong inside; for not echoing it."""
    return text.startswith(PREFIX)


def _decode(text: str) -> tuple[PresentedToken, bytes, bytes]:
    """The token, the bytes under the MAC, the MAC. fullmatch, since `$` would accept a newline at the end."""
    if not isinstance(text, str) or not _FORM.fullmatch(text):
        raise InvalidToken(f"not a refresh token: it would be {PREFIX} and 84 characters of base64url")
    spelled = text[len(PREFIX) :].encode("ascii").translate(_STANDARD)
    data = binascii.a2b_base64(spelled)
    signed, crc = data[:-4], data[-4:]
    if crc != _crc(signed):
        raise InvalidToken(
            "not a refresh token: its checksum does not fit, so a character is wrong or missing"
        )
    if binascii.b2a_base64(data, newline=False) != spelled:
        raise InvalidToken("not a refresh token: another spelling of one")
    if data[:1] != _KEY_NUMBER:
        raise InvalidToken(f"a refresh token of key number {data[0]}, which this release does not know")
    token = PresentedToken(
        raw_id=data[1:17], generation=int.from_bytes(data[17:21], "big"), secret=data[21:_BODY_BYTES]
    )
    return token, data[:_BODY_BYTES], data[_BODY_BYTES : _BODY_BYTES + _MAC_BYTES]


def _mac(body: bytes, mac_key: bytes) -> bytes:
    return hmac.digest(mac_key, _LABEL + body, "sha256")[:_MAC_BYTES]


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")
