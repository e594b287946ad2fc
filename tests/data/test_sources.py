"""Rows are read as they stand in the files; what cannot be read is named."""

import json
import pathlib
from unittest.mock import Mock

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from forge.data import sources
from forge.errors import UserError

ROWS = [{"text": "naïve, “quoted”", "label": "a"}, {"text": 'tab\\t "x"', "label": "NA"}]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return {"train": [path]}


def columns(source, split="train"):
    return sources.read(source, split, ["text", "label"])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_each_format_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    table = Dataset.from_list(ROWS)
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif suffix == ".csv":
        table.to_csv(path)
    else:
        path.write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS))
    got = columns({"train": [path]})
    assert got == {"text": [r["text"] for r in ROWS], "label": ["a", "NA"]}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_of_a_split_that_lacks_a_column_has_none_there(tmp_path, suffix, caplog):
    shards = [[{"text": "a", "label": 1}], [{"text": "b"}], [{"label": 0.5, "text": "c"}]]
    for i, shard in enumerate(shards):
        path, table = tmp_path / f"train-{i}-of-3.{suffix}", Dataset.from_list(shard)
        if suffix == "jsonl":
            table.to_json(path)
        elif suffix == "csv":
            table.to_csv(path)
        else:
            table.to_parquet(path)
    got = columns(sources.load(path=str(tmp_path)))
    assert got["text"] == ["a", "b", "c"]
    assert [None if v is None else float(v) for v in got["label"]] == [1, None, 0.5]
    assert f"column label: not in {tmp_path / f'train-1-of-3.{suffix}'}" in caplog.text


def test_a_row_that_lacks_a_value_has_none(tmp_path):
    rows = '{"text": "a", "label": 1}\n{"text": "b"}\n{"label": 0, "text": "c"}\n'
    assert columns(write(tmp_path / "a.jsonl", rows))["label"] == [1, None, 0]


def test_csv_keeps_line_breaks_and_a_byte_order_mark_is_no_text(tmp_path):
    source = write(tmp_path / "a.csv", '\ufefftext,label\n"two\nlines\u2028x",1\n')
    assert columns(source) == {"text": ["two\nlines\u2028x"], "label": ["1"]}


def test_a_stray_quote_in_a_tsv_swallows_no_rows(tmp_path):
    source = write(tmp_path / "a.tsv", 'text\tlabel\n"open\t1\nclosed"\t0\n')
    assert columns(source)["text"] == ['"open', 'closed"']


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\nx,1,2\n", "line 2 has 3 fields, the header has 2"),
        ("a.csv", 'text,label\n"open,1\n', "line 2"),
        ("a.csv", "text,lable\nx,1\n", r"column label: not in .*did you mean lable\?"),
        ("a.csv", "text,text,label\nx,y,1\n", "column text occurs twice"),
        ("a.jsonl", '{"text": "x"}\n{"text" "y"}\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "each row must be a JSON object"),
        ("a.parquet", "not parquet", "not a parquet file"),
        ("a.txt", "x", r"not one of \.jsonl"),
    ],
)
def test_what_cannot_be_parsed_is_named(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        columns(write(tmp_path / name, text))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    source = write(tmp_path / "a.csv", "text,label\nok,1\nna\xefve,0\n", "latin1")
    with pytest.raises(UserError, match=r"a\.csv: line 3 is not UTF-8; convert it"):
        columns(source)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    source = write(tmp_path / "a.csv", "text,label\nna\xefve,1\n", encoding)
    assert columns(source) == {"text": ["na\xefve"], "label": ["1"]}


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be"])
def test_without_a_mark_the_encoding_is_guessed_for_the_advice(tmp_path, encoding):
    source = write(tmp_path / "a.jsonl", '{"text": "plain", "label": 1}', encoding)
    with pytest.raises(UserError, match=rf"null bytes.* iconv -f {encoding} -t utf-8"):
        columns(source)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    source = write(tmp_path / "a.csv", "text,label\n")
    denied = PermissionError(13, "Permission denied")
    monkeypatch.setattr(pathlib.Path, "read_bytes", Mock(side_effect=denied))
    with pytest.raises(UserError, match=r"a\.csv: permission denied; mend that, or name another"):
        columns(source)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_half_a_character_is_said_and_replaced(tmp_path, suffix, caplog):
    rows = [{"text": "fine \U0001f600", "label": 1}, {"text": "half \ud83d", "label": 0}]
    source = write(tmp_path / f"a.{suffix}", json.dumps(rows))
    if suffix == "jsonl":
        source = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert columns(source)["text"] == ["fine \U0001f600", "half \ufffd"]
    assert "1 rows hold a lone surrogate, half a character (first: row 1)" in caplog.text


def test_a_saved_dataset_is_a_split(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert columns(sources.load(path=str(tmp_path / "one")))["label"] == ["a", "NA"]
    assert columns({"train": [tmp_path / "one"]})["label"] == ["a", "NA"]
    DatasetDict(a=Dataset.from_list(ROWS), b=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "d")
    assert columns({"train": [tmp_path / "d" / "b"]})["label"] == ["a", "NA"]
    with pytest.raises(UserError, match=r"holds the splits a, b; name one of them, such as .*d/a"):
        columns({"train": [tmp_path / "d"]})
    with pytest.raises(UserError, match="a directory, and not one that save_to_disk wrote"):
        columns({"train": [tmp_path]})


def test_a_missing_file_and_split_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        columns({"train": [tmp_path / "no.csv"]})
    with pytest.raises(UserError, match=r"split validation_matched: .*did you mean validation\?"):
        columns({"train": [], "validation": []}, "validation_matched")


def test_class_labels_come_by_name_and_minus_one_as_nothing():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    table = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=features)
    assert columns({"train": table})["label"] == ["yes", None, "no"]


def test_a_directory_is_a_source(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "validation.csv").write_text("text,label\nx,1\n")
    (tmp_path / "SOURCE.json").write_text("{}")
    source = sources.load(path=str(tmp_path))
    assert columns(source, "validation") == {"text": ["x"], "label": ["1"]}
    assert columns(source)["label"] == ["a"]


def test_a_saved_dataset_and_a_clone_of_a_hub_repository_are_sources(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    assert columns(sources.load(path=str(tmp_path / "saved")))["label"] == ["a", "NA"]
    clone = tmp_path / "clone" / "mnli"
    clone.mkdir(parents=True)
    for i, row in enumerate(ROWS):
        Dataset.from_list([row]).to_parquet(clone / f"train-0000{i}-of-00002.parquet")
    source = sources.load(path=str(clone.parent), name="mnli")
    assert columns(source)["label"] == ["a", "NA"]


def test_a_split_in_two_formats_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "train.csv").write_text("a")
    with pytest.raises(UserError, match=r"train\.csv and train\.jsonl are both split train"):
        sources.load(path=str(tmp_path))


def test_an_empty_directory_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no <split>\.jsonl"):
        sources.load(path=str(tmp_path))
    with pytest.raises(UserError, match="no such directory"):
        sources.load(path=str(tmp_path / "nowhere"))


def test_without_the_hub_the_way_out_is_named_at_once():
    with pytest.raises(UserError, match=r"Hub is unreachable .* task\.dataset\.path=DIR"):
        sources.load(path="nyu-mll/glue", name="mnli")
