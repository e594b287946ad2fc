"""What a checkpoint gives back to a trainer beside transformers' files."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from forge import ranks
from forge.records import checkpoints
from forge.records.files import read_json

if TYPE_CHECKING:
    from transformers import Trainer

log = logging.getLogger(__name__)
PROGRESS = "progress.json"  # a checkpoint's file of the sums that the next log averages


def progress_file(checkpoint: Path) -> Path:
    """The file of this rank's sums; as with transformers' rng_state, ranks have one each."""
    name, suffix = PROGRESS.split(".")
    return checkpoint / (f"{name}_{ranks.rank()}.{suffix}" if ranks.ranks() > 1 else PROGRESS)


class Restore(TrainerCallback):
    """Gives a trainer back what transformers forgets: sums, patience, where the best one is."""

    def __init__(
        self,
        trainer: Trainer,
        checkpoint: Path,
        run_id: str,
        restore: Callable[[dict[str, Any]], None],
    ) -> None:
        self.trainer, self.checkpoint, self.run_id = trainer, checkpoint, run_id
        self.restore = restore  # called with what the checkpoint's file of sums holds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.restore(read_json(progress_file(self.checkpoint)))
        self.best(state)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                saved: Any = state.stateful_callbacks  # without one that is new in this attempt
                own = saved.setdefault("EarlyStoppingCallback", callback.state())
                vars(callback).update(own["attributes"])

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader[object] | None = None,
        **kwargs: object,
    ) -> None:
        """Set the sampler's epoch: with several ranks accelerate's wrappers (1.15) hide it from
        transformers, and the first epoch's order would come again."""
        assert train_dataloader is not None
        sampler: object = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        of_rows = getattr(sampler, "sampler", None)
        if of_rows is not None and hasattr(of_rows, "set_epoch"):
            steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
            of_rows.set_epoch(state.global_step // steps)

    def best(self, state: TrainerState) -> None:
        """Point at the best checkpoint where it is now; forget one that is gone, and say so."""
        recorded = read_json(self.checkpoint / "trainer_state.json").get("best_model_checkpoint")
        if not recorded:
            return
        place = self.checkpoint.parent / Path(recorded).name
        state.best_model_checkpoint = str(place)
        if reason := checkpoints.problem(place, self.run_id):
            log.warning("%s, the best so far: %s; the best of the rest counts", place.name, reason)
            state.best_model_checkpoint = state.best_metric = state.best_global_step = None
