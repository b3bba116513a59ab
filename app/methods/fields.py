"""What the schemas of methods are built from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field


class Strict(BaseModel):
    """Refuses unknown fields, infinities and NaN; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Auto = Literal["auto"]
MAX_STEPS = 100_000
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Gamma = Annotated[float, Field(ge=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
BatchSize = Annotated[int, Field(ge=1, le=1024)]
MicroBatchSize = Annotated[
    BatchSize | Auto,
    Field(
        description="Sequences of each set per forward pass. Changes memory, never the result beyond rounding. "
        '"auto" starts with the whole batch and halves when memory runs out.'
    ),
]
GradientCheckpointing = Annotated[
    bool,
    Field(description="Compute activations twice instead of keeping them: less memory, a third more time."),
]


def by_type(default: str) -> Discriminator:
    """Choose a member of a union by its ``type``, and this one where none is given."""

    def type_of(value: Any) -> str:  # noqa: ANN401 - what a caller sent, or an instance
        found = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", None)
        return found if isinstance(found, str) else ""

    return Discriminator(type_of)


def describe(kind: type[BaseModel]) -> str:
    """What a schema is, from its docstring, on one line."""
    return " ".join((kind.__doc__ or "").split())


def members(union: Any) -> dict[str, type[Strict]]:  # noqa: ANN401 - an annotated union has no type of its own
    """The schemas of an annotated union, by the value of their ``type``."""
    kinds = [get_args(member)[0] for member in get_args(get_args(union)[0])]
    return {kind.model_fields["type"].default: kind for kind in kinds}
