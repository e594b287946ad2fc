"""GRPO for language models: TRL's GRPOTrainer in the house trainer's clothes.

Theirs are generation, advantages and objective; ours the tokens of a prompt, the rewards, records,
checkpoints and evaluation, which are those of the other modes. What TRL keeps between steps goes
into checkpoints too, so that a run goes on with the same bits. Needs the extra `rl`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import transformers
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import nn
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from forge import decoding, lora
from forge.errors import UserError
from forge.grpo import constant
from forge.rewards import Rewards
from forge.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from forge.generation import Generation

Judge: TypeAlias = Callable[[list[str], list[int], Rewards], NDArray[Any]]  # modes.rl.TextJudge


def arguments(args: TrainingArguments, task: Generation, **settings: Any) -> GRPOConfig:
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
    names = [field.name for field in fields(args) if field.init]
    own: dict[str, Any] = {name: getattr(args, name) for name in names}
    follows: dict[str, Any] = {
        "max_completion_length": task.max_new_tokens,
        "num_generations_eval": 1,  # never used: a task evaluates by itself
        "disable_dropout": True,  # with it, two readings of one policy differ
    }
    return GRPOConfig(**own, **settings, **follows)


def check_room(split: Dataset, task: Generation, config: Any) -> None:
    """Raise `UserError` for a prompt after which the context has no room for an answer."""
    room = getattr(config, "max_position_embeddings", None) or 10**9
    lengths = list(split["prompt_length"])
    longest = max(lengths)
    if longest + task.max_new_tokens > room:
        row = split["id"][lengths.index(longest)]
        raise UserError(
            f"row {row}: its prompt has {longest} tokens, which with task.max_new_tokens="
            f"{task.max_new_tokens} is more than the model's context of {room}; lower "
            "task.max_new_tokens, or remove such rows"
        )


def without_dropout(model: nn.Module) -> None:
    """Also where it is no module: attention reads its rate off an attribute."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name == "p" or "dropout" in name):
                setattr(module, name, 0.0)


class Groups(RepeatSampler):
    """TRL's; the order follows from seed and epoch, so that a resumed epoch has the same."""

    def set_epoch(self, epoch: int) -> None:
        """What comes next is this epoch."""
        self.generator.manual_seed(1_000_003 * (self.seed or 0) + epoch)


class LanguageGRPO(Trainer, GRPOTrainer):
    """Trains a language model on rewards of the completions that it draws.

    Batches count completions; steps count updates, and an epoch every prompt once.
    """

    args: GRPOConfig
    _buffered_inputs: Any

    def __init__(
        self, *, rewards: Rewards, judge: Judge, model: Any, args: GRPOConfig,
        train_dataset: Dataset, processing_class: Any, data_collator: Any = None,
        compute_metrics: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """The collator and the metrics are not for rows that are prompts."""
        self.rewards = rewards
        without_dropout(model)
        beta, args.beta = args.beta, 0.0  # TRL would load the start by its name: ours may have none
        start = copy.deepcopy(model) if beta and not lora.is_adapted(model) else None
        args.reward_weights = rewards.weights.tolist()
        self.ends = decoding.ends(model.generation_config, processing_class)
        self.read: Any = processing_class
        super().__init__(
            model=model,
            reward_funcs=[self._reward(name, rewards, judge) for name in rewards.functions],
            args=args,
            train_dataset=prompts(train_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        self.beta = args.beta = beta
        if start is not None:
            add_fused_lm_head(start, temperature=self.temperature)
            start.requires_grad_(False)
            self.ref_model = self.accelerator.prepare_model(start, evaluation_mode=True)

    def _reward(self, name: str, rewards: Rewards, judge: Judge) -> Callable[..., Any]:
        alone = Rewards({name: rewards.functions[name]}, {})

        def reward(*, completion_ids: list[list[int]], id: list[int], **columns: Any) -> Any:
            texts = [decoding.text(ids, self.ends, self.read) for ids in completion_ids]
            values = judge(texts, id, alone)[:, 0].tolist()
            return [None if math.isnan(value) else value for value in values]

        reward.__name__ = name  # as TRL logs it
        return reward

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """With random numbers that are each rank's own, whatever came before."""
        set_seed(self.args.seed, device_specific=True)
        with lora.replaced_names():
            return super().train(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return prompts, None, {}  # they are tokens, those of training and evaluation

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        theirs = super()._get_train_sampler(dataset)
        if not len(theirs):
            count = theirs.batch_size
            raise UserError(
                f"trainer.per_device_train_batch_size: not one whole batch of {count} prompts in "
                f"{theirs.num_samples} rows; lower it"
            )
        theirs.__class__ = Groups
        return theirs

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super(Trainer, self)._prepare_inputs(inputs)  # not the house's: it is of columns
        masks = prepared["prompt_mask"], prepared["completion_mask"]
        self.examples += len(masks[0])
        self.cells += sum(mask.numel() for mask in masks)
        self.tokens = self.tokens + sum(mask.sum() for mask in masks)
        self.last_ids = prepared["id"]
        return prepared

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        ids = torch.tensor([row["id"] for row in inputs], device=self.args.device)
        found = super()._generate_and_score_completions(inputs)
        logs: Any = self._logs["rewards"]
        values = np.array([logs[name] for name in self.rewards.functions]).T
        groups = self.rewards.total(values).reshape(-1, self.num_generations or 1)
        # with scale_rewards=batch TRL's is of the batch
        self._metrics["train"]["frac_reward_zero_std"][-1] = float(constant(groups).mean())
        return found | {"id": ids}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """An evaluation is not TRL's; a reward that applied nowhere is not logged."""
        if "loss" not in logs:
            transformers.Trainer.log(self, logs, *args, **kwargs)
            return
        told = self._metrics["train"]
        for name in [name for name, values in told.items() if all(map(math.isnan, values))]:
            del told[name]
        super().log(logs, *args, **kwargs)

    def progress(self) -> dict[str, Any]:
        told = {
            name: [value for value in values if not math.isnan(value)]
            for name, values in self._metrics["train"].items()
        }
        every: int = self.args.steps_per_generation * self.num_iterations  # type: ignore[operator]
        whole = self._step % every == 0
        drawn: list[Any] = [] if whole else self._buffered_inputs or []
        packed = [{name: _packed(tensor) for name, tensor in part.items()} for part in drawn]
        return super().progress() | {"passes": self._step, "told": told, "drawn": packed}

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        self._step = progress["passes"]
        self._metrics["train"].update(progress["told"])
        self._buffered_inputs = [
            {name: torch.tensor(values, dtype=getattr(torch, dtype), device=self.args.device)
             for name, (dtype, values) in part.items()}
            for part in progress["drawn"]
        ] or None  # fmt: skip

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Forge writes one."""

    def _send_telemetry(self) -> None:
        """Nothing is sent."""


def prompts(split: Dataset) -> Dataset:
    """The tokens of each prompt, and the row's id."""
    from datasets import Dataset

    read = zip(split["input_ids"], split["prompt_length"], strict=True)
    return Dataset.from_dict({"prompt": [ids[:n] for ids, n in read], "id": list(split["id"])})


def _packed(tensor: torch.Tensor) -> tuple[str, Any]:
    return str(tensor.dtype).removeprefix("torch."), tensor.tolist()
