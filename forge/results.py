"""Read run directories back: runs, and sweeps as rows of runs that differ in their seeds only."""

from __future__ import annotations

import io
import socket
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from forge import compare
from forge.config import dotted_values
from forge.errors import UserError
from forge.record import METADATA, NOT_COMPARED, RESULTS, STATE, read_json

ALPHA = "mode.alpha"
CONTROLS = {ALPHA: "0", "mode": "sft"}  # swept keys, and the value that teaches nothing
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


def read_run(path: Path) -> Run:
    """The run in a directory, finished or not."""
    return Run(path, *(read_json(path / name) for name in (METADATA, STATE, RESULTS)))


def finished_runs(folder: Path) -> list[Run]:
    """Every finished run at or below a directory; raises `UserError` when there is none."""
    found = [read_run(file.parent) for file in sorted(folder.rglob(METADATA))]
    found = [run for run in found if run.state.get("status") == "finished" and run.results]
    if not found:
        raise UserError(f"{folder}: no finished run in it")
    return sorted(found, key=lambda run: (len(run.path.name), run.path.name))


def listing(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Header and a line for each run at or below a directory, the last to change first.

    A run whose process is gone, on this machine, is interrupted, whatever its record says.
    """
    runs = [read_run(file.parent) for file in folder.rglob(METADATA)]
    if not runs:
        raise UserError(f"{folder}: no run in it")
    lines = []
    for run in sorted(runs, key=lambda run: str(run.state.get("updated", "")), reverse=True):
        headline = run.results.get("headline") or {}
        steps = f"{run.state.get('step', 0)}/{run.state.get('max_steps', '?')}"
        value = f"{headline['metric']} {headline['value']:.4f}" if headline else ""
        status = _status(run)
        resume = "" if status in ("finished", "running") else f"python launch.py resume={run.path}"
        lines.append([str(run.path), status, steps, value, _age(run.state.get("updated")), resume])
    return ["run", "status", "step", "headline", "age", "to go on"], lines


def _status(run: Run) -> str:
    status = str(run.state.get("status", "not started"))
    last = (run.metadata.get("attempts") or [{}])[-1]
    if status != "running" or last.get("host") != socket.gethostname():
        return status
    return status if Path(f"/proc/{last.get('pid')}").exists() else "interrupted"


def _age(updated: str | None) -> str:
    if not updated:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(updated)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@dataclass
class Row:
    """Runs of a sweep that differ in nothing but the seed."""

    values: dict[str, str]  # of the swept keys
    runs: list[Run]
    tuned: dict[str, str] = field(default_factory=dict)  # trainer keys, chosen on another split
    reference: Row | None = None
    against: compare.Difference | None = None  # to the reference
    seeds: list[int] = field(default_factory=list)  # that both have

    @property
    def name(self) -> str:
        return ", ".join(f"{key.removeprefix('mode.')}={v}" for key, v in self.values.items())

    @property
    def teacher(self) -> dict[str, Any]:
        """What the runs recorded of their teacher; empty without one."""
        found = (run.metadata["teacher"] for run in self.runs if "teacher" in run.metadata)
        return next(found, {})

    def scores(self, split: str, metric: str, seeds: Sequence[int] = ()) -> list[float]:
        """The metric of each run, or of those with the given seeds."""
        kept = [run for run in self.runs if not seeds or run.seed in seeds]
        return [run.results["splits"][split][metric] for run in kept]


@dataclass
class Sweep:
    """What a sweep found: rows of runs, judged on one split, beside a reference and a teacher.

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
    models: list[dict[str, Any]] = field(default_factory=list)
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
    better = _greater_is_better(metric)

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
    rows.sort(key=lambda row: [_sortable(value) for value in row.values.values()])
    jobs = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    unfinished = len({path.name for path in jobs} - {run.path.name for run in runs})
    sweep = Sweep(folder, rows, metric, split, first, better, unfinished)
    for row in rows:
        _compare(sweep, row)
    return sweep


def _grouped(runs: list[Run], keys: list[str]) -> dict[tuple[tuple[str, str], ...], list[Run]]:
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        values = tuple((key, run.overrides.get(key, "")) for key in keys)
        groups.setdefault(values, []).append(run)
    return groups


def _greater_is_better(metric: str) -> bool:
    from forge import metrics

    return bool(getattr(metrics.load([metric])[0], "greater_is_better", True))


def number(value: str | None) -> float | None:
    try:
        return float(value or "")
    except ValueError:
        return None


def _sortable(value: str) -> tuple[bool, float, str]:
    found = number(value)
    return (found is None, found or 0.0, value)


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
    found = number(value)
    return value if found is None else found


def _compare(sweep: Sweep, row: Row) -> None:
    """A row's paired difference to its reference, over the seeds that both have."""
    reference = _reference_of(sweep, row)
    if reference is None:
        return
    row.reference = reference
    row.seeds = sorted({run.seed for run in row.runs} & {run.seed for run in reference.runs})
    if not row.seeds:
        return
    sides = [
        [
            compare.read_answers(run.path / "predictions" / f"{sweep.split}.parquet", sweep.metric)
            for seed in row.seeds
            for run in [next(run for run in side.runs if run.seed == seed)]
        ]
        for side in (reference, row)
    ]
    row.against = compare.difference(sides[0], sides[1], sweep.metric)


def shown(path: Path) -> list[tuple[str, str]]:
    """Name and value of what one asks first of a run; raises `UserError` when there is none."""
    run = read_run(path)
    if not run.metadata:
        raise UserError(f"{path}: no run in this directory")
    data, state, status = run.metadata, run.state, _status(run)
    attempts = data["attempts"]
    files = [p.name for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    code = attempts[-1].get("commit", "unknown")[:10]
    choices = dict(data["choices"])
    if model := data["config"]["model"]["path"]:
        choices["model"] = model
    lines = [
        ("what", " ".join(f"{k}={choices[k]}" for k in WHAT if choices.get(k))),
        ("overrides", " ".join(data["overrides"])),
        ("status", f"{status}, step {state.get('step', 0)} of {state.get('max_steps', '?')}"),
        ("attempts", f"{len(attempts)}, the last began {attempts[-1]['started']}"),
        ("error", attempts[-1].get("error") or ""),
        ("device", f"{data.get('device', '?')}, precision {data.get('precision', '?')}"),
        ("code", code + (" with changes" if attempts[-1].get("dirty") else "")),
        ("teacher", ", ".join(data.get("teacher", {}).get("paths", []))),
    ]
    for split, scores in run.results.get("splits", {}).items():
        told = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in scores.items())
        lines.append((split, ", ".join(told)))
    lines.append(("files", ", ".join(files)))
    if status == "finished":
        lines.append(("to use", f"model.path={path} or teacher.path={path}, or transformers with"))
        lines.append(("", str(path / "model")))
    elif status != "running":
        lines.append(("to go on", f"python launch.py resume={path}"))
    return [(name, value) for name, value in lines if value]


def side_by_side(paths: Sequence[Path]) -> dict[str, Any]:
    """Finished runs compared: where their configs differ, their metrics, and a test of each pair.

    The test is of the headline, on every split that all have judged. Raises `UserError` for a run
    that is not finished, other headlines or other examples.
    """
    runs = [read_run(path) for path in paths]
    for run in runs:
        if run.state.get("status") != "finished" or not run.results:
            raise UserError(f"{run.path}: no finished run in this directory")
    headlines = {run.results["headline"]["metric"] for run in runs}
    if len(headlines) > 1:
        raise UserError(f"{', '.join(sorted(headlines))}: runs of different headlines")
    splits = [s for s in runs[0].results["splits"] if all(s in r.results["splits"] for r in runs)]
    if not splits:
        raise UserError("the runs have judged no split in common")
    return {
        "runs": [str(path) for path in paths],
        "config": _differing([run.metadata["config"] for run in runs]),
        "metrics": {
            f"{split} {name}": [run.results["splits"][split].get(name) for run in runs]
            for split in splits
            for name in runs[0].results["splits"][split]
            if name not in ("seconds", "examples_per_second")
        },
        "pairs": [
            _pair(a, b, split, *headlines) for a, b in combinations(runs, 2) for split in splits
        ],
    }


def _differing(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of each key that changes what a run computes and is not the same in all."""
    flat = [dict(dotted_values(config)) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {
        key: row
        for key, row in rows.items()
        if key.split(".")[0] not in NOT_COMPARED and any(value != row[0] for value in row)
    }


def _pair(a: Run, b: Run, split: str, metric: str) -> dict[str, Any]:
    files = [run.path / "predictions" / f"{split}.parquet" for run in (a, b)]
    answers = [compare.read_answers(file, metric) for file in files]
    found = compare.difference(answers[:1], answers[1:], metric)
    told = {"reference": str(a.path), "run": str(b.path), "split": split, "metric": metric}
    return told | asdict(found) | {"smallest": found.smallest, "verdict": found.verdict}


def comparison_text(found: dict[str, Any]) -> str:
    """The same for a reader."""
    letters = [chr(ord("A") + i) for i in range(len(found["runs"]))]
    named = dict(zip(found["runs"], letters, strict=True))
    lines = [f"{letter}  {path}" for path, letter in named.items()]
    config = [[key, *map(str, values)] for key, values in found["config"].items()]
    lines.append(drawn(["differs", *letters], config) if config else "\nthe configs are the same")
    metrics = [
        [name, *("" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row)]
        for name, row in found["metrics"].items()
    ]
    lines += [drawn(["metric", *letters], metrics), ""]
    for pair in found["pairs"]:
        p_value = "" if pair["p_value"] is None else f", McNemar p {pair['p_value']:.2g}"
        sides = f"{named[pair['run']]} against {named[pair['reference']]}"
        lines.append(
            f"{sides}, {pair['split']} {pair['metric']}: {pair['verdict']}, {pair['value']:+.4f} "
            f"[{pair['low']:+.4f}, {pair['high']:+.4f}]{p_value}, n {pair['n']:,}; "
            f"a difference under {pair['smallest']:.4f} would not be shown"
        )
    lines.append("One run a side: the intervals are over the examples, not over seeds.")
    return "\n".join(lines)


def drawn(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i and cells[0][i][:1].isdigit() else "left")
    for line in cells:
        table.add_row(*line)
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue().rstrip()
