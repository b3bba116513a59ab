"""Looks for what processes that died have left: bytes without rows, rows without bytes, work that nobody does."""
