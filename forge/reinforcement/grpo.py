"""GRPO for classifiers (Shao et al. 2024): the policy is the softmax over the labels.

    loss = - mean of min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)
           + beta * KL(policy || start) - entropy_coef * H(policy)

Over G labels drawn for each example; A is the advantage in its group. Every distribution is
softmax(logits / temperature), read without dropout: the ratio of the first update after a draw is
exactly 1 (it is taken to that update's own logits), and so is 0 the KL of the first step. KL and
entropy are sums over all labels, not estimates. A group's mean holds each answer's own reward, so
with scale_rewards=none the expected gradient is (G - 1) / G of the exact policy gradient.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler, Sampler
from transformers.utils.generic import ModelOutput

from forge import ranks
from forge.data.sources import Columns
from forge.errors import UserError
from forge.inputs.input import Batch
from forge.models import lora
from forge.records import samples
from forge.records.files import Json
from forge.reinforcement import kept
from forge.reinforcement.rewards import Floats, Rewards
from forge.tasks.decisions import kl
from forge.training.trainer import Trainer

if TYPE_CHECKING:
    from forge.training.preparation import TrainerKeywords

log = logging.getLogger(__name__)
Values: TypeAlias = NDArray[np.generic] | list[list[float]]  # an array, or as it was stored
Drawn: TypeAlias = NDArray[np.int64]  # the numbers of labels [B, (K,) G], K decisions a row
EPS = 1e-4  # beside the standard deviation, as in TRL
# Of answers [B, (K,) G] to the rows with these ids: each reward's values [B * G, rewards], or NaN
Judge: TypeAlias = Callable[[Drawn, list[int]], Floats]
ColumnsOf: TypeAlias = Callable[
    [list[int]], Columns
]  # what rewards are given of rows, by their ids


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Under the names of TRL's GRPOConfig; see conf/mode/rl.yaml."""

    num_generations: int
    temperature: float
    beta: float
    epsilon: float
    epsilon_high: float | None
    num_iterations: int
    scale_rewards: str
    entropy_coef: float


@dataclass
class Rollout:
    """Labels drawn [B, (K,) G], the log-probabilities [B, (K,) C] that they come from, advantages
    [B, G]; with K decisions a row where it has several, of which only those `asked` [B, K] count
    (None: all)."""

    step: int  # at which they were drawn
    labels: Tensor
    old: Tensor
    advantages: Tensor
    asked: Tensor | None = None


def draw(
    probabilities: NDArray[np.floating], ids: list[int], step: int, seed: int, count: int
) -> Drawn:
    """`count` labels for each of a row's decisions: probabilities [B, (K,) C] -> [B, (K,) count].

    The random numbers follow from seed, step and the row's id alone: what else is in the batch, how
    many processes there are, an evaluation or a resumption in between change nothing.
    """
    shape = (*probabilities.shape[1:-1], count)
    uniform = np.stack([np.random.default_rng((seed, step, row)).random(shape) for row in ids])
    cumulative = probabilities.astype(np.float64).cumsum(-1)
    cumulative /= cumulative[..., -1:]
    drawn: Drawn = (uniform[..., None] >= cumulative[..., None, :]).sum(-1)
    return drawn


def centred(rewards: Floats, scale: str) -> Floats:
    """Advantages [B, G] of rewards [B, G]: minus the group's mean, over a standard deviation.

    That of the group or of the batch (ddof 1, plus 1e-4, as TRL), or 1 at `scale` none. NaN, an
    answer that no reward applies to, counts nowhere and has advantage 0.
    """
    mean, std = moments(rewards, 1)
    apart = np.where(np.isnan(rewards) | constant(rewards)[:, None], 0.0, rewards - mean)
    if scale == "batch":
        std = moments(rewards.reshape(1, -1), 1)[1]
    scaled: Floats = apart if scale == "none" else apart / (std + EPS)
    return scaled


def moments(values: Floats, axis: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation (ddof 1) of what is not NaN, the axis kept; 0 where undefined."""
    count = (~np.isnan(values)).sum(axis, keepdims=True)
    mean = np.nansum(values, axis, keepdims=True) / np.maximum(count, 1)
    squares = np.nansum((values - mean) ** 2, axis, keepdims=True)
    return mean, np.sqrt(squares / np.maximum(count - 1, 1))


def constant(rewards: Floats) -> NDArray[np.bool_]:
    """Which groups [B] of rewards [B, G] have no variance, and teach nothing."""
    low = np.where(np.isnan(rewards), np.inf, rewards).min(1)
    high = np.where(np.isnan(rewards), -np.inf, rewards).max(1)
    same: NDArray[np.bool_] = ~(high > low)
    return same


def objective(
    policy: Tensor, rollout: Rollout, start: Tensor | None, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of log-probabilities [B, (K,) C], and what to log: kl, entropy, the clipped share.

    The advantage is that of a row's whole answer, the ratio and its clipping of each decision.

    `start` are those of the model that training started from; None at beta 0.
    """
    low = settings.epsilon
    high = low if settings.epsilon_high is None else settings.epsilon_high
    new, old = (p.gather(-1, rollout.labels) for p in (policy, rollout.old))
    ratio, advantages = (new - old).exp(), rollout.advantages
    if ratio.ndim > advantages.ndim:  # a row's decisions share its advantage
        advantages = advantages.unsqueeze(1)
    gain = torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    clipped = torch.where(advantages < 0, ratio < 1 - low, (ratio > 1 + high) & (advantages > 0))
    entropy = mean_asked(-(policy.exp() * policy).sum(-1), rollout.asked)
    loss = -mean_asked(gain, rollout.asked) - settings.entropy_coef * entropy
    facts = {
        "entropy": entropy,
        "clip_ratio/region_mean": mean_asked(clipped.float(), rollout.asked),
    }
    if start is not None:
        facts["kl"] = mean_asked(kl(policy, start), rollout.asked)
        loss = loss + settings.beta * facts["kl"]
    return loss, {name: fact.detach() for name, fact in facts.items()}


def mean_asked(values: Tensor, asked: Tensor | None) -> Tensor:
    """The mean of values [B, K, …] over the decisions that are asked [B, K]; None: over all."""
    if asked is None:
        return values.mean()
    shape = (*asked.shape, *[1] * (values.ndim - asked.ndim))
    weights = asked.view(shape).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def statistics(values: Floats, rewards: Rewards, group: int) -> dict[str, float]:
    """Of rewards [B * G, rewards], under TRL's names; NaN where none applied."""
    total = rewards.total(values)
    facts = dict(zip(("reward", "reward_std"), _mean_and_std(total), strict=True))
    for name, column in zip(rewards.functions, values.T, strict=True):
        mean, std = _mean_and_std(column)
        facts |= {f"rewards/{name}/mean": mean, f"rewards/{name}/std": std}
    facts["frac_reward_zero_std"] = float(constant(total.reshape(-1, group)).mean())
    return facts


def _mean_and_std(values: Floats) -> tuple[float, float]:
    if np.isnan(values).all():
        return math.nan, math.nan
    mean, std = moments(values, 0)
    return mean.item(), std.item()


def _flat(drawn: Tensor) -> Tensor:
    """Of each answer a line: [B, (K,) G] -> [B * G, K]."""
    return drawn.movedim(-1, 1).flatten(0, 1).reshape(drawn.shape[0] * drawn.shape[-1], -1)


class Repeated(Sampler[int]):
    """Another sampler's rows in chunks, each `times` times; an incomplete last one is left out."""

    def __init__(self, rows: Any, chunk: int, times: int) -> None:
        self.rows, self.chunk, self.times = rows, chunk, times

    def set_epoch(self, epoch: int) -> None:
        """Of the other sampler, if its order changes with it."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows) // self.chunk * self.chunk * self.times

    def __iter__(self) -> Iterator[int]:
        rows = list(self.rows)
        whole = range(0, len(rows) - self.chunk + 1, self.chunk)
        return (row for i in whole for _ in range(self.times) for row in rows[i : i + self.chunk])


class GRPO(Trainer):
    """Trains a classifier on rewards of the labels that it draws.

    Rewards of a batch, and the scale of one, are of one forward pass: neither other processes' nor
    other accumulated batches count. Steps count updates; with several for each batch of answers an
    epoch has as many times more.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        settings: Settings,
        rewards: Rewards,
        judge: Judge,
        columns_of: ColumnsOf,
        **kwargs: Unpack[TrainerKeywords],
    ) -> None:
        self.settings, self.rewards, self.judge, model = settings, rewards, judge, kwargs["model"]
        self.columns_of = columns_of
        self.start: nn.Module | None = None  # an adapter is switched off instead
        if settings.beta and not lora.is_adapted(model):
            self.start = copy.deepcopy(model).eval().requires_grad_(False)
        self.rollouts: dict[str, Rollout] = {}  # of the batches to come again, by their rows' ids
        self.sums: dict[str, list[float]] = {}  # since the last log: sum and count of each fact
        super().__init__(**kwargs)
        if self.start is not None:
            self.start.to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        model.eval()  # no dropout, with which two readings of one policy differ
        start = self._start_policy(model, inputs) if self.settings.beta else None
        decisions, outputs = self.decide(model, inputs)
        policy = self._log_policy(decisions.logits)
        rollout = self._rollout(policy.detach(), start, decisions.asked)
        loss, facts = objective(policy, rollout, start, self.settings)
        self._add({name: fact.item() for name, fact in facts.items()})
        return (loss, outputs) if return_outputs else loss

    def _start_policy(self, model: nn.Module, inputs: Batch) -> Tensor:
        """Log-probabilities [B, (K,) C] of the model that training started from."""
        own = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self.accelerator.autocast():
            if self.start is not None:
                return self._log_policy(self.decide(self.start, inputs)[0].logits)
            with own.disable_adapter():
                return self._log_policy(self.decide(own, inputs)[0].logits)

    def _log_policy(self, logits: Tensor) -> Tensor:
        return (logits.float() / self.settings.temperature).log_softmax(-1)

    def _rollout(self, policy: Tensor, start: Tensor | None, asked: Tensor | None) -> Rollout:
        """The batch's labels and advantages: drawn now, or those of the updates before."""
        assert self.last_ids is not None
        ids, step = self.last_ids.tolist(), self.state.global_step
        key = " ".join(map(str, ids))
        if step % self.settings.num_iterations:
            self.rollouts[key].asked = asked  # which a checkpoint does not hold
            return self.rollouts[key]
        labels = draw(
            policy.exp().cpu().numpy(), ids, step, self.args.seed, self.settings.num_generations
        )
        values = self.judge(labels, ids)
        self._add(statistics(values, self.rewards, self.settings.num_generations))
        total = self.rewards.total(values).reshape(len(ids), -1)
        advantages = centred(total, self.settings.scale_rewards)
        rollout = self._rolled_out(step, labels, policy, advantages)
        rollout.asked = asked
        self._keep(ids, rollout, values, start)
        if self.settings.num_iterations > 1:
            self.rollouts = {k: r for k, r in self.rollouts.items() if r.step == step}
            self.rollouts[key] = rollout
        return rollout

    def _keep(self, ids: list[int], rollout: Rollout, values: Floats, start: Tensor | None) -> None:
        """Some steps' answers go into the run directory, as rank 0 draws them."""
        run_dir, step = Path(str(self.args.output_dir)), rollout.step
        if ranks.rank() or not samples.due(run_dir, step, self.state.max_steps):
            return
        answers, count = _flat(rollout.labels).tolist(), rollout.labels.shape[-1]
        kl = None if start is None else (rollout.old - start).gather(-1, rollout.labels)
        if rollout.asked is not None:  # without the padding
            sizes = (rollout.asked > 0).sum(-1).repeat_interleave(count).tolist()
            answers = [answer[:size] for answer, size in zip(answers, sizes, strict=True)]
            kl = None if kl is None else kl * (rollout.asked > 0).unsqueeze(-1)
        columns = self.columns_of(ids)
        shown = zip(*(c for name, c in columns.items() if name not in ("id", "label")), strict=True)
        texts = [row for row in shown for _ in range(count)] or [()] * len(answers)
        pairs = zip(answers, texts, strict=True)
        named = [self.task.answer.completion(*pair) for pair in pairs]
        kl_of = None if kl is None else _flat(kl).sum(-1).tolist()
        advantages, lengths = rollout.advantages.flatten().cpu().numpy(), list(map(len, answers))
        groups = kept.groups(columns, named, values, self.rewards, advantages, lengths, kl_of)
        samples.write(run_dir, step, groups)

    def _rolled_out(
        self, step: int, labels: Values, old: Values | Tensor, advantages: Values
    ) -> Rollout:
        """On the device."""
        to = partial(torch.as_tensor, dtype=torch.float32, device=self.args.device)
        drawn = torch.as_tensor(labels, device=self.args.device)
        return Rollout(step, drawn, to(old), to(advantages))

    def _get_train_sampler(self, train_dataset: Dataset[object] | None = None) -> Any:
        rows, times = super()._get_train_sampler(train_dataset), self.settings.num_iterations
        if times == 1:
            return rows
        if isinstance(rows, RandomSampler):
            rows = SeedableRandomSampler(rows.data_source, data_seed=self.args.seed)
        args = self.args
        chunk = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if chunk > len(rows):
            raise UserError(
                f"mode.num_iterations={times}: not one whole batch of {chunk} in {len(rows)} rows; "
                "lower trainer.per_device_train_batch_size"
            )
        return Repeated(rows, chunk, times)

    def progress(self) -> dict[str, object]:
        rollouts = {
            key: [r.step, *(t.tolist() for t in (r.labels, r.old, r.advantages))]
            for key, r in self.rollouts.items()
        }
        return super().progress() | {"rollouts": rollouts, "facts": self.sums}

    def restore(self, progress: Json) -> None:
        super().restore(progress)
        self.sums = progress["facts"]
        rollouts = progress["rollouts"].items()
        self.rollouts = {key: self._rolled_out(*stored) for key, stored in rollouts}

    def _add(self, facts: dict[str, float]) -> None:
        """Add facts of a batch to what the next log averages; NaN counts nowhere."""
        for name, fact in facts.items():
            sums = self.sums.setdefault(name, [0.0, 0])
            if not math.isnan(fact):
                sums[0] += fact
                sums[1] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.sums:
            ours = {}
            for name, sums in self.sums.items():
                total, count = (ranks.all_reduce_sum(each, self.args.device) for each in sums)
                if count:
                    ours[name] = total / count
            order = sorted(ours, key=lambda name: not name.startswith("reward"))
            logs = {name: ours[name] for name in order} | logs
            self.sums = {name: [0.0, 0] for name in self.sums}
        super().log(logs, start_time)
