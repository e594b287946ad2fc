"""Why a run stopped: recorded, and said by `show`."""

import signal

import pytest
from transformers.trainer_callback import TrainerCallback

from forge.errors import Preempted
from forge.records.files import read_json
from forge.results.show import shown
from tests.support.runs import results
from tests.support.stopping import RUN

STEPS = ("trainer.eval_strategy=steps", "trainer.save_strategy=steps", "trainer.eval_steps=2",
         "trainer.save_steps=2", "trainer.learning_rate=0")  # fmt: skip

EARLY = ("callbacks=early_stopping", "callbacks.early_stopping.early_stopping_patience=2", *STEPS)


class Asks(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("no more paper")


def why(run_dir):
    """As recorded, and as shown."""
    reason = read_json(run_dir / "training_state.json")["reason"]
    assert dict(shown(run_dir))["stopped"] == reason
    return reason


def callback(name):
    return f"+callbacks.mine={{_target_:tests.training.test_ends.{name}}}"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("trainer.max_steps=2",), "trainer.max_steps=2 were done, at epoch 0.11"),
        (("trainer.num_train_epochs=0.1",), "trainer.num_train_epochs=0.1 were done, 2 steps"),
        (("trainer.num_train_epochs=0",), "there was nothing to train (0 steps or epochs)"),
        (
            EARLY,
            "early stopping: accuracy not better in 2 evaluations, at step 6 of 57, epoch 0.32",
        ),
        ((callback("Asks"),), "a callback asked for it, at step 3 of 57, epoch 0.16"),
    ],
)  # fmt: skip
def test_what_ended_the_training_is_known(toy_run, settings, reason):
    run_dir = toy_run(*settings)
    assert why(run_dir) == reason and "splits" in results(run_dir)


def test_a_signal_and_an_error_are_reasons_too(toy_run, stop_at, tmp_path):
    with pytest.raises(RuntimeError):
        toy_run(callback("Fails"), at="failed")
    assert why(tmp_path / "failed") == "RuntimeError: no more paper"
    stop_at(3)
    with pytest.raises(Preempted):
        toy_run(*RUN, at="stopped")
    assert why(tmp_path / "stopped") == f"signal {signal.SIGTERM.name}"
