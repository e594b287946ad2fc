"""The report of one run: what it counts, what it says of what is missing, what it writes."""

import json
import warnings

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.calibration import calibration_curve

from forge.__main__ import main
from forge.config.check import build
from forge.errors import UserError
from forge.records.files import read_json
from forge.results import pictures
from forge.results.examine import examine
from forge.results.predictions import calibration, read_predictions
from forge.results.run_report import markdown, report

NAMES = ("no", "yes")


@pytest.mark.parametrize(
    ("confidence", "right", "bins", "error"),
    [
        ([0.95] * 10, [1] * 9 + [0], 15, 0.05),
        ([0.6, 0.9, 0.6, 0.9], [1, 0, 1, 0], 2, 0.25),  # one bin: |0.5 - 0.75|
        ([0.55, 0.55, 0.95, 0.95], [1, 0, 1, 1], 10, 0.05),
        ([0.3, 0.9, 0.9, 0.9], [1, 1, 1, 1], 2, 0.25 * 0.7 + 0.75 * 0.1),
        ([1.0, 1.0], [1, 0], 15, 0.5),
    ],
)
def test_the_calibration_error_of_cases_worked_out_by_hand(confidence, right, bins, error):
    found = calibration(np.array(confidence), np.array(right), bins)
    assert found["ece"] == pytest.approx(error)
    assert sum(row["n"] for row in found["table"]) == found["n"] == len(right)


def test_the_bins_are_those_of_scikit_learn_and_hold_their_upper_edge():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=500)
    right = rng.uniform(size=500) < confidence**2
    found = calibration(confidence, right)["table"]
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    assert [row["accuracy"] for row in found] == pytest.approx(accuracy)
    assert [row["confidence"] for row in found] == pytest.approx(mean)
    assert calibration(np.array([0.5]), np.array([1]), 2)["table"][0]["to"] == 0.5


def predictions(path, ids, label, prediction, logits):
    path.parent.mkdir(exist_ok=True)
    columns = {"id": ids, "label": label, "prediction": prediction, "logits": logits}
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def run_dir(tmp_path, jsonl):
    """A finished distillation on three kinds of rows: eight examples, answered by hand."""
    rows = [{"text": f"text {i} | with a bar", "label": NAMES[i % 2]} for i in range(8)]
    files = {split: str(jsonl(f"{split}.jsonl", rows)) for split in ("train", "validation")}
    task = {"_target_": "forge.tasks.kinds.text_files", "files": files, "text": "text"}
    found = build(task, "task").load()["validation"]
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    scores = {"validation": {"accuracy": 0.625, "loss": 1.5, "n": 8, "seconds": 1.0}}
    log = [{"step": 1, "loss": 2.0, "loss_kl": 0.5, "loss_task": 1.5, "gradient_share_kl": 0.25}]
    log += [{"step": 4, "loss": 1.0, "loss_kl": 0.2, "loss_task": 0.8}]
    log += [{"step": 4, "eval_loss": 1.5, "eval_accuracy": 0.625}]
    config = {"seed": 1, "task": task, "model": {"path": None}, "mode": {"alpha": 0.5}}
    metadata = {
        "config": config | {"trainer": {"load_best_model_at_end": False}},
        "overrides": ["task=files", "mode=kd"],
        "choices": {"task": "files", "model": "tiny", "mode": "kd"},
        "attempts": [{"started": "2026-01-01T00:00:00Z"}],
        "data": {"validation": {"n": 8, "fingerprint": found._fingerprint}},
        "teacher": {"paths": ["t"], "splits": {"validation": {"accuracy": 0.75}}},
    }
    headline = {"metric": "accuracy", "split": "validation", "value": 0.625}
    for name, content in (
        ("run_metadata", metadata),
        ("training_state", {"status": "finished"}),
        ("results", {"headline": headline, "splits": scores, "train": {"steps": 4}}),
        ("trainer_state", {"log_history": log}),
        ("model/config", {"id2label": {"0": "no", "1": "yes"}}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    label, sure = [i % 2 for i in range(8)], [[0.0, 1.0], [1.0, 0.0], [0.0, 3.0], [3.0, 0.0]]
    student, teacher = [1, 0, 1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1, 0, 1]
    assert [int(s == y) for s, y in zip(student, label, strict=True)] == [0, 0, 0, 1, 1, 1, 1, 1]
    logits = [sure[0 if s else 1] for s in student]
    logits[2] = sure[2]  # the most confident mistake
    where = folder / "predictions"
    predictions(where / "validation.parquet", range(8), label, student, logits)
    logits = [sure[2 if s else 3] for s in teacher]
    predictions(where / "teacher_validation.parquet", range(8), label, teacher, logits)
    return folder


def test_what_a_classifier_gets_wrong_and_how_sure_it_is(run_dir):
    found = examine(run_dir)
    split = found["splits"]["validation"]
    assert split["confusion"] == [[2, 2], [1, 3]] and split["wrong"] == 3
    first = split["errors"][0]
    assert (first["id"], first["label"], first["prediction"]) == (2, "no", "yes")
    assert first["probability"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert first["texts"] == ["text 2 | with a bar"] and len(split["errors"]) == 3
    sure, surer = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))
    expected = (7 * abs(5 / 7 - sure) + surer) / 8  # two bins
    assert split["calibration"]["ece"] == pytest.approx(expected)
    assert found["notes"] == []
    told = markdown(found)
    assert "| no | 2 | 2 |" in told and r"text 2 \| with a bar" in told
    assert "most often no taken for yes, 2 times" in told


def test_who_is_right_where_student_and_teacher_differ(run_dir):
    taught = examine(run_dir)["splits"]["validation"]["teacher"]
    assert taught["counts"] == {
        "both right": 4,
        "only the student right": 1,
        "only the teacher right": 1,
        "both wrong, the same answer": 2,
        "both wrong, different answers": 0,
    }
    (example,) = taught["examples"]["only the teacher right"]
    assert example["id"] == 0 and example["prediction"] == "yes"
    assert example["teacher"]["prediction"] == "no" and example["texts"]


def test_a_run_away_from_its_data_is_told_by_ids(run_dir, tmp_path):
    (tmp_path / "validation.jsonl").unlink()
    (run_dir / "trainer_state.json").unlink()
    (run_dir / "predictions" / "teacher_validation.parquet").unlink()
    found = examine(run_dir)
    assert "texts" not in found["splits"]["validation"]["errors"][0]
    assert "| 2 | no | yes | 0.953 |\n" in markdown(found)
    missing = ("teacher's answers cannot be shown", "Texts are not available", "curves are not")
    assert [sum(word in note for note in found["notes"]) for word in missing] == [1, 1, 1]
    assert "report.png" not in report(run_dir)[1]


def test_texts_that_have_changed_are_not_shown(run_dir, jsonl):
    jsonl("validation.jsonl", [{"text": "other", "label": NAMES[i % 2]} for i in range(8)])
    found = examine(run_dir)
    assert "rows of validation are not those of the run" in found["notes"][0]
    assert "texts" not in found["splits"]["validation"]["errors"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"_target_": "builtins.exec"},
        {"_target_": "forge.records.logs.os.mkdir"},
        {"files": [{"_target_": "os.mkdir", "path": "MADE"}]},
        {"files": {"train": {"_target_": "os.mkdir", "path": "MADE"}}},
        {"metrics": ["MADE/metric.py"]},
    ],
)
def test_code_that_a_record_names_is_not_run_to_report_it(run_dir, tmp_path, change, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metadata = read_json(run_dir / "run_metadata.json")
    metadata["config"]["task"] |= change
    (run_dir / "run_metadata.json").write_text(json.dumps(metadata))
    facts = examine(run_dir)
    assert "not Forge's own" in facts["notes"][0] and not (tmp_path / "MADE").exists()
    assert facts["splits"]["validation"]["wrong"] == 3


def test_curves_of_an_older_checkpoint_end_with_it(run_dir):
    (run_dir / "checkpoint-2").mkdir()
    log = [{"step": 2, "loss": 2.0}]
    (run_dir / "trainer_state.json").unlink()
    (run_dir / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    found = examine(run_dir)
    assert found["curves"]["training"] == log
    assert "The curves end at step 2 of 4" in found["notes"][0]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": [0], "text": ["a"]}, "it has no label, prediction, logits"),
        (
            {"id": [0, 1], "label": [[1], [1, 2]], "prediction": [[1], [1]], "logits": [[0.1]] * 2},
            "same shape",
        ),
    ],
)
def test_answers_of_another_kind_are_said_and_left_out(run_dir, columns, reason):
    pq.write_table(pa.table(columns), run_dir / "predictions" / "validation.parquet")
    found = examine(run_dir)
    assert found["splits"] == {} and reason in found["notes"][0]
    assert "accuracy" in report(run_dir)[1]


def test_dollar_signs_of_labels_are_no_mathematics(run_dir):
    named = {"id2label": {"0": r"$\frac{$", "1": "$5"}}
    (run_dir / "model" / "config.json").write_text(json.dumps(named))
    assert tuple(report(run_dir)[0]["labels"]) == (r"$\frac{$", "$5")


@pytest.mark.parametrize(
    ("labels", "ticks"),
    [
        (("no", "été Ж"), ["no", "été Ж"]),
        (("猫", "yes\nno"), ["#0", "yes no"]),
        (("\U000e0041", "🙂 $5"), ["#0", "#1"]),
    ],
)
def test_labels_that_no_font_has_are_numbers_in_pictures(run_dir, labels, ticks, monkeypatch):
    named = {"id2label": dict(enumerate(labels))}
    (run_dir / "model" / "config.json").write_text(json.dumps(named))
    here = pictures.font_of
    monkeypatch.setattr(pictures, "font_of", lambda c: None if c in "猫🙂" else here(c))
    saved, png = [], pictures.png
    monkeypatch.setattr(pictures, "png", lambda figure: saved.append(figure) or png(figure))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that is missing
        facts, text = report(run_dir)
    assert [tick.get_text() for tick in saved[-1].axes[0].get_xticklabels()] == ticks
    lacking = any(tick.startswith("#") for tick in ticks)
    assert text.count("No font of this machine has") == lacking == len(facts["notes"])


def test_a_font_of_the_machine_serves_what_matplotlibs_own_lacks():
    only = "\u2c7c"  # a letter of phonetics
    assert pictures.font_of("a") == "DejaVu Sans" and pictures.font_of("\U000e0041") is None
    with pictures.letters(["a", only]):
        families = matplotlib.rcParams["font.family"]
    assert families[:2] == ["sans-serif", "DejaVu Sans"]
    assert pictures.drawable("a\U000e0041 $") == r"a\U000e0041 \$"


def test_a_curve_of_one_point_has_one_end(run_dir):
    log = [{"step": 4, "loss": 1.0}, {"step": 4, "eval_loss": 1.5, "eval_accuracy": 0.625}]
    (run_dir / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert "training loss 1.0000 at step 4\naccuracy 0.6250 at step 4\n" in report(run_dir)[1]


def test_of_reinforcement_the_rewards_are_followed_and_where_it_began(run_dir):
    """Its loss is about 0 whatever is learnt."""
    logged = [
        {"loss": 0.0, "step": step, "reward": step / 10, "kl": step / 100, "entropy": 1 / step}
        for step in (2, 4)
    ]
    scores = {"accuracy": 0.25, "n": 8}
    (run_dir / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
    found = read_json(run_dir / "results.json")
    found["start"] = {"splits": {next(iter(found["splits"])): scores}}
    (run_dir / "results.json").write_text(json.dumps(found))
    facts, text = report(run_dir)
    lines = text.splitlines()
    assert "reward 0.2000 at step 2 to 0.4000 at step 4" in lines
    assert "kl 0.0200 at step 2 to 0.0400 at step 4" in lines
    assert "entropy 0.5000 at step 2 to 0.2500 at step 4" in lines
    assert not any(line.startswith("training loss") for line in lines)
    assert any(", start" in line and "0.2500" in line for line in lines)
    assert list(facts["start"].values()) == [scores]


def test_a_regression_is_told_by_its_residuals(run_dir):
    label, said = [0.0, 1.0, 2.0, 3.0], [0.5, 1.0, 2.0, 1.0]
    where = run_dir / "predictions"
    predictions(where / "validation.parquet", range(4), label, said, [[v] for v in said])
    taught = [0.0, 1.5, 2.0, 3.0]
    predictions(
        where / "teacher_validation.parquet", range(4), label, taught, [[v] for v in taught]
    )
    found = examine(run_dir)["splits"]["validation"]
    assert found["residuals"]["mean"] == pytest.approx((0.5 - 2) / 4)
    assert found["residuals"]["mean absolute"] == pytest.approx(2.5 / 4)
    assert [error["id"] for error in found["errors"]][:2] == [3, 0]
    counts = found["teacher"]["counts"]
    assert counts == {"the student closer": 1, "the teacher closer": 2, "equally close": 1}
    assert "calibration" not in found and report(run_dir)


def test_logits_that_are_no_numbers_do_not_count(run_dir):
    where = run_dir / "predictions" / "validation.parquet"
    nan = float("nan")
    predictions(where, range(2), [0, 1], [0, 0], [[nan, nan], [2.0, 0.0]])
    found, _ = report(run_dir)
    json.dumps(found, allow_nan=False)  # NaN is not JSON
    assert found["splits"]["validation"]["calibration"]["n"] == 1


def test_the_files_go_where_they_are_asked_for_or_it_is_said(run_dir, tmp_path):
    _, told = report(run_dir, tmp_path / "out")
    names = {"report.md", "report.png", "report_validation.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert all(name in told for name in names)
    for name in names - {"report.md"}:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in (tmp_path / "out" / "report.md").read_text()
    assert not names & {path.name for path in run_dir.iterdir()}
    with pytest.raises(UserError, match=r"--out .*: File exists"):
        report(run_dir, tmp_path / "out" / "report.md")
    (run_dir / "report.md").mkdir()  # which stops root too
    _, told = report(run_dir)
    assert "not written" in told and "--out DIR" in told and "accuracy" in told


def test_the_verb_tells_a_run_from_a_sweep(run_dir, capsys):
    assert main(["report", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["headline"]["value"] == 0.625
    assert main(["report", str(run_dir)]) == 0
    assert "calibration error (ECE, 15 bins)" in capsys.readouterr().out


def test_a_better_evaluation_that_no_checkpoint_kept_is_said(run_dir):
    metadata = read_json(run_dir / "run_metadata.json")
    metadata["config"]["trainer"]["load_best_model_at_end"] = True
    (run_dir / "run_metadata.json").write_text(json.dumps(metadata))
    for best, said in ((0.625, False), (0.75, True)):
        state = {"status": "finished", "best_value": best}
        (run_dir / "training_state.json").write_text(json.dumps(state))
        assert ("An evaluation in training gave" in str(examine(run_dir)["notes"])) is said


def test_a_run_that_is_not_finished_is_refused(run_dir):
    (run_dir / "training_state.json").write_text(json.dumps({"status": "failed"}))
    with pytest.raises(UserError, match="no finished run"):
        examine(run_dir)


@pytest.mark.slow
def test_a_run_keeps_its_curve_and_its_teachers_answers(toy_run):
    never = ("trainer.save_strategy=no", "trainer.load_best_model_at_end=false")
    few = ("trainer.max_steps=6", "trainer.logging_steps=2", *never)
    teacher = toy_run("trainer.num_train_epochs=1", at="teacher")
    settings = ("mode=kd", "mode.gate=off", f"teacher.path={teacher}", *few)
    taught = toy_run(*settings, at="taught")
    found = examine(taught)
    assert [entry["step"] for entry in found["curves"]["training"]] == [1, 2, 4, 6]
    assert found["notes"] == []
    answers = read_predictions(taught / "predictions" / "teacher_validation.parquet")
    theirs = read_json(taught / "run_metadata.json")["teacher"]["splits"]["validation"]
    assert answers.right.mean() == pytest.approx(theirs["accuracy"])
    own = read_predictions(teacher / "predictions" / "validation.parquet")
    assert np.allclose(answers.logits, own.logits, atol=1e-4)
    counts = found["splits"]["validation"]["teacher"]["counts"]
    assert sum(counts.values()) == len(own.id) and "texts" in str(found["splits"])
    control = toy_run(*settings, "mode.alpha=0", at="control")
    assert not (control / "predictions" / "teacher_validation.parquet").exists()
