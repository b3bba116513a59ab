"""Completes what FastAPI makes: titles, tags, parameters, every error that can occur, an example of every body."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastapi.routing import RouteContext

from app.auth import guard
from app.entrance import is_public
from app.kit import problems
from app.openapi.examples import Examples
from app.openapi.words import BODIES, CONTACT, LICENSE, PARAMETERS, REQUESTS, TAGS, VALUES
from app.problems.codes import CODES, Code

Document = dict[str, Any]
Operation = dict[str, Any]
_METHODS = ("get", "post", "put", "patch", "delete", "head")


def describe(document: Document, routes: Iterable[RouteContext]) -> None:
    """Complete an application's document in place."""
    document["info"] |= {"contact": CONTACT, "license": LICENSE}
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    shape = problems.ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= shape.pop("$defs") | {"ProblemDocument": shape}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    guard.describe(document, routes)
    document["components"]["responses"] = _problem_answers()
    examples = Examples(schemas)
    for path, operation in operations(document):
        _describe_operation(path, operation, examples)
    used = {tag for _, operation in operations(document) for tag in operation.get("tags", [])}
    document["tags"] = [{"name": tag, "description": TAGS.get(tag, "")} for tag in sorted(used)]


def operations(document: Document) -> Iterator[tuple[str, Operation]]:
    """Every operation with its path; webhooks and callbacks, which are the receivers' affair, by their name."""
    for part in ("paths", "webhooks"):
        for path, operation in _operations_of(document.get(part, {})):
            yield path, operation
            for callback in operation.get("callbacks", {}).values():
                yield from _operations_of(callback)


def _operations_of(items: Mapping[str, Any]) -> Iterator[tuple[str, Operation]]:
    for path, methods in items.items():
        for method, operation in methods.items():
            if method in _METHODS:
                yield path, operation


def _describe_operation(path: str, operation: Operation, examples: Examples) -> None:
    first = operation.get("description", "").partition("\n")[0]
    sentence = re.split(r"(?<=[.:]) |\.$", first, maxsplit=1)[0]
    operation["summary"] = sentence.rstrip(".:") or operation["summary"]
    for parameter in operation.get("parameters", []):
        parameter.setdefault("description", PARAMETERS.get(parameter["name"], ""))
    if path.startswith("/"):
        _add_errors(path, operation)
    else:
        # What a receiver answers is its own affair.
        operation["responses"].pop("422", None)
    _add_examples(operation, examples)


def _add_errors(path: str, operation: Operation) -> None:
    """The answers that every operation of its kind may give, beside those that it names itself."""
    answers = operation["responses"]
    # FastAPI's own answer to what it refuses is never sent.
    answers.pop("422", None)
    statuses = {400, 413} if "requestBody" in operation else set()
    statuses |= {422, 500, 503} | ({404} if "{" in path else set())
    if not is_public(path.partition("{")[0]):
        statuses |= {401, 403} | ({429} if "rate_limited" in CODES else set())
    for status in statuses:
        answers.setdefault(str(status), {"content": {problems.MEDIA_TYPE: {}}})
    for text, answer in answers.items():
        if problems.MEDIA_TYPE in answer.get("content", {}):
            answers[text] = {"$ref": f"#/components/responses/{_name(text)}"}
    operation["responses"] = dict(sorted(answers.items()))


def _problem_answers() -> dict[str, Any]:
    """The error answers by name: per status, what each of its codes means, with an example."""
    statuses = sorted({code.status for code in CODES.values() if code.status is not None})
    return {_name(str(status)): _problem_answer(status) for status in statuses}


def _name(status: str) -> str:
    return f"Problem{status}"


def _problem_answer(status: int) -> dict[str, Any]:
    codes = [code for code in CODES.values() if code.status == status]
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    examples = {code.code: {"value": _problem(code)} for code in codes}
    return {
        "description": " ".join(f"`{code.code}`: {code.meaning}" for code in codes),
        "content": {problems.MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }


def _problem(code: Code) -> dict[str, Any]:
    return {
        "type": f"/problems/{code.code}",
        "title": code.title,
        "status": code.status,
        "detail": code.meaning.partition(". ")[0].rstrip("."),
        "code": code.code,
        "request_id": VALUES["request_id"],
        "errors": [],
    }


def _add_examples(operation: Operation, examples: Examples) -> None:
    name = operation["operationId"]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        _add_example(media_type, content, REQUESTS.get(name, {}).get(media_type), examples)
    for answer in operation["responses"].values():
        for media_type, content in answer.get("content", {}).items():
            _add_example(media_type, content, BODIES.get(name), examples)


def _add_example(media_type: str, content: dict[str, Any], own: object, examples: Examples) -> None:
    if "example" in content or "examples" in content:
        return
    if own is not None:
        content["example"] = own
    elif media_type == "application/json" and "schema" in content:
        content["example"] = examples.of(content["schema"])
