"""Recordings stay the bytes of their files until a batch is made: mono, of the model's rate."""

import io
import logging

import numpy as np
import pytest
import torch
from datasets import Audio as Recordings
from datasets import Dataset, Features
from PIL import Image as Pillow
from transformers import AutoModelForAudioClassification

from forge.config.schema import Model
from forge.data import sources
from forge.errors import UserError
from forge.inputs.audio import Audio
from forge.models.loading import load_config

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
WINDOW, RATE = 0.1, 16000  # seconds, Hz


def tone(seconds=WINDOW, rate=RATE, hz=440):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def encoded(wave, rate=RATE, kind="WAV", **options):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, **options)
    return file.getvalue()


@pytest.fixture
def processor():
    return extractor(model_type="wav2vec2")


def extractor(**config):
    made = Audio(WINDOW).load_processor(Model(config=config))
    if hasattr(made, "do_normalize") and config["model_type"] == "wav2vec2":
        made.do_normalize = False
    return made


def features(processor, *clips, seconds=WINDOW):
    kind = Audio(seconds)
    rows = kind.rows({"audio": list(clips)}, "train")
    return kind.features(rows, processor, round(seconds * processor.sampling_rate))


def batch(processor, *clips, seconds=WINDOW):
    """[B, samples]"""
    rows = Dataset.from_dict(features(processor, *clips, seconds=seconds)).to_list()
    return Audio(seconds).collator(processor, None)(rows)["input_values"]


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_a_clip_of_any_rate_is_heard_at_the_models(processor, rate):
    same, other = batch(processor, encoded(tone()), encoded(tone(rate=rate), rate))
    assert len(other) == WINDOW * RATE
    middle = slice(200, -200)  # a filter rings where a clip begins and ends
    assert torch.allclose(same[middle], other[middle], atol=0.01)


def test_resampling_is_said(processor, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clips = [encoded(tone()), encoded(tone(rate=8000), 8000)]
    rows = sources.dataset({"id": [0, 1], "audio": clips, "path": ["a", "b"], "labels": [0, 1]})
    found = Audio(WINDOW).encode(rows, processor, 1600, tmp_path)
    assert "1 recordings of 8000 Hz are resampled to 16000 Hz" in caplog.text
    assert list(found["audio"]) == clips and "path" not in found.column_names


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "AIFF"])
def test_every_format_that_soundfile_reads(processor, kind):
    (found,) = batch(processor, encoded(tone(1.0), kind=kind), seconds=1.0)
    spectrum = np.abs(np.fft.rfft(found.numpy()))
    assert abs(spectrum.argmax() - 440) <= 1  # Hz, of a second


def test_channels_are_averaged(processor):
    wave, silence = tone(), np.zeros(round(WINDOW * RATE))
    one, half, none = batch(
        processor,
        *(encoded(np.stack(p, 1)) for p in ((wave, wave), (wave, silence), (wave, -wave))),
    )
    assert torch.allclose(half, one / 2, atol=1e-3) and none.abs().max() < 1e-3


def test_a_longer_clip_is_cut_and_counted_and_a_shorter_one_followed_by_silence(processor):
    clips = [encoded(tone(seconds)) for seconds in (0.05, WINDOW, 0.2)]
    assert features(processor, *clips)["truncated"] == [False, False, True]
    assert features(processor, encoded(tone(0.2, 8000), 8000))["truncated"] == [True]
    short, whole, long = batch(processor, *clips)
    assert torch.equal(short[:800], whole[:800]) and not short[800:].any()
    assert torch.equal(long, whole)


def test_an_answer_does_not_depend_on_the_batch(processor):
    """Of a model with group normalisation, which reads padding even under a mask."""
    sizes = {"conv_dim": [8, 8], "conv_kernel": [10, 4], "conv_stride": [5, 4], "hidden_size": 8,
             "num_feat_extract_layers": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 8, "num_conv_pos_embeddings": 4, "feat_extract_norm": "group",
             "num_conv_pos_embedding_groups": 2}  # fmt: skip
    config = load_config(Model(config={"model_type": "wav2vec2", **sizes}), {})
    model = AutoModelForAudioClassification.from_config(config).eval()
    clips = [encoded(tone(0.05)), encoded(tone(0.3, hz=900))]
    with torch.no_grad():
        together = model(batch(processor, *clips)).logits[0]
        alone = model(batch(processor, clips[0])).logits[0]
    assert torch.allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"model_type": "whisper", "max_source_positions": 100}, 32000),
        (
            {"model_type": "audio-spectrogram-transformer", "max_length": 100, "num_mel_bins": 32},
            400 + 99 * 160,
        ),
    ],
)
def test_a_window_is_what_the_model_reads_and_that_is_said(config, most, caplog):
    made, of_model = extractor(**config), load_config(Model(config=config), {})
    assert Audio(most / RATE).limit(made, of_model) == most
    assert not caplog.text
    assert Audio(3.0).limit(made, of_model) == most
    assert f"reads {most / RATE:g} s" in caplog.text
    rows = [{"audio": encoded(tone(0.2)), "length": 1600, "labels": 1, "id": 7}]
    made_batch = Audio(WINDOW).collator(made, None)(rows)
    assert made_batch.keys() >= {"labels", "id"} and len(made_batch) == 3


@pytest.mark.parametrize(("seconds", "masked"), [(1.0, True), (0.1, False)])
def test_specaugment_is_off_where_a_window_is_shorter_than_its_mask(processor, seconds, masked):
    config = load_config(Model(config={"model_type": "wav2vec2", "apply_spec_augment": True}), {})
    Audio(seconds).make_ready(processor, config)
    assert config.apply_spec_augment == masked
    with pytest.raises(UserError, match="too short"):
        Audio(0.01).make_ready(processor, config)


def test_paths_bytes_and_what_datasets_keeps_are_the_same_recording(tmp_path):
    file, data = tmp_path / "a.wav", encoded(tone())
    file.write_bytes(data)
    kept = [{"bytes": data, "path": None}, {"bytes": None, "path": str(file)}]
    table = Dataset.from_dict({"audio": kept}).cast(Features({"audio": Recordings()}))
    (column,) = sources.read({"train": table}, "train", ["audio"]).values()
    rows = Audio(WINDOW).rows({"audio": [str(file), data, *column]}, "train")
    assert rows["audio"] == [data] * 4


@pytest.mark.parametrize("value", [None, 3, "", b"", "nothing.wav"])
def test_what_is_no_file_is_said_with_its_row(value):
    with pytest.raises(UserError, match="row 1"):
        Audio(WINDOW).rows({"audio": [encoded(tone()), value]}, "train")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a text", "not audio"),
        (encoded(np.zeros(0)), "no sample"),
        (encoded(np.full(9, np.nan), subtype="FLOAT"), "no numbers"),
    ],
)
def test_a_broken_file_is_said_before_training(processor, data, reason, tmp_path):
    rows = Dataset.from_dict({"id": [0], "audio": [data], "path": ["x.wav"], "labels": [0]})
    with pytest.raises(UserError, match=rf"x\.wav: .*{reason}"):
        Audio(WINDOW).encode(rows, processor, 1600, tmp_path)


def test_rate_window_and_extractor_are_in_the_key(processor, tmp_path):
    def split(limit=1600, **changed):
        made = extractor(model_type="wav2vec2")
        vars(made).update(changed)
        rows = sources.dataset({"id": [0], "audio": [data], "path": ["x"], "labels": [1]})
        return Audio(WINDOW).encode(rows, made, limit, tmp_path)._fingerprint

    data = encoded(tone())
    assert split() == split()
    assert len({split(), split(800), split(sampling_rate=8000), split(do_normalize=True)}) == 4


def test_a_waveform_shows_what_is_read_and_what_is_cut():
    quiet = np.concatenate([tone(0.1), np.zeros(1600), tone(0.1)])
    clips = [encoded(quiet), encoded(tone(0.05))]
    rows = Dataset.from_dict({"audio": clips, "path": ["a", "b"]})
    longer, shorter = (np.asarray(Pillow.open(io.BytesIO(p))) for p in Audio(WINDOW).pictures(rows))
    third = longer.shape[1] // 3
    blue, grey = (longer == (31, 119, 180)).all(2), (longer == 170).all(2)
    inked = [
        (part[:, i * third : (i + 1) * third]).sum() for part in (blue, grey) for i in range(3)
    ]
    assert inked[0] > 10 * inked[1] == 0 and inked[5] > 10 * inked[4] > 0 == inked[3]
    assert (shorter[:, shorter.shape[1] // 2 + 1 :] == 255).all()
