"""Are two runs equal to the bit?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forge.records import checkpoints
from forge.records.files import METADATA, RESULTS, read_json

TIMED = ("runtime", "second", "flos", "step_time")  # parts of the names of what no two runs share


def differences(one: Path, other: Path) -> Iterator[str]:
    """The first of each kind of thing that differs, as text."""
    import torch

    folders = [next(iter(checkpoints.steps(run_dir).values())) for run_dir in (one, other)]
    for name, places in {
        "weights": [one / "model", other / "model"],
        "last weights": folders,
    }.items():
        yield from unequal(name, *map(checkpoints.weights, places))
    random_states = sorted(path.name for path in folders[0].glob("rng_state*.pth"))  # of each rank
    for name in ("optimizer.pt", "scheduler.pt", *random_states):
        with torch.serialization.safe_globals(_numpy_globals()):
            states = [torch.load(folder / name, weights_only=True) for folder in folders]
        yield from unequal(name, *states)
    curves = [json.loads((f / "trainer_state.json").read_text())["log_history"] for f in folders]
    yield from unequal("loss curve", *curves)
    results = [read_json(run_dir / RESULTS)["splits"] for run_dir in (one, other)]
    yield from unequal("results", *results)


def unequal_outcomes(one: Path, other: Path) -> Iterator[str]:
    """Every difference of two finished runs' metrics, weights and rows, as text."""
    results = [read_json(run_dir / RESULTS)["splits"] for run_dir in (one, other)]
    yield from unequal("metrics", *results)
    data = [read_json(run_dir / METADATA).get("data", {}) for run_dir in (one, other)]
    rows = [{split: facts.get("fingerprint") for split, facts in d.items()} for d in data]
    yield from unequal("rows", *rows)
    weights = [checkpoints.weights(run_dir / "model") for run_dir in (one, other)]
    yield from unequal("weights", *weights) if all(weights) else ["weights: missing"]


def _numpy_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What transformers' random state holds beside tensors."""
    import numpy as np

    return [
        np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
    ]


def unequal(where: str, a: object, b: object) -> Iterator[str]:
    """Every place in nested values where the two differ."""
    import numpy as np
    import torch

    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if not any(part in str(key) for part in TIMED):
                yield from unequal(f"{where}: {key}", a.get(key), b.get(key))
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from unequal(f"{where}[{i}]", *pair)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape:
            yield f"{where}: shapes {list(a.shape)} and {list(b.shape)}"
        elif not torch.equal(a, b):
            most = float((a.double() - b.double()).abs().max())
            yield f"{where}, {int((a != b).sum())} of {a.numel()} numbers, by at most {most:.3g}"
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if not np.array_equal(a, b):
            yield where
    elif a != b and str(a) != str(b):  # NaN is NaN
        yield f"{where}: {a} and {b}"
