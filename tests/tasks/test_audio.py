"""Recordings in every mode."""

import json
import logging
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from forge.commands.evaluate import evaluate
from forge.commands.export import export
from forge.commands.predict import predict
from forge.data.toy_tones import tones
from forge.errors import Preempted, UserError
from forge.records.files import read_json
from forge.results.run_report import report
from tests.support.runs import results, snippet, weights
from tests.support.stopping import RUN, assert_same

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

TONES = ("task=toy_tones", "task.dataset.train=64", "task.dataset.validation=24",
         "task.seconds=0.3", "precision=fp32")  # fmt: skip
WAV2VEC2 = ("model=tiny_wav2vec2", "model.config.hidden_size=16",
            "model.config.num_hidden_layers=1", "model.config.intermediate_size=16")  # fmt: skip
SIZES = "d_model=16 encoder_layers=1 encoder_attention_heads=2 encoder_ffn_dim=16 num_mel_bins=16"
WHISPER = ("model=whisper_tiny", "model.path=null", "+model.config.model_type=whisper",
           "+model.config.max_source_positions=50", "+model.config.decoder_layers=1",
           *(f"+model.config.{size}" for size in SIZES.split()))  # fmt: skip
SIZES = "hidden_size=16 num_hidden_layers=1 num_attention_heads=2 intermediate_size=16"
AST = ("model=ast", "model.path=null", "+model.config.model_type=audio-spectrogram-transformer",
       "+model.config.max_length=40", "+model.config.num_mel_bins=32",
       *(f"+model.config.{size}" for size in SIZES.split()))  # fmt: skip
FAST = ("trainer.learning_rate=3e-3", "trainer.num_train_epochs=1", "mode.gate=off")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder for each class, and a table of the same recordings with who is heard."""
    root = tmp_path_factory.mktemp("clips")
    for split, rows in tones(train=48, validation=24).items():
        lines = ["audio,label,speaker"]
        for i, (data, label) in enumerate(zip(rows["audio"], rows["label"], strict=True)):
            file = root / split / label / f"{i}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            lines.append(f"{file.relative_to(root)},{label},{split} {i % 3}")
        (root / f"{split}.csv").write_text("\n".join(lines))
    return root


def of_files(clips, suffix=""):
    files = [f"task.files.{split}={clips / split}{suffix}" for split in ("train", "validation")]
    return ("task=files_audio", *files, "task.seconds=0.3", "precision=fp32")


def answers(run_dir, split="validation"):
    return pq.read_table(run_dir / "predictions" / f"{split}.parquet").to_pydict()


@pytest.mark.slow
def test_tones_are_learnt_from_waves(launch):
    run_dir = launch("experiment=toy_tones", "task.seconds=0.3")
    assert results(run_dir)["splits"]["validation"]["accuracy"] > 0.95
    assert "tokens_per_second" not in results(run_dir)["train"]


@pytest.mark.parametrize("model", [WHISPER, AST])
def test_models_of_spectrograms_train_report_and_are_used(launch, clips, model):
    run_dir = launch(*of_files(clips), *model, *FAST[:2])
    (file,) = clips.glob("validation/*/0.wav")
    (answer,) = predict([run_dir], file=file)["rows"][0]["predictions"]
    logits = np.array(answers(run_dir)["logits"])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.isclose(shares, list(answer["probabilities"].values()), atol=1e-5).all(1).any()


def test_distilled_at_alpha_0_is_fine_tuned_and_stored_answers_are_live_ones(launch, tmp_path):
    teacher = launch(*TONES, *AST, *FAST[:2], at="teacher")
    taught = (*TONES, *WAV2VEC2, *FAST, "mode=kd", f"teacher.path={teacher}")
    plain = weights(launch(*TONES, *WAV2VEC2, *FAST[:2], at="sft"))
    zero = weights(launch(*taught, "mode.alpha=0", at="zero"))
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    stored, live = (weights(launch(*taught, f"mode.cache={c}", at=c)) for c in ("true", "false"))
    assert all(torch.allclose(stored[name], live[name], atol=1e-4) for name in stored)
    assert not all(torch.equal(plain[name], stored[name]) for name in plain)


def test_a_teacher_of_another_rate_hears_the_same_window(launch, tmp_path):
    teacher = launch(*TONES, *WAV2VEC2, *FAST[:2], at="teacher")
    own = answers(teacher)["logits"]
    file = teacher / "model" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sampling_rate": 8000}))
    taught = launch(*TONES, *WAV2VEC2, *FAST, "mode=kd", f"teacher.path={teacher}", at="kd")
    theirs = answers(taught, "teacher_validation")["logits"]
    heard = evaluate(teacher, [])["splits"]["validation"]
    assert not np.allclose(own, theirs, atol=1e-3)
    record = json.loads((taught / "run_metadata.json").read_text())
    assert record["max_length"] == 4800
    assert record["teacher"]["splits"]["validation"]["accuracy"] == heard["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), ("mode=rl", "mode.gate=off")])
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(launch, stop_at, mode):
    run = (*TONES, "task.dataset.train=320", *WAV2VEC2, *mode, *RUN)
    whole = launch(*run, at="whole")
    stop_at(13)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))


def test_folders_and_a_table_are_the_same_task(launch, clips, capsys):
    of_folders = launch(*of_files(clips), *WAV2VEC2, *FAST[:2], at="folders")
    grouped = (*of_files(clips, ".csv"), "task.group=speaker")
    of_tables = launch(*grouped, *WAV2VEC2, *FAST[:2], at="tables")
    one, other = (sorted(answers(run)["label"]) for run in (of_folders, of_tables))
    assert one == other
    (file,) = clips.glob("validation/*/0.wav")
    logits = np.array(answers(of_tables)["logits"][answers(of_tables)["id"].index(0)])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    table = clips / "validation.csv"
    for asked in ({"given": [[str(file)]]}, {"file": file}, {"file": table}):
        row = predict([of_tables], **asked)["rows"][0]["predictions"][0]
        assert np.allclose(list(row["probabilities"].values()), probabilities, atol=1e-5)
    report(of_folders)
    assert (of_folders / "report_validation_errors.png").is_file()
    assert "report_validation_errors.png" in (of_folders / "report.md").read_text()
    assert export(of_folders)["difference"] < 1e-4

    card = (of_folders / "model" / "README.md").read_text()
    assert "audio-classification" in card
    shutil.copyfile(file, clips / "clip.wav")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clips)
        names = {}
        exec(snippet(card, of_folders), names)
    (shown,) = names["logits"].softmax(-1).tolist()
    given = predict([of_folders], file=file)["rows"][0]["predictions"][0]["probabilities"]
    assert np.allclose(shown, list(given.values()), atol=1e-5)
    assert str(round(max(shown), 4))[:5] in capsys.readouterr().out


def test_a_run_is_used_where_its_training_rows_are_gone(launch, clips, tmp_path):
    files = shutil.copytree(clips, tmp_path / "here")
    run_dir = launch(*of_files(files, ".csv"), "task.group=speaker", *WAV2VEC2, *FAST[:2])
    before = results(run_dir)["splits"]["validation"]["accuracy"]
    (files / "train.csv").unlink()
    assert evaluate(run_dir, [])["splits"]["validation"]["accuracy"] == before
    shutil.rmtree(files)
    (file,) = clips.glob("validation/*/0.wav")
    assert predict([run_dir], file=file)["rows"]


@pytest.mark.parametrize("model", [WAV2VEC2, WHISPER])
def test_lora_trains_an_adapter_and_the_head(launch, model):
    base = launch(*TONES, *model, "trainer.num_train_epochs=0", at="base")
    adapted = launch(*TONES, f"model.path={base}", "model.lora.r=2", *FAST[:2], at="lora")
    whole, names = weights(base), weights(adapted)
    assert {n for n in names if "lora" not in n} == {
        f"base_model.model.{n}" for n in whole if n.split(".")[0] in ("classifier", "projector")
    }
    again = evaluate(adapted, [])["splits"]["validation"]
    assert again["loss"] == pytest.approx(results(adapted)["splits"]["validation"]["loss"], 1e-4)


def test_another_tasks_head_gives_way_and_the_encoder_stays(launch, clips):
    """Of Whisper's classifier, whose encoder has another name than its base model."""
    base = launch(*TONES, *WHISPER, "trainer.num_train_epochs=0", at="base")
    fresh = (
        "model.new_head=true",
        "seed=1",
        "trainer.num_train_epochs=0",
        "task.labels=[a,b,low,middle]",
    )
    table = clips / "three.csv"
    table.write_text(_relabelled(clips))
    files = (f"task.files.train={table}", f"task.files.validation={table}", "task.seconds=0.3")
    new = launch(
        "task=files_audio", *files, f"model.path={base}", "precision=fp32", *fresh, at="new"
    )
    old, found = weights(base), weights(new)
    same = {name for name in old if torch.equal(old[name], found[name])}
    assert same >= {name for name in old if name.startswith("encoder.")}
    assert "classifier.weight" not in same


def _relabelled(clips):
    names = {"high": "a", "top": "b"}
    lines = (clips / "validation.csv").read_text().splitlines()
    rows = [line.split(",")[:2] for line in lines[1:]]
    return "\n".join(["audio,label", *(f"{path},{names.get(n, n)}" for path, n in rows)])


def test_cut_clips_and_other_rates_are_counted_and_said(launch, caplog, clips):
    caplog.set_level(logging.INFO)
    launch(*of_files(clips), *WAV2VEC2, "trainer.num_train_epochs=0")
    assert "cut at 4,800 samples" in caplog.text
    assert "recordings of 8000 Hz are resampled to 16000 Hz" in caplog.text


def test_a_speaker_in_two_splits_is_refused(launch, clips, tmp_path):
    lines = (clips / "validation.csv").read_text().replace("validation/", f"{clips}/validation/")
    table = tmp_path / "leaking.csv"
    table.write_text(lines.replace("validation 2", "train 2"))
    run = (*of_files(clips, ".csv"), f"task.files.validation={table}", "task.group=speaker")
    with pytest.raises(UserError, match=r"task\.group=speaker: train 2 is in split train"):
        launch(*run, *WAV2VEC2, *FAST[:2])


@pytest.mark.parametrize(
    ("task", "model", "named"),
    [
        ("toy_tones", "model=tiny", "tiny_wav2vec2"),
        ("toy_tones", "model=tiny_vit", "tiny_wav2vec2"),
        ("toy_shapes", "model=tiny_wav2vec2", "tiny_resnet"),
        ("toy", "model=tiny_wav2vec2", "model=tiny"),
    ],
)
def test_a_model_that_reads_something_else_is_one_line(launch, task, model, named):
    few = (f"task={task}", "task.dataset.train=30", "task.dataset.validation=30")
    with pytest.raises(UserError, match=f"does not read .*{named}"):
        launch(*few, model)


def test_a_saved_model_that_reads_something_else_is_one_line(launch, toy_run):
    text = toy_run("model=tiny", "trainer.num_train_epochs=0", at="text")
    shapes = launch("task=toy_shapes", "task.dataset.train=30", "task.dataset.validation=30",
                    "model=tiny_vit", "trainer.num_train_epochs=0", at="shapes")  # fmt: skip
    for base in (text, shapes):
        with pytest.raises(UserError, match=r"read audio; choose e\.g\. model=tiny_wav2vec2"):
            launch(*TONES, f"model.path={base}", at="audio")


def test_the_experiment_teaches_itself(launch):
    run_dir = launch("experiment=toy_tones", "mode=kd", *TONES[1:], "mode.gate=off")
    assert read_json(run_dir / "run_metadata.json")["teacher"]["splits"]["validation"]
