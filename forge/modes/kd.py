"""Knowledge distillation (Hinton et al. 2015): learn from labels and from a teacher's answers.

    loss = (1 - alpha) * task loss + alpha * sum_k weight_k * L_k(student, teacher)

Losses that read logits only take the teacher's stored ones; those that read hidden states or
attention run the teacher beside the student, which must share its tokenizer.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forge import data, teacher
from forge.errors import UserError
from forge.experiment import Prepared
from forge.losses import Loss, capture_qkv
from forge.trainer import Trainer

log = logging.getLogger(__name__)
PROJECTIONS = "losses.safetensors"  # a checkpoint's file of the losses' own weights


def trainer(
    *, prepared: Prepared, alpha: float, loss: dict[str, Loss], gate: bool = True, **common: Any
) -> Trainer:
    """A trainer of the blended loss; at alpha=0 the plain one, without a teacher."""
    if not 0 <= alpha <= 1:
        raise UserError(f"mode.alpha={alpha}: a share between 0 (labels only) and 1 (teacher only)")
    if alpha == 0:
        log.info("loss    task loss (mode.alpha=0: the teacher is not loaded)")
        return Trainer(**common)
    if not loss:
        raise UserError("mode.loss: no loss to the teacher; choose e.g. mode/loss=kl")
    _check_losses(prepared, loss)
    chosen = teacher.load(prepared.config.teacher, prepared)
    prepared.facts["teacher"] = teacher.measure(chosen, prepared, gate)
    terms = " + ".join(f"{term.weight:g} {_words(name, term)}" for name, term in loss.items())
    log.info("loss    %g * task loss + %g * (%s), means over the batch", 1 - alpha, alpha, terms)
    live = any(term.needs != {"logits"} for term in loss.values())
    if live:
        _check_tokens(prepared, chosen, loss)
    else:
        stored = teacher.stored_logits(chosen, prepared).tolist()
        common["train_dataset"] = common["train_dataset"].add_column("teacher_logits", stored)
        multiple = data.pad_multiple(prepared.args)
        common["data_collator"] = data.Collator(prepared.tokenizer, multiple, "teacher_logits")
    for term in loss.values():
        term.bind(prepared.model.config, chosen.model.config)
    return Distiller(alpha=alpha, losses=loss, teacher=chosen if live else None, **common)


def _words(name: str, term: Loss) -> str:
    settings = {
        k: v for k, v in vars(term).items() if k in ("temperature", "divergence", "distance")
    }
    told = ", ".join(f"{k} {v}" for k, v in settings.items())
    squared = ", times T^2" if "temperature" in settings else ""
    return f"{name}({told}{squared})"


def _check_losses(prepared: Prepared, loss: dict[str, Loss]) -> None:
    if prepared.task.num_labels > 1:
        return
    for name, term in loss.items():
        if hasattr(term, "temperature"):
            raise UserError(
                f"mode/loss={name}: the softmax over the one value of a regression is always 1; "
                "use mode/loss=mse"
            )


def _check_tokens(prepared: Prepared, chosen: teacher.Teacher, loss: dict[str, Loss]) -> None:
    if chosen.tokenizer.get_vocab() != prepared.tokenizer.get_vocab():
        names = ", ".join(name for name, term in loss.items() if term.same_tokens)
        raise UserError(
            f"mode/loss={names}: it compares positions, but student and teacher have different "
            "vocabularies; use a loss of logits (kl, mse, dkd, dist) or a student with the "
            "teacher's tokenizer"
        )


class Distiller(Trainer):
    """Blends the task loss with losses to a teacher, stored or live.

    Each logged step carries the terms and each term's share of the gradient norm.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        alpha: float,
        losses: dict[str, Loss],
        teacher: teacher.Teacher | None,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        # The losses' own weights (projections) train with the student and are not saved with it.
        self.alpha, self.teacher = alpha, teacher
        self.measured: dict[str, float] = {}
        super().__init__(model=model, **kwargs)
        self.losses, self.weights = losses, nn.ModuleDict(losses).to(self.args.device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if extra := list(self.weights.parameters()):
            optimizer.add_param_group({"params": extra, "weight_decay": self.args.weight_decay})
        return optimizer

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero() and (weights := self.weights.state_dict()):
            save_file(weights, folder / PROJECTIONS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weights.state_dict():
            self.weights.load_state_dict(load_file(Path(resume_from_checkpoint) / PROJECTIONS))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        stored = inputs.pop("teacher_logits", None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        batch = dict(inputs)  # label smoothing takes the labels out
        with ExitStack() as stack:
            student = self._watch(self.accelerator.unwrap_model(model), "layer", stack)
            task_loss, outputs = super().compute_loss(model, inputs | student.asked, True)
            answers = student.qkv if self.teacher else {}
            taught = self._taught(batch, stored)
        terms = {"task": (1 - self.alpha) * task_loss}
        for name, loss in self.losses.items():
            view = SimpleNamespace(**outputs, qkv=answers.get(name))
            mine = SimpleNamespace(**vars(taught) | {"qkv": taught.qkv.get(name)})
            terms[name] = self.alpha * loss.weight * loss(view, mine, batch)
        if self.state.global_step % max(int(self.state.logging_steps or 1), 1) == 0:
            self.measured = self._shares(terms, model)
        blended = sum(terms.values())
        return (blended, outputs) if return_outputs else blended

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

    def _taught(self, batch: dict[str, Tensor], stored: Tensor | None) -> SimpleNamespace:
        """The teacher's outputs for the batch, stored or live."""
        if self.teacher is None:
            return SimpleNamespace(logits=stored, qkv={})
        inputs = {k: batch[k] for k in self.teacher.tokenizer.model_input_names if k in batch}
        with ExitStack() as stack, torch.no_grad():
            watched = self._watch(self.teacher.model, "teacher_layer", stack)
            outputs = self.teacher.model.eval()(**inputs, **watched.asked)
        outputs = {k: v for k, v in outputs.items() if k != "loss"}
        outputs["logits"] = outputs["logits"][:, self.teacher.order]
        return SimpleNamespace(**outputs, qkv=watched.qkv)

    def _shares(self, terms: dict[str, Tensor], model: Any) -> dict[str, float]:
        """Each weighted term, and its share of the summed gradient norms over the student."""
        weights = [p for p in model.parameters() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            norms[name] = (
                sum(float(g.float().square().sum()) for g in grads if g is not None) ** 0.5
            )
        total = sum(norms.values()) or 1.0
        found = {f"loss_{name}": float(term.detach()) for name, term in terms.items()}
        return found | {f"gradient_share_{name}": norm / total for name, norm in norms.items()}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs | (self.measured if "loss" in logs else {}), *args, **kwargs)
