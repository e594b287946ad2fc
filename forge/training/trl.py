"""What a language model learns from texts that it writes itself: TRL's trainers in house clothes.

Theirs are drawing and objective; ours the tokens of a prompt, records, checkpoints and evaluation,
which are those of the other modes. What TRL keeps between steps goes into checkpoints too, so that
a run goes on with the same bits. Needs the extra `rl`.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.trainer_utils import TrainOutput
from trl.trainer.utils import RepeatSampler

from forge.data.sources import Row
from forge.errors import UserError
from forge.inputs.input import Size
from forge.models import lora
from forge.tasks import decoding
from forge.training.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, TrainingArguments


def arguments(args: TrainingArguments, max_new_tokens: int) -> dict[str, Any]:
    """The run's arguments, and those of TRL's that follow from the task."""
    return {field.name: getattr(args, field.name) for field in fields(args) if field.init} | {
        "max_completion_length": max_new_tokens,
        "disable_dropout": True,  # with it, two readings of one policy differ
    }


def check_rows(split: Dataset, count: int) -> None:
    """Raise `UserError` for fewer rows than the prompts that are drawn from at once."""
    if len(split) < count:
        raise UserError(
            f"trainer.per_device_train_batch_size: not one whole batch of {count} prompts in "
            f"{len(split)} rows; lower it"
        )


def check_padding(split: Dataset, model: PreTrainedModel, device: torch.device) -> None:
    """Raise `UserError` for a model that reads a prompt otherwise behind padding.

    TRL pads on the left and tells positions in drawing only; rotary ones do not mind.
    """
    alone = torch.tensor([split[0]["input_ids"][:16]], device=device)
    padding = alone.new_zeros(1, 3)
    ids, mask = (torch.cat([padding, part], 1) for part in (alone, torch.ones_like(alone)))
    batch = {"input_ids": ids, "attention_mask": mask}
    if apart := decoding.moved(nn.Module.to(model, device), batch, alone):
        raise UserError(
            f"{model.config.model_type}: it reads a prompt otherwise behind padding (logits move "
            f"by {apart:.1%}), and TRL's trainers pad on the left without telling positions; "
            "choose a model with rotary positions"
        )


def without_dropout(model: nn.Module) -> None:
    """Also where it is no module: attention reads its rate off an attribute."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name == "p" or "dropout" in name):
                setattr(module, name, 0.0)


class Shuffled(RepeatSampler):
    """TRL's; the order follows from seed and epoch, so that a resumed epoch has the same."""

    def set_epoch(self, epoch: int) -> None:
        """What comes next is this epoch."""
        self.generator.manual_seed(1_000_003 * (self.seed or 0) + epoch)


class OnPolicy(Trainer):
    """To be mixed with a trainer of TRL's, after it; batches count completions.

    Their `_step` counts passes, `_metrics` what the next log averages, and `_buffered_inputs` are
    the drawn completions, which serve `passes_per_draw` passes.
    """

    _step: int
    _metrics: dict[str, dict[str, list[float]]]
    _buffered_inputs: list[dict[str, Tensor]] | None
    passes_per_draw: int

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """With random numbers that are each rank's own, whatever came before."""
        set_seed(self.args.seed, device_specific=True)
        with lora.replaced_names():
            return super().train(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's."""
        return super(Trainer, self).compute_loss(*args, **kwargs)

    def _tokenize_prompts(
        self, prompts: list[object]
    ) -> tuple[list[object], None, dict[str, object]]:
        return prompts, None, {}  # they are tokens, those of training and evaluation

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        theirs: RepeatSampler = super()._get_train_sampler(dataset)
        theirs.__class__ = Shuffled
        return theirs

    def _prepare_inputs(self, inputs: Any) -> dict[str, Tensor]:
        prepared: dict[str, Tensor] = super(Trainer, self)._prepare_inputs(
            inputs
        )  # not the house's: it is of columns
        masks = prepared["prompt_mask"], prepared["completion_mask"]
        filled = sum(mask.sum() for mask in masks)
        self.count(Size(len(masks[0]), sum(mask.numel() for mask in masks), filled))
        self.last_ids = prepared["id"]
        return prepared

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Tensor]:
        ids = torch.tensor([row["id"] for row in inputs], device=self.args.device)
        with self.accelerator.autocast():  # once: weights are cast for all tokens, not for each
            drawn: dict[str, Tensor] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return drawn | {"id": ids}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """An evaluation is not TRL's; what applied nowhere, a reward, is not logged."""
        if "loss" not in logs:
            transformers.Trainer.log(self, logs, start_time)
            return
        metrics = self._metrics["train"]
        for name in [name for name, values in metrics.items() if all(map(math.isnan, values))]:
            del metrics[name]
        super().log(logs, start_time)

    def progress(self) -> dict[str, object]:
        metrics = {
            name: [value for value in values if not math.isnan(value)]
            for name, values in self._metrics["train"].items()
        }
        whole = self._step % self.passes_per_draw == 0
        drawn = [] if whole else self._buffered_inputs or []
        packed = [{name: _packed(tensor) for name, tensor in part.items()} for part in drawn]
        return super().progress() | {"passes": self._step, "told": metrics, "drawn": packed}

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        self._step = progress["passes"]
        self._metrics["train"].update(progress["told"])
        self._buffered_inputs = [
            {name: torch.tensor(values, dtype=getattr(torch, dtype), device=self.args.device)
             for name, (dtype, values) in part.items()}
            for part in progress["drawn"]
        ] or None  # fmt: skip

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Forge writes one."""

    def _send_telemetry(self) -> None:
        """Nothing is sent."""


def prompts(split: Dataset) -> Dataset:
    """The tokens of each prompt, and the row's id."""
    from datasets import Dataset

    read = zip(split["input_ids"], split["prompt_length"], strict=True)
    return Dataset.from_dict({"prompt": [ids[:n] for ids, n in read], "id": list(split["id"])})


def _packed(tensor: Tensor) -> tuple[str, object]:
    return str(tensor.dtype).removeprefix("torch."), tensor.tolist()
