"""`DraftRoom`: blocks for a request's next positions where drafts are among them or behind them.

Drafts are a guess. A request preempts nobody for their sake, and leaves a token of the step's
budget and a block to each request behind it. Where a model computes guesses it needs places
behind the step's own positions, too; without them fewer are made.
"""

from __future__ import annotations

from quire.kv.kv_cache_manager import KVCacheManager, Reservation
from quire.request import Request
from quire.speculation.config import SpeculativeConfig


class DraftRoom:
    """Reserves for one request at a time; who comes behind it is told as a number."""

    def __init__(self, kv: KVCacheManager, config: SpeculativeConfig | None) -> None:
        """Reserve blocks of `kv`; without a config only for drafts that requests bring along."""
        self._kv = kv
        # Positions behind a step's own that a model computes guesses at; 0: no model guesses.
        self.num_lookahead = 0 if config is None else config.num_lookahead_tokens

    def reserve(
        self, request: Request, num_tokens: int, last_position: int, num_behind: int, budget: int
    ) -> tuple[int, Reservation | None]:
        """Make room for a request's next positions, without its drafts if that is all there is.

        Args:
            num_tokens: positions from `request.num_computed_tokens` on, drafts among them.
            last_position: of the last token that the request may have, which is not computed.
            num_behind: requests whose turn in this step comes later.
            budget: tokens that the step may still hold.

        Returns:
            How many positions it has, and their blocks: None if there are none for the tokens
            that are no drafts.
        """
        num_known = request.num_known_unscheduled
        if num_tokens > num_known:
            num_tokens = max(num_known, min(num_tokens, budget - num_behind))
        reservation = None
        if self._kv.num_free_blocks > num_behind or num_tokens <= num_known:
            reservation = self.reserve_ahead(request, num_tokens, last_position, num_behind)
        if reservation is None and num_tokens > num_known:
            num_tokens, reservation = num_known, self._kv.reserve(request, num_known)
        return num_tokens, reservation

    def reserve_ahead(
        self, request: Request, num_tokens: int, last_position: int, num_behind: int = 0
    ) -> Reservation | None:
        """Make room for positions, and for guesses behind them if there is any."""
        until_limit = last_position - request.num_computed_tokens - num_tokens
        lookahead = min(self.num_lookahead, until_limit)
        num_blocks = -(-(num_tokens + lookahead) // self._kv.block_size)
        if self._kv.num_free_blocks < num_blocks + num_behind:
            lookahead = 0
        if lookahead > 0 and request.sampling_params.speculate:
            reservation = self._kv.reserve(request, num_tokens + lookahead)
            if reservation is not None:
                return reservation
        return self._kv.reserve(request, num_tokens)

    def num_guesses(self, request: Request, num_places: int) -> int:
        """Return how many guesses a model makes behind a request's queued tokens.

        Each is computed behind the one before it, the first where the last token is: all in
        the request's blocks, which hold `num_places` positions.
        """
        if request.num_placeholders == 0 or not request.sampling_params.speculate:
            return 0
        return min(self.num_lookahead, num_places - request.num_computed_tokens)
