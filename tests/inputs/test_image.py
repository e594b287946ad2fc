"""Pictures stay the bytes of their files until a batch is made."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as Pictures
from PIL import Image as Pillow

from forge.config.schema import Model
from forge.data import sources
from forge.errors import UserError
from forge.inputs.image import Image

RED, BLUE = (255, 0, 0), (0, 0, 255)
NOISE = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def encoded(picture, kind="png", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def square(colour=RED, mode="RGB"):
    return Pillow.new("RGB", (8, 8), colour).convert(mode)


@pytest.fixture
def processor():
    return Image().load_processor(Model(config={"model_type": "vit", "image_size": 8}))


def pixels(processor, *pictures):
    """Of a batch [B, 3, H, W]."""
    rows = Image().rows({"image": list(pictures)}, "train")
    features = Image().features(rows, processor, 8)
    batch = Image().collator(processor, None)(Dataset.from_dict(features).to_list())
    return batch["pixel_values"]


def test_a_batch_holds_pixels_labels_and_what_was_asked_for(processor):
    rows = (
        [{"image": encoded(square(c)), "labels": i, "id": 7 + i} for i, c in enumerate("rb")]
        if 0
        else [
            {"image": encoded(square(c)), "labels": i, "id": 7 + i, "length": 8}
            for i, c in enumerate((RED, BLUE))
        ]
    )
    batch = Image().collator(processor, None)(rows)
    assert batch["labels"].tolist() == [0, 1] and batch["id"].tolist() == [7, 8]
    assert batch.keys() == {"pixel_values", "labels", "id"}
    means = batch["pixel_values"].mean((2, 3))
    assert torch.allclose(means, torch.tensor([[1.0, -1, -1], [-1, -1, 1]]))  # red, green, blue


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "LA", "L", "1"])
def test_every_mode_of_a_picture_becomes_rgb(processor, mode):
    kind = "tiff" if mode == "CMYK" else "png"
    found = pixels(processor, encoded(square((255, 255, 255), mode), kind))
    assert found.shape == (1, 3, 8, 8) and (found > 0.9).all()


def test_grey_of_16_bits_is_scaled_and_not_clipped(processor):
    half = Pillow.fromarray(np.full((8, 8), 2**15, np.uint16))
    assert pixels(processor, encoded(half)).abs().max() < 0.02


def test_a_picture_is_turned_as_its_camera_was_held(processor):
    left = np.zeros((8, 8, 3), np.uint8)
    left[:, :4] = 255
    turned = Pillow.Exif()
    turned[0x0112] = 6  # a quarter clockwise: left becomes the top
    (found,) = pixels(processor, encoded(Pillow.fromarray(left), exif=turned))
    assert (found[:, :4] == 1).all() and (found[:, 4:] == -1).all()


def test_paths_bytes_and_what_datasets_keeps_are_the_same_picture(processor, tmp_path):
    file, data = tmp_path / "a.png", encoded(square())
    file.write_bytes(data)
    table = Dataset.from_dict(
        {"image": [{"bytes": data, "path": None}, {"bytes": None, "path": str(file)}]}
    )
    table = table.cast(Features({"image": Pictures()}))
    (kept,) = sources.read({"train": table}, "train", ["image"]).values()
    rows = Image().rows({"image": [str(file), data, *kept]}, "train")
    assert rows["image"] == [data] * 4
    assert rows["path"] == [str(file), "#1", "#2", str(file)]


def test_relative_paths_are_of_the_folder_of_the_file_that_has_them(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(square()))
    rows = Image().rows({"image": ["a.png"]}, str(tmp_path / "table.csv"))
    assert rows["path"] == ["a.png"]


@pytest.mark.parametrize("value", [None, 3, "", b"", "nothing.png"])
def test_what_is_no_picture_is_said_with_its_row(value):
    with pytest.raises(UserError, match="row 1"):
        Image().rows({"image": [encoded(square()), value]}, "train")


@pytest.mark.parametrize("data", [b"a text", encoded(NOISE)[:500]])
def test_a_broken_file_is_said_before_training(processor, data, tmp_path):
    rows = Dataset.from_dict({"id": [0], "image": [data], "path": ["x.png"], "labels": [0]})
    with pytest.raises(UserError, match=r"x\.png"):
        Image().encode(rows, processor, 8, tmp_path)


def test_encoded_rows_hold_the_bytes_and_follow_from_content_and_processor(processor, tmp_path):
    def split(colour, size=8):
        made = Image().load_processor(Model(config={"image_size": size}))
        data = encoded(square(colour))
        rows = sources.dataset({"id": [0], "image": [data], "path": ["x"], "labels": [1]})
        return data, Image().encode(rows, made, size, tmp_path)

    data, one = split(RED)
    assert one[0] == {"id": 0, "image": data, "labels": 1, "length": 8, "truncated": False}
    assert one._fingerprint == split(RED)[1]._fingerprint
    assert len({one._fingerprint, split(BLUE)[1]._fingerprint, split(RED, 16)[1]._fingerprint}) == 3


def test_two_processors_that_normalise_otherwise_are_told_apart(processor):
    other = Image().load_processor(Model(config={"image_size": 8}))
    assert Image().identity(processor) == Image().identity(other)
    other.image_mean = [0.4, 0.5, 0.5]
    assert Image().identity(processor) != Image().identity(other)


def test_features_are_bytes(processor):
    assert (
        Value("binary")
        == Dataset.from_dict(
            Image().features({"image": [encoded(square())], "path": ["x"]}, processor, 8)
        ).features["image"]
    )
