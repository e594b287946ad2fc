"""One spelling for values that are compared: labels of files, configs and heads, and answers."""

from __future__ import annotations

import re
from unicodedata import normalize

WHOLE = re.compile(r"([-+]?)(\d+)(?:\.0*)?$", re.ASCII)  # sign and digits of a whole number
MINUS = str.maketrans({"\u2212": "-", "\uff0d": "-"})  # a true minus sign, and a wide one


def plain(text: str) -> str:
    """A text with composed characters and one minus sign, without the blanks around it."""
    return normalize("NFC", text).translate(MINUS).strip()


def spell(value: object) -> str | None:
    """The one spelling of a label, None for a missing one: 1.0, "1.0" and "+1" are 1, "-0.0" is 0,
    True is true; "01" and "3.10" stay names of their own."""
    if value is None or value != value:
        return None
    if type(value).__name__ in ("bool", "bool_"):  # also numpy's
        return str(value).lower()
    text = plain(str(value))
    number = WHOLE.match(text)
    if not number:
        return text or None
    sign, digits = number.groups()
    return digits if sign == "+" or not digits.strip("0") else sign + digits


def folded(label: object) -> str:
    """The spelling by which labels are matched: whatever the case."""
    return normalize("NFC", (spell(label) or "").casefold())
