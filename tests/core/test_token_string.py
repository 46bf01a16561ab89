"""The refresh token's string: one spelling each, and nothing but InvalidToken for everything else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import string
import traceback
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenctl.core import token_string
from tokenctl.core.token_string import LAST_GENERATION, PresentedToken
from tokenctl.errors import ForgedToken, InvalidToken

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
RAW_ID = bytes.fromhex("0190a3c4d5e67f80a1b2c3d4e5f60718")
SECRET = bytes(range(200, 216))
#: What these arguments give in every release: strings are out there for 30 days and longer.
PINNED = "tkr1_AQGQo8TV5n-AobLD1OX2BxgAAAAHyMnKy8zNzs_Q0dLT1NXW18UCpvNRWyEo37GyNLVH4Aq3XCStPZNdwSxn"

BODY_BYTES = 37
SIGNED_BYTES = 59
BASE64URL = string.ascii_letters + string.digits + "-_"

raw_ids = st.binary(min_size=16, max_size=16)
generations = st.integers(0, LAST_GENERATION)
secrets = st.binary(min_size=16, max_size=16)
keys = st.binary(min_size=32, max_size=32)


def decoded(text: str) -> bytes:
    """The 63 bytes of a string that is known to be one."""
    return base64.b64decode(text.removeprefix("tkr1_"), altchars=b"-_", validate=True)


def encoded(data: bytes) -> str:
    return "tkr1_" + base64.urlsafe_b64encode(data).decode("ascii")


def with_crc(signed: bytes) -> str:
    """The string over these bytes with a checksum that fits."""
    return encoded(signed + zlib.crc32(signed).to_bytes(4, "big"))


def with_mac_and_crc(body: bytes, key: bytes = KEY) -> str:
    """The string over these bytes, MAC and checksum as the specification has them."""
    mac = hmac.new(key, b"tokenctl refresh token 1\x00" + body, hashlib.sha256).digest()[:22]
    return with_crc(body + mac)


def accepted(texts: Iterable[str], read: Callable[[str], object] | None = None) -> list[str]:
    """Those of the texts that are read as tokens; anything but InvalidToken goes through."""
    found = []
    for text in texts:
        try:
            token_string.parse(text, KEY) if read is None else read(text)
        except InvalidToken:
            continue
        found.append(text)
    return found


# --- one token, one string -------------------------------------------------------------------


def test_the_format_never_drifts() -> None:
    assert token_string.mint(RAW_ID, 7, SECRET, KEY) == PINNED
    token = token_string.parse(PINNED, KEY)
    assert token == PresentedToken(raw_id=RAW_ID, generation=7, secret=SECRET)
    assert token.token_id == "rt_0190a3c4d5e67f80a1b2c3d4e5f60718"
    assert token.secret_hash == hashlib.sha256(SECRET).digest() == token_string.hash_secret(SECRET)


def test_the_format_is_the_specified_one() -> None:
    body = b"\x01" + RAW_ID + (7).to_bytes(4, "big") + SECRET
    assert with_mac_and_crc(body) == PINNED


@given(raw_ids, generations, secrets, keys)
def test_what_is_minted_can_be_read(raw_id: bytes, generation: int, secret: bytes, key: bytes) -> None:
    text = token_string.mint(raw_id, generation, secret, key)
    assert len(text) == token_string.LENGTH == 89
    assert text.isascii()
    token = PresentedToken(raw_id=raw_id, generation=generation, secret=secret)
    assert token_string.parse(text, key) == token
    assert token_string.parse_unverified(text) == token
    assert token_string.mint(raw_id, generation, secret, key) == text


@pytest.mark.parametrize("generation", [0, 1, 255, 256, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
def test_generations_at_the_edges(generation: int) -> None:
    text = token_string.mint(RAW_ID, generation, SECRET, KEY)
    assert token_string.parse(text, KEY).generation == generation
    assert decoded(text)[17:21] == generation.to_bytes(4, "big")


@pytest.mark.parametrize("generation", [-1, 2**32])
def test_there_is_no_string_for_a_generation_that_does_not_exist(generation: int) -> None:
    with pytest.raises(OverflowError):
        token_string.mint(RAW_ID, generation, SECRET, KEY)


# --- the successor ---------------------------------------------------------------------------


@given(raw_ids, st.integers(0, LAST_GENERATION - 1), secrets)
def test_the_successor_is_the_next_generation_of_the_same_login(
    raw_id: bytes, generation: int, secret: bytes
) -> None:
    presented = token_string.parse(token_string.mint(raw_id, generation, secret, KEY), KEY)
    following = token_string.successor(presented, KEY)
    assert following == token_string.mint(raw_id, generation + 1, secret, KEY)
    assert token_string.successor(presented, KEY) == following


def test_the_last_generation_has_no_successor() -> None:
    """To ask for one would be our own mistake, hence no InvalidToken: `judge` refuses that generation."""
    last = token_string.parse(token_string.mint(RAW_ID, LAST_GENERATION, SECRET, KEY), KEY)
    with pytest.raises(OverflowError):
        token_string.successor(last, KEY)


def test_the_last_but_one_generation_still_has_a_successor() -> None:
    token = token_string.parse(token_string.mint(RAW_ID, LAST_GENERATION - 1, SECRET, KEY), KEY)
    following = token_string.parse(token_string.successor(token, KEY), KEY)
    assert following.generation == LAST_GENERATION == 2**32 - 1


# --- every change is found -------------------------------------------------------------------


def flipped(data: bytes) -> list[bytes]:
    """The data with one bit flipped, for every bit."""
    number = int.from_bytes(data, "big")
    return [(number ^ 1 << bit).to_bytes(len(data), "big") for bit in range(8 * len(data))]


def test_every_flipped_bit_is_refused() -> None:
    changed = [encoded(data) for data in flipped(decoded(PINNED))]
    assert len(set(changed)) == 63 * 8
    assert accepted(changed) == []


def test_every_flipped_bit_is_found_by_the_checksum_alone() -> None:
    """A scanner has no key."""
    changed = [encoded(data) for data in flipped(decoded(PINNED))]
    assert accepted(changed, token_string.parse_unverified) == []


def test_every_flipped_bit_under_a_fitting_checksum_is_refused() -> None:
    changed = [with_crc(data) for data in flipped(decoded(PINNED)[:SIGNED_BYTES])]
    assert len(set(changed)) == 59 * 8
    assert accepted(changed) == []


@pytest.mark.parametrize("byte", range(1, SIGNED_BYTES))
def test_only_the_mac_guards_against_a_forger_who_fits_the_checksum(byte: int) -> None:
    data = bytearray(decoded(PINNED)[:SIGNED_BYTES])
    data[byte] ^= 0x80
    with pytest.raises(ForgedToken):
        token_string.parse(with_crc(bytes(data)), KEY)


@pytest.mark.parametrize("position", [0, 3, 4, 5, 6, 26, 27, 47, 48, 87, 88])
def test_every_other_character_at_a_position_is_refused(position: int) -> None:
    others = {chr(code) for code in range(0x3000)} | {chr(code) for code in range(0xFF00, 0x10000)}
    others |= {"\ud800", "\U0001d7ce"}
    changed = [PINNED[:position] + c + PINNED[position + 1 :] for c in sorted(others - {PINNED[position]})]
    assert accepted(changed) == []


def test_every_truncation_is_refused() -> None:
    shorter = [PINNED[:n] for n in range(89)] + [PINNED[n:] for n in range(1, 90)]
    shorter += [PINNED[:n] + PINNED[n + 1 :] for n in range(89)]
    assert accepted(shorter) == []


def test_every_extension_by_a_character_is_refused() -> None:
    added = [chr(code) for code in range(0x180)] + ["\u2028", "\ufeff", "\u200b"]
    longer = [text for c in added for text in (PINNED + c, c + PINNED)]
    longer += [PINNED[:n] + c + PINNED[n:] for n in range(5, 90) for c in "A=-_ \n\0"]
    assert accepted(longer) == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("tkr1_", id="prefix only"),
        pytest.param(PINNED.removeprefix("tkr1_"), id="no prefix"),
        pytest.param("TKR1_" + PINNED[5:], id="uppercase prefix"),
        pytest.param("tkr2_" + PINNED[5:], id="prefix of another version"),
        pytest.param("tkr1-" + PINNED[5:], id="other separator"),
        pytest.param("tkm1_" + PINNED[5:], id="prefix of a master key"),
        pytest.param("tkr1_" + PINNED, id="prefix twice"),
        pytest.param(PINNED + PINNED, id="twice"),
        pytest.param(PINNED.upper(), id="uppercase"),
        pytest.param(PINNED.lower(), id="lowercase"),
        pytest.param(PINNED.swapcase(), id="swapped case"),
        pytest.param(PINNED + "=", id="one padding"),
        pytest.param(PINNED + "==", id="two paddings"),
        pytest.param(PINNED + "====", id="four paddings"),
        pytest.param(PINNED[:-1] + "=", id="padding for the last character"),
        pytest.param(PINNED[:-2] + "==", id="padding for the last two"),
        pytest.param("tkr1_" + PINNED[5:].replace("-", "+").replace("_", "/"), id="the other alphabet"),
        pytest.param(PINNED.replace("-", "\u2010"), id="a typographic hyphen"),
        pytest.param(PINNED + "\n", id="newline after"),
        pytest.param(PINNED + "\r\n", id="CRLF after"),
        pytest.param("\n" + PINNED, id="newline before"),
        pytest.param(PINNED + " ", id="space after"),
        pytest.param(" " + PINNED, id="space before"),
        pytest.param("\t" + PINNED, id="tab before"),
        pytest.param(PINNED + "\u00a0", id="no-break space after"),
        pytest.param(PINNED[:50] + "\n" + PINNED[50:], id="newline inside"),
        pytest.param(PINNED[:50] + " " + PINNED[51:], id="space instead"),
        pytest.param(PINNED[:50] + "\n" + PINNED[51:], id="newline instead"),
        pytest.param(PINNED.replace("_", "%5F"), id="percent-encoded"),
        pytest.param(PINNED.replace("_", "%5f", 1), id="percent-encoded prefix"),
        pytest.param(f'"{PINNED}"', id="quoted"),
        pytest.param(f"Bearer {PINNED}", id="with a scheme"),
        pytest.param(PINNED.replace("1", "\u0661"), id="Arabic digits"),
        pytest.param(PINNED.replace("1", "\uff11"), id="full-width digits"),
        pytest.param("\uff54\uff4b\uff52" + PINNED[3:], id="full-width letters"),
        pytest.param(PINNED[:88] + "\u1d27", id="a small capital letter"),
        pytest.param(PINNED.replace("k", "\u212a", 1), id="Kelvin sign"),
        pytest.param("\0" + PINNED, id="NUL before"),
        pytest.param(PINNED + "\0", id="NUL after"),
        pytest.param(PINNED[:50] + "\0" + PINNED[51:], id="NUL instead"),
        pytest.param(PINNED[:50] + "\ud83d" + PINNED[51:], id="lone surrogate"),
        pytest.param("\ufeff" + PINNED, id="byte order mark"),
        pytest.param(PINNED + "\u0301", id="combining accent after"),
        pytest.param("tkr1_" + decoded(PINNED).hex(), id="hex"),
        pytest.param("tkr1_" + base64.b32encode(decoded(PINNED)).decode(), id="base32"),
        pytest.param("tkr1_" + "A" * 84, id="all zeros"),
        pytest.param("tkr1_" + "_" * 84, id="all ones"),
        pytest.param("rt_0190a3c4d5e67f80a1b2c3d4e5f60718", id="the id"),
    ],
)
def test_a_token_has_one_spelling(text: str) -> None:
    assert text != PINNED
    with pytest.raises(InvalidToken) as caught:
        token_string.parse(text, KEY)
    assert caught.value.hint
    with pytest.raises(InvalidToken):
        token_string.parse_unverified(text)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(PINNED.encode("ascii"), id="bytes"),
        pytest.param(bytearray(PINNED.encode("ascii")), id="bytearray"),
        pytest.param(memoryview(PINNED.encode("ascii")), id="memoryview"),
        pytest.param(None, id="None"),
        pytest.param(0, id="int"),
        pytest.param(1.5, id="float"),
        pytest.param(True, id="bool"),
        pytest.param([PINNED], id="list"),
        pytest.param((PINNED,), id="tuple"),
        pytest.param({"refresh_token": PINNED}, id="dict"),
        pytest.param(object(), id="object"),
    ],
)
def test_what_is_no_text_is_refused_like_any_other_nonsense(value: Any) -> None:
    with pytest.raises(InvalidToken):
        token_string.parse(value, KEY)
    with pytest.raises(InvalidToken):
        token_string.parse_unverified(value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("tkr1_" + "A" * 3_000_000, id="letters"),
        pytest.param(PINNED * 34_000, id="the token over and over"),
        pytest.param(PINNED + " " * 3_000_000, id="spaces after"),
        pytest.param(PINNED + "=" * 3_000_000, id="padding"),
        pytest.param("\n" * 3_000_000, id="newlines"),
        pytest.param("\U0001f511" * 750_000, id="four bytes each"),
    ],
)
def test_three_megabytes_are_refused_in_a_short_message(text: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        token_string.parse(text, KEY)
    assert len(str(caught.value)) < 200


# --- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 0x31, 0x81, 255])
def test_another_key_number_is_refused_though_mac_and_checksum_fit(number: int) -> None:
    text = with_mac_and_crc(bytes([number]) + decoded(PINNED)[1:BODY_BYTES])
    with pytest.raises(InvalidToken, match=f"key number {number}\\b") as caught:
        token_string.parse(text, KEY)
    assert not isinstance(caught.value, ForgedToken)
    with pytest.raises(InvalidToken, match=f"key number {number}\\b"):
        token_string.parse_unverified(text)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(OTHER_KEY, id="another"),
        pytest.param(KEY[:-1], id="a part of it"),
        pytest.param(KEY + b"\x01", id="one byte more"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_string_of_another_master_key_is_forged(key: bytes) -> None:
    with pytest.raises(ForgedToken):
        token_string.parse(PINNED, key)
    foreign = token_string.mint(RAW_ID, 7, SECRET, key)
    assert foreign != PINNED
    with pytest.raises(ForgedToken):
        token_string.parse(foreign, KEY)


def test_the_mac_has_a_purpose_of_its_own() -> None:
    """A MAC over the same bytes that was made for something else is none for a token."""
    body = decoded(PINNED)[:BODY_BYTES]
    for label in (b"", b"tokenctl refresh token 1", b"tokenctl refresh token 2\x00"):
        mac = hmac.new(KEY, label + body, hashlib.sha256).digest()[:22]
        with pytest.raises(ForgedToken):
            token_string.parse(with_crc(body + mac), KEY)


@given(raw_ids, generations, secrets, st.binary(min_size=22, max_size=22))
def test_a_guessed_mac_is_forged(raw_id: bytes, generation: int, secret: bytes, mac: bytes) -> None:
    body = b"\x01" + raw_id + generation.to_bytes(4, "big") + secret
    with pytest.raises(ForgedToken):
        token_string.parse(with_crc(body + mac), KEY)


@given(raw_ids, generations, secrets, keys)
def test_without_the_key_anybodys_string_can_be_read(
    raw_id: bytes, generation: int, secret: bytes, key: bytes
) -> None:
    foreign = token_string.mint(raw_id, generation, secret, key)
    assert token_string.parse_unverified(foreign) == PresentedToken(raw_id, generation, secret)


# --- what is shown ---------------------------------------------------------------------------


def shapes(secret: bytes) -> list[str]:
    """How a secret may look in a text."""
    return [
        repr(secret)[2:-1],
        secret.hex(),
        base64.b64encode(secret).decode().rstrip("="),
        base64.urlsafe_b64encode(secret).decode().rstrip("="),
    ]


def test_a_token_shows_no_secret() -> None:
    token = token_string.parse(PINNED, KEY)
    for shown in (repr(token), str(token), f"{token}"):
        assert str(token.generation) in shown
        assert not [shape for shape in shapes(SECRET) if shape in shown]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param(PINNED, OTHER_KEY, id="forged"),
        pytest.param(PINNED[:-1] + "A", KEY, id="checksum"),
        pytest.param(PINNED + "\n", KEY, id="form"),
        pytest.param(with_mac_and_crc(b"\x02" + decoded(PINNED)[1:BODY_BYTES]), KEY, id="key number"),
    ],
)
def test_a_refused_string_is_never_repeated(text: str, key: bytes) -> None:
    with pytest.raises(InvalidToken) as caught:
        token_string.parse(text, key)
    error = caught.value
    told = "".join(traceback.format_exception(error)) + error.hint + repr(error.facts)
    assert text[5:25] not in told
    assert text[30:50] not in told
    assert not [shape for shape in shapes(SECRET) if shape in told]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param(PINNED, True, id="genuine"),
        pytest.param("tkr1_", True, id="prefix"),
        pytest.param("tkr1_nonsense \n", True, id="wrong inside"),
        pytest.param("tkr2_" + PINNED[5:], False, id="another version"),
        pytest.param("rt_0190a3c4d5e67f80a1b2c3d4e5f60718", False, id="id"),
        pytest.param(" " + PINNED, False, id="space before"),
        pytest.param("", False, id="empty"),
    ],
)
def test_what_looks_like_a_token(text: str, answer: bool) -> None:
    assert token_string.looks_like(text) is answer


# --- no input raises anything else -----------------------------------------------------------

#: Of the right form, so that what lies behind the form is reached: by letters, by bytes, by a changed token.
near = st.one_of(
    st.text(BASE64URL, min_size=84, max_size=84).map("tkr1_".__add__),
    st.binary(min_size=63, max_size=63).map(encoded),
    st.binary(min_size=59, max_size=59).map(with_crc),
    st.binary(min_size=36, max_size=36).map(lambda rest: with_crc(b"\x01" + rest + bytes(22))),
    st.tuples(st.integers(0, 88), st.characters()).map(lambda at: PINNED[: at[0]] + at[1] + PINNED[at[0] :]),
    st.tuples(st.integers(0, 88), st.integers(0, 88)).map(lambda cut: PINNED[cut[0] :] + PINNED[: cut[1]]),
    st.lists(st.sampled_from([PINNED, "tkr1_", "=", "\n", " ", "\0", "A" * 84])).map("".join),
)


@given(st.one_of(st.text(), st.text().map("tkr1_".__add__), st.binary().map(lambda b: b.decode("latin-1"))))
@example("tkr1_" + "\xff" * 84)
def test_any_text_is_refused_as_invalid(text: str) -> None:
    assert accepted([text]) == []
    assert accepted([text], token_string.parse_unverified) == []


@given(near)
@example(PINNED + "\n")
def test_any_text_near_a_token_is_refused_unless_it_is_the_token(text: str) -> None:
    assert accepted([text]) in ([], [PINNED])


@given(near)
def test_what_is_read_without_the_key_is_written_the_same_again(text: str) -> None:
    for read in accepted([text], token_string.parse_unverified):
        token = token_string.parse_unverified(read)
        assert len(token.raw_id) == len(token.secret) == 16
        body = b"\x01" + token.raw_id + token.generation.to_bytes(4, "big") + token.secret
        assert decoded(read)[:BODY_BYTES] == body
        assert encoded(decoded(read)) == read
