"""Several processes are one run."""

import json
import os
import shutil
import signal
import socket
import time
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from forge import ranks
from forge.config.compose import CONF
from forge.errors import Failure, Preempted, UserError
from forge.launching import processes
from forge.records.files import read_json
from tests.support.processes import finish, start
from tests.support.runs import results, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of two processes that `launcher=ddp` starts."""
    run_dir = tmp_path_factory.mktemp("ddp") / "whole"
    code, out, err = finish(run_dir, "launcher=ddp")
    assert code == 0, err
    return run_dir, out


def curve(run_dir):
    state = read_json(run_dir / "checkpoint-12" / "trainer_state.json")
    return [row["loss"] for row in state["log_history"] if "loss" in row]


@pytest.mark.slow
def test_two_processes_are_one_run(whole):
    run_dir, out = whole
    metadata = read_json(run_dir / "run_metadata.json")
    assert metadata["processes"] == 2 and len(metadata["attempts"]) == 1
    assert "launcher=ddp" in metadata["overrides"] and (run_dir / ".hydra").is_dir()
    assert "WANDB" not in out  # which the environment sets to offline, and nothing is tracked
    assert out.count("step 12/12 | epoch") == 2  # the training line and the evaluation's, once
    assert (run_dir / "output.log").read_text().count("step 12/12 | epoch") == 2
    assert results(run_dir)["train"]["steps"] == 12


@pytest.mark.slow
def test_all_ranks_train_on_the_config_that_was_composed(tmp_path):
    """Whatever options of Hydra's it was composed with, wherever they stand."""
    for folder in ("mine", "more"):
        shutil.copytree(CONF, tmp_path / folder)
    (tmp_path / "mine" / "other.yaml").write_text(
        (CONF / "config.yaml").read_text().replace("seed: 42\nprecision", "seed: 77\nprecision")
    )
    narrow = (CONF / "model" / "tiny.yaml").read_text()
    (tmp_path / "more" / "model" / "narrow.yaml").write_text(narrow)
    named = ("--config-path", str(tmp_path / "mine"), "--config-name=other")
    run_dir = tmp_path / "run"
    code, _, err = finish(
        run_dir, *named, "launcher=ddp", "model=narrow", "-cd", str(tmp_path / "more")
    )
    assert code == 0, err
    metadata = read_json(run_dir / "run_metadata.json")
    assert (metadata["config"]["seed"], metadata["processes"]) == (77, 2)
    assert metadata["choices"]["model"] == "narrow"


@pytest.mark.slow
def test_every_row_is_judged_once(whole):
    run_dir, _ = whole
    told = pq.read_table(run_dir / "predictions" / "validation.parquet").to_pydict()
    assert sorted(told["id"]) == list(range(99)) == told["id"]
    loss = torch.nn.functional.cross_entropy(
        torch.tensor(told["logits"]), torch.tensor(told["label"])
    )
    scores = results(run_dir)["splits"]["validation"]
    assert scores["n"] == 99
    assert scores["loss"] == pytest.approx(float(loss), abs=1e-6)
    right = [a == b for a, b in zip(told["label"], told["prediction"], strict=True)]
    assert scores["accuracy"] == pytest.approx(sum(right) / 99)


@pytest.mark.slow
def test_torchrun_trains_the_same_run_and_so_does_a_resumed_one(whole, tmp_path):
    run_dir = tmp_path / "run"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "launch.py")
    (tmp_path / "tmp").mkdir()
    token = "+trainer.hub_token=hunter2hunter2"
    process = start(run_dir, "launcher=ddp", token, TMPDIR=str(tmp_path / "tmp"))
    while process.poll() is None and not (run_dir / "checkpoint-4" / "commit.json").is_file():
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)  # which its ranks hold open
    state = read_json(run_dir / "training_state.json")
    assert (state["status"], state["step"] < 12) == ("running", True)  # none outlives its starter
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left and not [path for path in left if b"hunter2" in path.read_bytes()]
    code, _, err = finish(run_dir, token, script=torchrun)
    assert code == 0, err
    assert curve(run_dir) == curve(whole[0])
    weights = [run / "model" / "model.safetensors" for run in (run_dir, whole[0])]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_a_signal_reaches_all_ranks_and_the_run_goes_on_by_name(tmp_path):
    """The signal goes to loader workers too, and `resume=` starts as many processes as there were;
    another number of them is refused, and the record stays as it was."""
    run_dir = tmp_path / "run"
    words = ("task.dataset.train=3000", "trainer.max_steps=4000", "trainer.save_steps=2000",
             "trainer.eval_steps=2000", "trainer.dataloader_num_workers=2",
             "trainer.per_device_train_batch_size=8")  # fmt: skip
    process = start(run_dir, "launcher=ddp", *words)
    state = run_dir / "training_state.json"
    while process.poll() is None and not read_json(state).get("step"):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "Traceback" not in err and "checkpoint written" in out
    assert out.count("to go on: python launch.py resume=") == 1
    stopped = read_json(state)
    (saved,) = run_dir.glob("preempted-*")
    assert (stopped["status"], stopped["latest_checkpoint"]) == ("preempted", saved.name)
    assert (saved / "progress_1.json").is_file()
    code, _, err = finish(run_dir, *words)
    assert code == 2 and read_json(state) == stopped
    assert "was begun in 2 processes, not in 1" in err and len(err.splitlines()) == 1
    more = f"trainer.max_steps={stopped['step'] + 2}"
    code, out, err = finish(run_dir, *words, f"resume={run_dir}", more)
    assert code == 0, err
    assert f"resume  {saved.name}" in out and ", 2 processes" in out
    assert results(run_dir)["train"]["steps"] == stopped["step"] + 2


@pytest.mark.slow
def test_a_closed_connection_asks_all_ranks_to_stop(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, "launcher=ddp", "trainer.max_steps=4000", "trainer.save_steps=4000")
    while process.poll() is None and not read_json(run_dir / "training_state.json").get("step"):
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 129, err
    assert read_json(run_dir / "training_state.json")["status"] == "preempted"
    assert list(run_dir.glob("preempted-*"))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["hidden", "attention"])
def test_a_loss_that_reaches_no_head_trains_in_several_processes(whole, tmp_path, loss):
    kd = ("mode=kd", "mode.alpha=1", f"mode/loss={loss}", "mode.gate=off", "trainer.max_steps=2",
          f"teacher.path={whole[0]}")  # fmt: skip
    code, out, err = finish(tmp_path / "run", *kd, "launcher=ddp")
    assert code == 0, err
    assert "weights that no loss reaches (" in out
    before, after = weights(whole[0]), weights(tmp_path / "run")
    code, _, err = finish(tmp_path / "alone", *kd)
    assert code == 0, err
    head = "classifier.weight"  # as it was at random
    assert torch.equal(after[head], weights(tmp_path / "alone")[head])
    assert not torch.equal(after[head], before[head])


@pytest.mark.slow
def test_a_mistake_in_several_processes_is_one_line_and_leaves_nothing(tmp_path):
    code, out, err = finish(tmp_path / "run", "launcher=ddp", "task.text=[premise,nothing]")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert err.startswith("error: column nothing") and "Traceback" not in out
    assert not (tmp_path / "run").exists()


def failure(code, message=None):
    return SimpleNamespace(
        exitcode=code,
        pid=7,
        error_file_data={"message": message or "<NONE>"},
        signal_name=lambda: signal.Signals(-code).name,
    )


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (2, "no such column", UserError("no such column")),
        (1, "the disk is full", Failure("the disk is full")),
        (1, None, Failure("rank 1 ended with 1; its last lines are above")),
        (-9, None, Failure("rank 1 (process 7) was killed by SIGKILL")),
        (138, None, Preempted(signal.SIGUSR1)),
        (-15, None, Preempted(signal.SIGTERM)),
    ],
)
def test_why_a_rank_ended_is_told(code, message, told):
    reason = processes._reason(1, failure(code, message))
    assert (type(reason), str(reason)) == (type(told), str(told))


@pytest.mark.parametrize("asked", ["two", 0, 1.5, True, None])
def test_a_number_of_processes_is_a_number(asked):
    with pytest.raises(UserError, match=f"launcher.processes={asked}: a number, at least 1"):
        processes.wanted({"processes": asked})


def test_ranks_do_not_wait_for_one_that_has_failed():
    def work():
        if ranks.rank():
            ranks.abort()
            return "failed"
        return ranks.barrier()

    assert in_ranks(work, leave=False) == ["Failure: another rank of this run has failed", "failed"]


def in_ranks(work, count=2, leave=True):
    """What `work()` returns in each of several forked processes, which share a store; they leave
    together, for rank 0 keeps the store."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipes = {}
    for rank in range(count):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
            try:
                try:
                    told = work()
                except Exception as error:
                    told = f"{type(error).__name__}: {error}"
                if leave:
                    ranks.barrier()
                os.write(write, json.dumps(told).encode())
            finally:
                os._exit(0)  # whatever happens: a second pytest would go on from here
        os.close(write)
        pipes[child] = read
    told = [os.read(pipe, 1 << 16) for pipe in pipes.values()]
    for child in pipes:
        os.waitpid(child, 0)
    return [json.loads(text) for text in told]


def test_a_failed_run_says_nothing_to_the_next_of_the_sweep():
    def work():
        told = []
        for number in range(2):
            try:
                with ranks.one_run():
                    if ranks.rank() and not number:
                        with ranks.one_run():  # its teacher's
                            ranks.abort()
                        ranks.abort()
                        raise Failure("the teacher is bad")
                    told.append(ranks.broadcast(lambda: "agreed") if number else ranks.barrier())
            except Failure as error:
                told.append(str(error))
        return told

    assert in_ranks(work) == [
        ["another rank of this run has failed", "agreed"],
        ["the teacher is bad", "agreed"],
    ]


def test_ranks_that_meet_last_all_come_to_know_it(monkeypatch):
    """Rank 0 takes the store with it when it ends."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds + 0.5 * ranks.rank()))
    assert in_ranks(lambda: ranks.barrier() or "met", leave=False) == ["met", "met"]


def test_rank_0_decides_for_all():
    assert in_ranks(lambda: [ranks.broadcast(lambda: ranks.rank() + 7) for _ in "ab"]) == [
        [7, 7],
        [7, 7],
    ]


def test_a_mistake_that_rank_0_finds_is_raised_by_all():
    def refuse():
        raise UserError("no such thing")

    assert in_ranks(lambda: ranks.broadcast(refuse)) == ["UserError: no such thing"] * 2
    assert in_ranks(lambda: ranks.broadcast(lambda: 1 / 0)) == [
        "ZeroDivisionError: division by zero",
        "Failure: division by zero",
    ]


def test_rank_0_goes_first(tmp_path):
    def make():
        time.sleep(0 if ranks.rank() else 0.3)
        found = sorted(path.name for path in tmp_path.iterdir())
        (tmp_path / str(ranks.rank())).touch()
        return found

    assert in_ranks(lambda: ranks.in_turn(make)) == [[], ["0"]]


def test_ranks_that_slurm_has_not_started_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UserError, match="SLURM_NTASKS=2, but this is one process"):
        ranks.require_ranks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks.require_ranks()
