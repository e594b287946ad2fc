"""A file (a picture, a recording): its bytes stay as they are until a batch is made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from forge import hub
from forge.data import cache
from forge.data.fingerprints import fingerprint
from forge.data.folders import beside
from forge.data.sources import Columns, Row
from forge.errors import UserError
from forge.inputs.input import Batch, Input, Processor, Size
from forge.models import loading

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig

    from forge.config.schema import Model

FILE = "preprocessor_config.json"
PICTURED = 5_000  # rows of which small pictures are made


class File(Input):
    """One column of files: paths, or the bytes of files."""

    kind: ClassVar[str]  # the column of bytes
    read: ClassVar[str]  # what a model reads, as a user calls it
    auto: ClassVar[str]  # transformers.Auto… of the processor
    examples: ClassVar[str]  # models that read it

    def __post_init__(self) -> None:
        self.kept = [self.kind, "path"]  # bytes, and where they are from

    @property
    def content(self) -> list[str]:
        return [self.kind]

    def rows(self, columns: Columns, split: str) -> Columns:
        """Relative paths are of the folder of the file that `split` names, else of this one."""
        column = self.columns[0]
        contents = [self._read(value, split, i) for i, value in enumerate(columns[column])]
        return {self.kind: [data for data, _ in contents], "path": [path for _, path in contents]}

    def load_processor(
        self, model: Model, rows: Dataset | None = None, where: str = "model"
    ) -> Processor:
        """Without a path one that fits `model.config`."""
        import transformers
        from transformers.utils.generic import is_timm_local_checkpoint

        if model.path is None:
            return self.new_processor(model.config)
        path = loading.resolve(model.path, f"{where}.path")
        self.check(model, None, loading.load_config(model, {}, where), where)
        of_timm = is_timm_local_checkpoint(path)
        if Path(path).is_dir() and not (of_timm or (Path(path) / FILE).is_file()):
            raise UserError(f"{where}.path={path}: no {FILE}, which says how it reads {self.read}")
        with hub.access(f"processor of {self.read}", path, f"{where}.path=DIR"):
            return getattr(transformers, self.auto).from_pretrained(path, **loading.revision(model))

    @abstractmethod
    def new_processor(self, config: Mapping[str, Any]) -> Processor:
        """For an architecture from random weights."""

    @abstractmethod
    def readers(self) -> Collection[str]:
        """The `model_type` of architectures that read it."""

    def identity(self, processor: Processor) -> list[object]:
        return [type(processor).__name__, processor.to_dict()]

    def fitting(self, processor: Processor) -> dict[str, object]:
        return {}

    def check(
        self, model: Model, processor: Processor, config: PretrainedConfig, where: str
    ) -> None:
        remote = model.from_pretrained.get("trust_remote_code")
        if config.model_type not in self.readers() and not remote:
            raise UserError(
                f"{where} {model.path or config.model_type}: a {config.model_type} does not read "
                f"{self.read}; choose e.g. {self.examples}"
            )

    def encode(self, rows: Dataset, processor: Processor, limit: int, cache_dir: Path) -> Dataset:
        from datasets import concatenate_datasets

        def facts(batch: Columns) -> Columns:
            found = self.features(batch, processor, limit)
            return {name: values for name, values in found.items() if name != self.kind}

        key = fingerprint(rows._fingerprint, self.identity(processor), limit)
        known = cache.stored(rows, facts, rows.column_names, key, cache_dir)
        return concatenate_datasets([rows.remove_columns("path"), known], axis=1)

    def model_columns(self, processor: Processor) -> list[str]:
        return [self.kind]

    def same_positions(self, ours: Dataset, theirs: Dataset) -> bool:
        return bool(ours["length"] == theirs["length"])  # whose patches differ is told by shapes

    def size(self, batch: Batch) -> Size:
        return Size(len(next(iter(batch.values()))), 0, 0)

    def mask(self, batch: Batch) -> None:
        return None

    def shown(self, rows: Dataset | Columns) -> dict[str, list[str]]:
        return {self.columns[0]: list(rows["path"])}

    def _read(self, value: object, split: str, row: int) -> tuple[bytes, str]:
        """A file's bytes and its path; `#` and its row where it has none."""
        where = f"split {split}, column {self.columns[0]}, row {row}"
        data, path = value, None
        if isinstance(value, Mapping):  # as `datasets.Image` and `datasets.Audio` keep it
            data, path = value.get("bytes"), value.get("path")
            data = path if data is None else data
        if not data or not isinstance(data, bytes | str):
            raise UserError(f"{where}: a {type(data).__name__}, neither a path nor a file's bytes")
        if isinstance(data, bytes):
            return data, path or f"#{row}"
        near = beside(Path(split), data)
        try:
            return Path(near).read_bytes(), data
        except OSError as error:
            raise UserError(f"{where}: {near}: {error.strerror}") from error


@dataclass
class Collator:
    """Batches of what `process` makes of rows, with ids, labels and the columns in `extra`."""

    process: Callable[[list[Row]], Mapping[str, torch.Tensor]]
    extra: tuple[str, ...]

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        import torch

        others = [name for name in ("id", "labels", *self.extra) if name in rows[0]]
        columns = {name: torch.tensor([row[name] for row in rows]) for name in others}
        return dict(self.process(rows)) | columns
