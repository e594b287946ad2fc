"""One W&B run per Forge run, offline too."""

import pytest

from forge.record import read_json


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_is_kept_offline_under_the_recorded_id(toy_run, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_dir = toy_run("tracking=wandb", "trainer.max_steps=2", "trainer.logging_steps=1")
    wandb_id = read_json(run_dir / "run_metadata.json")["wandb_id"]
    assert list(run_dir.glob(f"wandb/offline-run-*-{wandb_id}/run-{wandb_id}.wandb"))
    assert "wandb sync" in caplog.text
