"""A run: steps, probes, checkpoints, and the decision when to stop.

Dropout stays off although the factors are trained. Some forget losses compare each sequence with its
log-probability under the source adapter, which is computed once and cached. That number is exact only if the same
forward pass, without random masks, would give it again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from app.methods import (
    Cycles,
    MetaCycles,
    Method,
    Place,
    RetrainMethod,
    StepKind,
    StopAtTargets,
    Targets,
    first_point,
    place_of,
)
from worker.unlearning.attacker import Attack
from worker.unlearning.batches import (
    FORGET_STREAM,
    REHEARSAL_STREAM,
    RETAIN_STREAM,
    attack_indices,
    attack_rate,
    batch_indices,
)
from worker.unlearning.checkpoint import Checkpoint, CheckpointError
from worker.unlearning.encoding import Example
from worker.unlearning.factors import FactorError
from worker.unlearning.models import ModelError, pad_id
from worker.unlearning.probe import Probe, Shown, look, sample
from worker.unlearning.step import SCALARS, Stepper
from worker.unlearning.stopping import EXPLANATIONS, Reason, StopRule

# Reading the numbers of a step makes the host wait for the device, which then idles while the next step is
# prepared. A CPU has nothing to wait for.
REPORT_EVERY = {"cpu": 1}
REPORT_EVERY_ELSEWHERE = 10
NO_TARGETS = Targets(max_forget_probability=0, max_forget_extraction_strength=0, min_retain_probability_ratio=1)


class UnlearningError(RuntimeError):
    """Training cannot start or went wrong. The adapter in memory must be thrown away."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. Losses and norms are taken before the step.

    Attributes:
        step: 1-based number of the step.
        total_steps: most steps of the run.
        kind: what the step was for; a rehearsal, as training anew, has no part that forgets, and zeros for all
            numbers about it.
        forget_loss: mean as the loss defines it, over sequences or tokens of the step.
        retain_loss: the same; nats per label token for "nll".
        forget_norm, retain_norm: norms of the two gradients.
        cosine: of the angle between them, 0 where one vanishes. Negative: the levels are in conflict.
        forget_weight: weight of the forget gradient in the update (xi).
        update_norm: norm of the combined update before clipping.
        clipped: whether it was clipped.
        descent_cosine: of the angle between the move that AdamW made, without decay, and the descent of the forget
            loss. Negative: this step raised the forget loss to first order.
        learning_rate: AdamW's, in this step.
    """

    step: int
    total_steps: int
    kind: StepKind
    forget_loss: float
    retain_loss: float
    forget_norm: float
    retain_norm: float
    cosine: float
    forget_weight: float
    update_norm: float
    clipped: bool
    descent_cosine: float
    learning_rate: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        steps: optimizer steps taken.
        kept_step: the step whose factors are in the model now.
        reason: why it stopped.
        explanation: the reason in words.
        probes: every probe, the source's first; none under the stop rule "steps".
        micro_batch_size, passes: what it came down to.
        sequences: how many were passed over, forward and backward, over all steps.
    """

    steps: int
    kept_step: int
    reason: Reason
    explanation: str
    probes: tuple[Probe, ...]
    micro_batch_size: int
    passes: int
    sequences: int = 0


class Watcher:
    """What may look on. Every method may raise, to stop the run. This one does nothing."""

    def on_step(self, step: int, total: int) -> None:
        """A step was begun on the device; its numbers may not be known yet."""

    def on_report(self, report: StepReport) -> None:
        """The numbers of a step: of every one, in order, some steps late on a GPU."""

    def on_probe(self, probe: Probe) -> None:
        """A probe was taken."""

    def wants_checkpoint(self) -> bool:
        """Asked between steps whether it is time."""
        return False

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """A checkpoint that was wanted. All its numbers are finite."""


def unlearn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Example],
    retain: Sequence[Example],
    method: Method,
    *,
    seed: int,
    targets: Targets = NO_TARGETS,
    watcher: Watcher | None = None,
    resume: Checkpoint | None = None,
) -> Outcome:
    """Train the LoRA factors in place so that the forget examples become unlikely and the retain examples stay.

    The same inputs, seed and hardware give the same bytes, in one go or resumed from any checkpoint. Examples
    without a label are left out.

    Args:
        model: a model from `worker.unlearning.lora`. Everything that requires a gradient is trained.
        tokenizer: of the base model.
        forget: sequences to unlearn. Windows of one long record count as sequences of their own.
        retain: sequences to keep.
        method: every knob.
        seed: order of the examples and whatever else is drawn, not negative.
        targets: where to stop, under the stop rule "targets".
        watcher: told what happens; asked for checkpoints.
        resume: where to go on. The model must hold the source adapter all the same.

    Raises:
        UnlearningError: nothing to train or to train on, a model that the method cannot be used on, or a loss or
            gradient that is not finite or vanished. Checkpoints from before are good.
        worker.unlearning.checkpoint.CheckpointError: ``resume`` is of another run.
    """
    try:
        run = _Run(model, tokenizer, _labelled(forget, "forget"), _labelled(retain, "retain"), method, seed, targets)
        return run.carry_out(watcher or Watcher(), resume)
    except (FactorError, ModelError) as error:
        raise UnlearningError(str(error)) from error


def retrain(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    method: RetrainMethod,
    *,
    watcher: Watcher | None = None,
    resume: Checkpoint | None = None,
) -> Outcome:
    """Train the LoRA factors in place on the examples alone, by a recipe. As deterministic as `unlearn`.

    Args:
        model: with fresh factors, from `worker.unlearning.lora.renew`.
        tokenizer: of the base model.
        examples: what is left of the training set.
        method: every knob, the seed among them.
        watcher, resume: as in `unlearn`.

    Raises:
        UnlearningError, worker.unlearning.checkpoint.CheckpointError: as in `unlearn`.
    """
    try:
        run = _Run(model, tokenizer, [], _labelled(examples, "training"), method, method.seed, NO_TARGETS)
        return run.carry_out(watcher or Watcher(), resume)
    except (FactorError, ModelError) as error:
        raise UnlearningError(str(error)) from error


def _labelled(examples: Sequence[Example], name: str) -> list[Example]:
    """Examples that can be learned from."""
    kept = [example for example in examples if example.labels]
    if not kept:
        raise UnlearningError(f"the {name} set has no sequence with a label")
    return kept


def learning_rate_at(step: int, method: Method) -> float:
    """Linear warm-up over ``warmup_steps``, then the course; rehearsals have their own. ``step`` counts from 0."""
    place = place_of(step, method.schedule)
    if place.kind == "rehearsal" and isinstance(method.schedule, Cycles | MetaCycles) and place.length:
        return method.schedule.rehearsal_learning_rate * _falling(1.0 - place.index / place.length)
    warmup = method.warmup_steps
    if step < warmup:
        return method.learning_rate * (step + 1) / warmup
    left = 1.0 - (step - warmup) / max(1, method.steps - warmup)  # 1 at the peak, 0 just behind the last step
    if method.learning_rate_schedule == "linear":
        return method.learning_rate * left
    if method.learning_rate_schedule == "cosine":
        return method.learning_rate * _falling(left)
    return method.learning_rate


def _falling(left: float) -> float:
    """Half a cosine, from 1 where all is left to 0 where nothing is."""
    return 0.5 * (1.0 - math.cos(math.pi * left))


class _Run:
    """One run in progress."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        forget: list[Example],
        retain: list[Example],
        method: Method,
        seed: int,
        targets: Targets,
    ) -> None:
        self._model, self._method, self._seed = model, method, seed
        self._forget, self._retain = forget, retain
        self._pad, self._end = pad_id(tokenizer), tokenizer.eos_token_id
        self._stepper = Stepper(model, tokenizer, forget, retain, method, seed)
        self._fingerprint = self._make_fingerprint(targets)
        self._watcher = Watcher()
        self._step = 0
        self._best: Tensor | None = None
        self._unread: list[Tensor] = []
        self._stop = method.stop if isinstance(method.stop, StopAtTargets) else None
        patience = self._stop.patience if self._stop else 1
        self._rule = StopRule(targets, patience, self._first_point())

    def carry_out(self, watcher: Watcher, resume: Checkpoint | None) -> Outcome:
        """From the first step, or the checkpoint's, to the last."""
        self._watcher = watcher
        with self._stepper.computing():
            if resume is not None:
                self._restore(resume)
            elif self._stop:
                self._probe(self._stop)
            reason = self._train()
        kept = self._step
        if self._stop and self._best is not None and self._rule.best is not None:
            self._stepper.factors.vector.copy_(self._best)
            self._stepper.factors.publish()
            kept = self._rule.best.step
        return Outcome(
            steps=self._step,
            kept_step=kept,
            reason=reason,
            explanation=EXPLANATIONS[reason],
            probes=tuple(self._rule.history),
            micro_batch_size=self._stepper.micro_batch_size,
            passes=self._stepper.passes,
            sequences=self._stepper.sequences,
        )

    def _train(self) -> Reason:
        """Steps until there is a reason to stop."""
        total = self._method.steps
        every = REPORT_EVERY.get(self._stepper.factors.device.type, REPORT_EVERY_ELSEWHERE)
        while self._step < total:
            place = place_of(self._step, self._method.schedule)
            self._take_step(place)
            last = self._step == total
            probing = self._stop if self._stop and (last or self._is_probed(place, self._stop)) else None
            if last or probing or self._step % every == 0:
                self._read_reports()
            self._watcher.on_step(self._step, total)
            if probing and (reason := self._probe(probing)):
                return reason
            if not last and self._watcher.wants_checkpoint():
                self._read_reports()
                self._watcher.on_checkpoint(self._checkpoint())
        return "steps_taken"

    def _first_point(self) -> int:
        """No point counts before every forget record was trained on once and a rehearsal showed what comes back."""
        once = math.ceil(len(self._forget) / self._method.forget_batch_size)
        return first_point(self._method.schedule, min(once, self._method.steps + 1))  # beyond the last step: never

    def _is_probed(self, place: Place, stop: StopAtTargets) -> bool:
        """Whether a probe follows the step that was just taken: now and then, or where the schedule turns."""
        return self._step % stop.every == 0 if place.length is None else place.ends

    def _take_step(self, place: Place) -> None:
        method, seed, rate = self._method, self._seed, learning_rate_at(self._step, self._method)
        if place.index == 0 and self._step > 0:
            # The moments of one kind of step say little about another's.
            self._stepper.optimizer.restart()
        if place.kind == "rehearsal":
            number, stream = place.rehearsed, REHEARSAL_STREAM
        else:
            number, stream = place.forgotten, RETAIN_STREAM
        retain = batch_indices(seed, number, len(self._retain), method.retain_batch_size, stream=stream)
        if place.kind in ("rehearsal", "training"):
            taken = self._stepper.rehearse(retain, rate)
        else:
            forget = batch_indices(seed, number, len(self._forget), method.forget_batch_size, stream=FORGET_STREAM)
            taken = self._stepper.step(forget, retain, rate, self._attack(place))
        self._unread.append(taken)
        self._step += 1

    def _attack(self, place: Place) -> Attack | None:
        """What this step simulates."""
        method, schedule = self._method, self._method.schedule
        if place.kind != "simulation" or not isinstance(schedule, MetaCycles):
            return None
        seed, stage = self._seed, place.forgotten - place.index
        attacker, step = divmod(place.index, schedule.attack_steps)
        batch, held_out = attack_indices(seed, stage, attacker, step, len(self._forget), method.forget_batch_size)
        return Attack(step == 0, batch, held_out, attack_rate(seed, stage, attacker, schedule.attack_learning_rate))

    def _read_reports(self) -> None:
        """Bring the numbers of the last steps to the host in one copy, check them and pass them on."""
        if not self._unread:
            return
        rows: list[list[float]] = torch.stack(self._unread).tolist()
        first = self._step - len(rows)
        self._unread.clear()
        for number, row in enumerate(rows, start=first + 1):
            self._watcher.on_report(self._report(number, dict(zip(SCALARS, row, strict=True))))

    def _report(self, number: int, values: dict[str, float]) -> StepReport:
        if not all(math.isfinite(value) for value in values.values()):
            raise UnlearningError(f"a loss or gradient is not finite in step {number}")
        forget_norm, retain_norm = math.sqrt(values["forget_squared"]), math.sqrt(values["retain_squared"])
        nothing_to_forget = bool(self._forget) and number == 1 and self._method.anchor == "none"
        if forget_norm == 0 and (retain_norm == 0 or nothing_to_forget):
            which = "both gradients are" if retain_norm == 0 else "the forget gradient is"
            raise UnlearningError(f"{which} zero in step {number}: the adapter cannot be trained on these records")
        rate = learning_rate_at(number - 1, self._method)
        return StepReport(
            step=number,
            total_steps=self._method.steps,
            kind=place_of(number - 1, self._method.schedule).kind,
            forget_loss=values["forget_loss"],
            retain_loss=values["retain_loss"],
            forget_norm=forget_norm,
            retain_norm=retain_norm,
            cosine=_quotient(values["product"], forget_norm * retain_norm),
            forget_weight=values["forget_weight"],
            update_norm=values["update_norm"],
            clipped=values["update_norm"] > self._method.max_grad_norm,
            descent_cosine=_quotient(values["descent"], values["move_norm"] * forget_norm),
            learning_rate=rate,
        )

    def _probe(self, stop: StopAtTargets) -> Reason | None:
        """Look at both sets; keep the point if it is the best; tell whether to stop."""
        most, source = stop.records, self._rule.history[0] if self._rule.history else None
        forget = self._look(sample(self._forget, most, self._seed))
        retain = self._look(sample(self._retain, most, self._seed))
        ratio = retain.probability / source.retain.probability if source else 1.0
        rehearsed = self._step > 0 and place_of(self._step - 1, self._method.schedule).kind == "rehearsal"
        before = self._rule.history[-1].resurfaced if source else None
        probe = Probe(self._step, forget, retain, ratio, forget if rehearsed else before)
        if len(self._forget) > most and self._rule.meets(probe):
            whole = self._look(self._forget)
            probe = replace(probe, forget=whole, resurfaced=whole if rehearsed else before)
        best, reason = self._rule.judge(probe)
        if best:
            self._best = self._stepper.factors.vector.clone()
        self._watcher.on_probe(probe)
        return reason

    def _look(self, examples: Sequence[Example]) -> Shown:
        stepper = self._stepper
        return stepper.halving(
            lambda: look(self._model, examples, self._pad, self._end, 2 * stepper.micro_batch_size)
        )

    def _checkpoint(self) -> Checkpoint:
        stepper = self._stepper
        tensors = {
            "factors": stepper.factors.vector,
            "first_moment": stepper.optimizer.first,
            "second_moment": stepper.optimizer.second,
            "random": torch.get_rng_state(),
            **{f"combiner.{name}": tensor for name, tensor in stepper.combiner.state.items()},
        }
        if self._best is not None:
            tensors["best"] = self._best
        attacker = stepper.attacker
        if attacker is not None:
            tensors |= {f"attacker.{name}": tensor for name, tensor in attacker.state.items()}
        scalars = {
            "step": self._step,
            "optimizer_steps": stepper.optimizer.steps,
            "attacker_steps": attacker.optimizer.steps if attacker is not None else 0,
            "micro_batch_size": stepper.micro_batch_size,
            "passes": stepper.passes,
            "sequences": stepper.sequences,
            "stop_rule": self._rule.state(),
        }
        return Checkpoint(self._fingerprint, {name: t.cpu().clone() for name, t in tensors.items()}, scalars)

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.fingerprint != self._fingerprint:
            raise CheckpointError("the checkpoint is of another run")
        stepper, tensors, scalars = self._stepper, checkpoint.tensors, checkpoint.scalars
        stepper.factors.vector.copy_(tensors["factors"])
        stepper.factors.publish()
        stepper.optimizer.first.copy_(tensors["first_moment"])
        stepper.optimizer.second.copy_(tensors["second_moment"])
        torch.set_rng_state(tensors["random"])
        for name, tensor in stepper.combiner.state.items():
            tensor.copy_(tensors[f"combiner.{name}"])
        if stepper.attacker is not None:
            for name, tensor in stepper.attacker.state.items():
                tensor.copy_(tensors[f"attacker.{name}"])
            stepper.attacker.optimizer.steps = scalars["attacker_steps"]
        if "best" in tensors:
            self._best = tensors["best"].to(stepper.factors.device)
        self._step, stepper.optimizer.steps = scalars["step"], scalars["optimizer_steps"]
        stepper.micro_batch_size, stepper.passes = scalars["micro_batch_size"], scalars["passes"]
        stepper.sequences = scalars.get("sequences", 0)  # not counted before version 0.4
        self._rule.restore(scalars["stop_rule"])

    def _make_fingerprint(self, targets: Targets) -> str:
        """A digest of everything that the course of the run depends on, but the hardware."""
        digest = hashlib.sha256()
        for part in (self._method.model_dump_json(), targets.model_dump_json(), str(self._seed), torch.__version__):
            digest.update(part.encode() + b"\0")
        for examples in (self._forget, self._retain):
            for example in examples:
                digest.update(repr((example.prompt_length, example.input_ids)).encode())
            digest.update(b"\0")
        for name, parameter in self._model.named_parameters():
            if "lora_" in name:  # the frozen ones too: what is trained depends on them
                digest.update(f"{name} {parameter.requires_grad}\0".encode())
                digest.update(parameter.detach().cpu().numpy().tobytes())
        return digest.hexdigest()


def _quotient(value: float, divisor: float) -> float:
    """0 where there is nothing to divide by."""
    return value / divisor if divisor > 0 else 0.0
