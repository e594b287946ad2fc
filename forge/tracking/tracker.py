"""The tracking of one run, as its config says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from forge import ranks
from forge.config.check import build
from forge.config.schema import Config

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from forge.records.record import Record
    from forge.training.preparation import Prepared


def tracker(
    config: Config,
) -> Callable[[Record, Prepared], AbstractContextManager[list[TrainerCallback]]]:
    """Called with what is tracked: a context that yields the callbacks, none for null."""
    start = None if config.tracking is None else build(config.tracking, "tracking")
    if start is None or ranks.rank():
        return lambda rec, prepared: nullcontext([])

    @contextmanager
    def track(rec: Record, prepared: Prepared) -> Iterator[list[TrainerCallback]]:
        with start(rec=rec, prepared=prepared) as callback:
            yield [callback]

    return track
