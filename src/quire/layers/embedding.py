"""`Vocabulary`: the two ends of a decoder, from token ids to vectors and from vectors to logits."""

from __future__ import annotations

import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.errors import CheckpointError
from quire.layers.linear import Linear, MethodFactory
from quire.layers.module import RANDOM_STD, Layer, Taker, check_fits, copy_checked, empty_parameter

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # names in a checkpoint
_ROWS_AT_ONCE = 8192  # of two tables that are compared


class Vocabulary(Layer):
    """A vector for each token id, and a head that gives each token id a logit.

    In a tied model the head multiplies by the embedding's own table (Press and Wolf 2017).
    A checkpoint then has it once, under either name. One that has both, with different
    numbers, was not tied after all: both are kept, as transformers does.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        method_for: MethodFactory,
        *,
        tied: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Create both with their weights empty."""
        super().__init__()
        self.tied = tied
        self.embedding = empty_parameter((vocab_size, hidden_size), dtype, device)
        self.head = Linear(
            hidden_size,
            {HEAD.removesuffix(".weight"): vocab_size},
            method_for,
            bias=False,
            dtype=dtype,
            device=torch.device("meta") if tied else device,
        )
        if tied:
            self.head.weight = self.embedding
        self._stored_head: Tensor | None = None  # of a tied model: a view of the file
        self._filled = False

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the vectors of token ids [num_tokens], [num_tokens, hidden_size]."""
        return F.embedding(token_ids, self.embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [R, hidden_size], [R, vocab_size]."""
        return self.head(hidden)

    def takes(self) -> dict[str, Taker]:
        """The table and the head's; of a tied model, either."""
        if not self.tied:
            return {EMBEDDING: Taker(partial(copy_checked, self.embedding)), **self.head.takes()}
        return {
            EMBEDDING: Taker(self._take_embedding, required=False),
            HEAD: Taker(self._take_head, required=False),
        }

    def finish_load(self) -> None:
        """Settle what a tied model's head is, then let the head's method pack it.

        Raises:
            CheckpointError: a tied model was given neither table.
        """
        if self.tied:
            self._settle_head()
        self.head.finish_load()

    def fill_random(self, generator: torch.Generator) -> None:
        """Draw both from a normal distribution."""
        self.embedding.normal_(0.0, RANDOM_STD, generator=generator)
        self._filled = True
        if not self.tied:
            self.head.fill_random(generator)

    def _take_embedding(self, tensor: Tensor) -> None:
        copy_checked(self.embedding, tensor)
        self._filled = True

    def _take_head(self, tensor: Tensor) -> None:
        check_fits(self.embedding, tensor)
        self._stored_head = tensor

    def _settle_head(self) -> None:
        stored, self._stored_head = self._stored_head, None
        if not self._filled:
            if stored is None:
                raise CheckpointError(
                    f"lacks {EMBEDDING!r} that its config asks for; is a weight file missing?"
                )
            self.embedding.copy_(stored)
        elif stored is not None and not _equal(self.embedding, stored):
            warnings.warn(
                f"config.json has tie_word_embeddings=true, but {HEAD} is stored beside "
                f"{EMBEDDING} and differs: both are kept. Set tie_word_embeddings to false",
                stacklevel=2,
            )
            self.head.weight = empty_parameter(
                tuple(stored.shape), self.embedding.dtype, self.embedding.device
            )
            self.head.weight.copy_(stored)


def _equal(table: Tensor, stored: Tensor) -> bool:
    """Whether a stored table is this one, once in its dtype; piece by piece, to save memory."""
    pairs = zip(table.split(_ROWS_AT_ONCE), stored.split(_ROWS_AT_ONCE), strict=True)
    return all(torch.equal(own, other.to(own.device, own.dtype)) for own, other in pairs)
