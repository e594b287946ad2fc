"""Class weights, focal loss, label smoothing: their values, and that batches do not matter."""

import logging

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from forge.errors import UserError
from forge.records.files import read_json
from forge.tasks.decisions import Objective
from forge.tasks.label import Label
from forge.tasks.labels import Labels
from forge.tasks.number import Number
from forge.tasks.objective import balanced, check
from tests.support.processes import finish
from tests.support.runs import history

EACH = ("mode.class_weights=balanced", "mode.focal_gamma=2", "trainer.label_smoothing_factor=0.1")
ALL = ("mode.class_weights={entailment:1,neutral:0.5,contradiction:4}", *EACH[1:])
STEPS = ("trainer.max_steps=6", "trainer.logging_steps=1", "trainer.eval_strategy=no",
         "trainer.save_strategy=steps", "trainer.load_best_model_at_end=false",
         "trainer.train_sampling_strategy=random", "+model.config.hidden_dropout_prob=0",
         "+model.config.attention_probs_dropout_prob=0")  # fmt: skip
SEVERAL = ("task=toy_topics", "task.dataset.train=200", "task.dataset.validation=40", "model=tiny")
logits, labels = torch.randn(50, 3), torch.randint(3, (50,))
WEIGHTS = torch.tensor([0.5, 1.0, 7.0])


def mean(answer, logits, labels, objective):
    """As a training step divides."""
    batch = {"labels": labels}
    return answer.loss(answer.decisions(logits, batch), objective) / objective.weigh(labels).sum()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_smoothing_and_weights_are_torchs(smoothing, weights):
    answer, objective = Label("label", ["a", "b", "c"]), Objective(smoothing, 0.0, weights)
    known = {"weight": weights, "label_smoothing": smoothing}
    summed = answer.loss(answer.decisions(logits, {"labels": labels}), objective)
    assert torch.equal(summed, cross_entropy(logits, labels, reduction="sum", **known))
    wanted = cross_entropy(logits, labels, **known)
    torch.testing.assert_close(mean(answer, logits, labels, objective), wanted)


@pytest.mark.parametrize("gamma", [0.5, 2])
def test_focal_loss_is_that_of_the_paper(gamma):
    p = logits.softmax(-1)[range(50), labels]
    wanted = (-((1 - p) ** gamma) * p.log()).mean()  # equation 4
    answer = Label("label", ["a", "b", "c"])
    torch.testing.assert_close(mean(answer, logits, labels, Objective(gamma=gamma)), wanted)
    p, y = logits.sigmoid(), (logits + torch.randn(50, 3) > 0).float()
    wanted = (1 - torch.where(y > 0, p, 1 - p)) ** gamma
    wanted = (wanted * binary_cross_entropy_with_logits(logits, y, reduction="none")).mean()
    answer = Labels(["labels"], ["a", "b", "c"])
    torch.testing.assert_close(mean(answer, logits, y, Objective(gamma=gamma)), wanted)


def test_an_answer_that_is_quite_sure_has_a_gradient():
    sure = torch.tensor([[200.0, 0, 0]], requires_grad=True)
    mean(Label("l", ["a", "b", "c"]), sure, torch.tensor([0]), Objective(gamma=0.5)).backward()
    assert sure.grad.isfinite().all()


def test_weights_of_several_labels_are_of_what_is_given():
    y, given = torch.randint(2, (50, 3)), torch.tensor([2.0, 5.0, 9.0])
    weights = torch.stack([torch.ones(3), given], -1)
    losses = binary_cross_entropy_with_logits(logits, y.float(), pos_weight=given, reduction="sum")
    wanted = losses / (1 + (given - 1) * y).sum()
    found = mean(Labels(["l"], ["a", "b", "c"]), logits, y, Objective(weights=weights))
    torch.testing.assert_close(found, wanted)


def test_balanced_is_scikit_learns():
    y = [0] * 50 + [1] * 5 + [3] * 20
    answer = Label("label", ["a", "b", "c", "d"])
    weights = balanced(answer.counts(y))
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=np.array(y))
    np.testing.assert_allclose(weights[[0, 1, 3]], wanted)
    assert weights[2] == 1  # which no row has
    sets = np.random.default_rng(0).integers(2, size=(30, 2)) * [1, 0]
    found = balanced(Labels(["l"], ["a", "b"]).counts(sets.tolist()))
    wanted = compute_class_weight("balanced", classes=np.array([0, 1]), y=sets[:, 0])
    np.testing.assert_allclose(found[0], wanted)
    assert found[1].tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["mode=sft", "mode=kd"])
def test_accumulation_gives_the_step_of_the_whole_batch(toy_run, mode):
    settings, parts = (*STEPS, *ALL, mode), ("trainer.per_device_train_batch_size=4",)
    if mode == "mode=kd":
        teacher = toy_run(*STEPS, at="teacher")
        settings += (f"teacher.path={teacher}", "mode.gate=off")
    curves = [
        [row["loss"] for row in history(toy_run(*settings, *how, at=name))]
        for name, how in (
            ("whole", ("trainer.per_device_train_batch_size=16",)),
            ("parts", (*parts, "trainer.gradient_accumulation_steps=4")),
        )
    ]
    np.testing.assert_allclose(*curves, atol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_step_of_one(tmp_path):
    size = "trainer.per_device_train_batch_size="
    runs = {"one": (f"{size}16",), "two": (f"{size}8", "launcher=ddp")}
    for name, how in runs.items():
        code, _, err = finish(tmp_path / name, *STEPS[3:], *ALL, *how, "trainer.eval_strategy=no")
        assert code == 0, err
    curves = [[row["loss"] for row in history(tmp_path / name)] for name in runs]
    np.testing.assert_allclose(*curves, atol=1e-5)


def test_what_was_asked_is_said_and_recorded(toy_run, caplog):
    caplog.set_level(logging.INFO)
    skewed = ("task.dataset.contradictions=0.05", *EACH, "trainer.max_steps=2")
    run_dir = toy_run(*STEPS, *skewed, "task.metrics=[accuracy]", "task.headline=accuracy")
    loss = read_json(run_dir / "run_metadata.json")["loss"]
    assert loss["focal_gamma"] == 2 and loss["label_smoothing"] == 0.1
    weights = loss["class_weights"]
    assert weights["contradiction"] > 5 > 1 > weights["neutral"]
    (line,) = [m for m in caplog.messages if m.startswith("loss    cross-entropy")]
    assert f"contradiction {weights['contradiction']:.4g}" in line and "focal gamma 2" in line
    (advice,) = [m for m in caplog.messages if "accuracy hardly sees" in m]
    assert "task.metrics=[accuracy,f1_macro] task.headline=f1_macro" in advice


def test_several_labels_learn_with_weights_and_focal_loss(launch):
    settings = ("mode.class_weights=balanced", "mode.focal_gamma=2", *STEPS)
    run_dir = launch(*SEVERAL, *settings, "trainer.max_steps=2")
    weights = read_json(run_dir / "run_metadata.json")["loss"]["class_weights"]
    assert all(len(pair) == 2 and min(pair) > 0 for pair in weights.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("mode.class_weights={entailment:1,neutrall:2}",), "neutrall: no such label"),
        (("mode.class_weights={entailment:1,neutral:2}",), "none for contradiction"),
        (("mode.class_weights={entailment:-1}",), "more than 0"),
        (("mode.focal_gamma=-1",), "greater than or equal to 0"),
        (("trainer.label_smoothing_factor=1.5",), "between 0 and 1"),
        (("mode=rl", "mode.class_weights=balanced"), "mode/reward=costs"),
        (("mode=rl", "mode.focal_gamma=2"), "mode/reward=costs"),
        ((*SEVERAL, "trainer.label_smoothing_factor=0.1"), "each is decided by itself"),
        (("task=toy_math", "model=tiny_lm", "mode.class_weights=balanced"), "no classes"),
        (("mode.class_weights=balance",), "balanced, or {label"),
    ],
)
def test_what_has_no_meaning_is_one_line(launch, settings, message):
    with pytest.raises(UserError, match=message):
        launch("model=tiny", *settings)


@pytest.mark.parametrize("asked", [(0.1, None, 0), (0, "balanced", 0), (0, None, 2)])
def test_a_number_has_no_classes(asked):
    with pytest.raises(UserError, match="regression has no classes"):
        check(Number("score"), *asked)
