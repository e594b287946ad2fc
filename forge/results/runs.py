"""Runs read back from their directories."""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge.errors import UserError, one_line
from forge.records.files import EVALUATION, METADATA, RESULTS, STATE, read_json

WHAT = ("task", "model", "mode", "experiment")


APART = ("seed", "resume")  # overrides that do not make rows of their own


@dataclass
class Run:
    """A run directory, read."""

    path: Path
    metadata: dict[str, Any]
    state: dict[str, Any]
    results: dict[str, Any]

    @property
    def overrides(self) -> dict[str, str]:
        """What its command line said, key by key."""
        words = (o.lstrip("+").partition("=") for o in self.metadata.get("overrides", ()))
        return {key: value for key, _, value in words}

    @property
    def seed(self) -> int:
        return int(self.metadata["config"]["seed"])

    @property
    def command(self) -> str:
        """The command line that makes this run again."""
        words, processes = self.metadata.get("overrides", []), self.metadata.get("processes", 1)
        start = ["python"]
        if processes > 1 and not any(word.startswith("launcher=") for word in words):
            start = ["torchrun", f"--nproc-per-node={processes}"]
        return shlex.join([*start, "launch.py", *words])


def read_run(path: Path) -> Run:
    """The run in a directory, finished or not, or an evaluation of one, as a run of its own.

    Raises `UserError` for a file cut short.
    """
    found = []
    for name in (EVALUATION, METADATA, STATE, RESULTS):
        try:
            found.append(read_json(path / name))
        except OSError as error:
            raise UserError(f"{path / name}: cannot be read ({one_line(str(error))})") from error
    evaluation, *record = found
    if evaluation:
        return Run(path, evaluation, {"status": "finished"}, record[-1])
    return Run(path, *record)


def finished_runs(folder: Path) -> list[Run]:
    """Every finished run at or below a directory; raises `UserError` when there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    found = [read_run(file.parent) for file in sorted(folder.rglob(METADATA))]
    found = [run for run in found if run.state.get("status") == "finished" and run.results]
    if not found:
        raise UserError(f"{folder}: no finished run in it")
    return sorted(found, key=lambda run: (len(run.path.name), run.path.name))


def what(run: Run) -> dict[str, Any]:
    """What ran, by the names that the command line chose; a model by its path when it had one."""
    choices, given = run.metadata.get("choices", {}), run.overrides
    found = {key: choices.get(key) for key in WHAT}
    if "model.path" in given and "model" not in given:
        found["model"] = Path(given["model.path"].strip("'\"")).name
    return found


def live(status: str, host: str | None, pid: int | None) -> str:
    """A run whose process is gone, on this machine, is interrupted, whatever its record says."""
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
    """Numbers by their size, before words."""
    found = number(value)
    return (found is None, found or 0.0, value)
