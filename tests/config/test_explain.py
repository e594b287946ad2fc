"""What Hydra's grammar does not take is shown as it does, for the shell too."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from forge.config.compose import override
from forge.config.explain import explain


@pytest.mark.parametrize(
    "word",
    [
        "task.files.train=a=b.csv",
        "task.files.train=/data/my file (1).csv",
        "task.files.train=/data/größe.csv",
        "task.label=label#1",
        "task.label=a{b",
        "task.label=it's",
        "task.text=[#1 String,#2 String]",
        "+x.y=50&$HOME",
    ],
)
def test_the_form_that_is_shown_is_taken_by_shell_and_hydra(word):
    parse = OverridesParser.create().parse_override
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([word])
    told = explain(caught.value)
    key, _, value = word.partition("=")
    assert told.startswith(f"{key}: ") and "\n" not in told
    (shown,) = shlex.split(told.rpartition("too: ")[2])
    meant = value[1:-1].split(",") if value.startswith("[") else value
    assert parse(shown).value() == meant


@pytest.mark.parametrize(
    "value", ["plain", "a b", "it's", 'say "so"', "$HOME", "a\\", "\\'", ["a b", "c"], None]
)
def test_an_override_comes_back_from_shell_and_hydra(value):
    (word,) = shlex.split(override("key", value))
    assert OverridesParser.create().parse_override(word).value() == value
