"""Rewards and stops for language models that draw."""

import os
import signal

import pytest
import torch

from forge.errors import Preempted
from forge.records.files import read_json
from forge.training.trainer import Trainer
from tests.support.runs import weights
from tests.support.stopping import assert_same_logs
from tests.support.texts import NOTHING_SAVED, TINY

LETTERS = ("mode/reward=function", "mode.reward.function._target_=tests.support.drawing.letters")
PLAIN = (
    *TINY,
    "mode=rl",
    "trainer.max_steps=4",
    "trainer.logging_steps=1",
    "trainer.per_device_train_batch_size=16",
    "task.dataset.validation=20",
    "task.max_new_tokens=6",
)


RL = (*PLAIN, *LETTERS)
ONCE = (*RL, *NOTHING_SAVED)


def history(run_dir):
    """What was logged of training."""
    rows = read_json(run_dir / "trainer_state.json")["log_history"]
    return [row for row in rows if "loss" in row]


def check_same_bits(whole, parts):
    """Of the weights, and of all that was logged but the time."""
    assert all(torch.equal(w, weights(parts)[name]) for name, w in weights(whole).items())
    for one, other in zip(history(whole), history(parts), strict=True):
        assert {**one, "step_time": 0} == {**other, "step_time": 0}
    assert_same_logs(whole, parts)


def check_stopped(launch, stop_after, step, *run):
    """A run that is stopped after a step ends, resumed, with the bits of an undisturbed one."""
    whole = launch(*run, at="whole")
    stop_after(step)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    check_same_bits(whole, launch(*run, at="stopped"))


def letters(completions, *, prompt, label, id):
    """The share of small letters."""
    assert len(completions) == len(prompt) == len(label) == len(id)
    return [sum("a" <= c <= "z" for c in text) / max(len(text), 1) for text in completions]


@pytest.fixture
def stop_after(monkeypatch):
    """Ask a run to stop during the update after a step."""
    train, sent = Trainer.training_step, []

    def at(step):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == step and not sent:
                sent.append(step)
                os.kill(os.getpid(), signal.SIGTERM)
            return train(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", training_step)

    return at
