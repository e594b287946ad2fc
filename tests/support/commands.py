"""`python launch.py …` and `python -m forge …` as processes of their own, without the imports.

A server, one per test session, imports what a run needs and forks a process for every command.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch.py"
SERVER = multiprocessing.get_context("forkserver")
PRELOADED = """
    forge.tasks.metrics forge.modes.kd forge.modes.rl forge.modes.sft forge.tasks.task
    forge.data.toy_nli
    matplotlib.pyplot pyarrow.parquet rich.table scipy.stats sklearn.metrics torch._dynamo
    transformers.models.bert.modeling_bert
"""
SERVER.set_forkserver_preload(PRELOADED.split())


class Done(NamedTuple):
    """How a command ended: its exit code, and what it printed."""

    returncode: int | None
    stdout: str
    stderr: str


def launch(folder: Path, *overrides: str, **environment: str) -> Done:
    """`python launch.py OVERRIDES` in `folder`."""
    return _run(folder, [str(LAUNCH), *overrides], environment)


def forge(*words: str, folder: Path = ROOT) -> Done:
    """`python -m forge WORDS` in `folder`."""
    return _run(folder, ["forge", *words], {})


def _run(folder: Path, argv: list[str], environment: dict[str, str]) -> Done:
    env = {**os.environ, "HYDRA_FULL_ERROR": "", **environment}
    with tempfile.TemporaryDirectory() as scratch:
        printed = [Path(scratch, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_child, args=(argv, folder, env, printed))
        process.start()
        process.join(120)
        process.kill()  # nothing, when it has ended
        process.join()
        return Done(process.exitcode, *(path.read_text() for path in printed))


def _child(argv: list[str], folder: Path, env: dict[str, str], printed: list[Path]) -> None:
    for number, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = argv
    if argv[0] == "forge":
        runpy.run_module("forge", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")
