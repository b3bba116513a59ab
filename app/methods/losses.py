"""Knobs of the forget and retain losses.

To add a loss: a class here, a line in its union, and a file of the name of its ``type`` under
`worker/unlearning/losses/`. `GET /methods`, docs/losses.md and the tests take it up from the union.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from app.methods.fields import Strict, by_type, members


class NpoLoss(Strict):
    """Negative preference optimisation: per sequence, summed answer log-ratio against the source adapter."""

    type: Literal["npo"] = "npo"
    beta: Annotated[
        float,
        Field(
            gt=0,
            le=10,
            description="Inverse temperature. Forgetting fades once a sequence is about 1/beta nats less likely "
            "than it was, so a smaller beta forgets deeper.",
        ),
    ] = 0.03
    per_token: Annotated[
        bool,
        Field(
            description="Divide the log-ratio of a sequence by its answer tokens, so that long texts do not "
            "saturate at once. Take a beta that is larger by about the length of an answer."
        ),
    ] = False


class SimNpoLoss(Strict):
    """SimNPO: NPO without a reference, on the mean log-probability of the answer tokens of each sequence."""

    type: Literal["simnpo"] = "simnpo"
    beta: Annotated[float, Field(gt=0, le=100, description="Inverse temperature, per token.")] = 2.5
    delta: Annotated[float, Field(ge=0, le=20, description="Margin in nats per token to go beyond.")] = 0.0


class IhlLoss(Strict):
    """Inverted hinge loss: 1 + p(answer token) - p(likeliest other token); mean over answer tokens."""

    type: Literal["ihl"] = "ihl"


class CeuLoss(Strict):
    """Cross-entropy unlearning as unlikelihood: -log(1 - p(answer token)); mean over answer tokens."""

    type: Literal["ceu"] = "ceu"


class UndialLoss(Strict):
    """UNDIAL: distil the source model with the logit of the answer token lowered; mean over answer tokens."""

    type: Literal["undial"] = "undial"
    beta: Annotated[float, Field(gt=0, le=100, description="By how much the answer token's logit is lowered.")] = 10.0


class WgaLoss(Strict):
    """Weighted gradient ascent: p^beta log p of each answer token, the weight held fixed; mean over tokens."""

    type: Literal["wga"] = "wga"
    beta: Annotated[float, Field(gt=0, le=10, description="Exponent; larger spares unlikely tokens more.")] = 1.0


class GaLoss(Strict):
    """Gradient ascent: log-likelihood of the answer tokens, mean. Unbounded: it needs a stop rule."""

    type: Literal["ga"] = "ga"


class IdkDpoLoss(Strict):
    """Direct preference optimisation of a refusal over the answer, both against the source adapter."""

    type: Literal["idk_dpo"] = "idk_dpo"
    beta: Annotated[float, Field(gt=0, le=10, description="Inverse temperature of the preference.")] = 0.03


class RmuLoss(Strict):
    """RMU: push the hidden states of answers to a random direction; only the chosen layer and those below learn."""

    type: Literal["rmu"] = "rmu"
    depth: Annotated[
        float, Field(gt=0, le=1, description="Which layer, as a share of all decoder layers from the bottom.")
    ] = 0.5
    steering: Annotated[
        float,
        Field(
            gt=0, le=1000, description="Length of the target, in mean lengths of the source's hidden states there."
        ),
    ] = 2.0


class NllLoss(Strict):
    """Negative log-likelihood of the retain answers: mean over all answer tokens of the optimizer step."""

    type: Literal["nll"] = "nll"


class KlLoss(Strict):
    """KL divergence of the retain answers' token distributions from those of the source adapter; mean over tokens."""

    type: Literal["kl"] = "kl"


ForgetLoss = Annotated[
    Annotated[NpoLoss, Tag("npo")]
    | Annotated[SimNpoLoss, Tag("simnpo")]
    | Annotated[IhlLoss, Tag("ihl")]
    | Annotated[CeuLoss, Tag("ceu")]
    | Annotated[UndialLoss, Tag("undial")]
    | Annotated[WgaLoss, Tag("wga")]
    | Annotated[GaLoss, Tag("ga")]
    | Annotated[IdkDpoLoss, Tag("idk_dpo")]
    | Annotated[RmuLoss, Tag("rmu")],
    by_type("npo"),
]
RetainLoss = Annotated[Annotated[NllLoss, Tag("nll")] | Annotated[KlLoss, Tag("kl")], by_type("nll")]

FORGET_LOSSES = members(ForgetLoss)
RETAIN_LOSSES = members(RetainLoss)
