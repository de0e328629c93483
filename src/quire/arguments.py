"""What `LLM` is given beside its options: looked at before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from quire.components import Components
from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.resources import shipped_models
from quire.trace import Trace


def check_arguments(model: object, components: object, trace: object) -> None:
    """Refuse by name what is no model, no `Components` or no `Trace`; the last two may be None.

    Raises:
        QuireError: the message names the argument, its value and what it may be.
    """
    if not isinstance(model, str | Path | ModelConfig) or model == "":
        raise QuireError(
            f"model={model!r}: must be a shipped model's name ({', '.join(shipped_models())}), a "
            "checkpoint's folder, a hub name like 'Qwen/Qwen3-0.6B', or a ModelConfig"
        )
    if not isinstance(components, Components | None):
        raise QuireError(
            f"components={components!r}: must be Components with parts of your own, such as "
            "Components(sampler=MySampler), or None"
        )
    if not isinstance(trace, Trace | None):
        raise QuireError(
            f"trace={trace!r}: must be a Trace, which you make and keep (trace = Trace()), or None"
        )
