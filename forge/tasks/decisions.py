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

MASKED = -(2.0**14)  # the logit of an answer that a row does not have: exact in half precision


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


@dataclass(frozen=True)
class Objective:
    """How the cross-entropy of a decision counts.

    `smoothing` (Szegedy et al. 2016): each target is (1 - smoothing) * the label + smoothing *
    uniform. `gamma`: times (1 - p)^gamma, p the probability of the label (Lin et al. 2017, eq. 4).
    `weights`: of each class [C], or, where a row has N decisions, [N, C] (None: 1). The loss of
    an optimizer step is the sum of w * loss over the sum of w, w that of a decision's label.
    """

    smoothing: float = 0.0
    gamma: float = 0.0
    weights: Tensor | None = None

    def weigh(self, labels: Tensor) -> Tensor:
        """The weights [...] of decisions with these labels [...]; 0 where there is none."""
        if self.weights is None:
            return labels.ge(0).float()
        weights = self.weights.to(labels.device)
        weights = weights.expand(*labels.shape, weights.shape[-1])
        chosen = weights.gather(-1, labels.long().clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return chosen * labels.ge(0)


PLAIN = Objective()


def cross_entropy(decisions: Decisions, objective: Objective = PLAIN) -> Tensor:
    """Cross-entropy, summed over what is asked; as torch's where that has the same settings."""
    assert decisions.labels is not None
    logits = decisions.logits.float().view(-1, decisions.logits.shape[-1])
    labels = decisions.labels
    if decisions.asked is not None:
        labels = labels.masked_fill(~decisions.asked, IGNORED)
    of_classes = None  # [C], which torch knows too
    if objective.weights is not None and objective.weights.ndim == 1:
        of_classes = objective.weights.to(logits.device)
    by_torch = objective.weights is None or of_classes is not None
    losses = functional.cross_entropy(
        logits,
        labels.view(-1),
        weight=of_classes,
        ignore_index=IGNORED,
        reduction="none" if objective.gamma or not by_torch else "sum",
        label_smoothing=objective.smoothing,
    )
    if not by_torch:
        losses = losses * objective.weigh(labels).view(-1)
    if objective.gamma:
        losses = losses * _missed(logits, labels.view(-1)) ** objective.gamma
    return losses.sum()


def masked_cross_entropy(decisions: Decisions, objective: Objective = PLAIN) -> Tensor:
    """The same where decisions have columns of their own; label smoothing is over these alone."""
    if not objective.smoothing:
        return cross_entropy(decisions, objective)
    assert decisions.labels is not None
    log_p = decisions.logits.float().log_softmax(-1)
    real = decisions.logits > MASKED / 2
    uniform = -log_p.masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1)
    asked = decisions.labels != IGNORED
    if decisions.asked is not None:
        asked = asked & decisions.asked
    labels = decisions.labels.clamp(min=0)
    own = -log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    losses = (1 - objective.smoothing) * own + objective.smoothing * uniform
    if objective.gamma:
        losses = losses * _missed(decisions.logits.float(), labels) ** objective.gamma
    return losses.masked_fill(~asked, 0).sum()


def _missed(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - p of the labels, never quite 0, where a power below 1 has no gradient."""
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -torch.expm1(log_p).clamp(max=-torch.finfo(log_p.dtype).tiny)


def squared_error(decisions: Decisions) -> Tensor:
    """Squared error of one value each, summed."""
    assert decisions.labels is not None
    values = decisions.logits.squeeze(-1)
    return functional.mse_loss(values, decisions.labels.to(values.dtype), reduction="sum")


def mean(total: Tensor, items: Tensor | int) -> Tensor:
    """A sum over `items`; 0 where there are none, which otherwise gives NaN."""
    count = torch.as_tensor(items, device=total.device)
    return total / count.masked_fill(count == 0, 1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., C] -> [...]; log_target keeps gradients finite."""
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
