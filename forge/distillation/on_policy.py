"""On-policy distillation of language models: TRL's DistillationTrainer in the house trainer's
clothes (`forge.training.trl`).

The student writes a completion to each prompt, and at each of its tokens learns the teacher's
distribution (Agarwal et al. 2024): loss = D(teacher, student), summed over the vocabulary, divided
by the drawn tokens of the whole optimizer step on all ranks, prompts and padding left out. With
p the teacher's and q the student's softmax of logits / temperature, D is KL(p || q) at beta 0,
KL(q || p) at beta 1, and between them beta KL(p || m) + (1 - beta) KL(q || m) with
m = beta p + (1 - beta) q.

What is not as in `forge.distillation.losses`: D is not multiplied by T^2; D goes to 0 towards both ends and
jumps to a KL there; there is no gradient through the drawing, at any beta; rows of the embeddings
that are no tokens count as outcomes, so both models must have as many; completions that
task.max_new_tokens cuts count up to there. Needs the extra `rl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from forge.errors import UserError
from forge.tasks import decoding
from forge.training import trl

if TYPE_CHECKING:
    from datasets import Dataset

    from forge.distillation.stored import Expert
    from forge.training.preparation import Prepared


def arguments(prepared: Prepared, **settings: Any) -> DistillationConfig:
    """The run's arguments with TRL's."""
    if prepared.args.auto_find_batch_size:
        raise UserError(
            "trainer.auto_find_batch_size: mode.on_policy draws for whole steps; set a batch size"
        )
    return DistillationConfig(**trl.arguments(prepared.args, prepared.task), **settings)


def check_fit(expert: Expert, prepared: Prepared) -> None:
    """Raise `UserError` where student or teacher cannot read what is drawn, or TRL compare them."""
    split, task = prepared.splits[prepared.task.train], prepared.task
    args = prepared.args
    drawn = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    trl.check_rows(split, drawn)
    decoding.check_room(split, task, prepared.model.config)
    decoding.check_room(split, task, expert.model.config, f"teacher {expert.name}")
    for model in (prepared.model, expert.model):
        trl.check_padding(split, model, prepared.args.device)
    ours, theirs = (
        m.get_output_embeddings().weight.shape[0] for m in (prepared.model, expert.model)
    )
    if ours != theirs:
        raise UserError(
            f"teacher {expert.name}: its embeddings have {theirs} rows, the student's {ours}; TRL "
            "compares all of them, also those that are no tokens; use mode.on_policy=false"
        )


class LanguageDistillation(trl.OnPolicy, DistillationTrainer):
    """Trains a language model towards a teacher on the completions that it draws."""

    args: DistillationConfig

    def __init__(
        self, *, teacher: Any, model: Any, args: DistillationConfig, train_dataset: Dataset,
        data_collator: Any = None, compute_metrics: Any = None, **kwargs: Any,
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
