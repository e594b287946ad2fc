"""`python -m forge predict`: what the models of runs answer."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import numpy as np

from forge.commands.finished import Finished, finished, load
from forge.data import sources
from forge.errors import UserError
from forge.records.files import Json
from forge.records.logs import library_logs
from forge.tasks.decisions import MASKED

BATCH = 32  # examples at once, of `predict`


class Prediction(TypedDict, total=False):
    """A label with the probability of each, or the value of a regression."""

    label: str
    labels: list[str]  # of a task of any number of labels, or of one for each of the words
    words: list[str]  # that the model read
    shown: str  # the words with what they are labelled
    probabilities: dict[str, float]
    value: float


def predict(
    paths: list[Path], given: list[list[str]] | None = None, file: Path | None = None
) -> Json:
    """What each run's model answers to values of its input's columns, or to the rows of a file.

    `ms_per_example` is the wall clock of processing and of all forward passes, in batches of at
    most `BATCH`, the first one tried beforehand, divided by the examples.
    """
    runs: list[Json] = []
    answers: list[list[Prediction]] = []
    shown: list[list[str]] = []
    for run in map(finished, paths):
        with library_logs():
            model = load(run)
        values = _values(model, given, file)
        shown = shown or [list(map(_text, column)) for column in values.values()]
        logits, read, cut, seconds = _logits(model, values, str(file or "texts"))
        pairs = zip(logits, read, strict=True)
        answers.append([_answer(row, texts, model) for row, texts in pairs])
        names = model.labels
        about: Json = {"run": str(run.path), "labels": names if len(names) > 1 else []}
        about |= {"device": str(model.model.device), "cut": cut, "max_length": model.limit}
        about["unit"] = model.task.input.unit
        runs.append(about | {"ms_per_example": 1000 * seconds / len(logits)})
    return {
        "runs": runs,
        "rows": [
            {"row": i, "texts": list(row), "predictions": [each[i] for each in answers]}
            for i, row in enumerate(zip(*shown, strict=True))
        ],
    }


def _values(model: Finished, given: list[list[str]] | None, file: Path | None) -> sources.Columns:
    """The columns that a run's model reads."""
    kind = model.task.input
    if file and file.suffix.lower() in kind.suffixes:
        return {kind.columns[0]: [str(file.absolute())]}
    if file:
        return sources.read({str(file): [file]}, str(file), kind.columns)
    given = sources.well_formed(given or [])  # a shell passes on bytes that are no text
    return kind.given(given, str(model.run.path))


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _logits(
    model: Finished, values: sources.Columns, where: str
) -> tuple[list[np.ndarray], list[list[str]], int, float]:
    """Of each row its logits [k, labels], and the texts that were read; how many rows were cut,
    and the seconds that it took."""
    import torch
    from datasets import Dataset

    from forge.models.forward import Pass

    task, kind, processor = model.task, model.task.input, model.processor
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    torch.nn.Module.to(model.model, device)
    rows, how = kind.rows(values, where), Pass(device, None, BATCH)
    collate = kind.collator(processor, None)
    tried = {name: column[:BATCH] for name, column in rows.items()}
    for part in (tried, rows):
        start = time.perf_counter()
        features = Dataset.from_dict(kind.features(part, processor, model.limit))
        logits = task.logits_by_row(model.model, features, collate, how)
    seconds = time.perf_counter() - start
    columns = list(kind.shown(rows).values())
    read = [[column[i] for column in columns] for i in range(len(logits))]
    return logits, read, sum(features["truncated"]), seconds


def _answer(logits: np.ndarray, texts: list[str], model: Finished) -> Prediction:
    """A number for a regression; else the label (or labels) and the probability of each."""
    answer = model.task.answer
    if not answer.distribution:
        return {"value": float(logits[0, 0])}
    if answer.alignment == "word":
        labels = list(answer.completion(answer.predict(logits).tolist()))
        return {"labels": labels, "words": texts[0].split(), "shown": answer.shown(texts, labels)}
    odds = answer.probabilities(logits[0])
    each = zip(model.labels, odds.tolist(), logits[0].ravel(), strict=True)
    probabilities = {name: share for name, share, logit in each if logit != MASKED}
    completion = answer.completion(np.atleast_1d(answer.predict(logits[0])).tolist())
    if isinstance(completion, str):
        return {"label": completion, "probabilities": probabilities}
    return {"labels": completion, "probabilities": probabilities}


def prediction_table(result: Json) -> tuple[list[str], list[list[str]]]:
    """Header and cells: of a single example a line for each label, else a line for each row.

    Rows beside several runs have the probability of the answer alone, else that of every label.
    """
    runs, rows = result["runs"], result["rows"]
    names = [chr(ord("A") + i) for i in range(len(runs))] if len(runs) > 1 else ["answer"]
    labels = list(dict.fromkeys(label for run in runs for label in run["labels"]))
    if "shown" in rows[0]["predictions"][0]:  # a label for each word: no probability of each
        labels = []
    if len(rows) == 1:
        answers = rows[0]["predictions"]
        lines = [["", *map(_named, answers)]]
        return ["", *names], lines + [
            [label, *(_share(a, label) for a in answers)] for label in labels
        ]
    texts = [f"text {i}" if i > 1 else "text" for i in range(1, len(rows[0]["texts"]) + 1)]
    lines = []
    for row in rows:
        answers = row["predictions"]
        shown = [
            _named(a) + (f" {_share(a, a['label'])}" if "label" in a and len(runs) > 1 else "")
            for a in answers
        ]
        shares = [_share(answers[0], label) for label in labels] if len(runs) == 1 else []
        lines.append([str(row["row"]), *row["texts"], *shown, *shares])
    return ["row", *texts, *names, *(labels if len(runs) == 1 else ())], lines


def _named(answer: Prediction) -> str:
    if "shown" in answer:
        return str(answer["shown"])
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "none"
    return str(answer["label"]) if "label" in answer else f"{answer['value']:.4f}"


def _share(answer: Prediction, label: str) -> str:
    share = answer.get("probabilities", {}).get(label)
    return "" if share is None else f"{share:.4f}"


def prediction_notes(result: Json) -> list[str]:
    """A line for each run, and how its milliseconds were measured."""
    lines = []
    for i, run in enumerate(result["runs"]):
        letter = f"{chr(ord('A') + i)}  " if len(result["runs"]) > 1 else ""
        cut = f", {run['cut']:,} cut at {run['max_length']:,} {run['unit']}" if run["cut"] else ""
        timed = f"{run['ms_per_example']:.2f} ms per example on {run['device']}"
        lines.append(f"{letter}{run['run']}: {timed}{cut}")
    rows = len(result["rows"])
    how = f"wall clock of processing and forward passes, batches of {min(rows, BATCH)}, fp32"
    return [*lines, f"ms: {how}, once warm, over {rows:,} examples"]


def write_rows(path: Path, rows: list[Json]) -> None:
    """A JSON line for each row; the file is replaced whole."""
    special = path.exists() and not path.is_file()  # /dev/stdout, a pipe: written to, not replaced
    path = path if special else path.resolve()
    scratch = path if special else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not special:
            scratch.replace(path)
    except OSError as error:
        if not special:
            with suppress(OSError):
                scratch.unlink()
        raise UserError(f"--out={path}: {error.strerror}") from error
