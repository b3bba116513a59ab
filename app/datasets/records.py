"""What a record may be, one line at a time."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

_Text = Annotated[str, Field(min_length=1)]
_Label = Annotated[str | None, Field(max_length=256)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: _Label = None
    subject: _Label = None


class _Answered(_Record):
    """A record with an answer. Other answers to the same question let an evaluation compare their likelihoods."""

    paraphrase: Annotated[str, Field(min_length=1, description="The answer in other words.")] | None = None
    perturbed: Annotated[list[_Text], Field(min_length=1, max_length=20, description="Wrong answers.")] | None = None


class PromptRecord(_Answered):
    """A prompt and the completion to forget or keep."""

    prompt: _Text
    completion: _Text


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: _Text


class ChatRecord(_Answered):
    """A conversation; its last assistant turn is the target."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _ends_with_the_target(self) -> ChatRecord:
        if self.messages[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's")
        return self


class TextRecord(_Record):
    """Plain text; all of it is the target."""

    text: _Text


Record = PromptRecord | ChatRecord | TextRecord
_SHAPES: dict[str, TypeAdapter[Record]] = {
    "prompt": TypeAdapter(PromptRecord),
    "completion": TypeAdapter(PromptRecord),
    "messages": TypeAdapter(ChatRecord),
    "text": TypeAdapter(TextRecord),
}
# Far more than a record has; a reader that nests as deep as it is told to can be made to break.
MAX_NESTING = 16
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_BRACKET = re.compile(rb"[\[\]{}]")
_TOO_DEEP = f"nested more than {MAX_NESTING} deep"
_HINT = 'a record is {"prompt", "completion"}, {"messages"} or {"text"}, with optional "id" and "subject"'


class RecordError(Exception):
    """A line that is no record. The message says why and quotes nothing of it."""


def parse_record(line: bytes) -> Record:
    """Read one line of JSON Lines.

    Raises:
        RecordError: no JSON, nested too deeply, or not one of the shapes.
    """
    if _too_deep(line):
        raise RecordError(_TOO_DEEP)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise RecordError("not valid JSON") from None
    return validate_record(value)


def validate_record(value: object) -> Record:
    """Check one parsed record. Raises RecordError."""
    if not isinstance(value, dict):
        raise RecordError(f"not a JSON object; {_HINT}")
    shape = next((adapter for key, adapter in _SHAPES.items() if key in value), None)
    if shape is None:
        raise RecordError(_HINT)
    try:
        return shape.validate_python(value)
    except ValidationError as error:
        raise RecordError(_explain(error)) from None


def digest(record: Record, salt: bytes) -> bytes:
    """16 bytes by which equal records are found without keeping them; what is only about a record does not count."""
    content = record.model_dump(exclude={"id", "subject", "paraphrase", "perturbed"})
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, key=salt[:64], digest_size=16).digest()


def to_line(record: Record) -> bytes:
    """The line that is stored."""
    return json.dumps(record.model_dump(exclude_none=True), ensure_ascii=False).encode() + b"\n"


def _too_deep(line: bytes) -> bool:
    # Most lines have so few brackets that nobody needs to look for strings.
    if line.count(b"[") + line.count(b"{") <= MAX_NESTING:
        return False
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", line)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_NESTING:
            return True
    return False


def _explain(error: ValidationError) -> str:
    reasons = []
    for item in error.errors(include_input=False, include_url=False, include_context=False)[:3]:
        place = ".".join(str(part)[:32] for part in item["loc"])
        unknown = item["type"] == "extra_forbidden"
        # A name that we do not know may itself be personal data.
        reasons.append(f"unknown field; {_HINT}" if unknown else f"{place or 'record'}: {item['msg']}")
    return "; ".join(dict.fromkeys(reasons))
