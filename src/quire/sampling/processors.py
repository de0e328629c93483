"""What happens to the logits before the temperature: what is forbidden, favoured or said again.

Each step takes logits [R, V] and returns logits [R, V]; a removed token has -inf. They are
pure: the argument is left as it was. Their order is `SamplingParams`'s. Temperature and what
comes after it belong to the draw (`quire.kernels.sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.sampling.params import LogitsProcessor
from quire.sampling.tensors import Penalties, RowFunction, SamplingTensors


def shape_logits(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """Apply every step that the rows ask for; without any the logits come back as they are."""
    if sampling.bias is not None:
        logits = logits + sampling.bias
    if sampling.functions:
        logits = apply_functions(logits, sampling.functions, sampling.failures)
    if sampling.penalties is not None:
        logits = apply_penalties(logits, sampling.penalties)
    return logits


def apply_functions(
    logits: Tensor, functions: Sequence[RowFunction], failures: dict[int, str]
) -> Tensor:
    """Let each request's own functions rewrite its row.

    A caller's function that raises, or returns anything but the logits of one row, must not cost
    other callers their step: its row gets NaN, so that it has no token, and `failures` the reason.
    """
    logits = logits.clone()
    for row, function, output_token_ids in functions:
        if row in failures:
            continue
        try:
            logits[row] = _changed(function, output_token_ids, logits[row])
        except KeyboardInterrupt:
            raise  # it is not the function's
        except BaseException as error:  # whatever a caller's code may raise, SystemExit too
            failures[row] = f"logits processor {function!r} raised {type(error).__name__}: {error}"
            logits[row] = torch.nan
    return logits


def _changed(function: LogitsProcessor, output_token_ids: list[int], row: Tensor) -> Tensor:
    """Return what a function makes of a row of logits; it gets copies of its own."""
    changed: object = function(list(output_token_ids), row.clone())
    if isinstance(changed, Tensor) and changed.shape == row.shape:
        return changed
    found = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
    raise TypeError(
        f"it returned {found} and must return the row of logits, a tensor of shape "
        f"{list(row.shape)}"
    )


def apply_penalties(logits: Tensor, penalties: Penalties) -> Tensor:
    """Make tokens that were seen before less likely (or, with values reversed, more).

    The repetition penalty looks at prompt and output and scales (Keskar et al. 2019,
    with the sign case, since dividing a negative logit would raise it); presence and
    frequency penalties look at the output only and subtract.
    """
    seen = (penalties.prompt_counts > 0) | (penalties.output_counts > 0)
    factor = torch.where(seen, penalties.repetition, 1)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    logits = logits - penalties.frequency * penalties.output_counts
    return logits - penalties.presence * (penalties.output_counts > 0)
