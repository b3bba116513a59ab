"""No table with wrapped secrets is forgotten."""

from __future__ import annotations

from sqlalchemy import Engine, LargeBinary, text

from app.data_keys.columns import sealed_columns, wrapped_columns
from app.tables import metadata

# Nothing to be had from them and nothing to be rotated: keyed digests, and what everybody may know.
NO_SECRETS = {
    "accepted_requests.key_digest",
    "accepted_requests.request_digest",
    "api_keys.hash",
    "api_keys.previous_hash",
    "opendsr_requests.digest",
    "signing_keys.public_key",
    "webhook_secrets.public_key",
}


def test_every_column_of_bytes_is_no_secret_or_says_under_which_key_it_is_wrapped() -> None:
    of_bytes = {
        str(column) for table in metadata.tables.values() for column in table.columns
        if isinstance(column.type, LargeBinary)
    }  # fmt: skip
    wrapped = {str(column.wrapped) for column in wrapped_columns(metadata)}
    assert "datasets.wrapped_key" in wrapped
    sealed = {str(column) for column in sealed_columns(metadata)}
    assert sealed == {"identity_entries.sealed_key"}
    assert of_bytes - wrapped - sealed == NO_SECRETS, "give the column info=wrapped_under(...), or name it here"


def test_wrapped_secrets_are_kept_out_of_the_statistics(engine: Engine) -> None:
    target = text("""SELECT attstattarget FROM pg_attribute
        WHERE attrelid = CAST(:name AS regclass) AND attname = :column""")
    with engine.connect() as connection:
        for column in (*(one.wrapped for one in wrapped_columns(metadata)), *sealed_columns(metadata)):
            names = {"name": column.table.name, "column": column.name}
            assert connection.scalar(target, names) == 0, f"ALTER COLUMN ... SET STATISTICS 0 for {column}"
