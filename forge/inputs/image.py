"""A picture: its file's bytes are kept as they are, and decoded where batches are made."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forge import hub
from forge.data import cache
from forge.data.fingerprints import fingerprint
from forge.data.images import beside
from forge.data.sources import Columns, Row
from forge.errors import UserError, one_line
from forge.inputs.input import Batch, Input, Processor, Size, Usage
from forge.models import loading

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig

    from forge.config.schema import Model

FILE = "preprocessor_config.json"
SIDE = 224  # pixels, where an architecture from random weights does not say


@dataclass
class Image(Input):
    """One column of pictures: paths of files, or the bytes of files."""

    columns: list[str] = field(default_factory=lambda: ["image"])
    unit = "pixels"

    def __post_init__(self) -> None:
        self.kept = ["image", "path"]  # bytes, and where they are from

    def rows(self, columns: Columns, split: str) -> Columns:
        """Relative paths are of the folder of the file that `split` names, else of this one."""
        column = self.columns[0]
        found = [_read(value, split, column, i) for i, value in enumerate(columns[column])]
        return {"image": [data for data, _ in found], "path": [path for _, path in found]}

    def load_processor(
        self, model: Model, rows: Dataset | None = None, where: str = "model"
    ) -> Processor:
        """Without a path one that makes squares of `model.config.image_size` pixels."""
        from transformers import AutoImageProcessor, ViTImageProcessorPil

        if model.path is None:
            side = int(model.config.get("image_size", SIDE))
            return ViTImageProcessorPil(size={"height": side, "width": side})
        path = loading.resolve(model.path, f"{where}.path")
        if Path(path).is_dir() and not (Path(path) / FILE).is_file():
            raise UserError(f"{where}.path={path}: no {FILE} in it; it does not read pictures")
        with hub.access("image processor", path, f"{where}.path=DIR"):
            return AutoImageProcessor.from_pretrained(path, **loading.revision(model))

    def identity(self, processor: Processor) -> list[object]:
        return [type(processor).__name__, processor.to_dict()]

    def fitting(self, processor: Processor) -> dict[str, object]:
        return {}

    def check(
        self, model: Model, processor: Processor, config: PretrainedConfig, where: str
    ) -> None:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as READERS,
        )

        remote = model.from_pretrained.get("trust_remote_code")
        if config.model_type not in READERS and not remote:
            raise UserError(
                f"{where} {model.path or config.model_type}: a {config.model_type} does not read "
                "pictures; choose e.g. model=tiny_resnet or model=vit"
            )

    def limit(self, processor: Processor, config: PretrainedConfig, cut: bool = False) -> int:
        pixels = self.example(processor, 1, 0)["pixel_values"]
        return max(pixels.shape[-2:])

    def features(self, rows: Columns, processor: Processor, limit: int) -> Columns:
        """The bytes, each tried; nothing is ever cut, and all rows are of one length."""
        for data, path in zip(rows["image"], rows["path"], strict=True):
            _decode(data, path)
        count = len(rows["image"])
        return {"image": rows["image"], "length": [limit] * count, "truncated": [False] * count}

    def encode(self, rows: Dataset, processor: Processor, limit: int, cache_dir: Path) -> Dataset:
        from datasets import concatenate_datasets

        def lengths(batch: Columns) -> Columns:
            found = self.features(batch, processor, limit)
            return {name: found[name] for name in ("length", "truncated")}

        key = fingerprint(rows._fingerprint, self.identity(processor), limit)
        facts = cache.stored(rows, lengths, rows.column_names, key, cache_dir)
        return concatenate_datasets([rows.remove_columns("path"), facts], axis=1)

    def collator(self, processor: Processor, multiple: int | None, *extra: str) -> Collator:
        return Collator(processor, "id", *extra)

    def model_columns(self, processor: Processor) -> list[str]:
        return ["image"]

    def same_positions(self, ours: Dataset, theirs: Dataset) -> bool:
        return bool(ours["length"] == theirs["length"])  # whose patches differ is told by shapes

    def size(self, batch: Batch) -> Size:
        return Size(len(batch["pixel_values"]), 0, 0)

    def mask(self, batch: Batch) -> None:
        return None

    def shown(self, rows: Dataset | Columns) -> dict[str, list[str]]:
        return {self.columns[0]: list(rows["path"])}

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
class Collator:
    """Batches of `pixel_values` [B, 3, H, W], with labels and the columns named in `extra`."""

    processor: Processor
    extra: tuple[str, ...]

    def __init__(self, processor: Processor, *extra: str) -> None:
        self.processor, self.extra = processor, ("labels", *extra)

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        import torch

        pictures = [_decode(row["image"], None) for row in rows]
        batch = dict(self.processor(pictures, return_tensors="pt"))
        others = [name for name in self.extra if name in rows[0]]
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in others}


def _read(value: object, split: str, column: str, row: int) -> tuple[bytes, str]:
    """The bytes of a picture's file and its path; `#` and its row where it has none."""
    where = f"split {split}, column {column}, row {row}"
    data, path = value, None
    if isinstance(value, Mapping):  # as `datasets.Image` keeps it
        data, path = value.get("bytes"), value.get("path")
        data = path if data is None else data
    if not data or not isinstance(data, bytes | str):
        raise UserError(f"{where}: a {type(data).__name__}, neither a path nor a picture's bytes")
    if isinstance(data, bytes):
        return data, path or f"#{row}"
    near = beside(Path(split), data)
    try:
        return Path(near).read_bytes(), data
    except OSError as error:
        raise UserError(f"{where}: {near}: {error.strerror}") from error


def _decode(data: bytes, path: str | None) -> PIL.Image.Image:
    """RGB, turned as the camera was held; raises `UserError` for what is no picture."""
    import PIL.Image
    import PIL.ImageOps

    try:
        picture = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
        if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would only clip
            picture = PIL.Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype("uint8"))
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: not a picture that Pillow reads ({one_line(str(error))})"
        ) from error
