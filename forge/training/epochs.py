"""The number of the epoch, where loader workers read it: it decides which views are shown."""

from __future__ import annotations

import torch
from transformers import TrainerCallback, TrainerState

from forge.inputs.input import Views


class CountEpochs(TrainerCallback):
    """Writes the epoch's number into what decides on views."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def on_epoch_begin(
        self, args: object, state: TrainerState, control: object, **kwargs: object
    ) -> None:
        self.views.epoch.fill_(int(state.epoch or 0))


def first_views(count: int | None = None) -> Views:
    """Those of the first epoch, of `count` that come again and again (None: always new ones)."""
    epoch = torch.zeros(1, dtype=torch.long)
    epoch.share_memory_()  # type: ignore[no-untyped-call]
    return Views(epoch, count)
