"""Tones that are embedded, and groups that no two splits may share."""

import io

import numpy as np
import pytest
from datasets import Dataset

from forge.data import folders
from forge.data.toy_tones import LABELS, LOWEST, tones
from forge.errors import UserError

soundfile = pytest.importorskip("soundfile")


def heard(data, rate):
    """The label of the octave of the loudest frequency, as a given rate makes it."""
    wave, own = soundfile.read(io.BytesIO(data))
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**15))
    pitch = spectrum.argmax() / 2**15 * (rate or own)
    return LABELS[int(np.clip(round(np.log2(pitch / LOWEST)), 0, len(LABELS) - 1))]


@pytest.mark.parametrize(("rate", "low", "high"), [(None, 0.98, 1.0), (16000, 0.4, 0.7)])
def test_a_tone_is_told_by_its_pitch_and_not_without_its_rate(rate, low, high):
    rows = tones(train=1, validation=200)["validation"]
    answers = [heard(data, rate) for data in rows["audio"]]
    assert low <= np.mean(np.array(answers) == np.array(rows["label"])) <= high


def test_tones_are_the_same_for_a_seed_and_none_is_in_both_splits():
    one, same, other = (tones(train=30, validation=10, seed=seed) for seed in (0, 0, 1))
    assert one["train"]["audio"] == same["train"]["audio"] != other["train"]["audio"]
    assert len({*one["train"]["audio"], *one["validation"]["audio"]}) == 40
    rates = {soundfile.info(io.BytesIO(data)).samplerate for data in one["train"]["audio"]}
    assert rates == {8000, 16000} and set(one["train"]["label"]) == set(LABELS)
    with pytest.raises(UserError, match="validation=0"):
        tones(train=1, validation=0)


def speakers(**splits):
    return {name: Dataset.from_dict({"speaker": list(names)}) for name, names in splits.items()}


def test_a_speaker_is_on_one_side(tmp_path):
    source = speakers(train="aab", more="bc", validation="dd", test="ad")
    folders.apart(source, "speaker", [["train", "more"], ["validation"]])
    with pytest.raises(UserError, match=r"task\.group=speaker: a is in split train and in test"):
        folders.apart(source, "speaker", [["train", "more"], ["test"]])
    with pytest.raises(UserError, match="d is in split validation and in test"):
        folders.apart(source, "speaker", [["more"], ["validation"], ["test"]])
    gone = {**source, "train": [tmp_path / "gone.csv"]}
    folders.apart(gone, "speaker", [["train"], ["test"]])


def test_rows_without_a_speaker_are_alike_on_both_sides():
    source = speakers(train=["a", None], validation=["b", None])
    folders.apart(source, "speaker", [["train"], ["validation"]])


def test_a_table_has_groups_and_a_directory_none(tmp_path):
    (tmp_path / "t.csv").write_text("audio,label,speaker\na.wav,x,ann\n")
    read = [tmp_path / "t.csv"], "audio", "label", "unlabelled", (".wav",), "speaker"
    rows = folders.read({"train": read[0]}, *read[1:])["train"]
    assert list(rows["speaker"]) == ["ann"]
    with pytest.raises(UserError, match=r"task\.group=speaker.*a directory"):
        folders.read({"train": [tmp_path]}, *read[1:])
