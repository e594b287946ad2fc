"""One model over many rows: in batches of like length, under autocast, in the order of the rows."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from forge import ranks
from forge.data.sources import Row

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import TrainingArguments

T = TypeVar("T")
K = TypeVar("K")
REPEATS = 15  # of a timed pass; the median counts


@dataclass(frozen=True)
class Pass:
    """Where and how a model reads batches; a `dtype` of None is fp32."""

    device: torch.device
    dtype: torch.dtype | None
    batch_size: int

    @classmethod
    def of(cls, args: TrainingArguments) -> Pass:
        """That of a run's evaluation."""
        half = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None
        return cls(args.device, half, args.per_device_eval_batch_size)

    def autocast(self) -> torch.autocast:
        """Half precision where the pass has one."""
        dtype = self.dtype or torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.dtype is not None)


def in_batches(
    model: nn.Module,
    rows: Dataset,
    collate: Callable[[list[Row]], Mapping[str, Tensor]],
    answer: Callable[[dict[str, Tensor]], Sequence[T]],
    how: Pass,
    *,
    lengths: Sequence[int],
    title: str,
    over_ranks: bool = False,
) -> list[T]:
    """What `answer` makes of each row: it gets a batch on the device and returns an item a row.

    Batches go from the longest rows to the shortest, by `lengths`. `over_ranks` lets each rank
    answer a share of the rows; otherwise this process answers them all. `model` is in evaluation
    mode meanwhile.
    """
    from tqdm import tqdm

    order = np.argsort(np.negative(lengths), kind="stable")
    rank, count = (ranks.rank(), ranks.ranks()) if over_ranks else (0, 1)
    mine = rows.select(order[rank::count])
    hidden = not sys.stderr.isatty() or ranks.rank() > 0
    training = model.training
    answers: list[T] = []
    model.eval()
    with torch.no_grad(), how.autocast():
        for start in tqdm(range(0, len(mine), how.batch_size), title, leave=False, disable=hidden):
            end = min(start + how.batch_size, len(mine))
            batch = collate(list(mine.select(range(start, end))))
            answers += answer({name: part.to(how.device) for name, part in batch.items()})
    model.train(training)
    shares = ranks.all_gather(answers) if over_ranks else [answers]
    by_row = {
        row: item
        for place, share in enumerate(shares)
        for row, item in zip(order[place::count].tolist(), share, strict=True)
    }
    return [by_row[row] for row in range(len(rows))]


def milliseconds(passes: Mapping[K, Callable[[], object]]) -> dict[K, float]:
    """The median time of each pass over `REPEATS`, after two that are not counted.

    They take turns, since machines drift. A pass has to wait for its device.
    """
    seconds: dict[K, list[float]] = {name: [] for name in passes}
    with torch.inference_mode():
        for _ in range(REPEATS + 2):
            for name, run in passes.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(times[2:]) for name, times in seconds.items()}
