"""Identities, the lines that name them, and what an index of them looks like from outside."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.kit.text import Text

# The words of OpenDSR, sections 5.1 and 5.2, so that both sides name an identity alike.
IdentityType = Literal[
    "controller_customer_id",
    "android_advertising_id",
    "android_id",
    "email",
    "fire_advertising_id",
    "ios_advertising_id",
    "ios_vendor_id",
    "microsoft_advertising_id",
    "microsoft_publisher_id",
    "roku_publisher_id",
    "roku_advertising_id",
]
IdentityFormat = Literal["raw", "sha1", "md5", "sha256"]
_HEX_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}
_HEX = re.compile(r"[0-9A-Fa-f]+")


class Identity(BaseModel):
    """One way in which a person is known. `identity_format` says whether the value is itself or a digest of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    identity_type: IdentityType
    identity_value: Annotated[Text, Field(min_length=1, max_length=512)]
    identity_format: IdentityFormat = "raw"

    @model_validator(mode="after")
    def _says_something(self) -> Identity:
        digits = _HEX_DIGITS.get(self.identity_format)
        if digits is not None and not (len(self.identity_value) == digits and _HEX.fullmatch(self.identity_value)):
            raise ValueError(
                f"identity_value must be {digits} hexadecimal digits in the format {self.identity_format}"
            )
        if not self.identity_value.strip():
            raise ValueError("identity_value must not be blank")
        return self


class IndexLine(BaseModel):
    """One line of an index: a person's identities, and records about them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    identities: Annotated[list[Identity], Field(min_length=1, max_length=20)]
    # Checked by app.datasets.records, whose messages quote nothing of a record.
    records: Annotated[list[Any], Field(min_length=1)]


class IdentityIndexRead(BaseModel):
    """What is known of an index. Neither identities nor records are ever served back."""

    object: Literal["identity_index"] = "identity_index"
    id: str
    adapter: str
    retain_set: Annotated[str | None, Field(description="The adapter's default retain set when null.")]
    entries: Annotated[int, Field(description="Lines that were uploaded.")]
    remaining: Annotated[int, Field(description="Lines that no erasure has destroyed.")]
    records: int
    bytes: int
    created_at: datetime
    purge_at: datetime
    purged_at: datetime | None
