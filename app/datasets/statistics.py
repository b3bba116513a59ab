"""What is in a dataset, in tokens of one base model: numbers, never text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.datasets.tables import Dataset
from app.datasets.tokenizer_files import context_length, counter_of, fingerprint_of
from app.datasets.tokens import Counted, TokenCounter
from app.datasets.vault import Vault
from app.methods import BlurRequest

WHOLE_BYTES = 1024**2  # larger sets are sampled: counting takes about a second for so much
AHEAD_BYTES = 128 * 1024  # smaller ones are counted as they are uploaded, before a job asks
_USUAL_LENGTH = BlurRequest().max_length
_SPOTS = 64
_SPOT_BYTES = 16 * 1024
_MOST_BYTES = 4 * WHOLE_BYTES
_KEPT = 512
_TOGETHER = 64  # records that are encoded at once: other threads run meanwhile


class TokenStatistics(BaseModel):
    """Tokens of the records, as training reads them."""

    counted: Annotated[int, Field(description="Records that the figures are from: all, or an even sample.")]
    sampled: Annotated[bool, Field(description="Whether `total`, `longer` and `sequences` are extrapolated.")]
    min: int
    median: float
    max: int
    total: int
    max_length: Annotated[int, Field(description="Tokens per training sequence: the method's, or the context.")]
    longer: Annotated[int, Field(description="Records with more tokens than that.")]
    sequences: Annotated[int, Field(description="Training sequences that the records become.")]
    unusable: Annotated[int, Field(description="Conversations that the tokenizer's chat template does not render.")]


class SetStatistics(BaseModel):
    """What a set holds."""

    dataset: Annotated[str | None, Field(description="Null for records that came inside a request and are not kept.")]
    records: int
    duplicates: int | None
    bytes: int
    tokens: Annotated[TokenStatistics | None, Field(description="Null where tokenizer.json cannot be read here.")]


_cache: dict[tuple[str, str], TokenStatistics] = {}


def token_statistics(vault: Vault, dataset: Dataset, directory: Path, max_length: int) -> TokenStatistics | None:
    """The tokens of a dataset, which never changes: as counted when it was uploaded, or once in this process.

    Args:
        max_length: tokens per sequence that the method asks for; the model's context bounds it.
    """
    tokenizer = fingerprint_of(directory)
    if tokenizer is None:
        return None
    longest = _longest(directory, max_length)
    way = _way(tokenizer, longest)
    stored = (dataset.token_counts or {}).get(way)
    if stored is not None:
        return TokenStatistics(**stored)
    key = (dataset.id, way)
    if key not in _cache:
        counter = counter_of(directory)
        found = None if counter is None else _count(vault, dataset, counter, longest)
        if found is None:
            return None
        if len(_cache) >= _KEPT:
            _cache.pop(next(iter(_cache)), None)
        _cache[key] = found
    return _cache[key]


def count_ahead(vault: Vault, dataset: Dataset, directories: Iterable[Path]) -> dict[str, Any]:
    """What jobs will ask of a small dataset on these base models, to be kept with it; numbers alone.

    A job whose base model came later, has another tokenizer by then, or whose method asks for sequences of an unusual
    length finds nothing here and has the dataset counted.
    """
    found: dict[str, Any] = {}
    if dataset.size > AHEAD_BYTES:
        return found
    for directory in directories:
        tokenizer, counter = fingerprint_of(directory), counter_of(directory)
        if tokenizer is None or counter is None:
            continue
        longest = _longest(directory, _USUAL_LENGTH)
        way = _way(tokenizer, longest)
        counted = None if way in found else _count(vault, dataset, counter, longest)
        if counted is not None:
            found[way] = counted.model_dump()
    return found


def _longest(directory: Path, max_length: int) -> int:
    context = context_length(directory)
    return min(max_length, context) if context else max_length


def _way(tokenizer: str, longest: int) -> str:
    """Names all that the statistics of one dataset depend on."""
    return f"{tokenizer}:{longest}"


def _count(vault: Vault, dataset: Dataset, counter: TokenCounter, longest: int) -> TokenStatistics | None:
    sampled = dataset.size > WHOLE_BYTES
    counted: list[Counted] = []
    seen = unusable = 0
    lines = iter(_sample(vault, dataset) if sampled else vault.lines(dataset))
    while records := [json.loads(line) for line in islice(lines, _TOGETHER)]:
        usable = [each for each in counter.count_all(records) if each is not None]
        counted += usable
        seen += len(records)
        unusable += len(records) - len(usable)
    if not seen:
        return None
    lengths = [each.tokens for each in counted] or [0]
    scale = dataset.records / seen
    return TokenStatistics(
        counted=seen,
        sampled=sampled,
        min=min(lengths),
        median=median(lengths),
        max=max(lengths),
        total=round(sum(lengths) * scale),
        max_length=longest,
        longer=round(sum(length > longest for length in lengths) * scale),
        sequences=round(sum(each.sequences(longest) for each in counted) * scale),
        unusable=round(unusable * scale),
    )


def _sample(vault: Vault, dataset: Dataset) -> Iterator[bytes]:
    """Some lines from places all over the dataset, the same ones each time, without reading all of it."""
    taken = 0
    places = random.Random(dataset.sha256).sample(range(1000), _SPOTS)  # noqa: S311 - no secret
    for place in places:
        here = 0
        for line in vault.lines_from(dataset, place / 1000):
            yield line
            here += len(line)
            if here >= _SPOT_BYTES:
                break
        taken += here
        if taken >= _MOST_BYTES:
            return
