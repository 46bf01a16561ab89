"""docs/client.md: its first snippet runs, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tokenctl.client
from tests.http.spawned import Spawned

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
_PYTHON = re.compile(r"(?<=^```python\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


def test_the_snippet_runs(
    server: Spawned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
    code = _PYTHON.findall(PAGE)[0].replace("8460", str(server.port))
    exec(compile(code, "client.md", "exec"), {})
    assert [capsys.readouterr().out.strip()] == re.findall(r"print\(.*# (.*)", code)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokens.json.lock"]


def test_the_other_snippets_run() -> None:
    _, *others = _PYTHON.findall(PAGE)
    assert len(others) == 2
    names: dict[str, object] = {"TokenAuth": tokenctl.client.TokenAuth}
    for code in others:
        exec(compile(code, "client.md", "exec"), names)


def test_every_error_is_on_the_page() -> None:
    errors = {
        name
        for name in tokenctl.client.__all__
        if isinstance(found := getattr(tokenctl.client, name), type) and issubclass(found, Exception)
    }
    assert {name for name in errors if f"`{name}`" not in PAGE} <= {"TokenClientError"}
    assert "`TokenClientError`s" in PAGE
