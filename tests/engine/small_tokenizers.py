"""Small tokenizers of the kinds that language models use, made without training data.

Each is a transformers tokenizer around parts that are laid out as in the `tokenizer.json` of a
well-known model.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

WORDS = ["\u2581", "a", "b", "c", "s", "e", "n", "t", "\n", ".", "<", ">", "|", "[", "/", "_", "i"]
MERGES = [("\u2581", "a"), ("\u2581", "b"), ("\u2581", "\u2581"), ("e", "n"), ("\u2581", "t")]
CHARACTERS = ["é", "日", "\ufffd"]


def sentencepiece_model() -> models.BPE:
    """Characters, a few merges, and a token a byte for all else, as in Llama 2."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += WORDS + ["".join(pair) for pair in MERGES] + CHARACTERS
    vocab = {name: number for number, name in enumerate(names)}
    return models.BPE(
        vocab=vocab, merges=MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )


def llama2() -> PreTrainedTokenizerFast:
    """A space before every text, dropped again from what is decoded; `<s>` begins a text."""
    backend = Tokenizer(sentencepiece_model())
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return finished(backend, "<s>", "</s>", bos=True)


def gemma() -> PreTrainedTokenizerFast:
    """The same without a space before a text: none is dropped."""
    backend = Tokenizer(sentencepiece_model())
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return finished(backend, "<s>", "</s>", bos=True)


def mistral() -> PreTrainedTokenizerFast:
    """The same through a Metaspace pre-tokenizer, which prepends to the first piece only."""
    backend = Tokenizer(sentencepiece_model())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    return finished(backend, "<s>", "</s>", bos=True)


def byte_level(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """256 bytes and two merges, as in GPT-2 and after it."""
    names = ["<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "\u0120a", "en"]
    vocab = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("\u0120", "a"), ("e", "n")]))
    backend.normalizer = normalizer
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return finished(backend, "<|im_start|>", "<|im_end|>")


def byte_character(byte: int) -> str:
    """Return the character that GPT-2's vocabulary writes for a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + byte - sum(b < byte for b in printable))


def words() -> PreTrainedTokenizerFast:
    """Whole words with no decoder at all: decoding puts spaces between them."""
    vocab = {name: i for i, name in enumerate(["<s>", "</s>", "<unk>", "one", "two", "\ufffd"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return finished(backend, "<s>", "</s>")


def word_pieces() -> PreTrainedTokenizerFast:
    """Words and their ends, as in BERT: a space before each that is no end."""
    names = ["<s>", "</s>", "<unk>", "one", "two", "##s", "##é", "\ufffd", "."]
    vocab = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return finished(backend, "<s>", "</s>")


def finished(
    backend: Tokenizer, start: str, end: str, *, bos: bool = False
) -> PreTrainedTokenizerFast:
    """Add the special tokens and hand over to transformers."""
    from tokenizers.processors import TemplateProcessing

    backend.add_special_tokens([AddedToken(name, normalized=False) for name in (start, end)])
    if bos:
        backend.post_processor = TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, backend.token_to_id(start))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=start,
        eos_token=end,
        clean_up_tokenization_spaces=False,
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama2": llama2,
    "gemma": gemma,
    "mistral": mistral,
    "byte-level": byte_level,
    "words": words,
    "word pieces": word_pieces,
}
