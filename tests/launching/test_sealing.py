"""A submitted run's pickle holds no secret, and its job has them all the same."""

import json
import pickle

import pytest
from omegaconf import OmegaConf

from forge.errors import UserError
from forge.launching.in_job import Run, Shared
from forge.launching.sealing import SECRETS, seal, unseal
from forge.records.environment import Commit


def test_a_submitted_run_is_pickled_without_its_secrets(monkeypatch):
    config = OmegaConf.create(
        {
            "a": {"token": "open sesame", "password": 123456, "url": "x://me:sesame2@host/y"},
            "keys": {"api_key": ["k-one", "k-two"]},
            "hydra": {
                "overrides": ["+a.token='open sesame'", "b={secret: 'it, too'}"],
                "job": {"override_dirname": "x=1,+a.token=open sesame"},
            },
        }
    )
    run = Run(config, Shared(None, max, {"typed": "+a.token='open sesame'"}, Commit()))
    run.secrets = sorted(run.own_secrets())
    pickled = pickle.dumps(run)
    for secret in (b"sesame", b"123456", b"k-one", b"k-two", b"it, too"):
        assert secret not in pickled
    monkeypatch.setenv(SECRETS, json.dumps(run.secrets))
    requeued = pickle.loads(pickle.dumps(pickle.loads(pickled)))
    config_there, shared = unseal(requeued.sealed)
    assert config_there == config and config_there.a.password == 123456
    assert shared.singletons == {"typed": "+a.token='open sesame'"}


def test_a_job_without_the_secrets_is_refused(monkeypatch):
    monkeypatch.delenv(SECRETS, raising=False)
    assert unseal(seal({"a": 1.5}, [])) == {"a": 1.5}
    with pytest.raises(UserError, match=r"--export=NONE"):
        unseal(seal(["a secret"], ["a secret"]))
