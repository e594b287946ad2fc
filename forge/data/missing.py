"""Missing values: how files mark a cell that holds nothing."""

from __future__ import annotations

# pandas' marks (`pandas.io.parsers.STR_NA_VALUES`), dashes and spreadsheets' errors, in any case
# fmt: off
MARKS = frozenset((
    "#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>", "n/a",
    "n.a.", "na", "nan", "none", "null", "-", "--", "\u2013", "\u2014",
    "#div/0!", "#name?", "#null!", "#num!", "#ref!", "#value!",
))
# fmt: on


def is_missing(value: object) -> bool:
    """Whether a value is None, a float NaN, blank or one of `MARKS`."""
    if isinstance(value, str):
        return not value.strip() or value.strip().casefold() in MARKS
    return value is None or value != value
