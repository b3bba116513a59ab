"""A code for people: one HTML page that needs nothing else."""

from __future__ import annotations

import re
from html import escape

from app.problems.codes import Code

HEADERS = {
    # Text alone: no script, no image, no request, no frame.
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}
_PAGE = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title></head>
<body>
<h1>{title}</h1>
<p><code>{code}</code> · {carried}</p>
<h2>What it means</h2>
<p>{meaning}</p>
<h2>What to do</h2>
<p>{remedy}</p>
</body>
</html>
"""


def page(code: Code) -> str:
    """The page of a code."""
    return _PAGE.format(
        title=escape(code.title),
        code=escape(code.code),
        carried=carried_by(code),
        meaning=_text(code.meaning),
        remedy=_text(code.remedy),
    )


def carried_by(code: Code) -> str:
    """What carries the code: answers with their status, failed jobs, or both."""
    answers = [f"answers with status {code.status}"] if code.status is not None else []
    return " and ".join(answers + ["the error of a failed job"] * code.of_jobs)


def _text(text: str) -> str:
    """Names between backticks become code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
