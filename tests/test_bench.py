"""The benchmarks work; what they measure is no matter of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["startup", "rotate", "purge", "http", "http_postgres", "login"])
def test_a_benchmark_runs_and_prints_its_table(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--quick"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, rule, *_ = done.stdout.splitlines()
    assert header.startswith("| ")
    assert rule.startswith("|-")
    assert f"Python {sys.version_info.major}." in done.stdout
