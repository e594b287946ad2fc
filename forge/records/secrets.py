"""Secrets in configs, overrides and commands: never written to a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

SECRET = "(token|secret|password|passwd|api_?key|access_key)"


SECRET_KEY = re.compile(rf"(^|[._]){SECRET}$", re.I)


SECRET_ITEM = re.compile(  # of a dict in an override
    rf"(?<![^\W_])({SECRET}['\"]?\s*:\s*)(?!null\b)('[^']*'|\"[^\"]*\"|[^\s,}}]+)", re.I
)


SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


MASK = "***"


def masked(value: T, key: str = "") -> T:
    """A copy of nested lists, dicts and `key=value` strings with secrets as ***."""
    copy: T = _replaced(value, key, lambda secret: MASK)
    return copy


def secrets_in(value: object) -> set[str]:
    """The texts that `masked` would replace."""
    secrets: set[str] = set()

    def note(secret: str) -> str:
        secrets.add(secret)
        return MASK

    _replaced(value, "", note)
    return secrets - {MASK}


def _replaced(value: object, key: str, mask: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {k: _replaced(v, str(k), mask) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, key, mask) for v in value]
    if value and type(value) in (str, int, float) and SECRET_KEY.search(key):
        return mask(str(value))
    if not isinstance(value, str):
        return value
    if key == "override_dirname":  # Hydra's: a run's overrides, side by side
        overrides = re.split(r",(?=[+~]*[\w./@-]+=)", value)
        return ",".join(str(_replaced(each, "", mask)) for each in overrides)
    name, _, given = value.partition("=")
    if given not in ("", "null") and SECRET_KEY.search(name):
        return f"{name}={mask(given)}"
    if given.startswith(("{", "[")):
        value = SECRET_ITEM.sub(lambda match: match[1] + mask(match[3]), value)
    return SECRET_VALUE.sub(lambda match: mask(match[0]), value)
