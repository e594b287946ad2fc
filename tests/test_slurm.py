"""Forge on a real SLURM, started for these tests (tests/slurm_cluster.sh)."""

import subprocess
import time

import pytest

pytestmark = pytest.mark.slow


def ask(*words):
    """What a SLURM command answers."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def submit(script, *words):
    """`sbatch` a bash script; the job's id."""
    return ask("sbatch", "--parsable", "--output=/dev/null", *words, f"--wrap={script}")


def state(job):
    """State and exit code in sacct, e.g. `COMPLETED 0:0`."""
    answer = ask("sacct", "-nXP", "-o", "State,ExitCode", "-j", job)
    return answer.splitlines()[-1].replace("|", " ") if answer else ""


def wait_for(true, seconds=60):
    """Poll until `true()`; an assertion when it never is."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def test_the_cluster_signals_requeues_and_keeps_accounts(slurm, tmp_path):
    script = f"""
        trap 'echo USR2 >> {tmp_path}/log; scontrol requeue $SLURM_JOB_ID; sleep 9' USR2
        echo start $SLURM_RESTART_COUNT >> {tmp_path}/log
        [ -z "$SLURM_RESTART_COUNT" ] || exit 0
        while :; do sleep 0.1; done"""
    job, failing = submit(script, "--requeue"), submit("exit 3")
    wait_for((tmp_path / "log").exists)
    ask("scancel", "--batch", "--signal=USR2", job)
    assert wait_for(lambda: state(failing) == "FAILED 3:0")
    assert wait_for(lambda: state(job) == "COMPLETED 0:0")
    assert (tmp_path / "log").read_text().split("\n") == ["start", "USR2", "start 1", ""]
