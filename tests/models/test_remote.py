"""Models whose code lies beside their weights: used when that is asked for, asked about never."""

import pytest
from safetensors.torch import save_file

from forge.commands.evaluate import evaluate
from forge.commands.predict import predict
from forge.errors import UserError
from forge.records.files import read_json, write_json
from forge.results.sweep_report import measure_models, text
from forge.results.sweeps import read_sweep
from tests.support.runs import SMALL, TOY, launch_in, results, weights

CODE = """
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class OwnConfig(BertConfig):
    model_type = "own"


class Classifier(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "bert"

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.out = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, **kwargs):
        seen = self.bert(input_ids, attention_mask, token_type_ids, **kwargs)
        return SequenceClassifierOutput(
            logits=self.out(seen.pooler_output), hidden_states=seen.hidden_states
        )
"""

TRUST = "+model.from_pretrained.trust_remote_code=true"
MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Classifier"}
FEW = ("trainer.max_steps=3", "trainer.eval_strategy=no", "trainer.save_strategy=no",
       "trainer.load_best_model_at_end=false")  # fmt: skip


@pytest.fixture(scope="module")
def remote(tmp_path_factory, quick):
    """A trained classifier with its code, whose class is named as it likes."""
    folder = tmp_path_factory.mktemp("remote")
    run = launch_in(folder)(*TOY, *SMALL, "trainer.num_train_epochs=2")
    place = run / "model"
    named = {name.replace("classifier.", "out."): w for name, w in weights(run).items()}
    save_file(named, place / "model.safetensors", {"format": "pt"})
    config = read_json(place / "config.json")
    write_json(place / "config.json", config | {
        "model_type": "own", "architectures": ["Classifier"], "auto_map": MAP,
    })  # fmt: skip
    (place / "own.py").write_text(CODE)
    return run


@pytest.fixture
def unasked(monkeypatch):
    """A terminal, at which nobody is to be asked."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "n")
    yield
    assert not asked


def loss(run):
    return results(run)["splits"]["validation"]["loss"]


def test_a_trained_head_of_remote_code_is_kept_and_used(launch, remote, unasked, tmp_path):
    own = loss(remote)
    start = f"model.path={remote}/model"
    judged = launch(*TOY, *SMALL, start, TRUST, "trainer.max_steps=0", at="judged")
    assert loss(judged) == pytest.approx(own, abs=1e-6)
    run = launch(*TOY, *SMALL, *FEW, start, TRUST)
    assert evaluate(run, [], tmp_path / "again")["splits"]["validation"]["loss"] == loss(run)
    assert predict([run], [["a dog"], ["a cat"]])["rows"]
    again = launch(*TOY, *SMALL, f"model.path={run}", TRUST, "trainer.max_steps=0", at="chained")
    assert loss(again) == loss(run)


def test_remote_code_teaches(launch, remote, unasked):
    trust = "+teacher.from_pretrained.trust_remote_code=true"
    run = launch(
        *TOY, *SMALL, *FEW, "mode=kd", "mode.gate=off", f"teacher.path={remote}/model", trust
    )
    taught = read_json(run / "run_metadata.json")["teacher"]["splits"]["validation"]
    assert taught["accuracy"] == results(remote)["headline"]["value"]


@pytest.mark.parametrize(
    "start", ["model.from_scratch=true", "model.new_head=true", "model.layers=1", "mode=rl"]
)
def test_remote_code_starts_in_every_way(launch, remote, unasked, start):
    run = launch(*TOY, *SMALL, *FEW, f"model.path={remote}/model", TRUST, start)
    assert results(run)["train"]["steps"] == 3


def test_remote_code_is_not_run_unless_asked_for(launch, remote, unasked):
    with pytest.raises(UserError, match="trust_remote_code"):
        launch(*TOY, *SMALL, *FEW, f"model.path={remote}/model")


def test_a_sweeps_report_runs_no_code_of_models(launch, remote, unasked, tmp_path, caplog):
    for i in (0, 1):
        launch(
            *TOY, *SMALL, *FEW, f"model.path={remote}/model", TRUST, f"seed={i}", at=f"sweep/{i}"
        )
    sweep = read_sweep(tmp_path / "sweep")
    measure_models(sweep)
    assert sweep.models == [] and "no latency of" in caplog.text
    assert "accuracy" in text(sweep)
