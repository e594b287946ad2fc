"""The trainer that blends the task loss with losses to a teacher's answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback

from forge import ranks
from forge.distillation.losses import Loss, capture_qkv
from forge.training.trainer import Trainer

log = logging.getLogger(__name__)


# What the teacher says to a batch, given the batch and `Distiller._watch`
Taught: TypeAlias = Callable[[dict[str, Any], Any], SimpleNamespace]


PROJECTIONS = "losses.safetensors"  # a checkpoint's file of the losses' own weights


class OwnWeights(TrainerCallback):
    """Does for the losses' own weights what transformers does for the model's: gradients emptied
    before each step, averaged over the processes after it."""

    def __init__(self, weights: nn.Module) -> None:
        self.weights = weights

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.weights.zero_grad()

    def on_pre_optimizer_step(self, args: TrainingArguments, *a: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            for parameter in self.weights.parameters():
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= args.world_size


class Distiller(Trainer):
    """Blends the task loss with losses to a teacher's answers.

    `taught(inputs, watch)` gives those for a batch and takes them out of it. Logged steps carry
    the mean of each weighted term, which add up to the loss; now and then also each term's share
    of the gradient norm.
    """

    loss_is_scaled_for_ga = False
    EVERY = 200  # steps between two measurements of the shares, which cost a backward pass a term

    def __init__(
        self,
        *,
        alpha: float,
        losses: dict[str, Loss],
        taught: Taught,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        # The losses' own weights (projections) train with the student and are not saved with it.
        self.alpha, self.taught = alpha, taught
        self.sums: dict[str, Tensor] = {}  # of each term since the last log
        self.batches, self.shares = 0.0, {}  # type: float, dict[str, float]
        super().__init__(model=model, **kwargs)
        self.losses, self.weights = losses, nn.ModuleDict(losses).to(self.args.device)
        self.add_callback(OwnWeights(self.weights))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if extra := list(self.weights.parameters()):
            optimizer.add_param_group({"params": extra, "weight_decay": self.args.weight_decay})
        return optimizer

    def save_extra(self, folder: Path) -> None:
        super().save_extra(folder)
        weights = self.weights.state_dict()  # the same in all ranks
        if weights and not ranks.rank():
            save_file(weights, folder / PROJECTIONS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weights.state_dict():
            self.weights.load_state_dict(load_file(Path(resume_from_checkpoint) / PROJECTIONS))

    def progress(self) -> dict[str, Any]:
        sums = {name: float(term) for name, term in self.sums.items()}
        ours = {"sums": sums, "batches": self.batches, "shares": self.shares}
        return super().progress() | ours

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        device = self.args.device
        self.sums = {name: torch.tensor(s, device=device) for name, s in progress["sums"].items()}
        self.batches, self.shares = progress["batches"], progress["shares"]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        with ExitStack() as stack:
            student = self._watch(self.accelerator.unwrap_model(model), "layer", stack)
            taught = self.taught(inputs, self._watch)
            batch = dict(inputs)  # label smoothing takes the labels out
            task_loss, outputs = self._task_loss(model, inputs | student.asked, num_items_in_batch)
            queries = dict(student.qkv)
        terms = {} if task_loss is None else {"task": (1 - self.alpha) * task_loss}
        outputs, taught, batch, scale = self._compared(outputs, taught, batch, num_items_in_batch)
        for name, loss in self.losses.items():
            view = SimpleNamespace(**outputs, qkv=queries.get(name))
            mine = SimpleNamespace(**vars(taught) | {"qkv": taught.qkv.get(name)})
            terms[name] = self.alpha * loss.weight * scale * loss(view, mine, batch)
        self._follow(terms, model)
        blended = sum(terms.values())
        return (blended, outputs) if return_outputs else blended

    def _compared(self, outputs: Any, taught: Any, batch: Any, items: Any) -> tuple[Any, ...]:
        """What the losses read of student, teacher and batch, and the factor of their means."""
        return outputs, taught, batch, 1

    def _task_loss(
        self, model: Any, inputs: dict[str, Any], items: Any
    ) -> tuple[Tensor | None, Any]:
        """The loss to the labels, which the model is not shown at alpha=1."""
        if self.alpha < 1:
            found: Any = super().compute_loss(model, inputs, True, items)
            return found[0], found[1]
        return None, model(**{k: v for k, v in inputs.items() if k != "labels"})

    def _watch(self, model: Any, layer: str, stack: ExitStack) -> SimpleNamespace:
        """What a model is asked for beside its logits, and where its projections will stand."""
        needs = {need for loss in self.losses.values() for need in loss.needs}
        qkv = {
            name: stack.enter_context(capture_qkv(model, getattr(loss, layer)))
            for name, loss in self.losses.items()
            if "qkv" in loss.needs
        }
        asked = {"output_hidden_states": True} if "hidden_states" in needs else {}
        return SimpleNamespace(qkv=qkv, asked=asked)

    def _follow(self, terms: dict[str, Tensor], model: Any) -> None:
        """Add up the terms for the next log; measure their shares at the first step and then."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term.detach()
        parts = self.current_gradient_accumulation_steps if self.loss_is_scaled_for_ga else 1
        self.batches += 1 / parts  # a scaled loss is a part of its step's
        step = self.state.global_step
        if step % self.EVERY or step == self.shares.get("step"):
            return
        self.shares = {"step": step, **self._shares(terms, model)}
        if step == 0:
            told = (f"{name} {self.shares[f'gradient_share_{name}']:.0%}" for name in terms)
            log.info("loss    shares of the gradient norm in the first batch: %s", ", ".join(told))

    def _shares(self, terms: dict[str, Tensor], model: Any) -> dict[str, float]:
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

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.batches:
            for name, term in self.sums.items():
                everyone = ranks.all_reduce_sum(float(term), self.args.device)
                logs[f"loss_{name}"] = everyone / (self.batches * ranks.ranks())
            logs |= {name: share for name, share in self.shares.items() if name != "step"}
            self.sums, self.batches = {}, 0
            self.shares = {"step": self.shares["step"]} if "step" in self.shares else {}
        super().log(logs, *args, **kwargs)
