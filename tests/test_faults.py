"""Runs that were killed at forty points end as if nothing had happened; see tests/faults.py."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_end_like_undisturbed_ones():
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults", "--points", "40", "--seed", "0"],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count('"problem": null') == 40, done.stdout + done.stderr[-2000:]
    assert done.returncode == 0
