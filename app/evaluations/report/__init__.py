"""The evaluation as a report for people: HTML that needs nothing else."""

from app.evaluations.report.negotiation import HTML, prefers_html
from app.evaluations.report.page import HEADERS, report

__all__ = ["HEADERS", "HTML", "prefers_html", "report"]
