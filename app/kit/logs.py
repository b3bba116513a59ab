"""Structured logs on standard output. Callers log ids, counts and words of their own, never what was sent."""

from __future__ import annotations

import logging
import sys
import traceback

import structlog


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
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
