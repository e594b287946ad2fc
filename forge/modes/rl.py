"""Reinforcement: answers are drawn from the model, rewarded, and made likelier or less so.

A classifier's answers are labels (`forge.grpo`).
"""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax
from transformers import set_seed

from forge import grpo, teacher
from forge.errors import UserError
from forge.experiment import Prepared
from forge.grpo import GRPO, Judge, Settings
from forge.logits import Expert, ask
from forge.modes.sft import leave_out
from forge.rewards import Reward, Rewards
from forge.tasks import Classification
from forge.trainer import Trainer

log = logging.getLogger(__name__)
SURVEYED = 256  # training rows whose answers are looked at beforehand
BEFORE = 2**31  # the survey's draws are those of no step
POSITIVE = Field(gt=0, allow_inf_nan=False)
SHARE = Field(ge=0, allow_inf_nan=False)
STILL = (
    "no two answers to an example differ in reward, so GRPO cannot learn from them; try a higher "
    "mode.temperature or mode.num_generations, or another mode/reward"
)
SCALED = (  # said of any other reward than exact alone
    "mode.scale_rewards=group: of two labels one is better, and by how much is scaled away; "
    "mode.scale_rewards=batch keeps it"
)


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
    reward_weights: dict[str, float] | None = None,
    gate: bool = True,
    **common: Any,
) -> Trainer:
    """A trainer on rewards of the model's own answers, which are looked at before."""
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
    leave_out(prepared)
    rewards = Rewards(reward or {}, reward_weights or {})
    judge = judging(prepared, rewards)
    draws = (temperature, num_generations)
    start = prepared.recorded.get("start") or measure(prepared, rewards, judge, *draws)
    prepared.facts["start"] = start
    announce(prepared, start, gate)
    two = prepared.task.num_labels == 2
    if two and scale_rewards == "group" and [*rewards.functions] != ["exact"]:
        log.warning(SCALED)
    set_seed(common["args"].seed)  # whatever came before
    made = GRPO(settings=settings, rewards=rewards, judge=judge, **common)
    made.found["start"] = start
    return made


def judging(prepared: Prepared, rewards: Rewards) -> Judge:
    """The rewards of labels drawn for training rows; raises `UserError` for what does not fit."""
    task = prepared.task
    if not isinstance(task, Classification):
        raise UserError(
            f"mode=rl: it draws labels, and a {task.problem_type} has none; use mode=sft or kd"
        )
    if prepared.args.label_smoothing_factor:
        raise UserError("trainer.label_smoothing_factor: mode=rl has no cross-entropy to smooth")
    if taken := {"completions", "id", "label"} & set(task.text):
        raise UserError(
            f"task.text: mode=rl gives rewards a column {taken.pop()} itself; rename the data's"
        )
    rewards.bind(task.names, ["id", "label", *task.text])
    rows, names = prepared.rows[task.train], task.names
    place = {row: i for i, row in enumerate(rows["id"])}

    def judge(labels: NDArray[Any], ids: list[int]) -> NDArray[Any]:
        once, count = columns(task, rows[[place[row] for row in ids]]), range(labels.shape[1])
        given = {name: [value for value in column for _ in count] for name, column in once.items()}
        return rewards([names[label] for label in labels.reshape(-1)], given)

    return judge


def columns(task: Classification, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What rewards are given of some rows."""
    texts = zip(task.text_columns, task.text, strict=True)
    given = {name: rows[own] for own, name in texts}
    return given | {"id": rows["id"], "label": [task.names[label] for label in rows["labels"]]}


def measure(
    prepared: Prepared, rewards: Rewards, judge: Judge, temperature: float, count: int
) -> dict[str, Any]:
    """The model before training: scores of the evaluation splits, rewards of its own answers."""
    task, args = prepared.task, prepared.args
    model = Expert(prepared.model.eval(), prepared.tokenizer, [], False)

    def logits(rows: Dataset) -> NDArray[Any]:
        return ask(model, rows, prepared, args.bf16 or args.fp16)

    splits = {}
    for split in task.evaluation:
        rows = prepared.rows[split]
        splits[split] = task.judge(logits(rows), np.asarray(rows["labels"])) | {"n": len(rows)}
    rows = prepared.rows[task.train]
    few = np.random.default_rng(args.seed).permutation(len(rows))[:SURVEYED]
    rows, size = rows.select(few), args.train_batch_size
    likely, ids, group = softmax(logits(rows) / temperature, -1), rows["id"], []
    for i in range(0, len(ids), size):  # rewards may be of a whole batch
        batch = list(ids[i : i + size])
        drawn = grpo.draw(likely[i : i + size], batch, BEFORE, args.seed, count)
        group.append(judge(drawn, batch))
    facts = grpo.told(np.concatenate(group), rewards, count)
    reward = {name: None if math.isnan(fact) else fact for name, fact in facts.items()}
    return {"splits": splits, "reward": {"split": task.train, "n": len(ids), **reward}}


def announce(prepared: Prepared, start: dict[str, Any], gate: bool) -> None:
    """Say where training starts; raise `UserError` when it could not move from there."""
    task, reward, split = prepared.task, start["reward"], prepared.task.evaluation[0]
    labels = np.asarray(prepared.rows[split]["labels"])
    least = task.judge(teacher.commonest(labels, task), labels)[task.headline]
    value = start["splits"][split][task.headline]
    log.info("start   %s %.4f on %s (commonest answer: %.4f)", task.headline, value, split, least)
    log.info("reward  %s", words(reward))
    if not (value > least if task.greater_is_better else value < least):
        log.warning(
            "the start is no better than always giving the commonest answer: reinforcement from a "
            "random or collapsed head is slow; train one with mode=sft and name it in model.path="
        )
    if reward["frac_reward_zero_std"] == 1:
        if gate:
            raise UserError(f"{STILL}; or go on with mode.gate=off")
        log.warning(STILL)


def words(reward: dict[str, Any]) -> str:
    """A survey's numbers in a line."""

    def pair(mean: float | None, std: float | None) -> str:
        return "does not apply" if mean is None or std is None else f"{mean:.4f} (std {std:.4f})"

    names = [name[8:-5] for name in reward if name.startswith("rewards/") and name[-5:] == "/mean"]
    each = [f"{n} {pair(reward[f'rewards/{n}/mean'], reward[f'rewards/{n}/std'])}" for n in names]
    total = [f"together {pair(reward['reward'], reward['reward_std'])}"] if len(each) > 1 else []
    still = f"{reward['frac_reward_zero_std']:.0%} of the groups have no variance"
    return f"{', '.join([*each, *total])}; {still} ({reward['n']} {reward['split']} rows)"
