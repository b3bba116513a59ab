"""Structured logs on standard output. Callers log ids, counts and words of their own, never what was sent."""

from __future__ import annotations

import logging
import re
import sys
import traceback

import structlog
from structlog.typing import EventDict, WrappedLogger

# What would make a value look like two, or like a line of its own.
_QUOTED = re.compile(r"[\s=\"']")


def places(error: BaseException) -> list[str]:
    """Where an exception came from, innermost last, without its text, which may quote a record."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]


def configure() -> None:
    """One line per event: time, level, words, then key=value."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )


def line(_logger: WrappedLogger, _method: str, entry: EventDict) -> str:
    """An event as one line, as structlog's renderer for consoles writes it, which takes three times as long."""
    start = f"{entry.pop('timestamp')} [{entry.pop('level'):<9}] {entry.pop('event')}"
    return " ".join([start, *(f"{name}={_shown(entry[name])}" for name in sorted(entry))])


def _shown(value: object) -> str:
    return value if isinstance(value, str) and not _QUOTED.search(value) else repr(value)
