"""Runs that are stopped, and whether what goes on is the same to the bit."""

import json
import os
import signal
import subprocess
import time
from multiprocessing import active_children

import pyarrow.parquet as pq
import pytest
import torch

from forge.records import checkpoints
from forge.training.trainer import Trainer
from tests.support.runs import results

STEPS = ("trainer.num_train_epochs=2", "trainer.logging_steps=5", "trainer.eval_strategy=no")
OFTEN = ("trainer.save_strategy=steps", "trainer.save_steps=7", "+trainer.adam_beta1=0.8")
RUN = (*STEPS, *OFTEN, "trainer.load_best_model_at_end=false")
TIMED = ("runtime", "per_second", "flos")


@pytest.fixture
def stop_at(monkeypatch):
    """Send a signal in the middle of a training step, once, to this process and its children, as
    SLURM does."""

    def arrange(step, number=signal.SIGTERM):
        train, seen = Trainer.training_step, []

        def training_step(self, *args, **kwargs):
            if self.state.global_step == step - 1 and not seen:
                seen.append(step)
                children = [str(child.pid) for child in active_children()]
                if children:  # from elsewhere: torch takes its parent's for an orderly end
                    subprocess.run(["kill", f"-{int(number)}", *children], check=True)
                    time.sleep(0.3)  # for a death to be heard of
                os.kill(os.getpid(), number)
            return train(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", training_step)

    return arrange


def state(run_dir):
    """What must be equal to the bit: weights, optimizer, curve, results, predictions."""
    newest = next(iter(checkpoints.steps(run_dir).values()))
    history = [
        {k: v for k, v in row.items() if not any(word in k for word in TIMED)}
        for row in json.loads((newest / "trainer_state.json").read_text())["log_history"]
    ]
    splits = {
        name: {k: v for k, v in scores.items() if "second" not in k}
        for name, scores in results(run_dir)["splits"].items()
    }
    return {
        "weights": checkpoints.weights(run_dir / "model"),
        "optimizer": torch.load(newest / "optimizer.pt", weights_only=True)["state"],
        "history": history,
        "results": splits,
        "predictions": pq.read_table(run_dir / "predictions" / "validation.parquet").to_pylist(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def assert_same(one, other):
    a, b = state(one), state(other)
    for name in a:
        assert same(a[name], b[name]), name
