"""Import paths of earlier versions, so that their run directories and users' yamls still work.

`current` and `with_current_targets` are applied wherever a `_target_` is read, built or compared.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

MOVED = {  # old path: today's; a path that ends in .* stands for every name in its module
    "forge.callbacks.*": "forge.training.callbacks.*",
    "forge.data.load": "forge.data.sources.load",
    "forge.generation.Generation": "forge.tasks.kinds.prompt_text",
    "forge.losses.*": "forge.distillation.losses.*",
    "forge.rewards.*": "forge.reinforcement.rewards.*",
    "forge.tasks.Classification": "forge.tasks.kinds.text_label",
    "forge.tasks.Regression": "forge.tasks.kinds.text_number",
    "forge.tasks.from_files": "forge.tasks.kinds.text_files",
    "forge.tasks.kinds.image_files": "forge.tasks.media.image_files",
    "forge.tasks.kinds.image_label": "forge.tasks.media.image_label",
    "forge.toy.*": "forge.data.toy_nli.*",
    "forge.toy_math.*": "forge.data.toy_math.*",
    "forge.tracking.tensorboard": "forge.tracking.wandb.tensorboard",
    "forge.tracking.wandb": "forge.tracking.wandb.wandb",
}


def current(path: str) -> str:
    """Today's import path of what an earlier version had at `path`; any other path unchanged."""
    module, _, name = path.rpartition(".")
    everything = MOVED.get(f"{module}.*")
    return MOVED.get(path) or (f"{everything[:-1]}{name}" if everything else path)


def with_current_targets(value: T) -> T:
    """A copy of nested dicts and lists in which every `_target_` is today's."""
    if isinstance(value, dict):
        return type(value)(
            {
                key: current(below)
                if key == "_target_" and isinstance(below, str)
                else with_current_targets(below)
                for key, below in value.items()
            }
        )
    if isinstance(value, list):
        return [with_current_targets(below) for below in value]  # type: ignore[return-value]
    return value
