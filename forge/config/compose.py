"""Composing conf/: what Hydra is given (schema, resolvers), and overrides in its grammar."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf

from forge import ranks
from forge.config.schema import SWEEP, Config

SEARCHPATH = "hydra.searchpath"  # what --config-dir= becomes
CONF = Path(__file__).resolve().parents[2] / "conf"


# What needs no quotes in an override.
WORD = re.compile(
    r"(?!(?:null|true|false|inf|nan)$)(?:[A-Za-z_/]|\.{1,2}/)[\w./-]*", re.I | re.ASCII
)


def register() -> None:
    """Give Hydra the schema and the resolvers that conf/ uses."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    for name, resolver, use_cache in (
        ("utc", lambda form: time.strftime(form, time.gmtime(ranks.start_time())), True),
        ("first_rank", lambda value, others=None: others if ranks.rank() else value, False),
        ("run_name", run_name, True),
        ("start_rate", _start_rate, False),
        ("place", lambda given, new: _reserved(new) if given in (None, SWEEP) else given, False),
    ):
        OmegaConf.register_new_resolver(name, resolver, use_cache=use_cache, replace=True)


def run_name(choices: dict[str, str], overrides: list[str]) -> str:
    """`<task>/<model>/<mode>` of a run; of a sweep, with swept values side by side."""
    given = dict(o.lstrip("+").split("=", 1) for o in overrides if "=" in o)
    model = given.get("model") or choices["model"]
    if "model.path" in given and "model" not in given:
        model = Path(given["model.path"].strip("'\"")).name
    parts = (given.get("task") or choices["task"], model, given.get("mode") or choices["mode"])
    return "/".join(part.replace("/", "-") for part in parts)


@cache
def _reserved(path: str) -> str:
    """The directory, made for this process alone: with a number where another has just made it.

    Ranks that others started share one. What only shows a config makes none.
    """
    showing = any(word.startswith(("--cfg", "--info")) for word in sys.argv)
    if showing or ranks.ranks() > 1:
        return path
    for number in itertools.count(1):
        own = Path(path if number == 1 else f"{path}-{number}")
        try:
            own.parent.mkdir(parents=True, exist_ok=True)
            own.mkdir()
        except FileExistsError:
            continue
        except OSError:  # who writes there first raises it again
            pass
        break
    return str(own)


def _start_rate(path: str | None, from_scratch: bool, lora: object) -> float:
    return 3e-4 if from_scratch or not path else 5e-4 if lora else 5e-5


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


def expanded(overrides: list[str], params: Mapping[str, object]) -> list[list[str]]:
    """The overrides of each job of a sweep, in the order of Hydra's own sweeper.

    `params` are an experiment's; a key on the command line counts instead.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    given = {one.get_key_element() for one in parser.parse_overrides(overrides)}
    more = [f"{key}={value}" for key, value in params.items() if key not in given]
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*more, *overrides]), None)
    return jobs


def jobs(arguments: list[str]) -> list[list[str]]:
    """The overrides of each run that a command line of launch.py makes, as `hydra.compose` takes
    them; of a search, which chooses its values as it goes, those that it was given.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = searched(arguments)
    with composing():
        pairs = zip(words, OverridesParser.create().parse_overrides(words), strict=True)
        plain = [word for word, parsed in pairs if not parsed.is_sweep_override()]
        sweeper = compose("config", plain, return_hydra_config=True).hydra.sweeper
    if "BasicSweeper" not in sweeper._target_:
        return [plain]
    return expanded(words, sweeper.get("params") or {})


def searched(arguments: list[str]) -> list[str]:
    """Arguments of launch.py as `hydra.compose` takes them: `--config-dir=` is a path to search,
    `-m` is left out."""
    overrides = [word for word in arguments if word not in ("-m", "--multirun")]
    return [
        f"{SEARCHPATH}=['file://{Path(option[1]).absolute()}']"
        if (option := re.match("--config-dir=(.*)", word))
        else word
        for word in overrides
    ]


def one_word_each(arguments: list[str]) -> list[str]:
    """A command line with Hydra's options first, in their long form and each in one word."""
    from hydra._internal.utils import get_args_parser

    parsed = vars(get_args_parser().parse_intermixed_args(arguments))
    overrides: list[str] = parsed.pop("overrides")
    given = {f"--{name.replace('_', '-')}": value for name, value in parsed.items() if value}
    options = [name if value is True else f"{name}={value}" for name, value in given.items()]
    return [*options, *overrides]


def config_keys(arguments: list[str]) -> list[str]:
    """Dotted keys of the config that the group choices among `arguments` compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    choices = [a for a in arguments if re.fullmatch(r"[a-z@/]+=\w+", a)]
    before = GlobalHydra.instance().hydra  # not a copy of it, which sees nothing stored later
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = compose("config", choices)
        except HydraException:
            cfg = compose("config")
    if before is not None:
        GlobalHydra.instance().initialize(before)
    return [key for key, _ in dotted_values(OmegaConf.to_container(cfg))]


def dotted_values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested dicts as a dotted name, with its value; a dict itself has none."""
    for key, value in node.items():
        nested = isinstance(value, dict)
        yield f"{prefix}{key}", None if nested else value
        if nested:
            yield from dotted_values(value, f"{prefix}{key}.")


def quoted(value: object) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {quoted(below)}' for key, below in value.items())}}}"
    if not isinstance(value, str) or WORD.fullmatch(value):
        return str(value)
    escaped = re.sub(r"(\\*)'", lambda match: 2 * match[1] + "\\'", value).replace("${", "\\${")
    escaped = re.sub(r"\\+$", lambda match: 2 * match[0], escaped)
    return f"'{escaped}'"


def override(key: str, value: object) -> str:
    """`key=value` as one types it: in Hydra's quotes and the shell's."""
    word = f"{key}={quoted(value)}"
    legible = "'" in word and not re.search(r'["$`\\!]', word)
    return f'"{word}"' if legible else shlex.quote(word)
