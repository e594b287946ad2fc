"""What surrounds the runs of a sweep: keys given twice before it, its tables after it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from forge.errors import FULL, UserError, one_line
from forge.launching.resume import SWEPT
from forge.records.files import read_json
from forge.records.secrets import masked

running: Path | None = None  # the sweep that this process has started and not yet summed up
errors: dict[str, tuple[list[str], str]] = {}  # of jobs run here: overrides and error, by job
planned: dict[str, list[str]] = {}  # overrides of the jobs to come, by job; none of a search
COLUMNS = ("job", "overrides", "status", "headline", "error")


class Sweep(Callback):
    """Hydra calls this in the process that starts a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A key on the command line replaces what an experiment sweeps it over."""
        global running
        running = Path(config.hydra.sweep.dir)
        errors.clear()
        planned.clear()
        params = config.hydra.sweeper.get("params")
        if params:
            given = {word.lstrip("+").split("=", 1)[0] for word in config.hydra.overrides.task}
            with open_dict(params):
                for key in given & set(params):
                    del params[key]
        if "BasicSweeper" in config.hydra.sweeper._target_:
            words = [f"{key}={value}" for key, value in (params or {}).items()]
            planned.update(_jobs_of([*words, *config.hydra.overrides.task]))
        else:  # Hydra's own sweeper alone writes what `resume=` reads
            running.mkdir(parents=True, exist_ok=True)
            whole = OmegaConf.create(masked(OmegaConf.to_container(config)))
            OmegaConf.save(whole, running / SWEPT)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Remember why a job failed: a mistake leaves no directory to read it from."""
        error = job_return._return_value
        if isinstance(error, Exception):
            told = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            words = list(config.hydra.overrides.task)
            errors[str(config.hydra.job.num)] = (words, one_line(told))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Sum up."""
        tell()


def _jobs_of(words: list[str]) -> dict[str, list[str]]:
    """Each job's overrides, as Hydra's own sweeper numbers them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(words)
    (found,) = BasicSweeper.split_arguments(parsed, None)
    return {str(number): masked(overrides) for number, overrides in enumerate(found)}


def tell() -> int:
    """Print a sweep's jobs and its report, write sweep.csv; how many jobs did not finish."""
    global running
    folder, running = running, None
    if folder is None or not folder.is_dir():
        return 0
    from forge.results import sweep_report, tables

    lines = jobs(folder)
    words = differing([line[1] for line in lines])
    short = [(line[0], own, *line[2:]) for line, own in zip(lines, words, strict=True)]
    if lines:
        print(tables.drawn(COLUMNS, short))
    try:
        with open(folder / "sweep.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *lines])
        print(sweep_report.report(folder)[1])
    except UserError as error:
        print(f"report  {error}")
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"report  {folder}: the disk is full")
    sys.stdout.flush()
    return sum(line[2] != "finished" for line in lines)


def differing(overrides: list[str]) -> list[str]:
    """Each job's overrides without those that all of several jobs share."""
    words = [line.split() for line in overrides]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    return [" ".join(word for word in line if word not in shared) for line in words]


def jobs(folder: Path) -> list[tuple[str, ...]]:
    """A line for each job of a sweep: its number, overrides, status, headline, error."""
    names = {path.name for path in folder.iterdir() if path.name.isdecimal()}
    names |= errors.keys() | planned.keys()
    lines: list[tuple[str, ...]] = []
    for name in sorted(names, key=int):
        metadata = read_json(folder / name / "run_metadata.json")
        state = read_json(folder / name / "training_state.json")
        headline = read_json(folder / name / "results.json").get("headline", {})
        ours = metadata.get("overrides") or planned.get(name, [])
        overrides, error = errors.get(name, (ours, ""))
        status = state.get("status", "not started")
        if error and status != "finished":  # killed, it could not say so itself
            status = "failed"
        last = (metadata.get("attempts") or [{}])[-1]
        value = f"{headline['metric']} {headline['value']:.4f}" if headline else ""
        lines.append((name, " ".join(overrides), status, value, error or last.get("error") or ""))
    return lines
