"""Pictures in folders and tables, and those that are embedded."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image as Pillow

from forge.data import folders, sources
from forge.data.toy_shapes import LABELS, shapes
from forge.errors import UserError
from forge.inputs.image import Image


@pytest.fixture
def pictures(tmp_path):
    """Two classes, of which one has a folder in its own."""
    for name in ("10/a.png", "2/b.JPG", "2/more/c.png", "2/notes.txt"):
        file = tmp_path / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (4, 4)).save(file, "png")
    return tmp_path


def read(**files):
    files = {split: [path] for split, path in files.items()}
    return folders.read(files, "image", "label", "unlabelled", Image.suffixes)


def test_a_folder_is_a_class(pictures):
    rows = read(train=pictures / "train")["train"]
    names = [path.removeprefix(f"{pictures}/train/") for path in rows["image"]]
    assert names == ["10/a.png", "2/b.JPG", "2/more/c.png"]
    assert list(rows["label"]) == ["10", "2", "2"]


def test_pictures_without_labels_lie_anywhere(pictures):
    (source,) = read(unlabelled=pictures / "train").values()
    assert source.column_names == ["image"] and len(source) == 3


def test_paths_in_a_table_are_of_its_folder(pictures):
    (pictures / "t.csv").write_text("image,label\ntrain/2/b.JPG,x\n/somewhere/d.png,y\n")
    rows = read(train=pictures / "t.csv")["train"]
    assert list(rows["image"]) == [str(pictures / "train/2/b.JPG"), "/somewhere/d.png"]
    assert list(rows["label"]) == ["x", "y"]


def test_a_table_may_hold_the_pictures_themselves(pictures):
    file = pictures / "train/2/b.JPG"
    bytes_ = {"image": [file.read_bytes()], "label": ["2"]}
    Dataset.from_dict(bytes_).to_parquet(pictures / "t.parquet")
    assert read(train=pictures / "t.parquet")["train"][0] == {
        "image": file.read_bytes(),
        "label": "2",
    }


def test_what_is_no_folder_of_classes_is_one_line(pictures):
    with pytest.raises(UserError, match=r"a\.png"):
        read(train=pictures / "train" / "10")
    (pictures / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        read(train=pictures / "empty")
    with pytest.raises(UserError, match="nowhere"):
        read(validation=pictures / "nowhere")
    elsewhere = read(train=pictures / "nowhere")  # as for a finished run on another machine
    with pytest.raises(UserError, match="nowhere"):
        sources.read(elsewhere, "train", ["image"])


def test_shapes_are_the_same_for_a_seed_and_none_is_in_both_splits():
    one, same, other = (shapes(train=60, validation=20, seed=seed) for seed in (0, 0, 1))
    assert one["train"]["image"] == same["train"]["image"] != other["train"]["image"]
    both = [*one["train"]["image"], *one["validation"]["image"]]
    assert len(set(both)) == 80
    assert set(one["train"]["label"]) == set(LABELS)
    (image, *_), labels = one["train"]["image"], one["train"]["label"]
    (pixels,) = (np.asarray(Pillow.open(sources.io.BytesIO(image))),)
    assert pixels.shape == (32, 32, 3) and len(labels) == 60


def test_mean_colours_do_not_tell_the_shape():
    from sklearn.linear_model import LogisticRegression

    split = shapes(train=1200, validation=400)
    decoded = {
        name: np.stack([np.asarray(Pillow.open(sources.io.BytesIO(i))) for i in rows["image"]])
        for name, rows in split.items()
    }
    moments = {n: np.hstack([d.mean((1, 2)), d.std((1, 2))]) / 255 for n, d in decoded.items()}
    model = LogisticRegression(max_iter=500).fit(moments["train"], split["train"]["label"])
    assert model.score(moments["validation"], split["validation"]["label"]) < 0.5


def test_a_label_may_be_rare():
    rare = shapes(train=400, validation=40, crosses=0.1)["train"]["label"]
    assert 0 < list(rare).count("cross") < 40
