"""`Drafts`: guesses of a step's tokens, as a sampler is given them to judge."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Drafts:
    """What a step's rows of logits were told would come next. N rows, R requests.

    The rows [first_rows[r], first_rows[r + 1]) are request r's: one for each of its drafts, in
    order, and one behind them.
    """

    tokens: Tensor  # int64 [N], the draft at each row's position; anything in a request's last row
    first_rows: list[int]  # R + 1 numbers
    probabilities: Tensor | None = None  # float32 [N, V], what each was drawn from, if it was
    acceptance_rate: Tensor | None = None  # of a coin that judges them, in place of equality
