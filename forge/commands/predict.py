"""`python -m forge predict`: what the models of runs answer."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forge.data import sources
from forge.errors import UserError
from forge.inputs import text
from forge.models import heads
from forge.records.logs import library_logs
from forge.results.runs import Run
from forge.tasks import task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forge.commands.finished import classifier, finished, load, max_length

BATCH = 32  # examples at once, of `predict`


def predict(
    paths: list[Path], texts: list[list[str]] | None = None, file: Path | None = None
) -> dict[str, Any]:
    """What each run's model answers to texts, one or two columns of them, or to the rows of a file.

    `ms_per_example` is the wall clock of tokenising and of all forward passes, in batches of at
    most `BATCH`, the first one tried beforehand, divided by the examples.
    """
    runs: list[dict[str, Any]] = []
    asked: list[list[dict[str, Any]]] = []
    read = [(run, _asked(run, texts, file)) for run in map(finished, paths)]
    for run, columns in read:
        with library_logs():
            model, tokenizer = load(run)
        length = max_length(run, tokenizer, model.config)
        logits, cut, seconds = _answers(model, tokenizer, columns, length)
        names = heads.head_names(model.config)
        asked.append([_answer(row, names) for row in logits])
        told: dict[str, Any] = {"run": str(run.path), "labels": names if len(names) > 1 else []}
        told |= {"device": str(model.device), "cut": cut, "max_length": length}
        runs.append(told | {"ms_per_example": 1000 * seconds / len(logits)})
    rows = zip(*read[0][1], strict=True)
    return {
        "runs": runs,
        "rows": [
            {"row": i, "texts": list(row), "predictions": [answers[i] for answers in asked]}
            for i, row in enumerate(rows)
        ],
    }


def _asked(run: Run, given: list[list[str]] | None, file: Path | None) -> list[list[str]]:
    """The columns of texts that a run's model reads."""
    classifier(run)  # its task has texts
    wanted = run.metadata["config"]["task"]["text"]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if file:
        found = sources.read({str(file): [file]}, str(file), wanted)
        return [task.texts(found[column], str(file), column) for column in wanted]
    given = given or []
    if len(given) == len(wanted):
        return given
    if len(wanted) == 2:
        raise UserError(f"{run.path}: it reads pairs ({', '.join(wanted)}); add --pair TEXT")
    raise UserError(f"{run.path}: it reads one text ({wanted[0]}); leave --pair out")


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[list[str]],
    max_length: int,
) -> tuple[NDArray[Any], int, float]:
    """Logits in the order of the texts, how many were cut, and the seconds that it took."""
    import torch

    collate = text.Collator(tokenizer)
    torch.nn.Module.to(model, torch.accelerator.current_accelerator() or torch.device("cpu"))

    @torch.inference_mode()
    def ask(encoded: dict[str, list[Any]], some: list[int]) -> Any:
        batch = collate([{key: values[i] for key, values in encoded.items()} for i in some])
        inputs = {key: value.to(model.device) for key, value in batch.items()}
        return model(**inputs).logits.float().cpu().numpy()

    for warm in (False, True):
        start = time.perf_counter()
        encoded = text.encode(texts, tokenizer, max_length)
        order = sorted(range(len(texts[0])), key=lambda i: -encoded["length"][i])  # least padding
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        answers = [ask(encoded, some) for some in (batches if warm else batches[:1])]
    logits = np.concatenate(answers)[np.argsort(order)]
    return logits, sum(encoded["truncated"]), time.perf_counter() - start


def _answer(logits: NDArray[Any], names: list[str]) -> dict[str, Any]:
    """A number for a regression; else the label and the probability of each."""
    if len(names) == 1:
        return {"value": float(logits[0])}
    odds = np.exp(logits - logits.max())
    probabilities = dict(zip(names, (odds / odds.sum()).tolist(), strict=True))
    return {"label": names[int(logits.argmax())], "probabilities": probabilities}


def prediction_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: of a single example a line for each label, else a line for each row.

    Rows beside several runs have the probability of the answer alone, else that of every label.
    """
    runs, rows = found["runs"], found["rows"]
    names = [chr(ord("A") + i) for i in range(len(runs))] if len(runs) > 1 else ["answer"]
    labels = list(dict.fromkeys(label for run in runs for label in run["labels"]))
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
        told = [
            _named(a) + (f" {_share(a, a['label'])}" if "label" in a and len(runs) > 1 else "")
            for a in answers
        ]
        shares = [_share(answers[0], label) for label in labels] if len(runs) == 1 else []
        lines.append([str(row["row"]), *row["texts"], *told, *shares])
    return ["row", *texts, *names, *(labels if len(runs) == 1 else ())], lines


def _named(answer: dict[str, Any]) -> str:
    return str(answer["label"]) if "label" in answer else f"{answer['value']:.4f}"


def _share(answer: dict[str, Any], label: str) -> str:
    share = answer.get("probabilities", {}).get(label)
    return "" if share is None else f"{share:.4f}"


def prediction_notes(found: dict[str, Any]) -> list[str]:
    """A line for each run, and how its milliseconds were measured."""
    lines = []
    for i, run in enumerate(found["runs"]):
        letter = f"{chr(ord('A') + i)}  " if len(found["runs"]) > 1 else ""
        cut = f", {run['cut']} texts cut at {run['max_length']} tokens" if run["cut"] else ""
        told = f"{run['ms_per_example']:.2f} ms per example on {run['device']}"
        lines.append(f"{letter}{run['run']}: {told}{cut}")
    rows = len(found["rows"])
    how = f"wall clock of tokenising and forward passes, batches of {min(rows, BATCH)}, fp32"
    return [*lines, f"ms: {how}, once warm, over {rows:,} examples"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
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
