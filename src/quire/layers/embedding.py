"""`Vocabulary`: the two ends of a decoder, from token ids to vectors and from vectors to logits."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.errors import CheckpointError
from quire.kernels.best_keys import best_keys, best_tokens
from quire.layers.linear import Linear, MethodFactory
from quire.layers.module import (
    RANDOM_STD,
    Layer,
    Taker,
    check_fits,
    copy_part,
    empty_parameter,
    leave,
)
from quire.parallel.comm import PartialSum
from quire.parallel.part import Part, cut, padded_part
from quire.parallel.place import Place
from quire.sampling.sampler import GraphSafeSampler
from quire.sampling.triton_sampler import TritonSampler

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # names in a checkpoint
_ROWS_AT_ONCE = 8192  # of two tables that are compared


class Vocabulary(Layer):
    """A vector for each token id, and a head that gives each token id a logit.

    In a tied model the head multiplies by the embedding's own table (Press and Wolf 2017).
    A checkpoint then has it once, under either name. One that has both, with different
    numbers, was not tied after all: both are kept, as transformers does.

    Of several ranks each keeps the rows of equally many tokens, the last one's filled up with
    zeros. A token's vector then comes from one of them, and each gives its own tokens' logits.
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
        place: Place,
    ) -> None:
        """Create both with their weights empty, or of a pipeline's stage what it needs."""
        super().__init__()
        self.tied = tied
        self.comm = comm = place.tensor
        self._has_embedding = place.is_first or (tied and place.is_last)
        self._has_head = place.is_last
        self.rows = padded_part(vocab_size, comm.rank, comm.size)
        self._parts = [self.rows, Part.whole(hidden_size)]
        meta = torch.device("meta")  # shapes without memory
        self.embedding = empty_parameter(
            (self.rows.size, hidden_size), dtype, device if self._has_embedding else meta
        )
        self.head = Linear(
            hidden_size,
            {HEAD.removesuffix(".weight"): self.rows},
            method_for,
            bias=False,
            dtype=dtype,
            device=device if self._has_head and not tied else meta,
        )
        if tied:
            self.head.weight = self.embedding
        self._stored_head: Tensor | None = None  # of a tied model: a view of the file
        self._filled = False

    def embed(self, token_ids: Tensor) -> Tensor | PartialSum:
        """Return the vectors of token ids [num_tokens], [num_tokens, hidden_size]."""
        if self.comm.size == 1:
            return F.embedding(token_ids, self.embedding)
        own = token_ids - self.rows.begin
        is_here = (own >= 0) & (own < self.rows.size)
        vectors = F.embedding(torch.where(is_here, own, 0), self.embedding)
        return PartialSum(vectors * is_here[:, None], self.comm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [R, hidden_size], [R, vocab_size]."""
        logits: Tensor = self.head(hidden)
        if self.comm.size == 1:
            return logits
        return self.comm.all_gather(logits)[:, : self.rows.total]

    def greedy(self, hidden: Tensor, sampler: GraphSafeSampler) -> Tensor:
        """Return the token of each hidden state's largest logit, int64 [R]; hidden [R, H].

        Ranks exchange the best of their own tokens, 8 bytes a row, where the logits would be two
        bytes a token of the vocabulary.
        """
        # A sampler of the user's own may choose otherwise, and of a tiny vocabulary the last rank
        # may have nothing.
        ours = type(sampler).greedy is TritonSampler.greedy
        rows, size = self.rows, self.comm.size
        if size == 1 or not ours or rows.total <= rows.size * (size - 1):
            return sampler.greedy(self.logits(hidden))
        own = self.head(hidden)[:, : self.rows.stored]
        keys = best_keys(own, self.rows.begin)
        return best_tokens(self.comm.all_gather(keys[None], 0))

    def takes(self) -> dict[str, Taker]:
        """The table and the head's; of a tied model, either."""
        if not self.tied:
            embedding = Taker(self._take_embedding) if self._has_embedding else Taker(leave)
            head = self.head.takes() if self._has_head else {HEAD: Taker(leave)}
            return {EMBEDDING: embedding, **head}
        if not self._has_embedding:
            return {name: Taker(leave, required=False) for name in (EMBEDDING, HEAD)}
        return {
            EMBEDDING: Taker(self._take_embedding, required=False),
            HEAD: Taker(self._take_head, required=False),
        }

    def finish_load(self) -> None:
        """Settle what a tied model's head is, then let the head's method pack it.

        Raises:
            CheckpointError: a tied model was given neither table.
        """
        if self.tied and self._has_embedding:
            self._settle_head()
        if self._has_head:
            self.head.finish_load()

    def fill_random(self, generator: torch.Generator) -> None:
        """Draw both from a normal distribution."""
        if self._has_embedding:
            self.embedding.normal_(0.0, RANDOM_STD, generator=generator)
        self._filled = True
        if self._has_head and not self.tied:
            self.head.fill_random(generator)

    def _take_embedding(self, tensor: Tensor) -> None:
        copy_part(self.embedding, tensor, self._parts)
        self._filled = True

    def _take_head(self, tensor: Tensor) -> None:
        self._stored_head = cut(tensor, self._parts)
        check_fits(self._stored, self._stored_head)

    @property
    def _stored(self) -> Tensor:
        """The rows of this rank's table that a checkpoint has."""
        return self.embedding[: self.rows.stored]

    def _settle_head(self) -> None:
        stored, self._stored_head = self._stored_head, None
        if not self._filled:
            if stored is None:
                raise CheckpointError(
                    f"lacks {EMBEDDING!r} that its config asks for; is a weight file missing?"
                )
            self.embedding.zero_()
            self._stored.copy_(stored)
        elif stored is not None and not _equal(self._stored, stored):
            warnings.warn(
                f"config.json has tie_word_embeddings=true, but {HEAD} is stored beside "
                f"{EMBEDDING} and differs: both are kept. Set tie_word_embeddings to false",
                stacklevel=2,
            )
            self.head.weight = empty_parameter(
                tuple(self.embedding.shape), self.embedding.dtype, self.embedding.device
            )
            self.head.weight.zero_()[: self.rows.stored] = stored


def _equal(table: Tensor, stored: Tensor) -> bool:
    """Whether a stored table is this one, once in its dtype; piece by piece, to save memory."""
    pairs = zip(table.split(_ROWS_AT_ONCE), stored.split(_ROWS_AT_ONCE), strict=True)
    return all(torch.equal(own, other.to(own.device, own.dtype)) for own, other in pairs)
