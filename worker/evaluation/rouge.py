"""ROUGE-L: how much of one text another one holds, in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.evaluation.porter import stem

_LATIN = re.compile(r"[a-z0-9]+")
_LEAST_STEMMED = 4  # letters of a word whose ending is cut off
# Unicode words, and single characters of scripts without spaces. For what rouge-score cannot read.
_UNICODE = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")

Tokenise = Callable[[str], list[str]]


@dataclass(frozen=True)
class Answer:
    """A generated answer and the text that it is compared with."""

    reference: str
    generated: str


@dataclass(frozen=True)
class RougeL:
    """Longest common subsequence of words over the reference's words, over the answer's, and their harmonic mean."""

    recall: float
    precision: float
    f1: float


def tokeniser(reference: str, *, stemmed: bool = True) -> Tokenise:
    """How texts are cut into words to be compared with this one.

    rouge-score knows a-z and 0-9 only: any other script would score 0 however well it was memorised. A
    reference without a single such word is therefore compared by Unicode words.
    """
    if not _plain(reference):
        return lambda text: _UNICODE.findall(text.lower())
    return _stemmed if stemmed else _plain


def _plain(text: str) -> list[str]:
    """Words as rouge-score cuts them."""
    return _LATIN.findall(text.lower())


def _stemmed(text: str) -> list[str]:
    """The same without their endings."""
    return [stem(word) if len(word) >= _LEAST_STEMMED else word for word in _plain(text)]


def rouge_l(answer: Answer, *, stemmed: bool = True) -> RougeL:
    """ROUGE-L of an answer, each value in [0, 1]; 0 where either text has no word.

    Args:
        answer: both texts.
        stemmed: whether English endings are cut off, as TOFU has it and MUSE has not.
    """
    words = tokeniser(answer.reference, stemmed=stemmed)
    wanted, said = words(answer.reference), words(answer.generated)
    common = common_subsequence(wanted, said)
    if common == 0:
        return RougeL(0.0, 0.0, 0.0)
    recall, precision = common / len(wanted), common / len(said)
    return RougeL(recall, precision, 2 * recall * precision / (recall + precision))


def rouge_l_recall(answer: Answer) -> float:
    """Share of the reference's words that the generated text holds in order, as TOFU has it: stemmed, in [0, 1]."""
    return rouge_l(answer).recall


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004): a set bit of ``row`` is a place of ``a`` at which the length does not grow, and one
    addition carries a whole row of the usual table.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()
