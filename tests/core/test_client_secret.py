"""The text of a client's secret, and what is stored of it."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenctl.core.client_secret import format_secret, hash_secret

RAW = bytes(range(32))
TEXT = "tks1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


def test_the_form_is_pinned() -> None:
    assert format_secret(RAW) == TEXT
    assert hash_secret(TEXT) == hashlib.sha256(RAW).digest()


@given(st.binary(min_size=32, max_size=32))
def test_every_secret_has_the_hash_of_its_bytes(raw: bytes) -> None:
    assert hash_secret(format_secret(raw)) == hashlib.sha256(raw).digest()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(TEXT[:-1], id="too short"),
        pytest.param(TEXT + "A", id="too long"),
        pytest.param(TEXT + "\n", id="a newline"),
        pytest.param(TEXT.replace("tks1", "tkm1"), id="a master key"),
        pytest.param(TEXT[:-1] + "9", id="another spelling of the last character"),
        pytest.param(TEXT[:-1] + "=", id="padding"),
        pytest.param("tks1_" + "\uff21" * 43, id="wide letters"),
        pytest.param("tks1_" + "\ud800" * 43, id="half surrogates"),
        pytest.param("tks1_" + "\0" * 43, id="NUL"),
    ],
)
def test_nothing_else_has_one(text: str) -> None:
    assert hash_secret(text) is None


@given(st.one_of(st.text(), st.text().map("tks1_".__add__)))
def test_no_text_raises(text: str) -> None:
    assert hash_secret(text) is None
