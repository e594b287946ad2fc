"""Files of a word and its tag in each line."""

import pytest

from forge.data import sources
from forge.errors import UserError


def read(tmp_path, text):
    file = tmp_path / "a.conll"
    file.write_text(text, encoding="utf-8")
    return sources.read({"train": [file]}, "train", ["tokens", "tags"])


def test_first_and_last_column_blank_lines_and_document_starts(tmp_path):
    text = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n\nPeter NNP I-NP B-PER\n"
    wanted = {"tokens": [["EU", "rejects"], ["Peter"]], "tags": [["B-ORG", "O"], ["B-PER"]]}
    assert read(tmp_path, text) == wanted
    assert read(tmp_path, text.replace("\n", "\r\n")) == wanted


def test_comments_are_left_out_and_words_that_look_so_are_kept(tmp_path):
    text = "# sent_id = 1\na\tO\n#tag\tB-X\nNew York\tI-X\n\n# text\nb\tO"
    rows = read(tmp_path, text)
    assert rows["tokens"] == [["a", "#tag", "New York"], ["b"]]
    assert rows["tags"] == [["O", "B-X", "I-X"], ["O"]]


def test_a_line_without_its_tag_is_named(tmp_path):
    with pytest.raises(UserError, match="line 2 has 1 columns"):
        read(tmp_path, "a O\nb\n")
