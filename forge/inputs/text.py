"""Texts: tokens, and padded batches of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, TrainingArguments
from forge.data.cache import stored
from forge.data.fingerprints import fingerprint

IGNORED = -100  # the label of a token that is not trained on


def encode(
    texts: list[list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    """One or two columns of texts as `input_ids`, …, `length` and `truncated`."""
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    full = [i for i, n in enumerate(encoded["length"]) if n == max_length]
    cut = set()
    if full:  # as long as allowed: was there more?
        whole = tokenizer(*([t[i] for i in full] for t in texts), verbose=False)["input_ids"]
        cut = {i for i, ids in zip(full, whole, strict=True) if len(ids) > max_length}
    encoded["truncated"] = [i in cut for i in range(len(encoded["length"]))]
    return dict(encoded)


def tokenize(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: list[str],
    max_length: int,
    cache_dir: Path,
) -> Dataset:
    """Rows with `input_ids`, `attention_mask`, …, `length` and `truncated` in place of the text.

    Cached under `cache_dir` by the content of rows and tokenizer; fast tokenizers use all cores.
    """

    def encoded(batch: Mapping[str, list[str]]) -> dict[str, list[Any]]:
        return encode([batch[column] for column in text], tokenizer, max_length)

    key = fingerprint(
        rows._fingerprint, identity(tokenizer), tokenizer.model_input_names, text, max_length
    )
    return stored(rows, encoded, text, key, cache_dir)


def identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What of a tokenizer decides on the tokens of a text."""
    spelled = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    spelled.pop("truncation", None), spelled.pop("padding", None)
    return [type(tokenizer).__name__, spelled or tokenizer.get_vocab(), tokenizer.truncation_side]


def pad_multiple(args: TrainingArguments) -> int | None:
    """8 where a GPU's tensor cores and attention kernels want it, in half precision.

    On a CPU it buys nothing: with MNLI's lengths the padding cost 9 % of the throughput, measured.
    """
    return 8 if (args.bf16 or args.fp16) and args.device.type != "cpu" else None


class Collator:
    """Batches of tensors, padded to the longest row and to a multiple of `multiple`.

    Columns that are neither the model's inputs nor named in `extra` are left out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, multiple: int | None = None, *extra: str
    ) -> None:
        from transformers import DataCollatorWithPadding

        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        self.pad: Callable[[list[dict[str, Any]]], Mapping[str, Any]] = DataCollatorWithPadding(
            tokenizer, pad_to_multiple_of=multiple
        )
        self.columns = (*tokenizer.model_input_names, "labels", *extra)

    def __call__(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        return self.pad([{k: row[k] for k in self.columns if k in row} for row in rows])


class Flattened:
    """Batches of one sequence, the rows one after the other; positions restart with each row."""

    def __init__(self) -> None:
        from transformers import DataCollatorWithFlattening

        self.flatten = DataCollatorWithFlattening()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = self.flatten(rows)
        ids = {"id": torch.tensor([row["id"] for row in rows])} if "id" in rows[0] else {}
        return batch | ids
