"""When training ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from app.methods.fields import Strict, by_type, members


class StopAtTargets(Strict):
    """Stop at the first probe at which the policy's in-training targets hold; keep the best point seen."""

    type: Literal["targets"] = "targets"
    every: Annotated[int, Field(ge=1, le=10_000, description="Optimizer steps between two probes.")] = 20
    records: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="Most sequences of each set in a probe, a seeded sample. Before training stops, the whole "
            "forget set confirms.",
        ),
    ] = 64
    patience: Annotated[
        int, Field(ge=1, le=1000, description="Probes without progress after which the run gives up.")
    ] = 4


class StopAtSteps(Strict):
    """Take every step, keep the last point."""

    type: Literal["steps"] = "steps"


StopRule = Annotated[
    Annotated[StopAtTargets, Tag("targets")] | Annotated[StopAtSteps, Tag("steps")], by_type("targets")
]
STOP_RULES = members(StopRule)
