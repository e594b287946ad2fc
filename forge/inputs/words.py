"""Rows of words, in windows where they are too many to be read at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from forge.data import sources
from forge.data.sources import Columns, Row
from forge.errors import UserError
from forge.inputs.input import FIRST, IGNORED, Batch, Size, Usage
from forge.inputs.text import Collator, Tokens
from forge.models import tokenizers

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

    from forge.config.schema import Model

WORD = re.compile(r"\w+(?:[-'\u2019.]\w+)*|[^\w\s]")  # of a running text
PLACES = ("window", "position")  # of each word's first piece


@dataclass
class Words(Tokens):
    """A column of lists of words (or texts, split at blanks and before punctuation).

    A row of more than `limit` tokens is read in windows that overlap by a quarter of it; a word is
    decided at its first piece, in the window where that has most on both sides. So nothing is cut.
    A row's windows are read in one batch.
    """

    column: str = "tokens"
    kept: list[str] = field(init=False, default_factory=lambda: ["words"])

    def __post_init__(self) -> None:
        self.columns = [self.column]

    def rows(self, columns: Columns, split: str) -> dict[str, list[list[str]]]:
        where = f"split {split}, column {self.column}"
        return {
            "words": [_words(v, f"{where}: row {i}") for i, v in enumerate(columns[self.column])]
        }

    def texts(self, rows: Dataset) -> Iterator[str]:
        return (" ".join(words) for words in rows["words"])

    def check(
        self,
        model: Model,
        processor: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        where: str,
    ) -> None:
        super().check(model, processor, config, where)
        require_fast(processor, where)

    def features(self, rows: Columns, processor: PreTrainedTokenizerBase, limit: int) -> Columns:
        names = processor.model_input_names
        features: Columns = {name: [] for name in (*names, *PLACES, "length", "truncated")}
        for windows in _windows(rows["words"], processor, limit):
            first = _first_pieces([window["word_ids"] for window in windows])
            for name in names:
                features[name].append([window[name] for window in windows])
            for i, name in enumerate(PLACES):
                features[name].append([place[i] for place in first])
            features["length"].append(sum(len(window["input_ids"]) for window in windows))
            features["truncated"].append(False)
        return features

    def model_columns(self, processor: PreTrainedTokenizerBase) -> list[str]:
        return [*super().model_columns(processor), *PLACES]

    def collator(
        self, processor: PreTrainedTokenizerBase, multiple: int | None, *extra: str
    ) -> Windows:
        return Windows(processor, multiple, "id", *extra)

    def size(self, batch: Batch) -> Size:
        mask = batch["attention_mask"]
        return Size(len(batch[FIRST]), mask.numel(), mask.sum())

    def shown(self, rows: Dataset | Columns) -> dict[str, list[str]]:
        return {self.column: [" ".join(words) for words in rows["words"]]}

    def usage(self, limit: int) -> Usage:
        words = '["Ada", "lives", "in", "Rome"]'
        return Usage(
            processor="AutoTokenizer",
            name="tokenizer",
            settings="",
            of_pipeline='"Ada lives in Rome"',
            of_processor=f"{words}, is_split_into_words=True",
        )


class Windows(Collator):
    """Batches of every row's windows [N, L]; `first` [B, W] says for each of a row's words where
    its first piece is among the N * L positions, -1 for none. What each word has (labels, a
    teacher's answers) is padded likewise, labels with `IGNORED`."""

    def __call__(self, rows: list[Row]) -> Batch:
        batch, origins = self.windows(rows)
        first = [
            [begins[w] + p for w, p in zip(*(row[name] for name in PLACES), strict=True)]
            for row, begins in zip(rows, origins, strict=True)
        ]
        return self.rest(batch | {FIRST: padded(first, -1, torch.long)}, rows)

    def windows(self, rows: list[Row]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """What the model reads, and for each row where each of its windows begins among the N * L
        positions."""
        own = self.tokenizer.model_input_names
        counts = [len(row["input_ids"]) for row in rows]
        windows = [
            {n: row[n][i] for n in own} for row in rows for i in range(len(row["input_ids"]))
        ]
        batch = dict(self.pad(windows))
        width = batch["input_ids"].shape[1]
        left = self.tokenizer.padding_side == "left"
        begins = [
            i * width + (width - len(window["input_ids"]) if left else 0)
            for i, window in enumerate(windows)
        ]
        ends = list(accumulate(counts, initial=0))
        return batch, [begins[a:b] for a, b in pairwise(ends)]

    def rest(self, batch: dict[str, Tensor], rows: list[Row]) -> Batch:
        """The batch with the rows' other columns."""
        own = self.tokenizer.model_input_names
        for name in (name for name in self.columns if name not in own and name in rows[0]):
            values = [row[name] for row in rows]
            if name == "id":
                batch[name] = torch.tensor(values)
            elif name == "labels":
                batch[name] = padded(values, IGNORED, torch.long)
            else:
                batch[name] = padded(values, 0, torch.float)
        return batch


def require_fast(processor: PreTrainedTokenizerBase, where: str) -> None:
    """Raise `UserError` for a tokenizer that does not say where its tokens are in a text."""
    if not processor.is_fast:
        raise UserError(
            f"{where}: its tokenizer ({type(processor).__name__}) does not say which word a "
            "piece is of; save a fast one (tokenizer.json) beside the weights"
        )


def padded(rows: Sequence[Sequence[object]], value: int, dtype: torch.dtype) -> Tensor:
    """[W, …] of each row as [B, most W, …]."""
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], True, value)


def _words(value: object, where: str) -> list[str]:
    """A row's words; raises `UserError` for what holds none."""
    value = sources.listed(value)
    if isinstance(value, str):
        return WORD.findall(value)
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise UserError(f"{where} holds {str(value)[:60]}, not a list of words")
    return list(value)


def _windows(
    rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[list[dict[str, list[int]]]]:
    """Of each row its windows: the model's inputs, and each token's `word_ids`."""
    words = [_spaced(row, tokenizer) for row in rows]
    encoded = _encode(words, tokenizer, limit)
    windows: list[list[dict[str, list[int]]]] = [[] for _ in rows]
    for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
        window = {name: encoded[name][i] for name in tokenizer.model_input_names}
        windows[row].append(window | {"word_ids": encoded.word_ids(i)})
    return windows


def _encode(
    words: list[list[str]], tokenizer: PreTrainedTokenizerBase, limit: int
) -> BatchEncoding:
    """Encoded in windows; a word that the tokenizer makes nothing of is an unknown one."""
    settings = {
        "is_split_into_words": True,
        "truncation": True,
        "max_length": limit,
        "stride": min(limit, 2**20) // 4,
        "return_overflowing_tokens": True,
    }
    encoded: BatchEncoding = tokenizer(words, **settings)
    seen: list[set[int]] = [set() for _ in words]
    for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
        seen[row].update(word for word in encoded.word_ids(i) if word is not None)
    if any(len(own) < len(row) for own, row in zip(seen, words, strict=True)):
        unknown = tokenizer.unk_token or tokenizer.pad_token
        pairs = zip(words, seen, strict=True)
        words = [[w if i in own else unknown for i, w in enumerate(row)] for row, own in pairs]
        encoded = tokenizer(words, **settings)
    tokenizers.fill_empty(encoded, tokenizer)
    return encoded


def _spaced(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words with blanks before them, where the tokenizer would otherwise read them as one.

    Byte pairs hold the blank before a word; transformers reads words of a list without it unless
    the tokenizer was made with add_prefix_space.
    """
    listed = tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)
    if listed["input_ids"] == tokenizer("a b", add_special_tokens=False)["input_ids"]:
        return list(words)
    return [f" {word}" if i else word for i, word in enumerate(words)]


def _first_pieces(windows: Sequence[Sequence[int | None]]) -> list[tuple[int, int]]:
    """Window and position of each word's first piece, from the words of each window's tokens."""
    best: dict[int, tuple[int, int, int]] = {}  # how much is on the shorter side, and the place
    for number, words in enumerate(windows):
        before: int | None = None
        for position, word in enumerate(words):
            starts = (
                word is not None and word != before and (before is not None or word not in best)
            )
            before = word if word is not None else before
            if not starts:
                continue
            assert word is not None
            room = min(position, len(words) - 1 - position)
            if word not in best or room > best[word][0]:
                best[word] = (room, number, position)
    return [best[word][1:] for word in sorted(best)]
