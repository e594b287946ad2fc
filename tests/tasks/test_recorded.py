"""Whose code a recorded task names."""

import pytest
from omegaconf import OmegaConf

from forge.errors import UserError
from forge.tasks.recorded import require_own_code
from tests.support.runs import options


@pytest.mark.parametrize("task", options("task"))
def test_every_task_of_ours_is_read_back(composed, task):
    require_own_code(OmegaConf.to_container(composed(f"task={task}").task))


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system"},
        {"_target_": "forge.tasks.kinds.os.system"},
        {"_target_": "forge.tasks.kinds.text_label", "metrics": ["mine/metric.py"]},
        {"_target_": "forge.tasks.kinds.text_label", "dataset": {"_target_": "mine.rows"}},
    ],
)
def test_other_code_is_not_run(node):
    with pytest.raises(UserError):
        require_own_code(node)
