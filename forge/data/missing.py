"""Missing values: how files mark a cell that holds nothing."""

from __future__ import annotations

# pandas' marks (`pandas.io.parsers.STR_NA_VALUES`), dashes and spreadsheets' errors; "none" and
# "NONE" are words, such as a stance
# fmt: off
MARKS = frozenset((
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "NAN", "Nan", "Null", "N.A.", "n.a.",
    "-", "--", "\u2013", "\u2014",
    "#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!",
))
# fmt: on


def is_missing(value: object) -> bool:
    """Whether a value is None, a float NaN, blank or one of `MARKS`."""
    if isinstance(value, str):
        return not value.strip() or value.strip() in MARKS
    return value is None or value != value
