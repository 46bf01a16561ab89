"""Every use case is tried on each of the databases."""

from __future__ import annotations

import pytest

from tests.conftest import KINDS


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
