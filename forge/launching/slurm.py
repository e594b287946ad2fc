"""Submit the runs of a sweep: what is neither finished nor under way, their teachers first.

submitit carries each run to SLURM (or to a process of this machine); Hydra's launcher for it is
in hydra_plugins/. What is submitted is a `Run`: the composed config and nothing that is read again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from forge.config.schema import Node, is_taught, to_config
from forge.data import fingerprints
from forge.errors import Failure, UserError, did_you_mean
from forge.launching import jobs, sweep
from forge.launching.in_job import Run, Shared
from forge.launching.submission import FILES, OURS, complete, submit
from forge.records import record
from forge.records.environment import Commit
from forge.records.secrets import masked

# What a process of this machine is started with:
LOCAL = ("cluster", "wait", "time", "python", "max_num_timeout", "gpus_per_node",
         "array_parallelism")  # fmt: skip


def launch(
    settings: Node,
    context: HydraContext,
    task_function: Callable[..., float],
    config: DictConfig,
    overrides: list[list[str]],
    first: int,
) -> list[JobReturn]:
    """Submit what is neither finished nor alive, and wait for all, unless `launcher.wait=false`."""
    sweep_dir = Path(str(config.hydra.sweep.dir))
    planned: sweep.Jobs = {}
    try:
        check(settings, config)
        numbered = sweep.planned(config, context.config_loader, overrides, first)
        planned = {n: (masked(overrides), "") for n, overrides in numbered.items()}
        finished, alive, to_run = _sort(config, context, numbered, sweep_dir)
        shared = Shared(context, task_function)
        at_once = settings.get("array_parallelism") if settings["cluster"] == "local" else None
        runs = {n: Run(frozen, shared, at_once) for n, frozen in to_run.items()}
        teachers: dict[int, jobs.Job] = {}
        for waiting, untaught in _by_teacher(to_run, settings["cluster"]):
            needs = dict(settings)
            if untaught is not None:
                teach = Run(untaught, replace(shared, task_function=train))
                job = _teach(settings, sweep_dir, teach, _teacher_key(untaught))
                teachers[job.number] = job
                needs = _after(settings, job)
            alive |= submit(needs, sweep_dir, {n: runs[n] for n in waiting}, numbered)
    except UserError:
        _tidy(sweep_dir)
        sweep.sum_up(sweep_dir, planned)
        raise
    try:
        print(_summary(sweep_dir, settings["wait"], finished, alive, runs, teachers), flush=True)
        if not settings["wait"]:
            return [_returned(own, jobs.Outcome()) for own in numbered.values()]
        outcomes = jobs.follow([*teachers.values(), *alive.values()])
    except KeyboardInterrupt:
        print(f"\nthe jobs go on; {jobs.how_to_come_back(sweep_dir)}", flush=True)
        raise
    if not sweep.is_search(config):
        sweep.sum_up(sweep_dir, planned | jobs.failures(teachers | alive, outcomes))
    outcomes |= finished
    return [_returned(numbered[n], outcomes[n], alive.get(n)) for n in numbered]


def check(settings: Node, config: DictConfig) -> None:
    """Raise `UserError` for settings that nobody knows or that cannot be met here."""
    from submitit.slurm.slurm import SlurmExecutor

    local = settings["cluster"] == "local"
    together = [key for key in ("nodes", "tasks_per_node") if (settings.get(key) or 1) != 1]
    if local and together:
        raise UserError(
            f"launcher.{together[0]}={settings[together[0]]}: in the background a job is one "
            "process; several that train one model together are launcher=ddp"
        )
    known = {*LOCAL} if local else {*OURS, *SlurmExecutor._valid_parameters()}
    for key in sorted(settings.keys() - known):
        hint = did_you_mean(key, sorted(LOCAL)) if local else did_you_mean(key, known, listed=False)
        raise UserError(f"launcher.{key}: no such setting{hint}")
    at_once = settings.get("array_parallelism")
    if at_once is not None and (type(at_once) is not int or at_once < 1):
        raise UserError(f"launcher.array_parallelism={at_once}: a number of jobs, at least 1")
    if settings["cluster"] == "slurm" and SlurmExecutor.affinity() < 0:
        raise UserError("launcher=slurm: there is no srun here; go to a login node of the cluster")
    limit, delay = settings["time"], settings.get("signal_delay_s", 0)
    if type(limit) is not int or limit * 60 <= delay:
        raise UserError(
            f"launcher.time={limit}: minutes, more than the {delay} seconds before the end at "
            "which a job is asked to save (launcher.signal_delay_s)"
        )
    if not settings["wait"] and sweep.is_search(config):
        raise UserError("launcher.wait=false: a search needs the results of its runs")


def _sort(
    config: DictConfig, context: HydraContext, numbered: dict[int, list[str]], sweep_dir: Path
) -> tuple[dict[int, jobs.Outcome], dict[int, jobs.Job], dict[int, DictConfig]]:
    """A sweep's runs: finished ones with their results, jobs alive, and configs yet to run."""
    finished, to_run = {}, {}
    complete(sweep_dir)
    ledger = {n: job for n, job in jobs.read_ledger(sweep_dir).items() if n in numbered}
    states = jobs.states(ledger.values())
    alive = {n: job for n, job in ledger.items() if not jobs.is_over(states[job.job])}
    for number, overrides in numbered.items():
        if number in alive:
            if not config.resume and alive[number].overrides != masked(overrides):
                raise UserError(
                    f"{sweep_dir}: its job {number} is under way with other overrides "
                    f"({' '.join(alive[number].overrides)}); take another hydra.sweep.dir"
                )
            continue
        frozen = context.config_loader.load_sweep_config(config, overrides)
        with open_dict(frozen):
            frozen.hydra.job.num = number
        run_dir = sweep_dir / str(OmegaConf.select(frozen, "hydra.sweep.subdir"))
        if (value := record.reached(frozen, run_dir)) is not None:
            finished[number] = jobs.Outcome(value=value)
        else:
            to_run[number] = frozen
    return finished, alive, to_run


def _by_teacher(
    to_run: dict[int, DictConfig], name: str
) -> list[tuple[list[int], DictConfig | None]]:
    """Runs whose teacher is yet to be trained, together, with a config to train it from; the rest.

    In processes of this machine the first run to come trains it and the others wait.
    """
    groups: dict[str, list[int]] = {}
    for number, frozen in to_run.items():
        taught = name == "slurm" and is_taught(frozen)
        groups.setdefault(_teacher_key(frozen) if taught else "", []).append(number)
    grouped: list[tuple[list[int], DictConfig | None]] = []
    for key, numbers in groups.items():
        config = to_run[numbers[0]]
        first = config if key and _untrained(config) else None
        grouped.append((numbers, first))
    return grouped


def _teacher_key(config: DictConfig) -> str:
    """Equal for runs that one teacher serves."""
    return fingerprints.fingerprint(*map(str, (config.task, config.teacher, config.precision)))[:8]


def _untrained(config: DictConfig) -> bool:
    """Whether a run's teacher has to be trained before it."""
    from forge.distillation import finding

    own = copy.deepcopy(config)
    with open_dict(own):
        del own["hydra"]
    return bool(finding.untrained(to_config(own)))


def train(cfg: DictConfig, submitted: Commit) -> float:
    """The task function of a job that trains a teacher."""
    from forge.experiment import train_teachers

    return train_teachers(cfg)


def _teach(settings: Node, sweep_dir: Path, run: Run, key: str) -> jobs.Job:
    """The job that trains a teacher: submitted, unless it is under way since an earlier command."""
    directory = f"teacher-{key}"
    run.config = copy.deepcopy(run.config)
    run.config.hydra.sweep.subdir = directory
    ledger = jobs.read_ledger(sweep_dir)
    earlier = [job for n, job in ledger.items() if n < 0 and Path(job.directory).name == directory]
    states = jobs.states(earlier)
    alive = [job for job in earlier if not jobs.is_over(states[job.job])]
    number = earlier[0].number if earlier else min([0, *ledger]) - 1
    overrides = [f"model@teacher={run.config.hydra.runtime.choices['model@teacher']}"]
    if alive:
        return alive[0]
    return submit(settings, sweep_dir, {number: run}, {number: overrides})[number]


def _after(settings: Node, job: jobs.Job) -> Node:
    """The settings of jobs that start when another has ended well, and are cancelled if not."""
    given = [settings["dependency"]] if settings.get("dependency") else []
    more = {**settings.get("additional_parameters", {}), "kill-on-invalid-dep": "yes"}
    dependency = ",".join([*given, f"afterok:{job.job}"])
    return settings | {"dependency": dependency, "additional_parameters": more}


def _tidy(sweep_dir: Path) -> None:
    """Leave nothing behind of what was not submitted."""
    folder = sweep_dir / FILES
    for scrap in (*folder.glob("*.pkl"), *folder.glob(".submission_file_*")):
        scrap.unlink()
    with suppress(OSError):  # not empty
        folder.rmdir()
    if not (sweep_dir / jobs.LEDGER).is_file():
        sweep.discard(sweep_dir)


def _summary(
    sweep_dir: Path,
    waits: bool,
    finished: dict[int, jobs.Outcome],
    alive: dict[int, jobs.Job],
    runs: dict[int, Run],
    teachers: dict[int, jobs.Job],
) -> str:
    """One line: what was submitted, and how to come back."""
    arrays = sorted({alive[n].job.split("_")[0] for n in runs}, key=int)
    parts = [f"{len(runs)} jobs submitted ({', '.join(arrays)})"] if runs else []
    if teachers:
        parts.append(f"their teacher's job first ({', '.join(j.job for j in teachers.values())})")
    if others := len(alive) - len(runs):
        parts.append(f"{others} under way")
    if finished:
        parts.append(f"{len(finished)} finished")
    if alive:
        parts[-1] += "; Ctrl-C leaves them alone" if waits else ""
        parts[-1] += f"; {jobs.how_to_come_back(sweep_dir)}"
    return ", ".join(parts)


def _returned(overrides: list[str], ended: jobs.Outcome, job: jobs.Job | None = None) -> JobReturn:
    """The outcome in Hydra's terms."""
    returned = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    returned.return_value = ended.value
    if ended.error and job:
        returned.status = JobStatus.FAILED
        returned.return_value = Failure(f"job {job.number} ({job.job}): {ended.error}")
    return returned
