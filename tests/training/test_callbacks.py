"""The console is readable; the state file follows training."""

import json
import logging
import os
import signal

import pyarrow.parquet as pq
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from forge.records import curve
from forge.records.record import Record
from forge.training import callbacks
from forge.training.callbacks import Console, duration


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
    assert line.startswith("step 50/100 | epoch 0.50 | loss 0.5123 | lr 3.00e-04 | ")
    assert line.endswith("examples/s")


def test_a_line_fits_whatever_is_logged(caplog, tmp_path):
    rewards = {f"rewards/{name}/mean": 0.5 for name in ("exact", "costs", "of_a_long_name")}
    logs = {"loss": 0.0, "reward": 0.3125, "reward_std": 0.4644, **rewards, "kl": 0.01,
            "frac_reward_zero_std": 0.03, "entropy": 1.08, "clip_ratio/region_mean": 0.0,
            "grad_norm": 0.3, "learning_rate": 3e-4, "epoch": 0.5}  # fmt: skip
    (line,) = lines(caplog, tmp_path, logs)
    assert len(line) <= 100
    for part in ("step 50/100", "reward 0.3125", "kl 0.0100", "lr 3.00e-04"):
        assert part in line.split(" | ")


def test_the_rate_of_a_warm_up_is_left_out_at_its_first_step(caplog, tmp_path):
    (line,) = lines(caplog, tmp_path, {"loss": 1.0, "learning_rate": 0.0, "epoch": 0.0})
    assert "lr" not in line and "examples/s" in line


def test_what_is_left_is_said_in_seconds_minutes_or_hours():
    assert [duration(s) for s in (99, 240, 9000)] == ["99 s", "4 min", "2.5 h"]


def test_more_metrics_than_fit_a_line_go_on_in_the_next(caplog, tmp_path):
    logs = {f"eval_metric_of_number_{i}": 0.5 for i in range(6)}
    (text,) = lines(caplog, tmp_path, logs)
    assert [len(line) <= 100 for line in text.split("\n")] == [True, True]
    assert text.count("metric_of_number_") == 6


def test_an_evaluation_names_its_metrics_only(caplog, tmp_path):
    (line,) = lines(caplog, tmp_path, {"eval_accuracy": 0.9, "eval_runtime": 3.0, "epoch": 1.0})
    assert line == "step 50/100 | epoch 1.00 | evaluation accuracy 0.9000"


def test_the_end_is_left_to_the_table(caplog, tmp_path):
    assert lines(caplog, tmp_path, {"train_runtime": 1.0}) == []
    assert lines(caplog, tmp_path, {"test_loss": 1.0}) == []


def test_a_run_leaves_its_curve_a_heartbeat_and_its_rows_once(toy_run, monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks, "HEARTBEAT", -1.0)
    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))
    beats, update = [], Record.update_state
    monkeypatch.setattr(
        Record, "update_state", lambda self, **facts: (beats.append(facts), update(self, **facts))
    )
    short = ("trainer.max_steps=3", "trainer.logging_steps=2")
    once, again = toy_run(*short), toy_run(*short, "seed=2", at="again")
    assert beats.count({}) >= 6  # steps and batches of evaluations, whatever is logged
    logged, _ = curve.read(once)
    assert [entry["step"] for entry in logged if "loss" in entry] == [1, 2]
    assert all(entry["seconds"] > 0 and entry["tokens"] > 0 for entry in logged)
    rows, others = (run / "rows" / "validation.parquet" for run in (once, again))
    table = pq.read_table(rows)
    assert table.column_names == ["id", "premise", "hypothesis"] and table.num_rows == 150
    assert rows.stat().st_ino == others.stat().st_ino  # of equal rows there is one file


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
