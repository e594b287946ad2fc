"""The embedded word problems: their solutions are right, and none is in two splits."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from forge.data import toy_math
from forge.data.toy_math import ADDENDS, LEVELS, MOST, additions, problems
from forge.errors import UserError

GAINS, LOSSES = "buys|finds|gets|wins", "gives|loses|sells|drops"


@pytest.fixture(scope="module")
def splits():
    return {name: list(rows) for name, rows in problems(train=1200, validation=300).items()}


def read(question):
    """Every number that somebody has held, from the English alone."""
    held = [int(re.match(r"\w+ has (\d+) \w+\.", question)[1])]
    for verb, number in re.findall(rf"(?:He|She) ({GAINS}|{LOSSES}) (\d+)", question):
        held.append(held[-1] + (1 if verb in GAINS.split("|") else -1) * int(number))
    return held


def test_answers_are_those_of_the_words(splits):
    for row in (*splits["train"], *splits["validation"]):
        held = read(row["question"])
        assert row["answer"] == str(held[-1])
        assert len(held) == 1 + LEVELS[row["level"] - 1].steps
        assert all(0 <= n <= MOST for n in held)


def test_each_step_of_a_solution_is_true_and_goes_on_from_the_last(splits):
    for row in splits["train"]:
        work, answer = row["solution"].split(" #### ")
        steps = re.findall(r"(\d+)([+-])(\d+)=(\d+)", work)
        held = read(row["question"])
        assert [int(step[0]) for step in steps] == held[:-1]
        assert [int(step[3]) for step in steps] == held[1:]
        assert all(eval(f"{a}{sign}{b}") == int(c) for a, sign, b, c in steps)
        assert answer == row["answer"]


def test_levels_are_balanced_and_no_question_comes_twice(splits):
    for rows in splits.values():
        counts = Counter(row["level"] for row in rows)
        assert set(counts) == {1, 2, 3, 4} and max(counts.values()) - min(counts.values()) <= 1
    questions = [row["question"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions) == 1500


def test_some_solutions_are_the_bare_answer_and_the_questions_stay(splits):
    some = problems(train=1200, validation=300, worked=0.25)
    for name, rows in splits.items():
        assert some[name].remove_columns("solution")[:] == {
            column: [row[column] for row in rows] for column in ("question", "answer", "level")
        }
        bare = [row["solution"] == f"#### {row['answer']}" for row in some[name]]
        assert 0.65 < sum(bare) / len(bare) < 0.85
        kept = zip(rows, some[name]["solution"], bare, strict=True)
        assert all(row["solution"] == solution for row, solution, is_bare in kept if not is_bare)


def test_each_sum_comes_once():
    splits = additions(validation=10)
    rows = [*splits["train"], *splits["validation"]]
    told = [tuple(map(int, re.findall(r"\d+", row["question"]))) for row in rows]
    assert set(told) == {(a, b) for a in ADDENDS[0] for b in ADDENDS[1]}
    assert len(rows) == len(told) == 360 and splits["validation"].num_rows == 10
    assert [row["answer"] for row in rows] == [f" {a + b}." for a, b in told]
    with pytest.raises(UserError, match="of 360 sums at least one"):
        additions(validation=360)


def test_numbers_grow_with_the_level(splits):
    for row in splits["train"]:
        told = map(int, re.findall(r"\d+", row["question"]))
        assert max(told) <= LEVELS[row["level"] - 1].largest


def test_more_problems_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(toy_math, "NAMES", {"Ann": "She"})
    monkeypatch.setattr(toy_math, "THINGS", ("cups",))
    with pytest.raises(UserError, match=r"no 4000 \+ 10 different problems"):
        problems(train=4000, validation=10)


SCRIPT = """
from forge.data.toy_math import problems
print([tuple(r.values()) for rows in problems(train=40, validation=20).values() for r in rows])
"""


def test_rows_follow_from_the_seed_alone():
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    one, other = (problems(train=40, validation=20, seed=s)["train"]["question"] for s in (0, 1))
    assert list(one) != list(other)
