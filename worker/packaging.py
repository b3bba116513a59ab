"""The released adapter: a PEFT directory with a model card, and one reproducible archive of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import save_file
from torch import Tensor

from app.adapters import archive
from app.adapters.archive import ArchiveDigest
from app.adapters.serving import Served, instructions
from app.attestations.statement import ATTESTATION_FILE
from app.evaluations.schemas import Retraining
from app.methods import METHOD_REQUESTS, Method, Policy, describe
from worker.evaluation.checks import Gate
from worker.evaluation.evaluate import SetScores
from worker.unlearning.loop import Outcome

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
ARCHIVE_FILES = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, ATTESTATION_FILE)  # in the order of the archive

_METRICS = (
    ("probability", "answer probability"),
    ("extraction_strength", "extraction strength"),
    ("exact_memorisation", "exact memorisation"),
    ("rouge_l_recall", "ROUGE-L recall"),
    ("nll", "NLL per token (nats)"),
)

LIMITS = (
    "This is approximate unlearning. It lowers how much of the records the model shows; it is no proof that "
    "no trace of them is left in the weights.",
    "Further fine-tuning of this adapter, even on other data, may bring records back.",
    "Only the weights of this adapter were changed. Copies of the source adapter, merged checkpoints, the "
    "base model and training data elsewhere are untouched.",
    "The numbers hold for the metrics, probes and records that they were measured with.",
)


ANEW = (
    "This adapter was trained anew from the base model, by the recipe that was recorded with its training set, "
    "without the records to forget that were in that set.",
    "Records count as the same where their content is, character by character: what other records of the training "
    "set say of the forgotten ones, in other words or in part, was trained on.",
)
EXACT = (
    "Every record to forget was found in the training set and taken out. Exact means that much and no more: other "
    "hardware would give other bytes by the same recipe, and nothing is said of what the base model knows."
)
NOT_EXACT = (
    "Not every record to forget was found in the training set, so that the result is not exact: what was not found "
    "may have been trained on in another form."
)

BASE_KNOWS = (
    "The base model itself knows the records, and was not changed: they are back wherever it is used without this "
    "adapter."
)


def limits(*, base_knows: bool, exact: bool = False, anew: bool = False) -> tuple[str, ...]:
    """What a result does not prove."""
    if anew:
        return (*ANEW, EXACT if exact else NOT_EXACT, *LIMITS[2:])
    return (*LIMITS, BASE_KNOWS) if base_knows else LIMITS


VERIFY = f"""### Verify

`{ATTESTATION_FILE}` is a signed statement about the other files of this archive: what was done, with what, and what
was measured against which thresholds. With the service's public keys (the answer of `GET /keys`) it is checked
offline, on the archive as it was downloaded:

```sh
lethe verify adapter.tar.gz --keys keys.json
```"""


@dataclass(frozen=True)
class SetFacts:
    """What may be said about a record set: its id and number of records.

    Neither content nor a plain digest: who guesses a record could confirm it by its digest.
    """

    dataset: str
    records: int


@dataclass(frozen=True)
class CardFacts:
    """Everything that a model card states.

    Attributes:
        job_id: the unlearn job.
        base_model_name: public name of the base model, as PEFT and vLLM look it up.
        revision: revision of the base model, if it has one.
        adapter_name: name under which the card suggests to serve the adapter.
        config: its adapter_config.json.
        method: every knob.
        training: how training went.
        seed: seed of the run.
        policy: thresholds of the gate.
        forget, retain: ids and counts of the sets.
        gate: outcome.
        scores: scores by column title ("before", "after", "base model alone"), then by set.
        not_tested: what no probe looked at.
        begun: the run began the adapter, as a fresh LoRA on the base model.
        base_knows: the base model itself knows the records.
        retraining: of a result that was trained anew.
    """

    job_id: str
    base_model_name: str
    revision: str | None
    adapter_name: str
    config: Mapping[str, Any]
    method: Method
    training: Outcome
    seed: int
    policy: Policy
    forget: SetFacts
    retain: SetFacts
    gate: Gate
    scores: Mapping[str, Mapping[str, SetScores]]
    not_tested: Sequence[str]
    begun: bool = False
    base_knows: bool = False
    retraining: Retraining | None = None


def write_adapter_directory(
    directory: Path,
    state: Mapping[str, Tensor],
    source_config: Mapping[str, Any],
    *,
    base_model_name: str,
    revision: str | None,
    card: str,
) -> None:
    """Write the files of a PEFT adapter. The directory is created; files of the same name are replaced.

    Args:
        directory: target.
        state: tensors under PEFT's names, from `worker.unlearning.lora.adapter_state`.
        source_config: adapter_config.json of the source adapter. All of it is kept but the names of the base
            model.
        base_model_name: public name of the base model; a path of the machine that trained must not leak.
        revision: revision of the base model.
        card: text of README.md, from `model_card`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(source_config) | {
        "base_model_name_or_path": base_model_name,
        "revision": revision,
        "inference_mode": True,
    }
    save_file(dict(state), directory / WEIGHTS_FILE, metadata={"format": "pt"})
    _write(directory / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    _write(directory / CARD_FILE, card)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def write_archive(directory: Path, sink: BinaryIO) -> ArchiveDigest:
    """Pack the files of an adapter directory. The same files give the same bytes, whoever packs them and when.

    Args:
        directory: holds every name in `ARCHIVE_FILES`; anything else in it is left out.
        sink: takes the tar.gz.

    Raises:
        FileNotFoundError: a file is missing.
    """
    return archive.write_archive([directory / name for name in ARCHIVE_FILES], sink)


def model_card(facts: CardFacts) -> str:
    """README.md of a released adapter: front matter, use, what was unlearned and how. Holds no record."""
    sections = (_front_matter, _use, _unlearning, _metrics, _gate)
    parts = (*(section(facts) for section in sections), _limits(facts), VERIFY)
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    # JSON strings are YAML strings, so a name can never break out of its field.
    return "\n".join(
        (
            "---",
            "library_name: peft",
            f"base_model: {json.dumps(facts.base_model_name)}",
            "base_model_relation: adapter",
            "pipeline_tag: text-generation",
            "tags:",
            *(f"- {tag}" for tag in ("lora", "peft", "unlearning", "lethe")),
            "---",
        )
    )


def _use(facts: CardFacts) -> str:
    served = Served.of(facts.adapter_name, facts.config, facts.base_model_name, facts.revision)
    return f"""# {facts.adapter_name}

{_origin(facts)}

{instructions(served)}"""


def _origin(facts: CardFacts) -> str:
    if facts.begun:
        return f"""A fresh LoRA adapter on `{facts.base_model_name}`, trained to unlearn records that this base model
itself knows. It began with no effect at all; "before" below is the base model with it."""
    if facts.retraining is not None:
        return f"""A LoRA adapter for `{facts.base_model_name}`, trained anew without records that were to be
forgotten. It has the rank, the target modules and the tensor names of the adapter that it came from, and takes its
place."""
    return f"""A LoRA adapter for `{facts.base_model_name}` from which records were unlearned. It has the rank, the
target modules and the tensor names of the adapter that it came from, and takes its place."""


def _unlearning(facts: CardFacts) -> str:
    method, training = facts.method, facts.training
    course = f"{training.steps} of at most {method.steps} steps, step {training.kept_step} kept"
    losses = f"`{method.forget_loss.type}` to forget, `{method.retain_loss.type}` to retain"
    if (anew := facts.retraining) is not None:
        found = f"{anew.found} of {anew.forget_records} records to forget were in the training set, and are not now"
        exact = "yes" if anew.exact else "no"
        losses = f"`{method.retain_loss.type}`, on {anew.training_records} records; {found}; exact: {exact}"
    knobs = json.dumps(method.model_dump(mode="json"), indent=2)
    return f"""## Unlearning

| | |
|---|---|
| job | `{facts.job_id}` |
| forget set | {facts.forget.records} records, `{facts.forget.dataset}` |
| retain set | {facts.retain.records} records, `{facts.retain.dataset}` |
| method | {describe(METHOD_REQUESTS[method.type])} |
| losses | {losses} |
| training | {course}: {training.explanation} |
| seed | {facts.seed} |

```json
{knobs}
```"""


def _metrics(facts: CardFacts) -> str:
    columns = list(facts.scores)
    header = f"| set | metric | {' | '.join(columns)} |"
    rule = "|---" * (2 + len(columns)) + "|"
    return "\n".join(("### Measured", "", header, rule, *_metric_rows(facts.scores)))


def _metric_rows(scores: Mapping[str, Mapping[str, SetScores]]) -> Iterator[str]:
    """One row per set and metric. Every set of any column is listed."""
    names: Sequence[str] = list(dict.fromkeys(name for column in scores.values() for name in column))
    for name in names:
        measured = [column.get(name) for column in scores.values()]
        records = max((found.records for found in measured if found is not None), default=0)
        for field, title in _METRICS:
            values = (_number(None if found is None else getattr(found, field)) for found in measured)
            yield f"| {name} ({records} records) | {title} | {' | '.join(values)} |"


def _gate(facts: CardFacts) -> str:
    rows = [
        f"| {check.description} | {_number(check.value)} | {check.comparison} {check.limit:g} | "
        f"{'passed' if check.passed else 'failed'} |"
        for check in facts.gate.checks
    ]
    title = f"### Gate: {facts.gate.verdict} (policy `{facts.policy.name}`, version {facts.policy.version})"
    return "\n".join((title, "", "| check | value | threshold | outcome |", "|---|---|---|---|", *rows))


def _limits(facts: CardFacts) -> str:
    anew = facts.retraining
    stated = limits(base_knows=facts.base_knows, exact=anew is not None and anew.exact, anew=anew is not None)
    lines = (*stated, *(f"Not tested: {what}." for what in facts.not_tested))
    return "\n".join(("### Limits", "", *(f"- {line}" for line in lines)))


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
