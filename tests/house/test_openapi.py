"""The OpenAPI document: complete, consistent, and the one that is committed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from app.entrance import is_public
from app.openapi.reference import reference
from app.problems.codes import CODES

COMMITTED = Path(__file__).parents[2] / "docs" / "api" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(reference())
# Under an address of its own, so that a schema taken out of it still finds the others.
ADDRESS = "urn:openapi"


def addressed(value: Any) -> Any:
    """The same, with references to the document by its address."""
    return json.loads(json.dumps(value).replace('"#/components', f'"{ADDRESS}#/components'))


REGISTRY: Registry[Any] = Registry().with_resource(ADDRESS, DRAFT202012.create_resource(addressed(DOCUMENT)))
# Bodies of other kinds than JSON, which are described in words.
OPAQUE = ("text/html", "application/gzip", "multipart/form-data", "application/octet-stream")


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Every (method, path or webhook, operation)."""
    parts = [DOCUMENT["paths"], DOCUMENT.get("webhooks", {})]
    return [
        (method, path, one) for part in parts for path, methods in part.items() for method, one in methods.items()
    ]


OPERATIONS = operations()
NAMES = [operation["operationId"] for _, _, operation in OPERATIONS]


def resolved(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer, or the one that it refers to."""
    reference = answer.get("$ref")
    return DOCUMENT["components"]["responses"][reference.rsplit("/", 1)[1]] if reference else answer


def bodies(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every (place, media type, content) of an operation's request and answers."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", media_type, content
    for status, answer in operation["responses"].items():
        for media_type, content in resolved(answer).get("content", {}).items():
            yield status, media_type, content


def examples(content: dict[str, Any]) -> list[Any]:
    """The examples of a body."""
    named = [example["value"] for example in content.get("examples", {}).values()]
    return named + ([content["example"]] if "example" in content else [])


def references(value: Any) -> Iterator[str]:
    """Every $ref in a document, those in examples too."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_committed_document_is_the_one_that_the_code_gives() -> None:
    # Not compared by assert, whose difference would be thousands of lines.
    same = COMMITTED.read_text() == reference()
    assert same, "the interface changed: run `make docs`, and read `git diff docs/api/openapi.json`"


def test_the_head_says_whom_to_ask_and_under_which_licence() -> None:
    info = DOCUMENT["info"]
    assert info["title"]
    assert info["description"]
    assert info["contact"]["name"]
    assert info["license"]["identifier"] == "Apache-2.0"


def test_every_tag_is_described_and_used() -> None:
    described = {tag["name"]: tag["description"] for tag in DOCUMENT["tags"]}
    assert [name for name, words in described.items() if not words] == [], "describe it in app/openapi/words.py"
    assert {tag for _, _, operation in OPERATIONS for tag in operation["tags"]} == set(described)


def test_operation_ids_are_unique_words() -> None:
    assert [name for name, times in Counter(NAMES).items() if times > 1] == []
    assert [name for name in NAMES if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_every_operation_says_what_it_does(method: str, path: str, operation: dict[str, Any]) -> None:
    assert len(operation["tags"]) == 1
    assert 5 <= len(operation["summary"]) <= 120
    assert not operation["summary"].endswith(".")
    assert operation["description"].startswith(operation["summary"])
    nameless = [parameter["name"] for parameter in operation.get("parameters", []) if not parameter["description"]]
    assert nameless == [], "describe them where they are declared, or in app/openapi/words.py"
    named = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
    assert named == set(re.findall(r"{(\w+)}", path))


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_every_answer_that_can_come_is_described(method: str, path: str, operation: dict[str, Any]) -> None:
    answers = set(operation["responses"])
    assert any(status.startswith("2") for status in answers)
    if not path.startswith("/"):
        return
    assert {"422", "500", "503"} <= answers
    if not is_public(path.partition("{")[0]):
        assert {"401", "403"} <= answers
        assert operation["security"]
    assert "404" in answers or "{" not in path
    assert {"400", "413"} <= answers or "requestBody" not in operation
    for status in answers:
        words = resolved(operation["responses"][status])
        assert words["description"]
        assert (
            status < "400" or "application/problem+json" in words["content"] or (path, status) == ("/readyz", "503")
        )


def test_an_example_that_does_not_fit_would_be_found() -> None:
    schema = addressed({"$ref": "#/components/schemas/DatasetRead"})
    assert list(Draft202012Validator(schema, registry=REGISTRY).iter_errors({"object": "dataset"}))


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_every_body_has_an_example_that_fits_its_schema(method: str, path: str, operation: dict[str, Any]) -> None:
    for place, media_type, content in bodies(operation):
        if media_type in OPAQUE:
            continue
        assert examples(content), (place, media_type)
        for example in examples(content):
            schema = addressed(content.get("schema", {}))
            check = Draft202012Validator(schema, registry=REGISTRY, format_checker=FormatChecker())
            assert [f"{error.json_path}: {error.message}" for error in check.iter_errors(example)] == [], place


def test_every_error_answer_shows_each_of_its_codes() -> None:
    shown = {
        example["code"]
        for answer in DOCUMENT["components"]["responses"].values()
        for content in answer["content"].values()
        for example in examples(content)
    }
    assert shown == {code.code for code in CODES.values() if code.status is not None}


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    targets = set(references(DOCUMENT))
    for target in targets:
        place: Any = DOCUMENT
        for part in target.removeprefix("#/").split("/"):
            place = place[part.replace("~1", "/").replace("~0", "~")]
    schemas = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert schemas - targets == set()


def test_paths_are_lower_case_words_without_a_slash_at_the_end() -> None:
    for path in DOCUMENT["paths"]:
        assert re.fullmatch(r"(/([a-z0-9.-]+|{[a-z_]+}))+", path), path
