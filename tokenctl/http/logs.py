"""The server's log: one JSON object a line on stderr, for each request and for what else happens.

Owns the form of a line, and that no token or password reaches one: a request is logged by its route and its
request id, never by its address, headers or body, and what looks like a token is masked wherever it stands.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRET = re.compile(r"(tk[rms]1_|eyJ)[\w-]{8,}(?:\.[\w-]+)*")


#: Writes the line of one request.
WriteLine = Callable[[dict[str, Any]], None]


def configure(*, for_people: bool = False) -> WriteLine:
    """Send everything, uvicorn's and Python's own logging included, through structlog to stderr.

    What is returned writes the line of a request: that is on the way of every refresh, so JSON goes straight
    to stderr.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if for_people
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([] if for_people else [structlog.processors.format_exc_info]),
            _mask,
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.INFO
    for chatty in ("uvicorn", "alembic"):  # they tell of themselves; what matters of it is said by us
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not for_people:
        return write_json
    structlog.configure(
        processors=[*shared, renderer], logger_factory=structlog.WriteLoggerFactory(sys.stderr)
    )
    logger = structlog.get_logger()
    return lambda line: logger.info("request", **line)


def write_json(line: dict[str, Any]) -> None:
    """One JSON object on stderr."""
    event = {"event": "request", "level": "info", "time": datetime.now(UTC), **line}
    with suppress(OSError):  # a log that cannot be written must not cost an answer
        sys.stderr.write(msgspec.json.encode(event).decode() + "\n")
        sys.stderr.flush()


def _json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def _mask(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """In free text only: what a request's own line holds was chosen."""
    for key in ("event", "exception"):
        if isinstance(text := event.get(key), str):
            event[key] = masked(text)
    return event


def masked(text: str) -> str:
    """The text with what looks like a token or a client's secret cut to its first letters."""
    return _SECRET.sub(r"\1…", text)
