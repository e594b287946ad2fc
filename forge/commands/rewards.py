"""`python -m forge rewards`: are the rewards right, do they hold, and can GRPO learn from them?

Runs the rewards of a config on cases with known values, on odd input, and on answers that the
starting model draws.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
import yaml

from forge.config import compose as config_compose
from forge.config import schema
from forge.config.check import build
from forge.config.compose import CONF
from forge.config.schema import Config, Node
from forge.data.sources import Row
from forge.errors import UserError, did_you_mean, one_line
from forge.reinforcement.rewards import Rewards

if TYPE_CHECKING:
    from forge.reinforcement.policy import Start
    from forge.tasks.task import Task

LONG = 100_000  # characters
ODD = {
    "empty": "",
    "blank": " \n\t",
    "very long": "1" * LONG,
    "many words": "word " * (LONG // 5),
    "unicode": "naïve 数学 ١٢ 🙂 e\u0301\u200d\x00",
    "markup": "<think></think> \\boxed{1/0} ((( [a-z]+",
}
WRONG = {"null": None, "a number": 7, "a list": ["a"]}


@dataclass
class Finding:
    """What one reward did on one input; `problem` is None when that is as it should be."""

    part: str
    reward: str
    input: str
    value: float | None
    problem: str | None


def main(overrides: list[str], cases: Path | None, as_json: bool) -> int:
    """Print what was found; 1 when a case failed, a reward broke, or nothing can be learnt."""
    from forge.training.arguments import check_all

    config = check_all(composed(overrides))
    mode = build(config.mode, "mode").keywords
    rewards = Rewards(mode.get("reward") or {}, mode.get("reward_weights") or {})
    with quiet():
        start, row = survey(config, rewards, mode)
    findings = [*run_cases(rewards, read_cases(cases, rewards), row)] if cases else []
    findings += stress(rewards, row)
    still = start["reward"]["frac_reward_zero_std"] == 1
    if as_json:
        print(json.dumps({"start": start, "findings": [vars(f) for f in findings]}, indent=2))
    else:
        print("\n".join(lines(findings, start, still)))
    return int(still or any(f.problem for f in findings))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings and bars."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def composed(overrides: list[str]) -> Config:
    """The config of `python launch.py mode=rl OVERRIDES`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    config_compose.register()
    arguments = [
        *([] if any(w.startswith("mode=") for w in overrides) else ["mode=rl"]),
        *overrides,
    ]
    if GlobalHydra.instance().is_initialized():
        config = schema.to_config(compose("config", arguments))
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = schema.to_config(compose("config", arguments))
    if "num_generations" not in config.mode:
        raise UserError("mode: it has no rewards to look at; leave mode= out, or set mode=rl")
    return config


class Case(TypedDict):
    """A line of a user's own cases."""

    completion: str
    columns: NotRequired[Row]
    expected: dict[str, float | None]  # by reward


def survey(config: Config, rewards: Rewards, mode: Node) -> tuple[Start, Row]:
    """Where training would start, as mode=rl measures it, and the columns of one row."""
    from forge.modes import rl
    from forge.training.arguments import training_arguments
    from forge.training.preparation import prepare

    task: Task = build(config.task, "task")
    with tempfile.TemporaryDirectory() as scratch:
        args = training_arguments(config, task, Path(scratch))
        prepared = prepare(config, task, args, task.load())
        policy = rl.policy(prepared, rewards)
        start = policy.measure(mode["temperature"], mode["num_generations"])
    columns = policy.columns(policy.rows[:1])
    return start, {name: values[0] for name, values in columns.items()}


def read_cases(path: Path, rewards: Rewards) -> list[Case]:
    """A list of {completion, columns, expected}; `expected` names rewards and their values."""
    try:
        cases = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--cases={path}: {one_line(str(error))[:200]}") from error
    form = "completion: TEXT, columns: {label: TEXT, …}, expected: {REWARD: NUMBER or null}"
    for i, case in enumerate(cases if isinstance(cases, list) else [None]):
        if not isinstance(case, dict) or {"completion", "expected"} - case.keys():
            raise UserError(f"--cases={path}: case {i} is not of the form {form}")
        for name in case["expected"]:
            if name not in rewards.functions:
                hint = did_you_mean(name, rewards.functions)
                raise UserError(f"--cases={path}: case {i}: no reward {name} is chosen{hint}")
    return list(cases)


def run_cases(rewards: Rewards, cases: list[Case], row: Row) -> list[Finding]:
    """Each case against its expected values; columns not given are those of `row`."""
    findings = []
    for case in cases:
        columns = row | {"id": "case"} | case.get("columns", {})
        for name, expected in case["expected"].items():
            value, problem = _try(rewards, name, case["completion"], columns)
            if problem is None and not _same(value, expected):
                problem = f"expected {expected}"
            findings.append(Finding("case", name, _short(case["completion"]), value, problem))
    return findings


def stress(rewards: Rewards, row: Row) -> list[Finding]:
    """Odd completions, and columns of the wrong type, which a reward may refuse in words.

    A reward that only knows labels (it has `bind`) is given labels and odd texts around them.
    """
    findings = []
    for name, function in rewards.functions.items():
        for what, completion in ODD.items():
            columns = row
            if hasattr(function, "bind"):
                columns = row | {k: completion for k in row if k not in ("id", "label")}
                completion = row["label"]
            findings.append(
                Finding("stress", name, what, *_try(rewards, name, completion, columns))
            )
        for what, wrong in WRONG.items():
            columns = row | {key: wrong for key in row if key != "id"}
            value, problem = _try(rewards, name, row.get("label", "text"), columns)
            refused = f"{what} is refused: {problem}" if problem else what
            findings.append(Finding("wrong type", name, refused, value, None))
    return findings


def _try(
    rewards: Rewards, name: str, completion: str, columns: Row
) -> tuple[float | None, str | None]:
    """One reward's value for one answer, or what is wrong with it."""
    one = Rewards({name: rewards.functions[name]}, {})
    try:
        value = one([completion], {key: [v] for key, v in columns.items()}).item()
    except UserError as error:
        return None, str(error).partition(": ")[2]
    return (None if np.isnan(value) else value), None


def _same(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return bool(np.isclose(value, float(expected), atol=1e-6))


def _short(text: str) -> str:
    return repr(text if len(text) < 40 else f"{text[:37]}…")


def lines(findings: list[Finding], start: Start, still: bool) -> list[str]:
    """What was found, for a terminal."""
    from forge.reinforcement.policy import CONSTANT, describe

    lines = []
    for part in ("case", "stress", "wrong type"):
        those = [f for f in findings if f.part == part]
        bad = [f for f in those if f.problem]
        if those:
            lines.append(f"{part:<10} {len(those) - len(bad)} of {len(those)} as they should be")
        for f in those:
            if f.problem or part == "case":
                value = "does not apply" if f.value is None else f"{f.value:g}"
                lines.append(f"  {f.reward:<10} {f.input}: {f.problem or value}")
            elif part == "wrong type" and f.value is None:
                lines.append(f"  {f.reward:<10} {f.input}")
    lines.append(f"{'start':<10} {describe(start['reward'])}")
    if still:
        lines.append(f"{'':<10} {CONSTANT}")
    return lines
