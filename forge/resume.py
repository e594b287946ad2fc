"""`resume=DIR`: go on in a run's or a sweep's directory, with the config that it recorded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from forge.config import SWEEP, Config, dotted_values, override, quoted
from forge.errors import USER_ERRORS, UserError
from forge.record import MASK, METADATA, NOT_COMPARED, STATE, plain, read_json

log = logging.getLogger(__name__)
SWEPT = "multirun.yaml"  # Hydra's record of a sweep
# What may change without changing what the finished part of a run computed.
FREE = (*NOT_COMPARED, "callbacks", "trainer.max_steps", "trainer.num_train_epochs")
FREE_TRAINER = ("save_", "logging_", "dataloader_num_workers", "per_device_eval_batch_size")


def settle(arguments: list[str]) -> list[str]:
    """The command line with the directory of `resume=` in Hydra's quotes, or, of a sweep that it
    names, the sweep's own to be given again."""
    given = [word for word in arguments if word.startswith("resume=")]
    named = given[-1].removeprefix("resume=") if given else "null"
    if named == "null":
        return arguments
    folder = Path(named if Path(named).exists() else str(_parsed(f"resume={named}").value()))
    ours = [word for word in arguments if word not in given]
    if (folder / METADATA).is_file():
        return [*ours, f"resume={quoted(str(folder.absolute()))}"]  # a run may be called sweep
    if not (folder / SWEPT).is_file():
        above = (folder.parent / METADATA).is_file()
        run = f"; its run is {override('resume', str(folder.parent))}" if above else ""
        raise UserError(f"resume={folder}: no run and no sweep in this directory{run}")
    return _of_sweep(folder, [word for word in ours if word not in ("-m", "--multirun")])


def _of_sweep(folder: Path, ours: list[str]) -> list[str]:
    recorded = _recorded_sweep(folder)
    words, replaced = list(recorded.overrides.task), {_key(word) for word in ours}
    swept = {_key(word) for word in words if _sweeps(word)} | {*(recorded.sweeper.params or ())}
    if both := sorted(swept & replaced):
        raise UserError(
            f"{both[0]}: the sweep in {folder} is over it; start a new sweep for others"
        )
    if any(folder.glob(f"*/{METADATA}")):
        _require_same(ours, words, folder)
    given = {"resume", *(word.split("=", 1)[0] for word in ours)}
    kept = [word for word in words if word.split("=", 1)[0] not in given]
    for word in kept:
        if _key(word) not in replaced:
            _require_known(_key(word), word)
    own = [w for w in recorded.overrides.hydra if _key(w) not in ("hydra.mode", "hydra.sweep.dir")]
    return ["-m", *kept, *own, *ours, f"resume={SWEEP}", f"hydra.sweep.dir={quoted(str(folder))}"]


def _recorded_sweep(folder: Path) -> Any:
    """What Hydra recorded of a sweep; raises `UserError` for a file that was not written whole."""
    try:
        recorded = OmegaConf.load(folder / SWEPT).hydra
        assert recorded.verbose is not None  # the last that is written
    except (*USER_ERRORS, OSError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{folder / SWEPT}: cannot be read; give the sweep's command again with "
            f"{override('hydra.sweep.dir', str(folder))}"
        ) from error
    return recorded


def _require_same(ours: list[str], words: list[str], folder: Path) -> None:
    """Raise `UserError` for what would part the runs to come from those that there are."""
    secrets = {_key(word) for word in words if MASK in word}
    for word in ours:
        key = _key(word)
        apart = word.startswith(("-", "hydra")) or key in secrets or is_free(key)
        if not apart and word not in words:
            raise UserError(f"{key}: the runs in {folder} are not of {word}; start a new sweep")


def _key(word: str) -> str:
    return word.lstrip("+~").split("=", 1)[0]


def _require_known(key: str, value: Any) -> None:
    """Raise `UserError` for a secret, which a record does not hold."""
    if MASK in str(value):
        raise UserError(f"{key}: a secret, which is not recorded; give it again with {key}=…")


def _sweeps(word: str) -> bool:
    """Whether an override names several values."""
    return bool(_parsed(word).is_sweep_override())


def _parsed(word: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(word)


def recorded_config(cfg: DictConfig, run_dir: Path) -> DictConfig:
    """The config that a run directory recorded, with this command's overrides on top.

    A job of a resumed sweep that never started keeps its composition. Raises `UserError` when there
    is no run, or for an override that would change what the finished part computed.
    """
    if cfg.resume != SWEEP and run_dir.resolve() != Path(cfg.resume).resolve():
        raise UserError(
            f"resume={cfg.resume}: the run goes on in its own directory; leave out -m, launcher= "
            "and hydra.run.dir="
        )
    metadata = read_json(run_dir / METADATA)
    if not metadata:
        return cfg
    found = OmegaConf.merge(OmegaConf.structured(Config), metadata["config"])
    assert isinstance(found, DictConfig)
    for key, value in dotted_values(metadata["config"]):
        if MASK in str(value):
            now = OmegaConf.select(cfg, key)
            _require_known(key, value if now is None else now)
            OmegaConf.update(found, key, now)
    _say_changes(metadata)
    _apply(found, cfg, metadata, read_json(run_dir / STATE))
    return found


def _apply(
    found: DictConfig, cfg: DictConfig, metadata: dict[str, Any], state: dict[str, Any]
) -> None:
    """Put the command line's keys onto the recorded config of a run that stands at `state`."""
    done = {"trainer.max_steps": "step", "trainer.num_train_epochs": "epoch"}
    chosen = HydraConfig.get().runtime.choices
    for key in map(_key, HydraConfig.get().overrides.task):
        node = key.partition("@")[2] or key.replace("/", ".")  # a group's, e.g. model@teacher
        value, before = OmegaConf.select(cfg, node), OmegaConf.select(found, node)
        if key == "experiment":
            value, before = chosen.get(key), metadata.get("choices", {}).get(key)
        choice = "." not in key or node != key
        if key == "resume" or value == before or (cfg.resume == SWEEP and choice):
            continue  # a sweep's choices are those of its first command
        if not is_free(key):
            raise UserError(
                f"{key}: the run was made with another ({_short(before)}), and a change would "
                "touch what its finished part computed; start a new run for it"
            )
        behind = round(state.get(done.get(key, "")) or 0, 2)
        if isinstance(value, int | float) and 0 <= value < behind:
            raise UserError(
                f"{key}={value}: {behind} {done[key]}s are done; a run can only be extended"
            )
        OmegaConf.update(found, key, value, merge=False, force_add=True)
        log.info("resume  %s=%s (recorded: %s)", key, _short(value), _short(before))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def is_free(key: str) -> bool:
    """Whether a key may change in a run that goes on."""
    if key.split(".")[0] in FREE or key in FREE:
        return True
    name = key.removeprefix("trainer.")
    return name != key and name.startswith(FREE_TRAINER)


def _say_changes(metadata: dict[str, Any]) -> None:
    """Name what conf/ would compose otherwise today."""
    from hydra import compose

    try:
        today = plain(compose("config", list(metadata.get("overrides", ()))))
    except USER_ERRORS as error:
        log.warning(
            "resume  conf/ no longer composes this run (%s); its recorded config counts", error
        )
        return
    ours, theirs = dict(dotted_values(metadata["config"])), dict(dotted_values(today))
    differ = [key for key in sorted(ours.keys() & theirs.keys()) if ours[key] != theirs[key]]
    differ = [key for key in differ if not is_free(key)]
    if differ:
        log.warning(
            "resume  conf/ has changed since (%s); the recorded config counts",
            ", ".join(differ[:5]),
        )
