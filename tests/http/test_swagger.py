"""The API's page comes from local files, which are what their authors published."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import tokenctl

DIRECTORY = Path(tokenctl.__file__).parent / "http" / "swagger"
OURS = ["index.html", "init.js"]
_LISTED = (DIRECTORY / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
_SUMS = {name: digest for digest, name in (line.split("  ", 1) for line in _LISTED)}


def test_every_file_is_ours_or_has_a_checksum() -> None:
    there = {file.name for file in DIRECTORY.iterdir()}
    assert there == {*_SUMS, *OURS, "SHA256SUMS", "VERSION"}


@pytest.mark.parametrize("name", _SUMS)
def test_vendored_file_is_unchanged(name: str) -> None:
    assert hashlib.sha256((DIRECTORY / name).read_bytes()).hexdigest() == _SUMS[name]


def test_the_licence_is_there_and_the_version_is_exact() -> None:
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"} <= set(_SUMS)
    version = (DIRECTORY / "VERSION").read_text(encoding="utf-8")
    assert re.fullmatch(r"swagger-ui-dist@5\.\d+\.\d+\n", version)


@pytest.mark.parametrize("name", OURS)
def test_our_files_refer_to_no_other_host(name: str) -> None:
    text = (DIRECTORY / name).read_text(encoding="utf-8")
    # With a scheme or without: `//host` is a host, too. A comment of JavaScript has a space there.
    assert not re.findall(r"//[^\s/]|\b(?:https?|wss?|data|blob):", text)
    assert all(path.startswith("/") for path in re.findall(r'(?:src|href|url)(?:=|: )"([^"]*)"', text))


def test_what_our_files_load_is_there() -> None:
    page = (DIRECTORY / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'"/docs/([^"]+)"', page)
    assert {"swagger-ui.css", "swagger-ui-bundle.js", "init.js"} <= set(loaded)
    assert [name for name in loaded if not (DIRECTORY / name).is_file()] == []


def test_the_page_needs_no_inline_script_or_style() -> None:
    page = (DIRECTORY / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|\bstyle=|\bon\w+=|javascript:", page) == []
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == ["", ""]
    assert re.findall(r"<script(?![^>]* src=)", page) == []


def test_the_validator_of_another_host_is_off() -> None:
    # Without this line Swagger UI tells validator.swagger.io where the document is.
    assert "  validatorUrl: null,\n" in (DIRECTORY / "init.js").read_text(encoding="utf-8")
