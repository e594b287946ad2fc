"""Reinforcement: answers are drawn from the model, rewarded, and made likelier or less so.

Where an answer is a label the policy is `forge.reinforcement.labels`, where it is a text
`forge.reinforcement.texts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from forge.errors import UserError
from forge.models import lora
from forge.modes.sft import check_padded, leave_out
from forge.reinforcement.grpo import Settings
from forge.reinforcement.labels import Labels
from forge.reinforcement.policy import Policy
from forge.reinforcement.rewards import Reward, Rewards
from forge.reinforcement.texts import Texts
from forge.tasks.task import Task
from forge.training.preparation import Prepared
from forge.training.trainer import Ready

if TYPE_CHECKING:
    from transformers import TrainingArguments

POSITIVE = Field(gt=0, allow_inf_nan=False)
SHARE = Field(ge=0, allow_inf_nan=False)


def trainer(
    *,
    prepared: Prepared,
    reward: dict[str, Reward] | None = None,
    num_generations: Annotated[int, Field(ge=2)] = 8,
    temperature: Annotated[float, POSITIVE] = 1.0,
    beta: Annotated[float, SHARE] = 0.0,
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    epsilon_high: Annotated[float, POSITIVE] | None = None,
    num_iterations: Annotated[int, Field(ge=1)] = 1,
    scale_rewards: Literal["group", "batch", "none"] = "batch",
    entropy_coef: Annotated[float, SHARE] = 0.0,
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] | None = None,
    steps_per_generation: Annotated[int, Field(ge=1)] | None = None,
    mask_truncated_completions: bool | None = None,
    reward_weights: dict[str, float] | None = None,
    gate: bool = True,
    class_weights: object = None,
    focal_gamma: object = None,
) -> Ready:
    """A trainer on rewards of the model's own answers, which are measured before."""
    settings = Settings(
        num_generations=num_generations,
        temperature=temperature,
        beta=beta,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        num_iterations=num_iterations,
        scale_rewards=scale_rewards,
        entropy_coef=entropy_coef,
    )
    texts = {
        "loss_type": loss_type,
        "steps_per_generation": steps_per_generation,
        "mask_truncated_completions": mask_truncated_completions,
    }
    leave_out(prepared)
    check_padded(prepared.task)
    lora.check_reinforced(prepared.model, beta)
    rewards = Rewards(reward or {}, reward_weights or {})
    return policy(prepared, rewards).ready(settings, texts, gate)


def check(
    task: Task,
    args: TrainingArguments,
    *,
    class_weights: object = None,
    focal_gamma: object = None,
    **others: object,
) -> None:
    """Raise `UserError` for settings of a cross-entropy."""
    for key, value in {"class_weights": class_weights, "focal_gamma": focal_gamma}.items():
        if value is not None:
            raise UserError(
                f"mode.{key}={value}: mode=rl has no cross-entropy to weigh; mode/reward=costs or "
                "mode/reward=metric says what a mistake costs"
            )


def policy(prepared: Prepared, rewards: Rewards) -> Policy:
    """What draws the task's answers; raises `UserError` for answers that cannot be drawn."""
    answer = prepared.task.answer
    if answer.alignment == "token":
        return Texts(prepared, rewards)
    if answer.distribution:
        return Labels(prepared, rewards)
    raise UserError(
        f"mode=rl: it draws labels, and a {answer.problem_type} has none; use mode=sft or kd"
    )
