"""What a committed checkpoint costs: its share of the time between two of them.

    make bench

DistilBERT (66M weights, random), rows as long as MNLI's pairs, batch 32, saved every 500 steps: the
seconds of a step and of a checkpoint (weights, optimizer, hashes, flushed to the disk) on this
machine, and beside it what transformers alone takes to write the same files.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import transformers
from transformers import AutoModelForSequenceClassification, DistilBertConfig

from forge.config.compose import register
from forge.inputs.text import Collator
from forge.training.trainer import Trainer
from tests.benchmarks.throughput import StepTimes, forge_arguments, rows, tokenizer

EVERY = 500  # steps between two checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    asked = parser.parse_args()
    register()
    with tempfile.TemporaryDirectory() as directory:
        args = forge_arguments(directory)
        args.max_steps = asked.steps
        clock = StepTimes()
        trainer = Trainer(
            AutoModelForSequenceClassification.from_config(DistilBertConfig(num_labels=3)),
            args,
            Collator(tokenizer()),
            rows(asked.steps * 32),
            callbacks=[clock],
        )
        trainer.train()
        step = (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)
        ours, plain = [], []
        for number in range(asked.rounds):
            for seconds, save in ((plain, transformers.Trainer._save_checkpoint),
                                  (ours, Trainer._save_checkpoint)):  # fmt: skip
                trainer.state.global_step = 1000 * len(seconds) + number + len(ours)
                start = time.perf_counter()
                save(trainer, trainer.model, None)
                seconds.append(time.perf_counter() - start)
        size = sum(f.stat().st_size for f in Path(directory).glob("checkpoint-*/*")) / 1e9
    cost, bare = statistics.median(ours), statistics.median(plain)
    print(f"a step {step:.3f} s, a checkpoint {cost:.2f} s (transformers alone {bare:.2f} s)")
    share = cost / (EVERY * step + cost)
    print(f"every {EVERY} steps: {share:.2%} of the time; {size:.1f} GB written")


if __name__ == "__main__":
    main()
