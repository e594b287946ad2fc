"""What a model reads of a row: the question that every kind of input answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from forge.data.sources import Columns, Row
from forge.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, TrainingArguments

    from forge.config.schema import Model

Processor: TypeAlias = Any  # tokenizer or image processor: transformers has no common type
Batch: TypeAlias = "Mapping[str, Tensor]"
Collator: TypeAlias = Callable[[list[Row]], Batch]

IGNORED = -100  # the label of a position that is not trained on, as in PyTorch
FIRST = "first"  # a batch's column: of each word [B, W] the place of its first piece, -1 for none
OPTIONS = "options"  # a batch's column: which of the answers [B, C] a row has
SPANS = "spans"  # a batch's column: where each word [B, 2, C] starts, and ends, an answer
NULLS = "nulls"  # a batch's column: where each of a row's windows [B, W] says that it has none
APART = ("id", "labels", FIRST, OPTIONS, SPANS, NULLS)  # columns of a batch that no model reads


def for_model(batch: Batch) -> dict[str, Tensor]:
    """Of a batch what a model is called with; it is not shown the labels."""
    return {name: part for name, part in batch.items() if name not in APART}


@dataclass(frozen=True)
class Size:
    """How much a batch holds."""

    examples: int
    cells: int  # positions that go through the model, padding included; 0 where there are none
    filled: Tensor | int  # of these, what is not padding; on the device


@dataclass(frozen=True)
class Views:
    """Which view of the rows a training batch shows, where they are augmented."""

    epoch: Tensor  # [1], in memory that loader workers share
    count: int | None = None  # views that come again and again; None: each epoch has its own

    @property
    def number(self) -> int:
        epoch = int(self.epoch)
        return epoch % self.count if self.count else epoch


@dataclass(frozen=True)
class Usage:
    """How a model with this input is used with transformers alone: pieces of Python."""

    processor: str  # transformers.Auto…
    name: str  # of the processor as `pipeline` takes it
    settings: str  # a line that comes first; "" for none
    of_pipeline: str  # what a pipeline is called with; "" where there is none
    of_processor: str  # what the processor is called with
    inputs: str = ""  # what the model is called with; "": what the processor makes, as it is


class Input(ABC):
    """What a model reads of a row. Student and teachers each have a processor of their own."""

    unit: ClassVar[str]  # of lengths
    columns: list[str]  # of the data, in the order in which a user gives their values
    suffixes: ClassVar[tuple[str, ...]] = ()  # of files that are a row each
    optional: Sequence[str] = ()  # columns that are read where the data has them
    kept: list[str]  # of a split's rows, what these become
    max_length: int | None = None  # of a row, in `unit`; None: as much as the model reads
    padding_free: bool | None = False  # rows one after the other; None: where attention is flash

    @property
    def content(self) -> list[str]:
        """Of `kept`, what a row is known by: two that share it are one example."""
        return self.kept

    @property
    def asked(self) -> list[str]:
        """Of `columns`, what a model is given where its answer is wanted."""
        return self.columns

    @abstractmethod
    def rows(self, columns: Columns, split: str) -> Columns:
        """The columns `kept` of all rows; raises `UserError` for rows that cannot be read."""

    def given(self, values: list[list[str]], where: str) -> Columns:
        """The columns of what a user typed; raises `UserError` for too many or too few of them."""
        columns = self.asked
        if len(values) == len(columns):
            return dict(zip(columns, values, strict=True))
        if len(columns) == 2:
            raise UserError(f"{where}: it reads pairs ({', '.join(columns)}); add --pair TEXT")
        raise UserError(f"{where}: it reads one value ({columns[0]}); leave --pair out")

    @abstractmethod
    def load_processor(
        self, model: Model, rows: Dataset | None = None, where: str = "model"
    ) -> Processor:
        """The processor of `model`; where the model has no path, perhaps made for `rows`."""

    @abstractmethod
    def identity(self, processor: Processor) -> list[object]:
        """What of a processor decides on what a model reads, for keys of caches."""

    @abstractmethod
    def fitting(self, processor: Processor) -> dict[str, object]:
        """Settings of an architecture from random weights that follow from the processor."""

    @abstractmethod
    def check(
        self, model: Model, processor: Processor, config: PretrainedConfig, where: str
    ) -> None:
        """Raise `UserError` for a model that does not read this kind of input as processed."""

    @abstractmethod
    def limit(self, processor: Processor, config: PretrainedConfig) -> int:
        """How much the model is given of a row (tokens, pixels): `max_length`, or what it reads
        where that is less."""

    def make_ready(self, processor: Processor, config: PretrainedConfig) -> None:  # noqa: B027
        """Set in a processor and a model's config what each needs of the other.

        Raises `UserError` for a processor that will not do.
        """

    @abstractmethod
    def features(self, rows: Columns, processor: Processor, limit: int) -> Columns:
        """Columns `kept` as the model reads them, with `length` (for batches of like length) and
        `truncated` (whether some of a row was cut)."""

    @abstractmethod
    def encode(self, rows: Dataset, processor: Processor, limit: int, cache_dir: Path) -> Dataset:
        """The rows with their features, cached by content."""

    @abstractmethod
    def collator(self, processor: Processor, multiple: int | None, *extra: str) -> Collator:
        """What makes batches of encoded rows; columns named in `extra` are in them too."""

    def views(self, collate: Collator, views: Views) -> Collator:
        """`collate`, given seeded views of the rows; itself where there is but one view."""
        return collate

    @property
    def augmentation(self) -> dict[str, object]:
        """What decides on views, for keys of caches; empty: there is but one."""
        return {}

    @abstractmethod
    def model_columns(self, processor: Processor) -> list[str]:
        """Of encoded rows, what a batch for the model alone is made of."""

    @abstractmethod
    def same_positions(self, ours: Dataset, theirs: Dataset) -> bool:
        """Whether two models get the same positions for encoded rows, in the same order."""

    def difference(self, rows: Dataset, ours: Processor, theirs: Processor) -> str | None:
        """What makes two processors read some rows differently; None where they read the same."""
        columns = {name: list(rows[name]) for name in self.kept}
        mine, yours = (self.features(columns, each, 10**9) for each in (ours, theirs))
        return None if mine == yours else "its processor reads them otherwise"

    @abstractmethod
    def size(self, batch: Batch) -> Size:
        """What a training batch holds."""

    @abstractmethod
    def mask(self, batch: Batch) -> Tensor | None:
        """Of the positions [B, L] 1 for what is not padding; None where there is no padding."""

    @abstractmethod
    def shown(self, rows: Dataset | Columns) -> Columns:
        """What a reader is shown of each row, by the data's column names."""

    def pictures(self, rows: Dataset) -> list[bytes | None]:
        """Files of small pictures of the rows, None for one without; empty: none has any."""
        return []

    @abstractmethod
    def usage(self, limit: int) -> Usage | None:
        """For the model's card; None: it has no such section."""

    @abstractmethod
    def example(self, processor: Processor, count: int, length: int) -> dict[str, Tensor]:
        """A batch of `count` made-up rows of `length` (where rows have one), to time a model."""

    def open_axes(self, batch: Batch) -> dict[str, dict[int, str]]:
        """Of the tensors of a batch, the axes whose size changes from batch to batch, named."""
        return {name: {0: "batch"} for name in batch}


def pad_multiple(args: TrainingArguments) -> int | None:
    """8 where a GPU's tensor cores and attention kernels want it, in half precision.

    On a CPU it buys nothing: with MNLI's lengths the padding cost 9 % of the throughput, measured.
    """
    return 8 if (args.bf16 or args.fp16) and args.device.type != "cpu" else None
