"""What surrounds the runs of a sweep: keys given twice before it, its tables after it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from forge.config.compose import override
from forge.errors import FULL, UserError, one_line
from forge.launching.resume import SWEPT
from forge.records.files import METADATA, RESULTS, STATE, read_json
from forge.records.secrets import masked

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

Jobs: TypeAlias = dict[str, tuple[list[str], str]]  # by number: overrides, and why it failed
COLUMNS = ("job", "overrides", "status", "headline", "error")


class Sweep(Callback):
    """Hydra calls this in the process that starts a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A key on the command line replaces what an experiment sweeps it over."""
        params = config.hydra.sweeper.get("params")
        if params:
            given = {word.lstrip("+").split("=", 1)[0] for word in config.hydra.overrides.task}
            with open_dict(params):
                for key in given & set(params):
                    del params[key]
        if is_search(config):  # Hydra's own sweeper alone writes what `resume=` reads
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            whole = OmegaConf.create(masked(OmegaConf.to_container(config)))
            OmegaConf.save(whole, folder / SWEPT)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Sum up a search, whose jobs are launched a few at a time."""
        if is_search(config):
            sum_up(Path(config.hydra.sweep.dir))


def is_search(config: DictConfig) -> bool:
    """Whether the results of jobs decide on the next ones (Optuna)."""
    return "BasicSweeper" not in config.hydra.sweeper._target_


def run_here(
    config: DictConfig,
    overrides: Sequence[Sequence[str]],
    first: int,
    launch: Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]],
) -> Sequence[JobReturn]:
    """Launch the jobs, numbered from `first`, and sum up, also when they are stopped."""
    folder = Path(str(config.hydra.sweep.dir))
    jobs: Jobs = {str(n): (masked(list(words)), "") for n, words in enumerate(overrides, first)}
    try:
        returned = launch(overrides, first)
    except BaseException:
        sum_up(folder, jobs)
        raise
    for number, job in enumerate(returned, first):
        error = job._return_value
        if isinstance(error, Exception):  # a mistake leaves no directory to read it from
            named = f"{type(error).__name__}: {error}"
            line = one_line(str(error) if isinstance(error, UserError) else named)
            jobs[str(number)] = (jobs[str(number)][0], line)
    if not is_search(config):
        sum_up(folder, jobs)
    return returned


def sum_up(folder: Path, jobs: Jobs | None = None) -> int:
    """Print a sweep's jobs and its report, write sweep.csv; how many jobs did not finish."""
    if not folder.is_dir():
        return 0
    from forge.results import sweep_report, tables

    lines = table(folder, jobs or {})
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
    if failed := sum(line[2] != "finished" for line in lines):
        way_out = f"go on with python launch.py {override('resume', str(folder))}"
        print(f"error: {failed} jobs of the sweep did not finish; {way_out}", file=sys.stderr)
    return failed


def differing(overrides: list[str]) -> list[str]:
    """Each job's overrides without those that all of several jobs share."""
    words = [line.split() for line in overrides]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    return [" ".join(word for word in line if word not in shared) for line in words]


def table(folder: Path, jobs: Jobs) -> list[tuple[str, ...]]:
    """A line for each job of a sweep: its number, overrides, status, headline, error."""
    names = {path.name for path in folder.iterdir() if path.name.isdecimal()} | jobs.keys()
    lines: list[tuple[str, ...]] = []
    for name in sorted(names, key=int):
        metadata = read_json(folder / name / METADATA)
        state = read_json(folder / name / STATE)
        headline = read_json(folder / name / RESULTS).get("headline", {})
        planned, error = jobs.get(name, ([], ""))
        overrides = metadata.get("overrides") or planned
        status = state.get("status", "not started")
        if error and status != "finished":  # killed, it could not say so itself
            status = "failed"
        last = (metadata.get("attempts") or [{}])[-1]
        value = f"{headline['metric']} {headline['value']:.4f}" if headline else ""
        lines.append((name, " ".join(overrides), status, value, error or last.get("error") or ""))
    return lines
