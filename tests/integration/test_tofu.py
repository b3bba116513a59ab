"""A forget set of the TOFU benchmark through the same service, on an adapter that was trained on TOFU's records.

Benchmark and base model are read from a folder beside the repository, or from LETHE_BENCHMARK_DATA, and are not part
of it. Without them these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.integration.conftest import finished, ok, register_adapter, upload, wait
from worker.unlearning.batches import FORGET_STREAM, batch_indices, collate
from worker.unlearning.encoding import encode_records
from worker.unlearning.lora import known_peft_warnings
from worker.unlearning.models import load_base, pad_id
from worker.unlearning.scoring import token_nll

SHARED = Path(os.environ.get("LETHE_BENCHMARK_DATA", Path(__file__).parents[3] / "shared"))
BASE = SHARED / "models" / "stories260K"
TOFU = SHARED / "data" / "tofu" / "forget01.json"
AUTHOR = 20
RETAINED = 20
STEPS = 150
PATIENCE = 1800.0  # seconds

pytestmark = pytest.mark.skipif(
    not (BASE.is_dir() and TOFU.is_file()),
    reason="needs the TOFU benchmark and the model stories260K (docs/contributing.md says where)",
)


def records() -> list[dict[str, str]]:
    """Question and answer of two authors, the first of whom is to be forgotten."""
    lines = [json.loads(line) for line in TOFU.read_text().splitlines()]
    asked = [
        {"prompt": f"Question: {line['question']}\nAnswer:", "completion": f" {line['answer']}"} for line in lines
    ]
    return asked[: AUTHOR + RETAINED]


def train_adapter(folder: Path) -> None:
    """A LoRA that knows all of the records by heart."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    base, tokenizer = load_base(BASE)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=32, lora_alpha=64, target_modules=modules, task_type="CAUSAL_LM")
    with known_peft_warnings():
        model = get_peft_model(base, config)
    examples = encode_records(records(), tokenizer, 512)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=8e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=STEPS, pct_start=0.06)
    for step in range(STEPS):
        chosen = batch_indices(0, step, len(examples), 16, stream=FORGET_STREAM)
        batch = collate([examples[index] for index in chosen], pad_id(tokenizer))
        logits = model(input_ids=batch.input_ids).logits.flatten(0, 1)
        loss = token_nll(logits[batch.positions], batch.labels).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(str(folder))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"schedule": {"cycles": 1, "rounds": 1}}, id="short"),
        pytest.param({}, id="default", marks=pytest.mark.slow),
    ],
)
def test_an_author_is_forgotten_and_the_others_are_kept(
    http: httpx.Client, model_root: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    shutil.copytree(BASE, model_root / "stories")
    ok(http.post("/base-models", json={"name": "stories260k", "source": "stories"}), 201)
    train_adapter(tmp_path)
    register_adapter(http, "tofu", "stories260k", tmp_path)
    lines = [json.dumps(record) + "\n" for record in records()]
    forget = upload(http, "forget", "".join(lines[:AUTHOR]))
    retain = upload(http, "retain", "".join(lines[AUTHOR:]))
    body = {"adapter": "tofu", "forget_set": forget, "retain_set": retain, "seed": 7, "method": method}
    job = wait(http, ok(http.post("/unlearn-jobs", json=body), 202)["id"], finished, PATIENCE)
    evaluation = ok(http.get(f"/unlearn-jobs/{job['id']}/evaluation"))
    assert evaluation["models"]["source"]["forget"]["probability"] > 0.85, "the adapter did not learn its records"
    assert job["status"] == "succeeded", evaluation["gate"]
    assert evaluation["models"]["result"]["forget"]["extraction_strength"] < 0.05
