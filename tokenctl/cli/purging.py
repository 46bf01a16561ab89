"""`tokenctl purge`: made for cron, so it never asks, stops cleanly, and tells what it did in one line."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options
from tokenctl.cli.interrupt import stoppable
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, amount, instant
from tokenctl.errors import Interrupted, InvalidInput

if TYPE_CHECKING:
    from tokenctl.cli.metrics_file import Gauge

_SUMMARY = [
    Column("purged"),
    Column("batches"),
    Column("seconds"),
    instant("dead_since"),
    Column("complete"),
    Column("dry_run"),
    Column("size_bytes"),
    Column("free_bytes"),
    Column("vacuumed"),
]
_PROGRESS = [Column("purged"), Column("found"), Column("seconds")]
_PROGRESS_EVERY = 1.0  # seconds between two lines of -o jsonl
_MUCH_FREE = 64_000_000  # bytes; less is not worth a word
_LOCKED = 11  # the exit code of a run that found another one at work
_LAST_SUCCESS = "tokenctl_purge_last_success_timestamp_seconds"


@command(
    app,
    "purge",
    example="tokenctl purge --json --max-runtime 5m\n"
    "tokenctl purge --dry-run --retention 30d\n"
    "tokenctl purge --metrics-file /var/cache/tokenctl/purge.prom",
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
    ] = 2_000,
    max_runtime: Annotated[
        str | None,
        typer.Option("--max-runtime", metavar="DURATION", help="Stop after the batch then in hand."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", metavar="N", min=1, help="Stop after so many rows.")
    ] = None,
    lock_wait: Annotated[
        str, typer.Option("--lock-wait", metavar="DURATION", help="Wait for another purge to end.")
    ] = "0s",
    vacuum: Annotated[
        bool, typer.Option("--vacuum", help="Give the space back to the file system at the end.")
    ] = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-file",
            metavar="FILE",
            help="Write figures for Prometheus' node_exporter; named *.prom.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Even when the clock looks wrong.")] = False,
    dry_run: options.DryRun = False,
) -> int:
    """Delete refresh tokens that have been dead for longer than the retention, in small batches.

    Never a live one. A second run at the same time exits 11; an interrupted one goes on the next time.
    """
    run.out.expect(_SUMMARY)
    if dry_run and metrics_file is not None:
        raise InvalidInput(
            "a dry run purges nothing, so there is nothing to measure", hint="leave out --metrics-file"
        )
    done = None
    with _measured(run, metrics_file) as ended:
        with stoppable() as stop, suppress(Interrupted), run.out.progress("purging") as advance:
            done = run.service.purge(
                retention=options.duration(retention),
                batch=batch,
                dry_run=dry_run,
                force=force,
                max_runtime=options.duration(max_runtime),
                max_rows=max_rows,
                vacuum=vacuum,
                lock_wait=options.required_duration(lock_wait),
                stop=stop,
                progress=_Reporter(run, advance) if _is_watched(run) else None,
            )
        if done is None:  # stopped before it was its turn
            signal.raise_signal(stop.signal_number)
        record = {column.name: getattr(done, column.name) for column in _SUMMARY}
        ended.record, ended.exit_code = record, stop.exit_code
        run.out.summary(record, _SUMMARY, _sentence(record))
    return stop.exit_code


def _is_watched(run: Run) -> bool:
    """Whether anybody sees progress: counting all rows first costs as much as finding them."""
    return run.out.format == "jsonl" or (sys.stderr.isatty() and not run.out.quiet)


def _sentence(record: dict[str, Any]) -> str:
    if record["dry_run"]:
        return f"would purge {record['purged']:,} · {record['seconds']:.1f} s"
    batches = amount(record["batches"], "batch")
    left = "" if record["complete"] else " · stopped early, the next run goes on"
    return f"purged {record['purged']:,} in {batches}, {record['seconds']:.1f} s{left}{_space(record)}"


def _space(record: dict[str, Any]) -> str:
    """What is said of the size: when it was changed, or when changing it would pay."""
    size, free = record["size_bytes"], record["free_bytes"]
    if record["vacuumed"]:
        return f" · vacuumed: {_megabytes(size)}"
    if free is not None and free >= _MUCH_FREE and free * 2 > size:
        return f" · {_megabytes(free)} of {_megabytes(size)} are free; --vacuum gives them back"
    return ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


class _Reporter:
    """Progress for a person on a terminal, or as JSON lines."""

    def __init__(self, run: Run, advance: Any) -> None:
        self._run = run
        self._advance = advance
        self._shown = 0
        self._began = time.monotonic()
        self._last = float("-inf")  # the first line tells at once how much was found

    def __call__(self, purged: int, total: int) -> None:
        self._advance(purged - self._shown, total)
        self._shown = purged
        now = time.monotonic()
        # With --fields what is chosen is of the summary.
        told = self._run.out.format == "jsonl" and not self._run.out.fields
        if told and now - self._last >= _PROGRESS_EVERY:
            self._last = now
            record = {"purged": purged, "found": total, "seconds": round(now - self._began, 3)}
            self._run.out.one(record, _PROGRESS)
            self._run.out.flush()


# --- what is measured --------------------------------------------------------------------------


class _Ended:
    """How the run ended; `record` is None for one that failed."""

    record: dict[str, Any] | None = None
    exit_code = 0


@contextmanager
def _measured(run: Run, path: Path | None) -> Iterator[_Ended]:
    """Leave a metrics file behind, however the block ends; but for a run that found another one at work.

    Raises what `demand_writable` does, before the block.
    """
    ended = _Ended()
    if path is None:
        yield ended
        return
    from tokenctl.cli.metrics_file import demand_writable, value_before, write
    from tokenctl.settings import mask_password

    # Two databases on one machine: without the label the collector would refuse both files.
    labels = {"database": mask_password(run.settings.database)}
    demand_writable(path)
    began = time.monotonic()

    def leave() -> None:
        write(path, _gauges(ended, time.monotonic() - began, value_before(path, _LAST_SUCCESS)), labels)

    try:
        yield ended
    except BaseException as error:
        if ended.record is not None:  # purged, and only not told
            leave()
            raise
        from tokenctl.cli.main import exit_code

        ended.exit_code = exit_code(type(error))
        if ended.exit_code != _LOCKED:
            try:
                leave()
            except OSError as failure:  # what the run died of is told, and not what came of it
                run.out.warn(f"{path} was not written: {failure.strerror}")
        raise
    leave()


def _gauges(ended: _Ended, seconds: float, last_success: float | None) -> list[Gauge]:
    """The figures of a run; `last_success` is what the file said before."""
    from tokenctl.cli.metrics_file import Gauge

    now = round(time.time(), 3)
    record = ended.record or {"complete": False}
    get: Callable[[str], Any] = record.get
    return [
        Gauge("tokenctl_purge_last_run_timestamp_seconds", "When a purge last ended.", now),
        Gauge(_LAST_SUCCESS, "When a purge last ended well.", now if not ended.exit_code else last_success),
        Gauge("tokenctl_purge_last_exit_code", "How the last purge ended; 0 is well.", ended.exit_code),
        Gauge("tokenctl_purge_duration_seconds", "How long the last purge took.", round(seconds, 3)),
        Gauge("tokenctl_purge_complete", "1 when nothing was left to purge.", int(record["complete"])),
        Gauge("tokenctl_purge_rows", "Rows that the last purge deleted.", get("purged")),
        Gauge("tokenctl_purge_batches", "Transactions of the last purge.", get("batches")),
        Gauge(
            "tokenctl_purge_database_size_bytes",
            "The SQLite file, or the table of logins.",
            get("size_bytes"),
        ),
        Gauge("tokenctl_purge_database_free_bytes", "How much of that is free.", get("free_bytes")),
    ]
