"""The embedded audio task: how high a tone is, computed, not downloaded.

Clips of 0.3 to 1 second, one half sampled at 8 kHz and one at 16 kHz, hold a tone of any loudness,
timbre and decay in noise. The labels are an octave apart: who reads a clip at the other rate hears
its neighbour, so that without the files' rates no more than five in eight can be right.
"""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

import numpy as np

from forge.data import sources
from forge.data.label_noise import another, with_noise
from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

LABELS = ("low", "middle", "high", "top")
LOWEST = 220  # Hz, in the middle of its label; each of the others is an octave higher
WITHIN = 0.35  # octaves to either side
RATES = (8000, 16000)
HIGHEST = 3600  # Hz, of overtones: what either rate can hold


def tones(
    *, train: int, validation: int, seed: int = 0, label_noise: float = 0.0
) -> dict[str, datasets.Dataset]:
    """Splits with columns audio (a WAV file's bytes) and label.

    `label_noise` is the share of train's labels that are replaced by another one. Raises
    `UserError`.
    """
    if min(train, validation) < 1:
        raise UserError(f"task.dataset: train={train}, validation={validation}: at least 1 row")
    splits = {"train": (train, label_noise), "validation": (validation, 0.0)}
    drawn = {}
    for name, (count, noise) in splits.items():
        source = random.Random(f"tones {name} {seed}")
        labels = [source.choice(LABELS) for _ in range(count)]
        clips = [_clip(label, source) for label in labels]
        given = with_noise(labels, noise, another(LABELS), seed)
        drawn[name] = sources.dataset({"audio": clips, "label": given})
    return drawn


def _clip(label: str, source: random.Random) -> bytes:
    import soundfile

    rate = source.choice(RATES)
    seconds = np.arange(round(source.uniform(0.3, 1.0) * rate)) / rate
    pitch = LOWEST * 2 ** (LABELS.index(label) + source.uniform(-WITHIN, WITHIN))
    wave = np.zeros_like(seconds)
    for overtone in range(1, 5):
        loudness = 1.0 if overtone == 1 else source.uniform(0, 0.5) / overtone
        phase = source.uniform(0, 2 * np.pi)
        if pitch * overtone < HIGHEST:
            wave += loudness * np.sin(2 * np.pi * pitch * overtone * seconds + phase)
    wave *= np.exp(-source.uniform(0, 3) * seconds) * source.uniform(0.1, 0.5)
    noise = np.random.default_rng(source.getrandbits(32)).normal(0, 0.01, len(wave))
    file = io.BytesIO()
    soundfile.write(file, (wave + noise).clip(-1, 1), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
