"""What counts as a number in a text, for answers and for rewards."""

from __future__ import annotations

import re
from decimal import Decimal

# 7, -3.5, .5, 1e3, 12,000 or 12 000 (also with narrow blanks), a true minus sign; no dot that ends
# a sentence, no comma that ends a clause, no digits inside a word.
BLANKS = " \u00a0\u2009\u202f"
SIGN = "[-+\u2212]?"
WHOLE = rf"(?:\d{{1,3}}(?P<gap>[,{BLANKS}])\d{{3}}(?:(?P=gap)\d{{3}})*(?!\d)|\d+)"
NUMERAL = re.compile(rf"(?<![\w.]){SIGN}(?:{WHOLE}(?:\.\d+)?|\.\d+)(?:[eE]{SIGN}\d+)?", re.ASCII)
PLAIN = str.maketrans({"\u2212": "-"} | dict.fromkeys(f",{BLANKS}"))


def all_in(text: str) -> list[str]:
    """Every number in a text, as it is written."""
    return [match[0] for match in NUMERAL.finditer(text)]


def parse(text: str) -> Decimal | None:
    """The value of a text that is one number, with what may stand around it ($ before, % after).

    None where it is none, or one beyond 1e50.
    """
    core = text.strip().lstrip("$€£").rstrip(".,;:!?%").strip()
    if not NUMERAL.fullmatch(core):
        return None
    value = Decimal(core.translate(PLAIN))
    return value if abs(value.adjusted()) <= 50 else None


def last(text: str) -> float | None:
    """The value of the last number in a text; None without one."""
    written = all_in(text)
    value = parse(written[-1]) if written else None
    return None if value is None else float(value)


def spelled(value: Decimal) -> str:
    """The one spelling of a value: 1,200.0 is 1200."""
    plain = f"{value:f}"
    return (plain.rstrip("0").rstrip(".") if "." in plain else plain) if value else "0"
