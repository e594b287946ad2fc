"""Chats: messages read whole, and written by a tokenizer's chat template."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from forge.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Ids: TypeAlias = list[int]
Message: TypeAlias = dict[str, object]  # role, content, and what else its template knows
Chat: TypeAlias = list[Message]
Tools: TypeAlias = Sequence[object] | None  # that a chat may call, as JSON schemas
T = TypeVar("T")
PLAIN = ("role", "content")
SAMPLED = 200  # messages with a field that are looked at
PROBE = "a text that no template writes of itself"
PARTS: dict[str, bool] = {}  # by template


def turns(chat: object, where: str) -> Chat:
    """A chat's messages, the last one the assistant's; raises `UserError` for anything else.

    A content of parts is their texts, one that a tool gave as an object is JSON. A chat may be
    written as JSON, as files without lists have it.
    """
    messages = _messages(chat, where)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: its last message must be the assistant's, after another one")
    if not str(messages[-1]["content"] or "").strip() and not messages[-1].get("tool_calls"):
        raise UserError(f"{where}: its last message has no text to be learnt and judged")
    return messages


def _messages(chat: object, where: str) -> Chat:
    try:
        given: Any = json.loads(chat) if isinstance(chat, str) else chat
        return [_message(m, where) for m in given]
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{where}: not a list of messages with role and content") from error


def _message(given: Mapping[str, object], where: str) -> Message:
    more = {k: v for k, v in given.items() if k not in PLAIN and v is not None}
    content, role = given.get("content"), str(given["role"])
    if isinstance(content, Mapping) and role == "tool":
        content = json.dumps(content, ensure_ascii=False)
    elif isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{where}: a part of a message's content is not a text")
        content = "".join(map(str, parts))
    if not isinstance(content, str) and not (content is None and more.get("tool_calls")):
        raise UserError(f"{where}: a message's content is not a text")
    return {"role": role, "content": content, **more}


def write(
    messages: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase, asked: bool
) -> str:
    """A chat as its template writes it; `asked`: and opens the assistant's next message.

    Raises `UserError` for a chat that the template does not take.
    """
    from jinja2 import TemplateError

    given = _in_parts(messages) if _wants_parts(tokenizer) else list(messages)
    try:
        return _apply(tokenizer, given, tools=tools, add_generation_prompt=asked)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(str(m["role"]) for m in messages)
        raise UserError(
            f"chat [{roles}]: the model's template takes no such one ({error})"
        ) from error


def _apply(tokenizer: PreTrainedTokenizerBase, chat: Chat, **settings: object) -> str:
    apply: Callable[..., object] = tokenizer.apply_chat_template
    return str(apply(chat, tokenize=False, **settings))


def _in_parts(messages: Sequence[Message]) -> Chat:
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if m["content"] else m
        for m in messages
    ]


def _wants_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template writes contents that are lists of parts, and no others."""
    from jinja2 import TemplateError

    template = str(tokenizer.chat_template)
    if template not in PARTS:
        PARTS[template] = False
        probe: Chat = [{"role": "user", "content": PROBE}]
        with suppress(TemplateError, TypeError):
            if PROBE not in _apply(tokenizer, probe):
                PARTS[template] = PROBE in _apply(tokenizer, _in_parts(probe))
    return PARTS[template]


def question(chat: object, where: str) -> Chat:
    """The messages that are to be answered, without an answer that is there: those of a chat, or
    what a user says alone. Raises `UserError` for anything else."""
    if isinstance(chat, str) and not chat.lstrip().startswith("["):
        return [{"role": "user", "content": chat}]
    messages = _messages(chat, where)
    asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    if not asked:
        raise UserError(f"{where}: no message to be answered")
    return asked


def open_prompt(prompt: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt as the template writes it, with the assistant's header."""
    opened = write(prompt, tools, tokenizer, True)
    if opened == write(prompt, tools, tokenizer, False):
        opened += header(prompt, tools, tokenizer, opened)
    return opened


def encode(
    prompt: Sequence[Message], answer: Message, tools: Tools, tokenizer: PreTrainedTokenizerBase
) -> tuple[Ids, Ids]:
    """Tokens of the prompt with the assistant's header, and of the answer up to its end."""

    def tokens(text: str) -> Ids:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    opened = open_prompt(prompt, tools, tokenizer)
    text = write([*prompt, answer], tools, tokenizer, False)
    if not answer["content"]:
        bare = write([*prompt, {**answer, "tool_calls": None}], tools, tokenizer, False)
        if text == bare:
            raise UserError(
                "its last message is tool calls alone, and the chat template leaves them out; "
                "choose a model whose template writes them, or remove such rows"
            )
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
    """Warn of each field of messages, and of tools, that the template does not write.

    Each message that has the field is tried without it; of more than `SAMPLED` that many.
    """
    given: dict[str, list[tuple[int, int]]] = {}  # chats and messages by field
    for i, chat in enumerate(chats):
        for j, message in enumerate(chat):
            for name in message:
                if name not in PLAIN and message[name]:
                    given.setdefault(name, []).append((i, j))

    def leaves_out(i: int, j: int, name: str) -> bool:
        chat = list(chats[i])
        bare = {k: v for k, v in chat[j].items() if k != name}
        without = [*chat[:j], bare, *chat[j + 1 :]]
        return write(chat, tools[i], tokenizer, False) == write(without, tools[i], tokenizer, False)

    for name, places in sorted(given.items()):
        tried = _some(places)
        _warn(f"the messages' field {name}", [leaves_out(*at, name) for at in tried], len(places))
    offered = [i for i, each in enumerate(tools) if each]
    same = []
    for i in _some(offered):
        pair = (write(chats[i], given_tools, tokenizer, False) for given_tools in (tools[i], None))
        same.append(len(set(pair)) == 1)
    _warn("tools", same, len(offered))


def _some(places: Sequence[T]) -> Sequence[T]:
    """Of many some, evenly spread."""
    return places[:: -(-len(places) // SAMPLED)] if places else places


def _warn(what: str, left_out: Sequence[bool], given: int) -> None:
    if any(left_out):
        log.warning(
            "the model's chat template leaves out %s in %d of %d%s", what, sum(left_out),
            len(left_out), f" tried (of {given})" if len(left_out) < given else "",
        )  # fmt: skip
