"""What a node without a network needs is there before its job starts."""

import pytest

from forge.commands import prefetch
from tests.support.runs import SMALL, TOY


@pytest.fixture
def tokenised(tmp_path):
    return lambda: sorted(path.name for path in (tmp_path / "cache" / "tokenised").glob("*.arrow"))


@pytest.mark.slow
def test_the_student_and_the_teacher_of_a_sweep_are_fetched_once(
    launch, tokenised, capsys, tmp_path
):
    words = [*TOY, *SMALL, f"cache_dir={tmp_path / 'cache'}", "model.config.vocab_size=80"]
    sweep = ["-m", *words, "mode=kd", "mode.alpha=0,0.5", "seed=1,2"]
    assert prefetch.main(sweep) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("here")]
    assert len(lines) == 2  # not one for each of four jobs
    found = tokenised()
    assert len(found) == 4  # two vocabularies, two splits
    launch(*words, "trainer.max_steps=1")
    assert tokenised() == found


def test_without_a_share_for_the_teacher_it_is_left_alone(tokenised, tmp_path):
    words = [*TOY, *SMALL, f"cache_dir={tmp_path / 'cache'}", "mode=kd", "mode.alpha=0"]
    assert prefetch.main(words) == 0
    assert len(tokenised()) == 2


def test_a_student_made_from_its_teacher_needs_the_teacher_alone(capsys, tmp_path):
    words = [*TOY, f"cache_dir={tmp_path / 'cache'}", "model.init=teacher", "model.layers=2"]
    assert prefetch.main([*words, "model@teacher=tiny"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("here")] == [
        "here    bert of random weights, tokenised rows: train 600, validation 150"
    ]
