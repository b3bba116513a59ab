"""Lines of the log."""

from __future__ import annotations

import pytest
import structlog

from app.kit import logs


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"method": "GET", "route": "/unlearn-jobs/{job_id}", "status": 200, "request_id": "req_1"},
        {"none": None, "empty": "", "list": ["a b"], "false": False, "umlaut": "ä"},
        {"space": "a b", "equals": "a=b", "lines": "a\n12:00:00 [info     ] b", "quotes": "\"'", "tab": "\t"},
    ],
)
@pytest.mark.parametrize("level", ["info", "critical"])
def test_a_line_is_what_structlog_would_write(entry: dict[str, object], level: str) -> None:
    whole = {"timestamp": "12:00:00", "level": level, "event": "two words", **entry}
    renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    assert logs.line(None, level, dict(whole)) == renderer(None, level, dict(whole))
