"""Knowledge distillation (Hinton et al. 2015): learn from labels and from a teacher's answers.

    loss = (1 - alpha) * task loss + alpha * sum_k weight_k * L_k(student, teacher)

Losses that read logits only take the teacher's stored ones; those that read hidden states or
attention run the teacher beside the student, which must share its tokenizer. Language
models learn token by token: `forge.token_kd`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from datasets import concatenate_datasets
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import TrainerCallback

from forge import cluster, data, teacher
from forge.errors import UserError
from forge.experiment import Prepared
from forge.logits import Expert, stored_logits, tokenize
from forge.losses import DKD, KL, MSE, Loss, capture_qkv
from forge.modes.sft import padded, plain
from forge.trainer import Trainer

log = logging.getLogger(__name__)
# What the teacher says to a batch, given the batch and `Distiller._watch`
Taught: TypeAlias = Callable[[dict[str, Any], Any], SimpleNamespace]
PROJECTIONS = "losses.safetensors"  # a checkpoint's file of the losses' own weights


def trainer(
    *,
    prepared: Prepared,
    alpha: Annotated[float, Field(ge=0, le=1)],
    loss: dict[str, Loss],
    gate: bool = True,
    cache: bool = True,
    top_k: Annotated[int, Field(ge=1)] | None = None,
    on_policy: bool = False,
    beta: Annotated[float, Field(ge=0, le=1)] | None = None,
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
    **common: Any,
) -> Trainer:
    """A trainer of the blended loss; at alpha=0 the plain one, without a teacher."""
    train = _training_splits(prepared, alpha, loss)
    given = {"beta": beta, "temperature": temperature}
    for name, value in () if on_policy else given.items():
        if value is not None:
            raise UserError(f"mode.{name}={value}: it is for mode.on_policy=true; leave it null")
    if alpha == 0:
        log.info("loss    1 * task loss (mode.alpha=0: as mode=sft, no teacher)")
        return plain(prepared, common)
    padded(prepared)
    if prepared.task.head == "CausalLM":
        from forge import token_kd  # which builds on this module

        if on_policy:
            return token_kd.on_policy(prepared, alpha, loss, gate, top_k, given, common)
        return token_kd.trainer(prepared, alpha, loss, gate, top_k, common)
    if on_policy:
        raise UserError("mode.on_policy=true: a label is no text that is written; set it to false")
    if top_k:
        raise UserError(f"mode.top_k={top_k}: it is for language models; set mode.top_k=null")
    return _of_examples(prepared, alpha, loss, gate, cache, train, common)


def _of_examples(
    prepared: Prepared,
    alpha: float,
    loss: dict[str, Loss],
    gate: bool,
    cache: bool,
    train: list[str],
    common: dict[str, Any],
) -> Trainer:
    """For a classifier or regression, with the teachers' stored answers where the losses allow."""
    loss = _fitting_losses(prepared, loss)
    config, task, facts = prepared.config, prepared.task, prepared.facts
    weights = teacher.shares(config.teacher)
    named = teacher.settle(config, task, prepared.rows, prepared.recorded)
    experts = [teacher.load(model, prepared) for model in named]
    aligned = [name for name, term in loss.items() if term.same_tokens]
    if aligned:
        _check_positions(prepared, experts, aligned)
    facts["teacher"] = teacher.measure(experts, prepared, gate)
    announce(alpha, loss, common["args"].label_smoothing_factor, "labels", "examples")
    common["train_dataset"] = concatenate_datasets([prepared.splits[split] for split in train])
    facts["trained_on"] = len(common["train_dataset"])  # rows
    if cache and not aligned:
        taught = _stored(prepared, experts, weights, train, common)
    else:
        taught = _live(prepared, experts, weights, train, common, aligned)
    set_seed(common["args"].seed)  # for the losses' projections, whatever came before
    for term in loss.values():
        term.bind(prepared.model.config, experts[0].model.config)
    return Distiller(alpha=alpha, losses=loss, taught=taught, **common)


def _training_splits(prepared: Prepared, alpha: float, loss: dict[str, Loss]) -> list[str]:
    """The splits to learn from: texts without labels are for the teacher alone."""
    task = prepared.task
    if not task.unlabelled_split:
        return [task.train]
    if alpha < 1:
        log.warning(
            "%s: rows without labels are learnt from at mode.alpha=1 only; left out",
            task.unlabelled_split,
        )
        return [task.train]
    for name, term in loss.items():
        if isinstance(term, DKD):
            raise UserError(f"mode/loss={name}: it reads labels; use kl with unlabelled rows")
    return [task.train, task.unlabelled_split]


def _fitting_losses(prepared: Prepared, loss: dict[str, Loss]) -> dict[str, Loss]:
    """The losses, checked against the task; of a regression's one value kl is taken as mse."""
    require_loss(loss)
    if prepared.task.num_labels > 1:
        return loss
    fitting: dict[str, Loss] = {}
    for name, term in loss.items():
        if isinstance(term, KL):
            log.info("loss    regression: mse for %s (a softmax over one value is always 1)", name)
            fitting["mse"] = MSE(weight=term.weight)
        elif hasattr(term, "temperature"):
            raise UserError(
                f"mode/loss={name}: the softmax over the one value of a regression is always 1; "
                "use mode/loss=mse"
            )
        else:
            fitting[name] = term
    return fitting


def require_loss(loss: dict[str, Loss]) -> None:
    """Raise `UserError` when there is none."""
    if not loss:
        raise UserError("mode.loss: no loss to the teacher; choose e.g. mode/loss=kl")


def announce(
    alpha: float, loss: dict[str, Loss], smoothing: float, summed: str, averaged: str
) -> None:
    """The objective in words and numbers."""
    smoothed = f", label smoothing {smoothing:g}" if smoothing else ""
    log.info(
        "loss    %g * task loss%s + %g * (%s)",
        1 - alpha,
        smoothed,
        alpha,
        " + ".join(f"{term.weight:g} * {_words(name, term)}" for name, term in loss.items()),
    )
    log.info(
        "        each summed over the %s, averaged over the %s; mode.alpha is the "
        "teacher's share: 0 labels only, 1 teacher only",
        summed,
        averaged,
    )


def _words(name: str, term: Loss) -> str:
    shown = ("temperature", "divergence", "distance", "layers", "layer", "teacher_layer")
    settings = {k: v for k, v in vars(term).items() if k in shown}
    told = [f"{k} {v}" for k, v in settings.items()]
    if "temperature" in settings:
        told.append("times T^2")
    return f"{name}({', '.join(told)})" if told else name


def _stored(
    prepared: Prepared,
    experts: list[Expert],
    weights: list[float],
    splits: list[str],
    common: dict[str, Any],
) -> Taught:
    """Answers given once: a column of the training rows, matched by their ids."""
    logits = [
        np.concatenate([stored_logits(e, prepared, split) for split in splits])[:, e.order]
        for e in experts
    ]
    ids = [row for split in splits for row in prepared.rows[split]["id"]]
    answers = dict(zip(ids, teacher.combine(logits, weights).tolist(), strict=True))
    column = [answers[row] for row in common["train_dataset"]["id"]]
    common["train_dataset"] = common["train_dataset"].add_column("teacher_logits", column)
    multiple = data.pad_multiple(prepared.args)
    common["data_collator"] = data.Collator(prepared.tokenizer, multiple, "id", "teacher_logits")
    return lambda inputs, watch: SimpleNamespace(logits=inputs.pop("teacher_logits"), qkv={})


def _live(
    prepared: Prepared,
    experts: list[Expert],
    weights: list[float],
    splits: list[str],
    common: dict[str, Any],
    aligned: list[str],
) -> Taught:
    """Answers given in every step, to the text as each teacher's own tokenizer reads it."""
    rows, train = concatenate_datasets([prepared.rows[s] for s in splits]), common["train_dataset"]
    parts, pads = [train], {}
    for i, expert in enumerate(experts):
        names = expert.tokenizer.model_input_names
        read = tokenize(expert, rows, prepared)
        if list(read["id"]) != list(train["id"]):
            raise AssertionError("rows of student and teacher are in different orders")
        if aligned and any(
            a != b for a, b in zip(read["input_ids"], train["input_ids"], strict=True)
        ):
            raise UserError(_other_tokens(aligned))
        read = read.select_columns(list(names))
        parts.append(read.rename_columns({name: f"teacher_{i}_{name}" for name in names}))
        pads[f"teacher_{i}_"] = data.Collator(expert.tokenizer, data.pad_multiple(prepared.args))
        expert.to(prepared.args.device)
    common["train_dataset"] = concatenate_datasets(parts, axis=1)
    common["data_collator"] = Beside(common["data_collator"], pads)

    def taught(inputs: dict[str, Any], watch: Any) -> SimpleNamespace:
        given = [inputs.pop(prefix) for prefix in pads]
        if len(experts) == 1:
            return answers(experts[0], given[0], watch)
        each = [answers(e, b, watch).logits for e, b in zip(experts, given, strict=True)]
        return SimpleNamespace(logits=teacher.combine(each, weights), qkv={})

    return taught


def answers(expert: Expert, batch: dict[str, Any], watch: Any) -> SimpleNamespace:
    """A teacher's outputs for a batch of its own, with what the losses ask for."""
    with ExitStack() as stack, torch.no_grad():
        watched = watch(expert.model.eval(), "teacher_layer", stack)
        outputs = dict(expert.model(**batch, **watched.asked))
    outputs.pop("loss", None)
    outputs["logits"] = outputs["logits"][..., expert.order]
    return SimpleNamespace(**outputs, qkv=watched.qkv)


def _check_positions(prepared: Prepared, experts: list[Expert], aligned: list[str]) -> None:
    """Losses that compare positions need one teacher, with the student's vocabulary."""
    if len(experts) > 1:
        names = ", ".join(aligned)
        raise UserError(f"mode/loss={names}: it takes one teacher; {len(experts)} are named")
    if experts[0].tokenizer.get_vocab() != prepared.tokenizer.get_vocab():
        raise UserError(_other_tokens(aligned))


def _other_tokens(aligned: list[str]) -> str:
    return (
        f"mode/loss={', '.join(aligned)}: it compares positions, but student and teacher read the "
        "text as different tokens (vocabulary, casing or max_length); use a loss of logits (kl, "
        "mse, dkd, dist) or a student with the teacher's tokenizer"
    )


class Beside:
    """A collator that also pads the columns of other tokenizers, kept under their prefix."""

    def __init__(self, own: data.Collator, others: dict[str, data.Collator]) -> None:
        self.own, self.others = own, others

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.own(rows))
        for prefix, pad in self.others.items():
            theirs = [
                {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
                for row in rows
            ]
            if theirs[0]:  # evaluation rows have none
                batch[prefix] = dict(pad(theirs))
        return batch


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
        if weights and not cluster.rank():
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
                everyone = cluster.total(float(term), self.args.device)
                logs[f"loss_{name}"] = everyone / (self.batches * cluster.ranks())
            logs |= {name: share for name, share in self.shares.items() if name != "step"}
            self.sums, self.batches = {}, 0
            self.shares = {"step": self.shares["step"]} if "step" in self.shares else {}
        super().log(logs, *args, **kwargs)
