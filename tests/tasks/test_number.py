"""A regression on targets of natural size: standardised inside, in their own units outside."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig

from forge.commands.evaluate import evaluate
from forge.commands.export import export
from forge.commands.predict import predict
from forge.errors import Preempted, UserError
from forge.models.scaling import Scale
from forge.records.files import read_json
from forge.tasks import kinds
from tests.support.runs import results
from tests.support.stopping import RUN, assert_same

WORTH = {"good": 1, "great": 2, "bad": -1, "awful": -2}


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    """Files of texts and what they are worth, in hundreds of thousands."""
    folder, rng = tmp_path_factory.mktemp("prices"), np.random.default_rng(0)
    for split, count in (("train", 320), ("validation", 64)):
        texts = rng.choice(list(WORTH), (count, 3)).tolist()
        rows = [
            {"text": " ".join(t), "price": 250_000 + 40_000 * sum(WORTH[w] for w in t)}
            for t in texts
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return (
        "task=files",
        f"task.files.train={folder / 'train.jsonl'}",
        f"task.files.validation={folder / 'validation.jsonl'}",
        "task.text=text",
        "task.label=price",
        "task.problem_type=regression",
        "model=tiny",
        "trainer.learning_rate=2e-3",
        "trainer.num_train_epochs=15",
        "trainer.eval_strategy=no",
        "trainer.save_strategy=no",
        "trainer.load_best_model_at_end=false",
        "precision=fp32",
    )


def error(run_dir):
    """Root of the mean squared error."""
    return results(run_dir)["splits"]["validation"]["mse"] ** 0.5


def value(run_dir, text):
    return predict([run_dir], file=None, given=[[text]])["rows"][0]["predictions"][0]["value"]


def test_it_learns_and_every_reader_answers_in_the_targets_units(launch, prices):
    run_dir = launch(*prices)
    assert error(run_dir) < 20_000  # always the mean: 110,000
    again = evaluate(run_dir, [])["splits"]["validation"]
    scores = results(run_dir)["splits"]["validation"]
    assert {k: again[k] for k in ("mse", "loss", "pearson")} == pytest.approx(
        {k: scores[k] for k in ("mse", "loss", "pearson")}
    )
    assert value(run_dir, "good great good") == pytest.approx(410_000, rel=0.1)
    assert export(run_dir)["difference"] < 1e-4
    note = read_json(run_dir / "run_metadata.json")["notes"][0]
    assert note.startswith("the numbers are standardised by their mean 23")
    assert "It gives one number, standardised" in (run_dir / "model" / "README.md").read_text()


def test_predictions_keep_their_precision_under_bf16(launch, prices):
    run_dir = launch(*prices, "precision=bf16", "trainer.num_train_epochs=1")
    answers = pq.read_table(run_dir / "predictions" / "validation.parquet")["prediction"]
    fine = [value for value in answers.to_pylist() if value % 512]  # bf16's step at this size
    assert len(fine) > 0.9 * len(answers)


def test_a_student_learns_it_from_a_teacher_of_its_scale(launch, prices):
    teacher = launch(*prices, at="teacher")
    taught = (*prices, "mode=kd", f"teacher.path={teacher}", "mode.alpha=1")
    assert error(launch(*taught, at="stored")) < 30_000
    shallow = launch(*taught, "model=from_teacher", "model.layers=1", at="shallow")
    assert error(shallow) < 30_000
    assert Scale.of(AutoConfig.from_pretrained(shallow / "model")).mean > 200_000
    on = launch(*prices, f"model.path={teacher}", "model.lora.r=2", at="adapted")
    assert error(on) < 20_000
    assert value(on, "bad bad bad") == pytest.approx(130_000, rel=0.2)


def test_resumed_it_is_the_uninterrupted_run(launch, prices, stop_at):
    run = (*prices, *RUN)
    whole = launch(*run, at="whole")
    stop_at(13)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))


def test_values_near_0_and_1_are_learnt_as_they_are():
    for values, expected in (
        ([0.0, 5.0, 2.5], Scale()),
        ([0.01, 0.02], Scale(0.015, 0.005)),
        ([300.0, 300.0], Scale(300.0, 1.0)),
    ):
        task = kinds.text_number(
            dataset=dict, text="text", label="label", metrics=["mse"], headline="mse"
        )
        task.answer.fit({"labels": values})
        assert vars(task.answer.scale) == pytest.approx(vars(expected))


def test_the_scale_can_be_given():
    def number(standardize):
        return kinds.text_number(
            dataset=dict, text="t", label="l", metrics=["mse"], headline="mse",
            standardize=standardize,
        ).answer  # fmt: skip

    given = number([10, 2])
    given.fit({"labels": [1e6, 2e6]})
    assert given.scale == Scale(10.0, 2.0)
    for wrong in ([1], [0, 0], [0, -1]):
        with pytest.raises(UserError, match=r"task\.standardize="):
            number(wrong)


def targets(jsonl, values, **settings):
    """The targets of files with these labels: train's, validation's."""
    path = str(jsonl("a.jsonl", [{"text": "a", "label": value} for value in values]))
    task = kinds.text_files(files={"train": path, "validation": path}, text="text", **settings)
    assert task.head.problem_type == "regression"
    return list(task.load()["train"]["labels"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1,5", "2", "0,25"], [1.5, 2.0, 0.25]),
        (["1,234", "0,5"], [1.234, 0.5]),  # one comma that can only be a decimal one decides
        (["1.234,5", "1.234"], [1234.5, 1234.0]),
        (["$1.5", "-$7", "$-2"], [1.5, -7.0, -2.0]),
        (["1,500.5", "1,500"], [1500.5, 1500.0]),
        (["1'500.5", "2"], [1500.5, 2.0]),
        (["1 500,5", "2"], [1500.5, 2.0]),
        (["50.5%", "3%"], [50.5, 3.0]),
        (["\u22121.5", "1e3", "NA"], [-1.5, 1000.0]),
        ([1.5, "2,5"], [1.5, 2.5]),
    ],
)
def test_targets_that_are_texts_are_read_as_the_column_writes_numbers(jsonl, values, expected):
    assert targets(jsonl, values) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1,5", "2.5"], "1,5 and 2.5: some of its numbers have a decimal comma and some"),
        (["$1.5", "\u20ac2"], r"numbers of several units \(\$ and €\)"),
        (["50.5%", "0.5"], "numbers of several units"),
    ],
)
def test_targets_that_are_written_in_two_ways_are_refused(jsonl, values, message):
    with pytest.raises(UserError, match=message):
        targets(jsonl, values)


def test_a_comma_between_labels_is_no_decimal_one_until_it_is_said(jsonl):
    values = ["1", "2", "1,2"]
    path = str(jsonl("a.jsonl", [{"text": "a", "label": value} for value in values]))
    files = {"train": path, "validation": path}
    with pytest.raises(UserError, match=r"1,2 lists several .* set task\.problem_type=regression"):
        kinds.text_files(files=files, text="text").load()
    assert targets(jsonl, values, problem_type="regression") == [1.0, 2.0, 1.2]


def test_other_splits_and_evaluations_are_read_as_train_is(launch, jsonl):
    train = jsonl("train.jsonl", [{"text": "a", "label": f"{i},5"} for i in range(8)])
    judged = jsonl("judged.jsonl", [{"text": "a", "label": "1,250"}, {"text": "b", "label": "2,5"}])
    only = jsonl("only.jsonl", [{"text": "a", "label": "1,250"}, {"text": "b", "label": "2,250"}])
    run_dir = launch(
        "task=files", f"task.files.train={train}", f"task.files.validation={judged}",
        "task.text=text", "model=tiny", "model.config.hidden_size=16", "trainer.max_steps=1",
        "trainer.eval_strategy=no", "trainer.save_strategy=no",
        "trainer.load_best_model_at_end=false", "precision=fp32",
    )  # fmt: skip
    assert pq.read_table(run_dir / "predictions/validation.parquet")["label"][0].as_py() == 1.25
    recorded = read_json(run_dir / "run_metadata.json")
    assert (recorded["read_off"], recorded["notes"]) == (
        {"decimal": "comma"},
        ["label: 0,5 is read as 0.5"],
    )
    found = evaluate(run_dir, [f"task.files.validation={only}"])
    answers = pq.read_table(f"{found['kept']}/predictions/validation.parquet")
    assert answers["label"].to_pylist() == [1.25, 2.25]
