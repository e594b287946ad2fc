"""What a language model makes of rows of a tokenised `Generation` split: losses, and texts.

Any `transformers.Trainer` will do: of it come the model, the tokenizer, the device and the size of
a batch. With several ranks each takes its share of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from forge import ranks as forge_ranks
from forge.errors import UserError
from forge.inputs.text import IGNORED

if TYPE_CHECKING:
    import transformers
    from datasets import Dataset
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from forge.tasks.text import Generation

LOGITS = 2**28  # at once, 1 GB in fp32: a large vocabulary makes a batch smaller


def losses(trainer: transformers.Trainer, split: Dataset) -> tuple[list[float], list[int]]:
    """Per row the negative log-likelihood of its completion, and that one's tokens."""
    from torch.nn.functional import cross_entropy

    def nll(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits.float(), labels, reduction="none").double()

    found = of_completions(trainer, split, nll, lambda row: (float(row.sum()), len(row)))
    return [nll for nll, _ in found], [tokens for _, tokens in found]


def of_completions(
    trainer: transformers.Trainer,
    split: Dataset,
    of: Callable[[Tensor, Tensor], Tensor],
    keep: Callable[[Tensor], Any],
) -> list[Any]:
    """For each row `keep` of what `of` makes of its completion's tokens: logits and labels."""
    import torch

    def one(batch: dict[str, Tensor]) -> list[Any]:
        labels = batch.pop("labels")[:, 1:]  # the logits at a token are about the next one
        logits = trainer.model(**batch).logits[:, :-1]  # type: ignore[misc]
        taught = labels != IGNORED
        found = of(logits[taught], labels[taught])
        return [keep(row) for row in torch.split(found, taught.sum(1).tolist())]

    tokenizer: Any = trainer.processing_class

    def collate(rows: list[dict[str, Any]]) -> Any:
        ids = {"input_ids": [row["input_ids"] for row in rows]}
        batch = tokenizer.pad(ids, padding_side="right", return_tensors="pt")
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        for labels, row in zip(batch["labels"], rows, strict=True):
            labels[: row["length"]] = torch.tensor(row["labels"])
        return batch

    most = LOGITS // (max(split["length"]) * len(tokenizer))
    return _in_batches(trainer, split, "Reading", collate, one, max(1, most))


def generate(trainer: transformers.Trainer, split: Dataset, settings: dict[str, Any]) -> list[str]:
    """What the model writes after each prompt; rows with long prompts should come first."""
    from transformers import GenerationConfig

    tokenizer: Any = trainer.processing_class
    model: Any = trainer.model
    stops = ends(model.generation_config, tokenizer)
    room = getattr(model.config, "max_position_embeddings", None) or 10**9

    def collate(rows: list[dict[str, Any]]) -> Any:
        prompts = {"input_ids": [row["input_ids"][: row["prompt_length"]] for row in rows]}
        return tokenizer.pad(prompts, padding_side="left", return_tensors="pt")

    def one(batch: dict[str, Tensor]) -> list[str]:
        longest = batch["input_ids"].shape[1]
        limit = min(settings["max_new_tokens"], room - longest)  # a prompt leaves at least 1
        written = model.generate(**batch, max_new_tokens=limit)[:, longest:].tolist()
        return [text(ids, stops, tokenizer) for ids in written]

    own = model.generation_config  # its settings, such as a repetition penalty, are not the task's
    model.generation_config = GenerationConfig(
        **settings, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, use_cache=True
    )
    try:
        return _in_batches(trainer, split, "Generating", collate, one)
    finally:
        model.generation_config = own


def check_room(split: Dataset, task: Generation, config: Any, model: str = "the model") -> None:
    """Raise `UserError` for a prompt after which the context has no room for an answer."""
    room = getattr(config, "max_position_embeddings", None) or 10**9
    lengths = list(split["prompt_length"])
    longest = max(lengths)
    if longest + task.max_new_tokens > room:
        row = split["id"][lengths.index(longest)]
        raise UserError(
            f"row {row}: its prompt has {longest} tokens, which with task.max_new_tokens="
            f"{task.max_new_tokens} is more than {model}'s context of {room}; lower "
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


def moved(model: Any, batch: dict[str, Tensor], alone: Tensor) -> float:
    """How far the logits of a row [1, tokens], the last in a batch, are from those of it alone.

    As a share of the largest one; 0 within rounding. A model that does not take the batch gives 1.
    """
    import torch
    from transformers.utils.generic import is_flash_attention_requested

    model.eval()
    flash = is_flash_attention_requested(model.config)  # it takes half precision only
    with torch.no_grad(), torch.autocast(alone.device.type, torch.bfloat16, enabled=flash):
        wanted = model(input_ids=alone).logits
        try:
            found = model(**batch).logits[-1:, -alone.shape[1] :]
        except TypeError:
            return 1.0
    share = float((found - wanted).abs().max() / wanted.abs().max())
    return 0.0 if share < (1e-4 if wanted.dtype == torch.float32 else 0.05) else share


def _in_batches(
    trainer: transformers.Trainer,
    split: Dataset,
    title: str,
    collate: Callable[[list[dict[str, Any]]], Any],
    one: Callable[[Any], list[Any]],
    most: int | None = None,
) -> list[Any]:
    """`one` of every batch, all ranks' together, in the order of the rows."""
    import torch
    from tqdm import tqdm

    assert trainer.model is not None
    ranks, size = forge_ranks.ranks(), trainer.args.per_device_eval_batch_size
    size = min(size, most or size)
    mine: Any = split.select(range(forge_ranks.rank(), len(split), ranks))
    starts = range(0, len(mine), size)
    hidden = not sys.stderr.isatty() or forge_ranks.rank() > 0
    training, found = trainer.model.training, []
    trainer.model.eval()
    half, device = trainer.args.bf16 or trainer.args.fp16, trainer.args.device
    dtype = torch.float16 if trainer.args.fp16 else torch.bfloat16
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=half):
        for start in tqdm(starts, title, leave=False, disable=hidden):
            batch = collate(list(mine.select(range(start, min(start + size, len(mine))))))
            found += one({name: tensor.to(device) for name, tensor in batch.items()})
    trainer.model.train(training)
    shares = forge_ranks.all_gather(found)
    rows = [None] * len(split)
    for rank, share in enumerate(shares):
        rows[rank::ranks] = share
    return rows
