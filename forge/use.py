"""Use a finished run: judge its model on other data (`evaluate`), or ask it (`predict`)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from forge import config as configs
from forge import data, hub, models, tasks
from forge.config import Config, Model, build, dotted_values
from forge.errors import USER_ERRORS, UserError, explain
from forge.record import (
    EVALUATION,
    NOT_COMPARED,
    RESULTS,
    environment,
    git,
    library_logs,
    masked,
    now,
    plain,
    require_place,
    whole,
    write_json,
)
from forge.results import Run, read_run

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from forge.tasks import Task
    from forge.trainer import Trainer

SEARCHPATH = "hydra.searchpath"  # what --config-dir= becomes
EVALUATING = ("trainer.per_device_eval_batch_size", "trainer.use_cpu")
MAY_CHANGE = ("task", "precision", "cache_dir", *EVALUATING, SEARCHPATH)
JUDGED = ("validation", "test")  # files that a task of files judges by
ELSEWHERE = ("revision", "subfolder", "variant", "token")  # of where the first weights came from
BATCH = 32  # examples at once, of `predict`


def finished(path: Path) -> Run:
    """A run that left a model; raises `UserError` for any other directory."""
    run = read_run(path)
    if not run.metadata or not run.results or not (path / "model" / "config.json").is_file():
        raise UserError(f"{path}: no finished run in this directory")
    return run


def source(run: Run) -> Model:
    """Its final model, as a model to load."""
    given = run.metadata["config"]["model"].get("from_pretrained") or {}
    kept = {key: value for key, value in given.items() if key not in ELSEWHERE}
    return Model(path=str(run.path), from_pretrained=kept)


def architecture(run: Run) -> PretrainedConfig:
    """Of its final model."""
    from transformers import AutoConfig

    folder = str(run.path / "model")
    trust = source(run).from_pretrained.get("trust_remote_code")
    with hub.access("model", folder, "RUN"):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    return config


def classifier(run: Run) -> PretrainedConfig:
    """The architecture of its final model; raises `UserError` when that is no classifier."""
    config = architecture(run)
    if not models.has_head(config):
        raise UserError(f"{run.path}: its model ({config.model_type}) is no classifier")
    return config


def load(run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Its classifier in fp32, ready to be asked, and its tokenizer."""
    config, model, folder = classifier(run), source(run), str(run.path / "model")
    options = {"dtype": "float32", **model.from_pretrained, "config": config}
    with hub.access("model", folder, "RUN"):
        return models.read(folder, **options), models.load_tokenizer(model, ())


def max_length(run: Run, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """The tokens per example that it was trained with."""
    return models.max_length(run.metadata.get("max_length"), tokenizer, config)


def evaluate(path: Path, words: list[str], out: Path | None = None) -> dict[str, Any]:
    """The run's model judged by its task with the overrides `words`; kept in a directory.

    That is `out`, or one in `evaluations/` of the run, which an equal evaluation overwrites; where
    it cannot be written, `lost` says why. Raises `UserError` for labels that are not the head's and
    for an `out` that holds something else.
    """
    from forge.experiment import judge, table

    run = finished(path)
    if out:
        require_place(out, EVALUATION)
    cfg, name = _recomposed(run, words)
    with library_logs(), tempfile.TemporaryDirectory() as scratch:
        config, place = configs.to_config(cfg), Path(scratch, "evaluation")
        task, trainer, splits, facts = _prepared(run, config, Path(scratch))
        judged = data.fingerprint(config.task, config.precision)[:8]
        folder = out or path / "evaluations" / "-".join([name, *task.evaluation, judged])
        place.mkdir()
        results = judge(trainer, task, splits, place)
        told = {"run": str(path), "run_id": run.metadata.get("id"), "overrides": masked(words)}
        told |= {"config": plain(cfg), **facts, "made": now(), **environment(), "code": git()}
        write_json(place / RESULTS, results)
        write_json(place / EVALUATION, told)
        lost = _keep(place, folder)
    found = told | results | {"kept": None if lost else str(folder), "lost": lost}
    return found | {"text": _text(found, table(results, task))}


def _keep(place: Path, folder: Path) -> str | None:
    """Put what was written where it belongs; why it cannot be there, as beside a read-only run."""
    try:
        with whole(folder, EVALUATION) as scratch:
            shutil.copytree(place, scratch, dirs_exist_ok=True)
    except (OSError, UserError) as error:
        return str(error)
    return None


def _text(found: dict[str, Any], table: str) -> str:
    """What was judged, the metrics of each split, and where they are kept."""
    lines = [f"run     {found['run']}"]
    for split, facts in found["data"].items():
        cut = f", {facts['truncated']:,} cut at {found['max_length']} tokens"
        lines.append(f"judged  {split}: {facts['n']:,} rows{cut if facts['truncated'] else ''}")
    lines += [f"note    {note}" for note in found["notes"]]
    kept = f"kept    {found['kept']}"
    if found["lost"]:
        kept = f"kept    nowhere ({found['lost']}); --out DIR keeps it elsewhere"
    return "\n".join([*lines, table, kept])


def _recomposed(run: Run, words: list[str]) -> tuple[DictConfig, str]:
    """The recorded config with `words` on top, and the name of its task.

    What is not compared between runs is today's: what is recorded may be of another machine.
    """
    from hydra import compose
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser

    recorded = {k: v for k, v in run.metadata["config"].items() if k not in NOT_COMPARED}
    recorded["precision"] = run.metadata.get("precision", recorded["precision"])
    words = configs.searched(words)
    if options := [word for word in words if word.startswith("-")]:
        raise UserError(f"{options[0]}: evaluate has no such option; see its --help")
    with configs.composing():
        parsed = OverridesParser.create().parse_overrides(words)
        given = {told.key_or_group: told for told in parsed}
        for key in given:
            if not any(key == may or key.startswith(f"{may}.") for may in MAY_CHANGE):
                others = ", ".join(MAY_CHANGE[:-1])
                raise UserError(f"{key}: a finished run has its own; evaluate takes {others}")
        defaults: list[Any] = ["schema", "_self_"]
        name = str(run.metadata.get("choices", {}).get("task", "task"))
        if "task" in given:
            name = str(given["task"].value())
            defaults, _ = ["schema", {"task": name}, "_self_"], recorded.pop("task")
        node = {"defaults": defaults, **recorded, "cache_dir": compose("config").cache_dir}
        ConfigStore.instance().store("recorded", node)
        groups = [str(t.input_line) for t in parsed if t.key_or_group in ("task", SEARCHPATH)]
        known: list[str] = []
        try:
            known = [key for key, _ in dotted_values(plain(compose("recorded", groups)))]
            cfg = compose("recorded", words)
        except USER_ERRORS as error:
            raise UserError(explain(error, known)) from error
    _as_the_run(cfg.task, run, given)
    return cfg, name.replace("/", "-")


def _as_the_run(task: DictConfig, run: Run, given: Container[str]) -> None:
    """Fill in what a task leaves open, as the run's own training did: labels, kind, length."""
    head = architecture(run)
    if "max_length" in task and "task.max_length" not in given:
        task.max_length = run.metadata.get("max_length", task.max_length)
    if "problem_type" in task and task.problem_type is None:
        task.problem_type = "regression" if head.num_labels == 1 else "classification"
    if "labels" in task and task.labels is None and len(models.head_names(head)) > 1:
        task.labels = models.head_names(head)
    if isinstance(files := task.get("files"), DictConfig):  # training rows are not read
        judged = any(f"task.files.{split}" in given for split in JUDGED)
        for split in ("train", *JUDGED) if judged else ("train",):
            if OmegaConf.is_missing(files, split):
                files[split] = None


def _prepared(
    run: Run, config: Config, scratch: Path
) -> tuple[Task, Trainer, dict[str, Dataset], dict[str, Any]]:
    """The task, a trainer that judges, the tokenised splits, and facts for the record."""
    from forge.experiment import tokenize, training_arguments
    from forge.trainer import Trainer

    task: Task = build(config.task, "task")
    args = training_arguments(config, task, scratch)
    tokenizer = models.load_tokenizer(source(run), ())
    head = architecture(run)
    task.make_ready(tokenizer)
    length = models.max_length(task.max_length, tokenizer, head)
    if isinstance(task, tasks.TextTask):
        _require_labels(run, task)
    rows = task.load(training=False)
    splits, facts = tokenize(rows, tokenizer, length, task, config.cache_dir)
    splits = {split: data.longest_first(read) for split, read in splits.items()}
    trainer = Trainer(
        model=models.load(source(run), task, head),
        args=args,
        eval_dataset=splits[task.evaluation[0]],
        processing_class=tokenizer,
        data_collator=task.collator(tokenizer, data.pad_multiple(args)),
        compute_metrics=getattr(task, "compute_metrics", None),
    )
    notes = []
    if getattr(task, "by_name", True) is False:
        named = ", ".join(f"{i} {name}" for i, name in enumerate(models.names(task)))
        notes.append(f"the labels are numbers, taken for {named}")
    return task, trainer, splits, {"data": facts, "max_length": length, "notes": notes}


def _require_labels(run: Run, task: tasks.TextTask) -> None:
    """Raise `UserError` unless the run's head has the task's labels, in any order."""
    head = classifier(run)
    ours, theirs = models.names(task), models.head_names(head)
    if task.num_labels != head.num_labels or (len(ours) > 1 and not models.match(theirs, ours)):
        raise UserError(
            f"{run.path}: its head knows [{', '.join(theirs)}], the task [{', '.join(ours)}]; "
            "they must be the same names (task.labels=[…] says what the data's are)"
        )


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
        names = models.head_names(model.config)
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
        found = data.read({str(file): [file]}, str(file), wanted)
        return [tasks.texts(found[column], str(file), column) for column in wanted]
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

    collate = data.Collator(tokenizer)
    torch.nn.Module.to(model, torch.accelerator.current_accelerator() or torch.device("cpu"))

    @torch.inference_mode()
    def ask(encoded: dict[str, list[Any]], some: list[int]) -> Any:
        batch = collate([{key: values[i] for key, values in encoded.items()} for i in some])
        inputs = {key: value.to(model.device) for key, value in batch.items()}
        return model(**inputs).logits.float().cpu().numpy()

    for warm in (False, True):
        start = time.perf_counter()
        encoded = data.encode(texts, tokenizer, max_length)
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
