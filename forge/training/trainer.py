"""The house trainer: `transformers.Trainer` with a count of tokens and better sampling."""

from __future__ import annotations

import copy
import io
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    TrainerState,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from transformers.utils.generic import ModelOutput

from forge import ranks
from forge.errors import Failure
from forge.inputs.input import Batch, Size, Views, for_model
from forge.models import saving
from forge.records import checkpoints
from forge.records.files import read_json, write_json
from forge.records.secrets import masked
from forge.tasks.answer import Predictions
from forge.tasks.decisions import PLAIN, Decisions, Objective
from forge.tasks.task import Task, first
from forge.training.epochs import CountEpochs, first_views
from forge.training.memory import memory
from forge.training.restore import Restore, progress_file
from forge.training.sampler import ShuffledLengthGroups
from forge.training.signals import InWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """What a mode returns: a complete trainer, and the facts that it measured."""

    trainer: Trainer
    metadata: Mapping[str, object] = field(default_factory=dict)  # for run_metadata.json
    results: Mapping[str, object] = field(default_factory=dict)  # for results.json
    teachers: Mapping[str, Predictions] = field(default_factory=dict)  # answers by split, with ids


with redirect_stdout(io.StringIO()):  # it prints WANDB_MODE=offline where nothing is tracked
    from transformers import Trainer as TransformersTrainer


class Trainer(TransformersTrainer):
    """Counts tokens and padding, shuffles length-grouped batches, keeps evaluation in order.

    Its checkpoints are committed, and hold what transformers forgets: the sums that the next log
    will average. Modes override `compute_loss` here, and `progress` when they keep sums too.
    """

    model: PreTrainedModel
    run_id = ""  # whose checkpoints these are
    off_schedule: Callable[[], bool] = staticmethod(lambda: False)  # was a save asked by a signal?
    limit: int | None = None  # of checkpoints; ours to keep, since transformers' ends with the last
    loss_is_scaled_for_ga: bool | None = (
        True  # `compute_loss` divides by the items of the whole optimizer step
    )

    def __init__(
        self,
        *,
        task: Task,
        objective: Objective = PLAIN,
        views: Views | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.views = views or first_views()
        self.add_callback(CountEpochs(self.views))
        self.task: Task = task
        self.objective: Objective = objective
        self.label_names = ["labels"]  # whatever the model's own code names
        self.started, self.before = time.monotonic(), 0.0
        self.last_loss: torch.Tensor | None = None  # of the last training batch
        self.last_ids: torch.Tensor | None = None
        self.examples = 0  # trained on
        self.cells = 0  # tokens and padding that went through the model in training
        self.tokens: torch.Tensor | int = (
            0  # of these, tokens; on the device, so that nothing waits
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers does, then committed; older ones go only after that."""
        self.require_finite()
        run_dir = Path(str(self.args.output_dir))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        with checkpoints.room(run_dir, checkpoints.size_of(self.model), folder):
            if self.is_world_process_zero() and folder.exists():
                checkpoints.set_aside(folder)
            ranks.barrier()
            best = self.state.best_model_checkpoint
            super()._save_checkpoint(model, trial)
            if self.off_schedule():  # an undisturbed run has no such checkpoint to be the best
                self.state.best_model_checkpoint = best
            self.save_extra(folder)
            ranks.barrier()
            if self.is_world_process_zero():
                if self.off_schedule():
                    self.state.save_to_json(str(folder / "trainer_state.json"))
                checkpoints.commit(folder, self.run_id)
                if self.off_schedule():
                    checkpoints.keep_apart(folder)
                self._rotate()
            ranks.barrier()

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """As transformers', in Forge's way of writing weights."""
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
            saving.save(self.model, folder, state_dict, checkpoint)
            self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
            args = copy.copy(self.args)
            plain = {k: v for k, v in vars(args).items() if isinstance(v, str | dict | list)}
            vars(args).update(masked(plain))
            torch.save(args, folder / "training_args.bin")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """An error, not a warning: training would go on with weights as they were."""
        saving.require_all(self.model, load_result.missing_keys)  # tied ones are not missing
        super()._issue_warnings_after_load(load_result._replace(missing_keys=[]))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As transformers', leaving Python's random numbers as they were: a library draws one the
        first time that a process evaluates, which a resumed process does again."""
        state = random.getstate()
        try:
            with memory(self.args, "per_device_eval_batch_size"):
                return super().evaluate(*args, **kwargs)
        finally:
            random.setstate(state)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As transformers', among the weights that are saved: when it evaluates more often than it
        saves, the best evaluation is otherwise one whose weights are gone, and a checkpoint that
        is better than all others that are left does not count as the best."""
        saves = self.control.should_save and not self.off_schedule()
        if self.args.load_best_model_at_end and not saves:
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    def evaluation_loop(
        self,
        dataloader: DataLoader[object],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As transformers', with a loss that counts every row once.

        With several ranks its last batch repeats rows, which it takes out of all but the loss. A
        task that evaluates by itself does so here.
        """
        rows: Any = dataloader.dataset
        if (scores := self.task.quick_evaluation(self, rows)) is not None:
            named = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
            return EvalLoopOutput(None, None, named, len(rows))  # type: ignore[arg-type]
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if ranks.ranks() > 1 and output.metrics:
            for key in [key for key in output.metrics if key.endswith("_loss")]:
                output.metrics[key] = self._mean_loss(output.predictions, output.label_ids)
        return output

    def _mean_loss(self, predictions: Any, labels: Any) -> float:
        """The task's loss over all rows."""
        logits = torch.as_tensor(first(predictions)).float()
        batch = {"labels": torch.as_tensor(labels)}
        return float(self._evaluation_loss(self.task.answer.decisions(logits, batch), batch))

    def _evaluation_loss(self, decisions: Decisions, batch: Batch) -> Tensor:
        """Every decision counts alike, whatever the training's objective."""
        smoothed = Objective(self.args.label_smoothing_factor)
        return self.task.loss(decisions, self.task.answer.items(batch), smoothed)

    def save_extra(self, folder: Path) -> None:
        """Write what belongs to a checkpoint beside transformers' files."""
        write_json(progress_file(folder), self.progress())

    def progress(self) -> dict[str, object]:
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
        self._initial_global_step = 0  # the mean loss at the end is over all attempts
        self.examples, self.cells, self.tokens = progress["counts"]
        self.before = progress["seconds"]

    def go(self, checkpoint: Path | None) -> int:
        """Train, from a checkpoint also with what it holds beside transformers' files; the step."""
        self.started = time.monotonic()
        self.limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if not (checkpoint and self._is_over(checkpoint)):
                if checkpoint:
                    self.add_callback(Restore(self, checkpoint, self.run_id, self.restore))
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            self.args.save_total_limit = self.limit
        self.require_finite()
        if self.is_world_process_zero():  # an attempt that was killed may have left one too many
            self._rotate()
        return self.state.global_step

    def require_finite(self) -> None:
        """Raise `Failure` for weights that are no numbers: nothing can be gone on from there."""
        learnt = [p.isfinite().all() for p in self.model.parameters() if p.requires_grad]
        if bool(torch.stack(learnt).all()):
            return
        newest = next(iter(checkpoints.steps(Path(str(self.args.output_dir))).values()), None)
        raise Failure(
            f"at step {self.state.global_step} the weights are no numbers any more; the last "
            f"checkpoint before: {newest.name if newest else 'none'}; lower trainer.learning_rate"
        )

    def _rotate(self) -> None:
        best = self.state.best_model_checkpoint
        checkpoints.rotate(Path(str(self.args.output_dir)), self.limit, best)

    def _is_over(self, checkpoint: Path) -> bool:
        """Whether the checkpoint is at `max_steps`; then its weights, or the best, are loaded.

        transformers would train one more step in an epoch that `max_steps` cuts short.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if not 0 < self.args.max_steps <= state.global_step:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        Restore(self, checkpoint, self.run_id, self.restore).best(state)
        self._tr_loss = torch.tensor(0.0, device=self.args.device)
        self.restore(read_json(progress_file(checkpoint)))
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()
        self._move_model_to_device(self.model, self.args.device)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return True

    @property
    def seconds(self) -> float:
        """Of training, those of earlier attempts up to their checkpoint included."""
        return self.before + time.monotonic() - self.started

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """The task's loss of a batch: the one place where outputs become a loss."""
        decisions, outputs = self.decide(model, inputs)
        if model.training:
            loss = self.task_loss(decisions, inputs, num_items_in_batch)
        else:
            loss = self._evaluation_loss(decisions, inputs)
        return (loss, outputs) if return_outputs else loss

    def decide(
        self, model: nn.Module, inputs: Batch, **asked: bool
    ) -> tuple[Decisions, ModelOutput]:
        """The decisions of a batch, and the model's outputs, their logits by rows; it is not shown
        the labels."""
        outputs = model(**for_model(inputs), **asked)
        outputs["logits"] = self.task.logits(outputs, inputs)
        return self.task.answer.decisions(outputs["logits"], inputs), outputs

    def read_by_loss(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The logits of a batch, and of the model's outputs what the loss is computed from."""
        logits = self.decide(self.model, batch)[0].logits
        return logits, [logits]

    def task_loss(self, decisions: Decisions, inputs: Batch, items: Tensor | int | None) -> Tensor:
        """Divided by the weight of the optimizer step on all ranks (None: the batch's own)."""
        if items is None:
            return self.task.loss(decisions, self._items(inputs)[1], self.objective)
        weight = torch.as_tensor(items).expand(2)[1]  # a number alone is both
        return self.task.loss(decisions, weight, self.objective) * self.rank_share

    def _items(self, batch: Batch) -> Tensor:
        """Of a batch [2]: its decisions, and their weight: as many where classes have none."""
        count = self.task.answer.items(batch)
        if self.objective.weights is None:
            return torch.stack([count, count])
        return torch.stack([count, self.objective.weigh(batch["labels"]).sum()])

    @property
    def rank_share(self) -> int:
        """What undoes the mean over the ranks that DDP takes of gradients."""
        shared = self.args.average_tokens_across_devices  # then items are those of all ranks
        return int(self.accelerator.num_processes) if shared else 1

    def _get_num_items_in_batch(
        self, batch_samples: list[Batch], device: torch.device
    ) -> Tensor | None:
        """Items of an optimizer step [2] (`_items`): of all its batches, on all ranks."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        items = torch.stack([self._items(batch) for batch in batch_samples]).sum(0).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items).view(-1, 2).sum(0)
        return items

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if not isinstance(inputs, list):  # of prompts, whose answers are counted when drawn
            self.count(self.task.input.size(inputs))
        self.last_loss = super().training_step(model, inputs, num_items_in_batch)
        return self.last_loss

    def count(self, size: Size) -> None:
        """Add a training batch to what this rank has trained on."""
        self.examples += size.examples
        self.cells += size.cells
        self.tokens = self.tokens + size.filled

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the device, without the rows' ids, which no model reads."""
        prepared: dict[str, Tensor] = super()._prepare_inputs(inputs)
        self.last_ids = prepared.pop("id", None)
        return prepared

    def totals(self) -> tuple[float, float, float]:
        """Examples, tokens, and tokens with padding that all ranks have trained on."""
        counts = (self.examples, int(self.tokens), self.cells)
        examples, tokens, cells = (ranks.all_reduce_sum(n, self.args.device) for n in counts)
        return examples, tokens, cells

    @property
    def padding_share(self) -> float | None:
        """Share of this rank's cells that held padding, so far; None where rows have no cells."""
        return 1 - int(self.tokens) / self.cells if self.cells else None

    def _get_train_sampler(self, train_dataset: Dataset[object] | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            # As a list: a datasets column would read each item from disk.
            lengths = list(sampler.lengths)
            return ShuffledLengthGroups(sampler.batch_size, lengths=lengths, seed=self.args.seed)
        return sampler

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """`dataloader_drop_last` is for training: an evaluation without its last rows is none.
        So are views."""
        drop_last, collate = self.args.dataloader_drop_last, self.data_collator
        training = kwargs.get("is_training", False)
        self.args.dataloader_drop_last = drop_last and training
        if training:
            views: Any = self.task.input.views(collate, self.views)
            self.data_collator = views
        try:
            loader: Any = super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last, self.data_collator = drop_last, collate
        base = loader.base_dataloader  # accelerate's wrapper passes its attributes on
        base.worker_init_fn = InWorker(base.worker_init_fn)
        return loader

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """In the data's order (sorted by length beforehand), so that predictions keep their ids.

        transformers' own length-grouped sampler shuffles, and draws from the training's RNG.
        """
        return None if self.args.world_size > 1 else SequentialSampler(eval_dataset)
