"""One W&B run per Forge run, offline too, read back with W&B's own reader."""

import json
import subprocess
import sys

import pytest

from forge.record import read_json
from forge.trainer import Trainer
from tests.conftest import results

PLAN = ("tracking=wandb", "tracking.tags=[mine]", "trainer.max_steps=8", "trainer.logging_steps=1",
        "trainer.save_strategy=steps", "trainer.save_steps=4", "trainer.eval_strategy=steps",
        "trainer.eval_steps=2")  # fmt: skip


def inspect(file, *words):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *words, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_killed_run_goes_on_in_the_same_curve(toy_run, monkeypatch, caplog):
    """The steps between the last checkpoint and the end of the first attempt are not sent again."""
    caplog.set_level("INFO")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train = Trainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 6:
            raise RuntimeError("the power went off")
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(RuntimeError, match="power"):
        toy_run(*PLAN)
    monkeypatch.setattr(Trainer, "training_step", train)
    run_dir = toy_run(*PLAN)
    assert "resume  checkpoint-4" in caplog.text and "wandb sync" in caplog.text
    wandb_id = read_json(run_dir / "run_metadata.json")["wandb_id"]
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{wandb_id}.wandb"] * 2
    records = [json.loads(line) for file in files for line in inspect(file).splitlines()]
    rows = [r["history"]["item"] for r in records if r["type"] == "history"]
    steps = [int(r["history"]["step"]["num"]) for r in records if r["type"] == "history"]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    (run,) = {(r["run"]["project"], *r["run"]["tags"]) for r in records if r["type"] == "run"}
    assert run == ("forge", "mine")
    told = json.loads(inspect(files[-1], "--summary"))["summary"]
    headline = results(run_dir)["headline"]["value"]
    assert told["headline"] == told["validation/accuracy"] == pytest.approx(headline)
    assert told["_step"] == 8 and told["validation/n"] == 150
    losses = [row["train/loss"] for row in rows]
    assert told["train/train_loss"] == pytest.approx(sum(losses) / 8)
