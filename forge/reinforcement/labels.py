"""The policy of a classifier: labels for each row, drawn from its probabilities."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed

from forge.data.sources import Columns
from forge.errors import UserError
from forge.inputs.input import pad_multiple
from forge.models.forward import Pass
from forge.reinforcement.grpo import GRPO, Drawn, Settings, draw
from forge.reinforcement.policy import Policy
from forge.reinforcement.rewards import Floats
from forge.tasks.answer import Scores
from forge.training.trainer import Ready

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
SAMPLED = 256  # training rows whose answers are drawn beforehand
BEFORE = 2**31  # as the step of these draws: that of no step
SCALED = (  # by any other reward than exact alone
    "mode.scale_rewards=group: of two labels one is better, and by how much is scaled away; "
    "mode.scale_rewards=batch keeps it"
)


class Labels(Policy):
    """Draws labels."""

    def bind(self) -> None:
        names = list(self.task.head.labels or ())
        own = list(self.task.input.shown(self.rows.select([0])))
        if taken := {"completions", "id", "label"} & set(own):
            raise UserError(
                f"task.text: mode=rl gives rewards a column {taken.pop()} itself; rename the data's"
            )
        self.names, self.shown, self.sizes = names, own, self.task.answer.sizes(self.rows)
        self.rewards.bind(names, ["id", "label", *own], self.task.answer.rewards)

    def columns(self, rows: Columns) -> Columns:
        labels = self.task.answer.references(rows)
        return self.task.input.shown(rows) | {"id": rows["id"], "label": labels}

    def judge(self, labels: Drawn, ids: list[int]) -> Floats:
        """Rewards [B * G, rewards] of labels [B, (K,) G] for the rows with these ids, or NaN."""
        once, count = self.columns_of(ids), range(labels.shape[-1])
        given = {name: [value for value in column for _ in count] for name, column in once.items()}
        answers = np.moveaxis(labels, -1, 1).reshape(len(ids) * len(count), -1).tolist()
        if self.task.answer.alignment == "word":  # without the padding
            wanted = (self.sizes[self.place[row]] for row in ids for _ in count)
            answers = [answer[:size] for answer, size in zip(answers, wanted, strict=True)]
        texts = list(zip(*(given[name] for name in self.shown), strict=True)) or [()] * len(answers)
        pairs = zip(answers, texts, strict=True)
        return self.rewards([self.task.answer.completion(*pair) for pair in pairs], given)

    def sample(self, temperature: float, count: int) -> Floats:
        args, seed = self.prepared.args, self.prepared.args.seed
        few = np.random.default_rng(seed).permutation(len(self.rows))[:SAMPLED]
        rows, size = self.rows.select(few), args.train_batch_size
        answer, ids = self.task.answer, list(rows["id"])
        each = answer.by_row(self._logits(rows), rows)
        logits = [answer.decisions(torch.from_numpy(row), {}).logits for row in each]
        values = []
        for i in range(0, len(ids), size):  # rewards may be of a whole batch
            batch = ids[i : i + size]
            likely = softmax(pad_sequence(logits[i : i + size], True).numpy() / temperature, -1)
            drawn = draw(likely, batch, BEFORE, seed, count)
            values.append(self.judge(drawn, batch))
        return np.concatenate(values)

    def evaluate(self) -> dict[str, Scores]:
        scores: dict[str, Scores] = {}
        for split in self.task.evaluation:
            rows = self.prepared.rows[split]
            labels = self.task.answer.right(rows)
            scores[split] = self.task.judge(self._logits(rows), labels) | {"n": len(rows)}
        return scores

    def _logits(self, rows: Dataset) -> NDArray[np.float32]:
        """The model's logits [rows, labels] before training."""
        prepared, how = self.prepared, Pass.of(self.prepared.args)
        processor, model = prepared.processor, prepared.model.to(how.device)  # type: ignore[arg-type]
        encoded = self.task.encode(rows, processor, prepared.limit, prepared.config.cache_dir)
        collate = self.task.collator(processor, pad_multiple(prepared.args))
        return self.task.logits_of(model, encoded, collate, how)

    def baseline(self, split: str) -> float:
        return self.task.baseline(self.prepared.rows[split], self.prepared.splits[split])

    def ready(self, settings: Settings, texts: Mapping[str, object], gate: bool) -> Ready:
        for name, value in texts.items():
            if value is not None:
                raise UserError(
                    f"mode.{name}={value}: it is for language models; a label is no text"
                )
        start = self.start(settings, gate)
        group = settings.scale_rewards == "group"
        two = len(self.names) == 2 and not self.task.answer.several
        if two and group and [*self.rewards.functions] != ["exact"]:
            log.warning(SCALED)
        set_seed(self.prepared.args.seed)  # whatever came before
        made = GRPO(
            settings=settings,
            rewards=self.rewards,
            judge=self.judge,
            columns_of=self.columns_of,
            **self.prepared.trainer_arguments(),
        )
        return Ready(made, {"start": start}, {"start": start})
