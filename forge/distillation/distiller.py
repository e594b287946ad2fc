"""The trainer that blends the task loss with losses to a teacher's answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Unpack

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback
from transformers.utils.generic import ModelOutput

from forge import ranks
from forge.distillation.losses import Batch, Loss, Outputs, capture_qkv
from forge.records.files import Json, follow_umask
from forge.tasks.decisions import Decisions
from forge.training.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forge.training.preparation import TrainerKeywords

log = logging.getLogger(__name__)
PROJECTIONS = "losses.safetensors"  # a checkpoint's file of the losses' own weights
TEACHER = "teacher_"  # what the names of a batch's columns for the teachers alone begin with


@dataclass(frozen=True)
class Watched:
    """What the losses read of a model beside its logits."""

    qkv: dict[str, dict[str, Tensor]]  # filled by its forward pass, by loss
    keywords: dict[str, bool]  # that its forward pass is called with

    def outputs(self, logits: Tensor, given: ModelOutput) -> Outputs:
        """What the losses read, once the model's forward pass has `given` its outputs."""
        return Outputs(logits, given.get("hidden_states") or (), captured=self.qkv)


# `Distiller.watch`
Watch: TypeAlias = "Callable[[PreTrainedModel, str, ExitStack], Watched]"
# Called with a batch: a teacher's outputs for it
Answers: TypeAlias = Callable[[Mapping[str, Tensor], Watch], Outputs]


class OwnWeights(TrainerCallback):
    """Does for the losses' own weights what transformers does for the model's: gradients emptied
    before each step, averaged over the processes after it."""

    def __init__(self, weights: nn.Module) -> None:
        self.weights = weights

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self.weights.zero_grad()

    def on_pre_optimizer_step(self, args: TrainingArguments, *a: object, **kwargs: object) -> None:
        if args.world_size > 1:
            for parameter in self.weights.parameters():
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= args.world_size


class Distiller(Trainer):
    """Blends the task loss with losses to a teacher's answers.

    Logged steps carry the mean of each weighted term, which add up to the loss; now and then also
    each term's share of the gradient norm.
    """

    EVERY = 200  # steps between two measurements of the shares, which cost a backward pass a term

    def __init__(
        self,
        *,
        alpha: float,
        losses: dict[str, Loss],
        teacher: Answers,
        **kwargs: Unpack[TrainerKeywords],
    ) -> None:
        # The losses' own weights (projections) train with the student and are not saved with it.
        self.alpha, self.teacher = alpha, teacher
        self.sums: dict[str, Tensor] = {}  # of each term since the last log
        self.batches, self.shares = 0.0, {}  # type: float, dict[str, float]
        super().__init__(**kwargs)
        self.losses, self.weights = losses, nn.ModuleDict(losses).to(self.args.device)
        self.add_callback(OwnWeights(self.weights))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if extra := list(self.weights.parameters()):
            optimizer.add_param_group({"params": extra, "weight_decay": self.args.weight_decay})
        return optimizer

    def save_extra(self, folder: Path) -> None:
        super().save_extra(folder)
        weights = self.weights.state_dict()  # the same in all ranks
        if weights and not ranks.rank():
            save_file(weights, folder / PROJECTIONS)
            follow_umask(folder / PROJECTIONS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weights.state_dict():
            self.weights.load_state_dict(load_file(Path(resume_from_checkpoint) / PROJECTIONS))

    def progress(self) -> dict[str, object]:
        sums = {name: float(term) for name, term in self.sums.items()}
        ours = {"sums": sums, "batches": self.batches, "shares": self.shares}
        return super().progress() | ours

    def restore(self, progress: Json) -> None:
        super().restore(progress)
        device = self.args.device
        self.sums = {name: torch.tensor(s, device=device) for name, s in progress["sums"].items()}
        self.batches, self.shares = progress["batches"], progress["shares"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with ExitStack() as stack:
            watched = self.watch(self.accelerator.unwrap_model(model), "layer", stack)
            theirs = self.teacher(inputs, self.watch)
            inputs = {k: v for k, v in inputs.items() if not k.startswith(TEACHER)}
            decisions, outputs = self.decide(model, inputs, **watched.keywords)
        ours = watched.outputs(decisions.logits, outputs)
        terms = {}
        if self.alpha < 1:  # at 1 the labels are not read
            task_loss = self.task_loss(decisions, inputs, num_items_in_batch)
            terms["task"] = (1 - self.alpha) * task_loss
        ours, theirs, batch = self.compared(ours, theirs, decisions, inputs)
        share = self._share(len(ours.logits), num_items_in_batch)
        for name, loss in self.losses.items():
            value = loss(ours.of(name), theirs.of(name), batch)
            terms[name] = self.alpha * loss.weight * share * value
        self._log_terms(terms, model)
        blended = reduce(torch.add, terms.values())
        return (blended, outputs) if return_outputs else blended

    def read_by_loss(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        with ExitStack() as stack:
            watched = self.watch(self.model, "layer", stack)
            decisions, outputs = self.decide(self.model, batch, **watched.keywords)
        ours = watched.outputs(decisions.logits, outputs)
        read = [part for name, loss in self.losses.items() for part in loss.reads(ours.of(name))]
        return ours.logits, [*read, *([ours.logits] if self.alpha < 1 else [])]

    def compared(
        self, ours: Outputs, theirs: Outputs, decisions: Decisions, inputs: Batch
    ) -> tuple[Outputs, Outputs, Batch]:
        """What the losses read: student's and teacher's outputs for decisions, and the batch."""
        decisions, answer = decisions.packed(), self.task.answer
        ours = replace(ours, logits=decisions.logits)
        theirs = replace(theirs, logits=answer.decisions(theirs.logits, inputs).packed().logits)
        batch = {} if decisions.labels is None else {"labels": decisions.labels}
        mask = self.task.input.mask(inputs)
        if mask is None and (states := [*ours.hidden_states, *_queries(ours.captured)]):
            mask = torch.ones(states[0].shape[:2], dtype=torch.long, device=states[0].device)
        return ours, theirs, batch if mask is None else batch | {"attention_mask": mask}

    def _share(self, count: int, items: Tensor | int | None) -> Tensor | float:
        """What makes a mean over `count` decisions its part of the mean over the step's."""
        return 1 if items is None else count * self.rank_share / torch.as_tensor(items).expand(2)[0]

    def watch(self, model: PreTrainedModel, layer: str, stack: ExitStack) -> Watched:
        """Capture what the losses read beside logits until `stack` is closed; `layer` is the
        losses' attribute that names the model's layer."""
        needs = {need for loss in self.losses.values() for need in loss.needs}
        qkv = {
            name: stack.enter_context(capture_qkv(model, getattr(loss, layer)))
            for name, loss in self.losses.items()
            if "qkv" in loss.needs
        }
        return Watched(qkv, {"output_hidden_states": True} if "hidden_states" in needs else {})

    def _log_terms(self, terms: dict[str, Tensor], model: nn.Module) -> None:
        """Add up the terms for the next log; measure their shares at the first step and then."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term.detach()
        self.batches += 1 / self.current_gradient_accumulation_steps  # a loss is a part of a step's
        step = self.state.global_step
        if step % self.EVERY or step == self.shares.get("step"):
            return
        self.shares = {"step": step, **self._shares(terms, model)}
        if step == 0:
            shares = (f"{name} {self.shares[f'gradient_share_{name}']:.0%}" for name in terms)
            log.info(
                "loss    shares of the gradient norm in the first batch: %s", ", ".join(shares)
            )

    def _shares(self, terms: dict[str, Tensor], model: nn.Module) -> dict[str, float]:
        """Each weighted term's share of the summed gradient norms over the student."""
        weights = [p for p in model.parameters() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            norms[name] = (
                sum(float(g.float().square().sum()) for g in grads if g is not None) ** 0.5
            )
        total = sum(norms.values()) or 1.0
        return {f"gradient_share_{name}": norm / total for name, norm in norms.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.batches:
            for name, term in self.sums.items():
                everyone = ranks.all_reduce_sum(float(term), self.args.device)
                logs[f"loss_{name}"] = everyone / (self.batches * ranks.ranks())
            logs |= {name: share for name, share in self.shares.items() if name != "step"}
            self.sums, self.batches = {}, 0
            self.shares = {"step": self.shares["step"]} if "step" in self.shares else {}
        super().log(logs, start_time)


def _queries(captured: Mapping[str, Mapping[str, Tensor]]) -> list[Tensor]:
    """The queries that were captured for each loss."""
    return [qkv["query"] for qkv in captured.values()]
