"""A real SLURM of two nodes."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[1] / "slurm_cluster.sh"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """A real SLURM of two nodes, which SLURM_CONF leads to; its folder (see slurm_cluster.sh)."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM of our own needs root")
    daemons = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd")
    if not all(map(shutil.which, daemons)):
        if not (os.environ.get("CI") and shutil.which("apt-get")):
            pytest.skip(f"SLURM is not installed; {CLUSTER.name} install does it on Debian")
        subprocess.run([CLUSTER, "install"], check=True, stdout=subprocess.DEVNULL)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CLUSTER", str(folder))
        patch.setenv("SLURM_CLUSTER_PORT", str(10000 + os.getpid() % 1000 * 5))
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        try:
            subprocess.run([CLUSTER, "start"], check=True)
            yield folder
        finally:
            subprocess.run([CLUSTER, "stop"], check=True)
