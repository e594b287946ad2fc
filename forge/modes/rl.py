"""Reinforcement: answers are drawn from the model, rewarded, and made likelier or less so.

A classifier's answers are labels (`forge.reinforcement.grpo`), a language model's are texts (`forge.reinforcement.texts`).
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax
from transformers import set_seed

from forge.distillation import teacher
from forge.distillation.stored import Expert, ask
from forge.errors import UserError, needs
from forge.models import lora
from forge.modes.sft import leave_out, padded
from forge.reinforcement import grpo
from forge.reinforcement import rewards as reinforcement_rewards
from forge.reinforcement.grpo import GRPO, Judge, Settings
from forge.reinforcement.rewards import Reward, Rewards
from forge.tasks import decoding
from forge.tasks.task import Classification, Task
from forge.tasks.text import Generation
from forge.training.preparation import Prepared
from forge.training.trainer import Trainer

log = logging.getLogger(__name__)
SURVEYED = 256  # training rows whose answers are looked at beforehand
WRITTEN = 32  # of a language model
BEFORE = 2**31  # the survey's draws are those of no step
# Of completions to the rows with these ids: the values of some rewards [N, rewards], NaN for none
TextJudge: TypeAlias = Callable[[list[str], list[int], Rewards], NDArray[Any]]
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
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] | None = None,
    steps_per_generation: Annotated[int, Field(ge=1)] | None = None,
    mask_truncated_completions: bool | None = None,
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
    written = {
        "loss_type": loss_type,
        "steps_per_generation": steps_per_generation,
        "mask_truncated_completions": mask_truncated_completions,
    }
    leave_out(prepared)
    padded(prepared)
    lora.check_reinforced(prepared.model, beta)
    rewards = Rewards(reward or {}, reward_weights or {})
    if isinstance(prepared.task, Generation):
        made = of_texts(prepared, rewards, settings, written, gate, common)
    else:
        made = of_labels(prepared, rewards, settings, written, gate, common)
    made.found["start"] = prepared.facts["start"]
    return made


def of_labels(
    prepared: Prepared,
    rewards: Rewards,
    settings: Settings,
    written: dict[str, Any],
    gate: bool,
    common: dict[str, Any],
) -> Trainer:
    """For a classifier."""
    judge = judging(prepared, rewards)
    for name, value in written.items():
        if value is not None:
            raise UserError(f"mode.{name}={value}: it is for language models; a label is no text")
    look(prepared, rewards, judge, settings.temperature, settings.num_generations, gate)
    two = prepared.task.num_labels == 2
    if two and settings.scale_rewards == "group" and [*rewards.functions] != ["exact"]:
        log.warning(SCALED)
    set_seed(common["args"].seed)  # whatever came before
    return GRPO(settings=settings, rewards=rewards, judge=judge, **common)


def of_texts(
    prepared: Prepared,
    rewards: Rewards,
    settings: Settings,
    written: dict[str, Any],
    gate: bool,
    common: dict[str, Any],
) -> Trainer:
    """For a language model."""
    with needs("rl", "mode=rl on a language model"):
        from forge.reinforcement import texts as reinforcement_texts
        from forge.training import trl
    task = prepared.task
    given = {name: value for name, value in written.items() if value is not None}
    args = reinforcement_texts.arguments(prepared.args, task, **vars(settings), **given)
    split = prepared.splits[task.train]
    trl.check_rows(split, (args.generation_batch_size or 0) // settings.num_generations)
    trl.check_padding(split, prepared.model, args.device)
    judge = judging(prepared, rewards)
    look(prepared, rewards, judge, settings.temperature, settings.num_generations, gate)
    return reinforcement_texts.LanguageGRPO(rewards=rewards, judge=judge, **common | {"args": args})


def look(
    prepared: Prepared, rewards: Rewards, judge: Any, temperature: float, count: int, gate: bool
) -> None:
    """Note where training starts, and say it; raise `UserError` when nothing moves from there."""
    start = prepared.recorded.get("start") or measure(prepared, rewards, judge, temperature, count)
    prepared.facts["start"] = start
    announce(prepared, start, gate)


def judging(prepared: Prepared, rewards: Rewards) -> Any:
    """The rewards of what is drawn for training rows; raises `UserError` for what does not fit.

    A `grpo.Judge` of labels, or a `TextJudge`.
    """
    task = prepared.task
    if isinstance(task, Generation):
        return _judging_texts(prepared, rewards)
    if not isinstance(task, Classification):
        raise UserError(
            f"mode=rl: it draws labels, and a {task.problem_type} has none; use mode=sft or kd"
        )
    _unsmoothed(prepared)
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


def _judging_texts(prepared: Prepared, rewards: Rewards) -> TextJudge:
    """Some rewards of completions to training rows; `exact` becomes the task's own verdict."""
    task = prepared.task
    _unsmoothed(prepared)
    decoding.check_room(prepared.splits[task.train], task, prepared.model.config)
    for name, function in rewards.functions.items():
        if getattr(function, "func", function) is reinforcement_rewards.exact:
            rewards.functions[name] = functools.partial(verdict, task)
    rewards.bind(None, ["id", "label", "prompt"])
    rows = prepared.rows[task.train]
    place = {row: i for i, row in enumerate(rows["id"])}

    def judge(completions: list[str], ids: list[int], some: Rewards) -> NDArray[Any]:
        return some(completions, columns(task, rows[[place[row] for row in ids]]))

    return judge


def verdict(
    task: Generation, completions: list[str], *, label: list[str], **columns: Any
) -> list[float]:
    """1 where the task takes the completion's answer for the right one, else 0."""
    pairs = zip(completions, label, strict=True)
    return [float(task.judge(task.extract(text), right)) for text, right in pairs]


def _unsmoothed(prepared: Prepared) -> None:
    if prepared.args.label_smoothing_factor:
        raise UserError("trainer.label_smoothing_factor: mode=rl has no cross-entropy to smooth")


def columns(task: Task, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What rewards are given of some rows."""
    if isinstance(task, Generation):
        return {name: rows[name] for name in ("prompt", "label", "id")}
    assert isinstance(task, Classification)
    texts = zip(task.text_columns, task.text, strict=True)
    given = {name: rows[own] for own, name in texts}
    return given | {"id": rows["id"], "label": [task.names[label] for label in rows["labels"]]}


def measure(
    prepared: Prepared, rewards: Rewards, judge: Any, temperature: float, count: int
) -> dict[str, Any]:
    """The model before training: scores of the evaluation splits, rewards of its own answers."""
    found = _labels if isinstance(prepared.task, Classification) else _texts
    splits, values = found(prepared, rewards, judge, temperature, count)
    facts = grpo.told(values, rewards, count)
    reward = {name: None if math.isnan(fact) else fact for name, fact in facts.items()}
    about = {"split": prepared.task.train, "n": len(values) // count}
    return {"splits": splits, "reward": about | reward}


def _labels(
    prepared: Prepared, rewards: Rewards, judge: Judge, temperature: float, count: int
) -> tuple[dict[str, Any], NDArray[Any]]:
    """A classifier's scores, and the rewards of labels drawn for some training rows."""
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
    return splits, np.concatenate(group)


def _texts(
    prepared: Prepared, rewards: Rewards, judge: TextJudge, temperature: float, count: int
) -> tuple[dict[str, Any], NDArray[Any]]:
    """A language model's scores, and the rewards of texts drawn after some training prompts."""
    task, args = prepared.task, prepared.args
    rows, tokenizer = prepared.splits[task.train], prepared.tokenizer
    reader = Trainer(prepared.model, args, eval_dataset=rows, processing_class=tokenizer)
    few = rows.select(np.random.default_rng(args.seed).permutation(len(rows))[:WRITTEN])
    longest = np.argsort(np.negative(few["prompt_length"]), kind="stable")
    groups = few.select(np.repeat(longest, count))
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        drawn = decoding.generate(reader, groups, task.sampled() | {"temperature": temperature})
    values = judge(drawn, list(groups["id"]), rewards)  # what is wrong with a reward shows early
    return {s: task.examine(reader, prepared.splits[s])[0] for s in task.evaluation}, values


def announce(prepared: Prepared, start: dict[str, Any], gate: bool) -> None:
    """Say where training starts; raise `UserError` when it could not move from there."""
    task, reward, split = prepared.task, start["reward"], prepared.task.evaluation[0]
    value, beside = start["splits"][split][task.headline], ""
    if isinstance(task, Classification):
        labels = np.asarray(prepared.rows[split]["labels"])
        least = task.judge(teacher.commonest(labels, task), labels)[task.headline]
        beside = f" (commonest answer: {least:.4f})"
    log.info("start   %s %.4f on %s%s", task.headline, value, split, beside)
    log.info("reward  %s", words(reward))
    if beside and not (value > least if task.greater_is_better else value < least):
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
