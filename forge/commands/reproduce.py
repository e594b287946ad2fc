"""`python -m forge reproduce RUN [--run]`: the command of a run, what is other here, equal bits?"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from forge.commands.verify import LAUNCH
from forge.config import compose as config_compose
from forge.config.compose import dotted_values
from forge.config.schema import Node, Precision
from forge.errors import USER_ERRORS, Failure, UserError, one_line
from forge.launching.resume import config_options
from forge.records.environment import environment, git
from forge.records.files import Json, finite
from forge.records.record import NOT_COMPARED, plain
from forge.records.recorded import key_of, recomposed
from forge.records.secrets import MASK
from forge.results import equality
from forge.results.runs import Run, read_run

UNKNOWN = "unknown"
LONGER = ("trainer.max_steps", "trainer.num_train_epochs")  # what resume= may extend


def main(path: Path, run_it: bool, out: Path | None, as_json: bool) -> int:
    """Print the command and what is other here; with `run_it` run it and compare.

    1 when metrics or weights are not identical. Raises `Failure` when the new run fails.
    """
    run = read_run(path)
    if "attempts" not in run.metadata:
        raise UserError(f"{path}: no run in this directory")
    arguments, notes = command(run)
    notes += differences(run)
    document: Json = {"run": str(path), "command": spelled(arguments), "notes": notes}
    if not as_json:
        same = ["as recorded: commit, versions, device and config"]
        print("\n".join([document["command"], *(f"  {n}" for n in notes or same)]), flush=True)
    if run_it:
        stamp = time.strftime("%Y%m%d-%H%M%SZ", time.gmtime())
        new = out or Path("outputs", "reproduced", f"{path.absolute().name}-{stamp}")
        _require(run, new)
        _launch([*arguments, f"hydra.run.dir={config_compose.quoted(str(new))}"], as_json)
        unequal = list(equality.unequal_outcomes(path, new))
        document |= {"new": str(new), "identical": not unequal, "differences": unequal}
        if not as_json:
            equal = "identical: metrics and weights, to the bit"
            print(f"{'not identical' if unequal else equal} ({new})", *unequal, sep="\n")
    if as_json:
        print(json.dumps(finite(document), indent=2, allow_nan=False))
    return 0 if document.get("identical", True) else 1


def _require(run: Run, new: Path) -> None:
    if not run.results:
        raise UserError(f"{run.path}: this run is not finished; there is nothing to compare with")
    if new.exists() and not (new.is_dir() and not any(new.iterdir())):
        raise UserError(f"--out={new}: it is there already; name a new directory")


def spelled(arguments: list[str]) -> str:
    """As one types it."""
    return shlex.join(["python", "launch.py", *arguments])


def command(run: Run) -> tuple[list[str], list[str]]:
    """The arguments of launch.py that compose the recorded config now, and notes on them.

    Where a run was and where its curves went are left out; its number of processes is kept.
    """
    metadata, recorded = run.metadata, run.metadata["config"]
    composed = plain(recomposed(recorded, []))
    first = [each for each in metadata.get("overrides", ()) if _root(each) not in NOT_COMPARED]
    notes = [f"{key_of(o)}: a secret, which no run records; give it" for o in first if MASK in o]
    file = run.path / ".hydra" / "hydra.yaml"
    began = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    assert isinstance(began, dict)
    options = config_options(began.get("hydra", {}))
    arguments = [*options, *(each for each in first if MASK not in each)]
    try:
        today = _compose(arguments)
    except USER_ERRORS as error:
        why = one_line(str(error))[:200]
        notes.append(f"conf/ no longer composes it ({why}); every key is given instead")
        today = _compose(arguments := [])
    more = list(_overrides(today, composed))
    replaced = {key_of(each) for each in more}
    arguments = [a for a in arguments if a[0] in "+~-" or key_of(a) not in replaced] + more
    notes += [f"{each}: as recorded; conf/ and the first command say otherwise" for each in more]
    newer = dict(dotted_values(composed)).keys() - dict(dotted_values(recorded)).keys()
    notes += [f"{key}: newer than the run; its default is taken" for key in sorted(newer)]
    if replaced & set(LONGER) and len(metadata["attempts"]) > 1:
        notes.append("the run was extended by resume=, which no single run repeats to the bit")
    arguments += [*_precision(run), *_teacher(run)]
    if (count := metadata.get("processes", 1)) > 1:
        arguments += ["launcher=ddp", f"launcher.processes={count}"]
    if any(key_of(each) == "experiment" for each in arguments):
        arguments.append("hydra.mode=RUN")  # it may be of a sweep
    folder = OmegaConf.select(OmegaConf.create(began), "hydra.runtime.cwd")
    if folder not in (None, str(Path.cwd())):
        notes.append(f"directory: the run began in {folder}, from where its relative paths count")
    return arguments, notes


def _root(override: str) -> str:
    return re.split("[.@/]", key_of(override))[0]


def _compose(arguments: list[str]) -> Node:
    """The config that a command has today."""
    from hydra import compose

    with config_compose.composing():
        return plain(compose("config", config_compose.searched(arguments)))


def _overrides(ours: Node, theirs: Node, prefix: str = "") -> Iterator[str]:
    """Overrides that turn our config into theirs."""
    for key in dict.fromkeys([*theirs, *ours]):
        name, before, value = f"{prefix}{key}", ours.get(key), theirs.get(key)
        same = key in ours and key in theirs and before == value
        if name in NOT_COMPARED or value == MASK or same:
            continue  # a secret is said
        if key not in theirs:
            yield f"~{name}"
        elif isinstance(before, dict) and isinstance(value, dict):
            yield from _overrides(before, value, f"{name}.")
        else:
            yield f"{'' if key in ours else '+'}{name}={config_compose.quoted(value)}"


def _precision(run: Run) -> list[str]:
    """The precision that `auto` chose, where it would choose another here."""
    import torch

    from forge.training.arguments import resolve_precision

    config, chosen = run.metadata["config"], run.metadata.get("precision")
    on_cpu = bool(config["trainer"].get("use_cpu")) or not torch.accelerator.is_available()
    if not chosen or config["precision"] != Precision.auto.value:
        return []
    here = resolve_precision(Precision.auto, on_cpu).value
    return [] if here == chosen else [f"precision={chosen}"]


def _teacher(run: Run) -> list[str]:
    """The teacher that was found or trained for a run that named none."""
    paths = run.metadata.get("teacher", {}).get("paths", [])
    if not paths or run.metadata["config"]["teacher"]["path"] or not Path(paths[0]).is_dir():
        return []
    return [f"teacher.path={config_compose.quoted(paths[0])}"]


def differences(run: Run) -> list[str]:
    """A line for each thing that is other here than what the run recorded."""
    attempts, here, code = run.metadata["attempts"], environment(), git()
    commits = list(dict.fromkeys(str(a["commit"])[:10] for a in attempts if a.get("commit")))
    lines = []
    if len(commits) > 1:
        lines.append(f"commit: its attempts ran {', '.join(commits)}")
    now, then = str(code.get("commit", UNKNOWN))[:10], (commits or [UNKNOWN])[-1]
    if UNKNOWN in (now, then):
        why = f" ({code['unreadable']})" if "unreadable" in code else ""
        lines.append(f"commit: {now} here{why}, {then} recorded: it may be other code")
    elif now != then:
        lines.append(f"commit: {now} here, {then} recorded")
    if any(attempt.get("dirty") for attempt in attempts):
        lines.append("code: the run had changes that no commit holds")
    if code.get("dirty"):
        lines.append("code: the files here have changes that no commit holds")
    recorded = run.metadata.get("versions", {})
    for name in dict.fromkeys([*recorded, *here["versions"]]):
        if (ours := here["versions"].get(name)) != (theirs := recorded.get(name)):
            lines.append(f"{name}: {ours} here, {theirs} recorded")
    for name, own in (("device", here["device"]), ("devices", here["devices"])):
        if own != run.metadata.get(name):
            lines.append(f"{name}: {own} here, {run.metadata.get(name)} recorded")
    return lines


def _launch(arguments: list[str], quiet: bool) -> None:
    done = subprocess.run(
        [sys.executable, str(LAUNCH), *arguments], stdout=sys.stderr if quiet else None, check=False
    )
    if done.returncode:
        raise Failure(f"the run ended with code {done.returncode}")
