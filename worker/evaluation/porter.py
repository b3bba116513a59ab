"""Porter's stemmer (Program 14(3), 1980), with the changes that NLTK made to it: the one that rouge-score uses.

Of our own, because NLTK loads scikit-learn and half of SciPy with it. The tests hold it against NLTK's.
"""

from __future__ import annotations

from functools import lru_cache

# Words that NLTK has by heart.
_IRREGULAR = {
    "sky": "sky", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news",
    "innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing", "cannings": "canning",
    "canning": "canning", "howe": "howe", "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip
# Ending, and what takes its place. The first ending that a word has decides, whether it may be replaced or not.
_STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"), ("logi", "log"),
)  # fmt: skip
_STEP_3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate",
    "iti", "ous", "ive", "ize",
)  # fmt: skip


@lru_cache(maxsize=2**16)
def stem(word: str) -> str:
    """A word without its ending. The word is in small letters; whatever is no vowel counts as a consonant."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _plural(word)
    word = _past(word)
    if word.endswith("y") and len(word) > 2 and _shape(word[:-1]).endswith("c"):
        word = word[:-1] + "i"
    word = _replaced(_without_alli(word), _STEP_2)
    word = _replaced(word, _STEP_3)
    return _last_letters(_without_suffix(word))


def _shape(word: str) -> str:
    """A "c" for every consonant and a "v" for every vowel; y is a vowel behind a consonant."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    """Porter's m: how often a consonant follows a vowel."""
    return _shape(word).count("vc")


def _is_short(word: str) -> bool:
    """Whether a word ends like "hop" (Porter's *o), or is like "at"."""
    shape = _shape(word)
    return shape == "vc" or (shape.endswith("cvc") and word[-1] not in "wxy")


def _plural(word: str) -> str:
    """Step 1a."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    """Step 1b."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        rest = word.removesuffix(ending)
        if rest != word and "v" in _shape(rest):
            return _mended(rest)
    return word


def _mended(rest: str) -> str:
    """What was in front of "ed" or "ing", as a word again."""
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) > 1 and rest[-1] == rest[-2] and _shape(rest).endswith("c"):
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _is_short(rest) else rest


def _without_alli(word: str) -> str:
    """What NLTK does in front of step 2: "ationalli" is to become "ational", and that "ate"."""
    return word[:-2] if word.endswith("alli") and _measure(word[:-4]) > 0 else word


def _replaced(word: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Steps 2 and 3."""
    for ending, replacement in rules:
        if word.endswith(ending):
            rest = word.removesuffix(ending)
            # Its l counts among the letters in front, so that "geology" is treated as "archaeology" is.
            counted = rest + "l" if ending == "logi" else rest
            return rest + replacement if _measure(counted) > 0 else word
    return word


def _without_suffix(word: str) -> str:
    """Step 4."""
    for ending in _STEP_4:
        if word.endswith(ending):
            rest = word.removesuffix(ending)
            allowed = _measure(rest) > 1 and (ending != "ion" or rest[-1] in "st")
            return rest if allowed else word
    return word


def _last_letters(word: str) -> str:
    """Step 5."""
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _is_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
