"""The console is readable; the state file follows training."""

import logging

from transformers import TrainerControl, TrainerState, TrainingArguments

from forge.callbacks import Console


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
