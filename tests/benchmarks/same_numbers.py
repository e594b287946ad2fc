"""Whether a change of the code changes a number: one small run of each kind, before and after.

    python -m tests.benchmarks.same_numbers record before.json     in the checkout before the change
    python -m tests.benchmarks.same_numbers record after.json      in the one after it
    python -m tests.benchmarks.same_numbers compare before.json after.json

`record` runs `python launch.py` once for each of KINDS, three minutes on one core, and writes what
every run came to: all that was logged but the timings, a hash of each tensor of model/, the
metrics, a hash of each column of predictions/. `--runs DIR` keeps the runs there, in place of
those of an earlier recording; `--kinds NAME …` runs those alone and what they start from.
`compare` prints a line for each kind and exits with 1 when one differs.

Equal bits are to be had on one machine with the same packages, and are asked of nothing else. Of
Forge it takes the command and the files of a run directory, nothing that it would have to import,
so that the same script judges two versions of it.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SERVER = multiprocessing.get_context("forkserver")  # imports what every run does, and forks
LIBRARIES = """
    accelerate datasets evaluate hydra.main matplotlib.pyplot peft pyarrow.parquet rich.table
    scipy.stats sklearn.metrics torch._dynamo transformers.trainer
    transformers.models.bert.modeling_bert transformers.models.llama.modeling_llama
"""
SETTINGS = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip

SIZE = ["model.config.hidden_size=16", "model.config.intermediate_size=32"]
WIDER = ["model.config.hidden_size=32", "model.config.intermediate_size=64"]
OFTEN = ["precision=fp32", "trainer.num_train_epochs=2", "trainer.logging_steps=3",
         "trainer.learning_rate=1e-2"]  # fmt: skip
TOY = ["task=toy", "task.dataset.train=480", "task.dataset.validation=90", *OFTEN]
FILES = ["task=files", "task.files.train='{runs}/train.csv'", "task.text=text", *OFTEN,
         "task.files.validation='{runs}/validation.csv'"]  # fmt: skip
MATH = ["task=toy_math", "model=tiny_lm", "task.dataset.train=160", "task.dataset.validation=24",
        "task.max_new_tokens=6", "task.generate_rows=8", "task.headline=perplexity",
        "trainer.per_device_train_batch_size=16", *OFTEN]  # fmt: skip
SLOWER = ["trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=2"]
KD = ["mode=kd", "mode.gate=off"]
STEPS = ["trainer.eval_strategy=steps", "trainer.save_strategy=steps", "trainer.eval_steps=4",
         "trainer.save_steps=4"]  # fmt: skip
RL = ["mode=rl", "mode.num_iterations=2", "mode.epsilon=0.02", "mode.gate=off",
      "trainer.max_steps=8", "trainer.learning_rate=3e-3", *STEPS]  # fmt: skip
LORA = ["model.lora.r=4", "model.lora.lora_alpha=16", "trainer.learning_rate=1e-2"]
TWO = ["launcher=ddp", "launcher.processes=2"]
TEACHER, LM_TEACHER = "teacher.path='{runs}/sft'", "teacher.path='{runs}/lm_sft'"
KINDS: dict[str, list[str]] = {  # {runs}/NAME is a kind above it
    "sft": [*TOY, *WIDER],
    "sft_accumulated": [*TOY, *WIDER, *SLOWER, "trainer.train_sampling_strategy=random", "seed=2"],
    "sft_bf16": [*TOY, *SIZE, "precision=bf16"],
    "sft_smoothed": [*TOY, *SIZE, "trainer.label_smoothing_factor=0.1"],
    "files": [*FILES, *WIDER, "task.label=label"],
    "regression": [*FILES, *SIZE, "task.label=score"],
    "kd_stored": [*TOY, *SIZE, *KD, TEACHER],
    "kd_live": [*TOY, *SIZE, *KD, TEACHER, "mode/loss=[kl,hidden]", *SLOWER],
    "kd_losses": [*TOY, *SIZE, *KD, TEACHER, "mode/loss=[mse,dkd,dist,attention]"],
    "kd_two_teachers": [*TOY, *SIZE, *KD, "teacher.path=['{runs}/sft','{runs}/sft_accumulated']",
                        "teacher.weights=[2,1]"],
    "kd_unlabelled": [*FILES, *SIZE, *KD, "task.label=label", "teacher.path='{runs}/files'",
                      "mode.alpha=1", "task.files.unlabelled='{runs}/unlabelled.csv'"],
    "kd_layers": [*TOY, *KD, TEACHER, "model=from_teacher", "model.layers=1"],
    "rl": [*TOY, *RL, "model.path='{runs}/sft'"],
    "rl_metric": [*TOY, *RL, "model.path='{runs}/sft'", "mode/reward=[exact,metric]",
                  "mode.reward.metric.name=f1_macro", "mode.entropy_coef=0.01", *SLOWER],
    "lm_sft": [*MATH, *WIDER, "task.pass_at=[2]", "task.samples=2"],
    "lm_padding_free": [*MATH, *SIZE, "task.padding_free=true", *SLOWER],
    "lm_kd_live": [*MATH, *SIZE, *KD, LM_TEACHER, "model.tokenizer='{runs}/lm_sft'",
                   "mode/loss=[kl,hidden]", *SLOWER],
    "lm_kd_top_k": [*MATH, *SIZE, *KD, LM_TEACHER, "model.tokenizer='{runs}/lm_sft'",
                    "mode.top_k=8"],
    "lm_kd_on_policy": [*MATH, *KD, LM_TEACHER, "model.path='{runs}/lm_sft'", "mode.alpha=1",
                        "mode.on_policy=true", "trainer.max_steps=8", *STEPS],
    "lm_rl": [*MATH, *RL, "model.path='{runs}/lm_sft'", "mode/reward=[length,exact]",
              "mode.reward.length.limit=8"],
    "lora_sft": [*TOY, *LORA, "model.path='{runs}/sft'"],
    "lora_lm_sft": [*MATH, *LORA, "model.path='{runs}/lm_sft'"],
    "sft_in_2": [*TOY, *SIZE, *TWO],
    "kd_in_2": [*TOY, *SIZE, *KD, *TWO, TEACHER],
    "rl_in_2": [*TOY, *RL, *TWO, "model.path='{runs}/sft'"],
}  # fmt: skip
UNTOLD = ("runtime", "second", "step_time", "memory")  # in the name of what no two runs share
HASHED = ("weights", "predictions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("record")
    verb.add_argument("out", type=Path)
    verb.add_argument("--runs", type=Path, help="keep the run directories there")
    verb.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    verb = verbs.add_parser("compare")
    verb.add_argument("before", type=Path)
    verb.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.verb == "compare":
        sys.exit(compare(*(json.loads(path.read_text()) for path in (asked.before, asked.after))))
    with tempfile.TemporaryDirectory() as scratch:
        found = record((asked.runs or Path(scratch)).absolute(), asked.kinds)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


def record(runs: Path, asked: list[str]) -> dict[str, Any]:
    """Run the kinds that are asked for, each in its directory of `runs`; what they came to."""
    runs.mkdir(parents=True, exist_ok=True)
    for name in ("cache", *KINDS):
        shutil.rmtree(runs / name, ignore_errors=True)
    write_files(runs)
    os.environ |= SETTINGS | {"FORGE_CACHE": str(runs / "cache")}
    SERVER.set_forkserver_preload(LIBRARIES.split())
    found = {}
    for name in with_origins(asked):
        began = time.monotonic()
        words = [word.replace("{runs}", str(runs)) for word in KINDS[name]]
        launch(runs / name, [*words, f"hydra.run.dir='{runs / name}'"])
        found[name] = outcome(runs / name)
        print(f"{name:18} {time.monotonic() - began:5.1f} s", flush=True)
    return found


def with_origins(asked: list[str]) -> list[str]:
    """The kinds and those whose runs they start from, in the order of KINDS."""
    needed = set(asked)
    for name in reversed(KINDS):
        if name in needed:
            words = " ".join(KINDS[name])
            needed |= {origin for origin in KINDS if f"{{runs}}/{origin}'" in words}
    return [name for name in KINDS if name in needed]


def write_files(runs: Path) -> None:
    """Texts of a good or bad word among others, with a label and a score that follow from it."""
    rng = random.Random(0)
    good, bad = ["good", "fine", "great"], ["bad", "poor", "awful"]
    others = ["a", "dog", "that", "ran", "by"]
    for name, count in (("train", 160), ("validation", 60), ("unlabelled", 64)):
        lines = ["text,label,score"]
        for _ in range(count):
            many = rng.randrange(1, 5)
            label, told = rng.choice((("yes", good), ("no", bad)))
            words = rng.choices(told, k=many) + rng.choices(others, k=rng.randrange(2, 9))
            rng.shuffle(words)
            score = (many if told is good else -many) + 0.5
            lines.append(f"{' '.join(words)},{label},{score}")
        if name == "unlabelled":
            lines = [line.split(",")[0] for line in lines]
        (runs / f"{name}.csv").write_text("\n".join(lines) + "\n")


def launch(run_dir: Path, words: list[str]) -> None:
    """`python launch.py WORDS` in a process of its own; leaves with its last words if it fails."""
    printed = run_dir.with_suffix(".out")
    process = SERVER.Process(target=child, args=(words, run_dir.parent, printed))
    process.start()
    process.join()
    if process.exitcode:
        last = printed.read_text()[-3000:]
        sys.exit(
            f"{run_dir.name} ended with {process.exitcode}: launch.py {' '.join(words)}\n{last}"
        )


def child(words: list[str], folder: Path, printed: Path) -> None:
    out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    os.chdir(folder)
    sys.path.insert(0, str(ROOT))
    sys.argv = [str(ROOT / "launch.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def outcome(run_dir: Path) -> dict[str, Any]:
    """What a finished run came to, by part; no part holds a path or a time."""
    import pyarrow.parquet as pq
    from safetensors import deserialize

    state = json.loads((run_dir / "trainer_state.json").read_text())
    results = json.loads((run_dir / "results.json").read_text())
    tensors, answers = {}, {}
    for file in sorted((run_dir / "model").glob("*.safetensors")):
        for name, tensor in deserialize(file.read_bytes()):
            told = f"{tensor['dtype']} {tensor['shape']} ".encode()
            tensors[f"{file.name} {name}"] = digest(told + bytes(tensor["data"]))
    for file in sorted((run_dir / "predictions").glob("*.parquet")):
        for name, column in pq.read_table(file).to_pydict().items():
            answers[f"{file.stem} {name}"] = digest(json.dumps(column, default=str).encode())
    if not (tensors and answers and results["splits"]):
        sys.exit(f"{run_dir}: no weights, no predictions or no metrics")
    return {
        "log": told_of(state["log_history"]),
        "metrics": told_of(
            {k: results[k] for k in ("splits", "headline", "start") if k in results}
        ),
        "weights": tensors,
        "predictions": answers,
    }


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def told_of(value: Any) -> Any:
    """The same without timings and memory; NaN, which equals nothing, as a text."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(word in k for word in UNTOLD)}
        return {key: told_of(nested) for key, nested in kept.items()}
    if isinstance(value, list):
        return [told_of(nested) for nested in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print a line for each kind; 1 when one differs or is in one of the recordings only."""
    differ = 0
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            told = [f"only in the {'first' if name in before else 'second'} recording"]
        else:
            told = [d for part in before[name] if (d := part_differs(part, before, after, name))]
        differ += bool(told)
        print(f"{name:18} {'; '.join(told) or 'identical'}")
    print(f"{differ} of {len(before.keys() | after.keys())} kinds differ")
    return 1 if differ else 0


def part_differs(part: str, before: dict[str, Any], after: dict[str, Any], kind: str) -> str:
    """In words, what of a part is not the same in both; empty when all is."""
    one, other = (dict(leaves(found[kind][part])) for found in (before, after))
    places = [p for p in {**one, **other} if p not in one or p not in other or one[p] != other[p]]
    if not places:
        return ""
    told = f"{part}: {len(places)} of {len({**one, **other})} differ"
    if single := [p for p in places if p not in one or p not in other]:
        return f"{told}, {single[0]} is in the {'first' if single[0] in one else 'second'} only"
    most = max(places, key=lambda place: distance(one[place], other[place]))
    values = "" if part in HASHED else f": {one[most]!r} then {other[most]!r}"
    return f"{told}, {'first' if part in HASHED else 'most'} {most}{values}"


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value in nested dicts and lists, with where it is."""
    if not isinstance(value, dict | list):
        yield place, value
        return
    for key, nested in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(nested, f"{place}.{key}" if place else str(key))


def distance(one: Any, other: Any) -> float:
    """Between two numbers; 0 for anything else."""
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) if numbers else 0.0


if __name__ == "__main__":
    main()
