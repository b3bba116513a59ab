"""One optimizer step, from a batch to the update of the factors. Read `Stepper.step` from top to bottom.

What a step draws from is in levels.py, whom it simulates in attacker.py, the two losses are in losses/, the rule that
combines their gradients in blur.py (and what it is compared with in combiners.py), the optimizer in adamw.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from app.methods import MetaCycles, Method, NllLoss, RetrainMethod
from worker.unlearning.adamw import AdamW
from worker.unlearning.attacker import Attack, Attacker
from worker.unlearning.batches import Batch, by_length, collate
from worker.unlearning.combiners import Combined, build_combiner, clip_
from worker.unlearning.encoding import Example
from worker.unlearning.factors import FactorError, Factors, GradientTaps, MixedRows, Sink, without_adapters
from worker.unlearning.levels import Group, Item, LossSet, groups_of, items_of
from worker.unlearning.likelihood import label_nll
from worker.unlearning.losses import Loss, Rows, StepSize, build_loss
from worker.unlearning.models import (
    Head,
    ModelError,
    at_labels,
    causal_model,
    checkpointed_layers,
    context_length,
    decoder_layers,
    hidden_states,
    output_layer,
    pad_id,
)
from worker.unlearning.scoring import Tokens, anchored, label_scores, token_values

_Result = TypeVar("_Result")

# Where one concatenated pass is at least as fast as two (benchmarks/engine.py).
ONE_PASS_DEVICES = ("cuda", "cpu")
AIM_SEQUENCES = 64  # on which a loss on hidden states measures how long they are
SCALARS = (
    "forget_loss",
    "retain_loss",
    "forget_squared",
    "product",
    "retain_squared",
    "forget_weight",
    "update_norm",
    "descent",
    "move_norm",
)
"""What `Stepper.step` returns, in this order. ``descent`` is <-move, g_f>: positive where the step lowers L_f."""


class Stepper:
    """State of a run between two steps: factors, moments, the losses' references, and the micro-batch size.

    Attributes:
        factors: the trained parameters as one vector.
        optimizer: AdamW on it.
        combiner: from two gradients to one update.
        attacker: whom simulations train against; None where the schedule has none.
        forget, retain: the two levels.
        micro_batch_size: sequences of each level per forward pass; halves when memory runs out.
        passes: 1 or 2 forward and backward passes per micro-batch.
        sequences: how many were passed over, forward and backward, over all steps.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        forget: Sequence[Example],
        retain: Sequence[Example],
        method: Method,
        seed: int,
    ) -> None:
        self.model, self.method = model.eval(), method
        self._pad = pad_id(tokenizer)
        forget_loss, retain_loss = build_loss(method.forget_loss), build_loss(method.retain_loss)
        self._layer = _place(model, forget_loss)
        self.factors = Factors(model)
        self.optimizer = AdamW(self.factors.vector, method.weight_decay)
        self.combiner = build_combiner(method, self.factors)
        self.attacker = Attacker(self.factors) if isinstance(method.schedule, MetaCycles) else None
        self._head = Head(model)
        self._taps = GradientTaps(model, self.factors)
        self._gradients = (self.factors.new_vector(), self.factors.new_vector())
        self._views = [self.factors.views(gradient) for gradient in self._gradients]
        needs_source = forget_loss.needs_source_logits or retain_loss.needs_source_logits
        self._source = self.factors.vector.clone() if needs_source else None
        self._source_head = self._source_logits if self._head.trained else None
        self.passes, self.sequences = self._choose_passes(), 0
        whole = max(method.forget_batch_size, method.retain_batch_size)
        self.micro_batch_size = whole if method.micro_batch_size == "auto" else method.micro_batch_size
        with self.computing():
            # What is known under the source adapter is computed once, by the same code that trains.
            items = items_of(forget_loss, forget, tokenizer, seed, self._longest())
            anchors = self.halving(lambda: self._anchors(items))
            self.forget = self.halving(lambda: self._level(forget_loss, items, anchors))
            self.retain = self.halving(lambda: self._level(retain_loss, [(example,) for example in retain], None))
            if forget_loss.needs_layer:
                self.halving(lambda: self._aim(seed))
        answers = [item[:1] for item in self.forget.items]
        self._attacked = LossSet(
            build_loss(NllLoss()), answers, torch.zeros(len(answers), 1, device=self.factors.device)
        )

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within the block, the model is wired for training: `step` may be called."""
        with self._taps.installed(), checkpointed_layers(self.model, active=self.method.gradient_checkpointing):
            yield

    def step(
        self, forget: Sequence[int], retain: Sequence[int], learning_rate: float, attack: Attack | None = None
    ) -> Tensor:
        """Take one step on these items of both sets.

        With an attack, the forget gradient is the mean of that here and that of the held-out items where the attacker
        is: to first order, what would make the attack bring less of them back.

        Nothing is read back from the device: the step's `SCALARS` are returned as a tensor there.

        Args:
            forget, retain: indices of the items that make up the step.
            learning_rate: of this step.
            attack: to be simulated beside it.

        Raises:
            torch.OutOfMemoryError: even single sequences do not fit.
        """
        simulated = None if attack is None else self._gradient_under(attack)
        # 1. Both gradients of the whole step: forward, losses, backward, micro-batch by micro-batch.
        forget_loss, retain_loss = self._accumulate(forget, retain)
        g_f, g_r = self._gradients
        if simulated is not None:
            g_f.lerp_(simulated, 0.5)
        squares = (g_f.dot(g_f), g_f.dot(g_r), g_r.dot(g_r))
        # 2. One update direction from both; it takes the place of g_r. Then the clipping, of the update alone.
        combined = self.combiner.combine_(g_f, g_r, retain_loss, self.optimizer)
        norm = clip_(combined.update, self.method.max_grad_norm)
        # 3. AdamW along the update.
        move = self._move(combined, learning_rate)
        return torch.stack(
            (
                forget_loss,
                retain_loss,
                *squares,
                combined.forget_weight.reshape(()),
                norm,
                -move.dot(g_f),
                move.norm(),
            )
        )

    def rehearse(self, retain: Sequence[int], learning_rate: float) -> Tensor:
        """Take one step on retain items alone, as ordinary training would; returns the step's `SCALARS`."""
        _, retain_loss = self._accumulate([], retain)
        gradient = self._gradients[1]
        none, squared = torch.zeros_like(retain_loss), gradient.dot(gradient)
        norm = clip_(gradient, self.method.max_grad_norm)
        move = self._move(Combined(gradient, None, none), learning_rate)
        return torch.stack((none, retain_loss, none, none, squared, none, norm, none, move.norm()))

    def _gradient_under(self, attack: Attack) -> Tensor:
        """The forget gradient of the held-out items where the attacker is, (parameters,); then it takes a step."""
        if self.attacker is None:
            raise ValueError("the schedule simulates no attacker")
        if attack.begins:
            self.attacker.restart()
        with self.attacker.in_place():
            self._accumulate(attack.held_out, attack.batch, (self.forget, self._attacked))
            self.attacker.step(self._gradients[1], attack.learning_rate)
        return self._gradients[0].clone()

    def _move(self, combined: Combined, learning_rate: float) -> Tensor:
        if combined.rescaling is None:
            self.optimizer.observe(combined.update)
        move = self.optimizer.step(combined.update, learning_rate, combined.rescaling)
        self.factors.publish()
        return move

    def _accumulate(
        self, forget: Sequence[int], retain: Sequence[int], levels: tuple[LossSet, LossSet] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fill both gradient vectors, with the gradients of both levels or of others; returns both losses."""
        pair = levels or (self.forget, self.retain)
        chosen = zip(pair, (forget, retain), strict=True)
        self.sequences += sum(len(level.items[index]) for level, indices in chosen for index in indices)
        try:
            return self.halving(lambda: self._pass_over(forget, retain, pair))
        except MixedRows:
            if self.method.passes == "one":
                raise ModelError("the architecture mixes rows: passes must be two") from None
            self.passes = 2
        return self.halving(lambda: self._pass_over(forget, retain, pair))

    def halving(self, work: Callable[[], _Result]) -> _Result:
        """Do some work, and start it over with half of the rows per pass as often as memory runs out."""
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.micro_batch_size > 1:
                    self.micro_batch_size //= 2
                elif self.passes == 1 and self.method.passes == "auto":
                    self.passes = 2
                else:
                    raise
            # Outside of the handler, where the traceback no longer holds the tensors of the failed pass.
            if self.factors.device.type == "cuda":
                torch.cuda.empty_cache()

    def _pass_over(
        self, forget: Sequence[int], retain: Sequence[int], sets: tuple[LossSet, LossSet]
    ) -> tuple[Tensor, Tensor]:
        """Every micro-batch of both sets, each once."""
        for gradient in self._gradients:
            gradient.zero_()
        chosen = (forget, retain)
        sizes = [level.size(items) for level, items in zip(sets, chosen, strict=True)]
        parts = [level.parts(items, self.micro_batch_size) for level, items in zip(sets, chosen, strict=True)]
        losses = [torch.zeros((), device=self.factors.device) for _ in sets]
        if self.passes == 1:
            work = list(zip_longest(*parts, fillvalue=[]))
        else:
            work = [(part, []) for part in parts[0]] + [([], part) for part in parts[1]]
        for pair in work:
            self._micro_batch(pair, sets, sizes, losses)
        return losses[0], losses[1]

    def _micro_batch(
        self,
        pair: Sequence[Sequence[int]],
        sets: tuple[LossSet, LossSet],
        sizes: Sequence[StepSize],
        losses: list[Tensor],
    ) -> None:
        """Forward and backward over forget rows, retain rows, or both in one concatenated batch."""
        groups = groups_of(pair, sets)
        examples = [example for group in groups for example in group.examples]
        batch = collate(examples, self._pad).to(self.factors.device)
        sinks = [Sink(group.rows, self._views[group.number]) for group in groups]
        source = self._source_hidden(batch, groups)
        with self._taps.collecting(batch.shape, *sinks):
            hidden, at_layer = self._hidden(batch)
            totals = []
            for group in groups:
                values = self._values(group, batch, hidden, at_layer, source)
                rows = self._rows(group, batch)
                total = group.level.loss.total(values.to(self.factors.device), rows, sizes[group.number])
                losses[group.number] += total.detach()
                totals.append(total)
            torch.stack(totals).sum().backward()  # type: ignore[no-untyped-call]

    def _values(self, group: Group, batch: Batch, hidden: Tensor, at_layer: Tensor, source: Tensor | None) -> Tensor:
        """The loss's value of each label of the group: (labels,)."""
        loss, labels = group.level.loss, batch.labels[group.labels].to(hidden.device)
        anchor = group.level.anchor(group.chosen)
        if loss.needs_layer:
            values = loss.token_values(at_layer[group.labels], labels, None)
            if anchor is None:
                return values
            nll, _ = label_scores(self._head, hidden[group.labels], labels)
            return anchored(values, nll.to(values.device), anchor.to(values.device), both_ways=loss.reversible)
        reference = source[group.labels] if source is not None and loss.needs_source_logits else None
        drawn = None if anchor is None else anchor.to(hidden.device)
        tokens = Tokens(labels, reference, drawn, loss.reversible, self._source_head)
        return token_values(self._head, hidden[group.labels], tokens, loss.token_values)

    def _rows(self, group: Group, batch: Batch) -> Rows:
        """What the loss may know of the group's sequences."""
        device = self.factors.device
        lengths = torch.tensor([float(len(example.labels)) for example in group.examples])
        numbers = torch.tensor(group.chosen).to(device, non_blocking=True)
        return Rows(
            of_label=batch.rows[group.labels] - group.rows.start,
            lengths=lengths.to(device, non_blocking=True),
            source_nll=group.level.source_nll[numbers].flatten(),
        )

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states at the label positions: of the last layer, and of the forget loss's own where it has one."""
        if self._layer is None:
            hidden = hidden_states(self.model, batch)
            return hidden, hidden
        caught: list[Tensor] = []

        def catch(_layer: nn.Module, _arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
            caught.append(output if isinstance(output, Tensor) else output[0])

        handle = self._layer.register_forward_hook(catch)
        try:
            hidden = hidden_states(self.model, batch)
        finally:
            handle.remove()
        return hidden, at_labels(caught[0], batch)

    @torch.no_grad()
    def _source_hidden(self, batch: Batch, groups: Sequence[Group]) -> Tensor | None:
        """Last hidden states under the source adapter, for losses that compare with its logits."""
        if self._source is None or not any(group.level.loss.needs_source_logits for group in groups):
            return None
        with self.factors.holding(self._source):
            return hidden_states(self.model, batch)

    def _level(self, loss: Loss, items: list[Item], anchors: list[Tensor] | None) -> LossSet:
        """A level with the references that its loss wants."""
        if isinstance(self.method, RetrainMethod):  # there is no source, and nothing to forget
            return LossSet(loss, items, torch.zeros(len(items), 1, device=self.factors.device))
        flat = [example for item in items for example in item]
        found = label_nll(self.model, flat, self._pad, self.micro_batch_size)
        if anchors is not None and not any(
            bool((nll < anchor).any()) for nll, anchor in _answers(items, found, anchors)
        ):
            raise FactorError(
                "the adapter makes no token of the forget set likelier than the base model alone does, so that there "
                'is nothing to forget down to anchor "base"; a fresh adapter needs anchor "none"'
            )
        return LossSet(loss, items, torch.stack([nll.sum() for nll in found]).view(len(items), -1), anchors)

    @torch.no_grad()
    def _anchors(self, items: list[Item]) -> list[Tensor] | None:
        """NLL of every label under the base model alone. Refusals are to be learned: they have none."""
        if self.method.anchor == "none":
            return None
        answers = [item[0] for item in items]
        with without_adapters(self.model):
            found = label_nll(self.model, answers, self._pad, self.micro_batch_size)
        endless = [
            [torch.full((len(e.labels),), torch.inf).to(nll) for e in item[1:]]
            for item, nll in zip(items, found, strict=True)
        ]
        return [torch.cat([nll, *rest]) for nll, rest in zip(found, endless, strict=True)]

    @torch.no_grad()
    def _aim(self, seed: int) -> None:
        """Let a loss on hidden states see those of the source adapter, on a sample of the sequences."""
        sample = [item[0] for item in self.forget.items[:AIM_SEQUENCES]]
        states = []
        for part in by_length(sample, self.micro_batch_size):
            batch = collate([sample[index] for index in part], self._pad).to(self.factors.device)
            states.append(self._hidden(batch)[1])
        self.forget.loss.aim(torch.cat(states), seed)

    def _source_logits(self, hidden: Tensor) -> Tensor:
        """What the source adapter's output layer makes of hidden states: (n, hidden) -> (n, vocab)."""
        if self._source is None:
            raise ValueError("no loss compares with the source adapter")
        with self.factors.holding(self._source):
            return self._head(hidden)

    def _choose_passes(self) -> int:
        if self.method.passes == "one" and not self._taps.separable:
            raise ModelError("factors of embeddings need two passes")
        if self.method.passes == "auto":
            return 1 if self.factors.device.type in ONE_PASS_DEVICES and self._taps.separable else 2
        return 1 if self.method.passes == "one" else 2

    def _longest(self) -> int:
        context = context_length(causal_model(self.model).config)
        return min(self.method.max_length, context) if context else self.method.max_length


def _place(model: nn.Module, loss: Loss) -> nn.Module | None:
    """Freeze the factors above the layer that a loss works on; returns that layer."""
    if not loss.needs_layer:
        return None
    layers = decoder_layers(model)
    chosen = loss.place(len(layers))
    for layer in (*layers[chosen:], output_layer(model)):
        layer.requires_grad_(False)
    return layers[chosen - 1]


def _answers(
    items: Sequence[Item], found: Sequence[Tensor], anchors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """NLL and anchor of every label of the answers, without the refusals behind them."""
    width = len(items[0])
    for nll, anchor in zip(found[::width], anchors, strict=True):
        yield nll, anchor[: len(nll)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
