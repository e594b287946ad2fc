"""The Hub is asked once, briefly; libraries are told when it is out of reach."""

import urllib.request

import pytest

from forge import hub
from forge.errors import UserError


@pytest.fixture(autouse=True)
def fresh():
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


def test_offline_by_setting_asks_nobody(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("asked"))
    assert not hub.reachable()


@pytest.mark.parametrize(("answers", "expected"), [(True, True), (False, False)])
def test_it_is_asked_once(monkeypatch, answers, expected):
    asked = []

    def urlopen(request, timeout):
        asked.append(timeout)
        if not answers:
            raise OSError("no route")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert [hub.reachable(), hub.reachable()] == [expected] * 2
    assert asked == [hub.TIMEOUT]


def test_libraries_are_told(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.offline_unless_reachable()
    assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("bert-base-cased", True),
        ("owner/name", True),
        ("./x", False),
        ("/x/y", False),
        ("a/b/c", False),
        ("~/x", False),
        ("../up", False),
    ],
)
def test_what_could_be_a_name_on_the_hub(path, named):
    assert hub.looks_like_name(path) is named


def test_a_librarys_error_about_a_local_path_is_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"model /.*: broken here"),
        hub.access("model", str(tmp_path), "model.path=DIR"),
    ):
        raise OSError("broken\nhere")
