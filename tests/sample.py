"""The sample database of the repository, and what its bearers hold."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tokenctl.service.sample import build_sample

SAMPLE = Path(__file__).parents[1] / "sample.db"


@cache
def sample_strings() -> dict[str, str]:
    """The current string of each login by its id; they stand nowhere, so this builds the sample once more."""
    with tempfile.TemporaryDirectory() as directory:
        return build_sample(Path(directory) / "sample.db")
