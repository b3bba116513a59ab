"""Writes docs/api/problems.md from the registry: ``make docs``, or ``python -m app.problems.reference``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from app.problems.codes import CODES, Code

_HEAD = """\
# Errors: every code

This page is generated from `app/problems/codes.py` by `make docs`; a test fails when it is out of date. The service
answers the same: `GET /problems` lists the codes, and `GET /problems/{code}`, to which the `type` of every error
points, is one of them, as JSON or, with `Accept: text/html`, as a page. Neither needs a key.
"""


def reference() -> str:
    """The page."""
    answers = [code for code in CODES.values() if code.status is not None]
    jobs = [code for code in CODES.values() if code.of_jobs]
    return "\n".join((_HEAD, *_answers(answers), *_jobs(jobs), ""))


def _answers(codes: list[Code]) -> Iterator[str]:
    yield "## Codes of answers\n\n| code | status | meaning | what to do |\n|---|---|---|---|"
    for code in codes:
        yield f"| `{code.code}` | {code.status} | {_cell(code.meaning)} | {_cell(code.remedy)} |"


def _jobs(codes: list[Code]) -> Iterator[str]:
    yield "\n## Codes of a failed job\n\n`error.code` of a job whose status is `failed`.\n"
    yield "| code | meaning | what to do |\n|---|---|---|"
    for code in codes:
        yield f"| `{code.code}` | {_cell(code.meaning)} | {_cell(code.remedy)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
