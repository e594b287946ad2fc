"""One or two texts: tokens, and padded batches of them."""

from __future__ import annotations

import json
import logging
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forge.data import cache
from forge.data.fingerprints import fingerprint
from forge.data.missing import is_missing
from forge.data.sources import Columns, Row
from forge.errors import UserError
from forge.inputs.input import Batch, Input, Size, Usage
from forge.models import loading, tokenizers, vocabularies

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from forge.config.schema import Model

log = logging.getLogger(__name__)


@dataclass
class Tokens(Input):
    """What is tokenised, whatever the tokens are made of; `max_length` is in tokens, special ones
    included."""

    max_length: int | None = None
    columns: list[str] = field(default_factory=list)
    unit = "tokens"

    def fitting(self, processor: PreTrainedTokenizerBase) -> dict[str, object]:
        settings: dict[str, object] = {
            "vocab_size": len(processor),
            "pad_token_id": processor.pad_token_id,
        }
        if processor.eos_token_id is not None:
            settings |= {"eos_token_id": processor.eos_token_id, "bos_token_id": None}
        return settings

    def check(
        self,
        model: Model,
        processor: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        where: str,
    ) -> None:
        from transformers.models.auto import modeling_auto as auto

        as_made = config if model.path else loading.architecture_class(model.config)()
        reads = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.keys()
        hears = auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.keys() - reads
        if config.model_type in hears or not hasattr(as_made.get_text_config(), "vocab_size"):
            raise UserError(
                f"{where} {model.path or config.model_type}: a {config.model_type} does not read "
                "text; choose e.g. model=tiny or model=distilbert"
            )
        tokenizers.check_vocabulary(processor, config, f"{where}.tokenizer={model.tokenizer}")

    def limit(self, processor: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
        asked = self.max_length
        if asked is None:
            return loading.reading_limit(processor, config)
        if asked < 8:
            raise UserError(f"task.max_length={asked}: at least 8 tokens, special ones included")
        return min(asked, loading.most_tokens(processor, config))

    def identity(self, processor: PreTrainedTokenizerBase) -> list[object]:
        """What of a tokenizer decides on the tokens of a text, and on answers to them."""
        spelled = json.loads(processor.backend_tokenizer.to_str()) if processor.is_fast else {}
        spelled.pop("truncation", None), spelled.pop("padding", None)
        kind = type(processor).__name__
        left = ["padded on the left"] if processor.padding_side == "left" else []
        return [kind, spelled or processor.get_vocab(), processor.truncation_side, *left]

    def load_processor(
        self, model: Model, rows: Dataset | None = None, where: str = "model"
    ) -> PreTrainedTokenizerBase:
        """Without a path a vocabulary of the rows: WordPiece, byte pairs for a decoder."""
        if model.path or model.tokenizer:
            return loading.load_tokenizer(model, where)
        assert rows is not None
        return vocabulary(model, self.texts(rows))

    @property
    def replaced(self) -> list[str]:
        """Of `kept`, the columns that encoded rows have no more."""
        return self.kept

    @abstractmethod
    def texts(self, rows: Dataset) -> Iterator[str]:
        """Every text of the rows."""

    def encode(
        self, rows: Dataset, processor: PreTrainedTokenizerBase, limit: int, cache_dir: Path
    ) -> Dataset:
        def encoded(batch: Columns) -> Columns:
            return self.features(batch, processor, limit)

        key = fingerprint(
            rows._fingerprint,
            self.identity(processor),
            processor.model_input_names,
            self.kept,
            limit,
        )
        split = cache.stored(rows, encoded, self.replaced, key, cache_dir)
        tokenizers.require_tokens(split["input_ids"], processor)
        return split

    def make_ready(self, processor: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        tokenizers.fit(processor, config)

    def model_columns(self, processor: PreTrainedTokenizerBase) -> list[str]:
        return list(processor.model_input_names)

    def same_positions(self, ours: Dataset, theirs: Dataset) -> bool:
        pairs = zip(ours["input_ids"], theirs["input_ids"], strict=True)
        return all(mine == yours for mine, yours in pairs)

    def size(self, batch: Batch) -> Size:
        if (mask := batch.get("attention_mask")) is not None:
            return Size(len(mask), mask.numel(), mask.sum())
        flattened = batch["input_ids"]  # rows one after the other, without padding
        return Size(len(batch["id"]), flattened.numel(), flattened.numel())

    def mask(self, batch: Batch) -> Tensor | None:
        return batch["attention_mask"]

    def example(
        self, processor: PreTrainedTokenizerBase, count: int, length: int
    ) -> dict[str, Tensor]:
        import torch

        torch.manual_seed(count * length)
        special = set(processor.all_special_ids)
        usual = [i for i in range(len(processor)) if i not in special]
        rows = []
        for row in range(count):  # the first has `length` tokens, the others are padded to it
            size = max(1, length - row * length // count)
            ids = [usual[i] for i in torch.randint(len(usual), (size,))]
            rows.append({"input_ids": ids, "attention_mask": [1] * size})
            if "token_type_ids" in processor.model_input_names:
                rows[-1]["token_type_ids"] = [int(2 * i > size) for i in range(size)]
        return dict(Collator(processor)(rows))

    def open_axes(self, batch: Batch) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "sequence"} for name in batch}


@dataclass
class Text(Tokens):
    """One or two columns of texts."""

    def __post_init__(self) -> None:
        if len(self.columns) not in (1, 2):
            raise UserError(f"task.text={self.columns}: one or two text columns are needed")
        self.kept = [f"text_{i}" for i in range(len(self.columns))]

    def rows(self, columns: Columns, split: str) -> dict[str, list[str]]:
        named = zip(self.kept, self.columns, strict=True)
        return {name: texts(columns[column], split, column) for name, column in named}

    def texts(self, rows: Dataset) -> Iterator[str]:
        return (text for column in self.kept for text in rows[column])

    def features(self, rows: Columns, processor: PreTrainedTokenizerBase, limit: int) -> Columns:
        return encode([rows[column] for column in self.kept], processor, limit)

    def collator(
        self, processor: PreTrainedTokenizerBase, multiple: int | None, *extra: str
    ) -> Callable[[list[Row]], Batch]:
        return Collator(processor, multiple, "id", *extra)

    def shown(self, rows: Dataset | Columns) -> dict[str, list[str]]:
        named = zip(self.columns, self.kept, strict=True)
        return {column: list(rows[name]) for column, name in named}

    def usage(self, limit: int) -> Usage:
        texts = '"A text."' if len(self.columns) == 1 else '"A first text.", "A second one."'
        pair = '{"text": "A first text.", "text_pair": "A second one."}'
        return Usage(
            processor="AutoTokenizer",
            name="tokenizer",
            settings=f'limit = {{"truncation": True, "max_length": {limit}}}  # as in training',
            of_pipeline=f"{texts if len(self.columns) == 1 else pair}, **limit",
            of_processor=f"{texts}, **limit",
        )


def vocabulary(model: Model, every: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer learnt from all texts, for an architecture from random weights."""
    architecture = loading.architecture_class(model.config)()
    if tokenizers.is_decoder(architecture):
        return vocabularies.byte_pairs(model.config, every)
    two_texts = getattr(architecture, "type_vocab_size", 0) > 1
    return vocabularies.word_pieces(model.config, every, two_texts)


def texts(values: Sequence[object], split: str, column: str) -> list[str]:
    """A column as texts; raises `UserError` where a row has none."""
    missing = [i for i, value in enumerate(values) if value is None or value != value]
    odd = [i for i, value in enumerate(values) if not isinstance(value, str | int | float | None)]
    if odd:
        kind = type(values[odd[0]]).__name__
        raise UserError(f"split {split}, column {column}: row {odd[0]} holds a {kind}, not a text")
    if missing:
        raise UserError(
            f"split {split}, column {column}: {len(missing)} rows have no text (first: row "
            f"{missing[0]}); fill or remove them"
        )
    marks = Counter(str(value).strip() or "blank" for value in values if is_missing(value))
    if marks:
        named = ", ".join(f"{mark} ({rows} rows)" for mark, rows in marks.items())
        log.warning("split %s, column %s: %s: taken for texts", split, column, named)
    return [str(value) for value in values]


def encode(texts: list[list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Columns:
    """One or two columns of texts as `input_ids`, …, `length` and `truncated`."""
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    tokenizers.fill_empty(encoded, tokenizer)
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    full = [i for i, n in enumerate(encoded["length"]) if n == max_length]
    cut = set()
    if full:  # as long as allowed: was there more?
        whole = tokenizer(*([t[i] for i in full] for t in texts), verbose=False)["input_ids"]
        cut = {i for i, ids in zip(full, whole, strict=True) if len(ids) > max_length}
    encoded["truncated"] = [i in cut for i in range(len(encoded["length"]))]
    return dict(encoded)


class Collator:
    """Batches of tensors, padded to the longest row and to a multiple of `multiple`.

    Columns that are neither the model's inputs nor named in `extra` are left out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, multiple: int | None = None, *extra: str
    ) -> None:
        from transformers import DataCollatorWithPadding

        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        self.tokenizer = tokenizer
        self.pad: Callable[[list[Row]], Batch] = DataCollatorWithPadding(
            tokenizer, pad_to_multiple_of=multiple
        )
        self.columns = (*tokenizer.model_input_names, "labels", *extra)

    def __call__(self, rows: list[Row]) -> Batch:
        return self.pad([{k: row[k] for k in self.columns if k in row} for row in rows])
