"""Decisions: the one form in which losses, teachers and rewards see a batch's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from forge.inputs.input import IGNORED


@dataclass
class Decisions:
    """What a batch's outputs decide: `logits` [..., C] of any leading shape.

    `labels` [...] are the right answers, None without any. `asked` [...] is False where nothing is
    asked (padding, prompts); None: everywhere. Shapes stay as the model gave them: nothing is
    selected by a mask inside a training step.
    """

    logits: Tensor
    labels: Tensor | None
    asked: Tensor | None = None

    def packed(self) -> Decisions:
        """Those that are asked alone: logits [K, C], labels [K]."""
        width = self.logits.shape[-1]
        if self.asked is None:
            labels = None if self.labels is None else self.labels.reshape(-1)
            return Decisions(self.logits.reshape(-1, width), labels)
        labels = None if self.labels is None else self.labels[self.asked]
        return Decisions(self.logits[self.asked], labels)


def places(sizes: Sequence[int], rows: Sequence[int]) -> NDArray[np.int64]:
    """Where the logits of some rows are in those of all rows [K, C], row i having `sizes[i]`."""
    ends = np.cumsum(sizes)
    return np.concatenate([np.arange(ends[i] - sizes[i], ends[i]) for i in rows])


def cross_entropy(decisions: Decisions, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, summed over what is asked.

    With label smoothing (Szegedy et al. 2016) each target is (1 - smoothing) * the label
    + smoothing * uniform, as transformers computes it.
    """
    assert decisions.labels is not None
    logits = decisions.logits.float().view(-1, decisions.logits.shape[-1])
    labels = decisions.labels
    if decisions.asked is not None:
        labels = labels.masked_fill(~decisions.asked, IGNORED)
    labels = labels.view(-1)
    if not smoothing:
        return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    log_probs = -logits.log_softmax(-1)
    left_out = labels.eq(IGNORED).unsqueeze(-1)
    nll = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).masked_fill(left_out, 0.0)
    uniform = log_probs.sum(-1, keepdim=True).masked_fill(left_out, 0.0).sum() / logits.shape[-1]
    return (1 - smoothing) * nll.sum() + smoothing * uniform


def squared_error(decisions: Decisions) -> Tensor:
    """Squared error of one value each, summed."""
    assert decisions.labels is not None
    values = decisions.logits.squeeze(-1)
    return functional.mse_loss(values, decisions.labels.to(values.dtype), reduction="sum")


def mean(total: Tensor, items: Tensor | int) -> Tensor:
    """A sum over `items`; 0 where there are none, which otherwise gives NaN."""
    count = torch.as_tensor(items, device=total.device).clamp(min=1)
    return total / count


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., C] -> [...]; log_target keeps gradients finite."""
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
