"""A prompt and its completion, as texts or as a chat: tokens of which the completion is learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.data import cache
from forge.data.fingerprints import fingerprint
from forge.data.sources import Columns, Row
from forge.errors import UserError
from forge.inputs import chat
from forge.inputs.chat import Chat, Ids, Message, Tools
from forge.inputs.input import IGNORED, Collator
from forge.inputs.text import Collator as Padded
from forge.inputs.text import Tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(kw_only=True)
class Prompt(Tokens):
    """`prompt` and `completion` name columns of texts, or `messages` one of chats, whose last
    message is the completion, with the tools that it calls; those that it may call are in the
    data's column `tools`."""

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str | None = None
    template: str = "{prompt}"  # what the model reads of a prompt
    chat: bool = False  # prompt and completion as a user's and an assistant's message
    padding_free: bool | None = None  # batches of one sequence; None: where attention is flash

    def __post_init__(self) -> None:
        self.columns = [self.messages] if self.messages else [self.prompt, self.completion]
        self.optional = ["tools"] if self.messages else []
        self.kept = ["prompt", "completion"]
        if "{prompt}" not in self.template:
            raise UserError(f"task.template={self.template}: it has no {{prompt}}")

    def rows(self, columns: Columns, split: str) -> Columns:
        """A prompt is a text, or a chat's messages; a completion is a text. `extras` are there
        where a chat has any."""
        if self.messages:
            return self._chats(columns, f"split {split}, column {self.messages}")
        texts = zip(columns[self.prompt], columns[self.completion], strict=True)
        pairs = [self._pair(*row, f"split {split}: row {i}") for i, row in enumerate(texts)]
        prompts, completions = map(list, zip(*pairs, strict=True))
        return {"prompt": prompts, "completion": completions}

    def _chats(self, columns: Columns, where: str) -> Columns:
        given = enumerate(columns[str(self.messages)])
        chats = [chat.turns(messages, f"{where}: row {i}") for i, messages in given]
        rows: Columns = {
            "prompt": [messages[:-1] for messages in chats],
            "completion": [messages[-1]["content"] or "" for messages in chats],
        }
        extras = [{k: v for k, v in m[-1].items() if k not in chat.PLAIN} for m in chats]
        for extra, tools in zip(extras, columns.get("tools", ()), strict=False):
            if tools:
                extra["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        return rows | ({"extras": extras} if any(extras) else {})

    def _pair(self, prompt: object, completion: object, where: str) -> tuple[str | Chat, str]:
        completion = _text(completion, f"{where}, column {self.completion}")
        return self._asked(prompt, where), completion

    def _asked(self, prompt: object, where: str) -> str | Chat:
        prompt = _text(prompt, f"{where}, column {self.prompt}")
        text = self.template.replace("{prompt}", prompt)
        return [{"role": "user", "content": text}] if self.chat else text

    def questions(
        self, columns: Columns, where: str, tokenizer: PreTrainedTokenizerBase, limit: int
    ) -> Columns:
        """The tokens of prompts to be answered, from the columns `asked`.

        Raises `UserError` for a prompt that leaves no room for an answer.
        """
        given = list(enumerate(columns[self.asked[0]]))
        read = chat.question if self.messages else self._asked
        asked = [read(each, f"{where}: row {i}") for i, each in given]
        texts = [p if isinstance(p, str) else chat.open_prompt(p, None, tokenizer) for p in asked]
        ids = self._plain(texts, tokenizer, begin=isinstance(asked[0], str))
        lengths = [len(row) for row in ids]
        rows: Columns = {"id": [*range(len(ids))], "input_ids": ids, "prompt_length": lengths}
        _check_lengths(rows, limit)
        return rows

    def _plain(
        self, texts: list[str], tokenizer: PreTrainedTokenizerBase, begin: bool = False
    ) -> list[Ids]:
        """Tokens of texts as they are; with `begin` the token that the tokenizer begins with."""
        mark = tokenizer.bos_token
        if begin and mark and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
            texts = [mark + text.removeprefix(mark) for text in texts]
        ids: list[Ids] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    @property
    def asked(self) -> list[str]:
        return self.columns[:1]

    @property
    def content(self) -> list[str]:
        return ["prompt"]

    def texts(self, rows: Dataset) -> Iterator[str]:
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
            yield from [prompt] if isinstance(prompt, str) else (m["content"] or "" for m in prompt)
            yield completion

    def make_ready(self, processor: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
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
        self, rows: Columns, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[Ids, Ids]]:
        """The tokens of each prompt, and those of its completion with its end."""
        prompts, completions = list(rows["prompt"]), list(rows["completion"])
        if not isinstance(prompts[0], str):
            yield from self._chat_tokens(rows, tokenizer)
            return
        read = self._plain(prompts, tokenizer, begin=True)
        written = self._plain(completions, tokenizer)
        for prompt, completion in zip(read, written, strict=True):
            yield prompt, [*completion, tokenizer.eos_token_id]

    def _chat_tokens(
        self, rows: Columns, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[Ids, Ids]]:
        prompts, answers, tools = _messages(rows)
        for i, row in enumerate(rows["id"]):
            try:
                yield chat.encode(prompts[i], answers[i], tools[i], tokenizer)
            except UserError as error:
                raise UserError(f"row {row}: {error}") from error

    def features(self, rows: Columns, processor: PreTrainedTokenizerBase, limit: int) -> Columns:
        """Also `labels` (tokens of the completion, else `IGNORED`) and `prompt_length`."""
        pairs = list(self.tokens(rows, processor))
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
        def encoded(batch: Columns) -> Columns:
            return self.features(batch, processor, limit)

        tokens = [processor.eos_token, processor.bos_token, processor.chat_template]
        if self.messages or self.chat:
            tokens += ["header", "parts"]  # a template is given what it lacks or wants
            prompts, answers, tools = _messages(rows)
            whole = [[*p, answer] for p, answer in zip(prompts, answers, strict=True)]
            chat.warn_of_ignored(whole, tools, processor)
        key = fingerprint(rows._fingerprint, self.identity(processor), tokens, limit)
        replaced = [name for name in (*self.kept, "extras") if name in rows.column_names]
        split = cache.stored(rows, encoded, replaced, key, cache_dir)
        _check_lengths(split, limit)
        return split

    def difference(
        self, rows: Dataset, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase
    ) -> str | None:
        chat = bool(self.messages or self.chat)
        if not chat or theirs.chat_template:
            mine, yours = (list(self.tokens(rows, t)) for t in (ours, theirs))
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


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: no text; fill or remove it")
    return value


class Flattened:
    """Batches of one sequence, the rows one after the other; positions restart with each row."""

    def __init__(self) -> None:
        from transformers import DataCollatorWithFlattening

        self.flatten = DataCollatorWithFlattening()

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = self.flatten(rows)
        ids = {"id": torch.tensor([row["id"] for row in rows])} if "id" in rows[0] else {}
        return batch | ids


def _messages(
    rows: Dataset | Columns,
) -> tuple[list[Chat], list[Message], list[Tools]]:
    """Of chats the prompts, the messages that answer them, and the tools."""
    texts, names = list(rows["completion"]), getattr(rows, "column_names", rows)
    extras = list(rows["extras"]) if "extras" in names else [{}] * len(texts)
    answers: list[Message] = [
        {"role": "assistant", "content": text or None}
        | {k: v for k, v in extra.items() if k != "tools"}
        for text, extra in zip(texts, extras, strict=True)
    ]
    return list(rows["prompt"]), answers, [extra.get("tools") for extra in extras]


def _check_lengths(split: Dataset | Columns, max_length: int) -> None:
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
        f"{max_length}{others}; remove such rows, or raise task.max_length if the model reads more"
    )
