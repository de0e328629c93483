"""Weights and Hessians on which quire's GPTQ is compared with llm-compressor's.

Inputs are whole numbers, so that every machine sums the same H, and numpy's `RandomState` is
frozen: it gives the same numbers in every version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROWS, COLUMNS, TOKENS = 20, 320, 700  # two blocks of 128 columns and one of 64


@dataclass(frozen=True)
class Case:
    """A scheme by its name, and how it is rounded."""

    scheme: str
    act_order: bool = False
    damp: float = 0.01
    num_dead: int = 0  # input features that are 0 in every token

    @property
    def name(self) -> str:
        """A key of the file of goldens."""
        order = "-ordered" if self.act_order else ""
        return f"{self.scheme}{order}-{self.damp}-{self.num_dead}"


CASES = (
    Case("int4-g64"),
    Case("int4-g64", act_order=True),
    Case("int4-g64-asym"),
    Case("int4-g32-asym", act_order=True, damp=0.1),
    Case("int4-channel", damp=0.001),
    Case("int8-channel"),
    Case("int3-g160", act_order=True),
    Case("int4-g64", num_dead=9),
    Case("int4-g64-asym", act_order=True, num_dead=9),
)


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight [ROWS, COLUMNS], H = Σ x xᵀ / c, and which columns are dead, bool.

    H is divided so that the mean of its diagonal over live columns is 1, which is what
    llm-compressor puts where a column is dead.
    """
    random = np.random.RandomState(len(case.name))
    mixing = random.randint(-3, 4, (24, COLUMNS))  # features that go together: H is not diagonal
    x = random.randint(-5, 6, (TOKENS, 24)) @ mixing + random.randint(-9, 10, (TOKENS, COLUMNS))
    x[:, ::37] *= 12  # a few large ones
    dead = np.zeros(COLUMNS, dtype=bool)
    dead[random.permutation(COLUMNS)[: case.num_dead]] = True
    x[:, dead] = 0
    weight = random.standard_normal((ROWS, COLUMNS)).astype(np.float32) / 16
    hessian = x.T.astype(np.float64) @ x  # whole numbers below 2⁵³: exact
    hessian /= np.diag(hessian)[~dead].mean()
    return torch.from_numpy(weight), torch.from_numpy(hessian).float(), torch.from_numpy(dead)
