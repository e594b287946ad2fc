"""The schema of a run, and how a config node becomes an object.

Every node is either read by Forge, and then it is a field of a dataclass here, or called by Hydra
(`_target_`), and then the callee's signature is its schema: `check` compares the two before
anything slow starts, `build` makes the object.
"""

from __future__ import annotations

import inspect
import math
import re
import shlex
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.errors import HydraException, InstantiationException
from omegaconf import MISSING, DictConfig, OmegaConf

from forge import cluster
from forge.errors import UserError, did_you_mean, one_line

SWEEP = "sweep"  # value of `resume` in the jobs of a sweep that goes on
CONF = Path(__file__).resolve().parent.parent / "conf"
# What needs no quotes in an override.
WORD = re.compile(r"(?!(?:null|true|false|inf|nan)$)[A-Za-z_/][\w./-]*", re.I | re.ASCII)


class Precision(Enum):
    """Arithmetic of the forward and backward pass; weights and optimizer state stay fp32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def _open() -> Any:
    """An empty node that takes any key without a plus; `forge.lora` checks them."""
    return DictConfig({}, flags={"struct": False})


@dataclass
class Model:
    """Where weights come from; read by `forge.models`."""

    path: str | None = None  # Hub name, local directory or an earlier run's directory
    from_scratch: bool = False  # the architecture and tokenizer of `path`, random weights
    tokenizer: str | None = None  # Hub name or directory, when it is not at `path`
    new_head: bool = False  # replace a head that was trained for other labels
    init: str | None = None  # teacher: start from the teacher's weights and tokenizer
    layers: Any = None  # start from these layers only: a list, or how many, evenly spread
    config: dict[str, Any] = field(default_factory=dict)  # the architecture, when there is no path
    from_pretrained: dict[str, Any] = field(default_factory=dict)  # its arguments, e.g. revision
    lora: dict[str, Any] | None = field(default_factory=_open)  # peft.LoraConfig; none: train all


@dataclass
class Teacher(Model):
    """Who teaches at mode=kd: a model group used a second time; read by `forge.teacher`.

    `path` may be a list: their probabilities are averaged.
    """

    path: Any = None
    weights: list[float] | None = None  # of several teachers; null: equal
    train: bool = True  # fine-tune one first, once, where there is none; false: stop instead
    trainer: dict[str, Any] = field(default_factory=dict)  # TrainingArguments for that

    def models(self) -> list[Model]:
        """One model for each path."""
        paths = self.path if isinstance(self.path, list) else [self.path]
        shared = {f.name: getattr(self, f.name) for f in fields(Model)}
        return [Model(**shared | {"path": path}) for path in paths]


@dataclass
class Config:
    """The root of conf/: one task, one model, one mode."""

    task: dict[str, Any] = MISSING
    model: Model = field(default_factory=Model)
    teacher: Teacher = field(default_factory=Teacher)
    mode: dict[str, Any] = MISSING
    trainer: dict[str, Any] = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    tracking: dict[str, Any] | None = None
    seed: int = 42
    precision: Precision = Precision.auto
    launcher: dict[str, Any] | None = None  # where runs run; null: here, one after the other
    resume: str | None = None  # a run's or sweep's directory to go on in, with its recorded config
    cache_dir: str | None = None  # tokenised data, teacher outputs; deleting it loses nothing

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: between 0 and 2**32 - 1")


def register() -> None:
    """Give Hydra the schema and the resolvers that conf/ uses."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    for name, resolver, use_cache in (
        ("utc", lambda form: time.strftime(form, time.gmtime(cluster.started())), True),
        ("first_rank", lambda value, others=None: others if cluster.rank() else value, False),
        ("run_name", _run_name, True),
        ("start_rate", _start_rate, False),
        ("either", lambda first, second: second if first in (None, SWEEP) else first, False),
        ("previous_run", _previous_run, False),
        ("by_mode", lambda target, values: values[target.split(".")[-2]], False),
    ):
        OmegaConf.register_new_resolver(name, resolver, use_cache=use_cache, replace=True)


def _run_name(choices: dict[str, str], overrides: list[str]) -> str:
    """`<task>/<model>/<mode>` of a run; of a sweep, with swept values side by side."""
    given = dict(o.lstrip("+").split("=", 1) for o in overrides if "=" in o)
    model = given.get("model") or choices["model"]
    if "model.path" in given and "model" not in given:
        model = Path(given["model.path"].strip("'\"")).name
    parts = (given.get("task") or choices["task"], model, given.get("mode") or choices["mode"])
    return "/".join(part.replace("/", "-") for part in parts)


def _start_rate(path: str | None, from_scratch: bool, lora: Any) -> float:
    return 3e-4 if from_scratch or not path else 5e-4 if lora else 5e-5


def _previous_run() -> str | None:
    """Directory of the job in the same sweep with the mode before this one's and all else alike.

    None for the first mode, and outside a sweep over modes.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    hydra = HydraConfig.get()
    swept = OmegaConf.load(Path(hydra.sweep.dir, "multirun.yaml")).hydra  # as the sweeper had it
    words = [f"{key}={values}" for key, values in (swept.sweeper.params or {}).items()]
    given = OverridesParser.create().parse_overrides([*words, *swept.overrides.task])
    sizes = {
        one.key_or_group: len(list(one.sweep_string_iterator())) if one.is_sweep_override() else 1
        for one in given
    }
    if "mode" not in sizes:
        return None
    keys = list(sizes)  # the first is swept slowest
    stride = math.prod(sizes[key] for key in keys[keys.index("mode") + 1 :])
    number = int(hydra.job.num)
    if number // stride % sizes["mode"] == 0:
        return None
    return str(Path(hydra.sweep.dir, str(number - stride)).absolute())


def to_config(cfg: DictConfig) -> Config:
    """The composed config as typed objects; raises on missing values (`???`)."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def is_taught(config: Config | DictConfig) -> bool:
    """Whether a run needs its teacher: not at mode.alpha=0, nor at mode=sft from other weights."""
    return bool(config.mode.get("alpha") or config.model.init)


@contextmanager
def composing() -> Iterator[None]:
    """`hydra.compose` finds conf/ within, inside a run and outside."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register()
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def searched(words: list[str]) -> list[str]:
    """Words of launch.py's command line as `hydra.compose` takes them: `--config-dir=` is a path
    to search, `-m` is left out."""
    found = [word for word in words if word not in ("-m", "--multirun")]
    return [
        f"hydra.searchpath=['file://{Path(option[1]).absolute()}']"
        if (option := re.match("--config-dir=(.*)", word))
        else word
        for word in found
    ]


def config_keys(arguments: list[str]) -> list[str]:
    """Dotted keys of the config that the group choices among `arguments` compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    choices = [a for a in arguments if re.fullmatch(r"[a-z@/]+=\w+", a)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = compose("config", choices)
        except HydraException:
            cfg = compose("config")
    return [key for key, _ in dotted_values(OmegaConf.to_container(cfg))]


def dotted_values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested dicts as a dotted name, with its value; a dict itself has none."""
    for key, value in node.items():
        nested = isinstance(value, dict)
        yield f"{prefix}{key}", None if nested else value
        if nested:
            yield from dotted_values(value, f"{prefix}{key}.")


def quoted(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {quoted(below)}' for key, below in value.items())}}}"
    if not isinstance(value, str) or WORD.fullmatch(value):
        return str(value)
    escaped = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", value).replace("${", "\\${")
    return f"'{escaped}'"


def override(key: str, value: Any) -> str:
    """`key=value` as one types it: in Hydra's quotes and the shell's."""
    return shlex.quote(f"{key}={quoted(value)}")


def check(node: dict[str, Any], where: str) -> None:
    """Raise `UserError` unless the node's keys and values fit the signature of its `_target_`.

    Nested nodes with a `_target_` of their own are checked too.
    """
    for key, value in node.items():
        _check_below(value, f"{where}.{key}")
    callee = locate(node.get("_target_"), where)
    given = {k: v for k, v in node.items() if not (k.startswith("_") and k.endswith("_"))}
    parameters = inspect.signature(callee).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any or where == "mode":  # whose other arguments the run gives it
        for key in given.keys() - parameters.keys():
            raise UserError(
                f"{where}.{key}: {node['_target_']} has no such setting"
                + did_you_mean(key, parameters)
            )
    if not node.get("_partial_"):
        needed = {n for n, p in parameters.items() if p.default is p.empty and _by_name(p)}
        for name in sorted(needed - given.keys()):
            raise UserError(f"{where}.{name} is needed by {node['_target_']}; set {where}.{name}=…")
    _check_types(callee, given, where)
    node |= given


def _check_below(value: Any, where: str) -> None:
    """Check the nodes of a group that holds several, such as mode.loss."""
    if isinstance(value, dict) and "_target_" in value:
        check(value, where)
    elif isinstance(value, dict):
        for key, nested in value.items():
            _check_below(nested, f"{where}.{key}")


def _by_name(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _check_types(callee: Any, given: dict[str, Any], where: str) -> None:
    """Hold values against annotations; switches spelled on and off become booleans in `given`."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    function = callee.__init__ if inspect.isclass(callee) else callee
    for key, value in given.items():
        if isinstance(value, dict) and any("_target_" in str(v) for v in (value, *value.values())):
            continue  # Hydra builds it first
        hint = _type_hint(function, key)
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        try:
            fitting = adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].lower()
            raise UserError(f"{where}.{key}={value}: {problem}") from error
        except PydanticUserError:  # a type that pydantic cannot describe: the callee will judge
            continue
        if isinstance(fitting, bool):
            given[key] = fitting


def _type_hint(function: Any, key: str) -> Any:
    """The parameter's type; Any when it has none or names what only a type checker imports."""
    hint = getattr(function, "__annotations__", {}).get(key, Any)
    holder = SimpleNamespace(__annotations__={key: hint})
    try:
        names = getattr(function, "__globals__", {})
        return typing.get_type_hints(holder, names, include_extras=True)[key]
    except NameError:
        return Any


def locate(target: str | None, where: str) -> Any:
    """The object behind an import path, or a `UserError` that names the node."""
    from hydra.utils import get_object

    if not target:
        raise UserError(f"{where}: this node needs a _target_ (an import path)")
    try:
        return get_object(target)
    except (HydraException, ImportError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{where}._target_={target}: cannot be imported ({reason})") from error


def build(node: dict[str, Any], where: str) -> Any:
    """Config becomes object: check the node, then call its `_target_` with its settings."""
    from hydra.utils import instantiate

    check(node, where)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:  # the callee's own words, without Hydra's around them
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, ValueError):
            below = re.search(r"full_key: (\S+)", str(error))
            at = f"{where}.{below[1]}" if below else where
            raise UserError(f"{at}: {one_line(str(error.__cause__))}") from error
        raise
