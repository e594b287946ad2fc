"""A tokenizer held against the model that reads its tokens; what either lacks is set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from forge.errors import UserError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

OFFSET = {  # architectures that number positions from the padding token's id on, as RoBERTa does
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, where: str
) -> None:
    """Raise `UserError` for a tokenizer with more tokens than the model has embeddings."""
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise UserError(
            f"{where}: it has {len(tokenizer)} tokens, the model {size}; name the tokenizer that "
            "the model was trained with"
        )


def fit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Make a classifier read padded batches, and pairs, as each text alone.

    A tokenizer without a padding token pads with the end of a text, as language models do; one
    that numbers the texts of a pair for a model of one type leaves that out. The model learns the
    padding token where it counts positions or its last token by it. Raises `UserError` for a
    tokenizer that has neither token.
    """
    end, pad = tokenizer.eos_token, tokenizer.pad_token
    if config.is_encoder_decoder and pad in (None, end):  # such a model counts its ends
        end, pad = tokenizer.unk_token or tokenizer.bos_token, None
    tokenizer.pad_token = pad or end
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no token to pad batches with; write a "
            "pad_token into its tokenizer_config.json"
        )
    if config.is_encoder_decoder:
        _end_texts(tokenizer, config)
    model = config.get_text_config()
    known, pad = getattr(model, "pad_token_id", None), tokenizer.pad_token_id
    if known != pad and (is_decoder(model) or (known is None and model.model_type in OFFSET)):
        config.pad_token_id = model.pad_token_id = pad
    if getattr(model, "summary_type", None) == "last":
        tokenizer.padding_side = "left"
    if getattr(model, "type_vocab_size", None) == 1:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = names


def _end_texts(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Have each text end with its token, off which T5's and BART's classifiers are read."""
    from tokenizers import processors

    end, name = tokenizer.eos_token_id, tokenizer.eos_token
    if end is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no token that ends a text, off which a "
            f"{config.model_type} is read; write an eos_token into its tokenizer_config.json"
        )
    config.eos_token_id = end
    if tokenizer.is_fast and tokenizer("a")["input_ids"][-1:] != [end]:
        given = tokenizer.backend_tokenizer.post_processor
        added = processors.TemplateProcessing(
            f"$A {name}", f"$A {name} $B:1 {name}:1", special_tokens=[(name, end)]
        )
        both = [each for each in (given, added) if each is not None]
        tokenizer.backend_tokenizer.post_processor = processors.Sequence(both)


def require_tokens(rows: Iterable[Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` where no text has a token of its own: its model would read nothing.

    So reads transformers a vocabulary of one kind as that which the model's architecture has.
    """
    added = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    if all(added.issuperset(_flat(ids)) for ids in rows):
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} ({type(tokenizer).__name__}) gives the texts "
            "no token; name another with model.tokenizer=DIR"
        )


def _flat(ids: Iterable[Any]) -> Iterator[int]:
    """Tokens of a row, also of one of several windows or options."""
    for each in ids:
        yield from _flat(each) if isinstance(each, list) else (each,)


def fill_empty(encoded: BatchEncoding, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give each text of no tokens one of padding that is read: a model reads at least one."""
    filling = {"input_ids": tokenizer.pad_token_id, "attention_mask": 1, "token_type_ids": 0}
    for row in [i for i, ids in enumerate(encoded["input_ids"]) if not ids]:
        for name in filling.keys() & encoded.keys():
            encoded[name][row] = [filling[name]]


def positions(config: PretrainedConfig) -> int:
    """How many positions a model has; 10^9 where it sets no limit."""
    config = config.get_text_config()
    table = getattr(config, "max_position_embeddings", None)
    if not table or table < 0:  # -1: XLNet's word for none
        return 10**9
    return int(table - config.pad_token_id - 1 if config.model_type in OFFSET else table)


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether the architecture goes on with a text by default; BERT does only when configured."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(getattr(config, "is_decoder", False))
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
