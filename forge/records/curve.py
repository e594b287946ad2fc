"""A run's curve, log.jsonl: a line for each log of training, whatever kills lie between."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from forge.records.files import finite

FILE = "log.jsonl"
SUMMARY = "train_runtime"  # of the line that ends a training, which a longer one has later
Entry: TypeAlias = dict[str, Any]  # step, epoch, seconds, tokens; what was measured there


def rewind(run_dir: Path, step: int, history: Sequence[Mapping[str, object]] = ()) -> None:
    """Keep the lines up to `step`, from which training goes on; it will log the others again.

    Of these steps `history`, a checkpoint's own log, gives what the file lacks: all of a run that
    an earlier version began, or what a host that went down had not written.
    """
    kept, _ = read(run_dir)
    kept = [entry for entry in kept if entry["step"] <= step and SUMMARY not in entry]
    last = max((entry["step"] for entry in kept), default=-1)
    kept += [dict(e) for e in history if last < int(str(e["step"])) <= step and SUMMARY not in e]
    if kept or (run_dir / FILE).exists():
        scratch = run_dir / f".{FILE}.new"
        scratch.write_text("".join(map(_line, kept)), encoding="utf-8")
        scratch.replace(run_dir / FILE)


def append(run_dir: Path, entry: Mapping[str, object]) -> None:
    """Add a line."""
    with open(run_dir / FILE, "a", encoding="utf-8") as file:
        file.write(_line(entry))


def _line(entry: Mapping[str, object]) -> str:
    return json.dumps(finite(dict(entry)), allow_nan=False) + "\n"


def length(run_dir: Path) -> int:
    """Bytes of the file; 0 without one."""
    path = run_dir / FILE
    return path.stat().st_size if path.is_file() else 0


def read(run_dir: Path, offset: int = 0) -> tuple[list[Entry], int]:
    """The lines from a byte on, and the byte to go on from; what is no whole line is left out.

    A file that is shorter than `offset`, as after a rewind, is read from its beginning.
    """
    size = length(run_dir)
    if not size:
        return [], 0
    offset = 0 if offset > size else offset
    with open(run_dir / FILE, "rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    entries = []
    for line in whole.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries, offset + len(whole)
