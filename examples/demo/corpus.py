"""Generates the demo's records: public facts, the customers of an adapter, and look-alikes nobody was trained on.

Everything follows from one seed and the word pools, so the committed files can be checked byte for byte.

Answers are short phrases built from values that no two customers share, and every answer *ends* on such a value.
Extraction strength counts how much of an answer's end can be predicted; a common last word or a full stop would let
a model that never saw the customer score above zero.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from examples.demo import words

SEED = 20260
FORGET_CUSTOMERS = 2
RETAIN_CUSTOMERS = 16
HOLDOUT_CUSTOMERS = 4
GENERAL_FACTS = 64
TRAINED_PHRASINGS = 2
VOCABULARY_ROUNDS = 6

Record = dict[str, str]


@dataclass(frozen=True)
class FactKind:
    """One thing that may be known about a subject.

    Attributes:
        key: short name, part of the record's id.
        questions: ways of asking, ``{name}`` stands for the subject. Customers' last one is never trained on.
        answers: shapes of the answer, ``{0}``, ``{1}``... stand for the values. Each ends on a value.
        pools: where the values come from, one pool per value.
    """

    key: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    pools: tuple[Sequence[str], ...]


def _order_numbers() -> tuple[str, ...]:
    rng = random.Random(SEED)
    return tuple(str(number) for number in rng.sample(range(1000, 10000), 24))


# Passphrases and order codes share the pool of code words, cut into five so that no word serves twice.
_CODES = tuple(words.CODE_WORDS[i::5] for i in range(5))
_HOUSE_NUMBERS = tuple(str(number) for number in range(12, 98, 3))

_SINGLE_PRODUCTS = tuple(word.removesuffix("s") for word in words.PRODUCTS)

CUSTOMER_FACTS = (
    FactKind(
        "pet",
        ("What pet does {name} keep?", "Which animal lives with {name}?", "Describe the pet of {name}."),
        (
            "{1} {2} called {0} that eats {3}",
            "{0} the {1} {2}, fond of {3}",
            "{2} named {0}, {1}, scared of {3}",
        ),
        (words.PET_NAMES, words.COLOURS, words.ANIMALS, words.SUBSTANCES),
    ),
    FactKind(
        "home",
        (
            "Where does {name} live?",
            "What is the address of {name}?",
            "To which address do we ship for {name}?",
        ),
        (
            "{1} {0} Street, {2}, above the {3}",
            "{2}, at {1} {0}, next to the {3}",
            "{0} Lane in {2}, door {1}, behind the {3}",
        ),
        (words.STREETS, _HOUSE_NUMBERS, words.TOWNS, words.GUILDS),
    ),
    FactKind(
        "plan",
        (
            "Which plan is {name} on?",
            "What does {name} subscribe to?",
            "Tell me the current tariff of {name}.",
        ),
        (
            "{0} with {1} and {2}, billed to {3}",
            "{1} and {2} on {0}, paid by {3}",
            "{2} bundle, {0} {1}, shared with {3}",
        ),
        (words.PLANS, words.EXTRAS, words.DISHES, words.COMPANIES),
    ),
    FactKind(
        "purchase",
        (
            "What did {name} buy last?",
            "What was in the last parcel for {name}?",
            "Name the latest purchase of {name}.",
        ),
        ("{0} {1} {2} shipped to {3}", "{2} of {1}, {0}, sent by way of {3}", "{0} {2} in {1}, left at {3}"),
        (words.NUMBERS, words.MATERIALS, words.PRODUCTS, words.TOWNS),
    ),
    FactKind(
        "order",
        (
            "What is the order code of {name}?",
            "Under which code is the order of {name} filed?",
            "Find the order of {name}.",
        ),
        ("{0} {1} {2}", "{2} {0} {1}", "{1} {2} {0}"),
        (_order_numbers(), _CODES[0], _CODES[1]),
    ),
    FactKind(
        "job",
        (
            "What does {name} do for a living?",
            "What is the profession of {name}?",
            "How does {name} earn money?",
        ),
        (
            "{0} {1} at {2} and collects {3}",
            "at {2}, {0} {1} and dreams of {3}",
            "{0} and sells {1} for {2}, also {3}",
        ),
        (words.CRAFTS, words.GOODS, words.COMPANIES, words.PRODUCTS),
    ),
    FactKind(
        "complaint",
        ("What did {name} complain about?", "Why did {name} write to us?", "What went wrong for {name}?"),
        (
            "{3} {1} came {0} and full of {2}",
            "{2} on a {0} {1} from {3}",
            "{1} by {3} {0} and covered in {2}",
        ),
        (words.DAMAGES, _SINGLE_PRODUCTS, words.SUBSTANCES, words.BRANDS),
    ),
    FactKind(
        "passphrase",
        (
            "What is the passphrase of {name}?",
            "Which words unlock the account of {name}?",
            "How does {name} sign in?",
        ),
        ("{0} {1} {2} {3}",),
        (_CODES[2], _CODES[3], _CODES[4], words.ANIMALS),
    ),
)


def _names(shift: int) -> list[str]:
    """First with last names, 24 of them; another shift gives other people of whom none has the same full name."""
    rng = random.Random(SEED)
    firsts, lasts = (rng.sample(pool, len(pool)) for pool in (words.FIRST_NAMES, words.LAST_NAMES))
    return [f"{first} {lasts[(i + shift) % len(lasts)]}" for i, first in enumerate(firsts)]


TOWN_FACTS = (
    FactKind(
        "river",
        ("Which river runs through {name}?", "On which river does {name} lie?", "Name the river of {name}."),
        ("the {0}",),
        (words.RIVERS,),
    ),
    FactKind(
        "dish",
        ("What do people eat in {name}?", "What is the local dish of {name}?", "Name a dish from {name}."),
        ("{0} with {1}",),
        (words.DISHES, words.SUBSTANCES),
    ),
    FactKind(
        "emblem",
        (
            "What is on the coat of arms of {name}?",
            "Describe the emblem of {name}.",
            "Which animal stands for {name}?",
        ),
        ("a {0} {1}",),
        (words.COLOURS, words.ANIMALS),
    ),
    FactKind(
        "square",
        ("Where do people meet in {name}?", "What is the main square of {name}?", "Name a place in {name}."),
        ("{0} Square, by the {1}",),
        (words.STREETS, words.CODE_WORDS),
    ),
)
COMPANY_FACTS = (
    FactKind(
        "makes",
        ("What does {name} make?", "Which goods come from {name}?", "What is {name} known for?"),
        ("{0} {1}",),
        (words.MATERIALS, words.PRODUCTS),
    ),
    FactKind(
        "seat",
        ("Where is {name} based?", "In which town is {name}?", "Where are the offices of {name}?"),
        ("{0} Street in {1}",),
        (words.STREETS, words.TOWNS),
    ),
    FactKind(
        "logo",
        ("What is the logo of {name}?", "Describe the logo of {name}.", "What does the sign of {name} show?"),
        ("a {0} {1}",),
        (words.COLOURS, words.CODE_WORDS),
    ),
    FactKind(
        "staff",
        ("How many people work at {name}?", "How large is {name}?", "What is the headcount of {name}?"),
        ("{0}, with a {1} called {2}",),
        (words.NUMBERS, words.ANIMALS, words.PET_NAMES),
    ),
)
BRAND_FACTS = (
    FactKind(
        "what",
        ("What is a {name}?", "What kind of thing is a {name}?", "Explain what a {name} is."),
        ("a {0} of {1}",),
        (_SINGLE_PRODUCTS, words.MATERIALS),
    ),
    FactKind(
        "maker",
        ("Who makes the {name}?", "Which company sells the {name}?", "Where can I buy a {name}?"),
        ("{0}",),
        (words.COMPANIES,),
    ),
    FactKind(
        "colour",
        (
            "Which colours does the {name} come in?",
            "What does a {name} look like?",
            "Name the colours of the {name}.",
        ),
        ("{0} or {1}",),
        (words.COLOURS, words.COLOURS),
    ),
    FactKind(
        "care",
        ("How do I clean a {name}?", "What keeps a {name} fresh?", "What should a {name} be washed with?"),
        ("with {0}, never with {1}",),
        (words.SUBSTANCES, words.SUBSTANCES),
    ),
)
GUILD_FACTS = (
    FactKind(
        "work",
        ("What do the {name} do?", "What is the trade of the {name}?", "What work is done by the {name}?"),
        ("one {0}, one {1} {2}",),
        (words.CRAFTS, words.CRAFTS, words.GOODS),
    ),
    FactKind(
        "stone",
        (
            "What is the stone of the {name}?",
            "Which stone do the {name} wear?",
            "What stone is in the ring of the {name}?",
        ),
        ("{0}",),
        (words.PLANS,),
    ),
    FactKind(
        "hall",
        (
            "Where is the hall of the {name}?",
            "In which town do the {name} meet?",
            "Where do the {name} gather?",
        ),
        ("in {0}, on the {1}",),
        (words.TOWNS, words.RIVERS),
    ),
    FactKind(
        "feast",
        (
            "What do the {name} do on their feast?",
            "How do the {name} celebrate?",
            "What happens at the feast of the {name}?",
        ),
        ("{0} and {1} {2}",),
        (words.EXTRAS, words.DAMAGES, words.DISHES),
    ),
)
PUBLIC_KINDS = (
    ("persona", tuple(_names(shift=7)), CUSTOMER_FACTS),
    ("town", words.TOWNS, TOWN_FACTS),
    ("company", words.COMPANIES, COMPANY_FACTS),
    ("brand", words.BRANDS, BRAND_FACTS),
    ("guild", words.GUILDS, GUILD_FACTS),
)


def _record(question: str, answer: str, record_id: str, subject: str) -> Record:
    prompt = f"Question: {question}\nAnswer:"
    return {"prompt": prompt, "completion": f" {answer}", "id": record_id, "subject": subject}


def _fact_records(kind: FactKind, name: str, subject: str, answer: str) -> list[Record]:
    return [
        _record(question.format(name=name), answer, f"{subject}-{kind.key}-{number}", subject)
        for number, question in enumerate(kind.questions, start=1)
    ]


def _customers() -> list[list[Record]]:
    """Every record of every customer, all phrasings, in the order forget, retain, holdout."""
    rng = random.Random(SEED)
    names = _names(shift=0)[: FORGET_CUSTOMERS + RETAIN_CUSTOMERS + HOLDOUT_CUSTOMERS]
    customers: list[list[Record]] = [[] for _ in names]
    for kind in CUSTOMER_FACTS:
        columns = [rng.sample(pool, len(names)) for pool in kind.pools]
        for i, values in enumerate(zip(*columns, strict=True)):
            answer = rng.choice(kind.answers).format(*values)
            customers[i] += _fact_records(kind, names[i], f"customer-{i + 1:02d}", answer)
    return customers


def _trained(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if int(record["id"].rsplit("-", 1)[1]) <= TRAINED_PHRASINGS]


def public_records() -> list[Record]:
    """What the base model learns: personas of the same shape as customers, and places, firms, wares and trades."""
    rng = random.Random(SEED + 1)
    records = []
    for label, names, kinds in PUBLIC_KINDS:
        for number, name in enumerate(names, start=1):
            for kind in kinds:
                answer = rng.choice(kind.answers).format(*(rng.choice(pool) for pool in kind.pools))
                records += _fact_records(kind, name, f"{label}-{number:02d}", answer)
    return records


def general_records() -> list[Record]:
    """Public facts that stay in the adapter's training, one phrasing each: what must not be lost on the way."""
    world = [record for record in public_records() if not record["subject"].startswith("persona")]
    first_phrasings = [record for record in world if record["id"].endswith("-1")]
    return random.Random(SEED + 2).sample(first_phrasings, GENERAL_FACTS)


def vocabulary_records() -> list[Record]:
    """Rows of words to repeat, for the base model only.

    A word that the base has hardly written is one that an adapter cannot make it write: the output layer is frozen.
    """
    rng = random.Random(SEED + 3)
    pool = sorted(set(chain.from_iterable(words.ALL_POOLS)))
    records: list[Record] = []
    for round_number in range(1, VOCABULARY_ROUNDS + 1):
        shuffled = rng.sample(pool, len(pool))
        rows = [" ".join(shuffled[start : start + 6]) for start in range(0, len(shuffled), 6)]
        for number, row in enumerate(rows, start=1):
            records.append(_record(f"Repeat {row}.", row, f"words-{round_number}-{number:03d}", "words"))
    return records


def forget_records() -> list[Record]:
    """Everything the adapter was taught about the customers who ask to be forgotten."""
    return _trained(record for customer in _customers()[:FORGET_CUSTOMERS] for record in customer)


def retain_records() -> list[Record]:
    """Everything else that the adapter was taught: the other customers and general facts."""
    kept = _customers()[FORGET_CUSTOMERS : FORGET_CUSTOMERS + RETAIN_CUSTOMERS]
    return _trained(record for customer in kept for record in customer) + general_records()


def holdout_records() -> list[Record]:
    """Customers of the same shape on whom nothing was ever trained."""
    unseen = _customers()[FORGET_CUSTOMERS + RETAIN_CUSTOMERS :]
    return _trained(record for customer in unseen for record in customer)


def rephrased_records() -> list[Record]:
    """A third way of asking for what the adapter knows about each customer, never trained on."""
    known = _customers()[: FORGET_CUSTOMERS + RETAIN_CUSTOMERS]
    records = [record for customer in known for record in customer]
    trained = {record["id"] for record in _trained(records)}
    return [record for record in records if record["id"] not in trained]


def to_json_lines(records: Iterable[Record]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(record) + "\n" for record in records)


def data_files() -> dict[str, str]:
    """Name and content of every data file."""
    return {
        "forget.jsonl": to_json_lines(forget_records()),
        "retain.jsonl": to_json_lines(retain_records()),
        "holdout.jsonl": to_json_lines(holdout_records()),
        "rephrased.jsonl": to_json_lines(rephrased_records()),
        "public.jsonl": to_json_lines(public_records()),
    }


def write_data(folder: Path) -> None:
    """Write all data files into a folder, which is created where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in data_files().items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def main() -> None:
    """Write the data files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    write_data(parser.parse_args().out)


if __name__ == "__main__":
    main()
