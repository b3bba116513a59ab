"""The metrics of MUSE (arXiv 2407.06460) by its own protocol: memorised words, known facts, privacy leakage."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from worker.evaluation.generation import answered, decoded, greedy
from worker.evaluation.membership import Floats, auc
from worker.evaluation.rouge import Answer, rouge_l

VERBATIM_TOKENS = 128
KNOWLEDGE_TOKENS = 32
_END_OF_ANSWER = re.compile(r"\n\n|\nQuestion|Question:")


@dataclass(frozen=True)
class Fact:
    """A question about a text, and its answer."""

    question: str
    answer: str


def verbatim_memorisation(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]], batch_size: int
) -> float:
    """Mean ROUGE-L F1, not stemmed, between how the model goes on with a text and how the text does, in [0, 1].

    The reference is the first 128 token ids of the true continuation, a start token among them where the tokenizer
    puts one, as MUSE counts them; 128 tokens are generated greedily.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of the base model.
        texts: beginning and continuation, at least one.
        batch_size: sequences per pass.
    """
    truths = [decoded(tokenizer, _ids(tokenizer, rest)[:VERBATIM_TOKENS]) for _, rest in texts]
    said = _continued(model, tokenizer, [start for start, _ in texts], VERBATIM_TOKENS, batch_size)
    return statistics.fmean(_f1(truth, text) for truth, text in zip(truths, said, strict=True))


def knowledge_memorisation(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    shots: Sequence[Fact],
    batch_size: int,
) -> float:
    """Mean ROUGE-L F1, not stemmed, of short greedy answers behind answered examples, in [0, 1].

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of the base model.
        facts: what to ask, at least one.
        shots: examples, none of them among the facts.
        batch_size: sequences per pass.
    """
    examples = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    prompts = [f"{examples}Question: {fact.question}\nAnswer: " for fact in facts]
    said = _continued(model, tokenizer, prompts, KNOWLEDGE_TOKENS, batch_size)
    return statistics.fmean(_f1(fact.answer, first_answer(text)) for fact, text in zip(facts, said, strict=True))


def first_answer(text: str) -> str:
    """What was said in front of the next question, which models like to ask themselves."""
    return _END_OF_ANSWER.split(text, maxsplit=1)[0].strip()


def muse_privacy_leakage(members: Floats, others: Floats, retrained: float) -> float:
    """PrivLeak in percent, 100 (A - A_retrained) / A_retrained, with A = P(score of a non-member < that of a member).

    That is 1 minus the AUC of `worker.evaluation.membership`. Below 0: the records are still known; above: they were
    unlearned too far. MUSE scores whole texts, without a prompt, by min-k.

    Args:
        members, others: (records,) min-k scores of forgotten and of held-out texts.
        retrained: A under a model that never saw the records, above 0; MUSE has 0.4772 for News, 0.5393 for Books.
    """
    return 100 * (1 - auc(members, others) - retrained) / retrained


def _f1(reference: str, generated: str) -> float:
    return rouge_l(Answer(reference, generated), stemmed=False).f1


def _continued(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], limit: int, batch_size: int
) -> list[str]:
    """Greedy continuations up to the end token."""
    prefixes = [_ids(tokenizer, prompt) for prompt in prompts]
    rows = greedy(model, tokenizer, prefixes, [limit] * len(prefixes), batch_size)
    return [answered(tokenizer, row) for row in rows]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]
