"""Text for calibration and for judging: files to documents, documents to sequences of tokens."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.errors import QuireError
from quire.tokenizer import Tokenizer

FEWEST_TOKENS = 16  # a shorter end of a document has little context, and is left out


@dataclass(frozen=True)
class TextSequence:
    """A piece of a document."""

    token_ids: list[int]
    document: int  # its number
    num_bytes: int  # of the text behind the first token, as UTF-8


def read_documents(paths: Sequence[Path]) -> list[str]:
    """Return the documents in some files.

    A `.jsonl` (or `.jsonl.gz`) file has a document a line, under the key "text"; any other
    file is a document (`.gz`: compressed).

    Raises:
        QuireError: a file is missing, no text, or has a line without "text".
    """
    documents: list[str] = []
    for path in paths:
        try:
            data = path.read_bytes()
            content = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        except FileNotFoundError:
            raise QuireError(f"{path} does not exist: give a file of text") from None
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise QuireError(f"{path} cannot be read as UTF-8 text ({error})") from None
        if ".jsonl" not in path.suffixes[-2:]:
            documents.append(content)
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                documents.append(_text_of(line, f"{path}, line {number}"))
    return documents


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise QuireError(f'{where}: must be a JSON object with a "text" ({error!r})') from None
    if not isinstance(text, str):
        raise QuireError(f'{where}: "text" is {type(text).__name__}; must be a string')
    return text


def sequences(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    num_tokens: int | None = None,
) -> list[TextSequence]:
    """Cut documents into sequences of `length` tokens, the last of each document shorter.

    Args:
        documents: each begins with the token that begins a text, where the tokenizer has one.
        tokenizer: the checkpoint's.
        length: of a sequence, in tokens.
        num_tokens: about how many to keep, of sequences spread evenly over all; None: all.

    Raises:
        QuireError: there is no sequence.
    """
    found = []
    first = getattr(tokenizer.source, "bos_token_id", None)
    for number, text in enumerate(documents):
        token_ids = tokenizer.encode(text)
        if first is not None and token_ids[:1] != [first]:
            token_ids = [first, *token_ids]
        for begin in range(0, len(token_ids), length):
            piece = token_ids[begin : begin + length]
            if len(piece) >= FEWEST_TOKENS:
                num_bytes = len(tokenizer.decode(piece[1:]).encode("utf-8", "replace"))
                found.append(TextSequence(piece, number, num_bytes))
    if not found:
        raise QuireError(
            f"{len(documents)} documents have no sequence of {FEWEST_TOKENS} tokens: give more text"
        )
    total = sum(len(sequence.token_ids) for sequence in found)
    if num_tokens is None or total <= num_tokens:
        return found
    kept = max(1, round(len(found) * num_tokens / total))
    return [found[i * len(found) // kept] for i in range(kept)]


def require_disjoint(calibration: Sequence[TextSequence], judging: Sequence[TextSequence]) -> None:
    """Raise QuireError if a sequence that judges was calibrated on: it would flatter."""
    seen = {tuple(sequence.token_ids[1:]) for sequence in calibration}
    shared = [s for s in judging if tuple(s.token_ids[1:]) in seen]
    if shared:
        raise QuireError(
            f"--evaluate: {len(shared)} of {len(judging)} sequences are in the calibration text "
            f"too, the first in document {shared[0].document + 1}; judge on other text"
        )
