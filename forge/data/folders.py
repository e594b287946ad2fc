"""Files as rows of a source: a folder for each class, or a table of paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from forge.data import sources
from forge.data.sources import Columns
from forge.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def read(
    files: Mapping[str, list[Path]],
    column: str,
    label: str,
    bare: str,
    suffixes: tuple[str, ...],
    group: str | None = None,
) -> sources.Source:
    """For each split a dataset of absolute paths (`column`), labels and, if asked for, groups.

    A directory has a folder for each class, named as the label; a table's relative paths are of
    its own folder. Of the split `bare` no labels are read: its directory holds files at any
    depth. Only files with one of `suffixes` count. Training rows that are not there are left to
    who asks for them. Raises `UserError` for what cannot be read.
    """
    splits: dict[str, Dataset | list[Path]] = {}
    for split, (path,) in files.items():
        columns = [column] if split == bare else [column, label]
        if split in ("train", bare) and not path.exists():
            splits[split] = [path]
            continue
        if path.is_dir():
            if group:
                raise UserError(f"task.group={group}: {path} is a directory; name a table with it")
            rows = _folder(path, column, None if split == bare else label, suffixes)
        else:
            rows = sources.read({split: [path]}, split, [*columns, *([group] if group else [])])
            rows[column] = [
                beside(path, value) if isinstance(value, str) and value else value
                for value in rows[column]  # a path, or a file's bytes
            ]
        splits[split] = sources.dataset(rows)
    return splits


def apart(source: sources.Source, group: str | None, sides: list[list[str]]) -> sources.Source:
    """The source; raises `UserError` where a value of the column `group` (a speaker) is on two
    sides.

    A side is one or several splits, such as those that are learnt from. Files that are gone, as
    the training rows may be where a finished run is judged, are not compared.
    """
    if group is None:
        return source
    seen: dict[object, str] = {}
    for side in sides:
        own: dict[object, str] = {}
        for split in [name for name in side if _is_there(source.get(name))]:
            own |= dict.fromkeys(set(sources.read(source, split, [group])[group]) - {None}, split)
        if both := sorted(seen.keys() & own.keys(), key=str):
            raise UserError(
                f"task.group={group}: {both[0]} is in split {seen[both[0]]} and in "
                f"{own[both[0]]} ({len(both)} are in two splits); keep each in one of them"
            )
        seen |= own
    return source


def _is_there(rows: Dataset | list[Path] | None) -> bool:
    return rows is not None and not (isinstance(rows, list) and not all(p.exists() for p in rows))


def beside(file: Path, path: str) -> str:
    """A path that stands in a file, relative to the file's own folder."""
    return str((file.parent / Path(path).expanduser()).absolute())


def _folder(directory: Path, column: str, label: str | None, suffixes: tuple[str, ...]) -> Columns:
    files = [p for p in sorted(directory.rglob("*")) if p.suffix.lower() in suffixes]
    depth = len(directory.parts)
    if label is not None and (stray := [p for p in files if len(p.parts) == depth + 1]):
        raise UserError(
            f"{stray[0]}: it is in no class's folder; a split's directory holds a folder of "
            "files for each class"
        )
    if not files:
        raise UserError(f"{directory}: no {column} in it ({', '.join(suffixes)})")
    rows = {column: [str(p.absolute()) for p in files]}
    return rows if label is None else rows | {label: [p.parts[depth] for p in files]}
