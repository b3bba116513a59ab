"""One run, from top to bottom: prepare, unlearn or train anew, evaluate, package, register.

The adapter that is judged is the one that is shipped: its file is written first, then loaded afresh over a fresh
base model, and evaluated. Nothing of a run is visible to anybody before the last transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from app.adapters.archive import file_sha256
from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import AdapterVersion
from app.evaluations.schemas import EvaluationDocument, Retraining
from app.kit.scratch import remove_abandoned, scratch_folder
from app.methods import Method, RetrainMethod
from app.settings import Settings
from worker import packaging, reporting, retraining
from worker.attesting import require_key
from worker.beginning import begin_adapter
from worker.checkpoints import CheckpointStore
from worker.database import storage, vault
from worker.device import choose_device, choose_dtype, choose_threads, empty_cache, set_up_torch
from worker.errors import JobError
from worker.escalation import next_method
from worker.evaluation.battery.history import PREFIX as HISTORY
from worker.evaluation.judgement import Judgement
from worker.explaining import explain
from worker.judging import Judge, Request
from worker.lease import Lease
from worker.order import Order, Sample, read_order, sample
from worker.progress import Progress
from worker.registering import register, store_evaluation
from worker.reporting import Trained, Tried
from worker.unlearning.checkpoint import CheckpointError
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.loop import Outcome, retrain, unlearn
from worker.unlearning.lora import adapter_state, attach_adapter, read_state, renew
from worker.unlearning.models import backbone, context_length, load_base
from worker.watching import PATIENCE_SECONDS, RunWatcher, earlier_checkpoint

Examples = Mapping[str, list[Example]]


@dataclass(frozen=True)
class Workbench:
    """What the phases share: hold, inputs, folder, device, progress, and the seconds that each phase took."""

    lease: Lease
    order: Order
    settings: Settings
    folder: Path
    device: torch.device
    threads: int
    progress: Progress


def carry_out(lease: Lease, settings: Settings, judge: Judge | None = None) -> None:
    """Carry out a claimed run to its end.

    Args:
        lease: hold on the run.
        settings: of this worker.
        judge: a process that judges the first result, where one was started already.

    Raises:
        JobError: the run cannot succeed.
        worker.lease.Stop: the run must not go on in this process.
    """
    threads = choose_threads(settings.torch_threads)
    set_up_torch(threads)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    require_key(settings)  # before the work, not after it
    order = read_order(lease.claim)
    progress = Progress(lease)
    lease.progress(source_version=order.source_number)
    remove_abandoned()  # what was left by processes that were killed would fill this machine's disk
    with scratch_folder() as folder:
        device = choose_device(settings.device)
        bench = Workbench(lease, order, settings, folder, device, threads, progress)
        try:
            _phases(bench, judge)
        except Exception as error:
            explained = explain(error)
            if explained is None:
                raise
            raise explained from error


def _phases(bench: Workbench, judge: Judge | None) -> None:
    lease, order, progress = bench.lease, bench.order, bench.progress
    with progress.phase("preparing"):
        folders = {name: _fetch(bench, name, version) for name, version in order.adapters.items()}
        model, tokenizer = _load(bench, folders)
        examples, method, anew = _material(order, model, tokenizer)
        samples = _samples(bench)
    tries: list[Tried] = []
    seconds = 0.0
    while True:
        # On a CPU the judge measures what does not need the result while this process trains; a GPU's memory is the
        # training's.
        with judge or Judge() as process:
            judge = None  # it judges one result
            request = _request(bench, folders | {"result": bench.folder / "result"}, samples, method)
            if bench.device.type == "cpu":
                process.prepare(request)
            with progress.phase("unlearning"):
                trained = _train(bench, model, tokenizer, examples, method)
                lease.progress(step=trained.outcome.steps, total_steps=method.steps)
                folders["result"] = _write_result(bench, model)
            seconds += progress.durations("unlearning")["unlearning"]
            del model
            empty_cache(bench.device)
            with progress.phase("evaluating"):
                judgement = process.judge(
                    request,
                    progress.check,
                    lambda name: lease.event(f"probe {name} began"),
                    bench.settings.probe_seconds,
                )
        tries.append(Tried(method, trained, judgement.gate))
        # Training anew once more would give the same again.
        if judgement.gate.verdict == "passed" or len(tries) >= order.policy.max_attempts or anew:
            break
        method = _escalate(bench, tries)
        with progress.phase("preparing"):
            model, tokenizer = _load(bench, folders)
    warnings = _warn(lease, order, tries[-1], judgement, anew)
    store_evaluation(lease, _document(bench, judgement, samples, tries, warnings, anew))
    costs = _costs(bench, tries, seconds)
    if judgement.gate.verdict == "failed":
        why = f"{reporting.why(judgement.gate)}. {reporting.WHAT_TO_CHANGE}"
        lease.end("gate_failed", why, verdict="failed", **costs)
        return
    with progress.phase("packaging"):
        _write_card(bench, folders["result"], judgement, tries[-1], anew)
    with progress.phase("registering"):
        register(lease, order, folders["result"], storage(), exact=anew is not None and anew.exact, **costs)


def _escalate(bench: Workbench, tries: list[Tried]) -> Method:
    """The method of the next try; told in the history."""
    method, change = next_method(tries[-1].method, len(tries), tries[-1].gate)
    tries[-1].next_change = change
    bench.lease.warn(f"{reporting.why(tries[-1].gate)}; trying again: {change}")
    return method


def _fetch(bench: Workbench, name: str, version: AdapterVersion) -> Path:
    """An adapter's files, out of storage."""
    folder = bench.folder / name
    folder.mkdir()
    try:
        storage().fetch(version.weights_key, folder / WEIGHTS_NAME)
    except FileNotFoundError:
        which = "the adapter's head" if name == "source" else "the control adapter"
        raise JobError("adapter_missing", f"the bytes of {which} are no longer held") from None
    (folder / packaging.CONFIG_FILE).write_text(json.dumps(version.config))
    return folder


def _load(bench: Workbench, folders: dict[str, Path]) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A fresh base model with the source on it, which is begun here where the run has none."""
    base, tokenizer = load_base(
        bench.order.base_directory,
        device=bench.device,
        dtype=choose_dtype(bench.device),
        four_bit=bench.settings.four_bit,
        spread=bench.settings.spread_model,
    )
    # Every forward pass is a place to stop at: evaluating takes minutes on large sets. All of them, those of
    # generation too, pass through the layers, and training through these alone.
    backbone(base).register_forward_pre_hook(lambda _model, _arguments: bench.progress.check())
    if "source" not in folders:
        folders["source"] = bench.folder / "source"
        begin_adapter(bench.order, base, folders["source"])
    model, method = attach_adapter(base, folders["source"]), bench.order.method
    if isinstance(method, RetrainMethod):
        renew(model, method.seed)
    return model, tokenizer


def _material(
    order: Order, model: PeftModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Examples, Method, Retraining | None]:
    """What is trained on and how, and what is to be said of it where the adapter is trained anew."""
    context, method = context_length(model.config), order.method
    longest = min(method.max_length, context) if context else method.max_length
    if isinstance(method, RetrainMethod):
        material = retraining.gather(order, method, tokenizer, longest)
        return {"training": material.examples}, material.method, material.facts
    return {name: encode_records(order.records(name), tokenizer, longest) for name in order.datasets}, method, None


def _samples(bench: Workbench) -> dict[str, Sample]:
    """What is looked at: every record to forget, and a seeded sample of each other set."""
    order, limit = bench.order, bench.settings.evaluation_records
    sets = {name: order.records(name) for name in order.datasets}
    sets |= {f"{HISTORY}{job_id}": found for job_id in order.earlier if (found := order.earlier_records(job_id))}
    return {
        name: sample(records, len(records) if name == "forget" else limit, order.seed)
        for name, records in sets.items()
    }


def _request(bench: Workbench, folders: Mapping[str, Path], samples: Mapping[str, Sample], method: Method) -> Request:
    """What is to be judged."""
    order, settings = bench.order, bench.settings
    return Request(
        base=order.base_directory,
        adapters=folders,
        records={name: found.records for name, found in samples.items()},
        policy=order.policy,
        method=method,
        seed=order.seed,
        device=str(bench.device),
        threads=bench.threads,
        four_bit=settings.four_bit,
        spread=settings.spread_model,
        base_knows=order.base_knows,
    )


def _train(
    bench: Workbench, model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, method: Method
) -> Trained:
    """Unlearn or train anew, from the newest checkpoint of an earlier attempt if there is one."""
    lease, order = bench.lease, bench.order
    store = CheckpointStore(lease.claim, order.datasets["forget"], storage(), vault())
    watcher = RunWatcher(lease, bench.progress, store, bench.settings.checkpoint_seconds)
    run: Callable[..., Outcome]
    if isinstance(method, RetrainMethod):
        run = partial(retrain, model, tokenizer, examples["training"], method, watcher=watcher)
    else:
        run = partial(
            unlearn,
            model,
            tokenizer,
            examples["forget"],
            examples["retain"],
            method,
            seed=order.seed,
            targets=order.policy.targets,
            watcher=watcher,
        )
    with lease.postponing(PATIENCE_SECONDS):
        found = earlier_checkpoint(lease, store)
        if found is not None:
            lease.event(f"going on from step {found.step}, the checkpoint of attempt {found.attempt}")
            try:
                return Trained(run(resume=found.checkpoint), resumed=True)
            except CheckpointError:
                # The adapter got a new head, or the worker another version of torch. The model is as it was.
                lease.event("the checkpoint is of another course of training; starting from the first step")
        return Trained(run(), resumed=False)


def _write_result(bench: Workbench, model: PeftModel) -> Path:
    """Write the trained adapter as it will be shipped, without its card, which needs the numbers."""
    folder = bench.folder / "result"
    state = adapter_state(model, like=read_state(bench.folder / "source"))
    base = bench.order.base
    packaging.write_adapter_directory(
        folder, state, _config(bench), base_model_name=base.name, revision=base.revision, card=""
    )
    return folder


def _config(bench: Workbench) -> dict[str, Any]:
    """The source's adapter_config.json."""
    config: dict[str, Any] = json.loads((bench.folder / "source" / packaging.CONFIG_FILE).read_bytes())
    return config


def _write_card(bench: Workbench, folder: Path, judgement: Judgement, last: Tried, anew: Retraining | None) -> None:
    order, scores = bench.order, judgement.scores
    columns = {"before": "source", "after": "result", "base model alone": "base", "control": "control"}
    facts = packaging.CardFacts(
        job_id=order.job_id,
        base_model_name=order.base.name,
        revision=order.base.revision,
        adapter_name=order.adapter.name,
        config=_config(bench),
        begun=order.source is None,
        base_knows=order.base_knows,
        retraining=anew,
        method=last.method,
        training=last.trained.outcome,
        seed=order.seed,
        policy=order.policy,
        forget=packaging.SetFacts(order.datasets["forget"].id, order.datasets["forget"].records),
        retain=packaging.SetFacts(order.datasets["retain"].id, order.datasets["retain"].records),
        gate=judgement.gate,
        scores={title: scores[model] for title, model in columns.items() if model in scores},
        not_tested=reporting.not_tested(judgement),
    )
    (folder / packaging.CARD_FILE).write_text(packaging.model_card(facts), encoding="utf-8", newline="\n")


def _document(
    bench: Workbench,
    judgement: Judgement,
    samples: Mapping[str, Sample],
    tries: list[Tried],
    warnings: list[str],
    anew: Retraining | None,
) -> EvaluationDocument:
    order, last = bench.order, tries[-1]
    return EvaluationDocument.model_validate(
        {
            "source_version": order.source_number,
            "result_weights_sha256": file_sha256(bench.folder / "result" / WEIGHTS_NAME),
            "models": reporting.models(judgement),
            "records": reporting.records(judgement, samples),
            "probes": [asdict(report) for report in judgement.probes],
            "gate": asdict(judgement.gate),
            "reference": judgement.reference,
            "policy": order.policy,
            "method": last.method,
            "seed": order.seed,
            "sampled_to": bench.settings.evaluation_records,
            "environment": reporting.environment(bench.device, bench.threads, bench.settings),
            "durations": bench.progress.durations("preparing", "unlearning", "evaluating"),
            "training": reporting.training(last),
            "retraining": anew,
            "tries": reporting.tries(tries),
            "warnings": warnings,
            "not_tested": reporting.not_tested(judgement),
        }
    )


def _costs(bench: Workbench, tries: list[Tried], seconds: float) -> dict[str, Any]:
    """The column of the job that holds what it was estimated to cost, with what it did; told in the history."""
    estimated, last = bench.order.costs, tries[-1]
    if estimated is None:
        return {}
    costs = retraining.measured(estimated, tries, seconds)
    bench.lease.event(retraining.compared(costs, anew=last.method.type == "retrain"))
    return {"costs": costs.model_dump()}


def _warn(lease: Lease, order: Order, last: Tried, judgement: Judgement, anew: Retraining | None) -> list[str]:
    """What a reader of the verdict should know; put into the history, too."""
    warnings = [
        *([packaging.BASE_KNOWS] if order.base_knows else []),
        *retraining.not_exact(anew),
        *reporting.missed_targets(order, last),
        *reporting.unknown_records(judgement),
        *reporting.unfit_control(judgement),
    ]
    for warning in warnings:
        lease.warn(warning)
    return warnings
