"""Access tokens: JWTs after RFC 9068, signed here and verified here.

Owns the claims, the headers and every rule of verification. It does not know which signing key is the
current one, whether the login behind a token still lives (that needs the database), or what time it is:
keys and `now` are passed in.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from jwt.types import Options

from tokenctl.core.keys import ALGORITHMS, RSA_BITS, SigningKey
from tokenctl.errors import InvalidAccessToken

#: Two nodes' clocks may differ by this many microseconds; it excuses a young `iat`, never an old `exp`.
CLOCK_SKEW = 5_000_000
MAX_LENGTH = 8192

_SECOND = 1_000_000
_SHA256 = SHA256()
_ECDSA = ec.ECDSA(_SHA256)
_TYPES = frozenset({"at+jwt", "application/at+jwt"})
# Keys come from our own set and from nowhere else (RFC 8725 §3.10), and we know no extension that could
# be critical (RFC 7515 §4.1.11).
_FORBIDDEN_HEADERS = frozenset({"crit", "jku", "x5u", "x5c", "jwk"})
_TEXT_CLAIMS = ("sub", "client_id", "sid", "jti")
_REQUIRED = ["iss", "aud", "exp", "iat", *_TEXT_CLAIMS]
_CHECKS: Options = {
    # PyJWT reads its own clock for these three; `_times` checks them against the injected one.
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "require": _REQUIRED,
}
_WHY: dict[type[Exception], str] = {
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "its algorithm is not the one of its key",
    jwt.MissingRequiredClaimError: "a claim is missing",
    jwt.InvalidAudienceError: "it is meant for another audience",
    jwt.InvalidIssuerError: "it comes from another issuer",
}


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What an access token says (RFC 9068 §2.2); instants in microseconds, in the JWT whole seconds.

    `user_id` (`usr_…`) is the claim `sub`, `token_id` (the login, `rt_…`) the claim `sid`.
    """

    user_id: str
    client_id: str
    scope: str
    token_id: str
    issued_at: int
    expires_at: int
    issuer: str
    audience: str
    jti: str


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies, loaded once; its algorithm is fixed here and not by a token's header."""

    algorithm: str
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def sign_access_token(claims: AccessClaims, key: SigningKey) -> str:
    """The signed JWT, in compact form (RFC 7515 §7.1).

    Both instants are rounded down, so that the JWT never outlives `expires_at`. Put together here, because
    PyJWT makes and checks the same header anew for each token, which costs as much again as the signature.
    """
    payload = {
        "iss": claims.issuer,
        "sub": claims.user_id,
        "aud": claims.audience,
        "exp": claims.expires_at // _SECOND,
        "iat": claims.issued_at // _SECOND,
        "jti": claims.jti,
        "client_id": claims.client_id,
        "sid": claims.token_id,
    }
    if claims.scope:
        payload["scope"] = claims.scope
    signed = _header(key.kid, key.algorithm) + b"." + _base64url(msgspec.json.encode(payload))
    return (signed + b"." + _base64url(_signature(signed, key))).decode("ascii")


@lru_cache(maxsize=16)
def _header(kid: str, algorithm: str) -> bytes:
    return _base64url(msgspec.json.encode({"typ": "at+jwt", "alg": algorithm, "kid": kid}))


def _signature(signed: bytes, key: SigningKey) -> bytes:
    if isinstance(key.private, rsa.RSAPrivateKey):
        return key.private.sign(signed, padding.PKCS1v15(), _SHA256)
    # RFC 7518 §3.4: the two numbers, 32 bytes each, and not the DER that the library gives.
    r, s = decode_dss_signature(key.private.sign(signed, _ECDSA))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def prepare_public_key(jwk: Mapping[str, Any]) -> PublicKey:
    """The loaded key of a public JWK (RFC 7517), for a caller who verifies more than once.

    Raises InvalidAccessToken for a JWK that is private, is not for verifying ES256 or RS256, or whose
    `use` or `key_ops` (RFC 7517 §4.2, §4.3) does not fit.
    """
    algorithm, operations = jwk.get("alg"), jwk.get("key_ops", ["verify"])
    if algorithm not in ALGORITHMS:
        raise _refusal("its key is no public key for ES256 or RS256")
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise _refusal("its key is not meant for verifying signatures")
    try:
        # The algorithm decides which kind of key PyJWT accepts here: an RSA key for ES256 is an error.
        loaded = jwt.PyJWK(dict(jwk), algorithm).key
    except jwt.PyJWTError:
        raise _refusal("its key cannot be read") from None
    if isinstance(loaded, rsa.RSAPublicKey) and loaded.key_size >= RSA_BITS:
        return PublicKey(algorithm, loaded)
    if isinstance(loaded, ec.EllipticCurvePublicKey) and isinstance(loaded.curve, ec.SECP256R1):
        return PublicKey(algorithm, loaded)
    raise _refusal("its key does not fit the key's algorithm")


def verify_access_token(
    text: str,
    keys: Mapping[str, PublicKey | Mapping[str, Any]],
    *,
    issuer: str,
    audience: str,
    now: int,
) -> AccessClaims:
    """The claims of a valid access token (RFC 9068 §4, RFC 8725); `now` in microseconds.

    `keys` maps kid to a public JWK, or to what `prepare_public_key` made of it, which saves loading the
    key at every call. `audience` must be the token's, or one of its list, and is the one in the answer.
    Raises InvalidAccessToken, and nothing else, whatever `text` is; the message never quotes the token.
    """
    if not isinstance(text, str) or len(text) > MAX_LENGTH or not text.isascii():
        raise _refusal("it is no JWT")
    # PyJWT's messages may quote the token, hence `from None` here and below.
    try:
        header = jwt.get_unverified_header(text)
    except jwt.PyJWTError:
        raise _refusal("it is no JWT") from None
    if not _FORBIDDEN_HEADERS.isdisjoint(header):
        raise _refusal("it has a header that is not accepted")
    if str(header.get("typ")).lower() not in _TYPES:
        raise _refusal("it is no access token (typ)")
    # A kid that is no text was refused with the header.
    entry = keys.get(header.get("kid", ""))
    if entry is None:
        raise _refusal("its key is not known")
    key = entry if isinstance(entry, PublicKey) else prepare_public_key(entry)
    try:
        claims = jwt.decode(
            text, key.key, algorithms=[key.algorithm], options=_CHECKS, issuer=issuer, audience=audience
        )
    except jwt.PyJWTError as error:
        raise _refusal(_WHY.get(type(error), "it is malformed")) from None
    issued_at, expires_at = _times(claims, now)
    scope = claims.get("scope", "")
    user_id, client_id, token_id, jti = (claims[name] for name in _TEXT_CLAIMS)
    if not all(isinstance(value, str) and value for value in (user_id, client_id, token_id, jti)):
        raise _refusal("a claim is empty or is no text")
    if not isinstance(scope, str):
        raise _refusal("its scope is no text")
    return AccessClaims(
        user_id, client_id, scope, token_id, issued_at, expires_at, issuer=issuer, audience=audience, jti=jti
    )


def _times(claims: dict[str, Any], now: int) -> tuple[int, int]:
    """`iat` and `exp` in microseconds, if `now` lies between them."""
    times = claims["iat"], claims["exp"], claims.get("nbf", claims["iat"])
    # type() and not isinstance(): True is an int, too.
    if any(type(value) is not int for value in times):
        raise _refusal("its times are no whole seconds")
    issued_at, expires_at, not_before = (value * _SECOND for value in times)
    if now >= expires_at:
        raise _refusal("it has expired")
    if now < max(issued_at, not_before) - CLOCK_SKEW:
        raise _refusal("it is not valid yet")
    return issued_at, expires_at


def _refusal(why: str) -> InvalidAccessToken:
    return InvalidAccessToken(f"the access token is refused: {why}")
