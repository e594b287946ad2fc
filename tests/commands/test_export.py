"""A run's model as ONNX answers as it does in PyTorch, or is not there."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from forge.commands import export as commands_export
from forge.commands.export import FILE, TOLERANCE, export, text
from forge.commands.predict import predict
from forge.errors import Failure, UserError
from tests.support.commands import forge
from tests.support.runs import SMALL, TOY, launch_in

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick):
    return launch_in(tmp_path_factory.mktemp("export"))(*TOY, *SMALL, "trainer.max_steps=1")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(commands_export, "REPEATS", 1)


def ask(folder, *texts):
    """As one would elsewhere: the tokenizer, the session and the labels of the folder alone."""
    session = onnxruntime.InferenceSession(folder / FILE)
    encoded = AutoTokenizer.from_pretrained(folder)(*texts, padding=True, return_tensors="np")
    inputs = {given.name: encoded[given.name] for given in session.get_inputs()}
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    return session.run(["logits"], inputs)[0], labels


def assert_usable(run, folder):
    pairs = [["some dogs run", "no cats sleep here at all"], ["dogs run", "cats"]]
    logits, labels = ask(folder, *pairs)
    rows = predict([run], pairs)["rows"]
    expected = [list(row["predictions"][0]["probabilities"].values()) for row in rows]
    odds = np.exp(logits)
    np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), expected, rtol=1e-4)
    assert list(labels.values()) == ["entailment", "neutral", "contradiction"]


@pytest.mark.slow
def test_the_folder_is_all_one_needs(run):
    found = export(run)
    assert found["difference"] <= TOLERANCE and {"1", "32"} == set(found["milliseconds"])
    assert_usable(run, run / "onnx")
    assert "1 x 8, 3 x 17, 8 x 64, 2 x 64 tokens" in text(found)
    export(run)  # takes the place of the first
    assert not [path for path in run.iterdir() if path.name.startswith(".onnx")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_other_architectures(launch, kind):
    words = (f"model.config.model_type={kind}", "trainer.max_steps=1", "task.max_length=32")
    run = launch(*TOY, *SMALL, *words)
    export(run)
    assert_usable(run, run / "onnx")


@pytest.mark.slow
def test_a_model_that_answers_otherwise_is_refused_and_not_left(run, tmp_path, monkeypatch):
    class Other:
        def __init__(self, session):
            self.get_inputs, self.session = session.get_inputs, session

        def run(self, names, inputs):  # as if padding were read
            unmasked = inputs | {"attention_mask": np.ones_like(inputs["attention_mask"])}
            return self.session.run(names, unmasked)

    session = commands_export._session
    monkeypatch.setattr(commands_export, "_session", lambda file: Other(session(file)))
    with pytest.raises(Failure, match=r"does not answer as PyTorch does: with \d rows of \d+"):
        export(run, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_or_in_the_way_is_one_line(run, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"it is there already, with no export\.json"):
        export(run, tmp_path)
    with pytest.raises(UserError, match=r"mine.txt.*; name another directory with --out DIR"):
        export(run, tmp_path / "mine.txt" / "folder")
    monkeypatch.setattr(commands_export, "PACKAGES", ("onnx", "onnxscriptt"))
    with pytest.raises(UserError, match="onnxscriptt not installed; pip install onnx onnxscriptt"):
        export(run, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_command(run, tmp_path):
    done = forge("export", str(run), "--onnx", "--out", str(tmp_path / "folder"))
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "pytorch" in done.stdout and "batch 32" in done.stdout
    assert (tmp_path / "folder" / FILE).is_file()
