"""Key material: the master key, the keys derived from it, and the keys that sign access tokens.

Owns the text form of the master key, what is derived from it and for which purpose, the two signing
algorithms, and how a private key is wrapped for the database. It does not know where the master key's
file lies, which signing key is the current one, or what is signed with it (`access_token`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from tokenctl.errors import ConfigInvalid, InvalidInput, KeyUnusable, KeyWrong

MASTER_KEY_BYTES = 32
MASTER_KEY_PREFIX = "tkm1_"
NONCE_BYTES = 12
RSA_BITS = 3072
ALGORITHMS = ("ES256", "RS256")

_MASTER_KEY_TEXT = re.compile(r"tkm1_[A-Za-z0-9_-]{43}", re.ASCII)


# --- the master key and what comes from it ---------------------------------------------------


def generate_master_key() -> bytes:
    """32 fresh bytes from the operating system."""
    return secrets.token_bytes(MASTER_KEY_BYTES)


def format_master_key(master: bytes) -> str:
    """`tkm1_` and 43 characters of base64url without padding. Raises KeyUnusable unless given 32 bytes."""
    _demand_length(master)
    return MASTER_KEY_PREFIX + _base64url(master)


def parse_master_key(text: str) -> bytes:
    """The 32 bytes of a master key's text; whitespace around it is allowed.

    Raises KeyUnusable, which never repeats the text: a typing error away from a key is still a secret.
    """
    stripped = text.strip()
    if _MASTER_KEY_TEXT.fullmatch(stripped):
        master = base64.urlsafe_b64decode(stripped.removeprefix(MASTER_KEY_PREFIX) + "=")
        # The last character carries two spare bits, so four spellings decode alike; one of them is ours.
        if format_master_key(master) == stripped:
            return master
    raise KeyUnusable(
        f"this text of {len(stripped)} characters is no master key",
        hint=f"a master key is {MASTER_KEY_PREFIX} and 43 characters; copy the whole line again",
    )


@dataclass(frozen=True, slots=True)
class DerivedKeys:
    """One key of 32 bytes per purpose; `check` is 32 hex digits that may be stored and shown.

    The database keeps `check`, so that a wrong master key is recognised before it does any harm.
    """

    mac: bytes = field(repr=False)
    wrap: bytes = field(repr=False)
    audit: bytes = field(repr=False)
    check: str


def derive_keys(master: bytes) -> DerivedKeys:
    """The keys of all purposes, by HKDF-SHA-256 (RFC 5869). Raises KeyUnusable unless given 32 bytes.

    Without a salt: the master key is uniformly random already (RFC 5869 §3.1).
    """
    _demand_length(master)
    return DerivedKeys(
        mac=_derive(master, "refresh mac", 32),
        wrap=_derive(master, "wrap signing keys", 32),
        audit=_derive(master, "audit log", 32),
        check=_derive(master, "check", 16).hex(),
    )


def _derive(master: bytes, purpose: str, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=f"tokenctl/1 {purpose}".encode()).derive(master)


def _demand_length(master: bytes) -> None:
    if len(master) != MASTER_KEY_BYTES:
        raise KeyUnusable(
            f"a master key is {MASTER_KEY_BYTES} bytes, and this one is {len(master)}",
            hint="check that the key file holds the whole key",
        )


# --- signing keys ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """A loaded private key; `public_jwk` is what the JWKS shows, `kid` its RFC 7638 thumbprint."""

    kid: str
    algorithm: str
    public_jwk: dict[str, str]
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)


def generate_signing_key(algorithm: str = "ES256") -> SigningKey:
    """A fresh key for `ES256` (P-256) or `RS256` (3072 bits). Raises ConfigInvalid for any other."""
    _demand_algorithm(algorithm)
    if algorithm == "ES256":
        return _signing_key(ec.generate_private_key(ec.SECP256R1()), algorithm)
    return _signing_key(rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS), algorithm)


def load_signing_key(pem_or_der: bytes, algorithm: str) -> SigningKey:
    """The signing key of an unencrypted PEM or DER file (PKCS #8, or the older forms of EC and RSA).

    Raises ConfigInvalid for an algorithm that is neither ES256 nor RS256, KeyUnusable for anything that
    is no private key or does not fit the algorithm: P-256, or RSA of at least 3072 bits.
    """
    _demand_algorithm(algorithm)
    load = load_pem_private_key if b"-----BEGIN" in pem_or_der else load_der_private_key
    try:
        private = load(pem_or_der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause is cut off, so that nothing of the file can show in a traceback.
        raise KeyUnusable(
            "this is no private key that can be read",
            hint="an unencrypted PEM or DER file, as `openssl genpkey` writes it",
        ) from None
    return _signing_key(private, algorithm)


def wrap_signing_key(key: SigningKey, wrap_key: bytes, nonce: bytes) -> bytes:
    """The nonce of 12 bytes, then AES-256-GCM (NIST SP 800-38D) over the PKCS #8 DER of the private key.

    The kid and the algorithm are associated data, so that two rows cannot swap their keys unnoticed.
    A nonce must never come twice under one `wrap_key`. Raises InvalidInput for a nonce of another length.
    """
    if len(nonce) != NONCE_BYTES:
        raise InvalidInput(
            f"a nonce for AES-GCM is {NONCE_BYTES} bytes, and this one is {len(nonce)}",
            hint=f"hand in {NONCE_BYTES} new random bytes",
        )
    der = key.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return nonce + AESGCM(wrap_key).encrypt(nonce, der, _associated_data(key.kid, key.algorithm))


def unwrap_signing_key(kid: str, algorithm: str, wrapped: bytes, wrap_key: bytes) -> SigningKey:
    """The signing key that `wrap_signing_key` wrapped as `kid` for `algorithm`.

    Raises KeyWrong when the key, the kid, the algorithm or any byte is not the one of the wrapping.
    """
    nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
    try:
        der = AESGCM(wrap_key).decrypt(nonce, sealed, _associated_data(kid, algorithm))
        key = load_signing_key(der, algorithm)
    # ValueError: AES-GCM wants at least 8 bytes of nonce, and a damaged row may hold fewer.
    except (InvalidTag, ValueError, KeyUnusable):
        raise _wrong(kid) from None
    if key.kid != kid:
        raise _wrong(kid)
    return key


def thumbprint(jwk: Mapping[str, str]) -> str:
    """The RFC 7638 §3 thumbprint of an EC or RSA key: base64url of SHA-256, 43 characters."""
    # The required members, in the order that §3.3 wants.
    members = ("crv", "kty", "x", "y") if jwk["kty"] == "EC" else ("e", "kty", "n")
    canonical = json.dumps({name: jwk[name] for name in members}, separators=(",", ":"))
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def _signing_key(private: PrivateKeyTypes, algorithm: str) -> SigningKey:
    if algorithm == "ES256" and isinstance(private, ec.EllipticCurvePrivateKey):
        if isinstance(private.curve, ec.SECP256R1):
            point = private.public_key().public_numbers()
            # A coordinate keeps its leading zeros (RFC 7518 §6.2.1.2), an RSA number loses them (§6.3.1.1).
            x, y = (_base64url(number.to_bytes(32, "big")) for number in (point.x, point.y))
            return _described(private, algorithm, {"kty": "EC", "crv": "P-256", "x": x, "y": y})
    elif algorithm == "RS256" and isinstance(private, rsa.RSAPrivateKey) and private.key_size >= RSA_BITS:
        numbers = private.public_key().public_numbers()
        n, e = (
            _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))
            for number in (numbers.n, numbers.e)
        )
        return _described(private, algorithm, {"kty": "RSA", "n": n, "e": e})
    raise KeyUnusable(
        f"this private key cannot sign {algorithm}",
        hint=f"ES256 wants a key on the curve P-256, RS256 an RSA key of at least {RSA_BITS} bits",
    )


def _described(
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, algorithm: str, members: dict[str, str]
) -> SigningKey:
    kid = thumbprint(members)
    return SigningKey(kid, algorithm, {**members, "use": "sig", "alg": algorithm, "kid": kid}, private)


def _demand_algorithm(algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise ConfigInvalid(
            f"the signing algorithm {algorithm[:60]!r} is not supported",
            hint=f"use one of {', '.join(ALGORITHMS)}",
        )


def _associated_data(kid: str, algorithm: str) -> bytes:
    return f"tokenctl/1 signing key\0{kid}\0{algorithm}".encode()


def _wrong(kid: str) -> KeyWrong:
    return KeyWrong(
        f"the signing key {kid[:60]!r} cannot be unwrapped: the master key is not the one that wrapped it, "
        "or the row was changed",
        hint="use the master key file of this database; `tokenctl config` shows which file is read",
        kid=kid,
    )


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
