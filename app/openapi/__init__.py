"""The OpenAPI document: what FastAPI finds, completed so that a reader needs nothing else."""

from app.openapi.document import describe

__all__ = ["describe"]
