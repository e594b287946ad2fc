"""How an answer that is taken from a text agrees with right ones: as SQuAD judges (Rajpurkar et al.
2016, 2018).

Answers are compared in lower case, without punctuation, the articles a, an, the, and blanks beyond
one. An answer has several right ones, and the best counts; one without any is rightly answered by
an empty text.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """A text as it is compared."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(right: Sequence[str], answer: str) -> float:
    """1 for an answer that is one of the right ones, else 0."""
    return float(normalized(answer) in map(normalized, _or_none(right)))


def f1(right: Sequence[str], answer: str) -> float:
    """F1 of an answer's words against those of the right answer that is nearest."""
    given = normalized(answer).split()
    return max(_f1(normalized(each).split(), given) for each in _or_none(right))


def _or_none(right: Sequence[str]) -> Sequence[str]:
    """The right answers (a list or an array); an empty one where there is none."""
    return right if len(right) else [""]


def _f1(right: list[str], given: list[str]) -> float:
    if not right or not given:
        return float(right == given)
    shared = (Counter(right) & Counter(given)).total()
    return 2 * shared / (len(right) + len(given))
