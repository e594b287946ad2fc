"""The house trainer: `transformers.Trainer` with a count of tokens and better sampling."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from forge import checkpoints
from forge.record import read_json, write_json

PROGRESS = "progress.json"  # a checkpoint's file of the sums that the next log averages


class ShuffledLengthGroups(LengthGroupedSampler):
    """Batches of rows of like length, the batches in random order.

    transformers goes through pools of at most 50 batches, each from its longest rows to its
    shortest; where length goes with content that is a curriculum, and it costs accuracy. Here the
    pools are larger (MNLI's padding share falls from 3.3 to 1.0 %) and the batches of all pools
    are shuffled, but for the longest, which stays first: what does not fit shows at once.
    """

    POOL = 200  # batches; two pools at least, so that rows meet others in each epoch

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed, self.generator = seed, torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """The order follows from seed and epoch alone, so that a resumed epoch has the same."""
        self.generator.manual_seed(1_000_003 * self.seed + epoch)  # no two seeds share an epoch

    def __iter__(self) -> Iterator[int]:
        pool = max(1, min(len(self.lengths) // (2 * self.batch_size), self.POOL))
        rows = get_length_grouped_indices(self.lengths, self.batch_size, pool, self.generator)
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        first, *rest = batches
        last = [rest.pop()] if rest and len(rest[-1]) < self.batch_size else []
        order = torch.randperm(len(rest), generator=self.generator).tolist()
        return (row for batch in (first, *(rest[i] for i in order), *last) for row in batch)


class Restore(TrainerCallback):
    """Gives a trainer its sums back once transformers has reset them."""

    def __init__(self, trainer: Trainer, progress: dict[str, Any]) -> None:
        self.trainer, self.progress = trainer, progress

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.restore(self.progress)


class Trainer(transformers.Trainer):
    """Counts tokens and padding, shuffles length-grouped batches, keeps evaluation in order.

    Its checkpoints are committed, and hold what transformers forgets: the sums that the next log
    will average. Modes override `compute_loss` here, and `progress` when they keep sums too.
    """

    run_id = ""  # whose checkpoints these are

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A classifier's loss is the mean over its batch, whatever keywords its forward swallows.
        # Left alone, transformers 5.23 takes it to be scaled already: with 4 accumulation steps
        # loss and gradient come out 4 times too large, with 2 processes twice.
        self.model_accepts_loss_kwargs = False
        self.started, self.before = time.monotonic(), 0.0
        self.last_loss: torch.Tensor | None = None  # of the last training batch
        self.last_ids: torch.Tensor | None = None
        self.examples = 0  # trained on
        self.cells = 0  # tokens and padding that went through the model in training
        self.tokens: torch.Tensor | int = (
            0  # of these, tokens; on the device, so that nothing waits
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers does, then committed; older ones go only after that."""
        run_dir = Path(str(self.args.output_dir))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with checkpoints.room(run_dir, checkpoints.size_of(self.model), folder):
                if self.is_world_process_zero() and folder.exists():
                    checkpoints.set_aside(folder)
                super()._save_checkpoint(model, trial)
                if self.is_world_process_zero():
                    self.save_extra(folder)
                    checkpoints.commit(folder, self.run_id)
                    checkpoints.rotate(run_dir, limit, self.state.best_model_checkpoint)
        finally:
            self.args.save_total_limit = limit

    def save_extra(self, folder: Path) -> None:
        """Write what belongs to a checkpoint beside transformers' files."""
        write_json(folder / PROGRESS, self.progress())

    def progress(self) -> dict[str, Any]:
        """Sums since the last log, and counts since the run began."""
        return {
            "tr_loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "total_loss": self._total_loss_scalar,
            "counts": [self.examples, self.cells, int(self.tokens)],
            "seconds": self.seconds,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """The inverse of `progress`, called when training is about to go on."""
        self._tr_loss += progress["tr_loss"]
        self._globalstep_last_logged = progress["last_logged"]
        self._total_loss_scalar = progress["total_loss"]
        self.examples, self.cells, self.tokens = progress["counts"]
        self.before = progress["seconds"]

    def go(self, checkpoint: Path | None) -> Any:
        """Train; from a checkpoint also with the sums that it holds."""
        self.started = time.monotonic()
        if checkpoint:
            self.add_callback(Restore(self, read_json(checkpoint / PROGRESS)))
        return self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    @property
    def seconds(self) -> float:
        """Of training, those of earlier attempts up to their checkpoint included."""
        return self.before + time.monotonic() - self.started

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        if mask is not None:
            self.examples += len(mask)
            self.cells += mask.numel()
            self.tokens = self.tokens + mask.sum()
        self.last_loss = super().training_step(model, inputs, *args, **kwargs)
        return self.last_loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        """On the device, without the rows' ids, which no model reads."""
        prepared = super()._prepare_inputs(inputs)
        self.last_ids = prepared.pop("id", None)
        return prepared

    @property
    def padding_share(self) -> float:
        """Share of the cells that held padding, so far."""
        return 1 - int(self.tokens) / self.cells if self.cells else 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            # As a list: a datasets column would read each item from disk.
            lengths = list(sampler.lengths)
            return ShuffledLengthGroups(sampler.batch_size, lengths=lengths, seed=self.args.seed)
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
