"""TRL's DistillationTrainer as a house trainer; needs the extra `rl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from forge.errors import UserError
from forge.training import trl

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from forge.training.preparation import Prepared


def arguments(prepared: Prepared, **settings: float) -> DistillationConfig:
    """The run's arguments with TRL's."""
    if prepared.args.auto_find_batch_size:
        raise UserError(
            "trainer.auto_find_batch_size: mode.on_policy draws for whole steps; set a batch size"
        )
    given = trl.arguments(prepared.args, prepared.task.written.max_new_tokens)
    return DistillationConfig(**(given | settings))


class LanguageDistillation(trl.OnPolicy, DistillationTrainer):  # type: ignore[misc]
    """Trains a language model towards a teacher on the completions that it draws."""

    args: DistillationConfig

    def __init__(
        self, *, teacher: PreTrainedModel, model: PreTrainedModel, args: DistillationConfig,
        train_dataset: Dataset, data_collator: object = None, compute_metrics: object = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """The collator and the metrics are not for rows that are prompts."""
        trl.without_dropout(model)
        self.passes_per_draw = args.gradient_accumulation_steps
        super().__init__(
            model=model,
            teacher_model=teacher,
            args=args,
            train_dataset=trl.prompts(train_dataset),
            **kwargs,
        )
