"""Reading the two clocks of `core.Moment`."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from tokenctl.client.core import Moment

# `time.monotonic` stands still while a laptop sleeps, and an access token does not. On Linux the clock that
# goes on has this name, on macOS it is CLOCK_MONOTONIC itself.
_RUNNING = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def now() -> Moment:
    """This instant."""
    running = time.monotonic() if _RUNNING is None else time.clock_gettime(_RUNNING)
    return Moment(running=running, wall=time.time(), boot=_boot())


@cache
def _boot() -> str | None:
    """Which start of the machine this is, where the kernel tells (Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except OSError:
        return None
