"""Tell what one run did: its curves, where it is wrong, how sure. `python -m forge report RUN`."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge import card
from forge.errors import UserError, one_line
from forge.record import read_json
from forge.results import Run, drawn, markdown_table, metrics_cells, read_run, shown

BINS = 15  # of the expected calibration error
SHOWN = {"errors": 10, "confusions": 5, "disagreements": 3}
MOST_LABELS = 12  # of a confusion matrix that is written out
HEADER = ("what", "overrides", "device", "code", "teacher")  # of `forge show`
SHARE = "gradient_share_"
ECE = (
    f"ECE, the expected calibration error (Guo et al. 2017): over {BINS} bins of equal width of "
    "the answer's probability, the mean over the examples of |accuracy - mean confidence|."
)
AGREEMENT = (
    "both right",
    "only the student right",
    "only the teacher right",
    "both wrong, the same answer",
    "both wrong, different answers",
)


@dataclass
class Answers:
    """A split's predictions, in the order of the examples' ids; `logits` [rows, labels]."""

    id: NDArray[Any]
    label: NDArray[Any]
    prediction: NDArray[Any]
    logits: NDArray[Any]

    @property
    def numbers(self) -> bool:
        """Whether the answers are numbers (a regression) and not labels."""
        return int(self.logits.shape[1]) == 1

    @property
    def right(self) -> NDArray[Any]:
        return np.asarray(self.prediction == self.label)

    @property
    def confidence(self) -> NDArray[Any]:
        """The probability of each answer that was given."""
        from scipy.special import softmax

        shares = softmax(self.logits.astype(np.float64), -1)
        return np.asarray(shares[np.arange(len(shares)), self.prediction])


def read_predictions(path: Path) -> Answers:
    """A split's predictions with their logits; raises `ValueError` for what has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = ("id", "label", "prediction", "logits")
    if missing := [name for name in columns if name not in table.column_names]:
        raise ValueError(f"it has no {', '.join(missing)}")
    if any(pa.types.is_nested(table.schema.field(name).type) for name in columns[:3]):
        raise ValueError("an example has several labels")
    if not table.num_rows:
        raise ValueError("it has no rows")
    id, label, prediction = (table[name].to_numpy() for name in columns[:3])
    logits = np.array(table["logits"].to_pylist(), dtype=np.float64)
    return Answers(id, label, prediction, logits)


def calibration(confidence: NDArray[Any], right: NDArray[Any], bins: int = BINS) -> dict[str, Any]:
    """The expected calibration error (Guo et al. 2017), and the bins of its reliability diagram.

    Confidence, the probability of the answer given, is cut into bins of equal width, the m-th
    being ((m - 1) / bins, m / bins]. The error is the mean over the examples of the distance
    between their bin's accuracy and its mean confidence.
    """
    edges = np.linspace(0, 1, bins + 1)
    where = np.searchsorted(edges[1:-1], confidence)
    n = np.bincount(where, minlength=bins)
    sure = np.bincount(where, confidence, bins) / np.maximum(n, 1)
    accuracy = np.bincount(where, right, bins) / np.maximum(n, 1)
    table = [
        {"from": low, "to": high, "n": int(n[i]), "confidence": sure[i], "accuracy": accuracy[i]}
        for i, (low, high) in enumerate(pairwise(edges))
        if n[i]
    ]
    error = float(n @ np.abs(accuracy - sure) / n.sum())
    return {"ece": error, "bins": bins, "n": int(n.sum()), "table": table}


def examine(folder: Path) -> dict[str, Any]:
    """What a report tells of a finished run, as plain values; raises `UserError` for no such run.

    What is missing in the directory, or cannot be read here, is named in `notes`.
    """
    run = read_run(folder)
    if run.state.get("status") != "finished" or not run.results:
        raise UserError(f"{folder}: no finished run in this directory")
    notes: list[str] = card.chosen_on(run)
    found: dict[str, Any] = {
        "run": str(folder),
        "about": {name: value for name, value in shown(folder) if name in HEADER},
        "headline": run.results["headline"],
        "metrics": run.results["splits"],
        "train": run.results.get("train", {}),
        "curves": _curves(run, notes),
        "teacher": run.metadata.get("teacher", {}).get("splits", {}),
        "labels": _labels(run),
        "splits": {},
        "notes": notes,
    }
    texts = _texts(run, notes)
    for split in run.results["splits"]:
        file = folder / "predictions" / f"{split}.parquet"
        try:
            answers = read_predictions(file)
        except (OSError, ValueError) as error:
            notes.append(f"{split}: its answers cannot be shown ({one_line(str(error))}).")
            continue
        found["splits"][split] = _split(answers, found["labels"], texts.get(split, {}))
        _add_teacher(run, split, answers, found, texts.get(split, {}))
    return dict(plain(found))


def _labels(run: Run) -> list[str]:
    """Names in the order of their ids; none where nothing names them."""
    try:
        named = read_json(run.path / "model" / "config.json").get("id2label") or {}
    except ValueError:
        named = {}
    if named:
        return [str(named[i]) for i in sorted(named, key=int)]
    return [str(name) for name in run.metadata["config"].get("task", {}).get("labels") or ()]


def _curves(run: Run, notes: list[str]) -> dict[str, Any]:
    """What was logged in training and in evaluations, with its step."""
    from forge import checkpoints

    folders = [run.path, *checkpoints.steps(run.path).values()]
    history: list[dict[str, Any]] = []
    for file in (folder / "trainer_state.json" for folder in folders):
        try:
            history = read_json(file).get("log_history", [])
        except ValueError:
            continue
        if history:
            break
    steps = run.results.get("train", {}).get("steps", 0)
    last = max((entry["step"] for entry in history), default=0)
    if not history and steps:
        notes.append("The curves are not here: no trainer_state.json holds them.")
    elif last < steps:
        notes.append(f"The curves end at step {last} of {steps}, with the newest checkpoint.")
    return {
        "training": [entry for entry in history if "loss" in entry],
        "evaluation": [entry for entry in history if "eval_loss" in entry],
    }


def _texts(run: Run, notes: list[str]) -> dict[str, dict[int, list[str]]]:
    """The texts of every evaluation split by id, from the task's data where it can be read here."""
    from forge.config import build

    known = run.metadata.get("data", {})
    try:
        task = build(run.metadata["config"]["task"], "task")
        rows = task.load()
        found = {}
        for split in run.results["splits"]:
            if rows[split]._fingerprint != known[split]["fingerprint"]:
                raise ValueError(f"the rows of {split} have changed since")
            columns = [rows[split][name] for name in task.text_columns]
            texts = [list(row) for row in zip(*columns, strict=True)]
            found[split] = dict(zip(rows[split]["id"], texts, strict=True))
        return found
    except Exception as error:  # whatever a data source raises, the rest can be told
        notes.append(f"Texts are not available here ({one_line(str(error))[:200]}); ids only.")
        return {}


def _split(answers: Answers, labels: list[str], texts: dict[int, list[str]]) -> dict[str, Any]:
    if answers.numbers:
        apart = answers.prediction - answers.label
        worst = np.argsort(-np.abs(apart), kind="stable")[: SHOWN["errors"]]
        return {
            "n": len(apart),
            "residuals": {
                "mean": apart.mean(),
                "std": apart.std(),
                "mean absolute": np.abs(apart).mean(),
                "median absolute": np.median(np.abs(apart)),
                "largest": np.abs(apart).max(),
            },
            "errors": [_example(answers, i, labels, texts) for i in worst],
        }
    from sklearn.metrics import confusion_matrix

    wide = range(answers.logits.shape[1])
    wrong, confidence = np.flatnonzero(~answers.right), answers.confidence
    usable = np.isfinite(confidence)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][: SHOWN["errors"]]
    found = {
        "n": len(answers.id),
        "wrong": len(wrong),
        "confusion": confusion_matrix(answers.label, answers.prediction, labels=wide),
        "errors": [_example(answers, i, labels, texts) for i in worst],
    }
    if usable.any():
        found["calibration"] = calibration(confidence[usable], answers.right[usable])
    return found


def _example(
    answers: Answers, row: int, labels: list[str], texts: dict[int, list[str]]
) -> dict[str, Any]:
    """One example: its texts where they are known, what was wanted and what was said."""
    told: dict[str, Any] = {"id": answers.id[row]}
    if answers.numbers:
        told |= {"label": answers.label[row], "prediction": answers.prediction[row]}
    else:
        told |= {
            "label": _name(labels, answers.label[row]),
            "prediction": _name(labels, answers.prediction[row]),
            "probability": answers.confidence[row],
        }
    return told | ({"texts": texts[told["id"]]} if told["id"] in texts else {})


def _name(labels: list[str], number: int) -> str:
    return labels[number] if number < len(labels) else str(number)


def _add_teacher(
    run: Run, split: str, student: Answers, found: dict[str, Any], texts: dict[int, list[str]]
) -> None:
    """Where student and teacher differ on a split, and who is right."""
    if "teacher" not in run.metadata:
        return
    try:
        teacher = read_predictions(run.path / "predictions" / f"teacher_{split}.parquet")
        if not np.array_equal(teacher.id, student.id):
            raise ValueError("they are over other examples")
    except (OSError, ValueError) as error:
        reason = one_line(str(error))
        found["notes"].append(f"{split}: the teacher's answers cannot be shown ({reason}).")
        return
    kinds, order = _agreement(student, teacher)
    examples = {}
    for kind in [kind for kind in kinds if kind.startswith(("only", "the"))]:
        rows = np.flatnonzero(kinds[kind])
        first = rows[np.argsort(-order[rows], kind="stable")][: SHOWN["disagreements"]]
        examples[kind] = [
            _example(student, i, found["labels"], texts)
            | {"teacher": _example(teacher, i, found["labels"], {})}
            for i in first
        ]
    counts = {kind: rows.sum() for kind, rows in kinds.items()}
    found["splits"][split]["teacher"] = {"counts": counts, "examples": examples}


def _agreement(student: Answers, teacher: Answers) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Which examples are of which kind, and how much each is worth looking at."""
    if student.numbers:
        ours, theirs = (np.abs(each.prediction - each.label) for each in (student, teacher))
        closer = {"the student closer": ours < theirs, "the teacher closer": theirs < ours}
        return closer | {"equally close": ours == theirs}, np.abs(ours - theirs)
    ours, theirs = student.right, teacher.right
    same, neither = student.prediction == teacher.prediction, ~ours & ~theirs
    rows = (ours & theirs, ours & ~theirs, theirs & ~ours, neither & same, neither & ~same)
    return dict(zip(AGREEMENT, rows, strict=True)), np.minimum(
        student.confidence,
        teacher.confidence,  # where both are sure, one is surely mistaken
    )


def plain(value: Any) -> Any:
    """Nested values as JSON has them: no arrays, and null for what is no finite number."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def text(found: dict[str, Any]) -> str:
    """The report for a terminal."""
    run = read_run(Path(found["run"]))
    lines = [f"{name:<11} {value}" for name, value in found["about"].items()]
    lines.append(drawn(*metrics_cells(run)))
    for split, facts in found["splits"].items():
        lines += ["", *(f"{split}: {line}" for line in _words(facts, found["labels"]))]
    return "\n".join([*lines, "", *_curve_words(found), *found["notes"]])


def _curve_words(found: dict[str, Any]) -> list[str]:
    logged, metric = found["curves"]["training"], found["headline"]["metric"]
    judged = [e for e in found["curves"]["evaluation"] if e.get(f"eval_{metric}") is not None]
    lines = []
    if logged:
        ends = [f"{_shown(e['loss'])} at step {e['step']:,}" for e in (logged[0], logged[-1])]
        lines.append(f"training loss {' to '.join(ends)}")
    if judged:
        ends = [f"{e[f'eval_{metric}']:.4f} at step {e['step']:,}" for e in (judged[0], judged[-1])]
        lines.append(f"{metric} {' to '.join(ends)}")
    if shares := [e for e in logged if any(key.startswith(SHARE) for key in e)]:
        told = [f"{k.removeprefix(SHARE)} {v:.0%}" for k, v in shares[-1].items() if SHARE in k]
        lines.append(f"shares of the gradient norm at step {shares[-1]['step']}: {', '.join(told)}")
    return lines


def _shown(value: float | None, form: str = ".4f") -> str:
    return "no number" if value is None else f"{value:{form}}"


def _words(facts: dict[str, Any], labels: list[str]) -> list[str]:
    """What a split's answers show, in a few lines."""
    lines = []
    if residuals := facts.get("residuals"):
        told = ", ".join(f"{name} {_shown(value)}" for name, value in residuals.items())
        lines.append(f"prediction minus label: {told}")
    else:
        lines.append(f"{facts['wrong']:,} of {facts['n']:,} answers are wrong")
    if pairs := _confusions(facts, labels):
        lines[0] += f"; most often {pairs[0][0]} taken for {pairs[0][1]}, {pairs[0][2]} times"
    if found := facts.get("calibration"):
        mean = sum(row["n"] * row["confidence"] for row in found["table"]) / found["n"]
        right = sum(row["n"] * row["accuracy"] for row in found["table"]) / found["n"]
        lines.append(
            f"calibration error (ECE, {found['bins']} bins) {found['ece']:.1%}; mean confidence "
            f"{mean:.1%}, accuracy {right:.1%}"
        )
    if taught := facts.get("teacher"):
        told = ", ".join(f"{kind} {n:,}" for kind, n in taught["counts"].items())
        lines.append(f"student and teacher: {told}")
    return lines


def _confusions(facts: dict[str, Any], labels: list[str]) -> list[tuple[str, str, str]]:
    """The commonest mistakes: label, answer, how often."""
    counts = np.array(facts.get("confusion", [[0]]))
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: SHOWN["confusions"]]
    pairs = [np.unravel_index(i, counts.shape) for i in order]
    return [
        (_name(labels, int(a)), _name(labels, int(b)), f"{counts[a, b]:,}")
        for a, b in pairs
        if counts[a, b]
    ]


def markdown(found: dict[str, Any]) -> str:
    """The report for a file, with the names of the pictures beside it."""
    run = read_run(Path(found["run"]))
    parts = [f"# {card.title(run)}"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in found["about"].items()))
    parts += [markdown_table(*metrics_cells(run)), "## Curves", *_curve_words(found)]
    if found["curves"]["training"]:
        parts.append("![curves](report.png)")
    for split, facts in found["splits"].items():
        parts += [f"## {split}", "\n".join(f"- {line}" for line in _words(facts, found["labels"]))]
        parts += [f"![{split}](report_{split}.png)", *_split_tables(facts, found["labels"])]
    if found["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in found["notes"])]
    return "\n\n".join(parts) + "\n"


def _split_tables(facts: dict[str, Any], labels: list[str]) -> list[str]:
    """A split's tables, each with its heading."""
    parts = []
    if counts := facts.get("confusion"):
        names = [_name(labels, i) for i in range(len(counts))]
        if len(counts) <= MOST_LABELS:
            rows = [[a, *(f"{n:,}" for n in row)] for a, row in zip(names, counts, strict=True)]
            table = markdown_table(["label", *(f"answer {name}" for name in names)], rows)
        else:
            table = markdown_table(["label", "answer", "times"], _confusions(facts, labels))
        parts += ["### Confusion matrix", table]
    if found := facts.get("calibration"):
        rows = [
            [f"{r['from']:.2f} .. {r['to']:.2f}", f"{r['n']:,}"]
            + [f"{r[key]:.3f}" for key in ("confidence", "accuracy")]
            for r in found["table"]
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


def _example_cells(examples: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table of examples."""
    columns = [name for name in examples[0] if name not in ("texts", "teacher")]
    header = [*columns, *(["teacher"] if "teacher" in examples[0] else [])]
    width = max(len(example.get("texts", ())) for example in examples)
    header += [f"text {i + 1}" if width > 1 else "text" for i in range(width)]
    lines = []
    for example in examples:
        line = [_cell(example[name]) for name in columns]
        if taught := example.get("teacher"):
            sure = f", {_cell(taught['probability'])}" if "probability" in taught else ""
            line.append(f"{_cell(taught['prediction'])}{sure}")
        texts = [textwrap.shorten(t, 300, placeholder=" …") for t in example.get("texts", ())]
        lines.append(line + texts + [""] * (width - len(texts)))
    return header, lines


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def report(folder: Path, out: Path | None = None, as_json: bool = False) -> str:
    """Write report.md and its pictures into `out`, or the run's directory; the text to print.

    Where they cannot be written the text says so.
    """
    from forge import run_plots

    found = examine(folder)
    pictures = {"report.png": run_plots.curves(found)} if found["curves"]["training"] else {}
    for split, facts in found["splits"].items():
        answers = read_predictions(folder / "predictions" / f"{split}.parquet")
        picture = run_plots.split(split, facts, found["labels"], answers)
        pictures[f"report_{split}.png"] = picture
    files = {"report.md": markdown(found).encode(), **pictures}
    out = out or folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
        found["files"] = [str(out / name) for name in files]
        told = f"report  {', '.join(found['files'])}"
    except OSError as error:
        told = f"report  not written ({error.strerror}: {out}); --out DIR writes it elsewhere"
        found["notes"].append(told)
    return json.dumps(found, indent=2) if as_json else f"{text(found)}\n\n{told}"
