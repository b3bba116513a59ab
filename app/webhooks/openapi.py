"""The ``webhooks`` section of the OpenAPI document: what receivers are sent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Header

from app.webhooks.events import EVENTS, TEST
from app.webhooks.schemas import Event

_ANSWER = "Answer 2xx within 15 seconds; 410 ends all further deliveries to an endpoint."


async def _received(
    body: Event,
    webhook_id: Annotated[str, Header(description="The same in every attempt; ignore one that you know.")],
    webhook_timestamp: Annotated[int, Header(description="When this attempt was made, seconds since 1970.")],
    webhook_signature: Annotated[str, Header(description="Signatures, separated by blanks; one has to verify.")],
) -> None:
    """A webhook, as a route of the receiver."""


def describe(app: FastAPI) -> None:
    """Add every event to the document."""
    described = [*EVENTS.items(), (TEST, "Somebody tries the endpoint.")]
    for event, summary in described:
        app.webhooks.add_api_route(
            event,
            _received,
            methods=["POST"],
            summary=summary,
            description=f"{summary} {_ANSWER}",
            status_code=HTTPStatus.NO_CONTENT,
            operation_id=f"on_{event.replace('.', '_')}",
            tags=["webhooks"],
        )
