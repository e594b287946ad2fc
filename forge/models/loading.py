"""From a path to a model and its tokenizer, with the head that the task asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forge import hub
from forge.config.schema import Model
from forge.errors import UserError, did_you_mean, one_line
from forge.models import lora, vocabularies
from forge.tasks.task import Task, TextTask

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from forge.models.heads import has_head, head_order, name_labels, names, permute_head, with_new_head
from forge.models.layers import shallower

log = logging.getLogger(__name__)


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
        raise UserError(f"{where}={path}: no such directory")
    return path


def load_tokenizer(
    model: Model, texts: Iterable[str], where: str = "model"
) -> PreTrainedTokenizerBase:
    """The tokenizer of `model`; without a path one trained on `texts`.

    That is WordPiece for an encoder, byte pairs for a decoder.
    """
    from transformers import AutoTokenizer

    if model.path is None and model.tokenizer is None:
        architecture = _architecture(model.config)()
        if _is_decoder(architecture):
            return vocabularies.byte_pairs(model.config, texts)
        two_texts = getattr(architecture, "type_vocab_size", 0) > 1
        return vocabularies.word_pieces(model.config, texts, two_texts)
    if model.tokenizer:
        path = resolve(model.tokenizer, f"{where}.tokenizer", "tokenizer_config.json")
    else:
        path = resolve(str(model.path), f"{where}.path")
    with hub.access("tokenizer", path, f"{where}.path=DIR"):
        return AutoTokenizer.from_pretrained(path, **_revision(model))


def _is_decoder(config: PretrainedConfig) -> bool:
    """Whether the architecture is made to go on with a text; BERT could, when it is told to."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(getattr(config, "is_decoder", False))
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def generates(name: str) -> bool:
    """Whether a class of that name has a head that predicts the next token."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith("ForCausalLM")


def max_length(
    asked: int | None, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> int:
    """Tokens per example: what the task asks for, or the model's limit."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    limit = min(tokenizer.model_max_length, positions)
    if asked is None:
        return limit if limit < 10**6 else 512
    if asked < 8:
        raise UserError(f"task.max_length={asked}: at least 8 tokens, special ones included")
    if asked > limit:
        raise UserError(
            f"task.max_length={asked}: the model reads at most {limit} tokens; "
            f"set task.max_length={limit} or less"
        )
    return asked


def load_config(
    model: Model, task: Task, tokenizer: PreTrainedTokenizerBase, where: str = "model"
) -> PretrainedConfig:
    """The architecture, with the task's labels; raises `UserError` when it is none."""
    from transformers import AutoConfig

    config: PretrainedConfig
    if model.path is None:
        sizes = {k: v for k, v in model.config.items() if k not in ("model_type", "vocab_size")}
        with _sizes():
            config = _architecture(model.config)(**sizes, vocab_size=len(tokenizer))
        config.pad_token_id = tokenizer.pad_token_id
        if tokenizer.eos_token_id is not None:
            config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, None
        _check_head(model, task, config, where)
        return config
    path = resolve(model.path, f"{where}.path")
    with hub.access("model", path, f"{where}.path=DIR"):
        config = AutoConfig.from_pretrained(path, **_revision(model))
    if len(tokenizer) > getattr(config, "vocab_size", len(tokenizer)):
        raise UserError(
            f"{where}.tokenizer={model.tokenizer}: it has {len(tokenizer)} tokens, the model "
            f"{config.vocab_size}; name the tokenizer that the model was trained with"
        )
    _check_head(model, task, config, where)
    return config


def _check_head(model: Model, task: Task, config: PretrainedConfig, where: str) -> None:
    """Raise `UserError` for a model that is to write and cannot."""
    if isinstance(task, TextTask):
        return
    name = model.path or config.model_type
    if model.new_head:
        raise UserError(f"{where}.new_head=true: a language model's head is its vocabulary")
    trained = model.path is not None and not model.from_scratch
    if not (any(map(generates, config.architectures or ())) if trained else _is_decoder(config)):
        raise UserError(
            f"{where} {name}: {', '.join(config.architectures or [config.model_type])} has no head "
            "that generates text; choose a causal language model, e.g. model=tiny_lm or "
            "model=smollm"
        )


def check_architecture(model: Model, task: Task, where: str = "model") -> None:
    """Raise `UserError` for a model without a path that is to write and cannot."""
    if model.path is None:
        _check_head(model, task, _architecture(model.config)(), where)


@contextmanager
def _sizes() -> Iterator[None]:
    """One line for sizes that do not fit each other."""
    try:
        yield
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(f"model.config: {one_line(str(error))[:300]}") from error


def _architecture(config: dict[str, Any]) -> Callable[..., PretrainedConfig]:
    """The configuration class of `config.model_type`."""
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
    found: Callable[..., PretrainedConfig] = CONFIG_MAPPING[kind]
    return found


def _revision(model: Model) -> dict[str, Any]:
    keys = ("revision", "trust_remote_code", "subfolder")
    return {k: v for k, v in model.from_pretrained.items() if k in keys}


def load(
    model: Model, task: Task, config: PretrainedConfig, where: str = "model"
) -> PreTrainedModel:
    """Weights in fp32 with a head for `task`, its labels in the task's order; `model.lora` on top.

    A head trained for the same label names in another order is permuted; one for other labels is
    refused unless `new_head` asks for a fresh one. What starts from random values is logged.
    """
    import transformers

    auto = getattr(transformers, f"AutoModelFor{task.head}")
    trained, order = has_head(config), None
    if isinstance(task, TextTask):
        keep = trained and model.path is not None and not (model.new_head or model.from_scratch)
        order = head_order(model, task, config, where) if keep else None
        name_labels(config, task)
    if model.path is None or model.from_scratch:
        if model.layers is not None and not model.init:
            raise UserError(
                f"{where}.layers={model.layers}: random weights have no layers to choose from; set "
                f"{where}.config.num_hidden_layers"
            )
        with _sizes():
            built: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
        log.info("weights: random (%s)", config.model_type)
        return built
    path = resolve(model.path, f"{where}.path")
    options = {"dtype": torch.float32, **model.from_pretrained}
    with hub.access("model", path, f"{where}.path=DIR"):
        if trained and model.new_head:
            built, fresh = with_new_head(auto, path, config, options)
        else:
            built, fresh = lora.from_pretrained(auto, path, config=config, **options)
    if fresh:
        log.info("new, from random values: %s", ", ".join(fresh))
    if order is not None and order != sorted(order):
        permute_head(built, order)
        log.info("head of %s: labels put into the task's order: %s", path, ", ".join(names(task)))
    if model.lora:
        adapted: PreTrainedModel = lora.adapt(built, model, path, task.head, fresh)
        return adapted
    return built if model.layers is None else shallower(built, model.layers, head=task.head)


def read(path: str, **options: Any) -> PreTrainedModel:
    """The model in a directory as it is, with its own head, ready to be asked."""
    import transformers

    config = options.get("config") or transformers.AutoConfig.from_pretrained(path)
    writes = any(map(generates, config.architectures or ()))
    head = "CausalLM" if writes else "SequenceClassification"
    auto = getattr(transformers, f"AutoModelFor{head}")
    model, _ = lora.from_pretrained(auto, path, **options)
    model.eval()
    return model


def student(
    model: Model, task: TextTask, tokenizer: PreTrainedTokenizerBase
) -> tuple[int | list[int] | None, PretrainedConfig | None]:
    """What `shallower` makes of a teacher for `model.init=teacher`: layers and architecture."""
    if model.init != "teacher":
        raise UserError(f"model.init={model.init}: teacher, or null for the weights at model.path")
    if model.path is None and not model.config:
        return model.layers, None
    config = load_config(model, task, tokenizer)
    name_labels(config, task)
    return (config.num_hidden_layers if model.layers is None else model.layers), config
