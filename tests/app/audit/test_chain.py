"""Whatever is done to a chain is found, and named by its place."""

from __future__ import annotations

import copy
import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.chain import GENESIS, Head, check_data, document_digest, entry_hash, timestamp, verify
from tests.app.audit.chains import chain, head_of, rehash

LENGTH = 8
PLACES = st.integers(1, LENGTH)
FIELDS = [
    ("object",), ("tenant",), ("sequence",), ("at",), ("action",), ("subject",), ("subject", "type"),
    ("subject", "id"), ("actor",), ("data",), ("data", "purpose"), ("data", "records"), ("data", "digest"),
    ("data", "more"), ("more",), ("previous_hash",), ("hash",),
]  # fmt: skip
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["f" * 64, GENESIS, "dataset.purged"]),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.lists(st.integers(), max_size=2),
)
INTACT = chain(LENGTH)
HEAD = head_of(INTACT)


def found(entries: list[Any], head: Head | None = HEAD, known: dict[int, str] | None = None) -> list[tuple[int, str]]:
    """Place and kind of every finding."""
    return [(finding.sequence, finding.kind) for finding in verify(entries, head, known)]


def same(one: object, other: object) -> bool:
    """Whether two values are the same JSON: 1 and 1.0 are."""
    try:
        return rfc8785.dumps(one) == rfc8785.dumps(other)  # type: ignore[arg-type] # any value at all
    except ValueError:
        return False


def test_an_intact_chain_holds() -> None:
    assert found(INTACT) == []
    assert found([], Head(0, GENESIS)) == []
    assert found([], None) == []


@settings(deadline=None, max_examples=300)
@given(place=PLACES, field=st.sampled_from(FIELDS), value=VALUES)
def test_any_edited_field_is_found_at_its_entry(place: int, field: tuple[str, ...], value: object) -> None:
    entries = copy.deepcopy(INTACT)
    target = entries[place - 1]
    for name in field[:-1]:
        target = target[name]
    if field[-1] in target and same(target[field[-1]], value):
        return
    target[field[-1]] = value
    findings = found(entries)
    assert findings
    # A changed number has the entry stand at another place, and the place where it stood is a gap.
    assert place in {sequence for sequence, _ in findings} or value in {sequence for sequence, _ in findings}
    if field[-1] not in {"object", "sequence", "previous_hash", "hash", "tenant"}:
        assert findings == [(place, "hash_mismatch")]


@given(place=PLACES, name=st.sampled_from(sorted(INTACT[0])))
def test_a_field_that_was_taken_out_is_found(place: int, name: str) -> None:
    entries = copy.deepcopy(INTACT)
    del entries[place - 1][name]
    assert place in {sequence for sequence, _ in found(entries)}


@given(first=PLACES, last=PLACES)
def test_removed_entries_are_named(first: int, last: int) -> None:
    first, last = sorted((first, last))
    entries = INTACT[: first - 1] + INTACT[last:]
    findings = list(verify(entries, HEAD))
    assert [(finding.sequence, finding.kind) for finding in findings] == [
        (first, "truncated" if last == LENGTH else "gap")
    ]
    named = f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"
    assert named in findings[0].detail


@given(one=PLACES, other=PLACES)
def test_entries_that_changed_places_are_named(one: int, other: int) -> None:
    one, other = sorted((one, other))
    if one == other:
        return
    entries = copy.deepcopy(INTACT)
    entries[one - 1], entries[other - 1] = entries[other - 1], entries[one - 1]
    assert {(one, "gap"), (one, "out_of_order")} <= set(found(entries))
    # The same in a table, where the order is that of the numbers.
    for place in (one, other):
        entries[place - 1]["sequence"] = place
    assert {(one, "hash_mismatch"), (other, "hash_mismatch")} <= set(found(entries))


@given(place=PLACES)
def test_an_entry_that_stands_twice_is_named(place: int) -> None:
    assert found(INTACT[:place] + INTACT[place - 1 :]) == [(place, "out_of_order")]


@given(place=PLACES)
def test_an_entry_that_was_put_in_is_found(place: int) -> None:
    forged = INTACT[place - 1] | {"action": "dataset.purged"}
    forged["hash"] = entry_hash(forged)
    entries = [*INTACT[: place - 1], forged, *INTACT[place - 1 :]]
    assert (place, "out_of_order") in found(entries)


@given(place=st.integers(1, LENGTH - 1))
def test_an_entry_with_a_hash_made_to_fit_breaks_the_link_to_the_next(place: int) -> None:
    entries = copy.deepcopy(INTACT)
    entries[place - 1]["data"]["records"] = 0
    rehash(entries[:place])
    assert found(entries) == [(place + 1, "wrong_link")]


def test_a_tail_with_hashes_made_to_fit_does_not_have_the_heads_hash() -> None:
    entries = copy.deepcopy(INTACT)
    entries[4]["data"]["records"] = 0
    rehash(entries)
    assert found(entries) == [(LENGTH, "wrong_head")]


@given(place=PLACES, noted=PLACES)
def test_a_chain_made_anew_with_its_head_is_found_by_a_hash_that_was_noted(place: int, noted: int) -> None:
    entries = copy.deepcopy(INTACT)
    entries[place - 1]["data"]["records"] = 0
    rehash(entries)
    known = {noted: INTACT[noted - 1]["hash"]}
    assert found(entries, head_of(entries)) == []
    assert found(entries, head_of(entries), known) == ([(noted, "replaced")] if noted >= place else [])


def test_a_chain_cut_short_with_its_head_is_found_by_a_hash_that_was_noted() -> None:
    cut = INTACT[:5]
    assert found(cut, head_of(cut)) == []
    assert found(cut, head_of(cut), {7: INTACT[6]["hash"]}) == [(7, "truncated")]
    assert found(INTACT, HEAD, {7: INTACT[6]["hash"]}) == []


def test_entries_beyond_the_head_and_a_missing_head_are_found() -> None:
    assert found(INTACT, head_of(INTACT[:5])) == [(6, "beyond_head")]
    assert found(INTACT, None) == [(LENGTH, "no_head")]
    assert found([], HEAD) == [(1, "truncated")]


def test_an_entry_of_another_tenant_is_found_though_its_hashes_fit() -> None:
    entries = copy.deepcopy(INTACT)
    entries[3]["tenant"] = "ten_theirs"
    rehash(entries)
    assert found(entries, head_of(entries)) == [(4, "foreign")]


@pytest.mark.parametrize("junk", [None, [], "x", {}, {"object": "audit_entry"}, {"object": "audit_head"}])
def test_junk_in_the_place_of_an_entry_is_named(junk: Any) -> None:
    assert found([*INTACT[:3], junk, *INTACT[4:]]) == [(4, "unreadable"), (4, "gap")]


@settings(deadline=None)
@given(st.lists(st.one_of(VALUES, st.dictionaries(st.sampled_from(sorted(INTACT[0])), VALUES)), max_size=4))
def test_nothing_in_a_file_makes_verifying_crash(entries: list[Any]) -> None:
    found(entries)


def test_the_hash_is_the_one_that_the_standard_library_gives() -> None:
    entry = INTACT[3]
    body = {name: value for name, value in entry.items() if name not in ("previous_hash", "hash")}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(bytes.fromhex(entry["previous_hash"]) + canonical).hexdigest() == entry["hash"]


def test_a_moment_has_one_text() -> None:
    assert timestamp(datetime(2026, 1, 31, 12, tzinfo=UTC)) == "2026-01-31T12:00:00.000000Z"
    there = timezone(timedelta(hours=2))
    assert timestamp(datetime(2026, 1, 31, 14, 0, 0, 5, tzinfo=there)) == "2026-01-31T12:00:00.000005Z"


@pytest.mark.parametrize("value", ["ds_1f", "0" * 64, "gate_failed", "default.tightened", "a-b:c", 0, 2**53 - 1, True,
                                   None, ["a", 1], {"records": 3, "policy": {"name": "fast"}}])  # fmt: skip
def test_ids_digests_and_counts_may_be_recorded(value: object) -> None:
    check_data(value)


@pytest.mark.parametrize("value", ["Ada Lovelace", "ada@example.org", "Ada", "two words", "", "a" * 129, "ä", "a\n",
                                   0.5, 2**53, b"x", {"Ada": 1}, ["ok", {"x": "My name"}]])  # fmt: skip
def test_anything_else_may_not(value: object) -> None:
    with pytest.raises(ValueError, match="audit entry"):
        check_data(value)


def test_a_refusal_does_not_repeat_what_was_refused() -> None:
    with pytest.raises(ValueError, match="audit entry") as refused:
        check_data({"x": "Ada Lovelace"})
    assert "Ada" not in str(refused.value)


def test_documents_that_are_the_same_json_have_one_digest() -> None:
    assert document_digest({"a": 1.0, "b": [1e-7]}) == document_digest({"b": [0.0000001], "a": 1})
    assert document_digest({"a": 1}) != document_digest({"a": 2})
    with pytest.raises(ValueError, match="nan"):
        document_digest({"a": float("nan")})
