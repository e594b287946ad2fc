"""What of a trainer's settings cannot be met here."""

from types import SimpleNamespace

import pytest
import torch

from forge.errors import UserError
from forge.training.arguments import require_sharding


@pytest.mark.parametrize(
    ("device", "processes", "reason"),
    [
        ("cpu", "1", "these are on a CPU"),
        ("cpu", "2", "these are on a CPU"),  # accelerate shards on accelerators only
        ("cuda", "1", "this is one process"),
        ("cuda", "2", None),
    ],
)
def test_sharding_needs_several_processes_with_a_gpu_each(monkeypatch, device, processes, reason):
    monkeypatch.setenv("WORLD_SIZE", processes)
    args = SimpleNamespace(fsdp=["full_shard"], device=torch.device(device))
    if reason is None:
        require_sharding(args)
    else:
        with pytest.raises(UserError, match=rf"trainer\.fsdp: .*{reason}"):
            require_sharding(args)
    require_sharding(SimpleNamespace(fsdp=[], device=torch.device(device)))
