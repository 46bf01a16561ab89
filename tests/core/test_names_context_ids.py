"""What comes from outside, cleaned at the edge: names, scopes, the caller's context, ids."""

from __future__ import annotations

import hashlib
import unicodedata
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenctl.core import ids, names
from tokenctl.core.context import NO_CONTEXT, Context, hash_device, pack_ip, unpack_ip
from tokenctl.errors import InvalidInput, InvalidScope

# --- user names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        pytest.param("a", "a", id="one character"),
        pytest.param("Ada", "Ada", id="its case stays"),
        pytest.param("ada@example.org", "ada@example.org", id="e-mail address"),
        pytest.param("Ada Lovelace", "Ada Lovelace", id="space inside"),
        pytest.param("Jose\u0301", "Jos\u00e9", id="NFC"),
        pytest.param("\u674e\u96f7", "\u674e\u96f7", id="Han"),
        pytest.param("\U0001f600", "\U0001f600", id="outside the basic plane"),
        pytest.param("a" * 254, "a" * 254, id="254"),
        pytest.param("e\u0301" * 254, "\u00e9" * 254, id="254 after NFC"),
        pytest.param("-rf", "-rf", id="begins with a dash"),
        pytest.param("' OR 1=1 --", "' OR 1=1 --", id="quotes"),
        pytest.param("usr", "usr", id="a part of the prefix"),
        pytest.param("my_usr_", "my_usr_", id="the prefix elsewhere"),
        pytest.param("rt_0190a3c4", "rt_0190a3c4", id="the prefix of tokens"),
    ],
)
def test_user_name(text: str, stored: str) -> None:
    assert names.clean_user_name(text) == stored


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("a" * 255, id="255"),
        pytest.param("\u0958" * 200, id="400 after NFC"),
        pytest.param(" ", id="space"),
        pytest.param(" ada", id="space before"),
        pytest.param("ada ", id="space after"),
        pytest.param("ada\n", id="newline after"),
        pytest.param("a\nda", id="newline inside"),
        pytest.param("a\tda", id="tab"),
        pytest.param("a\0da", id="NUL"),
        pytest.param("a\x1b[2Jda", id="terminal escape"),
        pytest.param("a\x7fda", id="DEL"),
        pytest.param("a\x85da", id="C1"),
        pytest.param("a\u00a0da", id="no-break space"),
        pytest.param("a\u2028da", id="line separator"),
        pytest.param("a\u200bda", id="zero width"),
        pytest.param("a\u202eda", id="right-to-left override"),
        pytest.param("\ufeffada", id="byte order mark"),
        pytest.param("a\ud800da", id="lone surrogate"),
        pytest.param("a\ue000da", id="private use"),
        pytest.param("usr_", id="prefix of an id"),
        pytest.param("usr_ada", id="begins like an id"),
        pytest.param("usr_0190a3c4d5e67f80a1b2c3d4e5f60718", id="an id"),
        pytest.param("USR_ada", id="begins like an id, in other case"),
        pytest.param("Usr_0190A3C4D5E67F80A1B2C3D4E5F60718", id="an id, in other case"),
        pytest.param("u\u017fr_ada", id="begins like an id, with a long s"),
    ],
)
def test_no_user_name(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        names.clean_user_name(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("ada", "ADA", id="ASCII"),
        pytest.param("Stra\u00dfe", "STRASSE", id="sharp s"),
        pytest.param("stra\u1e9ee", "strasse", id="capital sharp s"),
        pytest.param("Jose\u0301", "JOS\u00c9", id="decomposed and capital"),
        pytest.param(
            "\u03a3\u0399\u03a3\u03a5\u03a6\u039f\u03a3",
            "\u03c3\u03b9\u03c3\u03c5\u03c6\u03bf\u03c2",
            id="final sigma",
        ),
        pytest.param("\ufb01n", "FIN", id="ligature"),
        pytest.param("\u212a", "k", id="Kelvin sign"),
        pytest.param("\u0390", "\u03aa\u0301", id="composed only after the folding"),
        pytest.param("\u01c6", "\u01c4", id="digraph"),
    ],
)
def test_names_that_are_equal(one: str, other: str) -> None:
    assert names.user_name_key(one) == names.user_name_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("ada", "adam", id="longer"),
        pytest.param("jose", "jos\u00e9", id="accent"),
        pytest.param("\u0131", "i", id="dotless i"),
        pytest.param("a", "\u0430", id="Cyrillic a"),
        pytest.param("a", "\uff41", id="full-width"),
        pytest.param("1", "\u0661", id="another script's digit"),
    ],
)
def test_names_that_differ(one: str, other: str) -> None:
    assert names.user_name_key(one) != names.user_name_key(other)


def accepted_name(text: str) -> str | None:
    try:
        return names.clean_user_name(text)
    except InvalidInput:
        return None


@given(st.text(max_size=260))
@example("e\u0301")
def test_any_name_is_cleaned_once_or_refused(text: str) -> None:
    name = accepted_name(text)
    if name is None:
        return
    assert names.clean_user_name(name) == name
    assert unicodedata.is_normalized("NFC", name)
    assert 1 <= len(name) <= names.MAX_USER_NAME
    assert name.isprintable()
    name.encode("utf-8")
    assert names.user_name_key(name) == names.user_name_key(text)


@given(st.text())
@example("\u1fb3\u0342")
@example("\u0345\u0301")
def test_spellings_that_mean_the_same_have_one_key(text: str) -> None:
    keys = {names.user_name_key(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert keys == {names.user_name_key(text)}


@given(st.text(st.characters(max_codepoint=0x24F)))
def test_a_name_of_europe_is_found_in_any_case(text: str) -> None:
    # Case mapping is no round trip for these: micro and long s become other letters, dotless i an i.
    text = text.translate({ord(c): None for c in "\u00b5\u017f\u0131\u0149"})
    for spelling in (text.upper(), text.lower(), text.casefold()):
        assert names.user_name_key(spelling) == names.user_name_key(text)


# --- clients ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("default", id="default"),
        pytest.param("x", id="one"),
        pytest.param("x" * 128, id="128"),
        pytest.param("https://app.example/?a=b&c", id="URL"),
        pytest.param("!~", id="first and last"),
    ],
)
def test_client_id(text: str) -> None:
    assert names.clean_client_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 129, id="129"),
        pytest.param("my app", id="space"),
        pytest.param("app ", id="space after"),
        pytest.param("app\n", id="newline after"),
        pytest.param("a\0pp", id="NUL"),
        pytest.param("app\x7f", id="DEL"),
        pytest.param("\u00e4pp", id="Latin-1"),
        pytest.param("\uff41pp", id="full-width"),
        pytest.param("app\u0661", id="another script's digit"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("x" * 3_000_000, id="3 MB"),
    ],
)
def test_no_client_id(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        names.clean_client_id(text)
    assert len(str(caught.value)) < 500


# --- scopes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        pytest.param("", "", id="none"),
        pytest.param("read", "read", id="one"),
        pytest.param("write read admin", "write read admin", id="in the order given"),
        pytest.param("read write read read", "read write", id="each once"),
        pytest.param("Read read", "Read read", id="with case"),
        pytest.param("api:read https://a.example/b?c !", "api:read https://a.example/b?c !", id="signs"),
        pytest.param("!#[]~", "!#[]~", id="edges of what is allowed"),
        pytest.param("x" * 128, "x" * 128, id="128"),
        pytest.param(" ".join(["abc"] * 256), "abc", id="1,023 characters"),
        pytest.param("a " + " ".join(["abcd"] * 204) + " a", "a abcd", id="1,023 characters, repeated"),
    ],
)
def test_scope(text: str, clean: str) -> None:
    assert len(text) <= 1024
    assert names.clean_scope(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(" ", id="space"),
        pytest.param(" read", id="space before"),
        pytest.param("read ", id="space after"),
        pytest.param("read  write", id="two spaces"),
        pytest.param("read\twrite", id="tab"),
        pytest.param("read\n", id="newline after"),
        pytest.param("read\nwrite", id="newline"),
        pytest.param("read,wri\\te", id="backslash"),
        pytest.param('"read"', id="quotes"),
        pytest.param("read\0", id="NUL"),
        pytest.param("read\x7f", id="DEL"),
        pytest.param("r\u00e9ad", id="Latin-1"),
        pytest.param("read\u00a0write", id="no-break space"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("x" * 129, id="word of 129"),
        pytest.param(" ".join(["abcd"] * 205) + " a", id="1,026 characters, repeated"),
        pytest.param("x " * 1_500_000 + "x", id="3 MB"),
    ],
)
def test_no_scope(text: str) -> None:
    with pytest.raises(InvalidScope) as caught:
        names.clean_scope(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("requested", "granted", "narrowed"),
    [
        pytest.param("read write", "read write", "read write", id="all"),
        pytest.param("write read", "read write", "write read", id="all, in its own order"),
        pytest.param("read", "read write", "read", id="a part"),
        pytest.param("read read", "read write", "read", id="a part twice"),
        pytest.param("", "read write", "", id="nothing"),
        pytest.param("", "", "", id="nothing of nothing"),
    ],
)
def test_narrowed_scope(requested: str, granted: str, narrowed: str) -> None:
    assert names.narrow_scope(requested, granted) == narrowed


@pytest.mark.parametrize(
    ("requested", "granted"),
    [
        pytest.param("admin", "read write", id="another"),
        pytest.param("read admin", "read write", id="one more"),
        pytest.param("read", "", id="of nothing"),
        pytest.param("READ", "read", id="other case"),
        pytest.param("rea", "read", id="a part of a word"),
        pytest.param("read ", "read", id="malformed"),
        pytest.param("read\nwrite", "read write", id="another separator"),
    ],
)
def test_a_scope_is_never_widened(requested: str, granted: str) -> None:
    with pytest.raises(InvalidScope):
        names.narrow_scope(requested, granted)


scopes = st.lists(st.sampled_from(["a", "b", "c", "A", "ab"])).map(" ".join)


@given(scopes, scopes)
def test_a_narrowed_scope_is_within_the_granted_one(requested: str, granted: str) -> None:
    within = set(requested.split()) <= set(granted.split())
    try:
        narrowed = names.narrow_scope(requested, granted)
    except InvalidScope:
        assert not within
    else:
        assert within
        assert set(narrowed.split()) == set(requested.split())
        assert names.clean_scope(narrowed) == narrowed


# --- the caller's context --------------------------------------------------------------------


def test_a_context_of_nothing_is_empty() -> None:
    assert Context.of() == NO_CONTEXT == Context(None, None, None)
    assert NO_CONTEXT.ip_text is None


def test_each_part_of_a_context_has_its_place() -> None:
    context = Context.of(ip="192.0.2.1", user_agent="Browser/1", device="laptop")
    assert context.ip == bytes(10) + b"\xff\xff\xc0\x00\x02\x01"
    assert context.user_agent == "Browser/1"
    assert context.device == hashlib.sha256(b"laptop").digest()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", id="IPv4"),
        pytest.param("0.0.0.0", "0.0.0.0", id="IPv4 zero"),
        pytest.param("255.255.255.255", "255.255.255.255", id="IPv4 last"),
        pytest.param("2001:db8::1", "2001:db8::1", id="IPv6"),
        pytest.param("2001:0DB8:0:0:0:0:0:1", "2001:db8::1", id="IPv6 long and capital"),
        pytest.param("::", "::", id="IPv6 zero"),
        pytest.param("::1", "::1", id="IPv6 loopback"),
        pytest.param("::ffff:192.0.2.1", "192.0.2.1", id="mapped"),
        pytest.param("::ffff:c000:201", "192.0.2.1", id="mapped, in hex"),
        pytest.param("::192.0.2.1", "::c000:201", id="compatible, which is not mapped"),
        pytest.param("fe80::1%eth0", "fe80::1", id="zone"),
    ],
)
def test_address(text: str, shown: str) -> None:
    context = Context.of(ip=text)
    assert context.ip is not None
    assert len(context.ip) == 16
    assert context.ip_text == shown
    assert pack_ip(shown) == context.ip


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("localhost", id="name"),
        pytest.param("unknown", id="unknown"),
        pytest.param("192.0.2", id="three parts"),
        pytest.param("192.0.2.1.1", id="five parts"),
        pytest.param("192.0.2.256", id="too large"),
        pytest.param("192.0.2.01", id="leading zero"),
        pytest.param("0xc0000201", id="hex"),
        pytest.param("3221225985", id="one number"),
        pytest.param("192.0.2.1/24", id="network"),
        pytest.param("192.0.2.1:443", id="with a port"),
        pytest.param("[2001:db8::1]", id="in brackets"),
        pytest.param("192.0.2.1, 198.51.100.1", id="two"),
        pytest.param(" 192.0.2.1", id="space before"),
        pytest.param("192.0.2.1\n", id="newline after"),
        pytest.param("192.0.2.1\0", id="NUL after"),
        pytest.param("192.0.2.1%eth0", id="IPv4 with a zone"),
        pytest.param("\u0661\u0669\u0662.0.2.1", id="another script's digits"),
        pytest.param("\uff11.1.1.1", id="full-width"),
        pytest.param("192\u30020\u30022\u30021", id="ideographic stops"),
        pytest.param(":::", id="three colons"),
        pytest.param("12345::", id="part too long"),
        pytest.param("1::2::3", id="shortened twice"),
        pytest.param("fe80::1%", id="empty zone"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("1" * 3_000_000, id="3 MB"),
    ],
)
def test_no_address(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Context.of(ip=text)
    assert len(str(caught.value)) < 500


@given(st.ip_addresses())
def test_any_address_survives(address: object) -> None:
    assert unpack_ip(pack_ip(str(address))) == (str(getattr(address, "ipv4_mapped", None) or address))


@given(st.text() | st.text("0123456789abcdef:.%/[]x", max_size=45))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        packed = pack_ip(text)
    except InvalidInput:
        return
    assert len(packed) == 16
    assert pack_ip(unpack_ip(packed)) == packed


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        pytest.param("Browser/1 (X11; Linux)", "Browser/1 (X11; Linux)", id="usual"),
        pytest.param("", None, id="empty"),
        pytest.param("a\0b\0", "ab", id="NUL"),
        pytest.param("x" * 256, "x" * 256, id="256 bytes"),
        pytest.param("x" * 257, "x" * 256, id="257 bytes"),
        pytest.param("\0" + "x" * 256, "x" * 256, id="NULs do not count"),
        pytest.param("x" * 255 + "\u00e9", "x" * 255, id="cut inside two bytes"),
        pytest.param("x" * 254 + "\u20ac", "x" * 254, id="cut inside three bytes"),
        pytest.param("x" * 253 + "\U0001f600", "x" * 253, id="cut inside four bytes"),
        pytest.param("x" * 254 + "\u00e9", "x" * 254 + "\u00e9", id="two bytes that just fit"),
        pytest.param("\u00e9" * 200, "\u00e9" * 128, id="200 of two bytes"),
        pytest.param("\U0001f600" * 70, "\U0001f600" * 64, id="70 of four bytes"),
        pytest.param("a\ud800b", "a?b", id="lone surrogate"),
        pytest.param("a\udc80b", "a?b", id="low surrogate"),
        pytest.param("x" * 3_000_000, "x" * 256, id="3 MB"),
    ],
)
def test_user_agent(text: str, stored: str | None) -> None:
    assert Context.of(user_agent=text).user_agent == stored


@pytest.mark.parametrize("prefix", ["tkr1_", "tkm1_", "tks1_"])
def test_a_secret_in_the_wrong_place_is_not_kept(prefix: str) -> None:
    secret = prefix + "AbC-_123" * 5
    assert Context.of(user_agent=f"Browser {secret} X").user_agent == f"Browser {prefix}… X"
    assert names.holds_secret(f"of {secret}")
    for clean in (names.clean_user_name, names.clean_client_id, names.clean_note, names.clean_scope):
        with pytest.raises((InvalidInput, InvalidScope)) as caught:
            clean(secret)
        assert "AbC" not in caught.value.message + caught.value.hint


any_text = st.text(st.characters(exclude_categories=()), max_size=300)


@given(any_text)
def test_any_user_agent_can_be_stored(text: str) -> None:
    stored = Context.of(user_agent=text).user_agent
    if not text.strip("\0"):
        assert stored is None, "who says nothing does not overwrite what is known"
        return
    assert stored is not None
    assert len(stored.encode("utf-8")) <= 256
    assert "\0" not in stored
    assert Context.of(user_agent=stored).user_agent == stored
    # Nothing is added, and nothing is lost from the middle.
    assert text.replace("\0", "").encode("utf-8", "replace").decode().startswith(stored)


@pytest.mark.parametrize("text", ["x", "x" * 128, "a b", " ", "~!\"'\\", "0190a3c4"])
def test_device(text: str) -> None:
    assert Context.of(device=text).device == hash_device(text) == hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 129, id="129"),
        pytest.param("laptop\n", id="newline after"),
        pytest.param("lap\ttop", id="tab"),
        pytest.param("lap\0top", id="NUL"),
        pytest.param("laptop\x7f", id="DEL"),
        pytest.param("l\u00e4ptop", id="Latin-1"),
        pytest.param("\uff4captop", id="full-width"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("x" * 3_000_000, id="3 MB"),
    ],
)
def test_no_device(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Context.of(device=text)
    assert len(str(caught.value)) < 200


@given(any_text)
def test_any_text_is_a_device_or_refused(text: str) -> None:
    fine = 1 <= len(text) <= 128 and all(" " <= c <= "~" for c in text)
    try:
        hash_device(text)
    except InvalidInput:
        assert not fine
    else:
        assert fine


# --- ids -------------------------------------------------------------------------------------

HEX = "0190a3c4d5e67f80a1b2c3d4e5f60718"
DASHED = "0190a3c4-d5e6-7f80-a1b2-c3d4e5f60718"
RAW = bytes.fromhex(HEX)


def test_ids_as_they_are_written() -> None:
    assert ids.token_id(RAW) == f"rt_{HEX}"
    assert ids.user_id(RAW) == f"usr_{HEX}"
    assert ids.to_bytes(f"rt_{HEX}") == ids.to_bytes(f"usr_{HEX}") == RAW


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"rt_{HEX}", id="canonical"),
        pytest.param(HEX, id="hex"),
        pytest.param(DASHED, id="UUID"),
        pytest.param(f"rt_{DASHED}", id="UUID with prefix"),
        pytest.param(HEX.upper(), id="uppercase hex"),
        pytest.param(DASHED.upper(), id="uppercase UUID"),
        pytest.param(f"RT_{HEX.upper()}", id="all uppercase"),
    ],
)
def test_a_pasted_token_id(text: str) -> None:
    assert ids.parse_token_id(text) == f"rt_{HEX}"


@pytest.mark.parametrize("text", [f"usr_{HEX}", HEX, DASHED, f"usr_{DASHED}", f"USR_{HEX.upper()}"])
def test_a_pasted_user_id(text: str) -> None:
    assert ids.parse_user_id(text) == f"usr_{HEX}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("rt_", id="prefix only"),
        pytest.param(f"usr_{HEX}", id="another kind's prefix"),
        pytest.param(f"rt_rt_{HEX}", id="prefix twice"),
        pytest.param(f"rt{HEX}", id="prefix without its line"),
        pytest.param(HEX[:-1], id="31 digits"),
        pytest.param(HEX + "0", id="33 digits"),
        pytest.param(HEX[:-1] + "g", id="no hex digit"),
        pytest.param(HEX + "\n", id="newline after"),
        pytest.param(f"rt_{HEX}\n", id="newline after the canonical form"),
        pytest.param(f" {HEX}", id="space before"),
        pytest.param(f"{HEX} ", id="space after"),
        pytest.param(HEX[:-1] + "\0", id="NUL"),
        pytest.param(DASHED.replace("-", "", 1), id="a dash missing"),
        pytest.param(DASHED.replace("-", "\u2010"), id="typographic hyphens"),
        pytest.param("0-190a3c4d5e6-7f80-a1b2-c3d4e5f60718", id="dashes elsewhere"),
        pytest.param(DASHED + "-", id="dash after"),
        pytest.param("{" + DASHED + "}", id="in braces"),
        pytest.param("urn:uuid:" + DASHED, id="URN"),
        pytest.param("0x" + HEX[2:], id="0x"),
        pytest.param("+" + HEX[1:], id="sign"),
        pytest.param(HEX[:4] + "_" + HEX[5:], id="underscore"),
        pytest.param(HEX.replace("1", "\u0661"), id="Arabic digits"),
        pytest.param(HEX.replace("1", "\uff11"), id="full-width digits"),
        pytest.param("\u212a" + HEX[1:], id="Kelvin sign"),
        pytest.param("r\u0442_" + HEX, id="Cyrillic prefix"),
        pytest.param("\ud800" * 32, id="lone surrogates"),
        pytest.param("0" * 3_000_000, id="3 MB"),
    ],
)
def test_no_token_id(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ids.parse_token_id(text)
    assert len(str(caught.value)) < 700
    assert "rt_" in caught.value.hint


def test_no_user_id() -> None:
    for text in (f"rt_{HEX}", f"usr_{HEX}\n", "ada", ""):
        with pytest.raises(InvalidInput):
            ids.parse_user_id(text)


@given(any_text)
def test_any_text_is_an_id_or_refused(text: str) -> None:
    try:
        ids.parse_token_id(text)
    except InvalidInput:
        return
    pytest.fail("a text that was not made as an id is one")


@given(st.binary(min_size=16, max_size=16))
def test_any_id_survives_every_spelling(raw: bytes) -> None:
    dashed = str(uuid.UUID(bytes=raw))
    for text in (ids.token_id(raw), raw.hex(), dashed, dashed.upper()):
        assert ids.parse_token_id(text) == ids.token_id(raw)
    assert ids.to_bytes(ids.token_id(raw)) == raw


instants = st.integers(0, (1 << 48) * 1000 - 1)
ten_bytes = st.binary(min_size=10, max_size=10)


@given(instants, ten_bytes)
def test_an_id_is_a_uuid_of_version_7(now: int, random: bytes) -> None:
    raw = ids.uuid7(now, random)
    read = uuid.UUID(bytes=raw)
    assert read.version == 7
    assert read.variant == uuid.RFC_4122
    assert int.from_bytes(raw[:6], "big") == now // 1000


def test_an_id_of_zeros_and_ones() -> None:
    assert ids.uuid7(0, bytes(10)).hex() == "00000000000070008000000000000000"
    assert ids.uuid7((1 << 48) * 1000 - 1, b"\xff" * 10).hex() == "ffffffffffff7fffbfffffffffffffff"
    # RFC 9562 appendix A.6, whose random parts are 0xCC3 and 0x18C4DC0C0C07398F.
    random = (0xCC3 << 62 | 0x18C4DC0C0C07398F).to_bytes(10, "big")
    assert (
        str(uuid.UUID(bytes=ids.uuid7(0x017F22E279B0 * 1000, random)))
        == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
    )


@given(instants, ten_bytes, instants, ten_bytes)
def test_ids_are_in_order_of_time(one: int, one_random: bytes, other: int, other_random: bytes) -> None:
    first, second = sorted([(one, one_random), (other, other_random)])
    if first[0] // 1000 < second[0] // 1000:
        assert ids.uuid7(*first) < ids.uuid7(*second)


@pytest.mark.parametrize("bit", range(74))
def test_each_of_74_random_bits_counts(bit: int) -> None:
    assert ids.uuid7(0, (1 << bit).to_bytes(10, "big")) != ids.uuid7(0, bytes(10))
