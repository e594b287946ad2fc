"""Where rows come from: files, directories, the Hub.

A *source* maps split names to rows: a `datasets.Dataset`, or the files to read when the split is
asked for.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from forge import hub
from forge.errors import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from datasets import Dataset
from forge.data.fingerprints import fingerprint

Source: TypeAlias = "Mapping[str, Dataset | list[Path]]"


SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def load(*, path: str, name: str | None = None, revision: str | None = None) -> Source:
    """A Hub dataset, or a local directory of `<split>.<csv|tsv|json|jsonl|parquet>` files.

    A directory may also be one that `save_to_disk` wrote or a clone of a Hub repository, where
    `name` is the folder of a subset. Raises `UserError` when there is nothing to read.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        return _directory(directory, name)
    if not hub.looks_like_name(path):
        raise UserError(f"task.dataset.path={path}: no such directory")
    from datasets import load_dataset

    with hub.access("dataset", path, "task.dataset.path=DIR"):
        source: Source = load_dataset(path, name, revision=revision)
        return source


def _directory(directory: Path, name: str | None) -> Source:
    import datasets

    folders = [directory / name] if name and (directory / name).is_dir() else []
    for folder in (*folders, directory, directory / "data"):
        if (folder / "dataset_dict.json").is_file():
            stored: Source = datasets.load_from_disk(str(folder))
            return stored
        splits: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*")):
            if file.suffix.lower() in SUFFIXES:
                splits.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
        for split, files in splits.items():
            if len({file.suffix for file in files}) > 1:
                named = " and ".join(file.name for file in files[:2])
                raise UserError(f"{folder}: {named} are both split {split}; keep one of them")
        if splits:
            return splits
    raise UserError(
        f"task.dataset.path={directory}: no <split>.jsonl, .json, .csv, .tsv or .parquet file in it"
    )


def read(source: Source, split: str, columns: list[str]) -> dict[str, list[Any]]:
    """The named columns of a split as lists; class labels by name, -1 as None.

    Raises `UserError` for a missing split, file or column, or a file that cannot be parsed.
    """
    if split not in source:
        raise UserError(f"split {split}: the data has no such split{did_you_mean(split, source)}")
    rows = source[split]
    if isinstance(rows, list):
        table, where = _read_files(rows), ", ".join(map(str, rows))
    else:
        table, where = rows, f"split {split}"
    names = list(table) if isinstance(table, dict) else table.column_names
    if not len(table[names[0]] if names else ()):
        raise UserError(f"{where} has no rows")
    for column in columns:
        if column not in names:
            raise UserError(f"column {column}: not in {where}{did_you_mean(column, names)}")
    if isinstance(table, dict):
        return {column: table[column] for column in columns}
    return {column: _column(table, column) for column in columns}


def _column(table: Dataset, column: str) -> list[Any]:
    from datasets import ClassLabel, Image

    feature = table.features[column]
    if isinstance(feature, Image):  # decoded it would fill the memory
        table = table.cast_column(column, Image(decode=False))
    values = list(table[column])
    if isinstance(feature, ClassLabel):
        return [None if v is None or v < 0 else feature.names[v] for v in values]
    return values


def _read_files(paths: list[Path]) -> Any:
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: not one of {', '.join(SUFFIXES)}")
    if paths[0].suffix.lower() == ".parquet":
        from datasets import Dataset

        try:
            return Dataset.from_parquet([str(p) for p in paths])
        except Exception as error:  # pyarrow's and datasets' errors share no base class
            raise UserError(
                f"{paths[0]}: not a parquet file ({one_line(str(error))[:200]})"
            ) from error
    tables = [_parse(path) for path in paths]
    return {name: [v for t in tables for v in t.get(name, ())] for name in tables[0]}


def _parse(path: Path) -> dict[str, list[Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}: line {line} is not UTF-8; convert it, e.g. iconv -f latin1 -t utf-8"
        ) from error
    if path.suffix.lower() in (".csv", ".tsv"):
        return _parse_csv(text, path)
    return _parse_json(text, path)


def _parse_csv(text: str, path: Path) -> dict[str, list[Any]]:
    """RFC 4180 for .csv; a .tsv has no quoting (as IANA's text/tab-separated-values and GLUE)."""
    csv.field_size_limit(2**31 - 1)
    form: dict[str, Any] = {"strict": True}
    if path.suffix.lower() == ".tsv":
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text), **form)
    try:
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from error
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise UserError(f"{path}: column {twice[0]} occurs twice in the header")
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}: line {number} has {len(row)} fields, the header has {len(header)}"
            )
    return {name: [row[i] for _, row in rows] for i, name in enumerate(header)}


def _parse_json(text: str, path: Path) -> dict[str, list[Any]]:
    """One object per line, or one array of objects."""
    array = path.suffix.lower() == ".json" and text.lstrip().startswith("[")
    pieces = [text] if array else text.split("\n")
    rows: list[Any] = []
    for number, piece in enumerate(pieces, 1):
        if not piece.strip():
            continue
        try:
            parsed = json.loads(piece)
        except json.JSONDecodeError as error:
            line = error.lineno if array else number
            raise UserError(f"{path}: line {line} is not JSON ({error.msg})") from error
        rows += parsed if array else [parsed]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: each row must be a JSON object")
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


def dataset(columns: dict[str, list[Any]]) -> Dataset:
    """Columns as a dataset whose fingerprint is that of its content."""
    from datasets import Dataset

    return Dataset(Dataset.from_dict(columns).data, fingerprint=fingerprint(columns))
