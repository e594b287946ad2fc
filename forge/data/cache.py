"""What is kept under the cache directory by content: deleting it loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forge.data.sources import Columns
from forge.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def stored(
    rows: Dataset,
    encode: Callable[[Columns], Columns],
    replaced: list[str],
    key: str,
    cache_dir: Path,
) -> Dataset:
    """The rows with what `encode` makes of them in place of some columns; cached under `key`."""
    target = cache_dir / "tokenised" / f"{key}.arrow"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache_dir={cache_dir}: {error}; name another with cache_dir=DIR"
        ) from error
    return rows.map(
        encode,
        batched=True,
        remove_columns=replaced,
        new_fingerprint=key,
        cache_file_name=str(target),
        desc="Tokenising",
    )


def longest_first(split: Dataset) -> Dataset:
    """The split for evaluation: no padding waste, and a batch that does not fit shows at once."""
    return split.select(np.argsort(np.negative(split["length"]), kind="stable"))


def cache_directory(cache_dir: str | None) -> Path:
    """Where tokenised data and teacher outputs are kept."""
    return Path(cache_dir or "~/.cache/forge").expanduser()
