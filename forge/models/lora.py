"""LoRA (Hu et al. 2021) through PEFT: a small adapter is trained beside weights that stay frozen.

A directory with an adapter holds that, the config and the tokenizer; its base stays where it was.
Whoever reads one gets the merged model: every other module sees whole models only.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from forge import hub
from forge.config.schema import Model, Node
from forge.data import fingerprints
from forge.errors import UserError, did_you_mean, one_line
from forge.records import checkpoints
from forge.records.files import read_json

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

log = logging.getLogger(__name__)
FILE = "adapter_config.json"
BY_FORGE = {"task_type", "peft_type", "base_model_name_or_path", "revision", "inference_mode"}
RANGES = {"r": (1, 2**16), "lora_alpha": (0, 2**16), "lora_dropout": (0, 0.99)}


def check(model: Model, where: str) -> None:
    """Raise `UserError` for an adapter whose settings do not fit, or a model without a base."""
    if not model.lora:
        return
    if not find_spec("peft"):
        raise UserError(f"{where}.lora: peft is not installed; pip install 'forge[lora]'")
    for key in BY_FORGE & model.lora.keys():
        raise UserError(f"{where}.lora.{key}: set by Forge; leave it out")
    for key, (low, high) in RANGES.items():
        value = model.lora.get(key, low)
        if isinstance(value, int | float) and not low <= value <= high:
            raise UserError(f"{where}.lora.{key}={value}: from {low} to {high}")
    if (start := model.lora.get("init_lora_weights", True)) not in (True, "gaussian"):
        raise UserError(
            f"{where}.lora.init_lora_weights={start}: an adapter has to start as no change of its "
            "base; true or gaussian"
        )
    if made := _made_anew(model):
        raise UserError(
            f"{where}.lora: an adapter's base has to be at {where}.path as it is, and {made} makes "
            f"other weights; make them a run of their own, without {where}.lora (with "
            f"trainer.num_train_epochs=0 they stay untrained), and name that in {where}.path"
        )


def _made_anew(model: Model) -> str | None:
    """The setting by which the base's weights are not those at `model.path`."""
    places = ("subfolder", "variant")
    settings = {
        "path=null": model.path is None,
        "from_scratch=true": model.from_scratch,
        f"init={model.init}": model.init,
        f"layers={model.layers}": model.layers is not None,
        **{f"from_pretrained.{key}": key in model.from_pretrained for key in places},
    }
    return next((name for name, chosen in settings.items() if chosen), None)


def adapt(
    base: PreTrainedModel,
    model: Model,
    path: str,
    heads: Collection[str],
    peft_type: str | None,
    fresh: Iterable[str],
) -> PreTrainedModel:
    """A `PeftModel`: `base`, which is at `path`, frozen under an adapter that changes nothing yet.

    The modules `heads` train in full, and so do those of weights that are `fresh`, from random
    values. Raises `UserError` for settings that do not fit the model.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    if model.new_head and is_adapter(path):
        raise UserError(
            f"model.new_head=true: {path} is an adapter, and another on top has its labels; merge "
            "it first with python -m forge export RUN --merged, and name RUN/merged in model.path"
        )
    settings: Node = {"target_modules": None} | (model.lora or {})
    if settings["target_modules"] is None and base.config.model_type not in KNOWN:
        settings["target_modules"] = "all-linear"
    _check_names(base, settings)
    whole = [*(settings.get("modules_to_save") or ()), *heads, *_owners(fresh, heads)]
    settings["modules_to_save"] = list(dict.fromkeys(whole)) or None
    try:
        with replaced_names():
            adapted = get_peft_model(base, LoraConfig(task_type=peft_type, **settings))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise UserError(f"model.lora: {one_line(str(error))[:300]}") from error
    own = adapter(adapted)
    place = Path(path)
    own.base_model_name_or_path = str(place.absolute()) if place.is_dir() else path
    own.revision = getattr(base.config, "_commit_hash", None)
    base.config.architectures = [type(base).__name__]
    base.config.base_digest = _digest(path)
    return adapted  # type: ignore[return-value]  # it has what its base has


def _check_names(base: PreTrainedModel, settings: Node) -> None:
    """Raise `UserError` for a listed module that the model lacks; PEFT leaves it out unsaid."""
    known = [f".{name}" for name, _ in base.named_modules()]
    for key in ("target_modules", "modules_to_save"):
        listed = settings.get(key)
        for name in listed if isinstance(listed, list) else ():
            if not any(module.endswith(f".{name}") for module in known):
                parts = dict.fromkeys(module.rpartition(".")[2] for module in known)
                raise UserError(
                    f"model.lora.{key}: the model has no module {name}"
                    f"{did_you_mean(name, [p for p in parts if p and not p.isdecimal()])}"
                )


def _owners(fresh: Iterable[str], heads: Collection[str]) -> list[str]:
    """The modules of new weights that are not in `heads`."""
    owners = {name.rpartition(".")[0] for name in fresh if name.split(".")[0] not in heads}
    return sorted(owners - {""})


@contextmanager
def replaced_names() -> Iterator[None]:
    """PEFT 0.21 and TRL 1.16 use a name that transformers 5.23 has replaced.

    PEFT's advice about tied weights is for merging, which unties them here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        yield


def is_adapted(model: nn.Module) -> TypeGuard[PeftModel]:
    """Whether a model is a `PeftModel`."""
    return hasattr(model, "peft_config")


def adapter(model: PeftModel) -> LoraConfig:
    """The settings of a model's adapter."""
    return cast("LoraConfig", model.peft_config["default"])


def check_reinforced(model: PreTrainedModel, beta: float) -> None:
    """Raise `UserError` for an adapter that mode=rl cannot train, or switch off at `beta` > 0."""
    if not is_adapted(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    if beta and (bias := adapter(model).bias) != "none":
        raise UserError(
            f"model.lora.bias={bias}: biases stay changed when the adapter is switched off to ask "
            "the start; set model.lora.bias=none or mode.beta=0"
        )
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            "model.lora.target_modules: mode=rl reads the head's weights by themselves, so an "
            "adapter on it would not train; leave it out"
        )


def short(targets: str | Collection[str] | None) -> str:
    """Names of modules without their places; all linear layers are many."""
    if isinstance(targets, str):
        return targets
    return ", ".join(sorted({name.rpartition(".")[2] for name in targets or ()}))


def describe(model: PeftModel) -> str:
    """What is trained of an adapted model."""
    own = adapter(model)
    parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    full = sorted(parts & {name.rpartition(".")[2] for name in own.modules_to_save or ()})
    return f"LoRA r={own.r} on {short(own.target_modules)}" + (
        f"; in full: {', '.join(full)}" if full else ""
    )


def save(model: PeftModel, folder: str) -> None:
    """The adapter and what is needed to read it."""
    model.save_pretrained(folder, save_embedding_layers=False)  # else it asks the Hub, each time
    model.config.save_pretrained(folder)
    Path(folder, "README.md").unlink(missing_ok=True)  # an empty form; Forge writes a card


def require_same_base(model: PreTrainedModel, checkpoint: Path) -> None:
    """Raise `UserError` for a checkpoint whose adapter was trained beside other weights."""
    if not is_adapted(model):
        return
    before = read_json(checkpoint / "config.json").get("base_digest")
    if before != getattr(model.config, "base_digest", None):
        raise UserError(
            f"{checkpoint.name}: the base of its adapter, "
            f"{adapter(model).base_model_name_or_path}, has other weights now; "
            "bring those back, or leave hydra.run.dir out for a new directory"
        )


def is_adapter(path: str | Path) -> bool:
    """Whether a local directory holds an adapter, and no whole model."""
    return Path(path, FILE).is_file()


def from_pretrained(
    auto: type[_BaseAutoModelClass], path: str, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The model at `path`, an adapter merged into its base, and the names of weights it lacks.

    Raises `UserError` for a base that is gone or another one now.
    """
    if not is_adapter(path):
        built, info = auto.from_pretrained(path, output_loading_info=True, **options)
        return built, sorted(info["missing_keys"])
    if not find_spec("peft"):
        raise UserError(f"{path}: an adapter, and peft is not installed; pip install 'forge[lora]'")
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig

    own = PeftConfig.from_pretrained(path)
    trust = options.get("trust_remote_code", False)
    config = options.get("config") or AutoConfig.from_pretrained(path, trust_remote_code=trust)
    config = deepcopy(config)
    settings = {**options, "config": config, "revision": own.revision}
    base = own.base_model_name_or_path
    _check_base(path, base, read_json(Path(path, "config.json")).get("base_digest"))
    settings["ignore_mismatched_sizes"] = True  # the base may have another head, or none
    with hub.access("base model", base, "model.path=DIR"):
        of_base = AutoConfig.from_pretrained(base, revision=own.revision, trust_remote_code=trust)
        if hasattr(of_base, "tie_word_embeddings"):  # pictures have none
            config.tie_word_embeddings = of_base.tie_word_embeddings
        built, _ = from_pretrained(auto, base, **settings)
    with replaced_names(), hub.access("adapter", path, "model.path=DIR"):
        adapted = PeftModel.from_pretrained(built, path)
        if shared := _untie(adapted):
            log.info("%s: %s shared weights; merged, each has its own", path, ", ".join(shared))
        merged: PreTrainedModel = adapted.merge_and_unload()
    for trace in ("peft_config", "base_digest"):
        vars(merged).pop(trace, None), vars(merged.config).pop(trace, None)
    merged.config._name_or_path = merged.name_or_path = path
    return merged.requires_grad_(True), []


def _untie(adapted: PeftModel) -> list[str]:
    """Give modules that the adapter changes weights of their own; names of those that shared.

    Merged into a matrix that another module shares, an adapter would change that one too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from torch import nn

    base: PreTrainedModel = adapted.get_base_model()  # type: ignore[assignment]  # any module to PEFT
    users = Counter(id(p) for m in base.modules() for p in m.parameters(recurse=False))
    shared = []
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            changed = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            changed = module.original_module
        else:
            continue
        weight = getattr(changed, "weight", None)
        if weight is not None and users[id(weight)] > 1:
            changed.weight = nn.Parameter(weight.detach().clone())
            shared.append(name.rpartition(".")[2])
    if shared:
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
        base.all_tied_weights_keys = {}
    return shared


def _check_base(path: str, base: str, digest: str | None) -> None:
    """Raise `UserError` unless a local base is there as it was."""
    if not Path(base).is_absolute():
        return  # on the Hub, by its commit
    if not Path(base, "config.json").is_file():
        problem = "is gone"
    elif _digest(base) != digest:
        problem = "has other weights now"
    else:
        return
    raise UserError(
        f"{path}: the base of its adapter, {base}, {problem}; write where that is into "
        f"base_model_name_or_path of {FILE} there"
    )


def _digest(path: str) -> str | None:
    """A hash of the weights in a local directory; None for a name on the Hub."""
    files = [f for end in ("safetensors", "bin") for f in Path(path).glob(f"*model*.{end}")]
    hashes = [(file.name, checkpoints.digest(file)) for file in sorted(files)]
    return fingerprints.fingerprint(hashes) if hashes else None
