"""`Layer`: a torch module that calls straight into `forward`."""

from __future__ import annotations

from typing import Any

from torch import nn


class Layer(nn.Module):
    """An `nn.Module` without hooks.

    torch looks for hooks at every call. Inference has none, and a step of quire-mini makes
    more than eighty calls, so the look-ups cost a CPU about 4 % of a step.
    """

    def __call__(self, *args: Any) -> Any:
        """Call `forward`."""
        return self.forward(*args)
