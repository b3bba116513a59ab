"""Loading libraries: torch, transformers and peft are thousands of modules, and take seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Within the block, nobody looks for garbage: what a library leaves in memory is none, and the search takes a
    seventh of the time. What lies in memory when the block ends is never looked at again, so that later searches
    are short.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
