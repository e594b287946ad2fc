"""Any number of labels a row: how they are read, judged, learnt, taught and rewarded."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List
from sklearn.metrics import f1_score

from forge.commands.evaluate import evaluate
from forge.commands.export import export
from forge.commands.predict import predict
from forge.data import sources
from forge.data.toy_topics import DENIED, NAMES, TOPICS, topics
from forge.errors import Preempted, UserError
from forge.records.files import read_json
from forge.reinforcement import sets
from forge.reinforcement.grpo import draw
from forge.reinforcement.rewards import Rewards
from forge.results.comparison import side_by_side
from forge.results.run_report import report
from forge.tasks.kinds import text_labels
from forge.tasks.labels import Labels
from tests.support.runs import results, weights
from tests.support.stopping import RUN, assert_same

NOTES = ("task=toy_topics", "task.dataset.train=320", "task.dataset.validation=60", "model=tiny",
         "model.config.num_hidden_layers=1", "model.config.hidden_size=16",
         "model.config.intermediate_size=16", "precision=fp32")  # fmt: skip
FAST = ("trainer.learning_rate=3e-3", "trainer.num_train_epochs=1", "mode.gate=off")


def read(values, separator=None, labels=None, column="labels"):
    answer = Labels([column], labels, separator)
    return answer, answer.rows({column: values}, {}, "train")["labels"]


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        ([["b", "a"], [], None, ["c"]], None),
        (["b;a", "", None, "c"], ";"),
        (["['b', 'a']", "[]", None, '["c"]'], None),
    ],
)
def test_lists_and_separated_texts_are_read_alike(values, separator):
    answer, rows = read(values, separator)
    assert answer.labels == ("a", "b", "c")
    assert rows == [[1, 1, 0], [0, 0, 0], None, [0, 0, 1]]


def test_a_column_for_each_label():
    answer = Labels(["rude", "spam"])
    columns = {"rude": ["1", "0", "yes", "NA"], "spam": [0.0, 1, False, 1]}
    assert answer.rows(columns, {}, "train")["labels"] == [[1, 0], [0, 1], [1, 0], None]
    with pytest.raises(UserError, match="2 is neither"):
        answer.rows({"rude": [2], "spam": [0]}, {}, "train")


def test_a_name_alone_is_no_list_and_an_unknown_one_is_refused():
    with pytest.raises(UserError, match=r"task\.separator"):
        read(["a", "b"])
    with pytest.raises(UserError, match=r"c \(first in row 2\) not among"):
        read([["a", "b"], [], ["c"]], labels=["a", "b"])


def test_class_labels_of_a_dataset_are_names():
    features = Features({"labels": List(ClassLabel(names=["joy", "anger"]))})
    rows = Dataset.from_dict({"labels": [[1, 0], []]}, features=features)
    assert sources.read({"train": rows}, "train", ["labels"]) == {"labels": [["anger", "joy"], []]}


def test_the_loss_is_binary_cross_entropy_and_the_threshold_is_of_probabilities():
    answer = Labels(["labels"], ["a", "b", "c"], threshold=0.6)
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5, 3))
    decisions = answer.decisions(logits, {"labels": labels})
    loss = answer.loss(decisions) / answer.items({"labels": labels})
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double())
    assert abs(float(loss) - float(wanted)) < 1e-6
    assert answer.predict(np.array([[0.5, 0.4, -9]])).tolist() == [[1, 0, 0]]  # 0.62, 0.599


def test_several_models_are_averaged_label_by_label():
    answer = Labels(["labels"], ["a", "b"])
    logits = torch.tensor([[[2.0, -1.0]], [[0.0, 3.0]]])
    mean = answer.average(logits, torch.tensor([0.25, 0.75])).sigmoid()
    wanted = 0.25 * logits[0].sigmoid() + 0.75 * logits[1].sigmoid()
    assert torch.allclose(mean, wanted, atol=1e-6)


def task(**settings):
    metrics = ["f1_macro", "f1_micro", "f1_samples", "subset_accuracy", "empty"]
    given = {"dataset": lambda: topics(train=40, validation=30), "text": "text"}
    return text_labels(**given, metrics=metrics, headline="f1_macro", **settings)


def test_metrics_are_scikit_learns_and_the_commonest_set_is_the_baseline():
    toy = task(labels=list(NAMES))
    rows = toy.load()["validation"]
    labels, logits = np.array(rows["labels"]), np.random.default_rng(0).normal(size=(30, 6))
    scores, given = toy.judge(logits, labels), logits >= 0
    for average in ("macro", "micro"):
        wanted = f1_score(labels, given, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(wanted)
    assert scores["subset_accuracy"] == (labels == given).all(1).mean()
    assert scores["empty"] == (~given.any(1)).mean()
    assert len(np.unique(toy.answer.predict(toy.answer.baseline(labels)), axis=0)) == 1


def test_metrics_of_one_label_and_of_several_are_told_apart():
    with pytest.raises(UserError, match="matthews"):
        text_labels(dataset=dict, text="text", metrics=["matthews_correlation"],
                    headline="matthews_correlation")  # fmt: skip


def test_a_denied_topic_is_none_of_the_labels():
    rows = topics(train=300, validation=10)["train"]
    for text, labels in zip(rows["text"], rows["labels"], strict=True):
        for name in NAMES:
            forms = [form.format(word) for form in DENIED for word in TOPICS[name].split()]
            assert not (name in labels and any(form in text for form in forms))
    assert topics(train=300, validation=10)["train"]["text"] == rows["text"]


def test_rewards_of_sets():
    pairs = {"completions": [["a", "b"], [], ["c"]], "label": [["a"], [], ["a"]]}
    assert sets.f1(**pairs) == [pytest.approx(2 / 3), 1, 0]
    assert sets.jaccard(**pairs) == [0.5, 1, 0]
    assert sets.Costs(1, 2, {"a": 3})(**pairs) == [-1, 0, -7]


def test_weights_of_labels_are_of_labels_that_there_are():
    costs = sets.Costs(by_label={"RUDE": 3.0, True: 2.0})
    called = Rewards({"label_costs": costs}, {})
    called.bind(["rude", "true"], ["id", "label"], several=True)
    assert costs([["rude", "true"]], label=[[]]) == [-5.0]
    with pytest.raises(UserError, match=r"by_label: the task has no label rud; did you mean rude"):
        sets.Costs(by_label={"rud": 3.0}).bind(["rude", "true"])


def test_a_decision_is_drawn_whatever_others_a_row_has():
    two = np.array([[[0.5, 0.5], [0.2, 0.8]]])
    assert (draw(two[:, :1], [7], 3, 0, 8) == draw(two, [7], 3, 0, 8)[:, :1]).all()
    drawn = draw(np.tile(two, (2000, 1, 1)), list(range(2000)), 0, 0, 4)
    assert np.allclose(drawn.mean((0, 2)), [0.5, 0.8], atol=0.02)


def test_distilled_at_alpha_0_is_fine_tuned_and_stored_answers_are_live_ones(launch, tmp_path):
    teacher = launch(*NOTES, *FAST[:2], at="teacher")
    taught = (*NOTES, *FAST, "mode=kd", f"teacher.path={teacher}")
    plain = weights(launch(*NOTES, *FAST[:2], at="sft"))
    zero = weights(launch(*taught, "mode.alpha=0", at="zero"))
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    stored, live = (weights(launch(*taught, f"mode.cache={c}", at=c)) for c in ("true", "false"))
    assert all(torch.allclose(stored[name], live[name], atol=1e-4) for name in stored)
    compared = side_by_side([tmp_path / "teacher", tmp_path / "true"])
    assert compared["pairs"][0]["n"] == 60
    assert report(teacher)
    assert "food" in (teacher / "report.md").read_text()
    answer = predict([teacher], [["we spoke of the bread."]])["rows"][0]["predictions"][0]
    chosen = [name for name, share in answer["probabilities"].items() if share >= 0.5]
    assert answer["labels"] == chosen


def test_losses_that_compare_labels_of_a_row_are_refused(launch, tmp_path):
    with pytest.raises(UserError, match="mode/loss=dkd"):
        launch(*NOTES, *FAST, "mode=kd", "mode/loss=dkd", f"teacher.path={tmp_path}")


@pytest.mark.parametrize("reward", ["label_f1", "jaccard", "exact"])
def test_reinforced_by_rewards_of_sets(launch, reward):
    run_dir = launch(*NOTES, *FAST, "mode=rl", f"mode/reward={reward}", "trainer.max_steps=2")
    assert 0 <= results(run_dir)["start"]["reward"]["reward"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("mode=rl", "mode.gate=off", "mode.num_iterations=2")])
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(launch, stop_at, settings):
    run = (*NOTES, *settings, *RUN)
    whole = launch(*run, at="whole")
    stop_at(13)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))


def test_an_adapter_and_an_export(launch):
    base = launch(*NOTES, *FAST[:2], at="base")
    small = launch(*NOTES[:3], f"model.path={base}", "model.lora.r=2", *FAST[:2], at="lora")
    assert all("lora" in name or "classifier" in name for name in weights(small))
    assert export(base)["difference"] < 1e-4
    card = (base / "model" / "README.md").read_text()
    assert "text-classification" in card
    assert "sigmoid" in card


def test_rewards_of_one_label_are_refused(launch):
    with pytest.raises(UserError, match="label_f1"):
        launch(*NOTES, *FAST, "mode=rl", "mode/reward=metric")


def test_a_tuned_threshold_is_kept_with_the_model(launch):
    run_dir = launch(*NOTES, *FAST[:2], "task.threshold=tuned", at="tuned")
    kept = read_json(run_dir / "model" / "config.json")["threshold"]
    plain = launch(*NOTES, *FAST[:2], at="plain")
    scores = [results(run)["splits"]["validation"]["f1_macro"] for run in (run_dir, plain)]
    assert kept != 0.5 and scores[0] > scores[1]
    answer = predict([run_dir], [["we spoke of the bread."]])["rows"][0]["predictions"][0]
    assert answer["labels"] == [n for n, p in answer["probabilities"].items() if p >= kept]
    again = evaluate(run_dir, [])["splits"]["validation"]["f1_macro"]
    assert again == pytest.approx(scores[0])
    assert f">= {kept:g}" in (run_dir / "model" / "README.md").read_text()
