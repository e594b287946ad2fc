"""One of a row's options: how labels are read, judged, learnt, taught and rewarded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMultipleChoice

from forge.commands.evaluate import evaluate
from forge.commands.export import export
from forge.commands.predict import predict
from forge.data.toy_choices import choices
from forge.distillation.losses import DKD, KL, MSE, Outputs
from forge.errors import Preempted, UserError
from forge.inputs.choices import Choices
from forge.inputs.input import OPTIONS
from forge.reinforcement.grpo import draw
from forge.results.comparison import side_by_side
from forge.results.run_report import report
from forge.tasks.choice import Choice
from forge.tasks.decisions import MASKED, Objective
from tests.support.runs import results, snippet, weights, write_rows
from tests.support.stopping import RUN, assert_same

THREE = [["one", "two", "three"], ["three", "one"], ["two", "three", "one"]]
TINY = ("model=tiny", "model.config.num_hidden_layers=1", "model.config.hidden_size=16",
        "model.config.intermediate_size=16", "precision=fp32")  # fmt: skip
FAST = ("trainer.learning_rate=3e-3", "trainer.num_train_epochs=1")


def read(labels, options=THREE, columns=None, **settings):
    kind = Choices(context="context", options=["options"])
    answer = Choice("label", kind, **settings)
    given = {"context": ["c"] * len(options), "options": options}
    return answer, answer.rows({**given, "label": labels}, kind.rows(given, "train"), "train")


@pytest.mark.parametrize(
    ("labels", "reading"),
    [
        ([1, 1, 2], "index"),
        (["1", "1.0", 2.0], "index"),
        ([2, 2, 3], "number"),
        (["B", "b", "C"], "letter"),
        (["two", "one", "one"], "text"),
    ],
)
def test_labels_are_places_letters_or_texts(labels, reading):
    answer, rows = read(labels)
    assert rows["labels"] == [1, 1, 2]
    assert answer.reading == reading and answer.labels == ("0", "1", "2")
    assert answer.notes


def test_keys_name_options():
    keyed = [{"text": ["x", "y"], "label": ["1", "2"]}, {"text": ["x", "y"], "label": ["A", "B"]}]
    assert read(["2", "A"], keyed)[1]["labels"] == [1, 0]


@pytest.mark.parametrize("labels", [[0, 2, 1], ["A", "C", "B"], ["one", "two", "one"]])
def test_a_label_that_a_row_does_not_have_is_refused(labels):
    with pytest.raises(UserError, match=r"row 1 has 2 options, and its label .*task\.label_is"):
        read(labels)


def test_a_missing_label_is_no_label_and_a_reading_can_be_set():
    assert read([-1, None, 1])[1]["labels"] == [None, None, 1]
    assert read([1, 1, 1], reading="number")[1]["labels"] == [0, 0, 0]


def test_options_are_shuffled_by_a_seed_and_labels_with_them():
    options = [["a", "b", "c", "d"]] * 200
    (_, plain), (_, once), (_, again), (_, other) = (
        read([0] * 200, options, shuffle=seed) for seed in (None, 1, 1, 2)
    )
    assert plain["labels"] == [0] * 200 and once == again != other
    assert all(o[i] == "a" for o, i in zip(once["options"], once["labels"], strict=True))
    assert max(np.bincount(once["labels"])) < 80


def kept(logits, real):
    answer, _ = read([0], THREE[:1])
    return answer, answer.of_rows({"logits": torch.tensor(logits)}, {OPTIONS: torch.tensor(real)})


def test_what_is_no_option_is_never_chosen_drawn_or_likely():
    answer, logits = kept([[-500.0, -600.0], [1.0, 2.0]], [[True, True, False]] * 2)
    assert logits.shape == (2, 3)
    assert answer.predict(logits.numpy()).tolist() == [0, 1]
    likely = answer.probabilities(logits.numpy() / 10)
    assert (likely[:, 2] == 0).all() and np.allclose(likely.sum(1), 1)
    assert (draw(likely, [0, 1], 0, 0, 5000) < 2).all()
    for half in (torch.float16, torch.bfloat16):
        assert float(logits.to(half)[0, 2]) == MASKED


@pytest.mark.parametrize("loss", [KL(), MSE(), DKD()])
def test_a_teacher_teaches_the_same_of_what_options_there_are(loss):
    student, teacher = torch.randn(2, 2, requires_grad=True), torch.randn(2, 2)
    narrow = loss(Outputs(student), Outputs(teacher), {"labels": torch.tensor([0, 1])})
    real = {OPTIONS: torch.tensor([[True, True, False]] * 2)}
    answer, _ = read([0], THREE[:1])
    wide = loss(
        Outputs(answer.of_rows({"logits": student}, real)),
        Outputs(answer.of_rows({"logits": teacher}, real)),
        {"labels": torch.tensor([0, 1])},
    )
    share = 2 / 3 if isinstance(loss, MSE) else 1  # a mean over columns
    assert torch.allclose(wide, share * narrow, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad(wide, student)[0]).all()


def test_label_smoothing_is_over_a_rows_own_options():
    answer, logits = kept([[1.0, 2.0]], [[True, True, False]])
    batch = {"labels": torch.tensor([1])}
    loss = answer.loss(answer.decisions(logits, batch), Objective(0.1))
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor([[1.0, 2.0]]), batch["labels"], label_smoothing=0.1
    )
    assert torch.allclose(loss, wanted)


def test_the_toys_options_do_not_tell_the_answer_by_themselves():
    rows = choices(train=400, validation=40)["train"]
    assert rows["options"] == choices(train=400, validation=40)["train"]["options"]
    right = [options[label] for options, label in zip(rows["options"], rows["label"], strict=True)]
    every = [option for options in rows["options"] for option in options]
    assert all(every.count(option) == 4 * right.count(option) for option in set(every))
    for cue in (max, min):
        found = [cue(options, key=len) for options in rows["options"]]
        assert np.mean([a == b for a, b in zip(found, right, strict=True)]) < 0.3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of two to four options, in files."""
    folder = tmp_path_factory.mktemp("choices")
    for split, rows in choices(train=160, validation=40).items():
        cut = []
        for i, row in enumerate(rows):
            options = [row["options"][row["label"]], *row["options"]]
            options = list(dict.fromkeys(options))[: 2 + i % 3]
            place = i % len(options)
            options[0], options[place] = options[place], options[0]
            cut.append({"premise": row["premise"], "options": options, "label": place})
        write_rows(folder / f"{split}.jsonl", cut)
    return (
        "task=files_choice", f"task.files.train={folder}/train.jsonl", "task.context=premise",
        f"task.files.validation={folder}/validation.jsonl", "task.max_length=32", *TINY,
    )  # fmt: skip


def test_distilled_at_alpha_0_is_fine_tuned_and_stored_answers_are_live_ones(
    files, launch, tmp_path
):
    teacher = launch(*files, *FAST, at="teacher")
    taught = (*files, *FAST, "mode=kd", "mode.gate=off", f"teacher.path={teacher}")
    plain, zero = weights(teacher), weights(launch(*taught, "mode.alpha=0", at="zero"))
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    stored, live = (weights(launch(*taught, f"mode.cache={c}", at=c)) for c in ("true", "false"))
    assert all(torch.allclose(stored[name], live[name], atol=1e-4) for name in stored)
    assert side_by_side([tmp_path / "teacher", tmp_path / "true"])["pairs"][0]["n"] == 40
    shown = report(teacher) and (teacher / "report.md").read_text()
    assert "0: " in shown and "; 1: " in shown


def test_a_run_is_used(files, launch, tmp_path):
    run_dir = launch(*files, *FAST)
    typed = [["every dog runs"], ["some dog runs", "no dog runs"]]
    answer = predict([run_dir], typed)["rows"][0]["predictions"][0]
    odds = answer["probabilities"]
    assert list(odds) == ["0", "1"] and sum(odds.values()) == pytest.approx(1)
    assert odds[answer["label"]] == max(odds.values())
    file = next(word for word in files if "validation" in word).partition("=")[2]
    rows = predict([run_dir], file=Path(file))["rows"]
    judged = evaluate(run_dir, [f"task.files.validation={file}"])
    labels = [json.loads(line)["label"] for line in Path(file).read_text().splitlines()]
    found = [int(row["predictions"][0]["label"]) for row in rows]
    accuracy = np.mean(np.array(found) == labels)
    assert judged["splits"]["validation"]["accuracy"] == pytest.approx(accuracy)
    assert results(run_dir)["headline"]["value"] == pytest.approx(accuracy)
    assert export(run_dir)["difference"] < 1e-4
    card = (run_dir / "model" / "README.md").read_text()
    assert "pipeline(" not in card and "multiple-choice" in card
    exec(snippet(card, run_dir), {"print": lambda text: None})


def test_labels_are_places_so_no_head_is_matched_by_name(files, launch, tmp_path):
    base = launch(*files, *FAST, at="base")
    model = BertForMultipleChoice.from_pretrained(base / "model")
    model.config.id2label = {0: "yes", 1: "no", 2: "maybe", 3: "never", 4: "always"}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    assert isinstance(model.config, BertConfig)
    model.save_pretrained(base / "model")
    evaluation = evaluate(base, [])
    assert evaluation["splits"]["validation"]["accuracy"] == results(base)["headline"]["value"]
    run_dir = launch(
        *files[:4], "precision=fp32", f"model.path={base}", *FAST, "mode=kd", "mode.gate=off",
        f"teacher.path={base}", "model.lora.r=2", at="kd",
    )  # fmt: skip
    assert any("lora" in name for name in weights(run_dir))


def test_a_loss_that_compares_places_over_rows_is_refused(files, launch, tmp_path):
    with pytest.raises(UserError, match="mode/loss=dist"):
        launch(*files, *FAST, "mode=kd", "mode/loss=dist", f"teacher.path={tmp_path}")


def test_a_model_that_does_not_choose_is_refused(files, launch):
    with pytest.raises(UserError, match="no gpt2 chooses"):
        launch(*files[:4], *FAST, "model=tiny_lm", "model.config.model_type=gpt2")


@pytest.mark.parametrize("reward", ["exact", "metric"])
def test_reinforced(files, launch, reward):
    run_dir = launch(
        *files, *FAST, "mode=rl", "mode.gate=off", f"mode/reward={reward}", "trainer.max_steps=2"
    )
    assert results(run_dir)["train"]["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("mode=rl", "mode.gate=off", "mode.num_iterations=2")])
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(files, launch, stop_at, settings):
    run = (*files, *settings, *RUN)
    whole = launch(*run, at="whole")
    stop_at(7)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))
