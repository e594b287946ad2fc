"""A checkpoint is trusted when it is whole, as it was written, and this run's own."""

import errno
import logging
import os
import shutil
import subprocess

import pytest
import torch

from forge.errors import Failure
from forge.records import checkpoints
from forge.records.files import read_json


@pytest.fixture
def run_dir(tmp_path):
    """Three committed checkpoints of two files each."""
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(range(200)))
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        checkpoints.commit(folder, "run")
    return tmp_path


UNJUDGED = ("trainer.load_best_model_at_end=false", "trainer.eval_strategy=no")


def flip(path):
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "is not as it was written": lambda f: flip(f / "model.safetensors"),
    "is missing": lambda f: (f / "model.safetensors").unlink(),
    "was not written to its end": lambda f: (f / checkpoints.MARKER).unlink(),
    "cannot be read": lambda f: (f / checkpoints.MARKER).write_text("{"),
    "is another run's": lambda f: checkpoints.commit(f, "another"),
}


def truncate(folder):
    path = folder / "trainer_state.json"
    path.write_bytes(path.read_bytes()[:5])


def test_the_newest_is_taken_by_step(run_dir):
    assert checkpoints.newest(run_dir, "run").name == "checkpoint-10"


@pytest.mark.parametrize(
    ("reason", "damage"), [*DAMAGE.items(), ("is not as it was written", truncate)]
)
def test_a_damaged_one_is_set_aside_and_said(run_dir, caplog, reason, damage):
    damage(run_dir / "checkpoint-10")
    assert checkpoints.newest(run_dir, "run").name == "checkpoint-4"
    assert reason in caplog.text and "checkpoint-10" in caplog.text
    assert (run_dir / "set-aside-checkpoint-10-0").is_dir()
    assert list(checkpoints.steps(run_dir)) == [4, 2]


def test_one_that_cannot_be_read_is_set_aside_too(run_dir, monkeypatch, caplog):
    whole = checkpoints.digest

    def digest(path):
        if "checkpoint-10" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path)

    monkeypatch.setattr(checkpoints, "digest", digest)
    assert checkpoints.newest(run_dir, "run").name == "checkpoint-4"
    assert "model.safetensors cannot be read (Input/output error)" in caplog.text


def test_a_quota_is_a_full_disk(run_dir):
    with (
        pytest.raises(Failure, match="disk is full; checkpoint-10 is whole"),
        checkpoints.room(run_dir, 0, run_dir / "half"),
    ):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("bit", range(0, 8 * 400, 53))
def test_no_flip_of_a_marker_is_overlooked(run_dir, bit):
    """It is another text then, or it says of the files what is true of them."""
    marker = run_dir / "checkpoint-10" / checkpoints.MARKER
    content = bytearray(marker.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    marker.write_bytes(content)
    if not checkpoints.problem(marker.parent, "run"):
        assert read_json(marker)["files"].keys() == {"model.safetensors", "trainer_state.json"}


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["flip", "delete", "another", "forget"])
def test_from_the_beginning_is_never_silent(toy_run, caplog, harm):
    plan = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.max_steps=4")
    run_dir = toy_run(*plan, *UNJUDGED)
    weights = (run_dir / "model" / "model.safetensors").read_bytes()
    for folder in checkpoints.steps(run_dir).values():
        if harm == "flip":
            flip(folder / "model.safetensors")
        elif harm == "another":
            checkpoints.commit(folder, "another")
        else:
            shutil.rmtree(folder)
    state = run_dir / "training_state.json"
    state.write_text('{"status": "run' if harm == "forget" else '{"status": "running"}')
    caplog.clear()
    toy_run(*plan, *UNJUDGED)
    assert "no good checkpoint: training starts from the beginning" in caplog.text
    assert (run_dir / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_kept(toy_run, monkeypatch, tmp_path):
    """Neither when the loss shows it too late for its guard, nor for a signal."""
    from forge.training.trainer import Trainer

    step = Trainer.training_step

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 4:
            next(self.model.parameters()).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(Trainer, "training_step", training_step)
    plan = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.max_steps=5")
    told = "at step 5 the weights are no numbers any more; the last checkpoint before: checkpoint-4"
    with pytest.raises(Failure, match=told):
        toy_run(*plan, *UNJUDGED)
    assert list(checkpoints.steps(tmp_path / "run")) == [4, 2]
    with pytest.raises(Failure, match=told.replace("checkpoint-4", "none")):
        toy_run(*plan, *UNJUDGED, "trainer.save_strategy=no", at="other")


def test_one_off_the_schedule_is_gone_on_from_and_then_deleted(run_dir):
    checkpoints.keep_apart(run_dir / "checkpoint-10")
    assert checkpoints.newest(run_dir, "run").name == "preempted-10"
    checkpoints.rotate(run_dir, 9, None)
    assert list(checkpoints.steps(run_dir)) == [10, 4, 2]
    (run_dir / "preempted-10").rename(run_dir / "preempted-3")
    checkpoints.rotate(run_dir, 9, None)
    assert list(checkpoints.steps(run_dir)) == [4, 2]


def test_rotation_keeps_the_newest_and_the_best(run_dir):
    checkpoints.rotate(run_dir, 1, str(run_dir / "checkpoint-2"))
    assert list(checkpoints.steps(run_dir)) == [10, 2]
    checkpoints.rotate(run_dir, 1, None)
    assert list(checkpoints.steps(run_dir)) == [10]
    checkpoints.rotate(run_dir, None, None)
    assert list(checkpoints.steps(run_dir)) == [10]


def test_half_a_deletion_leaves_no_checkpoint(run_dir, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)
    checkpoints.rotate(run_dir, 2, None)
    monkeypatch.undo()
    assert list(checkpoints.steps(run_dir)) == [10, 4]
    checkpoints.newest(run_dir, "run")
    assert not list(run_dir.glob(".deleting-*"))


def test_too_little_room_is_said_before_training(tmp_path):
    with pytest.raises(Failure, match=r"MB free, a checkpoint takes .* hydra\.run\.dir=DIR"):
        checkpoints.require_space(tmp_path, 10**18)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(toy_run, caplog):
    caplog.set_level(logging.INFO)
    plan = ("trainer.save_strategy=steps", "trainer.save_steps=5", "trainer.max_steps=15")
    plan = (*plan, "trainer.load_best_model_at_end=false", "trainer.save_total_limit=9")
    run_dir = toy_run(*plan)
    weights = (run_dir / "model" / "model.safetensors").read_bytes()
    flip(run_dir / "checkpoint-15" / "optimizer.pt")
    state = run_dir / "training_state.json"
    state.write_text(state.read_text().replace("finished", "running"))
    toy_run(*plan)
    assert "resume  checkpoint-10" in caplog.text
    assert (run_dir / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoint_and_one_line(toy_run, monkeypatch, tmp_path):
    saved, save = [], torch.save

    def full(*args, **kwargs):
        saved.append(args)
        if len(saved) > 6:
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    plan = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.max_steps=12")
    plan = (*plan, "trainer.load_best_model_at_end=false")
    whole = toy_run(*plan, at="whole")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Failure, match=r"the disk is full; checkpoint-\d is whole"):
        toy_run(*plan)
    run_dir = tmp_path / "run"
    assert read_json(run_dir / "training_state.json")["status"] == "failed"
    newest = checkpoints.newest(run_dir, read_json(run_dir / "run_metadata.json")["id"])
    assert newest is not None and not list(run_dir.glob("set-aside-*"))
    monkeypatch.undo()
    toy_run(*plan)
    files = [run / "model" / "model.safetensors" for run in (whole, run_dir)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size", [24, 450, 660])  # before the first checkpoint, after one, at last
def test_a_full_file_system_costs_nothing_that_was_whole(toy_run, tmp_path, size):
    plan = ("trainer.save_strategy=steps", "trainer.save_steps=4", "trainer.max_steps=12")
    whole = toy_run(*plan, *UNJUDGED, at="whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with pytest.raises(Failure, match=r"disk is full|MB free, a checkpoint takes"):
            toy_run(*plan, *UNJUDGED, at="disk/run")
        run_dir = disk / "run"
        assert all(not checkpoints.problem(p, read_json(run_dir / "run_metadata.json")["id"])
                   for p in checkpoints.steps(run_dir).values())  # fmt: skip
        assert not (run_dir / "model").exists() and not list(run_dir.glob("set-aside-*"))
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        toy_run(*plan, *UNJUDGED, at="disk/run")
        files = [run / "model" / "model.safetensors" for run in (whole, run_dir)]
        assert files[0].read_bytes() == files[1].read_bytes()
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_checkpoint_cannot_run_code(toy_run, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    plan = ("trainer.save_strategy=steps", "trainer.save_steps=5", "trainer.max_steps=10")
    plan = (*plan, "trainer.load_best_model_at_end=false")
    run_dir = toy_run(*plan)
    run_id = read_json(run_dir / "run_metadata.json")["id"]
    state = run_dir / "training_state.json"
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        folder = run_dir / "checkpoint-10"
        kept = (folder / name).read_bytes()
        torch.save(Evil(), folder / name)
        checkpoints.commit(folder, run_id)
        state.write_text(state.read_text().replace("finished", "running"))
        try:
            toy_run(*plan)
        except Exception as error:
            assert "weights_only" in str(error) or "Weights only" in str(error), error
        assert not (tmp_path / "pwned").exists(), name
        (folder / name).write_bytes(kept)
        state.write_text(state.read_text().replace("failed", "running"))
