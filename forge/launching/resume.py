"""`resume=DIR` on the command line: a run's directory, or a sweep's own words to be given again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from forge.config.compose import override, quoted
from forge.config.schema import SWEEP
from forge.errors import USER_ERRORS, UserError
from forge.records import plan
from forge.records.files import METADATA
from forge.records.recorded import is_free, key_of, require_known
from forge.records.secrets import MASK

SWEPT = "multirun.yaml"  # Hydra's record of a sweep
CONFIG_NAME = "config"  # as in launch.py


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
    """What starts the sweep in a folder again: its words that its jobs share, then `ours`.

    What it is over is in its plan; of a search and of an earlier version's sweep it is among its
    words.
    """
    recorded = _recorded_sweep(folder)
    words, replaced = recorded["overrides"]["task"], {key_of(word) for word in ours}
    params = recorded["sweeper"].get("params") or {}
    swept = {key_of(word) for word in words if _sweeps(word)} | {*params}
    if both := sorted(swept & replaced):
        raise UserError(
            f"{both[0]}: the sweep in {folder} is over it; start a new sweep for others"
        )
    if any((path / METADATA).is_file() for path in plan.directories(folder).values()):
        _require_same(ours, words, folder)
    given = {"resume", *(word.split("=", 1)[0] for word in ours)}
    kept = [word for word in words if word.split("=", 1)[0] not in given]
    own = recorded["overrides"]["hydra"]
    own = [word for word in own if key_of(word) not in ("hydra.mode", "hydra.sweep.dir")]
    search = "BasicSweeper" not in recorded["sweeper"].get("_target_", "BasicSweeper")
    if plan.read(folder) and not search:
        kept = [word for word in kept if key_of(word) not in swept]
        own = [word for word in own if key_of(word) != "hydra.sweeper.params"]
        own += ["hydra.sweeper.params=null"] if params else []
    for word in kept:
        if key_of(word) not in replaced:
            require_known(key_of(word), word)
    options = [] if any(word.startswith("--config-") for word in ours) else _options(recorded)
    place = f"hydra.sweep.dir={quoted(str(folder))}"
    return ["-m", *options, *kept, *own, *ours, f"resume={SWEEP}", place]


def _options(recorded: dict[str, Any]) -> list[str]:
    """Hydra's options of the sweep's command that name configs."""
    sources = recorded.get("runtime", {}).get("config_sources") or []
    folders = [source["path"] for source in sources if source["provider"] == "command-line"]
    name = recorded.get("job", {}).get("config_name") or CONFIG_NAME
    named = [f"--config-name={name}"] if name != CONFIG_NAME else []
    return [*(f"--config-dir={path}" for path in folders), *named]


def _recorded_sweep(folder: Path) -> dict[str, Any]:
    """What Hydra recorded of a sweep, as it was typed; raises `UserError` for a file that was not
    written whole."""
    try:
        file: Any = OmegaConf.to_container(OmegaConf.load(folder / SWEPT))
        recorded: dict[str, Any] = file["hydra"]
        assert recorded["verbose"] is not None  # the last that is written
    except (*USER_ERRORS, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{folder / SWEPT}: cannot be read; give the sweep's command again with "
            f"{override('hydra.sweep.dir', str(folder))}"
        ) from error
    return recorded


def _require_same(ours: list[str], words: list[str], folder: Path) -> None:
    """Raise `UserError` for what would part the runs to come from those that there are."""
    secrets = {key_of(word) for word in words if MASK in word}
    for word in ours:
        key = key_of(word)
        apart = word.startswith(("-", "hydra")) or key in secrets or is_free(key)
        if not apart and word not in words:
            raise UserError(f"{key}: the runs in {folder} are not of {word}; start a new sweep")


def _sweeps(word: str) -> bool:
    """Whether an override names several values."""
    return bool(_parsed(word).is_sweep_override())


def _parsed(word: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(word)
