"""Training throughput of Forge's defaults against plain transformers.Trainer, side by side.

    make bench

DistilBERT (66M weights, random), rows as long as MNLI's pairs (mnli_lengths.txt: length, count),
batch 32, the device and threads of this machine. One round runs every setting once, in turn;
the ratios are taken within a round, since machines drift, and the median over rounds is printed.
"""

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import transformers
from datasets import Dataset
from hydra import compose, initialize_config_dir
from transformers import (
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    DataCollatorWithPadding,
    DistilBertConfig,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from forge.config.check import build
from forge.config.compose import CONF, register
from forge.config.schema import Config, to_config
from forge.inputs.input import pad_multiple
from forge.inputs.text import Collator
from forge.training.arguments import training_arguments
from forge.training.trainer import Trainer

LENGTHS = Path(__file__).with_name("mnli_lengths.txt")
FIXED, BEST, FORGE = "plain, padded to 128, fp32", "plain, grouped, bf16", "forge defaults"


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step after the first."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def rows(count: int) -> Dataset:
    """Random tokens, as many per row as an MNLI pair has (at most 128)."""
    rng = random.Random(0)
    table = [line.split() for line in LENGTHS.read_text().splitlines()]
    lengths, counts = zip(*((int(a), int(b)) for a, b in table), strict=True)
    drawn = [min(n, 128) for n in rng.choices(lengths, counts, k=count)]
    return Dataset.from_dict(
        {
            "input_ids": [[rng.randrange(1000, 30000) for _ in range(n)] for n in drawn],
            "attention_mask": [[1] * n for n in drawn],
            "labels": [rng.randrange(3) for _ in drawn],
            "length": drawn,
        }
    )


def tokenizer() -> BertTokenizerFast:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = BertTokenizerFast(vocab={name: i for i, name in enumerate(names)})
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def distilbert():
    return AutoModelForSequenceClassification.from_config(DistilBertConfig(num_labels=3))


def examples_per_second(
    make_trainer, make_args, data, collator, steps: int, make_model=distilbert
) -> float:
    args = make_args()  # here: making them resets accelerate's global state
    set_seed(0)
    model = make_model()
    clock = StepTimes()
    args.max_steps = steps
    trainer = make_trainer(
        model=model, args=args, train_dataset=data, data_collator=collator, callbacks=[clock]
    )
    trainer.train()
    seconds = clock.times[-1] - clock.times[0]
    return args.per_device_train_batch_size * (len(clock.times) - 1) / seconds


def plain_arguments(directory: str, **settings) -> TrainingArguments:
    return TrainingArguments(
        output_dir=directory, per_device_train_batch_size=32, save_strategy="no", use_cpu=True,
        report_to="none", disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip


def config(*settings: str) -> Config:
    quiet = ("trainer.save_strategy=no", "trainer.eval_strategy=no")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [*quiet, "trainer.load_best_model_at_end=false", *settings])
    return to_config(composed)


def forge_arguments(directory: str, *settings: str) -> TrainingArguments:
    cfg = config(*settings)
    cfg.trainer |= {"logging_strategy": "no"}
    return training_arguments(cfg, build(cfg.task, "task"), Path(directory))


def forge_trainer(*settings: str):
    """The house trainer of a task."""
    return partial(Trainer, task=build(config(*settings).task, "task"))


def settings(directory: str, long: int, short: int) -> dict:
    data, words = rows(long * 32), tokenizer()
    fixed = DataCollatorWithPadding(words, padding="max_length", max_length=128)
    half = partial(plain_arguments, bf16=True, train_sampling_strategy="group_by_length")
    own = Collator(words, pad_multiple(forge_arguments(directory)))
    plain, bare = transformers.Trainer, data.remove_columns("length")
    grouped = partial(plain, processing_class=words)

    def measure(trainer, arguments, train, collator, steps):
        make_args = partial(arguments, directory)
        return partial(examples_per_second, trainer, make_args, train, collator, steps)

    return {
        FIXED: measure(plain, plain_arguments, bare, fixed, short),
        BEST: measure(grouped, half, bare, DataCollatorWithPadding(words), long),
        FORGE: measure(forge_trainer(), forge_arguments, data, own, long),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="steps of the fast settings")
    parser.add_argument("--slow-steps", type=int, default=8, help="steps of the padded setting")
    asked = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    logging.captureWarnings(True)
    register()
    measured: dict[str, list[float]] = {FIXED: [], BEST: [], FORGE: []}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(asked.rounds):
            for name, run in settings(directory, asked.steps, asked.slow_steps).items():
                measured[name].append(run())
                print(f"{name:28} {measured[name][-1]:7.1f} examples/s", flush=True)
    ratios = {
        f"forge / {name}": statistics.median(
            ours / theirs for ours, theirs in zip(measured[FORGE], measured[name], strict=True)
        )
        for name in (FIXED, BEST)
    }
    print(json.dumps({name: round(ratio, 2) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
