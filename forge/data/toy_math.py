"""An embedded task for language models: arithmetic word problems, computed, not downloaded.

A problem tells what somebody has and what is added or taken away, in a few dozen words; the
solution is one equation for each step and, after `####` as in GSM8K, the answer. Difficulty is
graded in `LEVELS`: more steps, larger numbers. What is held is never below 0 or above `MOST`.
Not every solution has to show its steps: a model that has learnt both ways of writing has something
to gain from rewards, since answers with their steps are right more often.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field

from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

NAMES = {"Ann": "She", "Ben": "He", "Eva": "She", "Max": "He", "Mia": "She", "Sam": "He"}
THINGS = ("apples", "books", "cards", "coins", "cups", "nuts", "pens", "shells")
ADDED = ("buys {} more", "finds {} more", "gets {} from a friend", "wins {}")
TAKEN = ("gives {} away", "loses {}", "sells {}", "drops {}")
MOST = 30
ADDENDS = range(10, 50), range(1, 10)  # of `additions`
Share = Annotated[float, Field(ge=0, le=1)]


class Level(NamedTuple):
    steps: int
    largest: int  # of the numbers that are told


LEVELS = (Level(1, 9), Level(2, 9), Level(2, 20), Level(3, 20))


class Problem(NamedTuple):
    question: str
    solution: str
    answer: str
    level: int


def problem(rng: random.Random, level: int) -> Problem:
    """A random problem of a level, 1 being the easiest."""
    steps, largest = LEVELS[level - 1]
    name, thing = rng.choice(list(NAMES)), rng.choice(THINGS)
    held = rng.randint(1, largest)
    sentences, worked = [f"{name} has {held} {thing}."], []
    for _ in range(steps):
        change = rng.choice(
            [n for n in range(-largest, largest + 1) if n and 0 <= held + n <= MOST]
        )
        phrase = rng.choice(ADDED if change > 0 else TAKEN).format(abs(change))
        sentences.append(f"{NAMES[name]} {phrase}.")
        worked.append(f"{held}{change:+d}={held + change}")
        held += change
    sentences.append(f"How many {thing} does {name} have now?")
    return Problem(" ".join(sentences), f"{' '.join(worked)} #### {held}", str(held), level)


def problems(
    *, train: int = 20_000, validation: int = 1_000, worked: Share = 1.0, seed: int = 0
) -> dict[str, datasets.Dataset]:
    """The splits, every level equally often, no question twice.

    `worked` is the share of solutions that show their steps; the others are the answer alone.
    """
    import datasets

    rng, wanted = random.Random(seed), train + validation
    style = random.Random(f"{seed}, style")  # of its own: the questions are the same for any share
    problems: dict[str, Problem] = {}
    for _ in range(20 * wanted):
        if len(problems) == wanted:
            break
        new = problem(rng, len(problems) % len(LEVELS) + 1)
        problems.setdefault(new.question, new)
    if len(problems) < wanted:
        raise UserError(f"the words give no {train} + {validation} different problems")
    rows = [
        row if style.random() < worked else row._replace(solution=f"#### {row.answer}")
        for row in problems.values()
    ]
    parts = {"train": rows[:train], "validation": rows[train:]}
    return {
        name: datasets.Dataset.from_dict(
            {c: [getattr(r, c) for r in part] for c in Problem._fields}
        )
        for name, part in parts.items()
    }


def additions(*, validation: int = 54, seed: int = 0) -> dict[str, datasets.Dataset]:
    """Sums of a two-digit and a one-digit number, for a model that has read of them: each once."""
    import datasets

    pairs = [(a, b) for a in ADDENDS[0] for b in ADDENDS[1]]
    random.Random(seed).shuffle(pairs)
    if not 0 < validation < len(pairs):
        raise UserError(f"task.dataset.validation={validation}: of {len(pairs)} sums at least one")
    rows = [{"question": f"What is {a} + {b}?", "answer": f" {a + b}."} for a, b in pairs]
    parts = {"train": rows[validation:], "validation": rows[:validation]}
    return {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
