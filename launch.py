"""Run one experiment, or a sweep with -m. `python launch.py --help` lists groups, keys, examples.

Exit codes: 0 the run reached its planned end, 1 it failed, 2 the command or the data need mending,
128 + n it was stopped by signal n and goes on with the same command.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from forge import ranks
from forge.config.compose import config_keys, one_word_each, override, register
from forge.config.explain import explain
from forge.errors import FULL, USER_ERRORS, Failure, Preempted, UserError
from forge.records.files import METADATA
from forge.records.logs import leave_quietly, print_anywhere

if TYPE_CHECKING:
    from forge.records.environment import Commit

register()
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
in_run = False


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig, submitted: Commit | None = None) -> float:
    """Hydra's task function: returns the headline metric, which sweepers optimise.

    `submitted` is the commit at which a queue took the run.
    """
    global in_run
    in_run = True

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        processes = 1
        if ranks.COMPOSED not in os.environ:
            cfg, processes = resolved(cfg, run_dir)
        if processes > 1:
            return launch_ranks(processes, cfg, run_dir)
        from forge.experiment import run

        return run(cfg, run_dir, submitted=submitted)
    except (Preempted, KeyboardInterrupt):
        begun = (run_dir / METADATA).is_file() and ranks.PARENT not in os.environ
        if begun and HydraConfig.get().mode is RunMode.RUN:
            print(f"to go on: python launch.py {override('resume', os.path.relpath(run_dir))}")
        raise
    except (*USER_ERRORS, Failure, OSError) as error:
        reported: Exception = error
        if isinstance(error, OSError):
            if error.errno not in FULL:
                raise
            reported = Failure(f"{run_dir}: the disk is full; make room and give the same command")
        if HydraConfig.get().mode is RunMode.RUN and not TRACEBACKS:
            stop(reported)  # here, before Hydra adds a line of its own
        raise reported from error


def resolved(cfg: DictConfig, run_dir: Path) -> tuple[DictConfig, int]:
    """The config to run, a resumed run's own, and how many processes to start for it."""
    from forge.launching.processes import wanted
    from forge.records.files import read_json
    from forge.records.record import remove
    from forge.records.recorded import recorded_config

    try:
        processes = wanted(cfg.launcher)
        if cfg.resume:
            resume, cfg = cfg.resume, recorded_config(cfg, run_dir)
            cfg.resume = resume
            processes = read_json(run_dir / METADATA).get("processes", processes)
        if processes == 1:
            ranks.require_ranks()
        return cfg, processes if ranks.ranks() == 1 else 1
    except USER_ERRORS:
        if not (run_dir / METADATA).is_file():
            remove(run_dir)
        raise


def launch_ranks(processes: int, cfg: DictConfig, run_dir: Path) -> float:
    """This run in several processes; its headline."""
    from forge.launching import processes as launching
    from forge.records.files import RESULTS, read_json

    os.environ["HYDRA_FULL_ERROR"] = str(int(TRACEBACKS))  # as the user has it
    try:
        launching.launch(processes, cfg, run_dir, Path(__file__).absolute())
    finally:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    return float(read_json(run_dir / RESULTS)["headline"]["value"])


def print_error(line: str) -> None:
    """Print why it ends; a rank that `launch_ranks` started leaves that to who started it."""
    ranks.report_error(line)
    if ranks.PARENT not in os.environ:
        print(f"error{f' (rank {r})' if (r := ranks.rank()) else ''}: {line}", file=sys.stderr)


def stop(error: Exception) -> None:
    """Print it in one line and leave: exit code 1 for a run that failed, 2 for a user's mistake."""
    if isinstance(error, Failure):
        print_error(str(error))
        sys.exit(1)
    if "Unable to configure handler" in str(error) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # output.log may not be written
    if isinstance(error, OSError) and not isinstance(error, USER_ERRORS):
        key = "hydra.sweep.dir" if "--multirun" in sys.argv else "hydra.run.dir"
        error = UserError(f"run directory: {error}; name another with {key}=DIR")
    if "Config group override must be" in str(error):  # Hydra's answer to GROUP=null
        error = UserError("null is no option of a group: leave GROUP= out, or drop it with ~GROUP")
    line = str(error) if isinstance(error, UserError) else explain(error, config_keys(sys.argv[1:]))
    print_error(line)
    sys.exit(2)


def cli() -> None:
    """`main`, with a user's mistakes in one line; HYDRA_FULL_ERROR=1 shows their traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through to the lines below
    print_anywhere()
    try:
        ranks.set_up()
        if ranks.COMPOSED in os.environ:
            from forge.launching.processes import composed

            main(composed())
            return
        sys.argv[1:] = one_word_each(sys.argv[1:])
        if any(word.startswith("resume=") for word in sys.argv):
            from forge.launching.resume import resumed_arguments

            sys.argv[1:] = resumed_arguments(sys.argv[1:])
        main()
    except AssertionError as error:  # OmegaConf's, for +launcher.x=1 where launcher is null
        if in_run or "Unexpected type for root" not in str(error):
            raise
        stop(UserError("a key below a null: choose an option of its group first (launcher=ddp)"))
    except BrokenPipeError:
        sys.exit(leave_quietly())
    except (*USER_ERRORS, Failure, OSError, ValueError) as error:
        if TRACEBACKS or (in_run and not isinstance(error, (*USER_ERRORS, Failure))):
            raise
        stop(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        if code := getattr(error, "exit_code", None):  # forge.errors.Preempted
            sys.exit(code)
        raise


if __name__ == "__main__":
    cli()
