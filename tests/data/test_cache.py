"""What is cached is as it was written, or made anew."""

import pytest
from datasets import Dataset

from forge.data import cache
from forge.errors import UserError

ROWS = Dataset.from_dict({"id": [0, 1, 2], "text": ["a", "bb", "ccc"]})


@pytest.fixture
def stored(tmp_path):
    """Lengths of the texts, with how often they were counted."""
    asked = []

    def encode(batch):
        asked.append(len(batch["text"]))
        return {"length": [len(text) for text in batch["text"]]}

    def run():
        split = cache.stored(ROWS, encode, ["text"], "key", tmp_path)
        return list(split["length"]), len(asked)

    return run


def test_it_is_made_once(stored):
    assert stored() == ([1, 2, 3], 1)
    assert stored() == ([1, 2, 3], 1)


@pytest.mark.parametrize("harm", ["cut", "zeroed", "empty", "swapped", "seal gone", "seal cut"])
def test_a_damaged_file_is_said_and_made_anew(stored, tmp_path, harm, caplog):
    stored()
    (file,) = (tmp_path / "tokenised").glob("*.arrow")
    content, seal = file.read_bytes(), file.with_suffix(".json")
    if harm.startswith("seal"):
        seal.write_text("{") if harm == "seal cut" else seal.unlink()
    else:
        other = {"cut": content[: len(content) // 2], "zeroed": bytes(len(content)), "empty": b""}
        file.write_bytes(other.get(harm, content[:-9] + b"123456789"))
    assert stored() == ([1, 2, 3], 2)
    assert f"{file}: not as it was written; made anew" in caplog.text
    assert stored() == ([1, 2, 3], 2)


def test_a_read_only_cache_serves_what_it_holds(stored, tmp_path, monkeypatch):
    stored()

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.FileLock, "acquire", denied)
    assert stored() == ([1, 2, 3], 1)
    (file,) = (tmp_path / "tokenised").glob("*.arrow")
    file.unlink()
    with pytest.raises(UserError, match=r"cache_dir=.*name another with cache_dir=DIR"):
        stored()


def test_without_a_home_the_key_is_named(monkeypatch):
    def nowhere(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "expanduser", nowhere)
    with pytest.raises(UserError, match=r"cache_dir=null: Could not determine .*HOME"):
        cache.cache_directory(None)
