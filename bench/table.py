"""What the benchmarks share: their table, the line that says on what they ran."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
from collections.abc import Iterable, Sequence

import sqlalchemy


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser with `--quick`, the smoke run: it shows that the benchmark works, and no figure of use."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures say nothing")
    return parser


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> None:
    """Print the one table of a benchmark as Markdown: names to the left, figures to the right."""
    body = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    lines = [_line(header, widths), "|" + "|".join(_rule(i, width) for i, width in enumerate(widths)) + "|"]
    lines += [_line(row, widths) for row in body]
    lines += ["", f"{title} {environment()}", *notes]
    sys.stdout.write("\n".join(lines) + "\n")


def environment() -> str:
    """The versions and the size of the machine, since no figure means anything without them."""
    return (
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"SQLAlchemy {sqlalchemy.__version__}, {os.cpu_count()} CPUs."
    )


def ratio(figure: float, base: float) -> str:
    """How many times `base` a figure is."""
    return f"{figure / base:.2f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "| " + " | ".join(aligned) + " |"


def _rule(column: int, width: int) -> str:
    return "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"
