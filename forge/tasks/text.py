"""An answer that a language model writes: where it stands in a completion, and when it is right.

The model learns the completion only; what it generates is judged by the answer that is extracted
from it. Supervised training, evaluation and rewards share that one definition, `extract` and
`is_right`.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from forge.data.spelling import plain
from forge.errors import UserError
from forge.inputs.input import IGNORED
from forge.models import tokenizers
from forge.models.heads import Head
from forge.tasks import decoding, metrics
from forge.tasks.answer import Answer, Evaluation, Scores
from forge.tasks.decisions import Decisions
from forge.tasks.decoding import Reader
from forge.tasks.metrics import Facts
from forge.tasks.numerals import NUMERAL, parse, spelled

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from forge.config.schema import Model
    from forge.data.sources import Columns
    from forge.inputs.input import Batch

log = logging.getLogger(__name__)
HEAD = Head("CausalLM", peft_type="CAUSAL_LM")
UNWRITTEN = "\0"  # an answer that a chat template is still to write
ANSWERS = {"whole": r"(?s)(.*)", "number": f"({NUMERAL.pattern})"}  # what task.answer may name


@dataclass
class Written(Answer):
    """`where` the answer stands in a completion: whole, number (the last one) or a regular
    expression whose last match is it, by its first group where it has one."""

    where: str = "whole"
    numeric: bool = False  # answers are equal as numbers, else as texts
    max_new_tokens: int = 128
    generate_rows: int | None = 200  # of an evaluation in training; None: all
    pass_at: list[int] = field(default_factory=list)  # k of pass@k at the end, from `samples`
    samples: int = 8
    temperature: float = 1.0  # of these samples
    alignment = "token"
    problem_type = "generation"
    every_row = True
    trivial = "the commonest answer, or the tokens' frequencies"
    labels = None  # the vocabulary

    def __post_init__(self) -> None:
        self.columns: list[str] = []
        if self.pass_at and max(self.pass_at) > self.samples:
            raise UserError(
                f"task.pass_at={self.pass_at}: task.samples={self.samples} are too few; at least "
                f"{max(self.pass_at)}"
            )
        try:
            self.pattern = re.compile(ANSWERS.get(self.where, self.where))
        except re.error as error:
            raise UserError(
                f"task.answer={self.where}: whole, number or a regular expression ({error})"
            ) from error

    def extract(self, completion: str) -> str:
        """The answer in a completion, in the one form that equal answers share; "" for none."""
        matches = [match for match in self.pattern.finditer(completion) if match[0].strip()]
        if not matches:
            return ""
        text = matches[-1][min(1, self.pattern.groups)] or ""
        if not self.numeric:
            return plain(text)
        value = parse(text)
        return "" if value is None else spelled(value)

    def is_right(self, answer: str, label: str) -> bool:
        """Whether an extracted answer is the reference answer."""
        return answer == label != ""

    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        extras = inputs.get("extras", [{}] * len(inputs["completion"]))
        pairs = zip(inputs["completion"], extras, strict=True)
        labels = [UNWRITTEN if e.get("tool_calls") else self.extract(text) for text, e in pairs]
        self._require(labels, range(len(labels)), f"split {split}: ")
        return {"label": labels}

    def _require(self, labels: list[str], rows: Sequence[int], where: str) -> None:
        """Raise `UserError` for a row without an answer."""
        if "" in labels:
            raise UserError(
                f"{where}row {rows[labels.index('')]}: its completion has no answer by "
                f"task.answer={self.where}{' that is a number' * self.numeric}; mend task.answer "
                "or the row"
            )

    def encoded(self, split: Dataset, processor: PreTrainedTokenizerBase) -> Dataset:
        """A reference answer that calls tools is what the model's template writes of it."""
        labels = list(split["label"]) if "label" in split.column_names else []
        if UNWRITTEN not in labels:
            return split
        for i, row in enumerate(split):
            if labels[i] == UNWRITTEN:
                ids = [token for token in row["labels"] if token != IGNORED]
                labels[i] = self.extract(str(processor.decode(ids, skip_special_tokens=True)))
        self._require(labels, list(split["id"]), "")
        return split.remove_columns("label").add_column("label", labels)

    def check(self, model: Model, config: PretrainedConfig, where: str) -> None:
        name = model.path or config.model_type
        if model.new_head:
            raise UserError(f"{where}.new_head=true: a language model's head is its vocabulary")
        trained = model.path is not None and not model.from_scratch
        if not (HEAD.is_trained(config) if trained else tokenizers.is_decoder(config)):
            raise UserError(
                f"{where} {name}: {', '.join(config.architectures or [config.model_type])} has no "
                "head that generates text; choose a causal language model, e.g. model=tiny_lm or "
                "model=smollm"
            )

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        """Each position is about the next token; the last one is about nothing."""
        labels = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)[..., 1:]
        labels = labels.contiguous()
        return Decisions(logits, labels, labels != IGNORED)

    def items(self, batch: Batch) -> Tensor:
        return batch["labels"][..., 1:].ne(IGNORED).sum()

    def judged_by(self, metric: Facts) -> bool:
        return metric.of_texts

    def predict(self, logits: np.ndarray) -> np.ndarray:
        raise AssertionError("texts are generated, not read off logits")

    def quick_evaluation(self, reader: Reader, split: Dataset) -> Scores:
        """In training: the loss over all rows, and the answers to the first ones."""
        nll, tokens = decoding.losses(reader, split)
        few = split.select(np.argsort(split["id"])[: self.generate_rows])
        written = decoding.generate(reader, few, self.greedy())
        answers = [self.extract(completion.text) for completion in written]
        right = [self.is_right(*pair) for pair in zip(answers, few["label"], strict=True)]
        return {"exact_match": float(np.mean(right)), **_of_tokens(nll, tokens)}

    def evaluation(self, reader: Reader, split: Dataset) -> Evaluation:
        """The predictions are label, prediction (the answer), completion, prompt, nll, tokens."""
        started = time.monotonic()
        nll, tokens = decoding.losses(reader, split)
        completions = decoding.generate(reader, split, self.greedy())
        answers = [self.extract(completion.text) for completion in completions]
        right = [self.is_right(*pair) for pair in zip(answers, split["label"], strict=True)]
        scores: Scores = {
            "exact_match": float(np.mean(right)),
            "exact_match_interval": metrics.wilson(sum(right), len(right)),
            **self._pass_at(reader, split),
            **_of_tokens(nll, tokens),
            "cut": sum(completion.cut for completion in completions),
            "n": len(right),
        }
        if scores["cut"]:
            log.warning(
                "%d of %d answers were not at their end after task.max_new_tokens=%d, or at the "
                "end of the model's context",
                scores["cut"],
                len(right),
                self.max_new_tokens,
            )
        seconds = time.monotonic() - started
        scores |= {
            "seconds": round(seconds, 3),
            "examples_per_second": round(len(right) / seconds, 2),
        }
        prompts = zip(split["input_ids"], split["prompt_length"], strict=True)
        return Evaluation(
            scores,
            {
                "label": list(split["label"]),
                "prediction": answers,
                "completion": [completion.text for completion in completions],
                "prompt": [reader.tokenizer.decode(ids[:n]) for ids, n in prompts],
                "nll": nll,
                "tokens": tokens,
            },
        )

    def _pass_at(self, reader: Reader, split: Dataset) -> dict[str, float]:
        """pass@k for each k, from `samples` completions of every prompt."""
        if not self.pass_at:
            return {}
        right = np.zeros(len(split), int)
        with torch.random.fork_rng():
            torch.manual_seed(reader.seed)
            for _ in range(self.samples):
                written = decoding.generate(reader, split, self.sampled())
                answers = [self.extract(completion.text) for completion in written]
                right += [
                    self.is_right(*pair) for pair in zip(answers, split["label"], strict=True)
                ]
        return {f"pass@{k}": metrics.pass_at(k, self.samples, right.tolist()) for k in self.pass_at}

    def baseline_score(self, split: Dataset, headline: str) -> float:
        """The headline of the commonest answer; a perplexity is that of the tokens' frequencies."""
        if headline != "perplexity":
            return Counter(split["label"]).most_common(1)[0][1] / len(split)
        counts = Counter(t for labels in split["labels"] for t in labels if t != IGNORED).values()
        total = sum(counts)
        return math.exp(-sum(n / total * math.log(n / total) for n in counts))

    def greedy(self) -> decoding.Settings:
        """`transformers.GenerationConfig`'s settings for the one answer that is judged."""
        return {"max_new_tokens": self.max_new_tokens, "do_sample": False}

    def sampled(self) -> decoding.Settings:
        """Those for samples: from the whole distribution."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": 0,
            "top_p": 1.0,
        }


def _of_tokens(nll: list[float], tokens: list[int]) -> dict[str, float]:
    """Loss and perplexity: every token of a completion counts once."""
    loss = math.fsum(nll) / max(sum(tokens), 1)
    return {"perplexity": math.exp(min(loss, 700)), "loss": loss}
