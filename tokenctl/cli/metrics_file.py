"""A file for the textfile collector of Prometheus' node_exporter: the figures of a job that ends.

Owns the text format, and that a reader always finds a whole file. What the figures are is the command's
affair. Written by hand: the client library is the server's, and its import would cost every run.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tokenctl.errors import InvalidInput

_MODE = 0o644  # the collector is another user
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Gauge(NamedTuple):
    """One figure; one whose value is None is not known, and left out."""

    name: str
    help: str
    value: float | None


def demand_writable(path: Path) -> None:
    """Find out before anything is done whether `write` will be able to. Raises InvalidInput, OSError."""
    if not path.parent.is_dir():
        raise InvalidInput(
            f"{path} cannot be written: there is no directory {path.parent}", hint=f"mkdir -p {path.parent}"
        )
    # A rename would replace whatever stands there, a device too.
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise InvalidInput(
            f"{path} is no regular file", hint="name a file that is not there yet, such as purge.prom"
        )
    building = _beside(path)
    try:
        building.touch(exist_ok=False)
        building.unlink()
    except OSError as error:
        # Named is the directory: its owner and mode are what to look at.
        raise OSError(error.errno, error.strerror, str(path.parent)) from None


def write(path: Path, gauges: Iterable[Gauge], labels: Mapping[str, str]) -> None:
    """Replace the file, whole, with a mode that everybody may read. Raises OSError."""
    building = _beside(path)
    try:
        with building.open("x", encoding="utf-8") as file:
            file.write("".join(_lines(gauge, labels) for gauge in gauges))
            os.fchmod(file.fileno(), _MODE)
            file.flush()
            # Without it a machine that fails may leave an empty file under the name.
            os.fsync(file.fileno())
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


def value_before(path: Path, name: str) -> float | None:
    """What the file that is there says of that figure; None when it says nothing, or there is none."""
    try:
        found = re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return float(found[1]) if found else None
    except (OSError, ValueError):  # somebody else's file under this name: ours replaces it
        return None


def _lines(gauge: Gauge, labels: Mapping[str, str]) -> str:
    if gauge.value is None:
        return ""
    said = ",".join(f'{name}="{_printable(value)}"' for name, value in labels.items())
    return (
        f"# HELP {gauge.name} {gauge.help}\n# TYPE {gauge.name} gauge\n{gauge.name}{{{said}}} {gauge.value}\n"
    )


def _printable(value: str) -> str:
    r"""A label's value; a path that is no UTF-8 arrives as lone surrogates, which no reader takes."""
    return value.encode("utf-8", "backslashreplace").decode().translate(_ESCAPES)


def _beside(path: Path) -> Path:
    """A name that the collector does not read (it takes *.prom), and that nobody else has."""
    return path.with_name(f"{path.name}.new-{secrets.token_hex(8)}")
