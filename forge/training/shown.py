"""What a reader is shown of each row of a split, beside its predictions: rows/SPLIT.parquet.

Reading a run back needs no data source and no code of a task then. Runs over the same rows share
one file: it is made once, in the cache directory, and linked from there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from forge.data import cache
from forge.data.fingerprints import fingerprint
from forge.inputs.input import Input
from forge.records.files import new_file_mode

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = "rows"


def write(path: Path, input: Input, rows: Dataset, cache_dir: str | None) -> None:
    """Columns id, those of `Input.shown`, and `picture`, a small one; no file without any."""
    columns = input.shown(rows)
    if not columns:
        return
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # a link: what is written must not reach other runs
    key = fingerprint(rows._fingerprint, list(columns), new_file_mode())  # links share their mode
    shared = cache.cache_directory(cache_dir) / FOLDER / f"{key}.parquet"
    with suppress(OSError):  # a cache that cannot be written, another file system
        if not shared.is_file():
            shared.parent.mkdir(parents=True, exist_ok=True)
            _write(shared, input, rows)
        os.link(shared, path)
        return
    if shared.is_file():
        shutil.copyfile(shared, path)
    else:
        _write(path, input, rows)


def _write(path: Path, input: Input, rows: Dataset) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: list(map(str, column)) for name, column in input.shown(rows).items()}
    pictures = input.pictures(rows)
    more = {"picture": pa.array(pictures, pa.binary())} if pictures else {}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(
        pa.table({"id": list(rows["id"]), **columns, **more}), scratch, compression="zstd"
    )
    scratch.replace(path)
