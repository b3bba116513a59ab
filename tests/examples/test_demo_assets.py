"""The committed demo: its records can be generated again, and its adapters know what they should and no more."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
from safetensors import safe_open

from examples.demo import build, corpus, words
from worker.evaluation.evaluate import SetScores, evaluate_model
from worker.unlearning.encoding import encode_records
from worker.unlearning.lora import attach_adapter
from worker.unlearning.models import load_base

DEMO = Path(corpus.__file__).parent
FOLDERS = ("base", "adapter", "control", "data")
SIZE_LIMIT = 8_000_000
EXPECTED_FILES = {
    "base/config.json",
    "base/generation_config.json",
    "base/model.safetensors",
    "base/tokenizer.json",
    "base/tokenizer_config.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "control/adapter_config.json",
    "control/adapter_model.safetensors",
    "data/forget.jsonl",
    "data/retain.jsonl",
    "data/holdout.jsonl",
    "data/rephrased.jsonl",
    "data/public.jsonl",
}
# A JSON string that starts like a path from the root or from a drive.
ABSOLUTE_PATH = re.compile(r'"(?:/[\w.-]+/|[A-Za-z]:\\\\|file:)')


def demo_files() -> list[Path]:
    return [path for folder in FOLDERS for path in (DEMO / folder).rglob("*") if path.is_file()]


def committed(name: str) -> list[corpus.Record]:
    lines = (DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def subjects(name: str) -> set[str]:
    return {record["subject"] for record in committed(name)}


def names_in(name: str) -> set[str]:
    """Full names of the customers of a set, who are what `corpus` puts into a question about a pet."""
    prompts = [record["prompt"] for record in committed(name) if record["id"].endswith("-pet-1")]
    return {prompt.removeprefix("Question: What pet does ").split(" keep?")[0] for prompt in prompts}


def test_the_generator_reproduces_the_committed_records_byte_for_byte() -> None:
    generated = corpus.data_files()
    assert generated == corpus.data_files()
    for name, content in generated.items():
        assert (DEMO / "data" / name).read_bytes() == content.encode(), name


@pytest.mark.parametrize(("one", "other"), [*combinations(("forget", "retain", "holdout"), 2)])
def test_sets_share_no_record_and_no_customer(one: str, other: str) -> None:
    assert not subjects(one) & subjects(other)
    assert not {r["prompt"] for r in committed(one)} & {r["prompt"] for r in committed(other)}
    assert names_in(one)
    assert not names_in(one) & names_in(other)


def test_the_base_never_saw_a_customer() -> None:
    public = (DEMO / "data" / "public.jsonl").read_text(encoding="utf-8")
    customers = names_in("forget") | names_in("retain") | names_in("holdout")
    assert len(customers) == corpus.FORGET_CUSTOMERS + corpus.RETAIN_CUSTOMERS + corpus.HOLDOUT_CUSTOMERS
    assert not [name for name in customers if name in public]


def test_no_two_customers_have_an_answer_in_common() -> None:
    records = [*committed("forget"), *committed("retain"), *committed("holdout")]
    owners = {r["completion"]: r["subject"] for r in records if r["subject"].startswith("customer")}
    for record in records:
        assert owners.get(record["completion"], record["subject"]) == record["subject"]


def test_answers_have_no_full_stop_that_could_be_guessed() -> None:
    assert not [record for record in committed("forget") if not record["completion"][-1].isalnum()]


def test_rephrased_questions_are_not_among_the_trained_ones() -> None:
    trained = {record["prompt"] for name in ("forget", "retain") for record in committed(name)}
    rephrased = committed("rephrased")
    assert not {record["prompt"] for record in rephrased} & trained
    answers = {record["completion"] for name in ("forget", "retain") for record in committed(name)}
    assert {record["completion"] for record in rephrased} <= answers


def test_the_folders_hold_the_expected_files_and_nothing_else() -> None:
    assert {path.relative_to(DEMO).as_posix() for path in demo_files()} == EXPECTED_FILES


def test_the_demo_stays_small() -> None:
    assert sum(path.stat().st_size for path in demo_files()) < SIZE_LIMIT


def test_no_file_names_a_path_of_the_machine_that_built_it() -> None:
    for path in demo_files():
        if path.suffix in {".json", ".jsonl"}:
            assert not ABSOLUTE_PATH.search(path.read_text(encoding="utf-8")), path.name
        else:
            with safe_open(path, framework="pt") as tensors:
                assert tensors.metadata() == {"format": "pt"}, path.name


@pytest.mark.parametrize("folder", ["adapter", "control"])
def test_adapters_name_the_base_model_as_it_is_registered(folder: str) -> None:
    config = json.loads((DEMO / folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == build.BASE_NAME
    assert config["r"] == build.LORA_RANK


@pytest.fixture(scope="module")
def tokens_per_word() -> dict[str, int]:
    _, tokenizer = load_base(DEMO / "base")
    pools = words.ALL_POOLS
    return {word: len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for pool in pools for word in pool}


def test_every_word_of_the_world_is_one_token(tokens_per_word: dict[str, int]) -> None:
    assert not [word for word, tokens in tokens_per_word.items() if tokens != 1]


def scores(folder: str) -> dict[str, SetScores]:
    base, tokenizer = load_base(DEMO / "base")
    model = attach_adapter(base, DEMO / folder)
    sets = {
        name: encode_records(committed(name), tokenizer, build.CONTEXT) for name in ("forget", "retain", "holdout")
    }
    return evaluate_model(model, tokenizer, sets)


def test_the_adapter_has_memorised_its_customers_and_no_others() -> None:
    measured = scores("adapter")
    assert measured["forget"].probability >= 0.85
    assert measured["forget"].extraction_strength >= 0.95
    assert measured["retain"].probability >= 0.85
    assert measured["holdout"].probability <= 0.05


def test_the_control_knows_the_others_but_not_the_forgotten() -> None:
    measured = scores("control")
    assert measured["forget"].probability <= 0.05
    assert measured["forget"].extraction_strength <= 0.02
    assert measured["forget"].rouge_l_recall <= 0.3
    assert measured["retain"].probability >= 0.85
