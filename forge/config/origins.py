"""Which yaml or override gave each value of a composed config, and chose each group's option."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig, OmegaConf

from forge.config.compose import CONF, composing, dotted_values

MAIN = f"{CONF.name}/config.yaml"


@dataclass(frozen=True)
class Origins:
    """`conf/trainer/default.yaml`, or an override as it was typed, by dotted key and by group."""

    values: dict[str, str]
    choices: dict[str, str]  # of options of groups, e.g. model@teacher

    def of(self, key: str) -> str:
        """What gave a key its value, or what it lies in; "" for a default of the schema."""
        while key and key not in self.values:
            key = key.rpartition(".")[0]
        return self.values.get(key, "")

    def of_choice(self, group: str) -> str:
        """What chose a group's option."""
        return self.choices.get(group, MAIN)


def origins(overrides: list[str]) -> Origins:
    """Where the config of one run comes from; `overrides` are as `hydra.compose` takes them.

    Raises what Hydra raises for a config that does not compose.
    """
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra._internal.defaults_list import create_defaults_list
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values: dict[str, str] = {}
    parsed = OverridesParser.create().parse_overrides(overrides)
    with composing():
        loader: Any = GlobalHydra.instance().config_loader()
        repository = CachingConfigRepository(loader.repository)
        loader._process_config_searchpath("config", parsed, repository)
        defaults = create_defaults_list(
            repository, "config", parsed, prepend_hydra=True, skip_missing=False
        )
        for default in defaults.defaults:  # the last one counts
            loaded = loader._load_single_config(default, repository)
            if isinstance(loaded.config, DictConfig) and default.config_path != "schema":
                own = loaded.provider == "main"
                folder = CONF.name if own else loaded.path.removeprefix("file://")
                file = f"{folder}/{default.config_path}.yaml"
                values |= dict.fromkeys(_leaves(loaded.config), file)
    typed = {each.get_key_element().lstrip("+"): str(each.input_line) for each in parsed}
    choices = {
        group: typed[group]
        if given.external_override
        else f"{CONF.name}/{given.containing_config_path}.yaml"
        for group, given in defaults.overrides.override_metadata.items()
    }
    for override in defaults.config_overrides:
        key = override.key_or_group
        values = {k: v for k, v in values.items() if not k.startswith(f"{key}.")}
        values[key] = str(override.input_line)
    return Origins(values, choices)


def _leaves(config: DictConfig) -> list[str]:
    """The keys of a config that have a value, not keys below them."""
    keys = [key for key, _ in dotted_values(OmegaConf.to_container(config))]
    return [key for key, after in pairwise([*keys, ""]) if not after.startswith(f"{key}.")]
