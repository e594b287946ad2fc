"""What a step of distillation costs beside a step on labels, side by side.

    make bench

A DistilBERT student and a BERT-base teacher (random weights), rows as long as MNLI's pairs, batch
32, the device and threads of this machine: labels alone, the teacher's stored logits, and the
teacher run in every step. The ratios are of one round; the median over rounds is printed.
"""

import argparse
import statistics
import tempfile
from functools import partial
from types import SimpleNamespace

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from forge.config.compose import register
from forge.distillation.distiller import Distiller
from forge.distillation.losses import KL
from forge.inputs.text import Collator, pad_multiple
from forge.training.trainer import Trainer
from tests.benchmarks.throughput import examples_per_second, forge_arguments, rows, tokenizer

SFT, STORED, LIVE = "labels alone", "stored answers", "live teacher"
SHARES = "stored answers, gradient shares in every step"


class Measuring(Distiller):
    """Takes the gradient shares in every step instead of one in `Distiller.EVERY`."""

    EVERY = 1


def stored(inputs, watch):
    return SimpleNamespace(logits=inputs.pop("teacher_logits"), qkv={})


def live(teacher, inputs, watch):
    inputs.pop("teacher_logits")
    with torch.no_grad():
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return SimpleNamespace(logits=teacher(**batch).logits, qkv={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    register()
    data, words = rows(options.steps * 32), tokenizer()
    answers = torch.randn(len(data), 3, generator=torch.Generator().manual_seed(0)).tolist()
    taught_data = data.add_column("teacher_logits", answers)
    teacher = AutoModelForSequenceClassification.from_config(BertConfig(num_labels=3)).eval()
    with tempfile.TemporaryDirectory() as directory:
        args = partial(forge_arguments, directory)
        multiple = pad_multiple(args())
        device = args().device
        teacher.to(device)
        blend = {"alpha": 0.5, "losses": {"kl": KL(temperature=2.0)}}
        settings = {
            SFT: (Trainer, data, Collator(words, multiple)),
            STORED: (partial(Distiller, **blend, taught=stored), taught_data, None),
            SHARES: (partial(Measuring, **blend, taught=stored), taught_data, None),
            LIVE: (partial(Distiller, **blend, taught=partial(live, teacher)), taught_data, None),
        }
        speeds: dict[str, list[float]] = {name: [] for name in settings}
        for _ in range(options.rounds):
            for name, (make, table, collator) in settings.items():
                collator = collator or Collator(words, multiple, "teacher_logits")
                found = examples_per_second(make, args, table, collator, options.steps)
                speeds[name].append(found)
    costs = {
        name: statistics.median(a / b for a, b in zip(speeds[SFT], found, strict=True))
        for name, found in speeds.items()
    }
    for name, found in speeds.items():
        speed = statistics.median(found)
        print(f"{name:46} {speed:6.1f} examples/s, a step costs {costs[name]:.3f} of sft")
    whole = costs[STORED] + (costs[SHARES] - costs[STORED]) / Distiller.EVERY
    print(f"a step of mode=kd with stored answers, shares included: {whole:.3f} of sft")


if __name__ == "__main__":
    main()
