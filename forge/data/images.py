"""Files of pictures as sources: a folder for each class, or a table of paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge.data import sources
from forge.data.sources import Columns
from forge.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def read(files: dict[str, str | None], image: str, label: str, bare: str) -> sources.Source:
    """For each split a dataset of absolute paths (column `image`) and labels (column `label`).

    A directory has a folder for each class, named as the label; a table's relative paths are of
    its own folder. Of the split `bare` no labels are read: its directory holds pictures at any
    depth. Raises `UserError` for what cannot be read.
    """
    found: dict[str, Dataset | list[Path]] = {}
    for split, file in files.items():
        if file is None:
            continue
        path, columns = Path(file).expanduser(), [image] if split == bare else [image, label]
        if path.is_dir():
            rows = _folder(path, image, None if split == bare else label)
        else:
            rows = sources.read({split: [path]}, split, columns)
            rows[image] = [value and beside(path, value) for value in rows[image]]
        found[split] = sources.dataset(rows)
    return found


def beside(file: Path, path: str) -> str:
    """A path that stands in a file, relative to the file's own folder."""
    return str((file.parent / Path(path).expanduser()).absolute())


def _folder(directory: Path, image: str, label: str | None) -> Columns:
    found = [p for p in sorted(directory.rglob("*")) if p.suffix.lower() in SUFFIXES]
    depth = len(directory.parts)
    if label is not None and (stray := [p for p in found if len(p.parts) == depth + 1]):
        raise UserError(
            f"{stray[0]}: it is in no class's folder; a split's directory holds a folder of "
            "pictures for each class"
        )
    if not found:
        raise UserError(f"{directory}: no picture in it ({', '.join(SUFFIXES)})")
    rows = {image: [str(p.absolute()) for p in found]}
    return rows if label is None else rows | {label: [p.parts[depth] for p in found]}
