"""A node is refused, in one line, unless it fits what it calls."""

import pytest

from forge.config.check import build, check
from forge.config.schema import to_config
from forge.errors import UserError


def callee(*, size: int, rate: float = 0.1, name: str | None = None) -> dict:
    return {"size": size, "rate": rate, "name": name}


def node(**settings):
    return {"_target_": "tests.config.test_compose.callee", **settings}


def test_build_calls_the_target():
    assert build(check(node(size=3), "here"), "here") == {"size": 3, "rate": 0.1, "name": None}


def test_switches_become_booleans_in_a_copy():
    arguments = {"_target_": "transformers.TrainingArguments", "use_cpu": "on", "output_dir": "x"}
    below = node(size=1, name=arguments)
    assert check(below, "here")["name"]["use_cpu"] is True
    assert check({**arguments}, "trainer")["use_cpu"] is True
    assert arguments["use_cpu"] == "on" and below["name"] is arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 1, "nmae": "x"}, r"here\.nmae: .*; did you mean name\?"),
        ({"size": 1, "completely_else": 1}, r"here\.completely_else: .*; known: size, rate, name"),
        ({}, r"here\.size is needed"),
        ({"size": "abc"}, r"here\.size=abc: .*integer"),
        ({"size": 1, "rate": "fast"}, r"here\.rate=fast: .*number"),
        ({"size": 1, "name": [1]}, r"here\.name=\[1\]: .*string"),
        ({"size": 2.5}, r"here\.size=2\.5: .*integer"),
    ],
)
def test_misfits_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        check(node(**settings), "here")


def two(*, rate: float, size: int) -> None: ...


def test_what_is_missing_is_told_at_once():
    with pytest.raises(UserError, match=r"here\.rate, here\.size are needed by .*rate=… here\.siz"):
        check({"_target_": "tests.config.test_compose.two"}, "here")


def test_values_that_are_not_given_are_told_at_once(composed):
    missing = r"task\.files\.train, task\.files\.validation, task\.text have no value"
    with pytest.raises(UserError, match=missing):
        to_config(composed("task=files"))
    with pytest.raises(UserError, match=r"task\.text has no value: give task\.text=…"):
        to_config(composed("task=files", "task.files.train=a", "task.files.validation=b"))


def test_any_setting_of_a_task_is_given_without_a_plus(composed):
    cfg = to_config(composed("task=toy", "task.unlabelled_split=more", "task.dataset.seed=3"))
    assert check(cfg.task, "task")["unlabelled_split"] == "more"
    cfg = to_config(composed("task=toy", "task.unlabeled_split=more"))
    with pytest.raises(UserError, match=r"task\.unlabeled_split: .*did you mean unlabelled_split"):
        check(cfg.task, "task")


def test_nested_nodes_are_checked():
    with pytest.raises(UserError, match=r"outer\.name\.siez"):
        check(node(size=1, name=node(siez=1)), "outer")


@pytest.mark.parametrize(
    "target", ["tests.config.test_compose.no_such", "no_such_module.x", "", None]
)
def test_a_target_that_cannot_be_imported_is_named(target):
    with pytest.raises(UserError, match="here"):
        check({"_target_": target}, "here")


def test_a_partial_may_leave_arguments_for_later():
    assert build(node(_partial_=True), "here")(size=1)["size"] == 1


def test_training_arguments_are_checked_before_they_are_made():
    arguments = {"_target_": "transformers.TrainingArguments"}
    with pytest.raises(UserError, match=r"trainer\.lerning_rate: .*did you mean learning_rate"):
        check({**arguments, "lerning_rate": 1}, "trainer")
    with pytest.raises(UserError, match=r"trainer\.max_steps=abc"):
        check({**arguments, "max_steps": "abc"}, "trainer")


@pytest.mark.parametrize("mode", ["sft", "kd", "rl"])
def test_a_mode_takes_its_own_settings_only(mode):
    """The other arguments of `trainer` are what a run gives it, not settings."""
    target = {"_target_": f"forge.modes.{mode}.trainer", "_partial_": True}
    with pytest.raises(UserError, match=r"mode\.train_dataset: .* has no such set") as caught:
        check({**target, "train_dataset": 1}, "mode")
    assert "prepared" not in str(caught.value)


def denied() -> None:
    raise PermissionError(13, "Permission denied", "/.cache")


def test_a_cache_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match=r"task: .*'/\.cache'; .*HF_HOME"):
        build({"_target_": f"{__name__}.denied"}, "task")
