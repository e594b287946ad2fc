"""Import paths of earlier versions stand for today's, wherever they were written."""

import json

import pytest
from hydra import compose

from forge.config.check import build, check
from forge.config.compose import composing
from forge.config.moved import MOVED, current, with_current_targets
from forge.config.schema import to_config
from forge.records.files import read_json
from forge.records.record import plain

OLD = [  # what conf/ of the version before the rooms named
    "forge.callbacks.Console",
    "forge.callbacks.NanGuard",
    "forge.data.load",
    "forge.generation.Generation",
    *(f"forge.losses.{name}" for name in ("Attention", "DIST", "DKD", "Hidden", "KL", "MSE")),
    *(f"forge.rewards.{name}" for name in ("Classifier", "Costs", "Metric", "exact", "format")),
    *(f"forge.rewards.{name}" for name in ("length", "numeric")),
    *(f"forge.tasks.{name}" for name in ("Classification", "Regression", "from_files")),
    "forge.toy.nli",
    "forge.toy_math.additions",
    "forge.toy_math.problems",
    "forge.tracking.tensorboard",
    "forge.tracking.wandb",
    *(f"forge.modes.{mode}.trainer" for mode in ("sft", "kd", "rl")),
]


@pytest.mark.parametrize("path", OLD)
def test_what_an_earlier_version_named_is_found(path):
    assert check({"_target_": path, "_partial_": True}, "here")


@pytest.mark.parametrize("path", [*MOVED, *OLD])
def test_todays_path_is_not_moved_again(path):
    assert current(current(path)) == current(path)


def test_other_paths_stay():
    for path in ("torch.nn.Linear", "forge.tracking.wandb.wandb", "my_losses.KL", "forge.losses"):
        assert current(path) == path


def test_targets_are_replaced_at_every_depth_in_a_copy():
    node = {"a": [{"_target_": "forge.losses.KL"}], "b": "forge.losses.KL", "_target_": None}
    todays = {**node, "a": [{"_target_": "forge.distillation.losses.KL"}]}
    assert with_current_targets(node) == todays
    assert node["a"][0]["_target_"] == "forge.losses.KL"


def test_a_nested_old_target_is_built():
    loss = {"_target_": "forge.losses.KL", "temperature": 3.0}
    node = {"_target_": "forge.modes.kd.trainer", "_partial_": True, "loss": {"kl": loss}}
    mode = build(check(node, "mode"), "mode")
    assert type(mode.keywords["loss"]["kl"]).__module__ == "forge.distillation.losses"


def test_a_users_old_target_is_todays_in_config_and_record():
    with composing():
        old = compose("config", ["task=toy", "task._target_=forge.tasks.Classification"])
        now = compose("config", ["task=toy"])
    assert to_config(old) == to_config(now)
    assert plain(old) == plain(now)


def test_a_recorded_config_is_read_with_todays_targets(tmp_path):
    file = tmp_path / "run_metadata.json"
    file.write_text(json.dumps({"config": {"task": {"_target_": "forge.generation.Generation"}}}))
    assert read_json(file)["config"]["task"]["_target_"] == current("forge.generation.Generation")
