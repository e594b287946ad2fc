"""Rewards say what they should, and a wrong one stops the run in words."""

import json
from functools import partial

import numpy as np
import pytest
import yaml

from forge.__main__ import main
from forge.errors import UserError
from forge.reinforcement import rewards
from forge.reinforcement.grpo import centred
from forge.reinforcement.rewards import Classifier, Costs, Metric, Rewards
from forge.tasks import metrics
from tests.support.runs import SMALL, TOY, options

COLUMNS = {"id": [7, 8], "label": ["no", "yes"], "sentence": ["a", "b"]}


def called(function, completions=("no", "no"), columns=COLUMNS, weights=()):
    chosen = Rewards({"mine": function}, dict(weights))
    chosen.bind(["no", "yes"], list(columns))
    return chosen(list(completions), columns)


def test_exact_is_about_the_right_answer():
    assert called(rewards.exact).tolist() == [[1], [0]]
    assert rewards.exact([" 12\n", "12."], answer=["12", "12"]) == [1, 0]
    assert rewards.exact(["\u22127", "cafe\u0301"], answer=["-7", "caf\u00e9"]) == [1, 1]


@pytest.mark.parametrize(
    ("said", "right", "reward"),
    [
        ("so it is 1,234.50.", "#### 1234.5", 1),
        ("10-3", "3", 1),  # a minus between two numbers is none of the second
        ("it is -3", "3", 0),
        ("first 12, then 13", "12", 0),  # the last one counts
        ("1e3", "1000", 1),
        ("it is \u22123", "-3", 1),
        ("12 000", "12,000", 1),
        ("a loss of -$7", "-7", 1),
        ("-$7", "7", 0),
        ("1.234,5", "1234.5", 1),
        ("1,5", "1.5", 1),
        ("none", "4", 0),
        ("x2", "2", 0),
        ("4", "no number", None),
        ("1" * 400, "1", 0),
    ],
)
def test_numeric_compares_the_last_numbers(said, right, reward):
    assert rewards.numeric([said], answer=[right]) == [reward]


def test_the_tolerance_is_relative_and_absolute_below_one():
    near = partial(rewards.numeric, tolerance=0.01)
    assert near(["101", "102", "0.009", "0.02"], answer=["100", "100", "0", "0"]) == [1, 0, 1, 0]


def test_math_is_verified_where_the_library_is():
    pytest.importorskip("math_verify")
    found = rewards.numeric(["$\\frac{2}{4}$", "0.6"], answer=["$0.5$"] * 2, math_verify=True)
    assert found == [1, 0]


def test_the_format_is_of_the_whole_answer():
    found = rewards.format(["<a>\n1</a>", "so <a>1</a>", ""], pattern="<a>.*</a>")
    assert found == [1, 0, 0]


def test_length_falls_from_the_limit_to_twice_as_many_characters():
    found = rewards.length(["x" * n for n in (0, 10, 15, 20, 99)], limit=10)
    assert found == [0, 0, -0.5, -1, -1]


def test_costs_are_those_of_saying_one_label_for_another():
    costs = Costs({"no": {"yes": 5}, "yes": {"no": 1, "yes": -2}})
    columns = {"id": [1, 2, 3, 4], "label": ["no", "no", "yes", "yes"]}
    assert called(costs, ["no", "yes", "no", "yes"], columns)[:, 0].tolist() == [0, -5, -1, 2]


def test_costs_name_labels_in_any_spelling():
    costs = Costs({True: {False: 5}, "FALSE": {"True": 1}})
    costs.bind(["false", "true"])
    assert costs(["false", "true"], label=["true", "false"]) == [-5, -1]


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        ({"no": {"yes": 5}, "yse": {"no": 1}}, "no label yse; did you mean yes"),
        ({"no": {"maybe": 5}}, "no label maybe"),
        ({"no": {"yes": 5}}, "no cost for saying no where yes is right"),
        ({"no": {"yes": 5}, "yes": {"no": float("nan")}}, "no cost for saying no where yes"),
    ],
)
def test_a_matrix_that_does_not_fit_the_labels_is_refused(matrix, problem):
    with pytest.raises(UserError, match=problem):
        Costs(matrix).bind(["no", "yes"])


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("name", list(rewards.SCORES))
def test_metrics_of_counts_are_those_of_predictions(name, labels):
    if name == "f1" and labels > 2:
        pytest.skip("of two labels")
    (module,), rng = metrics.load([name]), np.random.default_rng(0)
    for size in (1, 2, 3, 50):
        for _ in range(5):
            right, said = rng.integers(0, labels, (2, size))
            counts = np.zeros((labels, labels))
            np.add.at(counts, (right, said), 1)
            assert rewards.SCORES[name](counts) == pytest.approx(module.function.score(right, said))


def drawn(metric, right, said):
    """Rewards [examples, draws] of a metric for labels drawn [examples, draws]."""
    reward, names = Metric(metric), ["a", "b"]
    reward.bind(names)
    count = said.shape[1]
    found = reward(
        [names[s] for s in said.reshape(-1)],
        label=[names[r] for r in right for _ in range(count)],
        id=[i for i in range(len(right)) for _ in range(count)],
    )
    return np.reshape(found, said.shape)


def test_accuracy_left_one_out_has_the_advantages_of_exact():
    rng = np.random.default_rng(0)
    right, said = rng.integers(0, 2, 12), rng.integers(0, 2, (12, 6))
    hits = (right[:, None] == said).astype(float)
    found = drawn("accuracy", right, said)
    assert found.mean() == pytest.approx(hits.mean())
    for scale in ("none", "group"):
        assert centred(found, scale) == pytest.approx(centred(hits, scale))


def test_a_rare_label_is_worth_more_to_matthews_than_a_common_one():
    right = np.array([1] * 2 + [0] * 18)
    said = np.where(np.arange(4) % 2, right[:, None], 1 - right[:, None])  # each half right
    gain = centred(drawn("matthews_correlation", right, said), "none")
    assert (gain[:, 1] > 0).all() and (gain[:, 0] < 0).all()
    assert gain[0, 1] > 3 * gain[-1, 1]


def test_the_answer_of_one_example_does_what_it_does_to_the_metric():
    """With one draw each, M + n * (M' - M) is M: nothing is left out."""
    right, said = np.array([1, 0, 0, 1]), np.array([[1], [0], [1], [1]])
    (module,) = metrics.load(["matthews_correlation"])
    wanted = module.compute(predictions=said[:, 0], references=right)["matthews_correlation"]
    assert drawn("matthews_correlation", right, said) == pytest.approx(np.full((4, 1), wanted))


def test_a_metric_of_two_labels_is_refused_for_three():
    with pytest.raises(UserError, match="use f1_macro"):
        Metric("f1").bind(["a", "b", "c"])
    with pytest.raises(UserError, match="did you mean matthews_correlation"):
        Metric("mathews_correlation")


@pytest.mark.slow
def test_a_trained_classifier_scores_texts_or_choices(toy_run):
    run_dir = toy_run("trainer.max_steps=1")
    labels = ["entailment", "neutral", "contradiction"]
    columns = {"premise": ["some dog runs"] * 3, "hypothesis": ["no dog runs"] * 3}
    choice = Classifier(str(run_dir), read=["premise", "hypothesis"])
    choice.bind(labels)
    assert sum(choice(labels, **columns)) == pytest.approx(1, abs=1e-5)
    text = Classifier(str(run_dir), label="neutral")
    text.bind([])
    assert all(0 < p < 1 for p in text(["", "word " * 20_000, "数学"]))
    with pytest.raises(UserError, match="no label neutrl; did you mean neutral"):
        Classifier(str(run_dir), label="neutrl").bind([])


def raising(completions, *, id, **columns):
    return [1 / (i - 8) for i in id]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda c, **k: [1.0], "examples 7 to 8: it returned 1 values for 2 completions"),
        (lambda c, **k: [1.0, float("nan")], "example 8: it returned nan for 'no'"),
        (lambda c, **k: ["1", 0], "example 7: it returned '1'"),
        (lambda c, **k: 1.0, "it returned a float"),
        (lambda c, **k: (1.0 for _ in c), "it returned a generator"),
        (raising, "example 8: ZeroDivisionError"),
    ],
)
def test_a_wrong_reward_stops_the_run_in_words(function, problem):
    with pytest.raises(UserError, match=f"mode/reward=mine.*{problem}"):
        called(function)


def test_none_does_not_count():
    chosen = Rewards({"a": lambda c, **k: [1, None, None], "b": lambda c: [0.5, 2, None]}, {"b": 2})
    values = chosen(["x"] * 3, {"id": [1, 2, 3]})
    assert chosen.total(values).tolist()[:2] == [2, 4]
    assert np.isnan(chosen.total(values)[2])


def test_what_is_asked_for_has_to_be_there():
    def needs(completions, *, gold):
        return [1.0] * len(completions)

    with pytest.raises(UserError, match="mode/reward=mine: it needs gold"):
        called(needs)
    with pytest.raises(UserError, match=r"mode/reward=mine: it needs pattern.*mode\.reward\.mine"):
        called(rewards.format)


@pytest.mark.parametrize(
    ("functions", "weights", "problem"),
    [
        ({}, {}, "no reward is chosen"),
        ({"exact": rewards.exact}, {"exakt": 1}, "did you mean exact"),
        ({"exact": rewards.exact}, {"exact": 0}, "one of them not 0"),
    ],
)
def test_a_choice_without_a_reward_is_refused(functions, weights, problem):
    with pytest.raises(UserError, match=problem):
        Rewards(functions, weights)


# ------------------------------------------------------------------------- python -m forge rewards


@pytest.fixture
def bench(quick, capsys, tmp_path):
    """The exit code of `python -m forge rewards --json`, and what it found."""

    def start(*overrides, cases=None):
        words = ["rewards", "--json", *TOY, "model=tiny", *SMALL, *overrides]
        if cases:
            (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
            words += ["--cases", str(tmp_path / "cases.yaml")]
        code, printed = main(words), capsys.readouterr()
        return code, json.loads(printed.out) if printed.out else printed.err

    return start


def test_cases_are_held_against_what_they_should_give(bench):
    cases = [
        {"completion": "neutral", "columns": {"label": "neutral"}, "expected": {"exact": 1}},
        {"completion": "neutral", "columns": {"label": "entailment"}, "expected": {"exact": 1}},
    ]
    code, found = bench(cases=cases)
    assert code == 1
    problems = [f["problem"] for f in found["findings"] if f["part"] == "case"]
    assert problems == [None, "expected 1"]
    code, found = bench(cases=cases[:1])
    assert code == 0
    start = found["start"]["reward"]
    assert 0.2 < start["reward"] < 0.5 and start["frac_reward_zero_std"] < 0.5


def test_every_shipped_reward_survives_the_stress(bench):
    costs = {name: {"entailment": 1, "neutral": 1, "contradiction": 1} for name in
             ("entailment", "neutral", "contradiction")}  # fmt: skip
    of_tags = {"entity_f1", "word_accuracy"}  # whose answers are lists of one length
    chosen = sorted(set(options("mode/reward")) - {"classifier", "function"} - of_tags)
    code, found = bench(
        f"mode/reward=[{','.join(chosen)}]",
        f"mode.reward.costs.matrix={costs}".replace("'", ""),
        "mode.reward.format.pattern='[a-z]+'",
    )
    assert code == 0
    assert {f["reward"] for f in found["findings"] if f["part"] == "stress"} == set(chosen)


def brittle(completions, **columns):
    return [1 / len(c) for c in completions]


def test_a_reward_that_breaks_is_told(bench):
    code, found = bench(
        "mode/reward=function",
        "mode.reward.function._target_=tests.reinforcement.test_rewards.brittle",
    )
    assert code == 1
    problems = {f["input"]: f["problem"] for f in found["findings"] if f["part"] == "stress"}
    assert "ZeroDivisionError" in problems.pop("empty") and not any(problems.values())


def test_that_nothing_can_be_learnt_is_told_before_training(quick, capsys):
    words = ("mode/reward=format", "mode.reward.format.pattern='[a-z]+'")  # every label's name
    assert main(["rewards", *TOY, "model=tiny", *SMALL, *words]) == 1
    printed = capsys.readouterr().out
    assert "100% of the groups have no variance" in printed and "GRPO cannot learn" in printed


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["mode=sft"], "it has no rewards"),
        (["--cases", "/nowhere.yaml"], "--cases=/nowhere.yaml"),
        (["mode.num_generations=1"], "mode.num_generations=1: input should be greater"),
        (["mode/reward=format"], "mode.reward.format.pattern has no value"),
        (["mode.reward.exact._target_=forge.reinforcement.rewards.exakt"], "cannot be imported"),
    ],
)
def test_a_mistake_is_one_line(quick, capsys, words, problem):
    assert main(["rewards", *TOY, "model=tiny", *SMALL, *words]) == 2
    printed = capsys.readouterr().err
    assert problem in printed and printed.count("\n") == 1
