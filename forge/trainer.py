"""The house trainer: `transformers.Trainer`, which it leaves as it is, plus a count of tokens."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class Trainer(transformers.Trainer):
    """Counts tokens and padding; hands the cached lengths to the sampler as a list.

    Modes override `compute_loss` here and nothing else.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A classifier's loss is the mean over its batch, whatever keywords its forward swallows.
        # Left alone, transformers 5.23 takes it to be scaled already: with 4 accumulation steps
        # loss and gradient come out 4 times too large, with 2 processes twice.
        self.model_accepts_loss_kwargs = False
        self.examples = 0  # trained on in this attempt
        self.cells = 0  # tokens and padding that went through the model in training
        self.tokens: torch.Tensor | int = (
            0  # of these, tokens; on the device, so that nothing waits
        )

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        if mask is not None:
            self.examples += len(mask)
            self.cells += mask.numel()
            self.tokens = self.tokens + mask.sum()
        return super().training_step(model, inputs, *args, **kwargs)

    @property
    def padding_share(self) -> float:
        """Share of the cells that held padding, so far in this attempt."""
        return 1 - int(self.tokens) / self.cells if self.cells else 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.lengths = list(sampler.lengths)  # a datasets column reads each item from disk
        return sampler

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """`dataloader_drop_last` is for training: an evaluation without its last rows is none."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and kwargs.get("is_training", False)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In the data's order (sorted by length beforehand), so that predictions keep their ids.

        transformers' own length-grouped sampler shuffles, and draws from the training's RNG.
        """
        return None if self.args.world_size > 1 else SequentialSampler(eval_dataset)
