"""Distillation of language models, token by token, on the completions of the data.

At each token of a completion the losses of `forge.distillation.losses` compare the distributions of student and
teacher, which reads the same tokens beside it; prompts and padding teach nothing. Like the task
loss, theirs is the sum over tokens, divided by the tokens of the whole accumulation on all ranks.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from forge import ranks
from forge.data import cache, fingerprints
from forge.distillation import stored as distillation_stored
from forge.distillation import teacher
from forge.distillation.distiller import Distiller
from forge.distillation.losses import DIST, KL, Loss
from forge.distillation.objective import announce, require_loss
from forge.distillation.rows import answers
from forge.errors import UserError, needs
from forge.inputs import text
from forge.inputs.text import IGNORED
from forge.models import loading
from forge.records.files import read_json, write_json
from forge.results.runs import TIMINGS
from forge.tasks import decoding
from forge.training.preparation import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from forge.config.schema import Model
    from forge.distillation.stored import Expert
    from forge.training.trainer import Trainer

log = logging.getLogger(__name__)


def trainer(
    prepared: Prepared,
    alpha: float,
    loss: dict[str, Loss],
    gate: bool,
    top_k: int | None,
    common: dict[str, Any],
) -> Trainer:
    """A trainer of the blended loss; with `top_k` the teacher is run once, else in every step."""
    _check_losses(loss)
    temperature = _one_temperature(loss) if top_k else None
    expert = _expert(prepared)
    prepared.facts["teacher"] = measure(expert, prepared, gate)
    smoothing = common["args"].label_smoothing_factor
    announce(alpha, loss, smoothing, "vocabulary", "tokens of the completions")
    prepared.facts["trained_on"] = len(common["train_dataset"])  # rows
    device = prepared.args.device
    told = _likeliest(expert, prepared, top_k, temperature) if top_k and temperature else None
    expert.to("cpu" if told else device)

    def stored(inputs: dict[str, Any], watch: Any) -> SimpleNamespace:
        ids = distiller.last_ids.tolist()  # type: ignore[union-attr]  # set before
        rows = torch.cat([told[row] for row in ids])  # type: ignore[index]
        return SimpleNamespace(likeliest=rows.to(device), qkv={})

    def taught(inputs: dict[str, Any], watch: Any) -> SimpleNamespace:
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        batch["use_cache"] = False
        with distiller.accelerator.autocast():
            return answers(expert, batch, watch)

    set_seed(common["args"].seed)  # for the losses' projections, whatever came before
    for term in loss.values():
        term.bind(prepared.model.config, expert.model.config)
    common |= {"alpha": alpha, "losses": loss, "taught": stored if told else taught}
    distiller = TokenDistiller(vocabulary=expert.order, temperature=temperature, **common)
    return distiller


def on_policy(
    prepared: Prepared,
    alpha: float,
    loss: dict[str, Loss],
    gate: bool,
    top_k: int | None,
    settings: dict[str, float | None],
    common: dict[str, Any],
) -> Trainer:
    """A trainer on the completions that the student writes, through TRL."""
    _check_on_policy(prepared, alpha, loss, top_k)
    with needs("rl", "mode.on_policy=true"):
        from forge.distillation import on_policy as distillation_on_policy
    given = {name: value for name, value in settings.items() if value is not None}
    args = distillation_on_policy.arguments(prepared, **given)
    expert = _expert(prepared)
    distillation_on_policy.check_fit(expert, prepared)
    prepared.facts["teacher"] = measure(expert, prepared, gate)
    prepared.facts["trained_on"] = len(common["train_dataset"])  # rows
    log.info(
        "loss    generalised JSD of beta %g (0: forward KL, 1: reverse KL), temperature %g, to the "
        "teacher at each token that the student writes; no labels",
        args.beta,
        args.temperature,
    )
    expert.to(prepared.args.device)
    common |= {"args": args, "teacher": expert.model}
    return distillation_on_policy.LanguageDistillation(**common)


def _check_on_policy(
    prepared: Prepared, alpha: float, loss: dict[str, Loss], top_k: int | None
) -> None:
    """Raise `UserError` for what TRL's loss has no place for."""
    if alpha < 1:
        raise UserError(
            f"mode.alpha={alpha:g}: with mode.on_policy=true there are no labels to blend with; "
            "set mode.alpha=1"
        )
    set_by = ("weight", "temperature", "divergence", "skew")
    if any(
        not isinstance(term, KL) or any(getattr(term, k) != getattr(KL(), k) for k in set_by)
        for term in loss.values()
    ):
        raise UserError(
            f"mode/loss=[{','.join(loss)}]: with mode.on_policy=true it is mode.beta and "
            "mode.temperature that say how student and teacher are compared; leave mode/loss as "
            "it is"
        )
    if top_k:
        raise UserError(
            f"mode.top_k={top_k}: what the student will write cannot be asked beforehand; set "
            "mode.top_k=null, or mode.on_policy=false"
        )
    if prepared.args.label_smoothing_factor:
        raise UserError(
            "trainer.label_smoothing_factor: mode.on_policy=true has no cross-entropy to smooth"
        )


class TokenDistiller(Distiller):
    """Compares student and teacher at the tokens of the completions.

    `vocabulary` are the columns of logits that are tokens; a model may have more, of padding.
    `temperature` is that of the stored likeliest tokens.
    """

    def __init__(self, *, vocabulary: Any, temperature: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary, self.temperature = vocabulary, temperature
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs  # as the task loss is

    def _compared(self, outputs: Any, taught: Any, batch: Any, items: Any) -> tuple[Any, ...]:
        """The predicted tokens as rows, selected before any of them is turned into fp32."""
        labels = batch["labels"][:, 1:]  # what is said at a token is about the next one
        kept = labels != IGNORED

        def rows(seen: dict[str, Any]) -> dict[str, Any]:
            found = {"logits": seen["logits"][:, :-1, self.vocabulary][kept]}
            if layers := seen.get("hidden_states"):
                found["hidden_states"] = [layer[:, :-1][kept].unsqueeze(0) for layer in layers]
            return found

        labels, ours = labels[kept], rows(outputs)
        if self.temperature:
            tokens, theirs = taught.likeliest.chunk(2, 1)
            ours["logits"] = lumped(ours["logits"], tokens[:, :-1].long(), self.temperature)
            vars(taught)["logits"] = theirs
        else:
            vars(taught).update(rows(vars(taught)))
        mask = torch.ones_like(labels).unsqueeze(0)
        scale: Any = 1
        if items is not None:
            shared = self.args.average_tokens_across_devices  # then DDP's mean is taken back
            scale = len(labels) * (self.accelerator.num_processes if shared else 1) / items
        return ours, taught, {"labels": labels, "attention_mask": mask}, scale


def lumped(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Logits [N, V] as those [N, k + 1] of k named tokens and of any other, at a temperature.

    Their softmax at that temperature is exact: no mass is missing, and a divergence is at most the
    one over the whole vocabulary.
    """
    log_probs = (logits.float() / temperature).log_softmax(1)
    named = log_probs.gather(1, tokens)
    rest = log_probs.scatter(1, tokens, -math.inf).logsumexp(1, keepdim=True)
    return temperature * torch.cat([named, rest], 1)


def _one_temperature(loss: dict[str, Loss]) -> float:
    """That of all losses; raises `UserError` for those that need every logit."""
    found = {term.temperature for term in loss.values() if isinstance(term, KL)}
    if len(found) != 1 or not all(isinstance(term, KL) for term in loss.values()):
        raise UserError(
            f"mode.top_k, mode/loss=[{','.join(loss)}]: what is stored is for kl at one "
            "temperature; use mode/loss=kl, or mode.top_k=null"
        )
    return found.pop()


def _likeliest(expert: Expert, prepared: Prepared, k: int, temperature: float) -> dict[int, Tensor]:
    """By row id [tokens, 2k + 2]: the teacher's k likeliest tokens, -1, and their `lumped` logits.

    Asked once and stored; as one array of fp32, in which the numbers of tokens are exact.
    """
    args, split = prepared.args, prepared.splits[prepared.task.train]
    vocabulary: Any = expert.order
    if k > vocabulary.stop - 2:
        raise UserError(
            f"mode.top_k={k}: of {vocabulary.stop} tokens at most {vocabulary.stop - 2} leave a "
            "rest; lower it, or set mode.top_k=null"
        )
    key = fingerprints.fingerprint(
        expert.digest, split._fingerprint, k, temperature, args.bf16, args.fp16
    )
    path = cache.cache_directory(prepared.config.cache_dir) / "teacher" / f"{key}.safetensors"
    sizes = [sum(label != IGNORED for label in labels) for labels in split["labels"]]
    ids = [row for row, size in zip(split["id"], sizes, strict=True) for _ in range(size)]
    named = f"{len(split):,} {prepared.task.train} rows"
    packed = distillation_stored.read(path, ids, named)
    if ranks.all_reduce_max(int(packed is None), args.device):  # then all ranks ask, each its share
        log.info("teacher: asked about %s, once", named)

        def of(seen: Tensor, labels: Tensor) -> Tensor:
            seen = seen[:, vocabulary]
            tokens = seen.topk(k).indices
            ends = torch.full_like(tokens[:, :1], -1)
            return torch.cat([tokens, ends, lumped(seen, tokens, temperature)], 1).cpu()

        expert.to(args.device)
        asked: Any = SimpleNamespace(
            model=expert.model, processing_class=prepared.tokenizer, args=args
        )
        packed = np.concatenate(decoding.of_completions(asked, split, of, Tensor.numpy))
        if not ranks.rank():
            path.parent.mkdir(parents=True, exist_ok=True)
            distillation_stored.write(path, ids, packed)
    rows = torch.split(torch.from_numpy(packed), sizes)
    return dict(zip(split["id"], rows, strict=True))


def _check_losses(loss: dict[str, Loss]) -> None:
    """Raise `UserError` for losses that are no mean over tokens."""
    require_loss(loss)
    for name, term in loss.items():
        if "qkv" in term.needs:
            raise UserError(
                f"mode/loss={name}: its relations are those of an encoder, which reads both ways; "
                "use kl or hidden for a language model"
            )
        if isinstance(term, DIST) and term.gamma:
            raise UserError(
                f"mode/loss={name}: its correlation over the batch changes with how the tokens are "
                f"cut into batches; set mode.loss.{name}.gamma=0, or use kl"
            )


def _expert(prepared: Prepared) -> Expert:
    """The teacher, which must read texts as the student does."""
    config, task = prepared.config, prepared.task
    if (count := len(config.teacher.models())) > 1:
        raise UserError(f"teacher.path: {count} teachers are named; a language model takes one")
    (model,) = teacher.settle(config, task, prepared.rows, prepared.recorded)
    tokenizer = loading.load_tokenizer(model, (), "teacher")
    _check_vocabulary(model, tokenizer, prepared)
    _check_reading(model, tokenizer, prepared)
    expert = teacher.load(model, prepared)
    longest = max(max(split["length"]) for split in prepared.splits.values())
    if longest > (limit := getattr(expert.model.config, "max_position_embeddings", longest)):
        raise UserError(
            f"teacher {expert.name}: it reads at most {limit} tokens, the longest row has "
            f"{longest}; set task.max_length={limit}"
        )
    return expert


def _way_out(model: Model, prepared: Prepared) -> str:
    student = prepared.config.model
    if student.path is None or student.from_scratch:
        return f"give the student the teacher's tokenizer with model.tokenizer={model.path}"
    return "choose a teacher of the student's family, or a student of the teacher's"


def _check_vocabulary(model: Model, tokenizer: PreTrainedTokenizerBase, prepared: Prepared) -> None:
    """Raise `UserError` unless every token has the same number in both vocabularies.

    The number of rows of the models' embeddings does not matter: some are there for speed.
    """
    ours, theirs = prepared.tokenizer.get_vocab(), tokenizer.get_vocab()
    apart = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if not apart:
        return
    numbers = {t: [n for n in (ours.get(t), theirs.get(t)) if n is not None] for t in apart}
    first = sorted(apart, key=lambda token: (min(numbers[token]), token))[:3]
    told = "; ".join(
        f"{t!r} is {ours.get(t, 'absent')} here, {theirs.get(t, 'absent')} there" for t in first
    )
    raise UserError(
        f"teacher {model.path}: {len(apart):,} tokens of its vocabulary ({len(theirs):,}) and the "
        f"student's ({len(ours):,}) differ ({told}); {_way_out(model, prepared)}"
    )


def _check_reading(model: Model, tokenizer: PreTrainedTokenizerBase, prepared: Prepared) -> None:
    """Raise `UserError` where a few rows are other tokens to the teacher's tokenizer."""
    task = prepared.task
    rows = prepared.rows[task.train].select(range(min(16, len(prepared.rows[task.train]))))
    texts = list(rows["prompt"]), list(rows["completion"])
    chat = not isinstance(rows["prompt"][0], str)
    if not chat or tokenizer.chat_template:
        ours, theirs = (list(task.encode(*texts, t)) for t in (prepared.tokenizer, tokenizer))
        if ours == theirs:
            return
    what = f"its end-of-text token is {tokenizer.eos_token!r}, the student's "
    what += f"{prepared.tokenizer.eos_token!r}"
    if tokenizer.eos_token == prepared.tokenizer.eos_token:
        what = "its chat template is another" if chat else "its tokenizer splits them otherwise"
    path = model.tokenizer or model.path
    raise UserError(
        f"teacher {model.path}: it reads the task's texts as other tokens ({what}); let the "
        f"student read as it does with model.tokenizer={path}"
    )


def measure(expert: Expert, prepared: Prepared, gate: bool) -> dict[str, Any]:
    """Scores of the teacher on the evaluation splits, beside what is trivial.

    That is giving always the commonest answer; for the perplexity, knowing how often each token
    occurs and nothing else. With `gate` raises `UserError` for a teacher that is no better.
    """
    task, first = prepared.task, prepared.task.evaluation[0]
    scores: dict[str, dict[str, Any]] = {}
    for split in task.evaluation:
        scores[split], prepared.taught[split] = _examined(expert, prepared, split)
    value, baseline = scores[first][task.headline], trivial(prepared, first)
    told = f"teacher {expert.name}: {task.headline} {value:.4f} on {first}"
    log.info("%s (trivial: %.4f)", told, baseline)
    if gate and not (value > baseline if task.greater_is_better else value < baseline):
        raise UserError(
            f"{told} is no better than the trivial {baseline:.4f}; name a trained one with "
            "teacher.path=, judge it by task.headline=perplexity, or go on with mode.gate=off"
        )
    return {"paths": [expert.name], "splits": scores, "baseline": baseline}


def trivial(prepared: Prepared, split: str) -> float:
    """The headline of the commonest answer, or of the tokens' frequencies."""
    rows = prepared.splits[split]
    if prepared.task.headline != "perplexity":
        return Counter(rows["label"]).most_common(1)[0][1] / len(rows)
    counts = Counter(t for labels in rows["labels"] for t in labels if t != IGNORED).values()
    total = sum(counts)
    return math.exp(-sum(n / total * math.log(n / total) for n in counts))


def _examined(
    expert: Expert, prepared: Prepared, split: str
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the task finds of the teacher on a split; generated once, and stored for other runs."""
    args, config, facts = prepared.args, prepared.config, prepared.facts
    texts = [facts["data"][split]["fingerprint"], facts["max_length"]]
    how = [config.task, args.bf16, args.fp16, args.seed if prepared.task.pass_at else None]
    key = fingerprints.fingerprint(expert.digest, text.identity(expert.tokenizer), texts, how)
    path = cache.cache_directory(config.cache_dir) / "teacher" / f"{key}.json"
    found = ranks.broadcast(lambda: _read(path))
    if not found:
        log.info("teacher: examined on %s, once", split)
        expert.to(args.device)
        asked = SimpleNamespace(model=expert.model, processing_class=prepared.tokenizer, args=args)
        rows = prepared.splits[split]
        scores, columns = prepared.task.examine(asked, rows)
        scores = {name: value for name, value in scores.items() if name not in TIMINGS}
        found = {"scores": scores, "columns": {"id": list(rows["id"]), **columns}}
        if not ranks.rank():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
    return found["scores"], found["columns"]


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError:
        log.warning("%s: damaged; the teacher is examined again", path)
        return {}
