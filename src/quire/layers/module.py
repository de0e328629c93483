"""`Layer`: a torch module without the two conveniences that inference pays for and never uses."""

from __future__ import annotations

from typing import Any

from torch import nn


class Layer(nn.Module):
    """An `nn.Module` that calls straight into `forward` and finds its parts at once.

    torch looks for hooks at every call, and keeps parameters and submodules in dictionaries
    that Python only searches after everything else. A step of quire-mini makes more than
    eighty calls and twice as many look-ups: together 8 % of the step on two CPU
    threads (interleaved runs with and without this class).
    """

    def __call__(self, *args: Any) -> Any:
        """Call `forward`; hooks are not supported."""
        return self.forward(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        """Register a parameter or submodule as torch does, and keep it in reach as well."""
        super().__setattr__(name, value)
        if isinstance(value, nn.Module | nn.Parameter):
            self.__dict__[name] = value
