"""TRL's GRPOTrainer as a house trainer (`forge.training.trl`).

Theirs are advantages and objective; ours the rewards. Needs the extra `rl`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from forge import ranks
from forge.errors import UserError
from forge.models import lora
from forge.records import samples
from forge.reinforcement import kept
from forge.reinforcement.grpo import ColumnsOf, constant
from forge.reinforcement.rewards import Floats, Reward, Rewards
from forge.tasks import decoding
from forge.training import trl

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from forge.data.sources import Row

# Of completions to the rows with these ids: some rewards [N, rewards], NaN for none
Judge: TypeAlias = Callable[[list[str], list[int], Rewards], Floats]


def arguments(args: TrainingArguments, max_new_tokens: int, **settings: Any) -> GRPOConfig:
    """The run's arguments with TRL's; raises `UserError` for batches that hold no whole groups."""
    steps = settings.get("steps_per_generation") or args.gradient_accumulation_steps
    batch, group = args.per_device_train_batch_size, settings["num_generations"]
    drawn = batch * steps * args.world_size
    if drawn % group:
        raise UserError(
            f"mode.num_generations={group}: the {drawn} answers drawn at once are no whole groups "
            f"(trainer.per_device_train_batch_size={batch} counts answers, times {steps} "
            f"steps, times {args.world_size} processes); make them divide"
        )
    if args.auto_find_batch_size:
        raise UserError(
            "trainer.auto_find_batch_size: mode=rl needs whole groups; set a batch size"
        )
    settings["num_generations_eval"] = 1  # never used: a task evaluates by itself
    return GRPOConfig(**trl.arguments(args, max_new_tokens), **settings)


class LanguageGRPO(trl.OnPolicy, GRPOTrainer):  # type: ignore[misc]
    """Trains a language model on rewards of the completions that it draws.

    Steps count updates, and an epoch every prompt once.
    """

    args: GRPOConfig

    def __init__(
        self, *, rewards: Rewards, judge: Judge, columns_of: ColumnsOf,
        model: PreTrainedModel, args: GRPOConfig,
        train_dataset: Dataset, processing_class: PreTrainedTokenizerBase,
        data_collator: object = None,
        compute_metrics: object = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """The collator and the metrics are not for rows that are prompts."""
        self.rewards, self.columns_of = rewards, columns_of
        trl.without_dropout(model)
        beta, args.beta = args.beta, 0.0  # TRL would load the start by its name: ours may have none
        start = copy.deepcopy(model) if beta and not lora.is_adapted(model) else None
        args.reward_weights = rewards.weights.tolist()
        self.ends = decoding.ends(model.generation_config, processing_class)
        self.tokenizer = processing_class
        super().__init__(
            model=model,
            reward_funcs=[self._reward(name, rewards, judge) for name in rewards.functions],
            args=args,
            train_dataset=trl.prompts(train_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        self.passes_per_draw = args.steps_per_generation * self.num_iterations  # type: ignore[operator]
        self.beta = args.beta = beta
        if start is not None:
            add_fused_lm_head(start, temperature=self.temperature)
            start.requires_grad_(False)
            self.ref_model = self.accelerator.prepare_model(start, evaluation_mode=True)

    def _reward(self, name: str, rewards: Rewards, judge: Judge) -> Reward:
        alone = Rewards({name: rewards.functions[name]}, {})

        def reward(
            *, completion_ids: list[list[int]], id: list[int], **columns: object
        ) -> list[float | None]:
            texts = [decoding.text(ids, self.ends, self.tokenizer) for ids in completion_ids]
            values = judge(texts, id, alone)[:, 0].tolist()
            return [None if math.isnan(value) else value for value in values]

        reward.__name__ = name  # as TRL logs it
        return reward

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Tensor]:
        drawn = super()._generate_and_score_completions(inputs)
        logs: Any = self._logs["rewards"]
        values = np.array([logs[name] for name in self.rewards.functions]).T
        groups = self.rewards.total(values).reshape(-1, self.num_generations or 1)
        # with scale_rewards=batch TRL's is of the batch
        self._metrics["train"]["frac_reward_zero_std"][-1] = float(constant(groups).mean())
        self._keep(drawn, values)
        return drawn

    def _keep(self, drawn: dict[str, Tensor], values: Floats) -> None:
        """Some steps' answers go into the run directory, as rank 0 draws them."""
        run_dir, step = Path(str(self.args.output_dir)), self.state.global_step
        if ranks.rank() or not samples.due(run_dir, step, self.state.max_steps):
            return
        mask, advantages = drawn["completion_mask"], drawn["advantages"].cpu().numpy()
        pairs = zip(drawn["completion_ids"].tolist(), mask.sum(-1).tolist(), strict=True)
        texts = [decoding.text(ids[:n], self.ends, self.tokenizer) for ids, n in pairs]
        kl = None
        if {"old_per_token_logps", "ref_per_token_logps"} <= drawn.keys():
            apart = drawn["old_per_token_logps"] - drawn["ref_per_token_logps"]
            kl = (apart * mask).sum(-1).tolist()
        columns = self.columns_of(drawn["id"][:: self.num_generations].tolist())
        rewards, lengths = self.rewards, mask.sum(-1).tolist()
        mine = values[: len(texts)]  # of all ranks, this one's come first
        samples.write(
            run_dir, step, kept.groups(columns, texts, mine, rewards, advantages, lengths, kl)
        )
