"""Killed runs, one of each kind, end as if nothing had happened; see tests/support/faults.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.faults import KINDS


@pytest.mark.slow
def test_killed_runs_end_like_undisturbed_ones():
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults", "--points", str(len(KINDS)), "--seed", "0"],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count('"problem": null') == len(KINDS), done.stdout + done.stderr[-2000:]
    assert done.returncode == 0
