"""Training recipes as data. `baseline` is the plain way; `shipped` is what the weights come from.

Both see the same number of tokens of the same corpus with the same shape; the model card tables
what each difference is worth.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained; learning rates are peak values.

    Attributes:
        batch_tokens: tokens per step; the budget divided by it is the number of steps.
        lr: AdamW's peak rate, for every parameter or, with `matrix_lr`, for embedding and norms.
        matrix_lr: Muon's peak rate for the weight matrices; None trains them with AdamW.
        warmup: fraction of the steps in which the rate rises linearly from 0.
        decay: fraction of the steps, at the end, in which it falls.
        cosine: whether it falls along a cosine (otherwise linearly).
        floor: what it falls to, as a fraction of the peak.
        zero_output: start `o_proj` and `down_proj` at 0, so that each layer begins as identity.
        init_std: standard deviation of all other weights at the start.
        z_loss: weight of the mean squared log partition function, which keeps logits small.
        clip: largest gradient norm; None does not clip.
    """

    batch_tokens: int = 65_536
    lr: float = 2e-3
    matrix_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    matrix_weight_decay: float = 0.0
    warmup: float = 0.08
    decay: float = 0.92
    cosine: bool = True
    floor: float = 0.1
    zero_output: bool = False
    init_std: float = 0.02
    z_loss: float = 0.0
    clip: float | None = 1.0
    seed: int = 1


RECIPES = {
    "baseline": Recipe(),
    "shipped": Recipe(
        batch_tokens=32_768,
        lr=4e-3,
        matrix_lr=0.02,
        weight_decay=0.01,
        matrix_weight_decay=0.05,
        warmup=0.01,
        decay=0.6,
        cosine=False,
        floor=0.0,
        zero_output=True,
        z_loss=1e-4,
        clip=None,
    ),
}
