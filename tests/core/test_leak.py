"""Strings in the middle of anything, in each spelling; and nothing that only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenctl.core.leak import LONGEST, find, masked
from tokenctl.core.token_string import LENGTH, PresentedToken, mint, parse_unverified

KEY = b"k" * 32
TOKENS = st.builds(
    mint,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16),
    st.just(KEY),
)
#: Each is what a string may have become on its way, as pairs of what `_` and `-` are written like.
SPELLINGS = [
    ("_", "-"),
    ("%5F", "%2D"),
    ("%5f", "%2d"),
    ("%255F", "%252D"),
    ("_", "%2D"),
    ("%5F", "-"),
    ("\\u005f", "\\u002d"),
    ("\\u005F", "\\u002D"),
    ("\\\\u005f", "\\\\u002d"),
    ("_", "\\u002d"),
]
ONE = mint(b"\xff" * 16, 2**32 - 1, b"\xfb\xef\xbe" * 5 + b"\xff", KEY)  # many _ and -


def spelled(token: str, spelling: tuple[str, str]) -> bytes:
    return token.replace("-", "\0").replace("_", spelling[0]).replace("\0", spelling[1]).encode()


def tokens_in(text: bytes, key: bytes | None = None) -> list[PresentedToken]:
    return [found.token for found in find(text, key)]


@given(before=st.binary(max_size=50), token=TOKENS, after=st.binary(max_size=50))
@example(b"tkr1_" * 20, ONE, b"A" * 90)
@example(b"tkr1", ONE, b"")
@example(b"%5F_\\" * 150, ONE, b"")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found_between_any_bytes(
    spelling: tuple[str, str], before: bytes, token: str, after: bytes
) -> None:
    middle = spelled(token, spelling)
    [found] = find(before + middle + after)
    assert found == (len(before), len(before) + len(middle), parse_unverified(token), False)


def test_no_spelling_is_longer_than_it_says() -> None:
    assert len("tkr1") + (LENGTH - len("tkr1")) * len("\\\\u005f") <= LONGEST


def test_strings_that_touch_are_two() -> None:
    assert len(tokens_in(2 * ONE.encode())) == 2


@given(text=st.text(alphabet="tkr1_%5F\\u0-A\n", max_size=400).map(str.encode) | st.binary(max_size=400))
def test_noise_is_nothing(text: bytes) -> None:
    assert tokens_in(text) == []


@given(token=TOKENS, at=st.integers(5, LENGTH - 1), character=st.sampled_from("Ab7_-"))
def test_a_broken_checksum_is_nothing(token: str, at: int, character: str) -> None:
    broken = token[:at] + character + token[at + 1 :]
    assert tokens_in(broken.encode()) == ([parse_unverified(token)] if broken == token else [])


@given(token=TOKENS, length=st.integers(0, LENGTH - 1))
def test_a_part_is_nothing(token: str, length: int) -> None:
    assert tokens_in(f"{token[:length]} {token[LENGTH - length :]}".encode()) == []


def test_the_key_tells_what_is_forged() -> None:
    text = ONE.encode()
    assert [found.forged for key in (None, KEY, b"x" * 32) for found in find(text, key)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_nothing_of_a_string_is_left_by_masking(spelling: tuple[str, str]) -> None:
    text, part = (spelled(each, spelling).decode() for each in (ONE, ONE[:60]))
    assert masked(f"a/{text}.log") == "a/tkr1_….log"
    assert masked(f"a/{part}/b") == "a/tkr1_…/b"
    assert masked("a/tkr2_b") == "a/tkr2_b"
