"""Sweeps read back: rows of runs that differ in their seed only, each against its control."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from forge.errors import UserError
from forge.records import plan
from forge.records.files import Json
from forge.results import statistics as results_statistics
from forge.results.comparison import require_same_rows
from forge.results.runs import APART, Run, finished_runs, number, sortable
from forge.results.statistics import correct

ALPHA = "mode.alpha"


CONTROLS = {ALPHA: "0", "mode": "sft"}  # swept keys, and the value that teaches nothing


@dataclass
class Row:
    """Runs of a sweep that differ in nothing but the seed."""

    values: dict[str, str]  # of the swept keys
    runs: list[Run]
    tuned: dict[str, str] = field(default_factory=dict)  # trainer keys, chosen on another split
    reference: Row | None = None
    against: results_statistics.Difference | None = None  # to the reference
    seeds: list[int] = field(default_factory=list)  # that both have

    @property
    def name(self) -> str:
        return ", ".join(f"{key.removeprefix('mode.')}={v}" for key, v in self.values.items())

    @property
    def teacher(self) -> Json:
        """What the runs recorded of their teacher; empty without one."""
        teachers = (run.metadata["teacher"] for run in self.runs if "teacher" in run.metadata)
        return next(teachers, {})

    def scores(self, split: str, metric: str, seeds: Sequence[int] = ()) -> list[float]:
        """The metric of each run, or of those with the given seeds."""
        kept = [run for run in self.runs if not seeds or run.seed in seeds]
        return [run.results["splits"][split][metric] for run in kept]


class Measured(TypedDict, total=False):
    """What a model costs: weights, size on the disk, milliseconds of batches of 1 and of 32."""

    name: str
    teacher: bool
    weights: int
    megabytes: float
    ms_1: float
    ms_32: float
    speed_up: float | None  # to the only teacher


@dataclass
class Sweep:
    """A sweep's results: rows of runs, judged on one split, beside a reference and a teacher.

    The split is the last that was evaluated: with several, one that chose no checkpoint and no
    setting.
    """

    folder: Path
    rows: list[Row]
    metric: str
    split: str
    chosen_on: str
    greater_is_better: bool
    unfinished: int  # jobs
    models: list[Measured] = field(default_factory=list)
    length: int = 0  # tokens of a timed text

    @property
    def optimistic(self) -> bool:
        """Whether the first evaluation split chose checkpoints or settings."""
        trained = (run.metadata["config"]["trainer"] for row in self.rows for run in row.runs)
        return any(row.tuned for row in self.rows) or any(
            trainer.get("load_best_model_at_end") for trainer in trained
        )


def read_sweep(folder: Path) -> Sweep:
    """Group a sweep's finished runs into rows and compare them.

    Swept `trainer.` keys are tuned for each row on the first evaluation split, so that all rows
    have the same grid. The reference is `mode.alpha=0` (or the first row).
    """
    runs = finished_runs(folder)
    planned = {path.resolve() for path in plan.directories(folder).values()}
    unfinished = len(planned - {run.path.resolve() for run in runs})
    return sweep_of(runs, folder, unfinished)


def sweep_of(runs: list[Run], folder: Path, unfinished: int = 0) -> Sweep:
    """Finished runs, of one sweep or not, as `read_sweep` groups and compares them."""
    headlines = {(run.results["headline"]["metric"], *run.results["splits"]) for run in runs}
    if len(headlines) > 1:
        raise UserError(f"{folder}: its runs are judged by different metrics or on other splits")
    metric, *splits = headlines.pop()
    first, split = splits[0], splits[-1]
    keys = {
        key: {run.overrides.get(key, "") for run in runs} for run in runs for key in run.overrides
    }
    swept = [key for key, values in keys.items() if len(values) > 1 and key not in APART]
    tuned = [key for key in swept if key.startswith("trainer.")]
    shown = [key for key in swept if key not in tuned] or tuned
    better = _greater_is_better(runs[0])

    def mean(group: list[Run]) -> float:
        value = statistics.fmean(run.results["splits"][first][metric] for run in group)
        return value if better else -value

    rows = []
    for values, group in _grouped(runs, shown).items():
        settings = _grouped(group, [key for key in tuned if key not in shown])
        most = max(len(runs) for runs in settings.values())  # a lucky seed alone does not count
        full = {setting: runs for setting, runs in settings.items() if len(runs) == most}
        best = max(full, key=lambda setting: mean(settings[setting]))
        rows.append(Row(dict(values) or {"runs": "all"}, settings[best], dict(best)))
    rows.sort(key=lambda row: [sortable(value) for value in row.values.values()])
    sweep = Sweep(folder, rows, metric, split, first, better, unfinished)
    for row in rows:
        _compare(sweep, row)
    correct([row.against for row in rows if row.against])
    return sweep


def _grouped(runs: list[Run], keys: list[str]) -> dict[tuple[tuple[str, str], ...], list[Run]]:
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        values = tuple((key, run.overrides.get(key, "")) for key in keys)
        groups.setdefault(values, []).append(run)
    return groups


def _greater_is_better(run: Run) -> bool:
    from forge.tasks.metrics import FUNCTIONS, Facts

    facts = FUNCTIONS.get(run.results["headline"]["metric"], Facts())
    return bool(run.metadata.get("greater_is_better", facts.greater_is_better))


def _reference_of(sweep: Sweep, row: Row) -> Row | None:
    """The row with the same values but for a control's; without controls the first row."""
    for key, control in CONTROLS.items():
        if key not in row.values:
            continue
        wanted = {**row.values, key: control}
        for other in sweep.rows:
            if {k: _plain(v) for k, v in other.values.items()} == {
                k: _plain(v) for k, v in wanted.items()
            }:
                return other if other is not row else None
        return None
    return sweep.rows[0] if row is not sweep.rows[0] else None


def _plain(value: str) -> float | str:
    """0, 0.0 and 0e0 are the same value."""
    size = number(value)
    return value if size is None else size


def _compare(sweep: Sweep, row: Row) -> None:
    """A row's paired difference to its reference, over the seeds that both have."""
    reference = _reference_of(sweep, row)
    if reference is None:
        return
    row.reference = reference
    row.seeds = sorted({run.seed for run in row.runs} & {run.seed for run in reference.runs})
    if not row.seeds or not results_statistics.is_own(sweep.metric):
        return
    require_same_rows([run for side in (reference, row) for run in side.runs], sweep.split)
    sides = [
        [
            results_statistics.read_answers(
                run.path / "predictions" / f"{sweep.split}.parquet", sweep.metric
            )
            for seed in row.seeds
            for run in [next(run for run in side.runs if run.seed == seed)]
        ]
        for side in (reference, row)
    ]
    row.against = results_statistics.difference(sides[0], sides[1], sweep.metric)
