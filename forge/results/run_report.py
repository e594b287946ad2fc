"""The report of one run: its curves, where it is wrong, how sure. `python -m forge report RUN`."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from pathlib import Path

import numpy as np

from forge.results import card, pictures, run_plots
from forge.results.examine import (
    Entry,
    Example,
    Report,
    Split,
    examine,
    pictures_of_errors,
)
from forge.results.predictions import BINS, name_of, read_predictions
from forge.results.run_plots import MOST_LABELS, SHARE
from forge.results.runs import read_run
from forge.results.sweep_report import write
from forge.results.tables import drawn, markdown_table, metrics_cells

FEW = 3  # wrong answers of a language model in a terminal
CONFUSIONS = 5  # the commonest mistakes that are named
ECE = (
    f"ECE, the expected calibration error (Guo et al. 2017): over {BINS} bins of equal width of "
    "the answer's probability, the mean over the examples of |accuracy - mean confidence|."
)


def text(report: Report) -> str:
    """The report for a terminal."""
    run = read_run(Path(report["run"]))
    lines = [f"{name:<11} {value}" for name, value in report["about"].items()]
    lines.append(drawn(*metrics_cells(run)))
    for split, facts in report["splits"].items():
        lines += ["", *(f"{split}: {line}" for line in _lines(facts, report["labels"]))]
        if "none" in facts and facts["errors"]:
            lines.append(drawn(*_example_cells(facts["errors"][:FEW])))
    return "\n".join([*lines, "", *_curve_lines(report), *report["notes"]])


def _curve_lines(report: Report) -> list[str]:
    logged, metric = report["curves"]["training"], report["headline"]["metric"]
    judged = [e for e in report["curves"]["evaluation"] if e.get(f"eval_{metric}") is not None]
    followed = run_plots.of_policy(logged)
    lines = [f"{key} {_ends(logged, key)}" for key in followed]
    if logged and not followed:
        lines.append(f"training loss {_ends(logged, 'loss')}")
    if judged:
        lines.append(f"{metric} {_ends(judged, f'eval_{metric}')}")
    if shares := [e for e in logged if any(key.startswith(SHARE) for key in e)]:
        terms = [f"{k.removeprefix(SHARE)} {v:.0%}" for k, v in shares[-1].items() if SHARE in k]
        lines.append(
            f"shares of the gradient norm at step {shares[-1]['step']}: {', '.join(terms)}"
        )
    return lines


def _ends(entries: list[Entry], key: str) -> str:
    """The first and the last value that was logged."""
    kept = [entry for entry in entries if key in entry]
    ends = [f"{_shown(entry[key])} at step {entry['step']:,}" for entry in (kept[0], kept[-1])]
    return " to ".join(dict.fromkeys(ends))


def _shown(value: float | None, form: str = ".4f") -> str:
    return "no number" if value is None else f"{value:{form}}"


def _lines(facts: Split, labels: list[str]) -> list[str]:
    """What a split's answers show, in a few lines."""
    lines = []
    if residuals := facts.get("residuals"):
        values = ", ".join(f"{name} {_shown(value)}" for name, value in residuals.items())
        lines.append(f"prediction minus label: {values}")
    else:
        none = f", {facts['none']:,} completions have none" if "none" in facts else ""
        lines.append(f"{facts['wrong']:,} of {facts['n']:,} answers are wrong{none}")
    if pairs := _confusions(facts, labels):
        lines[0] += f"; most often {pairs[0][0]} taken for {pairs[0][1]}, {pairs[0][2]} times"
    if sure := facts.get("calibration"):
        mean = sum(row["n"] * row["confidence"] for row in sure["table"]) / sure["n"]
        right = sum(row["n"] * row["accuracy"] for row in sure["table"]) / sure["n"]
        lines.append(
            f"calibration error (ECE, {sure['bins']} bins) {sure['ece']:.1%}; mean confidence "
            f"{mean:.1%}, accuracy {right:.1%}"
        )
    if taught := facts.get("teacher"):
        counts = ", ".join(f"{kind} {n:,}" for kind, n in taught["counts"].items())
        lines.append(f"student and teacher: {counts}")
    return lines


def _confusions(facts: Split, labels: list[str]) -> list[tuple[str, str, str]]:
    """The commonest mistakes: label, answer, how often."""
    counts = np.array(facts.get("confusion", [[0]]))
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [np.unravel_index(i, counts.shape) for i in order]
    return [
        (name_of(labels, int(a)), name_of(labels, int(b)), f"{counts[a, b]:,}")
        for a, b in pairs
        if counts[a, b]
    ]


def markdown(report: Report, files: Collection[str] = ()) -> str:
    """The report for a file, with the names of the pictures beside it, which are in `files`."""
    run = read_run(Path(report["run"]))
    parts = [f"# {card.title(run)}"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in report["about"].items()))
    parts += [markdown_table(*metrics_cells(run)), "## Curves", *_curve_lines(report)]
    if report["curves"]["training"]:
        parts.append("![curves](report.png)")
    for split, facts in report["splits"].items():
        parts += [f"## {split}", "\n".join(f"- {line}" for line in _lines(facts, report["labels"]))]
        if "none" not in facts:
            parts.append(f"![{split}](report_{split}.png)")
        parts += _split_tables(facts, report["labels"])
        if (errors := f"report_{split}_errors.png") in files:
            parts += ["### Worst errors, pictured", f"![errors on {split}]({errors})"]
    if report["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report["notes"])]
    return "\n\n".join(parts) + "\n"


def _split_tables(facts: Split, labels: list[str]) -> list[str]:
    """A split's tables, each with its heading."""
    parts = []
    if counts := facts.get("confusion"):
        names = [name_of(labels, i) for i in range(len(counts))]
        if len(counts) <= MOST_LABELS:
            rows = [[a, *(f"{n:,}" for n in row)] for a, row in zip(names, counts, strict=True)]
            table = markdown_table(["label", *(f"answer {name}" for name in names)], rows)
        else:
            table = markdown_table(["label", "answer", "times"], _confusions(facts, labels))
        parts += ["### Confusion matrix", table]
    if each := facts.get("by_label"):
        rows = [
            [
                row["label"],
                f"{row['n']:,}",
                *(f"{row[k]:.3f}" for k in ("precision", "recall", "f1")),
            ]
            for row in each
        ]
        header = ["label", "rows", "precision", "recall", "F1"]
        parts += ["### Labels", markdown_table(header, rows)]
    if sure := facts.get("calibration"):
        rows = [
            [f"{r['from']:.2f} .. {r['to']:.2f}", f"{r['n']:,}"]
            + [f"{r[key]:.3f}" for key in ("confidence", "accuracy")]
            for r in sure["table"]
        ]
        table = markdown_table(["confidence", "n", "mean confidence", "accuracy"], rows)
        parts += ["### Calibration", ECE, table]
    if facts["errors"]:
        header, rows = _example_cells(facts["errors"])
        parts += ["### Worst errors", markdown_table(header, rows)]
    for kind, examples in facts.get("teacher", {}).get("examples", {}).items():
        if examples:
            header, rows = _example_cells(examples)
            parts += [f"### Student and teacher: {kind}", markdown_table(header, rows)]
    return parts


def _example_cells(examples: list[Example]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table of examples."""
    columns = [name for name in examples[0] if name not in ("texts", "teacher")]
    header = [*columns, *(["teacher"] if "teacher" in examples[0] else [])]
    width = max(len(example.get("texts", ())) for example in examples)
    header += [f"text {i + 1}" if width > 1 else "text" for i in range(width)]
    lines = []
    for example in examples:
        line = [_cell(example.get(name)) for name in columns]
        if taught := example.get("teacher"):
            sure = f", {_cell(taught['probability'])}" if "probability" in taught else ""
            line.append(f"{_cell(taught['prediction'])}{sure}")
        texts = [textwrap.shorten(t, 300, placeholder=" …") for t in example.get("texts", ())]
        lines.append(line + texts + [""] * (width - len(texts)))
    return header, lines


def _cell(value: object) -> str:
    if isinstance(value, str):
        return textwrap.shorten(value, 300, placeholder=" …")
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def report(folder: Path, out: Path | None = None) -> tuple[Report, str]:
    """A run's numbers, and the text to print; writes report.md and pictures (see `write`)."""
    examined = examine(folder)
    if any(len(facts.get("confusion", ())) <= MOST_LABELS for facts in examined["splits"].values()):
        instead = "a label's number (the first is #0)"
        examined["notes"] += pictures.note(examined["labels"], instead)
    drawn = {}
    with pictures.letters([*examined["labels"], *examined["splits"]]):
        if examined["curves"]["training"]:
            drawn["report.png"] = run_plots.curves(examined)
        for split, facts in examined["splits"].items():
            if "none" in facts:  # texts show themselves
                continue
            answers = read_predictions(folder / "predictions" / f"{split}.parquet")
            picture = run_plots.split(split, facts, examined["labels"], answers)
            drawn[f"report_{split}.png"] = picture
        for split, each in pictures_of_errors(examined).items():
            wrong = examined["splits"][split]["errors"]
            drawn[f"report_{split}_errors.png"] = run_plots.errors(wrong, each)
    files = {"report.md": markdown(examined, drawn).encode(), **drawn}
    return examined, f"{text(examined)}\n\n{write(files, folder, out)}"
