"""Secrets in configs, overrides and commands: never written to a file."""

from __future__ import annotations

import re
from typing import TypeVar

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
    if isinstance(value, dict):
        return type(value)({k: masked(v, str(k)) for k, v in value.items()})
    if isinstance(value, list):
        return type(value)(masked(v) for v in value)
    if value and isinstance(value, str):
        return type(value)(_masked_text(value, key))
    return value


def _masked_text(text: str, key: str) -> str:
    name, equals, given = text.partition("=")
    if SECRET_KEY.search(key):
        return MASK
    if equals and SECRET_KEY.search(name):
        return f"{name}={MASK}"
    if given.startswith(("{", "[")):
        text = SECRET_ITEM.sub(rf"\1{MASK}", text)
    return SECRET_VALUE.sub(MASK, text)
