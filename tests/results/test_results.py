"""A sweep read back: rows, controls, tuned settings, the plot, and the command that makes them."""

import json
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from forge.__main__ import main
from forge.errors import UserError
from forge.records.files import METADATA, STATE
from forge.results.comparison import comparison_text, side_by_side
from forge.results.show import shown
from forge.results.statistics import holm
from forge.results.sweep_report import numbers, sentences, table, text
from forge.results.sweeps import read_sweep
from forge.results.tables import drawn, markdown_table, print_table
from tests.support.commands import forge, launch
from tests.support.runs import TOY


@pytest.fixture
def sweep(tmp_path):
    """Write finished runs: overrides, and how often each is right on validation and on test."""

    def write(*runs, teacher=None, best=True):
        for number, (overrides, validation, test) in enumerate(runs):
            folder = tmp_path / "sweep" / str(number)
            (folder / "predictions").mkdir(parents=True)
            seed = int(dict(o.split("=") for o in overrides).get("seed", 1))
            config = {"seed": seed, "trainer": {"load_best_model_at_end": best}}
            attempts = [{"host": "elsewhere", "pid": 1, "started": "2026-01-01T00:00:00Z"}]
            metadata = {"overrides": overrides, "config": config, "data": {}}
            metadata |= {"choices": {"task": "toy"}, "attempts": attempts}
            if teacher and "mode.alpha=0" not in overrides:
                scores = {split: {"accuracy": teacher} for split in ("validation", "test")}
                metadata["teacher"] = {"paths": [], "splits": scores}
            splits = {}
            for name, right in (("validation", validation), ("test", test)):
                if right is None:
                    continue
                splits[name] = {"accuracy": float(np.mean(right)), "n": len(right)}
                columns = {"id": range(len(right)), "label": [0] * len(right)}
                columns["prediction"] = [int(not r) for r in right]
                pq.write_table(pa.table(columns), folder / "predictions" / f"{name}.parquet")
            first = next(iter(splits))
            headline = {"metric": "accuracy", "split": first, "value": splits[first]["accuracy"]}
            for file, content in (
                ("run_metadata", metadata),
                ("training_state", {"status": "finished"}),
                ("results", {"headline": headline, "splits": splits}),
            ):
                (folder / f"{file}.json").write_text(json.dumps(content))
        return tmp_path / "sweep"

    return write


def right(rate, seed, count=400):
    return (np.random.default_rng(seed).random(count) < rate).tolist()


def test_rows_differ_from_their_control_on_the_split_that_chose_nothing(sweep):
    runs = [
        ([f"mode.alpha={alpha}", f"seed={seed}"], right(0.5, seed), right(rate, seed))
        for alpha, rate in (("0", 0.6), ("0.5", 0.8))
        for seed in (1, 2)
    ]
    found = read_sweep(sweep(*runs, teacher=0.9))
    assert (found.split, found.metric, len(found.rows)) == ("test", "accuracy", 2)
    control, taught = found.rows
    assert control.against is None and taught.against.verdict == "higher"
    expected = np.mean([np.mean(right(0.8, s)) - np.mean(right(0.6, s)) for s in (1, 2)])
    assert taught.against.value == pytest.approx(expected)
    header, cells = table(found)
    assert cells[-1][0] == "teacher" and cells[-1][1] == "90.00"
    mean = np.mean([np.mean(right(0.6, s)) for s in (1, 2)])
    closed = cells[1][header.index("gap closed")]
    assert closed == f"{expected / (0.9 - mean):.0%}"
    assert "chosen on validation" in sentences(found)[-1]
    assert "alpha=0.5 against alpha=0: higher, better" in sentences(found)[0]


def test_a_grid_of_trainer_settings_is_tuned_for_each_row_on_the_first_split(sweep):
    runs = [
        (
            [f"mode.alpha={alpha}", f"trainer.learning_rate={rate}", "seed=1"],
            right(0.9 if rate == best else 0.4, 1),
            right(0.7, 2),
        )
        for alpha, best in (("0", "1e-4"), ("1", "2e-4"))
        for rate in ("1e-4", "2e-4")
    ]
    found = read_sweep(sweep(*runs))
    assert [row.tuned for row in found.rows] == [
        {"trainer.learning_rate": "1e-4"},
        {"trainer.learning_rate": "2e-4"},
    ]
    assert [len(row.runs) for row in found.rows] == [1, 1]


def test_each_model_has_its_own_control(sweep):
    runs = [
        ([f"model={model}", f"mode.alpha={alpha}"], right(rate, 3), None)
        for model, rates in (("tiny", (0.5, 0.5)), ("small", (0.5, 0.9)))
        for alpha, rate in zip(("0", "1"), rates, strict=True)
    ]
    found = read_sweep(sweep(*runs, best=False))
    verdicts = {row.name: row.against.verdict for row in found.rows if row.against}
    assert verdicts == {
        "model=small, alpha=1": "higher",
        "model=tiny, alpha=1": "no difference shown",
    }
    assert "no checkpoint and no setting was chosen" in sentences(found)[-1]
    assert "higher" in text(found)


def test_jobs_that_are_missing_are_said_and_only_common_seeds_are_compared(sweep):
    runs = [(["mode.alpha=0", f"seed={s}"], right(0.5, s), None) for s in (1, 2, 3)]
    folder = sweep(*runs, (["mode.alpha=0.5", "seed=3"], right(0.7, 3), None), teacher=0.9)
    (folder / "7").mkdir()
    found = read_sweep(folder)
    row = found.rows[1]
    expected = np.mean(right(0.7, 3)) - np.mean(right(0.5, 3))
    assert row.against.value == pytest.approx(expected) and row.seeds == [3]
    assert any("1 jobs have not finished" in line for line in sentences(found))


def test_a_lucky_seed_alone_is_not_chosen(sweep):
    runs = [
        (["mode.alpha=0", "trainer.learning_rate=1e-4", f"seed={s}"], right(0.5, s), None)
        for s in (1, 2)
    ]
    lucky = (["mode.alpha=0", "trainer.learning_rate=2e-4", "seed=1"], right(0.9, 1), None)
    other = (["mode.alpha=1", "trainer.learning_rate=1e-4", "seed=1"], right(0.5, 1), None)
    row = read_sweep(sweep(*runs, lucky, other)).rows[0]
    assert row.tuned == {"trainer.learning_rate": "1e-4"}


def test_sft_is_the_control_of_a_sweep_over_modes(sweep):
    runs = [([f"mode={m}"], right(r, 1), None) for m, r in (("kd", 0.8), ("sft", 0.5))]
    found = read_sweep(sweep(*runs))
    assert [row.name for row in found.rows if row.against] == ["mode=kd"]


def test_every_table_has_a_column_for_names(sweep):
    runs = [(["mode=kd", f"seed={s}"], right(0.5, s), right(0.5, s)) for s in (1, 2)]
    header, cells = table(read_sweep(sweep(*runs, teacher=0.9)))
    assert {len(line) for line in cells} == {len(header)}
    assert [line[0] for line in cells] == ["all", "teacher"]


def test_a_sweeps_numbers_are_plain(sweep):
    runs = [
        ([f"mode.alpha={a}", f"seed={s}"], right(0.5 + a / 3, s), None)
        for a in (0, 1)
        for s in (1, 2)
    ]
    found = json.loads(json.dumps(numbers(read_sweep(sweep(*runs, teacher=0.9)))))
    control, taught = found["rows"]
    assert control["values"] == {"mode.alpha": "0"} and control["seeds"] == [1, 2]
    assert taught["mean"] == pytest.approx(np.mean(taught["scores"]))
    assert taught["difference"]["value"] == pytest.approx(taught["mean"] - control["mean"])
    assert taught["reference"] == control["values"] and control["difference"] is None


def test_a_folder_without_finished_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run in it"):
        read_sweep(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such directory"):
        read_sweep(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_study_ends_with_its_table_and_its_plot(tmp_path):
    small = ("model.config.hidden_size=16", "model.config.intermediate_size=32")
    teacher = ("model@teacher=tiny", "teacher.trainer.max_steps=20", "mode.gate=off")
    few = ("trainer.max_steps=4", "seed=1,2", "mode.alpha=0,1", "hydra.sweep.dir=sweep")
    done = launch(tmp_path, "experiment=kd_study", *TOY, *small, *teacher, *few)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "alpha=1 against alpha=0: " in done.stdout and "speed-up" in done.stdout
    assert sorted(path.name for path in (tmp_path / "sweep").glob("[0-9]*")) == list("0123")
    assert (tmp_path / "sweep" / "report.png").read_bytes().startswith(b"\x89PNG")
    told = (tmp_path / "sweep" / "report.md").read_text()
    assert "| mode.alpha |" in told and "| teacher |" in told
    again = forge("report", str(tmp_path / "sweep"))
    assert again.returncode == 0 and "alpha=1 against alpha=0: " in again.stdout
    again = forge("report", str(tmp_path / "sweep"), "--json")
    assert [row["values"] for row in json.loads(again.stdout)["rows"]] == [
        {"mode.alpha": "0"},
        {"mode.alpha": "1"},
    ]


def test_runs_side_by_side_and_the_verdict_on_each_pair(sweep):
    """A hundredth of the answers made worse is shown; another draw of the same rate is not."""
    base = right(0.8, 0, 10_000)
    worse = list(base)
    for i in [i for i, r in enumerate(base) if r][:100]:
        worse[i] = False
    like = right(0.8, 1, 10_000)
    folder = sweep(*(([f"seed={n}"], None, side) for n, side in enumerate((base, worse, like), 1)))
    paths = [folder / name for name in "012"]
    found = side_by_side(paths)
    assert found["config"] == {"seed": [1, 2, 3]}
    assert found["metrics"]["test accuracy"] == [np.mean(side) for side in (base, worse, like)]
    verdicts = {(p["reference"][-1], p["run"][-1]): p["verdict"] for p in found["pairs"]}
    assert verdicts[("0", "1")] == "lower" and verdicts[("0", "2")] == "no difference shown"
    assert 0.001 < found["pairs"][0]["smallest"] < 0.01
    told = comparison_text(found)
    assert told.index("differs") < told.index("metric") < told.index("B against A")
    assert (
        "3 tests" in told and "Holm" in told and not set(told) & set("─━│")
    )  # it is not a terminal
    assert "B against A, test accuracy: lower, -0.0100 [" in told and "n 10,000" in told
    code, out, _ = forge("compare", *map(str, paths[:2]), "--json")
    (alone,) = json.loads(out)["pairs"]
    assert code == 0 and alone == found["pairs"][0] | {"corrected": None}
    p_values = [pair["p"] for pair in found["pairs"]]
    assert [pair["corrected"] for pair in found["pairs"]] == holm(p_values)
    assert found["pairs"][0]["corrected"] == 3 * p_values[0]  # the smallest of three


def test_a_split_of_one_run_alone_is_shown_and_not_compared(sweep):
    both, one = (["seed=1"], right(0.8, 0), right(0.8, 1)), (["seed=2"], right(0.8, 2), None)
    folder = sweep(both, one)
    found = side_by_side([folder / "0", folder / "1"])
    assert found["metrics"]["test accuracy"] == [np.mean(right(0.8, 1)), None]
    assert [pair["split"] for pair in found["pairs"]] == ["validation"]


def test_what_cannot_be_compared_is_refused(sweep, capsys):
    few, other = right(0.8, 1, 300), right(0.8, 0)
    folder = sweep((["seed=1"], None, other), (["seed=2"], None, few), (["seed=3"], other, None))
    for names, told in (
        ("01", "1, test: the predictions are over different examples"),
        ("02", "have judged no split in common"),
        ("00", "named twice"),
        ("0x", "x: no finished run"),
    ):
        assert main(["compare", *(str(folder / name) for name in names)]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


def test_values_in_brackets_are_shown_as_they_are():
    assert "[kl,hidden]" in drawn(["key"], [["[kl,hidden]"]])


def test_a_copy_from_another_machine_that_is_read_only(sweep, capsys, tmp_path):
    runs = [([f"mode.alpha={a}", "seed=1"], right(r, 1), None) for a, r in (("0", 0.5), ("1", 0.8))]
    folder = sweep(*runs, teacher=0.9)
    metadata = json.loads((folder / "1" / METADATA).read_text())
    metadata["teacher"]["paths"] = ["/scratch/elsewhere/teacher"]
    (folder / "1" / METADATA).write_text(json.dumps(metadata))
    (folder / "2").mkdir()
    (folder / "2" / METADATA).write_text(json.dumps(metadata))
    (folder / "2" / STATE).write_text('{"status": "running"}')
    paths = [folder, *sorted(folder.rglob("*"))]
    for path in paths:
        path.chmod(path.stat().st_mode & 0o555)
    before = [(path, path.stat().st_mtime_ns) for path in paths]

    def told(*words):
        assert main([*map(str, words)]) == 0
        return capsys.readouterr().out

    assert len(json.loads(told("runs", folder, "--json"))) == 3
    assert "running on elsewhere" in told("show", folder / "2")
    assert json.loads(told("show", folder / "0", "--json"))["results"]["headline"]
    assert "higher" in told("compare", folder / "0", folder / "1")
    out = tmp_path / "out"
    assert f"report  {out / 'report.md'}" in told("report", folder, "--out", out)
    assert "alpha=1 against alpha=0: higher" in (out / "report.md").read_text()
    assert [
        (path, path.stat().st_mtime_ns) for path in [folder, *sorted(folder.rglob("*"))]
    ] == before
    for path in paths:
        path.chmod(0o755)


def test_a_report_that_cannot_be_written_is_printed_all_the_same(sweep, capsys):
    folder = sweep((["mode.alpha=0"], right(0.5, 1), None), (["mode.alpha=1"], right(0.8, 1), None))
    (folder / "report.md").mkdir()  # which stops root too
    assert main(["report", str(folder)]) == 0
    *_, verdict, _, _, last = capsys.readouterr().out.splitlines()
    assert "higher" in verdict and "not written" in last and "--out DIR" in last
    assert main(["report", str(folder), "--out", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {folder}: ")


def test_the_same_ids_of_other_rows_are_refused(sweep):
    folder = sweep(*[((f"seed={seed}",), right(0.7, 1), right(0.7, 1)) for seed in (1, 2, 3)])

    def recorded(job, fingerprint, text):
        metadata = json.loads((folder / job / METADATA).read_text())
        metadata["data"] = {"test": {"fingerprint": fingerprint}}
        metadata["config"]["task"] = {"text": text}
        (folder / job / METADATA).write_text(json.dumps(metadata))

    recorded("0", "of these", ["a"])
    recorded("1", "of others", ["a"])
    recorded("2", "of other columns", ["a", "b"])
    with pytest.raises(UserError, match="test: the predictions are over different examples"):
        side_by_side([folder / "0", folder / "1"])
    assert len(side_by_side([folder / "0", folder / "2"])["pairs"]) == 2


def test_commands_to_go_on_survive_the_shell_and_hydra(sweep, tmp_path):
    sweep((("seed=1",), right(0.7, 1), None))
    folder = (tmp_path / "sweep").rename(tmp_path / "a run, ü")
    (folder / "0" / STATE).write_text(json.dumps({"status": "failed"}))
    (word,) = shlex.split(dict(shown(folder / "0"))["to go on"])[2:]
    (given,) = OverridesParser.create().parse_overrides([word])
    assert given.key_or_group == "resume" and given.value() == str(folder / "0")


def test_what_a_cell_holds_breaks_no_table(capsys):
    assert markdown_table(["a|b"], [["x\ny|z"]]).splitlines()[::2] == ["| a\\|b |", "| x y\\|z |"]
    print_table(["text", "answer"], [["x\ty\nz", "no"]])
    assert capsys.readouterr().out == "text\tanswer\nx y z\tno\n"
