"""Access tokens: what is signed, and everything that verification refuses (RFC 9068 §4, RFC 8725)."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import socket
import traceback
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenctl.core.access_token import (
    AccessClaims,
    PublicKey,
    prepare_public_key,
    sign_access_token,
    verify_access_token,
)
from tokenctl.core.keys import SigningKey, generate_signing_key, thumbprint
from tokenctl.errors import InvalidAccessToken

SECOND = 1_000_000
NOW = 1_750_000_000 * SECOND
ISSUER = "https://auth.example.com"
AUDIENCE = "https://api.example.com"
CLAIMS = AccessClaims(
    user_id="usr_0197a1b2c3d47e5f8a9b0c1d2e3f4a5b",
    client_id="default",
    scope="read write",
    token_id="rt_0197a1b2c3d47e5f8a9b0c1d2e3f4a5c",
    issued_at=NOW,
    expires_at=NOW + 600 * SECOND,
    issuer=ISSUER,
    audience=AUDIENCE,
    jti="0197a1b2c3d47e5f8a9b0c1d2e3f4a5d",
)
PAYLOAD: dict[str, Any] = {
    "iss": ISSUER,
    "sub": CLAIMS.user_id,
    "aud": AUDIENCE,
    "exp": NOW // SECOND + 600,
    "iat": NOW // SECOND,
    "jti": CLAIMS.jti,
    "client_id": "default",
    "sid": CLAIMS.token_id,
    "scope": "read write",
}
ES256 = generate_signing_key()
RS256 = generate_signing_key("RS256")
OTHER = generate_signing_key()
KEYS = {key.kid: key.public_jwk for key in (ES256, RS256)}
REMOVED = object()


def verify(text: Any, keys: Any = KEYS, *, now: int = NOW, **changed: str) -> AccessClaims:
    return verify_access_token(text, keys, **{"issuer": ISSUER, "audience": AUDIENCE, **changed}, now=now)


def refused(text: Any, keys: Any = KEYS, *, now: int = NOW, **changed: str) -> str:
    with pytest.raises(InvalidAccessToken) as caught:
        verify(text, keys, now=now, **changed)
    return caught.value.message


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def encode(value: Any) -> str:
    return base64url(json.dumps(value).encode())


def with_changes(original: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**original, **changes}.items() if value is not REMOVED}


def forge(
    payload: dict[str, Any] | None = None, headers: dict[str, Any] | None = None, key: SigningKey = ES256
) -> str:
    """A JWT with a right signature over whatever claims and headers a case wants."""
    header = with_changes({"typ": "at+jwt", "alg": key.algorithm, "kid": key.kid}, headers or {})
    signing_input = f"{encode(header)}.{encode(with_changes(PAYLOAD, payload or {}))}"
    algorithm = jwt.get_algorithm_by_name(key.algorithm)
    return f"{signing_input}.{base64url(algorithm.sign(signing_input.encode(), key.private))}"


def read(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, payload, _ = text.split(".")
    first, second = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in (header, payload))
    return first, second


# --- signing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [pytest.param(ES256, id="ES256"), pytest.param(RS256, id="RS256")])
def test_a_signed_token_is_verified(key: SigningKey) -> None:
    assert verify(sign_access_token(CLAIMS, key)) == CLAIMS


@pytest.mark.parametrize("key", [pytest.param(ES256, id="ES256"), pytest.param(RS256, id="RS256")])
def test_headers_and_claims_on_the_wire(key: SigningKey) -> None:
    """RFC 9068 §2.1 and §2.2."""
    header, payload = read(sign_access_token(CLAIMS, key))
    assert header == {"typ": "at+jwt", "alg": key.algorithm, "kid": key.kid}
    assert payload == PAYLOAD


def test_an_empty_scope_is_no_claim() -> None:
    claims = dataclasses.replace(CLAIMS, scope="")
    text = sign_access_token(claims, ES256)
    assert "scope" not in read(text)[1]
    assert verify(text) == claims


def test_a_token_never_outlives_its_expiry() -> None:
    claims = dataclasses.replace(CLAIMS, issued_at=NOW + 999_999, expires_at=NOW + 10 * SECOND + 999_999)
    text = sign_access_token(claims, ES256)
    assert read(text)[1]["exp"] == NOW // SECOND + 10
    assert read(text)[1]["iat"] == NOW // SECOND
    assert verify(text).expires_at == NOW + 10 * SECOND


def test_the_helper_forges_what_would_be_accepted() -> None:
    """Without this the refusals below could come from anything."""
    assert verify(forge()) == CLAIMS
    assert verify(forge(key=RS256)) == CLAIMS


# --- headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "Application/At+Jwt"])
def test_typ_of_an_access_token(typ: str) -> None:
    assert verify(forge(headers={"typ": typ})) == CLAIMS


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"typ": REMOVED}, id="typ missing"),
        pytest.param({"typ": "JWT"}, id="typ JWT"),
        pytest.param({"typ": "at+jwt "}, id="typ with a space"),
        pytest.param({"typ": "logout+jwt"}, id="typ of another profile"),
        pytest.param({"typ": None}, id="typ null"),
        pytest.param({"typ": ["at+jwt"]}, id="typ as a list"),
        pytest.param({"kid": REMOVED}, id="kid missing"),
        pytest.param({"kid": "unknown"}, id="kid unknown"),
        pytest.param({"kid": ""}, id="kid empty"),
        pytest.param({"kid": None}, id="kid null"),
        pytest.param({"kid": [ES256.kid]}, id="kid as a list"),
        pytest.param({"kid": RS256.kid}, id="kid of another key"),
        pytest.param({"alg": REMOVED}, id="alg missing"),
        pytest.param({"alg": "none"}, id="alg none over a right signature"),
        pytest.param({"alg": "RS256"}, id="alg of another key"),
        pytest.param({"alg": "ES384"}, id="alg of the same family"),
        pytest.param({"alg": ["ES256"]}, id="alg as a list"),
        pytest.param({"alg": {"ES256": 1}}, id="alg as an object"),
        pytest.param({"jku": "https://evil.example/jwks.json"}, id="jku"),
        pytest.param({"x5u": "https://evil.example/cert.pem"}, id="x5u"),
        pytest.param({"x5c": ["MIIB"]}, id="x5c"),
        pytest.param({"jwk": OTHER.public_jwk}, id="jwk"),
        pytest.param({"jwk": None}, id="jwk null"),
        pytest.param({"crit": ["exp"], "exp": 1}, id="crit unknown"),
        pytest.param({"crit": []}, id="crit empty"),
        pytest.param({"crit": "b64"}, id="crit no list"),
        pytest.param({"crit": ["b64"], "b64": True}, id="crit that PyJWT knows"),
        pytest.param({"b64": False}, id="b64"),
    ],
)
def test_refused_headers(headers: dict[str, Any]) -> None:
    refused(forge(headers=headers))


def test_a_key_in_the_header_does_not_verify() -> None:
    """RFC 8725 §3.10: self-signed, with the key in the header."""
    refused(forge(headers={"jwk": OTHER.public_jwk, "kid": OTHER.kid}, key=OTHER))
    refused(forge(headers={"jku": "https://evil.example/", "kid": ES256.kid}, key=OTHER))


def test_verification_opens_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("jku", "x5u"):
        refused(forge(headers={name: "https://evil.example/"}))


# --- signatures ------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["none", "None", "NONE", ""])
def test_alg_none(alg: str) -> None:
    """RFC 8725 §2.1."""
    header = encode({"typ": "at+jwt", "alg": alg, "kid": ES256.kid})
    refused(f"{header}.{encode(PAYLOAD)}.")


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("key", [pytest.param(ES256, id="ES256"), pytest.param(RS256, id="RS256")])
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_hmac_with_the_public_key(alg: str, key: SigningKey, encoding: Encoding) -> None:
    """RFC 8725 §2.1: the public key is no secret."""
    public = key.private.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    signing_input = f"{encode({'typ': 'at+jwt', 'alg': alg, 'kid': key.kid})}.{encode(PAYLOAD)}"
    digest = getattr(hashlib, f"sha{alg[2:]}")
    forged = f"{signing_input}.{base64url(hmac.new(public, signing_input.encode(), digest).digest())}"
    assert refused(forged) == "the access token is refused: its algorithm is not the one of its key"


def test_another_key_under_a_known_kid() -> None:
    assert "signature" in refused(forge(headers={"kid": ES256.kid}, key=OTHER))


def test_every_flipped_bit_of_a_signature() -> None:
    signed, _, signature = sign_access_token(CLAIMS, ES256).rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(f"{signed}.{base64url(bytes(damaged))}")


@pytest.mark.parametrize("part", [0, 1])
def test_a_changed_part_breaks_the_signature(part: int) -> None:
    mine, other = (
        sign_access_token(CLAIMS, ES256).split("."),
        forge({"sub": "usr_" + "0" * 32}, {"x": 1}).split("."),
    )
    mine[part] = other[part]
    assert "signature" in refused(".".join(mine))


# --- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [pytest.param(ES256, id="ES256"), pytest.param(RS256, id="RS256")])
def test_a_prepared_key_verifies_alike(key: SigningKey) -> None:
    prepared = prepare_public_key(key.public_jwk)
    assert isinstance(prepared, PublicKey)
    text = sign_access_token(CLAIMS, key)
    assert verify(text, {key.kid: prepared}) == CLAIMS
    refused(text, {key.kid: prepare_public_key(OTHER.public_jwk)})


@pytest.mark.parametrize("key_ops", [["verify"], ["sign", "verify"]])
def test_key_ops_that_fit(key_ops: list[str]) -> None:
    assert verify(forge(), {ES256.kid: {**ES256.public_jwk, "key_ops": key_ops}}) == CLAIMS


def test_a_jwk_without_use_fits() -> None:
    assert verify(forge(), {ES256.kid: with_changes(ES256.public_jwk, {"use": REMOVED})}) == CLAIMS


def jwk_of(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> dict[str, Any]:
    if isinstance(public, rsa.RSAPublicKey):
        return {**jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True), "alg": "RS256"}
    return {**jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True), "alg": "ES256"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"use": "enc"}, id="use enc"),
        pytest.param({"use": "SIG"}, id="use in capitals"),
        pytest.param({"use": None}, id="use null"),
        pytest.param({"key_ops": ["sign"]}, id="key_ops sign"),
        pytest.param({"key_ops": ["encrypt", "wrapKey"]}, id="key_ops of encryption"),
        pytest.param({"key_ops": []}, id="key_ops empty"),
        pytest.param({"key_ops": "verify"}, id="key_ops no list"),
        pytest.param({"key_ops": None}, id="key_ops null"),
        pytest.param({"alg": REMOVED}, id="alg missing"),
        pytest.param({"alg": "HS256"}, id="alg HS256"),
        pytest.param({"alg": "none"}, id="alg none"),
        pytest.param({"alg": ["ES256"]}, id="alg a list"),
        pytest.param({"alg": "RS256"}, id="alg of another kty"),
        pytest.param({"kty": "oct", "k": "AAAA"}, id="kty oct"),
        pytest.param({"kty": REMOVED}, id="kty missing"),
        pytest.param({"crv": "P-384"}, id="crv"),
        pytest.param({"x": REMOVED}, id="x missing"),
        pytest.param({"x": "!!"}, id="x junk"),
        pytest.param({"x": 5}, id="x a number"),
        pytest.param({"y": ES256.public_jwk["x"]}, id="not on the curve"),
        pytest.param({"d": ES256.public_jwk["x"]}, id="private"),
    ],
)
def test_a_jwk_that_does_not_fit(changes: dict[str, Any]) -> None:
    jwk = with_changes(ES256.public_jwk, changes)
    with pytest.raises(InvalidAccessToken):
        prepare_public_key(jwk)
    assert "key" in refused(forge(), {ES256.kid: jwk})


@pytest.mark.parametrize("changes", [{"alg": "ES256"}, {"n": "AQAB"}, {"e": REMOVED}, {"use": "enc"}])
def test_an_rsa_jwk_that_does_not_fit(changes: dict[str, Any]) -> None:
    assert "key" in refused(forge(key=RS256), {RS256.kid: with_changes(RS256.public_jwk, changes)})


@pytest.mark.parametrize(
    "public",
    [
        pytest.param(ec.generate_private_key(ec.SECP384R1()).public_key(), id="P-384"),
        pytest.param(ec.generate_private_key(ec.SECP256K1()).public_key(), id="secp256k1"),
        pytest.param(rsa.generate_private_key(65537, 2048).public_key(), id="RSA of 2048 bits"),
    ],
)
def test_a_key_of_another_kind_or_size(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> None:
    with pytest.raises(InvalidAccessToken):
        prepare_public_key(jwk_of(public))


def test_no_keys_at_all() -> None:
    assert "not known" in refused(forge(), {})


# --- claims ----------------------------------------------------------------------------------


BAD_VALUES = {"missing": REMOVED, "null": None, "empty": "", "an object": {}, "false": False}
BAD_CLAIMS = [
    pytest.param({name: value}, id=f"{name} {what}")
    for name in ("iss", "aud", "exp", "iat", "sub", "jti", "client_id", "sid")
    for what, value in BAD_VALUES.items()
]


@pytest.mark.parametrize(
    "payload",
    [
        *BAD_CLAIMS,
        pytest.param({"iss": "https://evil.example"}, id="iss foreign"),
        pytest.param({"iss": ISSUER + "/"}, id="iss with a slash"),
        pytest.param({"iss": [ISSUER]}, id="iss a list"),
        pytest.param({"aud": "https://evil.example"}, id="aud foreign"),
        pytest.param({"aud": [AUDIENCE.upper()]}, id="aud in capitals"),
        pytest.param({"aud": []}, id="aud an empty list"),
        pytest.param({"aud": ["a", "b"]}, id="aud a foreign list"),
        pytest.param({"aud": [AUDIENCE, 1]}, id="aud a list with a number"),
        pytest.param({"aud": {AUDIENCE: 1}}, id="aud an object with the name"),
        pytest.param({"sub": 7}, id="sub a number"),
        pytest.param({"jti": 7}, id="jti a number"),
        pytest.param({"sid": ["rt_"]}, id="sid a list"),
        pytest.param({"client_id": True}, id="client_id true"),
        pytest.param({"scope": ["read"]}, id="scope a list"),
        pytest.param({"scope": None}, id="scope null"),
        pytest.param({"exp": "9999999999"}, id="exp as text"),
        pytest.param({"exp": 9999999999.5}, id="exp a fraction"),
        pytest.param({"exp": float("inf")}, id="exp infinite"),
        pytest.param({"exp": float("nan")}, id="exp NaN"),
        pytest.param({"exp": True}, id="exp true"),
        pytest.param({"exp": -1}, id="exp negative"),
        pytest.param({"iat": "1"}, id="iat as text"),
        pytest.param({"iat": True}, id="iat true"),
        pytest.param({"nbf": "1"}, id="nbf as text"),
        pytest.param({"nbf": None}, id="nbf null"),
    ],
)
def test_refused_claims(payload: dict[str, Any]) -> None:
    refused(forge(payload))


def test_the_payload_must_be_an_object() -> None:
    header = encode({"typ": "at+jwt", "alg": "ES256", "kid": ES256.kid})
    for body in ("[]", "1", '"x"', "null", "", "[" * 3000, '{"iss":', "9" * 5000, "\xff"):
        signing_input = f"{header}.{base64url(body.encode('latin-1'))}"
        signature = jwt.get_algorithm_by_name("ES256").sign(signing_input.encode(), ES256.private)
        refused(f"{signing_input}.{base64url(signature)}")


def test_one_audience_of_several() -> None:
    assert verify(forge({"aud": ["https://other.example", AUDIENCE]})) == CLAIMS


def test_caller_decides_issuer_and_audience() -> None:
    assert "issuer" in refused(forge(), issuer="https://other.example")
    assert "audience" in refused(forge(), audience="https://other.example")


@pytest.mark.parametrize(
    ("payload", "offset", "valid"),
    [
        pytest.param({}, 0, True, id="at iat"),
        pytest.param({}, 600 * SECOND - 1, True, id="a microsecond before exp"),
        pytest.param({}, 600 * SECOND, False, id="exactly at exp"),
        pytest.param({}, 10**15, False, id="long after exp"),
        pytest.param({}, -5 * SECOND, True, id="signed by a clock 5 s ahead"),
        pytest.param({}, -5 * SECOND - 1, False, id="signed by a clock further ahead"),
        pytest.param({"nbf": NOW // SECOND + 60}, 54 * SECOND, False, id="before nbf"),
        pytest.param({"nbf": NOW // SECOND + 60}, 55 * SECOND, True, id="at nbf, clocks apart"),
        pytest.param({"iat": 10**30, "exp": 10**31}, 0, False, id="iat in the far future"),
    ],
)
def test_times_are_judged_by_the_injected_clock(payload: dict[str, int], offset: int, valid: bool) -> None:
    text = forge(payload)
    if valid:
        assert verify(text, now=NOW + offset).jti == CLAIMS.jti
    else:
        refused(text, now=NOW + offset)


@pytest.mark.parametrize("year", [1971, 2200])
def test_the_real_clock_does_not_count(year: int) -> None:
    begin = (year - 1970) * 31_556_952
    text = forge({"iat": begin, "nbf": begin, "exp": begin + 600})
    assert verify(text, now=begin * SECOND).issued_at == begin * SECOND


# --- any input whatever ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(".", id="a dot"),
        pytest.param("..", id="two dots"),
        pytest.param("a.b.c", id="letters"),
        pytest.param("....", id="a JWE"),
        pytest.param("\0", id="NUL"),
        pytest.param("é.é.é", id="not ASCII"),
        pytest.param("\ud800.a.b", id="half a surrogate pair"),
        pytest.param(f"{forge()}\n", id="a line break behind"),
        pytest.param(f" {forge()}", id="a space before"),
        pytest.param(f"Bearer {forge()}", id="Bearer before"),
        pytest.param(f"{forge()}.x", id="four parts"),
        pytest.param(forge().rpartition(".")[0], id="no signature"),
        pytest.param(forge().rpartition(".")[0] + ".", id="an empty signature"),
        pytest.param(forge().encode(), id="bytes"),
        pytest.param(None, id="None"),
        pytest.param(7, id="a number"),
        pytest.param(forge({"scope": "x" * 8192}), id="over the length limit"),
        pytest.param("A" * 10_000_000, id="huge"),
        pytest.param("." * 1_000_000, id="dots"),
        pytest.param(f"{encode([])}.{encode({})}.AA", id="a header that is a list"),
        pytest.param(f"{base64url(b'[' * 5000)}.e30.AA", id="a deep header"),
        pytest.param(f"{base64url(b'9' * 5000)}.e30.AA", id="a header that is a long number"),
        pytest.param(f"{base64url(bytes([0xFF, 0xFE]))}.e30.AA", id="a header that is no UTF-8"),
    ],
)
def test_input_that_is_no_jwt(text: Any) -> None:
    refused(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.text() | st.binary())
def test_any_text_is_refused_in_order(text: str | bytes) -> None:
    refused(text)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["typ", "alg", "kid", "crit", "b64", "x"]), JSON),
    st.dictionaries(st.sampled_from([*PAYLOAD, "nbf"]), JSON),
)
def test_any_signed_claims_are_judged_in_order(headers: dict[str, Any], payload: dict[str, Any]) -> None:
    """Whatever our own key might have signed: claims or InvalidAccessToken, and no other way out."""
    try:
        claims = verify(forge(payload, headers))
    except InvalidAccessToken:
        return
    assert (claims.issuer, claims.audience) == (ISSUER, AUDIENCE)
    assert claims.issued_at - 5 * SECOND <= NOW < claims.expires_at


def test_a_refusal_never_quotes_the_token() -> None:
    canary = "CANARYtoken"
    for text in (
        canary,
        forge({"iss": canary}),
        forge({"aud": canary}),
        forge(headers={"alg": canary}),
        forge(headers={"crit": [canary]}),
        forge(headers={"kid": canary}),
        forge(headers={"typ": canary}),
        forge({"exp": canary}),
    ):
        with pytest.raises(InvalidAccessToken) as caught:
            verify(text)
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.facts)
        assert canary not in told
        assert text not in told


def test_a_token_stays_verifiable_across_a_key_rotation() -> None:
    newer = generate_signing_key()
    keys = {**KEYS, newer.kid: newer.public_jwk}
    assert verify(sign_access_token(CLAIMS, ES256), keys) == CLAIMS
    assert verify(sign_access_token(CLAIMS, newer), keys) == CLAIMS
    assert newer.kid == thumbprint(newer.public_jwk)
