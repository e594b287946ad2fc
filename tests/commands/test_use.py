"""A finished run's model on other data, and asked: the run's own numbers, labels by their names."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from forge.commands import predict as commands_predict
from forge.commands.evaluate import evaluate
from forge.commands.predict import answer_rows, predict, prediction_table, write_answers
from forge.commands.reproduce import main
from forge.data import toy_nli
from forge.data.sources import read
from forge.errors import UserError
from forge.results.comparison import side_by_side
from forge.results.show import shown
from tests.support.commands import forge
from tests.support.runs import SMALL, TOY, launch_in, results, write_rows

NAMES = ["entailment", "neutral", "contradiction"]
COLUMNS = ("task.text=[premise,hypothesis]", "task.label=label")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick):
    steps = ("trainer.max_steps=30", "trainer.learning_rate=3e-3")
    return launch_in(tmp_path_factory.mktemp("use"))(*TOY, *SMALL, *steps)


@pytest.fixture
def run(trained, tmp_path):
    """A copy, as from another machine."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture(scope="module")
def rows():
    """The run's validation rows, labels by name."""
    split = toy_nli.nli(train=600, validation=150)["validation"]
    keys = ("premise", "hypothesis", "label")
    return [{key: row[key] for key in keys} for row in split]


def answers(folder, split="validation"):
    return pq.read_table(folder / "predictions" / f"{split}.parquet").to_pydict()


def content(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if "evaluations" not in path.parts}


def test_with_nothing_changed_it_repeats_the_runs_numbers_and_leaves_the_run_alone(run):
    before, own = content(run), results(run)["splits"]["validation"]
    found = evaluate(run, [])
    again = evaluate(run, [])
    assert content(run) == before
    assert found["kept"] == again["kept"] and len(list((run / "evaluations").iterdir())) == 1
    for judged in (found, again, results(run / "evaluations" / found["kept"].split("/")[-1])):
        scores = judged["splits"]["validation"]
        assert (scores["accuracy"], scores["loss"]) == (own["accuracy"], own["loss"])
    (kept,) = (run / "evaluations").iterdir()
    assert answers(kept) == answers(run)


def test_rows_that_a_file_lists_are_judged_alone(run, tmp_path):
    (chosen := tmp_path / "chosen rows.txt").write_text("3\n17\n90\n17\n")
    word = f"task.rows='{chosen}'"
    found = evaluate(run, [word])
    all_rows, alone = answers(run), answers(Path(found["kept"]))
    picked = [all_rows["id"].index(id) for id in (3, 17, 90)]
    assert alone["id"] == [3, 17, 90]
    assert alone["prediction"] == [all_rows["prediction"][i] for i in picked]
    right = [all_rows["prediction"][i] == all_rows["label"][i] for i in picked]
    assert found["splits"]["validation"]["accuracy"] == pytest.approx(sum(right) / 3)
    assert evaluate(run, [])["kept"] != found["kept"]
    for text, reason in {"999999": "none of its 1 ids", "a": "one a line", "": "no id"}.items():
        chosen.write_text(text)
        with pytest.raises(UserError, match=reason):
            evaluate(run, [word])


def test_labels_of_another_task_are_matched_by_name(run, rows, tmp_path):
    own = results(run)["splits"]["validation"]["accuracy"]
    file = f"task.files.test={write_rows(tmp_path / 'test.jsonl', rows)}"
    found = evaluate(run, ["task=files", file, *COLUMNS])
    assert found["splits"]["test"]["accuracy"] == own
    other = ["Neutral", "Contradiction", "Entailment"]
    renamed = [row | {"label": row["label"].capitalize()} for row in rows]
    file = f"task.files.test={write_rows(tmp_path / 'other.jsonl', renamed)}"
    labels = f"task.labels=[{','.join(other)}]"
    permuted = evaluate(run, ["task=files", file, *COLUMNS, labels])
    assert permuted["splits"]["test"]["accuracy"] == own
    straight, turned = (
        answers(run / "evaluations" / f["kept"].split("/")[-1], "test") for f in (found, permuted)
    )
    np.testing.assert_allclose(
        np.array(turned["logits"]), np.array(straight["logits"])[:, [1, 2, 0]], rtol=1e-5
    )
    for column in ("label", "prediction"):
        named = [other[i].lower() for i in turned[column]]
        assert named == [NAMES[i] for i in straight[column]]


def test_labels_given_as_numbers_are_said(run, rows, tmp_path):
    numbered = [row | {"label": NAMES.index(row["label"])} for row in rows]
    file = f"task.files.test={write_rows(tmp_path / 'test.jsonl', numbered)}"
    found = evaluate(run, ["task=files", file, *COLUMNS])
    assert found["notes"] == [
        "the labels are numbers, taken for 0 entailment, 1 neutral, 2 contradiction"
    ]
    assert found["headline"]["value"] == results(run)["headline"]["value"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "task=rte",
            r"head knows \[entailment, neutral, contradiction\], the task \[entailment, n",
        ),
        ("task=stsb", r"its head knows \[entailment, .*\], the task \[score\]"),
        ("task=rt", r"task=rt: no such option; did you mean rte"),
        ("task.evaluatoin=[test]", r"task\.evaluatoin: .*did you mean evaluation\?"),
        ("task.evaluation=[test]", r"split test: the data has no such split"),
        ("mode=kd", r"mode: a finished run has its own; evaluate takes task, precision"),
        ("trainer.learning_rate=1", r"trainer\.learning_rate: a finished run has its own"),
    ],
)
def test_what_cannot_be_judged_is_one_line(run, word, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate(run, [word])
    assert "\n" not in str(error.value)
    assert not (run / "evaluations").exists()


def test_beside_a_read_only_run_the_results_are_there_but_not_kept(run, tmp_path):
    (run / "evaluations").write_text("")  # in the way: root may write anywhere
    found = evaluate(run, [])
    assert found["kept"] is None and found["headline"] == results(run)["headline"]
    assert "kept    nowhere (" in found["text"]
    found = evaluate(run, [], tmp_path / "elsewhere")
    assert results(tmp_path / "elsewhere")["headline"] == found["headline"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=r"mine: it is there already, with no evaluation\.json"):
        evaluate(run, [], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_shows_what_it_was_evaluated_on(run):
    kept = Path(evaluate(run, ["task.dataset.seed=1"])["kept"])
    told = [value for name, value in shown(run) if name == "evaluated"]
    assert told == [f"{kept.name}: accuracy {results(kept)['headline']['value']:.4f}"]


def test_evaluations_are_compared_as_runs_are(run, tmp_path):
    kept = [tmp_path / name for name in ("some", "all")]
    evaluate(run, ["task.dataset.seed=1"], kept[0])
    evaluate(run, ["task.dataset.seed=1", "precision=bf16"], kept[1])
    found = side_by_side(kept)
    assert found["config"] == {"precision": ["fp32", "bf16"]}
    assert found["pairs"][0]["n"] == 150
    for verb in (
        lambda path: evaluate(path, []),
        shown,
        lambda path: main(path, False, None, False),
    ):
        with pytest.raises(UserError, match="run in this directory"):
            verb(kept[0])


def test_rows_of_a_file_are_answered_in_their_order(run, rows, tmp_path):
    found = predict([run, run], file=write_rows(tmp_path / "rows.jsonl", rows))
    kept = answers(run)  # in the order of the rows
    for number in (0, 1):
        told = [row["predictions"][number] for row in found["rows"]]
        assert [NAMES.index(answer["label"]) for answer in told] == kept["prediction"]
        odds = np.exp(kept["logits"])
        np.testing.assert_allclose(
            [list(answer["probabilities"].values()) for answer in told],
            odds / odds.sum(1, keepdims=True),
            rtol=1e-4,
        )
    assert [row["texts"][0] for row in found["rows"]] == [row["premise"] for row in rows]
    header, lines = prediction_table(found)
    assert header[-2:] == ["A", "B"] and len(lines) == len(rows)


def test_one_example_is_a_line_for_each_label(run):
    header, lines = prediction_table(predict([run], [["some dogs run"], ["dogs run"]]))
    assert header == ["", "answer"] and [line[0] for line in lines] == ["", *NAMES]
    assert sum(float(line[1]) for line in lines[1:]) == pytest.approx(1, abs=1e-3)


def test_one_example_is_a_row_where_a_program_reads_it(run):
    header, lines = answer_rows(predict([run], [["some dogs run"], ["dogs run"]]))
    assert header == ["row", "text", "text 2", "answer", *NAMES]
    assert [line[:3] for line in lines] == [["0", "some dogs run", "dogs run"]]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_answers_are_a_table_in_a_file_that_is_called_one(run, tmp_path, name):
    """As a task of files reads it: no quoting in a .tsv."""
    found = predict([run, run], [['dogs, "some"\nrun', "cats"], ["dogs run", "a"]])
    write_answers(tmp_path / name, found)
    columns = ["text", "A", "B", *(f"B {name}" for name in NAMES)]
    rows = read({"x": [tmp_path / name]}, "x", columns)
    kept = 'dogs, "some" run' if name == "a.tsv" else 'dogs, "some"\nrun'
    assert rows["text"] == [kept, "cats"] and rows["A"] == rows["B"]
    shares = np.array([rows[column] for column in columns[3:]], float)
    assert shares.sum(0) == pytest.approx([1, 1], abs=1e-5)


def test_a_regression_gives_its_number(launch, jsonl):
    rows = [{"a": "good " * (i % 7), "label": i % 7 / 2} for i in range(40)]
    files = (
        f"task.files.{split}={jsonl(f'{split}.jsonl', rows)}" for split in ("train", "validation")
    )
    run = launch("task=files", *files, "task.text=a", *SMALL, "trainer.max_steps=2")
    found = predict([run], file=run.parent / "train.jsonl")
    values = [row["predictions"][0]["value"] for row in found["rows"]]
    assert values == pytest.approx([row[0] for row in answers(run)["logits"]], rel=1e-3)
    assert evaluate(run, [])["headline"] == results(run)["headline"]
    test = f"task.files.test={jsonl('test.jsonl', rows[:9])}"
    alone = evaluate(run, ["task.evaluation=[test]", test])
    assert [(split, scores["n"]) for split, scores in alone["splits"].items()] == [("test", 9)]
    assert list(evaluate(run, [test])["splits"]) == ["validation", "test"]
    with pytest.raises(UserError, match=r"no file for it; give one with task\.files\.test=FILE"):
        evaluate(run, ["task.evaluation=[test]"])


def test_what_cannot_be_asked_is_one_line(run, jsonl, tmp_path):
    for given, message in (
        ({"given": [["a"]]}, r"it reads pairs \(premise, hypothesis\); add --pair TEXT"),
        ({"file": jsonl("x.jsonl", [{"premise": "a"}])}, "column hypothesis: not in .*x.jsonl"),
        ({"file": jsonl("y.jsonl", [{"premise": "a", "hypothesis": None}])}, "1 rows have no text"),
        ({"file": tmp_path / "none.csv"}, "none.csv: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            predict([run], **given)
    with pytest.raises(UserError, match="no finished run in this directory"):
        predict([tmp_path], [["a"], ["b"]])


@pytest.mark.slow
def test_the_commands(run, rows, tmp_path):
    done = forge("evaluate", str(run), "task.dataset.seed=1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["data"]["validation"]["n"] == 150 and found["kept"].startswith(str(run))
    done = forge("evaluate", str(run), "--out", str(tmp_path))
    assert done.returncode == 2 and "it is there already" in done.stderr
    done = forge("predict", str(run), str(run), "--text", "dogs run", "--pair", "dogs run")
    assert done.returncode == 0 and done.stdout.startswith("row\ttext\ttext 2\tA\tA ")
    assert "ms per example" in done.stderr and "wall clock of processing" in done.stderr
    file, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    Dataset.from_list(rows).to_csv(file)
    done = forge("predict", str(run), "--file", str(file), "--out", str(out))
    assert done.returncode == 0 and len(out.read_text().splitlines()) == len(rows)
    for words, message in (
        (["predict", str(run), "--text", "a"], "add --pair TEXT"),
        (["evaluate", str(run), "--split", "test"], "--split: evaluate has no such option"),
        (["evaluate", str(run), "task=files", *COLUMNS], "task.files.validation has no value"),
    ):
        done = forge(*words)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_rows_go_to_what_is_no_file_and_a_link_stays_one(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    commands_predict.write_answers(pipe, {"rows": [{"row": 0}]})
    assert os.read(reader, 100) == b'{"row": 0}\n' and pipe.is_fifo()
    os.close(reader)
    link.symlink_to(tmp_path / "answers")
    commands_predict.write_answers(link, {"rows": [{"row": 1}]})
    commands_predict.write_answers(link, {"rows": [{"row": 2}]})
    assert link.is_symlink() and (tmp_path / "answers").read_text() == '{"row": 2}\n'
    with pytest.raises(UserError, match=r"--out=.*Not a directory"):
        commands_predict.write_answers(tmp_path / "answers" / "below", {"rows": []})
