"""Training throughput on pictures: Forge against a plain transformers.Trainer, side by side.

    python -m tests.benchmarks.images --workers 1

A ResNet of ImageNet's first stages at 96 x 96, JPEGs of 160 x 120 in parquet's bytes, the same
processor and loader workers. The plain script decodes and processes in its collator, as a transform
of `datasets` would. One round runs both in turn; printed is the median ratio of the rounds.
"""

import argparse
import io
import json
import logging
import statistics
import tempfile
from functools import partial

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image as Pillow
from transformers import AutoModelForImageClassification, ResNetConfig

from forge.config.compose import register
from forge.config.schema import Model
from forge.inputs.image import Image
from tests.benchmarks.throughput import (
    examples_per_second,
    forge_arguments,
    forge_trainer,
    plain_arguments,
)

SIDE, BATCH = 96, 32


def model():
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic",
        num_labels=3,
    )  # fmt: skip
    return AutoModelForImageClassification.from_config(config)


def rows(count: int) -> Dataset:
    """JPEGs of smooth noise."""
    draw, files = np.random.default_rng(0), []
    for _ in range(count):
        small = Pillow.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((160, 120)).save(file := io.BytesIO(), "jpeg", quality=90)
        files.append(file.getvalue())
    labels, lengths = draw.integers(3, size=count).tolist(), [SIDE] * count
    columns = {"id": range(count), "image": files, "labels": labels, "length": lengths}
    return Dataset.from_dict(columns)


def plain_collate(processor, batch):
    pictures = [Pillow.open(io.BytesIO(row["image"])).convert("RGB") for row in batch]
    labels = torch.tensor([row["labels"] for row in batch])
    return {**processor(pictures, return_tensors="pt"), "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=0)
    asked = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    logging.captureWarnings(True)
    register()
    image = Image()
    processor = image.load_processor(Model(config={"image_size": SIDE}))
    data = rows(asked.steps * BATCH)
    measured: dict[str, list[float]] = {"plain": [], "forge": []}
    with tempfile.TemporaryDirectory() as folder:
        workers = {"dataloader_num_workers": asked.workers}
        plain = partial(plain_arguments, folder, bf16=False, remove_unused_columns=False, **workers)
        settings = [f"trainer.{k}={v}" for k, v in workers.items()]
        ours = partial(
            forge_arguments,
            folder,
            "task=toy_shapes",
            "model=tiny_resnet",
            "precision=fp32",
            *settings,
        )
        own = image.collator(processor, None)
        for _ in range(asked.rounds):
            for name, trainer, arguments, collate in (
                ("plain", transformers.Trainer, plain, partial(plain_collate, processor)),
                ("forge", forge_trainer("task=toy_shapes"), ours, own),
            ):
                speed = examples_per_second(trainer, arguments, data, collate, asked.steps, model)
                measured[name].append(speed)
                print(f"{name:6} {speed:7.1f} examples/s", flush=True)
    pairs = zip(measured["forge"], measured["plain"], strict=True)
    print(json.dumps({"forge / plain": round(statistics.median(a / b for a, b in pairs), 2)}))


if __name__ == "__main__":
    main()
