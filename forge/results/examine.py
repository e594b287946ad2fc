"""What a finished run shows, in numbers: its curves, where it is wrong, how sure it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from forge.errors import UserError, one_line
from forge.records.files import Json, finite, read_json
from forge.results import card
from forge.results.predictions import (
    Calibration,
    Completions,
    Floats,
    OfLabel,
    Predictions,
    by_label,
    by_outcome,
    by_type,
    calibration,
    labels_of,
    name_of,
    read_completions,
    read_predictions,
)
from forge.results.runs import Headline, Run, read_run
from forge.results.show import shown
from forge.results.statistics import same

if TYPE_CHECKING:
    from datasets import Dataset

    from forge.tasks.answer import Scores
    from forge.tasks.task import Task

SHOWN = {"errors": 10, "disagreements": 3}
AROUND = 120  # characters of a context on each side of an answer
HEADER = ("what", "overrides", "device", "code", "teacher")  # of `forge show`
AGREEMENT = (
    "both right",
    "only the student right",
    "only the teacher right",
    "both wrong, the same answer",
    "both wrong, different answers",
)


Texts: TypeAlias = dict[int, list[str]]  # of a split's rows, by id
Entry: TypeAlias = dict[str, float]  # of a log: the step, and what was measured there


class Example(TypedDict, total=False):
    """A row, what was wanted and what was answered; texts where they can be read."""

    id: int
    label: str | float
    prediction: str | float
    probability: float
    texts: list[str]
    completion: str  # of a language model, in which the prediction is found
    teacher: Example


class Agreement(TypedDict):
    """How often student and teacher agree in each way, and examples of where they do not."""

    counts: dict[str, int]
    examples: dict[str, list[Example]]


class Split(TypedDict, total=False):
    """A split's answers: of a label with a confusion matrix, of several with a line for each, of
    numbers with residuals, of a language model with how many had none."""

    n: int
    wrong: int
    none: int  # completions without an answer
    confusion: list[list[int]]
    by_label: list[OfLabel]
    residuals: dict[str, float | None]
    errors: list[Example]
    calibration: Calibration
    teacher: Agreement


class Curves(TypedDict):
    """What was logged in training and in evaluations."""

    training: list[Entry]
    evaluation: list[Entry]


class Report(TypedDict):
    """What a finished run shows, as `report --json` prints it."""

    run: str
    about: dict[str, str]
    headline: Headline
    metrics: dict[str, Scores]
    train: Json
    curves: Curves
    teacher: dict[str, Scores]
    start: dict[str, Scores]  # of the model that reinforcement began with
    labels: list[str]
    splits: dict[str, Split]
    notes: list[str]


def examine(folder: Path) -> Report:
    """What a report shows of a finished run, as plain values; raises `UserError` for no such run.

    What is missing in the directory, or cannot be read here, is named in `notes`.
    """
    run = read_run(folder)
    if run.state.get("status") != "finished" or not run.results:
        raise UserError(f"{folder}: no finished run in this directory")
    notes: list[str] = [*card.chosen_on(run), *_missed(run)]
    facts: Report = {
        "run": str(folder),
        "about": {name: value for name, value in shown(folder) if name in HEADER},
        "headline": run.results["headline"],
        "metrics": run.results["splits"],
        "train": run.results.get("train", {}),
        "curves": _curves(run, notes),
        "teacher": run.metadata.get("teacher", {}).get("splits", {}),
        "start": run.results.get("start", {}).get("splits", {}),
        "labels": labels_of(run),
        "splits": {},
        "notes": notes,
    }
    texts = _texts(run, notes)
    for split in run.results["splits"]:
        file = folder / "predictions" / f"{split}.parquet"
        try:
            if written := read_completions(file):
                facts["splits"][split] = _of_completions(written)
                continue
            answers = read_predictions(file)
        except (OSError, ValueError) as error:
            notes.append(f"{split}: its answers cannot be shown ({one_line(str(error))}).")
            continue
        facts["splits"][split] = _split(answers, facts["labels"], texts.get(split, {}))
        _add_teacher(run, split, answers, facts, texts.get(split, {}))
    shown_facts: Report = finite(facts)
    return shown_facts


def _missed(run: Run) -> list[str]:
    """Whether an evaluation between two checkpoints was better than the one that was kept."""
    headline, best = run.results["headline"], run.state.get("best_value")
    chosen = run.metadata["config"]["trainer"].get("load_best_model_at_end")
    if not chosen or best is None or math.isclose(best, headline["value"], abs_tol=1e-3):
        return []
    return [
        f"An evaluation in training gave {headline['metric']} {best:.4f}, the kept model has "
        f"{headline['value']:.4f}: no checkpoint was saved there (trainer.save_steps)."
    ]


def _curves(run: Run, notes: list[str]) -> Curves:
    """What was logged in training and in evaluations, with its step."""
    from forge.records import checkpoints

    folders = [run.path, *checkpoints.steps(run.path).values()]
    history: list[Entry] = []
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


def _texts(run: Run, notes: list[str]) -> dict[str, Texts]:
    """The texts of every evaluation split by id, from the task's data where it can be read here."""
    logging.disable(logging.ERROR)  # what cannot be read is in the notes, once
    try:
        task = _task(run)
        rows, texts = _rows(run, task), {}
        for split in run.results["splits"]:
            columns = task.input.shown(rows[split]).values()  # none are beside the answers
            shown_rows = [list(map(str, row)) for row in zip(*columns, strict=True)]
            if shown_rows:
                texts[split] = dict(zip(rows[split]["id"], shown_rows, strict=True))
        return texts
    except Exception as error:  # whatever a data source raises, the rest can be shown
        notes.append(f"Texts are not available here ({one_line(str(error))[:200]}); ids only.")
        return {}
    finally:
        logging.disable(logging.NOTSET)


def _task(run: Run) -> Task:
    """The task of a run; raises `UserError` for one with code that is not Forge's own."""
    from forge.config.check import build, check
    from forge.tasks.recorded import require_own_code

    node = run.metadata["config"]["task"]
    require_own_code(node)
    task: Task = build(check(node, "task"), "task")
    return task


def _rows(run: Run, task: Task) -> dict[str, Dataset]:
    """The rows of every evaluation split, where they are still those of the run."""
    rows, known = task.load(training=False), run.metadata.get("data", {})
    for split in run.results["splits"]:
        if rows[split]._fingerprint != known[split]["fingerprint"]:
            raise ValueError(f"the rows of {split} are not those of the run")
    return rows


def pictures_of_errors(report: Report) -> dict[str, list[bytes]]:
    """For each split the pictures of its `errors`, of a task whose rows are files.

    Empty where the rows have none, or cannot be read here (`notes` say why).
    """
    run = read_run(Path(report["run"]))
    read = {split: facts for split, facts in report["splits"].items() if "none" not in facts}
    wrong = {split: facts["errors"] for split, facts in read.items()}
    wrong = {split: rows for split, rows in wrong.items() if rows and "texts" in rows[0]}
    if not wrong or not (task := _task(run)).input.suffixes:
        return {}
    rows, pictures = _rows(run, task), {}
    for split, errors in wrong.items():
        places = {id: i for i, id in enumerate(rows[split]["id"])}
        chosen = rows[split].select([places[error["id"]] for error in errors])
        pictures[split] = [picture or b"" for picture in task.input.pictures(chosen)]
    return pictures


def _split(answers: Predictions, labels: list[str], texts: Texts) -> Split:
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

    wrong, confidence = np.flatnonzero(~answers.right), answers.confidence
    usable = np.isfinite(confidence)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][: SHOWN["errors"]]
    facts: Split = {
        "n": len(answers.id),
        "wrong": len(wrong),
        "errors": [_example(answers, i, labels, texts) for i in worst],
    }
    if answers.tagged:
        facts["by_label"] = by_type(answers)
    elif answers.spanned:
        facts["by_label"] = by_outcome(answers)
    elif answers.several:
        facts["by_label"] = by_label(answers, labels)
    else:
        wide = range(answers.logits.shape[1])
        counts = confusion_matrix(answers.label, answers.prediction, labels=wide)
        facts["confusion"] = counts.tolist()
    if usable.any():
        facts["calibration"] = calibration(confidence[usable], answers.right[usable])
    return facts


def _of_completions(written: Completions) -> Split:
    """The wrong answers, those first whose right completion the model finds the least likely."""
    wrong = np.flatnonzero(~written.right)
    worst = wrong[np.argsort(-written.nll[wrong], kind="stable")][: SHOWN["errors"]]
    return {
        "n": len(written.id),
        "wrong": len(wrong),
        "none": written.prediction.count(""),
        "errors": [
            {
                "id": int(written.id[i]),
                "label": written.label[i],
                "prediction": written.prediction[i],
                "completion": written.completion[i],
                "texts": [written.prompt[i]],
            }
            for i in worst
        ],
    }


def _example(answers: Predictions, row: int, labels: list[str], texts: Texts) -> Example:
    """One example: its texts where they are known, what was wanted and what was answered."""
    id, label, prediction = (each[row] for each in (answers.id, answers.label, answers.prediction))
    example: Example = {"id": id, "label": label, "prediction": prediction}
    if answers.tagged:
        example["label"], example["prediction"] = (
            _marked(texts.get(id), list(tags)) for tags in (label, prediction)
        )
    elif answers.spanned:
        example["label"], example["prediction"] = " | ".join(label) or "none", prediction or "none"
    elif not answers.numbers:
        example["label"], example["prediction"] = (
            _names(labels, np.flatnonzero(ids) if answers.several else [ids])
            for ids in (label, prediction)
        )
    if not answers.numbers:
        example["probability"] = answers.confidence[row]
    if id in texts:
        example["texts"] = texts[id]
        if answers.start is not None:
            example["texts"] = _answered(texts[id], int(answers.start[row]), prediction)
    return example


def _answered(texts: list[str], start: int, answer: str) -> list[str]:
    """A row's texts, with the answer in brackets in the first, of which its surroundings stay."""
    context, *others = texts
    if start < 0:
        return texts
    end = start + len(answer)
    before, after = context[max(0, start - AROUND) : start], context[end : end + AROUND]
    before, after = "… " * (start > AROUND) + before, after + " …" * (len(context) > end + AROUND)
    return [f"{before}[{answer}]{after}", *others]


def _marked(texts: list[str] | None, tags: list[str]) -> str:
    """Tags in their text where that is known."""
    from forge.tasks.entities import marked

    words = texts[0].split() if texts else []
    return marked(words, tags) if len(words) == len(tags) else " ".join(tags)


def _names(labels: list[str], ids: Iterable[int]) -> str:
    return ", ".join(name_of(labels, i) for i in ids) or "none"


def _add_teacher(run: Run, split: str, student: Predictions, facts: Report, texts: Texts) -> None:
    """Where student and teacher differ on a split, and who is right."""
    if "teacher" not in run.metadata:
        return
    try:
        teacher = read_predictions(run.path / "predictions" / f"teacher_{split}.parquet")
        if not np.array_equal(teacher.id, student.id):
            raise ValueError("they are over other examples")
    except (OSError, ValueError) as error:
        reason = one_line(str(error))
        facts["notes"].append(f"{split}: the teacher's answers cannot be shown ({reason}).")
        return
    kinds, order = _agreement(student, teacher)
    examples = {}
    for kind in [kind for kind in kinds if kind.startswith(("only", "the"))]:
        rows = np.flatnonzero(kinds[kind])
        first = rows[np.argsort(-order[rows], kind="stable")][: SHOWN["disagreements"]]
        examples[kind] = [
            _example(student, i, facts["labels"], texts)
            | {"teacher": _example(teacher, i, facts["labels"], {})}
            for i in first
        ]
    counts = {kind: int(rows.sum()) for kind, rows in kinds.items()}
    facts["splits"][split]["teacher"] = {"counts": counts, "examples": examples}


def _agreement(
    student: Predictions, teacher: Predictions
) -> tuple[dict[str, NDArray[np.bool_]], Floats]:
    """Which examples are of which kind, and how much each is worth reading."""
    if student.numbers:
        ours, theirs = (np.abs(each.prediction - each.label) for each in (student, teacher))
        closer = {"the student closer": ours < theirs, "the teacher closer": theirs < ours}
        return closer | {"equally close": ours == theirs}, np.abs(ours - theirs)
    a, b = student.right, teacher.right
    alike, neither = same(student.prediction, teacher.prediction), ~a & ~b
    rows = (a & b, a & ~b, b & ~a, neither & alike, neither & ~alike)
    return dict(zip(AGREEMENT, rows, strict=True)), np.minimum(
        student.confidence,
        teacher.confidence,  # where both are sure, one is surely mistaken
    )
