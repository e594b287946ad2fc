"""What a language model makes of encoded prompts and completions: losses, and texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Required, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from forge.data.sources import Row
from forge.errors import UserError
from forge.inputs.input import IGNORED
from forge.inputs.prompt import Flattened
from forge.models import tokenizers
from forge.models.forward import Pass, in_batches

if TYPE_CHECKING:
    import transformers
    from datasets import Dataset
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainingArguments,
    )

T = TypeVar("T")

LOGITS = 2**28  # at once, 1 GB in fp32: a large vocabulary makes a batch smaller


class Settings(TypedDict, total=False):
    """Of a `transformers.GenerationConfig`."""

    max_new_tokens: Required[int]
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Reader:
    """A language model with its tokenizer, and how it is run. With several ranks each takes its
    share of the rows."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    how: Pass
    seed: int = 0  # of what is drawn

    @classmethod
    def of(cls, trainer: transformers.Trainer) -> Reader:
        """The model that a trainer trains."""
        tokenizer: Any = trainer.processing_class
        model: Any = trainer.model
        return cls.by(model, tokenizer, trainer.args)

    @classmethod
    def by(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
    ) -> Reader:
        """As a run evaluates."""
        return cls(model, tokenizer, Pass.of(args), args.seed)


def losses(reader: Reader, split: Dataset) -> tuple[list[float], list[int]]:
    """Per row the negative log-likelihood of its completion, and that one's tokens."""

    def nll(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, reduction="none").double()

    pairs = of_completions(reader, split, nll, lambda row: (float(row.sum()), len(row)))
    return [nll for nll, _ in pairs], [tokens for _, tokens in pairs]


def of_completions(
    reader: Reader,
    split: Dataset,
    of: Callable[[Tensor, Tensor], Tensor],
    keep: Callable[[Tensor], T],
) -> list[T]:
    """For each row `keep` of what `of` makes of its completion's tokens: logits and labels."""

    def answer(batch: dict[str, Tensor]) -> list[T]:
        labels = batch.pop("labels")[:, 1:]  # the logits at a token are about the next one
        logits = reader.model(**batch).logits[:, :-1]
        asked = labels != IGNORED
        return [
            keep(row)
            for row in torch.split(of(logits[asked], labels[asked]), asked.sum(1).tolist())
        ]

    tokenizer: Any = reader.tokenizer

    def collate(rows: list[Row]) -> Any:
        ids = {"input_ids": [row["input_ids"] for row in rows]}
        batch = tokenizer.pad(ids, padding_side="right", return_tensors="pt")
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        for labels, row in zip(batch["labels"], rows, strict=True):
            labels[: row["length"]] = torch.tensor(row["labels"])
        return batch

    how, lengths = reader.how, list(split["length"])
    most = max(1, LOGITS // (max(lengths) * len(tokenizer)))
    how = replace(how, batch_size=min(how.batch_size, most))
    return in_batches(
        reader.model, split, collate, answer, how, lengths=lengths, title="Reading", over_ranks=True
    )


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    text: str
    cut: bool  # it was not at its end when its room was used up


def generate(reader: Reader, split: Dataset, settings: Settings) -> list[Completion]:
    """What the model writes after each prompt; `settings` are those of a GenerationConfig.

    A completion has `max_new_tokens`, or what its own prompt leaves of the model's context: rows
    whose room is the same share batches.
    """
    from transformers import GenerationConfig

    tokenizer: Any = reader.tokenizer
    model, most = reader.model, settings["max_new_tokens"]
    stops = ends(model.generation_config, tokenizer)
    rooms = np.minimum(most, context(model.config) - np.array(split["prompt_length"]))
    own = model.generation_config  # its settings, such as a repetition penalty, are not the task's
    model.generation_config = GenerationConfig(
        **settings, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, use_cache=True
    )
    completions: list[Any] = [None] * len(split)
    try:
        for room in sorted(set(rooms.tolist()), reverse=True):  # a prompt leaves at least 1
            rows = np.flatnonzero(rooms == room)
            written = _generate(reader, split.select(rows), room, stops)
            for row, completion in zip(rows, written, strict=True):
                completions[row] = completion
    finally:
        model.generation_config = own
    return completions


def _generate(reader: Reader, rows: Dataset, room: int, stops: list[int]) -> list[Completion]:
    """Completions of at most `room` tokens."""
    tokenizer: Any = reader.tokenizer

    def collate(rows: list[Row]) -> Any:
        prompts = {"input_ids": [row["input_ids"][: row["prompt_length"]] for row in rows]}
        return tokenizer.pad(prompts, padding_side="left", return_tensors="pt")

    def answer(batch: dict[str, Tensor]) -> list[Completion]:
        longest = batch["input_ids"].shape[1]
        model: Any = reader.model
        written = model.generate(**batch, max_new_tokens=room)[:, longest:].tolist()
        return [
            Completion(text(ids, stops, tokenizer), not set(stops) & set(ids)) for ids in written
        ]

    return in_batches(
        reader.model, rows, collate, answer, reader.how,
        lengths=list(rows["prompt_length"]), title="Generating", over_ranks=True,
    )  # fmt: skip


def context(config: PretrainedConfig) -> int:
    """How many tokens a model reads and writes at most."""
    return tokenizers.positions(config)


def check_room(
    split: Dataset, new_tokens: int, config: PretrainedConfig, model: str = "the model"
) -> None:
    """Raise `UserError` for a prompt after which the context has no room for an answer."""
    room = context(config)
    lengths = list(split["prompt_length"])
    longest = max(lengths)
    if longest + new_tokens > room:
        row = split["id"][lengths.index(longest)]
        raise UserError(
            f"row {row}: its prompt has {longest} tokens, which with task.max_new_tokens="
            f"{new_tokens} is more than {model}'s context of {room}; lower "
            "task.max_new_tokens, or remove such rows"
        )


def text(ids: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """A completion's text, up to the first token that ends it."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True))


def ends(own: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those that the model names."""
    named = getattr(own, "eos_token_id", None)
    more = named if isinstance(named, list) else [] if named is None else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *more]))


def flattened(model: PreTrainedModel, split: Dataset, device: torch.device) -> Flattened:
    """What makes batches of one sequence each, without padding.

    Raises `UserError` unless the model says of a row what it says of that row alone.
    """
    collate = Flattened()
    rows = [{k: split[i][k][:16] for k in ("input_ids", "labels")} for i in (0, len(split) - 1)]
    flat = {k: v.to(device) for k, v in collate(rows).items()}
    flat.pop("labels")
    if apart := moved(model, flat, flat["input_ids"][:, -len(rows[1]["input_ids"]) :]):
        raise UserError(
            f"task.padding_free: in a batch without padding {model.config.model_type} with "
            f"{model.config._attn_implementation} attention does not keep rows apart (logits move "
            f"by {apart:.1%}); set task.padding_free=false"
        )
    return collate


def moved(model: PreTrainedModel, batch: dict[str, Tensor], alone: Tensor) -> float:
    """How far the logits of a row [1, tokens], the last in a batch, are from those of it alone.

    As a share of the largest one; 0 within rounding. A model that does not take the batch gives 1.
    """
    from transformers.utils.generic import is_flash_attention_requested

    model.eval()
    flash = is_flash_attention_requested(model.config)  # it takes half precision only
    with torch.no_grad(), torch.autocast(alone.device.type, torch.bfloat16, enabled=flash):
        wanted = model(input_ids=alone).logits
        try:
            batched = model(**batch).logits[-1:, -alone.shape[1] :]
        except TypeError:
            return 1.0
    share = float((batched - wanted).abs().max() / wanted.abs().max())
    return 0.0 if share < (1e-4 if wanted.dtype == torch.float32 else 0.05) else share
