"""Distillation of answers to rows: the teacher's stored or live answers, matched by row id."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from datasets import concatenate_datasets
from transformers import set_seed

from forge.distillation import teacher
from forge.distillation.distiller import TEACHER, Answers, Distiller, Watch
from forge.distillation.losses import DIST, DKD, KL, MSE, Loss, Outputs
from forge.distillation.objective import announce
from forge.distillation.stored import stored_logits
from forge.errors import UserError
from forge.inputs.input import Views, for_model, pad_multiple
from forge.tasks.objective import describe
from forge.training.epochs import first_views
from forge.training.trainer import Ready

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from forge.data.sources import Row
    from forge.distillation.teacher import FrozenTeacher
    from forge.inputs.input import Batch, Collator
    from forge.tasks.task import Task
    from forge.training.preparation import Prepared

log = logging.getLogger(__name__)
T = TypeVar("T")
OFTEN = 4  # times that a student sees one view before it is said
LOGITS = f"{TEACHER}logits"  # the training rows' column of stored answers


def ready(
    prepared: Prepared,
    alpha: float,
    loss: dict[str, Loss],
    gate: bool,
    cache: bool,
    splits: list[str],
    views: int | None = None,
) -> Ready:
    """A trainer of the blended loss, on the teachers' stored answers where the losses allow it.

    Of augmented rows these are the answers to so many `views` of each.
    """
    loss = fitting_losses(prepared.task, loss)
    if views and prepared.args.num_train_epochs > OFTEN * views:
        log.warning(
            "mode.views=%d: in %g epochs the student sees each view %.3g times; more of them, or "
            "null for new ones, teach more",
            views,
            prepared.args.num_train_epochs,
            prepared.args.num_train_epochs / views,
        )
    args, weights = prepared.args, teacher.shares(prepared.config.teacher)
    teachers = [teacher.load(model, prepared) for model in prepared.teachers]
    aligned = [name for name, term in loss.items() if term.same_tokens]
    if aligned and len(teachers) > 1:
        raise UserError(
            f"mode/loss={', '.join(aligned)}: it takes one teacher; {len(teachers)} are named"
        )
    measured = teacher.measure(
        teachers, prepared, gate, lambda each, split: stored_logits(each, prepared, split)
    )
    settings = describe(prepared.objective, prepared.task.answer)
    announce(alpha, loss, settings, *prepared.task.answer.over)
    train = concatenate_datasets([prepared.splits[split] for split in splits])
    shown = first_views(views)
    if cache and not aligned and (views or not prepared.task.input.augmentation):
        train, collate, answers = _stored(prepared, teachers, weights, train, splits, shown)
    else:
        train, collate, answers = _live(prepared, teachers, weights, train, splits, aligned)
    set_seed(args.seed)  # for the losses' projections, whatever came before
    for term in loss.values():
        term.bind(prepared.model.config, teachers[0].model.config)
    arguments = prepared.trainer_arguments() | {"train_dataset": train, "data_collator": collate}
    distiller = Distiller(alpha=alpha, losses=loss, teacher=answers, **arguments, views=shown)
    metadata = {"teacher": measured.record, "trained_on": len(train)}  # rows
    return Ready(distiller, metadata, {}, measured.predictions)


def training_splits(task: Task, alpha: float) -> list[str]:
    """The splits to learn from: rows without labels are for the teacher alone."""
    if not task.unlabelled_split:
        return [task.train]
    if alpha < 1:
        log.warning(
            "%s: rows without labels are learnt from at mode.alpha=1 only; left out",
            task.unlabelled_split,
        )
        return [task.train]
    return [task.train, task.unlabelled_split]


def check(task: Task, alpha: float, loss: dict[str, Loss]) -> None:
    """Raise `UserError` for losses that need labels where there are none, or a softmax."""
    for name, term in loss.items():
        if task.answer.several and isinstance(term, DKD | DIST):
            raise UserError(
                f"mode/loss={name}: it compares the labels of a row with each other, and each of "
                "these is decided by itself; use mode/loss=kl or mse"
            )
        if not task.answer.named and isinstance(term, DIST):
            raise UserError(
                f"mode/loss={name}: it compares a label over several rows, and here labels are "
                "places, each row's own; use mode/loss=kl, mse or dkd"
            )
        if task.unlabelled_split and alpha == 1 and isinstance(term, DKD):
            raise UserError(f"mode/loss={name}: it reads labels; use kl with unlabelled rows")
        softmax = hasattr(term, "temperature") and not isinstance(term, KL)
        if softmax and not task.answer.distribution:
            raise UserError(
                f"mode/loss={name}: the softmax over the one value of a regression is always 1; "
                "use mode/loss=mse"
            )


def check_views(task: Task, loss: dict[str, Loss], cache: bool, views: int) -> None:
    """Raise `UserError` for stored views where there is one view, or nothing is stored."""
    if not task.input.augmentation:
        raise UserError(
            f"mode.views={views}: nothing changes from view to view; set task.augment.*, or "
            "mode.views=null"
        )
    if live := [name for name, term in loss.items() if term.same_tokens]:
        raise UserError(
            f"mode.views={views}: mode/loss={','.join(live)} runs the teacher in every step; "
            "set mode.views=null"
        )
    if not cache:
        raise UserError(
            f"mode.views={views}: mode.cache=off stores no answers; leave one of them out"
        )


def fitting_losses(task: Task, loss: dict[str, Loss]) -> dict[str, Loss]:
    """The losses; where an answer is one value, kl is taken as mse, of standardised values."""
    if task.answer.distribution:
        return loss
    fitting: dict[str, Loss] = {}
    for name, term in loss.items():
        if isinstance(term, KL):
            log.info("loss    regression: mse for %s (a softmax over one value is always 1)", name)
            name, term = "mse", MSE(weight=term.weight)
        if isinstance(term, MSE):
            term.std = task.answer.scale.std
        fitting[name] = term
    return fitting


def _stored(
    prepared: Prepared,
    teachers: list[FrozenTeacher],
    weights: list[float],
    train: Dataset,
    splits: list[str],
    views: Views,
) -> tuple[Dataset, Collator, Answers]:
    """Answers given once, of augmented rows to each of their views: a column of the training rows,
    matched by their ids."""
    answer = prepared.task.answer
    rows = concatenate_datasets([prepared.rows[split] for split in splits])

    def given(view: int | None = None) -> list[np.ndarray]:
        own = [
            np.concatenate([stored_logits(t, prepared, s, view) for s in splits]) for t in teachers
        ]
        logits = [torch.from_numpy(a[:, t.order]) for a, t in zip(own, teachers, strict=True)]
        return answer.by_row(teacher.combine(logits, weights, answer).numpy(), rows)

    def read(inputs: Batch, watch: Watch) -> Outputs:
        return Outputs(inputs[LOGITS][:, views.number] if views.count else inputs[LOGITS])

    if views.count:
        pairs = zip(*map(given, range(views.count)), strict=True)
        each = [np.stack(of_views) for of_views in pairs]
    else:
        each = given()
    by_id = dict(zip(rows["id"], each, strict=True))
    train = train.add_column(LOGITS, [by_id[row].tolist() for row in train["id"]])
    multiple = pad_multiple(prepared.args)
    collate = prepared.task.collator(prepared.processor, multiple, LOGITS)
    return train, collate, read


def _live(
    prepared: Prepared,
    teachers: list[FrozenTeacher],
    weights: list[float],
    train: Dataset,
    splits: list[str],
    aligned: list[str],
) -> tuple[Dataset, Collator, Answers]:
    """Answers given in every step, to the rows as each teacher's own processor reads them."""
    task, multiple = prepared.task, pad_multiple(prepared.args)
    rows = concatenate_datasets([prepared.rows[split] for split in splits])
    parts, collators = [train], {}
    for i, each in enumerate(teachers):
        encoded = each.encode(rows, prepared)
        if list(encoded["id"]) != list(train["id"]):
            raise AssertionError("rows of student and teacher are in different orders")
        if aligned and not task.input.same_positions(train, encoded):
            raise UserError(
                f"mode/loss={', '.join(aligned)}: it compares positions, but student and teacher "
                "read the text as different tokens (vocabulary, casing or max_length); use a loss "
                "of logits (kl, mse, dkd, dist) or a student with the teacher's tokenizer"
            )
        columns = task.input.model_columns(each.processor)
        encoded, prefix = encoded.select_columns(columns), f"{TEACHER}{i}_"
        parts.append(encoded.rename_columns({name: f"{prefix}{name}" for name in columns}))
        collators[prefix] = task.collator(each.processor, multiple)
        each.to(prepared.args.device)

    def answers(inputs: Batch, watch: Watch) -> Outputs:
        batches = [_of(inputs, prefix) for prefix in collators]
        if len(teachers) == 1:
            return outputs(task, teachers[0], batches[0], watch)
        pairs = zip(teachers, batches, strict=True)
        return Outputs(
            teacher.combine([outputs(task, *p, watch).logits for p in pairs], weights, task.answer)
        )

    own = task.collator(prepared.processor, multiple)
    return concatenate_datasets(parts, axis=1), Beside(own, collators), answers


def outputs(task: Task, each: FrozenTeacher, batch: Batch, watch: Watch, **asked: bool) -> Outputs:
    """A teacher's outputs for a batch of its own, with what the losses read beside logits."""
    with ExitStack() as stack, torch.no_grad():
        watched = watch(each.model.eval(), "teacher_layer", stack)
        given = each.model(**for_model(batch), **watched.keywords, **asked)
    logits = task.logits(given, batch)[..., each.order]
    return watched.outputs(logits, given)


def _of(columns: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The columns under a prefix, by their own names."""
    return {k.removeprefix(prefix): v for k, v in columns.items() if k.startswith(prefix)}


class Beside:
    """A collator that also collates other models' columns of the rows, each under its prefix."""

    def __init__(self, own: Collator, others: dict[str, Collator]) -> None:
        self.own, self.others = own, others

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        batch = dict(self.own(rows))
        for prefix, collate in self.others.items():
            theirs = [_of(row, prefix) for row in rows]
            if theirs[0]:  # evaluation rows have none
                batch |= {prefix + name: part for name, part in collate(theirs).items()}
        return batch
