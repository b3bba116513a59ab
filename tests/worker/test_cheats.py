"""Results that only look unlearned, on the demo's real models. The default policy has to catch each of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.methods import DEFAULT_POLICY, METHOD_REQUEST, BlurRequest, Stretch
from tests.worker.judges import THERE
from worker.answering import answer
from worker.evaluation.checks import Check
from worker.evaluation.tuning import Tuner, Tuning
from worker.judging import Request
from worker.unlearning.encoding import encode_records
from worker.unlearning.loop import unlearn
from worker.unlearning.lora import CONFIG_FILE, WEIGHTS_FILE, adapter_state, attach_adapter
from worker.unlearning.models import load_base

DEMO = Path(__file__).parents[2] / "examples" / "demo"
POLICY = DEFAULT_POLICY.model_copy(update={"probes": ("recall", "utility", "rephrasing", "membership", "integrity")})
REFUSAL = " Saffra Puddlewick keeps nothing"  # of words that the base model has written before
State = dict[str, Tensor]


@cache
def records(name: str) -> list[dict[str, Any]]:
    """A set of the demo; of the kept one a part, which is as good and faster."""
    found = [json.loads(line) for line in (DEMO / "data" / f"{name}.jsonl").read_text().splitlines()]
    return found[::5] if name == "retain" else found


def judged(result: Path) -> dict[str, Check]:
    """Every check on a result, by name."""
    request = Request(
        base=DEMO / "base",
        adapters={"source": DEMO / "adapter", "result": result},
        records={name: records(name) for name in ("forget", "retain", "holdout")},
        policy=POLICY,
        method=BlurRequest(schedule=Stretch()).resolve(32),
        seed=7,
        device="cpu",
        threads=1,
        four_bit=False,
        spread=False,
    )
    return {check.name: check for check in answer(request, lambda _probe: None, THERE).gate.checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


def changed(folder: Path, change: Callable[[State, dict[str, Any]], State]) -> Path:
    """The source adapter with something done to its tensors and its configuration."""
    folder.mkdir()
    config = json.loads((DEMO / "adapter" / CONFIG_FILE).read_text())
    state = change(load_file(DEMO / "adapter" / WEIGHTS_FILE), config)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


def test_the_control_passes() -> None:
    """An adapter that never saw the records: what catches cheats must not catch it."""
    assert failed(judged(DEMO / "control")) == set()


def test_the_source_returned_unchanged_is_caught(tmp_path: Path) -> None:
    result = tmp_path / "result"
    shutil.copytree(DEMO / "adapter", result)
    missed = failed(judged(result))
    assert missed >= {
        "forget_probability",
        "forget_extraction_strength",
        "forget_rouge_l_recall",
        "rephrased_probability",
        "membership_auc_distance",
        "integrity_violations",
    }


def test_an_adapter_zeroed_out_is_caught(tmp_path: Path) -> None:
    result = changed(tmp_path / "result", lambda state, _: {name: torch.zeros_like(t) for name, t in state.items()})
    checks = judged(result)
    assert failed(checks) >= {"retain_probability_ratio", "integrity_violations"}
    assert checks["forget_probability"].passed, "recall alone would have let it pass"


def concatenated(state: State, config: dict[str, Any]) -> State:
    """Old factors beside new ones that cancel them: nothing shows, and everything is still in the file."""
    config["r"] *= 2
    config["lora_alpha"] *= 2
    control = load_file(DEMO / "control" / WEIGHTS_FILE)
    joined = {}
    for name, old in state.items():
        axis = 0 if "lora_A" in name else 1
        # [old, new]: with the old half of B at zero the product is that of the new factors alone.
        joined[name] = torch.cat([old if axis == 0 else torch.zeros_like(old), control[name]], dim=axis)
    return joined


def test_old_factors_left_in_the_file_are_caught(tmp_path: Path) -> None:
    checks = judged(changed(tmp_path / "result", concatenated))
    assert failed(checks) == {"integrity_violations"}, "by what it shows it is the control"


def test_forgetting_everything_is_caught(tmp_path: Path) -> None:
    result = changed(tmp_path / "result", lambda state, _: {n: -t if "lora_B" in n else t for n, t in state.items()})
    assert failed(judged(result)) >= {"retain_probability_ratio", "neighbour_probability_ratio"}


def test_over_forgetting_that_makes_the_records_stand_out_is_caught(tmp_path: Path) -> None:
    """Gradient ascent without an anchor: the records become far less likely than for a model that never saw them."""
    model, tokenizer = source()
    knobs = {"forget_loss": {"type": "ga"}, "anchor": "none", "steps": 60, "stop": {"type": "steps"}}
    knobs |= {"schedule": {"type": "stretch"}}
    forget, retain = (encode_records(records(name), tokenizer, 128) for name in ("forget", "retain"))
    unlearn(model, tokenizer, forget, retain, METHOD_REQUEST.validate_python(knobs).resolve(32), seed=1)
    checks = judged(saved(model, tmp_path / "result"))
    assert checks["forget_probability"].passed
    assert failed(checks) >= {"forget_nll_excess", "membership_auc_distance"}


def test_refusing_on_the_exact_phrasing_alone_is_caught(tmp_path: Path) -> None:
    """Each exact question is answered by a refusal; the answer is as well known as before."""
    model, tokenizer = source()
    refusals = [{**record, "completion": REFUSAL} for record in records("forget")]
    examples = encode_records([*refusals, *records("retain")], tokenizer, 128)
    Tuner(model, tokenizer, examples, Tuning(1e-3, batch_size=12, max_grad_norm=1.0, seed=1)).train_to(60)
    checks = judged(saved(model, tmp_path / "result"))
    assert checks["forget_rouge_l_recall"].passed, "greedy answers show nothing"
    assert failed(checks) & {"rephrased_probability", "rephrased_extraction_strength"}


def source() -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The demo's adapter, which knows the records."""
    base, tokenizer = load_base(DEMO / "base")
    return attach_adapter(base, DEMO / "adapter"), tokenizer


def saved(model: PeftModel, folder: Path) -> Path:
    """An adapter's files."""
    folder.mkdir()
    shutil.copy(DEMO / "adapter" / CONFIG_FILE, folder)
    save_file(adapter_state(model), folder / WEIGHTS_FILE)
    return folder
