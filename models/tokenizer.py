"""The tokenizer that the shipped models share: byte-level BPE with 4,096 ids.

Byte-level means that the alphabet is the 256 byte values (Radford et al., 2019, "Language Models
are Unsupervised Multitask Learners", section 2.2), so every text has ids and decodes back to
itself; there is no unknown token and no normalisation.

`SPLIT` cuts text into pieces before any merge is applied. It follows the GPT-4 and Qwen
pattern (letters with at most one leading mark, single digits, runs of punctuation) with one
difference that pays for Python: a line break takes the next line's indentation with it, so
"newline and eight spaces" can be one token, and a prompt that ends after the indentation ends at
a place where the training text had a token end too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

MODELS = Path(__file__).resolve().parent
NAMES = ("quire-mini", "quire-mini-draft", "quire-mini-moe")
VOCAB_SIZE = 4096
# ids 0, 1, 2. The first separates documents and serves as bos, eos and pad; the other two are
# reserved for a chat template: the models have never seen them in training.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPLIT = (
    r"\s*[\r\n]+[ \t]*"  # line break, blank lines before it, indentation after it
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # word with one leading blank or mark
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?"  # punctuation, with the line break that follows it
    r"|\s+(?!\S)|\s+"  # other blanks; the last one stays with the word
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 2048,
    "model_input_names": ["input_ids", "attention_mask"],
    "chat_template": CHAT_TEMPLATE,
}


def untrained(split: str = SPLIT) -> Tokenizer:
    """Returns a tokenizer with the byte alphabet, the split pattern and no merges yet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(texts: Iterable[str], split: str = SPLIT) -> Tokenizer:
    """Learns the merges from `texts`; the same texts in the same order give the same merges."""
    tokenizer = untrained(split)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=24,
            show_progress=False,
        ),
    )
    return tokenizer


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Trains and writes tokenizer.json and tokenizer_config.json into every model's folder."""
    tokenizer = train(texts)
    for name in NAMES:
        folder = MODELS / name
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    return tokenizer


def load_tokenizer() -> Tokenizer:
    """Reads the committed tokenizer back."""
    return Tokenizer.from_file(str(MODELS / NAMES[0] / "tokenizer.json"))
