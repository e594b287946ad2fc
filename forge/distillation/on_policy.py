"""On-policy distillation of language models: TRL's DistillationTrainer in the house trainer's
clothes (`forge.training.trl`).

The student writes a completion to each prompt, and at each of its tokens learns the teacher's
distribution (Agarwal et al. 2024): loss = D(teacher, student), summed over the vocabulary, divided
by the drawn tokens of the whole optimizer step on all ranks, prompts and padding left out. With
p the teacher's and q the student's softmax of logits / temperature, D is KL(p || q) at beta 0,
KL(q || p) at beta 1, and between them beta KL(p || m) + (1 - beta) KL(q || m) with
m = beta p + (1 - beta) q.

What is not as in `forge.distillation.losses`: D is not multiplied by T^2; D goes to 0 towards
both ends and jumps to a KL there; there is no gradient through the drawing, at any beta; rows of
the embeddings that are no tokens count as outcomes, so both models must have as many; completions
that task.max_new_tokens cuts count up to there. Needs the extra `rl`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from forge.distillation import tokens
from forge.distillation.losses import KL, Loss
from forge.errors import UserError, needs
from forge.tasks import decoding
from forge.training.trainer import Ready

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from forge.distillation.teacher import FrozenTeacher
    from forge.training.preparation import Prepared

log = logging.getLogger(__name__)


def ready(prepared: Prepared, gate: bool, beta: float | None, temperature: float | None) -> Ready:
    """A trainer on the completions that the student writes, through TRL."""
    with needs("rl", "mode.on_policy=true"):
        from forge.distillation import trl_distillation
    settings = {"beta": beta, "temperature": temperature}
    args = trl_distillation.arguments(
        prepared, **{name: value for name, value in settings.items() if value is not None}
    )
    teacher = tokens.load(prepared)
    check_fit(teacher, prepared)
    measured = tokens.measure(teacher, prepared, gate)
    log.info(
        "loss    generalised JSD of beta %g (0: forward KL, 1: reverse KL), temperature %g, to the "
        "teacher at each token that the student writes; no labels",
        args.beta,
        args.temperature,
    )
    teacher.to(prepared.args.device)
    arguments: dict[str, Any] = {**prepared.trainer_arguments(), "args": args}
    made = trl_distillation.LanguageDistillation(teacher=teacher.model, **arguments)
    rows = len(prepared.splits[prepared.task.train])
    return Ready(made, {"teacher": measured.record, "trained_on": rows}, {}, measured.predictions)


def check(args: TrainingArguments, alpha: float, loss: dict[str, Loss], top_k: int | None) -> None:
    """Raise `UserError` for what TRL's loss has no place for."""
    if alpha < 1:
        raise UserError(
            f"mode.alpha={alpha:g}: with mode.on_policy=true there are no labels to blend with; "
            "set mode.alpha=1"
        )
    set_by = ("weight", "temperature", "divergence", "skew")
    if any(
        not isinstance(term, KL) or any(getattr(term, k) != getattr(KL(), k) for k in set_by)
        for term in loss.values()
    ):
        raise UserError(
            f"mode/loss=[{','.join(loss)}]: with mode.on_policy=true it is mode.beta and "
            "mode.temperature that say how student and teacher are compared; leave mode/loss as "
            "it is"
        )
    if top_k:
        raise UserError(
            f"mode.top_k={top_k}: what the student will write cannot be asked beforehand; set "
            "mode.top_k=null, or mode.on_policy=false"
        )
    if args.label_smoothing_factor:
        raise UserError(
            "trainer.label_smoothing_factor: mode.on_policy=true has no cross-entropy to smooth"
        )


def check_fit(teacher: FrozenTeacher, prepared: Prepared) -> None:
    """Raise `UserError` where student or teacher cannot read what is drawn, or TRL compare them."""
    from forge.training import trl

    split, task = prepared.splits[prepared.task.train], prepared.task
    args = prepared.args
    drawn = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    trl.check_rows(split, drawn)
    tokens = task.written.max_new_tokens
    decoding.check_room(split, tokens, prepared.model.config)
    decoding.check_room(split, tokens, teacher.model.config, f"teacher {teacher.name}")
    for model in (prepared.model, teacher.model):
        trl.check_padding(split, model, prepared.args.device)
    ours, theirs = (
        m.get_output_embeddings().weight.shape[0] for m in (prepared.model, teacher.model)
    )
    if ours != theirs:
        raise UserError(
            f"teacher {teacher.name}: its embeddings have {theirs} rows, the student's {ours}; TRL "
            "compares all of them, also those that are no tokens; use mode.on_policy=false"
        )
