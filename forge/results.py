"""Read run directories back: runs, and sweeps as rows of runs that differ in their seeds only."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import socket
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from forge import compare
from forge.config import dotted_values, override
from forge.errors import UserError, one_line
from forge.record import EVALUATION, METADATA, NOT_COMPARED, RESULTS, STATE, read_json

ALPHA = "mode.alpha"
CONTROLS = {ALPHA: "0", "mode": "sft"}  # swept keys, and the value that teaches nothing
WHAT = ("task", "model", "mode", "experiment")
TIMINGS = ("seconds", "examples_per_second")  # of an evaluation, beside its metrics
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
    rows.sort(key=lambda row: [sortable(value) for value in row.values.values()])
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
    """The number that a text spells, if any."""
    try:
        return float(value or "")
    except ValueError:
        return None


def sortable(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
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
    _same_rows([run for side in (reference, row) for run in side.runs], sweep.split)
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
    if "attempts" not in run.metadata:
        raise UserError(f"{path}: no run in this directory; python -m forge runs DIR lists runs")
    data, state, attempts = run.metadata, run.state, run.metadata["attempts"]
    host, pid = (attempts[-1].get(key) for key in ("host", "pid"))
    status = live(state.get("status", "not started"), host, pid)
    where = f" on {host}" if status == "running" else ""
    steps = f"step {state.get('step', 0)} of {state.get('max_steps', '?')}"
    files = [p.name for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    code = attempts[-1].get("commit", "unknown")[:10]
    lines = [
        ("what", " ".join(f"{key}={value}" for key, value in what(run).items() if value)),
        ("overrides", " ".join(data["overrides"])),
        ("status", f"{status}{where}, {steps}"),
        ("attempts", f"{len(attempts)}, the last began {attempts[-1]['started']}"),
        ("error", attempts[-1].get("error") or ""),
        ("device", f"{data.get('device', '?')}, precision {data.get('precision', '?')}"),
        ("code", code + (" with changes" if attempts[-1].get("dirty") else "")),
        ("teacher", ", ".join(data.get("teacher", {}).get("paths", []))),
    ]
    for split, scores in run.results.get("splits", {}).items():
        told = (f"{name} {cell(score)}" for name, score in scores.items())
        lines.append((split, ", ".join(told)))
    for file in sorted(path.glob(f"evaluations/*/{RESULTS}")):
        judged = read_json(file)["headline"]
        lines.append(
            ("evaluated", f"{file.parent.name}: {judged['metric']} {cell(judged['value'])}")
        )
    lines.append(("files", ", ".join(files)))
    if status == "finished" and "model" in files:
        keys = " or ".join(override(key, str(path)) for key in ("model.path", "teacher.path"))
        lines.append(("to use", f"{keys}, or transformers with"))
        lines.append(("", str(path / "model")))
        asked = [("predict", "--text …"), ("evaluate", "task.…"), ("export", "--onnx")]
        for verb, more in asked if "text" in data["config"].get("task", {}) else asked[1:2]:
            lines.append(("", f"python -m forge {verb} {shlex.quote(str(path))} {more}"))
    elif status not in ("finished", "running"):
        lines.append(("to go on", f"python launch.py {override('resume', str(path))}"))
    return [(name, value) for name, value in lines if value]


def side_by_side(paths: Sequence[Path]) -> dict[str, Any]:
    """Finished runs compared: where their configs differ, their metrics, and a test of each pair.

    The test is of the headline, on every split that both have judged. Raises `UserError` for a run
    that is not finished, other headlines or other examples.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same run is named twice; there is nothing to compare")
    runs = [read_run(path) for path in paths]
    for run in runs:
        if run.state.get("status") != "finished" or not run.results:
            raise UserError(f"{run.path}: no finished run in this directory")
    headlines = {run.results["headline"]["metric"] for run in runs}
    if len(headlines) > 1:
        raise UserError(f"{', '.join(sorted(headlines))}: runs of different headlines")
    judged = [run.results["splits"] for run in runs]
    names = dict.fromkeys((s, name) for splits in judged for s in splits for name in splits[s])
    return {
        "runs": [str(path) for path in paths],
        "config": _differing([run.metadata["config"] for run in runs]),
        "metrics": {
            f"{split} {name}": [splits.get(split, {}).get(name) for splits in judged]
            for split, name in names
            if name not in TIMINGS
        },
        "pairs": [pair for a, b in combinations(runs, 2) for pair in _pairs(a, b, *headlines)],
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


def _pairs(a: Run, b: Run, metric: str) -> list[dict[str, Any]]:
    """A test for each split that both have judged; raises `UserError` without any."""
    splits = [split for split in a.results["splits"] if split in b.results["splits"]]
    if not splits:
        raise UserError(f"{a.path} and {b.path} have judged no split in common")
    return [_pair(a, b, split, metric) for split in splits]


def _pair(a: Run, b: Run, split: str, metric: str) -> dict[str, Any]:
    files = [run.path / "predictions" / f"{split}.parquet" for run in (a, b)]
    answers = [compare.read_answers(file, metric) for file in files]
    try:
        _same_rows([a, b], split)
        found = compare.difference(answers[:1], answers[1:], metric)
    except UserError as error:
        raise UserError(f"{a.path} and {b.path}, {split}: {error}") from error
    told = {"reference": str(a.path), "run": str(b.path), "split": split, "metric": metric}
    return told | asdict(found) | {"verdict": found.verdict}


def _same_rows(runs: Sequence[Run], split: str) -> None:
    """Raises `UserError` where the same ids stand for other texts, as rows of another file do.

    Runs that read other columns record other fingerprints of the same rows, which tell nothing.
    """
    prints: dict[str, set[str]] = {}
    for run in runs:
        if found := run.metadata.get("data", {}).get(split, {}).get("fingerprint"):
            columns = str(run.metadata["config"].get("task", {}).get("text"))
            prints.setdefault(columns, set()).add(found)
    if any(len(found) > 1 for found in prints.values()):
        raise UserError(compare.OTHER)


def comparison_text(found: dict[str, Any]) -> str:
    """The same for a reader."""
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(found["runs"]))]
    named = dict(zip(found["runs"], letters, strict=True))
    lines = [f"{letter}  {path}" for path, letter in named.items()]
    config = [[key, *map(str, values)] for key, values in found["config"].items()]
    table = drawn(["differs", *letters], config) if config else "\nthe configs are the same"
    lines.append(table)
    metrics = [[name, *map(cell, row)] for name, row in found["metrics"].items()]
    lines += [drawn(["metric", *letters], metrics), ""]
    lines += [_pair_text(pair, named) for pair in found["pairs"]]
    lines.append(
        "One run a side: the 95 % intervals are over the examples, not over seeds. The smallest "
        "difference: one that shows four times in five (80 % power)."
    )
    if len(found["pairs"]) > 1:
        lines.append(f"{len(found['pairs'])} tests, not corrected for their number.")
    return "\n".join(lines)


def _pair_text(pair: dict[str, Any], named: dict[str, str]) -> str:
    metric, p_value = pair["metric"], ""
    if pair["p_value"] is not None:
        of = "" if metric == "accuracy" else " of accuracy"
        p_value = f", McNemar p{of} {pair['p_value']:.2g}"
    by = " by McNemar's test" if pair["doubted"] else ""
    return (
        f"{named[pair['run']]} against {named[pair['reference']]}, {pair['split']} {metric}: "
        f"{pair['verdict']}{by}, {pair['value']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}]"
        f"{p_value}, n {pair['n']:,}; the smallest difference that so many examples show: "
        + (f"{pair['smallest']:.4f}" if pair["smallest"] == pair["smallest"] else "unknown")
    )


def metrics_cells(run: Run) -> tuple[list[str], list[list[str]]]:
    """Header, and a line for each split with its metrics and n; its teacher's where recorded."""
    splits, taught = run.results["splits"], run.metadata.get("teacher", {}).get("splits", {})
    columns = [name for name in next(iter(splits.values())) if name not in TIMINGS]
    cells = []
    for split, scores in splits.items():
        cells.append([split, *(cell(scores.get(name)) for name in columns)])
        if split in taught:
            theirs = {"n": scores["n"]} | taught[split]
            cells.append([f"{split}, teacher", *(cell(theirs.get(name)) for name in columns)])
    return ["split", *columns], cells


def cell(value: float | int | str | list[float] | None) -> str:
    """A score for a reader; a list is an interval."""
    if isinstance(value, list):
        return " .. ".join(f"{end:.3f}" for end in value)
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table for a file."""
    escaped = [[one_line(cell).replace("|", "\\|") for cell in line] for line in [header, *cells]]
    lines = [escaped[0], ["---"] * len(header), *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def drawn(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table under an empty line; in a pipe without rules, and as wide as it has to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=terminal)
    for i, name in enumerate(header):
        number = i and cells and cells[0][i][:1].isdigit()
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in cells:
        table.add_row(*line)
    out = io.StringIO()
    width = shutil.get_terminal_size().columns if terminal else 10_000
    Console(file=out, width=width, markup=False, emoji=False, highlight=False).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(["", *filter(None, lines)])


def print_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Drawn in a terminal, else a line for each row, tabs between."""
    if sys.stdout.isatty():
        print(drawn(header, cells))
    else:
        print("\n".join("\t".join(map(one_line, line)) for line in [header, *cells]))
