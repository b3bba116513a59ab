"""The evaluation as a report for people: HTML that needs nothing else."""

from app.evaluations.report.page import HEADERS, report

__all__ = ["HEADERS", "report"]
