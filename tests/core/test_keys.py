"""Master key, derived keys, signing keys and their wrapping."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import traceback
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tokenctl.core import keys
from tokenctl.errors import ConfigInvalid, InvalidInput, KeyUnusable, KeyWrong

MASTER = bytes(range(32))
MASTER_TEXT = "tkm1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
WRAP_KEY = bytes(range(100, 132))
NONCE = bytes(range(12))
P256_OID = bytes.fromhex("06082a8648ce3d030107")


@pytest.fixture(scope="module")
def es256() -> keys.SigningKey:
    return keys.generate_signing_key()


@pytest.fixture(scope="module")
def rs256() -> keys.SigningKey:
    return keys.generate_signing_key("RS256")


@pytest.fixture(params=["ES256", "RS256"])
def signing_key(
    request: pytest.FixtureRequest, es256: keys.SigningKey, rs256: keys.SigningKey
) -> keys.SigningKey:
    return es256 if request.param == "ES256" else rs256


# --- the master key --------------------------------------------------------------------------


def test_master_key_text_is_stable() -> None:
    assert keys.format_master_key(MASTER) == MASTER_TEXT
    assert keys.parse_master_key(MASTER_TEXT) == MASTER


def test_generated_master_keys_differ_and_survive_their_text() -> None:
    first, second = keys.generate_master_key(), keys.generate_master_key()
    assert first != second
    assert len(first) == 32
    assert keys.parse_master_key(keys.format_master_key(first)) == first


@pytest.mark.parametrize("around", ["{}\n", "  {}", "\t{}\r\n", "\n\n{}\n"])
def test_whitespace_around_a_master_key_is_allowed(around: str) -> None:
    assert keys.parse_master_key(around.format(MASTER_TEXT)) == MASTER


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(MASTER_TEXT[:-1], id="short"),
        pytest.param(MASTER_TEXT + "A", id="long"),
        pytest.param(MASTER_TEXT + "=", id="padded"),
        pytest.param(MASTER_TEXT[:-1] + "9", id="another spelling of the last character"),
        pytest.param(MASTER_TEXT.replace("tkm1_", "tkm2_"), id="version"),
        pytest.param(MASTER_TEXT.removeprefix("tkm1_"), id="no prefix"),
        pytest.param(MASTER_TEXT.upper(), id="case"),
        pytest.param(MASTER_TEXT[:20] + " " + MASTER_TEXT[20:], id="space inside"),
        pytest.param(MASTER_TEXT[:20] + "\n" + MASTER_TEXT[20:], id="line break inside"),
        pytest.param(MASTER_TEXT[:-1] + "+", id="the other base64 alphabet"),
        pytest.param(MASTER_TEXT[:-1] + "\uff18", id="a digit of another script"),
        pytest.param(MASTER_TEXT + "\n" + MASTER_TEXT, id="two keys"),
        pytest.param(MASTER.hex(), id="hex"),
        pytest.param("\0" * 48, id="NUL"),
        pytest.param("é" * 48, id="not ASCII"),
    ],
)
def test_a_master_key_has_one_spelling(text: str) -> None:
    with pytest.raises(KeyUnusable) as caught:
        keys.parse_master_key(text)
    assert caught.value.hint


def test_a_mistyped_master_key_is_never_repeated() -> None:
    canary = "CANARYcanaryCANARYcanary"
    with pytest.raises(KeyUnusable) as caught:
        keys.parse_master_key(f"tkm1_{canary}")
    told = "".join(traceback.format_exception(caught.value))
    assert canary not in told + caught.value.hint + repr(caught.value.facts)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
@pytest.mark.parametrize("function", [keys.format_master_key, keys.derive_keys])
def test_a_master_key_of_another_length_is_refused(function: Callable[[bytes], object], length: int) -> None:
    with pytest.raises(KeyUnusable):
        function(bytes(length))


# --- derived keys ----------------------------------------------------------------------------


def hkdf_sha256(master: bytes, info: bytes) -> bytes:
    """RFC 5869 with an empty salt and one block, written out."""
    extracted = hmac.digest(bytes(32), master, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_derived_keys_are_hkdf_with_one_label_per_purpose() -> None:
    derived = keys.derive_keys(MASTER)
    assert derived.mac == hkdf_sha256(MASTER, b"tokenctl/1 refresh mac")
    assert derived.wrap == hkdf_sha256(MASTER, b"tokenctl/1 wrap signing keys")
    assert derived.audit == hkdf_sha256(MASTER, b"tokenctl/1 audit log")
    assert derived.check == hkdf_sha256(MASTER, b"tokenctl/1 check")[:16].hex()


def test_check_tells_master_keys_apart() -> None:
    other = keys.derive_keys(bytes(32))
    assert keys.derive_keys(MASTER).check != other.check
    assert len(other.check) == 32


def test_derived_keys_do_not_show_in_repr() -> None:
    derived = keys.derive_keys(MASTER)
    shown = repr(derived)
    assert derived.check in shown
    for secret in (derived.mac, derived.wrap, derived.audit):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


# --- signing keys ----------------------------------------------------------------------------


def test_thumbprint_of_the_rfc() -> None:
    """RFC 7638 §3.1."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCi"
        "FV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnY"
        "b9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0"
        "Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    jwk = {"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}
    assert keys.thumbprint(jwk) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_es256_is_the_default(es256: keys.SigningKey) -> None:
    assert es256.algorithm == "ES256"
    assert isinstance(es256.private, ec.EllipticCurvePrivateKey)
    assert es256.private.curve.name == "secp256r1"


def test_rs256_has_3072_bits(rs256: keys.SigningKey) -> None:
    assert rs256.algorithm == "RS256"
    assert rs256.private.key_size == 3072


@pytest.mark.parametrize(
    ("algorithm", "members"),
    [
        pytest.param("ES256", {"kty", "crv", "x", "y", "use", "alg", "kid"}, id="ES256"),
        pytest.param("RS256", {"kty", "n", "e", "use", "alg", "kid"}, id="RS256"),
    ],
)
def test_public_jwk_has_public_members_only(
    algorithm: str, members: set[str], es256: keys.SigningKey, rs256: keys.SigningKey
) -> None:
    key = es256 if algorithm == "ES256" else rs256
    assert set(key.public_jwk) == members
    assert key.public_jwk["use"] == "sig"
    assert key.public_jwk["alg"] == algorithm
    assert key.public_jwk["kid"] == key.kid == keys.thumbprint(key.public_jwk)


def number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=="), "big")


def test_public_jwk_is_the_public_half(es256: keys.SigningKey, rs256: keys.SigningKey) -> None:
    point, modulus = es256.private.public_key().public_numbers(), rs256.private.public_key().public_numbers()
    assert isinstance(point, ec.EllipticCurvePublicNumbers)
    assert isinstance(modulus, rsa.RSAPublicNumbers)
    assert (number(es256.public_jwk["x"]), number(es256.public_jwk["y"])) == (point.x, point.y)
    assert (number(rs256.public_jwk["n"]), number(rs256.public_jwk["e"])) == (modulus.n, modulus.e)


def test_a_coordinate_keeps_its_leading_zeros() -> None:
    """RFC 7518 §6.2.1.2; the first private scalar whose x begins with a zero byte."""
    for scalar in range(1, 2000):
        private = ec.derive_private_key(scalar, ec.SECP256R1())
        if private.public_key().public_numbers().x < 1 << 248:
            break
    else:
        pytest.fail("no such scalar")
    loaded = keys.load_signing_key(der(private), "ES256")
    assert len(loaded.public_jwk["x"]) == 43


def test_repr_of_a_signing_key_has_no_private_part() -> None:
    private = ec.derive_private_key(0xCA9A12, ec.SECP256R1())
    shown = repr(keys.load_signing_key(der(private), "ES256"))
    assert "private" not in shown.lower()
    assert "ca9a12" not in shown.lower()
    assert str(0xCA9A12) not in shown


@pytest.mark.parametrize("algorithm", ["none", "HS256", "es256", "ES384", "PS256", "EdDSA", "", "ES256\n"])
def test_any_other_algorithm_is_a_faulty_setting(algorithm: str) -> None:
    with pytest.raises(ConfigInvalid, match="not supported") as caught:
        keys.generate_signing_key(algorithm)
    assert "ES256" in caught.value.hint
    with pytest.raises(ConfigInvalid):
        keys.load_signing_key(b"", algorithm)


PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def serialize(
    private: PrivateKey,
    encoding: Encoding = Encoding.DER,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    return private.private_bytes(encoding, form, encryption or NoEncryption())


def der(private: PrivateKey) -> bytes:
    return serialize(private)


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_loading_gives_the_same_key(
    signing_key: keys.SigningKey, encoding: Encoding, form: PrivateFormat
) -> None:
    loaded = keys.load_signing_key(serialize(signing_key.private, encoding, form), signing_key.algorithm)
    assert loaded.kid == signing_key.kid
    assert loaded.public_jwk == signing_key.public_jwk
    assert loaded.private.private_numbers() == signing_key.private.private_numbers()


@pytest.fixture(scope="module")
def unfit(es256: keys.SigningKey, rs256: keys.SigningKey) -> dict[str, tuple[bytes, str]]:
    """Private key files that do not do, each with the algorithm that is asked of them."""
    public = es256.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    encrypted = serialize(es256.private, Encoding.PEM, encryption=BestAvailableEncryption(b"CANARY"))
    return {
        "empty": (b"", "ES256"),
        "junk": (b"CANARY\xff\0", "ES256"),
        "junk in PEM": (b"-----BEGIN PRIVATE KEY-----\nCANARY\n-----END PRIVATE KEY-----\n", "ES256"),
        "cut off": (der(es256.private)[:-20], "ES256"),
        "public": (public, "ES256"),
        "encrypted": (encrypted, "ES256"),
        "EC for RS256": (der(es256.private), "RS256"),
        "RSA for ES256": (der(rs256.private), "ES256"),
        "P-384": (der(ec.generate_private_key(ec.SECP384R1())), "ES256"),
        "an unknown curve": (der(es256.private).replace(P256_OID, P256_OID[:-1] + b"\x63"), "ES256"),
        "secp256k1": (der(ec.generate_private_key(ec.SECP256K1())), "ES256"),
        "Ed25519": (der(ed25519.Ed25519PrivateKey.generate()), "ES256"),
        "RSA of 2048 bits": (der(rsa.generate_private_key(65537, 2048)), "RS256"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "empty",
        "junk",
        "junk in PEM",
        "cut off",
        "public",
        "encrypted",
        "EC for RS256",
        "RSA for ES256",
        "P-384",
        "an unknown curve",
        "secp256k1",
        "Ed25519",
        "RSA of 2048 bits",
    ],
)
def test_a_file_that_is_no_fitting_private_key(case: str, unfit: dict[str, tuple[bytes, str]]) -> None:
    content, algorithm = unfit[case]
    with pytest.raises(KeyUnusable) as caught:
        keys.load_signing_key(content, algorithm)
    assert caught.value.hint
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


# --- wrapping --------------------------------------------------------------------------------


def test_wrapping_and_unwrapping(signing_key: keys.SigningKey) -> None:
    wrapped = keys.wrap_signing_key(signing_key, WRAP_KEY, NONCE)
    assert wrapped.startswith(NONCE)
    assert der(signing_key.private)[20:60] not in wrapped
    unwrapped = keys.unwrap_signing_key(signing_key.kid, signing_key.algorithm, wrapped, WRAP_KEY)
    assert unwrapped.private.private_numbers() == signing_key.private.private_numbers()
    assert unwrapped.public_jwk == signing_key.public_jwk


def test_wrapped_form_is_fixed(es256: keys.SigningKey) -> None:
    """The database keeps these bytes for years: nonce, then AES-256-GCM with label, kid, algorithm."""
    wrapped = keys.wrap_signing_key(es256, WRAP_KEY, NONCE)
    associated = b"tokenctl/1 signing key\0" + es256.kid.encode() + b"\0ES256"
    assert AESGCM(WRAP_KEY).decrypt(NONCE, wrapped[12:], associated) == der(es256.private)


@pytest.mark.parametrize("length", [0, 8, 11, 13, 16])
def test_a_nonce_of_another_length_is_refused(es256: keys.SigningKey, length: int) -> None:
    with pytest.raises(InvalidInput):
        keys.wrap_signing_key(es256, WRAP_KEY, bytes(length))


def test_every_flipped_bit_is_found(es256: keys.SigningKey) -> None:
    wrapped = keys.wrap_signing_key(es256, WRAP_KEY, NONCE)
    for bit in range(len(wrapped) * 8):
        damaged = bytearray(wrapped)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeyWrong):
            keys.unwrap_signing_key(es256.kid, "ES256", bytes(damaged), WRAP_KEY)


@pytest.mark.parametrize("length", [0, 1, 7, 11, 12, 27, 28])
def test_a_wrapped_key_that_was_cut_off(es256: keys.SigningKey, length: int) -> None:
    wrapped = keys.wrap_signing_key(es256, WRAP_KEY, NONCE)
    with pytest.raises(KeyWrong):
        keys.unwrap_signing_key(es256.kid, "ES256", wrapped[:length], WRAP_KEY)


def test_another_master_key_is_recognised(es256: keys.SigningKey) -> None:
    wrapped = keys.wrap_signing_key(es256, keys.derive_keys(MASTER).wrap, NONCE)
    with pytest.raises(KeyWrong) as caught:
        keys.unwrap_signing_key(es256.kid, "ES256", wrapped, keys.derive_keys(bytes(32)).wrap)
    assert "master key file" in caught.value.hint
    assert caught.value.facts == {"kid": es256.kid}


def test_two_rows_cannot_swap_their_keys(es256: keys.SigningKey) -> None:
    other = keys.generate_signing_key()
    wrapped = keys.wrap_signing_key(other, WRAP_KEY, NONCE)
    with pytest.raises(KeyWrong):
        keys.unwrap_signing_key(es256.kid, "ES256", wrapped, WRAP_KEY)


@pytest.mark.parametrize("algorithm", ["RS256", "none", "HS256", ""])
def test_a_row_cannot_change_its_algorithm(es256: keys.SigningKey, algorithm: str) -> None:
    wrapped = keys.wrap_signing_key(es256, WRAP_KEY, NONCE)
    with pytest.raises(KeyWrong):
        keys.unwrap_signing_key(es256.kid, algorithm, wrapped, WRAP_KEY)


def test_a_key_sealed_under_a_kid_that_is_not_its_own(es256: keys.SigningKey) -> None:
    """Whoever has the wrapping key still cannot pass one key off under another's kid."""
    other = keys.generate_signing_key()
    associated = f"tokenctl/1 signing key\0{es256.kid}\0ES256".encode()
    wrapped = NONCE + AESGCM(WRAP_KEY).encrypt(NONCE, der(other.private), associated)
    with pytest.raises(KeyWrong):
        keys.unwrap_signing_key(es256.kid, "ES256", wrapped, WRAP_KEY)


def test_thumbprint_covers_the_public_members(es256: keys.SigningKey) -> None:
    members = {name: es256.public_jwk[name] for name in ("crv", "kty", "x", "y")}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    assert es256.kid == base64.urlsafe_b64encode(digest).decode().rstrip("=")
