"""Distillation of language models, token by token, on the completions of the data.

At each token of a completion the losses of `forge.distillation.losses` compare the distributions
of student and teacher, which reads the same tokens beside it; prompts and padding teach nothing.
Like the task loss, theirs is the sum over tokens, divided by the tokens of the whole accumulation
on all ranks.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from forge import ranks
from forge.data import cache, fingerprints
from forge.distillation import stored, teacher
from forge.distillation.distiller import Distiller, Watch
from forge.distillation.losses import DIST, KL, Batch, Loss, Outputs
from forge.distillation.objective import announce
from forge.distillation.rows import outputs
from forge.distillation.teacher import Measured
from forge.errors import UserError
from forge.inputs.input import IGNORED
from forge.records.files import TIMINGS, Json, read_json, write_json
from forge.tasks.decoding import Reader, of_completions
from forge.tasks.objective import describe
from forge.training.gate import require_better
from forge.training.trainer import Ready

if TYPE_CHECKING:
    from forge.config.schema import Model
    from forge.distillation.teacher import FrozenTeacher
    from forge.inputs.input import Processor
    from forge.tasks.answer import Predictions, Scores
    from forge.tasks.decisions import Decisions
    from forge.training.preparation import Prepared

log = logging.getLogger(__name__)


def ready(
    prepared: Prepared, alpha: float, loss: dict[str, Loss], gate: bool, top_k: int | None
) -> Ready:
    """A trainer of the blended loss; with `top_k` the teacher is run once, else in every step."""
    temperature = _one_temperature(loss) if top_k else None
    frozen = load(prepared)
    measured = measure(frozen, prepared, gate)
    args, train = prepared.args, prepared.splits[prepared.task.train]
    announce(
        alpha,
        loss,
        describe(prepared.objective, prepared.task.answer),
        "vocabulary",
        "tokens of the completions",
    )
    likeliest = None
    if top_k and temperature:
        likeliest = _likeliest(frozen, prepared, top_k, temperature)
    frozen.to("cpu" if likeliest else args.device)

    def read(inputs: Batch, watch: Watch) -> Outputs:
        if likeliest:
            assert distiller.last_ids is not None
            stored_rows = [likeliest[row] for row in distiller.last_ids.tolist()]
            return Outputs(torch.cat(stored_rows).to(args.device))
        with distiller.accelerator.autocast():
            return outputs(prepared.task, frozen, inputs, watch, use_cache=False)

    set_seed(args.seed)  # for the losses' projections, whatever came before
    for term in loss.values():
        term.bind(prepared.model.config, frozen.model.config)
    distiller = TokenDistiller(
        vocabulary=frozen.vocabulary,
        temperature=temperature,
        alpha=alpha,
        losses=loss,
        teacher=read,
        **prepared.trainer_arguments(),
    )
    metadata = {"teacher": measured.record, "trained_on": len(train)}  # rows
    return Ready(distiller, metadata, {}, measured.predictions)


class TokenDistiller(Distiller):
    """Compares student and teacher at the tokens of the completions.

    `vocabulary` are the columns of logits that are tokens; a model may have more, of padding.
    `temperature` is that of the stored likeliest tokens, None where the teacher is run.
    """

    def __init__(
        self, *, vocabulary: slice, temperature: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.vocabulary, self.temperature = vocabulary, temperature

    def compared(
        self, ours: Outputs, theirs: Outputs, decisions: Decisions, inputs: Batch
    ) -> tuple[Outputs, Outputs, Batch]:
        """The predicted tokens as rows, selected before any of them is turned into fp32."""
        asked, labels = decisions.asked, decisions.packed().labels
        assert asked is not None and labels is not None

        def rows(seen: Outputs) -> Outputs:
            layers = [layer[asked].unsqueeze(0) for layer in seen.hidden_states]
            return Outputs(seen.logits[..., self.vocabulary][asked], layers)

        ours = rows(ours)
        if self.temperature:  # of the teacher [K, 2k + 2]: tokens, and their logits
            tokens, logits = theirs.logits.chunk(2, 1)
            ours.logits = lumped(ours.logits, tokens[:, :-1].long(), self.temperature)
            theirs = Outputs(logits)
        else:
            theirs = rows(theirs)
        mask = torch.ones_like(labels).unsqueeze(0)
        return ours, theirs, {"labels": labels, "attention_mask": mask}


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
    temperatures = {term.temperature for term in loss.values() if isinstance(term, KL)}
    if len(temperatures) != 1 or not all(isinstance(term, KL) for term in loss.values()):
        raise UserError(
            f"mode.top_k, mode/loss=[{','.join(loss)}]: what is stored is for kl at one "
            "temperature; use mode/loss=kl, or mode.top_k=null"
        )
    return temperatures.pop()


def _likeliest(
    frozen: FrozenTeacher, prepared: Prepared, k: int, temperature: float
) -> dict[int, Tensor]:
    """By row id [tokens, 2k + 2]: the teacher's k likeliest tokens, -1, and their `lumped` logits.

    Asked once and stored; as one array of fp32, in which the numbers of tokens are exact.
    """
    args, split = prepared.args, prepared.splits[prepared.task.train]
    vocabulary = frozen.vocabulary
    if k > vocabulary.stop - 2:
        raise UserError(
            f"mode.top_k={k}: of {vocabulary.stop} tokens at most {vocabulary.stop - 2} leave a "
            "rest; lower it, or set mode.top_k=null"
        )
    key = fingerprints.fingerprint(
        frozen.digest, split._fingerprint, k, temperature, args.bf16, args.fp16
    )
    path = cache.cache_directory(prepared.config.cache_dir) / "teacher" / f"{key}.safetensors"
    sizes = [sum(label != IGNORED for label in labels) for labels in split["labels"]]
    ids = [row for row, size in zip(split["id"], sizes, strict=True) for _ in range(size)]
    named = f"{len(split):,} {prepared.task.train} rows"
    packed = stored.read(path, ids, named)
    if ranks.all_reduce_max(int(packed is None), args.device):  # then all ranks ask, each its share
        log.info("teacher: asked about %s, once", named)

        def of(seen: Tensor, labels: Tensor) -> Tensor:
            seen = seen[:, vocabulary]
            tokens = seen.topk(k).indices
            ends = torch.full_like(tokens[:, :1], -1)
            return torch.cat([tokens, ends, lumped(seen, tokens, temperature)], 1).cpu()

        frozen.to(args.device)
        reader = Reader.by(frozen.model, prepared.processor, args)
        packed = np.concatenate(of_completions(reader, split, of, Tensor.numpy))
        if not ranks.rank():
            path.parent.mkdir(parents=True, exist_ok=True)
            stored.write(path, ids, packed)
    assert packed is not None
    rows = torch.split(torch.from_numpy(packed), sizes)
    return dict(zip(split["id"], rows, strict=True))


def check(loss: dict[str, Loss], top_k: int | None) -> None:
    """Raise `UserError` for losses that are no mean over tokens, or cannot be stored."""
    if top_k:
        _one_temperature(loss)
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


def load(prepared: Prepared) -> FrozenTeacher:
    """The one teacher; raises `UserError` unless it reads texts as the student does."""
    task = prepared.task
    (model,) = prepared.teachers  # `finding.check`
    rows = prepared.rows[task.train].select(range(min(16, len(prepared.rows[task.train]))))
    tokenizer = task.input.load_processor(model, rows, "teacher")
    _check_vocabulary(model, tokenizer, prepared)
    if difference := task.input.difference(rows, prepared.processor, tokenizer):
        raise UserError(
            f"teacher {model.path}: it reads the task's texts as other tokens ({difference}); let "
            f"the student read as it does with model.tokenizer={model.tokenizer or model.path}"
        )
    frozen = teacher.load(model, prepared)
    longest = max(max(split["length"]) for split in prepared.splits.values())
    if longest > (limit := getattr(frozen.model.config, "max_position_embeddings", longest)):
        raise UserError(
            f"teacher {frozen.name}: it reads at most {limit} tokens, the longest row has "
            f"{longest}; set task.max_length={limit}"
        )
    return frozen


def _way_out(model: Model, prepared: Prepared) -> str:
    student = prepared.config.model
    if student.path is None or student.from_scratch:
        return f"give the student the teacher's tokenizer with model.tokenizer={model.path}"
    return "choose a teacher of the student's family, or a student of the teacher's"


def _check_vocabulary(model: Model, tokenizer: Processor, prepared: Prepared) -> None:
    """Raise `UserError` unless every token has the same number in both vocabularies.

    The number of rows of the models' embeddings does not matter: some are there for speed.
    """
    ours, theirs = prepared.processor.get_vocab(), tokenizer.get_vocab()
    apart = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if not apart:
        return
    numbers = {t: [n for n in (ours.get(t), theirs.get(t)) if n is not None] for t in apart}
    first = sorted(apart, key=lambda token: (min(numbers[token]), token))[:3]
    examples = "; ".join(
        f"{t!r} is {ours.get(t, 'absent')} here, {theirs.get(t, 'absent')} there" for t in first
    )
    raise UserError(
        f"teacher {model.path}: {len(apart):,} tokens of its vocabulary ({len(theirs):,}) and the "
        f"student's ({len(ours):,}) differ ({examples}); {_way_out(model, prepared)}"
    )


def measure(frozen: FrozenTeacher, prepared: Prepared, gate: bool) -> Measured:
    """Scores of the teacher on the evaluation splits, beside the trivial one.

    With `gate` raises `UserError` for a teacher that is no better on the first split.
    """
    task, first = prepared.task, prepared.task.evaluation[0]
    scores: dict[str, Scores] = {}
    predictions: dict[str, Predictions] = {}
    for split in task.evaluation:
        scores[split], predictions[split] = _evaluated(frozen, prepared, split)
    baseline = task.baseline(prepared.rows[first], prepared.splits[first])
    require_better(task, frozen.name, scores[first][task.headline], baseline, first, gate)
    record = {"paths": [frozen.name], "splits": scores, "baseline": baseline}
    return Measured(record, predictions)


def _evaluated(frozen: FrozenTeacher, prepared: Prepared, split: str) -> tuple[Scores, Predictions]:
    """Scores and answers of the teacher on a split; generated once, and stored for other runs."""
    args, config, written = prepared.args, prepared.config, prepared.task.written
    texts = [prepared.data[split].fingerprint, prepared.limit]
    how = [config.task, args.bf16, args.fp16, args.seed if written.pass_at else None]
    key = fingerprints.fingerprint(
        frozen.digest, prepared.task.input.identity(frozen.processor), texts, how
    )
    path = cache.cache_directory(config.cache_dir) / "teacher" / f"{key}.json"
    rows = prepared.splits[split]
    evaluated = ranks.broadcast(lambda: _read(path, list(rows["id"])))
    if not evaluated:
        log.info("teacher: examined on %s, once", split)
        frozen.to(args.device)
        evaluation = written.evaluation(Reader.by(frozen.model, prepared.processor, args), rows)
        scores = {name: v for name, v in evaluation.scores.items() if name not in TIMINGS}
        evaluated = {
            "scores": scores,
            "columns": {"id": list(rows["id"]), **evaluation.predictions},
        }
        if not ranks.rank():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, evaluated)
    return evaluated["scores"], evaluated["columns"]


def _read(path: Path, ids: list[int]) -> Json:
    """What was stored of rows with these ids; empty where there is nothing, or not all of it."""
    try:
        evaluated = read_json(path)
        if not evaluated or (evaluated["scores"] and evaluated["columns"]["id"] == ids):
            return evaluated
    except (ValueError, KeyError, TypeError):
        pass
    log.warning("%s: damaged; the teacher is examined again", path)
    return {}
