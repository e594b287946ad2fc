"""What counts as a number in a text: for answers, rewards, and the targets of a regression.

A number has a decimal point where it can be read so, else a decimal comma: 1,234 is 1234 and 1.234
a little more than 1; 1.234,5 is 1234.5, 1,5 and 0,125 are what they look like. Thousands are
groups of three behind a digit that is not 0, with one separator throughout, which may also be a
blank, an apostrophe or an underscore. What fits neither is a list (1,2,3), and so is a pair in
brackets (3,5). A sign, a true minus too, stands before the digits or before a currency's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Literal, TypeAlias

from forge.data.spelling import MINUS

DecimalSign: TypeAlias = Literal["point", "comma"]

# No dot that ends a sentence, no comma that ends a clause, no digits inside a word.
GAPS = "'\u2019_ \u00a0\u2009\u202f"
CURRENCY = "$€£¥₹₩₽₺₴₿¢"
SIGN = "[-+\u2212\uff0d]"
DIGIT = "[0-9\uff10-\uff19]"


def _body(decimal: str, group: str, name: str) -> str:
    """A number without its sign, whose parts are separated by `decimal` and `group`."""
    gaps = rf"(?P<{name}_gap>[{group}{GAPS}]){DIGIT}{{3}}(?:(?P={name}_gap){DIGIT}{{3}})*"
    whole = rf"(?>[1-9\uff11-\uff19]{DIGIT}{{0,2}}{gaps}(?!{DIGIT})|{DIGIT}+)"  # all its groups
    return rf"(?P<{name}>(?<!\d,)(?:{whole}(?:{decimal}{DIGIT}+)?|{decimal}{DIGIT}+)(?![.,]?\d))"


PAIR = r"(?!(?<=[(\[{])\d+,\d+[)\]}])"
BODY: dict[DecimalSign, str] = {
    "point": _body(r"\.", ",", "point"),
    "comma": PAIR + _body(",", r"\.", "comma"),
}
IN_LIST = rf"{DIGIT}+(?:\.{DIGIT}+)?|\.{DIGIT}+"


def _numeral(*bodies: str) -> re.Pattern[str]:
    signed = rf"(?:{SIGN}[{CURRENCY}]?)?(?:{'|'.join(bodies)})(?:[eE]{SIGN}?{DIGIT}+)?"
    return re.compile(rf"(?a:(?<![\w.\uff10-\uff19]){signed})")


NUMERAL = _numeral(*BODY.values(), IN_LIST)
WITH = {decimal: _numeral(body) for decimal, body in BODY.items()}  # one kind of decimal sign
PLAIN = {
    decimal: str.maketrans(dict.fromkeys(f"{group}{GAPS}{CURRENCY}") | {sign: "."}) | MINUS
    for decimal, sign, group in (("point", ".", ","), ("comma", ",", "."))
}


def all_in(text: str) -> list[str]:
    """Every number in a text, as it is written."""
    return [match[0] for match in NUMERAL.finditer(text)]


def value(text: str, decimals: Iterable[DecimalSign] = WITH) -> Decimal | None:
    """The value of a text that is one number, with what may stand around it ($ before, % after).

    None where it is none with one of `decimals`, the first of which is tried first.
    """
    core = text.strip().lstrip(CURRENCY).rstrip(".,;:!?%" + CURRENCY).strip()
    for decimal in decimals:
        if WITH[decimal].fullmatch(core):
            return Decimal(core.translate(PLAIN[decimal]))
    return None


def parse(text: str) -> Decimal | None:
    """As `value`, and None for one beyond 1e50, too long to be spelled."""
    found = value(text)
    return found if found is None or abs(found.adjusted()) <= 50 else None


def decimal_of(texts: Iterable[str]) -> DecimalSign | None:
    """The kind of decimal sign, one of `WITH`, with which all the numbers of a column can be read;
    None where some are of one kind and some of the other."""
    numbers = [text for text in texts if value(text) is not None]
    fits = (d for d in WITH if all(value(text, [d]) is not None for text in numbers))
    return next(fits, None)


def unit(text: str) -> str:
    """The currency's or percent sign that a number is written with; "" for none."""
    return next((sign for sign in text if sign in CURRENCY + "%"), "")


def last(text: str) -> float | None:
    """The value of the last number in a text; None without one."""
    written = all_in(text)
    found = parse(written[-1]) if written else None
    return None if found is None else float(found)


def spelled(number: Decimal) -> str:
    """The one spelling of a value: 1,200.0 is 1200."""
    plain = f"{number:f}"
    return (plain.rstrip("0").rstrip(".") if "." in plain else plain) if number else "0"
