"""The worker's way to Postgres and to storage."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import Engine
from sqlalchemy.orm import Session

import app.tables  # noqa: F401 - foreign keys are resolved between tables that are loaded
from app.audit.record import ACTOR, WORKER
from app.datasets.vault import Vault
from app.kit.db import make_engine
from app.kit.storage import LocalStorage, Storage
from app.settings import get_settings


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The engine. It keeps no connection open, so that none crosses a fork."""
    return make_engine(get_settings().database_url.get_secret_value())


def new_session() -> Session:
    """A session; use it as ``with new_session() as session, session.begin()``."""
    return Session(engine(), expire_on_commit=False, info={ACTOR: WORKER})


def storage() -> Storage:
    """The storage."""
    return LocalStorage(get_settings().storage_dir)


def vault() -> Vault:
    """The way from a dataset's row to its plaintext."""
    return Vault(storage(), get_settings().key_ring)
