"""What was drawn, as a run keeps it (`forge.records.samples`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forge.data.sources import Columns
from forge.records.samples import LETTERS, Answer, Group
from forge.reinforcement.rewards import Floats, Rewards


def groups(
    columns: Columns, answers: Sequence[str | list[str]], values: Floats, rewards: Rewards,
    advantages: Floats, lengths: Sequence[int], kl: Sequence[float] | None = None,
) -> list[Group]:  # fmt: skip
    """The groups of `columns`' B rows, from answers [B * G], rewards [B * G, rewards] and the rest
    [B * G] in that order."""
    ids, total = columns["id"], rewards.total(values)
    size = len(answers) // len(ids)
    shown = {n: c for n, c in columns.items() if n not in ("id", "label")}
    drawn: list[Answer] = [
        {
            "text": _named(answer)[:LETTERS],
            "rewards": dict(zip(rewards.functions, map(_number, values[i]), strict=True)),
            "reward": _number(total[i]),
            "advantage": round(float(advantages[i]), 6),
            "length": lengths[i],
            "kl": None if kl is None else round(kl[i], 6),
        }
        for i, answer in enumerate(answers)
    ]
    return [
        {
            "id": int(row),
            "prompt": {name: str(column[b])[:LETTERS] for name, column in shown.items()},
            "label": _named(columns["label"][b]),
            "answers": drawn[b * size : (b + 1) * size],
        }
        for b, row in enumerate(ids)
    ]


def _number(value: np.floating | float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def _named(label: object) -> str:
    """A text, a label, or a set of labels."""
    return (", ".join(map(str, label)) or "none") if isinstance(label, list) else str(label)
