"""Files of a word and its tag in each line, as CoNLL's shared tasks have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forge.errors import UserError

SUFFIXES = (".conll", ".bio", ".iob", ".iob2")


def parse(text: str, path: Path) -> dict[str, list[Any]]:
    """Columns tokens and tags, the first and the last of a line's columns; a blank line ends a row.

    Lines of document starts and comments are left out. Raises `UserError` for a line of another
    number of columns than the first.
    """
    separator = "\t" if "\t" in text else None
    columns: dict[str, list[Any]] = {"tokens": [], "tags": []}
    row: list[list[str]] = []
    width = 0
    for number, line in enumerate([*text.split("\n"), ""], 1):
        fields = line.rstrip("\r").split(separator) if line.strip() else []
        if fields and not fields[0].startswith("-DOCSTART-"):
            comment = line.startswith("#") and (not separator or separator not in line)
            width = width or (0 if comment else len(fields))
            if len(fields) == width > 1:
                row.append(fields)
            elif not line.startswith("#"):
                raise UserError(
                    f"{path}: line {number} has {len(fields)} columns, not "
                    f"{max(width, 2)}: a word first and its tag last, in every line"
                )
        elif row:
            columns["tokens"].append([fields[0] for fields in row])
            columns["tags"].append([fields[-1].strip() for fields in row])
            row = []
    return columns
