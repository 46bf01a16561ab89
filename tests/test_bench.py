"""The benchmarks work; what they measure is no matter of a test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Account, find_programs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def path() -> Iterator[str]:
    """PATH with PostgreSQL's programs first: those that the tests use, where every user reaches them."""
    programs, account = find_programs(), Account.here()
    with tempfile.TemporaryDirectory(prefix="tokenctl-bench-") as name:
        if programs.trees and not programs.reachable(account):
            Path(name).chmod(0o755)
            programs = programs.copied(Path(name) / "programs")
        yield f"{programs.bin}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "name",
    ["startup", "rotate", "purge", "http", "http_postgres", "login", "scan", "revoke", "incident", "seal"],
)
def test_a_benchmark_runs_and_prints_its_table(name: str, path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--quick"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    _demand_table(done.stdout)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--database", "postgresql"], id="postgresql"),
        pytest.param(["--beside", "4"], id="beside, sqlite"),
        pytest.param(["--beside", "4", "--database", "postgresql"], id="beside, postgresql"),
        pytest.param(["--peers"], id="peers"),
    ],
)
def test_so_do_the_other_tables_of_the_purge(options: list[str], path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.purge", "--quick", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    _demand_table(done.stdout)


def _demand_table(printed: str) -> None:
    header, rule, *_ = printed.splitlines()
    assert header.startswith("| ")
    assert rule.startswith("|-")
    assert f"Python {sys.version_info.major}." in printed
