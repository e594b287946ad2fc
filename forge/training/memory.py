"""A device whose memory is exhausted, as one line with the way out."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from forge.errors import Failure

if TYPE_CHECKING:
    from transformers import TrainingArguments


@contextmanager
def memory(args: TrainingArguments, key: str, also: str = "") -> Iterator[None]:
    """Turn a device's exhausted memory into one line with the batch size to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = getattr(args, key)
        smaller = f"trainer.{key}={size // 2}{also}, or " if size > 1 else ""
        raise Failure(
            f"the device has not enough memory for batches of {size}; try {smaller}a smaller "
            "task.max_length"
        ) from error


def peak(device: torch.device) -> int:
    """Bytes that this rank has held at once: of its GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
