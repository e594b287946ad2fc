"""The model card of a run, `model/README.md`: what the Hub reads of it, and what a person does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from forge import hub
from forge.models import lora
from forge.records.files import TIMINGS, Json, read_json
from forge.results.runs import Run, read_run
from forge.results.tables import markdown_table, metrics_cells

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from forge.inputs.input import Usage
    from forge.models.scaling import Scale
    from forge.tasks.task import Task

HUB_NAMES = {"f1_macro": "f1", "pearson": "pearsonr", "spearman": "spearmanr"}  # of metrics


MERGE = "It is an adapter; `python -m forge export RUN --merged` writes whole weights instead."


def write(run_dir: Path, task: Task) -> None:
    """Write the card of a run that has results and a model; the same for identical runs."""
    from huggingface_hub import ModelCard, ModelCardData

    run, model = read_run(run_dir), read_json(run_dir / "model" / "config.json")
    adapter = read_json(run_dir / "model" / lora.FILE)
    tags = ["lora"] if adapter else []
    tags += ["knowledge-distillation"] if "teacher" in run.metadata else []
    config, mode = run.metadata["config"], _chosen(run, "mode")
    classifies = task.answer.alignment != "token"
    scored = _eval_results(run, task.pipeline) if classifies else []
    front = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task.pipeline,
        base_model=_on_hub(config["model"]["path"]),
        base_model_relation="adapter" if adapter and _on_hub(config["model"]["path"]) else None,
        datasets=_on_hub((config["task"].get("dataset") or {}).get("path")),
        metrics=list(dict.fromkeys(result.metric_type for result in scored)) or None,
        tags=["forge", mode, *tags],
        model_name=title(run) if scored else None,
        eval_results=scored or None,
    )
    body = "\n\n".join([f"\n# {title(run)}", *_sections(run, task, model, adapter)])
    ModelCard(f"---\n{front.to_yaml()}\n---\n{body}\n").save(run_dir / "model" / "README.md")


def title(run: Run) -> str:
    """What to call a run's model, e.g. `distilbert on mnli (kd)`."""
    return f"{_chosen(run, 'model')} on {_chosen(run, 'task')} ({_chosen(run, 'mode')})"


def _chosen(run: Run, group: str) -> str:
    """The option of a group; of a model or task that was given by key, what that is called."""
    config = run.metadata["config"]
    if group == "model" and (path := config["model"]["path"]):
        return str(path) if hub.looks_like_name(path) else Path(path).name
    named = run.metadata.get("choices", {}).get(group) or config[group].get("_target_", group)
    return str(named).removesuffix(".trainer").rpartition(".")[2]


def _on_hub(path: str | None) -> str | None:
    """A path when it is a name on the Hub."""
    return path if path and hub.looks_like_name(path) and not Path(path).exists() else None


def _eval_results(run: Run, pipeline: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    dataset = run.metadata["config"]["task"].get("dataset") or {}
    name = _chosen(run, "task")
    return [
        EvalResult(
            task_type=pipeline,
            dataset_type=_on_hub(dataset.get("path")) or name,
            dataset_name=name,
            dataset_config=dataset.get("name"),
            dataset_split=split,
            dataset_revision=dataset.get("revision"),
            metric_type=HUB_NAMES.get(metric, Path(metric).name),
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for split, scores in run.results["splits"].items()
        for metric, value in scores.items()
        if isinstance(value, float) and math.isfinite(value) and metric not in ("loss", *TIMINGS)
    ]


def _sections(run: Run, task: Task, model: Json, adapter: Json) -> list[str]:
    labels = {int(i): name for i, name in (model.get("id2label") or {}).items()}
    numbers = not task.answer.distribution
    parts = ["## Results", markdown_table(*metrics_cells(run)), *chosen_on(run)]
    training = _training(run, task) + ([_adapted(run, adapter)] if adapter else [])
    parts += ["## Training", "\n".join(f"- {line}" for line in training)]
    classifies = task.answer.alignment != "token"
    if classifies:
        named = "\n".join(f"- {i}: {labels[i]}" for i in sorted(labels))
        given = _one_number(task.answer.scale) if numbers else named
        parts += ["## Labels", given if task.answer.named else task.answer.places]
    if adapter:
        parts.append(MERGE)
    base: str = adapter.get("base_model_name_or_path", "")
    usage = task.input.usage(run.metadata["max_length"])
    if usage and classifies and not (adapter and lora.is_adapter(base)):
        source = (_on_hub(base) or "path/to/its/base") if adapter else None
        parts += ["## Use", _snippet(task, usage, source)]
    return [*parts, "## Made by", _made_by(run)]


def _one_number(scale: Scale) -> str:
    if (scale.mean, scale.std) == (0, 1):
        return "It gives one number."
    return (
        f"It gives one number, standardised: a value is {scale.mean:.9g} + {scale.std:.9g} * the "
        "output in transformers. Forge's commands, and an ONNX file that it exports, give values."
    )


def chosen_on(run: Run) -> list[str]:
    """A warning, where a split's number chose the checkpoint that it judges."""
    if not run.metadata["config"]["trainer"].get("load_best_model_at_end"):
        return []
    return [f"The checkpoint was chosen on {run.results['headline']['split']}: optimistic there."]


def _training(run: Run, task: Task) -> list[str]:
    config, data = run.metadata["config"], run.metadata["data"]
    node, trained = config["task"], config["trainer"]
    source = node.get("files") or node.get("dataset") or {}
    given = ", ".join(f"{k}={v}" for k, v in source.items() if v is not None and k[0] != "_")
    split, read = task.train, " and ".join(task.input.columns)
    rows = f"{data[split]['n']:,} rows of {split}" if split in data else split
    start = config["model"]["path"] or "random weights"
    if config["model"].get("from_scratch"):
        start = f"random weights, the architecture of {start}"
    lines = [
        f"data: {_chosen(run, 'task')}{f' ({given})' if given else ''}, {rows}",
        f"input: {read}, at most {run.metadata['max_length']} {task.input.unit}",
        f"start: {start if not config['model'].get('init') else 'layers of the teacher'}",
        f"mode: {_chosen(run, 'mode')}, {run.results['train'].get('steps', 0):,} optimizer steps, "
        f"learning rate {trained.get('learning_rate')}, seed {config['seed']}, "
        f"{run.metadata['precision']}",
    ]
    if taught := run.metadata.get("teacher"):
        names = " and ".join(teacher_name(run, path) for path in taught["paths"])
        lines.append(f"teacher: {names}, mode.alpha={config['mode'].get('alpha')}")
    return lines


def teacher_name(run: Run, path: str) -> str:
    """A teacher's path as it was given; of one that Forge chose, the end of it."""
    folder = path.removesuffix("/model")
    given = any(folder in override for override in run.metadata.get("overrides", ()))
    return path if given or not Path(path).is_absolute() else "/".join(Path(folder).parts[-4:])


def _adapted(run: Run, adapter: Json) -> str:
    """What an adapter is of."""
    count, named = run.metadata["parameters"], lora.short(adapter["target_modules"])
    return (
        f"adapter: LoRA, r {adapter['r']}, lora_alpha {adapter['lora_alpha']}, on {named}; "
        f"{count['trainable'] / count['total']:.2%} of the weights trained"
    )


def _snippet(task: Task, usage: Usage, base: str | None) -> str:
    """How to use it with transformers alone, or with PEFT over a base."""
    auto, how = f"AutoModelFor{task.head.auto}", task.answer.read_with[0]
    imported = f"from transformers import {auto}, {usage.processor}, pipeline"
    load = f"model = {auto}.from_pretrained(path)"
    if base:
        names = f"AutoConfig, {auto}, {usage.processor}, pipeline"
        imported = f"from peft import PeftModel\nfrom transformers import {names}"
        load = f"""config = AutoConfig.from_pretrained(path)
model = {auto}.from_pretrained(
    "{base}", config=config, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(model, path).merge_and_unload()"""
    settings = f"{usage.settings}\n" if usage.settings else ""
    inputs = usage.inputs or f'{usage.name}({usage.of_processor}, return_tensors="pt")'
    classify = f"""
classify = pipeline("{task.pipeline}", model=model, {usage.name}={usage.name}{how})
print(classify({usage.of_pipeline}))
"""
    if not usage.of_pipeline:
        imported, classify = imported.removesuffix(", pipeline"), ""
    return f"""```python
{imported}

{settings}path = "path/to/this/directory"  # or its name on the Hub
{usage.name} = {usage.processor}.from_pretrained(path)
{load}{classify}
{task.answer.usage_of(inputs)}
```"""


def _made_by(run: Run) -> str:
    last = (run.metadata.get("attempts") or [{}])[-1]
    commit = last.get("commit", "unknown")[:10] + (" with changes" if last.get("dirty") else "")
    versions = run.metadata.get("versions", {})
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
    if run.path.name.startswith("teacher-") and not run.metadata.get("overrides"):
        command = "It was trained as the teacher of another run; run_metadata.json has its config."
    else:
        command = f"```bash\n{run.command}\n```"
    return f"{command}\n\nForge at commit {commit}, {used}."
