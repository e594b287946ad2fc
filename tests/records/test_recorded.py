"""A recorded config is composed as it was, whatever its texts hold."""

import pytest
from hydra import compose

from forge.records.record import plain
from forge.records.recorded import recomposed


@pytest.mark.parametrize("text", [r"${y}", r"\${y} and \\${y}", "C:\\", "plain"])
def test_texts_of_a_record_are_no_interpolations(text):
    recorded = plain(compose("config", ["task=toy"]))
    recorded["task"]["labels"] = [text]
    assert plain(recomposed(recorded, []))["task"]["labels"] == [text]
