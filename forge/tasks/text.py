"""Tasks whose answer is written by a language model: what it reads, writes, and how that is judged.

A row is a prompt, a completion and the reference answer that the completion holds. The model
learns the completion only; what it generates is judged by the answer that is extracted from it.
Supervised training, evaluation and rewards share that one definition, `extract` and `judge`.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from forge.data import cache, fingerprints, sources
from forge.errors import UserError
from forge.inputs import text as inputs_text
from forge.inputs.text import IGNORED
from forge.tasks import decoding
from forge.tasks import metrics as tasks_metrics
from forge.tasks.task import Task

if TYPE_CHECKING:
    import transformers
    from datasets import Dataset
    from evaluate import EvaluationModule
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)"
ANSWERS = {"whole": r"(?s)(.*)", "number": rf"(?<![\w.])({NUMBER})"}  # what task.answer may name
Ids = list[int]
Count = Annotated[int, Field(ge=1)]


@dataclass(kw_only=True)
class Generation(Task):
    """A prompt in, a text out.

    `prompt` and `completion` name columns of texts, or `messages` one of chats, whose last message
    is the completion. `answer` is where the answer stands in a completion: whole, number (the last
    one) or a regular expression whose last match is it, by its first group where it has one.
    """

    dataset: Callable[[], sources.Source] = dict
    files: dict[str, str | None] = field(default_factory=dict)  # per split, instead of a dataset
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str | None = None
    template: str = "{prompt}"  # what the model reads of a prompt
    chat: bool = False  # prompt and completion as a user's and an assistant's message
    answer: str = "whole"
    numeric: bool = False  # answers are equal as numbers, else as texts
    metrics: list[str] = field(default_factory=lambda: ["exact_match", "perplexity"])
    headline: str = "exact_match"
    padding_free: bool | None = None  # null: where attention is flash
    max_new_tokens: Count = 128
    generate_rows: Count | None = 200  # of an evaluation in training; null: all
    pass_at: list[Count] = field(default_factory=list)  # k of pass@k at the end, from `samples`
    samples: Count = 8
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of these samples
    head = "CausalLM"

    def __post_init__(self) -> None:
        if given := {k: [Path(v).expanduser()] for k, v in self.files.items() if v is not None}:
            self.dataset = lambda: given
            self.evaluation = [split for split in given if split != self.train]
        super().__post_init__()
        if "{prompt}" not in self.template:
            raise UserError(f"task.template={self.template}: it has no {{prompt}}")
        if self.pass_at and max(self.pass_at) > self.samples:
            raise UserError(
                f"task.pass_at={self.pass_at}: task.samples={self.samples} are too few; at least "
                f"{max(self.pass_at)}"
            )
        try:
            self.pattern = re.compile(ANSWERS.get(self.answer, self.answer))
        except re.error as error:
            raise UserError(
                f"task.answer={self.answer}: whole, number or a regular expression ({error})"
            ) from error

    @property
    def problem_type(self) -> str:
        return "generation"

    def judged_by(self, metric: EvaluationModule) -> bool:
        return getattr(metric, "of_texts", False)

    def extract(self, completion: str) -> str:
        """The answer in a completion, in the one form that equal answers share; "" for none."""
        found = [match for match in self.pattern.finditer(completion) if match[0].strip()]
        if not found:
            return ""
        text = found[-1][min(1, self.pattern.groups)] or ""
        return _number(text) if self.numeric else text.strip()

    def judge(self, answer: str, label: str) -> bool:
        """Whether an extracted answer is the reference answer."""
        return answer == label != ""

    def load(self, training: bool = True) -> dict[str, Dataset]:
        """Columns id (the row's number in its source), prompt, completion and label (the answer).

        A prompt is a text, or a chat's messages. Raises `UserError` for what cannot be learnt from.
        """
        source = self.dataset()
        names = [self.train, *self.evaluation] if training else self.evaluation
        return {split: self._split(source, split) for split in names}

    def _split(self, source: sources.Source, split: str) -> Dataset:
        if self.messages:
            chats = sources.read(source, split, [self.messages])[self.messages][: self.max_rows]
            where = f"split {split}, column {self.messages}"
            pairs = [_turns(chat, f"{where}: row {i}") for i, chat in enumerate(chats)]
        else:
            columns = sources.read(source, split, [self.prompt, self.completion])
            texts = zip(columns[self.prompt], columns[self.completion], strict=True)
            pairs = [self._pair(*row, f"split {split}: row {i}") for i, row in enumerate(texts)]
            pairs = pairs[: self.max_rows]
        labels = [self.extract(completion) for _, completion in pairs]
        if "" in labels:
            i = labels.index("")
            raise UserError(
                f"split {split}: row {i}: its completion has no answer by task.answer="
                f"{self.answer}{' that is a number' * self.numeric}; mend task.answer or the row"
            )
        prompts, completions = map(list, zip(*pairs, strict=True))
        columns = {"prompt": prompts, "completion": completions, "label": labels}
        return sources.dataset({"id": list(range(len(pairs))), **columns})

    def _pair(self, prompt: Any, completion: Any, where: str) -> tuple[Any, str]:
        for name, text in ((self.prompt, prompt), (self.completion, completion)):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}, column {name}: no text; fill or remove it")
        text = self.template.replace("{prompt}", prompt)
        return [{"role": "user", "content": text}] if self.chat else text, completion

    def texts(self, rows: Dataset) -> Iterator[str]:
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
            yield from [prompt] if isinstance(prompt, str) else (m["content"] for m in prompt)
            yield completion

    def make_ready(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token; choose another model")
        if (self.messages or self.chat) and not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template; choose a chat model, or texts: "
                "task.messages=null task.chat=false"
            )
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = tokenizer.truncation_side = "right"

    def encode(
        self, prompts: list[Any], completions: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[Ids, Ids]]:
        """The tokens of each prompt, and those of its completion with its end."""
        if not isinstance(prompts[0], str):
            yield from (_encode_chat(*p, tokenizer) for p in zip(prompts, completions, strict=True))
            return
        begin, plain = tokenizer.bos_token, {"add_special_tokens": False, "verbose": False}
        if begin and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:  # of itself
            prompts = [begin + prompt.removeprefix(begin) for prompt in prompts]
        read, written = (tokenizer(part, **plain)["input_ids"] for part in (prompts, completions))
        for prompt, completion in zip(read, written, strict=True):
            yield prompt, [*completion, tokenizer.eos_token_id]

    def tokenize(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, cache_dir: Path
    ) -> Dataset:
        def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            pairs = list(self.encode(batch["prompt"], batch["completion"], tokenizer))
            ids = [(read + written)[:max_length] for read, written in pairs]
            labels = [[IGNORED] * len(read) + written for read, written in pairs]
            return {
                "input_ids": ids,
                "attention_mask": [[1] * len(row) for row in ids],
                "labels": [row[:max_length] for row in labels],
                "prompt_length": [len(read) for read, _ in pairs],
                "length": [len(row) for row in ids],
                "truncated": [len(row) > max_length for row in labels],
            }

        tokens = [tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template]
        key = fingerprints.fingerprint(
            rows._fingerprint, inputs_text.identity(tokenizer), tokens, max_length
        )
        split = cache.stored(rows, encode, ["prompt", "completion"], key, cache_dir)
        _check_lengths(split, max_length)
        return split

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, multiple: int | None
    ) -> inputs_text.Collator:
        from transformers import DataCollatorForSeq2Seq

        collator = inputs_text.Collator(tokenizer, multiple, "id")
        collator.pad = DataCollatorForSeq2Seq(  # of labels too
            tokenizer, pad_to_multiple_of=multiple, label_pad_token_id=IGNORED
        )
        return collator

    def in_training(self, trainer: transformers.Trainer, split: Dataset) -> dict[str, float]:
        """The loss over all rows, and the answers to the first ones."""
        nll, tokens = decoding.losses(trainer, split)
        few = split.select(np.argsort(split["id"])[: self.generate_rows])
        few = few.select(np.argsort(np.negative(few["prompt_length"]), kind="stable"))
        answers = [self.extract(text) for text in decoding.generate(trainer, few, self.greedy())]
        right = [self.judge(*pair) for pair in zip(answers, few["label"], strict=True)]
        return {"exact_match": float(np.mean(right)), **_of_tokens(nll, tokens)}

    def examine(
        self, trainer: transformers.Trainer, split: Dataset
    ) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """The columns are label, prediction (the answer), completion, prompt, nll and tokens."""
        started = time.monotonic()
        nll, tokens = decoding.losses(trainer, split)
        order = np.argsort(np.negative(split["prompt_length"]), kind="stable")
        ordered, back = split.select(order), np.argsort(order, kind="stable")
        texts = decoding.generate(trainer, ordered, self.greedy())
        completions = [texts[i] for i in back]
        answers = [self.extract(text) for text in completions]
        right = [self.judge(*pair) for pair in zip(answers, split["label"], strict=True)]
        scores: dict[str, Any] = {
            "exact_match": float(np.mean(right)),
            "exact_match_interval": tasks_metrics.wilson(sum(right), len(right)),
            **self._pass_at(trainer, ordered),
            **_of_tokens(nll, tokens),
            "n": len(right),
        }
        seconds = time.monotonic() - started
        scores |= {
            "seconds": round(seconds, 3),
            "examples_per_second": round(len(right) / seconds, 2),
        }
        reader = trainer.processing_class
        read = zip(split["input_ids"], split["prompt_length"], strict=True)
        return scores, {
            "label": list(split["label"]),
            "prediction": answers,
            "completion": completions,
            "prompt": [reader.decode(ids[:n]) for ids, n in read],  # type: ignore[union-attr]
            "nll": nll,
            "tokens": tokens,
        }

    def _pass_at(self, trainer: transformers.Trainer, split: Dataset) -> dict[str, float]:
        """pass@k for each k, from `samples` completions of every prompt."""
        import torch

        if not self.pass_at:
            return {}
        right = np.zeros(len(split), int)
        with torch.random.fork_rng():
            torch.manual_seed(trainer.args.seed)
            for _ in range(self.samples):
                answers = map(self.extract, decoding.generate(trainer, split, self.sampled()))
                right += [self.judge(*pair) for pair in zip(answers, split["label"], strict=True)]
        return {
            f"pass@{k}": tasks_metrics.pass_at(k, self.samples, right.tolist())
            for k in self.pass_at
        }

    def greedy(self) -> dict[str, Any]:
        """`transformers.GenerationConfig`'s settings for the one answer that is judged."""
        return {"max_new_tokens": self.max_new_tokens, "do_sample": False}

    def sampled(self) -> dict[str, Any]:
        """Those for samples: from the whole distribution."""
        sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return {"max_new_tokens": self.max_new_tokens, **sampling}


def _turns(chat: Any, where: str) -> tuple[list[dict[str, str]], str]:
    """A chat's prompt and the completion that its last message is."""
    try:
        turns = [{"role": str(m["role"]), "content": m["content"]} for m in chat]
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: not a list of messages with role and content") from error
    if not all(isinstance(m["content"], str) for m in turns):
        raise UserError(f"{where}: a message's content is not a text")
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise UserError(f"{where}: its last message must be the assistant's, after another one")
    return turns[:-1], turns[-1]["content"]


def _encode_chat(
    prompt: list[dict[str, str]], completion: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Ids, Ids]:
    """As the chat template writes them, the completion up to its end-of-text token."""
    from jinja2 import TemplateError

    def write(chat: list[dict[str, str]], asked: bool) -> Ids:
        try:
            ids = tokenizer.apply_chat_template(
                chat, add_generation_prompt=asked, return_dict=False
            )
        except TemplateError as error:
            raise UserError(
                f"chat [{', '.join(m['role'] for m in chat)}]: the model's template takes no such "
                f"one ({error})"
            ) from error
        return list(ids)

    end: Any = tokenizer.eos_token_id
    read = write(prompt, True)
    whole = write([*prompt, {"role": "assistant", "content": completion}], False)
    if whole[: len(read)] != read:
        raise UserError(
            "the chat template writes an answered prompt differently from an open one, so its "
            "completion cannot be told apart; choose another model, or prompt and completion texts"
        )
    written = whole[len(read) :]
    if end not in written:
        return read, [*written, end]
    return read, written[: len(written) - written[::-1].index(end)]  # often a line break follows


def _number(text: str) -> str:
    """The one spelling of a number: 1,200.0 is 1200; "" for what is none."""
    try:
        value = Decimal(text.strip().rstrip(".").replace(",", "").lstrip("$"))
    except InvalidOperation:
        return ""
    if not value.is_finite() or abs(value.adjusted()) > 50:
        return ""
    spelled = f"{value:f}"
    return (spelled.rstrip("0").rstrip(".") if "." in spelled else spelled) if value else "0"


def _check_lengths(split: Dataset, max_length: int) -> None:
    """Raise `UserError` for prompts that leave no room for a completion, or that are empty."""
    lengths = np.array(split["prompt_length"])
    bad = np.flatnonzero((lengths >= max_length) | (lengths == 0))
    if not len(bad):
        return
    row, tokens = split["id"][int(bad[0])], lengths[bad[0]]
    others = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
    if not tokens:
        raise UserError(f"row {row}: its prompt has no token{others}; set task.template")
    raise UserError(
        f"row {row}: its prompt has {tokens} tokens, the limit for prompt and completion is "
        f"{max_length}{others}; raise task.max_length, or remove such rows"
    )


def _of_tokens(nll: list[float], tokens: list[int]) -> dict[str, float]:
    """Loss and perplexity: every token of a completion counts once."""
    loss = math.fsum(nll) / max(sum(tokens), 1)
    return {"perplexity": math.exp(min(loss, 700)), "loss": loss}
