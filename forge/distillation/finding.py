"""Finding the teachers of a run: named ones, earlier runs, or models to be fine-tuned first."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from forge import ranks
from forge.config.check import build
from forge.config.check import check as check_node
from forge.config.compose import CONF
from forge.config.schema import Config, Model, Node, Teacher, is_taught, teachers_task
from forge.data import fingerprints
from forge.errors import UserError
from forge.models import heads, loading
from forge.records.files import METADATA, RESULTS, STATE, Json, read_json
from forge.records.record import composition
from forge.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
SFT: Node = {"_target_": "forge.modes.sft.trainer", "_partial_": True}
CALLBACKS: Node = {  # of a teacher's training, whatever the student's are
    "console": {"_target_": "forge.training.callbacks.Console"},
    "nan_guard": {"_target_": "forge.training.callbacks.NanGuard"},
}
RUNS = ("outputs", "multirun")  # where finished runs are looked for


@dataclass(frozen=True)
class TeacherRun:
    """A run that fine-tunes a teacher."""

    cfg: DictConfig
    run_dir: Path
    choices: dict[str, str]  # of config groups, for its record


def check(config: Config, task: Task) -> None:
    """Raise `UserError` for teachers that the task has no place for; before anything is read."""
    if task.answer.alignment != "token":
        return
    if is_taught(config) and (count := len(config.teacher.models())) > 1:
        raise UserError(f"teacher.path: {count} teachers are named; a language model takes one")
    if config.model.init:
        raise UserError(
            "model.init: students from a teacher's layers are classifiers so far; name a language "
            "model with model.path= or e.g. model=tiny_lm"
        )


def resolve(
    config: Config,
    task: Task,
    rows: dict[str, Dataset],
    recorded: Json,
    train: Callable[[TeacherRun], Model],
) -> list[Model]:
    """The teachers of a run, by path; `train` fine-tunes one that no run has trained yet."""
    if not is_taught(config):
        return []
    teachers = [
        train(each) if isinstance(each, TeacherRun) else each
        for each in find(config, task, rows, recorded)
    ]
    if config.model.init:
        _check_start(teachers, task)
    return teachers


def find(
    config: Config, task: Task, rows: dict[str, Dataset], recorded: Json
) -> list[Model | TeacherRun]:
    """A trained teacher for each `teacher.path`, or the run that is to train it.

    A path without a head for the task stands for a model: the best finished mode=sft run of it on
    the same rows is taken, those of `teacher.task` where it has settings. A resumed run keeps its
    teachers.
    """
    known = recorded.get("teacher", {}).get("paths")
    wanted = config.teacher.models()
    if known and len(known) == len(wanted):
        pairs = zip(wanted, known, strict=True)
        return [model if model.path == path else Model(path=path) for model, path in pairs]
    if config.teacher.task:
        config = replace(config, task=teachers_task(config))
        task = build(check_node(config.task, "teacher.task"), "teacher.task")
        rows = task.load()
    return [
        _trained(config, model, task, rows) or _training_run(config, model, rows)
        for model in wanted
    ]


def _check_start(teachers: Sequence[Model], task: Task) -> None:
    """Raise `UserError` unless `model.init=teacher` has one teacher, whose labels are named."""
    if len(teachers) > 1:
        raise UserError(f"model.init=teacher: {len(teachers)} teachers are named; it takes one")
    labels = loading.load_config(teachers[0], {}, "teacher").id2label or {}
    head = task.head
    if head.named and len(head.labels or ()) > 1 and heads.unnamed(labels.values()):
        raise UserError(
            f"model.init=teacher: the labels of {teachers[0].path} are unnamed (LABEL_0 …), so its "
            "head cannot be put into the task's order; write their names into id2label of its "
            "config.json"
        )


def untrained(config: Config) -> list[TeacherRun]:
    """The runs that are to fine-tune teachers before this one."""
    if not is_taught(config):
        return []
    task: Task = build(check_node(config.task, "task"), "task")
    teachers = find(config, task, task.load(), {})
    return [each for each in teachers if isinstance(each, TeacherRun)]


def _trained(config: Config, model: Model, task: Task, rows: dict[str, Dataset]) -> Model | None:
    """The teacher if it has a head, or the best run that gave its model one; None for neither."""
    if model.init:
        raise UserError("teacher.init: a teacher is not made from itself; set teacher.path=")
    if model.path and not (model.new_head or model.from_scratch):
        processor = task.input.load_processor(model, rows[task.train], "teacher")
        architecture = loading.load_config(model, {}, "teacher")
        task.check(model, processor, architecture, "teacher")
        if task.head.is_trained(architecture):
            if model.lora:
                raise UserError(f"teacher.lora: {model.path} is trained already; leave it out")
            return model
    if not model.path and not model.config:
        raise UserError(
            "teacher.path=null: name a run or a model, or choose e.g. model@teacher=bert"
        )
    if model.path is None:
        task.answer.check(model, loading.architecture_class(model.config)(), "teacher")
    path = model.path or config_name(model)
    if best := ranks.broadcast(lambda: _best_run(model, task, rows)):
        run, value = best
        log.info("teacher %s: %s %.4f, found in %s", path, task.headline, value, run)
        return Model(path=str(run))
    if not config.teacher.train:
        raise UserError(
            f"teacher {path}: no head trained for this task and no finished run of it under "
            f"{' or '.join(RUNS)}; train one with {_command(model)}"
        )
    return None


def config_name(model: Model) -> str:
    """What to call a model without a path: its architecture and size."""
    return f"{model.config.get('model_type')}-{model.config.get('hidden_size')}"


def _best_run(model: Model, task: Task, rows: dict[str, Dataset]) -> tuple[Path, float] | None:
    """The best finished mode=sft run of this model on these rows, with its headline."""
    asked = {split: rows[split]._fingerprint for split in (task.train, task.evaluation[0])}
    scores: dict[Path, float] = {}
    for file in (f for root in RUNS for f in Path(root).absolute().rglob(METADATA)):
        try:
            ran, state, results = (
                read_json(file.with_name(name)) for name in (METADATA, STATE, RESULTS)
            )
        except ValueError:  # not a whole record
            continue
        had = {split: facts.get("fingerprint") for split, facts in ran.get("data", {}).items()}
        config, headline = ran.get("config", {}), results.get("headline", {})
        if (
            state.get("status") == "finished"
            and state.get("epoch", 0) >= 1
            and config.get("mode", {}).get("_target_") == SFT["_target_"]
            and _identity(config.get("model", {})) == _identity(asdict(model))
            and asked.items() <= had.items()
            and headline.get("metric") == task.headline
            and (file.parent / "model" / "config.json").is_file()
        ):
            scores[file.parent] = headline["value"]
    if not scores:
        return None
    sign = 1 if task.greater_is_better else -1
    best = max(sorted(scores), key=lambda path: sign * scores[path])
    return best, scores[best]


def _identity(model: Node) -> tuple[object, ...]:
    """What makes two model nodes the same model: the sizes count only where there is no path."""
    path = model.get("path")
    if path and Path(path).is_dir():
        path = str(Path(path).resolve())
    keys = ("tokenizer", "from_scratch", "from_pretrained", "layers", "init", "lora")
    sizes = None if path else model.get("config")
    return (path, sizes, *(model.get(key) or None for key in keys))


def _command(model: Model) -> str:
    """The command that trains this teacher, with the overrides of this run's command line."""
    composed = composition()
    choices, overrides = composed["choices"], [o.lstrip("+") for o in composed["overrides"]]
    of_training = ("teacher.trainer.", "teacher.task.")
    apart = ("teacher.path=", "teacher.train=", "teacher.weights=", *of_training)
    of_task = [override for override in overrides if override.startswith("task.")]
    renamed = [f"task={choices.get('task', 'TASK')}", *of_task]
    if model.path:
        renamed.append(f"model.path={model.path}")
    else:
        renamed.append(f"model={choices.get('model@teacher', 'MODEL')}")
    for override in overrides:
        if override.startswith("teacher.") and not override.startswith(apart):
            renamed.append(override.replace("teacher.", "model.", 1))
        elif override.startswith(of_training):
            renamed.append(override.removeprefix("teacher."))
        elif override.startswith("precision="):
            renamed.append(override)
    return shlex.join(["python", "launch.py", "mode=sft", *renamed])


def _name(model: Model, choice: str | None) -> str:
    """The option that the model is, or else the end of its path, or what it is made of."""
    if model.path is None:
        return choice or config_name(model)
    own = CONF / "model" / f"{choice}.yaml"
    if own.is_file() and OmegaConf.select(OmegaConf.load(own), "path") == model.path:
        return str(choice)
    place = Path(model.path)
    return place.parent.name if place.name == "model" else place.name


def _training_run(config: Config, model: Model, rows: dict[str, Dataset]) -> TeacherRun:
    """The run that fine-tunes `model`, in a directory of its own."""
    log.info(
        "teacher %s: no head trained for this task and no finished run under %s; it is trained "
        "first (name one with teacher.path=RUN_DIRECTORY, or stop with teacher.train=false)",
        model.path or config_name(model),
        " or ".join(RUNS),
    )
    trainer = config.teacher.trainer
    changed = replace(
        config, model=model, mode=SFT, trainer=trainer, seed=int(trainer.get("seed", 42)),
        callbacks=CALLBACKS, teacher=Teacher(), resume=None,
    )  # fmt: skip
    what = [model, trainer, config.task, config.precision.value]
    content = [(name, split._fingerprint) for name, split in rows.items()]
    choices = composition()["choices"]
    choices = {
        "task": choices.get("task", "task"),
        "model": _name(model, choices.get("model@teacher")),
        "mode": "sft",
        "trainer": choices.get("trainer@teacher.trainer", "default"),
    }
    folder = f"teacher-{fingerprints.fingerprint(what, content)[:8]}"
    run_dir = Path(RUNS[0], choices["task"], choices["model"], "sft", folder).absolute()
    return TeacherRun(OmegaConf.structured(changed), run_dir, choices)
