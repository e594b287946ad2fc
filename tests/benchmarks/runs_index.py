"""How long `python -m forge runs` takes over many run directories: without its index and with it.

    make bench

The whole command, imports included, over runs with the files of real ones, first without an index
(every JSON file is read), then with it: the listing, by a key of the config, as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir

from forge.config.compose import CONF, register
from forge.records.files import METADATA, RESULTS, STATE
from forge.records.record import plain


def generate(folder: Path, count: int) -> None:
    """Finished runs in sweeps of a hundred jobs, with checkpoints, model and predictions."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(compose("config", ["task=toy", "model=tiny", "mode=kd"]))
    choices = {"task": "toy", "model": "tiny", "mode": "kd", "experiment": None}
    attempts = [{"started": "2026-01-01T00:00:00Z", "pid": 1, "host": "elsewhere"}]
    for n in range(count):
        alpha, run = n % 11 / 10, folder / "toy" / "tiny" / "kd" / str(n // 100) / str(n % 100)
        for name in ("checkpoint-100", "checkpoint-200", "model", "predictions", ".hydra"):
            (run / name).mkdir(parents=True)
        (run / "predictions" / "validation.parquet").touch()
        overrides = ["task=toy", "model=tiny", "mode=kd", f"mode.alpha={alpha}", f"seed={n}"]
        config |= {"seed": n, "mode": config["mode"] | {"alpha": alpha}}
        metadata = {"id": str(n), "choices": choices, "overrides": overrides, "config": config}
        state = {"status": "finished", "step": 200, "max_steps": 200}
        score = {"accuracy": n % 997 / 997, "n": 1000}
        headline = {"metric": "accuracy", "split": "validation", "value": score["accuracy"]}
        for file, content in (
            (METADATA, metadata | {"attempts": attempts}),
            (STATE, state | {"updated": "2026-01-01T01:00:00Z"}),
            (RESULTS, {"headline": headline, "splits": {"validation": score}}),
        ):
            (run / file).write_text(json.dumps(content, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder, cache = Path(directory, "multirun"), Path(directory, "cache")
        generate(folder, asked.runs)
        for name, words in (
            ("without an index", []),
            ("with it", []),
            ("two keys of the config", ["--where", "mode.alpha=0.5", "--sort", "-trainer.seed"]),
            ("as JSON", ["--json"]),
        ):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "forge", "runs", str(folder), *words],
                env={**os.environ, "FORGE_CACHE": str(cache)},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            print(f"{asked.runs:,} runs, {name}: {time.perf_counter() - start:.2f} s")
        size = sum(file.stat().st_size for file in cache.iterdir()) / 1e6
    print(f"the index: {size:.0f} MB")


if __name__ == "__main__":
    main()
