"""The runs that the pages are about: kept in memory, read again in the background."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from forge.errors import UserError, did_you_mean
from forge.records import curve
from forge.records.files import Json
from forge.results import index
from forge.results.runs import Run, read_run

PATIENCE = 3.0  # seconds for which what was read counts, and ten times as long as reading took
KEPT = 24  # results of slow questions
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """A run as the index keeps it; `config` is JSON, read where it is asked for."""

    id: str
    path: Path
    stamp: str
    facts: str
    config: str


class Library:
    """Run directories below some folders. An address names a run by its id, which is looked up
    here: no path is ever made from an address."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(os.path.abspath(folder)) for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such directory")
        self.kept: dict[str, Kept] = {}
        self.columns: dict[str, dict[str, object]] = {}  # a key of configs: its value by run
        self.slurm: dict[str, str] = {}  # states of jobs
        self.answers: dict[Hashable, Future[Any]] = {}
        self.workers = ThreadPoolExecutor(2)
        self.curves: dict[Path, tuple[list[curve.Entry], int]] = {}
        self.read_at, self.took = 0.0, 0.0
        self.lock, self.reading = threading.Lock(), threading.Lock()
        self.read()

    def read(self) -> None:
        """Read again what is there."""
        started, found = time.monotonic(), {}
        roots: dict[Path, str] = {}
        for folder in self.folders:
            name = folder.name if len(self.folders) > 1 else ""
            while name in roots.values():
                name += "'"
            roots[folder] = name
        for folder, name in roots.items():
            root = os.path.realpath(folder)
            for path, (stamp, facts, config) in index.kept(folder, True).items():
                id = os.path.normpath(os.path.join(name, os.path.relpath(path, root)))
                id = folder.name if id == "." else id
                found[id] = Kept(id, Path(path), stamp, facts, config)
        jobs = _slurm() if any('"slurm_job": "' in kept.facts for kept in found.values()) else {}
        with self.lock:
            changed = found != self.kept
            self.kept, self.slurm = found, jobs
            self.columns = {} if changed else self.columns
        self.read_at, self.took = time.monotonic(), time.monotonic() - started

    def refresh(self) -> None:
        """Read again in the background when what was read is old; answers do not wait for it."""
        old = time.monotonic() - self.read_at > max(PATIENCE, 10 * self.took)
        if old and self.reading.acquire(blocking=False):

            def work() -> None:
                try:
                    self.read()
                finally:
                    self.reading.release()

            threading.Thread(target=work, daemon=True).start()

    def listing(self, where: str = "", sort: str = "age", more: Sequence[str] = ()) -> list[Json]:
        """Facts of the runs that fit, in order, with other keys of configs that are asked for.

        Raises `UserError` for conditions in another language, or a key that no run has.
        """
        self.refresh()
        runs = index.youngest_first([self.facts(kept) for kept in list(self.kept.values())])
        asked = list(dict.fromkeys([*index.keys_of(where, sort), *more]))
        known = {key for run in runs for key in run}
        for key in [key for key in asked if key not in known]:
            column = self.column(key)
            if column:
                known.add(key)
            for run in runs:
                if run["run"] in column:
                    run[key] = column[run["run"]]
        if runs:
            index.require_keys(index.keys_of(where, sort), known, "these directories")
        return index.select(runs, where, sort)

    def facts(self, kept: Kept) -> Json:
        """What is known of a run; its command to go on names its directory."""
        run = index.live(json.loads(kept.facts), kept.id)
        if run["resume"]:
            run["resume"] = index.resume(str(kept.path))
        run["silence"] = index.silence(run)
        job = run.pop("slurm_job", None)
        if job and run["status"] == "running" and self.slurm:
            run["silence"] += f", SLURM: {self.slurm.get(str(job), 'no such job')}"
        return run

    def column(self, key: str) -> dict[str, object]:
        """The values of a config's key, by run."""
        if key not in self.columns:
            mark, values = json.dumps(key), {}
            for kept in list(self.kept.values()):
                if mark in kept.config:
                    config = json.loads(kept.config)
                    if key in config:
                        values[kept.id] = config[key]
            self.columns[key] = values
        return self.columns[key]

    def keys(self) -> list[str]:
        """Keys that the listing can show: facts, metrics, those of a few configs."""
        some = list(self.kept.values())[:: max(1, len(self.kept) // 50)]
        keys = dict.fromkeys(index.FACTS)
        for kept in some:
            keys |= dict.fromkeys([*json.loads(kept.facts), *json.loads(kept.config)])
        return [key for key in keys if key not in ("process", "slurm_job", "run")]

    def find(self, id: str) -> Kept:
        """The run with an id; raises `UserError` when there is none."""
        if id not in self.kept:
            raise UserError(f"{id}: no such run here{did_you_mean(id, self.kept, listed=False)}")
        return self.kept[id]

    def run(self, id: str) -> Run:
        """The files of a run; raises `UserError`."""
        run = read_run(self.find(id).path)
        if not isinstance(run.metadata.get("config"), dict):
            raise UserError(f"{id}: run_metadata.json is not as Forge writes it")
        return run

    def folder(self, id: str) -> tuple[Path, list[str]]:
        """A directory that holds runs, and their ids; raises `UserError`."""
        inside = [each for each in self.kept if os.path.dirname(each) == id]
        if not inside:
            raise UserError(f"{id}: no directory of runs here")
        return self.kept[inside[0]].path.parent, sorted(inside, key=index.natural)

    def curve(self, path: Path) -> list[curve.Entry]:
        """A run's curve, of which only what is new is read."""
        entries, offset = self.curves.get(path, ([], 0))
        if offset and curve.length(path) < offset:
            entries, offset = [], 0
        new, offset = curve.read(path, offset)
        self.curves[path] = ([*entries, *new], offset)
        return self.curves[path][0]

    def later(self, question: Hashable, answer: Callable[[], T], patience: float = 2.0) -> T | None:
        """An answer that takes long, worked out in the background and kept; None until it is there.

        The question holds the stamps of what it is about. Raises what `answer` raised.
        """
        if question not in self.answers:
            while len(self.answers) >= KEPT:
                self.answers.pop(next(iter(self.answers)), None)
            self.answers[question] = self.workers.submit(answer)
        with suppress(TimeoutError):
            found: T = self.answers[question].result(timeout=patience)
            return found
        return None


def _slurm() -> dict[str, str]:
    """The states of this user's jobs; empty where there is no SLURM or it does not answer."""
    if not shutil.which("squeue"):
        return {}
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        command = ["squeue", "-hr", "-o", "%A|%T", "-u", getpass.getuser()]
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return dict(line.split("|") for line in told.stdout.split())
    return {}
