from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer

from worker.evaluation.porter import _IRREGULAR, _STEP_2, _STEP_3, _STEP_4, stem

NLTK = PorterStemmer()
ENDINGS = sorted({
    *(ending for ending, _ in (*_STEP_2, *_STEP_3)), *_STEP_4, "ationalli", "tionalli", "ency", "ively", "bly",
    "ality", "e", "ed", "ee", "eed", "ies", "ied", "ing", "ll", "ly", "ogy", "s", "ss", "sses", "y", "ying",
    "zzed", "bled",
})  # fmt: skip


@pytest.mark.parametrize("word", [*_IRREGULAR, "yyyy", "syzygy", "geology", "ties", "sees", "1974", "a1b2c3ing"])
def test_words_out_of_the_ordinary(word: str) -> None:
    assert stem(word) == NLTK.stem(word)


@given(
    begin=st.text("abcdefhilnorstuwxyz1", max_size=6),
    endings=st.lists(st.sampled_from(ENDINGS), max_size=3).map("".join),
)
def test_made_up_words_have_the_stem_that_nltk_gives_them(begin: str, endings: str) -> None:
    word = begin + endings
    assert not word or stem(word) == NLTK.stem(word)


def test_the_words_of_our_own_pages_have_the_stem_that_nltk_gives_them() -> None:
    pages = [path.read_text(encoding="utf-8").lower() for path in Path(__file__).parents[3].glob("docs/*.md")]
    words = {word for page in pages for word in re.findall("[a-z0-9]+", page)}
    assert len(words) > 1000
    assert {word: stem(word) for word in words} == {word: NLTK.stem(word) for word in words}
