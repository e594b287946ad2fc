"""The console is readable; the state file follows training."""

import json
import logging
import os
import signal

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from forge.training.callbacks import Console


def lines(caplog, tmp_path, logs):
    caplog.set_level(logging.INFO, "forge")
    console = Console()
    state = TrainerState(global_step=50, max_steps=100)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    console.on_train_begin(arguments, state, TrainerControl())
    console.on_log(arguments, state, TrainerControl(), logs=logs)
    return [record.message for record in caplog.records]


def test_a_log_step_is_one_line(caplog, tmp_path):
    (line,) = lines(caplog, tmp_path, {"loss": 0.51234, "learning_rate": 3e-4, "epoch": 0.5})
    assert line.startswith("step 50/100 | epoch 0.50 | loss 0.5123 | learning_rate 3.00e-04 | ")
    assert line.endswith("examples/s")


def test_an_evaluation_names_its_metrics_only(caplog, tmp_path):
    (line,) = lines(caplog, tmp_path, {"eval_accuracy": 0.9, "eval_runtime": 3.0, "epoch": 1.0})
    assert line == "step 50/100 | epoch 1.00 | evaluation accuracy 0.9000"


def test_the_end_is_left_to_the_table(caplog, tmp_path):
    assert lines(caplog, tmp_path, {"train_runtime": 1.0}) == []
    assert lines(caplog, tmp_path, {"test_loss": 1.0}) == []


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(toy_run, monkeypatch, tmp_path):
    """Also when a signal asks for a checkpoint of a spoilt step."""
    from forge.errors import Failure
    from forge.training.trainer import Trainer

    compute, rows = Trainer.compute_loss, []

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = compute(self, model, inputs, *args, **kwargs)
        if model.training and self.state.global_step >= 3:
            if not rows:
                os.kill(os.getpid(), signal.SIGTERM)
            rows.append(self.last_ids.tolist())
            return loss * float("nan")
        return loss

    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)
    every = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.eval_strategy=no")
    with pytest.raises(Failure, match=r"the loss was nan for 3 steps.*checkpoint-2; lower") as told:
        toy_run(*every, "trainer.load_best_model_at_end=false", "trainer.max_steps=9")
    assert ", ".join(map(str, rows[-1])) in str(told.value)
    state = json.loads((tmp_path / "run" / "training_state.json").read_text())
    assert state["status"] == "failed"
    assert [path.name for path in (tmp_path / "run").glob("*-[0-9]*")] == ["checkpoint-2"]
