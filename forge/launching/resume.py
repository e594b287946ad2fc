"""`resume=DIR` on the command line: a run's directory, or a sweep's own overrides, given again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from forge.config.compose import override, quoted
from forge.config.schema import SWEEP, Node
from forge.errors import USER_ERRORS, UserError
from forge.records import plan
from forge.records.files import METADATA
from forge.records.recorded import is_free, key_of, require_known
from forge.records.secrets import MASK

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SWEPT = "multirun.yaml"  # Hydra's record of a sweep
CONFIG_NAME = "config"  # as in launch.py


def resumed_arguments(arguments: list[str]) -> list[str]:
    """The command line with the directory of `resume=` in Hydra's quotes, or, of a sweep that it
    names, the sweep's own to be given again."""
    given = [each for each in arguments if each.startswith("resume=")]
    named = given[-1].removeprefix("resume=") if given else "null"
    if named == "null":
        return arguments
    folder = Path(named if Path(named).exists() else str(_parsed(f"resume={named}").value()))
    ours = [each for each in arguments if each not in given]
    if (folder / METADATA).is_file():
        return [*ours, f"resume={quoted(str(folder.absolute()))}"]  # a run may be called sweep
    if not (folder / SWEPT).is_file():
        above = (folder.parent / METADATA).is_file()
        run = f"; its run is {override('resume', str(folder.parent))}" if above else ""
        raise UserError(f"resume={folder}: no run and no sweep in this directory{run}")
    return _of_sweep(folder, [each for each in ours if each not in ("-m", "--multirun")])


def _of_sweep(folder: Path, ours: list[str]) -> list[str]:
    """What starts the sweep in a folder again: the overrides that its jobs share, then `ours`.

    What it is over is in its plan; of a search and of an earlier version's sweep it is among its
    overrides.
    """
    recorded = _recorded_sweep(folder)
    overrides, replaced = recorded["overrides"]["task"], {key_of(each) for each in ours}
    params = recorded["sweeper"].get("params") or {}
    swept = {key_of(each) for each in overrides if _sweeps(each)} | {*params}
    if both := sorted(swept & replaced):
        raise UserError(
            f"{both[0]}: the sweep in {folder} is over it; start a new sweep for others"
        )
    if any((path / METADATA).is_file() for path in plan.directories(folder).values()):
        _require_same(ours, overrides, folder)
    given = {"resume", *(each.split("=", 1)[0] for each in ours)}
    kept = [each for each in overrides if each.split("=", 1)[0] not in given]
    own = recorded["overrides"]["hydra"]
    own = [each for each in own if key_of(each) not in {"hydra.mode", "hydra.sweep.dir", *replaced}]
    search = "BasicSweeper" not in recorded["sweeper"].get("_target_", "BasicSweeper")
    if plan.read(folder) and not search:
        kept = [each for each in kept if key_of(each) not in swept]
        own = [each for each in own if key_of(each) != "hydra.sweeper.params"]
        own += ["hydra.sweeper.params=null"] if params else []
    for each in (*kept, *own):
        if key_of(each) not in replaced:
            require_known(key_of(each), each)
    options = [] if any(each.startswith("--config-") for each in ours) else config_options(recorded)
    place = f"hydra.sweep.dir={quoted(str(folder))}"
    return ["-m", *options, *kept, *own, *ours, f"resume={SWEEP}", place]


def config_options(recorded: Node) -> list[str]:
    """Hydra's options of a recorded command that name configs."""
    sources = recorded.get("runtime", {}).get("config_sources") or []
    folders = [source["path"] for source in sources if source["provider"] == "command-line"]
    name = recorded.get("job", {}).get("config_name") or CONFIG_NAME
    named = [f"--config-name={name}"] if name != CONFIG_NAME else []
    return [*(f"--config-dir={path}" for path in folders), *named]


def _recorded_sweep(folder: Path) -> Node:
    """What Hydra recorded of a sweep, as it was typed; raises `UserError` for a file that was not
    written whole."""
    try:
        file = OmegaConf.to_container(OmegaConf.load(folder / SWEPT))
        assert isinstance(file, dict)
        recorded: Node = file["hydra"]
        assert recorded["verbose"] is not None  # the last that is written
    except (*USER_ERRORS, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{folder / SWEPT}: cannot be read; give the sweep's command again with "
            f"{override('hydra.sweep.dir', str(folder))}"
        ) from error
    return recorded


def _require_same(ours: list[str], overrides: list[str], folder: Path) -> None:
    """Raise `UserError` for what would part the runs to come from those that there are."""
    secrets = {key_of(each) for each in overrides if MASK in each}
    for each in ours:
        key = key_of(each)
        apart = each.startswith(("-", "hydra")) or key in secrets or is_free(key)
        if not apart and each not in overrides:
            raise UserError(f"{key}: the runs in {folder} are not of {each}; start a new sweep")


def _sweeps(text: str) -> bool:
    """Whether an override names several values."""
    return bool(_parsed(text).is_sweep_override())


def _parsed(text: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(text)
