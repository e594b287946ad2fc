"""Runs read back from their directories."""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from forge.errors import UserError, one_line
from forge.records.files import EVALUATION, METADATA, RESULTS, STATE, Json, read_json

WHAT = ("task", "model", "mode", "experiment")


APART = ("seed", "resume")  # overrides that do not make rows of their own


class Headline(TypedDict):
    """The number that a run is judged by, as in results.json."""

    metric: str
    split: str
    value: float


@dataclass
class Run:
    """A run directory, read."""

    path: Path
    metadata: Json
    state: Json
    results: Json

    @property
    def overrides(self) -> dict[str, str]:
        """The values that its command line gave, by key."""
        parts = (o.lstrip("+").partition("=") for o in self.metadata.get("overrides", ()))
        return {key: value for key, _, value in parts}

    @property
    def seed(self) -> int:
        return int(self.metadata["config"]["seed"])

    @property
    def command(self) -> str:
        """The command line that makes this run again."""
        overrides = self.metadata.get("overrides", [])
        processes, start = self.metadata.get("processes", 1), ["python"]
        if processes > 1 and not any(each.startswith("launcher=") for each in overrides):
            start = ["torchrun", f"--nproc-per-node={processes}"]
        return shlex.join([*start, "launch.py", *overrides])


def read_run(path: Path) -> Run:
    """The run in a directory, finished or not, or an evaluation of one, as a run of its own.

    Raises `UserError` for a file cut short.
    """
    contents = []
    for name in (EVALUATION, METADATA, STATE, RESULTS):
        try:
            contents.append(read_json(path / name))
        except OSError as error:
            raise UserError(f"{path / name}: cannot be read ({one_line(str(error))})") from error
    evaluation, *record = contents
    if evaluation:
        return Run(path, evaluation, {"status": "finished"}, record[-1])
    return Run(path, *record)


def finished_runs(folder: Path) -> list[Run]:
    """Every finished run at or below a directory; raises `UserError` when there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    runs = [read_run(file.parent) for file in sorted(folder.rglob(METADATA))]
    runs = [run for run in runs if run.state.get("status") == "finished" and run.results]
    if not runs:
        raise UserError(f"{folder}: no finished run in it")
    return sorted(runs, key=lambda run: (len(run.path.name), run.path.name))


def what(run: Run) -> dict[str, str | None]:
    """What ran, by the names that the command line chose; a model by its path when it had one."""
    choices, given = run.metadata.get("choices", {}), run.overrides
    names = {key: choices.get(key) for key in WHAT}
    if "model.path" in given and "model" not in given:
        names["model"] = Path(given["model.path"].strip("'\"")).name
    return names


def scores_by_name(results: Json) -> Json:
    """Every score of every split, as `validation.accuracy`."""
    splits = results.get("splits", {})
    return {f"{split}.{name}": v for split, scores in splits.items() for name, v in scores.items()}


def live(status: str, host: str | None, pid: int | None) -> str:
    """A run whose process is gone, on this machine, is interrupted, whatever its record has."""
    if status != "running" or pid is None or host != socket.gethostname():
        return status
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "interrupted"
    except PermissionError:  # somebody else's
        pass
    return status


def number(value: str | None) -> float | None:
    """The number that a text spells, if any."""
    try:
        return float(value or "")
    except ValueError:
        return None


def sortable(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, before other texts."""
    size = number(value)
    return (size is None, size or 0.0, value)
