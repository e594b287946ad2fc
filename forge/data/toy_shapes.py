"""The embedded image task: which shape is drawn, computed, not downloaded.

Pictures of 32 x 32 pixels hold one shape of any colour, texture, size, place and angle on a
ground of another colour. The label is the shape; colour and texture are drawn apart from it, so
that neither tells it.
"""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from forge.data import sources
from forge.data.label_noise import another, with_noise
from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

Grid: TypeAlias = Any  # a NumPy array: a value for each point of a picture

LABELS = ("circle", "square", "triangle", "cross")
TEXTURES = ("plain", "striped", "dotted")
SIDE = 32  # pixels
FINER = 2  # in either direction while drawn, so that edges are smooth
COLOURS = (
    (214, 48, 49),
    (9, 132, 227),
    (0, 184, 108),
    (253, 203, 60),
    (140, 92, 231),
    (45, 52, 54),
    (240, 240, 240),
)
DIFFERENT = 160  # of two colours, the least sum of differences over red, green and blue


def shapes(
    *, train: int, validation: int, seed: int = 0, crosses: float = 1.0, label_noise: float = 0.0
) -> dict[str, datasets.Dataset]:
    """Splits with columns image (a PNG's bytes) and label, no picture twice.

    `crosses` is how often a cross occurs in train, as a share of the other labels' frequency;
    `label_noise` the share of train's labels that are replaced by another one. Raises `UserError`.
    """
    if min(train, validation) < 1:
        raise UserError(f"task.dataset: train={train}, validation={validation}: at least 1 row")
    if not 0 < crosses <= 1:
        raise UserError(f"task.dataset.crosses={crosses}: more than 0, at most 1")
    seen: set[bytes] = set()
    drawn = _split(validation, random.Random(f"shapes validation {seed}"), 1.0, seen)
    learnt = _split(train, random.Random(f"shapes train {seed}"), crosses, seen)
    learnt["label"] = with_noise(learnt["label"], label_noise, another(LABELS), seed)
    return {"train": sources.dataset(learnt), "validation": sources.dataset(drawn)}


def _split(
    count: int, source: random.Random, crosses: float, seen: set[bytes]
) -> dict[str, list[Any]]:
    """Rows that `seen` does not hold yet; they are added to it."""
    images: list[bytes] = []
    labels: list[str] = []
    while len(images) < count:
        label = source.choices(LABELS, [1.0, 1.0, 1.0, crosses])[0]
        image = _png(_picture(label, source))
        if image in seen:
            continue
        seen.add(image)
        images.append(image)
        labels.append(label)
    return {"image": images, "label": labels}


def _picture(label: str, source: random.Random) -> Grid:
    """RGB [SIDE, SIDE, 3]."""
    ground, colour = source.sample(COLOURS, 2)
    while sum(abs(a - b) for a, b in zip(ground, colour, strict=True)) < DIFFERENT:
        ground, colour = source.sample(COLOURS, 2)
    radius = source.uniform(8, 13)
    x, y = (source.uniform(radius + 1, SIDE - radius - 1) for _ in "xy")
    angle = source.uniform(-np.pi / 10, np.pi / 10)
    at = (np.arange(SIDE * FINER) + 0.5) / FINER
    right, down = np.meshgrid(at - x, at - y)
    along = (np.cos(angle) * right + np.sin(angle) * down) / radius
    across = (np.cos(angle) * down - np.sin(angle) * right) / radius
    inside = _inside(label, along, across) & _texture(source.choice(TEXTURES), right, down)
    share = inside.reshape(SIDE, FINER, SIDE, FINER).mean((1, 3))[..., None]
    mixed = share * np.array(colour) + (1 - share) * np.array(ground)
    noise = np.random.default_rng(source.getrandbits(32)).normal(0, 4, mixed.shape)
    return (mixed + noise).clip(0, 255).astype(np.uint8)


def _inside(label: str, x: Grid, y: Grid) -> Grid:
    """Where a shape of radius 1 is, in its own coordinates."""
    if label == "circle":
        return x**2 + y**2 < 0.8
    if label == "square":
        return np.maximum(abs(x), abs(y)) < 0.75
    if label == "triangle":
        return (y < 0.5) & (np.sqrt(3) * abs(x) - y < 1)
    return (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 0.95)


def _texture(name: str, x: Grid, y: Grid) -> Grid:
    """Where a texture is filled; its period of 4 pixels shows the shape of its outline."""
    if name == "striped":
        return x % 4 < 2.8
    if name == "dotted":
        return ((x % 4 - 2) ** 2 + (y % 4 - 2) ** 2) > 1.2
    return np.ones_like(x, dtype=bool)


def _png(pixels: Grid) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
