"""Chats: messages read whole, and written by a tokenizer's chat template."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from forge.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Ids: TypeAlias = list[int]
Message: TypeAlias = dict[str, object]  # role, content, and what else its template knows
Chat: TypeAlias = list[Message]
Tools: TypeAlias = Sequence[object] | None  # that a chat may call, as JSON schemas
PLAIN = ("role", "content")


def turns(chat: object, where: str) -> Chat:
    """A chat's messages, the last one the assistant's; raises `UserError` for anything else."""
    try:
        messages = [_message(m) for m in chat]  # type: ignore[attr-defined]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: not a list of messages with role and content") from error
    for message in messages:
        calls = message["content"] is None and message.get("tool_calls")
        if not isinstance(message["content"], str) and not calls:
            raise UserError(f"{where}: a message's content is not a text")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: its last message must be the assistant's, after another one")
    if not str(messages[-1]["content"] or "").strip():
        raise UserError(f"{where}: its last message has no text to be learnt and judged")
    return messages


def _message(given: Mapping[str, object]) -> Message:
    more = {k: v for k, v in given.items() if k not in PLAIN and v is not None}
    return {"role": str(given["role"]), "content": given.get("content"), **more}


def write(
    messages: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase, asked: bool
) -> str:
    """A chat as its template writes it; `asked`: and opens the assistant's next message.

    Raises `UserError` for a chat that the template does not take.
    """
    from jinja2 import TemplateError

    apply: Callable[..., object] = tokenizer.apply_chat_template
    try:
        return str(apply(list(messages), tools=tools, add_generation_prompt=asked, tokenize=False))
    except (TemplateError, TypeError) as error:
        roles = ", ".join(str(m["role"]) for m in messages)
        raise UserError(
            f"chat [{roles}]: the model's template takes no such one ({error})"
        ) from error


def encode(
    prompt: Sequence[Message], answer: Message, tools: Tools, tokenizer: PreTrainedTokenizerBase
) -> tuple[Ids, Ids]:
    """Tokens of the prompt with the assistant's header, and of the answer up to its end."""

    def tokens(text: str) -> Ids:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    opened = write(prompt, tools, tokenizer, True)
    if opened == write(prompt, tools, tokenizer, False):
        opened += header(prompt, tools, tokenizer, opened)
    text = write([*prompt, answer], tools, tokenizer, False)
    if not text.startswith(opened):
        raise UserError(
            "the chat template writes an answered prompt differently from an open one, so its "
            "completion cannot be told apart; choose another model, or prompt and completion texts"
        )
    read, whole = tokens(opened), tokens(text)
    written = whole[len(read) :]
    if whole[: len(read)] != read:  # a token reaches across the answer's beginning
        written = tokens(text[len(opened) :])
    end = tokenizer.eos_token_id
    if end not in written:
        return read, [*written, end]
    return read, written[: len(written) - written[::-1].index(end)]  # often a line break follows


def header(
    prompt: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase, opened: str
) -> str:
    """What a template that knows no open prompt writes before an assistant's content."""
    probes = [
        write([*prompt, {"role": "assistant", "content": text}], tools, tokenizer, False)
        for text in ("Yes", "no")
    ]
    if not all(probe.startswith(opened) for probe in probes):
        return ""
    ends = (probe[len(opened) :] for probe in probes)
    shared = 0
    for one, other in zip(*ends, strict=False):
        if one != other:
            break
        shared += 1
    return probes[0][len(opened) : len(opened) + shared]


def warn_of_ignored(
    chats: Sequence[Sequence[Message]], tools: Sequence[Tools], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Warn once of each field of messages, and of tools, that the template does not write."""
    where = {name: i for i, chat in enumerate(chats) for message in chat for name in message}
    for name, i in where.items():
        if name in PLAIN:
            continue
        bare = [{k: v for k, v in m.items() if k != name} for m in chats[i]]
        if write(chats[i], tools[i], tokenizer, False) == write(bare, tools[i], tokenizer, False):
            log.warning("the model's chat template leaves out the messages' field %s", name)
    given = next((i for i, each in enumerate(tools) if each), None)
    if given is not None:
        pair = (write(chats[given], t, tokenizer, False) for t in (tools[given], None))
        if len(set(pair)) == 1:
            log.warning("the model's chat template leaves out tools")
