"""A recording: its file's bytes are kept as they are; mono, of the model's rate, in batches."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.data.sources import Columns, Row
from forge.errors import UserError, needs, one_line
from forge.inputs.file import PICTURED, Collator, File
from forge.inputs.input import Processor, Usage

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)
WIDE, HIGH = 240, 61  # pixels of a waveform's picture: a row in the middle, for silence
FRAME, HOP = 400, 160  # samples of 16 kHz: 25 and 10 ms, of AST's and Whisper's spectrograms

_READ = """import numpy as np
import soundfile
import soxr

wave, rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)
wave = soxr.resample(wave.mean(1), rate, {rate})[:{samples}]
wave = np.pad(wave, (0, {samples} - len(wave)))
"""


@dataclass
class Audio(File):
    """One column of recordings: paths of files, or the bytes of files.

    A model reads `seconds` of each from its beginning; a shorter one is followed by silence. With
    windows of one length a row's answer does not depend on the batch it is in.
    """

    seconds: float
    columns: list[str] = field(default_factory=lambda: ["audio"])
    kind = "audio"
    read = "audio"
    auto = "AutoFeatureExtractor"
    examples = "model=tiny_wav2vec2 or model=wav2vec2"
    unit = "samples"
    suffixes = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"task.seconds={self.seconds}: more than 0")
        with needs("audio", "a task of recordings"):
            import soundfile  # noqa: F401
            import soxr  # noqa: F401

    def new_processor(self, config: Mapping[str, Any]) -> Processor:
        """The usual one of its architecture, of 16 kHz, with what it reads at most."""
        import transformers

        kind = config.get("model_type")
        if kind == "whisper":
            whisper = transformers.WhisperConfig(**config)
            return transformers.WhisperFeatureExtractor(
                feature_size=whisper.num_mel_bins,
                chunk_length=whisper.max_source_positions * 2 * HOP // 16000,
            )
        if kind == "audio-spectrogram-transformer":
            ast = transformers.ASTConfig(**config)
            return transformers.ASTFeatureExtractor(
                num_mel_bins=ast.num_mel_bins, max_length=ast.max_length
            )
        return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)

    def readers(self) -> Collection[str]:
        from transformers.models.auto import modeling_auto

        return modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

    def identity(self, processor: Processor) -> list[object]:
        """With torchaudio, where that is installed, AST's extractor gives other numbers."""
        from transformers.utils.import_utils import is_speech_available

        return [*super().identity(processor), is_speech_available()]

    def make_ready(self, processor: Processor, config: PretrainedConfig) -> None:
        """SpecAugment is switched off where the window is shorter than one of its masks.

        Raises `UserError` for a window that is too short for the model's convolutions.
        """
        strides = getattr(config, "conv_stride", None)
        if not strides:
            return
        frames = self._window(processor)
        for kernel, stride in zip(config.conv_kernel, strides, strict=True):
            frames = (frames - kernel) // stride + 1
        if frames < 1:
            raise UserError(f"task.seconds={self.seconds}: too short for a {config.model_type}")
        masks = getattr(config, "apply_spec_augment", False)
        if masks and frames < config.mask_time_length:
            config.apply_spec_augment = False
            log.warning("SpecAugment is off: of a window the model makes %d frames only", frames)

    def limit(self, processor: Processor, config: PretrainedConfig) -> int:
        """Samples, at the processor's rate."""
        window, rate = self._window(processor), processor.sampling_rate
        if window < round(self.seconds * rate):
            kind, read, asked = config.model_type, window / rate, self.seconds
            log.warning("a %s reads %g s of a recording, of task.seconds=%g", kind, read, asked)
        return window

    def _window(self, processor: Processor) -> int:
        """Samples that the model reads."""
        window, most = round(self.seconds * processor.sampling_rate), _most(processor)
        return int(window if most is None else min(window, most))

    def features(self, rows: Columns, processor: Processor, limit: int) -> Columns:
        """The bytes, each tried, with its rate; what is longer than the window is `truncated`."""
        pairs = zip(rows["audio"], rows["path"], strict=True)
        clips = [_decode(data, path) for data, path in pairs]
        rate = processor.sampling_rate
        return {
            "audio": rows["audio"],
            "length": [limit] * len(clips),
            "truncated": [len(wave) * rate > limit * own for wave, own in clips],
            "rate": [own for _, own in clips],
        }

    def encode(self, rows: Dataset, processor: Processor, limit: int, cache_dir: Path) -> Dataset:
        encoded = super().encode(rows, processor, limit, cache_dir)
        for rate, count in sorted(Counter(encoded["rate"]).items()):
            if rate != (wanted := processor.sampling_rate):
                log.info("%d recordings of %d Hz are resampled to %d Hz", count, rate, wanted)
        return encoded

    def model_columns(self, processor: Processor) -> list[str]:
        return ["audio", "length"]

    def collator(self, processor: Processor, multiple: int | None, *extra: str) -> Collator:
        return Collator(partial(_windows, processor), extra)

    def pictures(self, rows: Dataset) -> list[bytes | None]:
        """Waveforms, of what is read in blue and of what is cut in grey; none after `PICTURED`."""
        count = min(len(rows), PICTURED)
        clips = [_decode(data, None) for data in rows["audio"][:count]]
        drawn = [_waveform(wave, rate, self.seconds) for wave, rate in clips]
        return [*drawn, *[None] * (len(rows) - count)]

    def usage(self, limit: int) -> Usage:
        return Usage(
            processor="AutoFeatureExtractor",
            name="feature_extractor",
            settings=_READ.format(rate=round(limit / self.seconds), samples=limit),
            of_pipeline="wave",
            of_processor=f"wave, sampling_rate={round(limit / self.seconds)}",
        )

    def example(self, processor: Processor, count: int, length: int) -> dict[str, Tensor]:
        window = round(self.seconds * processor.sampling_rate)
        noise = np.random.default_rng(count).normal(0, 0.1, (count, window)).astype(np.float32)
        return _process(processor, list(noise))


def _most(processor: Processor) -> int | None:
    """The samples that are read of a clip at most; None: all."""
    if hasattr(processor, "n_samples"):  # Whisper's
        return int(processor.n_samples)
    if hasattr(processor, "num_mel_bins"):  # AST's, which cuts what has more frames unsaid
        return int(FRAME + HOP * (processor.max_length - 1))
    return None


def _windows(processor: Processor, rows: list[Row]) -> dict[str, Tensor]:
    """`input_values` or `input_features`, of windows of the rows' `length` in samples."""
    return _process(processor, [_window(row["audio"], processor, row["length"]) for row in rows])


def _process(processor: Processor, waves: list[NDArray[np.float32]]) -> dict[str, Tensor]:
    made = processor(waves, sampling_rate=processor.sampling_rate, return_tensors="pt")
    return {name: made[name] for name in processor.model_input_names if name != "attention_mask"}


def _window(data: bytes, processor: Processor, length: int) -> NDArray[np.float32]:
    import soxr

    wave, rate = _decode(data, None)
    if rate != processor.sampling_rate:
        wave = soxr.resample(wave, rate, processor.sampling_rate)
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


def _decode(data: bytes, path: str | None) -> tuple[NDArray[np.float32], int]:
    """The mean of its channels, and its rate; raises `UserError` for what is no recording."""
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError) as error:
        reason = one_line(getattr(error, "error_string", str(error)))
        raise UserError(f"{path}: not audio that soundfile reads ({reason})") from error
    if not len(wave) or not np.isfinite(wave).all():
        raise UserError(f"{path}: {'samples that are no numbers' if len(wave) else 'no sample'}")
    return wave.mean(1), rate


def _waveform(wave: NDArray[np.float32], rate: int, seconds: float) -> bytes:
    """A PNG of a wave, its peak as high as the picture, over `seconds`, or all of it if longer."""
    import PIL.Image

    span = max(len(wave), round(seconds * rate))
    columns = np.linspace(0, span, WIDE + 1).astype(int)
    pixels = np.full((HIGH, WIDE, 3), 255, np.uint8)
    peak = max(np.abs(wave).max(), 1e-4)
    rows = np.linspace(peak, -peak, HIGH)[:, None]
    starts = np.minimum(columns[:-1], len(wave) - 1)
    drawn = np.flatnonzero(columns[:-1] < len(wave))
    low, high = (f.reduceat(wave, starts) for f in (np.minimum, np.maximum))
    half = peak / (HIGH - 1)  # of a row: silence is a line
    inside = (rows >= low - half) & (rows <= high + half)
    for part, colour in (
        (drawn[columns[drawn] < seconds * rate], (31, 119, 180)),
        (drawn[columns[drawn] >= seconds * rate], (170, 170, 170)),
    ):
        pixels[:, part] = np.where(inside[:, part, None], colour, 255)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
