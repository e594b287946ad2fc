"""Distillation losses: one class per loss, the mathematics in pure functions above them.

Each loss is called as `loss(student, teacher, batch)` with the `Outputs` of both and the batch
("labels" [B], "attention_mask" [B, L]); it returns a scalar, the mean over the examples. `needs`
says what it reads, `same_tokens` that it compares positions, `bind` is called with both model
configs before the first step, `weight` is the caller's to apply. All upcast to fp32 and stay in log
space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forge.tasks.decisions import kl

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Batch = Mapping[str, Tensor]
Pairs = Sequence[Sequence[int]]


def divergence_of(p: Tensor, q: Tensor, name: str, skew: float) -> Tensor:
    """The named divergence of teacher p and student q, log-probabilities [B, C] -> [B]."""
    if name == "forward":
        return kl(p, q)
    if name == "reverse":
        return kl(q, p)
    share = skew if name == "skew" else 0.5
    mixed = torch.logaddexp(p + math.log(share), q + math.log1p(-share))
    return kl(p, mixed) if name == "skew" else 0.5 * (kl(p, mixed) + kl(q, mixed))


def split_target(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, C] -> target against the rest [B, 2], and among the rest [B, C - 1].

    DKD's b and p-hat (Zhao et al. 2022, section 3.1); gathered, so no large negative constant.
    """
    labels = labels.long().unsqueeze(1)
    columns = torch.arange(log_probs.shape[1] - 1, device=labels.device)
    rest = log_probs.gather(1, columns + (columns >= labels))
    total = rest.logsumexp(1, keepdim=True)
    return torch.cat([log_probs.gather(1, labels), total], 1), rest - total


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation along the last axis, [..., N] -> [...]; 0 where one side is constant."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    # a smaller norm is mostly rounding, and its gradient, 1 / norm, would overflow fp16
    return F.cosine_similarity(a, b, dim=-1, eps=1e-4)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B, L] over each example's real tokens, then over the examples, long or short."""
    real = mask.bool()
    return (values.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)).mean()


def distance_of(a: Tensor, b: Tensor, name: str) -> Tensor:
    """[B, L, D] -> [B, L]: 1 - cos, or the mean squared difference over the width."""
    return 1 - F.cosine_similarity(a, b, dim=-1) if name == "cosine" else (a - b).square().mean(-1)


def relations(states: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Log self-attention relations of one of Q, K, V: [B, L, D] -> [B, heads, L, L].

    Wang et al. 2021 (MiniLMv2), eq. 6-7: log_softmax(X X^T / sqrt(D / heads)) over the real keys.
    Padded keys come back as 0, so that they add nothing to a KL.
    """
    with torch.autocast(states.device.type, enabled=False):
        x = states.float().view(*states.shape[:2], heads, -1).transpose(1, 2)
        scores: Tensor = x @ x.transpose(-1, -2) / math.sqrt(x.shape[-1])
    padding = ~mask.bool()[:, None, None, :]
    return scores.masked_fill(padding, -math.inf).log_softmax(-1).masked_fill(padding, 0.0)


def _require(ok: bool, problem: str) -> None:
    if not ok:
        raise ValueError(problem)


def _layer(index: int, count: int, owner: str) -> int:
    known = f"the {owner} has {count}, choose one of {-count}..{count - 1}"  # as in a list
    _require(-count <= index < count, f"layer {index}: does not exist; {known}")
    return index % count


def _logits(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Both logits [B, C] in fp32, the teacher's detached."""
    s, t = student.logits.float(), teacher.logits.detach().float()
    shapes = f"student {list(s.shape)}, teacher {list(t.shape)}: must be the same [batch, classes]"
    _require(s.ndim == 2 and s.shape == t.shape, f"logits of {shapes}; check num_labels of both")
    return s, t


def _log_probs(student: Outputs, teacher: Outputs, temperature: float) -> tuple[Tensor, Tensor]:
    """Student's and teacher's log_softmax(logits / temperature), [B, C] each, C > 1."""
    s, t = _logits(student, teacher)
    _require(s.shape[1] > 1, "logits: one column, its softmax is always 1; use mode/loss=mse")
    return (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)


@dataclass
class Outputs:
    """What a loss reads of a model: `logits` [B, C], `hidden_states` of each layer [B, L, D], and
    `qkv`, queries, keys and values [B, L, D] of the layer that it names (`capture_qkv`)."""

    logits: Tensor
    hidden_states: Sequence[Tensor] = ()
    qkv: Mapping[str, Tensor] = field(default_factory=dict)
    captured: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # `qkv` by loss

    def of(self, loss: str) -> Outputs:
        """The same with what was captured for one loss."""
        return replace(self, qkv=self.captured.get(loss, {}))


class Loss(nn.Module):
    """What all losses share: the weight, and nothing to bind."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    same_tokens: ClassVar[bool] = False

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = self._setting("weight", weight)

    def _setting(self, name: str, value: float, positive: bool = False) -> float:
        bound = "above 0" if positive else "0 or more"
        ok = 0 <= value < math.inf and (value > 0 or not positive)
        _require(ok, f"{name}={value}: must be {bound} and finite; try {name}=1")
        return value

    def bind(self, student_config: PretrainedConfig, teacher_config: PretrainedConfig) -> None:
        """Prepare for two models, refuse what cannot be; most losses need nothing."""

    def reads(self, student: Outputs) -> list[Tensor]:
        """Of a student's outputs, what this loss is computed from."""
        return [student.logits]


class KL(Loss):
    """Divergence of the softened predictions, times T^2 (Hinton et al. 2015, section 2).

    p = softmax(teacher / T), q = softmax(student / T). forward: KL(p || q). reverse: KL(q || p).
    jsd: (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: symmetric, at most ln 2 (times T^2).
    skew: KL(p || skew * p + (1 - skew) * q), the skew KL of DistiLLM (Ko et al. 2024, section 3.1).
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        temperature: float = 2.0,
        divergence: str = "forward",
        skew: float = 0.1,
    ) -> None:
        super().__init__(weight=weight)
        known = ("forward", "reverse", "jsd", "skew")
        _require(divergence in known, f"divergence={divergence}: unknown; choose one of {known}")
        _require(0 < skew < 1, f"skew={skew}: must be above 0 (else use forward) and below 1")
        self.temperature = self._setting("temperature", temperature, positive=True)
        self.divergence, self.skew = divergence, skew

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        q, p = _log_probs(student, teacher, self.temperature)
        return self.temperature**2 * divergence_of(p, q, self.divergence, self.skew).mean()


class MSE(Loss):
    """Mean squared error of the logits (Ba & Caruana 2014): over classes, then over examples.

    With one logit (regression) it is the squared distance to the teacher's prediction, in units of
    `std`, the standard deviation that the task's values are standardised by.
    """

    std = 1.0

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return F.mse_loss(*_logits(student, teacher)) / self.std**2


class DKD(Loss):
    """Decoupled knowledge distillation, times T^2 (Zhao et al. 2022, eq. 7).

    alpha * TCKD (label against the rest) + beta * NCKD (among the rest). KL is the case alpha = 1,
    beta = 1 - p(label) of the teacher (eq. 6). With two classes NCKD is 0. Needs labels.
    """

    def __init__(
        self, *, weight: float = 1, temperature: float = 4, alpha: float = 1, beta: float = 8
    ) -> None:
        super().__init__(weight=weight)
        self.temperature = self._setting("temperature", temperature, positive=True)
        self.alpha, self.beta = self._setting("alpha", alpha), self._setting("beta", beta)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        _require("labels" in batch, "labels: DKD needs them, the batch has none; use mode/loss=kl")
        q, p = _log_probs(student, teacher, self.temperature)
        q_target, q_rest = split_target(q, batch["labels"])
        p_target, p_rest = split_target(p, batch["labels"])
        loss = self.alpha * kl(p_target, q_target) + self.beta * kl(p_rest, q_rest)
        return self.temperature**2 * loss.mean()


class DIST(Loss):
    """Relations instead of values, times T^2 (Huang et al. 2022, eq. 8-10; T^2: authors' code).

    beta * (1 - correlation within each example, over the classes)
    + gamma * (1 - correlation within each class, over the batch).
    Over two points it is +-1 and teaches nothing: of two classes only the second part learns, of
    one example there is none.
    """

    def __init__(
        self, *, weight: float = 1, temperature: float = 1, beta: float = 1, gamma: float = 1
    ) -> None:
        super().__init__(weight=weight)
        self.temperature = self._setting("temperature", temperature, positive=True)
        self.beta, self.gamma = self._setting("beta", beta), self._setting("gamma", gamma)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        q, p = (x.exp() for x in _log_probs(student, teacher, self.temperature))
        loss = self.beta * (1 - correlation(q, p).mean())
        if len(q) > 1:
            loss = loss + self.gamma * (1 - correlation(q.T, p.T).mean())
        return self.temperature**2 * loss


class Hidden(Loss):
    """Distance of hidden states, averaged over the layer pairs; padding left out (`token_mean`).

    layers: [student, teacher] pairs, 0 = the embeddings, -1 = the last. None: every student layer i
    with the teacher's round(i * depth / student's depth), PKD-skip.
    distance: mse, the mean over the width (Jiao et al. 2020, TinyBERT, eq. 8-9, there summed over
    layers), or cosine, 1 - cos, half of PKD's normalised squared distance (Sun et al. 2019, eq. 7,
    there on [CLS] only). Where the widths differ, each pair learns a projection (TinyBERT's W).
    """

    needs = frozenset({"hidden_states"})
    same_tokens = True

    def __init__(
        self, *, weight: float = 1, layers: Pairs | None = None, distance: str = "mse"
    ) -> None:
        super().__init__(weight=weight)
        ok = layers is None or (len(layers) > 0 and all(len(pair) == 2 for pair in layers))
        _require(ok, f"layers={layers}: must be pairs as [[0,0],[6,12]]; or null for all layers")
        _require(distance in ("mse", "cosine"), f"distance={distance}: unknown; use mse or cosine")
        self.layers, self.distance = layers, distance
        self.pairs: list[tuple[int, int]] = []
        self.projections = nn.ParameterList()

    def bind(self, student_config: PretrainedConfig, teacher_config: PretrainedConfig) -> None:
        """Resolve the layer pairs; create the projections if the widths differ."""
        s, t = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        pairs = self.layers or [(i, round(i * t / s)) for i in range(s + 1)]
        self.pairs = [(_layer(i, s + 1, "student"), _layer(j, t + 1, "teacher")) for i, j in pairs]
        widths = student_config.hidden_size, teacher_config.hidden_size
        new = self.pairs if widths[0] != widths[1] else []
        self.projections = nn.ParameterList(nn.Linear(*widths, bias=False).weight for _ in new)

    def reads(self, student: Outputs) -> list[Tensor]:
        states = student.hidden_states
        return [states[layer] for layer, _ in self.pairs] if states else []

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        _require(bool(self.pairs), "hidden: not bound; call bind(student.config, teacher.config)")
        parts, mask = [], batch["attention_mask"]
        for i, (s, t) in enumerate(self.pairs):
            ours, theirs = student.hidden_states[s].float(), teacher.hidden_states[t].detach()
            if self.projections:
                with torch.autocast(mask.device.type, enabled=False):
                    ours = F.linear(ours, self.projections[i].float())
            parts.append(token_mean(distance_of(ours, theirs.float(), self.distance), mask))
        return torch.stack(parts).mean()


class Attention(Loss):
    """Self-attention relations Q-Q, K-K, V-V of one layer (Wang et al. 2021, MiniLMv2, eq. 5-7).

    KL(teacher || student) of `relations`: mean over heads and real queries of each example, mean
    over examples, sum over Q, K, V. No projection: the widths may differ. relation_heads (None: the
    student's attention heads) must divide both widths. `capture_qkv` fills `.qkv` of both outputs.
    """

    needs = frozenset({"qkv"})
    same_tokens = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        layer: int = -1,
        teacher_layer: int = -1,
        relation_heads: int | None = None,
    ) -> None:
        super().__init__(weight=weight)
        given = 1 if relation_heads is None else relation_heads
        self._setting("relation_heads", given, positive=True)
        self.layer, self.teacher_layer, self.relation_heads = layer, teacher_layer, relation_heads
        self.heads = relation_heads or 0

    def bind(self, student_config: PretrainedConfig, teacher_config: PretrainedConfig) -> None:
        """Set the number of relation heads; check the layers and the widths."""
        _layer(self.layer, student_config.num_hidden_layers, "student")
        _layer(self.teacher_layer, teacher_config.num_hidden_layers, "teacher")
        self.heads = heads = self.relation_heads or int(student_config.num_attention_heads)
        s, t = student_config.hidden_size, teacher_config.hidden_size
        rule = f"must divide both widths, {s} and {t}; try {math.gcd(s, t, heads)}"
        _require(s % heads == t % heads == 0, f"relation_heads={heads}: {rule}")

    def reads(self, student: Outputs) -> list[Tensor]:
        return list(student.qkv.values())

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        _require(self.heads > 0, "attention: not bound; call bind(student.config, teacher.config)")
        parts, mask = [], batch["attention_mask"]
        for name in ("query", "key", "value"):
            q = relations(student.qkv[name], self.heads, mask)
            p = relations(teacher.qkv[name].detach(), self.heads, mask)
            parts.append(token_mean(kl(p, q).mean(1), mask))
        return torch.stack(parts).sum()


_NAMES = (
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa v2, v3
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # MPNet
    ("Wqkv",),  # ModernBERT: the three in one
)


def _projections(model: nn.Module) -> list[list[nn.Module]]:
    """The query, key and value projections (or the one fused) of each attention layer."""
    modules, layers = dict(model.named_modules()), []
    for path in modules:
        parent = path.rpartition(".")[0]
        for names in _NAMES:
            paths = [f"{parent}.{name}" for name in names]
            if path == paths[0] and modules.keys() >= set(paths):
                layers.append([modules[each] for each in paths])
    return layers


@contextmanager
def capture_qkv(model: PreTrainedModel, layer: int = -1) -> Iterator[dict[str, Tensor]]:
    """Collect queries, keys, values [B, L, D] of one layer in every forward inside the block.

    The dict is refilled by each forward of `model`. Hooks on the projections, so any attention
    kernel will do; for rotary models (ModernBERT) it sees them before the rotation. The first call
    of a forward counts: DeBERTa calls a projection again on positions, checkpointing in backward.
    """
    layers, depth = _projections(model), model.config.num_hidden_layers
    what = f"found {len(layers)} layers with query, key and value projections, expected {depth}"
    _require(len(layers) == depth, f"{type(model).__name__}: {what}; use mode/loss=hidden instead")
    seen: dict[str, Tensor] = {}

    def keep(names: Sequence[str], module: nn.Module, inputs: object, output: Tensor) -> None:
        for name, part in zip(names, output.chunk(len(names), -1), strict=True):
            seen.setdefault(name, part)

    modules = layers[_layer(layer, depth, "model")]
    names = [["query"], ["key"], ["value"]] if len(modules) == 3 else [["query", "key", "value"]]
    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(lambda *_: seen.clear()))
        for module, of in zip(modules, names, strict=True):
            hooks.enter_context(module.register_forward_hook(partial(keep, of)))
        yield seen
