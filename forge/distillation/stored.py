"""A teacher's logits: computed once per row, and stored under the cache directory by content.

The key is weights, config, encoded rows and precision; one file for the rows of each split, which
every run of a sweep and later ones share.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock

from forge.data import cache, fingerprints
from forge.distillation.teacher import FrozenTeacher, Logits
from forge.errors import UserError
from forge.inputs.input import Views, pad_multiple
from forge.models.forward import Pass
from forge.records.files import follow_umask
from forge.tasks.answer import Answer
from forge.tasks.decisions import places
from forge.training.preparation import Prepared

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
# Of a stored answer, as a probability (a regression's value), against one computed again:
TOLERANCE = {"fp32": 1e-3, "half": 0.03}


def compute(
    teacher: FrozenTeacher, rows: Dataset, prepared: Prepared, half: bool, view: int | None = None
) -> Logits:
    """The model's own logits [K, labels] (`Task.logits_of`), in the order of `rows`; of a view."""
    how = Pass.of(prepared.args)
    how = how if half else replace(how, dtype=None)
    teacher.to(how.device)
    encoded = teacher.encode(rows, prepared)
    collate = prepared.task.collator(teacher.processor, pad_multiple(prepared.args))
    if view is not None:
        collate = prepared.task.input.views(collate, Views(torch.tensor([view])))
    return prepared.task.logits_of(teacher.model, encoded, collate, how)


def stored_logits(
    teacher: FrozenTeacher, prepared: Prepared, split: str, view: int | None = None
) -> Logits:
    """The model's own logits [K, labels] over a split's rows, asked once and then stored.

    `view` is the number of the augmented view that is asked about, None: the rows as they are.
    Whoever comes second waits; a damaged or foreign file is reported and made anew.
    """
    rows, args = prepared.rows[split], prepared.args
    half = args.bf16 or args.fp16
    text = teacher.encode(rows, prepared)._fingerprint
    precision = "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32"
    of_view = [] if view is None else [prepared.task.input.augmentation, view]
    key = fingerprints.fingerprint(teacher.digest, teacher.settings, text, precision, *of_view)
    folder = cache.cache_directory(prepared.config.cache_dir) / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    path, named = folder / f"{key}.safetensors", f"{len(rows):,} {split} rows"
    named += "" if view is None else f", view {view + 1}"
    with FileLock(f"{path}.lock"):
        ids = np.repeat(rows["id"], prepared.task.answer.sizes(rows)).tolist()
        logits = read(path, ids, named)
        if logits is None:
            log.info("teacher: asked about %s, once", named)
            half = half and _half_will_do(teacher, rows, prepared, view)
            logits = compute(teacher, rows, prepared, half, view)
            write(path, ids, logits)
        else:
            _spot_check(teacher, rows, prepared, logits, half, view)
    return logits


def _few(rows: Dataset) -> list[int]:
    """Sixteen rows from all over."""
    return list(range(0, len(rows), max(1, len(rows) // 16)))[:16]


def _apart(a: Logits, b: Logits, answer: Answer) -> float:
    """The largest difference of two answers [rows, labels], in probability or in the value."""
    if not answer.distribution:
        return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
    return float(np.abs(answer.probabilities(a) - answer.probabilities(b)).max())


def _half_will_do(
    teacher: FrozenTeacher, rows: Dataset, prepared: Prepared, view: int | None
) -> bool:
    """Whether half precision stays within its tolerance of fp32 on a few rows."""
    few = rows.select(_few(rows))
    full, halved = (compute(teacher, few, prepared, half, view) for half in (False, True))
    apart = _apart(halved, full, prepared.task.answer)
    if apart <= TOLERANCE["half"]:
        return True
    log.warning("teacher: half precision is off by %.3g; asked in fp32", apart)
    return False


def _spot_check(
    teacher: FrozenTeacher,
    rows: Dataset,
    prepared: Prepared,
    logits: Logits,
    half: bool,
    view: int | None,
) -> None:
    """Raise `UserError` unless a few stored rows are what the teacher says now."""
    few = _few(rows)
    stored = logits[places(prepared.task.answer.sizes(rows), few)]
    answered = compute(teacher, rows.select(few), prepared, half, view)
    apart = _apart(stored, answered, prepared.task.answer)
    if not apart <= TOLERANCE["half" if half else "fp32"]:
        raise UserError(
            f"teacher: stored answers differ from live ones by {apart:.3g}; delete the folder "
            f"{cache.cache_directory(prepared.config.cache_dir) / 'teacher'}"
        )


def read(path: Path, ids: list[int], named: str) -> Logits | None:
    """The stored answers, or None where there are none, damaged ones or those of other rows."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            whole = (file.metadata() or {}).get("xxh128")
            logits: Logits = file.get_tensor("logits")
            same = file.get_tensor("ids").tolist() == ids and len(logits) == len(ids)
        if same and whole == fingerprints.digest(logits.tobytes()):
            log.info("teacher: answers to %s found in the cache", named)
            return logits
    except (SafetensorError, KeyError, ValueError, OSError):
        pass
    log.warning("%s: damaged or of other rows; the teacher is asked again", path)
    return None


def write(path: Path, ids: list[int], logits: Logits) -> None:
    """Store answers; raises `UserError` where there is no room."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    logits = np.ascontiguousarray(logits)
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        whole = {"xxh128": fingerprints.digest(logits.tobytes())}
        save_file({"ids": np.asarray(ids), "logits": logits}, scratch, whole)
        follow_umask(scratch)
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        scratch.unlink(missing_ok=True)
        raise UserError(
            f"{path}: the teacher's answers cannot be written ({error}); make room, or name "
            "another folder with cache_dir=DIR"
        ) from error
