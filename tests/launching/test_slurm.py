"""Forge on a real SLURM, started for these tests (tests/slurm_cluster.sh)."""

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose
from transformers.trainer_callback import TrainerCallback

from forge.experiment import run
from forge.launching.jobs import Job, read_ledger, states
from forge.records.files import read_json
from tests.support.faults import RUN, outcome

pytestmark = pytest.mark.slow
LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"
SLURM = ("launcher=slurm", "launcher.gpus_per_node=0", "launcher.cpus_per_task=1",
         "launcher.mem_gb=3", "launcher.time=30")  # fmt: skip


class Pause(TrainerCallback):
    """In the job: at a step of its first start, wait for a file `go` in the run directory."""

    def __init__(self, step: int = 10) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        here = Path(args.output_dir)
        if state.global_step == self.step and "SLURM_RESTART_COUNT" not in os.environ:
            (here / "paused").touch()
            wait_for((here / "go").exists)


class Fail(TrainerCallback):
    """In the job: runs of seed 2 raise and those of seed 3 eat memory, unless there is a file."""

    def __init__(self, unless: str) -> None:
        self.unless = Path(unless)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.unless.exists() or state.global_step < 5:
            return
        if args.seed == 2:
            raise RuntimeError("the loss exploded")
        if args.seed == 3:
            self.eaten = bytearray(os.urandom(1 << 20) * 3200)
            time.sleep(60)


def ask(*words):
    """What a SLURM command answers."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def submit(script, *words):
    """`sbatch` a shell script; the job's id."""
    return ask("sbatch", "--parsable", "--output=/dev/null", *words, f"--wrap={script}")


def account(job):
    """State and exit code in sacct, e.g. `COMPLETED 0:0`."""
    answer = ask("sacct", "-nXP", "-o", "State,ExitCode", "-j", job)
    return answer.splitlines()[-1].replace("|", " ") if answer else ""


def wait_for(true, seconds=180):
    """Poll until `true()`; an assertion when it never is."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def command(*words):
    return [sys.executable, str(LAUNCH), *words]


def launch(folder, *words, **options):
    """`python launch.py WORDS` in a folder, ended."""
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 200} | options
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": ""}
    return subprocess.run(command(*words), env=environment, **options)


def come_back(sweep):
    """`python -m forge runs --watch SWEEP`, ended."""
    words = [sys.executable, "-m", "forge", "runs", "--watch", str(sweep)]
    return subprocess.run(words, cwd=LAUNCH.parent, capture_output=True, text=True, timeout=200)


def table(sweep):
    """Status and error of each job in sweep.csv."""
    with open(sweep / "sweep.csv", newline="") as file:
        return [(line["status"], line["error"]) for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache, hydra_config):
    """What a run of each seed ends with that was neither submitted nor disturbed."""

    def end(seed):
        folder = tmp_path_factory.mktemp("here")
        run(compose("config", [*RUN, f"seed={seed}"]), folder)
        return outcome(folder)

    return {seed: end(seed) for seed in (1, 2, 3)}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, cache):
    """What a run of two processes ends with that were started here."""
    folder = tmp_path_factory.mktemp("ranks")
    done = launch(folder, *RUN, "launcher=ddp", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return outcome(folder / "run")


def test_the_cluster_signals_requeues_and_keeps_accounts(slurm, tmp_path, monkeypatch):
    """And Forge reads the same states from the queue where there are no accounts."""
    script = f"""
        trap 'echo USR2 >> {tmp_path}/log; scontrol requeue $SLURM_JOB_ID; sleep 9' USR2
        echo start $SLURM_RESTART_COUNT >> {tmp_path}/log
        [ -z "$SLURM_RESTART_COUNT" ] || exit 0
        while :; do sleep 0.1; done"""
    job, failing = submit(script, "--requeue"), submit("exit 3")
    wait_for((tmp_path / "log").exists)
    ask("scancel", "--batch", "--signal=USR2", job)
    assert wait_for(lambda: account(failing) == "FAILED 3:0")
    assert wait_for(lambda: account(job) == "COMPLETED 0:0")
    assert (tmp_path / "log").read_text().split("\n") == ["start", "USR2", "start 1", ""]
    submitted = [Job(i, 0, [], "", "", 1, "slurm", "", "") for i in (job, failing, "999")]
    told = {job: "COMPLETED", failing: "FAILED", "999": "UNKNOWN"}
    assert states(submitted) == told
    monkeypatch.setattr("forge.launching.jobs._sacct", lambda asked: {})
    assert states(submitted) == told


def test_a_disturbed_sweep_ends_as_if_nothing_had_happened(slurm, tmp_path, undisturbed):
    """USR2 with and without loader workers, scontrol requeue, TERM, the driver killed."""
    sweep = tmp_path / "sweep"
    words = (*RUN, *SLURM, "seed=1,2", "trainer.dataloader_num_workers=0,2",
             "+callbacks.pause={_target_:tests.launching.test_slurm.Pause}",
             "hydra.sweep.dir=sweep")  # fmt: skip
    with open(tmp_path / "out", "w") as out:
        driver = subprocess.Popen(
            command(*words), cwd=tmp_path, stdout=out, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        signalled, requeued = (0, 1), (2,)  # 1 and 3 have loader workers
        for number in range(4):
            wait_for((sweep / str(number) / "paused").exists)
            job = read_ledger(sweep)[number].job
            if number in requeued:
                ask("scontrol", "requeue", job)
                continue
            if number in signalled:
                ask("scancel", "--signal=USR2", job)
                log = sweep / str(number) / "output.log"
                wait_for(lambda log=log: "SIGUSR2: finishing the step" in log.read_text())
            if number == 3:  # SLURM announces a kill, which does not come
                ask("scancel", "--signal=TERM", job)
                wait_for(lambda: "SIGTERM: finishing" in (sweep / "3" / "output.log").read_text())
            (sweep / str(number) / "go").touch()
        driver.kill()
    assert driver.wait() == -signal.SIGKILL
    watched = come_back(sweep)
    assert watched.returncode == 0, watched.stderr
    assert table(sweep) == [("finished", "")] * 4
    for number, job in read_ledger(sweep).items():
        assert outcome(sweep / str(number)) == undisturbed[number // 2 + 1], number
        assert account(job.job) == "COMPLETED 0:0"
        attempts = read_json(sweep / str(number) / "run_metadata.json")["attempts"]
        assert len(attempts) == 1 + (number in (*signalled, *requeued))
        assert attempts[0]["submitted"].keys() == {"commit", "dirty"}
    assert "accuracy" in watched.stdout and "report  " in watched.stdout


def test_preemption_and_a_lost_node_cost_what_came_after_the_last_checkpoint(
    slurm, tmp_path, undisturbed
):
    """TERM and KILL for a job of the high partition; slurmd, its step and its task killed."""
    sweep = tmp_path / "sweep"
    words = (*RUN, *SLURM, "seed=1,2", "launcher.partition=low", "launcher.cpus_per_task=2",
             "+callbacks.pause={_target_:tests.launching.test_slurm.Pause}", "launcher.wait=false",
             "hydra.sweep.dir=sweep")  # fmt: skip
    assert launch(tmp_path, *words).returncode == 0
    for number in (0, 1):
        wait_for((sweep / str(number) / "paused").exists)
    jobs = [job.job for job in read_ledger(sweep).values()]
    (node, _), (lost, raw) = (ask("squeue", "-hj", job, "-o", "%N %A").split() for job in jobs)
    submit("true", "--partition=high", "--exclusive", f"--nodelist={node}")
    slurmd = int((slurm / "run" / f"slurmd-{lost}.pid").read_text())
    step = ask("pgrep", "-f", rf"slurmstepd: \[{raw}\.").split()
    task = read_json(sweep / "1" / "run_metadata.json")["attempts"][0]["pid"]
    for process in (slurmd, *step, task):
        os.kill(int(process), signal.SIGKILL)
    watched = come_back(sweep)
    subprocess.run(["slurmd", "-N", lost], check=True)
    assert watched.returncode == 0, watched.stderr
    assert [outcome(sweep / str(n)) == undisturbed[n + 1] for n in (0, 1)] == [True, True]
    told = [ask("sacct", "-nDXP", "-o", "State", "-j", job).split() for job in jobs]
    assert told == [["PREEMPTED", "COMPLETED"], ["NODE_FAIL", "COMPLETED"]]


@pytest.fixture
def signals_before_preemption(slurm):
    """The cluster sends USR2 where it sent TERM."""
    conf = slurm / "etc" / "slurm.conf"
    before = conf.read_text()
    conf.write_text(before + "SlurmctldParameters=preempt_send_user_signal\n")
    ask("scontrol", "reconfigure")
    yield
    conf.write_text(before)
    ask("scontrol", "reconfigure")


def test_a_preemption_that_signals_first_costs_nothing(
    signals_before_preemption, tmp_path, undisturbed
):
    """The bits of an undisturbed run, and one W&B run: its process outlives a signal to the job."""
    words = (*RUN, *SLURM, "seed=2", "tracking=wandb", "launcher.wait=false",
             "launcher.partition=low", "hydra.sweep.dir=sweep",
             "+callbacks.pause={_target_:tests.launching.test_slurm.Pause}")  # fmt: skip
    done = launch(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    folder, job = tmp_path / "sweep" / "0", read_ledger(tmp_path / "sweep")[0].job
    wait_for((folder / "paused").exists)
    node = ask("squeue", "-hj", job, "-o", "%N")
    high = submit("true", "--partition=high", "--exclusive", f"--nodelist={node}")
    wait_for(lambda: "SIGUSR2: finishing" in (folder / "output.log").read_text())
    (folder / "go").touch()
    watched = come_back(tmp_path / "sweep")
    assert watched.returncode == 0, watched.stderr
    assert outcome(folder) == undisturbed[2]
    assert account(job) == account(high) == "COMPLETED 0:0"
    metadata = read_json(folder / "run_metadata.json")
    sent = [path.name.rpartition("-")[2] for path in folder.glob("wandb/offline-run-*")]
    assert sent == [metadata["wandb_id"]] * len(metadata["attempts"]) and len(sent) == 2


def test_a_failing_run_fails_its_job_and_nothing_else(slurm, tmp_path, undisturbed):
    """Exit codes, reasons, dependants; `resume=` submits what is missing and nothing else."""
    sweep, mended = tmp_path / "sweep", tmp_path / "mended"
    words = (*RUN, *SLURM, "seed=1,2,3", "hydra.sweep.dir=sweep",
             "+launcher.teardown=[echo bye]",  # whose exit code is not the run's
             "+callbacks.fail="
             f"{{_target_:tests.launching.test_slurm.Fail,unless:{mended}}}")  # fmt: skip
    driver = subprocess.Popen(
        command(*words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": ""},
    )  # fmt: skip
    wait_for((sweep / "jobs.jsonl").exists)
    job = {number: job.job for number, job in read_ledger(sweep).items()}
    after = [submit("true", f"--dependency=afterok:{job[n]}", "--kill-on-invalid-dep=yes")
             for n in (0, 1)]  # fmt: skip
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 1
    assert re.search(r"error: job 1 \(\d+_1\): RuntimeError: the loss exploded$", err, re.M), err
    errors = ["", "RuntimeError: the loss exploded", "killed for its memory; raise launcher.mem_gb"]
    statuses = ["finished", "failed", "failed"]
    assert table(sweep) == list(zip(statuses, errors, strict=True))
    assert outcome(sweep / "0") == undisturbed[1]
    assert [account(job[n]).split()[0] for n in (0, 1, 2)] == ["COMPLETED", "FAILED", "FAILED"]
    assert account(job[1]) == "FAILED 1:0"
    assert "Traceback" in read_ledger(sweep)[1].log.read_text()
    assert wait_for(lambda: account(after[0]) == "COMPLETED 0:0")
    assert wait_for(lambda: account(after[1]).startswith("CANCELLED"))
    mended.touch()
    again = launch(tmp_path, "resume=sweep")
    assert again.returncode == 0, again.stderr
    assert table(sweep) == [("finished", "")] * 3
    assert all(outcome(sweep / str(n)) == undisturbed[n + 1] for n in range(3))
    lines = (sweep / "jobs.jsonl").read_text().splitlines()
    assert [re.search(r'"number": (\d)', line)[1] for line in lines] == ["0", "1", "2", "1", "2"]


def test_a_job_runs_what_was_submitted(slurm, tmp_path):
    """Submitted inside a job and held while conf/ changes; a signal as it starts costs nothing.

    Its secret is in no file.
    """
    conf, sweep = tmp_path / "conf", tmp_path / "sweep"
    (conf / "experiment").mkdir(parents=True)
    (conf / "local").mkdir()
    ours = "# @package _global_\nlauncher:\n  partition: high\n"
    (conf / "local" / "default.yaml").write_text(ours)
    mine = conf / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\ntrainer:\n  learning_rate: 0.001\n")
    words = (f"--config-dir={conf}", "experiment=mine", *RUN, *SLURM, "hydra.sweep.dir=sweep",
             "launcher.wait=false", "+launcher.additional_parameters.hold=true",
             "+callbacks.note={_target_:tests.support.runs.Note,password:sesame}")  # fmt: skip
    script = f"cd {tmp_path} && {shlex.join(command(*words))} > out 2> err"
    outer = submit(script, "--mem-per-cpu=600")
    assert wait_for(lambda: account(outer) == "COMPLETED 0:0")
    (job,) = read_ledger(sweep).values()
    assert f"1 jobs submitted ({job.job}); come back with" in (tmp_path / "out").read_text()
    mine.write_text("# @package _global_\ntrainer:\n  learning_rate: 7\n")
    assert "Partition=high" in ask("scontrol", "show", "job", job.job)
    ask("scontrol", "release", job.job)

    def requeued():
        subprocess.run(["scancel", "--signal=USR2", job.job], capture_output=True)
        return "Restarts=1" in ask("scontrol", "show", "job", job.job)

    wait_for(requeued)
    watched = come_back(sweep)
    assert watched.returncode == 0, watched.stderr
    assert (
        read_json(sweep / "0" / "run_metadata.json")["config"]["trainer"]["learning_rate"] == 1e-3
    )
    assert (sweep / "0" / "length").read_text() == "6"  # of the password, in the requeued job
    assert not [f for f in sweep.rglob("*") if f.is_file() and b"sesame" in f.read_bytes()]
    # the last signals may have requeued it once more, and it finished before it was stopped
    assert wait_for(lambda: account(job.job) == "COMPLETED 0:0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launcher.partition=nope"], r"sbatch refused: invalid partition specified: nope; .*"),
        (
            ["+launcher.additional_parameters.foo=1"],
            "sbatch refused: unrecognized option '--foo=1'",
        ),
        (["+launcher.partitio=x"], "launcher.partitio: no such setting; did you mean partition?"),
        (["launcher.setup=foo"], "launcher: a setting does not fit"),
        (["launcher.gpus_per_node=a100:1"], "launcher: a setting does not fit"),
        (["launcher.time=2"], "launcher.time=2: minutes, more than the 120 seconds before the end"),
        (["hydra/sweeper=optuna", "launcher.wait=false"], "launcher.wait=false: a search needs"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(slurm, tmp_path, words, message):
    done = launch(tmp_path, *RUN, *SLURM, *words)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if "A new study" not in line]
    assert len(told) == 1 and re.match(f"error: {message}", told[0]), done.stderr
    assert not list(tmp_path.iterdir())


def test_many_jobs_are_several_arrays_and_none_is_submitted_twice(slurm, tmp_path):
    """More jobs than MaxArraySize; a controller that restarts; the same command again."""
    words = (*RUN, *SLURM, "seed=range(0,30)", "hydra.sweep.dir=sweep", "launcher.wait=false",
             "+launcher.additional_parameters.hold=true")  # fmt: skip
    done = launch(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    ledger = read_ledger(tmp_path / "sweep")
    assert sorted(ledger) == list(range(30))
    assert len({job.job.split("_")[0] for job in ledger.values()}) == 2
    controller = int((slurm / "run" / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGTERM)  # killed outright it may lose what it took a moment ago
    wait_for(lambda: not (slurm / "run" / "slurmctld.pid").exists())
    subprocess.run(["slurmctld"], check=True)
    wait_for(lambda: subprocess.run(["scontrol", "ping"], capture_output=True).returncode == 0)
    file = tmp_path / "sweep" / "jobs.jsonl"
    file.write_text("".join(file.read_text().splitlines(True)[:27]))  # killed before it could enter
    again = launch(tmp_path, "resume=sweep")
    assert again.returncode == 0 and "30 under way" in again.stdout, again.stderr
    assert read_ledger(tmp_path / "sweep") == ledger
    others = launch(tmp_path, *words, "seed=7,8")
    assert others.returncode == 0 and "2 under way" in others.stdout, others.stderr  # two of them
    assert read_ledger(tmp_path / "sweep") == ledger
    ask("scancel", *{job.job.split("_")[0] for job in ledger.values()})


def test_ranks_that_slurm_starts_are_one_run_and_go_on(slurm, tmp_path, two_ranks):
    """On one node and on two; USR2 in the middle; the bits of two processes started here. So are
    those of plain srun; without it one process in a job for two is refused."""
    alone = shlex.join(command(*RUN, "hydra.run.dir=alone"))
    run_here = f"srun {shlex.join(command(*RUN, 'hydra.run.dir=srun'))}"
    plain = submit(
        f"cd {tmp_path}; {alone} 2> refused; {run_here}", "--ntasks=2", "--mem-per-cpu=2000"
    )
    sweeps = {"one": ("nodes=1", "tasks_per_node=2"), "two": ("nodes=2", "tasks_per_node=1")}
    for name, place in sweeps.items():
        words = (*RUN, *SLURM, *(f"launcher.{word}" for word in place), "launcher.mem_gb=2",
                 "launcher.wait=false", f"hydra.sweep.dir={name}",
                 "+callbacks.pause={_target_:tests.launching.test_slurm.Pause,step:6}")  # fmt: skip
        done = launch(tmp_path, *words)
        assert done.returncode == 0, done.stderr
    jobs = {}
    for name in sweeps:
        folder = tmp_path / name / "0"
        wait_for((folder / "paused").exists)
        (job,) = read_ledger(tmp_path / name).values()
        jobs[name] = job.job
        ask("scancel", "--signal=USR2", job.job)
        log = folder / "output.log"
        wait_for(lambda log=log: "SIGUSR2: finishing the step" in log.read_text())
        (folder / "go").touch()
    assert wait_for(lambda: account(plain) == "COMPLETED 0:0")
    assert outcome(tmp_path / "srun") == two_ranks
    assert "SLURM_NTASKS=2, but this is one process" in (tmp_path / "refused").read_text()
    for name, job in jobs.items():
        folder = tmp_path / name / "0"
        watched = come_back(tmp_path / name)
        assert watched.returncode == 0, watched.stderr + watched.stdout
        assert outcome(folder) == two_ranks
        metadata = read_json(folder / "run_metadata.json")
        assert (metadata["processes"], len(metadata["attempts"])) == (2, 2)
        assert account(job) == "COMPLETED 0:0"


def test_a_teacher_is_trained_by_a_job_before_its_students(slurm, tmp_path):
    """Nobody waits with a node in hand; the control does not wait."""
    sweep = tmp_path / "sweep"
    words = (*RUN, *SLURM, "mode=kd", "mode.gate=off", "mode.alpha=0,0.5", "model@teacher=tiny",
             "teacher.config.hidden_size=32", "teacher.trainer.num_train_epochs=1",
             "hydra.sweep.dir=sweep", "launcher.wait=false",
             "+launcher.additional_parameters.hold=true")  # fmt: skip
    done = launch(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    ledger = {number: job.job for number, job in read_ledger(sweep).items()}
    assert sorted(ledger) == [-1, 0, 1]
    needs = {n: ask("scontrol", "show", "job", job) for n, job in ledger.items()}
    assert f"Dependency=afterok:{ledger[-1]}" in needs[1]
    assert "Dependency=(null)" in needs[0] and "Dependency=(null)" in needs[-1]
    ask("scontrol", "release", *ledger.values())
    watched = come_back(sweep)
    assert watched.returncode == 0, watched.stderr
    assert table(sweep) == [("finished", "")] * 2
    (trained,) = [path.parent for path in tmp_path.glob("outputs/*/*/sft/*/results.json")]
    taught = read_json(sweep / "1" / "run_metadata.json")["teacher"]
    assert taught["paths"] == [str(trained / "model")]
