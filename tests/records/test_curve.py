"""log.jsonl: whole lines, each step once whatever kills lie between."""

import json

from forge.records import curve


def steps(run_dir):
    return [entry["step"] for entry in curve.read(run_dir)[0]]


def test_lines_are_read_from_where_the_last_reading_ended(tmp_path):
    for step in (1, 2):
        curve.append(tmp_path, {"step": step, "loss": float("nan")})
    entries, offset = curve.read(tmp_path)
    assert entries[0] == {"step": 1, "loss": None}
    curve.append(tmp_path, {"step": 3})
    assert [e["step"] for e in curve.read(tmp_path, offset)[0]] == [3]
    (tmp_path / curve.FILE).write_text('{"step": 9}\n')
    assert [e["step"] for e in curve.read(tmp_path, offset)[0]] == [9]  # made anew, and shorter


def test_a_line_that_is_being_written_waits_and_a_damaged_one_is_left_out(tmp_path):
    whole = '{"step": 1}\nnonsense\n[1]\n{"loss": 1}\n{"step": 2}\n'
    (tmp_path / curve.FILE).write_text(whole + '{"step": 3, "lo')
    entries, offset = curve.read(tmp_path)
    assert [e["step"] for e in entries] == [1, 2] and offset == len(whole)


def test_going_on_from_a_checkpoint_drops_what_will_be_logged_again(tmp_path):
    for step in (1, 2, 3, 4):
        curve.append(tmp_path, {"step": step})
    with open(tmp_path / curve.FILE, "a") as file:
        file.write('{"step": 5')  # kill -9
    curve.rewind(tmp_path, 2)
    curve.append(tmp_path, {"step": 3})
    assert steps(tmp_path) == [1, 2, 3]


def test_what_the_file_lacks_comes_from_the_checkpoint(tmp_path):
    curve.rewind(tmp_path, 3, [{"step": 1}, {"step": 2}, {"step": 2, "train_runtime": 5}])
    assert steps(tmp_path) == [1, 2]
    curve.rewind(tmp_path, 0)
    assert steps(tmp_path) == []


def test_a_run_that_never_logged_has_no_file(tmp_path):
    curve.rewind(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_numbers_are_kept_whole(tmp_path):
    curve.append(tmp_path, {"step": 1, "loss": 1 / 3})
    assert json.loads((tmp_path / curve.FILE).read_text())["loss"] == 1 / 3
