"""A question and a passage that may answer it, in windows where it is too long to be read at once.

A passage's *words* are where an answer may begin and end, whatever the tokenizer: runs of letters,
runs of digits, single other characters, and each letter of a script without blanks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from forge.data.sources import Columns, Row
from forge.inputs.input import NULLS, SPANS, Batch, Size, Usage
from forge.inputs.text import Tokens, texts
from forge.inputs.words import PLACES, Windows, padded, require_fast

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

    from forge.config.schema import Model

# Thai to Khmer, kana, Chinese characters, Hangul
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"\d+|(?:(?![{UNSPACED}])[^\W\d_])+|\S")


@lru_cache(maxsize=4096)  # questions share passages
def words(passage: str) -> NDArray[np.int64]:
    """Where each word begins and ends [W, 2], in characters."""
    return np.array([match.span() for match in WORD.finditer(passage)], np.int64).reshape(-1, 2)


@dataclass
class Passages(Tokens):
    """A column of contexts and one of questions.

    The question is read before each of a context's windows, which overlap by `stride` tokens (null:
    a third of them) and are read in one batch. A word is decided in the window where most is on
    both sides of it. Only a question of more than half the window is ever cut.
    """

    context: str = "context"
    question: str = "question"
    stride: int | None = None
    unanswerable: bool | None = None  # whether a row may have no answer
    widest = 0  # the most words that a context was seen to have

    def __post_init__(self) -> None:
        self.columns = [self.context, self.question]
        self.kept = ["context", "question"]

    @property
    def replaced(self) -> list[str]:
        return ["question"]  # answers are judged as parts of the context

    def rows(self, columns: Columns, split: str) -> Columns:
        named = zip(self.kept, self.columns, strict=True)
        read = {name: texts(columns[column], split, column) for name, column in named}
        self.widest = max([self.widest, *(len(words(context)) for context in read["context"])])
        return read

    def texts(self, rows: Dataset) -> Iterator[str]:
        return (text for name in self.kept for text in rows[name])

    def check(
        self,
        model: Model,
        processor: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        where: str,
    ) -> None:
        super().check(model, processor, config, where)
        require_fast(processor, where)

    def make_ready(self, processor: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        super().make_ready(processor, config)
        config.num_labels = 2  # of a position: whether an answer starts, and ends, there

    def identity(self, processor: PreTrainedTokenizerBase) -> list[object]:
        ours = [self.stride, self.unanswerable, self.widest]  # answers that are stored hang on them
        return [*super().identity(processor), *ours]

    def features(self, rows: Columns, processor: PreTrainedTokenizerBase, limit: int) -> Columns:
        names = processor.model_input_names
        columns = (*names, *PLACES, NULLS, "length", "truncated")
        features: Columns = {name: [] for name in columns}
        questions, cut = _questions(rows["question"], processor, limit)
        encoded = self._windows(questions, rows["context"], processor, limit)
        own: list[list[int]] = [[] for _ in questions]
        for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
            own[row].append(window)
        for context, windows, short in zip(rows["context"], own, cut, strict=True):
            for name in names:
                features[name].append([encoded[name][i] for i in windows])
            for name, places in zip(PLACES, _places(context, encoded, windows), strict=True):
                features[name].append(places)
            ids = features["input_ids"][-1]
            features[NULLS].append([_null(each, processor.cls_token_id) for each in ids])
            features["length"].append(sum(map(len, ids)))
            features["truncated"].append(short)
        return features

    def _windows(
        self, questions: list[str], contexts: list[str], processor: PreTrainedTokenizerBase,
        limit: int,
    ) -> BatchEncoding:  # fmt: skip
        apart = processor.num_special_tokens_to_add(pair=True)
        most = limit // 2 - apart - 1
        encoded: BatchEncoding = processor(
            questions if apart else [f"{question}\n" for question in questions],
            contexts,
            truncation="only_second",
            max_length=limit,
            stride=max(0, min(limit // 3 if self.stride is None else self.stride, most)),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        return encoded

    def model_columns(self, processor: PreTrainedTokenizerBase) -> list[str]:
        return [*super().model_columns(processor), *PLACES, NULLS]

    def collator(
        self, processor: PreTrainedTokenizerBase, multiple: int | None, *extra: str
    ) -> Pages:
        return Pages(processor, multiple, "id", *extra, width=self.widest + 1)

    def size(self, batch: Batch) -> Size:
        mask = batch["attention_mask"]
        return Size(len(batch[SPANS]), mask.numel(), mask.sum())

    def shown(self, rows: Dataset | Columns) -> dict[str, list[str]]:
        named = zip(self.columns, self.kept, strict=True)
        return {column: list(rows[name]) for column, name in named}

    def usage(self, limit: int) -> Usage:
        return Usage(
            processor="AutoTokenizer",
            name="tokenizer",
            settings='import torch\n\nquestion, context = "Who?", "Ada lives in Rome."',
            of_pipeline="",
            of_processor=f'question, context, truncation="only_second", max_length={limit}',
        )


class Pages(Windows):
    """Batches of every row's windows [N, L]; of the N * L positions `spans` [B, 2, `width`] says
    for each word of a row where an answer that starts (ends) there is decided, from column 1 on,
    and `nulls` [B, W] where each window says that it has none; -1 for no such word or window."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, multiple: int | None, *extra: str, width: int
    ) -> None:
        super().__init__(tokenizer, multiple, *extra)
        self.width = width

    def __call__(self, rows: list[Row]) -> Batch:
        batch, origins = self.windows(rows)
        spans = torch.full((len(rows), 2, self.width), -1)
        for row, begins, of_row in zip(rows, origins, spans, strict=True):
            pairs = zip(*(row[name] for name in PLACES), strict=True)
            places = torch.tensor([begins[w] + p for w, p in pairs], dtype=torch.long).view(2, -1)
            of_row[:, 1 : 1 + places.shape[1]] = places
        pairs = zip(rows, origins, strict=True)
        nulls = [[o + p for o, p in zip(begins, row[NULLS], strict=True)] for row, begins in pairs]
        return self.rest(batch | {SPANS: spans, NULLS: padded(nulls, -1, torch.long)}, rows)


def _questions(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[str], list[bool]]:
    """The questions, cut to half of a window, and which of them are."""
    encoded = tokenizer(
        list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    most = limit // 2 - tokenizer.num_special_tokens_to_add(pair=True)
    cut = [len(ids) > most for ids in encoded["input_ids"]]
    ends = [places[max(most, 1) - 1][1] if c else None
            for places, c in zip(encoded["offset_mapping"], cut, strict=True)]  # fmt: skip
    return [text[:end] for text, end in zip(questions, ends, strict=True)], cut


def _places(
    context: str, encoded: BatchEncoding, windows: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Window and position of each word's first token, then of each word's last: 2 * words each.

    A word that the tokenizer makes nothing of shares its neighbour's.
    """
    own = words(context)
    chars = np.stack([own[:, 0], own[:, 1] - 1])  # the first and the last of each word [2, W]
    best = np.full((3, *chars.shape), -1)  # how much is on the shorter side, and the place
    for number, window in enumerate(windows):
        of_context = np.array([part == 1 for part in encoded.sequence_ids(window)], bool)
        offsets = np.array(encoded["offset_mapping"][window]).reshape(-1, 2)
        tokens = np.flatnonzero(of_context & (offsets[:, 1] > offsets[:, 0]))
        if not len(tokens):
            continue
        starts, ends = offsets[tokens].T
        at = np.searchsorted(ends, chars, "right").clip(max=len(tokens) - 1)
        room = np.where(
            (starts[at] <= chars) & (chars < ends[at]), np.minimum(at, len(tokens) - 1 - at), -1
        )
        here = np.stack([room, np.full_like(at, number), tokens[at]])
        best = np.where(room > best[0], here, best)
    for row in best.transpose(1, 2, 0):  # of the first tokens, and of the last
        known = np.flatnonzero(row[:, 0] >= 0)
        nearest = np.searchsorted(known, np.arange(len(row)), "right") - 1
        row[:] = row[known[nearest.clip(min=0)]] if len(known) else 0
    return best[1].ravel().tolist(), best[2].ravel().tolist()


def _null(ids: Sequence[int], cls: int | None) -> int:
    """Where a window says that it has no answer: at its token for the whole, else at its last."""
    return len(ids) - 1 if cls is None or cls not in ids else list(ids).index(cls)
