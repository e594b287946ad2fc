"""Vocabularies for models that start from random weights, learnt from the task's training texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from forge.config.schema import Node

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def word_pieces(config: Node, texts: Iterable[str], two_texts: bool) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece vocabulary of at most `config.vocab_size`.

    With `two_texts` the model is given which of two texts a token is of.

    The library numbers continuing characters in the order of a hash map, which changes from run to
    run and decides between equally frequent merges; naming them beforehand makes it deterministic.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    counts = Counter("".join(texts)).most_common(1000)
    letters = sorted(letter for letter, _ in counts if not letter.isspace())
    named = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer.train_from_iterator(
        texts,
        vocab_size=config.get("vocab_size", 30522),
        special_tokens=[*named.values(), *letters, *(f"##{letter}" for letter in letters)],
        show_progress=False,
    )
    tokenizer = BertWordPieceTokenizer(vocab=tokenizer.get_vocab(), lowercase=True)
    limit = config.get("max_position_embeddings", 512)
    inputs = ["input_ids", "attention_mask"]
    if two_texts:
        inputs.append("token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        model_max_length=limit,
        model_input_names=inputs,
        **named,
    )


def byte_pairs(config: Node, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Byte-level BPE of at most `config.vocab_size`: any text comes back as it was.

    Digits stay single, so that a number is spelled and not one of many unrelated words.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), by_bytes])
    pairs.decoder = decoders.ByteLevel()
    learn = trainers.BpeTrainer(
        vocab_size=config.get("vocab_size", 32000),
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(by_bytes.alphabet()),
        show_progress=False,
    )
    pairs.train_from_iterator(texts, learn)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=config.get("max_position_embeddings", 2048),
        model_input_names=["input_ids", "attention_mask"],
    )
