"""Reading Server-Sent Events, with the specification's own examples."""

from __future__ import annotations

import pytest

from app.kit.event_source import Message, messages


def read(stream: str, size: int = 1000) -> list[Message]:
    """The messages of a stream that comes in chunks of that many bytes."""
    raw = stream.encode()
    return list(messages(raw[at : at + size] for at in range(0, len(raw), size)))


def test_lines_of_data_are_joined() -> None:
    assert read("data: YHOO\ndata: +2\ndata: 10\n\n") == [Message(None, "message", "YHOO\n+2\n10")]


def test_comments_fields_without_a_colon_and_blanks() -> None:
    stream = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
    assert read(stream) == [
        Message("1", "message", "first event"),
        Message("", "message", "second event"),
        Message("", "message", " third event"),
    ]


def test_what_has_no_data_is_no_message_and_its_id_counts() -> None:
    assert read("retry: 2000\n\nevent: x\nid: 7\n\ndata: a\n\n") == [Message("7", "message", "a")]


def test_a_message_that_was_cut_is_left_out() -> None:
    assert read("data: whole\n\ndata: cut\n") == [Message(None, "message", "whole")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_chunks_may_break_anywhere_and_only_three_things_end_a_line(end: str, size: int) -> None:
    # U+2028 and U+0085 end lines elsewhere.
    stream = f"id: 1{end}event: status{end}data: é\u2028\u0085€{end}{end}data: b{end}{end}:{end}{end}"
    expected = [Message("1", "status", "é\u2028\u0085€"), Message("1", "message", "b")]
    assert read(stream, size) == expected
