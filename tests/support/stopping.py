"""Runs that are stopped, and whether what goes on is the same to the bit."""

import os
import signal
import subprocess
import time
from multiprocessing import active_children

import pyarrow.parquet as pq
import pytest

from forge.records import curve, samples
from forge.results.equality import differences
from forge.training.trainer import Trainer

STEPS = ("trainer.num_train_epochs=2", "trainer.logging_steps=5", "trainer.eval_strategy=no")
OFTEN = ("trainer.save_strategy=steps", "trainer.save_steps=7", "+trainer.adam_beta1=0.8")
RUN = (*STEPS, *OFTEN, "trainer.load_best_model_at_end=false")


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


def assert_same(one, other):
    """Weights, optimizer, random states, curve, results and predictions, to the bit."""
    assert next(differences(one, other), None) is None
    answers = [pq.read_table(r / "predictions" / "validation.parquet") for r in (one, other)]
    assert answers[0].equals(answers[1])
    assert_same_logs(one, other)


def assert_same_logs(one, other):
    """Each log once, and what was drawn; the time aside."""
    logs = [[plain(entry) for entry in curve.read(run)[0]] for run in (one, other)]
    assert logs[0] == logs[1]
    drawn = [{s: samples.read(run, s) for s in samples.steps(run)} for run in (one, other)]
    assert drawn[0] == drawn[1]


def plain(entry):
    timed = ("seconds", "runtime", "per_second", "total_flos", "step_time", "memory")
    return {key: value for key, value in entry.items() if not key.endswith(timed)}
