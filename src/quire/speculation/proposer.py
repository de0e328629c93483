"""`Proposer`: guesses the tokens that a request's next ones may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass
class ProposeContext:
    """What a proposer sees of R requests, after a step has given each its tokens."""

    token_ids: Sequence[NDArray[np.int64]]  # of each request: prompt and output, all known
    rows: Sequence[int]  # of each request: its row, its own until it ends


class Proposer(Protocol):
    """Swap point: guesses tokens from those that the host knows."""

    def propose(self, context: ProposeContext, k: int) -> list[list[int]]:
        """Return 0 … k guesses for each request, of the tokens that follow its last, in order.

        A guess may be wrong: that costs time and nothing else.
        """
        ...
