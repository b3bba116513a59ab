"""Who gets HTML or an event stream, and who gets JSON."""

from __future__ import annotations

import pytest

from app.kit.negotiation import EVENT_STREAM, HTML, prefers

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/html; charset=utf-8", True),
        ("text/*", True),
        ("text/html;q=0.5", True),
        ("application/json;q=0.8, text/html;q=0.9", True),
        ("*/*;q=0.1, text/html", True),
        ("application/json;q=0, */*", True),
        ("image/png,text/html", True),
        ("text/html , application/json ; q=0.999", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/*", False),
        ("text/html, application/json", False),
        ("text/html;q=0.9, application/json", False),
        ("text/html;q=0", False),
        ("text/html;q=0.0, */*", False),
        ("text/html;q=0, */*;q=0.1", False),
        ("text/*;q=0.4, */*;q=0.5", False),
        ("text/html;q=0, text/*", False),
        ("text/html;q=0.8, */*", False),
        ("text/html;q=2", False),
        ("text/html;q=yes", False),
        ("text/plain", False),
        ("image/png", False),
        (",,;;,", False),
    ],
)
def test_the_more_wanted_of_both_is_sent_and_json_when_in_doubt(accept: str, html: bool) -> None:
    assert prefers(HTML, accept) is html


@pytest.mark.parametrize(
    ("accept", "stream"), [("text/event-stream", True), ("*/*", False), ("", False), (BROWSER, False)]
)
def test_a_stream_goes_to_who_names_it(accept: str, stream: bool) -> None:
    assert prefers(EVENT_STREAM, accept) is stream
