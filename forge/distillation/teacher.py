"""Teachers: found or trained, checked against the task, measured, and combined."""

from __future__ import annotations

import gc
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from forge import ranks
from forge.config.check import build, check
from forge.config.schema import Config, Model, Teacher, is_taught, to_config
from forge.data import fingerprints
from forge.distillation.stored import Expert, stored_logits
from forge.errors import UserError
from forge.models import heads, loading
from forge.records.files import METADATA, RESULTS, STATE, read_json
from forge.records.record import composition

if TYPE_CHECKING:
    from datasets import Dataset

    from forge.tasks.task import TextTask
    from forge.training.preparation import Prepared

log = logging.getLogger(__name__)
SFT = {"_target_": "forge.modes.sft.trainer", "_partial_": True}
CALLBACKS = {  # of a teacher's training, whatever the student's are
    "console": {"_target_": "forge.training.callbacks.Console"},
    "nan_guard": {"_target_": "forge.training.callbacks.NanGuard"},
}
RUNS = ("outputs", "multirun")  # where finished runs are looked for
MOST_PERMUTED = 6  # labels; 720 orders to try


def settle(
    config: Config, task: TextTask, rows: dict[str, Dataset], recorded: dict[str, Any]
) -> list[Model]:
    """Teachers with a trained head, one for each `teacher.path`.

    A path without one stands for a model: the best finished mode=sft run of it on the same rows is
    taken, else it is fine-tuned now, once, whoever else wants it. A resumed run keeps its teachers.
    """
    known = recorded.get("teacher", {}).get("paths")
    wanted = config.teacher.models()
    if known and len(known) == len(wanted):
        pairs = zip(wanted, known, strict=True)
        found = [model if model.path == path else Model(path=path) for model, path in pairs]
    else:
        found = [_settle(config, model, task, rows) for model in wanted]
    paths = [model.path for model in found]
    trained: dict[str, Any] = {"path": paths if len(paths) > 1 else paths[0], "new_head": False}
    if found != wanted:  # what described an untrained model does not describe a run
        trained |= {"from_scratch": False, "tokenizer": None, "from_pretrained": {}, "lora": {}}
    config.teacher = replace(config.teacher, **trained)
    return found


def source(
    config: Config, task: TextTask, rows: dict[str, Dataset], recorded: dict[str, Any]
) -> Model:
    """The teacher that `model.init=teacher` starts from; its labels have to be named."""
    found = settle(config, task, rows, recorded)
    if len(found) > 1:
        raise UserError(f"model.init=teacher: {len(found)} teachers are named; it takes one")
    tokenizer = loading.load_tokenizer(found[0], (), "teacher")
    labels = loading.load_config(found[0], task, tokenizer, "teacher").id2label or {}
    if task.num_labels > 1 and heads.unnamed(labels.values()):
        raise UserError(
            f"model.init=teacher: the labels of {found[0].path} are unnamed (LABEL_0 …), so its "
            "head cannot be put into the task's order; write their names into id2label of its "
            "config.json"
        )
    return found[0]


def untrained(config: Config) -> list[Model]:
    """The teachers of a run that are to be fine-tuned before it."""
    if not is_taught(config):
        return []
    task: TextTask = build(check(config.task, "task"), "task")
    rows = task.load()
    return [m for m in config.teacher.models() if _trained(config, m, task, rows) is None]


def train_first(cfg: DictConfig) -> float:
    """Fine-tune the teachers that a composed run needs, as a job of its own; 0."""
    config = to_config(cfg)
    task: TextTask = build(check(config.task, "task"), "task")
    settle(config, task, ranks.in_turn(task.load), {})
    return 0.0


def _settle(config: Config, model: Model, task: TextTask, rows: dict[str, Dataset]) -> Model:
    """The teacher that a node names, fine-tuned now where there is none."""
    if found := _trained(config, model, task, rows):
        return found
    log.info(
        "teacher %s: no head trained for this task and no finished run under %s; it is trained "
        "first (name one with teacher.path=RUN_DIRECTORY, or stop with teacher.train=false)",
        model.path or config_name(model),
        " or ".join(RUNS),
    )
    return Model(path=str(_train(config, model, rows)))


def _trained(
    config: Config, model: Model, task: TextTask, rows: dict[str, Dataset]
) -> Model | None:
    """The teacher if it has a head, or the best run that gave its model one; None for neither."""
    if model.init:
        raise UserError("teacher.init: a teacher is not made from itself; set teacher.path=")
    if model.path and not (model.new_head or model.from_scratch):
        tokenizer = loading.load_tokenizer(model, (), "teacher")
        architecture = loading.load_config(model, task, tokenizer, "teacher")
        if task.head == "CausalLM" or heads.has_head(architecture):
            if model.lora:
                raise UserError(f"teacher.lora: {model.path} is trained already; leave it out")
            return model
    if not model.path and not model.config:
        raise UserError(
            "teacher.path=null: name a run or a model, or choose e.g. model@teacher=bert"
        )
    loading.check_architecture(model, task, "teacher")
    path = model.path or config_name(model)
    if found := ranks.broadcast(lambda: _best_run(model, task, rows)):
        run, value = found
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


def _best_run(model: Model, task: TextTask, rows: dict[str, Dataset]) -> tuple[Path, float] | None:
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


def _identity(model: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two model nodes the same model: the sizes count only where there is no path."""
    path = model.get("path")
    if path and Path(path).is_dir():
        path = str(Path(path).resolve())
    keys = ("tokenizer", "from_scratch", "from_pretrained", "layers", "init", "lora")
    sizes = None if path else model.get("config")
    return (path, sizes, *(model.get(key) or None for key in keys))


def _command(model: Model) -> str:
    """How to train this teacher by hand, in the words of this run's command line."""
    composed = composition()
    choices, words = composed["choices"], [w.lstrip("+") for w in composed["overrides"]]
    apart = ("teacher.path=", "teacher.train=", "teacher.weights=", "teacher.trainer.")
    renamed = [f"task={choices.get('task', 'TASK')}", *(w for w in words if w.startswith("task."))]
    if model.path:
        renamed.append(f"model.path={model.path}")
    else:
        renamed.append(f"model={choices.get('model@teacher', 'MODEL')}")
    for word in words:
        if word.startswith("teacher.") and not word.startswith(apart):
            renamed.append(word.replace("teacher.", "model.", 1))
        elif word.startswith("teacher.trainer."):
            renamed.append(word.removeprefix("teacher."))
        elif word.startswith("precision="):
            renamed.append(word)
    return shlex.join(["python", "launch.py", "mode=sft", *renamed])


def _train(config: Config, model: Model, rows: dict[str, Dataset]) -> Path:
    """Fine-tune `model` in a run directory of its own, which a second caller waits for."""
    import torch

    from forge.experiment import run

    changed: dict[str, Any] = {"model": model, "mode": SFT, "trainer": config.teacher.trainer}
    changed |= {"seed": int(config.teacher.trainer.get("seed", 42)), "callbacks": CALLBACKS}
    cfg = OmegaConf.structured(replace(config, **changed, teacher=Teacher(), resume=None))
    what = [model, config.teacher.trainer, config.task, config.precision.value]
    content = [(name, split._fingerprint) for name, split in rows.items()]
    choices = composition()["choices"]
    choices = {
        "task": choices.get("task", "task"),
        "model": choices.get("model@teacher", config_name(model)),
        "mode": "sft",
        "trainer": choices.get("trainer@teacher.trainer", "default"),
    }
    folder = f"teacher-{fingerprints.fingerprint(what, content)[:8]}"
    run_dir = Path(RUNS[0], choices["task"], choices["model"], "sft", folder).absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir.with_suffix(".lock"))
    try:
        ranks.broadcast(lambda: lock.acquire() and None)
        if ranks.broadcast(lambda: read_json(run_dir / STATE)).get("status") == "finished":
            return run_dir  # while we waited
        with _logged_to(run_dir / "output.log"):
            run(cfg, run_dir, {"choices": choices, "overrides": []})
    finally:
        lock.release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.info("teacher trained; back to the student")
    return run_dir


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """What is logged goes there too."""
    lines = logging.FileHandler(os.devnull if ranks.rank() else path, encoding="utf-8")
    lines.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logging.getLogger().addHandler(lines)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(lines)
        lines.close()


def load(model: Model, prepared: Prepared) -> Expert:
    """The model at `teacher.path`, frozen; raises `UserError` when its labels are others."""
    task = prepared.task
    tokenizer = loading.load_tokenizer(model, (), "teacher")
    config = loading.load_config(model, task, tokenizer, "teacher")
    names = list((config.id2label or {}).values())  # before the task's take their place
    loaded = ranks.in_turn(lambda: loading.load(model, task, config, "teacher"))
    loaded.eval().requires_grad_(False)
    if task.head == "CausalLM":
        return Expert(loaded, tokenizer, slice(max(tokenizer.get_vocab().values()) + 1), False)
    unnamed = task.num_labels > 1 and heads.unnamed(names)
    return Expert(loaded, tokenizer, list(range(task.num_labels)), unnamed)


def shares(config: Teacher) -> list[float]:
    """The weight of each teacher, summing to 1."""
    count = len(config.models())
    given = config.weights or [1.0] * count
    if len(given) != count or min(given) < 0 or not sum(given) > 0:
        raise UserError(
            f"teacher.weights={config.weights}: one of 0 or more for each of {count} teachers"
        )
    return [weight / sum(given) for weight in given]


def combine(logits: list[Any], weights: list[float]) -> Any:
    """One teacher's logits [rows, labels] as they are; of several the log of the mean probability.

    Averaging probabilities, not logits, keeps a sure teacher from outvoting the others by the size
    of its logits. A regression's values are averaged.
    """
    import torch

    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack([torch.as_tensor(each).float() for each in logits])
    shares = torch.tensor(weights, device=stacked.device).view(-1, 1, 1)
    if stacked.shape[-1] == 1:
        return (shares * stacked).sum(0)
    return (stacked.log_softmax(-1) + shares.log()).logsumexp(0)


def measure(experts: list[Expert], prepared: Prepared, gate: bool) -> dict[str, Any]:
    """Scores of the teachers on the evaluation splits, beside the commonest answer's.

    An unnamed head (LABEL_0 …) is first put into the order that fits the labels best. With `gate`
    raises `UserError` for a teacher that is no better than the baseline on the first split.
    """
    task, first = prepared.task, prepared.task.evaluation[0]
    labels = {split: np.asarray(prepared.rows[split]["labels"]) for split in task.evaluation}
    baseline = task.judge(commonest(labels[first], task), labels[first])[task.headline]
    answers: dict[str, list[NDArray[Any]]] = {split: [] for split in task.evaluation}
    for expert in experts:
        logits = {split: stored_logits(expert, prepared, split) for split in task.evaluation}
        if expert.unnamed:
            expert.order = _best_order(logits[first], labels[first], task)
        for split in task.evaluation:
            answers[split].append(logits[split][:, expert.order])
        value = task.judge(answers[first][-1], labels[first])[task.headline]
        log.info(
            "teacher %s: %s %.4f on %s (commonest answer: %.4f)",
            expert.name,
            task.headline,
            value,
            first,
            baseline,
        )
        if gate and not (value > baseline if task.greater_is_better else value < baseline):
            raise UserError(
                f"teacher {expert.name}: {task.headline} {value:.4f} on {first} is no better than "
                f"always giving the commonest answer ({baseline:.4f}); name a trained one with "
                "teacher.path=, or go on with mode.gate=off"
            )
    weights = shares(prepared.config.teacher)
    scores: dict[str, dict[str, float]] = {}
    for split in task.evaluation:
        combined = np.asarray(combine(answers[split], weights))
        prepared.taught[split] = task.answers(prepared.rows[split], combined)
        scores[split] = task.judge(combined, labels[split])
    if len(experts) > 1:
        log.info(
            "teachers together, their probabilities averaged (weights %s): %s %.4f",
            ", ".join(f"{weight:.3g}" for weight in weights),
            task.headline,
            scores[first][task.headline],
        )
    digests = [expert.digest for expert in experts]
    if digests != prepared.recorded.get("teacher", {}).get("digests", digests):
        log.warning("teacher: its weights are not those that this run began with")
    paths = [expert.name for expert in experts]
    return {"paths": paths, "digests": digests, "splits": scores, "baseline": baseline}


def commonest(labels: NDArray[Any], task: TextTask) -> NDArray[Any]:
    """Logits [rows, labels] of always giving the commonest label, or the mean."""
    if task.num_labels == 1:
        return np.full((len(labels), 1), labels.mean())
    one_hot: NDArray[Any] = np.zeros((len(labels), task.num_labels))
    one_hot[:, Counter(labels.tolist()).most_common(1)[0][0]] = 1
    return one_hot


def _best_order(logits: NDArray[Any], labels: NDArray[Any], task: TextTask) -> list[int]:
    """The order of an unnamed head's columns with the best accuracy; shown with its margin."""
    if task.num_labels > MOST_PERMUTED:
        raise UserError(
            f"teacher: its {task.num_labels} labels are unnamed (LABEL_0 …), too many to match by "
            "trial; write their names into id2label of its config.json"
        )
    answers = logits.argmax(-1)
    scores = {
        order: float(np.mean(np.asarray(order)[labels] == answers))
        for order in permutations(range(task.num_labels))
    }
    best, second = sorted(scores, key=lambda o: -scores[o])[:2]
    if scores[best] - scores[second] < 2 / len(labels) ** 0.5:
        raise UserError(
            f"teacher: its labels are unnamed (LABEL_0 …) and no order stands out (best "
            f"{scores[best]:.3f}, second {scores[second]:.3f}); write their names into id2label of "
            "its config.json"
        )
    log.warning(
        "teacher: unnamed labels matched by trial: %s (accuracy %.3f, next best order %.3f)",
        ", ".join(f"LABEL_{c}={n}" for c, n in zip(best, heads.names(task), strict=True)),
        scores[best],
        scores[second],
    )
    return list(best)
