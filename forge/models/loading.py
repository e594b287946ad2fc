"""From a path to a model and its tokenizer, with the head that the task asks for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError

from forge import hub, ranks
from forge.config.schema import Model, Node
from forge.errors import UserError, did_you_mean, one_line
from forge.models import lora, scaling, tokenizers
from forge.models.heads import (
    Head,
    from_config,
    head_order,
    head_parts,
    name_labels,
    permute_head,
    remote_class,
    with_new_head,
)
from forge.models.layers import shallower

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
OF_INPUTS = ("image_size",)  # settings of model.config that a processor is made from


def resolve(path: str, where: str = "model.path", file: str = "config.json") -> str:
    """A Hub name as it is; a run directory as its `model/`; raises `UserError` for neither.

    A local directory is what was asked for when `file` is in it.
    """
    directory = Path(path).expanduser()
    for candidate in (directory, directory / "model"):
        if (candidate / file).is_file():
            return str(candidate)
    if directory.exists():
        raise UserError(f"{where}={path}: no {file} and no finished run in it")
    if not hub.looks_like_name(path):
        raise hub.no_directory(where, path)
    return path


def load_tokenizer(model: Model, where: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer at `model.tokenizer`, else at `model.path`."""
    from transformers import AutoTokenizer

    if model.tokenizer:
        path = resolve(model.tokenizer, f"{where}.tokenizer", "tokenizer_config.json")
    else:
        path = resolve(str(model.path), f"{where}.path")
    with hub.access("tokenizer", path, f"{where}.path=DIR"):
        return AutoTokenizer.from_pretrained(path, **revision(model))


def load_config(
    model: Model, fitting: Mapping[str, object], where: str = "model"
) -> PretrainedConfig:
    """The architecture at `model.path`, else that of `model.config` with the settings `fitting`.

    Those follow from the processor, such as the size of the vocabulary. Raises `UserError`.
    """
    from transformers import AutoConfig

    config: PretrainedConfig
    if model.path is None:
        chosen = {k: v for k, v in model.config.items() if k not in ("model_type", *fitting)}
        architecture = architecture_class(model.config)
        known = {*inspect.signature(architecture).parameters, *architecture.attribute_map}
        for key in sorted(chosen.keys() - known - {*OF_INPUTS}):
            kind, meant = model.config["model_type"], did_you_mean(key, known, listed=False)
            log.warning(
                "%s.config.%s: %s has no such setting, so nothing changes%s",
                where,
                key,
                kind,
                meant,
            )
        with _sizes():
            config = architecture(**chosen, **fitting)
        return config
    path, version = resolve(model.path, f"{where}.path"), revision(model)
    with hub.access("model", path, f"{where}.path=DIR"):
        config = AutoConfig.from_pretrained(path, **version)
    return config


@contextmanager
def _sizes() -> Iterator[None]:
    """One line for sizes that do not fit each other."""
    try:
        yield
    except (
        ValueError, TypeError, ZeroDivisionError, RuntimeError, StrictDataclassError
    ) as error:  # fmt: skip
        raise UserError(f"model.config: {one_line(str(error))[:300]}") from error


def architecture_class(config: Node) -> Any:
    """The subclass of PretrainedConfig of `config.model_type`; raises `UserError` for none."""
    from transformers import CONFIG_MAPPING

    if not config:
        raise UserError(
            "model.path=null: name a Hub model, a directory or a run, or choose model=tiny"
        )
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"model.config.model_type={kind}: no such architecture"
            + did_you_mean(kind, CONFIG_MAPPING.keys())
        )
    return CONFIG_MAPPING[kind]


def revision(model: Model) -> Node:
    """Which version of the files at `model.path` is meant; their code is run when asked for."""
    keys = ("revision", "trust_remote_code", "subfolder")
    chosen = {k: v for k, v in model.from_pretrained.items() if k in keys}
    return {"trust_remote_code": False} | chosen


@ranks.taking_turns
def load(
    model: Model, head: Head, config: PretrainedConfig, where: str = "model"
) -> PreTrainedModel:
    """Weights in fp32 with a head for the task, its labels in their order; `model.lora` on top.

    A head trained for the same label names in another order is permuted; one for other labels is
    refused unless `new_head` asks for a fresh one. What starts from random values is logged.
    """
    trained, order = head.is_trained(config), None
    if head.labels is not None:
        keep = trained and model.path is not None and not (model.new_head or model.from_scratch)
        order = head_order(model, head, config, where) if keep and head.named else None
        name_labels(config, head)
        if not keep:
            head.scale.write(config)
    if model.path is None or model.from_scratch:
        return scaling.apply(_random_weights(model, head, config, where))
    path = resolve(model.path, f"{where}.path")
    options = {"dtype": torch.float32, **model.from_pretrained}
    with hub.access("model", path, f"{where}.path=DIR"):
        if head.labels is not None and trained and model.new_head:
            built, fresh = with_new_head(head.auto_class, path, config, options)
        else:
            built, fresh = lora.from_pretrained(head.auto_class, path, config=config, **options)
    scaling.apply(built)
    if fresh:
        log.info("new, from random values: %s", ", ".join(fresh))
    if order is not None and order != sorted(order):
        permute_head(built, order)
        labels = ", ".join(head.labels or ())
        log.info("head of %s: labels put into the task's order: %s", path, labels)
    if model.lora:
        parts = [] if head.labels is None else head_parts(built)
        return lora.adapt(built, model, path, parts, head.peft_type, fresh)
    if model.layers is None:
        return built
    return scaling.apply(shallower(built, model.layers, head.auto_class))


def student(
    teacher: PreTrainedModel, model: Model, head: Head, fitting: Mapping[str, object]
) -> PreTrainedModel:
    """The student that `model.init=teacher` makes of the teacher's layers; raises `UserError`."""
    if model.init != "teacher":
        raise UserError(f"model.init={model.init}: teacher, or null for the weights at model.path")
    if model.path is None and not model.config:
        return scaling.apply(shallower(teacher, model.layers, head.auto_class))
    config = load_config(model, fitting)
    name_labels(config, head)
    scaling.Scale.of(teacher.config).write(config)  # the head's weights are the teacher's
    layers = config.num_hidden_layers if model.layers is None else model.layers
    return scaling.apply(shallower(teacher, layers, head.auto_class, config))


def _random_weights(
    model: Model, head: Head, config: PretrainedConfig, where: str
) -> PreTrainedModel:
    """A model of the architecture `config`; raises `UserError` for sizes that do not fit."""
    if model.layers is not None and not model.init:
        raise UserError(
            f"{where}.layers={model.layers}: random weights have no layers to choose from; set "
            f"{where}.config.num_hidden_layers"
        )
    with _sizes():
        built = from_config(head.auto_class, config)
    log.info("weights: random (%s)", config.model_type)
    return built


def read(path: str, **options: Any) -> PreTrainedModel:
    """The model in a directory as it is, with its own head, in evaluation mode.

    Raises `UserError` for one whose code lies beside it, unless `trust_remote_code` is set.
    """
    import transformers

    trust = options.get("trust_remote_code", False)
    with hub.access("model", path, "model.path=DIR"):
        config = options.get("config") or transformers.AutoConfig.from_pretrained(
            path, trust_remote_code=trust
        )
    name = (config.architectures or [""])[0]
    remote = [auto for auto in getattr(config, "auto_map", None) or {} if auto[:9] == "AutoModel"]
    mapped = [auto for auto in remote if trust and remote_class(config, auto) == name]
    model_class = getattr(transformers, next(iter(mapped), name))
    model, _ = lora.from_pretrained(model_class, path, **options)
    model.eval()
    return scaling.apply(model)


def reading_limit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """The tokens of a text that a model reads; 512 where neither it nor its tokenizer says."""
    most = most_tokens(tokenizer, config)
    return most if most < 10**6 else 512


def most_tokens(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """The tokens of a text that a model and its tokenizer can take; 10^9 and more: no limit."""
    return int(min(tokenizer.model_max_length, tokenizers.positions(config)))
