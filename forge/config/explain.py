"""Mistakes in a config or on the command line, in one line each."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from forge.config.compose import override
from forge.errors import did_you_mean, one_line


def explain(error: Exception, keys: Iterable[str] = ()) -> str:
    """One line for an error of Hydra's or OmegaConf's; `keys` are the config's dotted keys."""
    if isinstance(error, OverrideParseException):
        return _ungrammatical(error)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        hint = did_you_mean(option, error.options or ())
        if not group:
            return f"--config-name={option}: no such config{hint}"
        return f"{group}={option}: no such option{hint}"
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or text.rpartition(" ")[2]
        return f"{key} has no value: give it one with {key}=…"
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1], list(keys))
    if unknown := re.search(r"[Kk]ey '([^']+)' not in '(\w+)'", one_line(f"{text} {cause or ''}")):
        full = str(getattr(cause or error, "full_key", None) or unknown[1])
        return _unknown_key(full, list(keys))
    if cause is not None:
        key = cause.full_key or ""
        reason = str(cause).splitlines()[0]
        return f"{key}: {reason[0].lower()}{reason[1:]}" if key else reason
    return one_line(text)


def _unknown_key(key: str, keys: list[str]) -> str:
    parent, _, last = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    siblings = [name for name in siblings if not name.startswith("_")]  # Hydra's own
    hint = did_you_mean(last, siblings)
    more = {"trainer": "TrainingArguments", "config": "the architecture"}.get(parent.split(".")[-1])
    if more and "did you mean" not in hint:
        hint += f" (a setting of {more} that is not listed: +{key}=…)"
    return f"{key}: no such key{hint}"


def _ungrammatical(error: OverrideParseException) -> str:
    """The key whose value Hydra's grammar does not take, and how it is written."""
    word = str(error.override)
    key, assigned, value = word.partition("=")
    if not assigned or not re.fullmatch(r"[~+]{0,2}[\w.@/:-]+", key):
        return f"{word}: neither an option nor KEY=VALUE"
    meant = value.strip()
    listed = meant.startswith("[") and meant.endswith("]")
    items = [item.strip().strip("'\"") for item in meant[1:-1].split(",")]
    return (
        f"{key}: Hydra reads {meant} as something else than a text; in quotes, for the shell too: "
        + override(key, items if listed else meant.strip("'\""))
    )
