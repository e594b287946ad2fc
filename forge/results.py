"""Read run directories back, and tell what a sweep found: `python -m forge report DIR`."""

from __future__ import annotations

import io
import logging
import socket
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forge import compare
from forge.errors import UserError
from forge.record import METADATA, RESULTS, STATE, read_json

ALPHA = "mode.alpha"
APART = ("seed", "resume")  # overrides that do not make rows of their own
REPEATS = 15  # of a timed forward pass; the median counts


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
    against: compare.Difference | None = None  # to the reference row

    @property
    def name(self) -> str:
        return ", ".join(f"{key.removeprefix('mode.')}={v}" for key, v in self.values.items())

    def scores(self, split: str, metric: str) -> list[float]:
        """The metric of each run."""
        return [run.results["splits"][split][metric] for run in self.runs]


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
    teacher: dict[str, Any]
    reference: Row | None
    models: list[dict[str, Any]] = field(default_factory=list)

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
    grids = _grouped(runs, shown)
    rows = []
    for values, group in grids.items():
        settings = _grouped(group, [key for key in tuned if key not in shown])
        sign = 1 if _greater_is_better(metric) else -1

        def mean(each: Iterable[Run], sign: int = sign) -> float:
            return sign * statistics.fmean(r.results["splits"][first][metric] for r in each)

        best = max(settings, key=lambda setting: mean(settings[setting]))
        rows.append(Row(dict(values) or {"runs": "all"}, settings[best], dict(best)))
    rows.sort(key=lambda row: [_sortable(value) for value in row.values.values()])
    teachers = [run.metadata["teacher"] for run in runs if "teacher" in run.metadata]
    reference = next((r for r in rows if _number(r.values.get(ALPHA)) == 0), None)
    sweep = Sweep(
        folder, rows, metric, split, first, teachers[0] if teachers else {}, reference or rows[0]
    )
    _compare(sweep)
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


def _number(value: str | None) -> float | None:
    try:
        return float(value or "")
    except ValueError:
        return None


def _sortable(value: str) -> tuple[bool, float, str]:
    number = _number(value)
    return (number is None, number or 0.0, value)


def _reference_of(sweep: Sweep, row: Row) -> Row | None:
    """The row with the same values but for alpha=0; without alphas the first row."""
    if ALPHA not in row.values:
        return sweep.reference if row is not sweep.reference else None
    control = {key: v for key, v in row.values.items() if key != ALPHA}
    for other in sweep.rows:
        rest = {key: v for key, v in other.values.items() if key != ALPHA}
        if other is not row and _number(other.values[ALPHA]) == 0 and rest == control:
            return other
    return None


def _compare(sweep: Sweep) -> None:
    """Each row's paired difference to its reference, over the seeds that both have."""
    for row in sweep.rows:
        reference = _reference_of(sweep, row)
        if reference is None:
            continue
        seeds = {run.seed for run in row.runs} & {run.seed for run in reference.runs}
        both = [
            [
                compare.read_answers(run.path / "predictions" / f"{sweep.split}.parquet")
                for run in sorted(side.runs, key=lambda run: run.seed)
                if run.seed in seeds or not seeds
            ]
            for side in (reference, row)
        ]
        row.against = compare.difference(both[0], both[1], sweep.metric)


def measure_models(sweep: Sweep) -> None:
    """Weights, size and latency here of each architecture in the sweep, and of its teachers.

    Latency is the median of `REPEATS` forward passes in milliseconds, batches of 1 and 32 texts of
    the split's mean length; the models take turns, since machines drift.
    """
    folders = {row.runs[0].path / "model": row.runs[0] for row in sweep.rows}
    folders |= {Path(path): sweep.rows[0].runs[0] for path in sweep.teacher.get("paths", ())}
    timed: dict[str, tuple[dict[str, Any], Any]] = {}
    length = 0
    for folder, run in folders.items():
        if not (folder / "config.json").is_file():
            continue  # a teacher of another machine, or of the Hub
        facts, model = _load(folder)
        is_teacher = str(folder) in sweep.teacher.get("paths", ())
        facts["name"] = f"teacher, {facts['name']}" if is_teacher else facts["name"]
        timed.setdefault(facts["name"], (facts, model))
        length = round(run.metadata["data"][sweep.split].get("mean_length", 32))
    for batch in (1, 32):
        for name, milliseconds in _latency(timed, batch, length).items():
            timed[name][0][f"ms_{batch}"] = milliseconds
    sweep.models = [facts for facts, _ in timed.values()]
    teachers = [facts for facts in sweep.models if facts["name"].startswith("teacher")]
    for facts in sweep.models:
        facts["speed_up"] = sum(t["ms_32"] for t in teachers) / facts["ms_32"] if teachers else None


def _load(folder: Path) -> tuple[dict[str, Any], Any]:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    config = model.config
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    weights = sum(p.numel() for p in model.parameters())
    name = f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}"
    return {"name": name, "weights": weights, "megabytes": size / 1e6}, model


def _latency(
    timed: dict[str, tuple[dict[str, Any], Any]], batch: int, length: int
) -> dict[str, float]:
    import torch

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with torch.no_grad():
        for _ in range(REPEATS + 2):
            for name, (_, model) in timed.items():
                ids = torch.full((batch, length), 5, device=device)
                model.to(device)
                start = time.perf_counter()
                model(ids, attention_mask=torch.ones_like(ids)).logits.cpu()
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(times[2:]) for name, times in seconds.items()}


def _percent(metric: str) -> bool:
    return metric not in ("mse", "mae")


def _show(value: float, metric: str, digits: int = 2, sign: bool = False) -> str:
    scaled = 100 * value if _percent(metric) else value
    return f"{scaled:+.{digits}f}" if sign else f"{scaled:.{digits}f}"


def table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the main table."""
    metric, teacher = sweep.metric, sweep.teacher.get("splits", {}).get(sweep.split, {})
    tuned = sorted({key for row in sweep.rows for key in row.tuned})
    unit = ", %" if _percent(metric) else ""
    header = [*sweep.rows[0].values, *tuned, f"{metric}{unit}", "std", "seeds"]
    header += ["difference", "95 % interval", "McNemar p", "gap closed"]
    cells = []
    for row in sweep.rows:
        scores = row.scores(sweep.split, metric)
        mean, found = statistics.fmean(scores), row.against
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        line = [*row.values.values(), *(row.tuned.get(key, "") for key in tuned)]
        line += [
            _show(mean, metric),
            "" if spread is None else _show(spread, metric),
            str(len(scores)),
        ]
        if found is None:
            line += ["", "", "", ""]
        else:
            p = "" if found.p_value is None else f"{found.p_value:.2g}"
            gap = teacher.get(metric, mean) - (mean - found.value)
            closed = f"{found.value / gap:.0%}" if teacher and gap > 0 else ""
            line += [
                _show(found.value, metric, sign=True),
                f"{_show(found.low, metric, sign=True)} .. {_show(found.high, metric, sign=True)}",
                p,
                closed,
            ]
        cells.append(line)
    if teacher:
        blank = [""] * (len(sweep.rows[0].values) + len(tuned) - 1)
        cells.append(["teacher", *blank, _show(teacher[metric], metric), *[""] * 6])
    return header, cells


def model_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and cells of what the models cost."""
    header = ["model", "weights", "MB", "ms, batch 1", "ms, batch 32", "speed-up"]
    cells = [
        [
            facts["name"],
            f"{facts['weights'] / 1e6:.2f}M",
            f"{facts['megabytes']:.1f}",
            f"{facts['ms_1']:.1f}",
            f"{facts['ms_32']:.1f}",
            "" if facts["speed_up"] is None else f"{facts['speed_up']:.1f}x",
        ]
        for facts in sweep.models
    ]
    return header, cells


def words(sweep: Sweep) -> list[str]:
    """What the table says, and how to read it."""
    found = [row for row in sweep.rows if row.against]
    lines = [
        f"{row.name}: {row.against.verdict} ({_show(row.against.value, sweep.metric, sign=True)}, "
        f"n = {row.against.n:,})"
        for row in found
        if row.against
    ]
    judged = f"Judged on {sweep.split}; "
    if sweep.split != sweep.chosen_on:
        judged += f"checkpoints and tuned settings were chosen on {sweep.chosen_on}."
    elif sweep.optimistic:
        judged += "it also chose checkpoints or settings, so the numbers are optimistic."
    else:
        judged += "it chose nothing, the last checkpoint counts."
    if found:
        judged += (
            " Differences are to the control on the same examples; intervals are bootstrapped over "
            "examples and seeds; one test for each row, not corrected for their number."
        )
    return [*lines, judged]


def markdown(sweep: Sweep) -> str:
    """The report as text for a file."""
    parts = [f"# {sweep.folder.name}: {sweep.metric} on {sweep.split}", ""]
    for header, cells in (table(sweep), model_table(sweep)):
        if cells:
            lines = [header, ["---"] * len(header), *cells]
            parts += ["| " + " | ".join(line) + " |" for line in lines] + [""]
    return "\n".join(
        [*parts, *(f"- {line}" for line in words(sweep)), "", "![plot](report.png)", ""]
    )


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


def text(sweep: Sweep) -> str:
    """The report for a terminal."""
    tables = [drawn(header, cells) for header, cells in (table(sweep), model_table(sweep)) if cells]
    return "\n".join([*tables, "", *words(sweep)])


def plot(sweep: Sweep, path: Path) -> None:
    """The metric over the first swept key, error bars over seeds, one line for the rest."""
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    axis = ALPHA if ALPHA in sweep.rows[0].values else next(iter(sweep.rows[0].values), "")
    figure = Figure(figsize=(6, 4), layout="constrained")
    plane = figure.subplots()
    lines: dict[str, list[Row]] = {}
    for row in sweep.rows:
        rest = ", ".join(f"{key}={v}" for key, v in row.values.items() if key != axis)
        lines.setdefault(rest, []).append(row)
    numeric = all(_number(row.values.get(axis)) is not None for row in sweep.rows)
    scale = 100 if _percent(sweep.metric) else 1
    for label, rows in lines.items():
        at: list[Any] = [row.values.get(axis, "") for row in rows]
        scores = [[scale * s for s in row.scores(sweep.split, sweep.metric)] for row in rows]
        spread = [statistics.stdev(s) if len(s) > 1 else 0 for s in scores]
        plane.errorbar(
            [float(x) for x in at] if numeric else at,
            [statistics.fmean(s) for s in scores],
            yerr=spread,
            marker="o",
            capsize=4,
            label=label or "student",
        )
    if teacher := sweep.teacher.get("splits", {}).get(sweep.split):
        plane.axhline(scale * teacher[sweep.metric], linestyle="--", color="grey", label="teacher")
    plane.set(xlabel=axis, ylabel=f"{sweep.metric} on {sweep.split}{', %' if scale == 100 else ''}")
    plane.legend()
    figure.savefig(path, dpi=150)


def report(folder: Path) -> str:
    """Write report.md and report.png into a sweep's directory; returns the text to print."""
    sweep = read_sweep(folder)
    measure_models(sweep)
    (folder / "report.md").write_text(markdown(sweep), encoding="utf-8")
    plot(sweep, folder / "report.png")
    return f"{text(sweep)}\n\nreport  {folder / 'report.md'}, {folder / 'report.png'}"
