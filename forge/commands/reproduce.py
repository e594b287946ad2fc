"""`python -m forge reproduce RUN [--run]`: the command of a run, what is other here, equal bits?"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

from omegaconf import OmegaConf

from forge.commands.verify import LAUNCH
from forge.config import compose as config_compose
from forge.config.schema import Config, Model, Node, Precision, Teacher
from forge.errors import USER_ERRORS, Failure, UserError, one_line
from forge.records import checkpoints
from forge.records.environment import environment, git
from forge.records.files import Json
from forge.records.record import NOT_COMPARED, plain
from forge.records.secrets import MASK
from forge.results import examine
from forge.results.equality import TIMED
from forge.results.runs import Run, read_run

UNKNOWN = "unknown"
LONGER = ("trainer.max_steps", "trainer.num_train_epochs")  # what resume= may extend
SCHEMA = {
    "": Config,
    "model.": Model,
    "teacher.": Teacher,
}  # a key of theirs is never taken out


def main(path: Path, run_it: bool, out: Path | None, as_json: bool) -> int:
    """Print the command and what is other here; with `run_it` run it and compare.

    1 when metrics or weights are not identical. Raises `Failure` when the new run fails.
    """
    run = read_run(path)
    if "attempts" not in run.metadata:
        raise UserError(f"{path}: no run in this directory")
    words, notes = command(run)
    notes += differences(run)
    told: Json = {"run": str(path), "command": spelled(words), "notes": notes}
    if not as_json:
        same = ["as recorded: commit, versions, device and config"]
        print("\n".join([told["command"], *(f"  {line}" for line in notes or same)]), flush=True)
    if run_it:
        stamp = time.strftime("%Y%m%d-%H%M%SZ", time.gmtime())
        new = out or Path("outputs", "reproduced", f"{path.absolute().name}-{stamp}")
        _require(run, new)
        _launch([*words, f"hydra.run.dir={config_compose.quoted(str(new))}"], as_json)
        told |= {"new": str(new)} | compared(path, new)
        if not as_json:
            print(_verdict(told))
    if as_json:
        print(json.dumps(examine.plain(told), indent=2, allow_nan=False))
    return 0 if told.get("identical", True) else 1


def _require(run: Run, new: Path) -> None:
    if not run.results:
        raise UserError(f"{run.path}: this run is not finished; there is nothing to compare with")
    if new.exists() and not (new.is_dir() and not any(new.iterdir())):
        raise UserError(f"--out={new}: it is there already; name a new directory")


def spelled(words: list[str]) -> str:
    """As one types it."""
    return shlex.join(["python", "launch.py", *words])


def command(run: Run) -> tuple[list[str], list[str]]:
    """The words after launch.py that compose the recorded config now, and notes on them.

    Where a run was and where its curves went are left out; its number of processes is kept.
    """
    metadata, recorded = run.metadata, run.metadata["config"]
    words = [word for word in metadata.get("overrides", ()) if _root(word) not in NOT_COMPARED]
    notes = [f"{_key(w)}: a secret, which no run records; give it" for w in words if MASK in w]
    words = [*_config_dir(metadata), *(word for word in words if MASK not in word)]
    with config_compose.composing():
        try:
            today, sweeps = _compose(words)
        except USER_ERRORS as error:
            why = one_line(str(error))[:200]
            notes.append(f"conf/ no longer composes it ({why}); every key is given instead")
            today, sweeps = _compose(words := [])
        more, unknown = _overrides(today, recorded)
        replaced = {_key(word) for word in more}
        words = [word for word in words if word[0] in "+~-" or _key(word) not in replaced] + more
        left, _ = _overrides(_compose(words)[0], recorded)
    notes += [f"{word}: as recorded; conf/ and the first command say otherwise" for word in more]
    notes += [f"{key}: newer than the run; its default is taken" for key in unknown]
    notes += [f"{word}: recorded, but it cannot be given; the runs will differ" for word in left]
    if replaced & set(LONGER) and len(metadata["attempts"]) > 1:
        notes.append("the run was extended by resume=, which no single run repeats to the bit")
    words += [*_precision(run), *_teacher(run)]
    if (count := metadata.get("processes", 1)) > 1:
        words += ["launcher=ddp", f"launcher.processes={count}"]
    return [*words, *(["hydra.mode=RUN"] if sweeps else [])], notes + _place(run, words)


def _key(word: str) -> str:
    return word.lstrip("+~").split("=", 1)[0]


def _root(word: str) -> str:
    return _key(word).split(".")[0].split("@")[0].split("/")[0]


def _config_dir(metadata: Json) -> list[str]:
    """`--config-dir` as the first command had it."""
    typed = metadata["attempts"][0]["command"]
    pairs = zip(typed, [*typed[1:], ""], strict=True)
    found = [after for word, after in pairs if word in ("--config-dir", "-cd")]
    found += [word.split("=", 1)[1] for word in typed if word.startswith("--config-dir=")]
    return [f"--config-dir={folder}" for folder in found]


def _compose(words: list[str]) -> tuple[Node, bool]:
    """The config that a command has today, and whether it would start a sweep."""
    from hydra import compose
    from hydra.types import RunMode

    given = config_compose.searched(words)
    mode = compose("config", given, return_hydra_config=True).hydra.mode
    return plain(compose("config", given)), mode is RunMode.MULTIRUN


def _overrides(ours: Node, theirs: Node, prefix: str = "") -> tuple[list[str], list[str]]:
    """Overrides that turn our config into theirs, and keys of the schema that theirs lacks."""
    words: list[str] = []
    unknown: list[str] = []
    schema = {f.name for f in fields(SCHEMA[prefix])} if prefix in SCHEMA else set()
    for key in dict.fromkeys([*theirs, *ours]):
        name = f"{prefix}{key}"
        if name in NOT_COMPARED or (key in ours and key in theirs and ours[key] == theirs[key]):
            continue
        if theirs.get(key) == MASK:
            continue  # which is said
        if key not in theirs:
            (unknown if key in schema else words).append(name if key in schema else f"~{name}")
        elif isinstance(ours.get(key), dict) and isinstance(theirs[key], dict):
            for found, below in zip(
                (words, unknown), _overrides(ours[key], theirs[key], f"{name}."), strict=True
            ):
                found += below
        else:
            words.append(f"{'' if key in ours else '+'}{name}={config_compose.quoted(theirs[key])}")
    return words, unknown


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


def _place(run: Run, words: list[str]) -> list[str]:
    """Where the run was started, when paths that the command names count from there."""
    file = run.path / ".hydra" / "hydra.yaml"
    relative = [
        word
        for word in words
        if re.search(r"(path|dir|files\.\w+)$", _key(word)) and re.search(r"=['\[]*[\w.]", word)
    ]
    if not relative or not file.is_file():
        return []
    began = OmegaConf.select(OmegaConf.load(file), "hydra.runtime.cwd")
    return [] if began in (None, str(Path.cwd())) else [f"{_key(relative[0])}: counts from {began}"]


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


def _launch(words: list[str], quiet: bool) -> None:
    done = subprocess.run(
        [sys.executable, str(LAUNCH), *words], stdout=sys.stderr if quiet else None, check=False
    )
    if done.returncode:
        raise Failure(f"the run ended with code {done.returncode}")


def compared(path: Path, new: Path) -> Json:
    """Whether two runs have the same metrics, weights and rows; each difference with its size."""
    old, fresh = read_run(path), read_run(new)
    metrics = {
        f"{split} {name}": [value, fresh.results["splits"].get(split, {}).get(name)]
        for split, scores in old.results["splits"].items()
        for name, value in scores.items()
        if not any(word in name for word in TIMED)
    }
    metrics = {
        name: both for name, both in metrics.items() if str(both[0]) != str(both[1])
    }  # NaN is NaN
    data = [run.metadata.get("data", {}) for run in (old, fresh)]
    rows = [
        s for s in data[0] if data[0][s]["fingerprint"] != data[1].get(s, {}).get("fingerprint")
    ]
    weights = _weights(path / "model", new / "model")
    same = not (metrics or weights or rows)
    return {"identical": same, "rows": rows, "metrics": metrics, "weights": weights}


def _weights(old: Path, new: Path) -> dict[str, float | str]:
    """For each tensor that is not the same the largest difference."""
    found: dict[str, float | str] = {}
    sides = [checkpoints.weights(folder) for folder in (old, new)]
    if not all(sides):
        return {"model.safetensors": "missing"}
    for name in sorted(sides[0].keys() | sides[1].keys()):
        if name not in sides[0] or name not in sides[1]:
            found[name] = "in one of them only"
            continue
        a, b = (side[name] for side in sides)
        if a.shape != b.shape:
            found[name] = f"{list(a.shape)} and {list(b.shape)}"
        elif not a.equal(b):
            found[name] = float((a.float() - b.float()).abs().max())
    return found


def _verdict(told: Json) -> str:
    """Identical, or the largest difference of each kind."""
    if told["identical"]:
        return f"identical: metrics and weights, to the bit ({told['new']})"
    lines = [f"not identical ({told['new']})"]
    lines += [f"rows: split {split} holds others" for split in told["rows"]]
    for name, (old, new) in told["metrics"].items():
        by = f", {new - old:+.3g}" if isinstance(new, int | float) else ""
        lines.append(f"{name}: {new}, recorded {old}{by}")
    numbers = {k: v for k, v in told["weights"].items() if not isinstance(v, str)}
    lines += [f"weights: {k} {v}" for k, v in told["weights"].items() if isinstance(v, str)][:5]
    if numbers:
        worst = max(numbers, key=lambda name: numbers[name])
        lines.append(f"weights: {len(numbers)} tensors, by at most {numbers[worst]:.3g} ({worst})")
    if not told["metrics"]:
        lines.append("metrics: identical")
    return "\n".join(lines)
