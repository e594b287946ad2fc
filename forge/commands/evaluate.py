"""`python -m forge evaluate`: a finished run's model judged on other data."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from forge.commands.finished import architecture, finished, source
from forge.config import schema
from forge.config.check import build, check
from forge.config.compose import SEARCHPATH, composing, searched
from forge.config.schema import Config
from forge.data import fingerprints
from forge.errors import UserError
from forge.models import heads
from forge.records.environment import environment, git
from forge.records.files import EVALUATION, RESULTS, Json, now, require_place, whole, write_json
from forge.records.logs import library_logs
from forge.records.record import NOT_COMPARED, plain
from forge.records.recorded import recomposed
from forge.records.secrets import masked
from forge.results.runs import Run
from forge.tasks.recorded import as_trained

if TYPE_CHECKING:
    from datasets import Dataset

    from forge.tasks.task import Task
    from forge.training.preparation import Prepared

EVALUATING = ("trainer.per_device_eval_batch_size", "trainer.use_cpu")


ROWS = "task.rows"  # a file of row ids, one a line: these are judged alone
MAY_CHANGE = ("task", "precision", "cache_dir", *EVALUATING, SEARCHPATH)


def evaluate(path: Path, overrides: list[str], out: Path | None = None) -> Json:
    """The run's model judged by its task with the `overrides`; kept in a directory.

    That is `out`, or one in `evaluations/` of the run, which an equal evaluation overwrites; where
    it cannot be written, `lost` says why. `task.rows=FILE` judges the rows whose ids the file
    lists, as the workbench writes them. Raises `UserError` for labels that are not the head's, for
    an `out` that holds something else, and for a file without an id of a judged split.
    """
    from forge.results.tables import table
    from forge.training.evaluation import judge
    from forge.training.trainer import Trainer

    run = finished(path)
    if out:
        require_place(out, EVALUATION)
    chosen, changes = _chosen(overrides)
    cfg, name = _recomposed(run, changes)
    with library_logs(), tempfile.TemporaryDirectory() as scratch:
        config, place = schema.to_config(cfg), Path(scratch, "evaluation")
        prepared = _prepared(run, config, Path(scratch), chosen)
        task = prepared.task
        judged = fingerprints.fingerprint(config.task, config.precision, sorted(chosen))[:8]
        folder = out or path / "evaluations" / "-".join([name, *task.evaluation, judged])
        place.mkdir()
        trainer = Trainer(**prepared.trainer_arguments())
        results = judge(trainer, prepared, place).plain()
        facts = {"run": str(path), "run_id": run.metadata.get("id"), "overrides": masked(overrides)}
        facts |= {"config": plain(cfg), "data": prepared.facts["data"]}
        facts |= {"max_length": prepared.limit, "notes": task.answer.notes, "made": now()}
        facts |= {**environment(), "code": git()}
        write_json(place / RESULTS, results)
        write_json(place / EVALUATION, facts)
        lost = _keep(place, folder)
    evaluation = facts | results | {"kept": None if lost else str(folder), "lost": lost}
    return evaluation | {"text": _text(evaluation, table(results, task), task.input.unit)}


def _keep(place: Path, folder: Path) -> str | None:
    """Put what was written where it belongs; why it cannot be there, as beside a read-only run."""
    try:
        with whole(folder, EVALUATION) as scratch:
            shutil.copytree(place, scratch, dirs_exist_ok=True)
    except (OSError, UserError) as error:
        return str(error)
    return None


def _text(evaluation: Json, table: str, unit: str) -> str:
    """What was judged, the metrics of each split, and where they are kept."""
    lines = [f"run     {evaluation['run']}"]
    for split, facts in evaluation["data"].items():
        cut = f", {facts['truncated']:,} cut at {evaluation['max_length']:,} {unit}"
        lines.append(f"judged  {split}: {facts['n']:,} rows{cut if facts['truncated'] else ''}")
    lines += [f"note    {note}" for note in evaluation["notes"]]
    kept = f"kept    {evaluation['kept']}"
    if evaluation["lost"]:
        kept = f"kept    nowhere ({evaluation['lost']}); --out DIR keeps it elsewhere"
    return "\n".join([*lines, table, kept])


def _recomposed(run: Run, overrides: list[str]) -> tuple[DictConfig, str]:
    """The recorded config with `overrides` on top, and the name of its task.

    What is not compared between runs is today's: what is recorded may be of another machine.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    recorded = {k: v for k, v in run.metadata["config"].items() if k not in NOT_COMPARED}
    recorded["precision"] = run.metadata.get("precision", recorded["precision"])
    overrides = searched(overrides)
    if options := [word for word in overrides if word.startswith("-")]:
        raise UserError(f"{options[0]}: evaluate has no such option; see its --help")
    given = {one.key_or_group: one for one in OverridesParser.create().parse_overrides(overrides)}
    for key in given:
        if not any(key == may or key.startswith(f"{may}.") for may in MAY_CHANGE):
            others = ", ".join(MAY_CHANGE[:-1])
            raise UserError(f"{key}: a finished run has its own; evaluate takes {others}")
    with composing():
        recorded["cache_dir"] = compose("config").cache_dir
    cfg, name = recomposed(recorded, overrides), run.metadata.get("choices", {}).get("task", "task")
    if "task" in given:
        name = given["task"].value()
    plain_task: Any = OmegaConf.to_container(cfg.task)
    cfg.task = as_trained(plain_task, run.metadata, architecture(run), given)
    return cfg, str(name).replace("/", "-")


def _chosen(overrides: list[str]) -> tuple[set[int], list[str]]:
    """The ids in the file that `task.rows` names, and the other overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    others = [word for word in overrides if not word.startswith(f"{ROWS}=")]
    if len(others) == len(overrides):
        return set(), others
    named = next(word for word in reversed(overrides) if word not in others)
    file = Path(str(OverridesParser.create().parse_override(named).value()))
    try:
        ids = {int(line) for line in file.read_text(encoding="utf-8").split()}
    except (OSError, ValueError) as error:
        raise UserError(f"{named}: a file of row ids, one a line, is asked for ({error})") from None
    if not ids:
        raise UserError(f"{named}: no id is in it")
    return ids, others


def _only(chosen: set[int], split: str, rows: Dataset) -> Dataset:
    """The rows of a split whose ids are chosen. Raises `UserError` when there is none."""
    kept = [place for place, id in enumerate(rows["id"]) if id in chosen]
    if not kept:
        raise UserError(
            f"{ROWS}: none of its {len(chosen)} ids is of split {split}; "
            "task.evaluation=[SPLIT] says which is judged"
        )
    return rows.select(kept)


def _prepared(run: Run, config: Config, scratch: Path, chosen: set[int]) -> Prepared:
    """The run's model, and the splits that its task judges; of these the chosen rows, if any."""
    from forge.training.arguments import training_arguments
    from forge.training.preparation import prepare

    task: Task = build(check(config.task, "task"), "task")
    args = training_arguments(config, task, scratch)
    _require_labels(run, task)
    rows = task.load(training=False)
    if chosen:
        rows = {split: _only(chosen, split, all_rows) for split, all_rows in rows.items()}
    return prepare(replace(config, model=source(run)), task, args, rows, training=False)


def _require_labels(run: Run, task: Task) -> None:
    """Raise `UserError` unless the run's head has the task's labels, in any order."""
    if (ours := task.head.labels) is None or not task.head.named:
        return
    theirs = heads.head_names(architecture(run))
    if len(ours) != len(theirs) or (len(ours) > 1 and not heads.match(theirs, list(ours))):
        raise UserError(
            f"{run.path}: its head knows [{', '.join(theirs)}], the task [{', '.join(ours)}]; "
            "they must be the same names (task.labels=[…] says what the data's are)"
        )
