"""Distillation of answers to rows: the teacher's stored or live answers, matched by row id."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import concatenate_datasets
from transformers import set_seed

from forge.distillation import teacher
from forge.distillation.distiller import Distiller, Taught
from forge.distillation.losses import DKD, KL, MSE, Loss
from forge.distillation.objective import announce, require_loss
from forge.distillation.stored import Expert, stored_logits, tokenize
from forge.errors import UserError
from forge.inputs import text
from forge.training.preparation import Prepared
from forge.training.trainer import Trainer

log = logging.getLogger(__name__)


def of_rows(
    prepared: Prepared,
    alpha: float,
    loss: dict[str, Loss],
    gate: bool,
    cache: bool,
    train: list[str],
    common: dict[str, Any],
) -> Trainer:
    """For a classifier or regression, with the teachers' stored answers where the losses allow."""
    loss = fitting_losses(prepared, loss)
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


def training_splits(prepared: Prepared, alpha: float, loss: dict[str, Loss]) -> list[str]:
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


def fitting_losses(prepared: Prepared, loss: dict[str, Loss]) -> dict[str, Loss]:
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
    multiple = text.pad_multiple(prepared.args)
    common["data_collator"] = text.Collator(prepared.tokenizer, multiple, "id", "teacher_logits")
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
        pads[f"teacher_{i}_"] = text.Collator(expert.tokenizer, text.pad_multiple(prepared.args))
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

    def __init__(self, own: text.Collator, others: dict[str, text.Collator]) -> None:
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
