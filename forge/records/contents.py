"""What the files of a run directory hold: for `explain`, and for the guide's reference."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CONTENTS = {  # in a few words, and in full
    "run_metadata.json": (
        "what ran",
        "config, overrides, command, commit, versions, device, fingerprints of the data, every "
        "attempt; no secrets",
    ),
    "training_state.json": ("where it stands", "status, step, best value, and why it stopped"),
    "results.json": (
        "its numbers",
        "the headline, every metric per split with n, as `baseline` the headline of always giving "
        "the commonest answer, times, speed, padding, peak memory",
    ),
    "predictions/": (
        "its answers",
        "`<split>.parquet`: id (the row in its source), label, prediction, logits; of a language "
        "model completion, prompt, nll, tokens; `teacher_<split>.parquet` of a distilled run: the "
        "same of its teachers together",
    ),
    "model/": (
        "the final weights",
        "with LoRA the adapter; tokenizer and model card; this directory or the run's is a "
        "`model.path`",
    ),
    "checkpoint-N/": (
        "what a stopped run goes on from",
        "the best and the last, each with its `commit.json`, a hash of every file",
    ),
    "preempted-N/": ("a checkpoint that a signal asked for", "until the next one is written"),
    "trainer_state.json": (
        "the curves, as transformers writes them",
        "every logged loss, metric and share of the gradient, by step",
    ),
    "log.jsonl": (
        "the curves, as they grow",
        "a line a log, with seconds and tokens; each step once, whatever kills lie between",
    ),
    "rows/": (
        "what was read",
        "`<split>.parquet`: texts and small pictures to be shown; runs over the same rows share "
        "one file",
    ),
    "samples/": (
        "what was drawn",
        "`<step>.json` of mode=rl: 50 steps, up to 8 prompts of each with all answers, their "
        "rewards, advantages, lengths and KL",
    ),
    "output.log": ("what was said", "everything logged, warnings of libraries included"),
    ".hydra/": ("what Hydra composed", "its own record: config, overrides, choices"),
    "wandb/": ("what tracking=wandb keeps", "for `wandb sync`"),
    "tensorboard/": ("what tracking=tensorboard writes", "event files"),
    "report.md": ("what `python -m forge report` found", "with its pictures, `report*.png`"),
    "evaluations/": ("what `python -m forge evaluate` found", "a directory for each"),
    "onnx/": ("what `python -m forge export --onnx` wrote", "model, tokenizer and labels"),
    "merged/": ("what `python -m forge export --merged` wrote", "adapter and base in one"),
}


def in_words(names: Iterable[str]) -> str:
    """Files, each with what it is for."""
    return ", ".join(f"{name} ({CONTENTS[name][0].replace('`', '')})" for name in names)


def kept(run_dir: Path) -> list[str]:
    """The files and folders that a run directory has, of those that are known."""
    numbered = {path.name.partition("-")[0] for path in run_dir.glob("*-[0-9]*")}
    return [
        name
        for name in CONTENTS
        if (run_dir / name).exists() or (name.endswith("-N/") and name[:-3] in numbered)
    ]
