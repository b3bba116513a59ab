"""Measure a packaged adapter again, independently of the service that made it.

The adapter is loaded by plain PEFT from the released files, as anyone would load it who serves it, and scored
by the code that scored it for its attestation. Nothing is downloaded and nothing is changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from worker.evaluation.evaluate import SetScores, evaluate_model
from worker.evaluation.generation import greedy_answers
from worker.evaluation.quick import shown
from worker.evaluation.tuning import MAX_GRAD_NORM, MOST_ROWS, Diverged, Tuner, Tuning
from worker.packaging import ARCHIVE_FILES
from worker.unlearning.encoding import EncodingError, Example, encode_records
from worker.unlearning.factors import FactorError
from worker.unlearning.lora import known_peft_warnings
from worker.unlearning.models import ModelError, context_length, load_base

_EPILOG = """\
A set is a JSON Lines file. A record is one of
{"prompt": ..., "completion": ...}, {"messages": [...]}, {"text": ...}.

Compare the released adapter with the one it came from, and with the base model alone:

  python -m worker.reproduce --base models/base --adapter after.tar.gz \\
      --set forget=forget.jsonl --set retain=retain.jsonl
  python -m worker.reproduce --base models/base --adapter before/ --set forget=forget.jsonl
  python -m worker.reproduce --base models/base --adapter none --set forget=forget.jsonl

Does further training on kept records bring the forgotten ones back?

  python -m worker.reproduce --base models/base --adapter after.tar.gz \\
      --set forget=forget.jsonl --set retain=retain.jsonl --train-on retain --epochs 3 --learning-rate 5e-4

Metrics are means over the records of a set; docs/evaluation.md defines them. To get the numbers of an
attestation, use the max_length of its method and the same records. --answers and its output hold personal
data: keep them off logs.
"""


class ReproduceError(ValueError):
    """The command line or a file is not usable."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 when an input is not usable."""
    options = _parser().parse_args(arguments)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        result = reproduce(options)
    except (ReproduceError, EncodingError, ModelError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(_table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def reproduce(options: argparse.Namespace) -> dict[str, Any]:
    """Load, encode and score; the result is what --json writes.

    Raises:
        ReproduceError: a set or the adapter cannot be read.
        EncodingError: a record cannot be encoded.
        ModelError: the base model cannot be loaded.
    """
    base, tokenizer = load_base(options.base, four_bit=options.four_bit)
    length = min(options.max_length, context_length(base.config) or options.max_length)
    sets = {name: encode_records(_records(path), tokenizer, length) for name, path in _sets(options.set)}
    if options.train_on not in (None, *sets):
        raise ReproduceError(f"--train-on {options.train_on} names none of the sets")
    model = base if options.adapter == "none" else _with_adapter(base, Path(options.adapter))
    scores = evaluate_model(
        model, tokenizer, sets, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens
    )
    result: dict[str, Any] = {"sets": {name: _plain(score) for name, score in scores.items()}}
    if options.answers:
        result["answers"] = _answers(model, tokenizer, sets, options)
    if options.train_on is not None and options.adapter != "none":
        result["trained"] = _trained(model, tokenizer, sets, options)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker.reproduce",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="DIR", help="directory of the base model")
    add("--adapter", required=True, metavar="DIR|TAR_GZ|none", help="the adapter; none: the base model alone")
    add("--set", action="append", required=True, metavar="NAME=FILE", help="records to score; repeatable")
    add("--four-bit", action="store_true", help="hold the base model in four bits, as LETHE_FOUR_BIT does")
    add("--max-length", type=_positive, default=512, metavar="N", help="tokens per sequence (default 512)")
    add("--batch-size", type=_positive, default=16, metavar="N", help="sequences per pass (default 16)")
    add("--max-new-tokens", type=_positive, default=128, metavar="N", help="cap per answer (default 128)")
    add("--answers", type=_positive, metavar="N", help="also show the first N greedy answers of each set")
    add("--train-on", metavar="NAME", help="then train the adapter, if any, on this set, and score all sets again")
    add("--epochs", type=_positive, default=3, metavar="N", help="of that training (default 3)")
    add("--learning-rate", type=_rate, default=5e-4, metavar="R", help="of its AdamW, constant (default 5e-4)")
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: torch decides)")
    add("--json", type=Path, metavar="OUT", help="also write the result as JSON")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _rate(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return number


def _sets(options: Sequence[str]) -> list[tuple[str, Path]]:
    """NAME=FILE pairs."""
    pairs = []
    for option in options:
        name, separator, path = option.partition("=")
        if not (name and separator and path):
            raise ReproduceError(f"--set takes NAME=FILE, not {option}")
        pairs.append((name, Path(path)))
    return pairs


def _records(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON Lines file; an error names the line and never quotes it."""
    records = []
    # Not splitlines(): JSON strings may hold U+2028 and other line ends that only Python counts as such.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            raise ReproduceError(f"line {number} of {path} is not JSON") from None
        if not isinstance(record, dict):
            raise ReproduceError(f"line {number} of {path} is not a JSON object")
        records.append(record)
    return records


def _with_adapter(base: nn.Module, adapter: Path) -> nn.Module:
    """The base model with the released adapter on it, by PEFT alone."""
    if adapter.is_dir():
        return _peft(base, adapter)
    with tempfile.TemporaryDirectory() as scratch:
        _unpack(adapter, Path(scratch))
        return _peft(base, Path(scratch))


def _peft(base: nn.Module, directory: Path) -> nn.Module:
    if not (directory / "adapter_model.safetensors").is_file():
        raise ReproduceError("the adapter has no adapter_model.safetensors")  # PEFT would open a pickle instead
    try:
        with known_peft_warnings():
            model: nn.Module = PeftModel.from_pretrained(base, str(directory), local_files_only=True)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ReproduceError(f"PEFT cannot load the adapter: {error}") from error
    return model


def _unpack(archive: Path, directory: Path) -> None:
    """Unpack the files that a release is known to hold, and nothing else."""
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for member in packed:
                if member.name in ARCHIVE_FILES and member.isreg():
                    packed.extract(member, directory, filter="data")
    except tarfile.TarError:
        raise ReproduceError(f"{archive} is not a .tar.gz archive") from None


def _answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    options: argparse.Namespace,
) -> dict[str, list[dict[str, Any]]]:
    """Prompt, true answer and greedy answer of the first sequences of each set."""
    shown = {}
    for name, examples in sets.items():
        chosen = examples[: options.answers]
        answers = greedy_answers(model, tokenizer, chosen, options.batch_size, options.max_new_tokens)
        shown[name] = [
            {"record": example.record, "prompt": example.prompt, **asdict(answer)}
            for example, answer in zip(chosen, answers, strict=True)
        ]
    return shown


def _trained(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train the adapter as anyone might who goes on with it, with teacher-forced scores of all sets after."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    tuning = Tuning(options.learning_rate, MOST_ROWS, MAX_GRAD_NORM, seed=0)
    try:
        tuner = Tuner(model, tokenizer, sets[options.train_on], tuning)
        tuner.train_to(options.epochs * tuner.epoch)
    except (ValueError, FactorError, Diverged) as error:
        raise ReproduceError(f"the adapter cannot be trained on {options.train_on}: {error}") from error
    scores = {name: shown(model, tokenizer, examples, options.batch_size) for name, examples in sets.items()}
    return {
        "on": options.train_on,
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "sets": {name: asdict(score) for name, score in scores.items()},
    }


def _plain(scores: SetScores) -> dict[str, Any]:
    """Means only; the scores of single records stay out of the output."""
    return {name: value for name, value in asdict(scores).items() if name != "per_record"}


def _table(result: Mapping[str, Any]) -> str:
    """One column per metric, one line per set, then the answers."""
    lines = [f"{'set':<12}{'records':>8}{'prob':>9}{'nll':>9}{'ES':>9}{'EM':>9}{'ROUGE-L':>9}"]
    fields = ("probability", "nll", "extraction_strength", "exact_memorisation", "rouge_l_recall")
    for name, scores in result["sets"].items():
        values = "".join(f"{scores[field]:>9.4f}" for field in fields)
        lines.append(f"{name:<12}{scores['records']:>8}{values}")
    if trained := result.get("trained"):
        lines += ["", f"after {trained['epochs']} epochs of training on {trained['on']}:"]
        for name, scores in trained["sets"].items():
            values = f"{scores['probability']:>9.4f}{'':>9}{scores['extraction_strength']:>9.4f}"
            lines.append(f"{name:<12}{scores['records']:>8}{values}")
    for name, answers in result.get("answers", {}).items():
        for answer in answers:
            lines += ["", f"[{name} {answer['record'] + 1}] {answer['prompt']}"]
            lines += [f"  true:  {answer['reference']}", f"  model: {answer['generated']}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
