"""A context and options to choose from: the model reads the context with each option by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from forge.data import sources
from forge.data.sources import Columns, Row
from forge.errors import UserError
from forge.inputs import text
from forge.inputs.input import OPTIONS, Batch, Usage
from forge.inputs.text import Text, texts

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

KEYED = ("text", "label")  # of options with keys


@dataclass
class Choices(Text):
    """A column of contexts, one of questions or both; a column of lists of options, or several of
    one option each.

    Tokens of a pair: the context, then the question and an option. Only the context is ever cut.
    """

    context: str | None = None
    question: str | None = None
    options: list[str] = field(default_factory=list)  # columns
    widest: int = field(init=False, default=0)  # the most options that a row was seen to have

    def __post_init__(self) -> None:
        asked = [name for name in (self.context, self.question) if name]
        if not asked:
            raise UserError("task.context=null, task.question=null: set one of them")
        self.columns = [*asked, *self.options]
        self.kept = ["context", "question", "options"]

    def rows(self, columns: Columns, split: str) -> Columns:
        """Raises `UserError` for a row with an empty option, or fewer than two."""
        options = [
            self._options([columns[name][i] for name in self.options], f"split {split}, row {i}")
            for i in range(len(columns[self.columns[0]]))
        ]
        self.widest = max([self.widest, *map(len, options)])
        read = {
            name: texts(columns[column], split, column) if column else [""] * len(options)
            for name, column in (("context", self.context), ("question", self.question))
        }
        return {**read, "options": options}

    def _options(self, values: Sequence[object], where: str) -> list[str]:
        """A row's options, from a list or from the columns up to the last that is not missing."""
        if len(self.options) == 1:
            where = f"{where}, column {self.options[0]}"
            values, _ = listed(values[0], where)
        given = ["" if value in (None, "") or value != value else str(value) for value in values]
        given = [option.strip() for option in given]
        while len(self.options) > 1 and given and not given[-1]:
            given.pop()
        if "" in given:
            raise UserError(f"{where}: option {given.index('')} is empty; fill it, or drop the row")
        if len(given) < 2:
            raise UserError(f"{where}: {len(given)} option; a choice needs two or more")
        return given

    def texts(self, rows: Dataset) -> Iterator[str]:
        for row in rows:
            yield from (row["context"], row["question"], *row["options"])

    def identity(self, processor: PreTrainedTokenizerBase) -> list[object]:
        return [*super().identity(processor), self.widest]  # answers that are stored are as wide

    def features(self, rows: Columns, processor: PreTrainedTokenizerBase, limit: int) -> Columns:
        """Of each row lists: the tokens of every option, behind as much context as fits."""
        pairs, counts = [], [len(options) for options in rows["options"]]
        for context, question, options in zip(*(rows[name] for name in self.kept), strict=True):
            before = f"{question} " if self.context and question else ""
            first = context if self.context else question
            pairs += [(first, f"{before}{option}") for option in options]
        first, second = map(list, zip(*pairs, strict=True))
        encoded = dict(processor(first, second, verbose=False))
        long = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) > limit]
        if long:
            sides = [[side[i] for i in long] for side in (first, second)]
            self._require_room(sides[1], processor, limit)
            shorter = processor(*sides, truncation="only_first", max_length=limit)
            for name, values in shorter.items():
                for i, value in zip(long, values, strict=True):
                    encoded[name][i] = value
        ends = list(accumulate(counts))
        places = list(zip([0, *ends], ends, strict=False))
        grouped = {name: [values[a:b] for a, b in places] for name, values in encoded.items()}
        grouped["length"] = [max(map(len, options)) for options in grouped["input_ids"]]
        cut = set(long)
        grouped["truncated"] = [not cut.isdisjoint(range(a, b)) for a, b in places]
        return grouped

    def _require_room(
        self, second: list[str], processor: PreTrainedTokenizerBase, limit: int
    ) -> None:
        """Raises `UserError` where a question and an option leave no room for any context."""
        alone = processor([""] * len(second), second, verbose=False)["input_ids"]
        for ids, whole in zip(alone, second, strict=True):
            if len(ids) >= limit or not self.context:
                raise UserError(
                    f"task.max_length={limit}: too short for a question and its option, which are "
                    f'never cut ("{whole[:60]} …"); raise it, or drop the row'
                )

    def collator(
        self, processor: PreTrainedTokenizerBase, multiple: int | None, *extra: str
    ) -> Collator:
        return Collator(text.Collator(processor, multiple), self.widest, ("labels", "id", *extra))

    def mask(self, batch: Batch) -> Tensor:
        """Of the options [B * C, L], as the model reads them: one below the other."""
        mask = batch["attention_mask"] * batch[OPTIONS][:, : batch["attention_mask"].shape[1], None]
        return mask.flatten(0, 1)

    def shown(self, rows: Dataset | Columns) -> Columns:
        options = [
            "; ".join(f"{i}: {option}" for i, option in enumerate(row)) for row in rows["options"]
        ]
        asked = {"context": self.context, "question": self.question}
        return {c: list(rows[name]) for name, c in asked.items() if c} | {OPTIONS: options}

    def given(self, values: list[list[str]], where: str) -> Columns:
        """Of one row: a text for each of context and question, then its options."""
        asked = len(self.columns) - len(self.options)
        if len(values) != asked + 1 or any(len(each) != 1 for each in values[:asked]):
            pair = " --pair QUESTION" if asked == 2 else ""
            raise UserError(f"{where}: it chooses; --text TEXT{pair} --option TEXT --option TEXT …")
        columns: Columns = dict(zip(self.columns, values[:asked], strict=False))
        options = values[-1]
        if len(self.options) == 1:
            return {**columns, self.options[0]: [options]}
        if len(options) > len(self.options):
            raise UserError(f"{where}: it reads at most {len(self.options)} options")
        filled = [*options, *[None] * (len(self.options) - len(options))]
        return columns | {n: [option] for n, option in zip(self.options, filled, strict=True)}

    def usage(self, limit: int) -> Usage:
        question = self.context and self.question
        read = '"A question? " + option for option in options' if question else "*options"
        limited = '"only_first"' if self.context else "True"
        return Usage(
            processor="AutoTokenizer",
            name="tokenizer",
            settings='options = ["One answer.", "Another answer."]',
            of_pipeline="",
            of_processor="",
            inputs=f"""{{
    name: part[None]
    for name, part in tokenizer(
        ["A context."] * len(options), [{read}],
        truncation={limited}, max_length={limit}, padding=True, return_tensors="pt",
    ).items()
}}""",
        )

    def example(
        self, processor: PreTrainedTokenizerBase, count: int, length: int
    ) -> dict[str, Tensor]:
        options = super().example(processor, 3 * count, length)
        return {name: part.view(count, 3, -1) for name, part in options.items()}

    def open_axes(self, batch: Batch) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "options", 2: "sequence"} for name in batch}


class Collator:
    """Batches [B, C, L] of the `one` option's, with C the most options of a row in the batch.

    Where a row has fewer, one token stands for what `options` [B, `width`] says is none.
    """

    def __init__(self, one: text.Collator, width: int, others: Sequence[str]) -> None:
        self.one, self.width, self.others = one, width, others

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        import torch

        counts = [len(row["input_ids"]) for row in rows]
        names = [name for name in self.one.columns if isinstance(rows[0].get(name), list)]
        flat = [
            {name: row[name][i] if i < count else row[name][0][:1] for name in names}
            for row, count in zip(rows, counts, strict=True)
            for i in range(max(counts))
        ]
        batch = {n: part.view(len(rows), max(counts), -1) for n, part in self.one(flat).items()}
        batch[OPTIONS] = torch.arange(self.width) < torch.tensor(counts)[:, None]
        others = [name for name in self.others if name in rows[0]]
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in others}


def listed(value: object, where: str) -> tuple[list[object], list[object]]:
    """The texts of a cell's options, and their keys where it has some.

    It is a list of texts or of mappings with a `text` and a `label`, one mapping of two such lists,
    or either as a text. Raises `UserError` for anything else.
    """
    value = sources.listed(value)
    parts: list[object] = [value, []]
    if isinstance(value, Mapping):
        parts = [value.get(name, []) for name in KEYED]
    elif isinstance(value, Sequence) and value and all(isinstance(o, Mapping) for o in value):
        parts = [[option.get(name) for option in value] for name in KEYED]
    lists = [
        list(part) for part in parts if isinstance(part, Sequence) and not isinstance(part, str)
    ]
    if len(lists) < len(parts):
        raise UserError(
            f"{where}: {str(value)[:60]} is no list of options; for columns of one option each "
            "set task.options=[…] to their names"
        )
    return lists[0], lists[1]
