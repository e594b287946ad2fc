"""The schema of a run: every node that Forge itself reads is a field of a dataclass here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from forge.config.moved import with_current_targets
from forge.errors import UserError

Node = dict[str, Any]  # an open node, whose keys the signature of its `_target_` decides
SWEEP = "sweep"  # value of `resume` in the jobs of a sweep that goes on


class Precision(Enum):
    """Arithmetic of the forward and backward pass; weights and optimizer state stay fp32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def _open() -> Any:
    """An empty node that takes any key without a plus; they are checked where they are used."""
    return DictConfig({}, flags={"struct": False})


@dataclass
class Model:
    """Where weights come from; read by `forge.models.loading`."""

    path: str | None = None  # Hub name, local directory or an earlier run's directory
    from_scratch: bool = False  # the architecture and tokenizer of `path`, random weights
    tokenizer: str | None = None  # Hub name or directory, when it is not at `path`
    new_head: bool = False  # replace a head that was trained for other labels
    init: str | None = None  # teacher: start from the teacher's weights and tokenizer
    layers: Any = None  # start from these layers only: a list, or how many, evenly spread
    config: Node = field(default_factory=dict)  # the architecture, when there is no path
    from_pretrained: Node = field(default_factory=dict)  # its arguments, e.g. revision
    lora: Node | None = field(default_factory=_open)  # peft.LoraConfig; none: train all


@dataclass
class Teacher(Model):
    """Who teaches at mode=kd: a model group used a second time.

    Read by `forge.distillation.teacher`. `path` may be a list: their probabilities are averaged.
    """

    path: Any = None
    weights: list[float] | None = None  # of several teachers; null: equal
    train: bool = True  # fine-tune one first, once, where there is none; false: stop instead
    trainer: Node = field(default_factory=dict)  # TrainingArguments for that
    task: Node = field(default_factory=_open)  # what is different in the task for that

    def models(self) -> list[Model]:
        """One model for each path."""
        paths = self.path if isinstance(self.path, list) else [self.path]
        shared = {f.name: getattr(self, f.name) for f in fields(Model)}
        return [Model(**shared | {"path": path}) for path in paths]


@dataclass
class Config:
    """The root of conf/: one task, one model, one mode."""

    task: Node = field(default_factory=_open)  # any setting of its `_target_`, listed or not
    model: Model = field(default_factory=Model)
    teacher: Teacher = field(default_factory=Teacher)
    mode: Node = MISSING
    trainer: Node = MISSING
    callbacks: Node = field(default_factory=dict)  # named nodes; null drops one
    tracking: Node | None = None  # where curves are sent
    seed: int = 42  # of random weights, the order of rows, what is drawn
    precision: Precision = Precision.auto  # auto, fp32, bf16 or fp16
    launcher: Node | None = None  # where runs run; null: here, one after the other
    resume: str | None = None  # a run's or sweep's directory to go on in, with its recorded config
    cache_dir: str | None = None  # tokenised data, teacher outputs; deleting it loses nothing

    def __post_init__(self) -> None:
        for name in ("task", "mode", "trainer", "callbacks", "tracking"):
            setattr(self, name, with_current_targets(getattr(self, name)))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: between 0 and 2**32 - 1")


def to_config(cfg: DictConfig) -> Config:
    """The composed config as typed objects; raises `UserError` for values that are not given."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        none, ways = (", ".join(missing), " ".join(f"{key}=…" for key in missing))
        raise UserError(f"{none} {'have' if missing[1:] else 'has'} no value: give {ways}")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def is_taught(config: Config | DictConfig) -> bool:
    """Whether a run needs its teacher: not at mode.alpha=0, nor at mode=sft from other weights."""
    return bool(config.mode.get("alpha") or config.model.init)


def teachers_task(config: Config) -> Node:
    """The task that a teacher is trained on: the run's, with what `teacher.task` changes."""
    merged: Any = OmegaConf.to_container(OmegaConf.merge(config.task, config.teacher.task))
    node: Node = merged
    return node
