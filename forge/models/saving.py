"""A model's weights written so that a later version reads them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from forge.errors import UserError
from forge.models import lora
from forge.records.files import follow_umask

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def save(
    model: PreTrainedModel, folder: Path, state_dict: dict[str, Tensor] | None, checkpoint: bool
) -> None:
    """Weights and config; of an adapted model the adapter, and the config beside it.

    A `checkpoint` keeps the names that the weights have here. Elsewhere they get those of the
    architecture's first release (vit, qwen3_moe, …), which `from_pretrained` translates back and
    `load_state_dict`, as transformers reads a checkpoint, does not.
    """
    if lora.is_adapted(model):
        lora.save(model, str(folder))
    else:
        model.save_pretrained(folder, state_dict=state_dict, save_original_format=not checkpoint)
    follow_umask(*folder.glob("*.safetensors"))


def require_all(model: nn.Module, missing: Collection[str]) -> None:
    """Raise `UserError` where a weight that a checkpoint lacks is not tied to one that it has."""
    state = model.state_dict(keep_vars=True)
    read = {id(weight) for name, weight in state.items() if name not in missing}
    if lost := [name for name in missing if name in state and id(state[name]) not in read]:
        raise UserError(
            f"the checkpoint lacks {len(lost)} of the model's weights ({lost[0]}, …): another "
            "version of transformers or Forge wrote it; leave hydra.run.dir out to start anew"
        )
