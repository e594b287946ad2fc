"""A prompt and its completion, as texts or as a chat: tokens of which the completion is learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from forge.data import cache
from forge.data.fingerprints import fingerprint
from forge.errors import UserError
from forge.inputs.input import IGNORED, Collator, Columns
from forge.inputs.text import Collator as Padded
from forge.inputs.text import Tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


Ids: TypeAlias = list[int]
Message: TypeAlias = dict[str, str]  # role and content


@dataclass(kw_only=True)
class Prompt(Tokens):
    """`prompt` and `completion` name columns of texts, or `messages` one of chats, whose last
    message is the completion."""

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str | None = None
    template: str = "{prompt}"  # what the model reads of a prompt
    chat: bool = False  # prompt and completion as a user's and an assistant's message
    padding_free: bool | None = None  # batches of one sequence; None: where attention is flash

    def __post_init__(self) -> None:
        self.columns = [self.messages] if self.messages else [self.prompt, self.completion]
        self.kept = ["prompt", "completion"]
        if "{prompt}" not in self.template:
            raise UserError(f"task.template={self.template}: it has no {{prompt}}")

    def rows(self, columns: Columns, split: str) -> dict[str, list[Any]]:
        """A prompt is a text, or a chat's messages; a completion is a text."""
        pairs: list[tuple[Any, str]]
        if self.messages:
            where = f"split {split}, column {self.messages}"
            chats = columns[self.messages]
            pairs = [_turns(chat, f"{where}: row {i}") for i, chat in enumerate(chats)]
        else:
            texts = zip(columns[self.prompt], columns[self.completion], strict=True)
            pairs = [self._pair(*row, f"split {split}: row {i}") for i, row in enumerate(texts)]
        prompts, completions = map(list, zip(*pairs, strict=True))
        return {"prompt": prompts, "completion": completions}

    def _pair(self, prompt: Any, completion: Any, where: str) -> tuple[str | list[Message], str]:
        for name, text in ((self.prompt, prompt), (self.completion, completion)):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}, column {name}: no text; fill or remove it")
        text = self.template.replace("{prompt}", prompt)
        return ([{"role": "user", "content": text}] if self.chat else text), completion

    def texts(self, rows: Dataset) -> Iterator[str]:
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
            yield from [prompt] if isinstance(prompt, str) else (m["content"] for m in prompt)
            yield completion

    def make_ready(self, processor: PreTrainedTokenizerBase) -> None:
        """Set what batches and ends of texts need; raises `UserError` for a tokenizer without."""
        if processor.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token; choose another model")
        if (self.messages or self.chat) and not processor.chat_template:
            raise UserError(
                "the tokenizer has no chat template; choose a chat model, or texts: "
                "task.messages=null task.chat=false"
            )
        processor.pad_token = processor.pad_token or processor.eos_token
        processor.padding_side = processor.truncation_side = "right"

    def tokens(
        self, prompts: list[Any], completions: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[Ids, Ids]]:
        """The tokens of each prompt, and those of its completion with its end."""
        if not isinstance(prompts[0], str):
            yield from (_encode_chat(*p, tokenizer) for p in zip(prompts, completions, strict=True))
            return
        begin, plain = tokenizer.bos_token, {"add_special_tokens": False, "verbose": False}
        if begin and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:  # of itself
            prompts = [begin + prompt.removeprefix(begin) for prompt in prompts]
        read, written = (tokenizer(part, **plain)["input_ids"] for part in (prompts, completions))
        for prompt, completion in zip(read, written, strict=True):
            yield prompt, [*completion, tokenizer.eos_token_id]

    def features(
        self, rows: Columns, processor: PreTrainedTokenizerBase, limit: int
    ) -> dict[str, list[Any]]:
        """Also `labels` (tokens of the completion, else `IGNORED`) and `prompt_length`."""
        pairs = list(self.tokens(rows["prompt"], rows["completion"], processor))
        ids = [(read + written)[:limit] for read, written in pairs]
        labels = [[IGNORED] * len(read) + written for read, written in pairs]
        return {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": [row[:limit] for row in labels],
            "prompt_length": [len(read) for read, _ in pairs],
            "length": [len(row) for row in ids],
            "truncated": [len(row) > limit for row in labels],
        }

    def encode(
        self, rows: Dataset, processor: PreTrainedTokenizerBase, limit: int, cache_dir: Path
    ) -> Dataset:
        def encoded(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            return self.features(batch, processor, limit)

        tokens = [processor.eos_token, processor.bos_token, processor.chat_template]
        key = fingerprint(rows._fingerprint, self.identity(processor), tokens, limit)
        split = cache.stored(rows, encoded, ["prompt", "completion"], key, cache_dir)
        _check_lengths(split, limit)
        return split

    def difference(self, rows: Dataset, ours: Any, theirs: Any) -> str | None:
        prompts, completions = list(rows["prompt"]), list(rows["completion"])
        chat = not isinstance(prompts[0], str)
        if not chat or theirs.chat_template:
            mine, yours = (list(self.tokens(prompts, completions, t)) for t in (ours, theirs))
            if mine == yours:
                return None
        if theirs.eos_token != ours.eos_token:
            ends = f"{theirs.eos_token!r}, the student's {ours.eos_token!r}"
            return f"its end-of-text token is {ends}"
        return "its chat template is another" if chat else "its tokenizer splits them otherwise"

    def collator(
        self, processor: PreTrainedTokenizerBase, multiple: int | None, *extra: str
    ) -> Collator:
        from transformers import DataCollatorForSeq2Seq

        collator = Padded(processor, multiple, "id", *extra)
        collator.pad = DataCollatorForSeq2Seq(  # of labels too
            processor, pad_to_multiple_of=multiple, label_pad_token_id=IGNORED
        )
        return collator

    def shown(self, rows: Dataset | Columns) -> dict[str, list[str]]:
        return {}  # prompts and completions are beside the predictions

    def usage(self, limit: int) -> None:
        return None


class Flattened:
    """Batches of one sequence, the rows one after the other; positions restart with each row."""

    def __init__(self) -> None:
        from transformers import DataCollatorWithFlattening

        self.flatten = DataCollatorWithFlattening()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = self.flatten(rows)
        ids = {"id": torch.tensor([row["id"] for row in rows])} if "id" in rows[0] else {}
        return batch | ids


def _turns(chat: Any, where: str) -> tuple[list[dict[str, str]], str]:
    """A chat's prompt and the completion that its last message is."""
    try:
        turns = [{"role": str(m["role"]), "content": m["content"]} for m in chat]
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: not a list of messages with role and content") from error
    if not all(isinstance(m["content"], str) for m in turns):
        raise UserError(f"{where}: a message's content is not a text")
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise UserError(f"{where}: its last message must be the assistant's, after another one")
    return turns[:-1], turns[-1]["content"]


def _encode_chat(
    prompt: list[dict[str, str]], completion: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Ids, Ids]:
    """As the chat template writes them, the completion up to its end-of-text token."""
    from jinja2 import TemplateError

    def write(chat: list[dict[str, str]], asked: bool) -> Ids:
        try:
            ids = tokenizer.apply_chat_template(
                chat, add_generation_prompt=asked, return_dict=False
            )
        except TemplateError as error:
            raise UserError(
                f"chat [{', '.join(m['role'] for m in chat)}]: the model's template takes no such "
                f"one ({error})"
            ) from error
        return list(ids)

    end: Any = tokenizer.eos_token_id
    read = write(prompt, True)
    whole = write([*prompt, {"role": "assistant", "content": completion}], False)
    if whole[: len(read)] != read:
        raise UserError(
            "the chat template writes an answered prompt differently from an open one, so its "
            "completion cannot be told apart; choose another model, or prompt and completion texts"
        )
    written = whole[len(read) :]
    if end not in written:
        return read, [*written, end]
    return read, written[: len(written) - written[::-1].index(end)]  # often a line break follows


def _check_lengths(split: Dataset, max_length: int) -> None:
    """Raise `UserError` for prompts that leave no room for a completion, or that are empty."""
    lengths = np.array(split["prompt_length"])
    bad = np.flatnonzero((lengths >= max_length) | (lengths == 0))
    if not len(bad):
        return
    row, tokens = split["id"][int(bad[0])], lengths[bad[0]]
    others = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
    if not tokens:
        raise UserError(f"row {row}: its prompt has no token{others}; set task.template")
    raise UserError(
        f"row {row}: its prompt has {tokens} tokens, the limit for prompt and completion is "
        f"{max_length}{others}; raise task.max_length, or remove such rows"
    )
