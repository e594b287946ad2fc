"""What surrounds the runs of a sweep: keys given twice before it, its tables after it."""

from __future__ import annotations

import csv
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from forge.config.compose import override
from forge.config.schema import SWEEP
from forge.errors import FULL, Preempted, UserError, one_line
from forge.launching.resume import SWEPT
from forge.records import plan
from forge.records.files import METADATA, RESULTS, STATE, Json, read_json
from forge.records.recorded import key_of, require_known
from forge.records.secrets import MASK, masked, secrets_in
from forge.results import runs

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.utils import JobReturn

Jobs: TypeAlias = dict[int, tuple[list[str], str]]  # by number: overrides, and why it failed
NUMBERED = "${hydra.job.num}"  # hydra.sweep.subdir unless the user names another
RDB = "optuna.storages.RDBStorage"
COLUMNS = ("job", "overrides", "status", "headline", "error")


class Sweep(Callback):
    """Hydra calls this in the process that starts a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
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
            OmegaConf.save(config, folder / SWEPT)
            _mask_record(folder)
            _commit_at_once(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Sum up a search, whose jobs are launched a few at a time."""
        if is_search(config):
            sum_up(Path(config.hydra.sweep.dir))


def _commit_at_once(config: DictConfig) -> None:
    """Let Optuna's database commit each statement: optuna 2 leaves that to SQLAlchemy, which from
    version 2 on no longer does it, and a new database then has no version."""
    sweeper = config.hydra.sweeper
    if isinstance(url := sweeper.get("storage"), str) and "://" in url and "redis" not in url:
        engine = {"isolation_level": "AUTOCOMMIT"}
        with open_dict(sweeper):
            sweeper.storage = {"_target_": RDB, "url": url, "engine_kwargs": engine}


def is_search(config: DictConfig) -> bool:
    """Whether the results of jobs decide on the next ones (Optuna)."""
    return "BasicSweeper" not in config.hydra.sweeper._target_


def planned(
    config: DictConfig,
    loader: ConfigLoader,
    given: Sequence[Sequence[str]],
    first: int,
) -> dict[int, list[str]]:
    """The overrides of the jobs to launch, by number; the sweep's plan is written.

    A job is what its overrides say: one that the plan has keeps its number, others get the next
    ones. Of a sweep that goes on (`resume=`) they are the plan's, with what the command adds; a
    search makes the same ones again, in their order, as long as it finds the same.
    """
    folder = Path(str(config.hydra.sweep.dir))
    before = plan.read(folder)
    if not given:
        raise UserError("the sweep has no jobs: one of its overrides names no value")
    goes_on, search = config.resume == SWEEP, is_search(config)
    if before and goes_on and not search:
        (added,) = given
        return {n: _with(job.overrides, list(added)) for n, job in before.items()}
    numbers = {} if search else {tuple(job.overrides): n for n, job in before.items()}
    free = first if search and goes_on else max([first - 1, *before]) + 1
    jobs: dict[int, list[str]] = {}
    for overrides in given:
        own = _own(overrides)
        number = numbers.pop(tuple(own), free)
        free += number == free
        if search and goes_on and number in before and before[number].overrides != own:
            number = max([*before, *jobs]) + 1  # it searches elsewhere than it did
        jobs[number] = list(overrides)
    where = {n: _directory(config, loader, overrides, n) for n, overrides in jobs.items()}
    places = {job.directory: n for n, job in before.items()}
    for n, directory in where.items():
        if places.setdefault(directory, n) != n:
            raise UserError(
                f"hydra.sweep.subdir: jobs {places[directory]} and {n} would both be in "
                f"{folder / directory}; name in it every key that the sweep is over"
            )
    made = {n: plan.Job(n, _own(overrides), where[n]) for n, overrides in jobs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder, before | made)
    _mask_record(folder)
    return jobs


def _mask_record(folder: Path) -> None:
    """Hydra's record of the sweep in a folder, without secrets."""
    if (folder / SWEPT).is_file():
        content = OmegaConf.to_container(OmegaConf.load(folder / SWEPT))
        if masked(content) != content:
            OmegaConf.save(OmegaConf.create(masked(content)), folder / SWEPT)


def _own(overrides: Sequence[str]) -> list[str]:
    """A job's overrides as the plan holds them: without secrets, and without what resumes it."""
    return masked([word for word in overrides if not word.startswith("resume=")])


def _with(overrides: list[str], added: list[str]) -> list[str]:
    """A job's overrides with a command's, which replace those of the same keys."""
    new = [each for each in added if each not in overrides]
    keys = {key_of(each) for each in new}
    kept = [each for each in overrides if key_of(each) not in keys]
    for each in kept:
        require_known(key_of(each), each)
    return [*kept, *new]


def _directory(config: DictConfig, loader: ConfigLoader, overrides: list[str], number: int) -> str:
    """Where a job's run is to be, in the sweep's directory."""
    if config.hydra.sweep._get_node("subdir")._value() == NUMBERED:
        return str(number)
    composed = loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.num = number
    return str(composed.hydra.sweep.subdir)


def run_here(
    config: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[Sequence[str]],
    first: int,
    launch: Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]],
) -> Sequence[JobReturn]:
    """Launch the jobs, numbered from `first`, and sum up, also when they are stopped.

    Of a sweep whose jobs are all refused before they begin nothing stays.
    """
    folder = Path(str(config.hydra.sweep.dir))
    try:
        numbered = planned(config, loader, overrides, first)
    except UserError:
        discard(folder)
        raise
    jobs: Jobs = {n: (masked(own), "") for n, own in numbered.items()}
    returned: list[JobReturn] = []
    try:
        with _masked_log(numbered.values()):
            for start, group in _consecutive(numbered):
                returned += launch(group, start)
    except BaseException as stopped:
        sum_up(folder, jobs)
        if isinstance(stopped, Preempted | KeyboardInterrupt):
            print(f"to go on: python launch.py {override('resume', os.path.relpath(folder))}")
        raise
    if all(isinstance(job._return_value, UserError) for job in returned) and discard(folder):
        return returned
    for number, job in zip(numbered, returned, strict=True):
        error = job._return_value
        if isinstance(error, Exception):  # a mistake leaves no directory to read it from
            named = f"{type(error).__name__}: {error}"
            line = one_line(str(error) if isinstance(error, UserError) else named)
            jobs[number] = (jobs[number][0], line)
    if not is_search(config):
        sum_up(folder, jobs)
    return returned


@contextmanager
def _masked_log(overrides: Iterable[list[str]]) -> Iterator[None]:
    """Hydra's launcher prints the overrides of each job: without secrets."""
    secrets = secrets_in(list(overrides))

    def mask(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        for secret in secrets:
            text = text.replace(secret, MASK)
        record.msg, record.args = text, ()
        return True

    log = logging.getLogger(BasicLauncher.__module__)
    log.addFilter(mask)
    try:
        yield
    finally:
        log.removeFilter(mask)


def discard(folder: Path) -> bool:
    """Remove what was written of a sweep none of whose jobs has begun, and folders left empty;
    whether it is one."""
    if any(path.is_dir() for path in plan.directories(folder).values()):
        return False
    for name in (SWEPT, plan.FILE):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # until the first that is not empty
        for path in (folder, *folder.parents):
            path.rmdir()
    return True


def _consecutive(numbered: dict[int, list[str]]) -> list[tuple[int, list[list[str]]]]:
    """Jobs in groups of consecutive numbers, each with its first."""
    groups: list[tuple[int, list[list[str]]]] = []
    for number, overrides in numbered.items():
        if groups and number == groups[-1][0] + len(groups[-1][1]):
            groups[-1][1].append(overrides)
        else:
            groups.append((number, [overrides]))
    return groups


def sum_up(folder: Path, jobs: Jobs | None = None) -> int:
    """Print a sweep's jobs and its report, write sweep.csv; how many jobs did not finish."""
    if not folder.is_dir():
        return 0
    from forge.results import sweep_report, tables

    lines = table(folder, jobs or {})
    differ = differing([line.overrides for line in lines])
    short = [line.cells(own) for line, own in zip(lines, differ, strict=True)]
    try:
        with open(folder / "sweep.csv", "w", encoding="utf-8", newline="") as file:
            _write_csv(file, lines)
        summary = sweep_report.report(folder)[1]
    except UserError as error:
        summary = f"report  {error}"
    except OSError as error:
        if error.errno not in FULL:
            raise
        summary = f"report  {folder}: the disk is full"
    print(*([tables.drawn(COLUMNS, short)] if lines else []), summary, sep="\n", flush=True)
    if failed := sum(line.status != "finished" for line in lines):
        way_out = f"go on with python launch.py {override('resume', str(folder))}"
        print(f"error: {failed} jobs of the sweep did not finish; {way_out}", file=sys.stderr)
    return failed


def _write_csv(file: TextIO, lines: Sequence[Line]) -> None:
    """A line for each job, with a column for each key and each metric, numbers in full."""
    rows: list[list[dict[str, object]]] = []
    for line in lines:
        words = (word.lstrip("+").partition("=") for word in line.overrides)
        keys: dict[str, object] = {key: value for key, _, value in words}
        scores = runs.scores_by_name(line.results)
        ends: list[dict[str, object]] = [{"status": line.status}, scores, {"error": line.error}]
        rows.append([{"job": line.number}, keys, *ends])
    header = [name for part in zip(*rows, strict=True) for row in part for name in row]
    writer = csv.DictWriter(file, dict.fromkeys(header))
    writer.writeheader()
    writer.writerows({n: v for part in row for n, v in part.items()} for row in rows)


def differing(overrides: list[list[str]]) -> list[list[str]]:
    """Each job's overrides without those that all of several jobs share."""
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [[each for each in own if each not in shared] for own in overrides]


@dataclass
class Line:
    """A job of a sweep, and what came of it."""

    number: int
    overrides: list[str]
    status: str
    results: Json
    error: str

    def cells(self, overrides: list[str]) -> tuple[str, ...]:
        """For a reader, with these of its overrides: as in `COLUMNS`."""
        headline = self.results.get("headline")
        value = f"{headline['metric']} {headline['value']:.4f}" if headline else ""
        return str(self.number), " ".join(overrides), self.status, value, self.error


def table(folder: Path, jobs: Jobs) -> list[Line]:
    """A line for each job of a sweep."""
    directories, plans = plan.directories(folder), plan.read(folder)
    lines = []
    for number in sorted(directories.keys() | jobs.keys()):
        run = directories.get(number, folder / str(number))
        metadata, state = read_json(run / METADATA), read_json(run / STATE)
        own = plans[number].overrides if number in plans else []
        overrides, error = jobs.get(number, (own, ""))
        status = state.get("status", "not started")
        if error and status != "finished":  # killed, it could not say so itself
            status = "failed"
        last = (metadata.get("attempts") or [{}])[-1]
        error = error or last.get("error") or ""
        given = list(metadata.get("overrides") or overrides)
        lines.append(Line(number, given, status, read_json(run / RESULTS), error))
    return lines
