"""Read run directories back, and tell what a sweep found: `python -m forge report DIR`."""

from __future__ import annotations

import io
import logging
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forge import compare
from forge.errors import UserError
from forge.record import METADATA, RESULTS, STATE, read_json

ALPHA = "mode.alpha"
CONTROLS = {ALPHA: "0", "mode": "sft"}  # swept keys, and the value that teaches nothing
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


def _number(value: str | None) -> float | None:
    try:
        return float(value or "")
    except ValueError:
        return None


def _sortable(value: str) -> tuple[bool, float, str]:
    number = _number(value)
    return (number is None, number or 0.0, value)


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
    number = _number(value)
    return value if number is None else number


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
            compare.read_answers(run.path / "predictions" / f"{sweep.split}.parquet")
            for seed in row.seeds
            for run in [next(run for run in side.runs if run.seed == seed)]
        ]
        for side in (reference, row)
    ]
    row.against = compare.difference(sides[0], sides[1], sweep.metric)


def measure_models(sweep: Sweep) -> None:
    """Weights, size and latency here of each architecture in the sweep, and of its teachers.

    Latency is the median of `REPEATS` forward passes in milliseconds, batches of 1 and 32 texts of
    the split's mean length; the models take turns, since machines drift.
    """
    timed: dict[tuple[Any, ...], tuple[dict[str, Any], Any]] = {}
    for row in sweep.rows:
        facts, model = _load(str(row.runs[0].path / "model"))
        timed.setdefault((facts["name"], facts["weights"]), (facts, model))
    for path in {path for row in sweep.rows for path in row.teacher.get("paths", ())}:
        try:
            facts, model = _load(path)
        except (OSError, ValueError):  # of another machine
            continue
        facts |= {"name": f"teacher, {facts['name']}", "teacher": True}
        timed[path,] = (facts, model)
    data = sweep.rows[0].runs[0].metadata.get("data", {}).get(sweep.split, {})
    sweep.length = round(data.get("mean_length", 32))
    for batch in (1, 32):
        for key, milliseconds in _latency(timed, batch, sweep.length).items():
            timed[key][0][f"ms_{batch}"] = milliseconds
    sweep.models = [facts for facts, _ in timed.values()]
    teachers = [facts["ms_32"] for facts in sweep.models if "teacher" in facts]
    for facts in sweep.models:
        alone = (
            len(teachers) == 1
            or len({tuple(r.teacher.get("paths", ())) for r in sweep.rows if r.teacher}) == 1
        )
        facts["speed_up"] = sum(teachers) / facts["ms_32"] if teachers and alone else None


def _load(path: str) -> tuple[dict[str, Any], Any]:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    config = model.config
    weights = sum(p.numel() for p in model.parameters())
    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    name = f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}"
    return {"name": name, "weights": weights, "megabytes": (size or 4 * weights) / 1e6}, model


def _latency(
    timed: dict[tuple[Any, ...], tuple[dict[str, Any], Any]], batch: int, length: int
) -> dict[tuple[Any, ...], float]:
    import torch

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    seconds: dict[tuple[Any, ...], list[float]] = {name: [] for name in timed}
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
    return metric.startswith(("accuracy", "f1", "precision", "recall"))


def _show(value: float, metric: str, sign: bool = False) -> str:
    scaled, digits = (100 * value, 2) if _percent(metric) else (value, 4)
    return f"{scaled:+.{digits}f}" if sign else f"{scaled:.{digits}f}"


def table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the main table."""
    metric = sweep.metric
    tuned = sorted({key for row in sweep.rows for key in row.tuned})
    unit = ", %" if _percent(metric) else ""
    header = [*sweep.rows[0].values, *tuned, f"{metric}{unit}", "std", "seeds"]
    header += ["difference", "95 % interval", "McNemar p", "gap closed"]
    cells = []
    for row in sweep.rows:
        scores = row.scores(sweep.split, metric)
        spread = _show(statistics.stdev(scores), metric) if len(scores) > 1 else ""
        line = [*row.values.values(), *(row.tuned.get(key, "") for key in tuned)]
        line += [_show(statistics.fmean(scores), metric), spread, str(len(scores))]
        cells.append(line + _difference_cells(sweep, row))
    blank = [""] * (len(sweep.rows[0].values) + len(tuned) - 1)
    taught = {tuple(row.teacher["paths"]): row.teacher for row in sweep.rows if row.teacher}
    for paths, teacher in taught.items():
        name = "teacher" if len(taught) == 1 else f"teacher {' + '.join(paths)}"
        score = teacher.get("splits", {}).get(sweep.split, {}).get(metric)
        cells.append([name, *blank, "" if score is None else _show(score, metric), *[""] * 6])
    return header, cells


def _difference_cells(sweep: Sweep, row: Row) -> list[str]:
    """Difference, interval, p and the share of the gap to the teacher that it closes."""
    found, reference, metric = row.against, row.reference, sweep.metric
    if found is None or reference is None:
        return ["", "", "", ""]
    p = "" if found.p_value is None else f"{found.p_value:.2g}"
    interval = f"{_show(found.low, metric, sign=True)} .. {_show(found.high, metric, sign=True)}"
    closed = ""
    best = row.teacher.get("splits", {}).get(sweep.split, {}).get(metric)
    if best is not None:
        gap = best - statistics.fmean(reference.scores(sweep.split, metric, row.seeds))
        if gap and (gap > 0) == sweep.greater_is_better:
            closed = f"{found.value / gap:.0%}"
    return [_show(found.value, metric, sign=True), interval, p, closed]


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
    lines = [_verdict(sweep, row) for row in sweep.rows if row.reference]
    if sweep.unfinished:
        lines.append(f"{sweep.unfinished} jobs have not finished; they are not in the table.")
    rows = {run.metadata.get("trained_on") for row in sweep.rows for run in row.runs} - {None}
    if len(rows) > 1:
        lines.append(
            "Rows learnt from different numbers of texts: unlabelled ones count at alpha=1."
        )
    judged = f"Judged on {sweep.split}; "
    if not sweep.optimistic:
        judged += "no checkpoint and no setting was chosen, the last weights count."
    elif sweep.split != sweep.chosen_on:
        judged += f"checkpoints and tuned settings were chosen on {sweep.chosen_on}."
    else:
        judged += "it also chose checkpoints or settings, so the numbers are optimistic."
    if any(row.against for row in sweep.rows):
        judged += (
            " Differences are over the seeds that both rows have, on the same examples. The "
            "interval asks whether the two ways of training differ (bootstrap over examples, "
            "variance over seeds, Student's t), McNemar whether the two models of a seed do (the "
            "median p). One test for each row, not corrected for their number."
        )
    return [*lines, judged]


def _verdict(sweep: Sweep, row: Row) -> str:
    assert row.reference
    if row.against is None:
        return f"{row.name}: not compared, for it has no seed in common with {row.reference.name}"
    verdict = row.against.verdict
    if verdict != "no difference shown":
        verdict += ", better" if (verdict == "higher") == sweep.greater_is_better else ", worse"
    seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    return (
        f"{row.name} against {row.reference.name}: {verdict} "
        f"({_show(row.against.value, sweep.metric, sign=True)}, {seeds}, n = {row.against.n:,})"
    )


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
    best = {
        row.teacher["splits"].get(sweep.split, {}).get(sweep.metric)
        for row in sweep.rows
        if row.teacher
    }
    for score in best - {None}:
        plane.axhline(scale * score, linestyle="--", color="grey", label="teacher")
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
