"""What a model draws for training rows, what that is worth, and where training starts from."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypedDict

from forge.data.sources import Columns
from forge.errors import UserError
from forge.reinforcement.grpo import Settings, statistics
from forge.reinforcement.rewards import Floats, Rewards
from forge.tasks.answer import Scores
from forge.training.preparation import Prepared
from forge.training.trainer import Ready

log = logging.getLogger(__name__)
CONSTANT = (
    "no two answers to an example differ in reward, so GRPO cannot learn from them; try a higher "
    "mode.temperature or mode.num_generations, or another mode/reward"
)


class Start(TypedDict):
    """Where training starts, as in the record."""

    splits: dict[str, Scores]
    reward: Scores  # of drawn answers: statistics under TRL's names, the split and its rows


class Policy(ABC):
    """A model whose answers are drawn; raises `UserError` for rewards that do not fit the task."""

    def __init__(self, prepared: Prepared, rewards: Rewards) -> None:
        self.prepared, self.rewards, self.task = prepared, rewards, prepared.task
        self.rows = prepared.rows[prepared.task.train]
        self.place = {row: i for i, row in enumerate(self.rows["id"])}
        if prepared.args.label_smoothing_factor:
            raise UserError(
                "trainer.label_smoothing_factor: mode=rl has no cross-entropy to smooth"
            )
        self.bind()

    @abstractmethod
    def bind(self) -> None:
        """Give the rewards the labels and the names of the columns."""

    @abstractmethod
    def columns(self, rows: Columns) -> Columns:
        """What rewards are given of some training rows."""

    @abstractmethod
    def sample(self, temperature: float, count: int) -> Floats:
        """Rewards [rows * count, rewards] of `count` answers to each of some training rows."""

    @abstractmethod
    def evaluate(self) -> dict[str, Scores]:
        """The model's scores on the evaluation splits."""

    @abstractmethod
    def baseline(self, split: str) -> float | None:
        """The headline of always giving the commonest answer, where it costs nothing to know."""

    @abstractmethod
    def ready(self, settings: Settings, texts: Mapping[str, object], gate: bool) -> Ready:
        """A complete trainer; `texts` are settings that are for texts alone, None for unset."""

    def columns_of(self, ids: list[int]) -> Columns:
        """What rewards are given of the training rows with these ids."""
        return self.columns(self.rows[[self.place[row] for row in ids]])

    def start(self, settings: Settings, gate: bool) -> Start:
        """Where training starts: recorded, or measured now; logged. With `gate` raises `UserError`
        when nothing could move from there."""
        start: Start = self.prepared.recorded.get("start") or self.measure(
            settings.temperature, settings.num_generations
        )
        self._announce(start, gate)
        return start

    def measure(self, temperature: float, count: int) -> Start:
        """The model before training: its scores, and the rewards of its own answers."""
        values = self.sample(temperature, count)  # what is wrong with a reward shows early
        facts = statistics(values, self.rewards, count)
        reward = {name: None if math.isnan(fact) else fact for name, fact in facts.items()}
        about = {"split": self.task.train, "n": len(values) // count}
        return {"splits": self.evaluate(), "reward": about | reward}

    def _announce(self, start: Start, gate: bool) -> None:
        task, reward, split = self.task, start["reward"], self.task.evaluation[0]
        value, baseline = start["splits"][split][task.headline], self.baseline(split)
        beside = "" if baseline is None else f" (commonest answer: {baseline:.4f})"
        log.info("start   %s %.4f on %s%s", task.headline, value, split, beside)
        log.info("reward  %s", describe(reward))
        if baseline is not None and not task.is_better(value, baseline):
            log.warning(
                "the start is no better than always giving the commonest answer: reinforcement "
                "from a random or collapsed head is slow; train one with mode=sft and name it in "
                "model.path="
            )
        if reward["frac_reward_zero_std"] == 1:
            if gate:
                raise UserError(f"{CONSTANT}; or go on with mode.gate=off")
            log.warning(CONSTANT)


def describe(reward: Scores) -> str:
    """The rewards' statistics at the start, in a line."""

    def pair(mean: float | None, std: float | None) -> str:
        return "does not apply" if mean is None or std is None else f"{mean:.4f} (std {std:.4f})"

    names = [name[8:-5] for name in reward if name.startswith("rewards/") and name[-5:] == "/mean"]
    each = [f"{n} {pair(reward[f'rewards/{n}/mean'], reward[f'rewards/{n}/std'])}" for n in names]
    total = [f"together {pair(reward['reward'], reward['reward_std'])}"] if len(each) > 1 else []
    still = f"{reward['frac_reward_zero_std']:.0%} of the groups have no variance"
    return f"{', '.join([*each, *total])}; {still} ({reward['n']} {reward['split']} rows)"
