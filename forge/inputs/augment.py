"""Seeded views of a picture for training: crop, flip, resized crop, colour jitter.

A view follows from the seed, its number and the row's id alone: student and teachers see the same
one, and loader workers, the order of rows and resuming change nothing. Sampling is that of
torchvision's transforms of the same names; mixup and cutmix, which blend rows, are not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from forge.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES = 10  # for a resized crop that fits into the picture


@dataclass(frozen=True)
class Augment:
    """What may change from view to view; with nothing set there is one view, the picture.

    `crop`: so many pixels are added on each side, in black, and a part of the picture's own size
    is cut out (He et al. 2016). `resized_crop`: a part of between these shares of the area, and of
    an aspect between 3:4 and 4:3, is made a square of the same area (Szegedy et al. 2015). `flip`:
    the chance of left and right changing sides. `jitter`: brightness, contrast and saturation
    are multiplied by a factor between 1 - jitter and 1 + jitter each, in a random order.
    """

    seed: int
    crop: Annotated[int, Field(ge=0)] = 0
    resized_crop: list[float] | None = None
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        share = self.resized_crop
        if share is not None and not (len(share) == 2 and 0 < share[0] <= share[1] <= 1):
            raise UserError(
                f"task.augment.resized_crop={share}: the least and the largest share of the area, "
                "such as [0.3,1], or null"
            )

    def __bool__(self) -> bool:
        return bool(self.crop or self.resized_crop or self.flip or self.jitter)

    def view(self, picture: Image, number: int, row: int) -> Image:
        """View `number` of the picture, RGB, of the row with this id."""
        draw = np.random.default_rng((self.seed, number, 2 * row if row >= 0 else -2 * row - 1))
        if self.resized_crop:
            picture = _resized_crop(picture, self.resized_crop[0], self.resized_crop[1], draw)
        if self.crop:
            picture = _crop(picture, self.crop, draw)
        if draw.random() < self.flip:
            picture = _flip(picture)
        return _jitter(picture, self.jitter, draw) if self.jitter else picture


def _crop(picture: Image, pad: int, draw: np.random.Generator) -> Image:
    width, height = picture.size
    left, top = (int(n) - pad for n in draw.integers(0, 2 * pad + 1, 2))
    return picture.crop((left, top, left + width, top + height))  # black where it is outside


def _resized_crop(picture: Image, low: float, high: float, draw: np.random.Generator) -> Image:
    from PIL.Image import Resampling

    width, height = picture.size
    box, side = (0, 0, width, height), min(width, height)
    for _ in range(TRIES):
        area = draw.uniform(low, high) * width * height
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            box, side = (left, top, left + w, top + h), max(1, round(math.sqrt(w * h)))
            break
    return picture.resize((side, side), Resampling.BILINEAR, box)


def _flip(picture: Image) -> Image:
    from PIL.Image import Transpose

    return picture.transpose(Transpose.FLIP_LEFT_RIGHT)


def _jitter(picture: Image, strength: float, draw: np.random.Generator) -> Image:
    from PIL import ImageEnhance

    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in draw.permutation(len(changes)):
        picture = changes[i](picture).enhance(draw.uniform(1 - strength, 1 + strength))
    return picture
