"""Labels mean what their names say, and nothing that cannot be learnt from is trained on."""

import json

import numpy as np
import pandas
import pytest
from datasets import Dataset

from forge.data.spelling import plain
from forge.errors import UserError
from forge.models.heads import match
from forge.tasks import kinds

F1 = {"metrics": ["f1"], "headline": "f1"}


def classification(rows, **settings):
    columns = {k: [row[k] for row in rows] for k in ("text", "label")}
    values = columns["label"]
    if len({type(v) for v in values}) > 1:  # a file may mix types, an Arrow column may not
        columns["label"] = [None if v is None else str(v) for v in values]
    source = {split: Dataset.from_dict(columns) for split in ("train", "validation")}
    usual = {"labels": ["no", "yes"], "metrics": ["accuracy"], "headline": "accuracy"}
    usual |= {"dataset": lambda: source, "text": "text", "label": "label"}
    return kinds.text_label(**usual | settings)


def labelled(*values):
    return [{"text": f"row {i}", "label": value} for i, value in enumerate(values)]


def ids(task):
    return list(task.load()["train"]["labels"])


@pytest.mark.parametrize("values", [("yes", "no"), (1, 0), ("1", "0"), (1.0, 0.0), (" yes", "no ")])
def test_labels_by_name_or_number(values):
    assert ids(classification(labelled(*values))) == [1, 0]


@pytest.mark.parametrize(
    ("values", "settings", "note"),
    [
        (("yes", "No"), {}, "the labels are matched by name"),
        ((1, 0), {}, "the labels are numbers, taken for 0 no, 1 yes"),
        (("b", "a"), {"labels": None}, "the labels are the values of column label"),
    ],
)
def test_by_which_rule_labels_are_read_is_noted(values, settings, note):
    task = classification(labelled(*values), **settings)
    task.load()
    assert task.answer.notes == [note]


def test_a_name_is_the_same_however_its_characters_are_composed():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for given, held in ((composed, decomposed), (decomposed, composed)):
        assert ids(classification(labelled(held, "no"), labels=["no", given])) == [1, 0]
    read_off = classification(labelled(composed, decomposed, "no"), labels=None)
    assert ids(read_off) == [0, 0, 1]
    assert read_off.head.labels == (composed, "no")
    assert match([decomposed, "no"], ["NO", composed]) == [1, 0]


def test_numbers_that_are_names_are_names():
    assert ids(classification(labelled(1, 2, 3), labels=[3, 2, 1])) == [2, 1, 0]


def test_labels_are_read_off_the_train_split_in_order():
    task = classification(labelled(10, 2, 2, 10), labels=None)
    assert ids(task) == [1, 0, 0, 1]
    assert task.head.labels == ("2", "10")
    assert task.head.problem_type == "single_label_classification"


def test_minus_one_is_a_label_when_it_is_named():
    assert ids(classification(labelled(-1, 0, 1), labels=[-1, 0, 1])) == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        ((True, False), [True, False], [0, 1]),
        (("true", "false"), [True, False], [0, 1]),
        (("true", "false"), ["False", "TRUE"], [1, 0]),
        ((True, False), ["true", "false"], [0, 1]),
        (("TRUE", "False"), ["false", "true"], [1, 0]),
        (("Yes", "NO"), ["no", "yes"], [1, 0]),
        (("a", "A"), ["A", "a"], [1, 0]),  # the case tells them apart
        (("1.0", "0.0"), ["0", "1"], [1, 0]),  # gaps make floats of whole numbers
        (("1", "2"), [1.0, 2.0], [0, 1]),
        (("+1", "-1"), [-1, 1], [1, 0]),
        (("-0.0", "1"), [0, 1], [0, 1]),
        (("3.10", "3.1"), ["3.1", "3.10"], [1, 0]),  # names, such as versions
        (("2", "1"), ["1", "2"], [1, 0]),  # names, and not the ids 1 and 2
    ],
)
def test_a_label_has_one_spelling(values, labels, expected):
    assert ids(classification(labelled(*values), labels=labels)) == expected


def test_numbers_for_named_labels_are_ids_and_it_is_said(caplog):
    caplog.set_level("INFO")
    task = classification(labelled(0, 1))
    assert ids(task) == [0, 1]
    assert task.answer.notes == ["the labels are numbers, taken for 0 no, 1 yes"]
    assert task.answer.notes[0] in caplog.text


def test_a_case_that_varies_between_splits_is_one_label():
    source = {
        "train": Dataset.from_list(labelled("Yes", "No")),
        "validation": Dataset.from_list(labelled("no", "YES")),
    }
    task = classification([], dataset=lambda: source, labels=None)
    assert list(task.load()["validation"]["labels"]) == [0, 1]


MARKS = ["NA", "N/A", "n/a", "NULL", "None", "nan", "NaN", "-", "", None, "Null", "#VALUE!", "N.A."]
MARKS += ["none", "NONE", "\u2212"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_mark_of_a_missing_label_is_no_label(tmp_path, suffix, mark, caplog):
    rows = labelled("good", "bad", mark, "good")
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        pandas.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    task = from_files(str(path))
    assert list(task.load()["train"]["labels"]) == [1, 0, 1]
    assert task.head.labels == ("bad", "good")
    assert "train: 1 rows without a label skipped" in caplog.text
    assert not mark or f"{plain(mark)} (1 rows): taken for no label" in caplog.text


def test_a_mark_that_is_named_is_a_label():
    labels = ["NA", "EU", "none"]
    assert ids(classification(labelled("NA", "EU", "None"), labels=labels)) == [0, 1, 2]


@pytest.mark.parametrize("mark", ["NA", "", None, float("nan"), "-", "#DIV/0!", "none"])
def test_a_missing_target_leaves_a_regression_one(jsonl, mark):
    task = from_files(jsonl("a.jsonl", labelled("0.5", "1", mark, "2.5")))
    assert task.head.problem_type == "regression"
    assert list(task.load()["train"]["labels"]) == [0.5, 1.0, 2.5]


def test_few_rows_of_many_labels_are_a_classification_when_it_is_given(jsonl):
    path = jsonl("a.jsonl", labelled(*(f"intent {i % 77}" for i in range(77 * 8))))
    for given in ("classification", None):  # words repeat: they are labels
        task = from_files(path, problem_type=given)
        task.load()
        assert len(task.head.labels) == 77
    numbers = jsonl("b.jsonl", labelled(*(i % 77 for i in range(77 * 8))))
    assert len(from_files(numbers, problem_type="classification").load()["train"]) == 77 * 8


def test_the_train_split_decides_whether_numbers_are_names():
    source = {
        "train": Dataset.from_list(labelled("1", "2")),
        "validation": Dataset.from_list(labelled("0", "1")),
    }
    task = classification([], dataset=lambda: source, labels=None)
    with pytest.raises(UserError, match=r"split validation, column label: 0 \(first in row 0\)"):
        task.load()


@pytest.mark.parametrize("name", ["id", "labels", "length", "input_ids"])
def test_a_text_column_may_have_any_name(name):
    source = {s: Dataset.from_list([{name: "a", "label": 1}]) for s in ("train", "validation")}
    task = classification([], dataset=lambda: source, text=[name])
    assert list(task.load()["train"]["text_0"]) == ["a"]


def test_unlabelled_rows_are_skipped_with_a_count_and_ids_stay(caplog):
    task = classification(labelled("yes", None, -1, "", "no"))
    train = task.load()["train"]
    assert (list(train["id"]), list(train["labels"])) == ([0, 4], [1, 0])
    assert "train: 3 rows without a label skipped" in caplog.text


def test_max_rows_keeps_the_first_rows():
    assert list(classification(labelled(1, 0, 1), max_rows=2).load()["train"]["id"]) == [0, 1]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            labelled("yes", "yse"),
            {},
            r"yse \(first in row 1\) not among .*; did you mean yes",
        ),
        (labelled(0, 1, 2), {}, r"column label: 0, 1, 2 \(first in row 0\) not among"),
        (labelled(None, -1), {}, "none of its 2 rows has a label"),
        ([{"text": None, "label": 1}], {}, "column text: 1 rows have no text"),
        (labelled("a", "a"), {"labels": None}, "1 distinct labels"),
        (labelled(-1, 0, 1), {"labels": None}, "-1 may be a label or mark rows without one"),
        (labelled(True, False), {}, r"false, true \(first in row 0\) not among task.labels"),
        (labelled(0, 2), {"labels": [1, 2]}, r"0 \(first in row 0\) not among"),
        (labelled(["a"], ["a", "b"]), {"labels": None}, r"row 0 holds \['a'\], and a label is one"),
        (labelled({"a": 1}), {}, r"row 0 holds \{'a': 1\}, and a label is one"),
        (labelled("['a', 'b']"), {"labels": None}, r"row 0 holds \['a', 'b'\], and a label is one"),
        (labelled("('a', 'b')"), {"labels": None}, r"row 0 holds \('a', 'b'\), and a label is one"),
        (labelled("[]"), {"labels": None}, r"row 0 holds \[\], and a label is one"),
        (labelled(0, 1), {"max_rows": 0}, "task.max_rows=0: at least 1"),
        (labelled(0, 1), {"metrics": ["mse"], "headline": "mse"}, "metric mse: it does not judge"),
        (labelled(*"abc"), {"labels": list("abc"), **F1}, "metric f1: it is for two labels"),
        ([{"text": ["a"], "label": 1}], {}, "row 0 holds a list, not a text"),
        (labelled(1), {"labels": ["a", "a"]}, "occurs twice"),
        (labelled(1), {"labels": ["a"]}, "at least two labels"),
        (labelled(1), {"headline": "f1"}, r"task.headline=f1: not one of task.metrics"),
        (labelled(1), {"metrics": ["acuracy"], "headline": "acuracy"}, "did you mean accuracy"),
        (labelled(1), {"evaluation": ["test"]}, "split test: the data has no such split"),
        (labelled(1), {"evaluation": []}, "name at least one split"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(rows, settings, message):
    with pytest.raises(UserError, match=message):
        classification(rows, **settings).load()


def test_an_empty_split_is_refused(jsonl):
    empty = jsonl("a.jsonl", [])
    with pytest.raises(UserError, match=r"a\.jsonl has no rows"):
        from_files(empty, labels=["a", "b"], problem_type="classification").load()
    with pytest.raises(UserError, match="split train has no rows"):
        classification([]).load()


def from_files(path, **settings):
    return kinds.text_files(files={"train": path, "validation": path}, text="text", **settings)


def test_fractions_mean_regression(jsonl):
    task = from_files(jsonl("a.jsonl", labelled(0.5, 1, 2)))
    assert (task.head.problem_type, task.headline) == ("regression", "pearson")
    assert len(task.head.labels) == 1
    assert list(task.load()["train"]["labels"]) == [0.5, 1.0, 2.0]


def test_words_and_whole_numbers_mean_classification(jsonl):
    task = from_files(jsonl("a.jsonl", labelled(0, 1, 0)))
    assert (task.head.problem_type, task.headline) == ("single_label_classification", "accuracy")
    task.load()
    assert task.head.labels == ("0", "1")


def test_the_kind_of_problem_can_be_given(jsonl):
    path = jsonl("a.jsonl", labelled(1, 2, 3))
    assert from_files(path, problem_type="regression").head.problem_type == "regression"
    with pytest.raises(UserError, match="did you mean regression"):
        from_files(path, problem_type="regresion")


@pytest.mark.parametrize("values", [range(500), (f"text {i}" for i in range(500))])
def test_a_column_that_looks_like_no_labels_is_refused_unless_it_is_given(jsonl, values):
    path = jsonl("a.jsonl", labelled(*values))
    with pytest.raises(UserError, match=r"500 distinct values .*problem_type=.*classification"):
        from_files(path).load()


def test_fractions_are_labels_in_the_order_of_their_values(jsonl):
    task = from_files(jsonl("a.jsonl", labelled(1.5, 10, 0.5)), problem_type="classification")
    assert list(task.load()["train"]["labels"]) == [1, 2, 0]


def test_numbers_with_a_word_among_them_are_no_labels_unless_it_is_given(jsonl):
    path = jsonl("a.jsonl", labelled("0.5", "1", "?", "2.5"))
    with pytest.raises(UserError, match=r"numbers, and \? \(1 rows\).*problem_type"):
        from_files(path).load()
    from_files(path, problem_type="classification").load()


def test_a_value_that_lists_other_labels_is_refused_unless_it_is_named(jsonl):
    path = jsonl("a.jsonl", labelled("tox", "ins", "tox, ins"))
    with pytest.raises(UserError, match=r"tox, ins lists several .*task.labels"):
        from_files(path, problem_type="classification").load()
    from_files(path, labels=["tox", "ins", "tox, ins"]).load()


@pytest.mark.parametrize("settings", [{"problem_type": "classification"}, {}])
def test_labels_that_all_differ_are_refused_unless_they_are_named(jsonl, settings):
    rows = labelled(*(f"text {i}" for i in range(30)))
    with pytest.raises(UserError, match=r"task\.label"):
        from_files(jsonl("a.jsonl", rows), **settings).load()
    with pytest.raises(UserError, match=r"each of its 30 rows .*task.labels"):
        classification(rows, labels=None).load()
    assert ids(classification(rows, labels=[row["label"] for row in rows])) == list(range(30))


def test_a_true_minus_sign_of_a_target_is_one(jsonl):
    task = from_files(jsonl("a.jsonl", labelled("\u22121.5", "2")))
    assert list(task.load()["train"]["labels"]) == [-1.5, 2.0]


@pytest.mark.parametrize("value", ["high", float("inf"), [1.0]])
def test_a_target_that_is_no_number_is_refused(jsonl, value):
    path = jsonl("a.jsonl", labelled(0.5, value))
    with pytest.raises(UserError, match=r"1 values are not finite numbers .*in row 1"):
        from_files(path, problem_type="regression").load()


def test_the_mark_of_an_unlabelled_target_is_skipped(caplog):
    source = {s: Dataset.from_list(labelled(0.5, -1.0, 2.0)) for s in ("train", "validation")}
    task = kinds.text_number(
        dataset=lambda: source,
        text="text",
        label="label",
        metrics=["mse"],
        headline="mse",
        unlabelled=-1,
    )
    assert list(task.load()["train"]["labels"]) == [0.5, 2.0]
    assert "1 rows without a label skipped" in caplog.text


def test_answers_and_metrics_come_from_logits():
    task = classification(labelled(0, 1), metrics=["accuracy", "f1"])
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert task.answer.predict(logits).tolist() == [0, 1, 0]
    assert task.judge(logits, np.array([0, 1, 1])) == pytest.approx(
        {"accuracy": 2 / 3, "f1": 2 / 3}
    )


def test_regression_answers_are_the_logits():
    task = kinds.text_number(
        dataset=dict, text="text", label="label", metrics=["mse"], headline="mse"
    )
    assert task.answer.predict(np.array([[0.5], [1.5]])).tolist() == [0.5, 1.5]
    assert task.judge(np.array([[0.5], [1.5]]), np.array([0.5, 0.5])) == {"mse": 0.5}
    assert not task.greater_is_better


def test_files_are_judged_by_all_or_by_those_that_are_named(jsonl):
    path = str(jsonl("rows.jsonl", [{"text": f"row {i}", "label": i % 2} for i in range(4)]))
    files = {"train": path, "validation": path, "dev": path, "test": None}
    assert kinds.text_files(files=files, text="text").evaluation == ["validation", "dev"]
    named = {"text": "text", "evaluation": ["dev"]}
    assert kinds.text_files(files=files, **named).evaluation == ["dev"]
    with pytest.raises(UserError, match=r"no file for it; give one with task\.files\.test=FILE"):
        kinds.text_files(files=files, text="text", evaluation=["test"])
    with pytest.raises(UserError, match=r"task\.files\.unlabeled: .*did you mean unlabelled"):
        kinds.text_files(files=files | {"unlabeled": path}, text="text")
