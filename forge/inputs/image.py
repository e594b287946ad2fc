"""A picture: its file's bytes are kept as they are, and decoded where batches are made."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.data.sources import Columns, Row
from forge.errors import UserError, one_line
from forge.inputs.augment import Augment
from forge.inputs.file import PICTURED, Collator, File
from forge.inputs.input import Collator as AnyCollator
from forge.inputs.input import Processor, Usage, Views

if TYPE_CHECKING:
    import PIL.Image
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig

SIDE = 224  # pixels, where an architecture from random weights does not say
SMALL, THUMBNAIL = 20_000, 160  # bytes, pixels


@dataclass
class Image(File):
    """One column of pictures: paths of files, or the bytes of files."""

    columns: list[str] = field(default_factory=lambda: ["image"])
    augment: Augment | None = None
    kind = "image"
    read = "pictures"
    auto = "AutoImageProcessor"
    examples = "model=tiny_resnet or model=vit"
    unit = "pixels"
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

    def new_processor(self, config: Mapping[str, Any]) -> Processor:
        """One that makes squares of `image_size` pixels."""
        from transformers import ViTImageProcessorPil

        side = int(config.get("image_size", SIDE))
        return ViTImageProcessorPil(size={"height": side, "width": side})

    def readers(self) -> Collection[str]:
        from transformers.models.auto import modeling_auto

        return modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    def limit(self, processor: Processor, config: PretrainedConfig) -> int:
        pixels = self.example(processor, 1, 0)["pixel_values"]
        return max(pixels.shape[-2:])

    def features(self, rows: Columns, processor: Processor, limit: int) -> Columns:
        """The bytes, each tried; nothing is ever cut, and all rows are of one length."""
        for data, path in zip(rows["image"], rows["path"], strict=True):
            _decode(data, path)
        count = len(rows["image"])
        return {"image": rows["image"], "length": [limit] * count, "truncated": [False] * count}

    def collator(self, processor: Processor, multiple: int | None, *extra: str) -> Collator:
        return Collator(partial(_pixels, processor), extra)

    def views(self, collate: AnyCollator, views: Views) -> AnyCollator:
        return Viewed(collate, self.augment, views) if self.augment else collate

    @property
    def augmentation(self) -> dict[str, object]:
        return asdict(self.augment) if self.augment else {}

    def pictures(self, rows: Dataset) -> list[bytes | None]:
        """Files of up to `SMALL` bytes as they are, larger ones small; none after `PICTURED`."""
        count = min(len(rows), PICTURED)
        pairs = zip(rows["image"][:count], rows["path"][:count], strict=True)
        return [_small(data, path) for data, path in pairs] + [None] * (len(rows) - count)

    def usage(self, limit: int) -> Usage:
        return Usage(
            processor="AutoImageProcessor",
            name="image_processor",
            settings="from PIL import Image",
            of_pipeline='"picture.png"',
            of_processor='Image.open("picture.png").convert("RGB")',
        )

    def example(self, processor: Processor, count: int, length: int) -> dict[str, Tensor]:
        noise = np.random.default_rng(count).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)
        return dict(processor(list(noise), return_tensors="pt"))


@dataclass
class Viewed:
    """Batches of seeded views, which student and teachers share: one for each row."""

    collate: AnyCollator
    augment: Augment
    views: Views

    def __call__(self, rows: list[Row]) -> Mapping[str, Tensor]:
        return self.collate([self._view(row) for row in rows])

    def _view(self, row: Row) -> Row:
        data = row["image"]
        view = self.augment.view(_decode(data, None), self.views.number, row["id"])
        return {name: view if value == data else value for name, value in row.items()}


def _pixels(processor: Processor, rows: list[Row]) -> Mapping[str, Tensor]:
    """`pixel_values` [B, 3, H, W]."""
    pictures = [_decode(row["image"], None) for row in rows]
    pixels: Mapping[str, Tensor] = processor(pictures, return_tensors="pt")
    return pixels


def _decode(data: bytes | PIL.Image.Image, path: str | None) -> PIL.Image.Image:
    """RGB, turned as the camera was held; a view as it is. Raises `UserError` for no picture."""
    import PIL.Image
    import PIL.ImageOps

    if isinstance(data, PIL.Image.Image):
        return data
    try:
        picture = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
        if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would only clip
            picture = PIL.Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype("uint8"))
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: not a picture that Pillow reads ({one_line(str(error))})"
        ) from error


def _small(data: bytes, path: str | None) -> bytes:
    """A picture's file, no larger than a page shows it."""
    if len(data) <= SMALL:
        return data
    picture, file = _decode(data, path), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
