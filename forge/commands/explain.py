"""`python -m forge explain`: what a command would run, or a run, in plain sentences.

Reads yaml and JSON alone, so it takes no longer than composing does.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from forge.config import compose as config_compose
from forge.config.compose import dotted_values
from forge.config.explain import explain
from forge.config.origins import Origins, origins
from forge.errors import USER_ERRORS, UserError
from forge.records import plan
from forge.records.contents import kept
from forge.records.files import METADATA, STATE, Json, read_json
from forge.records.record import plain
from forge.results.runs import live, read_run
from forge.results.sentences import About, search, sentences, sweep
from forge.results.show import why_stopped

WIDTH = 100
SHOWN = (  # keys whose origin one asks for; one that ends in a dot stands for all below it
    *("task.files.", "task.dataset.", "task.text", "task.label", "task.labels"),
    *("task.evaluation", "task.headline", "task.max_length", "task.max_rows"),
    *("model.path", "model.init", "model.layers", "model.config.model_type", "model.lora.r"),
    *("mode.alpha", "mode.loss.", "mode.reward.", "mode.class_weights"),
    *("trainer.num_train_epochs", "trainer.max_steps", "trainer.per_device_train_batch_size"),
    *("trainer.gradient_accumulation_steps", "trainer.learning_rate", "trainer.eval_strategy"),
    *("trainer.save_strategy", "trainer.load_best_model_at_end", "precision", "seed"),
)
TEACHER = ("teacher.path", "teacher.config.model_type", "teacher.train")


@dataclass(frozen=True)
class Explained:
    """Sentences, each with what it is about; keys, with their values and what set them."""

    sentences: list[tuple[str, str]]
    values: list[tuple[str, object, str]]

    def text(self) -> str:
        """For people: the sentences in two columns, then the values."""
        lines = [
            textwrap.fill(text, WIDTH, initial_indent=f"{about:<11} ", subsequent_indent=" " * 12)
            for about, text in self.sentences
        ]
        width = max((len(key) for key, *_ in self.values), default=0)
        lines += [
            "",
            "What set these values; KEY=VALUE on the command line goes before every yaml:",
        ]
        lines += [
            f"  {key:<{width}}  {_short(value):<24}  {origin}" for key, value, origin in self.values
        ]
        return "\n".join(lines)

    def json(self) -> Json:
        """The same as one JSON document."""
        keys = [{"key": key, "value": value, "set_by": by} for key, value, by in self.values]
        return {"sentences": [list(pair) for pair in self.sentences], "values": keys}


def explained(words: list[str], every: bool = False) -> Explained:
    """What the words say: a run's or a sweep's directory, or overrides as launch.py takes them.

    `every` asks for every key of the config. Raises `UserError` for what does not compose.
    """
    if named := [word for word in words if word.startswith("resume=")]:
        return _of_resumed(named[-1], [word for word in words if word not in named], every)
    if len(words) == 1 and "=" not in words[0] and not words[0].startswith("-"):
        return _of_directory(Path(words[0]), every)
    try:
        return _of_command(words, every)
    except USER_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(explain(error, config_compose.config_keys(words))) from error


def _of_command(words: list[str], every: bool) -> Explained:
    from hydra import compose

    with config_compose.composing():
        jobs = config_compose.jobs(words)
        alpha = re.compile(r"mode\.alpha=(?!0$|0\.0$)")
        job = next((job for job in jobs if any(map(alpha.match, job))), jobs[0])
        cfg = compose("config", job, return_hydra_config=True)
        found = origins(job)
    runtime = cfg.hydra.runtime.choices
    choices = {str(key): str(value) for key, value in runtime.items() if value}
    given = [each.partition("=")[2] for each in job if each.startswith("hydra.run.dir=")]
    named = config_compose.run_name(choices, job)
    many = len(jobs) > 1 or (cfg.hydra.mode is not None and cfg.hydra.mode.name == "MULTIRUN")
    place = f"multirun/{named}/<UTC time>/<n>" if many else f"outputs/{named}/<UTC time>"
    config = plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    told = sentences(About(config, choices, found, given[0] if given else place))
    if len(jobs) > 1:
        told.insert(0, ("sweep", sweep(jobs, job)))
    elif "BasicSweeper" not in cfg.hydra.sweeper._target_:
        told.insert(0, ("search", search(plain(cfg.hydra.sweeper))))
    return Explained(told, _values(config, found, every))


def _of_resumed(word: str, others: list[str], every: bool) -> Explained:
    """A run or a sweep that is to go on, with these overrides."""
    path = Path(word.removeprefix("resume=").strip("'\""))
    state = read_json(path / STATE)
    start = f"from {state['latest_checkpoint']}" if state.get("latest_checkpoint") else "anew"
    more = f", and {' '.join(others)}" if others else ""
    text = (
        f"It goes on in {path}, {start if state else 'run by run'}, with the recorded config{more}."
    )
    told = _of_directory(path, every)
    return Explained([("resume", text), *told.sentences], told.values)


def _of_directory(path: Path, every: bool) -> Explained:
    """A run; of a sweep its first run."""
    told: list[tuple[str, str]] = []
    if not path.exists():
        raise UserError(f"{path}: neither a run's directory nor an override, KEY=VALUE")
    if path.is_dir() and not (path / METADATA).is_file():
        jobs = sorted(plan.directories(path).items())
        runs = [each for _, each in jobs if (each / METADATA).is_file()]
        if runs:
            compared = f"python -m forge report {path} compares them"
            taught = (r for r in runs if read_json(r / METADATA)["config"]["mode"].get("alpha"))
            shown = next(taught, runs[0])
            told = [("sweep", f"{len(runs)} runs; {compared}. What follows is {shown}.")]
            path = shown
    run = read_run(path)
    if "attempts" not in run.metadata:
        raise UserError(f"{path}: no run in this directory; python -m forge runs DIR lists runs")
    data, config = run.metadata, run.metadata["config"]
    found = _as_composed(data["overrides"], config)
    names = list((read_json(path / "model" / "config.json").get("id2label") or {}).values())
    if not all(str(name).startswith("LABEL_") for name in names):
        data = data | {"labels": names}
    told += sentences(About(config, data["choices"], found, str(path), data, kept(path)))
    last = data["attempts"][-1]
    status = live(run.state.get("status", "not started"), last.get("host"), last.get("pid"))
    reached = f"step {run.state.get('step', 0)} of {run.state.get('max_steps', '?')}"
    why = why_stopped(run, status)
    told.append(("stands", f"It is {status}, at {reached}, in attempt {len(data['attempts'])}."))
    if status != "running":
        told.append(("stopped", f"{why or 'this version recorded no reason'}."))
    if headline := run.results.get("headline"):
        base = (run.results.get("baseline") or {}).get(headline["split"])
        beside = "" if base is None else f"; always giving the commonest answer gets {base:.4g}"
        score = f"{headline['metric']} on {headline['split']} is {headline['value']:.4g}"
        told.append(("found", f"{score}{beside}."))
    return Explained(told, _values(config, found, every))


def _as_composed(overrides: list[str], config: Json) -> Origins:
    """What set a recorded config: by today's conf/ where it still composes the same values."""
    from hydra import compose

    try:
        with config_compose.composing():
            today = dict(dotted_values(plain(compose("config", overrides))))
            found = origins(overrides)
    except USER_ERRORS:
        return Origins({}, {})
    other = {
        k: "the run's record; conf/ says otherwise today"
        for k, v in dotted_values(config)
        if today.get(k) != v
    }
    return Origins(found.values | other, found.choices)


def _values(config: Json, found: Origins, every: bool) -> list[tuple[str, object, str]]:
    """Keys with values, and what set each."""
    wanted = SHOWN + TEACHER * bool(config["mode"].get("alpha"))
    made = []
    for key, value in dotted_values(config):
        told = key in wanted or key.startswith(tuple(each for each in wanted if each[-1] == "."))
        dull = value is None or key.endswith(("_target_", "_partial_"))
        if every or (told and not dull):
            made.append((key, value, found.of(key) or "default"))
    return made


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
