"""The form of API keys."""

from __future__ import annotations

import re

import pytest

from app.auth.keys import new_key, well_formed


def test_a_new_key_is_of_the_form_that_scanners_are_given() -> None:
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    for key in keys:
        assert re.fullmatch(r"lethe_[0-9A-Za-z]{39}", key)
        assert well_formed(key)


def test_the_checksum_stays_what_it_was() -> None:
    assert well_formed("lethe_" + "A" * 33 + "0JnsO0")


def test_keys_from_before_the_checksum_are_well_formed() -> None:
    assert well_formed("lethe_" + "aB-_" * 8)


def test_a_key_with_one_wrong_character_is_told_without_a_query() -> None:
    key = new_key()
    for place in (6, 20, 38, 44):
        other = "0" if key[place] != "0" else "1"
        assert not well_formed(key[:place] + other + key[place + 1 :])


@pytest.mark.parametrize("key", ["", "lethe_", "lethe_wrong", "sk_" + "a" * 39, "lethe_" + "a" * 31 + "é"])
def test_what_cannot_be_a_key_is_told(key: str) -> None:
    assert not well_formed(key)
    assert not well_formed(new_key() + "\n")
