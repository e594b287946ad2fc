"""Every option of every group fits what it is composed with."""

from pathlib import Path

import pytest

from forge.config.check import check
from forge.config.compose import CONF, dotted_values
from tests.support.runs import options


def check_all(cfg):
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    for where in ("task", "mode", "trainer"):
        check(plain[where], where)
    check(plain["teacher"]["trainer"], "teacher.trainer")
    for name, node in plain["callbacks"].items():
        check(node, f"callbacks.{name}")
    return plain


@pytest.mark.parametrize("task", options("task"))
def test_every_task_fits_its_signature(composed, task):
    files = ("task.files.train=a.csv", "task.files.validation=b.csv")
    given = {"files": (*files, "task.text=[a]"), "files_lm": files, "files_images": files}
    given["files_audio"] = (*files, "task.seconds=1")
    check_all(composed(f"task={task}", *given.get(task, ())))


@pytest.mark.parametrize("mode", options("mode"))
def test_every_mode_fits_its_signature(composed, mode):
    check_all(composed(f"mode={mode}"))


@pytest.mark.parametrize("model", options("model"))
def test_every_model_is_a_student_and_a_teacher(composed, model):
    cfg = composed(f"model={model}", f"model@teacher={model}", "mode=kd")
    assert all(cfg.teacher[key] == value for key, value in cfg.model.items())
    assert cfg.model.path or cfg.model.config or cfg.model.init


@pytest.mark.parametrize("group", ["trainer", "callbacks", "experiment"])
def test_other_groups_fit_their_signatures(composed, group):
    for option in options(group):
        check_all(composed(f"{group}={option}"))


@pytest.mark.parametrize("loss", options("mode/loss"))
def test_losses_fit_their_signatures(loss):
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(CONF / "mode" / "loss" / f"{loss}.yaml"))
    assert list(node) == [loss]
    check(node[loss], loss)


@pytest.mark.parametrize("reward", options("mode/reward"))
def test_rewards_fit_their_signatures(composed, reward):
    given = {
        "costs": ["mode.reward.costs.matrix={a:{b:1},b:{a:2}}"],
        "format": ["mode.reward.format.pattern=a"],
        "classifier": ["mode.reward.classifier.path=DIR"],
        "function": ["mode.reward.function._target_=forge.reinforcement.rewards.exact"],
    }
    cfg = composed("mode=rl", f"mode/reward={reward}", *given.get(reward, []))
    assert list(check_all(cfg)["mode"]["reward"]) == [reward]


def test_tracking_fits_its_signature(composed):
    from omegaconf import OmegaConf

    for option in options("tracking"):
        node = OmegaConf.to_container(composed(f"tracking={option}").tracking)
        check(node, "tracking")


@pytest.mark.parametrize("launcher", ["slurm", "background"])
def test_launchers_imply_a_sweep(launcher):
    from hydra import compose

    cfg = compose("config", [f"launcher={launcher}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert cfg.hydra.launcher._target_ == "hydra_plugins.forge_launcher.SubmitLauncher"
    assert cfg.launcher.cluster in ("slurm", "local")


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_opens_by_saying_what_it_is(path: Path):
    first, second = [*path.read_text().splitlines(), ""][:2]
    line = second if first.startswith("# @package") else first
    assert line.startswith("# ") and len(line) > 20


def test_debug_trains_ten_steps_on_64_rows(composed):
    cfg = composed("trainer=debug")
    assert (cfg.trainer.max_steps, cfg.task.max_rows) == (10, 64)
    assert cfg.trainer.per_device_train_batch_size == 32


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        (("model=tiny",), 3e-4),
        (("model=distilbert",), 5e-5),
        (("model.path=bert-base-cased",), 5e-5),
        (("model=distilbert", "model.from_scratch=true"), 3e-4),
        (("model=distilbert", "model.lora.r=8"), 5e-4),
        (("trainer.learning_rate=1e-3",), 1e-3),
    ],
)
def test_learning_rate_follows_the_weights(composed, overrides, rate):
    assert composed(*overrides).trainer.learning_rate == rate


def test_glue_is_complete_with_its_official_metrics(composed):
    official = {
        "cola": "matthews_correlation",
        "sst2": "accuracy",
        "mrpc": "f1",
        "qqp": "f1",
        "stsb": "pearson",
        "mnli": "accuracy",
        "qnli": "accuracy",
        "rte": "accuracy",
        "wnli": "accuracy",
    }
    for task, headline in official.items():
        cfg = composed(f"task={task}")
        assert (cfg.task.headline, cfg.task.dataset.path) == (headline, "nyu-mll/glue")
        assert cfg.task.dataset.name == task
    assert list(composed("task=stsb").task.metrics) == ["pearson", "spearman"]


def test_dotted_values_names_every_leaf():
    assert dict(dotted_values({"a": {"b": 1}, "c": [2]})) == {"a": None, "a.b": 1, "c": [2]}
