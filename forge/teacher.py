"""A teacher: loaded, checked against the task, measured, and asked once per row.

Its logits over the training rows are stored under the cache directory by content (weights,
tokenised text, precision), one file that every run of a sweep and later ones share.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from forge import data, models
from forge.config import Model
from forge.errors import UserError
from forge.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forge.experiment import Prepared
    from forge.tasks import TextTask

log = logging.getLogger(__name__)
MOST_PERMUTED = 6  # labels; 720 orders to try
TOLERANCE = {"fp32": 1e-3, "half": 0.1}  # of a stored logit against the same row asked again


@dataclass
class Teacher:
    """A frozen model with its own tokenizer; logits [rows, labels] come in the task's order."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    order: list[int]  # for each label of the task the column that the model gives it
    unnamed: bool  # its labels are LABEL_0 …; their order is yet to be found


def load(model: Model, prepared: Prepared) -> Teacher:
    """The model at `teacher.path` with a head trained for the task's labels, frozen.

    Raises `UserError` when there is none, or when its labels are others than the task's.
    """
    task = prepared.task
    command = "python launch.py mode=sft with this task; then teacher.path=RUN_DIRECTORY"
    if model.path is None:
        raise UserError(f"teacher.path=null: no trained teacher; train one with {command}")
    tokenizer = models.load_tokenizer(model, (), "teacher")
    config = models.load_config(model, task, tokenizer, "teacher")
    if not models.has_head(config) or model.new_head or model.from_scratch:
        raise UserError(
            f"teacher.path={model.path}: it has no head trained for this task; "
            f"train one with {command}"
        )
    unnamed = task.num_labels > 1 and models.unnamed((config.id2label or {}).values())
    loaded = models.load(model, task, config, "teacher").eval().requires_grad_(False)
    return Teacher(loaded, tokenizer, list(range(task.num_labels)), unnamed)


def ask(teacher: Teacher, rows: Dataset, prepared: Prepared) -> NDArray[Any]:
    """The teacher's logits [rows, labels], in the order of `rows`, read with its own tokenizer."""
    split = data.longest_first(_tokenize(teacher, rows, prepared))
    collator = data.Collator(teacher.tokenizer, data.pad_multiple(prepared.args))
    asker = Trainer(teacher.model, prepared.args, collator, eval_dataset=split)
    logits = asker.predict(split.remove_columns("labels")).predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    position = {row: i for i, row in enumerate(split["id"])}
    ordered: NDArray[Any] = logits.reshape(len(rows), -1)[[position[row] for row in rows["id"]]]
    return ordered.astype(np.float32)


def _tokenize(teacher: Teacher, rows: Dataset, prepared: Prepared) -> Dataset:
    limit = models.max_length(None, teacher.tokenizer, teacher.model.config)
    return data.tokenize(
        rows,
        teacher.tokenizer,
        text=prepared.task.text_columns,
        max_length=min(prepared.task.max_length or limit, limit),
        cache_dir=data.cache_directory(prepared.config.cache_dir),
    )


def measure(teacher: Teacher, prepared: Prepared, gate: bool) -> dict[str, Any]:
    """The teacher's headline on the first evaluation split beside the commonest answer's.

    An unnamed head (LABEL_0 …) is first put into the order that fits the labels best. With `gate`
    raises `UserError` when the teacher is no better than the baseline.
    """
    task, split = prepared.task, prepared.task.evaluation[0]
    rows = prepared.rows[split]
    labels, logits = np.asarray(rows["labels"]), ask(teacher, rows, prepared)
    if teacher.unnamed:
        teacher.order = _best_order(logits, labels, task)
    value = task.judge(logits[:, teacher.order], labels)[task.headline]
    baseline = task.judge(_commonest(labels, task), labels)[task.headline]
    name = teacher.model.config.name_or_path
    log.info(
        "teacher %s: %s %.4f on %s (commonest answer: %.4f)",
        name,
        task.headline,
        value,
        split,
        baseline,
    )
    better = value > baseline if task.greater_is_better else value < baseline
    if gate and not better:
        raise UserError(
            f"teacher {name}: {task.headline} {value:.4f} on {split} is no better than always "
            f"giving the commonest answer ({baseline:.4f}); name a trained one with teacher.path=, "
            "or go on with mode.gate=false"
        )
    return {
        "path": name,
        "metric": task.headline,
        "split": split,
        "value": value,
        "baseline": baseline,
    }


def _commonest(labels: NDArray[Any], task: TextTask) -> NDArray[Any]:
    """Logits [rows, labels] of always giving the commonest label, or the mean."""
    if task.num_labels == 1:
        return np.full((len(labels), 1), labels.mean())
    one_hot: NDArray[Any] = np.zeros((len(labels), task.num_labels))
    one_hot[:, Counter(labels.tolist()).most_common(1)[0][0]] = 1
    return one_hot


def _best_order(logits: NDArray[Any], labels: NDArray[Any], task: TextTask) -> list[int]:
    """The order of an unnamed head's columns with the best accuracy; shown with its margin."""
    if task.num_labels > MOST_PERMUTED:
        raise UserError(
            f"teacher: its {task.num_labels} labels are unnamed (LABEL_0 …), too many to match by "
            "trial; write their names into id2label of its config.json"
        )
    answers = logits.argmax(-1)
    scores = {
        order: float(np.mean(np.asarray(order)[labels] == answers))
        for order in permutations(range(task.num_labels))
    }
    best, second = sorted(scores, key=lambda o: -scores[o])[:2]
    if scores[best] - scores[second] < 2 / len(labels) ** 0.5:
        raise UserError(
            f"teacher: its labels are unnamed (LABEL_0 …) and no order stands out (best "
            f"{scores[best]:.3f}, second {scores[second]:.3f}); write their names into id2label of "
            "its config.json"
        )
    log.warning(
        "teacher: unnamed labels matched by trial: %s (accuracy %.3f, next best order %.3f)",
        ", ".join(f"LABEL_{c}={n}" for c, n in zip(best, models.names(task), strict=True)),
        scores[best],
        scores[second],
    )
    return list(best)


def stored_logits(teacher: Teacher, prepared: Prepared) -> NDArray[Any]:
    """The teacher's logits [rows, labels] over the training rows, asked once and then stored.

    Whoever comes second waits; a damaged or foreign file is said and made anew.
    """
    rows = prepared.rows[prepared.task.train]
    half = prepared.args.bf16 or prepared.args.fp16
    text = _tokenize(teacher, rows, prepared)._fingerprint
    weights = [
        (name, data.digest(tensor.detach().cpu().numpy().tobytes()))
        for name, tensor in teacher.model.state_dict().items()
    ]
    key = data.fingerprint(weights, text, half, teacher.order)
    folder = data.cache_directory(prepared.config.cache_dir) / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.safetensors"
    with FileLock(f"{path}.lock"):
        logits = _read(path, list(rows["id"]))
        if logits is None:
            log.info("teacher: asked about %d training rows, once", len(rows))
            logits = ask(teacher, rows, prepared)[:, teacher.order]
            _write(path, list(rows["id"]), logits)
        else:
            _spot_check(teacher, rows, prepared, logits, "half" if half else "fp32")
    return logits


def _read(path: Path, ids: list[int]) -> NDArray[Any] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        return None
    try:
        stored = load_file(path)
        if stored["ids"].tolist() == ids:
            logits: NDArray[Any] = stored["logits"]
            log.info("teacher: answers to %d training rows found in the cache", len(ids))
            return logits
    except (SafetensorError, KeyError, ValueError):
        pass
    log.warning("%s: damaged or of other rows; the teacher is asked again", path)
    return None


def _write(path: Path, ids: list[int], logits: NDArray[Any]) -> None:
    from safetensors.numpy import save_file

    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        save_file({"ids": np.asarray(ids), "logits": np.ascontiguousarray(logits)}, scratch)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); name another cache_dir=") from error


def _spot_check(
    teacher: Teacher, rows: Dataset, prepared: Prepared, logits: NDArray[Any], precision: str
) -> None:
    """Raise `UserError` unless a few stored rows are what the teacher says now."""
    few = list(range(0, len(rows), max(1, len(rows) // 16)))[:16]
    live = ask(teacher, rows.select(few), prepared)[:, teacher.order]
    worst = float(np.abs(live - logits[few]).max())
    if worst > TOLERANCE[precision] * max(1.0, float(np.abs(live).max())):
        raise UserError(
            f"teacher: stored answers differ from live ones by {worst:.3g}; "
            "delete the folder teacher/ of the cache directory"
        )
