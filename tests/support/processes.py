"""Runs in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = [
    "task=toy",
    "task.dataset.train=320",
    "task.dataset.validation=99",
    "trainer.per_device_eval_batch_size=16",
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "precision=fp32",
    "trainer.max_steps=12",
    "trainer.logging_steps=1",
    "trainer.save_strategy=steps",
    "trainer.save_steps=4",
    "trainer.eval_strategy=steps",
    "trainer.eval_steps=4",
]


ENV = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(run_dir, *words, script=("launch.py",), **env):
    command = [sys.executable, *script, *TINY, f"hydra.run.dir={run_dir}", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENV | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(run_dir, *words, **kwargs):
    process = start(run_dir, *words, **kwargs)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err
