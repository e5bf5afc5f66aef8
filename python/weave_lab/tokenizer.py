"""A byte tokenizer in the Hugging Face format: token id = byte value, then three special tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = 256, 257, 258
VOCAB_SIZE = 288
"""Rows of the embedding; ids 259 and up are padding to a multiple of 32 and never occur."""

_SPECIAL = {"<bos>": BOS, "<eos>": EOS, "<pad>": PAD}


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level tokenizers."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that puts ``<bos>`` before every text and maps each UTF-8 byte to the id of its value.

    Args:
        max_length: longest input in tokens, recorded in the tokenizer's configuration.
    """
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def encode_bytes(text: str) -> list[int]:
    """Token ids of `text` without ``<bos>``: its UTF-8 bytes."""
    return list(text.encode())
