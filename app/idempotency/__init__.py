"""Requests that happen once: `Idempotency-Key`, after draft-ietf-httpapi-idempotency-key-header."""
