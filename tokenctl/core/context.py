"""Who called: address, user agent, device. Text from outside is cleaned here, once, at the edge."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass

from tokenctl.errors import InvalidInput

MAX_USER_AGENT_BYTES = 256
MAX_DEVICE_CHARS = 128

_SECRET = re.compile(r"(tk[rms]1_)[A-Za-z0-9_-]{8,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Context:
    """The caller's context as it is stored; None where the caller did not say. Made by `Context.of`.

    ip: 16 bytes, IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2). device: SHA-256 of what the device sent.
    """

    ip: bytes | None = None
    user_agent: str | None = None
    device: bytes | None = None

    @classmethod
    def of(
        cls, *, ip: str | None = None, user_agent: str | None = None, device: str | None = None
    ) -> Context:
        """Clean what came from outside.

        A user agent is cut to 256 bytes and loses its NULs, since browsers send what they like. A wrong
        address or device raises InvalidInput: those are ours to get right.
        """
        return cls(
            ip=None if ip is None else pack_ip(ip),
            user_agent=_clean_user_agent(user_agent or "") or None,
            device=None if device is None else hash_device(device),
        )

    @property
    def ip_text(self) -> str | None:
        """The address as people write it; a mapped IPv4 address as IPv4."""
        if self.ip is None:
            return None
        return unpack_ip(self.ip)


NO_CONTEXT = Context()


def pack_ip(text: str) -> bytes:
    """16 bytes for an IPv4 or IPv6 address. Raises InvalidInput."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(f"{text[:45]!r} is not an IP address", hint="198.51.100.7, 2001:db8::7") from None
    if isinstance(address, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def unpack_ip(packed: bytes) -> str:
    """The text for 16 bytes; IPv4 when they are a mapped one.

    Any other number of them is no address, and somebody has put it there by force: hex digits, to be seen.
    """
    if len(packed) != 16:
        return packed.hex()
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def hash_device(device: str) -> bytes:
    """SHA-256 of a device's fingerprint: 1 to 128 printable ASCII characters. Raises InvalidInput."""
    if not (0 < len(device) <= MAX_DEVICE_CHARS and device.isascii() and device.isprintable()):
        raise InvalidInput(
            f"a device is 1 to {MAX_DEVICE_CHARS} printable ASCII characters",
            hint="a hash of it in hex fits",
        )
    return hashlib.sha256(device.encode("ascii")).digest()


def _clean_user_agent(text: str) -> str:
    # Some clients put a whole header there. NULs first: one could hide a string from the pattern.
    text = _SECRET.sub(r"\1…", text.replace("\0", ""))
    cut = text.encode("utf-8", "replace")[:MAX_USER_AGENT_BYTES]
    return cut.decode("utf-8", "ignore")
