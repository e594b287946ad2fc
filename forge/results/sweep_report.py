"""The report of a sweep: its tables, sentences and plot. `python -m forge report DIR`."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from forge.errors import UserError
from forge.records.files import Json
from forge.results import pictures
from forge.results.runs import number
from forge.results.sweeps import ALPHA, Measured, Row, Sweep, read_sweep
from forge.results.tables import drawn, markdown_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Models: TypeAlias = "dict[tuple[object, ...], tuple[Measured, PreTrainedModel]]"
log = logging.getLogger(__name__)

FACTORS = ("trainer.learning_rate", "teacher.trainer.learning_rate")  # one tries multiples of


def measure_models(sweep: Sweep) -> None:
    """Weights, size and latency here of each architecture in the sweep, and of its teachers.

    Latency is the median of several forward passes in milliseconds, batches of 1 and 32 rows of
    the split's mean length; the models take turns, since machines drift. None is measured for a
    task of code that is not Forge's own.
    """
    from forge.tasks.recorded import require_own_code

    metadata = sweep.rows[0].runs[0].metadata
    try:
        require_own_code(metadata["config"].get("task", {}))
    except UserError as error:
        log.warning("report  no latency: %s", error)
        return
    models: Models = {}
    for row in sweep.rows:
        path = row.runs[0].path / "model"
        if not path.is_dir():  # not copied along
            continue
        if (loaded := _load(str(path))) is None:
            continue
        facts, model = loaded
        models.setdefault((facts["name"], facts["weights"]), (facts, model))
    for name in {path for row in sweep.rows for path in row.teacher.get("paths", ())}:
        if (loaded := _load(name)) is None:
            continue
        facts, model = loaded
        facts |= {"name": f"teacher, {facts['name']}", "teacher": True}
        models[name,] = (facts, model)
    sweep.length = round(metadata.get("data", {}).get(sweep.split, {}).get("mean_length", 32))
    for batch in (1, 32):
        for key, time in _latency(models, metadata, batch, sweep.length).items():
            models[key][0]["ms_1" if batch == 1 else "ms_32"] = time
    sweep.models = [facts for facts, _ in models.values()]
    teachers = [facts["ms_32"] for facts in sweep.models if "teacher" in facts]
    for facts in sweep.models:
        alone = (
            len(teachers) == 1
            or len({tuple(r.teacher.get("paths", ())) for r in sweep.rows if r.teacher}) == 1
        )
        facts["speed_up"] = sum(teachers) / facts["ms_32"] if teachers and alone else None


def _load(path: str) -> tuple[Measured, PreTrainedModel] | None:
    """A model and facts of it; None, and a warning, for one that is gone or brings own code."""
    from transformers.utils import logging as library

    from forge.models import loading, lora

    library.disable_progress_bar()
    try:
        model = loading.read(path)
    except (UserError, OSError, ValueError) as error:
        log.warning("report  no latency of %s: %s", path, error)
        return None
    config = model.config
    weights = sum(p.numel() for p in model.parameters())
    files = [] if lora.is_adapter(path) else Path(path).glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    name = config.model_type
    if hasattr(config, "num_hidden_layers") and hasattr(config, "hidden_size"):
        name += f", {config.num_hidden_layers} layers of {config.hidden_size}"
    return {"name": name, "weights": weights, "megabytes": (size or 4 * weights) / 1e6}, model


def _latency(
    models: Models,
    metadata: Json,
    rows: int,
    length: int,
) -> dict[tuple[object, ...], float]:
    """Milliseconds of each model for a batch of rows as its task has them."""
    import torch

    from forge.config.schema import Model
    from forge.models.forward import milliseconds
    from forge.tasks.recorded import recorded_task

    device = torch.accelerator.current_accelerator() or torch.device("cpu")

    def timed(model: PreTrainedModel) -> Callable[[], object]:
        task = recorded_task(metadata, model.config)
        processor = task.input.load_processor(Model(path=model.config.name_or_path))
        example = task.input.example(processor, rows, length)
        batch = {name: part.to(device) for name, part in example.items()}
        torch.nn.Module.to(model, device)
        return lambda: model(**batch).logits.cpu()

    return milliseconds({name: timed(model) for name, (_, model) in models.items()})


def percent(metric: str) -> bool:
    return metric.startswith(("accuracy", "exact_match", "f1", "precision", "recall"))


def show(value: float, metric: str, sign: bool = False) -> str:
    scaled, digits = (100 * value, 2) if percent(metric) else (value, 4)
    return f"{scaled:+.{digits}f}" if sign else f"{scaled:.{digits}f}"


def table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the main table."""
    metric = sweep.metric
    tuned = sorted({key for row in sweep.rows for key in row.tuned})
    unit = ", %" if percent(metric) else ""
    swept = [key.removeprefix("trainer.") for key in (*sweep.rows[0].values, *tuned)]
    header = [*swept, f"{metric}{unit}", "std", "seeds"]
    header += ["difference", "95 % interval", "p, Holm", "McNemar p", "gap closed"]
    cells = []
    for row in sweep.rows:
        scores = row.scores(sweep.split, metric)
        spread = show(statistics.stdev(scores), metric) if len(scores) > 1 else ""
        line = [*row.values.values(), *(row.tuned.get(key, "") for key in tuned)]
        line += [show(statistics.fmean(scores), metric), spread, str(len(scores))]
        cells.append(line + _difference_cells(sweep, row))
    blank = [""] * (len(sweep.rows[0].values) + len(tuned) - 1)
    taught = {tuple(row.teacher["paths"]): row.teacher for row in sweep.rows if row.teacher}
    for paths, teacher in taught.items():
        name = "teacher" if len(taught) == 1 else f"teacher {' + '.join(paths)}"
        score = teacher.get("splits", {}).get(sweep.split, {}).get(metric)
        cells.append([name, *blank, "" if score is None else show(score, metric), *[""] * 7])
    return header, cells


def _difference_cells(sweep: Sweep, row: Row) -> list[str]:
    """Difference, interval, p and the share of the gap to the teacher that it closes."""
    against, reference, metric = row.against, row.reference, sweep.metric
    if against is None or reference is None:
        return [""] * 5
    p = "" if against.p_value is None else f"{against.p_value:.2g}"
    corrected = against.p if against.corrected is None else against.corrected
    interval = f"{show(against.low, metric, sign=True)} .. {show(against.high, metric, sign=True)}"
    closed = ""
    best = row.teacher.get("splits", {}).get(sweep.split, {}).get(metric)
    if best is not None:
        gap = best - statistics.fmean(reference.scores(sweep.split, metric, row.seeds))
        if gap and (gap > 0) == sweep.greater_is_better:
            closed = f"{against.value / gap:.0%}"
    return [show(against.value, metric, sign=True), interval, f"{corrected:.2g}", p, closed]


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


def sentences(sweep: Sweep) -> list[str]:
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
            "median p). p is that of the interval's test, corrected for the number of rows (Holm "
            "1979); a difference is shown when that is below 0.05 too. McNemar's is not corrected."
        )
    return [*lines, judged]


def verdict(sweep: Sweep) -> str:
    """One sentence: what helped most, by how much, or that nothing was shown."""
    rows = [row for row in sweep.rows if row.against is not None]
    if not rows:
        count = f"{len(sweep.rows)} setting{'s' * (len(sweep.rows) > 1)}"
        return f"{count}, none with a control over the same seeds: nothing to compare."
    sign = 1 if sweep.greater_is_better else -1
    best = max(rows, key=lambda row: sign * row.against.value if row.against else -math.inf)
    against, reference = best.against, best.reference
    assert against and reference
    by = show(against.value, sweep.metric, sign=True)
    unit = " points" if percent(sweep.metric) else ""
    ends = " to ".join(show(end, sweep.metric, sign=True) for end in (against.low, against.high))
    size = f"{len(best.seeds)} seed{'s' * (len(best.seeds) > 1)}, {against.n:,} rows"
    what = f"{best.name} against {reference.name}: {by}{unit} {sweep.metric}"
    what += f" (95 % interval {ends}; {size})"
    if against.verdict == "no difference shown":
        power = show(against.smallest, sweep.metric) if math.isfinite(against.smallest) else ""
        return f"No difference was shown. The best, {what}" + (
            f"; one of {power}{unit} would have been, four times in five." if power else "."
        )
    helped = (against.verdict == "higher") == sweep.greater_is_better
    return f"{'Yes, it helped' if helped else 'No, it hurt'}. {what}."


def _verdict(sweep: Sweep, row: Row) -> str:
    assert row.reference
    if row.against is None:
        why = f"it has no seed in common with {row.reference.name}"
        if row.seeds:
            why = f"{sweep.metric} is code that is not Forge's own, and not run to compare"
        return f"{row.name}: not compared, for {why}"
    verdict = row.against.verdict
    if verdict != "no difference shown":
        verdict += ", better" if (verdict == "higher") == sweep.greater_is_better else ", worse"
    seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    return (
        f"{row.name} against {row.reference.name}: {verdict} "
        f"({show(row.against.value, sweep.metric, sign=True)}, {seeds}, n = {row.against.n:,})"
    )


def markdown(sweep: Sweep) -> str:
    """The report as text for a file."""
    parts = [f"# {sweep.folder.name}: {sweep.metric} on {sweep.split}", ""]
    for header, cells in (table(sweep), model_table(sweep)):
        if cells:
            parts += [markdown_table(header, cells), ""]
    return "\n".join(
        [*parts, *(f"- {line}" for line in sentences(sweep)), "", "![plot](report.png)", ""]
    )


def text(sweep: Sweep) -> str:
    """The report for a terminal."""
    tables = [drawn(header, cells) for header, cells in (table(sweep), model_table(sweep)) if cells]
    return "\n".join([*tables, "", verdict(sweep), "", *sentences(sweep)])


def plot(sweep: Sweep) -> bytes:
    """A PNG of the metric over the first swept key, error bars over seeds, a line for the rest."""
    axis = ALPHA if ALPHA in sweep.rows[0].values else next(iter(sweep.rows[0].values), "")
    figure = pictures.figure(6, 4)
    plane = figure.subplots()
    lines: dict[str, list[Row]] = {}
    for row in sweep.rows:
        rest = ", ".join(f"{key}={v}" for key, v in row.values.items() if key != axis)
        lines.setdefault(rest, []).append(row)
    sizes = (number(row.values.get(axis)) for row in sweep.rows)
    places = [place for place in sizes if place is not None]
    numeric = len(places) == len(sweep.rows)
    if numeric and min(places) > 0 and (axis in FACTORS or max(places) >= 20 * min(places)):
        plane.set_xscale("log")
    scale = 100 if percent(sweep.metric) else 1
    for label, rows in lines.items():
        at = [pictures.drawable(row.values.get(axis, "")) for row in rows]
        scores = [[scale * s for s in row.scores(sweep.split, sweep.metric)] for row in rows]
        plane.errorbar(
            [float(x) for x in at] if numeric else at,
            [statistics.fmean(s) for s in scores],
            yerr=[statistics.stdev(s) if len(s) > 1 else 0 for s in scores],
            fmt="o-" if numeric else "o",  # between names there is nothing
            capsize=4,
            label=pictures.drawable(label) or "student",
        )
    taught = taught_scores(sweep)
    for score in taught:
        plane.axhline(scale * score, linestyle="--", color="grey", label="teacher")
    plane.set(
        xlabel=pictures.drawable(axis),
        ylabel=f"{sweep.metric} on {sweep.split}{', %' if scale == 100 else ''}",
    )
    if any(len(row.runs) > 1 for row in sweep.rows):
        plane.set_title("error bars: standard deviation over seeds", fontsize="small")
    if taught or len(lines) > 1:
        plane.legend()
    return pictures.png(figure)


def taught_scores(sweep: Sweep) -> set[float]:
    """The scores of the sweep's teachers."""
    taught = (row.teacher["splits"].get(sweep.split, {}) for row in sweep.rows if row.teacher)
    return {scores[sweep.metric] for scores in taught if sweep.metric in scores}


def numbers(sweep: Sweep) -> Json:
    """What the tables say, as plain values for JSON."""
    rows = []
    for row in sweep.rows:
        scores = row.scores(sweep.split, sweep.metric)
        rows.append(
            {
                "values": row.values | row.tuned,
                "runs": [str(run.path) for run in row.runs],
                "seeds": [run.seed for run in row.runs],
                "scores": scores,
                "mean": statistics.fmean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "reference": row.reference.values if row.reference else None,
                "difference": asdict(row.against) if row.against else None,
                "teacher": row.teacher or None,
            }
        )
    about = {"sweep": str(sweep.folder), "metric": sweep.metric, "split": sweep.split}
    end = {"unfinished": sweep.unfinished, "words": sentences(sweep)}
    return about | {"rows": rows, "models": sweep.models} | end


def report(folder: Path, out: Path | None = None) -> tuple[Json, str]:
    """A sweep's numbers, and the text to print; writes report.md and report.png (see `write`)."""
    sweep = read_sweep(folder)
    measure_models(sweep)
    texts = [text for row in sweep.rows for pair in row.values.items() for text in pair]
    with pictures.letters(texts):
        files = {"report.md": markdown(sweep).encode(), "report.png": plot(sweep)}
    lacks = pictures.note(texts, "their codes")
    return numbers(sweep), "\n".join([text(sweep), *lacks, "", write(files, folder, out)])


def write(files: dict[str, bytes], folder: Path, out: Path | None) -> str:
    """Write a report's files into the directory that it is of, or into `out`; a line that says so.

    A directory that cannot be written to is said. Raises `UserError` for such an `out`.
    """
    paths = [(out or folder) / name for name in files]
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, files.values(), strict=True):
            path.write_bytes(content)
    except OSError as error:
        if out:
            raise UserError(f"--out {out}: {error.strerror}") from error
        return f"report  not written ({error.strerror}: {folder}); --out DIR writes it elsewhere"
    return f"report  {', '.join(map(str, paths))}"
