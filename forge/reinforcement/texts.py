"""The policy of a language model: texts, drawn token by token; trained through TRL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from forge.data.sources import Columns
from forge.errors import needs
from forge.reinforcement import rewards
from forge.reinforcement.grpo import Settings
from forge.reinforcement.policy import Policy
from forge.reinforcement.rewards import Floats, Rewards
from forge.tasks import decoding
from forge.tasks.answer import Scores
from forge.tasks.decoding import Reader
from forge.tasks.task import Task
from forge.training.trainer import Ready

SAMPLED = 32  # training prompts whose answers are drawn beforehand


class Texts(Policy):
    """Draws texts; `exact` is the task's own verdict."""

    def bind(self) -> None:
        prepared, written = self.prepared, self.task.written
        split = prepared.splits[self.task.train]
        decoding.check_room(split, written.max_new_tokens, prepared.model.config)
        functions = self.rewards.functions
        for name, function in functions.items():
            if getattr(function, "func", function) is rewards.exact:
                functions[name] = partial(verdict, self.task)
        self.rewards.bind(None, ["id", "label", "prompt"])
        self.labels = dict(zip(split["id"], split["label"], strict=True))

    def columns(self, rows: Columns) -> Columns:
        labels = [self.labels[row] for row in rows["id"]]
        return {"prompt": rows["prompt"], "label": labels, "id": rows["id"]}

    def judge(self, completions: list[str], ids: list[int], some: Rewards) -> Floats:
        """Some rewards [N, rewards] of completions to the rows with these ids, NaN for none."""
        return some(completions, self.columns_of(ids))

    def _reader(self) -> Reader:
        prepared = self.prepared
        torch.nn.Module.to(prepared.model, prepared.args.device)
        return Reader.by(prepared.model, prepared.processor, prepared.args)

    def sample(self, temperature: float, count: int) -> Floats:
        rows, seed = self.prepared.splits[self.task.train], self.prepared.args.seed
        few = rows.select(np.random.default_rng(seed).permutation(len(rows))[:SAMPLED])
        longest = np.argsort(np.negative(few["prompt_length"]), kind="stable")
        groups = few.select(np.repeat(longest, count))
        settings = self.task.written.sampled() | {"temperature": temperature}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            written = decoding.generate(self._reader(), groups, settings)
        drawn = [completion.text for completion in written]
        return self.judge(drawn, list(groups["id"]), self.rewards)

    def evaluate(self) -> dict[str, Scores]:
        reader, splits = self._reader(), self.prepared.splits
        return {
            split: self.task.written.evaluation(reader, splits[split]).scores
            for split in self.task.evaluation
        }

    def baseline(self, split: str) -> None:
        return None

    def ready(self, settings: Settings, texts: Mapping[str, object], gate: bool) -> Ready:
        with needs("rl", "mode=rl on a language model"):
            from forge.reinforcement import trl_grpo
            from forge.training import trl
        prepared, given = self.prepared, {k: v for k, v in texts.items() if v is not None}
        split = prepared.splits[self.task.train]
        tokens = self.task.written.max_new_tokens
        args = trl_grpo.arguments(prepared.args, tokens, **vars(settings), **given)
        trl.check_rows(split, (args.generation_batch_size or 0) // settings.num_generations)
        trl.check_padding(split, prepared.model, args.device)
        start = self.start(settings, gate)
        arguments: dict[str, Any] = {**prepared.trainer_arguments(), "args": args}
        made = trl_grpo.LanguageGRPO(
            rewards=self.rewards, judge=self.judge, columns_of=self.columns_of, **arguments
        )
        return Ready(made, {"start": start}, {"start": start})


def verdict(
    task: Task, completions: list[str], *, label: list[str], **columns: object
) -> list[float]:
    """1 where the task takes the completion's answer for the right one, else 0."""
    written, pairs = task.written, zip(completions, label, strict=True)
    return [float(written.is_right(written.extract(text), right)) for text, right in pairs]
