"""`python -m forge predict`: what the models of runs answer."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from forge.commands.finished import Finished, finished, load
from forge.data import sources
from forge.errors import UserError
from forge.records.files import Json
from forge.records.logs import library_logs
from forge.results.tables import tabbed
from forge.tasks.answer import Prediction
from forge.tasks.decisions import MASKED

if TYPE_CHECKING:
    import torch

BATCH = 32  # examples at once, of `predict`


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
        where, written = str(file or "texts"), model.task.answer.alignment == "token"
        answered, cut, seconds = (_written if written else _chosen)(model, values, where)
        answers.append(answered)
        alone = written or model.task.answer.alignment == "span" or len(model.labels) == 1
        names = [] if alone else model.labels
        about: Json = {"run": str(run.path), "labels": names}
        about |= {"device": str(model.model.device), "cut": cut}
        about |= {"max_length": model.task.written.max_new_tokens if written else model.limit}
        about |= {"unit": "tokens" if written else model.task.input.unit}
        about |= {"written": written, "ms_per_example": 1000 * seconds / len(answered)}
        runs.append(about)
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
        return {kind.asked[0]: [str(file.absolute())]}
    if file:
        return sources.read({str(file): [file]}, str(file), kind.asked)
    given = sources.well_formed(given or [])  # a shell passes on bytes that are no text
    return kind.given(given, str(model.run.path))


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


Answered: TypeAlias = tuple[list[Prediction], int, float]  # how many were cut, and the seconds


def _chosen(model: Finished, values: sources.Columns, where: str) -> Answered:
    """Labels and numbers; texts that are read are what is cut."""
    from datasets import Dataset

    from forge.models.forward import Pass

    task, kind, processor = model.task, model.task.input, model.processor
    rows, how = kind.rows(values, where), Pass(_device(model), None, BATCH)
    collate = kind.collator(processor, None)
    tried = {name: column[:BATCH] for name, column in rows.items()}
    for part in (tried, rows):
        start = time.perf_counter()
        features = Dataset.from_dict(kind.features(part, processor, model.limit))
        logits = task.logits_by_row(model.model, features, collate, how)
    seconds = time.perf_counter() - start
    columns = list(kind.shown(rows).values())
    read = ([column[i] for column in columns] for i in range(len(logits)))
    answers = [_answer(row, texts, model) for row, texts in zip(logits, read, strict=True)]
    return answers, sum(features["truncated"]), seconds


def _written(model: Finished, values: sources.Columns, where: str) -> Answered:
    """What a language model writes, each time the likeliest token; answers are what is cut."""
    from datasets import Dataset

    from forge.models.forward import Pass
    from forge.tasks.decoding import Reader, generate

    written, start = model.task.written, time.perf_counter()
    reader = Reader(model.model, model.processor, Pass(_device(model), None, BATCH))
    asked = model.task.questions(values, where, model.processor, model.limit)
    completions = generate(reader, Dataset.from_dict(asked), written.greedy())
    answers: list[Prediction] = [{"answer": written.extract(each.text)} for each in completions]
    if written.where != "whole" or written.numeric:  # else that is all
        for answer, completion in zip(answers, completions, strict=True):
            answer["completion"] = completion.text
    cut = sum(completion.cut for completion in completions)
    return answers, cut, time.perf_counter() - start


def _device(model: Finished) -> torch.device:
    """Where the model is asked, and put."""
    import torch

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    torch.nn.Module.to(model.model, device)
    return device


def _answer(logits: np.ndarray, texts: list[str], model: Finished) -> Prediction:
    """The answer's own form (`Answer.prediction`), or its labels and the probability of each."""
    answer = model.task.answer
    if (own := answer.prediction(logits, texts)) is not None:
        return own
    odds = answer.probabilities(logits[0])
    each = zip(model.labels, odds.tolist(), logits[0].ravel(), strict=True)
    probabilities = {name: share for name, share, logit in each if logit != MASKED}
    completion = answer.completion(np.atleast_1d(answer.predict(logits[0])).tolist())
    if isinstance(completion, str):
        return {"label": completion, "probabilities": probabilities}
    return {"labels": completion, "probabilities": probabilities}


def prediction_table(result: Json) -> tuple[list[str], list[list[str]]]:
    """Header and cells for a reader: of a single example a line for each label, else a line for
    each row.

    Rows beside several runs have the probability of the answer alone, else that of every label.
    """
    runs, rows = result["runs"], result["rows"]
    if len(runs) == 1 and len(rows) > 1:
        return answer_rows(result, digits=4)
    names = _letters(runs) or ["answer"]
    if len(rows) == 1:
        answers = rows[0]["predictions"]
        more = dict.fromkeys(name for i in range(len(runs)) for name in _more(result, i))
        lines = [["", *map(_named, answers)]]
        return ["", *names], lines + [
            [name, *(_part(a, name, 4) for a in answers)] for name in more
        ]
    lines = [
        [str(row["row"]), *row["texts"]]
        + [f"{_named(a)} {_part(a, a.get('label', ''), 4)}".rstrip() for a in row["predictions"]]
        for row in rows
    ]
    return ["row", *_columns(rows), *names], lines


def answer_rows(result: Json, digits: int = 6) -> tuple[list[str], list[list[str]]]:
    """Header and cells for a program: a line for each row, with each run's answer and its
    probabilities, or its completion, a column each."""
    header = ["row", *_columns(result["rows"])]
    lines = [[str(row["row"]), *row["texts"]] for row in result["rows"]]
    for i in range(len(result["runs"])):
        letter, more = "".join(_letters(result["runs"])[i : i + 1]), _more(result, i)
        header += [letter or "answer", *(f"{letter} {name}".lstrip() for name in more)]
        for line, row in zip(lines, result["rows"], strict=True):
            answer = row["predictions"][i]
            line += [_named(answer, digits), *(_part(answer, name, digits) for name in more)]
    return header, lines


def _more(result: Json, run: int) -> list[str]:
    """What a run's answers come with: a probability for each label, or a completion; nothing where
    words are labelled."""
    labels: list[str] = result["runs"][run]["labels"]
    answers = [row["predictions"][run] for row in result["rows"]]
    if "shown" in answers[0]:
        return []
    if "start" in answers[0]:
        return ["start", "probability"]
    return labels or (["completion"] if any("completion" in a for a in answers) else [])


def _letters(runs: list[Json]) -> list[str]:
    """A name for each of several runs."""
    return [chr(ord("A") + i) for i in range(len(runs))] if len(runs) > 1 else []


def _columns(rows: list[Json]) -> list[str]:
    return [f"text {i}" if i > 1 else "text" for i in range(1, len(rows[0]["texts"]) + 1)]


def _named(answer: Prediction, digits: int = 4) -> str:
    if "shown" in answer:
        return str(answer["shown"])
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "none"
    if "answer" in answer:
        return answer["answer"]
    return str(answer["label"]) if "label" in answer else f"{answer['value']:.{digits}f}"


def _part(answer: Prediction, name: str, digits: int) -> str:
    if "start" in answer and name in ("start", "probability"):
        return f"{answer['start']}" if name == "start" else f"{answer['probability']:.{digits}f}"
    if "answer" in answer:
        return answer["completion"] if name == "completion" else ""
    share = answer.get("probabilities", {}).get(name)
    return "" if share is None else f"{share:.{digits}f}"


def prediction_notes(result: Json) -> list[str]:
    """A line for each run, and how its milliseconds were measured."""
    lines = []
    for i, run in enumerate(result["runs"]):
        letter = f"{chr(ord('A') + i)}  " if len(result["runs"]) > 1 else ""
        what = "answers " if run["written"] else ""
        cut = f", {run['cut']:,} {what}cut at {run['max_length']:,} {run['unit']}"
        timed = f"{run['ms_per_example']:.2f} ms per example on {run['device']}"
        lines.append(f"{letter}{run['run']}: {timed}{cut if run['cut'] else ''}")
    rows = len(result["rows"])
    how = f"wall clock of processing and forward passes, batches of {min(rows, BATCH)}, fp32"
    warm = "" if any(run["written"] for run in result["runs"]) else ", once warm"
    return [*lines, f"ms: {how}{warm}, over {rows:,} examples"]


def write_answers(path: Path, result: Json) -> None:
    """A row for each example, as the file's name says: a table for csv and tsv, else a JSON line.

    The file is replaced whole.
    """
    text = io.StringIO()
    if (kind := path.suffix.lower()) in (".csv", ".tsv"):
        header, lines = answer_rows(result)
        if kind == ".csv":
            csv.writer(text, lineterminator="\n").writerows([header, *lines])
        else:
            text.write(tabbed(header, lines) + "\n")
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in result["rows"])
    _replace(path, text.getvalue())


def _replace(path: Path, text: str) -> None:
    """Write a file whole."""
    special = path.exists() and not path.is_file()  # /dev/stdout, a pipe: written to, not replaced
    path = path if special else path.resolve()
    scratch = path if special else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        if not special:
            scratch.replace(path)
    except OSError as error:
        if not special:
            with suppress(OSError):
                scratch.unlink()
        raise UserError(f"--out={path}: {error.strerror}") from error
