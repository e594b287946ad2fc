"""verify-resume says what differs, and that nothing does."""

import numpy as np
import pytest
import torch

from forge.commands.verify import main
from forge.errors import UserError
from forge.results.equality import unequal


def found(a, b):
    return list(unequal("x", a, b))


def test_every_difference_is_named_by_its_place():
    a = {"w": torch.zeros(3), "steps": [1, {"loss": 0.5, "step_time": 1.0}], "rng": np.ones(2)}
    same = {
        "w": torch.zeros(3),
        "steps": [1, {"loss": 0.5, "eval_runtime": 9.0}],
        "rng": np.ones(2),
    }
    assert found(a, same) == []
    other = {"w": torch.tensor([0, 0, 1.0]), "steps": [1, {"loss": 0.6}], "rng": np.zeros(2)}
    assert found(a, other) == [
        "x: w, 1 of 3 numbers, by at most 1",
        "x: steps[1]: loss: 0.5 and 0.6",
        "x: rng",
    ]
    assert found({"a": 1}, {"a": 1, "b": 2}) == ["x: b: None and 2"]


def test_a_run_needs_a_middle():
    with pytest.raises(UserError, match="--steps=3: at least 4"):
        main([], 3)


@pytest.mark.slow
def test_a_config_is_proven_to_resume(capsys):
    from tests.support.runs import SMALL, TOY

    assert main([*TOY, *SMALL], 12) == 0
    assert "equal   weights" in capsys.readouterr().out
