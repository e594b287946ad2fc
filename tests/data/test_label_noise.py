"""Label noise of the embedded tasks: train alone, the right share, and the rows as they were."""

from __future__ import annotations

from itertools import chain

import pytest

from forge.data import toy_choices, toy_nli, toy_shapes, toy_tags, toy_tones, toy_topics
from forge.errors import UserError

TOYS = {
    toy_nli.nli: "label",
    toy_choices.choices: "label",
    toy_shapes.shapes: "label",
    toy_tones.tones: "label",
    toy_topics.topics: "labels",
    toy_tags.tags: "tags",
}


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)
def test_a_share_of_the_labels_is_wrong_in_train_and_nothing_else_changes(toy):
    column = TOYS[toy]
    clean, noisy = (toy(train=600, validation=36, label_noise=share) for share in (0.0, 0.3))
    assert clean["validation"].to_dict() == noisy["validation"].to_dict()
    before, after = (splits["train"].to_dict() for splits in (clean, noisy))
    right, given = before.pop(column), after.pop(column)
    assert before == after
    if column == "tags":  # a name keeps its words and boundaries, its first word tells its type
        right, given = (list(chain(*sentences)) for sentences in (right, given))
        assert [tag[:2] for tag in right] == [tag[:2] for tag in given]
        named = [(a, b) for a, b in zip(right, given, strict=True) if a[0] == "B"]
    else:
        named = list(zip(right, given, strict=True))
    wrong = sum(a != b for a, b in named) / len(named)
    assert wrong == pytest.approx(0.3, abs=0.06)


def test_a_share_that_leaves_no_right_label_is_refused():
    with pytest.raises(UserError, match=r"label_noise=1\.0"):
        toy_tones.tones(train=1, validation=1, label_noise=1.0)
