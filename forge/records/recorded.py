"""The config that a run recorded, with overrides on top."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from forge.config.compose import CONF, SEARCHPATH, composing, dotted_values
from forge.config.explain import explain
from forge.config.schema import SWEEP
from forge.errors import USER_ERRORS, UserError
from forge.records.files import METADATA, STATE, Json, read_json
from forge.records.record import NOT_COMPARED, plain
from forge.records.secrets import MASK

log = logging.getLogger(__name__)


STEPS, EPOCHS = "trainer.max_steps", "trainer.num_train_epochs"
# What may change without changing what the finished part of a run computed.
FREE = (*NOT_COMPARED, "callbacks", STEPS, EPOCHS)


FREE_TRAINER = ("save_", "logging_", "dataloader_num_workers", "per_device_eval_batch_size")


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").split("=", 1)[0]


def require_known(key: str, value: object) -> None:
    """Raise `UserError` for a secret, which a record does not hold."""
    if MASK in str(value):
        raise UserError(f"{key}: a secret, which is not recorded; give it again with {key}=…")


def recomposed(recorded: Mapping[str, object], overrides: list[str]) -> DictConfig:
    """A recorded config with overrides on top, in Hydra's grammar.

    An option of a group (`task=rte`) is conf/'s and replaces what was recorded. Raises
    `UserError` for overrides that do not fit.
    """
    from hydra import compose
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser

    node, defaults = {key: _literal(value) for key, value in recorded.items()}, []
    parsed = OverridesParser.create().parse_overrides(overrides)
    for one in parsed:
        group = one.key_or_group
        if (CONF / group).is_dir():
            place = f"{group}@{one.package}" if one.package else group
            defaults.append({place: one.value()})
            node.pop(str(one.package or group), None)
    primary = {"defaults": ["schema", *defaults, "_self_"], **node}
    ConfigStore.instance().store("recorded", primary)
    known: list[str] = []
    with composing():
        try:
            groups = [str(one.input_line) for one in parsed if one.key_or_group == SEARCHPATH]
            known = [key for key, _ in dotted_values(plain(compose("recorded", groups)))]
            return compose("recorded", overrides)
        except USER_ERRORS as error:
            raise UserError(explain(error, known)) from error


def _literal(value: object) -> object:
    """A recorded value with its texts escaped: they are resolved already."""
    if isinstance(value, dict):
        return {key: _literal(nested) for key, nested in value.items()}
    if isinstance(value, list):
        return [_literal(nested) for nested in value]
    escape = re.compile(r"(\\*)\$\{")
    return escape.sub(r"\1\1\\${", value) if isinstance(value, str) else value


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
    recorded = DictConfig(metadata["config"])
    for key, value in dotted_values(metadata["config"]):
        if MASK in str(value):
            now = OmegaConf.select(cfg, key)
            require_known(key, value if now is None else now)
            OmegaConf.update(recorded, key, now)
    _log_changes_of_conf(metadata)
    changes = _changes(recorded, cfg, metadata, read_json(run_dir / STATE))
    return recomposed(plain(recorded), changes)


def _changes(recorded: DictConfig, cfg: DictConfig, metadata: Json, state: Json) -> list[str]:
    """The command line's overrides that change the recorded config of a run in `state`.

    Raises `UserError` for one that may not.
    """
    changes = []
    done = {STEPS: "step", EPOCHS: "epoch"}
    chosen = HydraConfig.get().runtime.choices
    for each in HydraConfig.get().overrides.task:
        key = key_of(each)
        node = key.partition("@")[2] or key.replace("/", ".")  # a group's, e.g. model@teacher
        value, before = OmegaConf.select(cfg, node), OmegaConf.select(recorded, node)
        value = value.name if isinstance(value, Enum) else value
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
        changes.append(each)
        log.info("resume  %s=%s (recorded: %s)", key, _short(value), _short(before))
    given = {key_of(each) for each in HydraConfig.get().overrides.task}
    if EPOCHS in given and STEPS not in given and recorded.trainer.max_steps >= 0:
        changes.append(f"{STEPS}=-1")
        steps = recorded.trainer.max_steps
        log.info("resume  %s=-1 (recorded: %s), so that the epochs decide", STEPS, steps)
    return changes


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def is_free(key: str) -> bool:
    """Whether a key may change in a run that goes on."""
    if key.split(".")[0] in FREE or key in FREE:
        return True
    name = key.removeprefix("trainer.")
    return name != key and name.startswith(FREE_TRAINER)


def _log_changes_of_conf(metadata: Json) -> None:
    """Name what conf/ would compose otherwise today."""
    from hydra import compose

    try:
        with composing():
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
