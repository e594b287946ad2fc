"""What a sweep tells at its end."""

from forge.launching import sweep
from forge.records.files import write_json


def test_a_full_disk_costs_a_sweep_its_files_and_not_its_table(tmp_path, capsys):
    (tmp_path / "0").mkdir()
    write_json(tmp_path / "0" / "training_state.json", {"status": "failed"})
    (tmp_path / "sweep.csv").symlink_to("/dev/full")
    assert sweep.sum_up(tmp_path) == 1
    told = capsys.readouterr().out
    assert "failed" in told and "the disk is full" in told
