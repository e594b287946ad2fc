"""Parts of a text: right answers as data have them, where they are, and which is the likeliest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from forge.data import sources
from forge.errors import UserError
from forge.inputs.passages import words
from forge.tasks.decisions import MASKED

if TYPE_CHECKING:
    from numpy.typing import NDArray


def answers(value: object, start: object, where: str) -> list[tuple[str, int | None]]:
    """A row's right answers and where each begins, if that is known; none: there is no answer.

    They are one text, a list of texts, a mapping of the lists `text` and `answer_start`, or a list
    of such mappings. Raises `UserError` for anything else.
    """
    parsed = sources.listed(value)
    if isinstance(parsed, Mapping):
        if "text" not in parsed:
            raise UserError(f"{where} holds {str(value)[:60]}, which has no text; {{text: […]}}")
        value, start = parsed["text"], parsed.get("answer_start")
    elif isinstance(parsed, list | tuple) and all(isinstance(one, Mapping) for one in parsed):
        value = [one.get("text") for one in parsed]
        start = [one.get("answer_start") for one in parsed]
    elif isinstance(parsed, list | tuple) and not isinstance(value, str | list):
        value = list(parsed)
    elif isinstance(parsed, list) and all(isinstance(one, str) for one in parsed):
        value = parsed
    if not isinstance(value, list):
        value, start = [value], [start]
    start = start if isinstance(start, list) and len(start) == len(value) else [None] * len(value)
    pairs = zip(value, start, strict=True)
    known = [(text, at) for text, at in pairs if text is not None and text == text]
    try:
        places = [None if at in (None, "") or at != at else int(float(at)) for _, at in known]
    except ValueError as error:
        raise UserError(f"{where}: an answer begins at {start}; a number of characters") from error
    if any(not isinstance(text, str | int | float) for text, _ in known):
        raise UserError(f"{where} holds {str(value)[:60]}, not an answer or a list of them")
    both = zip(known, places, strict=True)
    return [(str(text), at) for (text, _), at in both if str(text).strip()]


def placed(
    context: str, answers: Sequence[tuple[str, int | None]]
) -> tuple[list[int] | None, bool]:
    """The first and the last word of the first answer that is in its context, counted from 1, and
    whether it is of whole words; None where none is."""
    own = words(context)
    for given, start in answers:
        text = given.strip()
        start = None if start is None else start + given.index(text)
        exact = start is not None and context[start : start + len(text)] == text
        places = (
            [start]
            if exact
            else [match.start() for match in re.finditer(re.escape(text), context, re.IGNORECASE)]
        )
        spans = [_words_of(own, at, at + len(text)) for at in places if at is not None]
        if spans:
            nearest = [abs(at - (start or 0)) for at in places if at is not None]
            pairs = zip(spans, nearest, strict=True)
            (label, whole), _ = min(pairs, key=lambda pair: (not pair[0][1], pair[1]))
            return label, whole
    return None, True


def _words_of(own: NDArray[np.int64], start: int, end: int) -> tuple[list[int], bool]:
    """The first and the last word of some characters, from 1, and whether they are whole."""
    first = int(np.searchsorted(own[:, 1], start, "right"))
    last = int(np.searchsorted(own[:, 0], end)) - 1
    return [first + 1, last + 1], bool(own[first, 0] == start and own[last, 1] == end)


def likeliest(logits: NDArray[np.floating], longest: int) -> tuple[tuple[int, int], float]:
    """Of a row's logits [2, C] the words of the likeliest span of at most so many, and by how
    much the score of no answer is above its own; of equal ones the longest, words that share a
    token being told apart by nobody."""
    start, end = logits
    if len(start) < 2:
        return (0, 0), 0.0
    ends = sliding_window_view(
        np.pad(end[1:], (0, longest - 1), constant_values=2 * MASKED), longest
    )
    totals = start[1:, None] + ends[:, ::-1]
    first, short = divmod(int(totals.argmax()), longest)
    margin = float(start[0] + end[0] - totals[first, short])
    return (first + 1, first + longest - short), margin
