"""A config in plain sentences: data, weights, what the mode does, what stops it, which files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from forge.config.origins import Origins
from forge.records.contents import CONTENTS, in_words
from forge.records.files import Json
from forge.tasks import described
from forge.tasks.described import MISSING, listed, number

FAMILIES = {  # of modes, by what their nodes call
    "forge.modes.sft.trainer": "sft",
    "forge.modes.kd.trainer": "kd",
    "forge.modes.rl.trainer": "rl",
}


@dataclass(frozen=True)
class About:
    """A composed config, and, of a run that has begun, what its record says."""

    config: Json
    choices: Mapping[str, str]  # of groups
    origins: Origins
    place: str  # where its files go
    record: Json = field(default_factory=dict)
    files: list[str] = field(default_factory=list)  # that are there

    def of(self, key: str) -> Any:
        """The value of a dotted key, None for one that is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def mode(self) -> str:
        """sft, kd or rl; of any other mode what it calls."""
        target = str(self.of("mode._target_"))
        return FAMILIES.get(target, target)

    @property
    def taught(self) -> bool:
        """Whether a teacher's answers are learnt from."""
        return self.mode == "kd" and bool(self.of("mode.alpha"))


def sentences(about: About) -> list[tuple[str, str]]:
    """About what, and the sentence; those with nothing to say are left out."""
    made = [
        ("run", _run(about)),
        ("task", described.task(about.config["task"], about.record)),
        ("data", described.data(about.config["task"])),
        ("splits", described.splits(about.config["task"], about.record)),
        ("judged by", described.judged(about.config["task"])),
        ("weights", _weights(about)),
        ("mode", _mode(about)),
        ("teacher", _teacher(about)),
        ("a step", _step(about)),
        ("stops", _stops(about)),
        ("or earlier", _earlier(about)),
        ("saves", _saves(about)),
        ("stages", _stages(about)),
        ("files", _files(about)),
        ("again", _again(about)),
        ("missing", _missing(about.config)),
    ]
    return [(what, text) for what, text in made if text]


def _run(about: About) -> str:
    parts = {"task": "what is asked", "model": "what learns it", "mode": "how it is learnt"}
    named = [
        f"{group}={about.choices[group]} is {what}"
        for group, what in parts.items()
        if about.choices.get(group)
    ]
    places = dict.fromkeys(about.origins.of_choice(group) for group in parts)
    return f"{listed(named)}; chosen by {listed(places)}."


def _weights(about: About) -> str:
    model = about.config["model"]
    text = _origin_of(model, "model")
    if about.of("model.init"):
        layers = model.get("layers")
        chosen = f"layers {listed(layers)}" if isinstance(layers, list) else f"{layers} layers"
        text = f"The model is made of {chosen if layers else 'the layers'} of its teacher."
    elif layers := model.get("layers"):
        text += f" Only some layers are kept (model.layers={layers})."
    if lora := model.get("lora"):
        text += f" They stay frozen; an adapter trains beside them (LoRA, r={lora.get('r', 8)})."
    if count := about.record.get("parameters"):
        text += f" {count['total']:,} weights, {count['trainable']:,} of them trained."
    return text


def _origin_of(model: Json, where: str) -> str:
    """Where a model's weights come from."""
    path, kind = model.get("path"), (model.get("config") or {}).get("model_type")
    if not path:
        return f"Weights start from random values: {kind}, of the sizes in {where}.config."
    if model.get("from_scratch"):
        return (
            f"The architecture is that of {path} ({where}.path); weights start from random values."
        )
    return (
        f"Weights are those of {path} ({where}.path): a run's directory, a directory, or the Hub, "
        "kept in Hugging Face's cache."
    )


def _mode(about: About) -> str:
    chosen = about.origins.of_choice("mode")
    if about.mode == "sft":
        why = "" if chosen.startswith("mode=") else f" (chosen by {chosen}; mode=kd would ask one)"
        text = (
            f"mode=sft: it learns the right answers by the task's loss. No teacher is loaded{why}."
        )
        if weights := about.of("mode.class_weights"):
            text += f" Labels are weighed (mode.class_weights={weights})."
        return text
    if about.mode == "kd":
        return _distillation(about)
    if about.mode == "rl":
        rewards = about.of("mode.reward") or {}
        return (
            f"mode=rl: {about.of('mode.num_generations')} answers are drawn for each example and "
            f"rewarded by {listed(rewards)} (mode/reward); GRPO makes the better ones likelier. "
            "No teacher is loaded, and right answers count only through the rewards."
        )
    return f"The mode is {about.mode}."


def _distillation(about: About) -> str:
    alpha = about.of("mode.alpha")
    if not alpha:
        return "mode=kd with mode.alpha=0: no teacher is loaded, this is mode=sft to the bit."
    if about.of("mode.on_policy"):
        return (
            "mode=kd with mode.on_policy=true: the model writes completions itself and learns at "
            "their tokens what the teacher would say; no right answers are read."
        )
    losses = about.of("mode.loss") or {}
    told = [
        f"{name} at temperature {node['temperature']:g}" if node.get("temperature") else name
        for name, node in losses.items()
    ]
    if alpha == 1:
        return (
            f"mode=kd with mode.alpha=1: it learns from the teacher alone ({listed(told)}); no "
            "right answers are read."
        )
    return (
        f"mode=kd: loss = {1 - alpha:g} of the task's loss on right answers + {alpha:g} "
        f"(mode.alpha) of {listed(told)} to the teacher. Its control is mode.alpha=0."
    )


def _teacher(about: About) -> str:
    if not about.taught and not about.of("model.init"):
        return ""
    if paths := (about.record.get("teacher") or {}).get("paths"):
        return f"The teacher was {listed(paths)}."
    path = about.of("teacher.path")
    if isinstance(path, list):
        return f"The teachers are {listed(path)}; their probabilities are averaged."
    name = path or f"{about.of('teacher.config.model_type')} of random weights"
    first = "it is fine-tuned first, once, in a run of its own (teacher.trainer)"
    if about.of("teacher.train") is False:
        first = "the run stops and says how to train one (teacher.train=false)"
    return (
        f"The teacher is {name} (model@teacher={about.choices.get('model@teacher')}). If it has no "
        "head for this task, the best finished mode=sft run of it on the same rows is taken, from "
        f"outputs/ or multirun/; where there is none, {first}."
    )


def _step(about: About) -> str:
    size = about.of("trainer.per_device_train_batch_size")
    more = about.of("trainer.gradient_accumulation_steps") or 1
    processes = about.record.get("processes") or about.of("launcher.processes") or 1
    rows = f"{size} rows"
    if isinstance(size, int) and more * processes > 1:
        rows = f"{size * more * processes} rows ({processes} processes, {more} batches of {size})"
    rate = about.of("trainer.learning_rate")
    at = f"{rate:.3g}" if isinstance(rate, float | int) else rate
    where = ""
    if device := about.record.get("device"):
        where = f" It ran on {device}, in {about.record.get('precision')}."
    return (
        f"A step reads {rows} and changes the weights once; the learning rate is at most {at} "
        f"({about.of('trainer.lr_scheduler_type') or 'linear'}).{where}"
    )


def _stops(about: About) -> str:
    steps, epochs = about.of("trainer.max_steps"), about.of("trainer.num_train_epochs")
    if steps == 0 or (steps in (None, -1) and not epochs):
        return "Nothing is trained: it is evaluated as it is (0 steps or epochs)."
    if steps in (None, -1):
        return (
            f"It stops after {number(epochs)} epochs (trainer.num_train_epochs): each row is "
            "learnt from so often."
        )
    return (
        f"It stops after {number(steps)} steps (trainer.max_steps, which goes before "
        f"trainer.num_train_epochs={number(epochs)})."
    )


def _earlier(about: About) -> str:
    ends = ["SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C finish the step, save and leave"]
    callbacks = {k: node for k, node in (about.config.get("callbacks") or {}).items() if node}
    for node in callbacks.values():
        name = str(node.get("_target_")).rpartition(".")[2]
        if name == "EarlyStoppingCallback":
            ends.insert(
                0, f"the headline is no better in {node['early_stopping_patience']} evaluations"
            )
        elif name == "NanGuard":
            ends.insert(0, f"the loss is no number for {node['patience']} steps")
    return (
        f"It ends before that when {'; or when '.join(ends[:-1])}; {ends[-1]}."
        if ends[1:]
        else f"{ends[0]}."
    )


def _saves(about: About) -> str:
    def when(strategy: str, steps: str) -> str:
        given = about.of(f"trainer.{strategy}")
        return (
            "after every epoch"
            if given == "epoch"
            else f"every {about.of(f'trainer.{steps}')} steps"
        )

    judged, saved = (
        "It is evaluated at the end only",
        "no checkpoint is written: a stop starts anew",
    )
    if about.of("trainer.eval_strategy") not in (None, "no"):
        judged = f"It is evaluated {when('eval_strategy', 'eval_steps')}"
    if about.of("trainer.save_strategy") not in (None, "no"):
        saved = f"a checkpoint is written {when('save_strategy', 'save_steps')}"
    best = about.of("trainer.load_best_model_at_end")
    final = "the best checkpoint by the headline" if best else "what the last step left"
    return f"{judged}, {saved}. The final model is {final}."


def _stages(about: About) -> str:
    stages = ["compose and check the config", "read the rows"]
    if about.taught or about.of("model.init"):
        stages.append("find the teacher, or train it")
    stages.append("load the model and encode the rows")
    if about.taught:
        stages.append("examine the teacher and ask it")
    if about.mode == "rl":
        stages.append("measure the start")
    steps, epochs = about.of("trainer.max_steps"), about.of("trainer.num_train_epochs")
    if steps and (steps > 0 or epochs):
        stages.append("train")
    stages += ["evaluate every split that judges", "write the results and the model"]
    return f"{', then '.join(stages)}."


def _files(about: About) -> str:
    return f"In {about.place}: {in_words(about.files or _expected(about))}."


def _expected(about: About) -> list[str]:
    """The files that there will be."""
    left = {".hydra/", "preempted-N/", "report.md", "evaluations/", "onnx/", "merged/"}
    if about.of("trainer.save_strategy") in (None, "no"):
        left.add("checkpoint-N/")
    if about.mode != "rl":
        left.add("samples/")
    for name in ("wandb", "tensorboard"):
        if not str(about.of("tracking._target_")).endswith(name):
            left.add(f"{name}/")
    return [name for name in CONTENTS if name not in left]


def _again(about: About) -> str:
    return (
        "The same command starts a new run in a new directory. resume=DIR goes on in a run's own, "
        "with the config that it recorded; more steps or epochs may be given with it."
    )


def _missing(node: object, key: str = "") -> str:
    lost = list(_unset(node, key))
    return (
        f"Give {' '.join(f'{each}=…' for each in lost)}: the run has no value for it."
        if lost
        else ""
    )


def _unset(node: object, key: str) -> Iterable[str]:
    if isinstance(node, dict):
        for name, below in node.items():
            yield from _unset(below, f"{key}.{name}" if key else str(name))
    elif node == MISSING:
        yield key


def sweep(overrides: list[list[str]], shown: list[str]) -> str:
    """Of the runs that a command makes, each with its overrides: how many, what differs, and
    which of them is `shown`."""
    columns = [list(dict.fromkeys(column)) for column in zip(*overrides, strict=True)]
    differing = [column for column in columns if len(column) > 1]
    over = [
        f"{column[0].partition('=')[0]}={','.join(each.partition('=')[2] for each in column)}"
        for column in differing
    ]
    control = ""
    if {"mode.alpha=0", "mode.alpha=0.0"} & {word for column in differing for word in column}:
        control = " mode.alpha=0 is the control: no teacher is loaded, it is mode=sft to the bit."
    one = " ".join(word for word in shown if [word] not in columns)
    return f"{len(overrides)} runs, over {' and '.join(over)}.{control} What follows is {one}."


def search(sweeper: Json) -> str:
    """Of a sweeper that chooses values as it goes."""
    name = str(sweeper.get("_target_")).rpartition(".")[2]
    keys = listed(sweeper.get("params") or {})
    trials = f", {sweeper['n_trials']} runs" if sweeper.get("n_trials") else ""
    return f"{name} chooses {keys}{trials}. What follows is a run without its choice."
