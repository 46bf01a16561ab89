"""`tokenctl purge`: made for cron, so it never asks, stops cleanly, and tells what it did in one line."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from tokenctl.cli import options
from tokenctl.cli.interrupt import stoppable
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, amount, instant

_SUMMARY = [
    Column("purged"),
    Column("batches"),
    Column("seconds"),
    instant("dead_since"),
    Column("complete"),
    Column("dry_run"),
]
_PROGRESS_EVERY = 1.0  # seconds between two lines of -o jsonl


@command(
    app,
    "purge",
    example="tokenctl purge --json --max-runtime 5m\ntokenctl purge --dry-run --retention 30d",
)
def purge(
    run: Run,
    *,
    retention: Annotated[
        str | None,
        typer.Option(
            "--retention",
            metavar="DURATION",
            help="Keep what died within this; default: the setting purge_retention.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, max=100_000, help="Rows in a transaction.")
    ] = 1_000,
    max_runtime: Annotated[
        str | None,
        typer.Option("--max-runtime", metavar="DURATION", help="Stop after the batch then in hand."),
    ] = None,
    lock_wait: Annotated[
        str, typer.Option("--lock-wait", metavar="DURATION", help="Wait for another purge to end.")
    ] = "0s",
    force: Annotated[bool, typer.Option("--force", help="Even when the clock looks wrong.")] = False,
    dry_run: options.DryRun = False,
) -> int:
    """Delete refresh tokens that have been dead for longer than the retention, in small batches.

    Never a live one. A second run at the same time exits 11; an interrupted one goes on the next time.
    """
    run.out.expect(_SUMMARY)
    with stoppable() as stop, run.out.progress("purging") as advance:
        reporter = _Reporter(run, advance)
        done = run.service.purge(
            retention=options.duration(retention),
            batch=batch,
            dry_run=dry_run,
            force=force,
            max_runtime=options.duration(max_runtime),
            lock_wait=options.required_duration(lock_wait),
            stop=stop,
            progress=reporter,
        )
    record = {column.name: getattr(done, column.name) for column in _SUMMARY}
    run.out.summary(record, _SUMMARY, _sentence(record))
    return stop.exit_code


def _sentence(record: dict[str, Any]) -> str:
    if record["dry_run"]:
        return f"would purge {record['purged']:,} · {record['seconds']:.1f} s"
    batches = amount(record["batches"], "batch")
    left = "" if record["complete"] else " · stopped early, the next run goes on"
    return f"purged {record['purged']:,} in {batches}, {record['seconds']:.1f} s{left}"


class _Reporter:
    """Progress for a person on a terminal, or as JSON lines."""

    def __init__(self, run: Run, advance: Any) -> None:
        self._run = run
        self._advance = advance
        self._shown = 0
        self._last = float("-inf")  # the first line tells at once how much was found

    def __call__(self, purged: int, total: int) -> None:
        self._advance(purged - self._shown, total)
        self._shown = purged
        if self._run.out.format == "jsonl" and time.monotonic() - self._last >= _PROGRESS_EVERY:
            self._last = time.monotonic()
            self._run.out.one({"purged": purged, "found": total}, [Column("purged"), Column("found")])
            self._run.out.flush()
