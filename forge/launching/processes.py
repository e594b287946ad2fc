"""Starts the ranks of a run on this machine, and says why they ended."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from forge.errors import Failure, UserError
from forge.ranks import COMPOSED, PARENT

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

GRACE = 3600  # seconds for the ranks to write their checkpoint after a signal


NOTHING = "<NONE>"  # what torch's launcher takes for the message of a rank that left none


def wanted(launcher: Mapping[str, object] | None) -> int:
    """How many processes a run is to have here, by its launcher node."""
    settings = dict(launcher or {})
    if "cluster" in settings:  # one of a submitted sweep's jobs
        return 1
    if unknown := sorted(settings.keys() - {"processes"}):
        raise UserError(
            f"launcher.{unknown[0]}: the processes of launcher=ddp are all on this machine, and "
            "launcher.processes says how many; jobs on several nodes are launcher=slurm"
        )
    asked = settings.get("processes", 1)
    if type(asked) is not int or asked < 1:
        raise UserError(f"launcher.processes={asked}: a number, at least 1")
    return asked


def launch(processes: int, cfg: DictConfig, run_dir: Path, script: Path) -> None:
    """Run `script` on a composed config in several processes, and wait for them.

    They get the config itself, in a file that lies in no directory and goes with this process.
    Raises what the first of them to fail reports, and `Preempted` when a signal ended them.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from forge.errors import Preempted
    from forge.training.signals import asking

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="forge",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in asking()),
        shutdown_timeout=GRACE,
    )
    handlers = {n: signal.getsignal(n) for n in signal.valid_signals() if signal.getsignal(n)}
    file = _write(cfg, run_dir)
    os.environ |= {COMPOSED: f"/proc/{os.getpid()}/fd/{file}", PARENT: str(os.getpid())}
    logging.disable(logging.CRITICAL)  # the agent's own lines; the ranks print what matters
    try:
        elastic_launch(config, sys.executable)(str(script))
    except SignalException as stopped:
        raise Preempted(stopped.sigval) from None
    except ChildFailedError as failed:
        raise _reason(*failed.get_first_failure()) from None
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(file)
        del os.environ[COMPOSED], os.environ[PARENT]


def _write(cfg: DictConfig, run_dir: Path) -> int:
    """A file in memory with the config and with Hydra's own, for `composed`."""
    hydra: Any = copy.deepcopy(HydraConfig.instance().cfg)  # Hydra types it one level too low
    with read_write(hydra.hydra), open_dict(hydra.hydra):
        hydra.hydra.run.dir = str(run_dir)
        hydra.hydra.mode = RunMode.RUN
    file = os.memfd_create("forge")
    with open(file, "wb", closefd=False) as stream:
        pickle.dump((cfg, hydra), stream)
    return file


def composed() -> DictConfig:
    """In a rank: the config that the process which started it composed; Hydra is set up with it."""
    cfg, hydra = pickle.loads(Path(os.environ[COMPOSED]).read_bytes())
    setup_globals()
    HydraConfig.instance().set_config(hydra)
    configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    given: DictConfig = cfg
    return given


def _reason(rank: int, failure: ProcessFailure) -> BaseException:
    """What a rank's exit code and message mean, as an exception."""
    from forge.errors import Preempted
    from forge.training.signals import ASKING

    number = -failure.exitcode if failure.exitcode < 0 else failure.exitcode - 128
    if number in ASKING:
        return Preempted(number)
    if failure.exitcode < 0:
        return Failure(f"rank {rank} (process {failure.pid}) was killed by {failure.signal_name()}")
    reported = failure.error_file_data.get("message", NOTHING)
    if reported == NOTHING:
        return Failure(f"rank {rank} ended with {failure.exitcode}; its last lines are above")
    return UserError(reported) if failure.exitcode == 2 else Failure(reported)
