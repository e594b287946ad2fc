"""Where rows come from: files, directories, the Hub.

A *source* maps split names to rows: a `datasets.Dataset`, or the files to read when the split is
asked for.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from forge import hub
from forge.data import conll, squad
from forge.data.fingerprints import fingerprint
from forge.errors import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
Source: TypeAlias = "Mapping[str, Dataset | list[Path]]"
Columns: TypeAlias = dict[str, list[Any]]  # of a table, by name
Table: TypeAlias = "Dataset | Columns"
Row: TypeAlias = dict[str, Any]  # one row of a dataset, by column
HALVES = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # of a character, as JSON may spell it
UNLABELLED = "unlabelled"  # the split of rows without answers
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", *conll.SUFFIXES)


def load(*, path: str, name: str | None = None, revision: str | None = None) -> Source:
    """A Hub dataset, or a local directory of `<split>.<csv|tsv|json|jsonl|parquet>` files.

    A directory may also be one that `save_to_disk` wrote or a clone of a Hub repository, where
    `name` is the folder of a subset. Raises `UserError` when there is nothing to read.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        return _directory(directory, name)
    if not hub.looks_like_name(path):
        raise hub.no_directory("task.dataset.path", path)
    from datasets import load_dataset

    with hub.access("dataset", path, "task.dataset.path=DIR"):
        source: Source = load_dataset(path, name, revision=revision)
        return source


def of_files(files: Mapping[str, str | None]) -> dict[str, list[Path]]:
    """A source of the user's own files: those splits that have one.

    Raises `UserError` for a slip in `unlabelled`, which would be a split of its own.
    """
    for split in files:
        if split != UNLABELLED and get_close_matches(split, [UNLABELLED], cutoff=0.8):
            raise UserError(f"task.files.{split}: no such key; did you mean {UNLABELLED}?")
    return {split: [Path(file).expanduser()] for split, file in files.items() if file is not None}


def judged(source: Iterable[str], evaluation: list[str] | None, train: str = "train") -> list[str]:
    """The splits of files to judge by: all but those that are learnt from, unless named."""
    if evaluation is None:
        return [split for split in source if split not in (train, UNLABELLED)]
    known = [split for split in source if split != UNLABELLED]
    if without := [split for split in evaluation if split not in known]:
        raise UserError(
            f"task.evaluation=[{','.join(evaluation)}]: there is no file for it; give one with "
            f"task.files.{without[0]}=FILE" + did_you_mean(without[0], known, listed=False)
        )
    return evaluation


def chosen(
    dataset: Callable[[], Source] | None,
    files: Mapping[str, str | None] | None,
    evaluation: list[str] | None,
    train: str = "train",
    unlabelled: str | None = None,
) -> tuple[Callable[[], Source], list[str], str | None]:
    """What gives a task's source, the splits to judge by, and the one of rows without answers: of
    the user's own files where some are given, else of a dataset, whose validation judges unless
    splits are named."""
    source: Source = of_files(files or {})
    if source:
        unlabelled = unlabelled or (UNLABELLED if UNLABELLED in source else None)
        return lambda: source, judged(source, evaluation, train), unlabelled
    judging = ["validation"] if evaluation is None else evaluation
    return dataset or (lambda: source), judging, unlabelled


def listed(value: object) -> object:
    """The list or mapping that a text spells, as pandas writes one into csv; any other value as it
    is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with suppress(ValueError, SyntaxError):
            parsed: object = ast.literal_eval(value.strip())
            return parsed
    return value


def _directory(directory: Path, name: str | None) -> Source:
    import datasets

    folders = [directory / name] if name and (directory / name).is_dir() else []
    for folder in (*folders, directory, directory / "data"):
        if (folder / "dataset_dict.json").is_file():
            stored: Source = datasets.load_from_disk(str(folder))
            return stored
        if (folder / "state.json").is_file():  # of one datasets.Dataset
            return {"train": _stored_split(folder)}
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


def read(source: Source, split: str, columns: list[str], optional: Sequence[str] = ()) -> Columns:
    """The named columns of a split as lists, `optional` ones where it has them; class labels by
    name, -1 as None.

    A row that lacks a column has None there. Raises `UserError` for a missing split, file or
    column, or a file that cannot be parsed.
    """
    if split not in source:
        raise UserError(f"split {split}: the data has no such split{did_you_mean(split, source)}")
    rows = source[split]
    tables = [_parse(path) for path in rows] if isinstance(rows, list) else [rows]
    where = ", ".join(map(str, rows)) if isinstance(rows, list) else f"split {split}"
    names = [list(t) if isinstance(t, dict) else t.column_names for t in tables]
    if not any(len(t[own[0]]) for t, own in zip(tables, names, strict=True) if own):
        raise UserError(f"{where} has no rows")
    columns = [*columns, *(c for c in optional if any(c in own for own in names))]
    for column in columns:
        lacking = [i for i, own in enumerate(names) if column not in own]
        if len(lacking) == len(tables):
            every = dict.fromkeys(name for own in names for name in own)
            raise UserError(f"column {column}: not in {where}{did_you_mean(column, every)}")
        for i in lacking:
            log.warning("column %s: not in %s; its rows have none", column, list(rows)[i])
    return {column: [v for table in tables for v in _column(table, column)] for column in columns}


def _column(table: Table, column: str) -> list[Any]:
    from datasets import Audio, ClassLabel, Image, List

    if isinstance(table, dict):
        return table.get(column) or [None] * len(next(iter(table.values()), ()))
    if column not in table.column_names:
        return [None] * len(table)
    feature = table.features[column]
    inner = feature.feature if isinstance(feature, List) else None
    if isinstance(feature, Audio | Image):  # decoded it would fill the memory
        table = table.cast_column(column, type(feature)(decode=False))
    values = list(table[column])
    if isinstance(inner, ClassLabel):
        return [None if ids is None else [inner.names[i] for i in ids] for ids in values]
    if isinstance(feature, List | dict):  # Arrow fills in the fields that only other rows have
        return [_without_gaps(value) for value in values]
    if isinstance(feature, ClassLabel):
        return [None if v is None or v < 0 else feature.names[v] for v in values]
    return values


def _without_gaps(value: object) -> object:
    """The value without the fields of structs that are None."""
    if isinstance(value, dict):
        return {k: _without_gaps(v) for k, v in value.items() if v is not None or k == "content"}
    return [_without_gaps(v) for v in value] if isinstance(value, list) else value


def _parse(path: Path) -> Table:
    if path.is_dir():
        return _stored_split(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: not one of {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            return _parse_parquet(path)
        text = _decoded(path.read_bytes(), path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: {reason}; mend that, or name another file") from error
    if suffix in conll.SUFFIXES:
        return conll.parse(text, path)
    return _parse_csv(text, path) if suffix in (".csv", ".tsv") else _parse_json(text, path)


def _stored_split(folder: Path) -> Dataset:
    """The rows of a directory that `save_to_disk` wrote of one `datasets.Dataset`."""
    from datasets import load_from_disk

    if (folder / "state.json").is_file():
        stored: Dataset = load_from_disk(str(folder))
        return stored
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise UserError(
            f"{folder}: it holds the splits {', '.join(splits)}; name one of them, such as "
            f"{folder / splits[0]}"
        )
    raise UserError(f"{folder}: a directory, and not one that save_to_disk wrote; name a file")


def _decoded(content: bytes, path: Path) -> str:
    """UTF-8 unless a byte-order mark says otherwise; raises `UserError` for another encoding."""
    marks = {
        codecs.BOM_UTF8: "utf-8-sig",
        codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
    convert = "convert it, e.g. iconv -f {} -t utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line, odd = content[: error.start].count(b"\n") + 1, content.count(0) > len(content) // 4
        way_out = convert.format("utf-16le" if odd else "latin1")
        raise UserError(f"{path}: line {line} is not {encoding.upper()}; {way_out}") from error
    if "\0" in text:
        low = content[1::2].count(0) >= content[::2].count(0)
        way_out = convert.format("utf-16le" if low else "utf-16be")
        raise UserError(f"{path}: it holds null bytes, so it is not UTF-8; {way_out}")
    return text


def _parse_parquet(path: Path) -> Dataset:
    from datasets import Dataset

    try:
        return Dataset.from_parquet(str(path))
    except Exception as error:  # pyarrow's and datasets' errors share no base class
        raise UserError(f"{path}: not a parquet file ({one_line(str(error))[:200]})") from error


def _parse_csv(text: str, path: Path) -> Columns:
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


def _parse_json(text: str, path: Path) -> Columns:
    """One object per line, one array of objects, or SQuAD's document."""
    in_one = path.suffix.lower() == ".json"
    if in_one and text.lstrip().startswith("{"):
        with suppress(json.JSONDecodeError):
            if nested := squad.rows(json.loads(text)):
                text = json.dumps(nested)
    array = in_one and text.lstrip().startswith("[")
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
    if HALVES.search(text):
        whole = [well_formed(row) for row in rows]
        if odd := [i for i, row in enumerate(rows) if row != whole[i]]:
            log.warning(
                "%s: %d rows hold a lone surrogate, half a character (first: row %d): "
                "read as \ufffd",
                path,
                len(odd),
                odd[0],
            )
        rows = whole
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


def well_formed(value: Any) -> Any:
    """The value with U+FFFD for each half of a character, which no UTF-8 can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {well_formed(k): well_formed(v) for k, v in value.items()}
    return [well_formed(v) for v in value] if isinstance(value, list) else value


def dataset(columns: Columns) -> Dataset:
    """Columns as a dataset whose fingerprint is that of its content."""
    from datasets import Dataset, Features, Json, List

    firsts = {name: next(iter(values), None) for name, values in columns.items()}
    varied: dict[str, Json | List] = {}  # whose fields may differ from row to row
    for name, first in firsts.items():
        if isinstance(first, dict):
            varied[name] = Json()
        elif isinstance(first, list) and first and isinstance(first[0], dict):
            varied[name] = List(Json())
    made = Dataset.from_dict({n: values for n, values in columns.items() if n not in varied})
    if varied:
        made = Dataset.from_dict(columns, features=Features({**made.features, **varied}))
    return Dataset(made.data, info=made.info, fingerprint=fingerprint(columns))
