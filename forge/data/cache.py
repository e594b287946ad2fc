"""What is kept under the cache directory by content: deleting it loses nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from forge.data.sources import Columns
from forge.errors import UserError
from forge.records import checkpoints

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


def stored(
    rows: Dataset,
    encode: Callable[[Columns], Columns],
    replaced: list[str],
    key: str,
    cache_dir: Path,
) -> Dataset:
    """The rows with what `encode` makes of them in place of some columns; cached under `key`.

    A file that is not as it was written is made anew. Raises `UserError` for a directory that
    cannot be written.
    """
    target = cache_dir / "tokenised" / f"{key}.arrow"
    lock = FileLock(f"{target}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if not checkpoints.is_sealed(target):
            raise UserError(
                f"cache_dir={cache_dir}: {error}; name another with cache_dir=DIR"
            ) from error
    try:
        known = checkpoints.is_sealed(target)
        if target.is_file() and not known:
            log.warning("%s: not as it was written; made anew", target)
            target.unlink()
        encoded: Dataset = rows.map(
            encode,
            batched=True,
            remove_columns=replaced,
            new_fingerprint=key,
            cache_file_name=str(target),
            desc="Tokenising",
        )
        if not known:
            checkpoints.seal(target)
        return encoded
    finally:
        lock.release()


def longest_first(split: Dataset) -> Dataset:
    """The split for evaluation: no padding waste, and a batch that does not fit shows at once."""
    return split.select(np.argsort(np.negative(split["length"]), kind="stable"))


def cache_directory(cache_dir: str | None) -> Path:
    """Where tokenised data and teacher outputs are kept; raises `UserError` without a home."""
    try:
        return Path(cache_dir or "~/.cache/forge").expanduser()
    except RuntimeError as error:  # HOME is not set, and the user is not known
        raise UserError(
            f"cache_dir={cache_dir or 'null'}: {error} Set cache_dir=DIR, or HOME in the "
            "environment"
        ) from error
