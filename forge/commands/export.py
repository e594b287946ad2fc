"""`python -m forge export RUN --onnx | --merged`: the model for other runtimes, or as one piece.

What ONNX answers is checked against PyTorch.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forge.commands import finished
from forge.commands.finished import Finished
from forge.errors import Failure, UserError, one_line
from forge.models import loading, lora, saving
from forge.models.forward import REPEATS, milliseconds
from forge.records.files import Json, whole, write_json
from forge.records.logs import library_logs
from forge.tasks.recorded import recorded_task

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg
    from torch import Tensor

FILE, FACTS = "model.onnx", "export.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit


def export(path: Path, out: Path | None = None) -> Json:
    """The run's model as `model.onnx` in `out` (RUN/onnx), with its tokenizer and its labels.

    Raises `UserError` without the packages or a place to write, `Failure` when the model cannot be
    exported or its answers are not PyTorch's; nothing is left behind then.
    """
    run = finished.finished(path)
    if missing := [name for name in PACKAGES if not find_spec(name)]:
        raise UserError(
            f"export --onnx: {', '.join(missing)} not installed; pip install {' '.join(PACKAGES)}"
        )
    folder = out or path / "onnx"
    with library_logs():
        loaded = finished.load(run)
        if loaded.task.answer.alignment == "token":
            kind = loaded.model.config.model_type
            raise UserError(f"{run.path}: its model ({kind}) is no classifier")
        model, longest = loaded.model, loaded.limit
        rows = run.metadata.get("data", {}).values()
        length = min(longest, round(max((split["mean_length"] for split in rows), default=32)))
        try:
            with whole(folder, FACTS) as scratch:
                _save(loaded, scratch / FILE)
                size = sum(file.stat().st_size for file in scratch.glob(f"{FILE}*"))
                session = _session(scratch / FILE)
                facts = {
                    "run": str(path),
                    "folder": str(folder),
                    "inputs": [given.name for given in session.get_inputs()],
                    "types": [_type(given) for given in session.get_inputs()],
                    "outputs": list(loaded.task.answer.outputs),
                    "unit": loaded.task.input.unit,
                    "labels": loaded.labels,
                    **_checked(loaded, session, longest),
                    **_measured(loaded, session, length),
                }
                facts["megabytes"]["onnx"] = round(size / 1e6, 2)
                model.config.save_pretrained(scratch)
                loaded.processor.save_pretrained(scratch)
                write_json(scratch / FACTS, facts)
        except OSError as error:
            raise UserError(f"{folder}: {error}; name another directory with --out DIR") from error
    return facts


def merge(path: Path, out: Path | None = None) -> Json:
    """The run's adapter in its base, as a whole model with its tokenizer in `out` (RUN/merged).

    Raises `UserError` for a run without an adapter or a base, or without a place to write.
    """
    run, folder = finished.finished(path), out or path / "merged"
    model_dir = str(path / "model")
    if not lora.is_adapter(model_dir):
        raise UserError(f"{path}: its model/ is whole as it is, with no adapter to merge")
    options = {"dtype": "float32", **finished.source(run).from_pretrained}
    with library_logs():
        model = loading.read(model_dir, **options)
        try:
            with whole(folder, FACTS) as scratch:
                saving.save(model, scratch, None, checkpoint=False)
                task = recorded_task(run.metadata, model.config)
                processor = task.input.load_processor(finished.source(run))
                processor.save_pretrained(scratch)
                size = sum(file.stat().st_size for file in scratch.glob("*.safetensors"))
                facts = {"run": str(path), "folder": str(folder), "megabytes": round(size / 1e6, 2)}
                write_json(scratch / FACTS, facts)
        except OSError as error:
            raise UserError(f"{folder}: {error}; name another directory with --out DIR") from error
    return facts


def text(facts: Json) -> str:
    """The same for a reader."""
    if "inputs" not in facts:
        size = f"{facts['megabytes']:,.2f} MB"
        return f"merged   {facts['folder']}: whole weights ({size}) with their processor"
    inputs = ", ".join(map(" ".join, zip(facts["inputs"], facts["types"], strict=True)))
    shapes = ", ".join(f"{rows} x {tokens}" for rows, tokens in facts["shapes"])
    size, times = facts["megabytes"], facts["milliseconds"]
    lines = [
        f"onnx     {facts['folder']}/{FILE}; its processor and labels are beside it",
        f"inputs   {inputs}; output {', '.join(facts['outputs'])}",
        f"checked  batches of {shapes} {facts['unit']}: logits as PyTorch's within "
        f"{facts['difference']:.1e} of the largest (at most {TOLERANCE:g})",
    ]
    for name in ("pytorch", "onnx"):
        timed = ", ".join(f"batch {batch} {ms[name]:.2f} ms" for batch, ms in times.items())
        lines.append(f"{name:<8} {size[name]:,.2f} MB; {timed}")
    return "\n".join(
        [
            *lines,
            f"         medians of {REPEATS} in turns, {facts['length']} {facts['unit']}, CPU, fp32",
        ]
    )


def _type(given: NodeArg) -> str:
    """Of an ONNX session's input: the elements' type, and the sizes, named where they vary."""
    sizes = ", ".join(map(str, given.shape))
    return f"{given.type.removeprefix('tensor').strip('()')} [{sizes}]"


def _save(loaded: Finished, file: Path) -> None:
    """Export with the sizes left open that change from batch to batch."""
    import torch

    model, inputs = loaded.model, _batch(loaded, 2, 16)
    axes = loaded.task.input.open_axes(inputs)
    open_axes = {name for named in axes.values() for name in named.values()}
    sizes = {name: torch.export.Dim(name) for name in open_axes}
    shapes = {name: {axis: sizes[size] for axis, size in axes[name].items()} for name in inputs}
    model.config.use_cache = False  # logits alone
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, we do not
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of what the exporter deprecates in itself
            program = torch.onnx.export(
                model,
                (),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                output_names=list(loaded.task.answer.outputs),
                verbose=False,
            )
            assert program is not None
            program.save(str(file))
    except OSError:
        raise
    except Exception as error:  # the exporter's many steps share no base class
        reason = one_line(str(error.__cause__ or error))[:300]
        raise Failure(
            f"a {model.config.model_type} cannot be exported ({type(error).__name__}: {reason})"
        ) from error


def _session(file: Path) -> InferenceSession:
    """onnxruntime on as many threads as PyTorch has."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class
        raise Failure(f"onnxruntime cannot load it: {one_line(str(error))[:300]}") from error


def _batch(loaded: Finished, rows: int, length: int) -> dict[str, Tensor]:
    """Made-up rows as the model takes them, the first of this length."""
    taken = inspect.signature(loaded.model.forward).parameters
    batch = loaded.task.input.example(loaded.processor, rows, length)
    return {key: value for key, value in batch.items() if key in taken}


def _checked(loaded: Finished, session: InferenceSession, longest: int) -> Json:
    """The largest difference to PyTorch's logits; raises `Failure` when it is too large."""
    import torch

    wanted = [(1, 8), (3, 17), (8, 64), (2, longest)]
    shapes = list(dict.fromkeys((rows, min(tokens, longest)) for rows, tokens in wanted))
    differences = []
    for rows, tokens in shapes:
        inputs = _batch(loaded, rows, tokens)
        names = loaded.task.answer.outputs
        with torch.inference_mode():
            answered = loaded.model(**inputs)
        expected = np.stack([answered[name].numpy() for name in names])
        outputs = session.run([*names], {key: value.numpy() for key, value in inputs.items()})
        differences.append(float(abs(np.stack(outputs) - expected).max() / abs(expected).max()))
    worst = max(differences)
    if not worst <= TOLERANCE:
        rows, tokens = shapes[differences.index(worst)]
        raise Failure(
            f"the exported model does not answer as PyTorch does: with {rows} rows of {tokens} "
            f"{loaded.task.input.unit} logits differ by {worst:.1e} of the largest, and "
            f"{TOLERANCE:g} is allowed"
        )
    return {"shapes": shapes, "difference": worst, "tolerance": TOLERANCE}


def _measured(loaded: Finished, session: InferenceSession, length: int) -> Json:
    """Size and latency of both."""
    model = loaded.model
    times: dict[str, dict[str, float]] = {}
    for rows in (1, 32):
        inputs = _batch(loaded, rows, length)
        arrays = {key: value.numpy() for key, value in inputs.items()}
        passes = {"pytorch": partial(model, **inputs), "onnx": partial(session.run, None, arrays)}
        timed = milliseconds(passes)
        times[str(rows)] = {name: round(each, 3) for name, each in timed.items()}
    size = round(model.get_memory_footprint() / 1e6, 2)
    return {"length": length, "milliseconds": times, "megabytes": {"pytorch": size}}
