"""Seeded views: what they do to a picture, and what they follow from."""

import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from forge.config.schema import Model
from forge.errors import UserError
from forge.inputs.augment import Augment
from forge.inputs.image import Image
from forge.inputs.input import Views

PIXELS = np.random.default_rng(0).integers(1, 256, (24, 32, 3), dtype=np.uint8)
PICTURE = Pillow.fromarray(PIXELS)
FULL = {"crop": 4, "resized_crop": [0.3, 1], "flip": 0.5, "jitter": 0.4}


def view(number=0, row=0, seed=0, **settings):
    return np.asarray(Augment(seed=seed, **settings).view(PICTURE, number, row))


def test_a_view_follows_from_seed_number_and_row_alone():
    first = view(**FULL)
    np.random.default_rng().random()
    assert (first == view(**FULL)).all()
    others = [view(number=1, **FULL), view(row=1, **FULL), view(row=-1, **FULL),
              view(seed=1, **FULL)]  # fmt: skip
    assert len({first.tobytes(), *(other.tobytes() for other in others)}) == 5


def test_a_crop_is_a_part_of_the_padded_picture():
    padded = np.pad(PIXELS, ((4, 4), (4, 4), (0, 0)))
    windows = {padded[i : i + 24, j : j + 32].tobytes() for i in range(9) for j in range(9)}
    found = {view(number=n, crop=4).tobytes() for n in range(60)}
    assert found <= windows and len(found) > 30


def test_half_of_the_views_are_flipped():
    flipped = [(view(row=row, flip=0.5) == PIXELS[:, ::-1]).all() for row in range(200)]
    assert 70 < sum(flipped) < 130
    assert (view(flip=1.0) == PIXELS[:, ::-1]).all() and (view(flip=0.0) == PIXELS).all()


def test_a_resized_crop_is_a_square_of_a_share_of_the_area():
    areas = [view(number=n, resized_crop=[0.25, 0.5]).shape for n in range(100)]
    assert all(height == width for height, width, _ in areas)
    shares = [height * width / (24 * 32) for height, width, _ in areas]
    assert 0.2 < min(shares) < 0.3 and 0.45 < max(shares) < 0.55


def test_jitter_changes_brightness_within_its_factor():
    grey = Pillow.new("RGB", (8, 8), (100, 100, 100))
    means = [np.asarray(Augment(seed=0, jitter=0.2).view(grey, n, 0)).mean() for n in range(100)]
    assert 78 < min(means) < 90 and 110 < max(means) < 122


@pytest.mark.parametrize("shares", [[0.5], [0, 1], [0.8, 0.5], [0.5, 2]])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(UserError, match="resized_crop"):
        Augment(seed=0, resized_crop=shares)


def test_student_and_teacher_are_shown_one_view_and_without_settings_there_is_none():
    file = io.BytesIO()
    PICTURE.save(file, "png")
    data, seen = file.getvalue(), []
    row = {"id": 3, "image": data, "labels": 1, "teacher_0_image": data}
    views = Views(torch.tensor([5]), count=4)
    image = Image(augment=Augment(seed=0, **FULL))
    image.views(lambda rows: seen.extend(rows) or {}, views)([row])
    assert seen[0]["image"] is seen[0]["teacher_0_image"]
    assert (np.asarray(seen[0]["image"]) == view(number=1, row=3, **FULL)).all()
    processor = image.load_processor(Model(config={"image_size": 8}))
    collate = image.collator(processor, None)
    assert image.views(collate, views)([row])["pixel_values"].shape == (1, 3, 8, 8)
    assert Image(augment=Augment(seed=0)).views(collate, views) is collate
